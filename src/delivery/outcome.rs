//! What becomes of requests, and what the engine has to say about it.

use std::time::Duration;

use smallvec::SmallVec;

use super::position::DeliveryId;

/// `pgwh.subscriptions.id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub i64);

/// An answer of the class 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Success {
    /// The status.
    pub status: u16,
    /// What is wrong with the response's body, if anything.
    pub flaw: Option<String>,
    /// How long the request took.
    pub duration: Duration,
}

/// What a failure says about the endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// There was no answer: DNS, connect, TLS, time-out, reset.
    Connection,
    /// It does not like the request: 4xx but 408, 410 and 429.
    Content,
    /// It asks to be left alone for a while: 429, or 503 with `Retry-After`.
    Busy,
    /// It asks not to be sent to any more: 410.
    Gone,
    /// Anything else.
    #[default]
    Other,
}

/// Why an attempt failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// What it says about the endpoint.
    pub class: FailureClass,
    /// The word that users see for it.
    pub kind: &'static str,
    /// The response's status, if there was one.
    pub status: Option<u16>,
    /// In words.
    pub error: String,
    /// The beginning of the response's body.
    pub response: String,
    /// What the endpoint asked for with `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// How a delivery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The endpoint took it.
    Delivered {
        /// The response's status.
        status: u16,
        /// What is wrong with the response's body, if anything.
        flaw: Option<String>,
    },
    /// It was not wanted after all: there was nothing to send.
    Dropped,
    /// It was given up.
    Dead {
        /// The last response's status, if there was one.
        status: Option<u16>,
        /// The word that users see for the last failure; empty when somebody gave it up.
        kind: &'static str,
        /// The last error, or who gave it up.
        reason: String,
    },
}

/// What is found out about one delivery of a request before that is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sifted {
    /// There is nothing to send.
    Dropped,
    /// What is to be sent cannot be made; it may be another time.
    Failed(Failure),
}

/// The deliveries of a request with what they carry, in order.
pub type Members<P> = SmallVec<[(DeliveryId, P); 1]>;

/// Something for the journal.
#[derive(Clone, Debug)]
pub enum Record<P> {
    /// Deliveries of one request are done.
    Finished {
        /// Whose.
        subscription: SubscriptionId,
        /// Which.
        members: Members<P>,
        /// How they ended.
        end: End,
        /// How many attempts there were, of this request.
        attempts: u32,
        /// How long the last attempt took.
        duration: Duration,
        /// The replay that they belong to.
        replay: Option<i64>,
    },
    /// A request failed and is tried again.
    Attempt {
        /// Whose.
        subscription: SubscriptionId,
        /// What it held.
        members: Members<P>,
        /// The header `webhook-attempt` it had.
        attempt: u32,
        /// Why it failed.
        failure: Failure,
        /// How long it took.
        duration: Duration,
        /// In how long it is tried again, whole or in halves; None when that depends on something else (the
        /// breaker, a pause), and no attempt was counted or its time stands still.
        next_attempt_in: Option<Duration>,
        /// The failed attempts that each member has to its account now.
        failures: u32,
        /// The replay that it belongs to.
        replay: Option<i64>,
    },
}

/// Why a subscription was disabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disabled {
    /// The endpoint answered 410.
    Gone,
    /// More is pending than the setting allows, in bytes.
    TooMuchPending {
        /// This much.
        bytes: u64,
    },
}

/// Something for users to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The subscription is stopped.
    Disable(SubscriptionId, Disabled),
    /// A delivery was given up, with the word that users see for its last failure: empty when somebody gave it up.
    DeadLetter(SubscriptionId, DeliveryId, &'static str),
    /// The endpoint fails as a whole: its breaker has opened.
    Opened(SubscriptionId),
    /// A probe got through: the breaker has closed.
    Recovered(SubscriptionId),
    /// A replay is done.
    Replayed(SubscriptionId, i64),
}

/// What became of the wish to skip a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// It is given up, on record.
    Now,
    /// It is read from the journal first, to be on record with what it carries.
    Soon,
    /// It is under way: given up unless this attempt succeeds.
    UnlessItSucceeds,
    /// It is done, or there is no such subscription.
    NotPending,
}

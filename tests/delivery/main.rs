//! What an endpoint gets, and when: events, requests, subscriptions, outages and limits.

mod batches;
mod events;
mod isolation;
mod large_transaction;
mod limits;
mod messages;
mod outages;
mod preview;
mod requests;
mod resubscription;
mod subscriptions;
mod system_events;
mod wait;

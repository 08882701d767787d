//! What the dispatcher asks of a renderer, and what it answers: events through the functions that a subscription names.

use std::time::Duration;

use super::frame::reader::Members;
use super::frame::writer::{begin, finish, put_option, put_text, put_u32, put_u64};
use super::frame::{FrameError, TooLong};

/// Events to be put through the functions of one subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The role whose rights the functions have.
    pub owner: String,
    /// The function that makes the body.
    pub transform: Option<String>,
    /// The function that says where the event goes.
    pub route: Option<String>,
    /// The time that each call may take, to the millisecond.
    pub limit: Duration,
    /// The events as JSON text.
    pub events: Vec<Vec<u8>>,
}

/// What came of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shaped {
    /// It is to be sent.
    Ready {
        /// The body as JSON text, if a function makes it.
        body: Option<Vec<u8>>,
        /// Where to, as the function says: JSON text; none when there is no function, or it has nothing to say.
        route: Option<Vec<u8>>,
    },
    /// It is not to be sent.
    Dropped,
    /// A function failed.
    Failed {
        /// Which.
        by: By,
        /// Why.
        message: String,
    },
}

/// A function of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The one that makes the body.
    Transform,
    /// The one that says where to.
    Route,
}

impl By {
    /// The word that users see for it, as an error's class and as a column.
    pub const fn as_str(self) -> &'static str {
        match self {
            By::Transform => "transform",
            By::Route => "route",
        }
    }
}

mod tag {
    pub const ASK: u8 = b'A';
    pub const ANSWER: u8 = b'Z';
    pub const READY: u8 = b'r';
    pub const DROPPED: u8 = b'd';
    pub const FAILED_TRANSFORM: u8 = b't';
    pub const FAILED_ROUTE: u8 = b'u';
}

impl Ask {
    /// Appends a frame.
    ///
    /// # Errors
    ///
    /// When the events are more than fit into one; nothing is written then.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let start = begin(out, tag::ASK);
        put_text(out, &self.owner);
        for function in [&self.transform, &self.route] {
            put_option(out, function.as_deref(), put_text);
        }
        put_u64(out, u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX));
        put_u32(out, self.events.len() as u32);
        self.events.iter().for_each(|event| put_bytes(out, event));
        finish(out, start)
    }

    /// Reads a frame's body.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn read(body: &[u8]) -> Result<Ask, FrameError> {
        let mut members = of(body, tag::ASK)?;
        let ask = Ask {
            owner: members.text()?,
            transform: members.option(Members::text)?,
            route: members.option(Members::text)?,
            limit: Duration::from_millis(members.u64()?),
            events: members.list(4, |members| members.bytes().map(<[u8]>::to_vec))?,
        };
        members.end()?;
        Ok(ask)
    }
}

/// Appends a frame with what came of each event of an [`Ask`], in their order.
///
/// # Errors
///
/// When it is more than fits into one; nothing is written then.
pub fn write_answer(out: &mut Vec<u8>, answer: &[Shaped]) -> Result<(), TooLong> {
    let start = begin(out, tag::ANSWER);
    put_u32(out, answer.len() as u32);
    for shaped in answer {
        match shaped {
            Shaped::Ready { body, route } => {
                out.push(tag::READY);
                put_option(out, body.as_deref(), put_bytes);
                put_option(out, route.as_deref(), put_bytes);
            }
            Shaped::Dropped => out.push(tag::DROPPED),
            Shaped::Failed { by, message } => {
                out.push(match by {
                    By::Transform => tag::FAILED_TRANSFORM,
                    By::Route => tag::FAILED_ROUTE,
                });
                put_text(out, message);
            }
        }
    }
    finish(out, start)
}

/// Reads a frame's body as [`write_answer`] wrote it.
///
/// # Errors
///
/// When it is none.
pub fn read_answer(body: &[u8]) -> Result<Vec<Shaped>, FrameError> {
    let mut members = of(body, tag::ANSWER)?;
    let answer = members.list(1, |members| {
        Ok(match members.u8()? {
            tag::READY => Shaped::Ready { body: members.option(bytes)?, route: members.option(bytes)? },
            tag::DROPPED => Shaped::Dropped,
            tag::FAILED_TRANSFORM => Shaped::Failed { by: By::Transform, message: members.text()? },
            tag::FAILED_ROUTE => Shaped::Failed { by: By::Route, message: members.text()? },
            other => return Err(FrameError::Tag(other)),
        })
    })?;
    members.end()?;
    Ok(answer)
}

fn of(body: &[u8], wanted: u8) -> Result<Members<'_>, FrameError> {
    let mut members = Members::of(body);
    match members.u8()? {
        tag if tag == wanted => Ok(members),
        other => Err(FrameError::Tag(other)),
    }
}

fn bytes(members: &mut Members<'_>) -> Result<Vec<u8>, FrameError> {
    members.bytes().map(<[u8]>::to_vec)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len() as u32);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipc::frame::FrameReader;

    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..20)
    }

    fn any_shaped() -> impl Strategy<Value = Shaped> {
        let bytes = || prop::option::of(any_bytes());
        let by = prop_oneof![Just(By::Transform), Just(By::Route)];
        prop_oneof![
            (bytes(), bytes()).prop_map(|(body, route)| Shaped::Ready { body, route }),
            Just(Shaped::Dropped),
            (by, ".{0,20}").prop_map(|(by, message)| Shaped::Failed { by, message }),
        ]
    }

    fn travelled<T>(frame: &[u8], read: impl Fn(&[u8]) -> Result<T, FrameError>) -> T {
        let mut reader = FrameReader::default();
        for piece in frame.chunks(7) {
            reader.push(piece);
        }
        let body = reader.next_frame().unwrap().unwrap().to_vec();
        assert!(reader.is_empty());
        read(&body).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_asked_and_answered_travels_unchanged(
            names in (".{0,9}", prop::option::of(".{0,9}"), prop::option::of(".{0,9}")),
            limit in 0u64..100_000,
            events in prop::collection::vec(any_bytes(), 0..5),
            answer in prop::collection::vec(any_shaped(), 0..5),
        ) {
            let (owner, transform, route) = names;
            let ask = Ask { owner, transform, route, limit: Duration::from_millis(limit), events };
            let mut frame = Vec::new();
            ask.write(&mut frame).unwrap();
            prop_assert_eq!(travelled(&frame, Ask::read), ask);
            let mut frame = Vec::new();
            write_answer(&mut frame, &answer).unwrap();
            prop_assert_eq!(travelled(&frame, read_answer), answer);
        }

        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(prop_oneof![0u8..4, Just(b'A'), Just(b'Z'), any::<u8>()], 0..60)) {
            let _ = Ask::read(&body);
            let _ = read_answer(&body);
        }
    }
}

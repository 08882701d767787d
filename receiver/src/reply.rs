//! What a request can get.

use std::time::Duration;

/// A reply, and how long it takes to come.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// How long the sender is kept waiting.
    pub delay: Duration,
    /// What it gets then.
    pub answer: Answer,
}

/// What the sender gets.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A whole response.
    Respond {
        /// Its status.
        status: u16,
        /// Its headers; `content-length` comes by itself.
        headers: Vec<(String, String)>,
        /// Its body.
        body: Vec<u8>,
    },
    /// A response of this status, a byte each so often.
    Trickle {
        /// Its status.
        status: u16,
        /// The time between two bytes.
        every: Duration,
    },
    /// Half a head, then the end of the connection.
    Cut,
    /// The head of a success and half a body, then the end of the connection.
    CutBody,
    /// Something that is not HTTP.
    Garbage,
    /// Nothing, for as long as the sender stays.
    Hang,
    /// The end of the connection, without a word.
    Close,
    /// A TCP reset.
    Reset,
}

impl Default for Answer {
    fn default() -> Self {
        Self::Respond { status: 200, headers: Vec::new(), body: Vec::new() }
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self { delay: Duration::ZERO, answer }
    }
}

impl Reply {
    /// A response of this status, without a body.
    pub fn status(status: u16) -> Self {
        Answer::Respond { status, headers: Vec::new(), body: Vec::new() }.into()
    }

    /// With one header more, if it is a whole response.
    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        if let Answer::Respond { headers, .. } = &mut self.answer {
            headers.push((name.to_owned(), value.to_string()));
        }
        self
    }

    /// With a body, if it is a whole response.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        if let Answer::Respond { body, .. } = &mut self.answer {
            *body = bytes.into();
        }
        self
    }

    /// Later.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Whether the sender will see a 2xx.
    pub fn is_success(&self) -> bool {
        matches!(
            self.answer,
            Answer::Respond { status: 200..300, .. }
                | Answer::Trickle { status: 200..300, .. }
                | Answer::CutBody
        )
    }
}

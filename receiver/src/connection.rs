//! One connection: bytes in, requests out; replies in, bytes out.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use crate::http::{self, Parsed};
use crate::{Answer, Reply, Request};

/// A connection and how far it has come.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) number: u64,
    /// Bytes that came and belong to no whole request yet.
    input: Vec<u8>,
    output: Vec<u8>,
    stage: Stage,
    /// Whether the connection ends when the output is out.
    last: bool,
}

/// Replies leave in the order of requests, so one that is not out yet holds back what follows.
enum Stage {
    Reading,
    Waiting(Reply),
    Hanging,
    Trickling { rest: Vec<u8>, every: Duration },
}

/// Whether a connection lives on, and when it wants to be called again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Stay,
    Call(Instant),
    End,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, number: u64) -> Self {
        Self { stream, number, input: Vec::new(), output: Vec::new(), stage: Stage::Reading, last: false }
    }

    /// Reads what there is, and serves it. `finished` tells that the other side sends no more.
    pub(crate) fn readable(
        &mut self,
        scratch: &mut [u8],
        finished: bool,
        serve: &mut dyn FnMut(Request) -> Reply,
    ) -> Next {
        let mut next = Next::Stay;
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Next::End,
                Ok(count) => {
                    next = self.receive(&scratch[..count], serve);
                    // A short read has emptied the socket: the next bytes are a new edge (epoll(7)).
                    if next == Next::End || (count < scratch.len() && !finished) {
                        return next;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return next,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Next::End,
            }
        }
    }

    /// Goes on writing.
    pub(crate) fn writable(&mut self) -> Next {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Next::End,
                Ok(count) if count == self.output.len() => self.output.clear(),
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Stay,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Next::End,
            }
        }
        if self.last && matches!(self.stage, Stage::Reading) { Next::End } else { Next::Stay }
    }

    /// Goes on after the time it asked for.
    pub(crate) fn due(&mut self, serve: &mut dyn FnMut(Request) -> Reply) -> Next {
        let next = match std::mem::replace(&mut self.stage, Stage::Reading) {
            Stage::Waiting(reply) => self.give(reply.answer),
            Stage::Trickling { rest, every } => self.trickle(rest, every),
            stage => {
                self.stage = stage;
                Next::Stay
            }
        };
        if next != Next::Stay {
            return next;
        }
        let input = std::mem::take(&mut self.input);
        self.receive(&input, serve)
    }

    fn receive(&mut self, bytes: &[u8], serve: &mut dyn FnMut(Request) -> Reply) -> Next {
        let arrived = Instant::now();
        // Most often a whole request comes in one piece and needs no copy but the one that is kept.
        let pieced = (!self.input.is_empty()).then(|| {
            self.input.extend_from_slice(bytes);
            std::mem::take(&mut self.input)
        });
        let mut input = pieced.as_deref().unwrap_or(bytes);
        let mut next = Next::Stay;
        while matches!(self.stage, Stage::Reading) && !self.last && !input.is_empty() {
            match http::parse(input) {
                Parsed::Partial => break,
                Parsed::Bad(status) => {
                    self.last = true;
                    http::respond(&mut self.output, status, &[], b"");
                }
                Parsed::Whole { head, total, keep_alive } => {
                    let reply = serve(Request::new(&input[..total], head, arrived, self.number));
                    input = &input[total..];
                    self.last = !keep_alive;
                    next = self.begin(reply);
                }
            }
            if next != Next::Stay {
                break;
            }
        }
        self.input.extend_from_slice(input);
        let written = self.writable();
        if next == Next::Stay { written } else { next }
    }

    fn begin(&mut self, reply: Reply) -> Next {
        if reply.delay.is_zero() {
            return self.give(reply.answer);
        }
        let when = Instant::now() + reply.delay;
        self.stage = Stage::Waiting(reply);
        Next::Call(when)
    }

    fn give(&mut self, answer: Answer) -> Next {
        match answer {
            Answer::Respond { status, headers, body } => {
                http::respond(&mut self.output, status, &headers, &body);
                Next::Stay
            }
            Answer::Trickle { status, every } => {
                let mut rest = Vec::new();
                http::respond(&mut rest, status, &[], b"slowly does it");
                self.trickle(rest, every)
            }
            Answer::Hang => {
                self.stage = Stage::Hanging;
                Next::Stay
            }
            Answer::Reset => {
                // Without lingering, close sends a reset (socket(7), SO_LINGER).
                let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
                Next::End
            }
            fragment @ (Answer::Cut | Answer::CutBody | Answer::Garbage | Answer::Close) => {
                self.output.extend_from_slice(http::fragment(&fragment));
                self.writable();
                Next::End
            }
        }
    }

    fn trickle(&mut self, rest: Vec<u8>, every: Duration) -> Next {
        let Some((first, others)) = rest.split_first() else { return Next::Stay };
        self.output.push(*first);
        self.stage = Stage::Trickling { rest: others.to_vec(), every };
        match self.writable() {
            Next::Stay => Next::Call(Instant::now() + every),
            end => end,
        }
    }
}

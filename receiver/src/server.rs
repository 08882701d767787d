//! The loop: waits for sockets and timers, and lets connections go on.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::connection::{Connection, Next};
use crate::record::Record;
use crate::{Options, Reply, Request, control};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// The serving side of a receiver; owned by its thread.
pub(crate) struct Server {
    poll: Poll,
    listener: TcpListener,
    address: SocketAddr,
    waker: Arc<mio::Waker>,
    record: Arc<Record>,
    control: bool,
    /// By token; a freed place is used again.
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    accepted: u64,
    /// When to call which connection, told by place and number, since the place may have been used again.
    timers: BinaryHeap<Reverse<(Instant, usize, u64)>>,
}

impl Server {
    pub(crate) fn bind(options: &Options, record: Arc<Record>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let socket = Socket::new(Domain::for_address(options.listen), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&options.listen.into())?;
        socket.listen(BACKLOG)?;
        let mut listener = TcpListener::from_std(socket.into());
        let address = listener.local_addr()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), WAKER)?);
        Ok(Self {
            poll,
            listener,
            address,
            waker,
            record,
            control: options.control,
            connections: Vec::new(),
            free: Vec::new(),
            accepted: 0,
            timers: BinaryHeap::new(),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn waker(&self) -> Arc<mio::Waker> {
        Arc::clone(&self.waker)
    }

    /// Serves until the record says stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; 64 * 1024];
        while !self.record.stopped() {
            let now = Instant::now();
            let timeout = self.timers.peek().map(|Reverse((when, ..))| when.saturating_duration_since(now));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    eprintln!("receiver: {error}");
                    return;
                }
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    Token(place) => {
                        if event.is_writable() {
                            self.step(place, |connection, _| connection.writable());
                        }
                        if event.is_readable() {
                            let finished = event.is_read_closed();
                            self.step(place, |connection, serve| {
                                connection.readable(&mut scratch, finished, serve)
                            });
                        }
                    }
                }
            }
            self.ring();
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    self.accepted += 1;
                    let _ = stream.set_nodelay(true);
                    let place = self.free.pop().unwrap_or_else(|| {
                        self.connections.push(None);
                        self.connections.len() - 1
                    });
                    let both = Interest::READABLE | Interest::WRITABLE;
                    if self.poll.registry().register(&mut stream, Token(place), both).is_err() {
                        self.free.push(place);
                        continue;
                    }
                    self.connections[place] = Some(Connection::new(stream, self.accepted));
                    self.record.connected();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Such as a connection that was gone before it was accepted (accept(2)).
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    eprintln!("receiver: cannot accept: {error}");
                    return;
                }
            }
        }
    }

    /// Calls the connections whose time has come.
    fn ring(&mut self) {
        while let Some(Reverse((when, place, number))) = self.timers.peek().copied() {
            if when > Instant::now() {
                return;
            }
            self.timers.pop();
            let same = self.connections[place].as_ref().is_some_and(|connection| connection.number == number);
            if same {
                self.step(place, |connection, serve| connection.due(serve));
            }
        }
    }

    fn step(
        &mut self,
        place: usize,
        go: impl FnOnce(&mut Connection, &mut dyn FnMut(Request) -> Reply) -> Next,
    ) {
        let Some(connection) = self.connections.get_mut(place).and_then(Option::as_mut) else { return };
        let (record, control) = (&self.record, self.control);
        let mut serve = |request: Request| {
            if control && let Some(reply) = control::reply(&request, record) {
                return reply;
            }
            record.take(request)
        };
        match go(connection, &mut serve) {
            Next::Stay => {}
            Next::Call(when) => self.timers.push(Reverse((when, place, connection.number))),
            Next::End => {
                // Dropping the socket takes it out of the poll, too.
                self.connections[place] = None;
                self.free.push(place);
            }
        }
    }
}

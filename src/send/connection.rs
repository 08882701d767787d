//! One connection: a socket, with TLS or without, whose every call ends by a deadline.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// How much later than its deadline a call may end, so that the socket's own time limit needs no system call for
/// each request.
const SLACK: Duration = Duration::from_millis(20);

/// An open connection to one address.
pub(super) struct Connection {
    stream: Stream,
    peer: SocketAddr,
}

enum Stream {
    Plain(TimedSocket),
    Secure(Box<StreamOwned<ClientConnection, TimedSocket>>),
}

impl Connection {
    /// Connects to `peer` until `deadline`.
    pub fn dial(peer: SocketAddr, deadline: Instant) -> io::Result<Connection> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let socket = TcpStream::connect_timeout(&peer, left)?;
        // A request is written in one piece, so there is nothing to gather.
        socket.set_nodelay(true)?;
        Ok(Connection { stream: Stream::Plain(TimedSocket::new(socket, deadline)), peer })
    }

    /// Secures the connection; the certificate must be valid for `name`.
    pub fn secure(self, name: ServerName<'static>, config: Arc<ClientConfig>) -> io::Result<Connection> {
        let Stream::Plain(mut socket) = self.stream else { return Ok(self) };
        let mut session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        let stream = Stream::Secure(Box::new(StreamOwned::new(session, socket)));
        Ok(Connection { stream, peer: self.peer })
    }

    /// The address that this leads to.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether the connection is encrypted.
    pub fn is_secure(&self) -> bool {
        matches!(self.stream, Stream::Secure(_))
    }

    /// When all reads and writes from now on must have ended.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.socket_mut().deadline = deadline;
    }

    /// Whether the other side has neither closed an idle connection nor sent anything.
    pub fn is_quiet(&self) -> bool {
        let socket = match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Secure(stream) => &stream.sock,
        };
        let probe = recv(socket.socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        probe == Err(Errno::EAGAIN)
    }

    fn socket_mut(&mut self) -> &mut TimedSocket {
        match &mut self.stream {
            Stream::Plain(socket) => socket,
            Stream::Secure(stream) => &mut stream.sock,
        }
    }
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.read(into),
            Stream::Secure(stream) => stream.read(into),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Secure(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.flush(),
            Stream::Secure(stream) => stream.flush(),
        }
    }
}

/// A blocking socket with a deadline instead of a time limit a call: a server that sends a byte a second
/// doesn't get a new limit with each.
struct TimedSocket {
    socket: TcpStream,
    deadline: Instant,
    /// The limits that the socket has now.
    read_limit: Option<Duration>,
    write_limit: Option<Duration>,
}

impl TimedSocket {
    fn new(socket: TcpStream, deadline: Instant) -> TimedSocket {
        TimedSocket { socket, deadline, read_limit: None, write_limit: None }
    }

    /// Repeats a call until it has a result or the deadline has passed.
    fn until_deadline(
        &mut self,
        mut call: impl FnMut(&mut TimedSocket, Duration) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match call(self, left) {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                result => return result,
            }
        }
    }
}

/// The limit to set when there is `left` to go: none if what is set will do.
fn new_limit(set: Option<Duration>, left: Duration) -> Option<Duration> {
    let fits = set.is_some_and(|set| set <= left + SLACK && set >= left / 2);
    // The kernel takes less than a microsecond for no limit at all.
    (!fits).then(|| left.max(Duration::from_millis(1)))
}

impl Read for TimedSocket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.until_deadline(|this, left| {
            if let Some(limit) = new_limit(this.read_limit, left) {
                this.socket.set_read_timeout(Some(limit))?;
                this.read_limit = Some(limit);
            }
            this.socket.read(into)
        })
    }
}

impl Write for TimedSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_deadline(|this, left| {
            if let Some(limit) = new_limit(this.write_limit, left) {
                this.socket.set_write_timeout(Some(limit))?;
                this.write_limit = Some(limit);
            }
            this.socket.write(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

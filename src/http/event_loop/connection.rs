//! One connection: a socket that never blocks, with TLS or without.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// Seconds without traffic after which the other side is asked whether it is there.
const PROBE_AFTER: u32 = 15;
/// Seconds between such questions.
const PROBE_INTERVAL: u32 = 5;
/// Questions without an answer after which it is not.
const PROBES: u32 = 3;

/// A connection to one address, from its first packet on.
pub(super) struct Connection {
    socket: Socket,
    session: Option<Box<ClientConnection>>,
    peer: SocketAddr,
    /// How long the other side's system may leave what was sent without acknowledgement.
    ack_timeout: Option<Duration>,
}

/// A socket that knows whether its last read took all that was there.
struct Socket {
    stream: TcpStream,
    is_drained: bool,
}

impl Connection {
    /// Begins to connect to `peer`.
    pub fn dial(peer: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(peer)?;
        // A request is written in one piece, so there is nothing to gather.
        stream.set_nodelay(true)?;
        Ok(Connection {
            socket: Socket { stream, is_drained: false },
            session: None,
            peer,
            ack_timeout: None,
        })
    }

    /// Whether the other side has taken the connection; false while that is open.
    pub fn is_connected(&self) -> io::Result<bool> {
        if let Some(error) = self.socket.stream.take_error()? {
            return Err(error);
        }
        match self.socket.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has the system ask from time to time whether the other side is still there.
    pub fn set_keep_alive(&self) {
        let socket = &self.socket.stream;
        // Without them a connection that is gone is noticed later.
        let _ = setsockopt(socket, sockopt::KeepAlive, &true);
        let _ = setsockopt(socket, sockopt::TcpKeepIdle, &PROBE_AFTER);
        let _ = setsockopt(socket, sockopt::TcpKeepInterval, &PROBE_INTERVAL);
        let _ = setsockopt(socket, sockopt::TcpKeepCount, &PROBES);
    }

    /// Breaks the connection when what was sent stays without acknowledgement for so long; none: when the system does.
    pub fn set_ack_timeout(&mut self, timeout: Option<Duration>) {
        if timeout != self.ack_timeout {
            let milliseconds = timeout.map_or(0, |timeout| timeout.as_millis() as u32);
            let _ = setsockopt(&self.socket.stream, sockopt::TcpUserTimeout, &milliseconds);
            self.ack_timeout = timeout;
        }
    }

    /// Begins TLS; the certificate must be valid for `name`.
    pub fn begin_tls(
        &mut self,
        name: ServerName<'static>,
        config: Arc<ClientConfig>,
    ) -> Result<(), rustls::Error> {
        self.session = Some(Box::new(ClientConnection::new(config, name)?));
        Ok(())
    }

    /// Goes on with TLS; true once the connection is secure.
    pub fn handshake(&mut self) -> io::Result<bool> {
        let Some(session) = &mut self.session else { return Ok(true) };
        loop {
            flush(session, &mut self.socket)?;
            if !session.is_handshaking() {
                return Ok(true);
            }
            match session.read_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => process(session, &mut self.socket)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The address that this leads to.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What the poll knows it by.
    pub fn source(&mut self) -> &mut TcpStream {
        &mut self.socket.stream
    }

    /// Whether the last read took all that had arrived, so that news come with an event.
    pub fn is_drained(&self) -> bool {
        self.socket.is_drained
    }

    /// Whether the other side has neither closed an idle connection nor sent anything.
    pub fn is_quiet(&mut self) -> bool {
        self.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Writes some of these two pieces; `WouldBlock` if nothing can be written now.
    pub fn write(&mut self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        let pieces = [IoSlice::new(first), IoSlice::new(second)];
        let Some(session) = &mut self.session else {
            return retrying(|| self.socket.stream.write_vectored(&pieces));
        };
        flush(session, &mut self.socket)?;
        let amount = session.writer().write_vectored(&pieces)?;
        flush(session, &mut self.socket)?;
        if amount == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(amount) }
    }

    /// Whether all that was written has gone to the socket.
    pub fn is_flushed(&mut self) -> io::Result<bool> {
        let Some(session) = &mut self.session else { return Ok(true) };
        flush(session, &mut self.socket)?;
        Ok(!session.wants_write())
    }

    /// Reads what is there, 0 at the end; `WouldBlock` if there is nothing yet.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else { return self.socket.read(into) };
        loop {
            match session.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            match session.read_tls(&mut self.socket) {
                // Whether the farewell was said is for the reader to say.
                Ok(_) => process(session, &mut self.socket)?,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Hands what arrived to the session, and sends what that has to say: also why it cannot go on.
fn process(session: &mut ClientConnection, socket: &mut Socket) -> io::Result<()> {
    let processed = session.process_new_packets();
    let flushed = flush(session, socket);
    processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    flushed
}

/// Writes what the session has to send, as far as the socket takes it.
fn flush(session: &mut ClientConnection, socket: &mut Socket) -> io::Result<()> {
    while session.wants_write() {
        match session.write_tls(&mut socket.stream) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn retrying(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let result = retrying(|| self.stream.read(into));
        self.is_drained = result.as_ref().is_ok_and(|amount| *amount < into.len());
        result
    }
}

//! A server on loopback that answers as a test says.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Which connection it came over, counted from 0.
    pub connection: usize,
    pub head: Vec<String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.head[1..].iter().filter_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        });
        let value = values.next();
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    }
}

/// What is read and written: a socket, or TLS over one.
pub(super) trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// Answers a request; the connection serves another if this says so.
pub(super) type Answer = dyn Fn(&Request, &mut dyn Stream) -> io::Result<bool> + Send + Sync;

/// The server; it ends with the test process.
pub(super) struct Server {
    pub address: SocketAddr,
    requests: Receiver<Request>,
}

impl Server {
    /// Answers each request with these bytes and keeps the connection.
    pub fn answering(bytes: impl Into<Vec<u8>>) -> Server {
        let bytes = bytes.into();
        Server::start(move |_, stream| stream.write_all(&bytes).map(|()| true))
    }

    pub fn start(
        answer: impl Fn(&Request, &mut dyn Stream) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Server {
        Server::with(answer, |socket| Ok(Box::new(socket)))
    }

    pub fn secure(
        config: Arc<rustls::ServerConfig>,
        answer: impl Fn(&Request, &mut dyn Stream) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Server {
        Server::with(answer, move |socket| {
            let session = rustls::ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            Ok(Box::new(rustls::StreamOwned::new(session, socket)))
        })
    }

    /// Answers the first bytes, whatever they are, as servers of plain HTTP do when TLS is spoken to them.
    pub fn blurting(bytes: &'static [u8]) -> Server {
        Server::with(
            |_, _| Ok(false),
            move |mut socket| {
                let _ = socket.read(&mut [0; 4096])?;
                socket.write_all(bytes)?;
                Ok(Box::new(socket))
            },
        )
    }

    /// Answers each request with these bytes, and closes connections that are idle for so long.
    pub fn closing_after(idle: std::time::Duration, bytes: &'static [u8]) -> Server {
        Server::with(
            move |_, stream| stream.write_all(bytes).map(|()| true),
            move |socket| {
                socket.set_read_timeout(Some(idle))?;
                Ok(Box::new(socket))
            },
        )
    }

    fn with(
        answer: impl Fn(&Request, &mut dyn Stream) -> io::Result<bool> + Send + Sync + 'static,
        wrap: impl Fn(TcpStream) -> io::Result<Box<dyn Stream>> + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, requests) = unbounded();
        let (answer, wrap): (Arc<Answer>, Arc<_>) = (Arc::new(answer), Arc::new(wrap));
        thread::spawn(move || {
            for (connection, socket) in listener.incoming().enumerate() {
                let (answer, wrap, seen) = (answer.clone(), wrap.clone(), seen.clone());
                thread::spawn(move || serve(connection, wrap(socket?)?, &*answer, &seen));
            }
        });
        Server { address, requests }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// The next request.
    pub fn request(&self) -> Request {
        self.requests.recv_timeout(std::time::Duration::from_secs(30)).unwrap()
    }

    /// All requests so far that nobody looked at.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.try_iter().collect()
    }
}

fn serve(
    connection: usize,
    stream: Box<dyn Stream>,
    answer: &Answer,
    seen: &Sender<Request>,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let mut request = Request { connection, head, body: Vec::new() };
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        request.body.resize(length, 0);
        reader.read_exact(&mut request.body)?;
        let _ = seen.send(request.clone());
        if !answer(&request, reader.get_mut())? {
            return Ok(());
        }
    }
}

//! What a connection costs that waits for its answer.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use harness::{Cluster, DISPATCHER, eventually};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{stage, trust};

/// Requests that wait at each of the endpoints.
const REQUESTS: u64 = 400;

/// Takes requests and answers none.
struct Silence {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
}

impl Silence {
    fn start(tls: Option<Arc<ServerConfig>>) -> Silence {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = requests.clone();
        thread::spawn(move || {
            let mut taken = Vec::new();
            for client in listener.incoming().flatten() {
                taken.extend(take(client, tls.clone()).ok());
                counted.store(taken.len() as u64, Ordering::Relaxed);
            }
        });
        Silence { address, requests }
    }
}

/// Reads the beginning of a request; what is returned keeps the connection open.
fn take(mut client: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<TcpStream> {
    let mut beginning = [0; 64];
    match tls {
        None => client.read_exact(&mut beginning)?,
        Some(config) => {
            let session = ServerConnection::new(config).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(session, client);
            stream.read_exact(&mut beginning)?;
            client = stream.sock;
        }
    }
    Ok(client)
}

/// What each of so many requests takes that wait there: the first ones of as many subscriptions.
fn memory_of_each(cluster: &Cluster, url: &str, silence: &Silence, id: u64) -> u64 {
    cluster.sql(&format!(
        "SELECT pgwh.subscribe('{url}', name => 's' || n, timeout => '10 min') FROM generate_series(1, {REQUESTS}) n"
    ));
    let before = cluster.process(DISPATCHER).memory();
    cluster.sql(&format!("INSERT INTO t VALUES ({id})"));
    eventually("all requests", || (silence.requests.load(Ordering::Relaxed) == REQUESTS).then_some(()));
    let after = cluster.process(DISPATCHER).memory();
    cluster.sql("SELECT pgwh.unsubscribe(name) FROM pgwh.subscriptions");
    after.saturating_sub(before) / REQUESTS
}

#[test]
fn a_connection_that_waits_costs_little_memory() {
    let (cluster, _receiver, authority) = stage();
    // Requests that have waited for a second hold half of them at most.
    cluster.set("pgwh.max_connections = 4000");
    trust(&cluster, &authority);
    let plain = Silence::start(None);
    let bytes = memory_of_each(&cluster, &format!("http://{}/", plain.address), &plain, 1);
    assert!(bytes < 8 * 1024, "{bytes} bytes for each plain connection");
    println!("{bytes} bytes for each plain connection");
    let secure = Silence::start(Some(authority.config(false)));
    let bytes = memory_of_each(&cluster, &format!("https://{}/", secure.address), &secure, 2);
    assert!(bytes < 40 * 1024, "{bytes} bytes for each TLS connection");
    println!("{bytes} bytes for each TLS connection");
}

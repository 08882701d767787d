use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crossbeam_channel::{Receiver, unbounded};

use super::server::Server;
use super::tls::{Authority, pem, pem_key};
use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const PASSWORD: &str = "hunter2";

/// A proxy that connects to one address, whatever it is asked for, after it has answered with these bytes.
struct TestProxy {
    address: SocketAddr,
    heads: Receiver<String>,
}

impl TestProxy {
    fn leading_to(target: SocketAddr) -> TestProxy {
        TestProxy::start(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n", Some(target))
    }

    /// Answers so, and then closes.
    fn answering(answer: &[u8]) -> TestProxy {
        TestProxy::start(answer, None)
    }

    fn start(answer: &[u8], target: Option<SocketAddr>) -> TestProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, heads) = unbounded();
        let answer = answer.to_vec();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (seen, answer) = (seen.clone(), answer.clone());
                thread::spawn(move || -> io::Result<()> {
                    let mut client = client;
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        client.read_exact(&mut byte)?;
                        head.push(byte[0]);
                    }
                    let _ = seen.send(String::from_utf8(head).unwrap());
                    client.write_all(&answer)?;
                    let Some(target) = target else { return Ok(()) };
                    let mut server = TcpStream::connect(target)?;
                    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
                    thread::spawn(move || io::copy(&mut from, &mut to));
                    io::copy(&mut server, &mut client).map(drop)
                });
            }
        });
        TestProxy { address, heads }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.try_iter().collect()
    }
}

/// An endpoint that is reached through this proxy.
fn through(proxy: &str, url: &str) -> Arc<Endpoint> {
    through_with(proxy, settings(url))
}

fn through_with(proxy: &str, settings: EndpointSettings) -> Arc<Endpoint> {
    let proxy = Proxy::new(ProxyServer::parse(proxy).unwrap(), Exempt::default());
    Arc::new(Endpoint::new(EndpointSettings { proxy: Some(Arc::new(proxy)), ..settings }).unwrap())
}

fn with_password(proxy: &TestProxy) -> String {
    format!("http://us%40er:{PASSWORD}@{}", proxy.address)
}

#[test]
fn a_proxy_is_asked_for_the_whole_url_of_an_endpoint_by_http() {
    let server = Server::answering(OK);
    let endpoint =
        through(&format!("http://user:{PASSWORD}@{}", server.address), "http://orders.internal:81/a?b=c");
    let sender = sender(1);
    for _ in 0..2 {
        assert_eq!(deliver(&sender, &endpoint), Ok(Success { status: 200, flaw: None }));
    }
    for request in server.requests() {
        assert_eq!(request.connection, 0, "the connection is kept");
        assert_eq!(request.head[0], "POST http://orders.internal:81/a?b=c HTTP/1.1");
        assert_eq!(request.header("host"), Some("orders.internal:81"));
        assert_eq!(request.header("proxy-authorization"), Some("Basic dXNlcjpodW50ZXIy"));
        assert!(request.header("webhook-signature").is_some() && !request.body.is_empty());
    }
}

#[test]
fn a_tunnel_shows_the_proxy_neither_headers_nor_body_and_the_endpoint_no_password() {
    let authority = Authority::new();
    let server = authority.server(2100, false);
    let proxy = TestProxy::leading_to(server.address);
    let headers = vec![("authorization".to_owned(), "Bearer of-the-endpoint".to_owned())];
    // The names of certificates and not of connections.
    let url = "https://localhost:8443/path";
    let endpoint = through_with(&with_password(&proxy), EndpointSettings { headers, ..settings(url) });
    let sender = sender_trusting(authority.roots());
    for _ in 0..3 {
        assert_eq!(deliver(&sender, &endpoint), Ok(Success { status: 200, flaw: None }));
    }
    let heads = proxy.heads();
    assert_eq!(heads.len(), 1, "one tunnel serves them all");
    assert_eq!(
        heads[0],
        format!(
            "CONNECT localhost:8443 HTTP/1.1\r\nhost: localhost:8443\r\nuser-agent: pgstream_hooks/{}\r\n\
             proxy-authorization: Basic dXNAZXI6aHVudGVyMg==\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        )
    );
    for request in server.requests() {
        assert_eq!(request.head[0], "POST /path HTTP/1.1");
        assert_eq!(request.header("authorization"), Some("Bearer of-the-endpoint"));
        assert_eq!(request.header("proxy-authorization"), None);
    }
}

#[test]
fn a_certificate_is_shown_and_checked_through_a_tunnel() {
    let authority = Authority::new();
    let server = authority.server(2100, true);
    let proxy = TestProxy::leading_to(server.address);
    let (certificate, key) = authority.sign(2100);
    let both = pem(&certificate) + &pem_key(&key);
    let url = "https://localhost:8443/";
    let known =
        through_with(&proxy.url(), EndpointSettings { client_certificate: Some(both), ..settings(url) });
    let sender = sender_trusting(authority.roots());
    assert_eq!(deliver(&sender, &known), Ok(Success { status: 200, flaw: None }));
    // Neither is the tunnel of one the other's, nor does a proxy make another name good.
    assert_eq!(deliver(&sender, &through(&proxy.url(), url)).unwrap_err().class, ErrorClass::Tls);
    let failure = deliver(&sender, &through(&proxy.url(), "https://127.0.0.1:8443/")).unwrap_err();
    assert!(failure.message.contains("not valid for 127.0.0.1"), "{}", failure.message);
}

#[test]
fn a_proxy_that_misbehaves_is_named_and_its_answers_are_not_the_endpoints() {
    let long = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'y'; 40_000]].concat();
    for (answer, words) in [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".as_slice(),
            "does not accept the user and password",
        ),
        (b"HTTP/1.0 401 Unauthorized\r\n\r\n", "does not accept the user and password of pgwh.proxy (401)"),
        (
            b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\nwhy!",
            "refused to connect to the endpoint: 502 Bad Gateway",
        ),
        (b"HTTP/1.1 403 \x1b[31mForbidden\r\n\r\n", "refused to connect to the endpoint: 403 [31mForbidden"),
        (b"HTTP/1.0 503\n\n", "refused to connect to the endpoint: 503"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://login/\r\n\r\n", "refused to connect"),
        (b"HTTP/1.1 200 OK\r\nvia", "closed the connection before it had answered CONNECT"),
        (b"", "closed the connection before it had answered CONNECT"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "closed the connection before"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "sent something before the endpoint"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer in HTTP/1.1"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "does not answer in HTTP/1.1"),
        (b"HTTP/1.1 20x OK\r\n\r\n", "something that is not valid HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "something that is not valid HTTP"),
        (&long, "head larger than 32768 bytes"),
    ] {
        let proxy = TestProxy::answering(answer);
        let failure =
            deliver(&sender(1), &through(&with_password(&proxy), "https://localhost/")).unwrap_err();
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
        assert_eq!(failure.class, ErrorClass::Connect, "{shown}: {}", failure.message);
        assert_eq!((failure.status, failure.kind()), (None, FailureKind::Connection), "{shown}");
        assert!(failure.message.contains(words), "{shown}: {}", failure.message);
        assert!(failure.message.contains(&proxy.address.to_string()), "{shown}: {}", failure.message);
        assert!(
            !failure.message.contains(PASSWORD) && !failure.message.contains('\x1b'),
            "{}",
            failure.message
        );
    }
}

#[test]
fn an_informational_answer_to_connect_is_passed_over() {
    let authority = Authority::new();
    let server = authority.server(2100, false);
    let answer = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 200\r\n\r\n";
    let proxy = TestProxy::start(answer, Some(server.address));
    let endpoint = through(&proxy.url(), "https://localhost:8443/");
    assert!(deliver(&sender_trusting(authority.roots()), &endpoint).is_ok());
}

#[test]
fn a_proxy_that_is_down_or_silent_is_named() {
    // Bound and let go of, so nobody listens.
    let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let quick = |url: &str| EndpointSettings { timeout: Duration::from_millis(300), ..settings(url) };
    for url in ["https://localhost/", "http://localhost/"] {
        let failure = deliver(&sender(1), &through(&format!("http://{down}"), url)).unwrap_err();
        assert_eq!(failure.class, ErrorClass::Connect);
        assert!(
            failure.message.contains(&format!("no connection to the proxy {down}")),
            "{}",
            failure.message
        );
    }
    let proxy = format!("http://{}", silent.local_addr().unwrap());
    let failure = deliver(&sender(1), &through_with(&proxy, quick("https://localhost/"))).unwrap_err();
    assert_eq!(failure.class, ErrorClass::Timeout);
    assert!(failure.message.contains("waiting for the proxy 127.0.0.1:"), "{}", failure.message);
    let unknown = sender_with(Network {
        lookup: Arc::new(|_| Err(io::Error::other("no such name"))),
        ..Network::default()
    });
    let failure =
        deliver(&unknown, &through("http://proxy.internal:3128", "https://localhost/")).unwrap_err();
    assert_eq!(failure.message, "the name proxy.internal of the proxy could not be resolved: no such name");
}

#[test]
fn an_answer_that_may_be_the_proxys_says_so_and_407_is_never_the_endpoints() {
    for (status, kind, words) in [
        ("407 Proxy Authentication Required", FailureKind::Connection, "wants a user and password"),
        ("502 Bad Gateway", FailureKind::Other, "which may have answered itself"),
        ("404 Not Found", FailureKind::Content, "which may have answered itself"),
    ] {
        let proxy = Server::answering(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"));
        let proxy_url = format!("http://{}", proxy.address);
        let failure = deliver(&sender(1), &through(&proxy_url, "http://localhost/")).unwrap_err();
        assert_eq!(failure.kind(), kind, "{status}");
        assert!(
            failure.message.contains(words) && failure.message.contains(&proxy.address.to_string()),
            "{}",
            failure.message
        );
    }
    // What comes through a tunnel is the endpoint's.
    let authority = Authority::new();
    let server = authority.answering(b"HTTP/1.1 407 Odd\r\ncontent-length: 0\r\n\r\n");
    let proxy = TestProxy::leading_to(server.address);
    let endpoint = through(&proxy.url(), "https://localhost:8443/");
    let failure = deliver(&sender_trusting(authority.roots()), &endpoint).unwrap_err();
    assert_eq!((failure.class, failure.status), (ErrorClass::Http4xx, Some(407)));
}

#[test]
fn a_connection_that_the_proxy_has_closed_is_replaced_in_the_same_attempt() {
    let server = Server::start(|_, stream| stream.write_all(OK).map(|()| false));
    let endpoint = through(&format!("http://{}", server.address), "http://localhost/");
    let sender = sender(1);
    for _ in 0..20 {
        assert_eq!(deliver(&sender, &endpoint), Ok(Success { status: 200, flaw: None }));
    }
}

#[test]
fn connections_are_shared_neither_between_proxies_nor_between_endpoints() {
    let servers = [Server::answering(OK), Server::answering(OK)];
    let proxies = servers.each_ref().map(|server| format!("http://{}", server.address));
    let sender = sender(4);
    for (proxy, url) in [
        (0, "http://localhost/"),
        (1, "http://localhost/"),
        (0, "http://db.localhost/"),
        (0, "http://localhost/"),
    ] {
        assert!(deliver(&sender, &through(&proxies[proxy], url)).is_ok());
    }
    let connections =
        |server: &Server| server.requests().iter().map(|request| request.connection).collect::<Vec<_>>();
    assert_eq!((connections(&servers[0]), connections(&servers[1])), (vec![0, 1, 0], vec![0]));
}

#[test]
fn connections_from_before_a_reload_are_not_kept() {
    let (begin, begun) = unbounded();
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let server = Server::start(move |request, stream| {
        if request.connection == 0 {
            let _ = begin.send(());
            let _ = released.recv();
        }
        stream.write_all(OK).map(|()| true)
    });
    let endpoint = endpoint(&server.url());
    let sender = sender(1);
    sender.submit(job(1, &endpoint));
    begun.recv().unwrap();
    sender.trust_file(None);
    drop(release);
    assert!(outcomes(&sender, 1)[0].result.is_ok());
    assert!(deliver(&sender, &endpoint).is_ok());
    let connections: Vec<_> = server.requests().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0, 1]);
}

#[test]
fn the_guard_judges_what_can_be_known_of_an_endpoint_beyond_a_proxy() {
    let server = Server::answering(OK);
    let proxy = format!("http://{}", server.address);
    let lookup = |name: &str| match name {
        "metadata.example" => Ok(vec!["93.184.216.34".parse().unwrap(), "169.254.169.254".parse().unwrap()]),
        "public.example" => Ok(vec!["93.184.216.34".parse().unwrap()]),
        "open.example" => Ok(vec!["127.0.0.9".parse().unwrap()]),
        _ => Err(io::Error::other("no such name")),
    };
    let sender = sender_with(Network { lookup: Arc::new(lookup), ..Network::default() });
    let guarded = |url: &str, networks: &str| {
        let guard = Arc::new(Guard::parse(networks).unwrap());
        deliver(&sender, &through_with(&proxy, EndpointSettings { guard, ..settings(url) }))
    };
    for (url, networks, words) in [
        ("http://169.254.169.254/", "127.0.0.0/8", "169.254.169.254 is a link-local address"),
        ("https://10.0.0.1/", "", "private"),
        ("https://[::1]/", "", "loopback"),
        ("https://localhost/", "", "loopback"),
        ("https://metadata.example/", "", "169.254.169.254 is a link-local address"),
        ("http://public.example/", "127.0.0.0/8", "Plain http to 93.184.216.34 is refused"),
        ("http://unknown.example/", "", "plain http is not allowed"),
        ("https://unknown.example:25/", "", "port 25"),
    ] {
        let failure = guarded(url, networks).unwrap_err();
        assert_eq!(failure.class, ErrorClass::Blocked, "{url}: {}", failure.message);
        assert!(failure.message.contains(words), "{url}: {}", failure.message);
    }
    assert!(server.requests().is_empty());
    for url in ["http://open.example/", "http://unknown.example/", "http://127.0.0.1/"] {
        assert!(guarded(url, "127.0.0.0/8").is_ok(), "{url}");
    }
}

#[test]
fn a_name_that_nobody_here_answers_for_is_left_to_the_proxy() {
    let server = Server::answering(OK);
    // Nobody answers before the test is over.
    let (_answer, never) = crossbeam_channel::bounded::<()>(0);
    let lookup = move |_: &str| {
        let _ = never.recv();
        Err(io::Error::other("late"))
    };
    let sender = sender_with(Network { lookup: Arc::new(lookup), ..Network::default() });
    let endpoint = through(&format!("http://{}", server.address), "http://slow.example/");
    assert_eq!(deliver(&sender, &endpoint), Ok(Success { status: 200, flaw: None }));
}

#[test]
fn a_proxys_url_is_checked_and_its_password_not_repeated() {
    for (url, shown) in [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://proxy:3128/", "http://proxy:3128"),
        ("HTTP://Proxy.Example.com:8080", "http://proxy.example.com:8080"),
        ("http://proxy", "http://proxy:80"),
        ("http://[::1]:3128", "http://[::1]:3128"),
        ("http://user:hunter2@10.0.0.1:3128", "http://user:********@10.0.0.1:3128"),
        ("http://user@proxy:3128", "http://user:********@proxy:3128"),
        ("http://user:hunter2%40%2F@proxy:3128", "http://user:********@proxy:3128"),
    ] {
        let proxy = ProxyServer::parse(url).unwrap();
        assert_eq!(proxy.shown(), shown);
        assert!(!format!("{proxy} {proxy:?}").contains("hunter2"));
    }
    for url in [
        "proxy:3128",
        "proxy.example.com",
        "user:hunter2@proxy:3128",
        "https://user:hunter2@proxy:3128",
        "socks5://user:hunter2@proxy:1080",
        "http:user:hunter2@proxy:3128",
        "http://user:hunter2@proxy:0",
        "http://user:hunter2@proxy:99999",
        "http://user:hunter2@",
        "http://user:hunter2/3@proxy:3128",
        "http://user:hunter2#3@proxy:3128",
        "http://user:hunter2?3@proxy:3128",
        "http://user:hunter2@proxy:3128/path",
        "http://user:hunter2 @proxy:3128",
        "http://us%3Aer:hunter2@proxy:3128",
        "http://user:hunter2%0D%0A@proxy:3128",
        "http://user:hunter2%ff@proxy:3128",
        "http://",
        "//proxy:3128",
    ] {
        let problem = ProxyServer::parse(url).map(|proxy| proxy.shown()).unwrap_err();
        assert!(!problem.to_string().contains("hunter2"), "{problem}");
        assert!(problem.hint.contains("ALTER SYSTEM SET pgwh.proxy = 'http://"), "{problem}");
        assert!(!problem.detail.is_empty() && problem.detail.ends_with('.'), "{problem}");
    }
}

#[test]
fn hosts_are_exempt_by_name_suffix_and_network() {
    let list = "internal.example, .corp, UPPER.example. 10.0.0.0/8,192.168.1.7 fd00::/8 [::1] bücher.example";
    let proxy = Proxy::new(ProxyServer::parse("http://proxy:3128").unwrap(), Exempt::parse(list).unwrap());
    let goes_through = |proxy: &Proxy, url: &str| {
        proxy.for_host(&url::Url::parse(url).unwrap().host().unwrap().to_owned()).is_some()
    };
    for (url, through) in [
        ("https://internal.example/", false),
        ("https://a.b.internal.example/", false),
        ("https://INTERNAL.example./", false),
        ("https://notinternal.example/", true),
        ("https://internal.example.com/", true),
        ("https://corp/", false),
        ("https://a.corp/", false),
        ("https://acorp/", true),
        ("https://upper.example/", false),
        ("https://xn--bcher-kva.example/", false),
        ("https://10.1.2.3/", false),
        ("https://[::ffff:10.1.2.3]/", false),
        ("https://11.1.2.3/", true),
        ("https://192.168.1.7/", false),
        ("https://192.168.1.8/", true),
        ("https://[fd12::1]/", false),
        ("https://[::1]/", false),
        ("https://[::2]/", true),
        ("https://10.example/", true),
    ] {
        assert_eq!(goes_through(&proxy, url), through, "{url}");
    }
    let all = Proxy::new(ProxyServer::parse("http://proxy:3128").unwrap(), Exempt::parse("a, *").unwrap());
    assert!(!goes_through(&all, "https://example.com/") && !goes_through(&all, "https://[::2]/"));
    for item in
        ["*.example.com", "http://example.com", "example.com:443", "10.0.0.0/33", "a..b", ".", "10.0.0"]
    {
        let problem = Exempt::parse(item).unwrap_err();
        assert!(problem.detail.contains(item) && problem.hint.contains("pgwh.no_proxy = '"), "{problem}");
    }
}

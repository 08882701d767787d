//! An endpoint: what the sender needs to know of one subscription.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;
use ureq_proto::http::{HeaderName, HeaderValue, Uri};
use url::Url;

use super::proxy::Proxy;
use super::server::Server;
use super::signature::SigningKey;
use super::ssrf_guard::Guard;
use super::tls::client_certificate::Identity;
use super::user_error::{Problem, quoted};
use crate::event::Event;
use crate::event::format::{Format, RenderContext, Shown, Source};
use crate::prefetch::prefetch;
use crate::secret::is_sensitive;

/// The longest URL in bytes: more than servers commonly take.
const MAX_URL: usize = 8 * 1024;

/// The longest value of one header, in bytes: what common servers accept for all of them together.
const MAX_HEADER_VALUE: usize = 8 * 1024;

/// Headers that describe the request as it is made here, so that nobody else can set them.
const RESERVED_HEADERS: &[&str] = &[
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// A subscription's settings as its row has them.
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    /// The subscription's id; part of every `webhook-id`.
    pub subscription_id: i64,
    /// The subscription's name; part of the payload.
    pub subscription: String,
    /// Where its events come from; part of the payload.
    pub source: Arc<Source>,
    /// Where to POST.
    pub url: String,
    /// Extra request headers.
    pub headers: Vec<(String, String)>,
    /// The time for one request, from resolving the name to the last byte of the response.
    pub timeout: Duration,
    /// Signing secrets (`whsec_…` or `whsk_…`); each makes a signature.
    pub secrets: Vec<String>,
    /// The secret before, and until when it makes a signature, too.
    pub previous_secret: Option<(String, SystemTime)>,
    /// Certificate and private key for mutual TLS, in PEM.
    pub client_certificate: Option<String>,
    /// Requests at once.
    pub max_in_flight: u32,
    /// The payload format.
    pub format: Format,
    /// The columns that payloads show.
    pub columns: Shown,
    /// Whether a request may hold several events: then every body is a list, also of one.
    pub batched: bool,
    /// Whether bodies are compressed by gzip.
    pub compress: bool,
    /// How many bytes of a response's body are read.
    pub max_response_size: usize,
    /// Where requests may go.
    pub guard: Arc<Guard>,
    /// The proxy that they go through, if any.
    pub proxy: Option<Arc<Proxy>>,
}

/// One subscription as the sender sees it: checked, immutable, replaced as a whole when the subscription is edited.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) subscription_id: i64,
    pub(super) subscription: String,
    pub(super) source: Arc<Source>,
    pub(super) target: Target,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) timeout: Duration,
    pub(super) keys: SmallVec<[SigningKey; 1]>,
    pub(super) identity: Option<Identity>,
    pub(super) format: Format,
    pub(super) columns: Shown,
    pub(super) batched: bool,
    pub(super) compress: bool,
    pub(super) max_response_size: usize,
    pub(super) guard: Arc<Guard>,
    pub(super) max_in_flight: u32,
    is_retired: AtomicBool,
}

impl Endpoint {
    /// Checks a subscription's settings, all but the network guard, which judges at every connection.
    pub fn new(settings: EndpointSettings) -> Result<Endpoint, Problem> {
        let headers = settings.headers.iter().map(|(name, value)| check_header(name, value));
        let secrets = settings.secrets.iter().map(|secret| SigningKey::parse(secret));
        let previous = settings
            .previous_secret
            .iter()
            .map(|(secret, until)| Ok(SigningKey::parse(secret)?.until(*until)));
        let identity = settings.client_certificate.as_deref().map(Identity::parse).transpose()?;
        let mut target = Target::parse(&settings.url)?;
        let proxy = settings.proxy.and_then(|proxy| proxy.for_host(&target.server.host));
        if identity.is_some() || proxy.is_some() {
            // A connection is somebody's, and never another's.
            let identity = identity.as_ref().map(|identity| identity.mark);
            target.server = Arc::new(Server { identity, proxy, ..(*target.server).clone() });
        }
        Ok(Endpoint {
            headers: headers.collect::<Result<_, _>>()?,
            target,
            identity,
            keys: secrets.chain(previous).collect::<Result<_, _>>()?,
            subscription_id: settings.subscription_id,
            subscription: settings.subscription,
            source: settings.source,
            timeout: settings.timeout,
            format: settings.format,
            columns: settings.columns,
            batched: settings.batched,
            compress: settings.compress,
            max_response_size: settings.max_response_size,
            guard: settings.guard,
            max_in_flight: settings.max_in_flight.max(1),
            is_retired: AtomicBool::new(false),
        })
    }

    /// Keeps no copy of where it sends when another one has the same: thousands may send to one place.
    pub fn share(&mut self, other: &Endpoint) {
        if self.target == other.target {
            self.target = other.target.clone();
        }
    }

    /// Whether requests go to the same place, and ask it for the same under the same conditions.
    pub fn asks_the_same(&self, other: &Endpoint) -> bool {
        // Their order says nothing.
        let headers = self.headers.len() == other.headers.len()
            && self.headers.iter().all(|header| other.headers.contains(header));
        headers
            && self.target.uri == other.target.uri
            && self.format == other.format
            && self.target.server == other.target.server
            && self.timeout == other.timeout
            && self.compress == other.compress
            && self.guard == other.guard
    }

    /// Has requests to it that have not begun handed back.
    pub fn retire(&self) {
        self.is_retired.store(true, Relaxed);
    }

    /// Whether requests to it that have not begun are handed back.
    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Relaxed)
    }

    /// What bodies tell beside the event.
    pub fn context(&self) -> RenderContext<'_> {
        let Endpoint { source, subscription_id, subscription, columns, .. } = self;
        RenderContext { source, subscription_id: *subscription_id, subscription, columns }
    }

    /// An event as the subscription's functions are shown it: in our own format, whatever its own is.
    pub fn show(&self, event: &Event, level: usize) -> Vec<u8> {
        let mut out = Vec::new();
        Format::Pgwh.render_one(&mut out, event, level, &self.context());
        out
    }

    /// Has the processor bring what it points to into its caches.
    pub fn prefetch(&self) {
        self.keys.iter().for_each(SigningKey::prefetch);
        self.subscription.as_bytes().first().into_iter().for_each(prefetch);
    }

    /// The subscription's id.
    pub fn subscription_id(&self) -> i64 {
        self.subscription_id
    }

    /// Host and port: what endpoints that share a server have in common.
    pub fn server(&self) -> &Arc<Server> {
        &self.target.server
    }
}

/// A URL that requests can be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub(super) uri: Uri,
    pub(super) server: Arc<Server>,
}

impl Target {
    fn parse(text: &str) -> Result<Target, Problem> {
        let refuse = |detail: String| {
            Problem::new("invalid endpoint URL", detail, "Give a URL such as 'https://example.com/hook'.")
        };
        // The URL standard lets these pass by dropping them, so that another URL than the one typed would be kept.
        if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(refuse(format!("{} contains a space or control character.", quoted(text))));
        }
        if text.len() > MAX_URL {
            return Err(refuse(format!("The URL has {} bytes; {MAX_URL} are allowed.", text.len())));
        }
        let url = Url::parse(text).map_err(|error| refuse(format!("\"{text}\" is not a URL: {error}.")))?;
        let secure = match url.scheme() {
            "https" => true,
            "http" => false,
            other => {
                return Err(refuse(format!("The scheme of \"{text}\" is \"{other}\", not http or https.")));
            }
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Problem::new(
                "invalid endpoint URL",
                "The URL contains a user name or password, which everyone who sees the subscription would see.",
                "Send it as a header instead: headers => '{\"authorization\": \"Basic ...\"}'.",
            ));
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default().filter(|port| *port != 0))
        else {
            return Err(refuse(format!("\"{text}\" names no host and port that can be connected to.")));
        };
        let uri = url
            .as_str()
            .parse()
            .map_err(|error| refuse(format!("\"{text}\" cannot be sent to: {error}.")))?;
        Ok(Target {
            uri,
            server: Arc::new(Server { secure, host: host.to_owned(), port, identity: None, proxy: None }),
        })
    }
}

/// Checks a subscription's URL: its form, and what the network guard can judge before a name is resolved.
pub fn check_url(url: &str, guard: &Guard) -> Result<Target, Problem> {
    let target = Target::parse(url)?;
    let Server { secure, host, port, .. } = &*target.server;
    guard.check_target(*secure, host, *port)?;
    Ok(target)
}

/// Scheme, host and port of a URL that is written plainly, with a plain path behind them: they alone decide whether
/// [`check_url`] lets it pass. None of one that has to be looked at as a whole.
pub fn deciding_part(url: &str) -> Option<&str> {
    let scheme = ["https://", "http://"].into_iter().find(|scheme| url.starts_with(scheme))?;
    let host = url[scheme.len()..].split('/').next().unwrap_or_default();
    let (deciding, path) = url.split_at(scheme.len() + host.len());
    let is_plain = |text: &str, signs: &[u8]| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || signs.contains(&byte))
    };
    let is_decided = !host.is_empty() && is_plain(host, b".-:") && is_plain(path, b"/-_.~");
    (is_decided && url.len() <= MAX_URL).then_some(deciding)
}

/// Checks one of a subscription's extra request headers.
///
/// Values may be secrets, so no error repeats them.
pub fn check_header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Problem> {
    let refuse = |detail: String| {
        Problem::new(
            "invalid request header",
            detail,
            "Give headers as an object of names and values: headers => '{\"x-api-key\": \"...\"}'.",
        )
    };
    let parsed: HeaderName =
        name.parse().map_err(|_| refuse(format!("{} cannot be the name of a header.", quoted(name))))?;
    if RESERVED_HEADERS.contains(&parsed.as_str()) || parsed.as_str().starts_with("webhook-") {
        return Err(Problem::new(
            "reserved request header",
            format!("The header \"{name}\" is set by pgstream_hooks itself."),
            format!("Leave \"{name}\" out of headers."),
        ));
    }
    if value.contains(['\r', '\n', '\0']) {
        return Err(refuse(format!("The value of \"{name}\" contains a line break or a NUL.")));
    }
    // Of other bytes a receiver may make anything (RFC 9110, section 5.5).
    if !value.is_ascii() {
        return Err(refuse(format!("The value of \"{name}\" contains a character that is not ASCII.")));
    }
    if value.len() > MAX_HEADER_VALUE {
        return Err(refuse(format!(
            "The value of \"{name}\" has {} bytes; {MAX_HEADER_VALUE} are allowed.",
            value.len()
        )));
    }
    let mut value = HeaderValue::from_bytes(value.as_bytes())
        .map_err(|_| refuse(format!("The value of \"{name}\" contains a control character.")))?;
    // So that printing a request doesn't print it.
    value.set_sensitive(is_sensitive(name));
    Ok((parsed, value))
}

#[cfg(test)]
mod tests {
    use url::Host;

    use super::*;

    #[test]
    fn a_url_is_normalised_and_its_server_known() {
        let target =
            check_url("HTTPS://EXAMPLE.com:443/a b?q={x}#f".replace(' ', "%20").as_str(), &Guard::default());
        let target = target.unwrap();
        assert_eq!(target.uri.to_string(), "https://example.com/a%20b?q={x}");
        assert_eq!(target.server.port, 443);
        assert_eq!(target.server.host, Host::Domain("example.com".to_owned()));
        assert!(check_url("https://bücher.example/", &Guard::default()).is_ok());
    }

    #[test]
    fn urls_that_differ_in_a_plain_path_only_pass_or_not_together() {
        let passes = |url: &str| check_url(url, &Guard::default()).is_ok();
        for beginning in [
            "https://example.com",
            "https://example.com:8443",
            "https://user@example.com",
            "https://example.com?to=",
            "https://example.com#",
            "http://example.com",
            "https://10.0.0.1",
            "https://exa mple.com",
            "ftp://example.com",
            "https://",
            "https://\\",
            "https://example.com:",
            "https://example.com:99999",
            "https://1.2",
        ] {
            for path in ["", "/", "/hook", "/a/b-c_d.e~f/1", "/..", "//example.org"] {
                let url = format!("{beginning}{path}");
                if let Some(deciding) = deciding_part(&url) {
                    assert_eq!(passes(&url), passes(&format!("{deciding}/x")), "{url}");
                }
            }
        }
        for url in [
            "https://example.com/a b",
            "https://example.com/%",
            "https://example.com/?q",
            "https:///example.com",
            "https://\\/example.com",
            "https://user@example.com/",
            "example.com/x",
        ] {
            assert_eq!(deciding_part(url), None, "{url}");
        }
        assert_eq!(deciding_part(&format!("https://example.com/{}", "x".repeat(MAX_URL))), None);
    }

    #[test]
    fn only_endpoints_with_the_very_same_url_share_where_they_send() {
        let at = |url: &str| Endpoint::new(crate::http::tests::settings(url)).unwrap();
        let other = at("https://example.com/Hook?to=A");
        let share = |url: &str| {
            let mut endpoint = at(url);
            endpoint.share(&other);
            assert_eq!(endpoint.target.uri.to_string(), url);
            Arc::ptr_eq(endpoint.server(), other.server())
        };
        assert!(share("https://example.com/Hook?to=A"));
        for url in
            ["https://example.com/hook?to=A", "https://example.com/Hook?to=a", "http://example.com/Hook?to=A"]
        {
            assert!(!share(url), "{url}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_in_words() {
        for (url, detail) in [
            ("", "not a URL"),
            ("example.com/hook", "not a URL"),
            ("/hook", "not a URL"),
            ("https://", "not a URL"),
            ("https://exa mple.com", "space"),
            (" https://example.com", "space"),
            ("https://example.com/\n", "control"),
            ("ftp://example.com", "ftp"),
            ("file:///etc/passwd", "file"),
            ("mailto:me@example.com", "mailto"),
            ("https://me:secret@example.com", "password"),
            ("https://example.com:0/", "port"),
            ("https://example.com:70000/", "not a URL"),
            ("https://1.2.3.4.5.6/", "not a URL"),
            ("http://10.0.0.1/", "private"),
        ] {
            let problem = check_url(url, &Guard::default()).unwrap_err();
            assert!(problem.detail.contains(detail), "{url:?}: {problem}");
            assert!(!problem.message.is_empty() && !problem.hint.is_empty());
        }
    }

    #[test]
    fn headers_that_would_change_the_request_are_refused() {
        for name in
            ["Webhook-Id", "webhook-signature", "webhook-replay", "Host", "content-length", "Content-Type"]
                .into_iter()
                .chain(["Transfer-Encoding", "user-agent", "idempotency-key", "connection", "expect"])
        {
            assert_eq!(check_header(name, "x").unwrap_err().message, "reserved request header", "{name}");
        }
        for (name, value) in [
            ("", "x"),
            ("two words", "x"),
            ("näme", "x"),
            ("a:b", "x"),
            ("x\r\nhost", "x"),
            ("x-key", "a\r\nx: b"),
            ("x-key", "a\nb"),
            ("x-key", "a\0b"),
            ("x-key", "\u{1}"),
        ] {
            assert_eq!(check_header(name, value).unwrap_err().message, "invalid request header", "{name}");
        }
        assert!(check_header("x-key", &"a".repeat(9000)).is_err());
        assert!(check_header("Authorization", "Bearer t0ken").is_ok());
        assert!(check_header("x-city", "Köln").is_err());
    }
}

//! HTTP proxies: which requests go through one, and how.
//!
//! A request by https goes through a tunnel that CONNECT opens, a request by http is sent to the proxy with the whole URL
//! in its request line (RFC 9112, section 3.2). What proves to the proxy who we are goes to the proxy only, and
//! nothing of a tunnelled request does.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use ureq_proto::http::Uri;
use url::{Host, Url};

use super::event_loop::answer::Fault;
use super::outcome::{ErrorClass, Failure};
use super::user_error::Problem;

const URL_SETTING: &str = "pgwh.proxy";
const EXEMPT_SETTING: &str = "pgwh.no_proxy";

/// The proxy that requests go through, and which do not. Its password is never printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    server: Arc<ProxyServer>,
    exempt: Exempt,
}

/// Which hosts are reached without the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exempt {
    all: bool,
    /// In lower case, without dots at either end; their subdomains belong to them.
    names: Vec<String>,
    networks: Vec<IpNet>,
}

impl Proxy {
    /// Goes through the proxy of this URL, to all hosts but those.
    pub fn new(server: ProxyServer, exempt: Exempt) -> Proxy {
        Proxy { server: Arc::new(server), exempt }
    }

    /// The proxy that requests to this host go through, if they do.
    pub(super) fn for_host(&self, host: &Host<String>) -> Option<Arc<ProxyServer>> {
        (!self.exempt.has(host)).then(|| self.server.clone())
    }
}

/// Where a proxy is, and what it wants to know of us.
#[derive(PartialEq, Eq, Hash)]
pub struct ProxyServer {
    pub(super) host: Host<String>,
    pub(super) port: u16,
    user: Option<String>,
    /// The value of `Proxy-Authorization`.
    pub(super) authorization: Option<String>,
}

impl ProxyServer {
    /// Reads `http://[user:password@]host:port`. No error repeats user or password.
    pub fn parse(text: &str) -> Result<ProxyServer, Problem> {
        let refuse = |detail: &str| {
            let hint = format!(
                "For example: ALTER SYSTEM SET {URL_SETTING} = 'http://proxy.example.com:3128'; SELECT pg_reload_conf();"
            );
            Problem::new(format!("invalid proxy in {URL_SETTING}"), detail, hint)
        };
        if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(refuse("The URL contains a space or control character."));
        }
        let url = Url::parse(text).map_err(|error| refuse(&format!("It is not a URL: {error}.")))?;
        match url.scheme() {
            "http" if text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("http://")) => {}
            "http" => return Err(refuse("It does not begin with http://.")),
            // Without a scheme, what stands before the colon is the host or a user.
            other if text.contains("://") && other.len() <= 10 => {
                return Err(refuse(&format!("Its scheme is {other}; proxies are spoken to by http.")));
            }
            _ => return Err(refuse("It does not begin with http://.")),
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(refuse(
                "Something follows host and port. In a user name or password, write / as %2F, ? as %3F, # as %23 and @ as %40.",
            ));
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default().filter(|port| *port != 0))
        else {
            return Err(refuse("It names no host and port that can be connected to."));
        };
        let decoded = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned());
            let decoded = decoded.filter(|text| !text.contains(char::is_control));
            decoded
                .ok_or_else(|| refuse("Its user name or password is not UTF-8 or has a control character."))
        };
        let (user, password) = (decoded(url.username())?, decoded(url.password().unwrap_or_default())?);
        if user.contains(':') {
            return Err(refuse("Its user name contains a colon, which ends a user name."));
        }
        let has_user = !url.username().is_empty() || url.password().is_some();
        let authorization =
            has_user.then(|| format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
        Ok(ProxyServer { host: host.to_owned(), port, user: has_user.then_some(user), authorization })
    }

    /// The URL with stars in place of the password.
    pub fn shown(&self) -> String {
        match &self.user {
            Some(user) => format!("http://{user}:********@{}:{}", self.host, self.port),
            None => format!("http://{}:{}", self.host, self.port),
        }
    }

    /// Has a request in bytes ask the proxy for this URL.
    pub(super) fn address(&self, head: &mut Vec<u8>, uri: &Uri) {
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return };
        let Some(line_end) = head.windows(2).position(|bytes| bytes == b"\r\n") else { return };
        if let Some(authorization) = &self.authorization {
            let header = format!("\r\nproxy-authorization: {authorization}");
            head.splice(line_end..line_end, header.into_bytes());
        }
        let method_end = head.iter().position(|byte| *byte == b' ').map_or(0, |at| at + 1);
        head.splice(method_end..method_end, format!("{scheme}://{authority}").into_bytes());
    }

    /// What went wrong with the proxy.
    pub(super) fn fault(&self, what: impl fmt::Display) -> Fault {
        Fault::new(ErrorClass::Connect, format!("the proxy {self} {what}"))
    }

    /// What a failure of a request is that the proxy passed on, or answered itself.
    pub(super) fn judge(&self, mut failure: Failure) -> Failure {
        match failure.status {
            Some(407) => return self.wants_user(407).into(),
            Some(_) => {
                failure.message += &format!(", through the proxy {self}, which may have answered itself")
            }
            None if failure.class == ErrorClass::Reset => {
                failure.message += &format!(", through the proxy {self}");
            }
            None => {}
        }
        failure
    }

    /// What the answer 407 is, wherever it comes: the proxy's, and not the endpoint's. Some proxies answer CONNECT by 401.
    pub(super) fn wants_user(&self, status: u16) -> Fault {
        let why = match self.authorization {
            Some(_) => format!("does not accept the user and password of {URL_SETTING}"),
            None => format!("wants a user and password, and {URL_SETTING} has none"),
        };
        self.fault(format!("{why} ({status})"))
    }
}

impl fmt::Display for ProxyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for ProxyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Exempt {
    /// Reads the setting: names, networks in CIDR notation and addresses, separated by commas or spaces; `*` for all.
    pub fn parse(list: &str) -> Result<Exempt, Problem> {
        let mut exempt = Exempt::default();
        for item in list.split([',', ' ', '\t', '\n']).filter(|item| !item.is_empty()) {
            let address = item.strip_prefix('[').and_then(|item| item.strip_suffix(']')).unwrap_or(item);
            let address = address.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
            if item == "*" {
                exempt.all = true;
            } else if let Ok(network) = item.parse::<IpNet>().or(address) {
                exempt.networks.push(network.trunc());
            } else if let Some(name) = name_of(item) {
                exempt.names.push(name);
            } else {
                return Err(Problem::new(
                    format!("invalid host in {EXEMPT_SETTING}"),
                    format!(
                        "\"{item}\" is neither a name, nor a network in CIDR notation, nor an address. Ports and other signs are no part of a name."
                    ),
                    format!(
                        "For example: ALTER SYSTEM SET {EXEMPT_SETTING} = 'localhost, .example.com, 10.0.0.0/8, ::1'; SELECT pg_reload_conf(); A name stands for its subdomains, too."
                    ),
                ));
            }
        }
        Ok(exempt)
    }

    fn has(&self, host: &Host<String>) -> bool {
        let has_address =
            |address: IpAddr| self.networks.iter().any(|network| network.contains(&address.to_canonical()));
        self.all
            || match host {
                Host::Ipv4(address) => has_address(IpAddr::V4(*address)),
                Host::Ipv6(address) => has_address(IpAddr::V6(*address)),
                Host::Domain(name) => {
                    let name = name.strip_suffix('.').unwrap_or(name);
                    self.names.iter().any(|suffix| {
                        let rest = name.strip_suffix(suffix.as_str());
                        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                    })
                }
            }
    }
}

/// A name as URLs have it, without dots at either end.
fn name_of(item: &str) -> Option<String> {
    let item = item.strip_prefix('.').unwrap_or(item);
    let item = item.strip_suffix('.').unwrap_or(item);
    if item.is_empty() || item.contains(['*', '/', '@', ':']) || item.split('.').any(str::is_empty) {
        return None;
    }
    match Host::parse(item) {
        Ok(Host::Domain(name)) => Some(name),
        _ => None,
    }
}

//! The network guard: which addresses a request may go to.
//!
//! Whoever may subscribe chooses where the database server sends requests, so without a guard they could reach
//! what only the server can: itself, its private network, a cloud's metadata service. Public addresses are
//! allowed by https; `pgwh.allowed_networks` opens more, plain http included.

mod reserved_ranges;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use ipnet::IpNet;
use url::Host;

use super::user_error::Problem;

/// The setting that opens networks.
const SETTING: &str = "pgwh.allowed_networks";

/// The rules for where requests may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// What the setting opens.
    networks: Vec<IpNet>,
}

impl Guard {
    /// Reads the setting: networks in CIDR notation or single addresses, separated by commas or spaces.
    pub fn parse(list: &str) -> Result<Guard, Problem> {
        let networks = list
            .split([',', ' ', '\t', '\n'])
            .filter(|item| !item.is_empty())
            .map(|item| {
                let address = || item.parse::<IpAddr>().map(IpNet::from);
                item.parse::<IpNet>().or_else(|_| address()).map(|network| network.trunc()).map_err(|_| {
                    Problem::new(
                        format!("invalid network in {SETTING}"),
                        format!("\"{item}\" is neither a network in CIDR notation nor an address."),
                        format!("For example: ALTER SYSTEM SET {SETTING} = '10.0.0.0/8, ::1/128'; SELECT pg_reload_conf();"),
                    )
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Guard { networks })
    }

    /// Judges what is known of an endpoint before its name is resolved: scheme, literal address and port.
    ///
    /// Names are resolved when a request is sent, and [`Guard::check_address`] judges what they stand for.
    pub fn check_target(&self, secure: bool, host: &Host<String>, port: u16) -> Result<(), Problem> {
        match host {
            Host::Ipv4(address) => self.check_dial(secure, IpAddr::V4(*address), port),
            Host::Ipv6(address) => self.check_dial(secure, IpAddr::V6(*address), port),
            Host::Domain(name) if is_localhost(name) => {
                self.check_address(secure, IpAddr::V4(Ipv4Addr::LOCALHOST), port).or_else(|refusal| {
                    self.check_address(secure, IpAddr::V6(Ipv6Addr::LOCALHOST), port).map_err(|_| refusal)
                })
            }
            Host::Domain(name) if !secure && self.networks.is_empty() => Err(Problem::new(
                "plain http is not allowed",
                format!(
                    "The endpoint \"{name}\" would be sent to unencrypted, and {SETTING} opens no network."
                ),
                format!(
                    "Use https, or open the endpoint's network, for example: ALTER SYSTEM SET {SETTING} = '10.0.0.0/8'; SELECT pg_reload_conf();"
                ),
            )),
            Host::Domain(_) if self.networks.is_empty() => self.check_port(host, port),
            Host::Domain(_) => Ok(()),
        }
    }

    /// Judges an address that is about to be dialled.
    pub fn check_dial(&self, secure: bool, address: IpAddr, port: u16) -> Result<(), Problem> {
        self.check_address(secure, address, port)?;
        if !self.opens(address.to_canonical()) && is_own(address) {
            return Err(self.refuse(
                address.to_canonical(),
                format!("{address} is an address of this server itself, which sends to others only."),
            ));
        }
        Ok(())
    }

    /// Judges an address by itself, such as one that a kept connection leads to.
    pub fn check_address(&self, secure: bool, address: IpAddr, port: u16) -> Result<(), Problem> {
        let address = address.to_canonical();
        if self.opens(address) {
            return Ok(());
        }
        if let Some(special) = reserved_ranges::lookup(address) {
            return Err(self.refuse(
                address,
                format!(
                    "{address} is {} ({}); only public addresses are allowed.",
                    special.name, special.network
                ),
            ));
        }
        let embedded = reserved_ranges::embedded(address);
        for inner in
            embedded.iter().flat_map(|form| form.addresses.iter().map(move |inner| (form.name, *inner)))
        {
            let (form, inner) = (inner.0, IpAddr::V4(inner.1));
            if let Some(special) = reserved_ranges::lookup(inner).filter(|_| !self.opens(inner)) {
                return Err(self.refuse(
                    address,
                    format!(
                        "{address} stands for {inner} ({form}), which is {} ({}); only public addresses are allowed.",
                        special.name, special.network
                    ),
                ));
            }
        }
        if !secure {
            return Err(self.refuse(
                address,
                format!("Plain http to {address} is refused; public addresses are sent to by https only."),
            ));
        }
        self.check_port(&address, port)
    }

    /// Public addresses are reached at the ports where https is served, not at those of mail and the like.
    fn check_port(&self, host: &impl std::fmt::Display, port: u16) -> Result<(), Problem> {
        if port == 443 || port > 1023 {
            return Ok(());
        }
        Err(Problem::new(
            format!("port {port} of endpoint {host} is not allowed"),
            format!("Public addresses are sent to at port 443, 8443 or any above 1023, not at {port}."),
            format!(
                "Use such a port, or open the endpoint's network, for example: ALTER SYSTEM SET {SETTING} = '{}'; SELECT pg_reload_conf();",
                self.list_with("10.0.0.0/8")
            ),
        ))
    }

    fn opens(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    fn refuse(&self, address: IpAddr, detail: String) -> Problem {
        let list = self.list_with(&IpNet::from(address).to_string());
        Problem::new(
            format!("endpoint address {address} is not allowed"),
            detail,
            format!("To allow it: ALTER SYSTEM SET {SETTING} = '{list}'; SELECT pg_reload_conf();"),
        )
    }

    /// The setting with one network more. What is open already stays open when the hint is followed.
    fn list_with(&self, network: &str) -> String {
        let open = self.networks.iter().map(ToString::to_string);
        open.chain([network.to_owned()]).collect::<Vec<_>>().join(", ")
    }
}

/// Whether a name always means this machine (RFC 6761, section 6.3).
pub(super) fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

/// Whether an address is one of this machine's. Who sends to such a one sends from it; for UDP to know that, nothing has
/// to be sent.
fn is_own(address: IpAddr) -> bool {
    let any =
        if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip().to_canonical() == address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_addresses_are_known_whatever_network_they_are_of() {
        assert!(is_own(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(!is_own("192.0.2.1".parse().unwrap()));
        assert!(!is_own("93.184.216.34".parse().unwrap()));
        // What is opened is open, also here.
        let guard = Guard::parse("127.0.0.1").unwrap();
        guard.check_dial(false, IpAddr::V4(Ipv4Addr::LOCALHOST), 9).unwrap();
    }

    fn verdict(guard: &Guard, url: &str) -> Result<(), Problem> {
        let url = url::Url::parse(url).unwrap();
        let host = url.host().unwrap().to_owned();
        guard.check_target(url.scheme() == "https", &host, url.port_or_known_default().unwrap())
    }

    /// Each endpoint, and what the refusal must say; an empty string means that it is allowed.
    const WITHOUT_OPEN_NETWORKS: &[(&str, &str)] = &[
        ("https://93.184.216.34/", ""),
        ("https://example.com/hook", ""),
        ("https://example.com:8443/hook", ""),
        ("https://[2606:2800:220:1:248:1893:25c8:1946]/", ""),
        ("http://93.184.216.34/", "https only"),
        ("http://example.com/", "unencrypted"),
        ("https://example.com:25/", "port 443"),
        ("https://93.184.216.34:22/", "port 443"),
        ("https://93.184.216.34:1024/", ""),
        ("https://0.0.0.0/", "this network"),
        ("https://0.1.2.3/", "this network"),
        ("https://10.0.0.1/", "private"),
        ("https://172.16.0.1/", "private"),
        ("https://172.31.255.255/", "private"),
        ("https://172.32.0.1/", ""),
        ("https://192.168.1.1/", "private"),
        ("https://100.64.0.1/", "carrier"),
        ("https://100.128.0.1/", ""),
        ("https://127.0.0.1/", "loopback"),
        ("https://127.255.0.9/", "loopback"),
        ("https://169.254.169.254/latest/meta-data", "link-local"),
        ("https://192.0.0.1/", "protocol assignments"),
        ("https://192.0.2.1/", "documentation"),
        ("https://198.51.100.1/", "documentation"),
        ("https://203.0.113.1/", "documentation"),
        ("https://192.88.99.1/", "6to4"),
        ("https://198.18.0.1/", "benchmarking"),
        ("https://224.0.0.1/", "multicast"),
        ("https://240.0.0.1/", "reserved"),
        ("https://255.255.255.255/", "broadcast"),
        // Odd spellings of 127.0.0.1 and 10.0.0.1.
        ("https://2130706433/", "loopback"),
        ("https://0x7f.1/", "loopback"),
        ("https://0177.0.0.1/", "loopback"),
        ("https://127.1/", "loopback"),
        ("https://①②⑦.0.0.1/", "loopback"),
        ("https://012.0.0.1/", "private"),
        ("https://localhost/", "loopback"),
        ("https://LOCALHOST./", "loopback"),
        ("https://db.localhost/", "loopback"),
        ("https://[::]/", "unspecified"),
        ("https://[::1]/", "loopback"),
        ("https://[::ffff:127.0.0.1]/", "loopback"),
        ("https://[::ffff:93.184.216.34]/", ""),
        ("https://[::127.0.0.1]/", "loopback"),
        ("https://[::ffff:0:10.0.0.1]/", "private"),
        ("https://[64:ff9b::10.0.0.1]/", "private"),
        ("https://[64:ff9b::169.254.169.254]/", "link-local"),
        ("https://[64:ff9b::93.184.216.34]/", ""),
        ("https://[64:ff9b:1::1]/", "translation"),
        ("https://[2002:7f00:1::]/", "loopback"),
        ("https://[2002:5db8:d822::]/", ""),
        // Teredo: server 10.0.0.1; then a public server and the client 127.0.0.1, its bits inverted.
        ("https://[2001:0:a00:1::]/", "private"),
        ("https://[2001:0:5db8:d822::80ff:fffe]/", "loopback"),
        ("https://[100::1]/", "discard"),
        ("https://[2001:2::1]/", "benchmarking"),
        ("https://[2001:10::1]/", "protocol assignments"),
        ("https://[2001:db8::1]/", "documentation"),
        ("https://[3fff::1]/", "documentation"),
        ("https://[5f00::1]/", "reserved"),
        ("https://[fc00::1]/", "unique local"),
        ("https://[fd12:3456::1]/", "unique local"),
        ("https://[fe80::1]/", "link-local"),
        ("https://[fec0::1]/", "site-local"),
        ("https://[ff02::1]/", "multicast"),
        ("https://[4000::1]/", "reserved"),
    ];

    const WITH_OPEN_NETWORKS: &[(&str, &str)] = &[
        ("http://10.1.2.3:80/", ""),
        ("https://10.1.2.3:22/", ""),
        ("http://[::ffff:10.1.2.3]/", ""),
        ("https://[64:ff9b::10.1.2.3]/", ""),
        ("http://93.184.216.34/", "https only"),
        ("https://93.184.216.34/", ""),
        ("http://192.168.1.1/", "private"),
        ("http://internal.example/", ""),
        ("http://localhost:8080/", ""),
        ("http://127.0.0.1/", "loopback"),
        ("http://[::1]/", ""),
    ];

    #[test]
    fn only_public_addresses_and_opened_networks_are_reached() {
        let guards = [
            (Guard::default(), WITHOUT_OPEN_NETWORKS),
            (Guard::parse("10.0.0.0/8, ::1").unwrap(), WITH_OPEN_NETWORKS),
        ];
        for (guard, cases) in guards {
            for (url, refusal) in cases {
                match verdict(&guard, url) {
                    Ok(()) => assert!(refusal.is_empty(), "{url} was allowed with {guard:?}"),
                    Err(problem) if refusal.is_empty() => panic!("{url}: {problem}"),
                    Err(problem) => assert!(problem.detail.contains(refusal), "{url}: {problem}"),
                }
            }
        }
    }

    #[test]
    fn following_the_hint_of_a_refusal_allows_the_address() {
        let guard = Guard::parse("10.0.0.0/8").unwrap();
        for url in
            ["http://127.0.0.1/", "http://localhost/", "https://[64:ff9b::192.168.0.1]/", "http://1.1.1.1/"]
        {
            let hint = verdict(&guard, url).unwrap_err().hint;
            let list = hint.split('\'').nth(1).unwrap();
            assert!(list.starts_with("10.0.0.0/8, "));
            verdict(&Guard::parse(list).unwrap(), url).unwrap();
        }
    }

    #[test]
    fn the_setting_takes_networks_and_addresses() {
        assert_eq!(Guard::parse("").unwrap(), Guard::default());
        assert_eq!(Guard::parse("10.1.2.3/8 , 192.168.0.7,fd00::/8").unwrap().networks.len(), 3);
        assert!(Guard::parse("10.0.0.0/33").unwrap_err().detail.contains("10.0.0.0/33"));
        assert!(Guard::parse("intranet").is_err());
    }
}

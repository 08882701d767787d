//! Addresses that are not public, as IANA registers them.
//!
//! <https://www.iana.org/assignments/iana-ipv4-special-registry> and
//! <https://www.iana.org/assignments/iana-ipv6-special-registry>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A network that is not public.
pub(super) struct Special {
    /// The network.
    pub network: IpNet,
    /// What it is, with its article.
    pub name: &'static str,
}

/// An IPv6 address that leads to IPv4 ones.
pub(super) struct Embedding {
    /// What the form is called.
    pub name: &'static str,
    /// The addresses inside.
    pub addresses: Vec<Ipv4Addr>,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8, name: &'static str) -> Special {
    Special { network: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)), name }
}

const fn v6(a: u16, b: u16, c: u16, d: u16, length: u8, name: &'static str) -> Special {
    Special { network: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), length)), name }
}

/// The first match counts, so the narrower network stands before the wider.
const SPECIAL: &[Special] = &[
    v4(0, 0, 0, 0, 8, "an address of \"this network\""),
    v4(10, 0, 0, 0, 8, "a private address"),
    v4(100, 64, 0, 0, 10, "an address shared inside a carrier's network"),
    v4(127, 0, 0, 0, 8, "a loopback address"),
    v4(169, 254, 0, 0, 16, "a link-local address"),
    v4(172, 16, 0, 0, 12, "a private address"),
    v4(192, 0, 0, 0, 24, "reserved for protocol assignments"),
    v4(192, 0, 2, 0, 24, "reserved for documentation"),
    v4(192, 88, 99, 0, 24, "a 6to4 relay address"),
    v4(192, 168, 0, 0, 16, "a private address"),
    v4(198, 18, 0, 0, 15, "reserved for benchmarking"),
    v4(198, 51, 100, 0, 24, "reserved for documentation"),
    v4(203, 0, 113, 0, 24, "reserved for documentation"),
    v4(224, 0, 0, 0, 4, "a multicast address"),
    v4(255, 255, 255, 255, 32, "the broadcast address"),
    v4(240, 0, 0, 0, 4, "a reserved address"),
    v6(0x64, 0xff9b, 1, 0, 48, "a local translation address"),
    v6(0x100, 0, 0, 0, 64, "a discard address"),
    v6(0x2001, 2, 0, 0, 48, "reserved for benchmarking"),
    v6(0x2001, 0xdb8, 0, 0, 32, "reserved for documentation"),
    v6(0x3fff, 0, 0, 0, 20, "reserved for documentation"),
    v6(0xfc00, 0, 0, 0, 7, "a unique local address"),
    v6(0xfe80, 0, 0, 0, 10, "a link-local address"),
    v6(0xfec0, 0, 0, 0, 10, "a site-local address"),
    v6(0xff00, 0, 0, 0, 8, "a multicast address"),
];

const LOOPBACK: Special = Special {
    network: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    name: "the loopback address",
};
const UNSPECIFIED: Special = Special {
    network: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
    name: "the unspecified address",
};
/// Teredo has its own entry among the embeddings; the rest of the block is for protocols.
const ASSIGNMENTS: Special = v6(0x2001, 0, 0, 0, 23, "reserved for protocol assignments");
/// Whatever lies outside global unicast, 2000::/3.
const UNASSIGNED: Special = v6(0, 0, 0, 0, 0, "a reserved address");

/// What keeps an address from being public; none for public ones and for those that embed IPv4.
pub(super) fn lookup(address: IpAddr) -> Option<&'static Special> {
    if let Some(special) = SPECIAL.iter().find(|special| special.network.contains(&address)) {
        return Some(special);
    }
    let IpAddr::V6(v6) = address else { return None };
    if v6.is_loopback() {
        Some(&LOOPBACK)
    } else if v6.is_unspecified() {
        Some(&UNSPECIFIED)
    } else if embedded(address).is_some() {
        None
    } else if ASSIGNMENTS.network.contains(&address) {
        Some(&ASSIGNMENTS)
    } else if v6.segments()[0] >> 13 != 1 {
        Some(&UNASSIGNED)
    } else {
        None
    }
}

/// The IPv4 addresses that an IPv6 address leads to, if it is of a form that does.
///
/// RFC 4291 (compatible), 2765 (translated), 6052 (NAT64), 3056 (6to4), 4380 (Teredo). IPv4-mapped addresses are
/// made IPv4 before they come here.
pub(super) fn embedded(address: IpAddr) -> Option<Embedding> {
    let IpAddr::V6(address) = address else { return None };
    let segments = address.segments();
    let inside = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    let (name, addresses) = match segments {
        [0, 0, 0, 0, 0, 0, high, low] => ("IPv4-compatible", vec![inside(high, low)]),
        [0, 0, 0, 0, 0xffff, 0, high, low] => ("IPv4-translated", vec![inside(high, low)]),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => ("NAT64", vec![inside(high, low)]),
        [0x2002, high, low, ..] => ("6to4", vec![inside(high, low)]),
        // The client's address is written with its bits inverted.
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            ("Teredo", vec![inside(high, low), inside(!client_high, !client_low)])
        }
        _ => return None,
    };
    Some(Embedding { name, addresses })
}

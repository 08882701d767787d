//! The order in which the addresses of a name are tried.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long an address that did not answer is tried last.
const TRIED_LAST_TIME: Duration = Duration::from_secs(5 * 60);
/// The most addresses that are known not to answer.
const MAX_SILENT: usize = 10_000;
/// The most addresses of a name that one request tries.
const MAX_TRIED: usize = 8;

/// Addresses that did not answer lately.
#[derive(Default)]
pub(crate) struct SilentAddresses {
    since: HashMap<IpAddr, Instant>,
}

impl SilentAddresses {
    /// This one has not answered.
    pub fn note(&mut self, address: IpAddr) {
        let now = Instant::now();
        if self.since.len() >= MAX_SILENT {
            self.since.retain(|_, since| now.saturating_duration_since(*since) < TRIED_LAST_TIME);
        }
        if self.since.len() < MAX_SILENT {
            self.since.insert(address, now);
        }
    }

    /// This one has.
    pub fn forget(&mut self, address: IpAddr) {
        if !self.since.is_empty() {
            self.since.remove(&address);
        }
    }

    /// These addresses in the order to try them: both families in turns, beginning with that of the first (RFC 8305,
    /// section 4), and those that did not answer lately last.
    pub fn in_order(&self, addresses: Vec<IpAddr>, now: Instant) -> Vec<IpAddr> {
        let Some(first) = addresses.first().map(IpAddr::is_ipv6) else { return addresses };
        let (one, other): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| address.is_ipv6() == first);
        let (mut one, mut other) = (one.into_iter(), other.into_iter());
        let mut ordered = Vec::new();
        loop {
            let pair = [one.next(), other.next()];
            if pair == [None, None] {
                break;
            }
            ordered.extend(pair.into_iter().flatten());
        }
        ordered.sort_by_key(|address| {
            let since = self.since.get(address);
            since.is_some_and(|since| now.saturating_duration_since(*since) < TRIED_LAST_TIME)
        });
        ordered.truncate(MAX_TRIED);
        ordered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_silent_addresses_come_last() {
        let addresses =
            |list: &str| -> Vec<IpAddr> { list.split(' ').map(|address| address.parse().unwrap()).collect() };
        let (mut silent, now) = (SilentAddresses::default(), Instant::now());
        let given = addresses("::1 ::2 ::3 1.1.1.1 2.2.2.2");
        assert_eq!(silent.in_order(given.clone(), now), addresses("::1 1.1.1.1 ::2 2.2.2.2 ::3"));
        silent.note("::1".parse().unwrap());
        assert_eq!(silent.in_order(given.clone(), now), addresses("1.1.1.1 ::2 2.2.2.2 ::3 ::1"));
        let later = Instant::now() + TRIED_LAST_TIME;
        assert_eq!(silent.in_order(given.clone(), later), addresses("::1 1.1.1.1 ::2 2.2.2.2 ::3"));
        silent.forget("::1".parse().unwrap());
        assert_eq!(silent.in_order(given, now), addresses("::1 1.1.1.1 ::2 2.2.2.2 ::3"));
    }
}

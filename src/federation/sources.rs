//! Where connections come from, and how often.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use tokio::time::Instant;

use super::rate::TokenBucket;

/// Sources whose rate is remembered.
const SOURCES: usize = 10_000;

/// How often each source may connect.
#[derive(Debug)]
pub(crate) struct Sources {
    origin: Instant,
    per_second: u32,
    burst: u32,
    buckets: BTreeMap<IpAddr, TokenBucket>,
}

impl Sources {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        Self { origin: Instant::now(), per_second, burst, buckets: BTreeMap::new() }
    }

    /// Whether one more is within the rate of its source.
    pub(crate) fn allow(&mut self, source: IpAddr) -> bool {
        let now = self.origin.elapsed();
        let source = network(source);
        if self.buckets.len() >= SOURCES && !self.buckets.contains_key(&source) {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            if self.buckets.len() >= SOURCES {
                return false;
            }
        }
        let fresh = || TokenBucket::new(self.per_second, self.burst, now);
        self.buckets.entry(source).or_insert_with(fresh).take(now)
    }
}

/// Who has one address of IPv6 has the whole /64.
pub(crate) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_network_and_cannot_crowd_out_another() {
        let mut sources = Sources::new(1, 3);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!((0..10).filter(|n| sources.allow(ip(&format!("2001:db8::{n}")))).count(), 3);
        assert!(sources.allow(ip("2001:db8:0:1::1")));
        assert!(sources.allow(ip("192.0.2.1")));
        assert_eq!(network(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        for n in 0..2 * SOURCES {
            sources.allow(ip(&format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256)));
        }
        assert!(sources.buckets.len() <= SOURCES);
    }
}

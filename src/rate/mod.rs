//! How much is taken of one source: how often it may come, and how much of what is bounded it may hold at one time.
//!
//! An address is no proof of who someone is. It tells apart those who share nothing, so that one of them cannot use up what is
//! there for all.

mod bucket;
mod places;
mod sources;

use std::net::{IpAddr, Ipv6Addr};

pub(crate) use bucket::TokenBucket;
pub(crate) use places::{Place, Places};
pub(crate) use sources::Sources;

/// What one source is counted as: an IPv4 address, or an IPv6 network of 64 bits, of which one host may have all.
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
    fn a_source_is_an_address_or_a_network() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        assert_eq!(network(ip("2001:db8::1")), network(ip("2001:db8::2")));
        assert_ne!(network(ip("2001:db8::1")), network(ip("2001:db8:0:1::1")));
        assert_ne!(network(ip("192.0.2.1")), network(ip("192.0.2.2")));
    }
}

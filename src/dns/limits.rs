//! How much one source may ask. Its address is no proof of who it is: of UDP, anybody can send under any.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::federation::rate::TokenBucket;

/// How many sources are told apart; beyond, the new ones share.
const SOURCES: usize = 4096;
/// How many TCP connections one source may have.
const CONNECTIONS: usize = 16;
/// How often those that have been quiet are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// A source: an IPv4 address, or an IPv6 network of 64 bits, of which one host may have all.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// What each source has left.
#[derive(Debug)]
pub(super) struct Sources {
    rate: u32,
    origin: Instant,
    state: Mutex<State>,
    connections: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

#[derive(Debug)]
struct State {
    buckets: BTreeMap<IpAddr, TokenBucket>,
    /// Of all that there is no room for.
    others: TokenBucket,
    swept: Duration,
}

impl Sources {
    /// `rate` questions a second for each, and twice as many at once.
    pub(super) fn new(rate: u32) -> Self {
        let others = bucket(rate, Duration::ZERO);
        let state = State { buckets: BTreeMap::new(), others, swept: Duration::ZERO };
        Self { rate, origin: Instant::now(), state: Mutex::new(state), connections: Arc::default() }
    }

    /// Whether this source may ask one more now.
    pub(super) fn may_ask(&self, address: IpAddr) -> bool {
        self.may_ask_at(address, self.origin.elapsed())
    }

    fn may_ask_at(&self, address: IpAddr, now: Duration) -> bool {
        let source = source(address);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { buckets, others, swept } = &mut *state;
        if let Some(bucket) = buckets.get_mut(&source) {
            return bucket.take(now);
        }
        // To look for the quiet ones takes a while: who floods us with addresses does not have us do it each time.
        if buckets.len() >= SOURCES && now.saturating_sub(*swept) >= SWEEP {
            *swept = now;
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        if buckets.len() >= SOURCES {
            return others.take(now);
        }
        buckets.entry(source).or_insert_with(|| bucket(self.rate, now)).take(now)
    }

    /// A connection of this source, which counts until it is dropped; none where it has too many.
    pub(super) fn connect(&self, address: IpAddr) -> Option<Connection> {
        let source = source(address);
        let mut all = lock(&self.connections);
        let count = all.entry(source).or_default();
        if *count >= CONNECTIONS {
            return None;
        }
        *count += 1;
        Some(Connection { source, all: Arc::clone(&self.connections) })
    }
}

fn bucket(rate: u32, now: Duration) -> TokenBucket {
    TokenBucket::new(rate, rate.saturating_mul(2), now)
}

fn lock(all: &Mutex<BTreeMap<IpAddr, usize>>) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A TCP connection that counts.
#[derive(Debug)]
pub(super) struct Connection {
    source: IpAddr,
    all: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        if let Some(count) = all.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_its_rate_and_another_its_own() {
        let sources = Sources::new(10);
        let asks = |address: &str, second: u64| {
            (0..100).filter(|_| sources.may_ask_at(ip(address), Duration::from_secs(second))).count()
        };
        assert_eq!(asks("10.0.0.1", 0), 20);
        assert_eq!(asks("10.0.0.1", 1), 10);
        assert_eq!(asks("::ffff:10.0.0.1", 1), 0, "the same one");
        assert_eq!(asks("10.0.0.2", 1), 20);
        assert_eq!(asks("2001:db8::1", 1), 20);
        assert_eq!(asks("2001:db8::2", 1), 0, "one network");
        assert_eq!(asks("2001:db8:0:1::2", 1), 20);
    }

    #[test]
    fn sources_are_bounded_and_the_quiet_are_forgotten() {
        let sources = Sources::new(1);
        let at = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(number));
        let count = |sources: &Sources| sources.state.lock().unwrap().buckets.len();
        for number in 0..10_000 {
            sources.may_ask_at(at(number), Duration::from_millis(10));
        }
        assert_eq!(count(&sources), SOURCES);
        assert!(
            !sources.may_ask_at(at(20_000), Duration::from_millis(20)),
            "there is no room, and the rest is used up"
        );
        assert!(sources.may_ask_at(at(20_000), Duration::from_secs(60)));
        assert_eq!(count(&sources), 1);
    }

    #[test]
    fn connections_are_counted_while_they_last() {
        let sources = Sources::new(1);
        let mut held: Vec<Connection> =
            (0..CONNECTIONS).filter_map(|_| sources.connect(ip("10.0.0.1"))).collect();
        assert_eq!(held.len(), CONNECTIONS);
        assert!(sources.connect(ip("10.0.0.1")).is_none());
        assert!(sources.connect(ip("10.0.0.2")).is_some());
        held.pop();
        assert!(sources.connect(ip("10.0.0.1")).is_some());
        drop(held);
        assert!(sources.connections.lock().unwrap().is_empty());
    }
}

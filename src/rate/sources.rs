//! How often each source may come.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{TokenBucket, network};

/// How often those that have been quiet are forgotten, while there is no room.
const SWEEP: Duration = Duration::from_secs(1);

/// What each source has left.
#[derive(Debug)]
pub(crate) struct Sources {
    origin: Instant,
    per_second: u32,
    burst: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    buckets: BTreeMap<IpAddr, TokenBucket>,
    /// Of all that there is no room for.
    others: TokenBucket,
    swept: Duration,
}

impl Sources {
    /// How many are told apart; beyond, the new ones share.
    pub(crate) const MOST: usize = 10_000;

    /// Each may come `burst` times at once, and `per_second` times a second in the long run.
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let others = TokenBucket::new(per_second, burst, Duration::ZERO);
        let state = State { buckets: BTreeMap::new(), others, swept: Duration::ZERO };
        Self { origin: Instant::now(), per_second, burst, state: Mutex::new(state) }
    }

    /// Whether one more is within the rate of its source.
    pub(crate) fn allow(&self, source: IpAddr) -> bool {
        self.allow_at(source, self.origin.elapsed())
    }

    fn allow_at(&self, source: IpAddr, now: Duration) -> bool {
        let source = network(source);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { buckets, others, swept } = &mut *state;
        if let Some(bucket) = buckets.get_mut(&source) {
            return bucket.take(now);
        }
        // To look for the quiet ones takes a while: who floods us with addresses does not have us do it each time.
        if buckets.len() >= Self::MOST && now.saturating_sub(*swept) >= SWEEP {
            *swept = now;
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        if buckets.len() >= Self::MOST {
            return others.take(now);
        }
        let fresh = || TokenBucket::new(self.per_second, self.burst, now);
        buckets.entry(source).or_insert_with(fresh).take(now)
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
        let sources = Sources::new(10, 20);
        let comes = |address: &str, second: u64| {
            (0..100).filter(|_| sources.allow_at(ip(address), Duration::from_secs(second))).count()
        };
        assert_eq!(comes("10.0.0.1", 0), 20);
        assert_eq!(comes("10.0.0.1", 1), 10);
        assert_eq!(comes("::ffff:10.0.0.1", 1), 0, "the same one");
        assert_eq!(comes("10.0.0.2", 1), 20);
        assert_eq!(comes("2001:db8::1", 1), 20);
        assert_eq!(comes("2001:db8::2", 1), 0, "one network");
        assert_eq!(comes("2001:db8:0:1::2", 1), 20);
    }

    #[test]
    fn sources_are_bounded_and_the_quiet_are_forgotten() {
        let sources = Sources::new(1, 2);
        let at = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(number));
        let count = || sources.state.lock().unwrap().buckets.len();
        for number in 0..20_000 {
            sources.allow_at(at(number), Duration::from_millis(10));
        }
        assert_eq!(count(), Sources::MOST);
        let next = at(30_000);
        assert!(!sources.allow_at(next, Duration::from_millis(20)), "no room, and the rest is used up");
        assert!(sources.allow_at(next, Duration::from_secs(60)));
        assert_eq!(count(), 1);
    }
}

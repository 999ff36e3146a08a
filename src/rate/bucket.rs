//! A token bucket over times that are handed in.

use std::time::Duration;

/// Allows `burst` at once and `per_second` in the long run.
#[derive(Clone, Debug)]
pub(crate) struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Duration,
}

impl TokenBucket {
    /// A full bucket. `now` is of the same monotonic origin in every call.
    pub(crate) fn new(per_second: u32, burst: u32, now: Duration) -> Self {
        let burst = f64::from(burst);
        Self { per_second: f64::from(per_second), burst, tokens: burst, at: now }
    }

    /// Takes one; false where there is none.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        self.fill(now);
        let taken = self.tokens >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }

    /// When there is one to take, if none is taken before.
    pub(crate) fn ready(&self) -> Duration {
        let lacking = (1.0 - self.tokens).max(0.0) / self.per_second;
        self.at.saturating_add(Duration::try_from_secs_f64(lacking).unwrap_or(Duration::MAX))
    }

    /// Whether nothing was taken for so long that a new one would be no different.
    pub(crate) fn is_full(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.tokens >= self.burst
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_passes_at_once_and_then_the_rate() {
        let second = Duration::from_secs;
        let mut bucket = TokenBucket::new(2, 5, second(10));
        assert_eq!((0..10).filter(|_| bucket.take(second(10))).count(), 5);
        assert_eq!((0..10).filter(|_| bucket.take(second(11))).count(), 2);
        assert_eq!(bucket.ready(), Duration::from_millis(11_500));
        assert!(!bucket.is_full(second(11)));
        assert!(!bucket.take(second(9)), "time that goes back gives nothing");
        assert!(bucket.is_full(second(60)) && bucket.ready() == second(60));
        assert_eq!((0..10).filter(|_| bucket.take(second(60))).count(), 5, "never more than the burst");
    }
}

//! How often what a peer can cause is done: so many times at once, and then no more often than its pace.

use jiff::{SignedDuration, Timestamp};

/// A pace (the generic cell rate algorithm). What was done is remembered as one moment: until when the pace was used up
/// in advance.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The least time between two, in the long run.
    pub every: SignedDuration,
    /// How many may follow one another at once after a quiet time.
    pub burst: i32,
}

impl Pace {
    /// When it may next be done; nothing where that is now.
    #[must_use]
    pub fn wait(self, used: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        let credit = self.every.saturating_mul(self.burst.saturating_sub(1));
        used?.saturating_sub(credit).ok().filter(|due| *due > now)
    }

    /// What is remembered once it is done at `now`.
    #[must_use]
    pub fn take(self, used: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        used.map_or(now, |used| used.max(now)).saturating_add(self.every).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_through_and_then_one_at_a_time() {
        let pace = Pace { every: SignedDuration::from_secs(10), burst: 3 };
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut used = None;
        for _ in 0..3 {
            assert_eq!(pace.wait(used, at(100)), None);
            used = pace.take(used, at(100));
        }
        assert_eq!(pace.wait(used, at(100)), Some(at(110)));
        assert_eq!(pace.wait(used, at(110)), None);
        used = pace.take(used, at(110));
        assert_eq!(pace.wait(used, at(111)), Some(at(120)));
        assert_eq!(pace.wait(used, at(1_000)), None);
        assert_eq!(
            pace.take(used, at(1_000)),
            Some(at(1_010)),
            "a quiet time is not saved up beyond the burst"
        );
    }
}

//! How far the peer's clock is from ours, by what it tells with each Hello and Heartbeat.

/// SPIRE dates an SVID this many seconds back, so that clocks may differ by as much before one is refused as not valid yet.
const CUSHION: i64 = 10;
/// A difference that was found ends, or changes, only by more than this many milliseconds beyond its bound.
const HYSTERESIS: i64 = 2_000;

/// The skew in seconds, a whole multiple of [`CUSHION`] so that it says the same at the next heartbeat too; positive where
/// the peer is ahead. `None` where it is within what does no harm, or the peer does not tell (0). What the way takes makes
/// a peer look behind, by far less than the cushion.
pub(super) fn skew(known: Option<i64>, theirs: i64, ours: i64) -> Option<i64> {
    if theirs == 0 {
        return known;
    }
    let step = CUSHION * 1_000;
    let measured = theirs.saturating_sub(ours);
    let bound = if known.is_some() { step - HYSTERESIS } else { step };
    if measured.saturating_abs() <= bound {
        return None;
    }
    if let Some(known) = known
        && measured.saturating_sub(known.saturating_mul(1_000)).saturating_abs() <= step / 2 + HYSTERESIS
    {
        return Some(known);
    }
    let steps = measured.saturating_add(step / 2 * measured.signum()) / step;
    Some(steps.saturating_mul(CUSHION))
}

#[cfg(test)]
mod tests {
    use super::skew;

    #[test]
    fn only_what_does_harm_is_told_and_it_stays_the_same_at_each_heartbeat() {
        let ours = 1_700_000_000_000;
        let next = |known, by: i64| skew(known, ours + by, ours);
        for within in [0, 300, -9_999, 10_000] {
            assert_eq!(next(None, within), None, "{within}");
        }
        assert_eq!((next(None, 10_001), next(None, -10_001)), (Some(10), Some(-10)));
        assert_eq!(
            (next(None, 14_999), next(None, 15_000), next(None, 61_000)),
            (Some(10), Some(20), Some(60))
        );
        assert_eq!(next(None, -3_600_400), Some(-3_600));
        // around a bound
        for by in [60_000, 64_900, 65_100, 66_900, 53_100] {
            assert_eq!(next(Some(60), by), Some(60), "{by}");
        }
        assert_eq!(next(Some(60), 71_000), Some(70));
        assert_eq!((next(Some(10), 8_500), next(Some(10), 7_900)), (Some(10), None));
        assert_eq!(next(Some(60), -60_000), Some(-60));
        // not told, and nonsense
        assert_eq!((skew(None, 0, ours), skew(Some(10), 0, ours)), (None, Some(10)));
        assert!(skew(None, i64::MAX, ours).is_some() && skew(None, i64::MIN, ours).is_some());
    }
}

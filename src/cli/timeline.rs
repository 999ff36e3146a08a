//! A time line in text: when each of several things is valid, on one axis, with the present moment in it.

use jiff::Timestamp;

/// How many characters it takes.
const WIDTH: i64 = 32;

/// When something is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Where it is not known, it is taken for valid since the axis begins.
    pub(super) from: Option<Timestamp>,
    pub(super) until: Timestamp,
}

/// From the first beginning to the last end, and the present moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    first: i64,
    last: i64,
    now: i64,
}

impl Axis {
    /// The axis of these.
    pub(super) fn of(spans: &[Span], now: Timestamp) -> Self {
        let now = now.as_second();
        let first = spans.iter().filter_map(|span| span.from).map(Timestamp::as_second).chain([now]).min();
        let last = spans.iter().map(|span| span.until.as_second()).chain([now]).max();
        Self { first: first.unwrap_or(now), last: last.unwrap_or(now), now }
    }

    /// The title of a column of bars.
    pub(super) const fn title(&self) -> &'static str {
        "VALID (| is now)"
    }

    /// `=` while it is valid, `.` while it is not, `|` at the present moment.
    pub(super) fn bar(&self, span: &Span) -> String {
        let (from, until) =
            (span.from.map_or(0, |from| self.place(from.as_second())), self.place(span.until.as_second()));
        let now = self.place(self.now);
        let mark = |at: i64| match at {
            at if at == now => '|',
            at if from <= at && at <= until => '=',
            _ => '.',
        };
        (0..WIDTH).map(mark).collect()
    }

    /// Where a moment stands: 0 at the first, `WIDTH - 1` at the last.
    fn place(&self, moment: i64) -> i64 {
        let length = i128::from(self.last) - i128::from(self.first);
        let passed = i128::from(moment) - i128::from(self.first);
        if length <= 0 {
            return 0;
        }
        let place = passed.saturating_mul(i128::from(WIDTH - 1)) / length;
        i64::try_from(place).unwrap_or(WIDTH - 1).clamp(0, WIDTH - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_share_an_axis() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let spans = [
            Span { from: Some(at(0)), until: at(1_550) },
            Span { from: Some(at(1_000)), until: at(3_100) },
            Span { from: None, until: at(500) },
        ];
        let axis = Axis::of(&spans, at(1_200));
        let bars: Vec<String> = spans.iter().map(|span| axis.bar(span)).collect();
        assert_eq!(
            bars,
            [
                "============|===................",
                "..........==|===================",
                "======......|...................",
            ]
        );
    }

    #[test]
    fn one_moment_is_an_axis_too() {
        let now = Timestamp::from_second(5).unwrap();
        let span = Span { from: Some(now), until: now };
        assert!(Axis::of(&[span], now).bar(&span).starts_with('|'));
        assert_eq!(Axis::of(&[], now).bar(&span).len(), 32);
    }
}

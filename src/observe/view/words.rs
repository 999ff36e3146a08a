//! How things are put on the page: verdicts that do not need colour, times, and names that may be too long.

use std::fmt;

use jiff::Timestamp;

/// A verdict, told by a sign and a word; colour only underlines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tone {
    Bad,
    Unknown,
    Good,
}

impl Tone {
    /// Of the status of a condition.
    pub(super) fn of_status(status: &str) -> Self {
        match status {
            "True" => Self::Good,
            "False" => Self::Bad,
            _ => Self::Unknown,
        }
    }

    /// The class in the style sheet.
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Unknown => "unknown",
            Self::Good => "good",
        }
    }

    pub(super) const fn sign(self) -> &'static str {
        match self {
            Self::Bad => "✗",
            Self::Unknown => "?",
            Self::Good => "✓",
        }
    }

    /// For who hears the page.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Bad => "no",
            Self::Unknown => "unknown",
            Self::Good => "yes",
        }
    }
}

impl fmt::Display for Tone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class())
    }
}

/// A time for people, to the second.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// How far a time is from now, in its largest unit: `in 3 h`, `2 d ago`.
pub(super) fn away(now: Timestamp, at: Timestamp) -> String {
    let seconds = at.as_second().saturating_sub(now.as_second());
    let (amount, unit) = match seconds.unsigned_abs() {
        s if s < 120 => (s, "s"),
        s if s < 2 * 3_600 => (s / 60, "min"),
        s if s < 2 * 86_400 => (s / 3_600, "h"),
        s => (s / 86_400, "d"),
    };
    if seconds < 0 { format!("{amount} {unit} ago") } else { format!("in {amount} {unit}") }
}

/// The beginning of a text that is longer than `most` characters, with a sign that more was there.
pub(super) fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let beginning: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{beginning}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        for (second, told) in [
            (0, "in 0 s"),
            (-90, "90 s ago"),
            (3_600, "in 60 min"),
            (-7_300, "2 h ago"),
            (864_000, "in 10 d"),
        ] {
            assert_eq!(away(at(0), at(second)), told);
        }
        assert_eq!(time(at(0)), "2023-11-14 22:13:20 UTC");
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(short("west.example", 12), "west.example");
        assert_eq!(short("ääääää", 4), "äää…");
        assert_eq!(short("", 0), "");
    }
}

//! Spans of time as operators write them: `30s`, `5m`, `1h30m`.

use std::time::Duration;

use super::field::Problem;

/// The shortest span that is accepted.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest span that is accepted: a year.
const LONGEST: Duration = Duration::from_secs(8_760 * 3_600);

/// Reads hours, minutes and seconds, in that order, each of at most five digits and each at most once.
///
/// # Errors
/// A [`Problem`] for anything else, and for less than a second or more than 8,760 hours.
pub fn parse(field: &str, text: &str) -> Result<Duration, Problem> {
    let Some(span) = read(text) else {
        let rule = "not a span of time: write hours, minutes and seconds in that order, as 30s, 5m or 1h30m";
        return Err(Problem::of(field, text, rule));
    };
    if (SHORTEST..=LONGEST).contains(&span) {
        return Ok(span);
    }
    Err(Problem::of(field, text, "it must be from 1s to 8760h"))
}

fn read(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds: u64 = 0;
    for (unit, factor) in [('h', 3_600), ('m', 60), ('s', 1)] {
        let Some((digits, after)) = rest.split_once(unit) else {
            continue;
        };
        if !(1..=5).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        seconds += digits.parse::<u64>().ok()? * factor;
        rest = after;
    }
    (rest.is_empty() && !text.is_empty()).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_operators_write() {
        for (text, seconds) in [
            ("1s", 1),
            ("30s", 30),
            ("5m", 300),
            ("1h30m", 5_400),
            ("1h1s", 3_601),
            ("0h0m1s", 1),
            ("8760h", 31_536_000),
            ("90m", 5_400),
        ] {
            assert_eq!(parse("f", text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn refuses_all_else() {
        for text in
            ["", "5", "m", "1.5h", "-1s", "+1s", "1m1h", "1s1s", "1h 1m", "500ms", "1d", "100000s", "١s"]
        {
            assert!(parse("f", text).unwrap_err().message.contains("not a span of time"), "{text}");
        }
        for text in ["0s", "0h0m0s", "8760h1s", "99999h"] {
            assert!(parse("f", text).unwrap_err().message.contains("from 1s to 8760h"), "{text}");
        }
    }
}

//! How commands speak: the formats, whether there is colour, and how wide a line may be.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// After this long, who waits at a terminal is told what for.
pub(super) const QUIET: Duration = Duration::from_secs(1);
/// The narrowest terminal that lines are made to fit.
const NARROWEST: usize = 40;

/// The formats of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// For people, as wide as the terminal.
    Table,
    /// For people, with everything in it.
    Wide,
    /// For scripts.
    Json,
    /// For scripts.
    Yaml,
}

impl ListFormat {
    /// Prints the value, where this is a format for scripts; whether it did.
    ///
    /// # Errors
    /// Where standard output is closed.
    pub(super) fn print_value(self, value: &impl Serialize) -> anyhow::Result<bool> {
        match self {
            Self::Table | Self::Wide => return Ok(false),
            Self::Json => TextFormat::Json.print_value(value)?,
            Self::Yaml => TextFormat::Yaml.print_value(value)?,
        };
        Ok(true)
    }
}

/// The formats of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TextFormat {
    /// For people.
    Text,
    /// For scripts.
    Json,
    /// For scripts.
    Yaml,
}

impl TextFormat {
    /// Prints the value, where this is a format for scripts; whether it did.
    ///
    /// # Errors
    /// Where standard output is closed.
    pub(super) fn print_value(self, value: &impl Serialize) -> anyhow::Result<bool> {
        let mut out = std::io::stdout().lock();
        match self {
            Self::Text => return Ok(false),
            Self::Json => writeln!(out, "{}", serde_json::to_string_pretty(value)?)?,
            Self::Yaml => {
                // By way of a JSON value, so that both have the same names.
                let text = serde_saphyr::to_string(&serde_json::to_value(value)?)?;
                writeln!(out, "{}", text.trim_end())?;
            }
        }
        Ok(true)
    }
}

/// Whether output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    Always,
    Never,
}

/// What standard output takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Screen {
    /// Whether people look at it as it is written.
    pub(super) is_terminal: bool,
    pub(super) color: bool,
    /// The most characters of a line; `None`: as many as there are.
    pub(super) width: Option<usize>,
}

impl Screen {
    /// Standard output, as it is now: a terminal can be resized.
    pub(super) fn of_stdout(color: Color) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        // https://no-color.org: present and not empty, whatever its value
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let size = terminal_size::terminal_size().filter(|_| is_terminal);
        Self {
            is_terminal,
            color: match color {
                Color::Always => true,
                Color::Never => false,
                Color::Auto => is_terminal && !no_color,
            },
            width: size.map(|(width, _)| usize::from(width.0).max(NARROWEST)),
        }
    }

    /// The text, in this tone.
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.color || text.is_empty() => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Doubtful => "33",
            Tone::Faint => "2",
            Tone::Title => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// What a text means, as colour shows it. The words alone say it too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
    Doubtful,
    Faint,
    Title,
}

impl Tone {
    /// Of the status of a condition that is well when it is True.
    pub(super) fn of_truth(status: &str) -> Self {
        match status {
            "True" => Self::Good,
            "False" => Self::Bad,
            "Unknown" => Self::Doubtful,
            _ => Self::Faint,
        }
    }
}

/// A text that may have come from a peer, on one line and without what a terminal would obey, or what would turn its order
/// around.
pub(super) fn plain(text: &str) -> String {
    let is_hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().map(|c| if is_hostile(c) { ' ' } else { c }).collect()
}

/// Lines of at most `width` characters, broken between words; a word that is longer stands alone.
pub(super) fn wrapped(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return vec![text.to_owned()] };
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A span of time in its two largest units, as kubectl has ages: `17h`, `3d4h`, `5m30s`; `0s` where it is negative.
pub(super) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{small_unit}"),
    };
    match (days, hours, minutes) {
        (0, 0, 0..=1) => format!("{seconds}s"),
        (0, 0, minutes) if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) if hours < 8 => two(hours, "h", minutes, "m"),
        (0, hours, _) => format!("{hours}h"),
        (days, hours, _) if days < 8 => two(days, "d", hours, "h"),
        (days, _, _) if days < 730 => format!("{days}d"),
        (days, _, _) => format!("{}y", days / 365),
    }
}

/// Says on standard error what became of a command, or of a step of it.
pub(super) fn tell(what: &str) {
    // Who has closed standard error does not want to know.
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// Says what is waited for, where people see it as it is written. In a log or a pipe it would only tell how fast this machine was:
/// what came of it is said there in any case.
pub(super) fn tell_waiting(what: &str) {
    if std::io::stderr().is_terminal() {
        tell(what);
    }
}

/// Waits; after a second, says what for ([`tell_waiting`]).
pub(super) async fn noticed<T>(what: impl FnOnce() -> String, waiting: impl Future<Output = T>) -> T {
    tokio::pin!(waiting);
    if let Ok(done) = tokio::time::timeout(QUIET, &mut waiting).await {
        return done;
    }
    tell_waiting(&format!("{} ...", what()));
    waiting.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_as_kubectl_has_them() {
        let day = 86_400;
        for (seconds, shown) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (3_599, "59m"),
            (3_600, "1h"),
            (5_400, "1h30m"),
            (17 * 3_600 + 59, "17h"),
            (day, "1d"),
            (3 * day + 4 * 3_600, "3d4h"),
            (90 * day, "90d"),
            (3_650 * day, "10y"),
        ] {
            assert_eq!(span(seconds), shown, "{seconds}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{202e}d\u{9b}e"), "a [2Jb c d e");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("one two three", Some(8)), ["one two", "three"]);
        assert_eq!(wrapped("incomprehensible a", Some(5)), ["incomprehensible", "a"]);
        assert_eq!(wrapped("one two three", None), ["one two three"]);
    }
}

//! The fenced blocks of a Markdown file that hold commands, and what they are expected to print.

use anyhow::{Context, Result, bail, ensure};
use std::path::Path;

/// Before a block that cannot be run here, with the reason.
const NOT_RUN: &str = "<!-- not run:";

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Of the repository.
    pub(crate) file: String,
    /// Of its first line of text.
    pub(crate) line: usize,
    pub(crate) language: String,
    pub(crate) text: String,
    /// Why it is not run, where its author says so.
    pub(crate) not_run: Option<String>,
}

/// One command, and what it is to print; `None`: whatever it prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) command: String,
    pub(crate) expected: Option<Vec<String>>,
}

/// Every block of a file, in order.
///
/// # Errors
/// A block that never ends; a mark that stands before no block of commands, or gives no reason; commands in a block of another
/// language, which nobody would run.
pub(crate) fn of_file(file: &str) -> Result<Vec<Block>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    of_text(file, &text)
}

fn of_text(file: &str, text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut mark: Option<String> = None;
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let trimmed = line.trim_start();
        let place = format!("{file}:{}", at + 1);
        if let Some(rest) = trimmed.strip_prefix(NOT_RUN) {
            let reason = rest.trim().strip_suffix("-->").map(str::trim).unwrap_or_default();
            ensure!(!reason.is_empty(), "{place}: a mark on one line, with a reason, is needed");
            mark = Some(reason.to_owned());
            continue;
        }
        let Some(language) = trimmed.strip_prefix("```") else {
            ensure!(mark.is_none() || line.is_empty(), "{place}: the mark above stands before no block");
            continue;
        };
        let indent = line.len() - trimmed.len();
        let mut inside = Vec::new();
        let closed = lines.by_ref().map(|(_, line)| line).try_fold((), |(), line| {
            if line.trim() == "```" {
                return Err(());
            }
            inside.push(line.get(indent..).unwrap_or_default());
            Ok(())
        });
        ensure!(closed.is_err(), "{place}: this block never ends");
        let block = Block {
            file: file.to_owned(),
            line: at + 2,
            language: language.trim().to_owned(),
            text: inside.join("\n"),
            not_run: mark.take(),
        };
        let hidden = !block.holds_commands() && inside.iter().any(|line| line.starts_with("$ "));
        ensure!(!hidden, "{place}: commands are in `sh` and `console` blocks alone");
        ensure!(
            block.not_run.is_none() || block.holds_commands(),
            "{place}: it holds no commands to leave out"
        );
        blocks.push(block);
    }
    ensure!(mark.is_none(), "{file}: the last mark stands before no block");
    Ok(blocks)
}

impl Block {
    /// Where it is, for messages.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    pub(crate) fn holds_commands(&self) -> bool {
        matches!(self.language.as_str(), "sh" | "console")
    }

    /// What is to be done, in order: a `sh` block is one script; a `console` block has commands after `$ `, gone on with after
    /// `> `, each followed by what it prints.
    pub(crate) fn steps(&self) -> Result<Vec<Step>> {
        if self.language == "sh" {
            return Ok(vec![Step { command: self.text.clone(), expected: None }]);
        }
        let mut steps: Vec<Step> = Vec::new();
        let mut goes_on = false;
        for line in self.text.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step { command: command.to_owned(), expected: Some(Vec::new()) });
                goes_on = command.ends_with('\\');
                continue;
            }
            let Some(step) = steps.last_mut() else { bail!("{}: output before any command", self.place()) };
            match (line.strip_prefix("> "), &mut step.expected) {
                (Some(more), _) if goes_on => {
                    step.command.push('\n');
                    step.command.push_str(more);
                    goes_on = more.ends_with('\\');
                }
                (_, Some(expected)) => expected.push(line.to_owned()),
                (_, None) => {}
            }
        }
        Ok(steps)
    }
}

/// Whether a text is as it is shown. A line that is `...` stands for any lines, `...` in a line for any text; how much space
/// there is between words is nothing, nor are ages (`10s`, `5m30s`).
pub(crate) fn is_as_shown(shown: &[String], text: &str) -> bool {
    let shown: Vec<String> = shown.iter().map(|line| words(line)).collect();
    let lines: Vec<String> = text.lines().map(words).collect();
    lines_match(&shown, &lines)
}

fn lines_match(shown: &[String], lines: &[String]) -> bool {
    match (shown.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "..." => {
            (0..=lines.len()).any(|taken| lines.get(taken..).is_some_and(|left| lines_match(rest, left)))
        }
        (Some((first, rest)), Some((line, left))) => line_matches(first, line) && lines_match(rest, left),
        _ => false,
    }
}

fn line_matches(shown: &str, line: &str) -> bool {
    let Some((before, after)) = shown.split_once("...") else { return shown == line };
    let Some(rest) = line.strip_prefix(before) else { return false };
    (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|left| line_matches(after, left)))
}

/// The words of a line, with one space between, and an age as `AGE`.
fn words(line: &str) -> String {
    let is_age = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            && word.ends_with(['s', 'm', 'h', 'd'])
            && word.chars().all(|c| c.is_ascii_digit() || "smhd".contains(c))
    };
    let words = line.split_whitespace().map(|word| if is_age(word) { "AGE" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn commands_are_found_and_told_from_what_they_print() {
    let text = "\
# A guide\n\n```sh\na &&\n  b\n```\n\n<!-- not run: no engine -->\n```sh\ndocker build .\n```\n\n  ```console\n  $ one \\\n  > two\n  said\n  \
$ three\n  ```\n```yaml\na: b\n```\n";
    let blocks = of_text("guide.md", text).unwrap();
    let languages: Vec<&str> = blocks.iter().map(|block| block.language.as_str()).collect();
    assert_eq!(languages, ["sh", "sh", "console", "yaml"]);
    assert_eq!((blocks[0].line, blocks[0].text.as_str()), (4, "a &&\n  b"));
    assert_eq!(blocks[1].not_run.as_deref(), Some("no engine"));
    let step = |command: &str, expected: &[&str]| Step {
        command: command.to_owned(),
        expected: Some(expected.iter().map(|line| (*line).to_owned()).collect()),
    };
    assert_eq!(blocks[2].steps().unwrap(), [step("one \\\ntwo", &["said"]), step("three", &[])]);
}

#[test]
fn a_block_that_nobody_would_run_is_an_error() {
    for text in [
        "```sh\nnever ends",
        "<!-- not run: -->\n```sh\na\n```",
        "<!-- not run: why -->\nwords",
        "<!-- not run: why -->\n```yaml\na: b\n```",
        "```\n$ hidden\n```",
        "```text\n$ hidden\n```",
    ] {
        assert!(of_text("guide.md", text).is_err(), "{text}");
    }
}

#[test]
fn what_is_printed_is_held_to_what_is_shown() {
    let is = |shown: &str, text: &str| {
        let shown: Vec<String> = shown.lines().map(str::to_owned).collect();
        is_as_shown(&shown, text)
    };
    assert!(is("NAME   AGE\nwest   3m", "NAME AGE  \nwest 5m30s\n"));
    assert!(
        is("...\nlast", "first\nsecond\nlast\n") && is("...\nlast", "last\n") && is("first\n...", "first\n")
    );
    assert!(is("Hello ..., at ...", "Hello you, at home\n"));
    assert!(is("", ""));
    for (shown, text) in [
        ("west True", "west False\n"),
        ("one", "one\ntwo\n"),
        ("one\ntwo", "one\n"),
        ("", "words\n"),
        ("...\nlast", "last\nmore\n"),
        ("Hello ...!", "Hello you\n"),
    ] {
        assert!(!is(shown, text), "{shown:?} is taken for {text:?}");
    }
}

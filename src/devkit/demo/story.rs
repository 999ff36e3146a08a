//! Tells what happens, with the time since the start.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;

use tokio::time::Instant;

use super::Domain;

/// Characters of a message that are told.
const LONGEST: usize = 120;

/// The teller.
pub(super) struct Story<'a> {
    out: &'a mut (dyn Write + Send),
    start: Instant,
    steps: u32,
    /// Conditions as they were last told, by domain, object and type.
    told: BTreeMap<[String; 3], [String; 2]>,
}

/// An object whose conditions are told.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) domain: &'a Domain,
    pub(super) plural: &'a str,
    pub(super) name: &'a str,
}

impl<'a> Story<'a> {
    pub(super) fn new(out: &'a mut (dyn Write + Send)) -> Self {
        Self { out, start: Instant::now(), steps: 0, told: BTreeMap::new() }
    }

    /// Plain text, as it is.
    pub(super) fn text(&mut self, text: &str) -> std::io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// A new step.
    pub(super) fn step(&mut self, title: &str) -> std::io::Result<()> {
        self.steps += 1;
        let number = self.steps;
        self.text(&format!("\n{number}. {title}"))
    }

    /// Something that happened now.
    pub(super) fn say(&mut self, what: impl Display) -> std::io::Result<()> {
        let at = self.start.elapsed().as_secs_f64();
        self.text(&format!("  {at:5.1} s  {what}"))
    }

    /// Tells which conditions changed since they were last told.
    pub(super) fn conditions(&mut self, told: Told<'_>) -> std::io::Result<()> {
        for [kind, status, reason, message] in told.domain.conditions(told.plural, told.name) {
            let domain = told.domain.trust_domain().to_string();
            let key = [domain.clone(), format!("{}/{}", told.plural, told.name), kind.clone()];
            let now = [status.clone(), reason.clone()];
            if self.told.get(&key) == Some(&now) {
                continue;
            }
            let first = self.told.insert(key, now).is_none();
            // At first everything is unknown; that is no news.
            if first && status == "Unknown" {
                continue;
            }
            let why = if status == "True" { String::new() } else { format!(": {}", cut(&message)) };
            self.say(format!("{domain:<13} {kind:<21} {status:<7} {reason}{why}"))?;
        }
        Ok(())
    }

    pub(super) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// The beginning of a long message; all of it is in the status.
fn cut(message: &str) -> String {
    if message.chars().count() <= LONGEST {
        return message.to_owned();
    }
    message.chars().take(LONGEST).chain("...".chars()).collect()
}

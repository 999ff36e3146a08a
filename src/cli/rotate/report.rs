//! What came of a rotation.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::control::rotation::RotationState;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    /// All that was asked for.
    Done,
    /// Nothing was to be done.
    DryRun,
    Failed,
    TimedOut,
    Interrupted,
}

/// What was done at one SPIRE server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServerReport {
    /// The authority that it is to sign with.
    pub(super) authority: Option<String>,
    /// The one that it signed with before.
    pub(super) replaced: Option<String>,
    /// An old one of an earlier rotation, which is finished first.
    pub(super) earlier: Option<String>,
    /// Whether it was asked to prepare an authority, and has not answered.
    pub(super) preparing: bool,
    pub(super) activated: bool,
    pub(super) tainted: bool,
    pub(super) revoked: bool,
    /// Why nothing was done here.
    pub(super) left_out: Option<String>,
}

/// What is printed at the end.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) outcome: Outcome,
    /// Why it is not done.
    pub(super) cause: Option<String>,
    pub(super) servers: BTreeMap<String, ServerReport>,
    /// What would be done, or how things are left; for people.
    pub(super) notes: Vec<String>,
    /// Whether something is in the way of what would be done.
    pub(super) in_the_way: bool,
    /// As it was last seen.
    pub(super) state: RotationState,
}

impl Report {
    /// The report of a rotation that is only thought of.
    pub(super) fn dry_run(state: RotationState, (notes, in_the_way): (Vec<String>, bool)) -> Self {
        Self { outcome: Outcome::DryRun, cause: None, servers: BTreeMap::new(), notes, in_the_way, state }
    }

    /// Whether all is as it was asked for.
    pub(super) fn is_well(&self) -> bool {
        let left_out = self.servers.values().any(|server| server.left_out.is_some());
        matches!(self.outcome, Outcome::Done | Outcome::DryRun) && !self.in_the_way && !left_out
    }

    /// What people read.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        // A plan begins with it.
        if self.outcome != Outcome::DryRun {
            lines.push(format!("trust domain {}", self.state.trust_domain));
        }
        if let Some(cause) = &self.cause {
            lines.push(format!("not done: {cause}"));
        }
        lines.extend(self.notes.iter().cloned());
        lines
    }
}

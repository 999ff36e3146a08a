//! What is told of one step of the path between two trust domains.

use serde::{Deserialize, Serialize};

/// What came of looking at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Passed,
    Failed,
    /// It could not be looked at, follows from a step that failed, or does not apply.
    Skipped,
}

/// Where a broken link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// In our trust domain.
    Ours,
    /// In the peer's.
    Theirs,
    /// On the way, or it cannot be told which.
    Between,
}

/// A step as a peer tells of it: its word, bounded and printable, which nothing is decided by but what is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToldCheck {
    /// In kebab-case, where the peer keeps to it.
    pub step: String,
    pub outcome: Outcome,
    pub message: String,
    /// Empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// Where, if it failed: for whoever holds this, so that what a peer says of its own side is Theirs. Absent from peers
    /// that do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
}

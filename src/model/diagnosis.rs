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
}

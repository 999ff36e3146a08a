//! A status condition, in the form of the Kubernetes API conventions.

use jiff::Timestamp;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// One aspect of the state of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The aspect, in CamelCase.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(length(max = 7), extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// Why, as one of an enumerated set of words in CamelCase.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Names the object, the cause and what to do.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// When `status` became what it is. It changes with nothing else.
    #[schemars(schema_with = "super::date_time")]
    pub last_transition_time: Timestamp,
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
}

//! `security.istio.io/v1` AuthorizationPolicy.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// At most this many rules are legal in one policy.
pub const MAX_RULES: usize = 512;

/// Who may, or may not, call the workloads that `selector` selects in the policy's namespace; in Istio's own namespace, in
/// all. Without one it selects all workloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    pub action: Action,
    pub rules: Vec<Rule>,
}

/// Workloads by labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    pub match_labels: BTreeMap<String, String>,
}

/// What happens to a request that some rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    Allow,
    Deny,
}

/// Matches where one of `from` and one of `to` does; an empty list matches always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
}

/// See [`Source`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct From {
    pub source: Source,
}

/// A caller, by SPIFFE ID without the scheme: exact, or with `*` at one end, or `*` for whoever has one. It matches only
/// callers over mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
}

/// See [`Operation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct To {
    pub operation: Operation,
}

/// What is called, by the port that the workload listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<String>,
}

impl Operation {
    /// On one of these ports.
    #[must_use]
    pub fn on(ports: impl IntoIterator<Item = u16>) -> Self {
        Self { ports: ports.into_iter().map(|port| port.to_string()).collect(), not_ports: Vec::new() }
    }
}

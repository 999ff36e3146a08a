//! `security.istio.io/v1` PeerAuthentication.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::authorization_policy::Selector;

/// Whether the sidecars of the selected workloads take mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// By the port that the workload listens on; only with a selector.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

/// See [`MutualTlsMode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MutualTls {
    pub mode: MutualTlsMode,
}

/// What the sidecar takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// As the wider policy has it.
    Unset,
    /// TLS, if any, is the application's.
    Disable,
    Permissive,
    Strict,
}

//! The history of a trust domain's bundle, in the status of its TrustDomainPeer.

use jiff::Timestamp;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// One bundle of the trust domain, as it came to be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// When the agent first saw it.
    #[schemars(schema_with = "super::date_time")]
    pub time: Timestamp,
    /// `spiffe_sequence` (Trust Domain and Bundle 4.1.1), where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<i64>,
    /// SHA-256, in hex, over the sorted, deduplicated SHA-256 of each X.509 authority's DER.
    #[schemars(length(max = 64))]
    pub digest: String,
    /// The IDs of its X.509 authorities, sorted; the first 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::AUDIT_AUTHORITIES), inner(length(max = 128)))]
    pub authorities: Vec<String>,
    /// The IDs that the bundle before did not have; the first 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::AUDIT_AUTHORITIES), inner(length(max = 128)))]
    pub added: Vec<String>,
    /// The IDs that the bundle before had, and this one has not; the first 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::AUDIT_AUTHORITIES), inner(length(max = 128)))]
    pub removed: Vec<String>,
    /// Who has been seen to hold just these X.509 authorities, at any time since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub confirmed_by: Vec<Witness>,
}

/// Who can tell what the bundle of a trust domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Witness {
    /// Its bundle endpoint, which proved to be it.
    BundleEndpoint,
    /// `spec.bootstrapBundle`.
    Bootstrap,
    /// Our SPIRE, by its own fetches.
    Spire,
    /// The trust domain's agent, over mTLS.
    Peer,
}

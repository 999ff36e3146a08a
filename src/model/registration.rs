//! Registrations of workloads (ClusterSPIFFEID, ClusterStaticEntry), by what they federate with.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{ObjectKey, TrustDomain};

/// The annotation on a registration that records what the agent did to its `federatesWith`:
/// `{"added":[..],"suspended":[..]}`. Where there are no such objects, it is on the ClusterFederatedTrustDomain, with the IDs of
/// the entries in SPIRE to which the agent added the trust domain: `[..]`.
pub const ANNOTATION_RECORD: &str = "entente.dev/federates-with";

/// One registration object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub key: ObjectKey,
    pub uid: String,
    pub resource_version: String,
    pub labels: BTreeMap<String, String>,
    pub has_annotations: bool,
    pub class_name: String,
    /// Whether it is the agent's own.
    pub is_agent: bool,
    /// As written there, in order; names that are no trust domain are kept as they are.
    pub federates_with: Vec<String>,
    pub record: Record,
}

/// What the agent did to a registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Names the agent added, so that it takes away only these when the relationship ends.
    pub added: BTreeSet<TrustDomain>,
    /// Names the agent took away while the peer's bundle would harm the workload, to be put back.
    pub suspended: BTreeSet<TrustDomain>,
}

impl Record {
    /// The annotation's text; `None` where there is nothing to record.
    #[must_use]
    pub fn to_annotation(&self) -> Option<String> {
        if *self == Self::default() {
            return None;
        }
        let names = |set: &BTreeSet<TrustDomain>| set.iter().map(ToString::to_string).collect::<Vec<_>>();
        Some(json!({ "added": names(&self.added), "suspended": names(&self.suspended) }).to_string())
    }
}

impl Registration {
    #[must_use]
    pub fn names(&self, trust_domain: &TrustDomain) -> bool {
        self.federates_with.iter().any(|name| is_name_of(name, trust_domain))
    }
}

/// Whether an item of `federatesWith` is this trust domain: spire-controller-manager takes its name, and a SPIFFE ID of it too.
#[must_use]
pub fn is_name_of(item: &str, trust_domain: &TrustDomain) -> bool {
    let is_of = |id: &str| TrustDomain::new(id).is_ok_and(|of| of == *trust_domain);
    item == trust_domain.as_str() || (item.contains("://") && is_of(item))
}

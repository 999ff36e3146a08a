//! A foreign trust domain, as its TrustDomainPeer describes it. Always well formed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use super::endpoint::BundleEndpoint;
use super::object::Kind;
use super::{Bundle, ObjectKey, OwnerRef, ServiceName, SpiffeId, TrustDomain};

/// On a TrustDomainPeer: `now` has its deletion drop trust first and at once, as [`Ending`] says.
pub const ANNOTATION_END: &str = "entente.dev/end";
/// On a TrustDomainPeer: who ends the relationship, in words that the other side is told.
pub const ANNOTATION_ENDED_BY: &str = "entente.dev/ended-by";

/// A TrustDomainPeer that is well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `metadata.name`.
    pub object: String,
    pub uid: String,
    pub generation: i64,
    pub resource_version: String,
    pub created: Option<Timestamp>,
    /// Set once its deletion was asked for.
    pub deletion: Option<Timestamp>,
    pub finalizers: Vec<String>,
    pub ending: Ending,
    pub trust_domain: TrustDomain,
    pub endpoint: BundleEndpoint,
    pub bootstrap: Option<Bootstrap>,
    /// `host:port`, in order of preference.
    pub agent_addresses: Vec<String>,
    /// The exact SPIFFE IDs of its agents, in its trust domain; never empty.
    pub agent_ids: BTreeSet<SpiffeId>,
    /// Whose registrations federate with it; the agent's own does always.
    pub federates_with: Option<RegistrationSelection>,
    pub imports: Imports,
    pub on_disconnect: OnDisconnect,
    pub suspend: bool,
    /// No registration federates with it: the user's own hold on what it could reach.
    pub withdraw: bool,
    /// Its workloads reach our pods' addresses: where no gateway carries a service, it is told of those.
    pub direct_endpoints: bool,
}

impl Peer {
    /// The TrustDomainPeer as an owner of what is generated for it.
    #[must_use]
    pub fn owner(&self) -> OwnerRef {
        OwnerRef { kind: Kind::TrustDomainPeer, name: self.object.clone(), uid: self.uid.clone() }
    }

    /// The object in the agent's namespace in which its bootstrap bundle lies, and the key in it; `None` where it names none.
    #[must_use]
    pub fn bootstrap_object(&self, namespace: &str) -> Option<(ObjectKey, String)> {
        let (kind, name, key) = match self.bootstrap.as_ref()? {
            Bootstrap::Inline(_) => return None,
            Bootstrap::ConfigMapKey { name, key } => (Kind::ConfigMap, name, key),
            Bootstrap::SecretKey { name, key } => (Kind::Secret, name, key),
        };
        Some((ObjectKey::namespaced(kind, namespace, name), key.clone()))
    }
}

/// How the relationship is to end once its deletion is asked for, by annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// An emergency: trust goes first and at once, whatever it breaks. Otherwise in the order in which nobody loses an
    /// SVID.
    pub at_once: bool,
    /// Who ends it: printable, at most 100 characters, never empty.
    pub by: Option<String>,
}

impl Ending {
    /// Reads the annotations of a TrustDomainPeer.
    #[must_use]
    pub fn of_annotations(annotations: &BTreeMap<String, String>) -> Self {
        const MOST: usize = 100;
        let at_once =
            annotations.get(ANNOTATION_END).is_some_and(|how| how.trim().eq_ignore_ascii_case("now"));
        let by: String = annotations.get(ANNOTATION_ENDED_BY).map_or_else(String::new, |by| {
            by.trim().chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect()
        });
        Self { at_once, by: (!by.is_empty()).then_some(by) }
    }
}

/// Where the first bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    Inline(Arc<Bundle>),
    /// In the agent's namespace.
    ConfigMapKey {
        name: String,
        key: String,
    },
    /// In the agent's namespace.
    SecretKey {
        name: String,
        key: String,
    },
}

/// `spec.federatesWith`: consent to add, suspend and restore this trust domain in what it selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrationSelection {
    /// Over the labels of ClusterSPIFFEIDs and ClusterStaticEntries. An empty selector selects all.
    pub selector: LabelSelector,
    /// Registration entries in SPIRE, where there is no Kubernetes. With a selector that is empty and some IDs, only
    /// the IDs are meant.
    pub spiffe_ids: BTreeSet<SpiffeId>,
}

/// A Kubernetes label selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub match_labels: BTreeMap<String, String>,
    pub match_expressions: Vec<LabelExpression>,
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelExpression {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

impl LabelSelector {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether every requirement holds; an empty selector matches all.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|expression| match expression {
                LabelExpression::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
                LabelExpression::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
                LabelExpression::Exists(key) => labels.contains_key(key),
                LabelExpression::DoesNotExist(key) => !labels.contains_key(key),
            })
    }
}

/// What of the peer's catalogue is admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imports {
    /// Empty: nothing.
    pub services: Vec<ServicePattern>,
    /// Which of them are also served under the local name.
    pub as_local: Vec<LocalPattern>,
    /// Istio's `exportTo`.
    pub export_to: Vec<String>,
    /// Within which endpoint addresses must lie; empty: anywhere that is not forbidden altogether.
    pub endpoint_cidrs: Vec<IpNet>,
    pub max_services: usize,
    pub max_endpoints_per_service: usize,
}

/// `{namespace, name}`, each of which may be `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePattern {
    pub namespace: Option<String>,
    pub name: Option<String>,
}

/// One of `spec.imports.asLocal`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPattern {
    pub pattern: ServicePattern,
    /// Whether the cluster's own endpoints are preferred to the peer's.
    pub local_first: bool,
}

impl ServicePattern {
    #[must_use]
    pub fn matches(&self, service: &ServiceName) -> bool {
        self.namespace.as_ref().is_none_or(|n| n == service.namespace())
            && self.name.as_ref().is_none_or(|n| n == service.name())
    }
}

/// What becomes of imports while the peer is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    Keep,
    Withdraw { after: Duration },
}

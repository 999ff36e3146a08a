//! Objects of the store, as plain data: what a watch read, and what the plan wants to be there.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// The label that marks what an agent generated: the instance that did.
pub const LABEL_INSTANCE: &str = "entente.dev/instance";
/// The label that names the peer for which an object was generated.
pub const LABEL_PEER: &str = "entente.dev/peer";
/// Istio's mark of a policy that is tried out, and denies nobody.
pub const ANNOTATION_DRY_RUN: &str = "istio.io/dry-run";
/// The annotation that names the object from which one was generated: `Kind/namespace/name`.
pub const ANNOTATION_SOURCE: &str = "entente.dev/source";
/// On the alias of an export, the SPIFFE IDs of its servers as importers are told, with commas between them: what is known of
/// them while no pod is there.
pub const ANNOTATION_SERVER_IDS: &str = "entente.dev/server-ids";
/// Set to `"true"` on an object that is not ours, hands it over to the agent.
pub const ANNOTATION_ADOPT: &str = "entente.dev/adopt";
/// On the Lease of the leader: where it takes the connections of peers that other replicas pass on, `IP:port`.
pub const ANNOTATION_RELAY: &str = "entente.dev/relay-address";
/// Marks the registration of the agent itself.
pub const LABEL_AGENT: &str = "entente.dev/agent";

/// A kind that the agent reads or writes, with the API it is served by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    TrustDomainPeer,
    FederatedService,
    ServiceExportRule,
    ImportedService,
    ClusterFederatedTrustDomain,
    ClusterSpiffeId,
    ClusterStaticEntry,
    PeerAuthentication,
    AuthorizationPolicy,
    DestinationRule,
    ServiceEntry,
    VirtualService,
    Gateway,
    Namespace,
    Service,
    Pod,
    ConfigMap,
    Secret,
    Deployment,
}

impl Kind {
    /// Every kind whose objects the agent may generate, in the order in which they are written.
    pub const GENERATED: [Self; 8] = [
        Self::ClusterFederatedTrustDomain,
        Self::ImportedService,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::DestinationRule,
        Self::ServiceEntry,
        Self::VirtualService,
        Self::Gateway,
    ];

    /// Every kind that is watched, whole.
    pub const WATCHED: [Self; 16] = [
        Self::TrustDomainPeer,
        Self::FederatedService,
        Self::ServiceExportRule,
        Self::ImportedService,
        Self::ClusterFederatedTrustDomain,
        Self::ClusterSpiffeId,
        Self::ClusterStaticEntry,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::DestinationRule,
        Self::ServiceEntry,
        Self::VirtualService,
        Self::Gateway,
        Self::Namespace,
        Self::Service,
        Self::Pod,
    ];

    /// Whether it is one of Istio's.
    #[must_use]
    pub fn is_istio(self) -> bool {
        self.api().0.ends_with(".istio.io")
    }

    /// API group, version, kind and plural, as the API server has them.
    #[must_use]
    pub const fn api(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::TrustDomainPeer => ("entente.dev", "v1alpha1", "TrustDomainPeer", "trustdomainpeers"),
            Self::FederatedService => ("entente.dev", "v1alpha1", "FederatedService", "federatedservices"),
            Self::ServiceExportRule => ("entente.dev", "v1alpha1", "ServiceExportRule", "serviceexportrules"),
            Self::ImportedService => ("entente.dev", "v1alpha1", "ImportedService", "importedservices"),
            Self::ClusterFederatedTrustDomain => {
                ("spire.spiffe.io", "v1alpha1", "ClusterFederatedTrustDomain", "clusterfederatedtrustdomains")
            }
            Self::ClusterSpiffeId => ("spire.spiffe.io", "v1alpha1", "ClusterSPIFFEID", "clusterspiffeids"),
            Self::ClusterStaticEntry => {
                ("spire.spiffe.io", "v1alpha1", "ClusterStaticEntry", "clusterstaticentries")
            }
            Self::ServiceEntry => ("networking.istio.io", "v1", "ServiceEntry", "serviceentries"),
            Self::Gateway => ("networking.istio.io", "v1", "Gateway", "gateways"),
            Self::VirtualService => ("networking.istio.io", "v1", "VirtualService", "virtualservices"),
            Self::DestinationRule => ("networking.istio.io", "v1", "DestinationRule", "destinationrules"),
            Self::PeerAuthentication => {
                ("security.istio.io", "v1", "PeerAuthentication", "peerauthentications")
            }
            Self::AuthorizationPolicy => {
                ("security.istio.io", "v1", "AuthorizationPolicy", "authorizationpolicies")
            }
            Self::Namespace => ("", "v1", "Namespace", "namespaces"),
            Self::Service => ("", "v1", "Service", "services"),
            Self::Pod => ("", "v1", "Pod", "pods"),
            Self::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
            Self::Secret => ("", "v1", "Secret", "secrets"),
            Self::Deployment => ("apps", "v1", "Deployment", "deployments"),
        }
    }

    /// `group/version`, or the version alone in the core group.
    #[must_use]
    pub fn api_version(self) -> String {
        let (group, version, ..) = self.api();
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
    }

    #[must_use]
    pub const fn kind(self) -> &'static str {
        self.api().2
    }

    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        !matches!(
            self,
            Self::TrustDomainPeer
                | Self::ServiceExportRule
                | Self::ClusterFederatedTrustDomain
                | Self::ClusterSpiffeId
                | Self::ClusterStaticEntry
                | Self::Namespace
        )
    }

    /// The kind of a manifest, by its `apiVersion` and `kind`; the version is not compared.
    #[must_use]
    pub fn of_manifest(api_version: &str, kind: &str) -> Option<Self> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let all = Self::WATCHED.into_iter().chain([Self::ConfigMap, Self::Secret]);
        all.into_iter().find(|k| k.api().0 == group && k.api().2 == kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

/// An object by kind and name. Cluster-scoped objects have no namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub name: String,
}

impl ObjectKey {
    #[must_use]
    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, namespace: None, name: name.into() }
    }

    #[must_use]
    pub fn namespaced(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: Some(namespace.into()), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// An owner, for garbage collection. In the owner's namespace, or cluster-scoped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerRef {
    pub kind: Kind,
    pub name: String,
    pub uid: String,
}

/// One object, desired or observed. `body` holds its top-level fields other than `apiVersion`, `kind` and `metadata`
/// (so `spec`, and `status` where it was read).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub key: ObjectKey,
    pub meta: Meta,
    pub body: Body,
}

/// The content of an object. Copies are one until one of them is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body(Arc<Map<String, Value>>);

impl Body {
    /// Whether both are one in memory.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl From<Map<String, Value>> for Body {
    fn from(fields: Map<String, Value>) -> Self {
        Self(Arc::new(fields))
    }
}

impl From<Body> for Map<String, Value> {
    fn from(body: Body) -> Self {
        Arc::unwrap_or_clone(body.0)
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl Deref for Body {
    type Target = Map<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Body {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

/// The metadata that is decided on. A desired object has labels, annotations and owners; the rest is the server's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub owners: Vec<OwnerRef>,
    /// `Some` once deletion was asked for and finalizers hold it.
    pub deletion: Option<jiff::Timestamp>,
    pub finalizers: Vec<String>,
    pub created: Option<jiff::Timestamp>,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
}

impl Object {
    /// A desired object with this `spec`.
    #[must_use]
    pub fn desired(key: ObjectKey, spec: Value) -> Self {
        let body = Map::from_iter([("spec".to_owned(), spec)]);
        Self { key, meta: Meta::default(), body: body.into() }
    }

    #[must_use]
    pub fn spec(&self) -> Option<&Value> {
        self.body.get("spec")
    }

    #[must_use]
    pub fn status(&self) -> Option<&Value> {
        self.body.get("status")
    }

    /// The labels at a place in its `spec` (a JSON pointer, RFC 6901); values that are no text are left out.
    #[must_use]
    pub fn labels_at(&self, pointer: &str) -> BTreeMap<&str, &str> {
        let labels = self.spec().and_then(|spec| spec.pointer(pointer)).and_then(Value::as_object);
        labels
            .into_iter()
            .flatten()
            .filter_map(|(label, value)| Some((label.as_str(), value.as_str()?)))
            .collect()
    }

    /// The labels by which one of Istio's policies selects workloads; empty: all of them.
    #[must_use]
    pub fn match_labels(&self) -> BTreeMap<&str, &str> {
        self.labels_at("/selector/matchLabels")
    }

    /// Whether this instance of the agent generated it, by its label.
    #[must_use]
    pub fn is_generated_by(&self, instance: &str) -> bool {
        self.meta.labels.get(LABEL_INSTANCE).is_some_and(|i| i == instance)
    }

    /// Whether its owner hands it over to the agent.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.meta.annotations.get(ANNOTATION_ADOPT).is_some_and(|v| v == "true")
    }
}

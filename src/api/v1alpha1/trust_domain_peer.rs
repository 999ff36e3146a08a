//! TrustDomainPeer: a foreign trust domain, and what is shared with it.

use jiff::Timestamp;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bundle_audit::AuditEntry;
use super::{Condition, LabelSelector, limits};

/// What to share with one foreign trust domain, and with whom there to talk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "entente.dev",
    version = "v1alpha1",
    kind = "TrustDomainPeer",
    plural = "trustdomainpeers",
    shortname = "tdp",
    category = "entente",
    status = "TrustDomainPeerStatus",
    derive = "PartialEq",
    doc = "A foreign trust domain that this one federates with: its bundle endpoint, its agent, which workloads federate with it and which of its services are admitted. To delete it ends the relationship, in the order in which no workload loses its SVID. In an emergency, the annotation `entente.dev/end: now`, before or after the deletion, drops trust first and at once: whatever names the trust domain and is not selected in `federatesWith` is then refused by SPIRE until it does not. What the annotation `entente.dev/ended-by` says is told to the other side.",
    printcolumn = r#"{"name":"Trust Domain","type":"string","jsonPath":".spec.trustDomain","description":"The foreign trust domain"}"#,
    printcolumn = r#"{"name":"Connected","type":"string","jsonPath":".status.conditions[?(@.type==\"Connected\")].status","description":"Whether the two agents talk"}"#,
    printcolumn = r#"{"name":"Reciprocal","type":"string","jsonPath":".status.conditions[?(@.type==\"Reciprocal\")].status","description":"Whether the peer, by its own word, holds our bundle and federates with us"}"#,
    printcolumn = r#"{"name":"Bundle","type":"string","jsonPath":".status.conditions[?(@.type==\"BundleEndpointHealthy\")].status","description":"Whether its bundle endpoint serves a bundle that can be used"}"#,
    printcolumn = r#"{"name":"Services","type":"integer","jsonPath":".status.services.imported","description":"How many of its services are imported"}"#,
    printcolumn = r#"{"name":"Exported","type":"integer","priority":1,"jsonPath":".status.services.exported","description":"How many services are exported to it"}"#,
    printcolumn = r#"{"name":"Why","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].reason","description":"The reason of the condition Ready"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status","description":"Whether all of this is as it should be"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.agent.spiffeIDs.all(id, id.startsWith('spiffe://' + self.trustDomain + '/'))")
        .message("each of agent.spiffeIDs must lie in trustDomain, with a path: spiffe://<trustDomain>/...")
        .field_path(".agent.spiffeIDs")
)]
pub struct TrustDomainPeerSpec {
    /// The name of the foreign trust domain, without `spiffe://`: 1 to 255 of a-z, 0-9, '.', '-' and '_' (SPIFFE-ID 2.1).
    /// Not our own. Where services are imported it must be a legal DNS host too. It cannot be changed: delete the peer
    /// and create another.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("trustDomain cannot be changed; delete this TrustDomainPeer and create another"))]
    pub trust_domain: String,
    /// Where the bundle of the trust domain is fetched from (SPIFFE Federation 5.1).
    pub bundle_endpoint: BundleEndpoint,
    /// The first bundle of the trust domain. `https_spiffe` with an endpoint in the same trust domain cannot start without
    /// it (SPIFFE Federation 5.2.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_bundle: Option<BootstrapBundle>,
    /// The agent of the trust domain.
    pub agent: Agent,
    /// Whose registrations federate with the trust domain. Absent: none but the agent's own. `{}`: every ClusterSPIFFEID
    /// and ClusterStaticEntry. To select a registration is consent to add, suspend and restore this one trust domain in
    /// its `federatesWith`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federates_with: Option<FederatesWith>,
    /// Which of its services are admitted. By default none.
    #[serde(default)]
    pub imports: Imports,
    /// What becomes of its services while its agent is away. By default they stay.
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
    /// Stop, and keep what is: the agents part, nothing new is exchanged, and what was federated stays so. Default false.
    #[serde(default)]
    pub suspend: bool,
    /// Hold all trust in it back: no registration federates with it until this is unset, the agent's own among them, and the
    /// agents part; then what federated before does again. What was imported stays, and does not work meanwhile. Default
    /// false.
    #[serde(default)]
    pub withdraw: bool,
    /// The workloads of the trust domain reach our pods' addresses directly: the networks are flat. Where a service that is
    /// exported to it has no gateway, it is told of the addresses of its pods instead, at most 64. Default false.
    #[serde(default)]
    pub direct_endpoints: bool,
}

/// Where and how a bundle is fetched, as in a ClusterFederatedTrustDomain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BundleEndpoint {
    /// The URL: `https`, without user information (SPIFFE Federation 5.2). At most 2,048 bytes.
    #[schemars(length(min = 9, max = limits::SPIFFE_ID))]
    #[x_kube(validation = Rule::new("self.startsWith('https://')").message("a bundle endpoint URL must start with https:// (SPIFFE Federation 5.2)"))]
    pub url: String,
    /// How the endpoint proves that it may serve the bundle.
    pub profile: EndpointProfile,
}

/// How a bundle endpoint is authenticated (SPIFFE Federation 5.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'https_spiffe') == has(self.endpointSPIFFEID)")
        .message("endpointSPIFFEID must be given with https_spiffe, and must not be with https_web")
)]
pub struct EndpointProfile {
    /// `https_web`: by a certificate of the Web PKI for the host name. `https_spiffe`: by an X509-SVID with `endpointSPIFFEID`;
    /// the host name is not looked at.
    #[serde(rename = "type")]
    pub kind: ProfileType,
    /// The SPIFFE ID of the endpoint, with `https_spiffe`. One in another trust domain than this peer's needs a
    /// TrustDomainPeer of that one.
    #[serde(rename = "endpointSPIFFEID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 11, max = limits::SPIFFE_ID))]
    pub endpoint_spiffe_id: Option<String>,
}

/// The profiles of the SPIFFE Federation specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProfileType {
    HttpsWeb,
    HttpsSpiffe,
}

/// Where the first bundle comes from: exactly one of the three. SPIFFE bundle JSON, or PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.inline), has(self.configMapKeyRef), has(self.secretKeyRef)].filter(given, given).size() == 1")
        .message("exactly one of inline, configMapKeyRef and secretKeyRef must be given")
)]
pub struct BootstrapBundle {
    /// The bundle itself, at most 1 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::BUNDLE))]
    pub inline: Option<String>,
    /// A key of a ConfigMap in the agent's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
    /// A key of a Secret in the agent's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
}

/// A key of a ConfigMap or Secret in the agent's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// The name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its `data`.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// The agent of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// `host:port` to dial, in order of preference; an IPv6 address in brackets. At most 16. Empty: the peer dials us.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::AGENTS), inner(length(min = 3, max = 259)))]
    pub addresses: Vec<String>,
    /// The exact SPIFFE IDs of its agents, 1 to 16, in `trustDomain`. No other is spoken to.
    #[serde(rename = "spiffeIDs")]
    #[schemars(length(min = 1, max = limits::AGENTS), inner(length(min = 11, max = limits::SPIFFE_ID)))]
    pub spiffe_ids: Vec<String>,
}

/// Which registrations federate with the trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FederatesWith {
    /// Over the labels of ClusterSPIFFEIDs and ClusterStaticEntries. Absent or `{}`: all of them, unless `spiffeIDs` are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// SPIFFE IDs of registration entries, in our own trust domain, where there is no Kubernetes. At most 256. Given without
    /// a selector, they alone are meant.
    #[serde(rename = "spiffeIDs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::REGISTRATIONS), inner(length(min = 11, max = limits::SPIFFE_ID)))]
    pub spiffe_ids: Vec<String>,
}

/// What of the peer's catalogue is admitted. Nothing outside it is ever created, whatever the peer says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Imports {
    /// The services that are admitted, at most 256 patterns. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::IMPORT_PATTERNS))]
    pub services: Vec<ServicePattern>,
    /// Which of the admitted services are also served under the local name `{name}.{namespace}.svc.{cluster domain}`, at most
    /// 256 patterns, of which the first that matches holds. Empty: none. With Istio all callers share that name: who is
    /// not in the exporter's `clients` is refused where a call comes to the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::IMPORT_PATTERNS))]
    pub as_local: Vec<LocalPattern>,
    /// The namespaces that see the imported services, as Istio's `exportTo`: `*` (all) or `~` (none) alone, or up to 64 of `.`
    /// (the agent's own) and names. Default `["*"]`.
    #[serde(default = "everywhere")]
    #[schemars(length(min = 1, max = limits::IMPORT_SCOPES), inner(length(min = 1, max = 63)))]
    pub export_to: Vec<String>,
    /// Networks in which the peer's endpoints must lie, as CIDRs, at most 64. Empty: anywhere that is not loopback, link-local,
    /// multicast or unspecified. Where given, endpoints that are names are refused.
    #[serde(rename = "endpointCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::IMPORT_SCOPES), inner(length(min = 3, max = 49)))]
    pub endpoint_cidrs: Vec<String>,
    /// How many services are admitted, 1 to 10,000. Default 1,000.
    #[serde(default = "default_max_services")]
    #[schemars(range(min = 1, max = limits::MAX_SERVICES))]
    pub max_services: i32,
    /// How many endpoints of one service are admitted, 1 to 1,024. Default 64.
    #[serde(default = "default_max_endpoints")]
    #[schemars(range(min = 1, max = limits::MAX_ENDPOINTS_PER_SERVICE))]
    pub max_endpoints_per_service: i32,
}

impl Default for Imports {
    fn default() -> Self {
        Self {
            services: Vec::new(),
            as_local: Vec::new(),
            export_to: everywhere(),
            endpoint_cidrs: Vec::new(),
            max_services: default_max_services(),
            max_endpoints_per_service: default_max_endpoints(),
        }
    }
}

fn everywhere() -> Vec<String> {
    vec!["*".to_owned()]
}

const fn default_max_services() -> i32 {
    1_000
}

const fn default_max_endpoints() -> i32 {
    64
}

/// Services of the peer by name; `*` stands for any, in either field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePattern {
    /// The namespace at the peer: a DNS label, or `*`.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name of the service: a DNS label, or `*`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// Services of the peer that are also served under their local name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalPattern {
    /// The namespace, at the peer as here: a DNS label, or `*`, which never stands for a namespace `kube-*`, that of Istio or
    /// the agent's own.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name of the service: a DNS label, or `*`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Whether our own cluster's endpoints are preferred: the peer's are used while none of ours is ready. Default: connections
    /// are spread evenly over our cluster and the peers.
    #[serde(default)]
    pub local_first: bool,
}

/// What becomes of imported services while the peer's agent is away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.policy == 'Withdraw') == has(self.after)")
        .message("after must be given with Withdraw, and must not be with Keep")
)]
pub struct OnDisconnect {
    /// `Keep` (default): they stay as they were last known. `Withdraw`: they are removed after the time `after`.
    #[serde(default)]
    pub policy: DisconnectPolicy,
    /// How long the peer must have been away, as hours, minutes and seconds in that order: `30s`, `5m`, `1h30m`. 1 second to
    /// 8,760 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 18), regex(pattern = r"^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('8760h')").message("after must be from 1s to 8760h"))]
    pub after: Option<String>,
}

/// What becomes of imported services while the peer's agent is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DisconnectPolicy {
    #[default]
    Keep,
    Withdraw,
}

/// What is known of a peer. A settled peer's status is not written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrustDomainPeerStatus {
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, BundleEndpointHealthy, BundleDistributed, Connected, Reciprocal, RotationSafe, ServicesSynced and Ready; MeshReady
    /// where the agent works with a mesh; GatewaysReachable where services of the peer are imported and gateways are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// The freshest verified bundle of the trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleStatus>,
    /// The bundles that the trust domain has had, newest first, at most 20: when each was first seen, what it changed, and
    /// who confirmed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::AUDIT))]
    pub audit: Vec<AuditEntry>,
    /// What the peer said, last, that it holds of our bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_view: Option<RemoteView>,
    /// How many services are shared with the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<ServiceCounts>,
    /// Why the agents parted, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_disconnect_reason: Option<String>,
    /// Since when the agents have not been connected, over restarts; absent while they are. `onDisconnect.after` counts from
    /// here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::date_time")]
    pub away_since: Option<Timestamp>,
}

/// A bundle by what identifies it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BundleStatus {
    /// `spiffe_sequence` (Trust Domain and Bundle 4.1.1), where the endpoint gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<i64>,
    /// SHA-256, in hex, over the sorted, deduplicated SHA-256 of each X.509 authority's DER.
    #[schemars(length(max = 64))]
    pub digest: String,
    /// Its X.509 authorities, ordered by ID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub authorities: Vec<AuthorityStatus>,
    /// `spiffe_refresh_hint` in seconds (Trust Domain and Bundle 4.1.2), where the endpoint gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_hint: Option<i64>,
}

/// An X.509 authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityStatus {
    /// Its subject key identifier in hex; the SHA-256 of the certificate where it has none.
    #[schemars(length(max = 128))]
    pub id: String,
    /// When it expires.
    #[schemars(schema_with = "super::date_time")]
    pub not_after: Timestamp,
    /// Whether SPIRE marked it as tainted: nothing that it signed is to be used any more.
    #[serde(default)]
    pub tainted: bool,
}

/// Our own bundle as the peer holds it, by its own word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemoteView {
    /// The digest of our bundle at the peer; absent where it holds none.
    #[serde(rename = "digestOfOurs", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub digest_of_ours: Option<String>,
    /// The IDs of our authorities that it holds, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(max = 128)))]
    pub held: Vec<String>,
    /// The IDs of our authorities that it lacks, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(max = 128)))]
    pub missing: Vec<String>,
    /// The receipt: the digest of our bundle that the peer's SPIRE servers hold, and that its SPIRE agents have had time to
    /// follow; absent where it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub receipt: Option<String>,
}

/// How many services are shared with a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceCounts {
    /// Services that are exported to the peer.
    #[schemars(range(min = 0))]
    pub exported: i32,
    /// Services of the peer that are imported.
    #[schemars(range(min = 0))]
    pub imported: i32,
    /// Services of the peer that were refused.
    #[schemars(range(min = 0))]
    pub refused: i32,
}

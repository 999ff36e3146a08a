//! Everything that is known, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use serde_json::Value;

use super::cluster::{ClusterService, Pod};
use super::endpoint::EndpointState;
use super::export::{self, DeclaredService, ExportRule, Note, Resolved, Unresolved};
use super::import::Imported;
use super::mesh::Mesh;
use super::object::Kind;
use super::own::{Identity, OwnHistory, WorkloadFailure};
use super::reach::Tried;
use super::refused::Refusals;
use super::registration::Registration;
use super::service::{GatewayAddress, GatewayChoice, GatewayType};
use super::session::{HeldBundle, SessionState};
use super::trust::SpireState;
use super::{
    AuthorityId, Bundle, BundleDigest, NamespacedName, Object, ObjectKey, Peer, Service, TrustDomain,
};

/// What the operator set for this agent; constant for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Marks what this instance generated (`entente.dev/instance`).
    pub instance: String,
    /// Where ImportedServices, and bootstrap ConfigMaps and Secrets, live.
    pub namespace: String,
    /// The cluster's DNS domain: a Service is called at `{name}.{namespace}.svc.{clusterDomain}`.
    pub cluster_domain: String,
    /// Whether Istio is there, to be read and written.
    pub istio: bool,
    /// Where Istio lives: the mesh's root namespace, that of its configuration, and of its gateways unless said otherwise.
    pub istio_namespace: String,
    /// The gateway that carries `IstioMtls`.
    pub eastwest_gateway: GatewayChoice,
    /// The gateway that carries `Mtls`.
    pub ingress_gateway: GatewayChoice,
    /// Whether gateways are reached at the addresses of their nodes, by the node port.
    pub gateway_node_ports: bool,
    /// Whether the gateways of peers are tried from here.
    pub checks_gateways: bool,
    /// Whether every workload of the mesh is closed to foreign SPIFFE IDs that no export names.
    pub fence: bool,
    /// The revision of Istio whose mesh configuration counts; empty: the one without a revision.
    pub istio_revision: String,
    /// `className` of the ClusterFederatedTrustDomains that are written; empty: none. Registrations of another class are left
    /// alone: see [`Settings::follows_class`].
    pub spire_class_name: String,
    /// Who makes relationships in SPIRE of what is written.
    pub relationships: Relationships,
    /// Out of which imported services are given addresses, one of each IP family that the cluster's own Services have; empty:
    /// they are given none. Without Istio they are the loopback interface's.
    pub import_ranges: Vec<IpNet>,
    /// Whether clients are served by xDS.
    pub serves_xds: bool,
    /// The name under which SPIRE's agents serve a workload every bundle that it has (`default_all_bundles_name` of their SDS).
    pub xds_all_bundles: String,
    /// Whether names of imported services are answered by the agent's own DNS server.
    pub dns: bool,
    /// How long SPIRE agents are given to follow before a bundle is deleted.
    pub drain: Duration,
    /// The interval at which SPIRE polls a bundle endpoint, at most: what is called stale is two of them old.
    pub poll_interval: Duration,
    /// How long SPIRE's agents take, at most, until they have what their server holds.
    pub agent_follow: Duration,
    /// How long a peer's agent pauses between two tries to reach us, at most, as ours does.
    pub redial: Duration,
    /// How many good fetches restore a federation that a poisoned bundle suspended, the first time.
    pub good_fetches: u32,
}

impl Settings {
    /// Whether our spire-controller-manager may follow an object of this class (`spec.className`, empty: of none). One of another
    /// class is another controller's, of another SPIRE; where the agent is told no class, any may be ours.
    #[must_use]
    pub fn follows_class(&self, class: &str) -> bool {
        class.is_empty() || self.spire_class_name.is_empty() || class == self.spire_class_name
    }

    /// What holds where the operator says nothing.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            instance: "entente".to_owned(),
            namespace: "entente-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            istio: true,
            istio_namespace: "istio-system".to_owned(),
            eastwest_gateway: GatewayChoice::named(GatewayType::EastWestGateway),
            ingress_gateway: GatewayChoice::named(GatewayType::IngressGateway),
            gateway_node_ports: false,
            fence: false,
            checks_gateways: true,
            istio_revision: String::new(),
            spire_class_name: String::new(),
            relationships: Relationships::ControllerManager,
            import_ranges: vec![
                IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(240, 241, 0, 0), 16)),
                IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd24, 0x0241, 0, 0, 0, 0, 0, 0), 64)),
            ],
            serves_xds: false,
            xds_all_bundles: "ALL".to_owned(),
            dns: false,
            drain: Duration::from_secs(30),
            poll_interval: Duration::from_secs(75),
            agent_follow: Duration::from_secs(6),
            redial: Duration::from_secs(30),
            good_fetches: 3,
        }
    }

    /// Out of which imported services are given addresses without Istio, where the operator says nothing. Of IPv6 the loopback
    /// interface has one address alone.
    #[must_use]
    pub fn loopback_ranges() -> Vec<IpNet> {
        vec![IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 64, 0, 0), 10))]
    }

    /// Whether objects of this kind are followed.
    #[must_use]
    pub fn watches(&self, kind: Kind) -> bool {
        self.istio || !kind.is_istio()
    }

    /// The kinds that are followed whole.
    #[must_use]
    pub fn watched(&self) -> Vec<Kind> {
        Kind::WATCHED.into_iter().filter(|kind| self.watches(*kind)).collect()
    }
}

/// Who turns relationships into SPIRE's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relationships {
    /// spire-controller-manager, from ClusterFederatedTrustDomains; registrations are its objects too.
    ControllerManager,
    /// The agent, through the server API; registrations are SPIRE's entries.
    ServerApi,
}

/// An object that cannot be used, with the field and the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub uid: String,
    pub generation: i64,
    /// The trust domain that it speaks of, where that much could be read.
    pub trust_domain: Option<TrustDomain>,
    pub reason: &'static str,
    pub message: String,
    pub deletion: Option<Timestamp>,
    pub finalizers: Vec<String>,
    pub resource_version: String,
}

/// What has to be remembered of a peer from one plan to the next; advanced by `plan::memory`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerMemory {
    /// Set while the peer's bundle would harm local workloads, and until it has been good for long enough.
    pub poisoned: Option<Poisoned>,
    /// Whether what an earlier life of the agent wrote down was looked at.
    pub recalled: bool,
    /// How often it was poisoned, over restarts, with less than a day in between; holds the restoration back longer each
    /// time.
    pub flaps: u32,
    /// When it was poisoned last, or that ended.
    pub last_flap: Option<Timestamp>,
    /// Keys in the peer's bundles that are another's.
    pub disputed: Disputed,
    /// Since when, while ending, no registration entry federates any more.
    pub drained_since: Option<Timestamp>,
    /// Since when, while ending, entries in SPIRE federate though no registration names the peer.
    pub lingering_since: Option<Timestamp>,
    /// Until when the pace at which SPIRE's bundle may be found not to be what the endpoint serves is used up.
    pub turning: Option<Timestamp>,
    /// Until when such changes are left alone.
    pub quiet_until: Option<Timestamp>,
    /// Set while SPIRE and the peer's endpoint differ.
    pub differs: Option<Difference>,
    /// Since when they have differed, whatever either held meanwhile.
    pub differs_since: Option<Timestamp>,
    /// Since when the peer's own word on its bundle has not been what its endpoint serves.
    pub doubted_since: Option<Timestamp>,
    /// What SPIRE holds, since it was last seen to change.
    pub stored: Option<StoredBundle>,
    /// Set while the peer tells of a bundle that neither its endpoint served nor SPIRE holds.
    pub notice: Option<Notice>,
    /// Until when the pace at which the endpoint is asked for notices is used up.
    pub asking: Option<Timestamp>,
    /// The peer's bundle that SPIRE's servers hold and its agents have had time to follow.
    pub receipt: Option<HeldBundle>,
    /// Since when there has been no exchange with the peer, over restarts.
    pub away_since: Option<Timestamp>,
    /// When this life of the process began to look out for the peer, or did so again after it was suspended, until there is
    /// an exchange.
    pub awaited_since: Option<Timestamp>,
    /// Whether there was an exchange in this life of the process, or the peer was suspended: what was written down before
    /// says nothing any more.
    pub was_connected: bool,
    /// Whether it was suspended when it was last looked at.
    pub was_suspended: bool,
    /// Since when the peer's report names a bundle of ours that is not the newest.
    pub stale_since: Option<Timestamp>,
    /// Public keys in the bundle of the peer that SPIRE held last and that was usable, by since when.
    pub held_keys: BTreeMap<[u8; 32], Timestamp>,
    /// Registrations in which the agent has changed something for the peer, and whether someone changes it back: by object, or by
    /// the ID of the entry in SPIRE.
    pub contests: BTreeMap<String, Contest>,
    /// What is contested: whether the peer is to be kept out of them, or to be named in them.
    pub keeps_out: bool,
    /// Our authorities that the peer gave its last receipt for, in this exchange; `None` while it gave none.
    pub receipted: Option<BTreeSet<AuthorityId>>,
    /// Our authorities that the peer held when it was last heard in this life of the process.
    pub last_held: Option<BTreeSet<AuthorityId>>,
}

/// What was seen of a registration since something was wanted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contest {
    /// Whether it is now as it is wanted.
    pub stands: bool,
    /// The resourceVersion that was seen last.
    pub version: String,
    /// When that changed last.
    pub changed: Timestamp,
    /// How often it was undone, with less than an hour in between.
    pub undone: u32,
}

/// SPIRE holds another bundle than the peer's endpoint served us when last asked. Either may be ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What SPIRE holds.
    pub stored: Option<BundleDigest>,
    /// Since when it is known to hold that. An endpoint that was asked after it is ahead of SPIRE.
    pub since: Timestamp,
}

/// The bundle of a peer that SPIRE was seen to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBundle {
    /// `None`: none.
    pub digest: Option<BundleDigest>,
    /// The moment when it was first seen to hold that one.
    pub since: Timestamp,
}

/// A peer's word that its SPIRE holds a bundle that we have not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub digest: BundleDigest,
    /// How often the endpoint was asked for it, and at which moment last.
    pub asks: u32,
    pub asked: Option<Timestamp>,
    /// When it is asked again; `None`: in its turn alone.
    pub next: Option<Timestamp>,
}

/// A suspension of `federatesWith`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poisoned {
    pub since: Timestamp,
    /// What was seen, for messages.
    pub cause: String,
    /// The endpoint's good fetches in a row when it was seen: those before it do not count.
    pub good_before: u32,
    pub harm: Harm,
}

/// Public keys (by the SHA-256 of their SubjectPublicKeyInfo) in bundles of a trust domain whose authorities they are not,
/// and whose they are.
pub type Disputed = BTreeMap<[u8; 32], Owner>;

/// Whose a disputed key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub trust_domain: TrustDomain,
    /// Whether it has shown that it uses the key; else it was there first, and no more is known.
    pub is_proven: bool,
}

impl Owner {
    /// For a message, after the authority: "which ...".
    #[must_use]
    pub fn in_words(&self) -> String {
        let there = &self.trust_domain;
        if self.is_proven {
            return format!("which is that of {there}");
        }
        format!(
            "which {there} has too (whose it is is not known: nobody has shown that it uses its key, and {there} goes on, \
             since it was there first)"
        )
    }
}

/// Why a bundle must not reach a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    /// None that is valid now: Envoy refuses its own new SVID with it.
    NoUsableAuthority,
    /// One authority for two trust domains: who has its key speaks for both.
    SharedAuthority { authority: AuthorityId, with: Owner },
    /// So large that SPIRE's agents may not receive it: they renew no SVID on their node then.
    TooLarge,
}

impl Harm {
    /// What the bundle of `trust_domain` is, for a message: "a bundle ...".
    #[must_use]
    pub fn in_words(&self, trust_domain: &TrustDomain) -> String {
        match self {
            Self::NoUsableAuthority => format!("a bundle of {trust_domain} without a usable X.509 authority"),
            Self::SharedAuthority { authority, with } => {
                format!("a bundle of {trust_domain} with the authority {authority}, {}", with.in_words())
            }
            Self::TooLarge => format!("a bundle of {trust_domain} of more than 1 MiB"),
        }
    }
}

/// Everything that is known. Two equal worlds give equal plans.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    pub settings: Arc<Settings>,
    /// In whole seconds: all that is decided by how long something took is decided by it.
    pub now: Timestamp,
    /// The same as precise as it is known, to tell which of two things came first.
    pub moment: Timestamp,
    pub identity: Option<Arc<Identity>>,
    /// Set while the Workload API gives us nothing.
    pub workload_failure: Option<WorkloadFailure>,
    pub own_history: OwnHistory,
    /// `None` until SPIRE's server API was read once.
    pub spire: Option<Arc<SpireState>>,
    /// Since when, in this life of the process, authorities of ours are known to be tainted.
    pub tainted_since: BTreeMap<AuthorityId, Timestamp>,
    /// Since when, in this life of the process, authorities are known to be in our own bundle in SPIRE.
    pub published_since: BTreeMap<AuthorityId, Timestamp>,
    pub endpoints: Arc<BTreeMap<TrustDomain, EndpointState>>,
    pub sessions: Arc<BTreeMap<TrustDomain, SessionState>>,
    /// What came of trying the gateways of peers, as the replica that leads does; of one that was not tried yet, nothing.
    pub reached: Arc<BTreeMap<GatewayAddress, Tried>>,
    /// What clients that this replica serves by xDS refuse.
    pub refusals: Arc<Refusals>,
    pub peers: BTreeMap<TrustDomain, Arc<Peer>>,
    /// Bootstrap bundles from ConfigMaps and Secrets, by peer, or why there is none.
    pub bootstraps: BTreeMap<TrustDomain, Result<Arc<Bundle>, String>>,
    /// FederatedServices, as they are written.
    pub declared: BTreeMap<NamespacedName, Arc<DeclaredService>>,
    /// ServiceExportRules, by name.
    pub rules: BTreeMap<String, Arc<ExportRule>>,
    /// What both come to by what runs in the cluster, kept up by the index (`plan::exports::resolve`): services to export.
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    /// FederatedServices that come to nothing now.
    pub unresolved: BTreeMap<NamespacedName, Arc<Unresolved>>,
    /// What was passed over in a service that is exported nevertheless.
    pub notes: BTreeMap<NamespacedName, Vec<Note>>,
    /// Services that rules select and do not export, each with the rule's name and why.
    pub skipped: BTreeMap<NamespacedName, BTreeMap<String, Note>>,
    pub imported: BTreeMap<NamespacedName, Arc<Imported>>,
    pub registrations: BTreeMap<ObjectKey, Arc<Registration>>,
    /// The labels of our cluster's namespaces.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Our cluster's own Services.
    pub cluster_services: BTreeMap<NamespacedName, Arc<ClusterService>>,
    pub pods: BTreeMap<NamespacedName, Arc<Pod>>,
    /// Where each gateway was last found, in this life of the process.
    pub gateways_seen: BTreeMap<GatewayType, BTreeSet<GatewayAddress>>,
    /// The mesh of our cluster; `None` where there is no cluster.
    pub mesh: Option<Arc<Mesh>>,
    /// Observed objects of the kinds that are generated, ours and others'.
    pub objects: BTreeMap<ObjectKey, Arc<Object>>,
    pub rejected: BTreeMap<ObjectKey, Rejected>,
    /// The status of each object of ours, as it stands in the store.
    pub statuses: BTreeMap<ObjectKey, Arc<Value>>,
    /// Kinds whose first list has been read whole.
    pub read: BTreeSet<Kind>,
    /// Kinds that the API server does not serve, or that the settings leave alone (no Istio here, say).
    pub absent: BTreeSet<Kind>,
    pub memory: BTreeMap<TrustDomain, PeerMemory>,
    /// Objects that could not be written or deleted, with the store's word; empty again once it went well.
    pub failures: Arc<BTreeMap<ObjectKey, String>>,
}

impl World {
    /// Nothing known yet.
    #[must_use]
    pub fn empty(settings: Arc<Settings>, now: Timestamp) -> Self {
        let absent = Kind::WATCHED.into_iter().filter(|kind| !settings.watches(*kind)).collect();
        Self {
            settings,
            now,
            moment: now,
            identity: None,
            workload_failure: None,
            own_history: OwnHistory::default(),
            spire: None,
            tainted_since: BTreeMap::new(),
            published_since: BTreeMap::new(),
            endpoints: Arc::default(),
            sessions: Arc::default(),
            reached: Arc::default(),
            refusals: Arc::default(),
            peers: BTreeMap::new(),
            bootstraps: BTreeMap::new(),
            declared: BTreeMap::new(),
            rules: BTreeMap::new(),
            services: BTreeMap::new(),
            unresolved: BTreeMap::new(),
            notes: BTreeMap::new(),
            skipped: BTreeMap::new(),
            imported: BTreeMap::new(),
            registrations: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            cluster_services: BTreeMap::new(),
            pods: BTreeMap::new(),
            gateways_seen: BTreeMap::new(),
            mesh: None,
            objects: BTreeMap::new(),
            rejected: BTreeMap::new(),
            statuses: BTreeMap::new(),
            read: BTreeSet::new(),
            absent,
            memory: BTreeMap::new(),
            failures: Arc::default(),
        }
    }

    /// Whether any kind of Istio's may be served here.
    #[must_use]
    pub fn has_istio(&self) -> bool {
        let mut kinds = Kind::WATCHED.into_iter().filter(|kind| kind.is_istio());
        kinds.any(|kind| !self.absent.contains(&kind))
    }

    /// Whether there is no Istio, and imports are called by what the agent itself serves.
    #[must_use]
    pub fn serves_without_istio(&self) -> bool {
        !self.has_istio() && (self.settings.serves_xds || self.settings.dns)
    }

    /// The observed objects of one kind, without a look at the others.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
        // Keys are ordered by kind first.
        let from = ObjectKey { kind, namespace: None, name: String::new() };
        self.objects.range(from..).take_while(move |(key, _)| key.kind == kind)
    }

    /// Whether a good version of this FederatedService or ServiceExportRule is known, and in use.
    #[must_use]
    pub fn has_last_good(&self, key: &ObjectKey, uid: &str) -> bool {
        match (key.kind, &key.namespace) {
            (Kind::FederatedService, Some(namespace)) => self
                .declared
                .get(&NamespacedName::new(namespace, &key.name))
                .is_some_and(|declared| declared.uid == uid),
            (Kind::ServiceExportRule, _) => self.rules.get(&key.name).is_some_and(|rule| rule.uid == uid),
            _ => false,
        }
    }

    /// Takes in what the declarations of one namespace come to now. Answers with whether anything changed.
    pub fn resolve(&mut self, namespace: &str, to: Resolved) -> bool {
        let services = export::replace(&mut self.services, namespace, to.services);
        let unresolved = export::replace(&mut self.unresolved, namespace, to.unresolved);
        let notes = export::replace(&mut self.notes, namespace, to.notes);
        let skipped = export::replace(&mut self.skipped, namespace, to.skipped);
        services || unresolved || notes || skipped
    }

    /// Takes in what these FederatedServices come to now. Answers with whether anything changed.
    pub fn resolve_these(&mut self, names: &BTreeSet<NamespacedName>, to: Resolved) -> bool {
        let services = export::replace_these(&mut self.services, names, to.services);
        let unresolved = export::replace_these(&mut self.unresolved, names, to.unresolved);
        let notes = export::replace_these(&mut self.notes, names, to.notes);
        let skipped = export::replace_these(&mut self.skipped, names, to.skipped);
        services || unresolved || notes || skipped
    }

    /// Our trust domain, once the Workload API told.
    #[must_use]
    pub fn own_trust_domain(&self) -> Option<&TrustDomain> {
        self.identity.as_ref().map(|i| &i.trust_domain)
    }

    /// Whether every watch has been read once: nothing may be pruned before. Our own kinds must be served: while they
    /// are not, nobody knows what was asked for.
    #[must_use]
    pub fn is_read(&self) -> bool {
        let is_ours = |kind: &Kind| kind.api().0 == Kind::TrustDomainPeer.api().0;
        let mut kinds = Kind::WATCHED.iter();
        kinds.all(|kind| self.read.contains(kind) || (self.absent.contains(kind) && !is_ours(kind)))
    }
}

//! The exchange with one peer's agent, as data: what it is told, and what it said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::service::{Outcome, RemoteService};
use super::{AuthorityId, BundleDigest, OwnerRef, ServiceName, SpiffeId, TrustDomain};

/// A bundle by what identifies it, as one side tells the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBundle {
    pub digest: BundleDigest,
    pub authority_ids: BTreeSet<AuthorityId>,
}

/// What one side holds for the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustReport {
    /// The receiver's bundle, in the sender's SPIRE.
    pub held: Option<HeldBundle>,
    /// The receiver's bundle, as the sender's workloads get it.
    pub delivered: Option<HeldBundle>,
    /// Whether the sender's SPIRE has a relationship with the receiver.
    pub relationship: bool,
    /// The sender's own bundle, as its SPIRE server holds it: a notice that there is something to fetch, never a source
    /// of trust.
    pub own: Option<HeldBundle>,
    /// The receipt: the receiver's bundle that every SPIRE server of the sender holds, and that its SPIRE agents have had
    /// time to follow.
    pub receipt: Option<HeldBundle>,
    /// What is wrong with the relationship on the sender's side.
    pub troubles: Vec<Trouble>,
}

/// A condition that is not True on the side that tells of it. As a peer says it: bounded, and printable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    pub condition: String,
    pub reason: String,
    pub message: String,
}

/// Why a side ends the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GoodbyeReason {
    Unspecified,
    ShuttingDown,
    RelationshipEnded,
    Suspended,
    AlreadyConnected,
    ProtocolError,
    NotTrusted,
}

/// What the plan wants of the link with one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPlan {
    pub trust_domain: TrustDomain,
    /// The TrustDomainPeer, which owns the peer's Lease.
    pub owner: OwnerRef,
    /// `host:port`, in order of preference; empty: the peer dials us.
    pub addresses: Vec<String>,
    /// The exact SPIFFE IDs of the peer's agents.
    pub agent_ids: BTreeSet<SpiffeId>,
    /// Whether we are the side that dials first. The other dials only where no exchange comes about.
    pub dials_first: bool,
    pub intent: LinkIntent,
    /// What a goodbye by `intent` says beside its reason.
    pub farewell: String,
    pub report: TrustReport,
    pub catalogue: Arc<Catalogue>,
    /// What became of each service of the peer's catalogue `answered`.
    pub outcomes: Arc<Outcomes>,
    /// The version of the peer's catalogue that `outcomes` answers.
    pub answered: Option<CatalogueVersion>,
}

/// Whether to talk or to part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkIntent {
    Connect,
    /// Say goodbye with this reason where connected, and accept nothing.
    Part(GoodbyeReason),
}

/// SHA-256 of the content of a catalogue.
pub type CatalogueVersion = [u8; 32];

/// What became of each service.
pub type Outcomes = BTreeMap<ServiceName, Outcome>;

/// Services by name. What has not changed is shared with the catalogue before.
pub type Offers = BTreeMap<ServiceName, Arc<RemoteService>>;

/// What is exported to one peer, or was exported by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    pub version: CatalogueVersion,
    pub services: Offers,
    /// Services of which the exporter cannot read now what they are, none of them among `services`: the importer keeps what it
    /// has of them.
    pub held: BTreeSet<ServiceName>,
    /// Entries that did not parse, by what they called themselves (cut to 100 characters); at most 100 are kept.
    pub malformed: Vec<(String, String)>,
}

impl Catalogue {
    /// Whether it says anything of this service.
    #[must_use]
    pub fn has(&self, name: &ServiceName) -> bool {
        self.services.contains_key(name) || self.held.contains(name)
    }
}

/// How it stands with one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Nobody has tried yet, or the peer is to dial us and has not.
    Idle,
    Connected,
    /// The peer's TLS refused us, or it closed the exchange saying so.
    Refused {
        by: Refusal,
        message: String,
    },
    /// We refused the peer's certificate: the bundle we are given for it does not verify it.
    Unverified {
        message: String,
    },
    /// The peer presented a good SVID of an ID that is not in `agent.spiffeIDs`.
    WrongPeerId {
        message: String,
    },
    /// DNS, TCP, a cut connection, no answer in time.
    Unreachable {
        message: String,
    },
    /// The peer said goodbye, and has not come back.
    Parted {
        reason: GoodbyeReason,
        message: String,
    },
}

/// What the peer's refusal says (RFC 8446, section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// `unknown_ca`: it holds another bundle of ours.
    UnknownAuthority,
    /// `handshake_failure`, `access_denied` and the like: it holds none, or does not accept our ID.
    NotAccepted,
    /// `certificate_expired`: our SVID, or one of the clocks.
    Expired,
}

/// What is known of the exchange with one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionState {
    pub link: LinkState,
    /// Since when `link` is what it is.
    pub since: Timestamp,
    /// The peer's last report, kept after a disconnect for the status; only believed while connected.
    pub remote: Option<TrustReport>,
    /// The peer's last whole catalogue of this life of the process.
    pub catalogue: Option<Arc<Catalogue>>,
    /// The peer's answer to our catalogue of that version.
    pub acknowledged: Option<Acknowledgement>,
    /// How many seconds the peer's clock is ahead of ours (behind, where negative), where that is more than clocks of
    /// federated domains may differ.
    pub skew: Option<i64>,
    /// Whether the peer, connected, has left a catalogue of ours without an answer for longer than one takes.
    pub answer_overdue: bool,
    /// Set once the goodbye that the plan asked for was flushed, or there was nobody to say it to.
    pub parted: bool,
}

impl SessionState {
    #[must_use]
    pub fn idle(since: Timestamp) -> Self {
        Self {
            link: LinkState::Idle,
            since,
            remote: None,
            catalogue: None,
            acknowledged: None,
            skew: None,
            answer_overdue: false,
            parted: false,
        }
    }

    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link == LinkState::Connected
    }
}

/// The peer's answer to a whole catalogue of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    pub version: CatalogueVersion,
    /// What was answered.
    pub offered: Arc<Catalogue>,
    pub outcomes: Arc<Outcomes>,
}

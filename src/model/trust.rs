//! What our own SPIRE holds, as its server API says it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::endpoint::BundleEndpoint;
use super::{AuthorityId, Bundle, BundleDigest, SpiffeId, TrustDomain};

/// A federation relationship in SPIRE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relationship {
    pub trust_domain: TrustDomain,
    pub endpoint: BundleEndpoint,
}

/// A registration entry of SPIRE: the part the agent looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: String,
    pub spiffe_id: SpiffeId,
    /// What a workload must show, all of it, to be given the ID: each `type:value`, as `k8s:sa:cart`.
    pub selectors: BTreeSet<String>,
    pub federates_with: BTreeSet<TrustDomain>,
}

/// One SPIRE server. In a trust domain of several, each signs with authorities of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalServer {
    /// As last read; `None` where the server has never told: it is older than SPIRE 1.11, denies it, or has not answered.
    pub authorities: Option<LocalAuthorities>,
    /// Set while it cannot be read.
    pub failure: Option<String>,
}

/// The X.509 authorities of one SPIRE server (`LocalAuthority.GetX509AuthorityState`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAuthorities {
    /// What it signs with.
    pub active: LocalAuthority,
    /// What it will sign with next; published already.
    pub prepared: Option<LocalAuthority>,
    /// What it signed with last. It stays here once it is revoked, until the next one is prepared.
    pub old: Option<LocalAuthority>,
}

/// An authority in a slot of a SPIRE server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAuthority {
    pub id: AuthorityId,
    pub expires_at: Timestamp,
    /// The authority that signed it, where there is an upstream one: then that is what peers hold.
    pub upstream: Option<AuthorityId>,
}

impl LocalAuthority {
    /// What others must hold to accept what it signs.
    #[must_use]
    pub fn anchor(&self) -> &AuthorityId {
        self.upstream.as_ref().unwrap_or(&self.id)
    }
}

impl LocalAuthorities {
    /// Those in its slots.
    pub fn all(&self) -> impl Iterator<Item = &LocalAuthority> {
        std::iter::once(&self.active).chain(&self.prepared).chain(&self.old)
    }
}

/// One reading of SPIRE's server API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpireState {
    pub relationships: BTreeMap<TrustDomain, Relationship>,
    /// Relationships that do not parse, by trust domain as SPIRE spells it, with the reason.
    pub unreadable: BTreeMap<String, String>,
    /// Federated bundles, whether or not there is a relationship.
    pub bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Those of [`bundles`](Self::bundles) that are too large to be used, or even to be read: empty ones stand for them.
    pub too_large: BTreeSet<TrustDomain>,
    /// Registration entries by ID.
    pub entries: BTreeMap<String, Entry>,
    /// Set while the entries cannot be listed; they are then what was last read of them, and the rest is what is.
    pub entries_failure: Option<String>,
    /// Our own trust domain's bundle.
    pub own: Option<Arc<Bundle>>,
    /// Every SPIRE server that is addressed, by its address, with its own authorities.
    pub servers: BTreeMap<String, LocalServer>,
    /// Set while the server API cannot be read; the rest is then what was last read.
    pub failure: Option<String>,
}

impl SpireState {
    /// Why it is not known which entries there are now; `None` where it is.
    #[must_use]
    pub fn why_unlisted(&self) -> Option<&String> {
        self.failure.as_ref().or(self.entries_failure.as_ref())
    }

    /// The entries that federate with a trust domain.
    pub fn federating_with<'a>(&'a self, trust_domain: &'a TrustDomain) -> impl Iterator<Item = &'a Entry> {
        self.entries.values().filter(move |e| e.federates_with.contains(trust_domain))
    }
}

/// A change to make through SPIRE's server API. Where spire-controller-manager runs, relationships and entries are its
/// own, and only bundles are changed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpireAction {
    CreateRelationship(Relationship, Option<Arc<Bundle>>),
    /// Written with the freshest verified bundle: an update with an old one would regress. Without one, SPIRE keeps its own.
    UpdateRelationship(Relationship, Option<Arc<Bundle>>),
    DeleteRelationship(TrustDomain),
    /// Changes `federatesWith` of an entry, as it stands when that is done: what someone else wrote there meanwhile stays.
    ChangeFederatesWith {
        entry: String,
        add: BTreeSet<TrustDomain>,
        remove: BTreeSet<TrustDomain>,
    },
    /// Stores the freshest verified bundle where SPIRE holds none that is usable and cannot get one by itself.
    SetBundle(Arc<Bundle>),
    /// Has the server fetch the bundle from its endpoint now.
    RefreshBundle(Refresh),
    /// Deletes a federated bundle.
    DeleteBundle(TrustDomain, BundleRemoval),
}

/// A fetch by SPIRE, and what it is asked for: SPIRE may be served something else than we are, each time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refresh {
    pub trust_domain: TrustDomain,
    /// What SPIRE holds.
    pub stored: Option<BundleDigest>,
    /// What the endpoint serves us.
    pub served: BundleDigest,
    /// The least time between two for the same difference, once one was answered.
    pub every: Duration,
}

/// What becomes of the entries that federate with a bundle that is deleted. SPIRE's third mode, which deletes these
/// entries, is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleRemoval {
    /// SPIRE refuses while any entry federates with it (mode RESTRICT).
    Restrict,
    /// SPIRE takes it out of every entry, whoever wrote that (mode DISSOCIATE).
    Dissociate,
}

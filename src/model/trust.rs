//! What our own SPIRE holds, as its server API says it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::endpoint::BundleEndpoint;
use super::{AuthorityId, Bundle, SpiffeId, TrustDomain};

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
    pub federates_with: BTreeSet<TrustDomain>,
}

/// One reading of SPIRE's server API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpireState {
    pub relationships: BTreeMap<TrustDomain, Relationship>,
    /// Relationships that do not parse, by trust domain as SPIRE spells it, with the reason.
    pub unreadable: BTreeMap<String, String>,
    /// Federated bundles, whether or not there is a relationship.
    pub bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Registration entries by ID.
    pub entries: BTreeMap<String, Entry>,
    /// Our own trust domain's bundle.
    pub own: Option<Arc<Bundle>>,
    /// The authority that signs now, where the server told.
    pub active_authority: Option<AuthorityId>,
    /// Set while the server API cannot be read; the rest is then what was last read.
    pub failure: Option<String>,
}

impl SpireState {
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
    /// Written with the freshest verified bundle: an update without one would keep, with an old one would regress.
    UpdateRelationship(Relationship, Option<Arc<Bundle>>),
    DeleteRelationship(TrustDomain),
    /// Replaces `federatesWith` of an entry.
    SetFederatesWith {
        entry: String,
        federates_with: BTreeSet<TrustDomain>,
    },
    /// Stores the freshest verified bundle where SPIRE holds none that is usable and cannot get one by itself.
    SetBundle(Arc<Bundle>),
    /// Has the server fetch the bundle from its endpoint now.
    RefreshBundle(TrustDomain),
    /// Deletes a federated bundle.
    DeleteBundle(TrustDomain, BundleRemoval),
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

//! What is remembered from one plan to the next, so that a change costs what it changes.
//!
//! All of it was made by pure functions of the inputs that are kept beside it, so a plan is the same with it and without:
//! it is only sooner there. Inputs are compared by value; where they are shared, equal pointers are enough.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::admission::Surroundings;
use super::authorization::{Policies, Selectors};
use super::diff::Stood;
use super::dns::{self, NameOf};
use super::exports::Export;
use super::imports::Decisions;
use super::observed::Observed;
use super::status::{Answers, SaidOfExport, SaidOfImport};
use super::xds::{Inbound, InboundOf, LocalOf, Offer, OfferOf, Xds};
use crate::federation::catalogue::ServiceHash;
use crate::model::import::Imported;
use crate::model::service::RemoteService;
use crate::model::session::{Catalogue, Outcomes};
use crate::model::{Bundle, NamespacedName, Object, ObjectKey, Peer, SpiffeId, TrustDomain, World};

/// What is remembered of the last plan.
#[derive(Debug, Default)]
pub struct Memo {
    /// What stands, as the last plan saw it.
    pub(super) observed: Observed,
    /// What becomes of each service that is to be exported.
    pub(super) decided: super::exports::Decisions,
    /// The relationships' objects.
    pub(super) relationships: Kept<ObjectKey, Object, Arc<Object>>,
    /// The texts of the bundles in them.
    pub(super) texts: super::relationship::Texts,
    /// The bundles in them, as they stand.
    pub(super) persisted: Kept<TrustDomain, Arc<Object>, Option<Arc<Bundle>>>,
    /// The addresses of our pods and their nodes, as of a turn in which pods changed.
    pub(super) pod_addresses: Option<(u64, Arc<BTreeSet<IpAddr>>)>,
    /// What is generated for an export, and what its peers are offered.
    pub(super) exports: Kept<NamespacedName, Arc<Export>, Arc<Exported>>,
    /// By namespace, the selectors of others' policies that allow.
    pub(super) allowing: BTreeMap<String, Arc<Selectors>>,
    /// The policies of each selector.
    pub(super) policies: Policies,
    /// The trust domains whose workloads may be let in.
    pub(super) peers: Shared<BTreeSet<TrustDomain>>,
    /// Peers without what changes with each write of their objects, beside them as they are.
    peers_alone: BTreeMap<TrustDomain, (Arc<Peer>, Arc<Peer>)>,
    /// What all peers are judged by.
    pub(super) surroundings: Shared<Surroundings>,
    /// What becomes of what each peer offers.
    pub(super) decisions: Decisions,
    /// ImportedServices, by host.
    pub(super) imported: Kept<ObjectKey, (Arc<Peer>, Arc<RemoteService>), Arc<Object>>,
    /// What is answered for an import's name, by its object.
    pub(super) names: Kept<ObjectKey, NameOf, (Arc<str>, Arc<dns::Host>)>,
    /// What is answered to all.
    pub(super) zone: Shared<dns::Zone>,
    /// What clients need of an import, by its object.
    pub(super) entries: Kept<ObjectKey, ImportOf, Vec<Arc<Object>>>,
    /// What clients without Istio are served of an import.
    pub(super) offers: Kept<NamespacedName, OfferOf, Arc<Offer>>,
    /// The same of a local name, by its host.
    pub(super) local_offers: Kept<String, LocalOf, Arc<Offer>>,
    /// What the proxies of a server are served.
    pub(super) inbound: Kept<SpiffeId, InboundOf, Arc<Inbound>>,
    /// All that is served.
    pub(super) xds: Shared<Xds>,
    /// Statuses that stand as they should: of FederatedServices, and of ImportedServices.
    pub(super) exports_said: Kept<NamespacedName, SaidOfExport, ()>,
    pub(super) imports_said: Kept<NamespacedName, SaidOfImport, ()>,
    /// What peers were offered, and have answered.
    pub(super) answers: Answers,
    /// What each peer is offered, with the hash of each service in the order of their names.
    pub(super) catalogues: BTreeMap<TrustDomain, (Arc<Catalogue>, Vec<ServiceHash>)>,
    /// What each peer is answered.
    pub(super) outcomes: BTreeMap<TrustDomain, Arc<Outcomes>>,
    /// Objects that stand as they should.
    pub(super) stood: Stood,
}

/// What the objects of an import are made of: the last are its addresses.
pub(super) type ImportOf = (Arc<Peer>, Arc<Imported>, Vec<IpAddr>);

/// What comes of an export.
#[derive(Clone, Debug)]
pub(super) struct Exported {
    pub(super) objects: Vec<Arc<Object>>,
    /// With the bytes that each takes of a catalogue.
    pub(super) offered: Vec<(TrustDomain, Arc<RemoteService>, usize)>,
}

impl Memo {
    /// The peer as an input: without what changes with each write of its object, on which nothing generated depends.
    pub(super) fn peer(&mut self, peer: &Arc<Peer>) -> Arc<Peer> {
        let known = self.peers_alone.get(&peer.trust_domain);
        if let Some((_, alone)) = known.filter(|(whole, _)| Arc::ptr_eq(whole, peer)) {
            return Arc::clone(alone);
        }
        let alone = Peer {
            resource_version: String::new(),
            generation: 0,
            finalizers: Vec::new(),
            ..Peer::clone(peer)
        };
        let alone = match known {
            Some((_, known)) if **known == alone => Arc::clone(known),
            _ => Arc::new(alone),
        };
        self.peers_alone.insert(peer.trust_domain.clone(), (Arc::clone(peer), Arc::clone(&alone)));
        alone
    }

    /// Has what stands as it should in memory once, after a plan for this world: observed and desired it has the same
    /// content.
    pub fn share(&mut self, world: &mut World) {
        self.stood.share(world);
    }

    /// Forgets what the plan that was just made did not need.
    pub(super) fn turn(&mut self) {
        self.peers_alone.retain(|_, (whole, _)| Arc::strong_count(whole) > 1);
        self.relationships.turn();
        self.texts.turn();
        self.persisted.turn();
        self.exports.turn();
        self.allowing.retain(|_, selectors| Arc::strong_count(selectors) > 1);
        self.imported.turn();
        self.names.turn();
        self.entries.turn();
        self.offers.turn();
        self.local_offers.turn();
        self.inbound.turn();
        self.exports_said.turn();
        self.imports_said.turn();
        self.stood.turn();
    }
}

/// Values by key, each with the inputs that it was made of.
#[derive(Debug)]
pub(super) struct Kept<K, I, V> {
    all: HashMap<K, Entry<I, V>>,
    turn: u64,
    #[cfg(test)]
    pub(super) made: usize,
}

#[derive(Debug)]
struct Entry<I, V> {
    input: I,
    value: V,
    used: u64,
}

impl<K, I, V> Default for Kept<K, I, V> {
    fn default() -> Self {
        Self {
            all: HashMap::new(),
            turn: 0,
            #[cfg(test)]
            made: 0,
        }
    }
}

impl<K: Eq + Hash + Clone, I: PartialEq + Clone, V: Clone> Kept<K, I, V> {
    /// The value that was made of an equal input for this key, else the one that is made of it now. `make` must depend
    /// on nothing but the input and what is constant for the life of the process.
    pub(super) fn get(&mut self, key: &K, input: &I, make: impl FnOnce(&I) -> V) -> V {
        if let Some(kept) = self.all.get_mut(key)
            && kept.input == *input
        {
            kept.used = self.turn;
            return kept.value.clone();
        }
        #[cfg(test)]
        {
            self.made += 1;
        }
        let value = make(input);
        self.put(key, input.clone(), value.clone());
        value
    }

    /// Whether there is a value for the key whose input is such.
    pub(super) fn holds(&mut self, key: &K, is_such: impl FnOnce(&I) -> bool) -> bool {
        let kept = self.all.get_mut(key).filter(|kept| is_such(&kept.input));
        let Some(kept) = kept else { return false };
        kept.used = self.turn;
        true
    }

    pub(super) fn put(&mut self, key: &K, input: I, value: V) {
        self.all.insert(key.clone(), Entry { input, value, used: self.turn });
    }

    fn turn(&mut self) {
        let turn = self.turn;
        self.all.retain(|_, kept| kept.used == turn);
        self.turn += 1;
    }
}

/// One value that seldom changes: equal ones are the same one.
#[derive(Debug)]
pub(super) struct Shared<T>(Option<Arc<T>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq> Shared<T> {
    pub(super) fn share(&mut self, value: T) -> Arc<T> {
        match &self.0 {
            Some(last) if **last == value => Arc::clone(last),
            _ => Arc::clone(self.0.insert(Arc::new(value))),
        }
    }
}

#[cfg(test)]
#[path = "memo_tests.rs"]
mod tests;

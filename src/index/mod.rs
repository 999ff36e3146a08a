//! Everything that comes in, kept as one `World`: objects of the store, our identity, SPIRE, endpoints, peers.

pub mod bootstrap;
mod exports;
pub mod mesh;
pub mod parse;
mod peers;
pub mod run;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::model::import::Imported;
use crate::model::object::{Kind, Meta};
use crate::model::own::Identity;
use crate::model::trust::SpireState;
use crate::model::world::{Rejected, Settings};
use crate::model::{NamespacedName, Object, ObjectKey, TrustDomain, World};
use crate::plan::gateways::Gateways;
use crate::store::Event;
use bootstrap::Bootstraps;

/// An object that is seldom looked at, in little memory.
#[derive(Debug)]
struct Packed {
    key: ObjectKey,
    meta: Meta,
    /// Its content, as JSON.
    body: Box<[u8]>,
}

impl Packed {
    fn of(object: &Object) -> Self {
        // a map of text to JSON always is JSON
        let body = serde_json::to_vec(&*object.body).unwrap_or_default();
        Self { key: object.key.clone(), meta: object.meta.clone(), body: body.into() }
    }

    fn unpack(&self) -> Object {
        let body: serde_json::Map<_, _> = serde_json::from_slice(&self.body).unwrap_or_default();
        Object { key: self.key.clone(), meta: self.meta.clone(), body: body.into() }
    }
}

/// The world, and the objects that it was read from.
#[derive(Debug)]
pub struct Index {
    world: World,
    /// The objects whose meaning depends on who we are, to be read again when that is known.
    peers: BTreeMap<ObjectKey, Arc<Object>>,
    services: BTreeMap<ObjectKey, Packed>,
    /// Kinds that the store does not serve, and since when.
    missing: BTreeMap<Kind, Timestamp>,
    /// Bootstrap bundles, each with the object that it was read from: a peer may be made anew before they are read again.
    bootstraps: Bootstraps,
    /// What of the exports has to be decided again.
    exports: exports::Exports,
}

/// How long a kind may be missing before it is taken as absent: an API server serves some later than others.
const ABSENT_AFTER: i64 = 10;

impl Index {
    #[must_use]
    pub fn new(settings: Arc<Settings>, now: Timestamp) -> Self {
        Self {
            world: World::empty(settings, now),
            peers: BTreeMap::new(),
            services: BTreeMap::new(),
            missing: BTreeMap::new(),
            bootstraps: Bootstraps::new(),
            exports: exports::Exports::default(),
        }
    }

    /// What is known.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What is known, for the sources that need no reading.
    pub fn world_mut(&mut self) -> &mut World {
        &mut self.world
    }

    /// Takes in what a watch told. Answers whether anything is to be planned for: most of what a cluster tells of its pods
    /// and of others' statuses changes nothing that is known here.
    pub fn store(&mut self, event: Event) -> bool {
        let kind = event.kind();
        let by_pods = self.world.settings.gateway_node_ports;
        let changed = match event {
            Event::Reset { kind, objects } => {
                let changed = self.reset(kind, objects);
                let first = self.world.read.insert(kind) | self.world.absent.remove(&kind);
                self.missing.remove(&kind).is_some() || first || changed
            }
            Event::Applied(object) => self.take(object),
            Event::Deleted(key) => {
                self.remove(&key);
                true
            }
            Event::Absent(kind) => {
                self.missing.entry(kind).or_insert(self.world.now);
                true
            }
            Event::Unreadable(unreadable) => {
                for item in unreadable {
                    tracing::warn!(path = %item.path.display(), reason = %item.message, "a manifest is not used");
                }
                false
            }
        };
        match kind {
            Some(Kind::TrustDomainPeer) => self.settle(),
            Some(Kind::Service) if changed => self.see_gateways(),
            Some(Kind::Pod) if by_pods && changed => self.see_gateways(),
            _ => {}
        }
        changed
    }

    /// Decides which services the declarations come to by what was taken in since the last time. Must be called before the
    /// world is planned for. Answers with whether any service changed.
    pub fn settle_exports(&mut self) -> bool {
        self.exports.settle(&mut self.world)
    }

    /// Takes in the time, and settles what was taken in before it. Answers with when it wants to be told again.
    pub fn time(&mut self, moment: Timestamp) -> Option<Timestamp> {
        self.settle_exports();
        let now = crate::clock::whole(moment);
        self.world.moment = moment;
        self.world.now = now;
        // Seen in the future it was by a clock that was set back since.
        self.missing.values_mut().for_each(|since| *since = now.min(*since));
        let due = |since: Timestamp| since.as_second() + ABSENT_AFTER;
        let (absent, waiting): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.missing)
            .into_iter()
            .partition(|(_, since)| due(*since) <= now.as_second());
        self.world.absent.extend(absent.into_keys());
        self.missing = waiting;
        self.missing.values().filter_map(|since| Timestamp::from_second(due(*since)).ok()).min()
    }

    /// Takes in who we are.
    pub fn identity(&mut self, identity: Option<Arc<Identity>>) {
        let Some(identity) = identity else { return };
        let first = self.world.own_trust_domain() != Some(&identity.trust_domain);
        self.world.own_history.observe(identity.bundle.digest(), self.world.now);
        self.world.identity = Some(identity);
        if first {
            // What was read without knowing who we are was not checked against that: it is no last good version.
            self.world.peers.clear();
            self.world.declared.clear();
            self.world.rules.clear();
            self.exports.all();
            let services: Vec<Object> = self.services.values().map(Packed::unpack).collect();
            for object in services {
                self.apply(Arc::new(object));
            }
            self.settle();
        }
    }

    /// Takes in what SPIRE holds.
    pub fn spire(&mut self, state: Option<Arc<SpireState>>) {
        if state.is_some() {
            self.exports.spire(self.world.spire.as_deref(), state.as_deref());
            self.world.spire = state;
        }
    }

    fn reset(&mut self, kind: Kind, objects: Vec<Object>) -> bool {
        let fresh: std::collections::BTreeSet<ObjectKey> = objects.iter().map(|o| o.key.clone()).collect();
        let gone: Vec<ObjectKey> = self.known(kind).into_iter().filter(|key| !fresh.contains(key)).collect();
        for key in &gone {
            self.remove(key);
        }
        let mut changed = !gone.is_empty();
        for object in objects {
            changed |= self.take(object);
        }
        changed
    }

    fn known(&self, kind: Kind) -> Vec<ObjectKey> {
        let of = |name: &NamespacedName| ObjectKey::namespaced(kind, &name.namespace, &name.name);
        match kind {
            Kind::Namespace => {
                return self.world.namespaces.keys().map(|name| ObjectKey::cluster(kind, name)).collect();
            }
            Kind::Service => return self.world.cluster_services.keys().map(of).collect(),
            Kind::Pod => return self.world.pods.keys().map(of).collect(),
            _ => {}
        }
        let keys: Vec<&ObjectKey> = match kind {
            Kind::TrustDomainPeer => self.peers.keys().collect(),
            Kind::FederatedService | Kind::ServiceExportRule => self.services.keys().collect(),
            Kind::ClusterSpiffeId | Kind::ClusterStaticEntry => self.world.registrations.keys().collect(),
            _ => self.world.objects.keys().collect(),
        };
        keys.into_iter().filter(|key| key.kind == kind).cloned().collect()
    }

    /// Takes an object in, its status apart; whether it changes what is known.
    fn take(&mut self, mut object: Object) -> bool {
        // That of what runs in the cluster is part of what is read of it; nobody asks for that of others' kinds.
        let is_of_cluster = matches!(object.key.kind, Kind::Namespace | Kind::Service | Kind::Pod);
        let status = if is_of_cluster { None } else { object.body.remove("status") };
        let is_ours = object.key.kind.api().0 == Kind::TrustDomainPeer.api().0;
        let news = match status.filter(|_| is_ours) {
            // What we say of our own objects is compared with what stands there.
            Some(status) => put(&mut self.world.statuses, object.key.clone(), status),
            None => self.world.statuses.remove(&object.key).is_some(),
        };
        self.apply(Arc::new(object)) || news
    }

    /// Tells of fields that are not known here, once for each version of an object. An API server drops or refuses them; where
    /// there is none, a misspelt field would be silently the default.
    fn name_unknown(&self, object: &Object) {
        let known = match object.key.kind {
            Kind::TrustDomainPeer => self.peers.get(&object.key).map(|peer| peer.meta.generation),
            Kind::FederatedService | Kind::ServiceExportRule => {
                self.services.get(&object.key).map(|service| service.meta.generation)
            }
            _ => return,
        };
        if known == Some(object.meta.generation) {
            return;
        }
        for field in parse::schema::unknown_fields(object) {
            tracing::warn!(
                object = %object.key,
                field,
                "this field is not known, and not used: it is misspelt, or of a newer version"
            );
        }
    }

    /// Takes an object in that has no status; whether it changes what is known.
    fn apply(&mut self, object: Arc<Object>) -> bool {
        let key = object.key.clone();
        let before = self.world.objects.get(&key).map(AsRef::as_ref);
        self.exports.object(&key, [before, Some(&object)], &self.world.settings.instance);
        self.name_unknown(&object);
        match key.kind {
            Kind::TrustDomainPeer => {
                self.peers.insert(key, object);
                true
            }
            Kind::FederatedService => {
                self.services.insert(key.clone(), Packed::of(&object));
                let parsed = parse::federated_service::parse(&object, self.world.own_trust_domain());
                let name = namespaced(&key);
                self.keep(key, parsed, |world, service| put(&mut world.declared, name.clone(), service))
            }
            Kind::ServiceExportRule => {
                self.services.insert(key.clone(), Packed::of(&object));
                let parsed = parse::service_export_rule::parse(&object, self.world.own_trust_domain());
                self.keep(key, parsed, |world, rule| put(&mut world.rules, rule.name.clone(), rule))
            }
            Kind::ImportedService => {
                let parsed: Result<Imported, Rejected> = parse::imported_service::parse(&object);
                let name = namespaced(&key);
                let of_object = observe(&mut self.world, object);
                self.keep(key, parsed, |world, imported| put(&mut world.imported, name.clone(), imported))
                    || of_object
            }
            Kind::ClusterSpiffeId | Kind::ClusterStaticEntry => {
                let parsed = parse::registration::parse(&object);
                if parsed.as_ref().is_ok_and(|found| !self.world.settings.follows_class(&found.class_name)) {
                    let was_ours = self.world.registrations.contains_key(&key);
                    self.forget(&key);
                    return self.world.rejected.remove(&key).is_some() || was_ours;
                }
                let at = key.clone();
                self.keep(key, parsed, |world, registration| {
                    put(&mut world.registrations, at.clone(), registration)
                })
            }
            Kind::Namespace => {
                let labels = object.meta.labels.clone();
                self.world.namespaces.insert(key.name, labels).as_ref() != Some(&object.meta.labels)
            }
            Kind::Service => {
                put(&mut self.world.cluster_services, namespaced(&key), parse::cluster::service(&object))
            }
            Kind::Pod => match parse::cluster::pod(&object) {
                Some(pod) => {
                    let name = namespaced(&key);
                    self.exports.pod(self.world.pods.get(&name).map(AsRef::as_ref), Some(&pod));
                    put(&mut self.world.pods, name, pod)
                }
                None => {
                    let was_there = self.world.pods.contains_key(&namespaced(&key));
                    self.forget(&key);
                    was_there
                }
            },
            Kind::ClusterFederatedTrustDomain
            | Kind::PeerAuthentication
            | Kind::AuthorizationPolicy
            | Kind::DestinationRule
            | Kind::ServiceEntry
            | Kind::VirtualService
            | Kind::Gateway
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::Deployment => observe(&mut self.world, object),
        }
    }

    /// Takes a parsed object in, or its rejection. The last good version of a FederatedService or ServiceExportRule that became bad
    /// stays in use, as that of a peer does, or importers would lose what it exports: unless it is being deleted, or was made anew
    /// meanwhile. Of anything else, what was generated from it stays (`plan::prune`).
    fn keep<T>(
        &mut self,
        key: ObjectKey,
        parsed: Result<T, Rejected>,
        insert: impl FnOnce(&mut World, T) -> bool,
    ) -> bool {
        match parsed {
            Ok(value) => {
                let was_bad = self.world.rejected.remove(&key).is_some();
                insert(&mut self.world, value) || was_bad
            }
            Err(rejected) if self.world.rejected.get(&key) == Some(&rejected) => false,
            Err(rejected) => {
                if rejected.deletion.is_some() || !self.world.has_last_good(&key, &rejected.uid) {
                    self.forget(&key);
                }
                tracing::warn!(object = %key, reason = rejected.reason, message = %rejected.message, "not accepted");
                self.world.rejected.insert(key, rejected);
                true
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        let before = self.world.objects.get(key).map(AsRef::as_ref);
        self.exports.object(key, [before, None], &self.world.settings.instance);
        self.peers.remove(key);
        self.services.remove(key);
        self.world.statuses.remove(key);
        self.world.rejected.remove(key);
        self.world.objects.remove(key);
        self.forget(key);
    }

    fn forget(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::FederatedService => {
                self.world.declared.remove(&namespaced(key));
            }
            Kind::ServiceExportRule => {
                self.world.rules.remove(&key.name);
            }
            Kind::ImportedService => {
                self.world.imported.remove(&namespaced(key));
            }
            Kind::ClusterSpiffeId | Kind::ClusterStaticEntry => {
                self.world.registrations.remove(key);
            }
            Kind::Namespace => {
                self.world.namespaces.remove(&key.name);
            }
            Kind::Service => {
                self.world.cluster_services.remove(&namespaced(key));
            }
            Kind::Pod => {
                let gone = self.world.pods.remove(&namespaced(key));
                self.exports.pod(gone.as_deref(), None);
            }
            _ => {}
        }
    }

    /// Keeps where the gateways are in mind, for a time in which nothing says it.
    fn see_gateways(&mut self) {
        for (kind, carrier) in Gateways::discover(&self.world).found() {
            if !carrier.addresses.is_empty() {
                self.world.gateways_seen.insert(kind, carrier.addresses.clone());
            }
        }
    }

    /// Peers are few and depend on each other (one for each trust domain), so they are read together.
    fn settle(&mut self) {
        let (peers, rejected) =
            peers::read(self.peers.values(), self.world.own_trust_domain(), &self.world.peers);
        let before = std::mem::take(&mut self.world.peers);
        let same = |(td, peer): (TrustDomain, Arc<_>)| match before.get(&td) {
            Some(known) if *known == peer => (td, Arc::clone(known)),
            _ => (td, peer),
        };
        self.world.peers = peers.into_iter().map(same).collect();
        self.world.rejected.retain(|key, _| key.kind != Kind::TrustDomainPeer);
        self.world.rejected.extend(rejected);
        self.give_bootstraps();
    }

    /// Takes in what was read of bootstrap bundles.
    pub fn read_bootstraps(&mut self, read: Bootstraps) {
        self.bootstraps = read;
        self.give_bootstraps();
    }

    /// Each peer has what was read for it: of the object that it names now.
    fn give_bootstraps(&mut self) {
        let wanted = bootstrap::wanted(&self.world);
        let of_peer = |(td, named): (TrustDomain, bootstrap::Named)| {
            let read = self.bootstraps.get(&td).filter(|read| read.of == named)?;
            Some((td, read.found.clone()))
        };
        self.world.bootstraps = wanted.into_iter().filter_map(of_peer).collect();
    }
}

/// Takes a value in, unless it is there already: then what is there stays, so that who compares sees the same one.
fn put<K: Ord, T: PartialEq>(all: &mut BTreeMap<K, Arc<T>>, key: K, value: T) -> bool {
    let is_there = all.get(&key).is_some_and(|there| **there == value);
    if !is_there {
        all.insert(key, Arc::new(value));
    }
    !is_there
}

/// Takes in an object that is compared with what is to be generated: by what is decided on, which is not its version.
fn observe(world: &mut World, object: Arc<Object>) -> bool {
    let is_same = |there: &Object| {
        let version = Meta { resource_version: there.meta.resource_version.clone(), ..object.meta.clone() };
        version == there.meta && object.body == there.body
    };
    if world.objects.get(&object.key).is_some_and(|there| is_same(there)) {
        return false;
    }
    world.objects.insert(object.key.clone(), object);
    true
}

fn namespaced(key: &ObjectKey) -> NamespacedName {
    NamespacedName::new(key.namespace.clone().unwrap_or_default(), key.name.clone())
}

#[cfg(test)]
mod tests;

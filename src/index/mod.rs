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
use crate::model::object::Kind;
use crate::model::own::Identity;
use crate::model::trust::SpireState;
use crate::model::world::{Rejected, Settings};
use crate::model::{NamespacedName, Object, ObjectKey, TrustDomain, World};
use crate::store::Event;

/// The world, and the objects that it was read from.
#[derive(Debug)]
pub struct Index {
    world: World,
    /// The objects whose meaning depends on who we are, to be read again when that is known.
    peers: BTreeMap<ObjectKey, Arc<Object>>,
    services: BTreeMap<ObjectKey, Arc<Object>>,
    /// Kinds that the store does not serve, and since when.
    missing: BTreeMap<Kind, Timestamp>,
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

    /// Takes in what a watch told.
    pub fn store(&mut self, event: Event) {
        let of_peers = event.kind() == Some(Kind::TrustDomainPeer);
        match event {
            Event::Reset { kind, objects } => {
                self.reset(kind, objects);
                self.world.read.insert(kind);
                self.world.absent.remove(&kind);
                self.missing.remove(&kind);
            }
            Event::Applied(object) => self.apply(Arc::new(object)),
            Event::Deleted(key) => self.remove(&key),
            Event::Absent(kind) => {
                self.missing.entry(kind).or_insert(self.world.now);
            }
            Event::Unreadable(unreadable) => {
                for item in unreadable {
                    tracing::warn!(path = %item.path.display(), reason = %item.message, "a manifest is not used");
                }
            }
        }
        if of_peers {
            self.settle();
        }
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
            let services: Vec<Arc<Object>> = self.services.values().cloned().collect();
            for object in services {
                self.apply(object);
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

    fn reset(&mut self, kind: Kind, objects: Vec<Object>) {
        let fresh: std::collections::BTreeSet<ObjectKey> = objects.iter().map(|o| o.key.clone()).collect();
        let gone: Vec<ObjectKey> = self.known(kind).into_iter().filter(|key| !fresh.contains(key)).collect();
        for key in &gone {
            self.remove(key);
        }
        for object in objects {
            self.apply(Arc::new(object));
        }
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

    fn apply(&mut self, object: Arc<Object>) {
        let key = object.key.clone();
        let before = self.world.objects.get(&key).map(AsRef::as_ref);
        self.exports.object(&key, [before, Some(&object)], &self.world.settings.instance);
        let is_of_cluster = matches!(key.kind, Kind::Namespace | Kind::Service | Kind::Pod);
        if let Some(status) = object.status().filter(|_| !is_of_cluster) {
            self.world.statuses.insert(key.clone(), Arc::new(status.clone()));
        } else {
            self.world.statuses.remove(&key);
        }
        match key.kind {
            Kind::TrustDomainPeer => {
                self.peers.insert(key, object);
            }
            Kind::FederatedService => {
                self.services.insert(key.clone(), Arc::clone(&object));
                let parsed = parse::federated_service::parse(&object, self.world.own_trust_domain());
                let name = namespaced(&key);
                self.keep(key, parsed, |world, service| {
                    world.declared.insert(name.clone(), Arc::new(service));
                });
            }
            Kind::ServiceExportRule => {
                self.services.insert(key.clone(), Arc::clone(&object));
                let parsed = parse::service_export_rule::parse(&object, self.world.own_trust_domain());
                self.keep(key, parsed, |world, rule| {
                    world.rules.insert(rule.name.clone(), Arc::new(rule));
                });
            }
            Kind::ImportedService => {
                let parsed: Result<Imported, Rejected> = parse::imported_service::parse(&object);
                let name = namespaced(&key);
                self.world.objects.insert(key.clone(), object);
                self.keep(key, parsed, |world, imported| {
                    world.imported.insert(name.clone(), Arc::new(imported));
                });
            }
            Kind::ClusterSpiffeId | Kind::ClusterStaticEntry => {
                let parsed = parse::registration::parse(&object);
                let at = key.clone();
                self.keep(key, parsed, |world, registration| {
                    world.registrations.insert(at.clone(), Arc::new(registration));
                });
            }
            Kind::Namespace => {
                self.world.namespaces.insert(key.name, object.meta.labels.clone());
            }
            Kind::Service => {
                self.world
                    .cluster_services
                    .insert(namespaced(&key), Arc::new(parse::cluster::service(&object)));
            }
            Kind::Pod => match parse::cluster::pod(&object) {
                Some(pod) => {
                    let name = namespaced(&key);
                    self.exports.pod(self.world.pods.get(&name).map(AsRef::as_ref), Some(&pod));
                    self.world.pods.insert(name, Arc::new(pod));
                }
                None => self.forget(&key),
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
            | Kind::Deployment => {
                self.world.objects.insert(key, object);
            }
        }
    }

    /// Takes a parsed object in, or its rejection. The last good version of a FederatedService or ServiceExportRule that became bad
    /// stays in use, as that of a peer does, or importers would lose what it exports; of anything else, what was generated from it stays (`plan::prune`).
    fn keep<T>(&mut self, key: ObjectKey, parsed: Result<T, Rejected>, insert: impl FnOnce(&mut World, T)) {
        match parsed {
            Ok(value) => {
                self.world.rejected.remove(&key);
                insert(&mut self.world, value);
            }
            Err(rejected) => {
                if !matches!(key.kind, Kind::FederatedService | Kind::ServiceExportRule) {
                    self.forget(&key);
                }
                tracing::warn!(object = %key, reason = rejected.reason, message = %rejected.message, "not accepted");
                self.world.rejected.insert(key, rejected);
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

    /// Peers are few and depend on each other (one for each trust domain), so they are read together.
    fn settle(&mut self) {
        let (peers, rejected) =
            peers::read(self.peers.values(), self.world.own_trust_domain(), &self.world.peers);
        self.world.peers = peers;
        self.world.rejected.retain(|key, _| key.kind != Kind::TrustDomainPeer);
        self.world.rejected.extend(rejected);
        let world = &mut self.world;
        world.bootstraps.retain(|trust_domain: &TrustDomain, _| world.peers.contains_key(trust_domain));
    }
}

fn namespaced(key: &ObjectKey) -> NamespacedName {
    NamespacedName::new(key.namespace.clone().unwrap_or_default(), key.name.clone())
}

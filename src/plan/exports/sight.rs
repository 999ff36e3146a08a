//! What the decision on one service may look at, and nothing else of the world. So a decision can be remembered: where all
//! of this is the same, it is the same too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::way::finds_gateway;
use super::{Acceptance, ExportProblem, checks, policy};
use crate::api::v1alpha1::conditions::ClientsEnforcedReason;
use crate::model::cluster::Pod;
use crate::model::export::Note;
use crate::model::object::Kind;
use crate::model::service::{ExportedBy, GatewayAddress, GatewayType, TlsMode};
use crate::model::world::{Rejected, Settings};
use crate::model::{Object, ObjectKey, Peer, Service, TrustDomain, World};
use crate::plan::gateways::Gateways;
use crate::plan::istio;
use crate::plan::istio::peer_authentication;
use crate::plan::memo::Memo;

/// What all services see.
#[derive(Debug, PartialEq)]
pub(super) struct Common {
    settings: Arc<Settings>,
    own: TrustDomain,
    absent: BTreeSet<Kind>,
    pub(super) gateways: Gateways,
    gateways_seen: BTreeMap<GatewayType, BTreeSet<GatewayAddress>>,
    pub(super) doubt: Option<ExportProblem<ClientsEnforcedReason>>,
    peers: BTreeMap<TrustDomain, Arc<Peer>>,
    /// Objects that cannot be read and name a trust domain.
    rejected: BTreeMap<ObjectKey, Rejected>,
    others: Others,
}

/// Others' objects; the same ones are the same in memory.
#[derive(Debug)]
struct Others(Arc<World>);

impl PartialEq for Others {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Common {
    pub(super) fn new(world: &World, own: &TrustDomain, memo: &mut Memo) -> Self {
        let rejected = world.rejected.iter().filter(|(_, rejected)| rejected.trust_domain.is_some());
        Self {
            settings: Arc::clone(&world.settings),
            own: own.clone(),
            absent: world.absent.clone(),
            gateways: Gateways::discover(world),
            gateways_seen: world.gateways_seen.clone(),
            doubt: checks::doubt(world, own),
            peers: world.peers.iter().map(|(td, peer)| (td.clone(), memo.peer(peer))).collect(),
            rejected: rejected.map(|(key, rejected)| (key.clone(), rejected.clone())).collect(),
            others: Others(memo.observed.others(world)),
        }
    }

    pub(super) const fn own(&self) -> &TrustDomain {
        &self.own
    }

    /// A world with nothing but others' objects in it.
    pub(super) fn others(&self) -> &World {
        &self.others.0
    }
}

/// What one service sees beside that.
#[derive(Debug, PartialEq)]
pub(super) struct Sight {
    pub(super) service: Arc<Service>,
    pub(super) accepted: Acceptance,
    /// What stands where something is generated for it.
    objects: Vec<Arc<Object>>,
    /// Why its policy cannot be written.
    failure: Option<(ObjectKey, String)>,
    /// Whether it counts what importers were told last; and that.
    sees_status: bool,
    status: Option<(ObjectKey, Arc<Value>)>,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) notes: Vec<Note>,
}

impl Sight {
    /// `pods` are all that its labels select.
    pub(super) fn of(
        world: &World,
        common: &Common,
        service: &Arc<Service>,
        accepted: Acceptance,
        pods: Vec<Arc<Pod>>,
    ) -> Self {
        let notes = world.notes.get(&service.object).cloned().unwrap_or_default();
        let (mut objects, mut failure, mut status) = (Vec::new(), None, None);
        let sees_status = accepted.is_ok() && !finds_gateway(&common.gateways, service);
        if accepted.is_ok() {
            let there = keys(service, &common.own).into_iter().filter_map(|key| world.objects.get(&key));
            objects.extend(there.cloned());
            let policy = policy::key(service);
            let failed = world.failures.get(&policy).filter(|_| !service.is_outside());
            failure = failed.map(|failure| (policy, failure.clone()));
            if sees_status {
                let said = match &service.by {
                    ExportedBy::FederatedService => service.key(),
                    ExportedBy::Rule { name, .. } => ObjectKey::cluster(Kind::ServiceExportRule, name),
                };
                status = world.statuses.get(&said).map(|status| (said, Arc::clone(status)));
            }
        }
        Self { service: Arc::clone(service), accepted, objects, failure, sees_status, status, pods, notes }
    }

    /// Whether what is kept up beside this (objects, pods and the common) tells when any of it is another.
    pub(super) const fn is_alone(&self) -> bool {
        !self.sees_status && !self.is_failing()
    }

    /// Whether its policy cannot be written: then it also depends on what every other policy denies.
    pub(super) const fn is_failing(&self) -> bool {
        self.failure.is_some()
    }

    /// The world as the service sees it, beside its pods. There is no time in it.
    pub(super) fn world(&self, common: &Common) -> World {
        let mut world = World::empty(Arc::clone(&common.settings), Timestamp::UNIX_EPOCH);
        world.absent.clone_from(&common.absent);
        world.gateways_seen.clone_from(&common.gateways_seen);
        let named = self.service.exported_to.iter().filter_map(|td| common.peers.get_key_value(td));
        world.peers = named.map(|(td, peer)| (td.clone(), Arc::clone(peer))).collect();
        world.rejected.clone_from(&common.rejected);
        let objects = self.objects.iter();
        world.objects = objects.map(|object| (object.key.clone(), Arc::clone(object))).collect();
        world.failures = Arc::new(self.failure.iter().cloned().collect());
        world.statuses = self.status.iter().cloned().collect();
        world
    }
}

/// Where something is generated for a service.
fn keys(service: &Service, own: &TrustDomain) -> Vec<ObjectKey> {
    if service.is_outside() {
        return Vec::new();
    }
    let mut keys = vec![policy::key(service)];
    if let Ok(host) = service.name.host(own) {
        keys.extend(istio::export::keys(service, &host));
    }
    if service.tls_mode == TlsMode::Mtls {
        keys.push(peer_authentication::key(&service.object.namespace, &service.workload_labels));
    }
    keys
}

//! From the catalogues of the peers, and what is imported already, to the ImportedServices that should be.
//!
//! A catalogue is a peer's word and may take away; silence takes nothing away, but for `onDisconnect: Withdraw` after its
//! time. What stands in the store is admitted anew each time, since `spec.imports` may have changed.

mod addresses;
mod by_name;
mod claims;
mod decided;
mod endpoints;
mod local;
mod rule_first;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::api::v1alpha1::conditions::{AdmittedReason, GeneratedReason, LocalReason};
use crate::model::condition::Truth;
use crate::model::import::Imported;
use crate::model::object::{Kind, Object, ObjectKey};
use crate::model::peer::OnDisconnect;
use crate::model::service::{ClientPattern, DirectEndpoint, GatewayAddress, Outcome, RemoteService};
use crate::model::session::{GoodbyeReason, LinkState, Offers, Outcomes, SessionState};
use crate::model::world::Settings;
use crate::model::{NamespacedName, Peer, ServiceName, TrustDomain, World};

use super::admission::{Admission, Refusal, Surroundings, addresses_of_pods};
use super::memo::Memo;
use super::verdict::SETTLE;
use super::{diff, generated, istio};
pub use addresses::{Addresses, in_text};
pub(super) use addresses::{of_local_status as kept_local, of_status as kept};
pub use by_name::{LocalName, LocalNamePort};
pub use claims::Claims;
pub(super) use decided::Decisions;
use decided::{Decided, Offered};
use local::Member;
pub use local::{LocalReport, Served};

/// What became of one ImportedService that is in the store, for its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    pub admitted: Result<(), Refusal>,
    /// The objects that clients need, as they stand in the store, or why they do not.
    pub generated: Result<Vec<ObjectKey>, Refusal<GeneratedReason>>,
    /// At which clients call it.
    pub addresses: Vec<IpAddr>,
    /// Whether it answers at its local name, where that is asked for.
    pub local: Option<LocalReport>,
}

impl ImportReport {
    /// Whether clients are given what they need to call it, in a mesh or without one.
    #[must_use]
    pub fn is_called(&self) -> bool {
        let is_served = |refusal: &Refusal<GeneratedReason>| refusal.reason == GeneratedReason::WithoutIstio;
        self.admitted.is_ok() && self.generated.as_ref().err().is_none_or(is_served)
    }
}

/// What becomes of the imports of all peers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportPlan {
    /// The ImportedServices that should be.
    pub objects: BTreeMap<ObjectKey, Arc<Object>>,
    /// What each peer is answered, for every service of its catalogue.
    pub outcomes: BTreeMap<TrustDomain, Arc<Outcomes>>,
    /// ImportedServices that are in the store, ours and admitted as they stand there: what is generated beside them.
    pub standing: BTreeMap<ObjectKey, (TrustDomain, ServiceName)>,
    /// Why the others in the store are not.
    pub refused: BTreeMap<ObjectKey, Refusal>,
    /// Peers that have not said what they export: an object of theirs is not to be taken away because it cannot be read.
    pub silent: BTreeSet<TrustDomain>,
    pub blocked: BTreeMap<ObjectKey, String>,
    /// By host, the local names that clients of xDS call.
    pub local_names: BTreeMap<String, Arc<LocalName>>,
    /// ImportedServices that cannot be read now, or whose TrustDomainPeer cannot, as a source annotation names them.
    pub unread: BTreeSet<String>,
    /// When the next withdrawal is due.
    pub wake_at: Option<Timestamp>,
}

/// The name of the ImportedService of a host, and of what is generated beside it. A host is at most 253 characters of DNS
/// labels, which is a legal name.
#[must_use]
pub fn key(world: &World, host: &str) -> ObjectKey {
    ObjectKey::namespaced(Kind::ImportedService, &world.settings.namespace, host)
}

/// Decides on every service of every peer that is not in `ending`.
#[must_use]
pub fn imports(world: &World, ending: &BTreeSet<TrustDomain>, memo: &mut Memo) -> ImportPlan {
    let mut plan = ImportPlan::default();
    let mut standing: BTreeMap<&TrustDomain, BTreeMap<&ServiceName, &Imported>> = BTreeMap::new();
    for imported in world.imported.values() {
        let key =
            ObjectKey::namespaced(Kind::ImportedService, &imported.object.namespace, &imported.object.name);
        match is_ours(world, imported, &key) {
            Ok(()) => {
                standing.entry(&imported.trust_domain).or_default().insert(&imported.service.name, imported);
            }
            Err(refusal) => {
                plan.refused.insert(key, refusal);
            }
        }
    }
    let around = surroundings(world, memo);
    memo.decisions.retain(|td| world.peers.contains_key(td));
    for (td, peer) in world.peers.iter().filter(|(td, _)| !ending.contains(*td)) {
        let standing = standing.remove(td).unwrap_or_default();
        let admission = Admission::new(memo.peer(peer), Arc::clone(&around));
        PeerImports { world, peer, admission, standing }.plan(world.sessions.get(td), &mut plan, memo);
    }
    let rejected = world.rejected.iter().filter(|(key, _)| key.kind == Kind::TrustDomainPeer);
    let unreadable: BTreeSet<TrustDomain> = rejected
        .filter_map(|(_, r)| r.trust_domain.clone())
        .filter(|td| !world.peers.contains_key(td) && !ending.contains(td))
        .collect();
    plan.unread = unread(world, &unreadable);
    plan.silent.extend(unreadable);
    for imported in standing.into_values().flat_map(BTreeMap::into_values) {
        let td = &imported.trust_domain;
        let object =
            ObjectKey::namespaced(Kind::ImportedService, &imported.object.namespace, &imported.object.name);
        plan.refused.insert(
            object,
            Refusal::new(
                AdmittedReason::NoPeer,
                format!("{td}: there is no accepted TrustDomainPeer of this trust domain, or it is ending"),
            ),
        );
    }
    plan
}

/// What all peers are judged by. The pods of a large cluster are looked at when they have changed.
fn surroundings(world: &World, memo: &mut Memo) -> Arc<Surroundings> {
    let turn = memo.observed.pods.changed();
    let mut known = memo.pod_addresses.take().filter(|(of, _)| *of == turn && turn > 0);
    let pods = || {
        let (_, all) = known.get_or_insert_with(|| (turn, Arc::new(addresses_of_pods(world))));
        Arc::clone(all)
    };
    let around = memo.surroundings.share(Surroundings::new(world, pods));
    memo.pod_addresses = known;
    around
}

/// The ImportedServices of which nobody knows now what they say, or what their peer admits.
fn unread(world: &World, unreadable: &BTreeSet<TrustDomain>) -> BTreeSet<String> {
    let rejected =
        world.rejected.iter().filter(|(key, r)| key.kind == Kind::ImportedService && r.deletion.is_none());
    let of_peers = world.imported.values().filter(|imported| unreadable.contains(&imported.trust_domain));
    rejected
        .map(|(key, _)| generated::source_of(key))
        .chain(of_peers.map(|imported| generated::source(Kind::ImportedService, &imported.object)))
        .collect()
}

/// Whether the peer said that it ended the relationship.
fn has_ended(session: &SessionState) -> bool {
    matches!(session.link, LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, .. })
}

/// Whether it is where, and labelled as, this agent writes it: one that someone else wrote admits nothing.
fn is_ours(world: &World, imported: &Imported, key: &ObjectKey) -> Result<(), Refusal> {
    let host = imported.service.name.host(&imported.trust_domain);
    let is_in_place = imported.object.namespace == world.settings.namespace
        && host.is_ok_and(|host| host == imported.object.name);
    let is_generated =
        world.objects.get(key).is_some_and(|object| object.is_generated_by(&world.settings.instance));
    if is_in_place && is_generated {
        return Ok(());
    }
    Err(Refusal::new(
        AdmittedReason::ObjectNotOurs,
        format!(
            "{key} was not written by this agent, so it admits nothing; delete it, and let spec.imports of the \
             TrustDomainPeer of {} admit the service",
            imported.trust_domain
        ),
    ))
}

/// The imports of one peer.
struct PeerImports<'a> {
    world: &'a World,
    peer: &'a Arc<Peer>,
    admission: Admission,
    /// What is in the store of it.
    standing: BTreeMap<&'a ServiceName, &'a Imported>,
}

impl PeerImports<'_> {
    fn plan(&self, session: Option<&SessionState>, plan: &mut ImportPlan, memo: &mut Memo) {
        let td = &self.peer.trust_domain;
        let withdrawn = self.withdrawn(session, plan);
        let catalogue = session.and_then(|session| session.catalogue.as_ref());
        let offered = match catalogue {
            // It exports nothing any more by its own word, whether or not an empty catalogue came before the goodbye.
            _ if session.is_some_and(has_ended) => Offered::Made(Offers::new()),
            Some(catalogue) => Offered::of(catalogue, &self.standing),
            None => Offered::Made(
                self.standing
                    .iter()
                    .map(|(name, imported)| ((*name).clone(), Arc::clone(&imported.service)))
                    .collect(),
            ),
        };
        let decided = memo.decisions.decide(offered, &self.admission, &self.standing);
        let refused = self.make(&decided, withdrawn.as_ref(), plan, memo);
        self.judge_standing(&decided, &refused, withdrawn.as_ref(), plan);
        if catalogue.is_some() {
            let mut outcomes = Arc::clone(&decided.outcomes);
            for (name, refusal) in refused {
                Arc::make_mut(&mut outcomes).insert(name.clone(), refusal.into());
            }
            plan.outcomes.insert(td.clone(), outcomes);
        } else if withdrawn.is_none() {
            plan.silent.insert(td.clone());
        }
    }

    /// The ImportedServices of what is admitted; and why some of them are not made after all.
    fn make<'d>(
        &self,
        decided: &'d Decided,
        withdrawn: Option<&Refusal>,
        plan: &mut ImportPlan,
        memo: &mut Memo,
    ) -> BTreeMap<&'d ServiceName, Refusal> {
        let mut refused = BTreeMap::new();
        for (name, host) in &decided.admitted {
            let key = key(self.world, host);
            if let Err(message) = generated::claim(self.world, &key) {
                plan.blocked.insert(key, message.clone());
                refused.insert(name, Refusal::new(AdmittedReason::ObjectNotOurs, message));
            } else if let Some(withdrawn) = withdrawn {
                refused.insert(name, withdrawn.clone());
            } else if let Some(service) = decided.offered(name) {
                let input = (Arc::clone(self.admission.peer()), Arc::clone(service));
                let object = memo.imported.get(&key, &input, |(peer, service)| {
                    diff::seal(object(&self.world.settings, key.clone(), peer, service, host))
                });
                plan.objects.insert(key, object);
            }
        }
        refused
    }

    /// What of the store stays and stands as it is there. It is admitted by its own content, not by what the catalogue has
    /// under its name: the store follows the catalogue, and what is generated follows the store.
    fn judge_standing(
        &self,
        decided: &Decided,
        refused: &BTreeMap<&ServiceName, Refusal>,
        withdrawn: Option<&Refusal>,
        plan: &mut ImportPlan,
    ) {
        for (name, imported) in &self.standing {
            let refusal = || refused.get(*name).cloned().or_else(|| decided.refusal(name));
            let verdict = match (withdrawn, decided.offered(name)) {
                (Some(withdrawn), _) => Err(withdrawn.clone()),
                (None, None) => Err(Refusal::new(
                    AdmittedReason::NoLongerExported,
                    format!("{name}: {} no longer exports it", self.peer.trust_domain),
                )),
                (None, Some(offered)) => match refusal() {
                    Some(refusal) => Err(refusal),
                    None if *offered == imported.service => Ok(()),
                    None => self.admission.admit(&imported.service).map(drop),
                },
            };
            let key = ObjectKey::namespaced(
                Kind::ImportedService,
                &imported.object.namespace,
                &imported.object.name,
            );
            match verdict {
                Ok(()) => {
                    plan.standing.insert(key, (self.peer.trust_domain.clone(), (*name).clone()));
                }
                Err(refusal) => {
                    plan.refused.insert(key, refusal);
                }
            }
        }
    }

    /// Why everything of the peer is withdrawn, where it is; else notes when it will be.
    fn withdrawn(&self, session: Option<&SessionState>, plan: &mut ImportPlan) -> Option<Refusal> {
        session?;
        let Withdrawal { since, at: due } = withdrawal(self.world, self.peer)?;
        if self.world.now > due {
            let td = &self.peer.trust_domain;
            return Some(Refusal::new(
                AdmittedReason::Withdrawn,
                format!(
                    "{td} has not been connected since {since}, longer than spec.onDisconnect.after; it is imported again \
                     once the peer is back"
                ),
            ));
        }
        // The time must have passed, and is known in whole seconds.
        let wake = due.checked_add(SignedDuration::from_secs(1)).unwrap_or(due);
        plan.wake_at = Some(plan.wake_at.map_or(wake, |at| at.min(wake)));
        None
    }
}

/// The ImportedService; of these alone, so that it can be remembered.
fn object(settings: &Settings, key: ObjectKey, peer: &Peer, service: &RemoteService, host: &str) -> Object {
    let source = format!("{}/{}", Kind::TrustDomainPeer, peer.object);
    let spec = spec(&peer.trust_domain, service, host);
    generated::object(settings, key, spec, vec![peer.owner()], &[source], Some(&peer.trust_domain))
}

/// When the services of a peer that is away are withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    /// Since when it is away.
    pub since: Timestamp,
    pub at: Timestamp,
}

/// When the services of this peer are withdrawn, where it is away and that is asked for.
#[must_use]
pub fn withdrawal(world: &World, peer: &Peer) -> Option<Withdrawal> {
    let OnDisconnect::Withdraw { after } = peer.on_disconnect else { return None };
    let session = world.sessions.get(&peer.trust_domain).filter(|session| !session.is_connected())?;
    let after = SignedDuration::try_from(after).ok()?;
    // The link's state may change while the peer is away; the absence is older then.
    let memory = world.memory.get(&peer.trust_domain);
    let away = memory.and_then(|memory| memory.away_since);
    let since = away.map_or(session.since, |away| away.min(session.since));
    let at = since.checked_add(after).ok()?;
    // Away while this agent was too, it may be there again: it is given the time to come.
    let awaited = memory.filter(|memory| !memory.was_connected).and_then(|memory| memory.awaited_since);
    let settled = awaited.and_then(|awaited| awaited.checked_add(SETTLE).ok());
    Some(Withdrawal { since, at: settled.map_or(at, |settled| at.max(settled)) })
}

/// `spec` of an ImportedService, in one order whatever the peer's.
#[must_use]
pub fn spec(trust_domain: &TrustDomain, service: &RemoteService, host: &str) -> Value {
    let mut ports: Vec<_> = service.ports.iter().collect();
    ports.sort_by_key(|port| (port.port, &port.name));
    let ports: Vec<Value> = ports
        .into_iter()
        .map(|p| {
            let mut port = json!({"name": p.name, "port": p.port, "appProtocol": p.protocol.as_str()});
            if let Some(fields) = port.as_object_mut().filter(|_| !p.clients.is_empty()) {
                fields.insert("clients".to_owned(), json!(sorted_clients(&p.clients)));
            }
            port
        })
        .collect();
    let mut server_ids: Vec<String> = service.server_ids.iter().map(ToString::to_string).collect();
    server_ids.sort();
    let mut spec = json!({
        "trustDomain": trust_domain.as_str(),
        "name": service.name.name(),
        "namespace": service.name.namespace(),
        "host": host,
        "ports": ports,
        "tlsMode": service.tls_mode.as_str(),
        "serverSPIFFEIDs": server_ids,
    });
    if let Some(fields) = spec.as_object_mut() {
        if !service.clients.is_empty() {
            fields.insert("clients".to_owned(), json!(sorted_clients(&service.clients)));
        }
        let gateways: BTreeSet<&GatewayAddress> = service.gateways.iter().collect();
        if !gateways.is_empty() {
            let gateways: Vec<Value> = gateways
                .into_iter()
                .map(|g| json!({"address": g.address.to_string(), "port": g.port}))
                .collect();
            fields.insert("gateways".to_owned(), gateways.into());
        }
        let endpoints: BTreeSet<&DirectEndpoint> = service.endpoints.iter().collect();
        if !endpoints.is_empty() {
            let endpoints: Vec<Value> = endpoints.into_iter().map(endpoint).collect();
            fields.insert("endpoints".to_owned(), endpoints.into());
        }
    }
    spec
}

fn endpoint(endpoint: &DirectEndpoint) -> Value {
    let ports = endpoint.ports.iter().map(|(name, port)| json!({"name": name, "port": port}));
    json!({"address": endpoint.address.to_string(), "ports": ports.collect::<Vec<_>>()})
}

fn sorted_clients(clients: &BTreeSet<ClientPattern>) -> Vec<&str> {
    let mut clients: Vec<&str> = clients.iter().map(|client| client.as_str()).collect();
    clients.sort_unstable();
    clients
}

/// What is generated beside the ImportedServices that stand, their reports, and the outcomes that change by it: a service that
/// stands in the store and cannot be served is refused after all. `others` has the objects that this agent did not make.
#[must_use]
pub fn generate(
    world: &World,
    others: &World,
    plan: &mut ImportPlan,
    memo: &mut Memo,
) -> (BTreeMap<ObjectKey, Arc<Object>>, BTreeMap<ObjectKey, ImportReport>) {
    let claims = Claims::new(others);
    let addresses = addresses::plan(world, &plan.standing);
    let mut objects = BTreeMap::new();
    let mut reports = BTreeMap::new();
    let mut as_local = AsLocal::default();
    for (key, refusal) in &plan.refused {
        let message = format!("nothing is generated, since {}", refusal.message);
        let generated = Err(Refusal::new(GeneratedReason::NotAdmitted, message));
        let report =
            ImportReport { admitted: Err(refusal.clone()), generated, addresses: Vec::new(), local: None };
        reports.insert(key.clone(), report);
    }
    for (key, (td, name)) in &plan.standing {
        let (Some(namespace), Some(peer)) = (&key.namespace, world.peers.get(td)) else { continue };
        let stored = NamespacedName::new(namespace, &key.name);
        let Some(imported) = world.imported.get(&stored) else { continue };
        let generated = istio::import::objects(world, peer, imported, &addresses, &claims, memo);
        if let Err(refusal) = &generated {
            if refusal.reason == GeneratedReason::ObjectNotOurs {
                let keys = istio::import::keys(imported).into_iter();
                plan.blocked
                    .extend(keys.filter_map(|key| Some((key.clone(), generated::claim(world, &key).err()?))));
            }
            let outcomes = plan.outcomes.get_mut(td);
            if let Some(outcomes) = outcomes.filter(|all| all.get(name) == Some(&Outcome::Imported))
                && !matches!(refusal.reason, GeneratedReason::IstioAbsent | GeneratedReason::WithoutIstio)
            {
                Arc::make_mut(outcomes).insert(name.clone(), refusal.clone().into());
            }
        }
        let gated = generated.map(|made| rule_first::gate(world, imported, made, &claims));
        let (servable, generated) = match gated {
            Ok(gated) => {
                objects.extend(gated.objects.into_iter().map(|object| (object.key.clone(), object)));
                let pending = "its ServiceEntry waits for its DestinationRule".to_owned();
                (if gated.is_out { Ok(()) } else { Err(pending) }, gated.generated)
            }
            Err(refusal) => (Err(refusal.message.clone()), Err(refusal)),
        };
        as_local.add(world, peer, imported, servable);
        let addresses = addresses.of(&key.name).unwrap_or_default().to_vec();
        reports.insert(key.clone(), ImportReport { admitted: Ok(()), generated, addresses, local: None });
    }
    let settings = &world.settings;
    let local = if (settings.dns || settings.serves_xds) && !settings.istio {
        by_name::plan(world, &plan.standing, &addresses)
    } else {
        as_local.plan(world, &claims, &addresses, &plan.unread)
    };
    plan.blocked.extend(local.blocked);
    plan.local_names = local.names;
    objects.extend(local.objects.into_iter().map(|object| (object.key.clone(), diff::seal(object))));
    for (name, local) in local.reports {
        let key = ObjectKey::namespaced(Kind::ImportedService, name.namespace, name.name);
        if let Some(report) = reports.get_mut(&key) {
            report.local = Some(local);
        }
    }
    (objects, reports)
}

/// The imports that are to answer at their local name as well.
#[derive(Default)]
struct AsLocal<'a> {
    groups: BTreeMap<&'a ServiceName, Vec<Member<'a>>>,
    refused: BTreeMap<NamespacedName, LocalReport>,
}

impl<'a> AsLocal<'a> {
    /// Adds an import, where its peer's `spec.imports.asLocal` asks for it. `servable`: why its federated host cannot be called.
    fn add(&mut self, world: &World, peer: &'a Peer, imported: &'a Imported, servable: Result<(), String>) {
        let name = &imported.service.name;
        let member = match (local::asked(peer, &world.settings, name), servable) {
            (None, _) => return,
            (Some(Err(refusal)), _) => Err(refusal),
            (Some(Ok(_)), Err(cause)) => Err(Refusal::new(LocalReason::NotGenerated, cause)),
            (Some(Ok(local_first)), Ok(())) => Ok(Member { peer, imported, local_first }),
        };
        match member {
            Ok(member) => self.groups.entry(name).or_default().push(member),
            Err(refusal) => {
                self.refused.insert(imported.object.clone(), Err(refusal));
            }
        }
    }

    fn plan(
        self,
        world: &World,
        claims: &Claims<'_>,
        addresses: &Addresses,
        unread: &BTreeSet<String>,
    ) -> local::LocalPlan {
        let mut plan = local::plan(world, &self.groups, claims, addresses, unread);
        plan.reports.extend(self.refused);
        plan
    }
}

/// The generated object, once it stands in the store and its last write went well.
pub(super) fn in_place(world: &World, key: ObjectKey) -> Result<ObjectKey, Refusal<GeneratedReason>> {
    let reason = GeneratedReason::Pending;
    if let Some(failure) = world.failures.get(&key) {
        return Err(Refusal::new(reason, format!("{key} cannot be written: {failure}")));
    }
    match world.objects.get(&key) {
        Some(there) if there.is_generated_by(&world.settings.instance) => Ok(key),
        _ => Err(Refusal {
            reason,
            status: Truth::Unknown,
            message: format!("{key} is not written yet; where it stays so, see the log of the agent"),
        }),
    }
}

#[cfg(test)]
mod tests;

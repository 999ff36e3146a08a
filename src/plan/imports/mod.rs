//! From the catalogues of the peers, and what is imported already, to the ImportedServices that should be.
//!
//! A catalogue is a peer's word and may take away; silence takes nothing away, but for `onDisconnect: Withdraw` after its
//! time. What stands in the store is admitted anew each time, since `spec.imports` may have changed.

mod addresses;
mod by_name;
mod claims;
mod decided;
mod endpoints;
mod generate;
mod local;
mod object;
mod of_peer;
mod rule_first;
mod withdrawal;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::api::v1alpha1::conditions::{AdmittedReason, GeneratedReason};
use crate::model::import::Imported;
use crate::model::object::{Kind, Object, ObjectKey};
use crate::model::session::Outcomes;
use crate::model::{ServiceName, TrustDomain, World};

use super::admission::{Admission, Refusal, Surroundings, addresses_of_pods};
use super::generated;
use super::memo::Memo;
pub use addresses::{Addresses, in_text};
pub(super) use addresses::{of_local_status as kept_local, of_status as kept};
pub use by_name::{LocalName, LocalNamePort};
pub use claims::Claims;
pub(super) use decided::Decisions;
pub use generate::generate;
pub(super) use generate::in_place;
pub use local::{LocalReport, Served};
pub use object::{key, spec};
use of_peer::PeerImports;
pub use withdrawal::{Withdrawal, withdrawal};

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

#[cfg(test)]
mod tests;

//! What each peer's agent is told, and whether we talk at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::memo::Memo;
use super::services::ServicesPlan;
use super::told;
use crate::federation::catalogue::{self, ServiceHash};
use crate::model::session::{
    Catalogue, GoodbyeReason, HeldBundle, LinkIntent, LinkPlan, Offers, Outcomes, SessionState, Trouble,
    TrustReport,
};
use crate::model::{Peer, ServiceName, TrustDomain, World};

/// A link for each peer, once our identity and SPIRE have been read: a report of what is not known yet would be false.
#[must_use]
pub fn links(
    world: &World,
    services: &ServicesPlan,
    troubles: &BTreeMap<TrustDomain, Vec<Trouble>>,
    memo: &mut Memo,
) -> BTreeMap<TrustDomain, LinkPlan> {
    let mut links = BTreeMap::new();
    let (Some(identity), Some(_)) = (&world.identity, &world.spire) else { return links };
    if !world.is_read() {
        return links;
    }
    memo.outcomes.retain(|trust_domain, _| world.peers.contains_key(trust_domain));
    memo.catalogues.retain(|trust_domain, _| world.peers.contains_key(trust_domain));
    for peer in world.peers.values() {
        let trust_domain = &peer.trust_domain;
        let heard = world.sessions.get(trust_domain).and_then(|session| session.catalogue.as_ref());
        links.insert(
            trust_domain.clone(),
            LinkPlan {
                trust_domain: trust_domain.clone(),
                owner: peer.owner(),
                addresses: peer.agent_addresses.clone(),
                agent_ids: peer.agent_ids.clone(),
                dials_first: identity.trust_domain < *trust_domain,
                intent: intent(peer),
                report: report(world, trust_domain, troubles.get(trust_domain)),
                farewell: farewell(peer),
                catalogue: offered(services, trust_domain, memo),
                outcomes: outcomes(services, trust_domain, memo),
                answered: heard.map(|catalogue| catalogue.version),
            },
        );
    }
    links
}

/// What a peer is answered. An answer that has not changed is the same one.
fn outcomes(services: &ServicesPlan, trust_domain: &TrustDomain, memo: &mut Memo) -> Arc<Outcomes> {
    let outcomes = services.outcomes.get(trust_domain).cloned().unwrap_or_default();
    if let Some(last) = memo.outcomes.get(trust_domain).filter(|last| **last == outcomes) {
        return Arc::clone(last);
    }
    memo.outcomes.insert(trust_domain.clone(), Arc::clone(&outcomes));
    outcomes
}

/// The catalogue of a peer. One that has not changed is the same one; of one that has, only what changed is hashed.
fn offered(services: &ServicesPlan, trust_domain: &TrustDomain, memo: &mut Memo) -> Arc<Catalogue> {
    let none = Offers::new();
    let offers = services.catalogues.get(trust_domain).unwrap_or(&none);
    let held = services.held.get(trust_domain).into_iter().flatten();
    let room = catalogue::MAX_SERVICES.saturating_sub(offers.len());
    let held: BTreeSet<ServiceName> =
        held.filter(|name| !offers.contains_key(*name)).take(room).cloned().collect();
    let last = memo.catalogues.get(trust_domain);
    let is_same = |catalogue: &Catalogue| catalogue.services == *offers && catalogue.held == held;
    if let Some((catalogue, _)) = last.filter(|(catalogue, _)| is_same(catalogue)) {
        return Arc::clone(catalogue);
    }
    let known = last.map(|(catalogue, hashes)| catalogue.services.iter().zip(hashes));
    let mut known = known.into_iter().flatten().peekable();
    let hashes: Vec<ServiceHash> = offers
        .iter()
        .map(|(name, service)| {
            while known.next_if(|((other, _), _)| *other < name).is_some() {}
            let same = known.next_if(|((_, other), _)| *other == service);
            same.map_or_else(|| catalogue::hash(service), |(_, hash)| *hash)
        })
        .collect();
    let of_held = held.iter().map(catalogue::hash_held);
    let version = catalogue::version(hashes.iter().copied().chain(of_held).collect());
    let catalogue = Arc::new(Catalogue { version, services: offers.clone(), held, malformed: Vec::new() });
    memo.catalogues.insert(trust_domain.clone(), (Arc::clone(&catalogue), hashes));
    catalogue
}

/// What we hold for a peer, as it is told. What the Workload API delivered last is not what workloads get, once it has
/// given nothing for a while.
#[must_use]
pub fn report(world: &World, trust_domain: &TrustDomain, troubles: Option<&Vec<Trouble>>) -> TrustReport {
    let delivered = world.identity.as_ref().and_then(|identity| identity.federated.get(trust_domain));
    let delivered = delivered.filter(|_| told::workload_api_is_gone(world).is_none());
    let spire = world.spire.as_ref();
    TrustReport {
        held: spire.and_then(|s| s.bundles.get(trust_domain)).map(|b| HeldBundle::from(b.as_ref())),
        delivered: delivered.map(|b| HeldBundle::from(b.as_ref())),
        relationship: spire.is_some_and(|s| s.relationships.contains_key(trust_domain)),
        own: spire.and_then(|s| s.own.as_ref()).map(|b| HeldBundle::from(b.as_ref())),
        receipt: world.memory.get(trust_domain).and_then(|memory| memory.receipt.clone()),
        troubles: troubles.cloned().unwrap_or_default(),
    }
}

fn intent(peer: &Peer) -> LinkIntent {
    if peer.deletion.is_some() {
        LinkIntent::Part(GoodbyeReason::RelationshipEnded)
    } else if peer.suspend || peer.withdraw {
        LinkIntent::Part(GoodbyeReason::Suspended)
    } else {
        LinkIntent::Connect
    }
}

/// Who ends it is told to the other side, as far as we know it.
fn farewell(peer: &Peer) -> String {
    let how = match (peer.deletion.is_some(), peer.ending.at_once) {
        (false, _) => return "its operator has decided so".to_owned(),
        (true, false) => "ended",
        (true, true) => "ended at once, trust first,",
    };
    format!("{how} by {}", peer.ending.by.as_deref().unwrap_or("its operator"))
}

/// Whether the peer has answered the catalogue that it should hold now.
#[must_use]
pub fn is_acknowledged(session: &SessionState, link: &LinkPlan) -> bool {
    session.acknowledged.as_ref().is_some_and(|ack| ack.version == link.catalogue.version)
}

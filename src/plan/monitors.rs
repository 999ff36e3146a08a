//! Which bundle endpoints are watched, and what verifies them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::memo::Memo;
use super::{poison, relationship};
use crate::model::endpoint::{EndpointProfile, HeldBySpire, MonitorTarget};
use crate::model::{Bundle, Peer, TrustDomain, World};

/// Good fetches end a suspension: they do not wait for the interval that the peer itself hints at.
const SUSPENDED: Duration = Duration::from_secs(20);

/// A target for each peer that is neither ending nor suspended.
#[must_use]
pub fn monitors(world: &World) -> BTreeMap<TrustDomain, MonitorTarget> {
    monitors_anew(world, &mut Memo::default())
}

/// As [`monitors`], with what is remembered of the plan before.
pub(super) fn monitors_anew(world: &World, memo: &mut Memo) -> BTreeMap<TrustDomain, MonitorTarget> {
    let mut monitors = BTreeMap::new();
    // Before the relationships have been read, what an earlier life verified is not known.
    if !world.is_read() {
        return monitors;
    }
    let watched = |peer: &&Arc<Peer>| peer.deletion.is_none() && !peer.suspend;
    for peer in world.peers.values().filter(watched) {
        let trust_domain = &peer.trust_domain;
        let persisted = relationship::persisted_in(world, peer);
        let persisted = persisted.and_then(|object| {
            memo.persisted
                .get(trust_domain, object, |object| relationship::read_persisted(trust_domain, object))
        });
        // A bootstrap bundle that could not be read yet is not the same as none.
        if relationship::awaits_bootstrap(world, peer) && persisted.is_none() {
            continue;
        }
        let memory = world.memory.get(&peer.trust_domain);
        let is_poisoned = memory.is_some_and(|memory| memory.poisoned.is_some());
        let target = MonitorTarget {
            trust_domain: peer.trust_domain.clone(),
            endpoint: peer.endpoint.clone(),
            bootstrap: relationship::bootstrap(world, peer),
            persisted,
            verify_with: verify_with(world, peer),
            held: held(world, peer),
            at_most: is_poisoned.then_some(SUSPENDED),
        };
        monitors.insert(peer.trust_domain.clone(), target);
    }
    monitors
}

/// What SPIRE fetched, where its relationship is with the endpoint that the peer has now.
fn held(world: &World, peer: &Peer) -> Option<HeldBySpire> {
    let spire = world.spire.as_ref().filter(|spire| spire.failure.is_none())?;
    let related = spire.relationships.get(&peer.trust_domain)?;
    let bundle = spire.bundles.get(&peer.trust_domain).filter(|_| related.endpoint == peer.endpoint)?;
    let stored = world.memory.get(&peer.trust_domain)?.stored.as_ref()?;
    let is_known = stored.digest == Some(bundle.digest()) && poison::harm(world, peer, bundle).is_none();
    is_known.then(|| HeldBySpire { bundle: Arc::clone(bundle), since: stored.since })
}

/// The bundle of the endpoint's own trust domain, where that is not the peer's: ours, or another peer's by its own
/// endpoint. Never what the Workload API happens to hold.
fn verify_with(world: &World, peer: &Peer) -> Option<Arc<Bundle>> {
    let EndpointProfile::HttpsSpiffe { endpoint_id } = &peer.endpoint.profile else { return None };
    if endpoint_id.is_member_of(&peer.trust_domain) {
        return None;
    }
    let identity = world.identity.as_ref()?;
    if endpoint_id.is_member_of(&identity.trust_domain) {
        return Some(Arc::clone(&identity.bundle));
    }
    let other = TrustDomain::new(endpoint_id.trust_domain_name()).ok()?;
    relationship::freshest(world, world.peers.get(&other)?)
}

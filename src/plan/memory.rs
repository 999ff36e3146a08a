//! What has to be remembered of a peer between two plans: suspensions that wait, drains that run, reports that are
//! stale. Pure: the memory comes in with the world and goes out again.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::notice;
use super::pace::Pace;
use crate::model::world::{Difference, PeerMemory, Poisoned, StoredBundle};
use crate::model::{Peer, TrustDomain, World};

/// The hold-back doubles with each flap up to this power of two.
const MAX_DOUBLINGS: u32 = 6;

/// Changes of SPIRE's bundle are followed at once; where they do not end, no more often than SPIRE itself would ask an
/// endpoint at most (every 15 s).
const TURNING: Pace = Pace { every: SignedDuration::from_secs(15), burst: 10 };

/// The memory after this world was seen. Peers that are gone are forgotten.
#[must_use]
pub fn advance(world: &World) -> BTreeMap<TrustDomain, PeerMemory> {
    let step = |(trust_domain, peer): (&TrustDomain, &std::sync::Arc<Peer>)| {
        let mut memory = world.memory.get(trust_domain).cloned().unwrap_or_default();
        poison(world, peer, &mut memory);
        drain(world, peer, &mut memory);
        stale(world, peer, &mut memory);
        away(world, peer, &mut memory);
        notice::stored(world, peer, &mut memory);
        differ(world, peer, &mut memory);
        super::rotation::remember(world, peer, &mut memory);
        notice::notice(world, peer, &mut memory);
        notice::receipt(world, peer, &mut memory);
        (trust_domain.clone(), memory)
    };
    world.peers.iter().map(step).collect()
}

/// How many good fetches in a row end a suspension.
#[must_use]
pub fn good_fetches_needed(world: &World, memory: &PeerMemory) -> u32 {
    let doublings = memory.flaps.saturating_sub(1).min(MAX_DOUBLINGS);
    world.settings.good_fetches.saturating_mul(1 << doublings)
}

/// A bundle without a usable X.509 authority makes every local Envoy that federates with the peer refuse its own new
/// SVIDs: it is suspended at once, and comes back only once it has been good for a while, longer each time.
fn poison(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let Some(spire) = &world.spire else { return };
    let trust_domain = &peer.trust_domain;
    let stored = spire.bundles.get(trust_domain);
    let endpoint = world.endpoints.get(trust_domain);
    // What was served before the endpoint fell silent may have expired since, without anyone's doing.
    let served = endpoint.filter(|state| state.failure.is_none()).and_then(|state| state.latest.as_ref());
    let good = endpoint.map_or(0, |state| state.good_in_a_row);
    let cause = if stored.is_some_and(|bundle| !bundle.is_usable_at(world.now)) {
        Some("the bundle in SPIRE has no usable X.509 authority")
    } else if served.is_some_and(|bundle| !bundle.is_usable_at(world.now)) {
        Some("its bundle endpoint serves a bundle without a usable X.509 authority")
    } else {
        None
    };
    if let Some(cause) = cause {
        memory.recalled = true;
        if memory.poisoned.is_none() {
            memory.flaps = memory.flaps.saturating_add(1);
            memory.poisoned = Some(Poisoned { since: world.now, cause: cause.to_owned(), good_before: good });
        }
        return;
    }
    let needed = good_fetches_needed(world, memory);
    let Some(poisoned) = &mut memory.poisoned else {
        return recall(world, trust_domain, memory);
    };
    // A bad fetch started the count over.
    poisoned.good_before = poisoned.good_before.min(good);
    if stored.is_some() && good - poisoned.good_before >= needed {
        memory.poisoned = None;
    }
}

/// Takes up, once, what an earlier life of the agent had suspended: it is restored by the same rule.
fn recall(world: &World, trust_domain: &TrustDomain, memory: &mut PeerMemory) {
    if memory.recalled || !world.is_read() {
        return;
    }
    memory.recalled = true;
    if is_suspended_in_a_record(world, trust_domain) {
        memory.flaps = 1;
        let cause = "it was suspended when the agent started".to_owned();
        memory.poisoned = Some(Poisoned { since: world.now, cause, good_before: 0 });
    }
}

fn is_suspended_in_a_record(world: &World, trust_domain: &TrustDomain) -> bool {
    world.registrations.values().any(|r| r.record.suspended.contains(trust_domain))
}

/// While a relationship ends: since when no registration entry federates any more.
fn drain(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let readable = world.spire.as_ref().filter(|spire| spire.failure.is_none());
    let drained = peer.deletion.is_some()
        && readable.is_some_and(|spire| spire.federating_with(&peer.trust_domain).next().is_none());
    memory.drained_since = drained.then(|| memory.drained_since.unwrap_or(world.now));
}

/// SPIRE polls on its own, and may be ahead of us: nothing is concluded before the endpoint was asked after SPIRE had
/// what it has.
fn differ(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let Some(StoredBundle { digest: stored, since }) = memory.stored.clone() else { return };
    let served = super::relationship::served(world, peer).map(|bundle| bundle.digest());
    if served.is_none() || served == stored {
        memory.differs = None;
        return;
    }
    if memory.differs.as_ref().is_some_and(|before| before.stored == stored) {
        return;
    }
    // An endpoint that serves another bundle at each request would have SPIRE write without end.
    memory.quiet_until = TURNING.wait(memory.turning, world.now);
    memory.turning = TURNING.take(memory.turning, memory.quiet_until.unwrap_or(world.now));
    memory.differs = Some(Difference { stored, since });
}

fn away(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let connected = world.sessions.get(&peer.trust_domain).is_some_and(|session| session.is_connected());
    memory.away_since = if connected { None } else { memory.away_since.or(Some(world.now)) };
}

fn stale(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let newest = world.identity.as_ref().map(|identity| identity.bundle.digest());
    let held = world
        .sessions
        .get(&peer.trust_domain)
        .filter(|session| session.is_connected())
        .and_then(|session| session.remote.as_ref())
        .and_then(|remote| remote.held.as_ref());
    let stale = held.zip(newest).is_some_and(|(held, newest)| held.digest != newest);
    memory.stale_since = stale.then(|| memory.stale_since.unwrap_or(world.now));
}

//! What has to be remembered of a peer between two plans: suspensions that wait, drains that run, reports that are
//! stale. Pure: the memory comes in with the world and goes out again.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::pace::Pace;
use super::{notice, poison};
use crate::model::object::Kind;
use crate::model::world::{Difference, PeerMemory, StoredBundle};
use crate::model::{ObjectKey, Peer, TrustDomain, World};

/// Changes of SPIRE's bundle are followed at once; where they do not end, no more often than SPIRE itself would ask an
/// endpoint at most (every 15 s).
const TURNING: Pace = Pace { every: SignedDuration::from_secs(15), burst: 10 };

/// The memory after this world was seen. Peers that are gone are forgotten.
#[must_use]
pub fn advance(world: &World) -> BTreeMap<TrustDomain, PeerMemory> {
    let mut disputes = poison::disputes(world);
    let mut step = |(trust_domain, peer): (&TrustDomain, &std::sync::Arc<Peer>)| {
        let mut memory = world.memory.get(trust_domain).cloned().unwrap_or_default();
        let disputed = disputes.remove(trust_domain).unwrap_or_default();
        poison::advance(world, peer, disputed, &mut memory);
        super::contest::advance(world, peer, &mut memory);
        drain(world, peer, &mut memory);
        stale(world, peer, &mut memory);
        away(world, peer, &mut memory);
        notice::stored(world, peer, &mut memory);
        differ(world, peer, &mut memory);
        super::rotation::remember(world, peer, &mut memory);
        doubt(world, peer, &mut memory);
        notice::notice(world, peer, &mut memory);
        notice::receipt(world, peer, &mut memory);
        (trust_domain.clone(), memory)
    };
    world.peers.iter().map(&mut step).collect()
}

/// While a relationship ends: since when no registration entry federates any more, or some do that nothing explains.
fn drain(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let readable =
        world.spire.as_ref().filter(|spire| spire.why_unlisted().is_none() && peer.deletion.is_some());
    let federates = readable.map(|spire| spire.federating_with(&peer.trust_domain).next().is_some());
    memory.drained_since = (federates == Some(false)).then(|| memory.drained_since.unwrap_or(world.now));
    let named = || world.registrations.values().any(|registration| registration.names(&peer.trust_domain));
    let lingers = federates == Some(true) && !named();
    memory.lingering_since = lingers.then(|| memory.lingering_since.unwrap_or(world.now));
}

/// SPIRE polls on its own, and may be ahead of us: nothing is concluded before the endpoint was asked after SPIRE had
/// what it has.
fn differ(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let Some(StoredBundle { digest: stored, since }) = memory.stored.clone() else { return };
    let served = super::relationship::served(world, peer).map(|bundle| bundle.digest());
    if served.is_none() || served == stored {
        (memory.differs, memory.differs_since) = (None, None);
        return;
    }
    memory.differs_since = memory.differs_since.or(Some(world.now));
    if memory.differs.as_ref().is_some_and(|before| before.stored == stored) {
        return;
    }
    // An endpoint that serves another bundle at each request would have SPIRE write without end.
    memory.quiet_until = TURNING.wait(memory.turning, world.now);
    memory.turning = TURNING.take(memory.turning, memory.quiet_until.unwrap_or(world.now));
    memory.differs = Some(Difference { stored, since });
}

/// Since when the peer's own word on its bundle is not what its endpoint serves. Nothing is known of it while either is
/// silent.
fn doubt(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let session = world.sessions.get(&peer.trust_domain).filter(|session| session.is_connected());
    let said = session.and_then(|session| session.remote.as_ref()?.own.as_ref());
    let state = world.endpoints.get(&peer.trust_domain).filter(|state| state.failure.is_none());
    let served = state.and_then(|state| state.latest.as_ref());
    let differs = said.zip(served).is_some_and(|(said, served)| said.digest != served.digest());
    memory.doubted_since = differs.then(|| memory.doubted_since.unwrap_or(world.now));
}

/// Since when the peer is away: what an earlier life of the agent wrote down holds until the peer is back. One that we
/// suspended is not away, and is waited for anew once it no longer is.
fn away(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let is_connected = world.sessions.get(&peer.trust_domain).is_some_and(|session| session.is_connected());
    if peer.suspend || is_connected {
        (memory.away_since, memory.awaited_since, memory.was_connected) = (None, None, true);
        memory.was_suspended = peer.suspend;
        return;
    }
    if std::mem::take(&mut memory.was_suspended) || !memory.was_connected {
        memory.awaited_since = memory.awaited_since.or(Some(world.now));
    }
    let status = world.statuses.get(&ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object));
    let said = status.and_then(|status| status.get("awaySince")?.as_str()?.parse().ok());
    let before = said.filter(|before: &Timestamp| !memory.was_connected && *before <= world.now);
    memory.away_since = memory.away_since.into_iter().chain(before).min().or(Some(world.now));
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

//! What the peers and we tell each other of bundles, so that nobody waits for a poll: notices of a new bundle, which are
//! followed up at the endpoint, and receipts.

use jiff::{SignedDuration, Timestamp};

use super::pace::Pace;
use crate::model::session::{HeldBundle, TrustReport};
use crate::model::world::{Notice, PeerMemory, StoredBundle};
use crate::model::{Peer, World};

/// How often the endpoint is asked for one notice: at once, then after 1, 2, 4 and 8 seconds, since what serves the
/// bundle may be behind what tells of it. After that it is asked in its turn alone.
const ASKS: u32 = 5;
/// A peer that changes its notice all the time has its endpoint asked no more often than this.
const ASKING: Pace = Pace { every: SignedDuration::from_secs(5), burst: 20 };

/// What the peer's agent says now: only believed while connected.
#[must_use]
pub fn told<'a>(world: &'a World, peer: &Peer) -> Option<&'a TrustReport> {
    let session = world.sessions.get(&peer.trust_domain)?;
    session.remote.as_ref().filter(|_| session.is_connected())
}

/// The bundle of the peer in SPIRE, and since when we know it to be that one.
pub(super) fn stored(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let Some(spire) = world.spire.as_ref().filter(|spire| spire.failure.is_none()) else { return };
    let digest = spire.bundles.get(&peer.trust_domain).map(|bundle| bundle.digest());
    if memory.stored.as_ref().is_none_or(|stored| stored.digest != digest) {
        memory.stored = Some(StoredBundle { digest, since: world.moment });
    }
}

/// Follows the peer's notice of its own bundle: where neither its endpoint served us that one nor SPIRE holds it, the
/// endpoint is asked again. The notice itself is never a source of trust.
pub(super) fn notice(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let served = world.endpoints.get(&peer.trust_domain).and_then(|state| state.latest.as_ref());
    let served = served.map(|bundle| bundle.digest());
    let stored = memory.stored.as_ref().and_then(|stored| stored.digest);
    let told = told(world, peer).and_then(|report| report.own.as_ref()).map(|own| own.digest);
    let Some(digest) = told.filter(|told| Some(*told) != served && Some(*told) != stored) else {
        memory.notice = None;
        return;
    };
    let new = Notice { digest, asks: 0, asked: None, next: Some(world.now) };
    let notice = memory.notice.take().filter(|notice| notice.digest == digest).unwrap_or(new);
    memory.notice = Some(ask(world, notice, &mut memory.asking));
}

/// Asks, where that is due.
fn ask(world: &World, notice: Notice, asking: &mut Option<Timestamp>) -> Notice {
    let now = world.now;
    if notice.next.is_none_or(|next| next > now) {
        return notice;
    }
    if let Some(later) = ASKING.wait(*asking, now) {
        return Notice { next: Some(later), ..notice };
    }
    *asking = ASKING.take(*asking, now);
    let pause = SignedDuration::from_secs(1_i64 << notice.asks.min(ASKS));
    let asks = notice.asks.saturating_add(1);
    let next = (asks < ASKS).then(|| now.saturating_add(pause).ok()).flatten();
    Notice { asks, asked: Some(world.moment), next, ..notice }
}

/// The receipt for the peer's bundle. SPIRE's servers share one datastore, so that what one holds all hold; its agents
/// ask them every 5 seconds, and tell nobody when they did: they are given `agent_follow` from when the server was
/// first seen to hold it. Ours is asked besides: the Workload API must deliver that very bundle.
///
/// What was receipted before stands meanwhile, as long as none of its authorities is gone.
pub(super) fn receipt(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let Some(spire) = world.spire.as_ref().filter(|spire| spire.failure.is_none()) else { return };
    let Some(bundle) = spire.bundles.get(&peer.trust_domain) else {
        memory.receipt = None;
        return;
    };
    let held = HeldBundle::from(bundle.as_ref());
    let delivered = world.identity.as_ref().and_then(|identity| identity.federated.get(&peer.trust_domain));
    let is_delivered = delivered.is_some_and(|delivered| delivered.digest() == held.digest);
    let followed = followed_at(world, memory).is_some_and(|at| at <= world.moment);
    if is_delivered && followed {
        memory.receipt = Some(held);
    } else if memory.receipt.as_ref().is_some_and(|old| !old.authority_ids.is_subset(&held.authority_ids)) {
        memory.receipt = None;
    }
}

/// When SPIRE's agents have had time to follow.
fn followed_at(world: &World, memory: &PeerMemory) -> Option<Timestamp> {
    let stored = memory.stored.as_ref().filter(|stored| stored.digest.is_some())?;
    stored.since.saturating_add(world.settings.agent_follow).ok()
}

/// When there is something to do for a notice or a receipt though nothing changes.
pub(super) fn wake_at(world: &World, memory: &PeerMemory) -> Option<Timestamp> {
    let next = memory.notice.as_ref().and_then(|notice| notice.next);
    let receipt = followed_at(world, memory);
    [next, receipt].into_iter().flatten().filter(|at| *at > world.moment).min()
}

#[cfg(test)]
#[path = "notice_tests.rs"]
mod tests;

//! When the services of a peer that is away are taken away: `spec.onDisconnect`.

use jiff::{SignedDuration, Timestamp};

use crate::model::peer::OnDisconnect;
use crate::model::{Peer, World};
use crate::plan::verdict::SETTLE;

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
    // What is suspended stays as it is, and its agent is away since we sent it away.
    if peer.suspend {
        return None;
    }
    let session = world.sessions.get(&peer.trust_domain).filter(|session| !session.is_connected())?;
    let after = SignedDuration::try_from(after).ok()?;
    let memory = world.memory.get(&peer.trust_domain);
    let awaited = memory.and_then(|memory| memory.awaited_since);
    let ended = awaited.map_or(session.since, |awaited| session.since.max(awaited));
    // The link's state may change while the peer is away; the absence is older then.
    let away = memory.and_then(|memory| memory.away_since);
    let since = away.map_or(ended, |away| away.min(ended));
    let at = since.checked_add(after).ok()?;
    // Away while this agent was too, or while it was suspended, it may be there again: it is given the time to come, which is
    // its pause between two tries to reach us, where it is the one that dials.
    let settled = awaited.and_then(|awaited| awaited.checked_add(world.settings.redial + SETTLE).ok());
    Some(Withdrawal { since, at: settled.map_or(at, |settled| at.max(settled)) })
}

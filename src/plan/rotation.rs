//! Our authorities, and who of our peers holds them: what may sign next without anyone being refused.
//!
//! Each SPIRE server has authorities of its own in its slots. It publishes one long before it signs with it, but asks
//! nobody whether they have it: a peer that has not fetched our bundle by then refuses our workloads.

mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::notice::told;
use super::told;
pub use steps::{
    Leave, Obstacle, Refused, Step, allow, exempt, obstacles, published_since, revocable_at, tainted_since,
    unasked,
};

use crate::api::v1alpha1::conditions::RotationSafeReason as Reason;
use crate::model::condition::Truth;
use crate::model::session::TrustReport;
use crate::model::trust::{LocalAuthorities, LocalAuthority};
use crate::model::world::PeerMemory;
use crate::model::{AuthorityId, Bundle, Peer, TrustDomain, World};

/// SPIRE's certificates are valid from a little before they are made.
const CUSHION: i64 = 10;
/// SPIRE activates what is prepared when this part of the active authority's life is left, but at most so many seconds.
const ACTIVATION_PART: i64 = 6;
const ACTIVATION_MOST: i64 = 7 * 24 * 60 * 60;
/// How many intervals at which peers fetch our bundle must be left, for the time until activation to be enough.
const INTERVALS: u32 = 3;
/// The refresh interval of a bundle, in seconds, is taken to be within these.
const SHORTEST: u64 = 60;
const LONGEST: u64 = 7 * 24 * 60 * 60;
/// How many authorities a message names.
const NAMED: usize = 4;

/// What a peer says that it holds of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub ids: BTreeSet<AuthorityId>,
    /// Whether it gave a receipt: all its SPIRE servers hold it, and its SPIRE agents had time to follow. Else it is
    /// what its SPIRE holds and its own agent is delivered.
    pub by_receipt: bool,
}

/// What a peer holds, by its own word; `None` where it has not said, or cannot be asked. Between two receipts the last
/// one counts, for what the peer's SPIRE holds still.
#[must_use]
pub fn held(world: &World, peer: &Peer) -> Option<Held> {
    let receipted = world.memory.get(&peer.trust_domain).and_then(|memory| memory.receipted.as_ref());
    told(world, peer).map(|report| held_by(report, receipted))
}

fn held_by(report: &TrustReport, receipted: Option<&BTreeSet<AuthorityId>>) -> Held {
    let Some(stored) = &report.held else {
        return Held { ids: BTreeSet::new(), by_receipt: false };
    };
    let delivered = report.delivered.as_ref().map(|bundle| &bundle.authority_ids);
    let followed = receipted.or(delivered);
    let ids = followed.map(|ids| ids.intersection(&stored.authority_ids).cloned().collect());
    Held { ids: ids.unwrap_or_default(), by_receipt: receipted.is_some() }
}

/// Remembers the peer's last receipt, and what it held when it was last heard.
pub(super) fn remember(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let heard = told(world, peer);
    if heard.is_none() {
        memory.receipted = None;
    }
    if let Some(receipt) = heard.and_then(|report| report.receipt.as_ref()) {
        memory.receipted = Some(receipt.authority_ids.clone());
    }
    if let Some(report) = heard {
        memory.last_held = Some(held_by(report, memory.receipted.as_ref()).ids);
    }
}

/// Our own bundle, as freshly as it is known.
#[must_use]
pub fn own_bundle(world: &World) -> Option<&Bundle> {
    let stored = world.spire.as_ref().and_then(|spire| spire.own.as_deref());
    stored.or(world.identity.as_ref().map(|identity| &*identity.bundle))
}

/// When SPIRE lets the prepared authority of a server sign, unasked. `None` where that cannot be known: what the server
/// signs with is not in our bundle, as with an upstream authority.
#[must_use]
pub fn activates_at(own: &Bundle, authorities: &LocalAuthorities) -> Option<Timestamp> {
    let active = own.authorities().find(|authority| *authority.id() == authorities.active.id)?;
    let end = active.not_after().as_second();
    let life = end - active.not_before().as_second() - CUSHION;
    Timestamp::from_second(end - (life / ACTIVATION_PART).clamp(0, ACTIVATION_MOST)).ok()
}

/// What an authority of ours that a peer should hold is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role<'a> {
    /// A server signs with it now.
    Active { server: &'a str },
    /// A server will sign with it, by itself at that time where that is known, and in any case before `latest`.
    Prepared { activates_at: Option<Timestamp>, latest: Timestamp, server: &'a str },
    /// It is in our bundle, and may have signed what is still in use.
    Published,
}

/// What peers must hold of ours, and why; of an authority with several roles, the most pressing one.
#[must_use]
pub fn needed(world: &World) -> BTreeMap<AuthorityId, Role<'_>> {
    let mut needed = BTreeMap::new();
    let Some(own) = own_bundle(world) else { return needed };
    let published = own.authorities().filter(|a| !a.tainted && a.not_after() >= world.now);
    needed.extend(published.map(|authority| (authority.id().clone(), Role::Published)));
    let mut need = |authority: &LocalAuthority, role| {
        let anchor = authority.anchor();
        // Behind an upstream authority that is not published itself stands one that is, and is needed as such.
        if authority.upstream.is_none() || own.authorities().any(|a| a.id() == anchor) {
            let before = needed.entry(anchor.clone()).or_insert(role);
            *before = role.min(*before);
        }
    };
    for (server, authorities) in servers(world) {
        need(&authorities.active, Role::Active { server });
        if let Some(prepared) = &authorities.prepared {
            let latest = authorities.active.expires_at;
            need(prepared, Role::Prepared { server, activates_at: activates_at(own, authorities), latest });
        }
    }
    needed
}

/// The servers that told their authorities.
fn servers(world: &World) -> impl Iterator<Item = (&str, &LocalAuthorities)> {
    let servers = world.spire.iter().flat_map(|spire| &spire.servers);
    servers.filter_map(|(name, server)| Some((name.as_str(), server.authorities.as_ref()?)))
}

/// Our authorities that may have signed what is in use, but are in no slot of a server that we know of: of an earlier
/// rotation, or of a SPIRE server that is not addressed.
#[must_use]
pub fn of_no_server(world: &World) -> BTreeSet<AuthorityId> {
    let known: BTreeSet<&AuthorityId> = servers(world)
        .flat_map(|(_, all)| all.all())
        .flat_map(|a| [Some(&a.id), a.upstream.as_ref()])
        .flatten()
        .collect();
    let needed = needed(world).into_iter();
    needed.filter(|(id, role)| *role == Role::Published && !known.contains(id)).map(|(id, _)| id).collect()
}

/// The authorities that sign now and are not among these.
#[must_use]
pub fn signing_without(world: &World, held: &BTreeSet<AuthorityId>) -> Vec<AuthorityId> {
    let needed = needed(world).into_iter();
    needed
        .filter(|(id, role)| matches!(role, Role::Active { .. }) && !held.contains(id))
        .map(|(id, _)| id)
        .collect()
}

/// Whether our signing authorities can change without one peer refusing our workloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub truth: Truth,
    pub reason: Reason,
    pub message: String,
}

/// The judgement of one peer; `None` where it has not said what it holds.
#[must_use]
pub fn judge(world: &World, peer: &Peer) -> Option<Judgement> {
    let trust_domain = &peer.trust_domain;
    let held = held(world, peer)?;
    let mut lacking: Vec<(AuthorityId, Role<'_>)> =
        needed(world).into_iter().filter(|(id, _)| !held.ids.contains(id)).collect();
    lacking.sort_by(|(a, one), (b, other)| (one, a).cmp(&(other, b)));
    let unable = told::cannot_fetch_ours(world, peer);
    let Some((_, worst)) = lacking.first() else {
        return Some(all_held(world, trust_domain, &held, unable));
    };
    let reason = match worst {
        Role::Active { .. } => Reason::PeerLacksSigningAuthority,
        Role::Prepared { activates_at, .. } if is_near(world, *activates_at) => Reason::ActivationNear,
        Role::Prepared { .. } | Role::Published => Reason::PeerLacksAuthority,
    };
    let mut names: Vec<String> = lacking.iter().take(NAMED).map(|(id, role)| describe(id, *role)).collect();
    if lacking.len() > NAMED {
        names.push(format!("{} more", lacking.len() - NAMED));
    }
    let why = unable.map_or_else(
        || "its operator must see why it does not follow our bundle endpoint".to_owned(),
        |words| format!("its agent says that it cannot fetch our bundle ({words})"),
    );
    let message = format!("{trust_domain} does not hold {}; {why}", names.join(", nor "));
    Some(Judgement { truth: Truth::False, reason, message })
}

/// The judgement of a peer that is not heard, where something is prepared that it did not hold when it last was. What it
/// said then is no leave to activate anything; but SPIRE does so by itself, whether or not it is heard.
#[must_use]
pub fn judge_unheard(world: &World, peer: &Peer) -> Option<Judgement> {
    if told(world, peer).is_some() || exempt(world, peer).is_some() {
        return None;
    }
    let last = world.memory.get(&peer.trust_domain).and_then(|memory| memory.last_held.as_ref());
    let lacks = |id: &AuthorityId| last.is_none_or(|last| !last.contains(id));
    let prepared = needed(world).into_iter().filter_map(|(id, role)| match role {
        Role::Prepared { activates_at, .. } if lacks(&id) => Some((role, activates_at, id)),
        _ => None,
    });
    let (role, activates_at, id) = prepared.min()?;
    let (truth, reason) = if is_near(world, activates_at) {
        (Truth::False, Reason::ActivationNear)
    } else {
        (Truth::Unknown, Reason::Unknown)
    };
    let said = if last.is_some() {
        "is not heard now, and when it was last heard did not hold"
    } else {
        "has not said, since this agent started, that it holds"
    };
    let message = format!(
        "{} {said} {}; see to the exchange between the agents (Connected)",
        peer.trust_domain,
        describe(&id, role)
    );
    Some(Judgement { truth, reason, message })
}

fn all_held(world: &World, trust_domain: &TrustDomain, held: &Held, unable: Option<String>) -> Judgement {
    if let Some(words) = unable {
        let message = format!(
            "{trust_domain} holds every authority of ours, but would not get the next one: its agent says that it \
             cannot fetch our bundle ({words}); look at our bundle endpoint and at the network between"
        );
        return Judgement { truth: Truth::False, reason: Reason::PeerCannotFetchOurBundle, message };
    }
    let word = if held.by_receipt { "gave a receipt for" } else { "holds" };
    let silent: Vec<&str> = world
        .spire
        .iter()
        .flat_map(|spire| &spire.servers)
        .filter(|(_, server)| server.failure.is_some())
        .map(|(name, _)| name.as_str())
        .collect();
    let unsure = if silent.is_empty() {
        String::new()
    } else {
        format!(
            "; the SPIRE server {} does not answer, what it signs with may have changed",
            silent.join(", ")
        )
    };
    let message = format!("{trust_domain} {word} every authority of ours{unsure}");
    Judgement { truth: Truth::True, reason: Reason::PeersHoldAuthorities, message }
}

fn describe(id: &AuthorityId, role: Role<'_>) -> String {
    match role {
        Role::Active { server } => {
            format!(
                "our authority {id}, with which the SPIRE server {server} signs now: it refuses our workloads"
            )
        }
        Role::Prepared { server, activates_at: Some(at), .. } => format!(
            "our authority {id}, which the SPIRE server {server} has prepared and activates by itself at {at}: from \
             then on it would refuse our workloads; do not activate it before"
        ),
        Role::Prepared { server, activates_at: None, latest } => format!(
            "our authority {id}, which the SPIRE server {server} has prepared and may activate at any time before \
             {latest}: from then on it would refuse our workloads"
        ),
        Role::Published => format!("our authority {id}: do not rely on it yet"),
    }
}

/// Whether less time is left than a peer that is well needs. A time that is not known may be any.
fn is_near(world: &World, activates_at: Option<Timestamp>) -> bool {
    activates_at.and_then(|at| near_from(world, at)).is_none_or(|from| from <= world.now)
}

/// From when on less time is left until an activation than a peer that is well needs to fetch our bundle.
#[must_use]
pub fn near_from(world: &World, activates_at: Timestamp) -> Option<Timestamp> {
    activates_at.checked_sub(peers_fetch_every(world) * INTERVALS).ok()
}

/// How often the SPIRE servers of peers fetch our bundle: four times in the refresh interval that it tells them, which
/// SPIRE takes to be a minute at least; no more often than is set for ours.
fn peers_fetch_every(world: &World) -> Duration {
    let hint = world.spire.as_ref().and_then(|spire| spire.own.as_ref()?.refresh_hint);
    let polled = hint.map_or(Duration::ZERO, |hint| Duration::from_secs(hint.clamp(SHORTEST, LONGEST)) / 4);
    polled.max(world.settings.poll_interval)
}

/// When SPIRE lets which server sign with what it has prepared, by itself.
#[must_use]
pub fn activations(world: &World) -> BTreeMap<&str, Timestamp> {
    let own = own_bundle(world);
    servers(world)
        .filter(|(_, authorities)| authorities.prepared.is_some())
        .filter_map(|(name, authorities)| Some((name, activates_at(own?, authorities)?)))
        .collect()
}

/// When a judgement may change by time alone: an activation comes near, or an authority expires.
pub fn wake_at(world: &World) -> impl Iterator<Item = Timestamp> {
    let own = own_bundle(world);
    let near = activations(world).into_values().filter_map(move |at| near_from(world, at));
    let expiries = own.into_iter().flat_map(|own| own.authorities().map(|authority| authority.not_after()));
    near.chain(expiries.filter_map(|at| at.checked_add(Duration::from_secs(1)).ok()))
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;

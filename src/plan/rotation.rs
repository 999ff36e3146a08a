//! Our authorities, and who of our peers holds them: what may sign next without anyone being refused.
//!
//! Each SPIRE server has authorities of its own in its slots. It publishes one long before it signs with it, but asks
//! nobody whether they have it: a peer that has not fetched our bundle by then refuses our workloads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::notice::told;
use super::status::stored_condition;
use super::told;
use crate::api::v1alpha1::conditions::{ReciprocalReason, RotationSafeReason as Reason};
use crate::model::condition::Truth;
use crate::model::object::Kind;
use crate::model::session::{GoodbyeReason, LinkState, SessionState};
use crate::model::trust::{LocalAuthorities, LocalAuthority};
use crate::model::world::PeerMemory;
use crate::model::{AuthorityId, Bundle, ObjectKey, Peer, TrustDomain, World};

/// SPIRE's certificates are valid from a little before they are made.
const CUSHION: i64 = 10;
/// SPIRE activates what is prepared when this part of the active authority's life is left, but at most so many seconds.
const ACTIVATION_PART: i64 = 6;
const ACTIVATION_MOST: i64 = 7 * 24 * 60 * 60;
/// How many intervals at which peers fetch our bundle must be left, for the time until activation to be enough.
const INTERVALS: u32 = 3;
/// How long SPIRE takes, at least, to replace what a tainted authority signed: an agent learns of it at its next sync (5 s),
/// it and the server look at their own SVIDs every 5 s each, and workloads' follow in batches every 5 s. Before the server has
/// a new SVID of its own, revoking the authority makes its agents refuse it, and end (seen on SPIRE 1.15.3).
const REPLACED: Duration = Duration::from_secs(20);
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
    let remote = told(world, peer)?;
    let Some(stored) = &remote.held else {
        return Some(Held { ids: BTreeSet::new(), by_receipt: false });
    };
    let receipted = world.memory.get(&peer.trust_domain).and_then(|memory| memory.receipted.as_ref());
    let delivered = remote.delivered.as_ref().map(|bundle| &bundle.authority_ids);
    let followed = receipted.or(delivered);
    let ids = followed.map(|ids| ids.intersection(&stored.authority_ids).cloned().collect());
    Some(Held { ids: ids.unwrap_or_default(), by_receipt: receipted.is_some() })
}

/// Remembers the peer's last receipt.
pub(super) fn remember(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let heard = told(world, peer);
    if heard.is_none() {
        memory.receipted = None;
    }
    if let Some(receipt) = heard.and_then(|report| report.receipt.as_ref()) {
        memory.receipted = Some(receipt.authority_ids.clone());
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

fn near_from(world: &World, activates_at: Timestamp) -> Option<Timestamp> {
    let margin: Duration = world.settings.poll_interval * INTERVALS;
    activates_at.checked_sub(margin).ok()
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

/// A peer, and why our workloads cannot rely on it with an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub trust_domain: TrustDomain,
    pub why: String,
}

/// Why a peer has no say in a rotation, where it has none.
#[must_use]
pub fn exempt(world: &World, peer: &Peer) -> Option<&'static str> {
    let session = world.sessions.get(&peer.trust_domain);
    if peer.deletion.is_some() {
        Some("the relationship ends")
    } else if peer.suspend {
        Some("it is suspended")
    } else if peer.withdraw {
        Some("it is withdrawn")
    } else if matches!(
        session.map(|session| &session.link),
        Some(LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, .. })
    ) || (has_said_so(world, peer) && !session.is_some_and(SessionState::is_connected))
    {
        Some("it ended the relationship")
    } else {
        None
    }
}

/// Whether the peer said that it ended the relationship, before a restart of ours maybe.
fn has_said_so(world: &World, peer: &Peer) -> bool {
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object);
    let stored = stored_condition(world.statuses.get(&key).map(AsRef::as_ref), "Reciprocal");
    stored.is_some_and(|(_, reason, _)| reason == ReciprocalReason::PeerEnded.as_str())
}

/// The peers that do not hold what an authority stands on, of those that have a say.
#[must_use]
pub fn obstacles(world: &World, authority: &LocalAuthority) -> Vec<Obstacle> {
    let wanted = stands_on(world, authority);
    let peers = world.peers.values().filter(|peer| exempt(world, peer).is_none());
    peers.filter_map(|peer| obstacle(world, peer, &wanted)).collect()
}

fn obstacle(world: &World, peer: &Peer, wanted: &BTreeSet<AuthorityId>) -> Option<Obstacle> {
    let trust_domain = peer.trust_domain.clone();
    let Some(held) = held(world, peer) else {
        let link = world.sessions.get(&trust_domain).map(|session| &session.link);
        let why = match link {
            Some(LinkState::Connected) => "it has not said yet what it holds".to_owned(),
            Some(
                LinkState::Unreachable { message }
                | LinkState::Unverified { message }
                | LinkState::WrongPeerId { message }
                | LinkState::Refused { message, .. },
            ) => format!("its agent cannot be asked: {message}"),
            _ => "its agent is not connected".to_owned(),
        };
        return Some(Obstacle { trust_domain, why });
    };
    if wanted.is_subset(&held.ids) {
        return None;
    }
    let missing: Vec<&str> = wanted.difference(&held.ids).map(AuthorityId::as_str).collect();
    let mut why = format!("it does not hold {}", missing.join(", "));
    if let Some(words) = told::cannot_fetch_ours(world, peer) {
        why.push_str(&format!("; it cannot fetch our bundle ({words})"));
    }
    Some(Obstacle { trust_domain, why })
}

/// What must be held for what this authority signs to be accepted. Where the upstream authority that signed it is not
/// published itself, nobody here knows which one is its root: all of our bundle.
fn stands_on(world: &World, authority: &LocalAuthority) -> BTreeSet<AuthorityId> {
    let anchor = authority.anchor();
    let is_published = own_bundle(world).is_some_and(|own| own.authorities().any(|a| a.id() == anchor));
    if authority.upstream.is_none() || is_published {
        return BTreeSet::from([anchor.clone()]);
    }
    needed(world).into_keys().collect()
}

/// A step of a rotation that needs leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Activate,
    Taint,
    Revoke,
}

/// Whether a server may take a step with an authority, by what is known now; else why not, and what to do.
///
/// # Errors
/// The reason, for the operator.
pub fn allow(
    world: &World,
    server: &str,
    authorities: &LocalAuthorities,
    id: &AuthorityId,
    step: Step,
) -> Result<(), String> {
    let (slot, signer) = match step {
        Step::Activate => (("prepared", &authorities.prepared), authorities.prepared.as_ref()),
        Step::Taint | Step::Revoke => (("old", &authorities.old), Some(&authorities.active)),
    };
    let (Some(authority), Some(signer)) = (slot.1.as_ref().filter(|authority| authority.id == *id), signer)
    else {
        let has = slot.1.as_ref().map_or("none".to_owned(), |authority| authority.id.to_string());
        return Err(format!(
            "the {} authority of the SPIRE server {server} is not {id}, but {has}: look again",
            slot.0
        ));
    };
    if step != Step::Activate
        && let Some(upstream) = &authority.upstream
    {
        return Err(format!(
            "authority {id} of the SPIRE server {server} was signed by the upstream authority {upstream}: it is tainted \
             and revoked there (spire-server upstreamauthority), not here"
        ));
    }
    let obstacles = obstacles(world, signer);
    if !obstacles.is_empty() {
        let said: Vec<String> = obstacles.iter().map(|o| format!("{}: {}", o.trust_domain, o.why)).collect();
        return Err(format!(
            "peers do not hold authority {} of the SPIRE server {server} and would refuse our workloads: {}; mend that, \
             or suspend a peer that is to have no say (spec.suspend)",
            signer.anchor(),
            said.join("; ")
        ));
    }
    if step == Step::Revoke { may_revoke(world, server, id) } else { Ok(()) }
}

fn may_revoke(world: &World, server: &str, id: &AuthorityId) -> Result<(), String> {
    match revocable_at(world, id) {
        None => Err(format!("authority {id} of the SPIRE server {server} is not tainted: taint it first")),
        Some(at) if world.now < at => Err(format!(
            "what authority {id} of the SPIRE server {server} signed is being replaced: it may be revoked from {at} on"
        )),
        Some(_) => Ok(()),
    }
}

/// From when on a tainted authority of ours may be revoked: SPIRE is given time to replace what it signed.
#[must_use]
pub fn revocable_at(world: &World, id: &AuthorityId) -> Option<Timestamp> {
    let pause = world.settings.drain.max(REPLACED);
    world.tainted_since.get(id).and_then(|since| since.checked_add(pause).ok())
}

/// Since when which authorities of ours are tainted, now that SPIRE was read.
#[must_use]
pub fn tainted_since(world: &World) -> BTreeMap<AuthorityId, Timestamp> {
    let own = world.spire.as_ref().and_then(|spire| spire.own.as_deref());
    let tainted = own.into_iter().flat_map(|own| own.authorities().filter(|authority| authority.tainted));
    let since = |id: &AuthorityId| world.tainted_since.get(id).copied().unwrap_or(world.now);
    tainted.map(|authority| (authority.id().clone(), since(authority.id()))).collect()
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;

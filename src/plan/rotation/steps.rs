//! The steps of a rotation: who stands in the way of each, and when it may be taken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::super::status::stored_condition;
use super::super::told;
use super::{held, needed, own_bundle};
use crate::api::v1alpha1::conditions::ReciprocalReason;
use crate::model::object::Kind;
use crate::model::session::{GoodbyeReason, LinkState, SessionState};
use crate::model::trust::{LocalAuthorities, LocalAuthority};
use crate::model::{AuthorityId, Bundle, ObjectKey, Peer, TrustDomain, World};

/// How long SPIRE takes, at least, to replace what a tainted authority signed: an agent learns of it at its next sync (5 s),
/// it and the server look at their own SVIDs every 5 s each, and workloads' follow in batches every 5 s. Before the server has
/// a new SVID of its own, revoking the authority makes its agents refuse it, and end (seen on SPIRE 1.15.3).
const REPLACED: Duration = Duration::from_secs(20);

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
    let stored = stored_condition(world.statuses.get(&key).map(AsRef::as_ref), ReciprocalReason::CONDITION);
    stored.is_some_and(|stored| stored.reason == ReciprocalReason::PeerEnded.as_str())
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

/// Leave to take a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    Take,
    /// It was taken before; whoever asked did not hear so.
    Taken,
}

/// Why a step may not be taken, for the operator: the object, the cause, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It may pass with time.
    #[error("{0}")]
    NotYet(String),
    /// The server's authorities are not what the asker thinks: asking again in the same words helps nothing.
    #[error("{0}")]
    Changed(String),
    /// Not before someone does something about it.
    #[error("{0}")]
    Never(String),
}

/// Whether a server may take a step with an authority, by what is known now. `ignored` are those [`unasked`] that the
/// operator does without.
///
/// # Errors
/// The reason, for the operator.
pub fn allow(
    world: &World,
    server: &str,
    authorities: &LocalAuthorities,
    id: &AuthorityId,
    step: Step,
    ignored: &BTreeSet<TrustDomain>,
) -> Result<Leave, Refused> {
    if step == Step::Activate && authorities.active.id == *id {
        return Ok(Leave::Taken);
    }
    let (slot, signer) = match step {
        Step::Activate => (("prepared", &authorities.prepared), authorities.prepared.as_ref()),
        Step::Taint | Step::Revoke => (("old", &authorities.old), Some(&authorities.active)),
    };
    let (Some(authority), Some(signer)) = (slot.1.as_ref().filter(|authority| authority.id == *id), signer)
    else {
        let has = slot.1.as_ref().map_or("none".to_owned(), |authority| authority.id.to_string());
        return Err(Refused::Changed(format!(
            "the {} authority of the SPIRE server {server} is not {id}, but {has}: look again",
            slot.0
        )));
    };
    if step != Step::Activate
        && let Some(upstream) = &authority.upstream
    {
        return Err(Refused::Never(format!(
            "authority {id} of the SPIRE server {server} was signed by the upstream authority {upstream}: it is tainted \
             and revoked there (spire-server upstreamauthority), not here"
        )));
    }
    if is_taken(world, id, step) {
        return Ok(Leave::Taken);
    }
    nobody_is_in_the_way(world, server, signer, ignored)?;
    match step {
        Step::Activate => is_followed(world, server, authority),
        Step::Taint => Ok(()),
        Step::Revoke => may_revoke(world, server, id),
    }
    .map(|()| Leave::Take)
    .map_err(Refused::NotYet)
}

/// Whether the old authority of a server is tainted, or revoked, already.
fn is_taken(world: &World, id: &AuthorityId, step: Step) -> bool {
    let Some(own) = world.spire.as_ref().and_then(|spire| spire.own.as_deref()) else { return false };
    let published = own.authorities().find(|authority| authority.id() == id);
    match step {
        Step::Activate => false,
        Step::Taint => published.is_none_or(|authority| authority.tainted),
        Step::Revoke => published.is_none(),
    }
}

fn nobody_is_in_the_way(
    world: &World,
    server: &str,
    signer: &LocalAuthority,
    ignored: &BTreeSet<TrustDomain>,
) -> Result<(), Refused> {
    let silent: Vec<String> = unasked(world)
        .into_iter()
        .filter(|(trust_domain, _)| !ignored.contains(trust_domain))
        .map(|(trust_domain, what)| format!("{trust_domain} ({what})"))
        .collect();
    if !silent.is_empty() {
        return Err(Refused::Never(format!(
            "SPIRE federates with {}, of which there is no TrustDomainPeer: nobody can be asked there whether they hold \
             authority {} of the SPIRE server {server}, and would refuse our workloads without it; make a \
             TrustDomainPeer, or name those that are to have no say (--ignore TRUST_DOMAIN)",
            silent.join(", "),
            signer.anchor()
        )));
    }
    let obstacles = obstacles(world, signer);
    if !obstacles.is_empty() {
        let said: Vec<String> = obstacles.iter().map(|o| format!("{}: {}", o.trust_domain, o.why)).collect();
        return Err(Refused::NotYet(format!(
            "peers do not hold authority {} of the SPIRE server {server} and would refuse our workloads: {}; mend that, \
             or suspend a peer that is to have no say (spec.suspend)",
            signer.anchor(),
            said.join("; ")
        )));
    }
    Ok(())
}

/// Trust domains that SPIRE federates with though there is no peer of them, whose holders of our bundle nobody can ask;
/// and by what that is seen. What the SPIRE server was configured with (`federates_with`) shows here once SPIRE has
/// fetched a bundle by it, and not before.
#[must_use]
pub fn unasked(world: &World) -> BTreeMap<TrustDomain, &'static str> {
    let Some(spire) = world.spire.as_deref() else { return BTreeMap::new() };
    let unreadable = spire.unreadable.keys().filter_map(|name| TrustDomain::new(name).ok());
    let bundles = spire.bundles.keys().map(|trust_domain| (trust_domain.clone(), "a bundle is stored"));
    let relationships = spire.relationships.keys().cloned().chain(unreadable);
    let mut unasked: BTreeMap<TrustDomain, &str> = bundles.collect();
    unasked.extend(relationships.map(|trust_domain| (trust_domain, "a federation relationship")));
    unasked.retain(|trust_domain, _| {
        !world.peers.contains_key(trust_domain) && world.own_trust_domain() != Some(trust_domain)
    });
    unasked
}

/// Our own agents must hold an authority before it signs, as those of the peers must: they are given as long to follow,
/// from when our SPIRE was first seen to publish it, and our own must deliver it.
fn is_followed(world: &World, server: &str, authority: &LocalAuthority) -> Result<(), String> {
    let of = format!("authority {} of the SPIRE server {server}", authority.id);
    let delivered = world.identity.as_ref().map(|identity| identity.bundle.authority_ids());
    for id in stands_on(world, authority) {
        let Some(since) = world.published_since.get(&id) else {
            return Err(format!("{id}, which {of} stands on, is not in our own bundle in SPIRE yet"));
        };
        let at = since.saturating_add(world.settings.agent_follow).unwrap_or(Timestamp::MAX);
        if world.moment < at {
            return Err(format!(
                "our own SPIRE agents are given time to hold {id} before it signs: {of} may be activated from {at} on"
            ));
        }
        if delivered.as_ref().is_none_or(|delivered| !delivered.contains(&id)) {
            return Err(format!(
                "our own SPIRE agent does not deliver {id} yet: our workloads would refuse what {of} signs; where that \
                 stays so, see to the SPIRE agent of this node"
            ));
        }
    }
    Ok(())
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

/// Since when authorities of ours are known to be in our bundle in SPIRE, now that it was read.
#[must_use]
pub fn published_since(world: &World) -> BTreeMap<AuthorityId, Timestamp> {
    let own = world.spire.as_ref().and_then(|spire| spire.own.as_deref());
    let since = |id: &AuthorityId| world.published_since.get(id).copied().unwrap_or(world.moment);
    own.into_iter().flat_map(Bundle::authorities).map(|a| (a.id().clone(), since(a.id()))).collect()
}

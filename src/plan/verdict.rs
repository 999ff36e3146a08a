//! `Reciprocal`: whether the peer trusts us as we trust it, and if not, which side and why.
//!
//! True only on the other side's own word, over mTLS. A refused stranger at our listener is evidence, never a
//! verdict; a cut network is never lost trust.

use std::time::Duration;

use jiff::Timestamp;

use super::told;
use crate::api::v1alpha1::conditions::ReciprocalReason as Reason;
use crate::model::condition::Truth;
use crate::model::session::{GoodbyeReason, HeldBundle, LinkState, Refusal, SessionState, TrustReport};
use crate::model::{Peer, TrustDomain, World};
use crate::plan::rotation;

/// How long after a start, or after a peer appeared, nothing is concluded from silence.
pub(super) const SETTLE: Duration = Duration::from_secs(15);

/// What is concluded of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub truth: Truth,
    pub reason: Reason,
    pub message: String,
}

impl Verdict {
    fn new(truth: Truth, reason: Reason, message: String) -> Self {
        Self { truth, reason, message }
    }
}

/// The verdict; `None` while it is too early for one, so that what was concluded before stands.
#[must_use]
pub fn reciprocal(world: &World, peer: &Peer) -> Option<Verdict> {
    let session = world.sessions.get(&peer.trust_domain)?;
    if let LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, message } = &session.link {
        let there = &peer.trust_domain;
        let message = format!(
            "the agent of {there} said that it ended the relationship{}: its workloads refuse ours and it does not \
             follow our rotations, while ours still trust {there}. If that was agreed, end it here too (`entente peer end \
             {there}`, or delete this TrustDomainPeer); if not, ask its operator: it goes on by itself once the \
             TrustDomainPeer there is made again",
            words(message)
        );
        return Some(Verdict::new(Truth::False, Reason::PeerEnded, message));
    }
    if let Some(message) = own_side(world, peer, session) {
        return Some(Verdict::new(Truth::False, Reason::WeDoNotHoldPeerBundle, message));
    }
    match (&session.link, &session.remote) {
        (LinkState::Connected, Some(remote)) => Some(by_report(world, peer, remote)),
        (LinkState::Connected, None) => None,
        (LinkState::Idle, _) if is_settling(world, session) => None,
        (link, _) => Some(by_link(peer, link)),
    }
}

/// When silence starts to mean something.
#[must_use]
pub fn wake_at(world: &World, peer: &Peer) -> Option<Timestamp> {
    let session = world.sessions.get(&peer.trust_domain)?;
    let settled = session.since.saturating_add(SETTLE).ok()?;
    let held = session.remote.as_ref().and_then(|remote| remote.held.as_ref());
    let superseded = held.and_then(|held| world.own_history.superseded_at(&held.digest));
    let stale = superseded.or(world.memory.get(&peer.trust_domain).and_then(|m| m.stale_since));
    let stale = stale.and_then(|since| since.saturating_add(world.settings.poll_interval * 2).ok());
    [Some(settled), stale].into_iter().flatten().filter(|at| *at > world.now).min()
}

/// Whether it is too early after a start, or after the peer appeared, to conclude anything from silence.
#[must_use]
pub fn is_settling(world: &World, session: &SessionState) -> bool {
    session.since.saturating_add(SETTLE).is_ok_and(|until| world.now < until)
}

fn words(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

/// What is missing on our own side: then the peer's word is not needed to know that the trust is one-sided.
fn own_side(world: &World, peer: &Peer, session: &SessionState) -> Option<String> {
    let spire = world.spire.as_ref()?;
    let trust_domain = &peer.trust_domain;
    if !spire.bundles.get(trust_domain).is_some_and(|bundle| bundle.is_usable_at(world.now)) {
        return Some(format!(
            "our SPIRE server holds no usable bundle of {trust_domain}; see the conditions BundleEndpointHealthy and \
             BundleDistributed for why"
        ));
    }
    if !spire.relationships.contains_key(trust_domain) {
        return Some(format!(
            "our SPIRE server has no federation relationship with {trust_domain}, so its bundle is not refreshed; \
             see the condition BundleDistributed"
        ));
    }
    if let LinkState::Unverified { message } = &session.link {
        return Some(format!(
            "the bundle of {trust_domain} that we hold does not verify the certificate its agent presents{}; see \
             the conditions BundleEndpointHealthy and BundleDistributed",
            words(message)
        ));
    }
    let delivered = world.identity.as_ref().is_some_and(|i| i.federated.contains_key(trust_domain));
    (!delivered && !session.is_connected()).then(|| {
        format!(
            "the Workload API does not deliver the bundle of {trust_domain} to the agent: its own registration does \
             not federate with {trust_domain}; see the condition BundleDistributed"
        )
    })
}

fn by_report(world: &World, peer: &Peer, remote: &TrustReport) -> Verdict {
    let trust_domain = &peer.trust_domain;
    if !remote.relationship {
        let message = format!(
            "the agent of {trust_domain} says that its SPIRE has no federation relationship with us: it will not \
             follow our next rotation; its operator must look at BundleDistributed of the TrustDomainPeer there{}",
            told::cause(remote)
        );
        return Verdict::new(Truth::False, Reason::PeerHasNoRelationship, message);
    }
    let Some(held) = &remote.held else {
        let message = format!(
            "the agent of {trust_domain} says that its SPIRE holds no bundle of ours; its operator must look at \
             BundleDistributed of the TrustDomainPeer there{}",
            told::cause(remote)
        );
        return Verdict::new(Truth::False, Reason::PeerHoldsStaleBundle, message);
    };
    if remote.delivered.is_none() {
        let message = format!(
            "the agent of {trust_domain} says that our bundle does not reach workloads there; its operator must look \
             at BundleDistributed of the TrustDomainPeer there{}",
            told::cause(remote)
        );
        return Verdict::new(Truth::False, Reason::PeerRefusesUs, message);
    }
    if told::is_contested(remote) {
        let message = format!(
            "the agent of {trust_domain} says that someone changes registrations there back: some workloads do not \
             get our bundle, or get it though they must not; its operator must look at BundleDistributed of the TrustDomainPeer there{}",
            told::cause(remote)
        );
        return Verdict::new(Truth::False, Reason::PeerRefusesUs, message);
    }
    by_bundle(world, trust_domain, remote, held)
}

/// Whether the bundle of ours that the peer holds is one that it can go on with.
fn by_bundle(world: &World, trust_domain: &TrustDomain, remote: &TrustReport, held: &HeldBundle) -> Verdict {
    let ours = world.identity.as_ref().map(|identity| identity.bundle.digest());
    let lacks_signing = rotation::signing_without(world, &held.authority_ids).into_iter().next();
    // Only we can say which of two bundles of ours is older. After a restart, since when we know that it is not ours.
    let superseded = world.own_history.superseded_at(&held.digest);
    let noticed = world.memory.get(trust_domain).and_then(|memory| memory.stale_since);
    let stale_since = superseded.or(noticed);
    let patience = world.settings.poll_interval * 2;
    let overdue = stale_since
        .filter(|since| since.saturating_add(patience).is_ok_and(|end| end <= world.now))
        .filter(|_| ours != Some(held.digest));
    match (lacks_signing, overdue) {
        (Some(authority), _) => Verdict::new(
            Truth::False,
            Reason::PeerHoldsStaleBundle,
            format!(
                "{trust_domain} holds a bundle of ours ({}) without the authority that signs our SVIDs now \
                 ({authority}): it refuses our workloads; its bundle endpoint client must refresh",
                held.digest
            ),
        ),
        (None, Some(since)) => Verdict::new(
            Truth::False,
            Reason::PeerHoldsStaleBundle,
            format!(
                "{trust_domain} has held a superseded bundle of ours ({}) since {since}, for longer than two poll \
                 intervals; its bundle endpoint client must refresh",
                held.digest
            ),
        ),
        (None, None) => Verdict::new(
            Truth::True,
            Reason::Confirmed,
            match told::suspects_ours(remote) {
                None => format!("{trust_domain} confirms that it holds our bundle, and we hold its"),
                Some(words) => format!(
                    "{trust_domain} confirms that it holds our bundle, and we hold its; but its operator is told to \
                     ask us about it ({words})"
                ),
            },
        ),
    }
}

fn by_link(peer: &Peer, link: &LinkState) -> Verdict {
    let trust_domain = &peer.trust_domain;
    match link {
        LinkState::Refused { by: Refusal::UnknownAuthority, message } => Verdict::new(
            Truth::False,
            Reason::PeerHoldsStaleBundle,
            format!(
                "the agent of {trust_domain} refused our certificate as signed by an unknown authority{}: the bundle \
                 of ours that it holds is not the one that we use; its operator must refresh it",
                words(message)
            ),
        ),
        LinkState::Refused { by: Refusal::Expired, message } => Verdict::new(
            Truth::False,
            Reason::PeerRefusesUs,
            format!(
                "the agent of {trust_domain} refused our certificate as expired{}: look at the clocks of both sides, \
                 and at the agent's own SVID",
                words(message)
            ),
        ),
        LinkState::Refused { by: Refusal::NotAccepted, message } => Verdict::new(
            Truth::False,
            Reason::PeerRefusesUs,
            format!(
                "the agent of {trust_domain} refused us{}: it has no TrustDomainPeer for us, holds no bundle of ours, \
                 or does not list our SPIFFE ID in agent.spiffeIDs",
                words(message)
            ),
        ),
        LinkState::Parted { reason: GoodbyeReason::NotTrusted, message } => Verdict::new(
            Truth::False,
            Reason::PeerRefusesUs,
            format!("the agent of {trust_domain} no longer accepts us{}", words(message)),
        ),
        LinkState::WrongPeerId { message } => Verdict::new(
            Truth::Unknown,
            Reason::AwaitingPeer,
            format!(
                "who answers for {trust_domain} is not its agent{}: it is not listed in spec.agent.spiffeIDs; correct \
                 the list, or find out who answers there",
                words(message)
            ),
        ),
        LinkState::Unreachable { message } => Verdict::new(
            Truth::Unknown,
            Reason::PeerUnreachable,
            format!(
                "the agent of {trust_domain} cannot be reached{}; what was agreed before stays",
                words(message)
            ),
        ),
        LinkState::Parted { reason: GoodbyeReason::Suspended, message } => Verdict::new(
            Truth::Unknown,
            Reason::AwaitingPeer,
            format!("the agent of {trust_domain} suspended the exchange{}", words(message)),
        ),
        LinkState::Parted { message, .. } => Verdict::new(
            Truth::Unknown,
            Reason::PeerUnreachable,
            format!("the agent of {trust_domain} left and has not come back{}", words(message)),
        ),
        LinkState::Idle | LinkState::Connected | LinkState::Unverified { .. } => Verdict::new(
            Truth::Unknown,
            Reason::AwaitingPeer,
            format!(
                "nothing has been heard from the agent of {trust_domain}; it needs a TrustDomainPeer for us, and one \
                 side needs an address of the other"
            ),
        ),
    }
}

//! The status of a TrustDomainPeer: ten conditions, each with what the operator is to do.

use serde_json::Value;

use super::peer_bundle::{distributed, endpoint_healthy};
use super::{keep, merge, peer_details, stored_condition, written};
use crate::api::v1alpha1::conditions::{
    ConditionType, ConnectedReason, PeerAcceptedReason, ReadyReason, ReciprocalReason, RotationSafeReason,
    ServicesSyncedReason,
};
use crate::federation::catalogue::MALFORMED;
use crate::model::condition::{Condition, Truth};
use crate::model::object::{Kind, ObjectKey};
use crate::model::peer::OnDisconnect;
use crate::model::service::Outcome;
use crate::model::session::{LinkPlan, LinkState, Refusal, SessionState, Trouble};
use crate::model::{Peer, World};
use crate::plan::services::ServicesPlan;
use crate::plan::{StatusWrite, ending, imports, links, mesh, reach, rotation, told, verdict};

/// How many of the services that were refused are named.
const REFUSALS_NAMED: usize = 3;

/// Everything that the status of a peer is computed from.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub world: &'a World,
    pub peer: &'a Peer,
    pub link: Option<&'a LinkPlan>,
    pub services: &'a ServicesPlan,
    /// Why the relationship's object could not be made ours.
    pub blocked: Option<&'a str>,
}

/// The status to write, or `None` where it stands there already.
#[must_use]
pub fn status(subject: Subject<'_>) -> Option<StatusWrite> {
    let Subject { world, peer, .. } = subject;
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object);
    let stored = world.statuses.get(&key).map(std::convert::AsRef::as_ref);
    let conditions = conditions(subject, stored);
    let status =
        merge(stored, peer.generation, &conditions, peer_details::details(subject, stored), world.now)?;
    Some(written(&peer.uid, stored, status))
}

/// What the peer is told to be wrong on our side.
#[must_use]
pub fn troubles(subject: Subject<'_>) -> Vec<Trouble> {
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &subject.peer.object);
    let stored = subject.world.statuses.get(&key).map(std::convert::AsRef::as_ref);
    told::troubles(&[endpoint_healthy(subject, stored), distributed(subject)])
}

fn conditions(subject: Subject<'_>, stored: Option<&Value>) -> Vec<Condition> {
    let mut conditions = vec![
        accepted(subject),
        endpoint_healthy(subject, stored),
        distributed(subject),
        connected(subject, stored),
        reciprocal(subject, stored),
        rotation_safe(subject, stored),
        services_synced(subject, stored),
    ];
    let mesh = mesh::condition(subject.world, &subject.services.mesh, subject.peer, stored);
    let (breaks, tells) =
        mesh.into_iter().partition::<Vec<_>, _>(|_| subject.services.mesh.breaks(&subject.peer.trust_domain));
    conditions.extend(breaks);
    let ready = ready(subject, &conditions);
    // What does not keep services from working has no part in Ready.
    conditions.extend(tells);
    conditions.extend(reach::condition(subject.world, &subject.services.carriers, subject.peer, stored));
    conditions.push(ready);
    conditions
}

fn accepted(Subject { world, peer, .. }: Subject<'_>) -> Condition {
    if let Some(Err(problem)) = world.bootstraps.get(&peer.trust_domain) {
        return Condition::new(PeerAcceptedReason::BootstrapUnavailable, false, problem.clone());
    }
    let message = "every field is understood and in use".to_owned();
    Condition::new(PeerAcceptedReason::Accepted, true, message)
}

pub(super) fn session<'a>(subject: Subject<'a>) -> Option<&'a SessionState> {
    subject.world.sessions.get(&subject.peer.trust_domain)
}

fn connected(subject: Subject<'_>, stored: Option<&Value>) -> Condition {
    let Subject { world, peer, .. } = subject;
    let trust_domain = &peer.trust_domain;
    if let Some(stage) = ending::stage(world, peer) {
        let message = ending::message(world, peer, &stage);
        return Condition::new(ConnectedReason::Ending, Truth::False, message);
    }
    if peer.suspend {
        let message = "spec.suspend is set; unset it to go on".to_owned();
        return Condition::new(ConnectedReason::Suspended, Truth::False, message);
    }
    if peer.withdraw {
        let message = "spec.withdraw is set; unset it to go on".to_owned();
        return Condition::new(ConnectedReason::Suspended, Truth::False, message);
    }
    let awaiting = ConnectedReason::AwaitingPeer;
    let Some(session) = session(subject) else {
        return keep(stored, awaiting, "no exchange was tried yet");
    };
    match &session.link {
        LinkState::Connected => match session.skew {
            None => Condition::new(
                ConnectedReason::Connected,
                Truth::True,
                format!("exchanging with the agent of {trust_domain}"),
            ),
            Some(skew) => {
                Condition::new(ConnectedReason::ClocksDiffer, Truth::True, told::clocks(trust_domain, skew))
            }
        },
        LinkState::Idle if verdict::is_settling(world, session) => {
            keep(stored, awaiting, "waiting for the first attempt")
        }
        LinkState::Idle => Condition::new(
            awaiting,
            Truth::Unknown,
            format!(
                "{trust_domain} has not dialled us, and we have no address of it in spec.agent.addresses"
            ),
        ),
        LinkState::Refused { by, message } => {
            let reason = match by {
                Refusal::UnknownAuthority => ConnectedReason::RefusedUnknownAuthority,
                Refusal::NotAccepted => ConnectedReason::RefusedNotAccepted,
                Refusal::Expired => ConnectedReason::RefusedExpired,
            };
            Condition::new(reason, Truth::False, message.clone())
        }
        LinkState::Unverified { message } => {
            Condition::new(ConnectedReason::PeerUnverified, Truth::False, message.clone())
        }
        LinkState::WrongPeerId { message } => {
            Condition::new(ConnectedReason::WrongPeerId, Truth::False, message.clone())
        }
        LinkState::Unreachable { message } => {
            Condition::new(ConnectedReason::Unreachable, Truth::False, message.clone())
        }
        LinkState::Parted { reason: why, message } => Condition::new(
            ConnectedReason::PeerParted,
            Truth::False,
            format!("the peer said goodbye ({why:?}) {message}"),
        ),
    }
}

fn reciprocal(subject: Subject<'_>, stored: Option<&Value>) -> Condition {
    // What a peer said of its end stands until it comes back, over a restart of this agent too.
    let ended = stored_condition(stored, ReciprocalReason::CONDITION)
        .filter(|before| before.reason == ReciprocalReason::PeerEnded.as_str());
    let is_back = session(subject).is_some_and(SessionState::is_connected);
    let verdict = verdict::reciprocal(subject.world, subject.peer);
    let tells_less = verdict.as_ref().is_none_or(|verdict| {
        use ReciprocalReason::{AwaitingPeer, PeerRefusesUs, PeerUnreachable};
        matches!(verdict.reason, AwaitingPeer | PeerRefusesUs | PeerUnreachable)
    });
    if let (Some(ended), true) = (ended, tells_less && !is_back) {
        return ended;
    }
    match verdict {
        Some(verdict) => Condition::new(verdict.reason, verdict.truth, verdict.message),
        None => keep(stored, ReciprocalReason::AwaitingPeer, "nothing has been heard from the peer yet"),
    }
}

/// Whether it is too early after a start to say anything from not having heard.
pub(super) fn is_settling(subject: Subject<'_>) -> bool {
    let unheard = |session: &SessionState| {
        matches!(session.link, LinkState::Idle | LinkState::Connected) && session.remote.is_none()
    };
    let early = |session: &SessionState| unheard(session) && verdict::is_settling(subject.world, session);
    session(subject).is_none_or(early)
}

fn rotation_safe(subject: Subject<'_>, stored: Option<&Value>) -> Condition {
    let trust_domain = &subject.peer.trust_domain;
    if let Some(judged) = rotation::judge(subject.world, subject.peer) {
        return Condition::new(judged.reason, judged.truth, judged.message);
    }
    let message = format!("{trust_domain} has not said which of our authorities it holds");
    if is_settling(subject) {
        return keep(stored, RotationSafeReason::Unknown, &message);
    }
    if let Some(judged) = rotation::judge_unheard(subject.world, subject.peer) {
        return Condition::new(judged.reason, judged.truth, judged.message);
    }
    Condition::new(RotationSafeReason::Unknown, Truth::Unknown, message)
}

fn services_synced(subject: Subject<'_>, stored: Option<&Value>) -> Condition {
    let trust_domain = &subject.peer.trust_domain;
    let connected = session(subject).filter(|session| session.is_connected());
    let (Some(session), Some(link)) = (connected, subject.link) else {
        return services_of_one_away(subject, stored);
    };
    if session.catalogue.is_none() {
        let message = format!("the catalogue of {trust_domain} has not arrived yet");
        return keep(stored, ServicesSyncedReason::AwaitingPeer, &message);
    }
    if !links::is_acknowledged(session, link) {
        // A change is on its way, and in sync again within moments.
        let before = stored_condition(stored, ServicesSyncedReason::CONDITION);
        let was_synced = before.filter(|before| before.status == Truth::True);
        if let (Some(synced), false) = (was_synced, session.answer_overdue) {
            return synced;
        }
        let truth = if session.answer_overdue { Truth::False } else { Truth::Unknown };
        let message = format!("{trust_domain} has not answered our catalogue yet");
        return Condition::new(ServicesSyncedReason::AwaitingAcknowledgement, truth, message);
    }
    let (_, imported, refused) = counts(subject);
    let which = refusals(subject);
    let message = format!("{imported} imported, {refused} refused{which}, and our catalogue is answered");
    let reason = if refused == 0 { ServicesSyncedReason::InSync } else { ServicesSyncedReason::SomeRefused };
    Condition::new(reason, true, message)
}

/// What becomes of the services of a peer whose agent is away. Clients reach them by the peer's gateways, which the agents
/// have no part in: they may work as ever.
fn services_of_one_away(subject: Subject<'_>, stored: Option<&Value>) -> Condition {
    let Subject { world, peer, .. } = subject;
    if is_settling(subject) {
        let awaiting = ServicesSyncedReason::AwaitingPeer;
        return keep(stored, awaiting, "no exchange with the peer");
    }
    let td = &peer.trust_domain;
    let (truth, reason, becomes) = match (peer.on_disconnect, imports::withdrawal(world, peer)) {
        (OnDisconnect::Withdraw { .. }, Some(due)) if world.now > due.at => (
            Truth::False,
            ServicesSyncedReason::Withdrawn,
            "for longer than spec.onDisconnect.after: its services were withdrawn, until it is back".to_owned(),
        ),
        (OnDisconnect::Withdraw { after }, _) => (
            Truth::Unknown,
            ServicesSyncedReason::PeerAway,
            format!(
                "(see Connected): its services stay as they were last known, and are withdrawn once it has been away for \
                 {} s",
                after.as_secs()
            ),
        ),
        (OnDisconnect::Keep, _) => (
            Truth::Unknown,
            ServicesSyncedReason::PeerAway,
            "(see Connected): its services stay as they were last known, and can be called as long as its gateways \
             answer (see GatewaysReachable)"
                .to_owned(),
        ),
    };
    Condition::new(reason, truth, format!("the agent of {td} is away {becomes}"))
}

fn ready(subject: Subject<'_>, others: &[Condition]) -> Condition {
    let Subject { world, peer, .. } = subject;
    if let Some(stage) = ending::stage(world, peer) {
        let reason = if stage.is_held_back() { ReadyReason::EndingHeldBack } else { ReadyReason::Ending };
        let message = ending::message(world, peer, &stage);
        return Condition::new(reason, false, message);
    }
    if peer.suspend {
        let message = "spec.suspend is set: nothing is changed, and nothing is exchanged".to_owned();
        return Condition::new(ReadyReason::Suspended, false, message);
    }
    let worst = others
        .iter()
        .find(|c| c.status == Truth::False)
        .or_else(|| others.iter().find(|c| c.status == Truth::Unknown));
    let differs = ConnectedReason::ClocksDiffer.as_str();
    let worst = worst.or_else(|| others.iter().find(|c| c.reason == differs));
    match worst {
        None => Condition::new(ReadyReason::Ready, true, "every condition is True".to_owned()),
        Some(c) => {
            let reason = match c.kind {
                ConditionType::Accepted => ReadyReason::NotAccepted,
                ConditionType::BundleEndpointHealthy => ReadyReason::BundleEndpointUnhealthy,
                ConditionType::BundleDistributed => ReadyReason::BundleNotDistributed,
                ConditionType::Connected if c.reason == differs => ReadyReason::ClocksDiffer,
                ConditionType::Connected => ReadyReason::NotConnected,
                ConditionType::Reciprocal => ReadyReason::NotReciprocal,
                ConditionType::RotationSafe => ReadyReason::NotRotationSafe,
                ConditionType::MeshReady => ReadyReason::MeshNotReady,
                _ => ReadyReason::ServicesNotSynced,
            };
            let status = if c.status == Truth::True { Truth::False } else { c.status };
            Condition::new(reason, status, format!("{}: {}", c.kind, c.message))
        }
    }
}

/// The first of the services that were refused, and why, in parentheses; empty where none was.
fn refusals(subject: Subject<'_>) -> String {
    let outcomes = subject.services.outcomes.get(&subject.peer.trust_domain);
    let outcomes = outcomes.into_iter().flat_map(|outcomes| outcomes.iter());
    let refused = outcomes.filter_map(|(name, outcome)| match outcome {
        Outcome::Imported => None,
        Outcome::Refused { reason, .. } => Some(format!("{name}: {reason}")),
    });
    let malformed = malformed(subject).iter().map(|(label, _)| format!("{label:?}: {MALFORMED}"));
    let mut all = malformed.chain(refused);
    let named: Vec<String> = all.by_ref().take(REFUSALS_NAMED).collect();
    let more = if all.next().is_some() { ", ..." } else { "" };
    if named.is_empty() { String::new() } else { format!(" ({}{more})", named.join(", ")) }
}

/// What of the peer's catalogue could not be read, and why.
fn malformed(subject: Subject<'_>) -> &[(String, String)] {
    let catalogue = session(subject).and_then(|session| session.catalogue.as_ref());
    catalogue.map_or(&[], |catalogue| catalogue.malformed.as_slice())
}

/// How many services are exported to the peer, and how many of its own are imported and refused.
pub(super) fn counts(subject: Subject<'_>) -> (usize, usize, usize) {
    let Subject { services, peer, .. } = subject;
    let exported = services.catalogues.get(&peer.trust_domain).map_or(0, std::collections::BTreeMap::len);
    let outcomes = services.outcomes.get(&peer.trust_domain);
    let imported = outcomes.map_or(0, |o| o.values().filter(|v| **v == Outcome::Imported).count());
    let refused = outcomes.map_or(0, |outcomes| outcomes.len()) - imported;
    (exported, imported, refused + malformed(subject).len())
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;

//! The status of a TrustDomainPeer: eight conditions, each with what the operator is to do.

use serde_json::Value;

use super::{merge, peer_details, stored_condition, written};
use crate::api::v1alpha1::conditions::{
    BundleDistributedReason, BundleEndpointReason, ConnectedReason, PeerAcceptedReason, ReadyReason,
    ReciprocalReason, RotationSafeReason, ServicesSyncedReason,
};
use crate::model::bundle::Bundle;
use crate::model::condition::{Condition, Truth};
use crate::model::object::{Kind, ObjectKey};
use crate::model::peer::Bootstrap;
use crate::model::service::Outcome;
use crate::model::session::{LinkPlan, LinkState, Refusal, SessionState, Trouble};
use crate::model::world::Harm;
use crate::model::{Peer, World};
use crate::plan::services::ServicesPlan;
use crate::plan::{
    StatusWrite, alarms, ending, links, poison, registrations, relationship, rotation, told, verdict,
};

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
    conditions.push(ready(subject, &conditions));
    conditions
}

fn accepted(Subject { world, peer, .. }: Subject<'_>) -> Condition {
    if let Some(Err(problem)) = world.bootstraps.get(&peer.trust_domain) {
        return Condition::new(
            "Accepted",
            false,
            PeerAcceptedReason::BootstrapUnavailable.as_str(),
            problem.clone(),
        );
    }
    let message = if peer.imports.as_local.is_empty() {
        "every field is understood and in use"
    } else {
        "in use, but spec.imports.asLocal is not served by this version: services have their federated names alone"
    };
    Condition::new("Accepted", true, PeerAcceptedReason::Accepted.as_str(), message.to_owned())
}

fn endpoint_healthy(Subject { world, peer, .. }: Subject<'_>, stored: Option<&Value>) -> Condition {
    const KIND: &str = "BundleEndpointHealthy";
    let url = &peer.endpoint.url;
    let awaiting = BundleEndpointReason::AwaitingFirstFetch.as_str();
    let unasked = format!("the bundle endpoint {url} has not been asked yet");
    let Some(state) = world.endpoints.get(&peer.trust_domain) else {
        return keep(stored, KIND, Truth::Unknown, awaiting, &unasked);
    };
    let alarms = alarms::alarms(world, peer);
    if let Some(worst) = alarms.first() {
        return Condition::new(KIND, false, worst.reason.as_str(), alarms::in_words(&alarms));
    }
    if state.latest.is_none() {
        return keep(stored, KIND, Truth::Unknown, awaiting, &unasked);
    }
    Condition::new(
        KIND,
        true,
        BundleEndpointReason::Healthy.as_str(),
        format!("the bundle endpoint {url} serves a good bundle"),
    )
}

fn distributed(subject: Subject<'_>) -> Condition {
    let (truth, reason, message) = distribution(subject);
    Condition::new("BundleDistributed", truth, reason, message)
}

/// The path of the bundle, link by link; the first one that is missing is the reason.
fn distribution(Subject { world, peer, blocked, .. }: Subject<'_>) -> (Truth, &'static str, String) {
    let trust_domain = &peer.trust_domain;
    let Some(spire) = &world.spire else {
        let message = "SPIRE's server API has not been read yet".to_owned();
        return (Truth::Unknown, BundleDistributedReason::SpireUnavailable.as_str(), message);
    };
    if let Some(failure) = &spire.failure {
        return (Truth::Unknown, BundleDistributedReason::SpireUnavailable.as_str(), failure.clone());
    }
    if let Some(stage) = ending::stage(world, peer) {
        let message = ending::message(world, peer, &stage);
        return (Truth::False, BundleDistributedReason::Ending.as_str(), message);
    }
    if let Some(blocked) = blocked {
        return (Truth::False, BundleDistributedReason::ObjectNotOurs.as_str(), blocked.to_owned());
    }
    let remembered = world.memory.get(trust_domain);
    if peer.withdraw {
        let message = format!(
            "spec.withdraw is set: no registration federates with {trust_domain}, and what is imported from it does not \
             work, until it is unset"
        );
        return (Truth::False, BundleDistributedReason::Withdrawn.as_str(), message);
    }
    if let Some((memory, poisoned)) = remembered.and_then(|m| m.poisoned.as_ref().map(|p| (m, p))) {
        let (reason, risk) = match poisoned.harm {
            Harm::NoUsableAuthority => (
                BundleDistributedReason::SuspendedUnusableBundle,
                "it would make every local workload that federates refuse its own new SVID",
            ),
            Harm::SharedAuthority { .. } => {
                (BundleDistributedReason::SuspendedSharedAuthority, "who has its key could speak for both")
            }
        };
        let message = format!(
            "federatesWith {trust_domain} is suspended since {}: {}; {risk}. It comes back after {} good fetches in a row",
            poisoned.since,
            poisoned.cause,
            poison::good_fetches_needed(world, memory)
        );
        return (Truth::False, reason.as_str(), message);
    }
    if relationship::freshest(world, peer).is_none() && !spire.bundles.contains_key(trust_domain) {
        let message = format!(
            "no bundle of {trust_domain} is known: its endpoint gave none, and there is no bootstrap bundle that is \
             good; see BundleEndpointHealthy"
        );
        return (Truth::False, BundleDistributedReason::AwaitingBundle.as_str(), message);
    }
    if !spire.relationships.contains_key(trust_domain) {
        let message = format!(
            "SPIRE has no federation relationship with {trust_domain}: {}",
            relationship::why_there_is_none(world, peer)
        );
        return (Truth::False, BundleDistributedReason::AwaitingRelationship.as_str(), message);
    }
    let Some(bundle) = spire.bundles.get(trust_domain) else {
        let message = format!("SPIRE has the relationship with {trust_domain}, but holds no bundle of it");
        return (Truth::False, BundleDistributedReason::AwaitingSpire.as_str(), message);
    };
    let reverted = registrations::reverted(world, peer);
    if !reverted.is_empty() {
        let message = format!(
            "someone took {trust_domain} out of federatesWith of {}, where the agent had put it; it does not fight: \
             put it there at the source of these objects, or stop selecting them",
            reverted.join(", ")
        );
        return (Truth::False, BundleDistributedReason::RegistrationContested.as_str(), message);
    }
    delivered(world, peer, bundle)
}

fn delivered(world: &World, peer: &Peer, bundle: &Bundle) -> (Truth, &'static str, String) {
    let trust_domain = &peer.trust_domain;
    if relationship::ahead_of_spire(world, peer).is_some() {
        let message = format!(
            "the endpoint of {trust_domain} serves another bundle than SPIRE holds; SPIRE was asked to refresh"
        );
        return (Truth::False, BundleDistributedReason::StaleInSpire.as_str(), message);
    }
    if let Some(failure) = told::workload_api_is_gone(world) {
        let message = format!(
            "the Workload API has given the agent nothing since {}: {}; check the SPIRE agent, and the agent's own \
             registration (label entente.dev/agent: \"true\")",
            failure.since, failure.message
        );
        return (Truth::False, BundleDistributedReason::WorkloadApiUnavailable.as_str(), message);
    }
    let received = world.identity.as_ref().and_then(|identity| identity.federated.get(trust_domain));
    let Some(received) = received else {
        let message = format!(
            "the Workload API does not deliver the bundle of {trust_domain} to the agent: its own registration \
             (label entente.dev/agent: \"true\") must federate with {trust_domain}; SPIRE's agent takes some seconds"
        );
        return (Truth::False, BundleDistributedReason::AwaitingWorkloadApi.as_str(), message);
    };
    if received.digest() != bundle.digest() {
        let message = format!("SPIRE's agent has not delivered the newest bundle of {trust_domain} yet");
        return (Truth::False, BundleDistributedReason::StaleInSpire.as_str(), message);
    }
    let unselected = registrations::unselected(world, peer);
    let also = if unselected.is_empty() {
        String::new()
    } else {
        format!("; {} name it without being selected, and are left alone", unselected.join(", "))
    };
    let message = format!("SPIRE and the Workload API have the bundle {}{also}", bundle.digest());
    (Truth::True, BundleDistributedReason::Distributed.as_str(), message)
}

pub(super) fn session<'a>(subject: Subject<'a>) -> Option<&'a SessionState> {
    subject.world.sessions.get(&subject.peer.trust_domain)
}

fn connected(subject: Subject<'_>, stored: Option<&Value>) -> Condition {
    const KIND: &str = "Connected";
    let Subject { world, peer, .. } = subject;
    let trust_domain = &peer.trust_domain;
    let because = |truth: Truth, reason, message: String| Condition::new(KIND, truth, reason, message);
    if let Some(stage) = ending::stage(world, peer) {
        let message = ending::message(world, peer, &stage);
        return because(Truth::False, ConnectedReason::Ending.as_str(), message);
    }
    if peer.suspend {
        let message = "spec.suspend is set; unset it to go on".to_owned();
        return because(Truth::False, ConnectedReason::Suspended.as_str(), message);
    }
    if peer.withdraw {
        let message = "spec.withdraw is set; unset it to go on".to_owned();
        return because(Truth::False, ConnectedReason::Suspended.as_str(), message);
    }
    let awaiting = ConnectedReason::AwaitingPeer.as_str();
    let Some(session) = session(subject) else {
        return keep(stored, KIND, Truth::Unknown, awaiting, "no exchange was tried yet");
    };
    match &session.link {
        LinkState::Connected => match session.skew {
            None => because(
                Truth::True,
                ConnectedReason::Connected.as_str(),
                format!("exchanging with the agent of {trust_domain}"),
            ),
            Some(skew) => {
                because(Truth::True, ConnectedReason::ClocksDiffer.as_str(), told::clocks(trust_domain, skew))
            }
        },
        LinkState::Idle if verdict::is_settling(world, session) => {
            keep(stored, KIND, Truth::Unknown, awaiting, "waiting for the first attempt")
        }
        LinkState::Idle => because(
            Truth::Unknown,
            awaiting,
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
            because(Truth::False, reason.as_str(), message.clone())
        }
        LinkState::Unverified { message } => {
            because(Truth::False, ConnectedReason::PeerUnverified.as_str(), message.clone())
        }
        LinkState::WrongPeerId { message } => {
            because(Truth::False, ConnectedReason::WrongPeerId.as_str(), message.clone())
        }
        LinkState::Unreachable { message } => {
            because(Truth::False, ConnectedReason::Unreachable.as_str(), message.clone())
        }
        LinkState::Parted { reason: why, message } => because(
            Truth::False,
            ConnectedReason::PeerParted.as_str(),
            format!("the peer said goodbye ({why:?}) {message}"),
        ),
    }
}

/// What stands in the store, or this where nothing does: after a restart, nothing is said from not knowing yet.
fn keep(
    stored: Option<&Value>,
    kind: &'static str,
    truth: Truth,
    reason: &'static str,
    message: &str,
) -> Condition {
    let known = stored_condition(stored, kind);
    let Some((truth, stored_reason, message)) = known else {
        return Condition::new(kind, truth, reason, message.to_owned());
    };
    Condition::new(kind, truth, stored_reason, message)
}

fn reciprocal(subject: Subject<'_>, stored: Option<&Value>) -> Condition {
    const KIND: &str = "Reciprocal";
    // What a peer said of its end stands until it comes back, over a restart of this agent too.
    let ended =
        stored_condition(stored, KIND).filter(|(_, why, _)| why == ReciprocalReason::PeerEnded.as_str());
    let is_back = session(subject).is_some_and(SessionState::is_connected);
    let verdict = verdict::reciprocal(subject.world, subject.peer);
    let tells_less = verdict.as_ref().is_none_or(|verdict| {
        use ReciprocalReason::{AwaitingPeer, PeerRefusesUs, PeerUnreachable};
        matches!(verdict.reason, AwaitingPeer | PeerRefusesUs | PeerUnreachable)
    });
    if let (Some((truth, reason, message)), true) = (ended, tells_less && !is_back) {
        return Condition::new(KIND, truth, reason, message);
    }
    match verdict {
        Some(verdict) => Condition::new(KIND, verdict.truth, verdict.reason.as_str(), verdict.message),
        None => keep(
            stored,
            KIND,
            Truth::Unknown,
            ReciprocalReason::AwaitingPeer.as_str(),
            "nothing has been heard from the peer yet",
        ),
    }
}

/// Whether it is too early after a start to say anything from not having heard.
fn is_settling(subject: Subject<'_>) -> bool {
    let unheard = |session: &SessionState| {
        matches!(session.link, LinkState::Idle | LinkState::Connected) && session.remote.is_none()
    };
    let early = |session: &SessionState| unheard(session) && verdict::is_settling(subject.world, session);
    session(subject).is_none_or(early)
}

fn rotation_safe(subject: Subject<'_>, stored: Option<&Value>) -> Condition {
    const KIND: &str = "RotationSafe";
    let trust_domain = &subject.peer.trust_domain;
    if let Some(judged) = rotation::judge(subject.world, subject.peer) {
        return Condition::new(KIND, judged.truth, judged.reason.as_str(), judged.message);
    }
    let message = format!("{trust_domain} has not said which of our authorities it holds");
    if is_settling(subject) {
        return keep(stored, KIND, Truth::Unknown, RotationSafeReason::Unknown.as_str(), &message);
    }
    Condition::new(KIND, Truth::Unknown, RotationSafeReason::Unknown.as_str(), message)
}

fn services_synced(subject: Subject<'_>, stored: Option<&Value>) -> Condition {
    const KIND: &str = "ServicesSynced";
    let trust_domain = &subject.peer.trust_domain;
    let connected = session(subject).filter(|session| session.is_connected());
    let (Some(session), Some(link)) = (connected, subject.link) else {
        return keep(
            stored,
            KIND,
            Truth::Unknown,
            ServicesSyncedReason::AwaitingPeer.as_str(),
            "no exchange with the peer",
        );
    };
    if session.catalogue.is_none() {
        let message = format!("the catalogue of {trust_domain} has not arrived yet");
        return keep(stored, KIND, Truth::Unknown, ServicesSyncedReason::AwaitingPeer.as_str(), &message);
    }
    if !links::is_acknowledged(session, link) {
        let message = format!("{trust_domain} has not answered our catalogue yet");
        return Condition::new(KIND, false, ServicesSyncedReason::AwaitingAcknowledgement.as_str(), message);
    }
    let (_, imported, refused) = counts(subject);
    let message = format!("{imported} imported, {refused} refused, and our catalogue is answered");
    Condition::new(KIND, true, ServicesSyncedReason::InSync.as_str(), message)
}

fn ready(subject: Subject<'_>, others: &[Condition]) -> Condition {
    const KIND: &str = "Ready";
    let Subject { world, peer, .. } = subject;
    if let Some(stage) = ending::stage(world, peer) {
        let reason = if stage.is_held_back() { ReadyReason::EndingHeldBack } else { ReadyReason::Ending };
        let message = ending::message(world, peer, &stage);
        return Condition::new(KIND, false, reason.as_str(), message);
    }
    if peer.suspend {
        let message = "spec.suspend is set: nothing is changed, and nothing is exchanged".to_owned();
        return Condition::new(KIND, false, ReadyReason::Suspended.as_str(), message);
    }
    let worst = others
        .iter()
        .find(|c| c.status == Truth::False)
        .or_else(|| others.iter().find(|c| c.status == Truth::Unknown));
    let differs = ConnectedReason::ClocksDiffer.as_str();
    let worst = worst.or_else(|| others.iter().find(|c| c.reason == differs));
    match worst {
        None => Condition::new(KIND, true, ReadyReason::Ready.as_str(), "every condition is True".to_owned()),
        Some(c) => {
            let reason = match c.kind {
                "Accepted" => ReadyReason::NotAccepted,
                "BundleEndpointHealthy" => ReadyReason::BundleEndpointUnhealthy,
                "BundleDistributed" => ReadyReason::BundleNotDistributed,
                "Connected" if c.reason == differs => ReadyReason::ClocksDiffer,
                "Connected" => ReadyReason::NotConnected,
                "Reciprocal" => ReadyReason::NotReciprocal,
                "RotationSafe" => ReadyReason::NotRotationSafe,
                _ => ReadyReason::ServicesNotSynced,
            };
            let status = if c.status == Truth::True { Truth::False } else { c.status };
            Condition::new(KIND, status, reason.as_str(), format!("{}: {}", c.kind, c.message))
        }
    }
}

pub(super) fn counts(Subject { services, peer, .. }: Subject<'_>) -> (usize, usize, usize) {
    let exported = services.catalogues.get(&peer.trust_domain).map_or(0, std::collections::BTreeMap::len);
    let outcomes = services.outcomes.get(&peer.trust_domain);
    let imported = outcomes.map_or(0, |o| o.values().filter(|v| **v == Outcome::Imported).count());
    (exported, imported, outcomes.map_or(0, std::collections::BTreeMap::len) - imported)
}

/// Whether the bootstrap bundle is named in another object, for the index to read.
#[must_use]
pub fn bootstrap_object(peer: &Peer, namespace: &str) -> Option<(ObjectKey, String)> {
    match peer.bootstrap.as_ref()? {
        Bootstrap::Inline(_) => None,
        Bootstrap::ConfigMapKey { name, key } => {
            Some((ObjectKey::namespaced(Kind::ConfigMap, namespace, name), key.clone()))
        }
        Bootstrap::SecretKey { name, key } => {
            Some((ObjectKey::namespaced(Kind::Secret, namespace, name), key.clone()))
        }
    }
}

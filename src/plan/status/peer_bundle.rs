//! What the status of a TrustDomainPeer says of its bundle: the endpoint, and the way to our workloads.

use serde_json::Value;

use super::keep;
use super::trust_domain_peer::Subject;
use crate::api::v1alpha1::conditions::{BundleDistributedReason, BundleEndpointReason};
use crate::model::condition::{Condition, Truth};
use crate::model::world::{Harm, Poisoned};
use crate::model::{Bundle, Peer, World};
use crate::plan::registrations::Want;
use crate::plan::{alarms, contest, ending, poison, registrations, relationship, told};

/// How many registrations a message names.
const NAMES: usize = 8;

/// How far the bundle has come, why, and that in words.
type Distribution = (Truth, BundleDistributedReason, String);

/// `BundleEndpointHealthy`.
pub(super) fn endpoint_healthy(
    Subject { world, peer, .. }: Subject<'_>,
    stored: Option<&Value>,
) -> Condition {
    let url = &peer.endpoint.url;
    let awaiting = BundleEndpointReason::AwaitingFirstFetch;
    let unasked = format!("the bundle endpoint {url} has not been asked yet");
    let Some(state) = world.endpoints.get(&peer.trust_domain) else {
        return keep(stored, awaiting, &unasked);
    };
    let alarms = alarms::alarms(world, peer);
    if let Some(worst) = alarms.first() {
        return Condition::new(worst.reason, false, alarms::in_words(&alarms));
    }
    if state.latest.is_none() {
        return keep(stored, awaiting, &unasked);
    }
    let message = format!("the bundle endpoint {url} serves a good bundle");
    Condition::new(BundleEndpointReason::Healthy, true, message)
}

/// `BundleDistributed`.
pub(super) fn distributed(subject: Subject<'_>) -> Condition {
    let (truth, reason, message) = distribution(subject);
    Condition::new(reason, truth, message)
}

/// The path of the bundle, link by link; the first one that is missing is the reason.
fn distribution(Subject { world, peer, blocked, .. }: Subject<'_>) -> Distribution {
    let trust_domain = &peer.trust_domain;
    let Some(spire) = &world.spire else {
        let message = "SPIRE's server API has not been read yet".to_owned();
        return (Truth::Unknown, BundleDistributedReason::SpireUnavailable, message);
    };
    if let Some(failure) = &spire.failure {
        return (Truth::Unknown, BundleDistributedReason::SpireUnavailable, failure.clone());
    }
    if let Some(stage) = ending::stage(world, peer) {
        let message = ending::message(world, peer, &stage);
        return (Truth::False, BundleDistributedReason::Ending, message);
    }
    if let Some(blocked) = blocked {
        return (Truth::False, BundleDistributedReason::ObjectNotOurs, blocked.to_owned());
    }
    if let Some(held_back) = held_back(world, peer) {
        return held_back;
    }
    if let Some(failure) = &spire.entries_failure {
        return (Truth::Unknown, BundleDistributedReason::SpireUnavailable, failure.clone());
    }
    if relationship::freshest(world, peer).is_none() && !spire.bundles.contains_key(trust_domain) {
        let message = format!(
            "no bundle of {trust_domain} is known: its endpoint gave none, and there is no bootstrap bundle that is \
             good; see BundleEndpointHealthy"
        );
        return (Truth::False, BundleDistributedReason::AwaitingBundle, message);
    }
    if !spire.relationships.contains_key(trust_domain) {
        let message = format!(
            "SPIRE has no federation relationship with {trust_domain}: {}",
            relationship::why_there_is_none(world, peer)
        );
        return (Truth::False, BundleDistributedReason::AwaitingRelationship, message);
    }
    let Some(bundle) = spire.bundles.get(trust_domain) else {
        let message = format!("SPIRE has the relationship with {trust_domain}, but holds no bundle of it");
        return (Truth::False, BundleDistributedReason::AwaitingSpire, message);
    };
    let reverted = registrations::reverted(world, peer);
    if !reverted.is_empty() {
        let message = format!(
            "someone took {trust_domain} out of federatesWith of {}, where the agent had put it; it does not fight: \
             put it there at the source of these objects, or stop selecting them",
            reverted.join(", ")
        );
        return (Truth::False, BundleDistributedReason::RegistrationContested, message);
    }
    delivered(world, peer, bundle)
}

/// Where the peer must not be named, and is left since someone puts it back each time it is taken out.
fn contested(world: &World, peer: &Peer) -> Option<String> {
    let trust_domain = &peer.trust_domain;
    let left = contest::left_in(world, trust_domain);
    if left.is_empty() || registrations::want(world, peer) == Want::Leave {
        return None;
    }
    let poisoned = world.memory.get(trust_domain).and_then(|memory| memory.poisoned.as_ref());
    let (why, harm) = match poisoned {
        Some(Poisoned { cause, harm: Harm::NoUsableAuthority, .. }) => {
            (cause.as_str(), "their workloads may refuse their own new SVIDs")
        }
        Some(Poisoned { cause, harm: Harm::SharedAuthority { .. }, .. }) => {
            (cause.as_str(), "their workloads trust a key that could speak for both")
        }
        Some(Poisoned { cause, harm: Harm::TooLarge, .. }) => {
            (cause.as_str(), "SPIRE's agents may renew no SVID on the nodes of their workloads")
        }
        None if peer.withdraw => ("spec.withdraw is set", "their workloads trust it still"),
        None => ("SPIRE holds no usable bundle of it", "their new workloads may get no SVID"),
    };
    Some(format!(
        "federatesWith {trust_domain} must not stand in {} ({why}), but someone puts it back each time the agent takes it \
         out, and the agent does not fight: {harm}, until {trust_domain} is taken out at the source of these objects (of \
         GitOps or Helm, say)",
        ending::listed(&left, NAMES)
    ))
}

/// Why registrations do not federate though they could.
fn held_back(world: &World, peer: &Peer) -> Option<Distribution> {
    let trust_domain = &peer.trust_domain;
    if let Some(contested) = contested(world, peer) {
        return Some((Truth::False, BundleDistributedReason::RegistrationContested, contested));
    }
    if peer.withdraw {
        let message = format!(
            "spec.withdraw is set: no registration federates with {trust_domain}, and what is imported from it does not \
             work, until it is unset"
        );
        return Some((Truth::False, BundleDistributedReason::Withdrawn, message));
    }
    let memory = world.memory.get(trust_domain)?;
    let poisoned = memory.poisoned.as_ref()?;
    let (reason, risk) = match poisoned.harm {
        Harm::NoUsableAuthority => (
            BundleDistributedReason::SuspendedUnusableBundle,
            "it would make every local workload that federates refuse its own new SVID",
        ),
        Harm::SharedAuthority { .. } => {
            (BundleDistributedReason::SuspendedSharedAuthority, "who has its key could speak for both")
        }
        Harm::TooLarge => (
            BundleDistributedReason::SuspendedOversizedBundle,
            "SPIRE's agents may not receive it, and would then renew no SVID at all",
        ),
    };
    let message = format!(
        "federatesWith {trust_domain} is suspended since {}: {}; {risk}. It comes back after {} good fetches in a row{}",
        poisoned.since,
        poisoned.cause,
        poison::good_fetches_needed(world, memory),
        if peer.suspend {
            ", which begin once spec.suspend is unset: nothing is fetched while it is set"
        } else {
            ""
        }
    );
    Some((Truth::False, reason, message))
}

fn delivered(world: &World, peer: &Peer, bundle: &Bundle) -> Distribution {
    let trust_domain = &peer.trust_domain;
    if relationship::ahead_of_spire(world, peer).is_some() {
        let message = format!(
            "the endpoint of {trust_domain} serves another bundle than SPIRE holds; SPIRE was asked to refresh"
        );
        return (Truth::False, BundleDistributedReason::StaleInSpire, message);
    }
    if let Some(failure) = told::workload_api_is_gone(world) {
        let message = format!(
            "the Workload API has given the agent nothing since {}: {}; check the SPIRE agent, and the agent's own \
             registration (label entente.dev/agent: \"true\")",
            failure.since, failure.message
        );
        return (Truth::False, BundleDistributedReason::WorkloadApiUnavailable, message);
    }
    let received = world.identity.as_ref().and_then(|identity| identity.federated.get(trust_domain));
    let Some(received) = received else {
        let message = format!(
            "the Workload API does not deliver the bundle of {trust_domain} to the agent: its own registration \
             (label entente.dev/agent: \"true\") must federate with {trust_domain}; SPIRE's agent takes some seconds"
        );
        return (Truth::False, BundleDistributedReason::AwaitingWorkloadApi, message);
    };
    if received.digest() != bundle.digest() {
        let message = format!("SPIRE's agent has not delivered the newest bundle of {trust_domain} yet");
        return (Truth::False, BundleDistributedReason::StaleInSpire, message);
    }
    let unselected = registrations::unselected(world, peer);
    let also = if unselected.is_empty() {
        String::new()
    } else {
        format!("; {} name it without being selected, and are left alone", unselected.join(", "))
    };
    let message = format!("SPIRE and the Workload API have the bundle {}{also}", bundle.digest());
    (Truth::True, BundleDistributedReason::Distributed, message)
}

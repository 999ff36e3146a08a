//! What two sides tell each other of what is wrong, and what each makes of the other's word. What a side was told is never
//! told back, so that no trouble outlives its cause.

use jiff::{SignedDuration, Timestamp};

use super::notice::told;
use crate::api::v1alpha1::conditions::{BundleDistributedReason, BundleEndpointReason, ConditionType};
use crate::federation::convert::MAX_TROUBLES;
use crate::model::condition::{Condition, Truth};
use crate::model::endpoint::FetchProblem;
use crate::model::own::WorkloadFailure;
use crate::model::session::{Trouble, TrustReport};
use crate::model::{Peer, TrustDomain, World};

/// How long the Workload API may give nothing before that means anything: a SPIRE agent restarts in seconds.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);
const ENDPOINT: ConditionType = ConditionType::BundleEndpointHealthy;
const DISTRIBUTED: ConditionType = ConditionType::BundleDistributed;

/// What the other side is told: which of our conditions on it are not True, where that is ours to know, and matters to it.
/// It is told in fixed words, since our messages name our objects, sockets and other peers; also why its own endpoint cannot be
/// fetched from: who redirects us, or has a name of its own lead here, would read what is on our networks.
#[must_use]
pub fn troubles(conditions: &[Condition]) -> Vec<Trouble> {
    let unread = BundleDistributedReason::SpireUnavailable.as_str();
    let ending = BundleDistributedReason::Ending.as_str();
    let matters = |condition: &&Condition| match condition.status {
        // the end is told by a goodbye
        Truth::False => condition.reason != ending,
        Truth::Unknown => condition.reason == unread,
        Truth::True => false,
    };
    let trouble = |condition: &Condition| {
        let message = match condition.kind {
            ENDPOINT => of_endpoint(&condition.reason)?.to_owned(),
            DISTRIBUTED => of_distribution(&condition.reason)?.to_owned(),
            _ => return None,
        };
        let (condition, reason) = (condition.kind.to_string(), condition.reason.clone().into_owned());
        Some(Trouble { condition, reason, message })
    };
    conditions.iter().filter(matters).filter_map(trouble).take(MAX_TROUBLES).collect()
}

/// What is told of your endpoint, or of what it serves; `None` of a reason that nobody knows.
fn of_endpoint(reason: &str) -> Option<&'static str> {
    use BundleEndpointReason as Reason;
    let known = Reason::ALL.iter().find(|known| known.as_str() == reason)?;
    Some(match known {
        Reason::Healthy | Reason::AwaitingFirstFetch => return None,
        Reason::NoUsableAuthority => "your bundle has no X.509 authority that is valid now",
        Reason::AuthorityShared => "an authority of your bundle is that of another trust domain too",
        Reason::AuthoritiesSubstituted => "no authority of your last bundle is in the one that is served now",
        Reason::WrongEndpointSpiffeId => "your bundle endpoint has another SPIFFE ID than we were given",
        Reason::EndpointCertificateUntrusted => "the certificate of your bundle endpoint cannot be verified",
        Reason::EndpointCertificateExpired => {
            "the certificate of your bundle endpoint has expired, or a clock is wrong"
        }
        Reason::NoBundleToVerifyEndpoint => "we have nothing to verify your bundle endpoint with",
        Reason::BundleUnparseable => "your bundle endpoint serves no SPIFFE bundle document",
        Reason::BundleTooLarge => "what your bundle endpoint serves is too large",
        Reason::BadResponse => "your bundle endpoint answers with another HTTP status than 200",
        Reason::EndpointUnreachable => "your bundle endpoint cannot be reached",
        Reason::AuthorityNearExpiry => "the last authority of your bundle expires soon",
        Reason::SequenceWentBack => "the sequence number of your bundle went back",
        Reason::ContentChangedUnderSequence => {
            "your bundle has other authorities than before under the same sequence number"
        }
        Reason::RefusedBySpire => "the reader of SPIRE refuses your bundle document",
        Reason::SpireDiffersFromEndpoint => "our SPIRE holds another bundle than your endpoint serves",
        Reason::PeerDiffersFromEndpoint => "your agent says another bundle than your endpoint serves",
    })
}

/// What is told of the way of your bundle to our workloads; `None` of a reason that nobody knows.
fn of_distribution(reason: &str) -> Option<&'static str> {
    use BundleDistributedReason as Reason;
    let known = Reason::ALL.iter().find(|known| known.as_str() == reason)?;
    Some(match known {
        Reason::Distributed | Reason::Ending => return None,
        Reason::AwaitingBundle => "no bundle of yours is known here",
        Reason::AwaitingRelationship => "SPIRE here has no federation relationship with you",
        Reason::AwaitingSpire => "SPIRE here holds no bundle of yours",
        Reason::StaleInSpire => "not everything here has your newest bundle",
        Reason::AwaitingWorkloadApi => "the Workload API here does not deliver your bundle to our agent",
        Reason::WorkloadApiUnavailable => "the Workload API here gives our agent nothing",
        Reason::SuspendedUnusableBundle => {
            "your bundle has no usable authority, so that nothing here federates with you for now"
        }
        Reason::SuspendedSharedAuthority => {
            "an authority of your bundle is that of another trust domain too, so that nothing here federates with you for now"
        }
        Reason::SuspendedOversizedBundle => {
            "your bundle is larger than what SPIRE's agents receive, so that nothing here federates with you for now"
        }
        Reason::Withdrawn => "our operator has withdrawn all that federates with you",
        Reason::RegistrationContested => {
            "someone here takes you back out of registrations that are to federate with you"
        }
        Reason::ObjectNotOurs => {
            "the relationship with you is described by an object here that is not our agent's"
        }
        Reason::SpireUnavailable => "our SPIRE server's API cannot be read",
    })
}

/// Why the Workload API gives us nothing, once it has not for a while.
#[must_use]
pub fn workload_api_is_gone(world: &World) -> Option<&WorkloadFailure> {
    world.workload_failure.as_ref().filter(|failure| gone_at(failure).is_some_and(|at| at <= world.now))
}

fn gone_at(failure: &WorkloadFailure) -> Option<Timestamp> {
    failure.since.saturating_add(PATIENCE).ok()
}

/// When that starts to mean something.
pub(super) fn wake_at(world: &World) -> Option<Timestamp> {
    world.workload_failure.as_ref().and_then(gone_at).filter(|at| *at > world.now)
}

/// The peer's words on why it cannot fetch our bundle, where it says so.
#[must_use]
pub fn cannot_fetch_ours(world: &World, peer: &Peer) -> Option<String> {
    let is_failure = |reason: &str| FetchProblem::ALL.iter().any(|problem| problem.reason() == reason);
    let trouble = of(told(world, peer)?, ENDPOINT).filter(|trouble| is_failure(&trouble.reason))?;
    Some(words(trouble))
}

/// The peer's words on what it finds suspicious in our bundle, where it can fetch it.
pub(super) fn suspects_ours(report: &TrustReport) -> Option<String> {
    let is_failure = |reason: &str| FetchProblem::ALL.iter().any(|problem| problem.reason() == reason);
    of(report, ENDPOINT).filter(|trouble| !is_failure(&trouble.reason)).map(words)
}

/// The peer's words on why our bundle is not where it should be there; empty where it says nothing.
pub(super) fn cause(report: &TrustReport) -> String {
    of(report, DISTRIBUTED).map(|trouble| format!(" ({})", words(trouble))).unwrap_or_default()
}

/// Whether someone at the peer changes back what its agent does to registrations for our sake.
pub(super) fn is_contested(report: &TrustReport) -> bool {
    let contested = BundleDistributedReason::RegistrationContested.as_str();
    of(report, DISTRIBUTED).is_some_and(|trouble| trouble.reason == contested)
}

/// How the two clocks differ, where they do too much.
#[must_use]
pub fn clocks(trust_domain: &TrustDomain, skew: i64) -> String {
    let direction = if skew > 0 { "ahead of" } else { "behind" };
    format!(
        "exchanging with the agent of {trust_domain}, but its clock is about {} s {direction} ours: SVIDs that one side \
         has just been issued are not valid yet, or expired, on the other; set both clocks by NTP",
        skew.unsigned_abs()
    )
}

fn of(report: &TrustReport, condition: ConditionType) -> Option<&Trouble> {
    report.troubles.iter().find(|trouble| trouble.condition == condition.as_str())
}

fn words(trouble: &Trouble) -> String {
    format!("there {} says {}: {}", trouble.condition, trouble.reason, trouble.message)
}

#[cfg(test)]
#[path = "told_tests.rs"]
mod tests;

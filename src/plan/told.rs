//! What two sides tell each other of what is wrong, and what each makes of the other's word. What a side was told is never
//! told back, so that no trouble outlives its cause.

use jiff::{SignedDuration, Timestamp};

use super::notice::told;
use crate::api::v1alpha1::conditions::BundleDistributedReason;
use crate::federation::convert::MAX_TROUBLES;
use crate::model::condition::{Condition, Truth};
use crate::model::endpoint::FetchProblem;
use crate::model::own::WorkloadFailure;
use crate::model::session::{Trouble, TrustReport};
use crate::model::{Peer, TrustDomain, World};

/// How long the Workload API may give nothing before that means anything: a SPIRE agent restarts in seconds.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);
const ENDPOINT: &str = "BundleEndpointHealthy";
const DISTRIBUTED: &str = "BundleDistributed";

/// What the other side is told: which of our conditions on it are not True, where that is ours to know, and matters to it.
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
    let ours = conditions.iter().filter(|condition| [ENDPOINT, DISTRIBUTED].contains(&condition.kind));
    let trouble = |condition: &Condition| Trouble {
        condition: condition.kind.to_owned(),
        reason: condition.reason.clone().into_owned(),
        message: condition.message.clone(),
    };
    ours.filter(matters).take(MAX_TROUBLES).map(trouble).collect()
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

fn of<'a>(report: &'a TrustReport, condition: &str) -> Option<&'a Trouble> {
    report.troubles.iter().find(|trouble| trouble.condition == condition)
}

fn words(trouble: &Trouble) -> String {
    format!("there {} says {}: {}", trouble.condition, trouble.reason, trouble.message)
}

#[cfg(test)]
#[path = "told_tests.rs"]
mod tests;

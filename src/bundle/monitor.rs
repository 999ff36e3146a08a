//! What is known of an endpoint after each fetch, when the next one is due, and by which bundle it is verified. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::model::Bundle;
use crate::model::endpoint::{BundleAlarm, EndpointProfile, EndpointState, FetchFailure, MonitorTarget};

/// How often endpoints are polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollLimits {
    /// What a bundle with a shorter refresh hint is polled at.
    pub min_interval: Duration,
    /// What a bundle with a longer refresh hint is polled at.
    pub max_interval: Duration,
    /// Without a refresh hint.
    pub default_interval: Duration,
}

impl Default for PollLimits {
    /// Five minutes without a hint, as SPIFFE Federation 5.3 recommends; a shorter hint down to SPIRE's own floor.
    fn default() -> Self {
        Self {
            min_interval: Duration::from_secs(15),
            max_interval: Duration::from_secs(3600),
            default_interval: Duration::from_secs(300),
        }
    }
}

/// How many times the same bundle is served before its alarms end: an hour, at 20 seconds.
const ALARMED: u32 = 180;

/// What is known of an endpoint after a fetch that ended at `now`.
#[must_use]
pub fn observe(
    state: &EndpointState,
    fetched: Result<Bundle, FetchFailure>,
    now: Timestamp,
) -> EndpointState {
    let mut next = state.clone();
    let (bundle, failure) = match fetched {
        Ok(bundle) => (Some(bundle), None),
        Err(failure) => (None, Some(failure)),
    };
    if next.since.is_none() || next.failure.is_some() != failure.is_some() {
        next.since = Some(now);
    }
    next.failure = failure;
    let Some(bundle) = bundle else { return next };

    let usable = bundle.is_usable_at(now);
    let unchanged = state.latest.as_deref() == Some(&bundle);
    next.unchanged = if unchanged { state.unchanged.saturating_add(1) } else { 0 };
    next.alarms = match next.unchanged {
        0 => changes(state, &bundle),
        1..=ALARMED => kept(&state.alarms),
        _ => Vec::new(),
    };
    if !usable {
        next.alarms.insert(0, BundleAlarm::NoUsableAuthority);
    }
    let bundle = match &state.latest {
        Some(latest) if unchanged => Arc::clone(latest),
        _ => Arc::new(bundle),
    };
    if usable {
        next.good_in_a_row = state.good_in_a_row.saturating_add(1);
        next.latest_usable = Some(Arc::clone(&bundle));
    } else {
        next.good_in_a_row = 0;
    }
    next.latest = Some(bundle);
    next
}

/// The alarms that stand while the same bundle is served again: a poll interval is too short for anyone to see them.
fn kept(alarms: &[BundleAlarm]) -> Vec<BundleAlarm> {
    alarms.iter().filter(|alarm| **alarm != BundleAlarm::NoUsableAuthority).cloned().collect()
}

/// What is wrong with the change from the last bundle to this one. None of it is a reason to refuse the bundle: a SPIRE
/// whose database was rebuilt counts from the start again.
fn changes(state: &EndpointState, bundle: &Bundle) -> Vec<BundleAlarm> {
    let mut alarms = Vec::new();
    if let Some(last) = &state.latest {
        match (last.sequence, bundle.sequence) {
            (Some(from), Some(to)) if to < from => alarms.push(BundleAlarm::SequenceWentBack { from, to }),
            (Some(from), Some(to)) if to == from && !same_authorities(last, bundle) => {
                alarms.push(BundleAlarm::ContentChangedUnderSequence { sequence: to });
            }
            _ => {}
        }
    }
    // held against the last usable one, or an empty bundle in between would hide the change
    if let Some(last) = &state.latest_usable
        && !last.is_empty()
        && !bundle.is_empty()
        && !last.fingerprints().any(|old| bundle.fingerprints().any(|new| new == old))
    {
        alarms.push(BundleAlarm::AuthoritiesSubstituted);
    }
    alarms
}

fn same_authorities(one: &Bundle, other: &Bundle) -> bool {
    one.digest() == other.digest() && one.jwt == other.jwt
}

/// How long to wait for the next fetch: nothing before the first; then what the last bundle hints at, within limits,
/// whether the last fetch failed or not (SPIFFE Federation 5.3: retry at the next interval). `jitter`, of 1,000, takes
/// off up to a tenth, so that endpoints are not all polled at once.
#[must_use]
pub fn next_poll(state: &EndpointState, limits: &PollLimits, jitter: u32) -> Duration {
    if state.since.is_none() {
        return Duration::ZERO;
    }
    let hint = state.latest.as_ref().and_then(|bundle| bundle.refresh_hint);
    let interval = hint.map_or(limits.default_interval, Duration::from_secs);
    let interval = interval.min(limits.max_interval).max(limits.min_interval);
    interval.saturating_sub(interval / 10_000 * jitter.min(1000))
}

/// The bundle that verifies an endpoint of `https_spiffe`; none is needed for `https_web`.
///
/// An endpoint in the trust domain that it serves is verified by the operator's bundle before the first fetch, and by the
/// latest fetched one after it (SPIFFE Federation 5.2.2.2). Latest *usable* one: an empty bundle verifies nothing, so
/// that a trust domain which once served one could never be heard again.
#[must_use]
pub fn verifying_bundle(target: &MonitorTarget, state: &EndpointState) -> Option<Arc<Bundle>> {
    match &target.endpoint.profile {
        EndpointProfile::HttpsWeb => None,
        EndpointProfile::HttpsSpiffe { endpoint_id }
            if *endpoint_id.trust_domain() == target.trust_domain =>
        {
            let known = state.latest_usable.clone().or_else(|| target.persisted.clone());
            known.or_else(|| target.bootstrap.clone())
        }
        EndpointProfile::HttpsSpiffe { .. } => target.verify_with.clone(),
    }
}

/// What SPIRE holds, where that may verify an endpoint which `ours` does not verify any more: it continues ours, by an
/// authority in common or because none of ours is valid at `now`; and it is no older than the last fetch that `ours` came
/// from (`fetched`), or it may be what was left behind there. Without this an endpoint that has changed its authority while
/// no fetch of ours came through could never be heard again.
#[must_use]
pub fn continuation(
    target: &MonitorTarget,
    ours: &Bundle,
    fetched: Option<Timestamp>,
    now: Timestamp,
) -> Option<Arc<Bundle>> {
    let EndpointProfile::HttpsSpiffe { endpoint_id } = &target.endpoint.profile else { return None };
    let held = target.held.as_ref().filter(|_| *endpoint_id.trust_domain() == target.trust_domain)?;
    let is_newer =
        fetched.is_none_or(|fetched| fetched < held.since) && held.bundle.digest() != ours.digest();
    let continues = held.bundle.continues(ours, now);
    (is_newer && continues && held.bundle.is_usable_at(now)).then(|| Arc::clone(&held.bundle))
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;

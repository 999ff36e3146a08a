//! What an operator must know of a peer's bundle and its endpoint: every alarm, worst first, each with what to do.

use std::time::Duration;

use jiff::Timestamp;

use super::poison;
use crate::api::v1alpha1::conditions::BundleEndpointReason as Reason;
use crate::model::endpoint::{BundleAlarm, EndpointState};
use crate::model::world::Harm;
use crate::model::{Bundle, Peer, World};

/// One thing that is wrong. Reasons are ordered, worst first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    pub reason: Reason,
    /// Names the object, the cause and what to do.
    pub message: String,
}

/// The refresh interval where the endpoint gives no hint (SPIFFE Federation 5.3), and the longest at which it is polled.
const DEFAULT_REFRESH: u64 = 300;
const LONGEST_REFRESH: u64 = 3_600;
/// An authority is near its end a week before it, at most.
const WEEK: u64 = 7 * 86_400;

/// Every alarm of a peer that stands now, worst first. Without alarm, nothing is wrong that the endpoint, SPIRE or the
/// peer itself could tell.
#[must_use]
pub fn alarms(world: &World, peer: &Peer) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    let Some(state) = world.endpoints.get(&peer.trust_domain) else { return alarms };
    if let Some(failure) = &state.failure {
        alarms.push(Alarm { reason: failure.problem.into(), message: failure.message.clone() });
        alarms.extend(expired(world, peer, state));
    } else {
        alarms.extend(of_document(world, peer, state));
    }
    let changes = state.alarms.iter().filter(|alarm| **alarm != BundleAlarm::NoUsableAuthority);
    alarms.extend(changes.map(|alarm| of_change(peer, alarm)));
    alarms.extend(expiry(world, peer, state));
    alarms.extend(spire_differs(world, peer));
    alarms.extend(word_differs(world, peer));
    alarms.sort();
    alarms
}

/// When an alarm begins by time alone.
#[must_use]
pub fn wake_at(world: &World, peer: &Peer) -> Option<Timestamp> {
    let state = world.endpoints.get(&peer.trust_domain)?;
    let (near, end) = bundle(world, peer, state).and_then(|bundle| near_end(world, bundle)).unzip();
    let after = |end: Timestamp| end.checked_add(Duration::from_secs(1)).ok();
    let all = [near, end.and_then(after), overdue_at(world, peer), doubted_until(world, peer)];
    all.into_iter().flatten().filter(|at| *at > world.now).min()
}

/// What is wrong with what the endpoint serves now.
fn of_document(world: &World, peer: &Peer, state: &EndpointState) -> Vec<Alarm> {
    let (trust_domain, url) = (&peer.trust_domain, &peer.endpoint.url);
    let mut alarms = Vec::new();
    let harm = state.latest.as_ref().and_then(|bundle| poison::harm(world, peer, bundle));
    match harm {
        Some(Harm::NoUsableAuthority) => alarms.push(Alarm {
            reason: Reason::NoUsableAuthority,
            message: format!(
                "the bundle endpoint {url} serves no X.509 authority of {trust_domain} that is valid now, which revokes \
                 every SVID of it: ask its operator whether that is meant; federation comes back by itself once it \
                 serves some"
            ),
        }),
        Some(Harm::SharedAuthority { authority, with }) => alarms.push(Alarm {
            reason: Reason::AuthorityShared,
            message: format!(
                "the bundle endpoint {url} of {trust_domain} serves the authority {authority}, {}: who has its key could speak for both, so this bundle is not used; ask the operators of {trust_domain} \
                 and {} which of them it belongs to, and have the other take it out",
                with.in_words(),
                with.trust_domain,
            ),
        }),
        // Of what is too large nothing is taken: see `failure`.
        Some(Harm::TooLarge) | None => {}
    }
    if let Some(why) = &state.refused_by_spire {
        alarms.push(Alarm {
            reason: Reason::RefusedBySpire,
            message: format!(
                "SPIRE refuses the whole document that the bundle endpoint {url} of {trust_domain} serves ({why}), and \
                 would keep an old bundle: the agent gives it what can be read of it; tell the operator of \
                 {trust_domain} to take that key out or mend it"
            ),
        });
    }
    alarms
}

fn of_change(peer: &Peer, alarm: &BundleAlarm) -> Alarm {
    let (trust_domain, url) = (&peer.trust_domain, &peer.endpoint.url);
    let message = match alarm {
        BundleAlarm::NoUsableAuthority => {
            format!("the bundle endpoint {url} of {trust_domain} served no X.509 authority that was valid")
        }
        BundleAlarm::SequenceWentBack { from, to } => format!(
            "the bundle endpoint {url} of {trust_domain} went back from sequence {from} to {to}: an old bundle is served, \
             or the database of its SPIRE was rebuilt; ask its operator which"
        ),
        BundleAlarm::ContentChangedUnderSequence { sequence } => format!(
            "the bundle endpoint {url} of {trust_domain} serves other authorities under the same sequence {sequence}: ask \
             its operator which servers answer at this URL"
        ),
        BundleAlarm::AuthoritiesSubstituted => format!(
            "no authority that the bundle endpoint {url} of {trust_domain} served before is in what it serves now: ask its \
             operator, by a way you trust, whether that was meant, and suspend or withdraw this peer if it was not"
        ),
    };
    Alarm { reason: alarm.into(), message }
}

/// What is known to be the peer's: what its endpoint served last, else what SPIRE holds.
fn bundle<'a>(world: &'a World, peer: &Peer, state: &'a EndpointState) -> Option<&'a Bundle> {
    let spire = || world.spire.as_ref().filter(|spire| !spire.too_large.contains(&peer.trust_domain));
    let stored = || spire()?.bundles.get(&peer.trust_domain);
    state.latest.as_ref().or_else(stored).map(AsRef::as_ref)
}

/// From when on the last authority of a bundle is near its end, and that end.
///
/// Three refresh intervals, or a tenth of its lifetime where that is longer, but no more than a week: time enough to
/// ask. Never before the last quarter of its lifetime: SPIRE prepares the next one at half of it (or 30 days before its
/// end, where that is later), so that a healthy one never comes so far.
fn near_end(world: &World, bundle: &Bundle) -> Option<(Timestamp, Timestamp)> {
    let last = bundle.authorities().filter(|a| a.is_valid_at(world.now)).max_by_key(|a| a.not_after())?;
    let lifetime = last.not_after().as_second().saturating_sub(last.not_before().as_second());
    let lifetime = u64::try_from(lifetime).unwrap_or_default();
    let refresh = bundle.refresh_hint.unwrap_or(DEFAULT_REFRESH).min(LONGEST_REFRESH);
    let near = (3 * refresh).max((lifetime / 10).min(WEEK)).min(lifetime / 4);
    let from = last.not_after().checked_sub(Duration::from_secs(near)).ok()?;
    Some((from, last.not_after()))
}

fn expiry(world: &World, peer: &Peer, state: &EndpointState) -> Option<Alarm> {
    let bundle = bundle(world, peer, state)?;
    let (_, end) = near_end(world, bundle).filter(|(from, _)| *from <= world.now)?;
    let trust_domain = &peer.trust_domain;
    Some(Alarm {
        reason: Reason::AuthorityNearExpiry,
        message: format!(
            "the last authority of {trust_domain} expires at {end}, and no next one is published: after that nothing of \
             {trust_domain} can be verified; its operator must see why its SPIRE does not rotate"
        ),
    })
}

/// The last known bundle has run out, and no other can be fetched: what was told of while its end was near is so still.
fn expired(world: &World, peer: &Peer, state: &EndpointState) -> Option<Alarm> {
    let bundle = bundle(world, peer, state)?;
    let harm = poison::harm(world, peer, bundle).filter(|harm| *harm == Harm::NoUsableAuthority);
    let (trust_domain, url) = (&peer.trust_domain, &peer.endpoint.url);
    harm.map(|_| Alarm {
        reason: Reason::NoUsableAuthority,
        message: format!(
            "no X.509 authority of {trust_domain} that is known is valid now, so that nothing of {trust_domain} can be \
             verified, and its bundle endpoint {url} gives no other bundle: ask its operator for one; federation comes back \
             by itself once the endpoint serves some that are valid"
        ),
    })
}

/// When SPIRE will have differed from the endpoint for two poll intervals.
fn overdue_at(world: &World, peer: &Peer) -> Option<Timestamp> {
    let since = world.memory.get(&peer.trust_domain)?.differs_since?;
    since.checked_add(world.settings.poll_interval * 2).ok()
}

fn spire_differs(world: &World, peer: &Peer) -> Option<Alarm> {
    overdue_at(world, peer).filter(|at| *at <= world.now)?;
    let since = world.memory.get(&peer.trust_domain)?.differs_since?;
    let (trust_domain, url) = (&peer.trust_domain, &peer.endpoint.url);
    Some(Alarm {
        reason: Reason::SpireDiffersFromEndpoint,
        message: format!(
            "since {since} SPIRE has held another bundle of {trust_domain} than the bundle endpoint {url} serves us: see \
             the log of the SPIRE server for why it does not refresh, and whether it reaches another endpoint than we do"
        ),
    })
}

/// When the peer's word will have differed from what its endpoint serves for two poll intervals, of SPIRE's and of ours.
fn doubted_until(world: &World, peer: &Peer) -> Option<Timestamp> {
    let since = world.memory.get(&peer.trust_domain)?.doubted_since?;
    let latest = world.endpoints.get(&peer.trust_domain)?.latest.as_ref()?;
    let refresh = latest.refresh_hint.unwrap_or(DEFAULT_REFRESH).min(LONGEST_REFRESH);
    let interval = world.settings.poll_interval.max(Duration::from_secs(refresh));
    since.checked_add(interval * 2).ok()
}

fn word_differs(world: &World, peer: &Peer) -> Option<Alarm> {
    doubted_until(world, peer).filter(|at| *at <= world.now)?;
    let since = world.memory.get(&peer.trust_domain)?.doubted_since?;
    let (trust_domain, url) = (&peer.trust_domain, &peer.endpoint.url);
    Some(Alarm {
        reason: Reason::PeerDiffersFromEndpoint,
        message: format!(
            "since {since} the agent of {trust_domain} has said that its bundle is another than the bundle endpoint {url} \
             serves us: a cache or someone else may stand in front of the endpoint, or its agent speaks for another \
             SPIRE; ask its operator"
        ),
    })
}

/// All alarms in one message, worst first.
#[must_use]
pub fn in_words(alarms: &[Alarm]) -> String {
    match alarms {
        [one] => one.message.clone(),
        many => {
            let list: Vec<String> =
                many.iter().map(|alarm| format!("{}: {}", alarm.reason, alarm.message)).collect();
            list.join("; and ")
        }
    }
}

#[cfg(test)]
#[path = "alarms_tests.rs"]
mod tests;

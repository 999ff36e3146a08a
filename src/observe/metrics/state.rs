//! What the agent knows, as numbers: read off a world and its plan when they are asked for, so that nothing that is gone stays.

use serde_json::Value;

use super::described as of;
use super::text::Text;
use crate::model::object::{Kind, ObjectKey};
use crate::model::service::Outcome;
use crate::model::session::LinkState;
use crate::model::{Peer, World};
use crate::plan::{Plan, alarms, rotation};

/// Everything that numbers are read off.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub world: &'a World,
    pub plan: &'a Plan,
    /// Whether this replica leads.
    pub leads: bool,
}

const STATUSES: [&str; 3] = ["True", "False", "Unknown"];
const STREAMS: [&str; 7] =
    ["Idle", "Connected", "Refused", "Unverified", "WrongPeerId", "Unreachable", "Parted"];

/// The gauges. Calls to SPIRE that fail are no objects, and counted by who makes them.
pub(super) fn read(known: Known<'_>, failing_calls: usize) -> Text {
    let mut text = Text::default();
    own(known.world, &mut text);
    text.set(&of::PEERS, &[], number(known.world.peers.len()));
    for peer in known.world.peers.values() {
        conditions(known.world, peer, &mut text);
        bundle(known.world, peer, &mut text);
        if known.leads {
            stream(known.world, peer, &mut text);
            exchange(known, peer, &mut text);
        }
    }
    objects(known, &mut text);
    text.set(&of::FAILING, &[], number(known.world.failures.len() + failing_calls));
    for (trust_domain, names) in known.plan.zone.iter().flat_map(|zone| zone.counts()) {
        text.set(&of::DNS_NAMES, &[trust_domain.as_str()], number(names));
    }
    text
}

fn own(world: &World, text: &mut Text) {
    let up = world.identity.is_some() && world.workload_failure.is_none();
    text.set(&of::WORKLOAD_API_UP, &[], flag(up));
    if let Some(identity) = &world.identity {
        text.set(&of::SVID_NOT_BEFORE, &[], at(identity.not_before));
        text.set(&of::SVID_NOT_AFTER, &[], at(identity.not_after));
    }
    let reads = world.spire.as_ref().is_some_and(|spire| spire.why_unlisted().is_none());
    text.set(&of::SPIRE_API_UP, &[], flag(reads));
    for (name, server) in world.spire.iter().flat_map(|spire| &spire.servers) {
        text.set(&of::SPIRE_SERVER_UP, &[name], flag(server.failure.is_none()));
        let Some(authorities) = &server.authorities else { continue };
        let slots = [
            ("active", Some(&authorities.active)),
            ("prepared", authorities.prepared.as_ref()),
            ("old", authorities.old.as_ref()),
        ];
        for (slot, authority) in slots {
            if let Some(authority) = authority {
                text.set(&of::AUTHORITY_NOT_AFTER, &[name, slot], at(authority.expires_at));
            }
        }
    }
    for (server, activation) in rotation::activations(world) {
        text.set(&of::AUTHORITY_ACTIVATION, &[server], at(activation));
        if let Some(deadline) = rotation::near_from(world, activation) {
            text.set(&of::ROTATION_DEADLINE, &[server], at(deadline));
        }
    }
}

/// The conditions of a status: type, status, reason.
fn conditions_of(status: &Value) -> impl Iterator<Item = [&str; 3]> {
    let all = status.get("conditions").and_then(Value::as_array);
    all.into_iter().flatten().map(|condition| {
        ["type", "status", "reason"]
            .map(|field| condition.get(field).and_then(Value::as_str).unwrap_or_default())
    })
}

fn conditions(world: &World, peer: &Peer, text: &mut Text) {
    let trust_domain = peer.trust_domain.as_str();
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object);
    let Some(status) = world.statuses.get(&key) else { return };
    for [kind, stands, reason] in conditions_of(status) {
        for one in STATUSES {
            text.set(&of::PEER_CONDITION, &[trust_domain, kind, one], flag(one == stands));
        }
        text.set(&of::PEER_CONDITION_REASON, &[trust_domain, kind, reason], 1.0);
    }
    let count = |name: &str| status.pointer(&format!("/services/{name}")).and_then(Value::as_f64);
    for outcome in ["exported", "imported", "refused"] {
        if let Some(count) = count(outcome) {
            text.set(&of::PEER_SERVICES, &[trust_domain, outcome], count);
        }
    }
    let changed = status.pointer("/audit/0/time").and_then(Value::as_str);
    if let Some(changed) = changed.and_then(|time| time.parse::<jiff::Timestamp>().ok()) {
        text.set(&of::PEER_BUNDLE_CHANGED, &[trust_domain], at(changed));
    }
    let missing = status.pointer("/remoteView/missing").and_then(Value::as_array).map_or(0, Vec::len);
    if status.get("remoteView").is_some() {
        text.set(&of::PEER_AUTHORITIES_MISSING, &[trust_domain], number(missing));
    }
}

fn bundle(world: &World, peer: &Peer, text: &mut Text) {
    let trust_domain = peer.trust_domain.as_str();
    for alarm in alarms::alarms(world, peer) {
        text.set(&of::PEER_BUNDLE_ALARM, &[trust_domain, alarm.reason.as_str()], 1.0);
    }
    let asked = world.endpoints.get(&peer.trust_domain).and_then(|endpoint| endpoint.asked_at);
    if let Some(asked) = asked {
        text.set(&of::PEER_BUNDLE_FETCHED, &[trust_domain], at(asked));
    }
    let stored = world.spire.as_ref().and_then(|spire| spire.bundles.get(&peer.trust_domain));
    let Some(stored) = stored else { return };
    text.set(&of::PEER_BUNDLE_AUTHORITIES, &[trust_domain], number(stored.len()));
    if let Some(last) = stored.authorities().map(|authority| authority.not_after()).max() {
        text.set(&of::PEER_BUNDLE_NOT_AFTER, &[trust_domain], at(last));
    }
}

/// How it stands with the stream, in a word.
#[must_use]
pub fn stream_state(link: &LinkState) -> &'static str {
    match link {
        LinkState::Idle => "Idle",
        LinkState::Connected => "Connected",
        LinkState::Refused { .. } => "Refused",
        LinkState::Unverified { .. } => "Unverified",
        LinkState::WrongPeerId { .. } => "WrongPeerId",
        LinkState::Unreachable { .. } => "Unreachable",
        LinkState::Parted { .. } => "Parted",
    }
}

fn stream(world: &World, peer: &Peer, text: &mut Text) {
    let trust_domain = peer.trust_domain.as_str();
    let Some(session) = world.sessions.get(&peer.trust_domain) else { return };
    for state in STREAMS {
        let stands = stream_state(&session.link) == state;
        text.set(&of::PEER_STREAM, &[trust_domain, state], flag(stands));
    }
    text.set(&of::PEER_STREAM_SINCE, &[trust_domain], at(session.since));
    if session.is_connected() {
        #[allow(clippy::cast_precision_loss, reason = "clocks differ by less than 2^52 seconds")]
        text.set(&of::PEER_CLOCK_SKEW, &[trust_domain], session.skew.unwrap_or_default() as f64);
    }
}

fn exchange(Known { world, plan, .. }: Known<'_>, peer: &Peer, text: &mut Text) {
    let trust_domain = peer.trust_domain.as_str();
    let Some(link) = plan.links.get(&peer.trust_domain) else { return };
    for outcome in link.outcomes.values() {
        // The reasons are our own, and few.
        if let Outcome::Refused { reason, .. } = outcome {
            text.add(&of::PEER_IMPORTS_REFUSED, &[trust_domain, reason]);
        }
    }
    let answers = world.sessions.get(&peer.trust_domain).and_then(|session| session.acknowledged.as_ref());
    for outcome in ["pending", "imported", "refused"] {
        text.set(&of::PEER_EXPORTS, &[trust_domain, outcome], 0.0);
    }
    for service in link.catalogue.services.keys() {
        // The reasons are the peer's words, and so none of them is a label.
        let outcome = match answers.and_then(|answers| answers.outcomes.get(service)) {
            None => "pending",
            Some(Outcome::Imported) => "imported",
            Some(Outcome::Refused { .. }) => "refused",
        };
        text.add(&of::PEER_EXPORTS, &[trust_domain, outcome]);
    }
}

fn objects(Known { world, plan, .. }: Known<'_>, text: &mut Text) {
    const KINDS: [Kind; 3] = [Kind::FederatedService, Kind::ImportedService, Kind::ServiceExportRule];
    let services = world.statuses.iter().filter(|(key, _)| KINDS.contains(&key.kind));
    for (key, status) in services {
        for [kind, stands, _] in conditions_of(status).filter(|[_, stands, _]| STATUSES.contains(stands)) {
            text.add(&of::OBJECT_CONDITIONS, &[key.kind.kind(), kind, stands]);
        }
    }
    for key in world.rejected.keys() {
        text.add(&of::OBJECTS_REJECTED, &[key.kind.kind()]);
    }
    for key in plan.objects.keys() {
        text.add(&of::OBJECTS_WANTED, &[key.kind.kind()]);
    }
    let pending = [
        ("write", plan.writes.len()),
        ("delete", plan.prune.len()),
        ("patch", plan.patches.len()),
        ("spire", plan.spire.len()),
        ("status", plan.statuses.len()),
    ];
    for (operation, count) in pending {
        text.set(&of::PENDING, &[operation], number(count));
    }
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[allow(clippy::cast_precision_loss, reason = "nothing is counted beyond 2^52")]
pub(super) fn number(count: usize) -> f64 {
    count as f64
}

fn at(time: jiff::Timestamp) -> f64 {
    seconds(time.as_second())
}

#[allow(clippy::cast_precision_loss, reason = "seconds of a date lie far below 2^52")]
pub(super) fn seconds(of_date: i64) -> f64 {
    of_date as f64
}

//! `federatesWith`: which registrations should name a peer, and which must not while its bundle would harm them.
//!
//! The list has no merge key, so it is changed by JSON patches that hold for one resourceVersion; an annotation
//! records what was added or suspended. SPIRE issues new SVIDs at every change: none is made without need.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use super::Patch;
use super::contest;
use super::ending::{self, Stage};
use super::{poison, relationship};
use crate::model::change::{PatchOp, pointer};
use crate::model::registration::{ANNOTATION_RECORD, Record, Registration, is_name_of};
use crate::model::trust::{Entry, SpireAction};
use crate::model::world::Relationships;
use crate::model::{Object, Peer, TrustDomain, World};

/// How many entries of SPIRE are recorded for one peer: an object has room for about five times as many.
const MOST_RECORDED: usize = 1_000;

/// What is wanted of the registrations that a peer selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// They name the peer.
    Federate,
    /// They must not name it now; what is taken away is put back later.
    Suspend,
    /// Whatever was added is taken away: of workloads, and with `agent` of the agent itself too.
    Strip { agent: bool },
    /// It is taken out of all that is selected, whoever wrote it there, the agent's own among them.
    Revoke,
    /// Nothing is changed.
    Leave,
}

/// What is wanted for one peer now.
#[must_use]
pub fn want(world: &World, peer: &Peer) -> Want {
    let trust_domain = &peer.trust_domain;
    if ending::is_at_once(peer) {
        return Want::Revoke;
    }
    let Some(spire) = world.spire.as_ref().filter(|spire| spire.failure.is_none()) else {
        return Want::Leave;
    };
    if let Some(stage) = ending::stage(world, peer) {
        return match stage {
            Stage::Goodbye | Stage::Spire(_) => Want::Leave,
            Stage::Registrations(_) => Want::Strip { agent: false },
            _ => Want::Strip { agent: true },
        };
    }
    // A poisoned bundle is acted on even while the peer is suspended: it is our own workloads that it harms.
    if world.memory.get(trust_domain).is_some_and(|memory| memory.poisoned.is_some()) {
        return Want::Suspend;
    }
    // So is what the user wants withdrawn.
    if peer.withdraw {
        return Want::Suspend;
    }
    if peer.suspend || !ending::is_held(peer) {
        return Want::Leave;
    }
    let usable =
        spire.bundles.get(trust_domain).is_some_and(|bundle| poison::harm(world, peer, bundle).is_none());
    match (usable, spire.relationships.contains_key(trust_domain)) {
        // Before all is read, what an earlier life of the agent suspended is not known.
        (true, true) if world.is_read() => Want::Federate,
        // SPIRE holds none, and none can be given to it: an entry that names it would get no SVID at all.
        (false, _) if relationship::served(world, peer).is_none() => Want::Suspend,
        _ => Want::Leave,
    }
}

/// Whether the peer's selection, or being the agent's own, gives consent to edit this registration.
#[must_use]
pub fn selects(peer: &Peer, registration: &Registration) -> bool {
    let by_selector = peer.federates_with.as_ref().is_some_and(|selection| {
        let only_ids = selection.selector.is_empty() && !selection.spiffe_ids.is_empty();
        !only_ids && selection.selector.matches(&registration.labels)
    });
    registration.is_agent || by_selector
}

/// Where the agent added a trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Workloads' registrations, named for the operator.
    pub workloads: Vec<String>,
    /// The agent's own registration.
    pub own: Option<String>,
}

/// The registrations that name a trust domain by the agent's doing.
#[must_use]
pub fn added_for(world: &World, trust_domain: &TrustDomain) -> Added {
    let mut added = Added::default();
    match world.settings.relationships {
        Relationships::ControllerManager => {
            for registration in world.registrations.values() {
                let name = registration.key.to_string();
                if !is_recorded(registration, trust_domain) || contest::is_left(world, trust_domain, &name) {
                    continue;
                }
                if registration.is_agent {
                    added.own = Some(name);
                } else {
                    added.workloads.push(name);
                }
            }
        }
        Relationships::ServerApi => {
            let Some(peer) = world.peers.get(trust_domain) else { return added };
            let recorded = recorded_entries(world, trust_domain);
            let federating = world.spire.iter().flat_map(|spire| spire.federating_with(trust_domain));
            let is_left = |entry: &&Entry| contest::is_left(world, trust_domain, &entry.id);
            for entry in federating.filter(|entry| !is_left(entry)) {
                if is_own_entry(world, entry) {
                    added.own = Some(entry.spiffe_id.to_string());
                } else if selects_entry(world, peer, entry) || recorded.contains(&entry.id) {
                    added.workloads.push(entry.spiffe_id.to_string());
                }
            }
        }
    }
    added
}

/// What a peer's `federatesWith` selects, the agent's own registration aside, each named for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// They name the peer.
    pub federating: Vec<String>,
    /// They do not.
    pub lacking: Vec<String>,
    /// How many registrations it does not select.
    pub others: usize,
}

/// The registrations that the peer selects, and whether they federate with it.
#[must_use]
pub fn selected(world: &World, peer: &Peer) -> Selected {
    let mut found = Selected::default();
    let mut sort = |name: String, is_selected: bool, federates: bool| match (is_selected, federates) {
        (false, _) => found.others += 1,
        (true, true) => found.federating.push(name),
        (true, false) => found.lacking.push(name),
    };
    match world.settings.relationships {
        Relationships::ControllerManager => {
            for registration in world.registrations.values().filter(|registration| !registration.is_agent) {
                let name = registration.key.to_string();
                sort(name, selects(peer, registration), registration.names(&peer.trust_domain));
            }
        }
        Relationships::ServerApi => {
            let entries = world.spire.iter().flat_map(|spire| spire.entries.values());
            for entry in entries.filter(|entry| !is_own_entry(world, entry)) {
                let federates = entry.federates_with.contains(&peer.trust_domain);
                sort(entry.spiffe_id.to_string(), selects_entry(world, peer, entry), federates);
            }
        }
    }
    found
}

/// Registrations that name the peer though nobody gave the agent consent to edit them.
#[must_use]
pub fn unselected(world: &World, peer: &Peer) -> Vec<String> {
    let foreign = |r: &&Arc<Registration>| r.names(&peer.trust_domain) && !selects(peer, r);
    if world.settings.relationships == Relationships::ServerApi {
        let federating = world.spire.iter().flat_map(|spire| spire.federating_with(&peer.trust_domain));
        let recorded = recorded_entries(world, &peer.trust_domain);
        let unselected =
            federating.filter(|entry| !selects_entry(world, peer, entry) && !recorded.contains(&entry.id));
        return unselected.map(|entry| entry.spiffe_id.to_string()).collect();
    }
    world.registrations.values().filter(foreign).map(|r| r.key.to_string()).collect()
}

/// Registrations that name the peer, and out of which its end does not take it: in an emergency those that are not
/// selected; otherwise all in which the agent did not put it; and those into which someone puts it back each time.
#[must_use]
pub fn not_ours(world: &World, peer: &Peer) -> Vec<String> {
    let trust_domain = &peer.trust_domain;
    if world.settings.relationships == Relationships::ServerApi {
        return unselected(world, peer).into_iter().chain(contest::left_in(world, trust_domain)).collect();
    }
    let naming = world.registrations.values().filter(|r| r.names(trust_domain));
    let ours =
        |r: &Registration| r.record.added.contains(trust_domain) || (peer.ending.at_once && selects(peer, r));
    let stays = |r: &Registration| !ours(r) || contest::is_left(world, trust_domain, &r.key.to_string());
    naming.filter(|r| stays(r)).map(|r| r.key.to_string()).collect()
}

/// Registrations out of which an emergency takes the peer: to select one is consent to suspend that trust domain in it.
#[must_use]
pub fn revocable(world: &World, peer: &Peer) -> Vec<String> {
    let trust_domain = &peer.trust_domain;
    if world.settings.relationships == Relationships::ServerApi {
        let federating = world.spire.iter().flat_map(|spire| spire.federating_with(trust_domain));
        let is_left = |entry: &Entry| contest::is_left(world, trust_domain, &entry.id);
        let recorded = recorded_entries(world, trust_domain);
        let is_ours = |entry: &Entry| selects_entry(world, peer, entry) || recorded.contains(&entry.id);
        let selected = federating.filter(|entry| is_ours(entry) && !is_left(entry));
        return selected.map(|entry| entry.spiffe_id.to_string()).collect();
    }
    let is_revocable = |r: &&Arc<Registration>| {
        let ours = is_recorded(r, trust_domain) || (r.names(trust_domain) && selects(peer, r));
        ours && !contest::is_left(world, trust_domain, &r.key.to_string())
    };
    world.registrations.values().filter(is_revocable).map(|r| r.key.to_string()).collect()
}

/// Whether the agent wrote down on it that it changed it for this trust domain.
pub(super) fn is_recorded(registration: &Registration, trust_domain: &TrustDomain) -> bool {
    let record = &registration.record;
    record.added.contains(trust_domain) || record.suspended.contains(trust_domain)
}

/// Selected registrations in which someone else took away what the agent had added. It does not fight: where its record says
/// so, at once; where that was taken away with it, after a few times.
#[must_use]
pub fn reverted(world: &World, peer: &Peer) -> Vec<String> {
    let reverted = |r: &&Arc<Registration>| {
        selects(peer, r)
            && r.record.added.contains(&peer.trust_domain)
            && !r.record.suspended.contains(&peer.trust_domain)
            && !r.names(&peer.trust_domain)
    };
    let recorded = world.registrations.values().filter(reverted).map(|r| r.key.to_string());
    let all: BTreeSet<String> = recorded.chain(contest::left_out(world, &peer.trust_domain)).collect();
    all.into_iter().collect()
}

/// The patches for all registrations, at most one each.
#[must_use]
pub fn patches(world: &World) -> Vec<Patch> {
    if world.settings.relationships != Relationships::ControllerManager {
        return Vec::new();
    }
    let wants: Vec<(&Peer, Want)> =
        world.peers.values().map(|peer| (peer.as_ref(), want(world, peer))).collect();
    world.registrations.values().filter_map(|registration| patch(world, registration, &wants)).collect()
}

fn patch(world: &World, registration: &Registration, wants: &[(&Peer, Want)]) -> Option<Patch> {
    let mut names = registration.federates_with.clone();
    let mut record = registration.record.clone();
    let object = registration.key.to_string();
    for (peer, want) in wants {
        if contest::is_left(world, &peer.trust_domain, &object) {
            continue;
        }
        edit(registration, peer, *want, &mut names, &mut record);
    }
    if names == registration.federates_with && record == registration.record {
        return None;
    }
    let mut ops = Vec::new();
    if names != registration.federates_with {
        ops.push(PatchOp::Add { path: "/spec/federatesWith".to_owned(), value: json!(names) });
    }
    if record != registration.record {
        ops.extend(record_ops(registration, &record));
    }
    Some(Patch {
        key: registration.key.clone(),
        resource_version: registration.resource_version.clone(),
        ops,
    })
}

fn edit(registration: &Registration, peer: &Peer, want: Want, names: &mut Vec<String>, record: &mut Record) {
    let trust_domain = &peer.trust_domain;
    let name = trust_domain.as_str();
    let times_named = names.iter().filter(|n| is_name_of(n, trust_domain)).count();
    let named = times_named > 0;
    let selected = selects(peer, registration);
    let forget = |names: &mut Vec<String>, record: &mut Record| {
        let suspended = record.suspended.remove(trust_domain);
        if record.added.remove(trust_domain) {
            names.retain(|n| n != name);
        } else if suspended && !selected && !named {
            // The user wrote it, and does not want it kept away any more.
            names.push(name.to_owned());
        }
    };
    match want {
        Want::Leave => {}
        Want::Strip { agent } if agent || !registration.is_agent => forget(names, record),
        Want::Strip { .. } => {}
        Want::Revoke => {
            let recorded = record.suspended.remove(trust_domain) | record.added.remove(trust_domain);
            if recorded || selected {
                names.retain(|n| !is_name_of(n, trust_domain));
            }
        }
        Want::Federate | Want::Suspend if !selected => forget(names, record),
        Want::Suspend => {
            if named {
                names.retain(|n| !is_name_of(n, trust_domain));
                record.suspended.insert(trust_domain.clone());
            }
        }
        Want::Federate => {
            if record.suspended.remove(trust_domain) {
                if !named {
                    names.push(name.to_owned());
                }
            } else if !named && !record.added.contains(trust_domain) {
                names.push(name.to_owned());
                record.added.insert(trust_domain.clone());
            } else if times_named > 1 && record.added.remove(trust_domain) {
                // Someone else has written it beside ours: of one that is there twice spire-controller-manager never has
                // done, and SPIRE issues new SVIDs each time that it begins again.
                if let Some(ours) = names.iter().rposition(|n| n == name) {
                    names.remove(ours);
                }
            }
        }
    }
}

fn record_ops(registration: &Registration, record: &Record) -> Vec<PatchOp> {
    let path = pointer(&["metadata", "annotations", ANNOTATION_RECORD]);
    let Some(text) = record.to_annotation() else {
        return vec![PatchOp::Remove { path }];
    };
    let mut ops = Vec::new();
    if !registration.has_annotations {
        ops.push(PatchOp::Add { path: "/metadata/annotations".to_owned(), value: json!({}) });
    }
    ops.push(PatchOp::Add { path, value: json!(text) });
    ops
}

fn is_own_entry(world: &World, entry: &Entry) -> bool {
    world.identity.as_ref().is_some_and(|identity| identity.id == entry.spiffe_id)
}

/// The same as [`selects`] of a registration entry in SPIRE.
pub(super) fn selects_entry(world: &World, peer: &Peer, entry: &Entry) -> bool {
    let by_spec = peer.federates_with.as_ref().is_some_and(|selection| {
        let all = selection.selector.is_empty() && selection.spiffe_ids.is_empty();
        all || selection.spiffe_ids.contains(&entry.spiffe_id)
    });
    by_spec || is_own_entry(world, entry)
}

/// The entries of SPIRE to which the agent added a trust domain, or is about to: those that stand in the relationship's object.
/// An entry has no place for it.
fn recorded_entries(world: &World, trust_domain: &TrustDomain) -> BTreeSet<String> {
    let text =
        standing(world, trust_domain).and_then(|object| object.meta.annotations.get(ANNOTATION_RECORD));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// The relationship's object, where it is there and ours.
fn standing<'a>(world: &'a World, trust_domain: &TrustDomain) -> Option<&'a Object> {
    let object = world.objects.get(&relationship::key(trust_domain));
    object.map(AsRef::as_ref).filter(|object| object.is_generated_by(&world.settings.instance))
}

/// What is to stand there; `None` where there is nothing to record. What cannot be seen now stays.
pub(super) fn entries_record(world: &World, peer: &Peer) -> Option<String> {
    let trust_domain = &peer.trust_domain;
    if world.settings.relationships != Relationships::ServerApi {
        return None;
    }
    let before = recorded_entries(world, trust_domain);
    let (spire, adds) = (world.spire.as_deref(), want(world, peer) == Want::Federate);
    let stands = |entry: &&Entry| {
        if entry.federates_with.contains(trust_domain) {
            return before.contains(&entry.id);
        }
        adds && selects_entry(world, peer, entry) && !contest::is_left(world, trust_domain, &entry.id)
    };
    let seen = spire.iter().flat_map(|spire| spire.entries.values()).filter(stands).map(|entry| &entry.id);
    let is_listed = spire.is_some_and(|spire| spire.why_unlisted().is_none());
    let is_unseen = |id: &&String| !is_listed && spire.is_none_or(|spire| !spire.entries.contains_key(*id));
    let all: BTreeSet<&String> = seen.chain(before.iter().filter(is_unseen)).take(MOST_RECORDED).collect();
    (!all.is_empty()).then(|| json!(all).to_string())
}

/// The same for registration entries in SPIRE, where no controller makes them from objects.
#[must_use]
pub fn entry_actions(world: &World) -> Vec<SpireAction> {
    if world.settings.relationships != Relationships::ServerApi {
        return Vec::new();
    }
    let Some(spire) = &world.spire else { return Vec::new() };
    let of = |peer: &Arc<Peer>| {
        let recorded = recorded_entries(world, &peer.trust_domain);
        // It is written down before it is done, or nobody could take it back; where it can be.
        let records = standing(world, &peer.trust_domain).is_some() && recorded.len() < MOST_RECORDED;
        (Arc::clone(peer), want(world, peer), recorded, records)
    };
    let wants: Vec<_> = world.peers.values().map(of).collect();
    let mut actions = Vec::new();
    for entry in spire.entries.values() {
        let mut names = entry.federates_with.clone();
        for (peer, want, recorded, records) in &wants {
            let (is_selected, is_recorded) =
                (selects_entry(world, peer, entry), recorded.contains(&entry.id));
            if !is_selected && !is_recorded {
                continue;
            }
            match want {
                _ if contest::is_left(world, &peer.trust_domain, &entry.id) => {}
                Want::Leave => {}
                Want::Federate if is_selected => {
                    if is_recorded || !records {
                        names.insert(peer.trust_domain.clone());
                    }
                }
                Want::Strip { agent: false } if is_own_entry(world, entry) => {}
                Want::Federate | Want::Suspend | Want::Revoke | Want::Strip { .. } => {
                    names.remove(&peer.trust_domain);
                }
            }
        }
        let add: BTreeSet<_> = names.difference(&entry.federates_with).cloned().collect();
        let remove: BTreeSet<_> = entry.federates_with.difference(&names).cloned().collect();
        if !(add.is_empty() && remove.is_empty()) {
            actions.push(SpireAction::ChangeFederatesWith { entry: entry.id.clone(), add, remove });
        }
    }
    actions
}

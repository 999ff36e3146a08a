//! Who undoes in `federatesWith` what the agent does there, each time: a GitOps controller that heals its own manifest, as a
//! rule. It is done again a few times; then it is said, and left, for every change makes SPIRE issue new SVIDs.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::registrations::{self, Want};
use crate::model::trust::Entry;
use crate::model::world::{Contest, PeerMemory, Relationships};
use crate::model::{Peer, TrustDomain, World};

/// How often it is undone before it is left so.
const MOST_UNDONE: u32 = 3;
/// How long it has to stand for what was undone before to be forgotten.
const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(1);
/// How many registrations are followed for one peer.
const MOST_FOLLOWED: usize = 1024;

/// What is seen of one registration.
struct Seen {
    version: String,
    /// Whether it is as it is wanted.
    stands: bool,
    /// Whether it says itself that it was as it is wanted, though nobody saw it so.
    has_stood: bool,
}

/// Follows the registrations in which the peer is to be, or out of which it is to be kept. Where that turns, all is forgotten.
pub(super) fn advance(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    let keeps_out = match registrations::want(world, peer) {
        Want::Suspend | Want::Revoke | Want::Strip { .. } => true,
        Want::Federate => false,
        // While SPIRE cannot be read, say.
        Want::Leave => return,
    };
    if memory.keeps_out != keeps_out {
        memory.contests.clear();
        memory.keeps_out = keeps_out;
    }
    let seen = if keeps_out { kept_out(world, peer) } else { named(world, peer, &memory.contests) };
    memory.contests.retain(|object, contest| {
        let is_old = contest.stands && world.now.duration_since(contest.changed) >= FORGOTTEN_AFTER;
        seen.contains_key(object) && (keeps_out || !is_old)
    });
    for (object, Seen { version, stands, has_stood }) in seen {
        let Some(contest) = memory.contests.get_mut(&object) else {
            // What stands already is nobody's contest while the peer is to be named.
            if memory.contests.len() < MOST_FOLLOWED && (keeps_out || !stands) {
                let contest = Contest { stands, version, changed: world.now, undone: 0 };
                memory.contests.insert(object, contest);
            }
            continue;
        };
        // It may be undone before it was ever seen to stand.
        let again = has_stood && contest.version != version;
        if !stands && (again || contest.stands) {
            let quiet = world.now.duration_since(contest.changed) >= FORGOTTEN_AFTER;
            contest.undone = if quiet { 1 } else { contest.undone.saturating_add(1) };
            contest.changed = world.now;
        } else if stands != contest.stands {
            contest.changed = world.now;
        }
        (contest.stands, contest.version) = (stands, version);
    }
}

/// The registrations out of which the peer is to be kept.
fn kept_out(world: &World, peer: &Peer) -> BTreeMap<String, Seen> {
    let trust_domain = &peer.trust_domain;
    match world.settings.relationships {
        Relationships::ControllerManager => {
            let registrations = world.registrations.values().filter(|registration| {
                registrations::selects(peer, registration)
                    || registrations::is_recorded(registration, trust_domain)
            });
            let seen = registrations.map(|registration| {
                let seen = Seen {
                    version: registration.resource_version.clone(),
                    stands: !registration.names(trust_domain),
                    has_stood: registration.record.suspended.contains(trust_domain),
                };
                (registration.key.to_string(), seen)
            });
            seen.collect()
        }
        Relationships::ServerApi => {
            let entries = selected_entries(world, peer);
            entries.map(|entry| seen_entry(entry, !entry.federates_with.contains(trust_domain))).collect()
        }
    }
}

/// The registrations that are to name the peer: those that lack it, and those that lacked it before.
fn named(world: &World, peer: &Peer, before: &BTreeMap<String, Contest>) -> BTreeMap<String, Seen> {
    let trust_domain = &peer.trust_domain;
    match world.settings.relationships {
        Relationships::ControllerManager => {
            let selected = world
                .registrations
                .values()
                .filter(|registration| registrations::selects(peer, registration));
            let seen = selected.filter_map(|registration| {
                let stands = registration.names(trust_domain);
                if stands && before.is_empty() {
                    return None;
                }
                let (object, version) = (registration.key.to_string(), String::new());
                (!stands || before.contains_key(&object))
                    .then_some((object, Seen { version, stands, has_stood: false }))
            });
            seen.collect()
        }
        Relationships::ServerApi => {
            let entries = selected_entries(world, peer).filter_map(|entry| {
                let stands = entry.federates_with.contains(trust_domain);
                (!stands || before.contains_key(&entry.id)).then(|| seen_entry(entry, stands))
            });
            entries.collect()
        }
    }
}

fn selected_entries<'a>(world: &'a World, peer: &'a Peer) -> impl Iterator<Item = &'a Entry> {
    let entries = world.spire.iter().flat_map(|spire| spire.entries.values());
    entries.filter(move |entry| registrations::selects_entry(world, peer, entry))
}

/// Entries have no version, and say nothing of themselves. Several may have one SPIFFE ID: they are told apart by their own.
fn seen_entry(entry: &Entry, stands: bool) -> (String, Seen) {
    (entry.id.clone(), Seen { version: String::new(), stands, has_stood: false })
}

/// Whether a registration (an object, or an entry of SPIRE by its ID) is left as someone else wants it, since that undid too
/// often what the agent did.
#[must_use]
pub fn is_left(world: &World, trust_domain: &TrustDomain, object: &str) -> bool {
    let contest = world.memory.get(trust_domain).and_then(|memory| memory.contests.get(object));
    contest.is_some_and(Contest::is_left)
}

/// The registrations in which the peer is left, though it must not be there; each named for the operator.
#[must_use]
pub fn left_in(world: &World, trust_domain: &TrustDomain) -> Vec<String> {
    left(world, trust_domain, true)
}

/// The registrations in which the peer is not, though it should be, since someone takes it out; as [`left_in`].
#[must_use]
pub fn left_out(world: &World, trust_domain: &TrustDomain) -> Vec<String> {
    left(world, trust_domain, false)
}

fn left(world: &World, trust_domain: &TrustDomain, keeps_out: bool) -> Vec<String> {
    let memory = world.memory.get(trust_domain).filter(|memory| memory.keeps_out == keeps_out);
    let contests = memory.into_iter().flat_map(|memory| &memory.contests);
    let named = |object: &String| match world.settings.relationships {
        Relationships::ControllerManager => object.clone(),
        Relationships::ServerApi => {
            let entry = world.spire.as_ref().and_then(|spire| spire.entries.get(object));
            entry.map_or_else(|| object.clone(), |entry| entry.spiffe_id.to_string())
        }
    };
    let mut names: Vec<String> =
        contests.filter(|(_, contest)| contest.is_left()).map(|(object, _)| named(object)).collect();
    names.sort();
    names.dedup();
    names
}

impl Contest {
    fn is_left(&self) -> bool {
        !self.stands && self.undone >= MOST_UNDONE
    }
}

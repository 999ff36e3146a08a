//! Who puts a name back into `federatesWith` each time it is taken out: a GitOps controller that heals its own manifest,
//! as a rule. It is taken out a few times; then it is said, and left, for every change makes SPIRE issue new SVIDs.

use jiff::SignedDuration;

use super::registrations::{self, Want};
use crate::model::world::{Contest, PeerMemory, Relationships};
use crate::model::{Peer, TrustDomain, World};

/// How often it comes back before it is left there.
const MOST_RETURNS: u32 = 3;
/// How long it has to stay away for its returns to be forgotten.
const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(1);
/// How many registrations are followed for one peer.
const MOST_FOLLOWED: usize = 1024;

/// What is seen of one registration.
struct Seen {
    object: String,
    version: String,
    named: bool,
    /// Whether it says itself that it was taken out.
    taken_out: bool,
}

/// Follows the registrations out of which the peer is to be kept. Once it is to be kept out no more, all is forgotten.
pub(super) fn advance(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    if !matches!(registrations::want(world, peer), Want::Suspend | Want::Revoke | Want::Strip { .. }) {
        memory.contests.clear();
        return;
    }
    let seen = seen(world, peer);
    memory.contests.retain(|object, _| seen.iter().any(|seen| seen.object == *object));
    for seen in seen.into_iter().take(MOST_FOLLOWED) {
        let Seen { object, version, named, taken_out } = seen;
        let Some(contest) = memory.contests.get_mut(&object) else {
            memory.contests.insert(object, Contest { named, version, changed: world.now, returns: 0 });
            continue;
        };
        // It may come back before it was ever seen to be gone: then its own record tells.
        let again = taken_out && contest.version != version;
        if named && (again || !contest.named) {
            let quiet = world.now.duration_since(contest.changed) >= FORGOTTEN_AFTER;
            contest.returns = if quiet { 1 } else { contest.returns.saturating_add(1) };
            contest.changed = world.now;
        } else if named != contest.named {
            contest.changed = world.now;
        }
        (contest.named, contest.version) = (named, version);
    }
}

fn seen(world: &World, peer: &Peer) -> Vec<Seen> {
    let trust_domain = &peer.trust_domain;
    match world.settings.relationships {
        Relationships::ControllerManager => {
            let registrations = world.registrations.values().filter(|registration| {
                registrations::selects(peer, registration)
                    || registrations::is_recorded(registration, trust_domain)
            });
            let seen = registrations.map(|registration| Seen {
                object: registration.key.to_string(),
                version: registration.resource_version.clone(),
                named: registration.names(trust_domain),
                taken_out: registration.record.suspended.contains(trust_domain),
            });
            seen.collect()
        }
        Relationships::ServerApi => {
            let entries = world.spire.iter().flat_map(|spire| spire.entries.values());
            let entries = entries.filter(|entry| registrations::selects_entry(world, peer, entry));
            let seen = entries.map(|entry| Seen {
                object: entry.spiffe_id.to_string(),
                version: String::new(),
                named: entry.federates_with.contains(trust_domain),
                taken_out: false,
            });
            seen.collect()
        }
    }
}

/// Whether the peer is left in this registration (an object, or a SPIFFE ID where there are none), since it was put back
/// there too often.
#[must_use]
pub fn is_left(world: &World, trust_domain: &TrustDomain, object: &str) -> bool {
    let contest = world.memory.get(trust_domain).and_then(|memory| memory.contests.get(object));
    contest.is_some_and(Contest::is_left)
}

/// The registrations in which the peer is left, though it must not be there.
#[must_use]
pub fn left<'a>(world: &'a World, trust_domain: &TrustDomain) -> Vec<&'a str> {
    let contests = world.memory.get(trust_domain).into_iter().flat_map(|memory| &memory.contests);
    contests.filter(|(_, contest)| contest.is_left()).map(|(object, _)| object.as_str()).collect()
}

impl Contest {
    fn is_left(&self) -> bool {
        self.named && self.returns >= MOST_RETURNS
    }
}

//! From what is known to what should be: pure, total, deterministic.

pub mod admission;
pub mod adoption;
pub mod alarms;
pub mod authorization;
mod closing;
pub mod contest;
pub mod diff;
pub mod dns;
pub mod ending;
pub mod exports;
pub mod finalizers;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod gateways;
pub mod generated;
#[cfg(test)]
mod golden;
pub mod heed;
pub mod imports;
pub mod istio;
pub mod links;
pub mod memo;
pub mod memory;
pub mod mesh;
pub mod monitors;
pub mod notice;
mod observed;
pub mod origin;
pub mod pace;
pub mod pods;
pub mod poison;
pub mod prune;
#[cfg(test)]
mod purity;
pub mod reach;
pub mod registrations;
pub mod relationship;
pub mod rotation;
pub mod selectors;
pub mod services;
pub mod status;
pub mod taking;
pub mod told;
#[cfg(test)]
mod trust_tests;
pub mod verdict;
pub mod xds;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use self::memo::Memo;
use self::status::trust_domain_peer::Subject;
use crate::model::change::PatchOp;
use crate::model::endpoint::MonitorTarget;
use crate::model::service::GatewayAddress;
use crate::model::session::{LinkPlan, Trouble};
use crate::model::trust::SpireAction;
use crate::model::{Object, ObjectKey, Peer, TrustDomain, World};

/// What should be. Two equal plans are no work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Every generated object that should be there, whole.
    pub objects: BTreeMap<ObjectKey, Arc<Object>>,
    /// Those of them that do not stand in the store as they should.
    pub writes: BTreeMap<ObjectKey, diff::Write>,
    /// Generated objects to delete, and such as were handed over and replaced, by the uid they were seen with.
    pub prune: BTreeMap<ObjectKey, String>,
    /// Changes to objects that are not ours, each consented to: `federatesWith` and finalizers.
    pub patches: Vec<Patch>,
    pub spire: Vec<SpireAction>,
    pub links: BTreeMap<TrustDomain, LinkPlan>,
    pub monitors: BTreeMap<TrustDomain, MonitorTarget>,
    /// Statuses that differ from what stands in the store.
    pub statuses: BTreeMap<ObjectKey, StatusWrite>,
    /// Which of the peers' gateways are to be tried.
    pub gateways: BTreeSet<GatewayAddress>,
    /// What the DNS server answers; `None` while that is not known: what was answered before stays.
    pub zone: Option<Arc<dns::Zone>>,
    /// Whose bundle endpoints are to be asked, unless they were after that moment.
    pub ask_again: BTreeMap<TrustDomain, Timestamp>,
    /// What clients without Istio are served; `None`: what they were served last.
    pub xds: Option<Arc<xds::Xds>>,
    /// When to plan again though nothing changes.
    pub wake_at: Option<Timestamp>,
}

/// A JSON patch (RFC 6902) that holds for one resourceVersion only.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    pub key: ObjectKey,
    pub resource_version: String,
    pub ops: Vec<PatchOp>,
}

/// A status to write, whole, with the conditions' transition times set.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusWrite {
    pub uid: String,
    pub status: Value,
    /// Conditions whose status changes by it, for an Event and the log in the same words.
    pub transitions: Vec<Transition>,
}

/// A condition that changes its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What an operator should look at; else good news.
    pub is_warning: bool,
    pub condition: String,
    pub reason: String,
    pub message: String,
}

/// The plan for a world. Time, too, is in the world.
#[must_use]
pub fn plan(world: &World) -> Plan {
    plan_anew(world, &mut Memo::default())
}

/// As [`plan`], with what is remembered of the plan before: sooner, and the same.
#[must_use]
pub fn plan_anew(world: &World, memo: &mut Memo) -> Plan {
    let ending: BTreeSet<TrustDomain> = world
        .peers
        .values()
        .filter(|peer| ending::drops_services(world, peer))
        .map(|peer| peer.trust_domain.clone())
        .collect();
    let mut services = services::decide(world, &ending, memo);
    let (relationships, blocked) = relationships(world, memo);
    let links = links::links(world, &services, &troubles(world, &services, &blocked), memo);
    let mut objects = std::mem::take(&mut services.objects);
    for (key, object) in relationships {
        let object = memo.relationships.get(&key, &object, |object| diff::seal(object.clone()));
        objects.insert(key, object);
    }
    if !world.is_read() || world.identity.is_none() {
        objects.clear();
    }
    let mut patches = registrations::patches(world);
    patches.extend(finalizers::patches(world));
    let mut spire: Vec<SpireAction> =
        world.peers.values().flat_map(|peer| relationship::actions(world, peer)).collect();
    spire.extend(registrations::entry_actions(world));
    let mut prune = prune::prune(world, &objects);
    if world.is_read() && world.identity.is_some() {
        prune.extend(adoption::superseded(world));
    }
    let mut writes = diff::writes(world, &objects, &mut memo.stood);
    let waits = |peer: &Peer| !ending::is_held(peer) || relationship::moves_blindly(world, peer);
    let waiting = world.peers.values().filter(|peer| peer.deletion.is_none() && waits(peer));
    for peer in waiting {
        writes.remove(&relationship::key(&peer.trust_domain));
    }
    let statuses = statuses(world, &services, &links, &blocked, memo);
    let zone = dns::zone(world, &ending, &services, memo);
    let monitors = monitors::monitors_anew(world, memo);
    memo.turn();
    Plan {
        writes,
        prune,
        patches,
        spire,
        monitors,
        statuses,
        wake_at: wake_at(world, &services),
        ask_again: ask_again(world),
        gateways: reach::targets(&services.carriers),
        xds: services.xds.take(),
        zone,
        links,
        objects,
    }
}

type Relations = (BTreeMap<ObjectKey, Object>, BTreeMap<TrustDomain, String>);

/// The relationships' objects; and, by peer, why one cannot be made ours.
fn relationships(world: &World, memo: &mut Memo) -> Relations {
    let mut objects = BTreeMap::new();
    let mut blocked = BTreeMap::new();
    // What is suspended stays as it is, until its end is asked for.
    for peer in world.peers.values().filter(|peer| !peer.suspend || peer.deletion.is_some()) {
        let Some(object) = relationship::object_anew(world, peer, &mut memo.texts) else { continue };
        let handed_over = |key: &&ObjectKey| world.objects.get(*key).is_some_and(|o| o.is_handed_over());
        if let Some(other) = relationship::foreign(world, peer).filter(|key| !handed_over(key)) {
            let why = format!(
                "{other} describes {} already and is not ours: delete it, so that {} can take its place, or hand it over \
                 (`entente adopt {}`)",
                peer.trust_domain, object.key, peer.trust_domain
            );
            blocked.insert(peer.trust_domain.clone(), why);
            // What stands there stays; nothing new is put beside an object that is obeyed.
            if !world.objects.contains_key(&object.key) {
                continue;
            }
        }
        match generated::claim(world, &object.key) {
            Err(why) => {
                blocked.insert(peer.trust_domain.clone(), why);
            }
            Ok(()) => {
                objects.insert(object.key.clone(), object);
            }
        }
    }
    (objects, blocked)
}

/// What each peer is told to be wrong on our side.
fn troubles(
    world: &World,
    services: &services::ServicesPlan,
    blocked: &BTreeMap<TrustDomain, String>,
) -> BTreeMap<TrustDomain, Vec<Trouble>> {
    let of = |peer: &Peer| {
        let blocked = blocked.get(&peer.trust_domain).map(String::as_str);
        status::trust_domain_peer::troubles(Subject { world, peer, link: None, services, blocked })
    };
    world.peers.values().map(|peer| (peer.trust_domain.clone(), of(peer))).collect()
}

fn statuses(
    world: &World,
    services: &services::ServicesPlan,
    links: &BTreeMap<TrustDomain, LinkPlan>,
    blocked: &BTreeMap<TrustDomain, String>,
    memo: &mut Memo,
) -> BTreeMap<ObjectKey, StatusWrite> {
    // What is not known yet must not read as what is missing.
    if !world.is_read() {
        return BTreeMap::new();
    }
    let mut statuses = status::rejected(world);
    for peer in world.peers.values() {
        let key = ObjectKey::cluster(crate::model::object::Kind::TrustDomainPeer, &peer.object);
        // Its last good version is in use still, but what is said is what is wrong with it now.
        if world.rejected.contains_key(&key) {
            continue;
        }
        let subject = Subject {
            world,
            peer,
            link: links.get(&peer.trust_domain),
            services,
            blocked: blocked.get(&peer.trust_domain).map(String::as_str),
        };
        if let Some(write) = status::trust_domain_peer::status(subject) {
            statuses.insert(key, write);
        }
    }
    if world.identity.is_some() && world.spire.is_some() {
        statuses.extend(status::services(world, services, links, memo));
    }
    statuses
}

fn wake_at(world: &World, services: &services::ServicesPlan) -> Option<Timestamp> {
    let verdicts = world.peers.values().filter_map(|peer| verdict::wake_at(world, peer));
    let drains = world.peers.values().filter_map(|peer| ending::wake_at(world, peer));
    // Bundles become unusable by time alone.
    let bundles = world.spire.iter().flat_map(|spire| spire.bundles.values());
    let expiries = bundles.flat_map(|bundle| bundle.authorities().map(|a| a.not_after()));
    let rests = world.memory.values().filter_map(|memory| memory.quiet_until);
    let alarms = world.peers.values().filter_map(|peer| alarms::wake_at(world, peer));
    let notices = world.memory.values().filter_map(|memory| notice::wake_at(world, memory));
    let after = |at: Timestamp| at.saturating_add(Duration::from_secs(1)).unwrap_or(at);
    let all = verdicts
        .chain(drains)
        .chain(services.wake_at)
        .chain(expiries.map(after))
        .chain(rests)
        .chain(alarms)
        .chain(notices)
        .chain(told::wake_at(world))
        .chain(rotation::wake_at(world));
    // What is judged by whole seconds may not have come about within the second of its moment: it is looked at again in the next.
    let next = after(world.now);
    all.filter(|at| *at > world.now).map(|at| if at > world.moment { at } else { next }).min()
}

/// The endpoints of which more has to be known than they were last asked.
fn ask_again(world: &World) -> BTreeMap<TrustDomain, Timestamp> {
    let peers = world.peers.values().filter(|peer| peer.deletion.is_none() && !peer.suspend);
    let asked =
        |peer: &Arc<Peer>| Some((peer.trust_domain.clone(), relationship::to_be_asked_after(world, peer)?));
    peers.filter_map(asked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::world::PeerMemory;
    use fixtures::{at, td, world};

    #[test]
    fn a_moment_within_the_present_second_is_not_lost() {
        let mut world = world("west.example");
        let wake_at = |world: &World| plan(world).wake_at;
        world.now = at(100);
        let until = |millis| at(100).saturating_add(Duration::from_millis(millis)).ok();
        for (quiet_until, moment, expected) in [
            (until(500), until(200), until(500)),
            // The whole seconds that were judged by have not come to it.
            (until(500), until(600), until(1_000)),
            (until(500), until(500), until(1_000)),
            (until(0), until(600), None),
        ] {
            let memory = PeerMemory { quiet_until, ..PeerMemory::default() };
            world.memory.insert(td("east.example"), memory);
            world.moment = moment.unwrap();
            assert_eq!(wake_at(&world), expected, "{quiet_until:?} {moment:?}");
        }
    }
}

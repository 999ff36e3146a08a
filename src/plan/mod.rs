//! From what is known to what should be: pure, total, deterministic.

pub mod authorization;
pub mod diff;
pub mod ending;
pub mod exports;
pub mod finalizers;
pub mod imports;
pub mod istio;
pub mod links;
pub mod memory;
pub mod monitors;
pub mod prune;
#[cfg(test)]
mod purity;
pub mod registrations;
pub mod relationship;
pub mod services;
pub mod status;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::model::endpoint::MonitorTarget;
use crate::model::object::{ANNOTATION_SOURCE, LABEL_INSTANCE};
use crate::model::session::LinkPlan;
use crate::model::trust::SpireAction;
use crate::model::world::Settings;
use crate::model::{Object, ObjectKey, TrustDomain, World};

/// What should be. Two equal plans are no work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Every generated object that should be there, whole.
    pub objects: BTreeMap<ObjectKey, Object>,
    /// Those of them that do not stand in the store as they should.
    pub writes: BTreeMap<ObjectKey, diff::Write>,
    /// Generated objects to delete, by the uid they were seen with.
    pub prune: BTreeMap<ObjectKey, String>,
    /// Changes to objects that are not ours, each consented to: `federatesWith` and finalizers.
    pub patches: Vec<Patch>,
    pub spire: Vec<SpireAction>,
    pub links: BTreeMap<TrustDomain, LinkPlan>,
    pub monitors: BTreeMap<TrustDomain, MonitorTarget>,
    /// Statuses that differ from what stands in the store.
    pub statuses: BTreeMap<ObjectKey, StatusWrite>,
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

/// One operation of a patch.
#[derive(Clone, Debug, PartialEq)]
pub enum PatchOp {
    /// Sets the value at a JSON pointer, whether or not there is one.
    Add {
        path: String,
        value: Value,
    },
    Remove {
        path: String,
    },
}

/// A status to write, whole, with the conditions' transition times set.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusWrite {
    pub uid: String,
    pub status: Value,
}

/// The plan for a world. Time, too, is in the world.
#[must_use]
pub fn plan(world: &World) -> Plan {
    let ending: BTreeSet<TrustDomain> = world
        .peers
        .values()
        .filter(|peer| ending::stage(world, peer).is_some_and(|stage| stage.drops_imports()))
        .map(|peer| peer.trust_domain.clone())
        .collect();
    let services = services::services(world, &ending);
    let links = links::links(world, &services);
    let (relationships, blocked) = relationships(world);
    let mut objects = services.objects.clone();
    objects.extend(relationships);
    if !world.is_read() || world.identity.is_none() {
        objects.clear();
    }
    let mut patches = registrations::patches(world);
    patches.extend(finalizers::patches(world));
    let mut spire: Vec<SpireAction> =
        world.peers.values().flat_map(|peer| relationship::actions(world, peer)).collect();
    spire.extend(registrations::entry_actions(world));
    let writes = diff::writes(world, &mut objects);
    Plan {
        writes,
        prune: prune::prune(world, &objects),
        patches,
        spire,
        monitors: monitors::monitors(world),
        statuses: statuses(world, &services, &links, &blocked),
        wake_at: wake_at(world, &services),
        links,
        objects,
    }
}

type Relations = (BTreeMap<ObjectKey, Object>, BTreeMap<TrustDomain, String>);

/// The relationships' objects; and, by peer, why one cannot be made ours.
fn relationships(world: &World) -> Relations {
    let mut objects = BTreeMap::new();
    let mut blocked = BTreeMap::new();
    for peer in world.peers.values().filter(|peer| !peer.suspend) {
        let Some(object) = relationship::object(world, peer) else { continue };
        match not_ours(world, &object.key) {
            Some(why) => {
                blocked.insert(peer.trust_domain.clone(), why);
            }
            None => {
                objects.insert(object.key.clone(), object);
            }
        }
    }
    (objects, blocked)
}

/// Why an object of this name must not be touched, for the status: it is there, and neither ours nor handed over.
#[must_use]
pub fn not_ours(world: &World, key: &ObjectKey) -> Option<String> {
    let there = world.objects.get(key)?;
    if there.is_generated_by(&world.settings.instance) || there.is_handed_over() {
        return None;
    }
    Some(format!(
        "{key} is there already and is not ours, so it is left as it is; rename or delete it, or hand it over with the \
         annotation entente.dev/adopt: \"true\""
    ))
}

fn statuses(
    world: &World,
    services: &services::ServicesPlan,
    links: &BTreeMap<TrustDomain, LinkPlan>,
    blocked: &BTreeMap<TrustDomain, String>,
) -> BTreeMap<ObjectKey, StatusWrite> {
    // What is not known yet must not read as what is missing.
    if !world.is_read() {
        return BTreeMap::new();
    }
    let mut statuses = status::rejected(world);
    for peer in world.peers.values() {
        let subject = status::trust_domain_peer::Subject {
            world,
            peer,
            link: links.get(&peer.trust_domain),
            services,
            blocked: blocked.get(&peer.trust_domain).map(String::as_str),
        };
        if let Some(write) = status::trust_domain_peer::status(subject) {
            let key = ObjectKey::cluster(crate::model::object::Kind::TrustDomainPeer, &peer.object);
            statuses.insert(key, write);
        }
    }
    if world.identity.is_some() && world.spire.is_some() {
        statuses.extend(status::federated_service::statuses(world, services, links));
        statuses.extend(status::imported_service::statuses(world, services));
    }
    statuses
}

fn wake_at(world: &World, services: &services::ServicesPlan) -> Option<Timestamp> {
    let verdicts = world.peers.values().filter_map(|peer| verdict::wake_at(world, peer));
    let drains = world.peers.values().filter_map(|peer| match ending::stage(world, peer) {
        Some(ending::Stage::Drain(until)) => Some(until),
        _ => None,
    });
    verdicts.chain(drains).chain(services.wake_at).filter(|at| *at > world.now).min()
}

/// A generated object, labelled as ours, with what it was made from.
#[must_use]
pub fn generated(settings: &Settings, key: ObjectKey, spec: Value, source: &ObjectKey) -> Object {
    let mut object = Object::desired(key, spec);
    object.meta.labels.insert(LABEL_INSTANCE.to_owned(), label_value(&settings.instance));
    object.meta.annotations.insert(ANNOTATION_SOURCE.to_owned(), source_of(source));
    object
}

/// The value of the source annotation: `Kind/namespace/name`, or `Kind/name` for a cluster-scoped object.
#[must_use]
pub fn source_of(key: &ObjectKey) -> String {
    match &key.namespace {
        Some(namespace) => format!("{}/{namespace}/{}", key.kind, key.name),
        None => format!("{}/{}", key.kind, key.name),
    }
}

/// A legal label value for a text: itself, or cut and hashed where it is longer than 63 characters.
#[must_use]
pub fn label_value(text: &str) -> String {
    if text.len() <= 63 { text.to_owned() } else { hashed(text, 63) }
}

/// A legal object name for a text: itself where it is a DNS subdomain (RFC 1123), else cleaned and hashed.
#[must_use]
pub fn object_name(text: &str) -> String {
    let legal = text.len() <= 253 && text.split('.').all(crate::model::name::is_dns_label);
    if legal { text.to_owned() } else { hashed(text, 253) }
}

/// A readable stem and ten hexadecimal digits of the SHA-256.
fn hashed(text: &str, most: usize) -> String {
    let digest = hex::encode(Sha256::digest(text.as_bytes()));
    let tail: String = digest.chars().take(10).collect();
    let clean = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let stem: String = text.chars().take(most - 11).map(clean).collect();
    let stem = stem.trim_matches('-');
    if stem.is_empty() { format!("x-{tail}") } else { format!("{stem}-{tail}") }
}

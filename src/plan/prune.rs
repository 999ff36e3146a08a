//! What is ours and should no longer be there. Missing information deletes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::authorization::Allows;
use super::diff;
use super::generated::source_of;
use crate::model::object::{ANNOTATION_SOURCE, Kind, LABEL_PEER};
use crate::model::world::Rejected;
use crate::model::{Object, ObjectKey, World};

/// The generated objects to delete, with the uid they were seen with.
///
/// Nothing before every watch has been read, and our identity and SPIRE; nothing whose source cannot be read now, or
/// whose peer is suspended.
#[must_use]
pub fn prune(world: &World, desired: &BTreeMap<ObjectKey, Arc<Object>>) -> BTreeMap<ObjectKey, String> {
    if !world.is_read() || world.identity.is_none() || world.spire.is_none() {
        return BTreeMap::new();
    }
    let left = diff::left(world, desired);
    if left.is_empty() {
        return BTreeMap::new();
    }
    let frozen = frozen_peers(world);
    let unreadable: BTreeSet<String> = world
        .rejected
        .iter()
        .filter(|(key, r)| is_unread(world, key, r))
        .map(|(key, _)| source_of(key))
        .collect();
    let allows = Allows::new(world);
    left.into_iter()
        .filter(|object| Kind::GENERATED.contains(&object.key.kind))
        .filter(|object| object.meta.deletion.is_none())
        .filter(|object| !object.meta.labels.get(LABEL_PEER).is_some_and(|peer| frozen.contains(peer)))
        .filter(|object| {
            let source = object.meta.annotations.get(ANNOTATION_SOURCE);
            let is_unread = |sources: &String| sources.split(',').any(|s| unreadable.contains(s));
            !source.is_some_and(is_unread) || allows.is_left(object)
        })
        .map(|object| (object.key.clone(), object.meta.uid.clone()))
        .collect()
}

/// Whether what was generated from a malformed object stays: no good version of it is in use, by which it would go or stay, and
/// it is not being deleted. A TrustDomainPeer has its own end.
fn is_unread(world: &World, key: &ObjectKey, rejected: &Rejected) -> bool {
    let is_peer = key.kind == Kind::TrustDomainPeer;
    !is_in_use(world, rejected)
        && !world.has_last_good(key, &rejected.uid)
        && (is_peer || rejected.deletion.is_none())
}

/// Whether the last good version of a TrustDomainPeer that is bad now is known, and in use.
fn is_in_use(world: &World, rejected: &Rejected) -> bool {
    world.peers.values().any(|peer| peer.uid == rejected.uid)
}

/// The label values of peers for which everything stays as it is: suspended, or not readable now. What is accepted is readable,
/// whatever else is malformed that names its trust domain.
fn frozen_peers(world: &World) -> BTreeSet<String> {
    let suspended =
        world.peers.values().filter(|p| p.suspend && p.deletion.is_none()).map(|p| &p.trust_domain);
    let rejected = world
        .rejected
        .iter()
        .filter(|(key, _)| key.kind == Kind::TrustDomainPeer)
        .filter_map(|(_, rejected)| rejected.trust_domain.as_ref())
        .filter(|td| !world.peers.contains_key(td));
    suspended.chain(rejected).map(|td| super::generated::label_value(td.as_str())).collect()
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;

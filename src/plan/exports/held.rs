//! What is exported by an object that cannot be read now, and that this process never could: a FederatedService or
//! ServiceExportRule that became malformed while the agent was away.
//!
//! What was generated from it stands still, and importers keep what they have (missing information takes nothing away); they
//! have to be told, since a catalogue without it would take it away. What it was is read from what stands: the alias has its
//! host, the policy of its pods the trust domains of its clients. Those of one selector share a policy, so that a peer that
//! only another of them is exported to may be told its name; it keeps what it has of that name, which is nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::unread::{self, exported_as};
use crate::model::object::{ANNOTATION_SOURCE, Kind, Object, ObjectKey};
use crate::model::{ServiceName, TrustDomain, World};
use crate::plan::generated::source_of;

/// What is found of one such object.
#[derive(Debug, Default)]
struct Remains {
    names: BTreeSet<ServiceName>,
    /// The name that it has where nothing says another.
    own_name: Option<ServiceName>,
    peers: BTreeSet<TrustDomain>,
}

/// The services that each peer is to keep.
#[must_use]
pub fn held(world: &World, own: &TrustDomain) -> BTreeMap<TrustDomain, BTreeSet<ServiceName>> {
    let mut all = BTreeMap::new();
    let mut unread: BTreeMap<String, Remains> = unread::objects(world)
        .map(|key| (source_of(key), Remains { own_name: named(key), ..Remains::default() }))
        .collect();
    if unread.is_empty() {
        return all;
    }
    let ours = world.objects.values().filter(|object| object.is_generated_by(&world.settings.instance));
    for object in ours.filter(|object| object.meta.deletion.is_none()) {
        let sources = object.meta.annotations.get(ANNOTATION_SOURCE).map_or("", String::as_str);
        for source in sources.split(',') {
            let Some(remains) = unread.get_mut(source) else { continue };
            match object.key.kind {
                Kind::ServiceEntry => remains.names.extend(exported_as(object, own)),
                Kind::AuthorizationPolicy => remains.peers.extend(of_clients(object)),
                _ => {}
            }
        }
    }
    for Remains { names, own_name, peers } in unread.into_values() {
        let names = if names.is_empty() { own_name.into_iter().collect() } else { names };
        for peer in peers.into_iter().filter(|peer| world.peers.contains_key(peer)) {
            let of_peer: &mut BTreeSet<ServiceName> = all.entry(peer).or_default();
            of_peer.extend(names.iter().cloned());
        }
    }
    all
}

/// What a FederatedService exports where it has no `spec.name`.
fn named(key: &ObjectKey) -> Option<ServiceName> {
    let namespace = key.namespace.as_deref().filter(|_| key.kind == Kind::FederatedService)?;
    ServiceName::new(namespace, &key.name).ok()
}

/// The trust domains that a policy lets in: those of its `notPrincipals`, which have no `spiffe://`.
fn of_clients(policy: &Object) -> impl Iterator<Item = TrustDomain> {
    let rules = policy.body.get("spec").and_then(|spec| spec.get("rules")).and_then(Value::as_array);
    let sources = rules.into_iter().flatten().filter_map(|rule| rule.get("from")?.as_array()).flatten();
    let principals = sources.filter_map(|from| from.pointer("/source/notPrincipals")?.as_array()).flatten();
    principals.filter_map(|principal| TrustDomain::new(principal.as_str()?.split_once('/')?.0).ok())
}

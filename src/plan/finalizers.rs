//! The finalizer that holds a TrustDomainPeer until its relationship has ended.

use serde_json::json;

use super::Patch;
use super::ending::{self, FINALIZER, Stage};
use super::generated::source_of;
use crate::model::change::PatchOp;
use crate::model::object::{ANNOTATION_SOURCE, Kind};
use crate::model::world::Rejected;
use crate::model::{ObjectKey, Peer, World};

/// Adds the finalizer to peers in use, before anything else is done for them; takes it away at the end.
#[must_use]
pub fn patches(world: &World) -> Vec<Patch> {
    if !world.is_read() || world.identity.is_none() {
        return Vec::new();
    }
    let peers = world.peers.values().filter_map(|peer| for_peer(world, peer));
    let rejected = world.rejected.iter().filter_map(|(key, rejected)| for_rejected(world, key, rejected));
    peers.chain(rejected).collect()
}

fn for_peer(world: &World, peer: &Peer) -> Option<Patch> {
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object);
    let held = ending::is_held(peer);
    match ending::stage(world, peer) {
        None if !held => {
            let mut finalizers = peer.finalizers.clone();
            finalizers.push(FINALIZER.to_owned());
            Some(set(key, &peer.resource_version, finalizers))
        }
        Some(Stage::Done) if held => Some(release(key, &peer.resource_version, &peer.finalizers)),
        _ => None,
    }
}

/// An object that was never in use, or cannot be read any more, is let go once nothing of its making is left.
fn for_rejected(world: &World, key: &ObjectKey, rejected: &Rejected) -> Option<Patch> {
    let held = rejected.finalizers.iter().any(|f| f == FINALIZER);
    let in_use = world.peers.values().any(|peer| peer.uid == rejected.uid);
    if key.kind != Kind::TrustDomainPeer || rejected.deletion.is_none() || !held || in_use {
        return None;
    }
    let source = source_of(key);
    let made = world.objects.values().any(|object| {
        object.is_generated_by(&world.settings.instance)
            && object.meta.annotations.get(ANNOTATION_SOURCE) == Some(&source)
    });
    (!made).then(|| release(key.clone(), &rejected.resource_version, &rejected.finalizers))
}

fn release(key: ObjectKey, resource_version: &str, finalizers: &[String]) -> Patch {
    let rest = finalizers.iter().filter(|f| *f != FINALIZER).cloned().collect();
    set(key, resource_version, rest)
}

fn set(key: ObjectKey, resource_version: &str, finalizers: Vec<String>) -> Patch {
    let ops = vec![PatchOp::Add { path: "/metadata/finalizers".to_owned(), value: json!(finalizers) }];
    Patch { key, resource_version: resource_version.to_owned(), ops }
}

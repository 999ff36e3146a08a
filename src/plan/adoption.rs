//! Relationships that someone made by hand under another name than ours, and has handed over.

use super::relationship::{foreign, key, object};
use crate::model::{Object, ObjectKey, World};

/// Objects of another name that their owner has handed over, and that ours have taken the place of: to be deleted, by
/// the uid they were seen with.
///
/// spire-controller-manager obeys the older of two, and finds the younger one in its place once that is gone: so ours
/// is put beside it first, and SPIRE's relationship is there all the time. One that comes back is younger than ours,
/// and is left alone.
#[must_use]
pub fn superseded(world: &World) -> Vec<(ObjectKey, String)> {
    let running = world.peers.values().filter(|peer| peer.deletion.is_none() && !peer.suspend);
    let handed_over = running.filter_map(|peer| {
        let other = world.objects.get(foreign(world, peer)?)?;
        let ours = world.objects.get(&key(&peer.trust_domain))?;
        let stands =
            ours.is_generated_by(&world.settings.instance) && describes_same(ours, &object(world, peer)?);
        let deletable = stands && other.is_handed_over() && other.meta.deletion.is_none();
        deletable.then(|| (other.key.clone(), other.meta.uid.clone()))
    });
    handed_over.collect()
}

/// Whether spire-controller-manager makes the same of both: it compares these alone.
fn describes_same(one: &Object, other: &Object) -> bool {
    ["trustDomain", "bundleEndpointURL", "bundleEndpointProfile", "className"].iter().all(|field| {
        let of = |object: &Object| object.spec().and_then(|spec| spec.get(*field)).cloned();
        of(one) == of(other)
    })
}

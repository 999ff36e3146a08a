//! What was generated from an object that has become unreadable is kept as it stands: missing information takes nothing away.
//!
//! That is what came from a FederatedService that was edited into something malformed; the imports of a TrustDomainPeer
//! that was; and, while the peer has not said what it exports, an ImportedService that was, and what lies beside it.
//! What of ours allows goes all the same, once it stands alone.
//! So is what came from a FederatedService that is held, also the policy of a selector that it had: its workloads are
//! closed still while it is reached through what stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::object::{ANNOTATION_SOURCE, Kind, LABEL_PEER, Object, ObjectKey};
use crate::model::{TrustDomain, World};
use crate::plan::authorization::Allows;
use crate::plan::diff;
use crate::plan::generated::{label_value, source_of};

use super::as_it_stands;

/// Adds what is kept to the `objects` that should be. `held` are the sources of what stays, `silent` the peers that have not
/// said what they export; what is `blocked` is not ours to keep.
pub(super) fn retain(
    world: &World,
    held: BTreeSet<String>,
    silent: &BTreeSet<TrustDomain>,
    blocked: &BTreeMap<ObjectKey, String>,
    objects: &mut BTreeMap<ObjectKey, Arc<Object>>,
) {
    let left = diff::left(world, objects);
    if left.is_empty() {
        return;
    }
    let unread = Unread::new(world, held, silent);
    let allows = Allows::new(world);
    // ImportedServices come before ServiceEntries, since what lies beside one follows it.
    for object in left {
        if object.meta.deletion.is_none()
            && !blocked.contains_key(&object.key)
            && unread.keeps(object, objects)
            && !allows.is_left(object)
        {
            objects.insert(object.key.clone(), diff::seal(as_it_stands(object)));
        }
    }
}

/// What nobody knows now.
struct Unread<'a> {
    world: &'a World,
    /// Objects that cannot be read, and of which no good version is in use.
    objects: BTreeSet<&'a ObjectKey>,
    /// The label values of peers that have not said what they export.
    silent: BTreeSet<String>,
    /// Of these, the ones whose TrustDomainPeer cannot be read.
    rejected_peers: BTreeSet<String>,
    /// The sources, as annotations name them, of what is exported and stays.
    services: BTreeSet<String>,
}

impl<'a> Unread<'a> {
    fn new(world: &'a World, held: BTreeSet<String>, silent: &BTreeSet<TrustDomain>) -> Self {
        let is_lost = |key: &ObjectKey, uid: &str| !world.has_last_good(key, uid);
        let rejected = world.rejected.iter().filter(|(_, rejected)| rejected.deletion.is_none());
        let objects: BTreeSet<&ObjectKey> =
            rejected.filter(|(key, rejected)| is_lost(key, &rejected.uid)).map(|(key, _)| key).collect();
        let silent: BTreeSet<String> = silent.iter().map(|td| label_value(td.as_str())).collect();
        let peers = world.rejected.iter().filter(|(key, _)| key.kind == Kind::TrustDomainPeer);
        let rejected_peers = peers
            .filter_map(|(_, rejected)| rejected.trust_domain.as_ref())
            .filter(|td| !world.peers.contains_key(td))
            .map(|td| label_value(td.as_str()))
            .filter(|td| silent.contains(td))
            .collect();
        let declares =
            |key: &&&ObjectKey| matches!(key.kind, Kind::FederatedService | Kind::ServiceExportRule);
        let mut services = held;
        services.extend(objects.iter().filter(declares).map(|key| source_of(key)));
        Self { world, objects, silent, rejected_peers, services }
    }

    /// `objects` has the ImportedServices that are kept.
    fn keeps(&self, object: &Object, objects: &BTreeMap<ObjectKey, Arc<Object>>) -> bool {
        let peer = object.meta.labels.get(LABEL_PEER);
        let came_from = object.meta.annotations.get(ANNOTATION_SOURCE).map_or("", String::as_str);
        match object.key.kind {
            Kind::ImportedService => {
                let is_silent = peer.is_some_and(|peer| self.silent.contains(peer));
                self.is_of_rejected_peer(object) || (is_silent && self.objects.contains(&object.key))
            }
            // What is made of imports follows them, the ones that are kept here included.
            Kind::ServiceEntry | Kind::DestinationRule | Kind::VirtualService
                if came_from.starts_with(Kind::ImportedService.kind()) =>
            {
                imports_of(came_from).any(|import| {
                    let is_of_rejected = self
                        .world
                        .objects
                        .get(&import)
                        .is_some_and(|stands| self.is_of_rejected_peer(stands));
                    is_of_rejected || self.objects.contains(&import) && objects.contains_key(&import)
                })
            }
            Kind::ServiceEntry
            | Kind::Gateway
            | Kind::VirtualService
            | Kind::PeerAuthentication
            | Kind::AuthorizationPolicy => came_from.split(',').any(|source| self.services.contains(source)),
            _ => false,
        }
    }

    fn is_of_rejected_peer(&self, object: &Object) -> bool {
        object.meta.labels.get(LABEL_PEER).is_some_and(|peer| self.rejected_peers.contains(peer))
    }
}

/// The ImportedServices that an annotation names.
fn imports_of(sources: &str) -> impl Iterator<Item = ObjectKey> {
    sources.split(',').filter_map(|source| {
        let mut parts = source.split('/');
        let is_import = parts.next()? == Kind::ImportedService.kind();
        let key = ObjectKey::namespaced(Kind::ImportedService, parts.next()?, parts.next()?);
        is_import.then_some(key)
    })
}

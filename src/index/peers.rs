//! One peer for each trust domain: the oldest TrustDomainPeer holds it, and a younger one is told so.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::parse;
use crate::model::peer::Ending;
use crate::model::world::Rejected;
use crate::model::{Object, ObjectKey, Peer, TrustDomain};

type Read = (BTreeMap<TrustDomain, Arc<Peer>>, BTreeMap<ObjectKey, Rejected>);

/// The peers that these objects describe, and those that cannot be used. The last good version of one that became bad
/// stays in use (`before`), so that nothing is lost, and so that its deletion still ends the relationship.
pub(super) fn read<'a>(
    objects: impl Iterator<Item = &'a Arc<Object>>,
    own: Option<&TrustDomain>,
    before: &BTreeMap<TrustDomain, Arc<Peer>>,
) -> Read {
    let mut parsed = Vec::new();
    let mut rejected = BTreeMap::new();
    for object in objects {
        match parse::trust_domain_peer::parse(object, own) {
            Ok(peer) => parsed.push((object, peer)),
            Err(why) => {
                let last_good = before.values().find(|peer| peer.uid == why.uid && !why.uid.is_empty());
                parsed.extend(last_good.map(|peer| (object, as_it_was(peer, &why, object))));
                rejected.insert(object.key.clone(), why);
            }
        }
    }
    // The oldest first; the uid breaks ties, so that nothing flaps.
    parsed.sort_by(|(_, a), (_, b)| (a.created, &a.uid).cmp(&(b.created, &b.uid)));
    let mut peers: BTreeMap<TrustDomain, Arc<Peer>> = BTreeMap::new();
    for (object, peer) in parsed {
        match peers.get(&peer.trust_domain) {
            None => {
                peers.insert(peer.trust_domain.clone(), Arc::new(peer));
            }
            Some(holder) => {
                rejected.insert(object.key.clone(), duplicate(&peer, holder));
            }
        }
    }
    (peers, rejected)
}

fn as_it_was(peer: &Peer, now: &Rejected, object: &Object) -> Peer {
    Peer {
        ending: Ending::of_annotations(&object.meta.annotations),
        deletion: now.deletion,
        finalizers: now.finalizers.clone(),
        resource_version: now.resource_version.clone(),
        ..peer.clone()
    }
}

fn duplicate(peer: &Peer, holder: &Peer) -> Rejected {
    Rejected {
        uid: peer.uid.clone(),
        generation: peer.generation,
        // Not the trust domain: the older object answers for it.
        trust_domain: None,
        reason: "DuplicateTrustDomain",
        message: format!(
            "spec.trustDomain: {} is described by the older TrustDomainPeer {} already; delete one of them",
            peer.trust_domain, holder.object
        ),
        deletion: peer.deletion,
        finalizers: peer.finalizers.clone(),
        resource_version: peer.resource_version.clone(),
    }
}

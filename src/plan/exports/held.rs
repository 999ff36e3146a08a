//! What is exported by an object that cannot be read now, and that this process never could: a FederatedService or
//! ServiceExportRule that became malformed while the agent was away.
//!
//! What was generated from it stands still, and importers keep what they have (missing information takes nothing away); they
//! have to be told, since a catalogue without it would take it away. What it was is read from what stands: the alias has its
//! host, the policy of its pods the trust domains of its clients. Those of one selector share a policy, so that a peer that
//! only another of them is exported to may be told its name; it keeps what it has of that name, which is nothing. Where nothing is
//! generated, before what is outside of a mesh and where there is none, it is the status of the FederatedService that tells.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::checks::is_unreadable;
use super::unread::{self, exported_as};
use crate::api::v1alpha1::conditions::ExportedReason;
use crate::model::object::{ANNOTATION_SOURCE, Kind, Object, ObjectKey};
use crate::model::{Service, ServiceName, SpiffeId, TrustDomain, World};
use crate::plan::generated::source_of;

/// What is found of one such object.
#[derive(Debug, Default)]
struct Remains {
    names: BTreeSet<ServiceName>,
    /// The name that it has where nothing says another.
    own_name: Option<ServiceName>,
    peers: BTreeSet<TrustDomain>,
}

impl Remains {
    /// By what was said of it last.
    fn by_status(world: &World, key: &ObjectKey, own: &TrustDomain) -> Self {
        let status = status(world, key);
        let host = status.and_then(|status| status.get("host")?.as_str());
        let all = status.and_then(|status| status.get("exportedTo")?.as_array()).into_iter().flatten();
        let peers = all.filter(|to| is_out(to)).filter_map(|to| to.get("trustDomain")?.as_str());
        Self {
            names: host.and_then(|host| exported_as(host, own)).into_iter().collect(),
            own_name: named(key),
            peers: peers.filter_map(|peer| TrustDomain::new(peer).ok()).collect(),
        }
    }
}

/// That of a FederatedService; a ServiceExportRule does not say what becomes of each Service.
fn status<'a>(world: &'a World, key: &ObjectKey) -> Option<&'a Value> {
    world.statuses.get(key).filter(|_| key.kind == Kind::FederatedService).map(AsRef::as_ref)
}

/// Whether it is offered to this peer, which may not have answered yet.
fn is_out(to: &Value) -> bool {
    to["acknowledged"] == true || to["reason"] == ExportedReason::AwaitingAcknowledgement.as_str()
}

/// The servers in front of which is what cannot be read: what their Envoys need is not known.
#[must_use]
pub(in crate::plan) fn servers(world: &World, own: &TrustDomain) -> BTreeSet<SpiffeId> {
    let unread = unread::objects(world).filter_map(|key| status(world, key));
    let was_out = |status: &&Value| {
        let all = status.get("exportedTo").and_then(Value::as_array);
        all.is_some_and(|all| all.iter().any(is_out))
    };
    let ids = unread.filter(was_out).filter_map(|status| status.get("serverSPIFFEIDs")?.as_array()).flatten();
    let ids = ids.filter_map(|id| SpiffeId::new(id.as_str()?).ok());
    ids.filter(|id| id.is_member_of(own)).collect()
}

/// To whom of those that it names it was exported, whose TrustDomainPeer cannot be read now.
pub(in crate::plan) fn peers(world: &World, service: &Service) -> BTreeSet<TrustDomain> {
    if world.rejected.is_empty() {
        return BTreeSet::new();
    }
    service.exported_to.iter().filter(|td| is_unreadable(world, td)).cloned().collect()
}

/// The services that each peer is to keep.
#[must_use]
pub fn held(world: &World, own: &TrustDomain) -> BTreeMap<TrustDomain, BTreeSet<ServiceName>> {
    let mut all = BTreeMap::new();
    let mut unread: BTreeMap<String, Remains> =
        unread::objects(world).map(|key| (source_of(key), Remains::by_status(world, key, own))).collect();
    if unread.is_empty() {
        return all;
    }
    let ours = world.objects.values().filter(|object| object.is_generated_by(&world.settings.instance));
    for object in ours.filter(|object| object.meta.deletion.is_none()) {
        let sources = object.meta.annotations.get(ANNOTATION_SOURCE).map_or("", String::as_str);
        for source in sources.split(',') {
            let Some(remains) = unread.get_mut(source) else { continue };
            match object.key.kind {
                Kind::ServiceEntry => remains.names.extend(exported_as(&object.key.name, own)),
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

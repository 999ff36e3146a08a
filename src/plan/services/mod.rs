//! What services need: everything that is exported and imported, in one decision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::model::object::{
    ANNOTATION_DRY_RUN, ANNOTATION_SOURCE, Kind, LABEL_PEER, Meta, Object, ObjectKey,
};
use crate::model::session::{Offers, Outcomes};
use crate::model::{NamespacedName, Service, ServiceName, TrustDomain, World};

use super::authorization::Allows;
use super::exports::{self, Export, ExportReport, Exports};
use super::generated::{label_value, source_of};
use super::imports::{self, ImportReport};
use super::memo::Memo;
use super::origin::Origin;
use super::reach::{self, Carriers};
use super::{authorization, closing, diff, generated, istio, mesh, xds};

/// What should be, of everything that has to do with services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicesPlan {
    /// Whether enough is known to decide. Until it is, nothing below is an answer: no generated object may be pruned, no
    /// catalogue sent and no catalogue answered.
    pub complete: bool,
    /// Generated objects that should be there.
    pub objects: BTreeMap<ObjectKey, Arc<Object>>,
    /// What each peer is offered; no entry: nothing.
    pub catalogues: BTreeMap<TrustDomain, Offers>,
    /// What each peer is told that it is to keep; see [`exports::held`].
    pub held: BTreeMap<TrustDomain, BTreeSet<ServiceName>>,
    /// What each peer is answered, for every service of its catalogue; no entry: it sent none.
    pub outcomes: BTreeMap<TrustDomain, Arc<Outcomes>>,
    /// By FederatedService.
    pub export_reports: BTreeMap<NamespacedName, Arc<ExportReport>>,
    /// By ImportedService.
    pub import_reports: BTreeMap<NamespacedName, ImportReport>,
    /// Objects that would be generated, are there, and are neither ours nor handed over (reason `ObjectNotOurs`), with what
    /// to do about them.
    pub blocked: BTreeMap<ObjectKey, String>,
    /// What carries the services of each peer that are called.
    pub carriers: BTreeMap<TrustDomain, Carriers>,
    /// What clients without Istio are served; `None`: what they were served last.
    pub xds: Option<Arc<xds::Xds>>,
    /// What is found of our own mesh.
    pub mesh: mesh::Report,
    /// When to decide again though nothing changes.
    pub wake_at: Option<Timestamp>,
}

/// Decides on all services. `ending` are trust domains whose relationship has come to the point where imports go and their
/// clients are shut out; a peer that is only being deleted is offered nothing, and keeps the rest until then.
#[must_use]
pub fn decide(world: &World, ending: &BTreeSet<TrustDomain>, memo: &mut Memo) -> ServicesPlan {
    let mut exports = exports::decide(world, memo);
    let Some(own) = world.own_trust_domain().filter(|_| world.is_read()) else {
        let export_reports =
            if world.own_trust_domain().is_none() { exports.reports } else { BTreeMap::new() };
        return ServicesPlan { export_reports, ..ServicesPlan::default() };
    };
    let others = memo.observed.others(world);
    let mesh = mesh::report(world, &others, &exports);
    let mut objects = authorization::policies(world, own, &exports, ending, memo);
    let written =
        |export: &&Arc<Export>| !exports.held.contains(&export.service.object) && is_generated(export);
    let mut of_exports: Vec<(ObjectKey, Arc<Object>)> = Vec::new();
    for export in exports.exported.values().filter(written) {
        let made = exports::exported(&world.settings, export, memo);
        of_exports.extend(made.objects.iter().map(|object| (object.key.clone(), Arc::clone(object))));
    }
    // All at once, in order, is far less to do than one by one.
    of_exports.sort_by(|(one, _), (other, _)| one.cmp(other));
    objects.append(&mut of_exports.into_iter().collect());
    for object in passed_on(world, own, &exports) {
        objects.insert(object.key.clone(), diff::seal(object));
    }
    let mut imports = imports::imports(world, ending, memo);
    let (mut entries, reports) = imports::generate(world, &others, &mut imports, memo);
    objects.append(&mut imports.objects);
    objects.append(&mut entries);
    let mut blocked = exports.blocked.clone();
    blocked.extend(imports.blocked);
    let held = exports.held.iter().filter_map(|name| world.services.get(name));
    let held = held.map(|service| source_of(&service.key())).collect();
    retain(world, held, &imports.silent, &blocked, &mut objects);
    for object in closing::kept(world, &objects) {
        objects.insert(object.key.clone(), diff::seal(as_it_stands(object)));
    }
    let catalogues = exports::catalogues(&mut exports, &world.settings, memo);
    let import_reports = reports
        .into_iter()
        .filter_map(|(key, report)| Some((NamespacedName::new(key.namespace?, key.name), report)))
        .collect();
    let xds = xds::plan(world, &exports, &import_reports, &imports.local_names, memo);
    ServicesPlan {
        complete: true,
        objects,
        catalogues,
        held: exports::held::held(world, own),
        outcomes: imports.outcomes,
        export_reports: exports.reports,
        carriers: reach::carriers(world, &import_reports),
        import_reports,
        xds,
        blocked,
        mesh,
        wake_at: imports.wake_at,
    }
}

/// Whether it is reached through gateways of the mesh, which need objects for it.
const fn is_generated(export: &Export) -> bool {
    !export.gateways.is_empty() && !export.is_plain
}

/// What sidecars need in front of applications that end TLS: one object for each selector.
fn passed_on(world: &World, own: &TrustDomain, exports: &Exports) -> Vec<Object> {
    if world.absent.contains(&Kind::PeerAuthentication) {
        return Vec::new();
    }
    let mut groups: BTreeMap<authorization::Workloads<'_>, Vec<&Arc<Service>>> = BTreeMap::new();
    for export in exports.exported.values().filter(|export| export.passes_tls) {
        let service = &export.service;
        groups.entry((&service.object.namespace, &service.workload_labels)).or_default().push(service);
    }
    let all = groups.into_iter().map(|(workloads, services)| {
        let origin = Origin::of(services.iter().copied()).with_doors(world, own, services.iter().copied());
        istio::peer_authentication::object(&world.settings, workloads, &services, origin)
    });
    all.filter(|object| generated::claim(world, &object.key).is_ok()).collect()
}

/// Keeps, as it stands, what was generated from an object that has become unreadable: missing information takes nothing
/// away. That is what came from a FederatedService that was edited into something malformed; the imports of a TrustDomainPeer
/// that was; and, while the peer has not said what it exports, an ImportedService that was, and what lies beside it.
/// What of ours allows goes all the same, once it stands alone.
/// So is what came from a FederatedService that is `held`, also the policy of a selector that it had: its workloads are
/// closed still while it is reached through what stands.
fn retain(
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
    let unreadable: BTreeSet<&ObjectKey> = world
        .rejected
        .iter()
        .filter(|(key, rejected)| rejected.deletion.is_none() && !world.has_last_good(key, &rejected.uid))
        .map(|(key, _)| key)
        .collect();
    let silent: BTreeSet<String> = silent.iter().map(|td| label_value(td.as_str())).collect();
    let rejected_peers: BTreeSet<String> = world
        .rejected
        .iter()
        .filter(|(key, _)| key.kind == Kind::TrustDomainPeer)
        .filter_map(|(_, rejected)| rejected.trust_domain.as_ref())
        .filter(|td| !world.peers.contains_key(td))
        .map(|td| label_value(td.as_str()))
        .filter(|td| silent.contains(td))
        .collect();
    let mut services = held;
    let declares = |key: &&&ObjectKey| matches!(key.kind, Kind::FederatedService | Kind::ServiceExportRule);
    services.extend(unreadable.iter().filter(declares).map(|key| source_of(key)));
    let is_kept = |object: &Object, objects: &BTreeMap<ObjectKey, Arc<Object>>| {
        let peer = object.meta.labels.get(LABEL_PEER);
        let is_silent = peer.is_some_and(|peer| silent.contains(peer));
        let is_of_rejected_peer = peer.is_some_and(|peer| rejected_peers.contains(peer));
        let is_of_rejected = |import: &ObjectKey| {
            let import = world.objects.get(import);
            let peer = import.and_then(|import| import.meta.labels.get(LABEL_PEER));
            peer.is_some_and(|peer| rejected_peers.contains(peer))
        };
        let came_from = object.meta.annotations.get(ANNOTATION_SOURCE).map_or("", String::as_str);
        match object.key.kind {
            Kind::ImportedService => is_of_rejected_peer || (is_silent && unreadable.contains(&object.key)),
            // What is made of imports follows them, the ones that are kept here included.
            Kind::ServiceEntry | Kind::DestinationRule | Kind::VirtualService
                if came_from.starts_with(Kind::ImportedService.kind()) =>
            {
                let is_kept = |import: &ObjectKey| {
                    is_of_rejected(import) || unreadable.contains(import) && objects.contains_key(import)
                };
                imports_of(came_from).any(|import| is_kept(&import))
            }
            Kind::ServiceEntry
            | Kind::Gateway
            | Kind::VirtualService
            | Kind::PeerAuthentication
            | Kind::AuthorizationPolicy => came_from.split(',').any(|source| services.contains(source)),
            _ => false,
        }
    };
    let allows = Allows::new(world);
    // ImportedServices come before ServiceEntries, since what lies beside one follows it.
    for object in left {
        if object.meta.deletion.is_none()
            && !blocked.contains_key(&object.key)
            && is_kept(object, objects)
            && !allows.is_left(object)
        {
            objects.insert(object.key.clone(), diff::seal(as_it_stands(object)));
        }
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

/// An observed object as a desired one.
pub(in crate::plan) fn as_it_stands(object: &Object) -> Object {
    let meta = Meta {
        labels: object.meta.labels.clone(),
        annotations: object.meta.annotations.clone(),
        owners: object.meta.owners.clone(),
        ..Meta::default()
    };
    let mut body = object.body.clone();
    body.remove("status");
    let mut meta = meta;
    meta.annotations.remove(ANNOTATION_DRY_RUN);
    Object { key: object.key.clone(), meta, body }
}

/// As [`decide`], with nothing remembered.
#[cfg(test)]
pub(crate) fn services(world: &World, ending: &BTreeSet<TrustDomain>) -> ServicesPlan {
    decide(world, ending, &mut Memo::default())
}

#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod tests;

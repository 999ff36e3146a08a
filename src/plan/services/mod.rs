//! What services need: everything that is exported and imported, in one decision.

mod retain;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::model::object::{ANNOTATION_DRY_RUN, Kind, Meta, Object, ObjectKey};
use crate::model::session::{Offers, Outcomes};
use crate::model::{NamespacedName, Service, ServiceName, TrustDomain, World};

use super::exports::{self, Export, ExportReport, Exports};
use super::generated::source_of;
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
    retain::retain(world, held, &imports.silent, &blocked, &mut objects);
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

//! From what is declared to what is exported: which pods, ports and identities FederatedServices and ServiceExportRules come to
//! in this cluster, now.
//!
//! Everything is decided within one namespace, by its own Services and pods, so that a change touches no other. What is missed
//! later takes nothing away that is out: a port's number and the servers' IDs stay while no pod tells others. A Service
//! that is gone was taken away by somebody, and ends the export.

mod entries;
mod identity;
mod known;
mod ports;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::v1alpha1::conditions::ExportedReason;
use crate::api::v1alpha1::limits;
use crate::model::cluster::{ClusterService, ClusterServiceKind, Pod};
use crate::model::export::{Backing, DeclaredService, ExportRule, Note, Resolved, Unresolved, in_namespace};
use crate::model::object::Kind;
use crate::model::service::{ExportedBy, TlsMode};
use crate::model::{NamespacedName, ObjectKey, Service, ServiceName, TrustDomain, World};
use crate::plan::exports::unread::Unread;
use crate::plan::gateways;
use crate::plan::pods::Pods;

pub use entries::Entries;
use known::Known;

/// The label that Kubernetes gives every namespace.
const LABEL_NAMESPACE: &str = "kubernetes.io/metadata.name";

/// What the declarations of one namespace come to. Before our own trust domain is known: nothing.
#[must_use]
pub fn namespace(world: &World, entries: &Entries, namespace: &str) -> Resolved {
    let mut resolved = Resolved::default();
    let declared: Vec<&Arc<DeclaredService>> =
        in_namespace(&world.declared, namespace).map(|(_, declared)| declared).filter(stays).collect();
    let rules = rules_for(world, namespace);
    let Some(own) = world.own_trust_domain().filter(|_| !declared.is_empty() || !rules.is_empty()) else {
        return resolved;
    };
    let scope = Scope::of(world, own, entries, namespace);
    declared.iter().for_each(|declared| scope.declared(declared, &mut resolved));
    if !rules.is_empty() {
        let unread = Unread::of_namespace(world, own, namespace);
        let claims = Claims::of(&declared, &unread);
        let services = in_namespace(&world.cluster_services, namespace);
        for (name, service) in services.filter(|(_, service)| service.deletion.is_none()) {
            scope.by_rules(&rules, &claims, name, service, &mut resolved);
        }
    }
    resolved
}

/// What these FederatedServices of one namespace come to, where none has a say in what becomes of another: `None` where there
/// are rules for the namespace.
#[must_use]
pub fn these(
    world: &World,
    entries: &Entries,
    namespace: &str,
    names: &BTreeSet<NamespacedName>,
) -> Option<Resolved> {
    if !rules_for(world, namespace).is_empty() {
        return None;
    }
    let mut resolved = Resolved::default();
    if let Some(own) = world.own_trust_domain() {
        let scope = Scope::of(world, own, entries, namespace);
        let declared = names.iter().filter_map(|name| world.declared.get(name)).filter(stays);
        declared.for_each(|declared| scope.declared(declared, &mut resolved));
    }
    Some(resolved)
}

/// What is being deleted was taken away by somebody.
fn stays(declared: &&Arc<DeclaredService>) -> bool {
    declared.deletion.is_none()
}

fn keep(resolved: &mut Resolved, service: Service, notes: Vec<Note>) {
    if !notes.is_empty() {
        resolved.notes.insert(service.object.clone(), notes);
    }
    resolved.services.insert(service.object.clone(), Arc::new(service));
}

/// The rules that choose this namespace, the oldest first.
fn rules_for<'a>(world: &'a World, namespace: &str) -> Vec<&'a Arc<ExportRule>> {
    // An API server tells of a Service before its namespace, or after: until then a selector that wants a label not to be there
    // would hold. A directory may hold Services and no Namespace at all.
    let is_known = world.namespaces.is_empty() || world.namespaces.contains_key(namespace);
    if world.rules.is_empty() || !is_known {
        return Vec::new();
    }
    let mut labels = world.namespaces.get(namespace).cloned().unwrap_or_default();
    // An API server sets it always.
    labels.entry(LABEL_NAMESPACE.to_owned()).or_insert_with(|| namespace.to_owned());
    let mut rules: Vec<_> = world
        .rules
        .values()
        .filter(|rule| rule.deletion.is_none() && rule.namespaces.matches(&labels))
        .collect();
    rules.sort_by_key(|rule| (rule.created.is_none(), rule.created, &rule.uid, &rule.name));
    rules
}

/// Services that a FederatedService declares: it wins over every rule, also while it cannot be read or comes to nothing.
struct Claims<'a> {
    names: BTreeMap<&'a str, String>,
    /// The pods of those that cannot be read.
    workloads: BTreeMap<&'a BTreeMap<String, String>, &'a str>,
}

impl<'a> Claims<'a> {
    fn of(declared: &[&'a Arc<DeclaredService>], unread: &'a Unread) -> Self {
        let mut claims = Self { names: BTreeMap::new(), workloads: BTreeMap::new() };
        for declared in declared {
            let who = || format!("FederatedService {}", declared.object);
            claims.names.entry(declared.object.name.as_str()).or_insert_with(who);
            claims.names.entry(declared.name.name()).or_insert_with(who);
            if let Backing::Service(name) = &declared.backing {
                claims.names.entry(name.as_str()).or_insert_with(who);
            }
        }
        for (source, left) in &unread.left {
            for name in &left.names {
                claims.names.entry(name.name()).or_insert_with(|| source.clone());
            }
            claims.workloads.extend(left.workloads.iter().map(|(_, labels)| (labels, source.as_str())));
        }
        claims
    }
}

struct Scope<'a> {
    world: &'a World,
    own: &'a TrustDomain,
    entries: &'a Entries,
    pods: Pods<'a>,
}

impl<'a> Scope<'a> {
    fn of(world: &'a World, own: &'a TrustDomain, entries: &'a Entries, namespace: &'a str) -> Self {
        let pods = in_namespace(&world.pods, namespace).map(|(_, pod)| pod).collect();
        Self { world, own, entries, pods }
    }

    fn declared(&self, declared: &Arc<DeclaredService>, resolved: &mut Resolved) {
        let who = format!("FederatedService {}", declared.object);
        match self.resolve(&who, declared) {
            Ok((service, notes)) => keep(resolved, service, notes),
            Err(problem) => {
                let unresolved = Unresolved { declared: Arc::clone(declared), problem };
                resolved.unresolved.insert(declared.object.clone(), Arc::new(unresolved));
            }
        }
    }

    fn resolve(&self, who: &str, declared: &DeclaredService) -> Result<(Service, Vec<Note>), Note> {
        let fail = |reason, cause: String| Note { reason, message: format!("{who}: {cause}") };
        let (service, workload_labels) = match &declared.backing {
            Backing::Labels(labels) => (None, labels.clone()),
            Backing::Endpoints(_) => (None, BTreeMap::new()),
            Backing::Service(name) => {
                let key = NamespacedName::new(&declared.object.namespace, name);
                let service = self.world.cluster_services.get(&key);
                let service = service.filter(|service| service.deletion.is_none()).ok_or_else(|| {
                    let cause = format!(
                        "Service {key} is not there, or is being deleted; create it, or name another in spec.serviceRef"
                    );
                    fail(ExportedReason::ServiceNotFound, cause)
                })?;
                (Some(service), selector_of(service).map_err(|(reason, cause)| fail(reason, cause))?)
            }
        };
        let pods = self.pods.selected(&declared.object.namespace, &workload_labels).collect::<Vec<_>>();
        let host = declared.name.host(self.own).unwrap_or_default();
        let known = Known::of(self.world, self.own, &declared.object, &host);
        let mut notes = Vec::new();
        let source = ports::Source { who, service: service.map(AsRef::as_ref), pods: &pods, known: &known };
        let ports = source.ports(declared, &mut notes)?;
        let server_ids = if declared.server_ids.is_empty() {
            let servers = servers(&pods, declared.tls_mode, known.has_server_ids());
            identity::server_ids(self.own, self.entries, &servers, || known.server_ids())
        } else {
            declared.server_ids.clone()
        };
        if server_ids.len() > limits::SERVER_IDS {
            let cause = format!(
                "its pods have {} SPIFFE IDs, and importers take at most {}; give those of the servers as serverSPIFFEIDs of a \
                 FederatedService",
                server_ids.len(),
                limits::SERVER_IDS
            );
            return Err(fail(ExportedReason::TooManyServerIds, cause));
        }
        let service = Service {
            by: ExportedBy::FederatedService,
            object: declared.object.clone(),
            uid: declared.uid.clone(),
            generation: declared.generation,
            created: declared.created,
            name: declared.name.clone(),
            workload_labels,
            endpoints: match &declared.backing {
                Backing::Endpoints(all) => all.clone(),
                Backing::Labels(_) | Backing::Service(_) => BTreeSet::new(),
            },
            ports,
            tls_mode: declared.tls_mode,
            exported_to: declared.exported_to.clone(),
            clients: declared.clients.clone(),
            server_ids,
            gateways: declared.gateways.clone(),
        };
        Ok((service, notes))
    }

    /// Exports a Service by the oldest rule that selects it; the others are told that they do not.
    fn by_rules(
        &self,
        rules: &[&Arc<ExportRule>],
        claims: &Claims<'_>,
        name: &NamespacedName,
        service: &ClusterService,
        resolved: &mut Resolved,
    ) {
        let mut selecting = rules.iter().filter(|rule| rule.services.matches(&service.labels));
        let Some(rule) = selecting.next() else { return };
        let younger: Vec<&str> = selecting.map(|rule| rule.name.as_str()).collect();
        let outcome =
            self.barred(claims, name, service).map_or_else(|| self.by_rule(rule, name, service), Err);
        let mut skipped = BTreeMap::new();
        let message = format!("Service {name}: the older ServiceExportRule {} exports it", rule.name);
        let mut left = Note { reason: ExportedReason::LeftToOlderRule, message };
        match outcome {
            Ok((service, notes)) => keep(resolved, service, notes),
            Err(note) => {
                skipped.insert(rule.name.clone(), note.clone());
                left = note;
            }
        }
        skipped.extend(younger.into_iter().map(|rule| (rule.to_owned(), left.clone())));
        if !skipped.is_empty() {
            resolved.skipped.insert(name.clone(), skipped);
        }
    }

    /// Why no rule may export it.
    fn barred(&self, claims: &Claims<'_>, name: &NamespacedName, service: &ClusterService) -> Option<Note> {
        let settings = &self.world.settings;
        let namespace = name.namespace.as_str();
        if namespace.starts_with("kube-")
            || namespace == settings.namespace
            || namespace == settings.istio_namespace
        {
            let message = format!(
                "Service {name}: no rule exports out of a namespace of Kubernetes, Istio or the agent; write a FederatedService \
                 for it"
            );
            return Some(Note { reason: ExportedReason::SystemNamespace, message });
        }
        if gateways::is_one(settings, service) {
            let message = format!(
                "Service {name}: no rule exports a gateway of the mesh, behind which every service of it is; write a \
                 FederatedService for it"
            );
            return Some(Note { reason: ExportedReason::GatewayService, message });
        }
        let of_its_name = ObjectKey::namespaced(Kind::FederatedService, namespace, &name.name);
        let unreadable =
            self.world.rejected.contains_key(&of_its_name).then(|| format!("FederatedService {name}"));
        let by_pods = || claims.workloads.get(&service.selector).map(|source| (*source).to_owned());
        let claimed = claims.names.get(name.name.as_str()).cloned().or(unreadable).or_else(by_pods)?;
        let message = format!("Service {name}: {claimed} declares it, and wins over every rule");
        Some(Note { reason: ExportedReason::LeftToFederatedService, message })
    }

    fn by_rule(
        &self,
        rule: &ExportRule,
        name: &NamespacedName,
        service: &ClusterService,
    ) -> Result<(Service, Vec<Note>), Note> {
        let who = format!("Service {name}");
        let service_name = ServiceName::new(&name.namespace, &name.name).map_err(|cause| Note {
            reason: ExportedReason::NotAccepted,
            message: format!("{who}: its name makes no host name: {cause}"),
        })?;
        let declared = DeclaredService {
            object: name.clone(),
            uid: service.uid.clone(),
            generation: 0,
            // It is to be exported since both are there.
            created: rule.created.max(service.created),
            deletion: None,
            name: service_name,
            backing: Backing::Service(name.name.clone()),
            ports: Vec::new(),
            tls_mode: rule.tls_mode,
            exported_to: rule.exported_to.clone(),
            clients: rule.clients.clone(),
            server_ids: BTreeSet::new(),
            gateways: Vec::new(),
        };
        let (mut service, notes) = self.resolve(&who, &declared)?;
        service.by = ExportedBy::Rule { name: rule.name.clone(), uid: rule.uid.clone() };
        Ok((service, notes))
    }
}

/// The labels that Kubernetes gives the pods of a Job, now and before 1.27.
const LABELS_JOB: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

/// Those of the selected pods that may serve: of what a sidecar is to end TLS for, such as have one, and none of a Job, which
/// comes and goes beside the servers. Where none is left they are as if there was no pod, but for what has only ever had
/// such (`is_out` says that IDs are out already).
fn servers<'a>(pods: &[&'a Arc<Pod>], mode: TlsMode, is_out: bool) -> Vec<&'a Arc<Pod>> {
    let is_of_job = |pod: &Pod| LABELS_JOB.iter().any(|label| pod.labels.contains_key(*label));
    let serves = |pod: &&&Arc<Pod>| !is_of_job(pod) && (mode == TlsMode::Mtls || pod.has_sidecar);
    let servers: Vec<&Arc<Pod>> = pods.iter().filter(serves).copied().collect();
    if servers.is_empty() && !is_out { pods.to_vec() } else { servers }
}

/// Which pods a Service selects.
fn selector_of(service: &ClusterService) -> Result<BTreeMap<String, String>, (ExportedReason, String)> {
    let of = &service.object;
    if service.kind == ClusterServiceKind::ExternalName {
        let cause = format!(
            "Service {of} is of type ExternalName, and has no pods; name another, or give workloadLabels"
        );
        return Err((ExportedReason::ServiceHasNoSelector, cause));
    }
    if service.selector.is_empty() {
        let cause = format!(
            "Service {of} has no selector, so its pods are not known; give it one, or give workloadLabels"
        );
        return Err((ExportedReason::ServiceHasNoSelector, cause));
    }
    Ok(service.selector.clone())
}

#[cfg(test)]
pub(in crate::plan) mod testing;
#[cfg(test)]
mod tests;

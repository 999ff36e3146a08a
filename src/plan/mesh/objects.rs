//! Objects of other owners that open more to foreign trust domains than they seem to.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{Finding, Severity, some};
use crate::api::v1alpha1::conditions::MeshReadyReason as Reason;
use crate::model::mesh::{Mesh, Version};
use crate::model::object::Kind;
use crate::model::service::TlsMode;
use crate::model::{NamespacedName, Object, ObjectKey, Service, TrustDomain, World};
use crate::plan::exports::{Export, Exports};

/// The first istiod that knows `trustDomains` of an AuthorizationPolicy.
const KNOWS_TRUST_DOMAINS: Version = Version::new(1, 30, 2);

/// What every peer could use.
pub(super) fn wide(world: &World, mesh: &Mesh) -> Vec<Finding> {
    let mut found = Vec::new();
    let services = format!("svc.{}", world.settings.cluster_domain);
    let gateways = others(world, Kind::Gateway).filter_map(|(key, gateway)| {
        let host = exposed(gateway, &services)?;
        Some(format!("{key} ({host})"))
    });
    let gateways: Vec<String> = gateways.collect();
    if !gateways.is_empty() {
        found.push(Finding::new(
            Severity::Warns,
            Reason::GatewayExposesAll,
            format!(
                "AUTO_PASSTHROUGH for a wildcard leads to services that are not exported: {}",
                some(gateways)
            ),
            "name single hosts in spec.servers[].hosts of it, or delete the server",
        ));
    }
    let planes = mesh.control_planes.there().map_or(&[][..], Vec::as_slice);
    let ignores =
        planes.iter().find_map(|plane| plane.version.filter(|version| *version < KNOWS_TRUST_DOMAINS));
    if let Some(version) = ignores {
        let policies: Vec<String> = others(world, Kind::AuthorizationPolicy)
            .filter(|(_, policy)| {
                sources(policy).any(|source| names(source, &["trustDomains", "notTrustDomains"]).is_some())
            })
            .map(|(key, _)| key.to_string())
            .collect();
        if !policies.is_empty() {
            found.push(Finding::new(
                Severity::Warns,
                Reason::TrustDomainsIgnored,
                format!("Istio {version} ignores `trustDomains` in {}", some(policies)),
                format!("upgrade Istio to {KNOWS_TRUST_DOMAINS}, or name `principals: [\"TRUST-DOMAIN/*\"]` in place of it"),
            ));
        }
    }
    found
}

/// A policy that lets in by names that every trust domain may have.
#[derive(Debug)]
pub(super) struct Allow {
    policy: String,
    field: &'static str,
    /// The FederatedServices whose workloads it may select, by where they go.
    selects: BTreeMap<TrustDomain, Vec<NamespacedName>>,
}

impl Allow {
    /// What is found where one of them goes to the peer.
    pub(super) fn for_peer(&self, peer: &TrustDomain) -> Option<Finding> {
        self.selects.get(peer).map(|on| {
            Finding::new(
                Severity::Advises,
                Reason::AllowMatchesAnyTrustDomain,
                format!(
                    "{} allows by `{}`, which match in every trust domain, on the workloads of {} (the agent's own policy \
                     keeps foreign callers out that are not in spec.clients)",
                    self.policy,
                    self.field,
                    some(on.iter().map(ToString::to_string))
                ),
                "name `principals` with our trust domain in it instead",
            )
        })
    }
}

/// The policies of others that allow by namespaces or service accounts on workloads that are exported.
pub(super) fn allows(world: &World, exports: &Exports) -> Vec<Allow> {
    let mut in_namespace: BTreeMap<&str, Vec<&Export>> = BTreeMap::new();
    let ends_in_sidecar = |one: &&Arc<Export>| one.service.tls_mode == TlsMode::IstioMtls && !one.is_plain;
    for export in exports.exported.values().filter(ends_in_sidecar) {
        in_namespace.entry(&export.service.object.namespace).or_default().push(export);
    }
    let everywhere = || in_namespace.values().flatten().copied();
    let mut found = Vec::new();
    for (key, policy) in others(world, Kind::AuthorizationPolicy) {
        let spec = policy.spec().unwrap_or(&Value::Null);
        let is_allow = spec["action"].as_str().is_none_or(|action| action == "ALLOW");
        // `targetRefs` names gateways and waypoints, never workloads with sidecars.
        let is_of_workloads =
            spec["targetRefs"].as_array().is_none_or(Vec::is_empty) && spec["targetRef"].is_null();
        let Some(field) =
            sources(policy).find_map(|source| names(source, &["namespaces", "serviceAccounts"]))
        else {
            continue;
        };
        if !is_allow || !is_of_workloads {
            continue;
        }
        let namespace = key.namespace.as_deref().unwrap_or_default();
        let labels = policy.match_labels();
        let mut selects: BTreeMap<TrustDomain, Vec<NamespacedName>> = BTreeMap::new();
        let mut select = |export: &Export| {
            for peer in export.to.iter().filter(|_| may_overlap(&labels, &export.service)) {
                selects.entry(peer.clone()).or_default().push(export.service.object.clone());
            }
        };
        if namespace == world.settings.istio_namespace {
            everywhere().for_each(&mut select);
        } else {
            in_namespace.get(namespace).into_iter().flatten().copied().for_each(&mut select);
        }
        if !selects.is_empty() {
            found.push(Allow { policy: key.to_string(), field, selects });
        }
    }
    found
}

/// Whether a pod can have these labels and those by which the service is selected.
fn may_overlap(labels: &BTreeMap<&str, &str>, service: &Service) -> bool {
    let wanted = &mut service.workload_labels.iter();
    wanted.all(|(name, value)| labels.get(name.as_str()).is_none_or(|other| other == value))
}

/// Those that this agent did not make.
fn others(world: &World, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
    world.of_kind(kind).filter(|(_, object)| !object.is_generated_by(&world.settings.instance))
}

/// A host of a server that passes on whatever TLS is for one of the cluster's services. `services` is the name that they
/// are all below.
fn exposed<'a>(gateway: &'a Object, services: &str) -> Option<&'a str> {
    let servers = items(&gateway.spec()?["servers"]);
    let passing =
        servers.filter(|server| server.pointer("/tls/mode").is_some_and(|mode| mode == "AUTO_PASSTHROUGH"));
    passing
        .flat_map(|server| items(&server["hosts"]))
        .filter_map(Value::as_str)
        .find(|host| covers(host, services))
}

/// Whether a host of a Gateway is a wildcard for more than one of the cluster's services.
fn covers(host: &str, services: &str) -> bool {
    let name = host.split_once('/').map_or(host, |(_, name)| name);
    let Some(suffix) = name.strip_prefix('*') else { return false };
    let Some(suffix) = suffix.strip_prefix('.') else { return suffix.is_empty() };
    let is_below = |name: &str, above: &str| name.strip_suffix(above).is_some_and(|rest| rest.ends_with('.'));
    suffix == services || is_below(suffix, services) || is_below(services, suffix)
}

/// Every `from[].source` of a policy.
fn sources(policy: &Object) -> impl Iterator<Item = &Value> {
    let rules = policy.spec().map(|spec| &spec["rules"]).into_iter().flat_map(items);
    rules.flat_map(|rule| items(&rule["from"])).map(|from| &from["source"])
}

/// The first of these fields in which a source names something.
fn names(source: &Value, fields: &[&'static str]) -> Option<&'static str> {
    fields.iter().copied().find(|field| source[*field].as_array().is_some_and(|list| !list.is_empty()))
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

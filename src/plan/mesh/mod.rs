//! What is missing, wrong or dangerous in our own mesh, for each peer, with the exact setting to change.
//!
//! A client needs nothing of the mesh configuration but that names resolve; a server's sidecar lets in trust domains that
//! `caCertificates[].trustDomains` names. What only could go wrong, or is open wider than it need be, is told and changes
//! nothing else; what breaks services makes the peer's Ready False.

mod config;
mod objects;
#[cfg(test)]
mod tests;
pub mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::exports::{Export, Exports};
use super::status::stored_condition;
use crate::api::v1alpha1::conditions::{ExportedReason, MeshReadyReason as Reason};
use crate::model::condition::{Condition, Truth};
use crate::model::mesh::{Mesh, Seen};
use crate::model::service::TlsMode;
use crate::model::{NamespacedName, Peer, TrustDomain, World};

/// Most names in one message.
const NAMED: usize = 5;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Services do not work.
    Breaks,
    /// They may not, or more is open than was meant.
    Warns,
    /// It is good to know.
    Advises,
}

/// Something about our mesh that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub reason: Reason,
    /// Names the object and the cause.
    pub message: String,
    /// The exact setting to change.
    pub remedy: String,
}

impl Finding {
    fn new(
        severity: Severity,
        reason: Reason,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity, reason, message: message.into(), remedy: remedy.into() }
    }
}

/// What is found, by peer, the worst first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    findings: BTreeMap<TrustDomain, Vec<Finding>>,
    /// The peers with which services are exchanged.
    with_services: BTreeSet<TrustDomain>,
}

impl Report {
    /// What is found for one peer, the worst first.
    #[must_use]
    pub fn of(&self, peer: &TrustDomain) -> &[Finding] {
        self.findings.get(peer).map_or(&[], Vec::as_slice)
    }

    /// Whether services are exchanged with it.
    #[must_use]
    pub fn has_services(&self, peer: &TrustDomain) -> bool {
        self.with_services.contains(peer)
    }

    /// Whether our mesh keeps services with the peer from working.
    #[must_use]
    pub fn breaks(&self, peer: &TrustDomain) -> bool {
        self.of(peer).first().is_some_and(|worst| worst.severity == Severity::Breaks)
    }
}

/// What one peer has to do with services.
#[derive(Debug, Default)]
struct Exchange<'a> {
    /// Whether services go to it by `IstioMtls`.
    exports: bool,
    /// Such as would, were their workloads on SPIRE.
    not_on_spire: BTreeSet<&'a NamespacedName>,
    /// Whether services are imported from it.
    imports: bool,
}

impl Exchange<'_> {
    fn is_some(&self) -> bool {
        self.imports || self.exports || !self.not_on_spire.is_empty()
    }
}

/// Looks at the mesh, for every peer. Nothing is found where there is no mesh. `others` has the objects that this agent did
/// not make; it may have more.
#[must_use]
pub fn report(world: &World, others: &World, exports: &Exports) -> Report {
    let Some(mesh) = world.mesh.as_deref().filter(|mesh| is_read(mesh)) else { return Report::default() };
    let exchanges = exchanges(world, exports);
    let wide = objects::wide(others, mesh);
    let allows = objects::allows(others, exports);
    let findings = exchanges
        .iter()
        .map(|(peer, exchange)| {
            let mut found = config::findings(world, mesh, peer, exchange);
            found.extend(wide.iter().cloned());
            found.extend(allows.iter().filter_map(|allow| allow.for_peer(peer)));
            found.extend(workloads(world, exchange));
            found.sort_by_key(|finding| (finding.severity, finding.reason));
            (peer.clone(), found)
        })
        .collect();
    let with_services =
        exchanges.into_iter().filter(|(_, one)| one.is_some()).map(|(peer, _)| peer).collect();
    Report { findings, with_services }
}

/// Whether all of it was looked at: what is said of a part would be taken back with the rest.
const fn is_read(mesh: &Mesh) -> bool {
    !(matches!(mesh.config, Seen::Unread)
        || matches!(mesh.control_planes, Seen::Unread)
        || matches!(mesh.spire_agents, Seen::Unread))
}

fn exchanges<'a>(world: &World, exports: &'a Exports) -> BTreeMap<TrustDomain, Exchange<'a>> {
    let mut all: BTreeMap<TrustDomain, Exchange<'_>> =
        world.peers.keys().map(|peer| (peer.clone(), Exchange::default())).collect();
    let ends_in_sidecar = |one: &&Arc<Export>| one.service.tls_mode == TlsMode::IstioMtls && !one.is_plain;
    for export in exports.exported.values().filter(ends_in_sidecar) {
        for peer in &export.to {
            if let Some(exchange) = all.get_mut(peer) {
                exchange.exports = true;
            }
        }
    }
    for (name, report) in &exports.reports {
        let Err(problem) = &report.exported else { continue };
        if problem.reason == ExportedReason::MeshNotOnSpire {
            for peer in report.to.keys() {
                if let Some(exchange) = all.get_mut(peer) {
                    exchange.not_on_spire.insert(name);
                }
            }
        }
    }
    for imported in world.imported.values() {
        if let Some(exchange) = all.get_mut(&imported.trust_domain) {
            exchange.imports = true;
        }
    }
    all
}

/// What is found of the workloads that are exported, or import.
fn workloads(world: &World, exchange: &Exchange<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    if !exchange.not_on_spire.is_empty() {
        found.push(Finding::new(
            Severity::Warns,
            Reason::WorkloadsNotOnSpire,
            format!(
                "FederatedServices whose pods do not take their certificates from SPIRE are not exported: {}",
                some(exchange.not_on_spire.iter().map(ToString::to_string))
            ),
            "inject sidecars that mount SPIRE's socket, or set spec.tlsMode Mtls where the application ends TLS",
        ));
    }
    if exchange.imports {
        let ambient = world.namespaces.iter().filter(|(_, labels)| {
            labels.get("istio.io/dataplane-mode").is_some_and(|mode| mode == "ambient")
        });
        let names: Vec<String> = ambient.map(|(name, _)| name.clone()).collect();
        if !names.is_empty() {
            found.push(Finding::new(
                Severity::Advises,
                Reason::AmbientWorkloads,
                format!("workloads of namespaces in ambient mode cannot call imported services: {}", some(names)),
                "inject sidecars into those that are to call (label istio-injection: enabled on the namespace, in place of \
                 istio.io/dataplane-mode: ambient)",
            ));
        }
    }
    found
}

/// The condition `MeshReady` of a peer; `None` where there is no mesh to speak of, or none that is to be followed.
#[must_use]
pub fn condition(world: &World, report: &Report, peer: &Peer, stored: Option<&Value>) -> Option<Condition> {
    if !world.settings.istio {
        return None;
    }
    let mesh = match world.mesh.as_deref() {
        Some(mesh) if is_read(mesh) => mesh,
        _ => return stored_condition(stored, Reason::CONDITION),
    };
    let found = report.of(&peer.trust_domain);
    let all = in_words(found);
    if let Some(worst) = found.first().filter(|worst| worst.severity < Severity::Advises) {
        return Some(Condition::new(worst.reason, false, all));
    }
    let has_services = report.has_services(&peer.trust_domain);
    match (&mesh.config, found.first()) {
        (Seen::Unreadable(why), _) => {
            Some(Condition::new(Reason::MeshConfigUnreadable, Truth::Unknown, why.clone()))
        }
        (Seen::Absent | Seen::Unread, _) if !has_services => None,
        (Seen::Absent | Seen::Unread, _) => {
            let message = config::absent(world);
            Some(Condition::new(Reason::NoMeshConfig, Truth::Unknown, message))
        }
        (Seen::There(_), Some(best)) => Some(Condition::new(best.reason, true, all)),
        (Seen::There(config), None) => {
            let message =
                format!("the mesh configuration ({}) is as {} needs it", config.object, peer.trust_domain);
            Some(Condition::new(Reason::Configured, true, message))
        }
    }
}

/// All that is found, each with its remedy.
#[must_use]
pub fn in_words(found: &[Finding]) -> String {
    let each: Vec<String> =
        found.iter().map(|finding| format!("{}: {}", finding.message, finding.remedy)).collect();
    each.join("; ")
}

/// What an operator is told of SPIRE's agents where their configuration cannot be seen.
#[must_use]
pub fn unseen_sds(mesh: &Mesh) -> Option<&'static str> {
    mesh.spire_agents.there().is_none().then_some(
        "the configuration of SPIRE's agents is not in a ConfigMap `spire-agent` that can be read: see that it has sds { \
         default_bundle_name = \"null\", default_all_bundles_name = \"ROOTCA\" }, or proxies trust no foreign trust domain",
    )
}

fn some(names: impl IntoIterator<Item = String>) -> String {
    let mut names = names.into_iter();
    let first: Vec<String> = names.by_ref().take(NAMED).collect();
    match names.count() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

//! Which services are exported, to whom, and why the others are not: FederatedServices, and what ServiceExportRules select.
//!
//! What they come to in the cluster is known (`resolve`). Acceptance is decided among them alone, the older before the younger; export also needs peers, server
//! IDs, a gateway, and that nothing is in the way of what is generated for it. A service that is accepted is closed to
//! foreign callers (`authorization`) whether or not it is exported.

mod accept;
mod checks;
mod claims;
mod decided;
pub mod held;
mod offer;
pub(in crate::plan) mod plain;
mod policy;
mod policy_size;
mod problem;
pub mod resolve;
mod room;
mod sight;
#[cfg(test)]
pub(in crate::plan) mod testing;
pub(in crate::plan) mod unread;
mod way;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::v1alpha1::conditions::{ClientsEnforcedReason, ServiceAcceptedReason};
use crate::model::service::{DirectEndpoint, GatewayAddress, TlsMode};
use crate::model::{NamespacedName, ObjectKey, Service, TrustDomain, World};

use super::authorization::Allows;
use super::gateways::{Gateways, endpoints};
use super::istio;
use super::istio::peer_authentication::Others;
use super::memo::Memo;
use super::pods::Pods;
use checks::{
    alone, direct, hold_back, is_unreadable, needed_kinds, on_spire, passes_tls, reached, to_peer, unclaimed,
    with_server_ids,
};
use claims::Claims;
pub(in crate::plan) use decided::Decisions;
pub(in crate::plan) use offer::exported;
use policy::Gate;
pub use problem::ExportProblem;
pub use room::catalogues;
pub use way::Through;
use way::Way;

/// Whether a FederatedService stands among the others.
pub type Acceptance = Result<(), ExportProblem<ServiceAcceptedReason>>;

/// A service that is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub service: Arc<Service>,
    /// `{name}.{namespace}.{trustDomain}`.
    pub host: String,
    /// Those of its trust domains that it really goes to; never empty.
    pub to: BTreeSet<TrustDomain>,
    /// The gateways that carry it, sorted; empty: none does, and all of `to` are in `direct`.
    pub gateways: Vec<GatewayAddress>,
    /// How those gateways are meant.
    pub through: Through,
    /// Those that come to its pods, for want of a gateway.
    pub direct: BTreeSet<TrustDomain>,
    /// Its pods, by address; empty where nobody comes to them.
    pub endpoints: Vec<DirectEndpoint>,
    /// Its application ends TLS, and pods of it have sidecars, which are to pass that on.
    pub passes_tls: bool,
    /// Nothing of Istio's stands before it, and nothing is generated for it: it is outside of the mesh, or there is none.
    pub is_plain: bool,
}

/// What became of one FederatedService, for its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportReport {
    /// Whether it stands among the others.
    pub accepted: Acceptance,
    /// `Err` keeps it from all peers.
    pub exported: Result<(), ExportProblem>,
    /// For each trust domain that it names, whether it goes there.
    pub to: BTreeMap<TrustDomain, Result<(), ExportProblem>>,
    /// What was passed over, and does not keep it from being exported.
    pub warnings: Vec<ExportProblem>,
    pub host: Option<String>,
    /// The gateways that importers are told of.
    pub gateways: Vec<GatewayAddress>,
    /// Why there is no gateway now, though importers are told of what there was.
    pub kept: Option<ExportProblem>,
    /// Whether the policy that holds callers to `clients` stands in the store as it should.
    pub enforced: Result<(), ExportProblem<ClientsEnforcedReason>>,
    /// Who holds callers to `clients`.
    pub enforcer: Enforcer,
    /// Why that policy is not enough, where the mesh takes foreign callers for local ones.
    pub doubt: Option<ExportProblem<ClientsEnforcedReason>>,
}

/// Who sees to it that only clients call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcer {
    /// The mesh, by a policy, where its sidecar ends TLS; where the application does, that alone.
    #[default]
    Mesh,
    /// The Envoy in front of the application, which this agent serves by xDS.
    Proxy,
    /// Whoever ends TLS at the gateways that the FederatedService gives: nothing says who that is.
    Gateway,
}

/// What becomes of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exports {
    pub exported: BTreeMap<NamespacedName, Arc<Export>>,
    /// Exported or not; but for those outside of the mesh, which need no policy.
    pub accepted: BTreeMap<NamespacedName, Arc<Service>>,
    /// Accepted services whose policy is not in place: what was generated from them stays as it stands until it is.
    pub held: BTreeSet<NamespacedName>,
    pub reports: BTreeMap<NamespacedName, Arc<ExportReport>>,
    /// Objects that are in the way and not ours, with what to do about them.
    pub blocked: BTreeMap<ObjectKey, String>,
}

/// Decides on every FederatedService, with nothing remembered.
#[must_use]
pub fn exports(world: &World) -> Exports {
    decide(world, &mut Memo::default())
}

/// Decides on every FederatedService. Before our own trust domain is known nothing is accepted or exported, and nothing
/// that was may be taken away.
#[must_use]
pub(in crate::plan) fn decide(world: &World, memo: &mut Memo) -> Exports {
    if let Some(own) = world.own_trust_domain() {
        return decided::decide(world, own, memo);
    }
    let unknown = ExportProblem::unknown(
        ServiceAcceptedReason::NoIdentity,
        "the agent has no SVID yet, so its own trust domain is unknown: nothing is exported until the Workload API \
         delivers one",
    );
    let services = world.services.iter().map(|(name, service)| (name, &service.exported_to));
    let declared = world.declared.iter().map(|(name, declared)| (name, &declared.exported_to));
    let reports = declared.chain(services);
    let reports = reports.map(|(name, to)| (name.clone(), Arc::new(report_of(to, Err(unknown.clone())))));
    Exports { reports: reports.collect(), ..Exports::default() }
}

/// The report of what is accepted and cannot be exported.
fn nowhere(report: &mut ExportReport, problem: &ExportProblem) {
    report.enforced = Err(problem.clone().under(ClientsEnforcedReason::NotExported));
    for to in report.to.values_mut() {
        *to = Err(problem.clone());
    }
    report.exported = Err(problem.clone());
}

/// What a service is exported into.
struct Around<'a> {
    gateways: &'a Gateways,
    /// Its own.
    pods: Pods<'a>,
    standing: &'a Standing<'a>,
    doubt: Option<&'a ExportProblem<ClientsEnforcedReason>>,
}

/// What stands in the cluster, made ready once for all services.
struct Standing<'a> {
    claims: Claims<'a>,
    allows: Allows<'a>,
    peer_authentications: Others<'a>,
    /// Few need it, unless much fails.
    closed: OnceCell<policy::Closed>,
    world: &'a World,
}

impl<'a> Standing<'a> {
    /// `others` has their objects, `world` everything.
    fn new(others: &'a World, world: &'a World) -> Self {
        Self {
            claims: Claims::new(others),
            allows: Allows::new(others),
            peer_authentications: Others::new(others),
            closed: OnceCell::new(),
            world,
        }
    }

    fn closed(&self) -> &policy::Closed {
        self.closed.get_or_init(|| policy::Closed::new(self.world))
    }
}

fn report_of(to: &BTreeSet<TrustDomain>, accepted: Acceptance) -> ExportReport {
    let exported = accepted.clone().map_err(ExportProblem::from);
    ExportReport {
        enforced: accepted.clone().map_err(ExportProblem::from),
        to: to.iter().map(|td| (td.clone(), exported.clone())).collect(),
        exported,
        accepted,
        warnings: Vec::new(),
        host: None,
        gateways: Vec::new(),
        kept: None,
        enforcer: Enforcer::default(),
        doubt: None,
    }
}

/// Fills in the report of an accepted service, and exports it where it goes to at least one peer.
fn export(
    world: &World,
    own: &TrustDomain,
    around: &Around<'_>,
    service: &Arc<Service>,
    report: &mut ExportReport,
    exports: &mut Exports,
) {
    let Ok(host) = service.name.host(own) else { return };
    report.host = Some(host.clone());
    let is_plain = plain::is_plain(world, service);
    let way = if is_plain {
        plain::way(service, &mut report.warnings)
    } else {
        way::way(world, around.gateways, service, &mut report.warnings)
    };
    if is_plain {
        plain::judge(world, own, service, report);
    } else {
        judge(world, own, around, service, &way, report, &mut exports.blocked);
    }
    let direct = direct(world, service, &way);
    let endpoints = if direct.is_empty() { Vec::new() } else { endpoints(&around.pods, service) };
    let to = |td| {
        report.exported.clone()?;
        to_peer(world, own, service, td)?;
        reached(&way, td, direct.contains(td), &endpoints)
    };
    report.to = service.exported_to.iter().map(|td| (td.clone(), to(td))).collect();
    if report.to.values().all(Result::is_err) {
        if service.exported_to.iter().any(|td| is_unreadable(world, td)) {
            // Its TrustDomainPeer cannot be read now: what is out to it stays.
            exports.held.insert(service.object.clone());
        }
        if report.exported.is_ok() {
            report.exported = report.to.values().next().cloned().unwrap_or(Ok(()));
        }
    }
    if report.exported.is_err() || !passes_gate(world, around, service, &direct, report, exports) {
        return;
    }
    let to: BTreeSet<TrustDomain> =
        report.to.iter().filter(|(_, result)| result.is_ok()).map(|(td, _)| td.clone()).collect();
    if to.is_empty() {
        return;
    }
    if to.iter().any(|td| !direct.contains(td)) {
        report.gateways.clone_from(&way.gateways);
        report.kept = way.missing.filter(|_| !way.gateways.is_empty());
    }
    if way.is_unknown && !way.gateways.is_empty() {
        exports.held.insert(service.object.clone());
    }
    let passes_tls = !is_plain
        && service.tls_mode == TlsMode::Mtls
        && passes_tls(world, around, service, &mut report.warnings);
    let Way { gateways, through, .. } = way;
    let export = Export {
        service: Arc::clone(service),
        host,
        to,
        gateways,
        through,
        direct,
        endpoints,
        passes_tls,
        is_plain,
    };
    exports.exported.insert(service.object.clone(), Arc::new(export));
}

/// Whether the service may be offered as far as its policies go; what stands of it is held, or taken away, where not.
fn passes_gate(
    world: &World,
    around: &Around<'_>,
    service: &Service,
    direct: &BTreeSet<TrustDomain>,
    report: &mut ExportReport,
    exports: &mut Exports,
) -> bool {
    let gate = policy::gate(world, || around.standing.closed(), service, &report.enforced);
    if matches!(gate, Gate::Held | Gate::Shut(_)) {
        exports.held.insert(service.object.clone());
    }
    match gate {
        Gate::Open => true,
        Gate::Held => {
            hold_back(report, direct);
            true
        }
        Gate::Shut(problem) | Gate::Ended(problem) => {
            for result in report.to.values_mut().filter(|result| result.is_ok()) {
                *result = Err(problem.clone());
            }
            report.exported = Err(problem);
            false
        }
    }
}

/// Whether Istio can serve it, and whether its policy is in place.
fn judge(
    world: &World,
    own: &TrustDomain,
    around: &Around<'_>,
    service: &Service,
    way: &Way,
    report: &mut ExportReport,
    blocked: &mut BTreeMap<ObjectKey, String>,
) {
    let host = report.host.clone().unwrap_or_default();
    let possible =
        needed_kinds(world, service.tls_mode).and_then(|()| unclaimed(world, &policy::key(service), blocked));
    report.enforced = possible
        .clone()
        .map_err(|problem| problem.under(ClientsEnforcedReason::PolicyNotInPlace))
        .and_then(|()| policy::in_place(world, service));
    report.doubt = around.doubt.cloned();
    report.exported = possible.and_then(|()| {
        with_server_ids(service, own)?;
        on_spire(around, service)?;
        if way.gateways.is_empty() {
            return Ok(());
        }
        for key in istio::export::keys(service, &host) {
            unclaimed(world, &key, blocked)?;
        }
        alone(world, around, service, &host, &way.through, &mut report.warnings)
    });
}

#[cfg(test)]
mod tests;

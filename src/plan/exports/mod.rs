//! Which services are exported, to whom, and why the others are not: FederatedServices, and what ServiceExportRules select.
//!
//! What they come to in the cluster is known (`resolve`). Acceptance is decided among them alone, the older before the younger; export also needs peers, server
//! IDs, a gateway, and that nothing is in the way of what is generated for it. A service that is accepted is closed to
//! foreign callers (`authorization`) whether or not it is exported.

mod claims;
pub mod held;
mod policy;
mod problem;
pub mod resolve;
mod room;
#[cfg(test)]
pub(in crate::plan) mod testing;
mod way;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::api::v1alpha1::conditions::{ClientsEnforcedReason, ExportedReason, ServiceAcceptedReason};
use crate::istio::authorization_policy::MAX_RULES;
use crate::model::export::Unresolved;
use crate::model::object::Kind;
use crate::model::service::{
    ClientPattern, DirectEndpoint, GatewayAddress, RemotePort, RemoteService, TlsMode,
};
use crate::model::world::{Rejected, Settings};
use crate::model::{NamespacedName, ObjectKey, Service, ServiceName, TrustDomain, World};

use super::gateways::{Gateways, endpoints};
use super::memo::{Exported, Memo};
use super::pods::Pods;
use super::selectors::DisjointSelectors;
use super::{authorization, diff, generated, istio, mesh};
use authorization::Allows;
use claims::Claims;
use istio::peer_authentication::{self, Others};
use policy::Gate;
pub use problem::ExportProblem;
pub use room::catalogues;
pub use way::Through;
use way::Way;

/// Istio's kinds that an export needs; with `Mtls` the last as well.
const NEEDED: [Kind; 4] =
    [Kind::AuthorizationPolicy, Kind::ServiceEntry, Kind::Gateway, Kind::VirtualService];

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
}

/// What becomes of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exports {
    pub exported: BTreeMap<NamespacedName, Export>,
    pub accepted: BTreeMap<NamespacedName, Arc<Service>>,
    /// Accepted services whose policy is not in place: what was generated from them stays as it stands until it is.
    pub held: BTreeSet<NamespacedName>,
    pub reports: BTreeMap<NamespacedName, ExportReport>,
    /// Objects that are in the way and not ours, with what to do about them.
    pub blocked: BTreeMap<ObjectKey, String>,
}

/// Decides on every FederatedService. Before our own trust domain is known nothing is accepted or exported, and nothing
/// that was may be taken away.
#[must_use]
pub fn exports(world: &World) -> Exports {
    let mut exports = Exports::default();
    let Some(own) = world.own_trust_domain() else {
        let unknown = ExportProblem::unknown(
            ServiceAcceptedReason::NoIdentity,
            "the agent has no SVID yet, so its own trust domain is unknown: nothing is exported until the Workload API \
             delivers one",
        );
        let services = world.services.iter().map(|(name, service)| (name, &service.exported_to));
        let declared = world.declared.iter().map(|(name, declared)| (name, &declared.exported_to));
        let reports = declared.chain(services);
        let reports = reports.map(|(name, to)| (name.clone(), report_of(to, Err(unknown.clone()))));
        exports.reports.extend(reports);
        return exports;
    };
    let around = Around {
        gateways: Gateways::discover(world),
        pods: OnceCell::new(),
        closed: OnceCell::new(),
        claims: Claims::new(world),
        allows: Allows::new(world),
        peer_authentications: Others::new(world),
    };
    for (candidate, accepted) in accept(world, own) {
        let is_accepted = accepted.is_ok();
        let (name, mut report) = match candidate {
            Candidate::Service(service) => {
                let mut report = report_of(&service.exported_to, accepted);
                if is_accepted {
                    export(world, own, &around, service, &mut report, &mut exports);
                    exports.accepted.insert(service.object.clone(), Arc::clone(service));
                }
                (&service.object, report)
            }
            Candidate::Unresolved(unresolved) => {
                let mut report = report_of(&unresolved.declared.exported_to, accepted);
                if is_accepted {
                    nowhere(&mut report, &ExportProblem::of_note(&unresolved.problem));
                    report.host = unresolved.declared.name.host(own).ok();
                }
                (&unresolved.declared.object, report)
            }
        };
        report.warnings.extend(world.notes.get(name).into_iter().flatten().map(ExportProblem::of_note));
        exports.reports.insert(name.clone(), report);
    }
    exports
}

/// The report of what is accepted and cannot be exported.
fn nowhere(report: &mut ExportReport, problem: &ExportProblem) {
    report.enforced = Err(problem.clone().under(ClientsEnforcedReason::NotExported));
    for to in report.to.values_mut() {
        *to = Err(problem.clone());
    }
    report.exported = Err(problem.clone());
}

/// What services are exported into, made ready once for all of them.
struct Around<'a> {
    gateways: Gateways,
    /// Few need them.
    pods: OnceCell<Pods<'a>>,
    /// As few, unless much fails.
    closed: OnceCell<policy::Closed>,
    claims: Claims<'a>,
    allows: Allows<'a>,
    peer_authentications: Others<'a>,
}

/// What comes of an export; of the export and what is constant alone, so that it can be remembered.
pub(super) fn exported(settings: &Settings, export: &Export, memo: &mut Memo) -> Exported {
    memo.exports.get(&export.service.object, export, |export| Exported {
        objects: istio::export::objects(settings, export).into_iter().map(diff::seal).collect(),
        offered: export.to.iter().map(|peer| to_offer(export, peer)).collect(),
    })
}

fn to_offer(export: &Export, peer: &TrustDomain) -> (TrustDomain, Arc<RemoteService>, usize) {
    let service = offered(export, peer);
    let size = crate::federation::catalogue::size(&service);
    (peer.clone(), Arc::new(service), size)
}

fn offered(export: &Export, peer: &TrustDomain) -> RemoteService {
    let service = &export.service;
    let of_peer = |all: &BTreeSet<ClientPattern>| -> BTreeSet<ClientPattern> {
        all.iter().filter(|client| client.trust_domain() == peer).cloned().collect()
    };
    // A port that nobody there may call is not offered: to the importer, no clients of its own are those of the service.
    let offered = service.ports.iter().filter(|port| has_clients_in(service.clients_of(port), peer));
    let mut ports: Vec<RemotePort> = offered
        .map(|p| RemotePort {
            name: p.name.clone(),
            port: p.port,
            protocol: p.protocol,
            clients: p.clients.as_ref().map(of_peer).unwrap_or_default(),
        })
        .collect();
    ports.sort_by_key(|p| p.port);
    let (gateways, endpoints) = if export.direct.contains(peer) {
        let offered = |name: &String| ports.iter().any(|port| port.name == *name);
        let mut endpoints = export.endpoints.clone();
        endpoints.iter_mut().for_each(|endpoint| endpoint.ports.retain(|name, _| offered(name)));
        (Vec::new(), endpoints)
    } else {
        (export.gateways.clone(), Vec::new())
    };
    RemoteService {
        name: service.name.clone(),
        ports,
        tls_mode: service.tls_mode,
        server_ids: service.server_ids.clone(),
        clients: of_peer(&service.clients),
        gateways,
        endpoints,
    }
}

fn has_clients_in(clients: &BTreeSet<ClientPattern>, td: &TrustDomain) -> bool {
    clients.iter().any(|client| client.trust_domain() == td)
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
    }
}

/// What contends for hosts and workloads.
#[derive(Clone, Copy)]
enum Candidate<'a> {
    Service(&'a Arc<Service>),
    /// It keeps its host, for when it comes to something again.
    Unresolved(&'a Unresolved),
}

impl<'a> Candidate<'a> {
    /// The oldest first, and of one age in an order that does not change.
    fn age(&self) -> impl Ord + use<'a> {
        let (created, uid, object) = match *self {
            Self::Service(service) => (service.created, &service.uid, &service.object),
            Self::Unresolved(Unresolved { declared: of, .. }) => (of.created, &of.uid, &of.object),
        };
        (created.is_none(), created, uid, object)
    }
}

impl fmt::Display for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => service.fmt(f),
            Self::Unresolved(it) => write!(f, "FederatedService {}", it.declared.object),
        }
    }
}

/// The services, the oldest first, each with whether it stands beside those before it.
fn accept<'a>(world: &'a World, own: &TrustDomain) -> Vec<(Candidate<'a>, Acceptance)> {
    let services = world.services.values().map(Candidate::Service);
    let unresolved = world.unresolved.values().map(|it| Candidate::Unresolved(it.as_ref()));
    let mut oldest_first: Vec<Candidate<'_>> = services.chain(unresolved).collect();
    oldest_first.sort_by(|one, other| one.age().cmp(&other.age()));
    let mut among = Accepted::default();
    oldest_first.into_iter().map(|candidate| (candidate, among.add(candidate, own))).collect()
}

/// What the services that were accepted so far have taken.
#[derive(Default)]
struct Accepted<'a> {
    hosts: BTreeMap<&'a ServiceName, Candidate<'a>>,
    selectors: BTreeMap<&'a str, DisjointSelectors<'a, &'a Service>>,
    target_ports: BTreeMap<authorization::Workloads<'a>, BTreeMap<u16, &'a Service>>,
}

impl<'a> Accepted<'a> {
    fn add(&mut self, candidate: Candidate<'a>, own: &TrustDomain) -> Acceptance {
        let name = match candidate {
            Candidate::Service(service) => &service.name,
            Candidate::Unresolved(it) => &it.declared.name,
        };
        let stands = self.named(name, own).and_then(|()| match candidate {
            Candidate::Service(service) => self.stands(service),
            Candidate::Unresolved(_) => Ok(()),
        });
        stands.map_err(|(reason, cause)| ExportProblem::new(reason, format!("{candidate}: {cause}")))?;
        self.hosts.insert(name, candidate);
        Ok(())
    }

    fn named(&self, name: &ServiceName, own: &TrustDomain) -> Result<(), (ServiceAcceptedReason, String)> {
        name.host(own).map_err(|e| (ServiceAcceptedReason::from(&e), e.to_string()))?;
        if let Some(winner) = self.hosts.get(name) {
            let cause = format!(
                "{name} is already the name of the older {winner}; give one of them another spec.name"
            );
            return Err((ServiceAcceptedReason::HostTaken, cause));
        }
        Ok(())
    }

    fn stands(&mut self, service: &'a Service) -> Result<(), (ServiceAcceptedReason, String)> {
        let targets: BTreeSet<u16> = service.ports.iter().map(|port| port.target_port).collect();
        if service.tls_mode == TlsMode::Mtls && targets.len() > 1 {
            let cause = "with tlsMode Mtls a gateway knows what is called by the SNI alone, which is the host, so a host leads \
                         to one port of the workload; export each by a FederatedService of its own, with a spec.name of its own"
                .to_owned();
            return Err((ServiceAcceptedReason::OneTargetPort, cause));
        }
        let namespace = service.object.namespace.as_str();
        let workloads = (namespace, &service.workload_labels);
        let mut ports = self.target_ports.get(&workloads).cloned().unwrap_or_default();
        for target in targets {
            let first = *ports.entry(target).or_insert(service);
            if first.tls_mode != service.tls_mode {
                return Err((ServiceAcceptedReason::TlsModeConflicts, mode_taken(first, target)));
            }
        }
        // A rule for each port, and one for all others.
        if ports.len() >= MAX_RULES {
            let cause = format!(
                "with the others of the same selector it exports {} ports, and one AuthorizationPolicy holds the \
                 rules of at most {}; export fewer",
                ports.len(),
                MAX_RULES - 1
            );
            return Err((ServiceAcceptedReason::TooManyPorts, cause));
        }
        let disjoint = self.selectors.entry(namespace).or_default();
        disjoint.insert(&service.workload_labels, service).map_err(|winner| {
            let cause = format!(
                "its selector can select the same pods as that of the older {winner}, and policies that deny would add up; make \
                 them equal, or give one label different values in the two"
            );
            (ServiceAcceptedReason::SelectorOverlaps, cause)
        })?;
        self.target_ports.insert(workloads, ports);
        Ok(())
    }
}

fn mode_taken(first: &Service, port: u16) -> String {
    format!(
        "port {port} of its workloads is exported with tlsMode {} by the older {first}, and a sidecar either ends TLS on a port or \
         passes it on; give it the same tlsMode, or another target port",
        first.tls_mode.as_str()
    )
}

/// Fills in the report of an accepted service, and exports it where it goes to at least one peer.
fn export<'a>(
    world: &'a World,
    own: &TrustDomain,
    around: &Around<'a>,
    service: &Arc<Service>,
    report: &mut ExportReport,
    exports: &mut Exports,
) {
    let Ok(host) = service.name.host(own) else { return };
    report.host = Some(host.clone());
    let way = way::way(world, &around.gateways, service, &mut report.warnings);
    let blocked = &mut exports.blocked;
    let possible =
        needed_kinds(world, service.tls_mode).and_then(|()| unclaimed(world, &policy::key(service), blocked));
    report.enforced = possible
        .clone()
        .map_err(|problem| problem.under(ClientsEnforcedReason::PolicyNotInPlace))
        .and_then(|()| policy::in_place(world, service));
    report.exported = possible.and_then(|()| {
        with_server_ids(service, own)?;
        on_spire(world, around, service)?;
        if way.gateways.is_empty() {
            return Ok(());
        }
        for key in istio::export::keys(service, &host) {
            unclaimed(world, &key, blocked)?;
        }
        alone(world, around, service, &host, &way.through, &mut report.warnings)
    });
    let direct = direct(world, service, &way);
    let endpoints = if direct.is_empty() {
        Vec::new()
    } else {
        endpoints(around.pods.get_or_init(|| Pods::new(world)), service)
    };
    let to = |td| {
        report.exported.clone()?;
        to_peer(world, service, td)?;
        reached(&way, td, direct.contains(td), &endpoints)
    };
    report.to = service.exported_to.iter().map(|td| (td.clone(), to(td))).collect();
    let nowhere = report.to.values().all(Result::is_err);
    if nowhere && service.exported_to.iter().any(|td| is_unreadable(world, td)) {
        // Its TrustDomainPeer cannot be read now: what is out to it stays.
        exports.held.insert(service.object.clone());
    }
    if report.exported.is_ok() && report.to.values().all(Result::is_err) {
        report.exported = report.to.values().next().cloned().unwrap_or(Ok(()));
    }
    if report.exported.is_err() {
        return;
    }
    match policy::gate(world, &around.closed, service, &report.enforced) {
        Gate::Open => {}
        Gate::Held => {
            exports.held.insert(service.object.clone());
            hold_back(report, &direct);
        }
        gate @ (Gate::Shut(_) | Gate::Ended(_)) => {
            let (Gate::Shut(problem) | Gate::Ended(problem)) = &gate else { return };
            if matches!(gate, Gate::Shut(_)) {
                exports.held.insert(service.object.clone());
            }
            for result in report.to.values_mut().filter(|result| result.is_ok()) {
                *result = Err(problem.clone());
            }
            report.exported = Err(problem.clone());
            return;
        }
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
    let passes_tls =
        service.tls_mode == TlsMode::Mtls && passes_tls(world, around, service, &mut report.warnings);
    let Way { gateways, through, .. } = way;
    let export =
        Export { service: Arc::clone(service), host, to, gateways, through, direct, endpoints, passes_tls };
    exports.exported.insert(service.object.clone(), export);
}

fn needed_kinds(world: &World, mode: TlsMode) -> Result<(), ExportProblem> {
    let needed = if mode == TlsMode::Mtls {
        &NEEDED[..]
    } else {
        NEEDED.split_last().map_or(&[][..], |(_, most)| most)
    };
    match needed.iter().find(|kind| world.absent.contains(kind)) {
        Some(kind) => Err(ExportProblem::new(
            ExportedReason::IstioAbsent,
            format!(
                "this cluster does not serve {kind} ({}), which tlsMode {} needs; install Istio",
                kind.api_version(),
                mode.as_str()
            ),
        )),
        None => Ok(()),
    }
}

/// Only a sidecar with SPIRE's certificates can end `IstioMtls`. Where no pod is known, nothing speaks against it.
fn on_spire<'a>(world: &'a World, around: &Around<'a>, service: &Service) -> Result<(), ExportProblem> {
    let problem = match service.tls_mode {
        TlsMode::IstioMtls => {
            let pods = around.pods.get_or_init(|| Pods::new(world));
            mesh::workloads::certificates(pods, service).problem()
        }
        TlsMode::Mtls => None,
    };
    match problem {
        None => Ok(()),
        Some(problem) => Err(ExportProblem::new(
            ExportedReason::MeshNotOnSpire,
            format!("FederatedService {}: the pods that it selects {problem}", service.object),
        )),
    }
}

fn unclaimed(
    world: &World,
    key: &ObjectKey,
    blocked: &mut BTreeMap<ObjectKey, String>,
) -> Result<(), ExportProblem> {
    generated::claim(world, key).map_err(|message| {
        blocked.insert(key.clone(), message.clone());
        ExportProblem::new(ExportedReason::ObjectNotOurs, message)
    })
}

fn with_server_ids(service: &Service, own: &TrustDomain) -> Result<(), ExportProblem> {
    if service.server_ids.is_empty() {
        return Err(ExportProblem::new(
            ExportedReason::NoServerIds,
            format!(
                "{service}: importers pin the server's SPIFFE IDs and none is known: none is given, and no pod with the labels \
                 {} is there; start the pods, or list the IDs in spec.serverSPIFFEIDs of a FederatedService",
                in_words(&service.workload_labels)
            ),
        ));
    }
    match service.server_ids.iter().find(|id| !id.is_member_of(own)) {
        Some(id) => Err(ExportProblem::new(
            ExportedReason::ForeignServerId,
            format!(
                "{service}: {id} in spec.serverSPIFFEIDs is not in our own trust domain {own}; importers would refuse it"
            ),
        )),
        None => Ok(()),
    }
}

/// A few labels, for a message.
fn in_words(labels: &BTreeMap<String, String>) -> String {
    let few: Vec<String> = labels.iter().take(4).map(|(key, value)| format!("{key}={value}")).collect();
    few.join(",")
}

/// Keeps the pods of a service from those that come to them: they are told of as they are now, and those that are new to it
/// are not guarded yet.
fn hold_back(report: &mut ExportReport, direct: &BTreeSet<TrustDomain>) {
    let Err(problem) = &report.enforced else { return };
    let problem = problem.clone().under(ExportedReason::PolicyNotInPlace);
    for (_, result) in report.to.iter_mut().filter(|(td, result)| direct.contains(*td) && result.is_ok()) {
        *result = Err(problem.clone());
    }
}

/// Refuses the host where someone else's object served it first; a younger one is named.
fn alone(
    world: &World,
    around: &Around<'_>,
    service: &Service,
    host: &str,
    through: &Through,
    warnings: &mut Vec<ExportProblem>,
) -> Result<(), ExportProblem> {
    let Some(rival) = around.claims.rival(world, service, host, through) else { return Ok(()) };
    let key = &rival.key;
    if rival.is_older {
        let message = format!(
            "{service}: {key} serves {host} at the same gateway and was there first; take the host out of it, or \
             give the service another spec.name"
        );
        return Err(ExportProblem::new(ExportedReason::HostExists, message));
    }
    let message = format!(
        "{key} names {host} at the same gateway too, and is younger than what was generated for it: it is passed over, or \
         keeps the gateway from taking its configuration; take the host out of it"
    );
    warnings.push(ExportProblem::new(ExportedReason::HostExists, message));
    Ok(())
}

/// Whether sidecars are to be told that the application ends TLS; and what of others' keeps them from it, or from callers.
fn passes_tls<'a>(
    world: &'a World,
    around: &Around<'a>,
    service: &Service,
    warnings: &mut Vec<ExportProblem>,
) -> bool {
    let workloads = (service.object.namespace.as_str(), &service.workload_labels);
    let pods = around.pods.get_or_init(|| Pods::new(world));
    let ports: BTreeSet<u16> = service.ports.iter().map(|port| port.target_port).collect();
    let of =
        |key: &ObjectKey| format!("{key} selects the workloads of {service}, whose application ends TLS");
    let (mut is_any, mut has_sidecars) = (false, false);
    for pod in pods.selected(workloads.0, workloads.1) {
        is_any = true;
        has_sidecars |= pod.has_sidecar;
    }
    if let Some(allow) = around.allows.selecting(workloads).filter(|_| has_sidecars) {
        let message = format!(
            "{}: their sidecars know no caller, so it has to allow whoever comes to port {}",
            of(allow),
            join(&ports)
        );
        warnings.push(ExportProblem::new(ExportedReason::AllowStands, message));
    }
    if let Some(standing) = around.peer_authentications.standing(workloads, &ports, pods) {
        if has_sidecars && !standing.ports.is_empty() {
            let message = format!(
                "{}: istiod obeys it alone, and has the gateway wrap what the application's clients send in mutual TLS once \
                 more; set portLevelMtls of port {} in it to mode DISABLE",
                of(&standing.key),
                join(&standing.ports)
            );
            warnings.push(ExportProblem::new(ExportedReason::PeerAuthenticationStands, message));
        }
        return false;
    }
    let key = peer_authentication::key(workloads.0, workloads.1);
    let stands = || world.objects.get(&key).is_some_and(|o| o.is_generated_by(&world.settings.instance));
    has_sidecars || (!is_any && stands())
}

fn join(ports: &BTreeSet<u16>) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// The trust domains that come to the pods, since no gateway is there now.
fn direct(world: &World, service: &Service, way: &Way) -> BTreeSet<TrustDomain> {
    let comes = |td: &&TrustDomain| world.peers.get(*td).is_some_and(|peer| peer.direct_endpoints);
    let all = service.exported_to.iter().filter(|_| way.missing.is_some());
    all.filter(comes).cloned().collect()
}

fn reached(
    way: &Way,
    td: &TrustDomain,
    is_direct: bool,
    endpoints: &[DirectEndpoint],
) -> Result<(), ExportProblem> {
    if is_direct && endpoints.is_empty() {
        let message = format!(
            "{td}: its TrustDomainPeer has spec.directEndpoints, there is no gateway, and no pod of the service that could be \
             told of: it has none with an address, or with tlsMode IstioMtls none with a sidecar"
        );
        return Err(ExportProblem::new(ExportedReason::NoEndpoints, message));
    }
    match &way.missing {
        Some(problem) if !is_direct && way.gateways.is_empty() => Err(problem.clone()),
        _ => Ok(()),
    }
}

/// Whether a TrustDomainPeer names this trust domain, but is malformed, and no good version of it is known.
fn is_unreadable(world: &World, td: &TrustDomain) -> bool {
    let names =
        |rejected: &Rejected| rejected.trust_domain.as_ref() == Some(td) && rejected.deletion.is_none();
    !world.peers.contains_key(td) && world.rejected.values().any(names)
}

fn to_peer(world: &World, service: &Service, td: &TrustDomain) -> Result<(), ExportProblem> {
    match world.peers.get(td) {
        None => Err(ExportProblem::new(
            ExportedReason::NoPeer,
            format!("{td}: there is no accepted TrustDomainPeer of this trust domain; create one or mend it"),
        )),
        Some(peer) if peer.deletion.is_some() => Err(ExportProblem::new(
            ExportedReason::NoPeer,
            format!("{td}: its TrustDomainPeer {} is being deleted", peer.object),
        )),
        Some(_) if !service.ports.iter().any(|port| has_clients_in(service.clients_of(port), td)) => {
            Err(ExportProblem::new(
                ExportedReason::NoClientsThere,
                format!(
                    "{td}: none of the clients is in this trust domain, so nobody there could call; add its clients or \
                     remove it from spec.exportedTrustDomains"
                ),
            ))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;

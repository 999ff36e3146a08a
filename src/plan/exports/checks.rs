//! What an accepted service needs before it is exported: Istio's kinds, SPIRE's certificates, server IDs, a host of its own, a
//! peer with clients, and somewhere to connect to.

use std::collections::{BTreeMap, BTreeSet};

use super::offer::has_clients_in;
use super::way::{Through, Way};
use super::{Around, ExportProblem, ExportReport};
use crate::api::v1alpha1::conditions::{ClientsEnforcedReason, ExportedReason};
use crate::model::object::Kind;
use crate::model::service::{DirectEndpoint, TlsMode};
use crate::model::{ObjectKey, Service, TrustDomain, World};
use crate::plan::istio::peer_authentication;
use crate::plan::{authorization, generated, mesh};

/// Istio's kinds that an export needs; with `Mtls` the last as well.
const NEEDED: [Kind; 4] =
    [Kind::AuthorizationPolicy, Kind::ServiceEntry, Kind::Gateway, Kind::VirtualService];

pub(super) fn needed_kinds(world: &World, mode: TlsMode) -> Result<(), ExportProblem> {
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
pub(super) fn on_spire(around: &Around<'_>, service: &Service) -> Result<(), ExportProblem> {
    let problem = match service.tls_mode {
        TlsMode::IstioMtls => mesh::workloads::certificates(&around.pods, service).problem(),
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

pub(super) fn unclaimed(
    world: &World,
    key: &ObjectKey,
    blocked: &mut BTreeMap<ObjectKey, String>,
) -> Result<(), ExportProblem> {
    generated::claim(world, key).map_err(|message| {
        blocked.insert(key.clone(), message.clone());
        ExportProblem::new(ExportedReason::ObjectNotOurs, message)
    })
}

pub(super) fn with_server_ids(service: &Service, own: &TrustDomain) -> Result<(), ExportProblem> {
    if service.server_ids.is_empty() && service.is_outside() {
        return Err(ExportProblem::new(
            ExportedReason::NoServerIds,
            format!(
                "{service}: importers pin the server's SPIFFE IDs and none is known: list that of the Envoy in front of it in \
                 spec.serverSPIFFEIDs"
            ),
        ));
    }
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
pub(super) fn hold_back(report: &mut ExportReport, direct: &BTreeSet<TrustDomain>) {
    let Err(problem) = &report.enforced else { return };
    let problem = problem.clone().under(ExportedReason::PolicyNotInPlace);
    for (_, result) in report.to.iter_mut().filter(|(td, result)| direct.contains(*td) && result.is_ok()) {
        *result = Err(problem.clone());
    }
}

/// Refuses the host where someone else's object served it first; a younger one is named.
pub(super) fn alone(
    world: &World,
    around: &Around<'_>,
    service: &Service,
    host: &str,
    through: &Through,
    warnings: &mut Vec<ExportProblem>,
) -> Result<(), ExportProblem> {
    let Some(rival) = around.standing.claims.rival(world, service, host, through) else { return Ok(()) };
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
pub(super) fn passes_tls(
    world: &World,
    around: &Around<'_>,
    service: &Service,
    warnings: &mut Vec<ExportProblem>,
) -> bool {
    let workloads = (service.object.namespace.as_str(), &service.workload_labels);
    let pods = &around.pods;
    let ports: BTreeSet<u16> = service.ports.iter().map(|port| port.target_port).collect();
    let of =
        |key: &ObjectKey| format!("{key} selects the workloads of {service}, whose application ends TLS");
    let (mut is_any, mut has_sidecars) = (false, false);
    for pod in pods.selected(workloads.0, workloads.1) {
        is_any = true;
        has_sidecars |= pod.has_sidecar;
    }
    if let Some(allow) = around.standing.allows.selecting(workloads).filter(|_| has_sidecars) {
        let message = format!(
            "{}: their sidecars know no caller, so it has to allow whoever comes to port {}",
            of(allow),
            join(&ports)
        );
        warnings.push(ExportProblem::new(ExportedReason::AllowStands, message));
    }
    if let Some(standing) = around.standing.peer_authentications.standing(workloads, &ports, pods) {
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
pub(super) fn direct(world: &World, service: &Service, way: &Way) -> BTreeSet<TrustDomain> {
    let comes = |td: &&TrustDomain| world.peers.get(*td).is_some_and(|peer| peer.direct_endpoints);
    let all = service.exported_to.iter().filter(|_| way.missing.is_some());
    all.filter(comes).cloned().collect()
}

pub(super) fn reached(
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
pub(super) fn is_unreadable(world: &World, td: &TrustDomain) -> bool {
    let mut peers = world.rejected.iter().filter(|(key, _)| key.kind == Kind::TrustDomainPeer);
    !world.peers.contains_key(td)
        && peers.any(|(_, peer)| peer.trust_domain.as_ref() == Some(td) && peer.deletion.is_none())
}

pub(super) fn to_peer(
    world: &World,
    own: &TrustDomain,
    service: &Service,
    td: &TrustDomain,
) -> Result<(), ExportProblem> {
    if service.tls_mode == TlsMode::IstioMtls && authorization::is_taken_for_own(own, td) {
        let message = format!(
            "{td}: Istio's policies take this name for our own trust domain, so its clients could not be told from local callers; \
             the peer has to have another trust domain"
        );
        return Err(ExportProblem::new(ExportedReason::TrustDomainReserved, message));
    }
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

/// Why no policy can hold the callers of some trust domains to `clients`, where the mesh has them as aliases of our own.
pub(super) fn doubt(world: &World, own: &TrustDomain) -> Option<ExportProblem<ClientsEnforcedReason>> {
    let config = world.mesh.as_deref()?.config.there()?;
    let foreign = |alias: &&TrustDomain| *alias != own && config.trust_domain.as_ref() != Some(alias);
    let aliases: Vec<&str> = config.aliases.iter().filter(foreign).map(TrustDomain::as_str).take(5).collect();
    if aliases.is_empty() {
        return None;
    }
    let all = aliases.join(", ");
    let message = format!(
        "trustDomainAliases of the mesh (key `mesh` of ConfigMap {}) name {all}: sidecars take whoever is of there for a local \
         caller, whatever spec.clients says; take it out, and name it in caCertificates[].trustDomains where services are \
         exported to it",
        config.object
    );
    Some(ExportProblem::new(ClientsEnforcedReason::TrustDomainAliased, message))
}

//! The mesh configuration, istiod, and the names under which SPIRE's agents serve bundles.

use super::{Exchange, Finding, Severity, some};
use crate::api::v1alpha1::conditions::MeshReadyReason as Reason;
use crate::model::mesh::{ControlPlane, Mesh, MeshConfig, Seen, Version};
use crate::model::{TrustDomain, World};

/// The first that serves `networking.istio.io/v1`.
const OLDEST: Version = Version::new(1, 22, 0);
/// The first in which istiod gives addresses to names by default.
const ALLOCATES: Version = Version::new(1, 25, 0);

/// What is found for one peer.
pub(super) fn findings(
    world: &World,
    mesh: &Mesh,
    peer: &TrustDomain,
    exchange: &Exchange<'_>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(config) = mesh.config.there() {
        found.extend(trust(world, mesh, config, peer, exchange));
        found.extend(dns(world, mesh, config, peer, exchange));
    }
    found.extend(planes(mesh, peer));
    if exchange.is_some() {
        found.extend(versions(mesh));
        found.extend(sds(mesh));
        found.extend(unseen(world, mesh));
    }
    found
}

/// There is no mesh configuration, though services are exchanged.
pub(super) fn absent(world: &World) -> String {
    format!(
        "there is no mesh configuration in namespace {} (ConfigMap `istio`, or `istio-REVISION`): set --istio-namespace and \
         --istio-revision of the agent to those of the mesh that workloads here are in, or install Istio",
        world.settings.istio_namespace
    )
}

fn skips_trust_domains(mesh: &Mesh) -> bool {
    mesh.control_planes.there().is_some_and(|all| all.iter().any(|one| one.skips_trust_domains))
}

/// Whom sidecars let in.
fn trust(
    world: &World,
    mesh: &Mesh,
    config: &MeshConfig,
    peer: &TrustDomain,
    exchange: &Exchange<'_>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let place = format!("key `mesh` of ConfigMap {}", config.object);
    let is_alias = config.aliases.contains(peer);
    let is_let_in = is_alias || config.ca_trust_domains.contains(peer) || skips_trust_domains(mesh);
    let exports = exchange.exports;
    if exports && !is_let_in {
        found.push(Finding::new(
            Severity::Breaks,
            Reason::PeerNotInCaCertificates,
            format!("services are exported to {peer}, and our sidecars refuse its certificates"),
            format!("in {place} add {peer} to caCertificates[].trustDomains, as in `caCertificates: [{{trustDomains: [{peer}]}}]`"),
        ));
    }
    if is_alias {
        found.push(Finding::new(
            Severity::Warns,
            Reason::PeerInTrustDomainAliases,
            format!("trustDomainAliases names {peer}: whoever of it has our workloads' namespace and service account passes for them"),
            format!("in {place} take {peer} out of trustDomainAliases, and name it in caCertificates[].trustDomains"),
        ));
    }
    if let Some(own) = world.own_trust_domain().filter(|own| config.trust_domain.as_ref() != Some(own)) {
        let lets_own_in = config.aliases.contains(own) || config.ca_trust_domains.contains(own);
        let severity = if exports && !lets_own_in { Severity::Breaks } else { Severity::Warns };
        let theirs =
            config.trust_domain.as_ref().map_or_else(|| "no trust domain".to_owned(), ToString::to_string);
        if exchange.is_some() {
            found.push(Finding::new(
                severity,
                Reason::MeshTrustDomainDiffers,
                format!("trustDomain of the mesh is {theirs}, and SPIRE's is {own}"),
                format!("in {place} set trustDomain: {own}, and restart the workloads"),
            ));
        }
    }
    found
}

/// Whether clients can resolve the names of imported services.
fn dns(
    world: &World,
    mesh: &Mesh,
    config: &MeshConfig,
    peer: &TrustDomain,
    exchange: &Exchange<'_>,
) -> Option<Finding> {
    if !exchange.imports {
        return None;
    }
    let place = format!("key `mesh` of ConfigMap {}", config.object);
    if !config.captures_dns {
        return Some(Finding::new(
            Severity::Warns,
            Reason::DnsCaptureOff,
            format!("services of {peer} are imported, and sidecars do not answer for their names"),
            format!(
                "in {place} set `defaultConfig: {{proxyMetadata: {{ISTIO_META_DNS_CAPTURE: \"true\"}}}}` and restart the workloads, or \
                 have something else resolve *.{peer}, to the addresses in the status of the ImportedServices, as this agent does with \
                 --dns-listen"
            ),
        ));
    }
    if !world.settings.import_ranges.is_empty() {
        return None;
    }
    let planes = mesh.control_planes.there().map_or(&[][..], Vec::as_slice);
    let lacking = planes.iter().find(|plane| !allocates(plane)).filter(|_| !config.proxies_allocate)?;
    Some(Finding::new(
        Severity::Warns,
        Reason::AddressesNotAllocated,
        format!(
            "services of {peer} are imported, and istiod {} gives their names no addresses",
            lacking.object
        ),
        format!("set PILOT_ENABLE_IP_AUTOALLOCATE=true on Deployment {}", lacking.object),
    ))
}

/// Where it cannot be told, it is taken to do what the present version does.
fn allocates(plane: &ControlPlane) -> bool {
    plane.allocates_addresses.unwrap_or_else(|| plane.version.is_none_or(|version| version >= ALLOCATES))
}

/// What istiod is told to leave out.
fn planes(mesh: &Mesh, peer: &TrustDomain) -> Option<Finding> {
    let planes = mesh.control_planes.there()?;
    let skips = planes.iter().find(|plane| plane.skips_trust_domains)?;
    Some(Finding::new(
        Severity::Warns,
        Reason::TrustDomainsNotValidated,
        format!(
            "PILOT_SKIP_VALIDATE_TRUST_DOMAIN is set on Deployment {}: every sidecar lets in every trust domain that its workload \
             federates with",
            skips.object
        ),
        format!("unset it there, and name {peer} in caCertificates[].trustDomains of the mesh configuration"),
    ))
}

fn versions(mesh: &Mesh) -> Option<Finding> {
    let planes = mesh.control_planes.there()?;
    if let Some((plane, version)) =
        planes.iter().filter_map(|plane| Some((plane, plane.version?))).find(|(_, version)| *version < OLDEST)
    {
        return Some(Finding::new(
            Severity::Warns,
            Reason::IstioTooOld,
            format!("istiod {} is {version}, which does not serve networking.istio.io/v1", plane.object),
            format!("upgrade Istio to {OLDEST} or later"),
        ));
    }
    let unknown = planes.iter().find(|plane| plane.version.is_none())?;
    Some(Finding::new(
        Severity::Advises,
        Reason::NotAllSeen,
        format!(
            "neither a label nor the image's tag of Deployment {} tells the version of Istio",
            unknown.object
        ),
        format!("see that it is {OLDEST} or later"),
    ))
}

fn sds(mesh: &Mesh) -> Option<Finding> {
    let agents = mesh.spire_agents.there()?;
    // Where there are several, which of them serves whom is not known.
    if agents.iter().any(crate::model::mesh::SdsNames::serves_foreign) {
        return None;
    }
    let wrong = agents.first()?;
    Some(Finding::new(
        Severity::Breaks,
        Reason::SdsNamesNotIstios,
        format!(
            "SPIRE's agents (ConfigMap {}) serve Istio's proxies our own bundle alone: default_bundle_name is {:?}, \
             default_all_bundles_name {:?}",
            wrong.object, wrong.own, wrong.all
        ),
        "set `default_bundle_name = \"null\"` and `default_all_bundles_name = \"ROOTCA\"` in agent.sds there, and restart the agents",
    ))
}

/// What cannot be looked at.
fn unseen(world: &World, mesh: &Mesh) -> Vec<Finding> {
    let advise =
        |message: String, remedy: &str| Finding::new(Severity::Advises, Reason::NotAllSeen, message, remedy);
    match &mesh.control_planes {
        Seen::Unread => Vec::new(),
        Seen::Absent => vec![advise(
            format!(
                "no Deployment labelled app=istiod of this revision is in namespace {}, so its version and settings are not seen",
                world.settings.istio_namespace
            ),
            "see that PILOT_SKIP_VALIDATE_TRUST_DOMAIN is not set on istiod",
        )],
        Seen::Unreadable(why) => vec![advise(
            format!("istiod's Deployment cannot be read: {why}"),
            "see that PILOT_SKIP_VALIDATE_TRUST_DOMAIN is not set on it",
        )],
        Seen::There(planes) => {
            let shared: Vec<String> = planes.iter().filter_map(|plane| plane.shared_config.clone()).collect();
            if shared.is_empty() {
                return Vec::new();
            }
            vec![advise(
                format!(
                    "istiod merges ConfigMap {} into the mesh configuration, which is not looked at",
                    some(shared)
                ),
                "what is found here may be set there",
            )]
        }
    }
}

//! What clients in the mesh need of an imported service, beside its ImportedService: a ServiceEntry, and where our sidecar
//! begins a TLS that is not Istio's own, a DestinationRule.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::api::v1alpha1::conditions::GeneratedReason;
use crate::istio::destination_rule::{ClientTls, ClientTlsMode, PortPolicy, TrafficPolicy};
use crate::istio::service_entry::{Endpoint, LABEL_TLS_MODE, Location, Resolution};
use crate::istio::virtual_service::PortSelector;
use crate::istio::{DestinationRuleSpec, Port, ServiceEntrySpec};
use crate::model::condition::Truth;
use crate::model::import::Imported;
use crate::model::object::{Kind, Object, ObjectKey, OwnerRef};
use crate::model::service::{Address, AppProtocol, DirectEndpoint, GatewayAddress, RemotePort, TlsMode};
use crate::model::world::Settings;
use crate::model::{Peer, World};
use crate::plan::admission::Refusal;
use crate::plan::imports::{Addresses, Claims, in_text};
use crate::plan::memo::Memo;
use crate::plan::{diff, generated};

/// What is generated has the name and the namespace of its ImportedService.
#[must_use]
pub fn keys(imported: &Imported) -> [ObjectKey; 2] {
    [Kind::ServiceEntry, Kind::DestinationRule].map(|kind| key_of(kind, imported))
}

fn key_of(kind: Kind, imported: &Imported) -> ObjectKey {
    ObjectKey::namespaced(kind, &imported.object.namespace, &imported.object.name)
}

/// The objects of an admitted ImportedService: the ServiceEntry first.
///
/// # Errors
/// Why there can be none. Where it is for want of Istio, the import stands nevertheless.
pub fn objects(
    world: &World,
    peer: &Arc<Peer>,
    imported: &Arc<Imported>,
    addresses: &Addresses,
    claims: &Claims<'_>,
    memo: &mut Memo,
) -> Result<Vec<Arc<Object>>, Refusal<GeneratedReason>> {
    let addresses = addresses.of(&imported.object.name).map_err(|cause| {
        Refusal::new(GeneratedReason::NoAddress, format!("{}: {cause}", imported.object.name))
    })?;
    let input = (memo.peer(peer), Arc::clone(imported), addresses.to_vec());
    let key = key_of(Kind::ServiceEntry, imported);
    let objects = memo.entries.get(&key, &input, |(peer, imported, addresses)| {
        made(&world.settings, peer, imported, addresses).into_iter().map(diff::seal).collect()
    });
    objects.iter().try_for_each(|object| free(world, imported, &object.key, claims))?;
    Ok(objects)
}

/// The objects, of these alone, so that they can be remembered.
fn made(settings: &Settings, peer: &Peer, imported: &Imported, addresses: &[IpAddr]) -> Vec<Object> {
    let host = imported.object.name.as_str();
    let rule = destination_rule(peer, imported, host);
    let entry = ServiceEntrySpec { addresses: in_text(addresses), ..service_entry(peer, imported, host) };
    let mut specs = vec![(Kind::ServiceEntry, generated::spec(&entry))];
    specs.extend(rule.map(|rule| (Kind::DestinationRule, generated::spec(&rule))));
    let made = |(kind, spec)| {
        let owner = OwnerRef {
            kind: Kind::ImportedService,
            name: imported.object.name.clone(),
            uid: imported.uid.clone(),
        };
        let source = generated::source(Kind::ImportedService, &imported.object);
        let td = &imported.trust_domain;
        generated::object(settings, key_of(kind, imported), spec, vec![owner], &[source], Some(td))
    };
    specs.into_iter().map(made).collect()
}

/// Whether an object can be made: its kind is served, its name is free, and nobody had its host before.
fn free(
    world: &World,
    imported: &Imported,
    key: &ObjectKey,
    claims: &Claims<'_>,
) -> Result<(), Refusal<GeneratedReason>> {
    let (host, kind) = (&imported.object.name, key.kind);
    if world.absent.contains(&kind) && world.serves_without_istio() {
        let how = match (world.settings.serves_xds, world.settings.dns) {
            (true, true) => "clients are served by xDS, and find it by DNS",
            (true, false) => "clients are served by xDS",
            _ => "clients find it by DNS",
        };
        let message = format!("{host}: there is no Istio here, and nothing to write: {how}");
        return Err(Refusal { reason: GeneratedReason::WithoutIstio, status: Truth::True, message });
    }
    if world.absent.contains(&kind) {
        let message =
            format!("{host}: this cluster does not serve {kind} ({}); install Istio", kind.api_version());
        return Err(Refusal::new(GeneratedReason::IstioAbsent, message));
    }
    generated::claim(world, key).map_err(|message| Refusal::new(GeneratedReason::ObjectNotOurs, message))?;
    // Of two DestinationRules in one namespace one host's settings are the older one's; elsewhere they are others' matter.
    let concerns = |other: &ObjectKey| kind == Kind::ServiceEntry || other.namespace == key.namespace;
    match claims.keeper(world, host, key, concerns) {
        None => Ok(()),
        Some(keeper) => Err(Refusal::new(
            GeneratedReason::HostExists,
            format!("{host} is already the host of {keeper}, which was there first; delete one of them"),
        )),
    }
}

/// Whether the client's application brings the TLS that the server's ends: our sidecar passes it through, by its SNI.
#[must_use]
pub fn passes_through(mode: TlsMode, port: &RemotePort) -> bool {
    mode == TlsMode::Mtls && matches!(port.protocol, AppProtocol::Tls | AppProtocol::Https)
}

/// Endpoints are the peer's gateways, or without any its pods; SANs are the server IDs. Only what Istio's own mutual TLS reaches is labelled for it,
/// and is of the mesh.
fn service_entry(peer: &Peer, imported: &Imported, host: &str) -> ServiceEntrySpec {
    let service = &imported.service;
    let gateways: BTreeSet<&GatewayAddress> = service.gateways.iter().collect();
    // The endpoints say for themselves which port they listen on; this one is for whoever looks at the port alone.
    let target_port = gateways.first().map(|gateway| gateway.port);
    let mode = service.tls_mode;
    let mut ports: Vec<Port> = service
        .ports
        .iter()
        .map(|port| Port {
            number: port.port,
            name: port.name.clone(),
            protocol: if passes_through(mode, port) { AppProtocol::Tls } else { port.protocol }
                .istio()
                .to_owned(),
            target_port,
        })
        .collect();
    ports.sort_by_key(|port| port.number);
    let (location, labels) = match mode {
        TlsMode::IstioMtls => {
            (Location::MeshInternal, BTreeMap::from([(LABEL_TLS_MODE.to_owned(), "istio".to_owned())]))
        }
        TlsMode::Mtls => (Location::MeshExternal, BTreeMap::new()),
    };
    let mut endpoints: Vec<Endpoint> = gateways
        .iter()
        .map(|gateway| Endpoint {
            address: address(&gateway.address),
            ports: service.ports.iter().map(|port| (port.name.clone(), gateway.port)).collect(),
            labels: labels.clone(),
        })
        .collect();
    if endpoints.is_empty() {
        let pods: BTreeSet<&DirectEndpoint> = service.endpoints.iter().collect();
        endpoints.extend(pods.into_iter().map(|pod| Endpoint {
            address: pod.address.to_canonical().to_string(),
            ports: pod.ports.clone(),
            labels: labels.clone(),
        }));
    }
    let has_names = gateways.iter().any(|gateway| matches!(gateway.address, Address::Dns(_)));
    ServiceEntrySpec {
        hosts: vec![host.to_owned()],
        location: Some(location),
        resolution: Some(if has_names { Resolution::Dns } else { Resolution::Static }),
        export_to: export_to(peer),
        ports,
        subject_alt_names: server_ids(imported),
        endpoints,
        ..ServiceEntrySpec::default()
    }
}

/// Where the server's application ends TLS and the client's has none, our sidecar begins it, with the workload's own SVID: the
/// SNI is the host, and the server IDs are pinned. `None` where no port is so, or nobody is to see it.
fn destination_rule(peer: &Peer, imported: &Imported, host: &str) -> Option<DestinationRuleSpec> {
    let service = &imported.service;
    let is_begun_here =
        |port: &&RemotePort| service.tls_mode == TlsMode::Mtls && !passes_through(service.tls_mode, port);
    let numbers: BTreeSet<u16> = service.ports.iter().filter(is_begun_here).map(|port| port.port).collect();
    let export_to = export_to(peer);
    // Istio knows "nobody" of ServiceEntries only.
    if numbers.is_empty() || export_to == ["~"] {
        return None;
    }
    let tls = ClientTls {
        mode: ClientTlsMode::IstioMutual,
        sni: Some(host.to_owned()),
        subject_alt_names: server_ids(imported),
    };
    let settings = numbers
        .into_iter()
        .map(|number| PortPolicy { port: PortSelector { number }, tls: Some(tls.clone()) })
        .collect();
    Some(DestinationRuleSpec {
        host: host.to_owned(),
        export_to,
        traffic_policy: Some(TrafficPolicy { port_level_settings: settings, ..TrafficPolicy::default() }),
    })
}

/// `exportTo` as admitted, in one order.
fn export_to(peer: &Peer) -> Vec<String> {
    peer.imports.export_to.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

fn server_ids(imported: &Imported) -> Vec<String> {
    let mut ids: Vec<String> = imported.service.server_ids.iter().map(ToString::to_string).collect();
    ids.sort();
    ids
}

/// An IPv4 address that came as IPv6 is written as what it is.
fn address(address: &Address) -> String {
    match address {
        Address::Ip(ip) => ip.to_canonical().to_string(),
        Address::Dns(name) => name.clone(),
    }
}

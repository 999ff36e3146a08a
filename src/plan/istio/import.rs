//! What clients in the mesh need of an imported service, beside its ImportedService: a ServiceEntry, and where our sidecar
//! begins a TLS that is not Istio's own, a DestinationRule.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::v1alpha1::conditions::GeneratedReason;
use crate::istio::destination_rule::{ClientTls, ClientTlsMode, PortPolicy, TrafficPolicy};
use crate::istio::service_entry::{Endpoint, LABEL_TLS_MODE, Location, Resolution};
use crate::istio::virtual_service::PortSelector;
use crate::istio::{DestinationRuleSpec, Port, ServiceEntrySpec};
use crate::model::import::Imported;
use crate::model::object::{Kind, Object, ObjectKey, OwnerRef};
use crate::model::service::{Address, AppProtocol, GatewayAddress, RemotePort, TlsMode};
use crate::model::{Peer, World};
use crate::plan::admission::Refusal;
use crate::plan::generated;
use crate::plan::imports::Claims;

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
    peer: &Peer,
    imported: &Imported,
    claims: &Claims<'_>,
) -> Result<Vec<Object>, Refusal<GeneratedReason>> {
    let host = imported.object.name.as_str();
    let rule = destination_rule(peer, imported, host);
    let mut specs = vec![(Kind::ServiceEntry, generated::spec(&service_entry(peer, imported, host)))];
    specs.extend(rule.map(|rule| (Kind::DestinationRule, generated::spec(&rule))));
    specs
        .into_iter()
        .map(|(kind, spec)| {
            let key = key_of(kind, imported);
            free(world, imported, &key, claims)?;
            let owner = OwnerRef {
                kind: Kind::ImportedService,
                name: imported.object.name.clone(),
                uid: imported.uid.clone(),
            };
            let source = generated::source(Kind::ImportedService, &imported.object);
            let td = &imported.trust_domain;
            Ok(generated::object(world, key, spec, vec![owner], &[source], Some(td)))
        })
        .collect()
}

/// Whether an object can be made: its kind is served, its name is free, and nobody had its host before.
fn free(
    world: &World,
    imported: &Imported,
    key: &ObjectKey,
    claims: &Claims<'_>,
) -> Result<(), Refusal<GeneratedReason>> {
    let (host, kind) = (&imported.object.name, key.kind);
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

/// Endpoints are the peer's gateways, SANs are the server IDs. Only what Istio's own mutual TLS reaches is labelled for it,
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
    let endpoints = gateways
        .iter()
        .map(|gateway| Endpoint {
            address: address(&gateway.address),
            ports: service.ports.iter().map(|port| (port.name.clone(), gateway.port)).collect(),
            labels: labels.clone(),
        })
        .collect();
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

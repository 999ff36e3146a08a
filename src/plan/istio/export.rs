//! What an export needs beside its FederatedService: the alias that the gateway routes to, and the gateway's server.

use crate::istio::gateway::{Server, ServerTls, ServerTlsMode};
use crate::istio::service_entry::{Location, Resolution, WorkloadSelector};
use crate::istio::virtual_service::{Destination, PortSelector, Route, TlsMatch, TlsRoute};
use crate::istio::{GatewaySpec, Port, ServiceEntrySpec, VirtualServiceSpec};
use crate::model::object::{ANNOTATION_SERVER_IDS, Kind, Object, ObjectKey};
use crate::model::service::{AppProtocol, ExportedPort, TlsMode};
use crate::model::{Service, World};
use crate::plan::exports::Export;
use crate::plan::generated;

/// The alias of a service: named by its host.
#[must_use]
pub fn alias_key(service: &Service, host: &str) -> ObjectKey {
    ObjectKey::namespaced(Kind::ServiceEntry, &service.object.namespace, host)
}

/// The Gateway of a service. Istio wants a DNS label as its name.
#[must_use]
pub fn gateway_key(service: &Service) -> ObjectKey {
    let name = format!("{}-{}", service.object.name, service.tls_mode.gateway().istio_label());
    ObjectKey::namespaced(Kind::Gateway, &service.object.namespace, generated::label_name(&name))
}

/// The route of a service whose application ends TLS: named by its host.
#[must_use]
pub fn route_key(service: &Service, host: &str) -> ObjectKey {
    ObjectKey::namespaced(Kind::VirtualService, &service.object.namespace, host)
}

/// All that is generated for a service so that it is reached through a gateway.
pub fn keys(service: &Service, host: &str) -> impl Iterator<Item = ObjectKey> {
    let route = (service.tls_mode == TlsMode::Mtls).then(|| route_key(service, host));
    [alias_key(service, host), gateway_key(service)].into_iter().chain(route)
}

/// What has those keys.
#[must_use]
pub fn objects(world: &World, export: &Export) -> Vec<Object> {
    let route = (export.service.tls_mode == TlsMode::Mtls).then(|| route(world, export));
    [alias(world, export), gateway(world, export)].into_iter().chain(route).collect()
}

/// The alias: the importers' host for the selected workloads. It is seen by the gateways alone, and its port numbers are
/// the importers', since they are part of the SNI.
#[must_use]
pub fn alias(world: &World, export: &Export) -> Object {
    let service = &export.service;
    let mut ports: Vec<Port> = service
        .ports
        .iter()
        .map(|port| Port {
            number: port.port,
            name: port.name.clone(),
            protocol: protocol(service, port).istio().to_owned(),
            target_port: Some(port.target_port),
        })
        .collect();
    ports.sort_by_key(|port| port.number);
    let spec = ServiceEntrySpec {
        hosts: vec![export.host.clone()],
        location: Some(Location::MeshInternal),
        resolution: Some(Resolution::Static),
        export_to: vec![export.through.namespace.clone()],
        ports,
        workload_selector: Some(WorkloadSelector { labels: service.workload_labels.clone() }),
        ..ServiceEntrySpec::default()
    };
    let mut alias = owned(world, service, alias_key(service, &export.host), &spec);
    let ids: Vec<String> = service.server_ids.iter().map(ToString::to_string).collect();
    alias.meta.annotations.insert(ANNOTATION_SERVER_IDS.to_owned(), ids.join(","));
    alias
}

/// The Gateway: on each port that a gateway of the service listens on, a server that passes this host through and no other.
#[must_use]
pub fn gateway(world: &World, export: &Export) -> Object {
    let service = &export.service;
    let mode = match service.tls_mode {
        TlsMode::IstioMtls => ServerTlsMode::AutoPassthrough,
        TlsMode::Mtls => ServerTlsMode::Passthrough,
    };
    let through = &export.through;
    let servers = through
        .listening
        .iter()
        .map(|&number| Server {
            name: Some(format!("{}-{number}", service.name)),
            port: Port {
                number,
                name: format!("tls-{number}"),
                protocol: "TLS".to_owned(),
                target_port: None,
            },
            hosts: vec![format!("{}/{}", service.object.namespace, export.host)],
            tls: Some(ServerTls { mode }),
        })
        .collect();
    let spec = GatewaySpec { selector: through.selector.clone(), servers };
    owned(world, service, gateway_key(service), &spec)
}

/// The route of a service whose application ends TLS, by the SNI that clients send of themselves: the host. Where there are
/// several ports they lead to one of the workload, so any of them will do.
#[must_use]
pub fn route(world: &World, export: &Export) -> Object {
    let service = &export.service;
    let Export { host, .. } = export;
    let number = service.ports.iter().map(|port| port.port).min();
    let destination = Destination { host: host.clone(), port: number.map(|number| PortSelector { number }) };
    let spec = VirtualServiceSpec {
        hosts: vec![host.clone()],
        gateways: vec![format!("{}/{}", service.object.namespace, gateway_key(service).name)],
        export_to: vec![export.through.namespace.clone()],
        tls: vec![TlsRoute {
            r#match: vec![TlsMatch { port: None, sni_hosts: vec![host.clone()] }],
            route: vec![Route { destination }],
        }],
        ..VirtualServiceSpec::default()
    };
    owned(world, service, route_key(service, host), &spec)
}

/// What the workload's port speaks, as its sidecar and the gateway see it: where the application ends TLS, nothing but that.
const fn protocol(service: &Service, port: &ExportedPort) -> AppProtocol {
    match service.tls_mode {
        TlsMode::IstioMtls => port.protocol,
        TlsMode::Mtls => AppProtocol::Tls,
    }
}

fn owned(world: &World, service: &Service, key: ObjectKey, spec: &impl serde::Serialize) -> Object {
    let sources: Vec<String> = service.sources().iter().map(generated::source_of).collect();
    generated::object(world, key, generated::spec(spec), vec![service.owner()], &sources, None)
}

//! What an export needs beside its FederatedService: the alias that the gateway routes to, and the gateway's server.

use std::collections::{BTreeMap, BTreeSet};

use crate::istio::gateway::{Server, ServerTls, ServerTlsMode};
use crate::istio::service_entry::{Location, Resolution, WorkloadSelector};
use crate::istio::{GatewaySpec, Port, ServiceEntrySpec};
use crate::model::object::{ANNOTATION_SERVER_IDS, Kind, Object, ObjectKey};
use crate::model::service::GatewayType;
use crate::model::{Service, World};
use crate::plan::exports::Export;
use crate::plan::generated;

use super::GATEWAY_NAMESPACE;

/// The alias of a service: named by its host.
#[must_use]
pub fn alias_key(service: &Service, host: &str) -> ObjectKey {
    ObjectKey::namespaced(Kind::ServiceEntry, &service.object.namespace, host)
}

/// The Gateway of a service. Istio wants a DNS label as its name.
#[must_use]
pub fn gateway_key(service: &Service) -> ObjectKey {
    let name = format!("{}-{}", service.object.name, GatewayType::EastWestGateway.istio_label());
    ObjectKey::namespaced(Kind::Gateway, &service.object.namespace, generated::label_name(&name))
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
            protocol: port.protocol.istio().to_owned(),
            target_port: Some(port.target_port),
        })
        .collect();
    ports.sort_by_key(|port| port.number);
    let spec = ServiceEntrySpec {
        hosts: vec![export.host.clone()],
        location: Some(Location::MeshInternal),
        resolution: Some(Resolution::Static),
        export_to: vec![GATEWAY_NAMESPACE.to_owned()],
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
    let listening: BTreeSet<u16> = export.gateways.iter().map(|gateway| gateway.port).collect();
    let servers = listening
        .into_iter()
        .map(|number| Server {
            name: Some(format!("{}-{number}", service.name)),
            port: Port {
                number,
                name: format!("tls-{number}"),
                protocol: "TLS".to_owned(),
                target_port: None,
            },
            hosts: vec![format!("{}/{}", service.object.namespace, export.host)],
            tls: Some(ServerTls { mode: ServerTlsMode::AutoPassthrough }),
        })
        .collect();
    let label = GatewayType::EastWestGateway.istio_label().to_owned();
    let spec = GatewaySpec { selector: BTreeMap::from([("istio".to_owned(), label)]), servers };
    owned(world, service, gateway_key(service), &spec)
}

fn owned(world: &World, service: &Service, key: ObjectKey, spec: &impl serde::Serialize) -> Object {
    let sources: Vec<String> = service.sources().iter().map(generated::source_of).collect();
    generated::object(world, key, generated::spec(spec), vec![service.owner()], &sources, None)
}

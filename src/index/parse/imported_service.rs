//! ImportedService to [`Imported`], and back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::field::{self, Problem};
use super::{names, reject, spec};
use crate::api::v1alpha1::imported_service::{
    EndpointPort, ImportedEndpoint, ImportedGateway, ImportedPort, ImportedServiceSpec,
};
use crate::api::v1alpha1::limits;
use crate::model::import::Imported;
use crate::model::service::{AppProtocol, DirectEndpoint, GatewayAddress, RemotePort, RemoteService};
use crate::model::world::Rejected;
use crate::model::{NamespacedName, Object, ServiceName, TrustDomain};

/// Reads an ImportedService. The agent wrote it, but anyone who may could have edited it since, so no more is believed of it
/// than of a peer: server IDs lie in its trust domain, and there is one.
///
/// # Errors
/// [`Rejected`] with the field and the rule; with the trust domain too, where that much could be read.
pub fn parse(object: &Object) -> Result<Imported, Rejected> {
    read(object).map_err(|problem| {
        let name = object.spec().and_then(|spec| spec.get("trustDomain")).and_then(Value::as_str);
        let trust_domain = name.and_then(|name| field::trust_domain("spec.trustDomain", name).ok());
        reject(object, trust_domain, problem)
    })
}

/// The `spec` of the ImportedService of a service that `trust_domain` exports: what [`parse`] reads back.
#[must_use]
pub fn spec_of(service: &RemoteService, host: &str, trust_domain: &TrustDomain) -> Value {
    let port = |port: &RemotePort| ImportedPort {
        name: port.name.clone(),
        port: i32::from(port.port),
        app_protocol: port.protocol.as_str().to_owned(),
        clients: port.clients.iter().map(ToString::to_string).collect(),
    };
    let gateway =
        |at: &GatewayAddress| ImportedGateway { address: at.address.to_string(), port: i32::from(at.port) };
    let spec = ImportedServiceSpec {
        trust_domain: trust_domain.to_string(),
        name: service.name.name().to_owned(),
        namespace: service.name.namespace().to_owned(),
        host: host.to_owned(),
        ports: service.ports.iter().map(port).collect(),
        tls_mode: service.tls_mode.into(),
        server_spiffe_ids: service.server_ids.iter().map(ToString::to_string).collect(),
        clients: service.clients.iter().map(ToString::to_string).collect(),
        gateways: service.gateways.iter().map(gateway).collect(),
        endpoints: service.endpoints.iter().map(endpoint_of).collect(),
    };
    // Text, numbers and lists of them: there is nothing in it that JSON could not hold.
    serde_json::to_value(spec).unwrap_or_default()
}

fn read(object: &Object) -> Result<Imported, Problem> {
    names(object)?;
    let spec: ImportedServiceSpec = spec(object)?;
    let trust_domain = field::trust_domain("spec.trustDomain", &spec.trust_domain)?;
    field::dns_label("spec.name", &spec.name)?;
    let name = ServiceName::new(&spec.namespace, &spec.name)
        .map_err(|cause| Problem::new("spec.namespace", cause.to_string()))?;
    let host = name.host(&trust_domain).map_err(|cause| Problem::new("spec.host", cause.to_string()))?;
    if host != spec.host {
        let rule = format!("it must be {host}, as name, namespace and trustDomain say");
        return Err(Problem::of("spec.host", &spec.host, rule));
    }
    let (ids, clients) = ("spec.serverSPIFFEIDs", "spec.clients");
    field::some_of(ids, spec.server_spiffe_ids.len(), limits::SERVER_IDS)?;
    field::at_most(clients, spec.clients.len(), limits::CLIENTS)?;
    field::at_most("spec.gateways", spec.gateways.len(), limits::GATEWAYS)?;
    let service = RemoteService {
        name,
        ports: ports(&spec.ports)?,
        tls_mode: spec.tls_mode.into(),
        server_ids: field::set(ids, &spec.server_spiffe_ids, |path, text| {
            field::spiffe_id_in(path, text, &trust_domain, "the peer's trust domain")
        })?,
        clients: field::set(clients, &spec.clients, field::client_pattern)?,
        gateways: gateways(&spec.gateways)?,
        endpoints: endpoints(&spec.endpoints)?,
    };
    Ok(Imported {
        object: NamespacedName::new(object.key.namespace.clone().unwrap_or_default(), &object.key.name),
        uid: object.meta.uid.clone(),
        generation: object.meta.generation,
        trust_domain,
        service,
    })
}

fn endpoint_of(endpoint: &DirectEndpoint) -> ImportedEndpoint {
    let port = |(name, port): (&String, &u16)| EndpointPort { name: name.clone(), port: i32::from(*port) };
    ImportedEndpoint {
        address: endpoint.address.to_string(),
        ports: endpoint.ports.iter().map(port).collect(),
    }
}

fn ports(given: &[ImportedPort]) -> Result<Vec<RemotePort>, Problem> {
    field::some_of("spec.ports", given.len(), limits::PORTS)?;
    let (mut numbers, mut port_names) = (BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::with_capacity(given.len());
    for (i, given) in given.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        field::dns_label(&format!("{path}.name"), &given.name)?;
        let port = field::port(&format!("{path}.port"), given.port)?;
        if !numbers.insert(port) || !port_names.insert(&given.name) {
            return Err(Problem::new(path, "another port has its name or number: both are given once"));
        }
        let protocol = AppProtocol::parse(&given.app_protocol).ok_or_else(|| {
            let rule = "it must be tcp, http, http2, grpc, https or tls";
            Problem::of(&format!("{path}.appProtocol"), &given.app_protocol, rule)
        })?;
        let clients_path = format!("{path}.clients");
        field::at_most(&clients_path, given.clients.len(), limits::CLIENTS)?;
        let clients = field::set(&clients_path, &given.clients, field::client_pattern)?;
        ports.push(RemotePort { name: given.name.clone(), port, protocol, clients });
    }
    Ok(ports)
}

fn gateways(given: &[ImportedGateway]) -> Result<Vec<GatewayAddress>, Problem> {
    let one = |(i, given): (usize, &ImportedGateway)| {
        Ok(GatewayAddress {
            address: field::address(&format!("spec.gateways[{i}].address"), &given.address)?,
            port: field::port(&format!("spec.gateways[{i}].port"), given.port)?,
        })
    };
    given.iter().enumerate().map(one).collect()
}

fn endpoints(given: &[ImportedEndpoint]) -> Result<Vec<DirectEndpoint>, Problem> {
    field::at_most("spec.endpoints", given.len(), limits::GATEWAYS)?;
    let one = |(i, given): (usize, &ImportedEndpoint)| {
        let path = format!("spec.endpoints[{i}]");
        let address = given.address.parse().map_err(|_| {
            Problem::of(&format!("{path}.address"), &given.address, "it must be an IP address")
        })?;
        field::some_of(&format!("{path}.ports"), given.ports.len(), limits::PORTS)?;
        let mut ports = BTreeMap::new();
        for given in &given.ports {
            field::dns_label(&format!("{path}.ports"), &given.name)?;
            ports.insert(given.name.clone(), field::port(&format!("{path}.ports"), given.port)?);
        }
        Ok(DirectEndpoint { address, ports })
    };
    given.iter().enumerate().map(one).collect()
}

#[cfg(test)]
#[path = "imported_service_tests.rs"]
pub(super) mod tests;

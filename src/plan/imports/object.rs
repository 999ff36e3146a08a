//! The ImportedService as it is written.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::model::object::{Kind, Object, ObjectKey};
use crate::model::service::{ClientPattern, DirectEndpoint, GatewayAddress, RemoteService};
use crate::model::world::Settings;
use crate::model::{Peer, TrustDomain, World};
use crate::plan::generated;

/// The name of the ImportedService of a host, and of what is generated beside it. A host is at most 253 characters of DNS
/// labels, which is a legal name.
#[must_use]
pub fn key(world: &World, host: &str) -> ObjectKey {
    ObjectKey::namespaced(Kind::ImportedService, &world.settings.namespace, host)
}

/// The ImportedService; of these alone, so that it can be remembered.
pub(super) fn object(
    settings: &Settings,
    key: ObjectKey,
    peer: &Peer,
    service: &RemoteService,
    host: &str,
) -> Object {
    let source = format!("{}/{}", Kind::TrustDomainPeer, peer.object);
    let spec = spec(&peer.trust_domain, service, host);
    generated::object(settings, key, spec, vec![peer.owner()], &[source], Some(&peer.trust_domain))
}

/// `spec` of an ImportedService, in one order whatever the peer's.
#[must_use]
pub fn spec(trust_domain: &TrustDomain, service: &RemoteService, host: &str) -> Value {
    let mut ports: Vec<_> = service.ports.iter().collect();
    ports.sort_by_key(|port| (port.port, &port.name));
    let ports: Vec<Value> = ports
        .into_iter()
        .map(|p| {
            let mut port = json!({"name": p.name, "port": p.port, "appProtocol": p.protocol.as_str()});
            if let Some(fields) = port.as_object_mut().filter(|_| !p.clients.is_empty()) {
                fields.insert("clients".to_owned(), json!(sorted_clients(&p.clients)));
            }
            port
        })
        .collect();
    let mut server_ids: Vec<String> = service.server_ids.iter().map(ToString::to_string).collect();
    server_ids.sort();
    let mut spec = json!({
        "trustDomain": trust_domain.as_str(),
        "name": service.name.name(),
        "namespace": service.name.namespace(),
        "host": host,
        "ports": ports,
        "tlsMode": service.tls_mode.as_str(),
        "serverSPIFFEIDs": server_ids,
    });
    if let Some(fields) = spec.as_object_mut() {
        if !service.clients.is_empty() {
            fields.insert("clients".to_owned(), json!(sorted_clients(&service.clients)));
        }
        let gateways: BTreeSet<&GatewayAddress> = service.gateways.iter().collect();
        if !gateways.is_empty() {
            let gateways: Vec<Value> = gateways
                .into_iter()
                .map(|g| json!({"address": g.address.to_string(), "port": g.port}))
                .collect();
            fields.insert("gateways".to_owned(), gateways.into());
        }
        let endpoints: BTreeSet<&DirectEndpoint> = service.endpoints.iter().collect();
        if !endpoints.is_empty() {
            let endpoints: Vec<Value> = endpoints.into_iter().map(endpoint).collect();
            fields.insert("endpoints".to_owned(), endpoints.into());
        }
    }
    spec
}

fn endpoint(endpoint: &DirectEndpoint) -> Value {
    let ports = endpoint.ports.iter().map(|(name, port)| json!({"name": name, "port": port}));
    json!({"address": endpoint.address.to_string(), "ports": ports.collect::<Vec<_>>()})
}

fn sorted_clients(clients: &BTreeSet<ClientPattern>) -> Vec<&str> {
    let mut clients: Vec<&str> = clients.iter().map(|client| client.as_str()).collect();
    clients.sort_unstable();
    clients
}

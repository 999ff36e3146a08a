//! The manifests that operators would write, as the demo writes them.

use serde_json::{Value, json};

/// A FederatedService to export.
#[derive(Clone, Debug)]
pub struct Export<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// What importers see, and what the workload listens on.
    pub port: u16,
    pub exported_to: &'a str,
    /// SPIFFE IDs, as `clients.spiffeIDs` has them.
    pub clients: &'a [&'a str],
    pub server_id: &'a str,
    /// A name: an importer never admits a loopback address.
    pub gateway: &'a str,
    pub gateway_port: u16,
}

/// The FederatedService.
#[must_use]
pub fn federated_service(export: &Export<'_>) -> Value {
    json!({
        "apiVersion": "entente.dev/v1alpha1",
        "kind": "FederatedService",
        "metadata": { "name": export.name, "namespace": export.namespace },
        "spec": {
            "workloadLabels": { "app": export.name },
            "ports": [{ "name": "http", "port": export.port, "appProtocol": "http" }],
            "tlsMode": "IstioMtls",
            "exportedTrustDomains": [export.exported_to],
            "clients": { "spiffeIDs": export.clients },
            "serverSPIFFEIDs": [export.server_id],
            "gateways": [{
                "type": "istio-eastwestgateway",
                "hostname": export.gateway,
                "port": export.gateway_port,
            }],
        },
    })
}

/// What a TrustDomainPeer is written from.
#[derive(Clone, Debug)]
pub struct Peer<'a> {
    pub trust_domain: &'a str,
    /// Profile `https_spiffe`.
    pub bundle_url: &'a str,
    pub bundle_endpoint_id: &'a str,
    /// SPIFFE bundle JSON.
    pub bootstrap_bundle: &'a str,
    pub agent_address: &'a str,
    pub agent_id: &'a str,
}

/// The TrustDomainPeer, named by its trust domain: every registration federates, every service is admitted.
#[must_use]
pub fn trust_domain_peer(peer: &Peer<'_>) -> Value {
    json!({
        "apiVersion": "entente.dev/v1alpha1",
        "kind": "TrustDomainPeer",
        "metadata": { "name": peer.trust_domain },
        "spec": {
            "trustDomain": peer.trust_domain,
            "bundleEndpoint": {
                "url": peer.bundle_url,
                "profile": { "type": "https_spiffe", "endpointSPIFFEID": peer.bundle_endpoint_id },
            },
            "bootstrapBundle": { "inline": peer.bootstrap_bundle },
            "agent": { "addresses": [peer.agent_address], "spiffeIDs": [peer.agent_id] },
            "federatesWith": {},
            "imports": { "services": [{ "namespace": "*", "name": "*" }] },
        },
    })
}

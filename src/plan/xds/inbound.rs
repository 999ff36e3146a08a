//! What the Envoy in front of a server of ours needs: it has the server's SPIFFE ID, is reached at the gateways that the
//! FederatedService gives, ends TLS with each peer's clients, lets in whom the service names, and passes on to the
//! application on its own machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::service::{Address, ClientPattern, TlsMode};
use crate::model::world::Settings;
use crate::model::{Service, SpiffeId, TrustDomain};
use crate::plan::exports::{Export, Exports};
use crate::plan::memo::Memo;
use crate::proto::xds::resources as pb;

use super::types::{Resource, filter, packed};
use super::{envoy, tls};

const STATIC: i32 = 0;
const INBOUND: i32 = 1;

/// The resources of one server's Envoy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    pub resources: Vec<Resource>,
}

/// What it is made of: the services of one server, each with the trust domains that it really goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::plan) struct InboundOf {
    services: Vec<(Arc<Service>, String, BTreeSet<TrustDomain>)>,
    all_bundles: String,
}

/// By the SPIFFE ID of the server.
#[must_use]
pub(super) fn plan(
    exports: &Exports,
    settings: &Settings,
    memo: &mut Memo,
) -> BTreeMap<SpiffeId, Arc<Inbound>> {
    let mut by_server: BTreeMap<&SpiffeId, Vec<&Arc<Export>>> = BTreeMap::new();
    for export in exports.exported.values().filter(|export| !given(&export.service).is_empty()) {
        for id in &export.service.server_ids {
            by_server.entry(id).or_default().push(export);
        }
    }
    let of = |(id, exports): (&SpiffeId, Vec<&Arc<Export>>)| {
        let services = exports
            .into_iter()
            .map(|export| (Arc::clone(&export.service), export.host.clone(), export.to.clone()));
        let input = InboundOf { services: services.collect(), all_bundles: settings.xds_all_bundles.clone() };
        (id.clone(), memo.inbound.get(id, &input, |input| Arc::new(inbound(input))))
    };
    by_server.into_iter().map(of).collect()
}

/// Where importers come to, by the FederatedService's own word: the ports that its Envoy listens on, and whether by IPv6.
fn given(service: &Service) -> BTreeSet<(u16, bool)> {
    let carrying = service.tls_mode.gateway();
    let is_v6 = |address: &Address| matches!(address, Address::Ip(IpAddr::V6(_)));
    let all = service.gateways.iter().filter(|gateway| gateway.gateway_type == carrying);
    all.map(|gateway| (gateway.at.port, is_v6(&gateway.at.address))).collect()
}

/// One end of TLS: an SNI, and who may come by it to which port of the application.
struct Door {
    sni: String,
    alpn: Vec<String>,
    bundle: String,
    clients: BTreeSet<ClientPattern>,
    target_port: u16,
}

fn inbound(input: &InboundOf) -> Inbound {
    let mut listeners: BTreeMap<u16, (bool, Vec<pb::FilterChain>)> = BTreeMap::new();
    let mut targets = BTreeSet::new();
    for (service, host, to) in &input.services {
        let doors = doors(service, host, to, &input.all_bundles);
        targets.extend(doors.iter().map(|door| door.target_port));
        for (port, is_v6) in given(service) {
            let listener = listeners.entry(port).or_default();
            listener.0 |= is_v6;
            listener.1.extend(doors.iter().map(chain));
        }
    }
    let mut resources: Vec<Resource> = targets.into_iter().map(application).collect();
    resources.extend(listeners.into_iter().map(|(port, (is_v6, chains))| listener(port, is_v6, chains)));
    Inbound { resources }
}

fn doors(service: &Service, host: &str, to: &BTreeSet<TrustDomain>, all_bundles: &str) -> Vec<Door> {
    let bundle = match to.first() {
        Some(only) if to.len() == 1 => tls::bundle(only),
        _ => all_bundles.to_owned(),
    };
    let mut ports: Vec<_> = service.ports.iter().collect();
    ports.sort_by_key(|port| port.port);
    if service.tls_mode == TlsMode::Mtls {
        // All of its ports have one SNI, the host, and lead to the first.
        ports.truncate(1);
    }
    let door = |port: &&crate::model::service::ExportedPort| Door {
        sni: tls::sni(service.tls_mode, host, port.port),
        alpn: tls::alpn(service.tls_mode, port.protocol),
        bundle: bundle.clone(),
        clients: service
            .clients_of(port)
            .iter()
            .filter(|client| to.contains(client.trust_domain()))
            .cloned()
            .collect(),
        target_port: port.target_port,
    };
    // Without clients there is nobody to open for.
    ports.iter().map(door).filter(|door| !door.clients.is_empty()).collect()
}

/// Who is no client is refused in the handshake, so that nothing is said to it by an application that speaks first; and by
/// RBAC once it says something itself, whatever a validator made of its certificate.
fn chain(door: &Door) -> pb::FilterChain {
    let rbac = pb::RbacFilter {
        stat_prefix: format!("{}.", door.sni),
        rules: Some(pb::Rbac {
            action: 0,
            policies: BTreeMap::from([("clients".to_owned(), clients(&door.clients))]),
        }),
    };
    let kind = "envoy.extensions.filters.network.rbac.v3.RBAC";
    let name = target(door.target_port);
    pb::FilterChain {
        name: door.sni.clone(),
        filter_chain_match: Some(pb::FilterChainMatch { server_names: vec![door.sni.clone()] }),
        filters: vec![filter("envoy.filters.network.rbac", kind, &rbac), envoy::tcp(&name)],
        transport_socket: Some(tls::downstream(&door.bundle, door.alpn.clone(), &door.clients)),
    }
}

/// Those who may call, as the exporter's AuthorizationPolicy has them: exact IDs, and all below a path.
fn clients(all: &BTreeSet<ClientPattern>) -> pb::Policy {
    let principal = |client: &ClientPattern| {
        let name = Some(tls::matcher(client));
        pb::Principal { authenticated: Some(pb::Authenticated { principal_name: name }) }
    };
    let any = pb::Permission { rule: Some(pb::permission::Rule::Any(true)) };
    pb::Policy { permissions: vec![any], principals: all.iter().map(principal).collect() }
}

fn listener(port: u16, is_v6: bool, filter_chains: Vec<pb::FilterChain>) -> Resource {
    let inspector = pb::ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        typed_config: Some(packed(
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            &pb::TlsInspector {},
        )),
    };
    let name = format!("inbound:{port}");
    Resource::listener(&pb::Listener {
        address: Some(envoy::address(if is_v6 { "::" } else { "0.0.0.0" }, port)),
        filter_chains,
        listener_filters: vec![inspector],
        traffic_direction: INBOUND,
        stat_prefix: name.clone(),
        name,
        ..Default::default()
    })
}

fn target(port: u16) -> String {
    format!("application:{port}")
}

/// The application on Envoy's own machine.
fn application(port: u16) -> Resource {
    let name = target(port);
    let endpoint = pb::LbEndpoint {
        endpoint: Some(pb::Endpoint { address: Some(envoy::address("127.0.0.1", port)) }),
        ..Default::default()
    };
    let locality = pb::LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
    Resource::cluster(&pb::Cluster {
        r#type: STATIC,
        connect_timeout: Some(envoy::duration(std::time::Duration::from_secs(5))),
        load_assignment: Some(pb::ClusterLoadAssignment {
            cluster_name: name.clone(),
            endpoints: vec![locality],
            ..Default::default()
        }),
        name,
        ..Default::default()
    })
}

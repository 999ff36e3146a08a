//! What the Envoy in front of a server of ours needs: it has the server's SPIFFE ID, is reached at the gateways that the
//! FederatedService gives, ends TLS with each peer's clients, lets in whom the service names, and passes on to the
//! application on its own machine, or where the FederatedService says that it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::model::service::{Address, ClientPattern, ExportedPort, GatewayAddress, TlsMode};
use crate::model::{Service, SpiffeId, TrustDomain, World};
use crate::plan::exports::{Exports, held, plain};
use crate::plan::memo::Memo;
use crate::proto::xds::resources as pb;

use super::types::{Resource, filter, packed};
use super::{envoy, tls};

const STATIC: i32 = 0;
const INBOUND: i32 = 1;
/// What the names of listeners and of clusters begin with.
const LISTENER: &str = "inbound";
const APPLICATION: &str = "application";
/// How long a handshake may take, as in Istio's gateways: the port is open to other networks, and who says no more than a name
/// of ours has shown no identity.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// The resources of one server's Envoy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    pub resources: Vec<Resource>,
}

/// Whether a client that refuses something of this host (`Refusals`) refuses what it needs in front of a server of ours: the
/// listeners and clusters of such an Envoy are of no imported host.
#[must_use]
pub fn is_of_server(host: &str) -> bool {
    host == LISTENER || host == APPLICATION || host.starts_with(&format!("{APPLICATION}:"))
}

/// What it is made of: the services of one server, each with the trust domains that it really goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::plan) struct InboundOf {
    services: Vec<Served>,
    all_bundles: String,
}

/// A service with its host, and whose clients call it.
type Served = (Arc<Service>, String, BTreeSet<TrustDomain>);

/// By the SPIFFE ID of the server.
#[must_use]
pub(super) fn plan(
    world: &World,
    own: &TrustDomain,
    exports: &Exports,
    memo: &mut Memo,
) -> BTreeMap<SpiffeId, Arc<Inbound>> {
    let mut by_server: BTreeMap<SpiffeId, Vec<Served>> = BTreeMap::new();
    let is_reached = |service: &Service| !given(service).is_empty();
    let exported = exports.exported.values().filter(|export| is_reached(&export.service)).map(|export| {
        let kept = held::peers(world, &export.service);
        (Arc::clone(&export.service), export.host.clone(), export.to.iter().cloned().chain(kept).collect())
    });
    let kept = kept(world, own, exports).filter(|(service, ..)| is_reached(service));
    for served in exported.chain(kept) {
        for id in &served.0.server_ids {
            by_server.entry(id.clone()).or_default().push(served.clone());
        }
    }
    let of = |(id, services)| {
        let input = InboundOf { services, all_bundles: world.settings.xds_all_bundles.clone() };
        let inbound = memo.inbound.get(&id, &input, |input| Arc::new(inbound(input)));
        (id, inbound)
    };
    by_server.into_iter().map(of).collect()
}

/// What is exported to nobody else than those whose TrustDomainPeer cannot be read: their clients have what they had of it, and go on
/// to call.
fn kept(world: &World, own: &TrustDomain, exports: &Exports) -> impl Iterator<Item = Served> {
    let held = exports.held.iter().filter(|name| !exports.exported.contains_key(*name));
    held.filter_map(|name| {
        let service = world.services.get(name).filter(|service| plain::stands(world, own, service))?;
        let to = held::peers(world, service);
        (!to.is_empty()).then_some((Arc::clone(service), service.name.host(own).ok()?, to))
    })
}

/// Where importers come to, by the FederatedService's own word: the ports that its Envoy listens on, and whether any gateway there
/// is reached by IPv6. One port is one listener, which takes both families.
fn given(service: &Service) -> BTreeMap<u16, bool> {
    let carrying = service.tls_mode.gateway();
    let mut ports = BTreeMap::new();
    for gateway in service.gateways.iter().filter(|gateway| gateway.gateway_type == carrying) {
        *ports.entry(gateway.at.port).or_default() |=
            matches!(gateway.at.address, Address::Ip(IpAddr::V6(_)));
    }
    ports
}

/// One end of TLS: an SNI, and who may come by it to which port of the application. With `IstioMtls` each exported port has one.
struct Door {
    sni: String,
    alpn: Vec<String>,
    bundle: String,
    clients: BTreeSet<ClientPattern>,
    target: Target,
}

/// A port of an application, as the Envoy in front of it reaches it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    /// The service whose endpoints are given; `None`: the application is on Envoy's own machine.
    host: Option<String>,
    at: BTreeSet<GatewayAddress>,
    port: u16,
}

impl Target {
    fn of(service: &Service, host: &str, port: u16) -> Self {
        let at = |address: &Address| GatewayAddress { address: address.clone(), port };
        if service.endpoints.is_empty() {
            let own = Address::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
            return Self { host: None, at: BTreeSet::from([at(&own)]), port };
        }
        Self { host: Some(host.to_owned()), at: service.endpoints.iter().map(at).collect(), port }
    }

    /// The name of its cluster.
    fn name(&self) -> String {
        let Self { host, port, .. } = self;
        host.as_ref()
            .map_or_else(|| format!("{APPLICATION}:{port}"), |host| format!("{APPLICATION}:{host}:{port}"))
    }
}

fn inbound(input: &InboundOf) -> Inbound {
    let mut listeners: BTreeMap<u16, (bool, Vec<pb::FilterChain>)> = BTreeMap::new();
    let mut targets = BTreeSet::new();
    for (service, host, to) in &input.services {
        let doors = doors(service, host, to, &input.all_bundles);
        targets.extend(doors.iter().map(|door| door.target.clone()));
        for (port, is_v6) in given(service) {
            let listener = listeners.entry(port).or_default();
            listener.0 |= is_v6;
            listener.1.extend(doors.iter().map(chain));
        }
    }
    let mut resources: Vec<Resource> = targets.iter().map(application).collect();
    resources.extend(listeners.into_iter().map(|(port, (is_v6, chains))| listener(port, is_v6, chains)));
    Inbound { resources }
}

fn doors(service: &Service, host: &str, to: &BTreeSet<TrustDomain>, all_bundles: &str) -> Vec<Door> {
    let bundle = match to.first() {
        Some(only) if to.len() == 1 => tls::bundle(only),
        _ => all_bundles.to_owned(),
    };
    let mut ports: Vec<&ExportedPort> = service.ports.iter().collect();
    ports.sort_by_key(|port| port.port);
    let of_one = match service.tls_mode {
        TlsMode::IstioMtls => 1,
        // All of its ports have one SNI, the host, and one target port.
        TlsMode::Mtls => ports.len().max(1),
    };
    let door = |ports: &[&ExportedPort]| {
        let first = ports.first()?;
        let clients = ports.iter().flat_map(|port| service.clients_of(port));
        let clients = clients.filter(|client| to.contains(client.trust_domain()));
        Some(Door {
            sni: tls::sni(service.tls_mode, host, first.port),
            alpn: spoken(service.tls_mode, ports),
            bundle: bundle.clone(),
            clients: clients.cloned().collect(),
            target: Target::of(service, host, first.target_port),
        })
    };
    // Without clients there is nobody to open for.
    ports.chunks(of_one).filter_map(door).filter(|door| !door.clients.is_empty()).collect()
}

/// The application protocols that the clients of any of these ports come with.
fn spoken(mode: TlsMode, ports: &[&ExportedPort]) -> Vec<String> {
    let mut all = Vec::new();
    for protocol in ports.iter().flat_map(|port| tls::accepted(mode, port.protocol)) {
        if !all.contains(&protocol) {
            all.push(protocol);
        }
    }
    all
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
    let name = door.target.name();
    pb::FilterChain {
        name: door.sni.clone(),
        filter_chain_match: Some(pb::FilterChainMatch { server_names: vec![door.sni.clone()] }),
        filters: vec![filter("envoy.filters.network.rbac", kind, &rbac), envoy::tcp(&name)],
        transport_socket: Some(tls::downstream(&door.bundle, door.alpn.clone(), &door.clients)),
        transport_socket_connect_timeout: Some(envoy::duration(HANDSHAKE)),
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
    let name = format!("{LISTENER}:{port}");
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

/// The application: on Envoy's own machine, or where it is said to be. Names are resolved by Envoy itself.
fn application(target: &Target) -> Resource {
    let name = target.name();
    let is_named = envoy::has_names(&target.at);
    Resource::cluster(&pb::Cluster {
        r#type: if is_named { envoy::STRICT_DNS } else { STATIC },
        respect_dns_ttl: is_named,
        connect_timeout: Some(envoy::duration(Duration::from_secs(5))),
        load_assignment: Some(envoy::assignment(&name, &target.at, &BTreeSet::new())),
        circuit_breakers: Some(envoy::no_breakers()),
        outlier_detection: (target.at.len() > 1).then(envoy::passing_over),
        name,
        ..Default::default()
    })
}

//! What an Envoy needs to call a port: a listener on the service's own address, the cluster behind it, its endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::model::service::{Address, AppProtocol, GatewayAddress, RemotePort};
use crate::plan::istio::import::passes_through;
use crate::proto::xds::resources as pb;

use super::types::{Resource, filter, packed};
use super::{OfferOf, endpoints, name, tls};

pub(super) const STRICT_DNS: i32 = 1;
const EDS: i32 = 3;
const LEAST_REQUEST: i32 = 1;
const OUTBOUND: i32 = 2;
const UNHEALTHY: i32 = 2;
/// How long a connection to a gateway may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an endpoint to which connections fail is passed over.
const EJECTION: Duration = Duration::from_secs(10);
/// After so many connections in a row that fail.
const FAILURES: u32 = 3;
/// What the pause before another try is made of.
const BACKOFF: prost_types::Duration = prost_types::Duration { seconds: 0, nanos: 100_000_000 };
/// Below how many percent of its endpoints the ill ones are tried as well: where there is no other left.
const PANIC: f64 = 1.0;

/// Nothing, where it has no address or no endpoint.
#[must_use]
pub(super) fn resources(input: &OfferOf, port: &RemotePort) -> Vec<Resource> {
    let (name, all) = (name(input, port), endpoints(&input.imported, port));
    let listener = listener(&name, &input.addresses, port.port, port.protocol);
    let Some(listener) = listener.filter(|_| !all.is_empty()) else { return Vec::new() };
    let assignment = assignment(&name, &all, &input.down);
    let mut resources = vec![Resource::listener(&listener)];
    if has_names(&all) {
        resources.push(Resource::cluster(&cluster(input, port, Some(assignment))));
    } else {
        resources.push(Resource::cluster(&cluster(input, port, None)));
        resources.push(Resource::endpoints(&assignment));
    }
    resources
}

/// Whether some of them have names: then Envoy resolves them itself.
#[must_use]
pub(super) fn has_names(all: &BTreeSet<GatewayAddress>) -> bool {
    all.iter().any(|at| matches!(at.address, Address::Dns(_)))
}

/// Where clients call a port; it leads to the cluster of its own name. Nothing, where there is no address.
#[must_use]
pub(super) fn listener(
    name: &str,
    addresses: &[IpAddr],
    port: u16,
    protocol: AppProtocol,
) -> Option<pb::Listener> {
    let (first, others) = addresses.split_first()?;
    let at = |ip: &IpAddr| address(&ip.to_string(), port);
    let additional = |ip| pb::AdditionalAddress { address: Some(at(ip)) };
    Some(pb::Listener {
        address: Some(at(first)),
        additional_addresses: others.iter().map(additional).collect(),
        filter_chains: vec![pb::FilterChain { filters: vec![proxy(name, protocol)], ..Default::default() }],
        // An address of the mesh's range is on no interface of a machine outside: a route that makes it local leads to it.
        freebind: (!addresses.iter().all(IpAddr::is_loopback)).then_some(true),
        traffic_direction: OUTBOUND,
        stat_prefix: name.to_owned(),
        name: name.to_owned(),
        ..Default::default()
    })
}

/// What passes on to the cluster of the same name.
fn proxy(name: &str, protocol: AppProtocol) -> pb::Filter {
    match protocol {
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => {
            let websocket = pb::UpgradeConfig { upgrade_type: "websocket".to_owned() };
            let upgrades = if protocol == AppProtocol::Http { vec![websocket] } else { Vec::new() };
            manager(name, upgrades)
        }
        AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Https => tcp(name),
    }
}

/// Passes bytes on to a cluster.
#[must_use]
pub(super) fn tcp(cluster: &str) -> pb::Filter {
    let proxy = pb::TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster: cluster.to_owned(),
        // Enough for an endpoint that is down to be passed over for the first connection that comes to it, each after a while,
        // since Envoy does not pass it over at once.
        max_connect_attempts: Some(FAILURES + 1),
        idle_timeout: Some(no_limit()),
        backoff_options: Some(pb::BackoffStrategy { base_interval: Some(BACKOFF) }),
    };
    let kind = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    filter("envoy.filters.network.tcp_proxy", kind, &proxy)
}

/// Passes requests on to the cluster of this name, each by itself.
fn manager(name: &str, upgrade_configs: Vec<pb::UpgradeConfig>) -> pb::Filter {
    let manager = pb::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_config: Some(routes(name)),
        http_filters: vec![router()],
        upgrade_configs,
        stream_idle_timeout: Some(no_limit()),
        codec_type: 0,
    };
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    filter("envoy.filters.network.http_connection_manager", kind, &manager)
}

/// Every request to one cluster, for as long as it takes: timeouts are the client's own. One that reached no server is sent
/// again, to another endpoint in the end.
#[must_use]
pub(super) fn routes(cluster: &str) -> pb::RouteConfiguration {
    let prefix = pb::route_match::PathSpecifier::Prefix(String::new());
    let route = pb::Route {
        r#match: Some(pb::RouteMatch { path_specifier: Some(prefix) }),
        route: Some(pb::RouteAction {
            cluster: cluster.to_owned(),
            timeout: Some(no_limit()),
            retry_policy: Some(retries()),
        }),
    };
    let host =
        pb::VirtualHost { name: cluster.to_owned(), domains: vec!["*".to_owned()], routes: vec![route] };
    pb::RouteConfiguration { name: cluster.to_owned(), virtual_hosts: vec![host] }
}

/// Each try goes to another endpoint, and to those that come later once the first have been tried.
fn retries() -> pb::RetryPolicy {
    let plugin = |name: &str, config| pb::RetryPlugin { name: name.to_owned(), typed_config: Some(config) };
    let priorities = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";
    let hosts = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    let priorities = packed(priorities, &pb::PreviousPriorities { update_frequency: 1 });
    let hosts = packed(hosts, &pb::PreviousHosts {});
    pb::RetryPolicy {
        retry_on: "connect-failure,refused-stream".to_owned(),
        num_retries: Some(FAILURES),
        retry_priority: Some(plugin("envoy.retry_priorities.previous_priorities", priorities)),
        retry_host_predicate: vec![plugin("envoy.retry_host_predicates.previous_hosts", hosts)],
        host_selection_retry_max_attempts: 8,
    }
}

#[must_use]
pub(super) fn router() -> pb::Filter {
    filter("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", &pb::Router {})
}

fn cluster(input: &OfferOf, port: &RemotePort, named: Option<pb::ClusterLoadAssignment>) -> pb::Cluster {
    let imported = &input.imported;
    pb::Cluster {
        // Where the application brings its own TLS, its bytes are passed on as they are.
        transport_socket: (!passes_through(imported.service.tls_mode, port))
            .then(|| tls::upstream(imported, port)),
        ..bare(name(input, port), port.protocol, named)
    }
}

/// A cluster without TLS. Its endpoints are `named`, of which Envoy resolves the names itself, or else come by EDS.
#[must_use]
pub(super) fn bare(
    name: String,
    protocol: AppProtocol,
    named: Option<pb::ClusterLoadAssignment>,
) -> pb::Cluster {
    let is_named = named.is_some();
    let eds = pb::EdsClusterConfig { eds_config: Some(tls::by_ads()), service_name: String::new() };
    pb::Cluster {
        r#type: if is_named { STRICT_DNS } else { EDS },
        eds_cluster_config: (!is_named).then_some(eds),
        load_assignment: named,
        respect_dns_ttl: is_named,
        connect_timeout: Some(duration(CONNECT)),
        lb_policy: LEAST_REQUEST,
        circuit_breakers: Some(no_breakers()),
        outlier_detection: Some(passing_over()),
        common_lb_config: Some(pb::CommonLbConfig {
            healthy_panic_threshold: Some(pb::Percent { value: PANIC }),
            locality_weighted_lb_config: None,
        }),
        typed_extension_protocol_options: http(protocol),
        name,
        ..Default::default()
    }
}

/// The version of HTTP that the server speaks, where it speaks HTTP.
fn http(protocol: AppProtocol) -> BTreeMap<String, prost_types::Any> {
    use pb::explicit_http_config::ProtocolConfig;
    const NAME: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let config = match protocol {
        AppProtocol::Http => ProtocolConfig::HttpProtocolOptions(pb::Http1Options {}),
        AppProtocol::Http2 | AppProtocol::Grpc => ProtocolConfig::Http2ProtocolOptions(pb::Http2Options {}),
        AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Https => return BTreeMap::new(),
    };
    let explicit = pb::ExplicitHttpConfig { protocol_config: Some(config) };
    let options = pb::HttpProtocolOptions { explicit_http_config: Some(explicit) };
    BTreeMap::from([(NAME.to_owned(), packed(NAME, &options))])
}

/// Nothing is cut off for being one too many, as without a proxy (and with Istio): of what is not set Envoy and gRPC allow 1,024 at
/// a time, all clients together, and Envoy three retries.
#[must_use]
pub(super) fn no_breakers() -> pb::CircuitBreakers {
    pb::CircuitBreakers {
        thresholds: vec![pb::Thresholds {
            max_connections: Some(u32::MAX),
            max_pending_requests: Some(u32::MAX),
            max_requests: Some(u32::MAX),
            max_retries: Some(u32::MAX),
        }],
    }
}

/// A gateway to which connections fail is passed over for a while, what servers answer is no reason to.
#[must_use]
pub(super) fn passing_over() -> pb::OutlierDetection {
    pb::OutlierDetection {
        base_ejection_time: Some(duration(EJECTION)),
        max_ejection_percent: Some(100),
        enforcing_consecutive_5xx: Some(0),
        enforcing_success_rate: Some(0),
        enforcing_consecutive_gateway_failure: Some(0),
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: Some(FAILURES),
    }
}

/// All endpoints in one locality, which has no name: exporters do not tell where their gateways are. Those that are `down` are said
/// to be ill while another is left; where none is, that we reach none says little about who asks, which finds out by itself.
#[must_use]
pub(super) fn assignment(
    name: &str,
    all: &BTreeSet<GatewayAddress>,
    down: &BTreeSet<GatewayAddress>,
) -> pb::ClusterLoadAssignment {
    let is_any_up = all.iter().any(|at| !down.contains(at));
    let locality = pb::LocalityLbEndpoints {
        // gRPC refuses a locality that is not there, and passes over one without weight (gRFC A27).
        locality: Some(pb::Locality::default()),
        load_balancing_weight: Some(1),
        lb_endpoints: all.iter().map(|at| endpoint(at, is_any_up && down.contains(at))).collect(),
        ..Default::default()
    };
    pb::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![locality],
        ..Default::default()
    }
}

/// An endpoint, which may have taken no connection when it was last tried.
#[must_use]
pub(super) fn endpoint(at: &GatewayAddress, is_down: bool) -> pb::LbEndpoint {
    let host = match &at.address {
        Address::Ip(ip) => ip.to_canonical().to_string(),
        Address::Dns(name) => name.clone(),
    };
    pb::LbEndpoint {
        endpoint: Some(pb::Endpoint { address: Some(address(&host, at.port)) }),
        health_status: if is_down { UNHEALTHY } else { 0 },
        metadata: None,
    }
}

#[must_use]
pub(super) fn address(host: &str, port: u16) -> pb::Address {
    let socket =
        pb::SocketAddress { address: host.to_owned(), port_value: port.into(), ipv4_compat: host == "::" };
    pb::Address { socket_address: Some(socket) }
}

#[must_use]
pub(super) fn duration(of: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: i64::try_from(of.as_secs()).unwrap_or(i64::MAX), nanos: 0 }
}

fn no_limit() -> prost_types::Duration {
    prost_types::Duration::default()
}

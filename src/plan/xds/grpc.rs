//! What a proxyless gRPC client needs to call a port as `xds:///HOST:PORT` (gRFC A27, A29): a listener by that name with its
//! routes in it, the cluster with its certificate providers, its endpoints.

use std::collections::BTreeSet;

use crate::model::service::{AppProtocol, RemotePort};
use crate::proto::xds::resources as pb;

use super::types::{Resource, packed};
use super::{OfferOf, endpoints, envoy, name, tls};

const LOGICAL_DNS: i32 = 2;
const EDS: i32 = 3;

/// Nothing for a port that does not speak HTTP/2, or has no endpoint.
#[must_use]
pub(super) fn resources(input: &OfferOf, port: &RemotePort) -> Vec<Resource> {
    if !matches!(port.protocol, AppProtocol::Grpc | AppProtocol::Http2) {
        return Vec::new();
    }
    let (name, all) = (name(input, port), endpoints(&input.imported, port));
    let named = if envoy::has_names(&all) {
        // One name is all that a library resolves (gRFC A37).
        all.iter().find(|at| matches!(at.address, crate::model::service::Address::Dns(_))).cloned()
    } else {
        None
    };
    if all.is_empty() {
        return Vec::new();
    }
    let mut resources = vec![Resource::listener(&listener(&name))];
    match named {
        Some(one) => {
            let assignment = envoy::assignment(&name, &[one].into(), &BTreeSet::new());
            resources.push(Resource::cluster(&cluster(input, port, Some(assignment))));
        }
        None => {
            resources.push(Resource::cluster(&cluster(input, port, None)));
            // A library leaves out what is said to be ill, though nothing else is left; and what takes no connection from itself it
            // passes over by itself.
            resources.push(Resource::endpoints(&envoy::assignment(&name, &all, &BTreeSet::new())));
        }
    }
    resources
}

fn listener(name: &str) -> pb::Listener {
    let manager = pb::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_config: Some(envoy::routes(name)),
        http_filters: vec![envoy::router()],
        ..Default::default()
    };
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let api = pb::ApiListener { api_listener: Some(packed(kind, &manager)) };
    pb::Listener { name: name.to_owned(), api_listener: Some(api), ..Default::default() }
}

fn cluster(input: &OfferOf, port: &RemotePort, named: Option<pb::ClusterLoadAssignment>) -> pb::Cluster {
    let eds = pb::EdsClusterConfig { eds_config: Some(tls::by_ads()), service_name: String::new() };
    let is_named = named.is_some();
    pb::Cluster {
        name: name(input, port),
        r#type: if is_named { LOGICAL_DNS } else { EDS },
        eds_cluster_config: (!is_named).then_some(eds),
        load_assignment: named,
        circuit_breakers: Some(envoy::no_breakers()),
        transport_socket: Some(tls::of_grpc(&input.imported, port)),
        ..Default::default()
    }
}

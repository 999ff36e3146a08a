//! A service of peers at its local name: a VirtualService that spreads what comes to the local name over the local Service
//! and the federated hosts of the peers; and where there is no local Service, a ServiceEntry that makes the name one.
//!
//! Each place keeps its own host, so each peer's gateway is asked for the name that the peer exports, each server is pinned
//! to its own IDs, local pods without a sidecar are reached as ever, and a DestinationRule of the user's on the local name goes on
//! to hold for the local endpoints. What comes in at our own gateways is not routed by it: two clusters that import each other's
//! service of one name do not pass connections round in a circle.

use std::collections::BTreeSet;

use crate::istio::service_entry::{Location, Resolution};
use crate::istio::virtual_service::{Destination, PortMatch, PortRoute, PortSelector, WeightedRoute};
use crate::istio::{Port, ServiceEntrySpec, VirtualServiceSpec};
use crate::model::cluster::{ClusterPort, Transport};
use crate::model::service::AppProtocol;

/// By which of Istio's routes a port is led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    pub http: bool,
    pub tcp: bool,
}

impl Spoken {
    /// `None` for TLS: it is routed only by the SNI, which is whatever the client calls.
    #[must_use]
    pub const fn of(protocol: AppProtocol) -> Option<Self> {
        match protocol {
            AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => {
                Some(Self { http: true, tcp: false })
            }
            AppProtocol::Tcp => Some(Self { http: false, tcp: true }),
            AppProtocol::Https | AppProtocol::Tls => None,
        }
    }

    /// As Istio has it: what neither `appProtocol` nor the name's prefix tells is found out from what is said, so it needs both
    /// routes.
    #[must_use]
    pub fn on(port: &ClusterPort) -> Option<Self> {
        if port.transport != Transport::Tcp {
            return None;
        }
        let told = match &port.app_protocol {
            Some(given) => AppProtocol::parse(&given.to_ascii_lowercase()),
            None => AppProtocol::said_by_port_name(&port.name),
        };
        told.map_or(Some(Self { http: true, tcp: true }), Self::of)
    }
}

/// A port of the local name, and where what comes to it goes, evenly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPort {
    pub number: u16,
    /// A DNS label, and unique, where the name is ours to make.
    pub name: String,
    pub protocol: AppProtocol,
    pub spoken: Spoken,
    /// Hosts and their ports.
    pub to: Vec<(String, u16)>,
}

/// The routes of the local name.
#[must_use]
pub fn virtual_service(host: &str, export_to: &BTreeSet<String>, ports: &[LocalPort]) -> VirtualServiceSpec {
    let routes =
        |wanted: fn(&LocalPort) -> bool| ports.iter().filter(|port| wanted(port)).map(route).collect();
    VirtualServiceSpec {
        hosts: vec![host.to_owned()],
        export_to: export_to.iter().cloned().collect(),
        http: routes(|port| port.spoken.http),
        tcp: routes(|port| port.spoken.tcp),
        ..VirtualServiceSpec::default()
    }
}

fn route(port: &LocalPort) -> PortRoute {
    let weight = (port.to.len() > 1).then_some(1);
    let to = |(host, number): &(String, u16)| WeightedRoute {
        destination: Destination { host: host.clone(), port: Some(PortSelector { number: *number }) },
        weight,
    };
    PortRoute { r#match: vec![PortMatch { port: port.number }], route: port.to.iter().map(to).collect() }
}

/// The local name where no Service has it. It has no endpoints of its own: the VirtualService leads to those of the peers.
#[must_use]
pub fn service_entry(
    host: &str,
    addresses: Vec<String>,
    export_to: &BTreeSet<String>,
    ports: &[LocalPort],
) -> ServiceEntrySpec {
    let port = |port: &LocalPort| Port {
        number: port.number,
        name: port.name.clone(),
        protocol: port.protocol.istio().to_owned(),
        target_port: None,
    };
    ServiceEntrySpec {
        hosts: vec![host.to_owned()],
        addresses,
        location: Some(Location::MeshInternal),
        resolution: Some(Resolution::Static),
        export_to: export_to.iter().cloned().collect(),
        ports: ports.iter().map(port).collect(),
        ..ServiceEntrySpec::default()
    }
}

//! Where importers come in: the gateways of our own mesh, found by their Services, and the pods themselves where the
//! networks are flat.
//!
//! An address that is gone from a Service that has others is an explicit change, and peers are told at once. A Service that
//! is not there, or has no address (yet, or any more), says nothing: what peers were told stays until there is something
//! better to tell them (`exports`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::cluster::{ClusterPort, ClusterService, LoadBalancer, TargetPort, Transport};
use crate::model::service::{
    Address, DirectEndpoint, GatewayAddress, GatewayChoice, GatewaySelection, GatewayType, TlsMode,
};
use crate::model::world::Settings;
use crate::model::{NamespacedName, Service, World};
use crate::plan::pods::{Pods, has_labels};

/// Most addresses of a gateway, or endpoints of a service, that peers are told of: what one service may have on the wire.
pub const MOST: usize = 64;

/// The port of Istio's gateways between meshes.
const ISTIO_PORT: u16 = 15_443;

/// A gateway, as its Service has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The Service.
    pub service: NamespacedName,
    /// The labels of its pods, by which a Gateway object means them; never empty.
    pub selector: BTreeMap<String, String>,
    /// The port of the Service by which importers come. A Gateway object names the port of the Service too: istiod listens
    /// on its target port.
    pub port: u16,
    /// Where importers reach it; empty: nowhere, as far as the Service says.
    pub addresses: BTreeSet<GatewayAddress>,
    /// By node port, the port of the Service.
    node_ports: BTreeMap<u16, u16>,
    ports: BTreeSet<u16>,
}

impl Carrier {
    /// The port that a Gateway object names for importers who come to `outside`: that one, where the Service has it, the
    /// one of that node port, or the one that importers come by, through something that stands before the Service.
    #[must_use]
    pub fn listening(&self, outside: u16) -> u16 {
        if self.ports.contains(&outside) {
            return outside;
        }
        self.node_ports.get(&outside).copied().unwrap_or(self.port)
    }
}

/// What was looked for, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateways {
    eastwest: Looked,
    ingress: Looked,
}

/// The result for one type of gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// Where its pods are.
    pub namespace: String,
    /// The gateway; or why there is none, for a message, and what to do.
    pub found: Result<Carrier, String>,
}

impl Gateways {
    /// Looks for both gateways among the cluster's Services.
    #[must_use]
    pub fn discover(world: &World) -> Self {
        let settings = &world.settings;
        Self {
            eastwest: look(world, &settings.eastwest_gateway),
            ingress: look(world, &settings.ingress_gateway),
        }
    }

    /// The gateway that carries a mode.
    #[must_use]
    pub const fn of(&self, mode: TlsMode) -> &Looked {
        match mode.gateway() {
            GatewayType::EastWestGateway => &self.eastwest,
            GatewayType::IngressGateway => &self.ingress,
        }
    }

    /// Those that were found.
    pub fn found(&self) -> impl Iterator<Item = (GatewayType, &Carrier)> {
        let eastwest = self.eastwest.found.iter().map(|found| (GatewayType::EastWestGateway, found));
        let ingress = self.ingress.found.iter().map(|found| (GatewayType::IngressGateway, found));
        eastwest.chain(ingress)
    }

    /// Every address at which our own gateways are reached.
    pub fn addresses(&self) -> impl Iterator<Item = &GatewayAddress> {
        self.found().flat_map(|(_, carrier)| &carrier.addresses)
    }
}

fn look(world: &World, choice: &GatewayChoice) -> Looked {
    let namespace = choice.namespace.as_ref().unwrap_or(&world.settings.istio_namespace);
    let found = service(world, namespace, choice).and_then(|service| carrier(world, service, choice));
    Looked { namespace: namespace.clone(), found }
}

fn service<'a>(
    world: &'a World,
    namespace: &str,
    choice: &GatewayChoice,
) -> Result<&'a Arc<ClusterService>, String> {
    match &choice.by {
        GatewaySelection::Name(name) => world
            .cluster_services
            .get(&NamespacedName::new(namespace, name))
            .ok_or_else(|| format!("there is no Service {namespace}/{name}")),
        GatewaySelection::Label(label, value) => of_namespace(&world.cluster_services, namespace)
            .filter(|service| service.labels.get(label) == Some(value))
            .min_by_key(|service| (service.created.is_none(), service.created, &service.object))
            .ok_or_else(|| format!("there is no Service labelled {label}={value} in {namespace}")),
    }
}

/// Whether a Service is, or stands before, a gateway of the mesh: one of those that are looked for, one for the pods of
/// Istio's own gateways, or one that was made for a Gateway of the Gateway API.
#[must_use]
pub fn is_one(settings: &Settings, service: &ClusterService) -> bool {
    let is_chosen = |choice: &GatewayChoice| {
        let namespace = choice.namespace.as_ref().unwrap_or(&settings.istio_namespace);
        service.object.namespace == *namespace
            && match &choice.by {
                GatewaySelection::Name(name) => service.object.name == *name,
                GatewaySelection::Label(label, value) => service.labels.get(label) == Some(value),
            }
    };
    let kinds = [GatewayType::EastWestGateway, GatewayType::IngressGateway];
    let is_istios = || {
        let label = service.selector.get("istio");
        label.is_some_and(|label| kinds.iter().any(|kind| kind.istio_label() == label))
    };
    is_chosen(&settings.eastwest_gateway)
        || is_chosen(&settings.ingress_gateway)
        || is_istios()
        || service.selector.contains_key(LABEL_GATEWAY_NAME)
}

/// By which the pods of a Gateway of the Gateway API are selected.
const LABEL_GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// What a namespace has, without a look at the others.
fn of_namespace<'a, T>(
    all: &'a BTreeMap<NamespacedName, T>,
    namespace: &str,
) -> impl Iterator<Item = &'a T> + use<'a, T> {
    let first = NamespacedName::new(namespace, "");
    let namespace = namespace.to_owned();
    all.range(first..).take_while(move |(name, _)| name.namespace == namespace).map(|(_, one)| one)
}

fn carrier(world: &World, service: &ClusterService, choice: &GatewayChoice) -> Result<Carrier, String> {
    let name = &service.object;
    if service.selector.is_empty() {
        return Err(format!(
            "Service {name} selects no pods, and a Gateway object means its pods by their labels"
        ));
    }
    let tcp = || service.ports.iter().filter(|port| port.transport == Transport::Tcp);
    let port = inward(tcp(), choice).ok_or_else(|| match &choice.port {
        Some(wanted) => format!("Service {name} has no TCP port {wanted}"),
        None => format!("Service {name} has neither a TCP port named tls nor 15443 or 443"),
    })?;
    Ok(Carrier {
        service: name.clone(),
        selector: service.selector.clone(),
        port: port.number,
        addresses: addresses(world, service, port).into_iter().take(MOST).collect(),
        node_ports: tcp().filter_map(|port| Some((port.node_port?, port.number))).collect(),
        ports: tcp().map(|port| port.number).collect(),
    })
}

/// The port by which importers come.
fn inward<'a>(
    ports: impl Iterator<Item = &'a ClusterPort> + Clone,
    choice: &GatewayChoice,
) -> Option<&'a ClusterPort> {
    let first = |matches: &dyn Fn(&ClusterPort) -> bool| ports.clone().find(|port| matches(port));
    match &choice.port {
        Some(wanted) => first(&|port| port.name == *wanted || port.number.to_string() == *wanted),
        None => first(&|port| port.name == "tls")
            .or_else(|| {
                first(&|port| port.number == ISTIO_PORT || port.target == TargetPort::Number(ISTIO_PORT))
            })
            .or_else(|| first(&|port| port.number == 443)),
    }
}

fn addresses(world: &World, service: &ClusterService, port: &ClusterPort) -> BTreeSet<GatewayAddress> {
    let at = |address: Address, port: u16| GatewayAddress { address, port };
    let external = service.external_ips.iter().map(|ip| at(Address::Ip(*ip), port.number));
    let mut all: BTreeSet<GatewayAddress> = external.collect();
    if world.settings.gateway_node_ports {
        // Whether a pod is ready says nothing about its node, and comes and goes.
        let pods = of_namespace(&world.pods, &service.object.namespace)
            .filter(|pod| has_labels(&pod.labels, &service.selector));
        let nodes = pods.filter_map(|pod| pod.host_ip);
        if let Some(node_port) = port.node_port {
            all.extend(nodes.map(|ip| at(Address::Ip(ip), node_port)));
        }
    } else {
        let balancers = service.load_balancer.iter().filter_map(|balancer| match balancer {
            LoadBalancer::Ip(ip) => Some(Address::Ip(*ip)),
            LoadBalancer::Name(name) => Address::parse(name),
        });
        all.extend(balancers.map(|address| at(address, port.number)));
    }
    all
}

/// The pods of a service as endpoints, by address, at most [`MOST`]: those that are ready, or all where none is, since a
/// service whose pods fail for a moment is not gone. With `IstioMtls` only such as have a sidecar.
#[must_use]
pub fn endpoints(pods: &Pods<'_>, service: &Service) -> Vec<DirectEndpoint> {
    let ports: BTreeMap<String, u16> =
        service.ports.iter().map(|port| (port.name.clone(), port.target_port)).collect();
    let usable = || {
        let all = pods.selected(&service.object.namespace, &service.workload_labels);
        all.filter(|pod| service.tls_mode == TlsMode::Mtls || pod.has_sidecar)
    };
    let mut addresses: BTreeSet<_> = usable().filter(|pod| pod.is_ready).filter_map(|pod| pod.ip).collect();
    if addresses.is_empty() {
        addresses = usable().filter_map(|pod| pod.ip).collect();
    }
    let endpoint = |address| DirectEndpoint { address, ports: ports.clone() };
    addresses.into_iter().take(MOST).map(endpoint).collect()
}

#[cfg(test)]
#[path = "gateways_tests.rs"]
mod tests;

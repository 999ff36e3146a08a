//! What runs in our own cluster, as far as services are decided by it: namespaces, Services and pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

use super::NamespacedName;
use super::service::AppProtocol;

/// A Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterService {
    pub object: NamespacedName,
    pub uid: String,
    pub created: Option<Timestamp>,
    /// Set while it is being deleted.
    pub deletion: Option<Timestamp>,
    pub labels: BTreeMap<String, String>,
    /// Which pods back it; empty: none that Kubernetes chooses.
    pub selector: BTreeMap<String, String>,
    pub kind: ClusterServiceKind,
    /// Its cluster IPs, the first one first; empty where it is headless or has none yet.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub is_headless: bool,
    pub ports: Vec<ClusterPort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Where its load balancer is reached; names in lower case.
    pub load_balancer: BTreeSet<LoadBalancer>,
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterServiceKind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// One of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoadBalancer {
    Ip(IpAddr),
    Name(String),
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPort {
    /// Empty where the only port has no name.
    pub name: String,
    pub number: u16,
    pub target: TargetPort,
    pub node_port: Option<u16>,
    pub transport: Transport,
    /// `appProtocol` as it is written.
    pub app_protocol: Option<String>,
}

impl ClusterPort {
    /// What is spoken: by `appProtocol`, else by what the name begins with, as Istio has it, else TCP; `None` where it is
    /// not carried over TCP, or the given `appProtocol` is not one that can be exported.
    #[must_use]
    pub fn protocol(&self) -> Option<AppProtocol> {
        if self.transport != Transport::Tcp {
            return None;
        }
        match &self.app_protocol {
            Some(given) => AppProtocol::parse(&given.to_ascii_lowercase()),
            None => AppProtocol::of_port_name(&self.name),
        }
    }

    /// What it says that it speaks: by `appProtocol`, else by its name; `None` where neither says anything. An `appProtocol` that
    /// is not known here is some protocol over TCP.
    #[must_use]
    pub fn said(&self) -> Option<AppProtocol> {
        match &self.app_protocol {
            Some(given) => Some(AppProtocol::parse(&given.to_ascii_lowercase()).unwrap_or(AppProtocol::Tcp)),
            None => AppProtocol::said_by_port_name(&self.name),
        }
    }
}

/// `ports[].protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetPort {
    Number(u16),
    /// The name of a port of the pods' containers.
    Name(String),
}

/// A pod that has not ended, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub object: NamespacedName,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub service_account: String,
    /// Once it has one.
    pub ip: Option<IpAddr>,
    /// Where its node is reached from the cluster's network.
    pub host_ip: Option<IpAddr>,
    /// Where else it, or its node, is reached: of two families of addresses the second.
    pub other_ips: Vec<IpAddr>,
    pub is_ready: bool,
    pub uses_host_network: bool,
    /// By name, the containers' TCP ports.
    pub named_ports: BTreeMap<String, u16>,
    /// Whether an Istio sidecar runs in it.
    pub has_sidecar: bool,
    /// Whether its sidecar takes its certificates from SPIRE: it mounts the socket of the SPIFFE CSI driver, or of SPIRE's
    /// agent, where Istio's agent looks for one.
    pub has_spire_socket: bool,
    /// Whether ztunnel captures it (Istio's ambient mode).
    pub is_ambient: bool,
}

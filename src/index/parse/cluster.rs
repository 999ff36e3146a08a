//! What runs in our own cluster, to the model: the part of Services and pods that services are decided by.
//!
//! These objects are others', and an API server has checked them; what is odd in one is left out of it, and never keeps
//! the rest from being read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::istio::service_entry::LABEL_TLS_MODE;
use crate::model::cluster::{
    ClusterPort, ClusterService, ClusterServiceKind, LoadBalancer, Pod, TargetPort, Transport,
};
use crate::model::name::is_dns_host;
use crate::model::{NamespacedName, Object};

/// Most ports of a Service, addresses of a load balancer, containers or volumes that are looked at.
const MOST: usize = 1_000;
/// The container of an Istio sidecar.
const SIDECAR: &str = "istio-proxy";
/// Where a sidecar looks for SPIRE's socket; `/var/run` is a link to `/run`.
const SPIRE_SOCKET: [&str; 2] = ["/run/secrets/workload-spiffe-uds", "/var/run/secrets/workload-spiffe-uds"];
/// Set on pods that ztunnel captures.
const AMBIENT: (&str, &str) = ("ambient.istio.io/redirection", "enabled");

/// Reads a Service.
#[must_use]
pub fn service(object: &Object) -> ClusterService {
    let spec = object.spec().unwrap_or(&Value::Null);
    let text = |name: &str| spec.get(name).and_then(Value::as_str);
    let kind = match text("type") {
        Some("NodePort") => ClusterServiceKind::NodePort,
        Some("LoadBalancer") => ClusterServiceKind::LoadBalancer,
        Some("ExternalName") => ClusterServiceKind::ExternalName,
        _ => ClusterServiceKind::ClusterIp,
    };
    let mut cluster_ips: Vec<IpAddr> =
        strings(&spec["clusterIPs"]).filter_map(|ip| ip.parse().ok()).collect();
    if cluster_ips.is_empty() {
        cluster_ips.extend(text("clusterIP").and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    let ingress = object.body.get("status").and_then(|status| status.pointer("/loadBalancer/ingress"));
    let ingress = ingress.unwrap_or(&Value::Null);
    ClusterService {
        object: named(object),
        uid: object.meta.uid.clone(),
        created: object.meta.created,
        deletion: object.meta.deletion,
        labels: object.meta.labels.clone(),
        selector: labels(&spec["selector"]),
        kind,
        cluster_ips,
        is_headless: text("clusterIP") == Some("None"),
        ports: items(&spec["ports"]).filter_map(port).collect(),
        external_ips: strings(&spec["externalIPs"]).filter_map(|ip| ip.parse().ok()).collect(),
        load_balancer: items(ingress).filter_map(load_balancer).collect(),
    }
}

/// Reads a pod; nothing where it has ended, or is about to.
#[must_use]
pub fn pod(object: &Object) -> Option<Pod> {
    let spec = object.spec().unwrap_or(&Value::Null);
    let status = object.status().unwrap_or(&Value::Null);
    let has_ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    if has_ended || object.meta.deletion.is_some() {
        return None;
    }
    let containers = || items(&spec["containers"]).chain(items(&spec["initContainers"]));
    let sidecar = containers().find(|container| container["name"] == SIDECAR);
    let is_ready = items(&status["conditions"])
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    Some(Pod {
        object: named(object),
        uid: object.meta.uid.clone(),
        labels: object.meta.labels.clone(),
        service_account: spec["serviceAccountName"].as_str().unwrap_or("default").to_owned(),
        ip: address(&status["podIP"]),
        host_ip: address(&status["hostIP"]),
        other_ips: other_addresses(status),
        is_ready,
        uses_host_network: spec["hostNetwork"] == true,
        named_ports: containers()
            .flat_map(|container| items(&container["ports"]))
            .filter_map(named_port)
            .collect(),
        has_sidecar: sidecar.is_some()
            || object.meta.labels.get(LABEL_TLS_MODE).is_some_and(|mode| mode == "istio"),
        has_spire_socket: sidecar.is_some_and(|sidecar| mounts_spire(sidecar, spec)),
        is_ambient: object.meta.annotations.get(AMBIENT.0).is_some_and(|value| value == AMBIENT.1),
    })
}

fn named(object: &Object) -> NamespacedName {
    NamespacedName::new(object.key.namespace.clone().unwrap_or_default(), object.key.name.clone())
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten().take(MOST)
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    items(value).filter_map(Value::as_str)
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten().take(MOST);
    all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// The addresses of a pod and its node beside the first of each.
fn other_addresses(status: &Value) -> Vec<IpAddr> {
    let of = |list: &str, field: &str, first: &str| -> Vec<IpAddr> {
        let first = address(&status[first]);
        let all = items(&status[list]).filter_map(|one| address(&one[field]));
        all.filter(|ip| Some(*ip) != first).collect()
    };
    let mut others = of("podIPs", "ip", "podIP");
    others.extend(of("hostIPs", "ip", "hostIP"));
    others
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

fn port(value: &Value) -> Option<ClusterPort> {
    let at = number(&value["port"])?;
    let target = match &value["targetPort"] {
        Value::String(name) => {
            name.parse().map_or_else(|_| TargetPort::Name(name.clone()), TargetPort::Number)
        }
        given => TargetPort::Number(number(given).unwrap_or(at)),
    };
    Some(ClusterPort {
        name: value["name"].as_str().unwrap_or_default().to_owned(),
        number: at,
        target,
        node_port: number(&value["nodePort"]),
        transport: match value["protocol"].as_str() {
            Some("UDP") => Transport::Udp,
            Some("SCTP") => Transport::Sctp,
            _ => Transport::Tcp,
        },
        app_protocol: value["appProtocol"].as_str().map(str::to_owned),
    })
}

fn load_balancer(value: &Value) -> Option<LoadBalancer> {
    if let Some(ip) = address(&value["ip"]) {
        return Some(LoadBalancer::Ip(ip));
    }
    let name = value["hostname"].as_str()?.trim_end_matches('.').to_ascii_lowercase();
    is_dns_host(&name).then_some(LoadBalancer::Name(name))
}

fn named_port(value: &Value) -> Option<(String, u16)> {
    let is_tcp = value["protocol"].as_str().is_none_or(|transport| transport == "TCP");
    let name = value["name"].as_str().filter(|_| is_tcp)?;
    Some((name.to_owned(), number(&value["containerPort"])?))
}

/// Whether what the sidecar mounts at the place of the socket is SPIRE's: by default Istio mounts an empty directory there.
fn mounts_spire(sidecar: &Value, spec: &Value) -> bool {
    let at_socket = |mount: &&Value| {
        mount["mountPath"].as_str().is_some_and(|path| SPIRE_SOCKET.contains(&path.trim_end_matches('/')))
    };
    let volumes: BTreeSet<&str> = items(&sidecar["volumeMounts"])
        .filter(at_socket)
        .filter_map(|mount| mount["name"].as_str())
        .collect();
    items(&spec["volumes"]).any(|volume| {
        volume["name"].as_str().is_some_and(|name| volumes.contains(name))
            && (volume.pointer("/csi/driver").is_some_and(|driver| driver == "csi.spiffe.io")
                || volume["hostPath"].is_object())
    })
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;

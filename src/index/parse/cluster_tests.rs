use serde_json::json;

use super::super::tests::object;
use super::*;
use crate::model::object::Kind;

fn with_status(kind: Kind, spec: Value, status: Value) -> Object {
    let mut object = object(kind, Some("shop"), "cart", spec);
    object.body.insert("status".to_owned(), status);
    object
}

#[test]
fn a_service_is_read_with_its_ports_and_where_it_is_reached() {
    let spec = json!({
        "type": "LoadBalancer",
        "clusterIP": "10.0.0.7",
        "clusterIPs": ["10.0.0.7", "fd00::7"],
        "selector": {"app": "cart"},
        "externalIPs": ["192.0.2.9"],
        "ports": [
            {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
            {"name": "raw", "port": 90, "targetPort": 9090, "appProtocol": "tcp"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "odd", "port": 70_000},
        ],
    });
    let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.4"}, {"hostname": "LB.example.com."}, {"hostname": "no host"}]}});
    let read = service(&with_status(Kind::Service, spec, status));
    assert_eq!(read.kind, ClusterServiceKind::LoadBalancer);
    assert_eq!(read.cluster_ips.len(), 2);
    assert!(!read.is_headless);
    assert_eq!(read.selector["app"], "cart");
    let [http, raw, dns] = read.ports.as_slice() else { panic!("{:?}", read.ports) };
    assert_eq!(
        (http.number, &http.target, http.node_port),
        (80, &TargetPort::Name("web".to_owned()), Some(30080))
    );
    assert_eq!((raw.number, &raw.target), (90, &TargetPort::Number(9090)));
    assert_eq!(dns.transport, Transport::Udp);
    assert_eq!((dns.protocol(), dns.target.clone()), (None, TargetPort::Number(53)));
    let at: Vec<LoadBalancer> = read.load_balancer.into_iter().collect();
    assert_eq!(
        at,
        [LoadBalancer::Ip("198.51.100.4".parse().unwrap()), LoadBalancer::Name("lb.example.com".to_owned())]
    );
    assert!(service(&object(Kind::Service, Some("shop"), "cart", json!({"clusterIP": "None"}))).is_headless);
}

#[test]
fn a_pod_is_read_with_its_sidecar_and_where_that_has_its_certificates() {
    let pod_with = |volume: Value| {
        let spec = json!({
            "serviceAccountName": "cart",
            "containers": [{"name": "app", "ports": [{"name": "web", "containerPort": 8080}, {"name": "d", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [{"name": "istio-proxy", "volumeMounts": [{"name": "workload-socket", "mountPath": "/var/run/secrets/workload-spiffe-uds"}]}],
            "volumes": [volume],
        });
        let status = json!({"phase": "Running", "podIP": "10.1.0.5", "hostIP": "192.0.2.1", "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}], "hostIPs": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}, {"ip": "no"}], "conditions": [{"type": "Ready", "status": "True"}]});
        pod(&with_status(Kind::Pod, spec, status)).unwrap()
    };
    let spire = pod_with(json!({"name": "workload-socket", "csi": {"driver": "csi.spiffe.io"}}));
    assert!(spire.has_sidecar && spire.has_spire_socket && spire.is_ready && !spire.is_ambient);
    assert_eq!(spire.service_account, "cart");
    assert_eq!(spire.ip, "10.1.0.5".parse().ok());
    assert_eq!(spire.other_ips, ["fd00::5", "2001:db8::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(spire.named_ports, BTreeMap::from([("web".to_owned(), 8080)]));
    let plain = pod_with(json!({"name": "workload-socket", "emptyDir": {}}));
    assert!(plain.has_sidecar && !plain.has_spire_socket);
}

#[test]
fn a_pod_that_has_ended_is_none() {
    let of = |phase: &str| pod(&with_status(Kind::Pod, json!({}), json!({"phase": phase})));
    assert!(of("Succeeded").is_none() && of("Failed").is_none());
    let pending = of("Pending").unwrap();
    assert_eq!((pending.service_account.as_str(), pending.is_ready, pending.ip), ("default", false, None));
}

use crate::model::cluster::ClusterServiceKind;
use crate::plan::fixtures::{WorldExt as _, at, cart, labels, pod, service_of_gateway, world};

use super::*;

fn found(world: &World) -> Result<Carrier, String> {
    Gateways::discover(world).of(TlsMode::IstioMtls).found.clone()
}

fn with(services: &[ClusterService]) -> World {
    let mut world = world("west.example");
    for service in services {
        world.cluster_services.insert(service.object.clone(), Arc::new(service.clone()));
    }
    world
}

fn told(carrier: &Carrier) -> Vec<String> {
    carrier.addresses.iter().map(|at| format!("{}:{}", at.address, at.port)).collect()
}

#[test]
fn a_gateway_is_reached_at_its_load_balancer_and_external_addresses() {
    let mut service = service_of_gateway("istio-eastwestgateway", &["192.0.2.9"]);
    let carrier = found(&with(&[service.clone()])).unwrap();
    assert_eq!(carrier.selector, labels(&[("istio", "eastwestgateway")]));
    assert_eq!((carrier.port, told(&carrier)), (15_443, vec!["192.0.2.9:15443".to_owned()]));

    service.load_balancer.insert(LoadBalancer::Name("lb.cloud.example".to_owned()));
    service.load_balancer.insert(LoadBalancer::Name("bare".to_owned()));
    service.external_ips.push("198.51.100.1".parse().unwrap());
    let carrier = found(&with(&[service.clone()])).unwrap();
    assert_eq!(told(&carrier), ["192.0.2.9:15443", "198.51.100.1:15443", "lb.cloud.example:15443"]);

    service.load_balancer = (0..200).map(|n| LoadBalancer::Ip([10, 0, 0, n].into())).collect();
    assert_eq!(found(&with(&[service])).unwrap().addresses.len(), MOST, "bounded");
}

#[test]
fn a_gateway_is_reached_at_its_nodes_where_that_is_asked() {
    let mut service = service_of_gateway("istio-eastwestgateway", &["192.0.2.9"]);
    service.kind = ClusterServiceKind::NodePort;
    service.ports[1].node_port = Some(31_443);
    let mut world = with(&[service]);
    Arc::make_mut(&mut world.settings).gateway_node_ports = true;
    assert!(found(&world).unwrap().addresses.is_empty(), "no pod, no node");
    for (name, node, app) in [
        ("a", "192.0.2.11", "eastwestgateway"),
        ("b", "192.0.2.12", "eastwestgateway"),
        ("c", "192.0.2.13", "other"),
    ] {
        let mut pod = pod("istio-system", name, "10.0.0.1", &[("istio", app)]);
        pod.host_ip = Some(node.parse().unwrap());
        pod.is_ready = name == "a";
        world = world.with_pod(pod);
    }
    assert_eq!(told(&found(&world).unwrap()), ["192.0.2.11:31443", "192.0.2.12:31443"]);
}

#[test]
fn the_port_is_the_one_that_passes_tls_on() {
    let mut service = service_of_gateway("istio-eastwestgateway", &["192.0.2.9"]);
    let port = |name: &str, number: u16, target| ClusterPort {
        name: name.to_owned(),
        number,
        target,
        node_port: None,
        transport: Transport::Tcp,
        app_protocol: None,
    };
    let to = TargetPort::Number;
    let udp = ClusterPort { transport: Transport::Udp, ..port("tls", 1, to(1)) };
    let table = [
        (vec![udp.clone(), port("https", 443, to(8_443)), port("tls", 1_000, to(15_443))], None, Ok(1_000)),
        (vec![port("https", 443, to(8_443)), port("x", 10_443, to(15_443))], None, Ok(10_443)),
        (vec![port("http2", 80, to(8_080)), port("https", 443, to(8_443))], None, Ok(443)),
        (vec![port("http2", 80, to(8_080)), udp], None, Err("neither a TCP port named tls")),
        (vec![port("http2", 80, to(8_080)), port("tls", 443, to(1))], Some("http2"), Ok(80)),
        (vec![port("http2", 80, to(8_080)), port("tls", 443, to(1))], Some("80"), Ok(80)),
        (vec![port("tls", 443, to(1))], Some("8443"), Err("no TCP port 8443")),
    ];
    for (ports, wanted, expected) in table {
        service.ports = ports;
        let mut world = with(&[service.clone()]);
        Arc::make_mut(&mut world.settings).eastwest_gateway.port = wanted.map(str::to_owned);
        match (found(&world), expected) {
            (Ok(carrier), Ok(port)) => assert_eq!(carrier.port, port),
            (Err(why), Err(words)) => assert!(why.contains(words), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_service_of_a_gateway_is_chosen() {
    let mut other = service_of_gateway("edge", &["192.0.2.1"]);
    other.object.namespace = "edge-system".to_owned();
    other.labels = labels(&[("gw.example.com/role", "federation")]);
    let mut younger = service_of_gateway("another", &["192.0.2.2"]);
    younger.object.namespace = "edge-system".to_owned();
    younger.labels.clone_from(&other.labels);
    younger.created = Some(at(5));
    let mut world = with(&[other, younger, service_of_gateway("istio-eastwestgateway", &["192.0.2.9"])]);
    for (choice, expected) in [
        ("istio-eastwestgateway", Ok("192.0.2.9:15443")),
        ("edge-system/edge", Ok("192.0.2.1:15443")),
        ("edge-system/edge:15021", Ok("192.0.2.1:15021")),
        ("edge-system/gw.example.com/role=federation:tls", Ok("192.0.2.1:15443")),
        (
            "gw.example.com/role=federation",
            Err("no Service labelled gw.example.com/role=federation in istio-system"),
        ),
        ("edge-system/none", Err("no Service edge-system/none")),
    ] {
        Arc::make_mut(&mut world.settings).eastwest_gateway = choice.parse().unwrap();
        match (found(&world), expected) {
            (Ok(carrier), Ok(address)) => assert_eq!(told(&carrier), [address], "{choice}"),
            (Err(why), Err(words)) => assert!(why.contains(words), "{why}"),
            other => panic!("{choice}: {other:?}"),
        }
    }
    for wrong in ["", "a/b/c", "A", "a:0", "a:", "=b", "a=", "x/", "a/=b"] {
        assert!(wrong.parse::<GatewayChoice>().is_err(), "{wrong:?}");
    }
    let mut bare = service_of_gateway("istio-eastwestgateway", &["192.0.2.9"]);
    bare.selector.clear();
    assert!(found(&with(&[bare])).unwrap_err().contains("selects no pods"));
}

/// What stands before the Service may listen elsewhere than the Service does.
#[test]
fn a_gateway_listens_where_its_service_does() {
    let mut service = service_of_gateway("istio-eastwestgateway", &["192.0.2.9"]);
    service.ports[1].node_port = Some(31_443);
    let carrier = found(&with(&[service])).unwrap();
    let listening = [15_443, 15_021, 31_443, 443].map(|outside| carrier.listening(outside));
    assert_eq!(listening, [15_443, 15_021, 15_443, 15_443]);
}

#[test]
fn pods_are_endpoints_while_they_are_ready() {
    let mut service = cart();
    let addresses = |world: &World, service: &Service| -> Vec<String> {
        endpoints(&Pods::new(world), service).iter().map(|e| e.address.to_string()).collect()
    };
    let mut world = world("west.example");
    for (name, ip, is_ready, has_sidecar) in [
        ("a", "10.0.0.3", true, true),
        ("b", "10.0.0.2", true, true),
        ("c", "10.0.0.4", false, true),
        ("d", "10.0.0.5", true, false),
    ] {
        let mut pod = pod("shop", name, ip, &[("app", "cart"), ("pod", name)]);
        (pod.is_ready, pod.has_sidecar) = (is_ready, has_sidecar);
        world = world.with_pod(pod);
    }
    world = world.with_pod(pod("other", "a", "10.0.0.9", &[("app", "cart")]));
    world = world.with_pod(pod("shop", "web", "10.0.0.8", &[("app", "web")]));
    assert_eq!(addresses(&world, &service), ["10.0.0.2", "10.0.0.3"]);
    service.tls_mode = TlsMode::Mtls;
    assert_eq!(addresses(&world, &service), ["10.0.0.2", "10.0.0.3", "10.0.0.5"]);
    for pod in world.pods.values_mut() {
        Arc::make_mut(pod).is_ready = false;
    }
    assert_eq!(addresses(&world, &service).len(), 4, "none is ready, and none is gone");
    assert_eq!(endpoints(&Pods::new(&world), &service)[0].ports, BTreeMap::from([("tcp".to_owned(), 8_080)]));
    service.workload_labels.clear();
    assert!(addresses(&world, &service).is_empty(), "no label selects no pod");
}

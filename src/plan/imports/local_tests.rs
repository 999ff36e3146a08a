use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::model::cluster::{ClusterPort, Pod, TargetPort, Transport};
use crate::model::peer::{LocalPattern, ServicePattern};
use crate::model::service::{AppProtocol, RemotePort, RemoteService, TlsMode};
use crate::model::session::LinkState;
use crate::plan::fixtures::{
    NAMESPACE, WorldExt as _, at, foreign, id, labels, peer, remote_cart, session, td, world,
};
use crate::plan::services::{ServicesPlan, services};

const LOCAL: &str = "cart.shop.svc.cluster.local";

fn pattern(namespace: &str, name: &str, local_first: bool) -> LocalPattern {
    let part = |text: &str| (text != "*").then(|| text.to_owned());
    LocalPattern { pattern: ServicePattern { namespace: part(namespace), name: part(name) }, local_first }
}

fn local_peer(name: &str, local_first: bool) -> Peer {
    let mut peer = peer(name);
    peer.imports.as_local = vec![pattern("shop", "cart", local_first)];
    peer
}

fn cart_of(td: &str) -> RemoteService {
    let mut service = remote_cart();
    service.server_ids = [id(&format!("spiffe://{td}/ns/shop/sa/cart"))].into();
    service
}

/// The local Service shop/cart: port 8080 `tcp`, for pods labelled `app: cart`.
fn service() -> ClusterService {
    ClusterService {
        object: NamespacedName::new("shop", "cart"),
        uid: "uid-of-service".to_owned(),
        created: Some(at(-500)),
        deletion: None,
        labels: BTreeMap::new(),
        selector: labels(&[("app", "cart")]),
        kind: ClusterServiceKind::ClusterIp,
        cluster_ips: vec!["10.96.0.7".parse().unwrap()],
        is_headless: false,
        ports: vec![port("tcp", 8_080)],
        external_ips: Vec::new(),
        load_balancer: BTreeSet::new(),
    }
}

fn port(name: &str, number: u16) -> ClusterPort {
    ClusterPort {
        name: name.to_owned(),
        number,
        target: TargetPort::Number(number),
        node_port: None,
        transport: Transport::Tcp,
        app_protocol: None,
    }
}

fn pod(name: &str, app: &str, is_ready: bool) -> Pod {
    Pod {
        object: NamespacedName::new("shop", name),
        uid: name.to_owned(),
        labels: labels(&[("app", app), ("v", "1")]),
        service_account: "cart".to_owned(),
        ip: Some("10.1.0.1".parse().unwrap()),
        host_ip: None,
        other_ips: Vec::new(),
        is_ready,
        uses_host_network: false,
        named_ports: BTreeMap::new(),
        has_sidecar: true,
        has_spire_socket: true,
        is_ambient: false,
    }
}

fn with_pod(mut world: World, pod: Pod) -> World {
    world.pods.insert(pod.object.clone(), Arc::new(pod));
    world
}

fn with_cluster_service(mut world: World, service: ClusterService) -> World {
    world.cluster_services.insert(service.object.clone(), Arc::new(service));
    world
}

fn decide(world: &World) -> ServicesPlan {
    services(world, &BTreeSet::new())
}

/// East, where these peers export what they do, and everything was written and has settled.
fn settled(peers: Vec<(Peer, Vec<RemoteService>)>, change: impl FnOnce(World) -> World) -> World {
    let mut world = world("east.example");
    world.namespaces.insert("shop".to_owned(), BTreeMap::new());
    let mut known = Vec::new();
    for (peer, exported) in peers {
        let td = peer.trust_domain.to_string();
        known.extend(exported.iter().map(|service| (td.clone(), service.clone())));
        let session = session(LinkState::Connected, Some(exported));
        world = world.with_peer(peer).with_session(&td, session);
    }
    let known: Vec<(&str, RemoteService)> =
        known.iter().map(|(td, service)| (td.as_str(), service.clone())).collect();
    let mut world = change(world);
    for _ in 0..2 {
        let plan = decide(&world);
        world = world.with_written(&plan.objects, &known);
    }
    assert_eq!(decide(&world).objects, decide(&world).objects);
    world
}

/// As [`settled`], of west alone, beside the local Service with a pod that is ready or not.
fn merged(local_first: bool, is_ready: bool) -> World {
    settled(vec![(local_peer("west.example", local_first), vec![remote_cart()])], |world| {
        with_pod(with_cluster_service(world, service()), pod("cart-1", "cart", is_ready))
    })
}

fn virtual_service<'a>(plan: &'a ServicesPlan, namespace: &str) -> Option<&'a Object> {
    plan.objects.get(&ObjectKey::namespaced(Kind::VirtualService, namespace, LOCAL)).map(|object| &**object)
}

/// Where the routes of a kind lead: the port, then hosts, ports and weights.
fn routes(plan: &ServicesPlan, namespace: &str, kind: &str) -> Vec<(u64, Vec<String>)> {
    let Some(object) = virtual_service(plan, namespace) else { return Vec::new() };
    let spec = object.spec().unwrap();
    assert_eq!(spec["hosts"], json!([LOCAL]));
    let route = |route: &Value| {
        let to = route["route"].as_array().unwrap().iter().map(|leg| {
            let at = &leg["destination"];
            format!(
                "{}:{} {}",
                at["host"].as_str().unwrap(),
                at["port"]["number"],
                leg.get("weight").unwrap_or(&json!(""))
            )
        });
        (route["match"][0]["port"].as_u64().unwrap(), to.collect())
    };
    spec.get(kind).and_then(Value::as_array).into_iter().flatten().map(route).collect()
}

fn to(port: u64, legs: &[&str]) -> Vec<(u64, Vec<String>)> {
    vec![(port, legs.iter().map(|leg| (*leg).to_owned()).collect())]
}

fn report<'a>(plan: &'a ServicesPlan, td: &str) -> &'a LocalReport {
    let name = NamespacedName::new(NAMESPACE, format!("cart.shop.{td}"));
    plan.import_reports[&name].local.as_ref().unwrap()
}

fn reason(plan: &ServicesPlan, td: &str) -> &'static str {
    match report(plan, td) {
        Ok(served) if served.is_merged => "Merged",
        Ok(_) => "Alone",
        Err(refusal) => {
            assert!(!refusal.message.is_empty());
            refusal.reason.as_str()
        }
    }
}

const HERE: &str = "cart.shop.svc.cluster.local:8080 1";
const WEST: &str = "cart.shop.west.example:18080 1";

#[test]
fn only_what_as_local_names_is_served_locally() {
    let mut other = local_peer("west.example", false);
    other.imports.as_local = vec![pattern("shop", "orders", false)];
    let world = settled(vec![(other, vec![remote_cart()])], |world| with_cluster_service(world, service()));
    let plan = decide(&world);
    assert!(plan.objects.keys().all(|key| key.name != LOCAL), "{:?}", plan.objects.keys());
    assert!(plan.import_reports.values().all(|report| report.local.is_none()));
}

#[test]
fn beside_a_local_service_all_places_have_an_even_share() {
    let plan = decide(&merged(false, true));
    assert_eq!(routes(&plan, "shop", "tcp"), to(8_080, &[HERE, WEST]), "by the name of the port");
    assert!(routes(&plan, "shop", "http").is_empty());
    assert_eq!(reason(&plan, "west.example"), "Merged");
    let object = virtual_service(&plan, "shop").unwrap();
    assert_eq!(object.meta.owners, [local_peer("west.example", false).owner()]);
    let entry = ObjectKey::namespaced(Kind::ServiceEntry, "shop", LOCAL);
    assert!(!plan.objects.contains_key(&entry), "the Service has the name");
}

/// An `appProtocol` that is not known here is some protocol over TCP, which Istio finds out as well as it can.
#[test]
fn a_protocol_that_is_not_known_here_is_led_too() {
    let mut here = service();
    here.ports[0].app_protocol = Some("mysql".to_owned());
    let world = settled(vec![(local_peer("west.example", false), vec![remote_cart()])], |world| {
        with_pod(with_cluster_service(world, here), pod("cart-1", "cart", true))
    });
    let plan = decide(&world);
    assert_eq!(reason(&plan, "west.example"), "Merged");
    for kind in ["http", "tcp"] {
        assert_eq!(routes(&plan, "shop", kind), to(8_080, &[HERE, WEST]), "{kind}");
    }
}

#[test]
fn without_a_ready_local_endpoint_the_remote_ones_have_all() {
    let alone = to(8_080, &["cart.shop.west.example:18080 \"\""]);
    for local_first in [false, true] {
        assert_eq!(routes(&decide(&merged(local_first, false)), "shop", "tcp"), alone);
    }
    // Others' pods are none of it, and a Service whose endpoints someone else writes is taken to have some.
    let world = with_pod(merged(false, false), pod("orders-1", "orders", true));
    assert_eq!(routes(&decide(&world), "shop", "tcp"), alone);
    let mut without = service();
    without.selector.clear();
    let world = with_cluster_service(merged(false, false), without);
    assert_eq!(routes(&decide(&world), "shop", "tcp"), to(8_080, &[HERE, WEST]));
}

#[test]
fn local_endpoints_come_first_where_asked() {
    let plan = decide(&merged(true, true));
    assert_eq!(routes(&plan, "shop", "tcp"), to(8_080, &["cart.shop.svc.cluster.local:8080 \"\""]));
    assert_eq!(reason(&plan, "west.example"), "Merged");
}

#[test]
fn without_a_local_service_the_name_stands_alone_and_goes_over_to_one_that_appears() {
    let peers = || vec![(local_peer("west.example", false), vec![remote_cart()])];
    let world = settled(peers(), |world| world);
    let plan = decide(&world);
    let entry = ObjectKey::namespaced(Kind::ServiceEntry, "shop", LOCAL);
    assert_eq!(plan.objects[&entry].spec().unwrap()["hosts"], json!([LOCAL]));
    assert_eq!(plan.objects[&entry].spec().unwrap()["ports"][0]["number"], 18_080);
    assert_eq!(
        routes(&plan, "shop", "tcp"),
        to(18_080, &["cart.shop.west.example:18080 \"\""]),
        "the peer's own port"
    );
    assert_eq!(reason(&plan, "west.example"), "Alone");

    let appeared = decide(&with_cluster_service(world, service()));
    assert!(!appeared.objects.contains_key(&entry));
    assert_eq!(routes(&appeared, "shop", "tcp"), to(8_080, &["cart.shop.west.example:18080 \"\""]));
    assert_eq!(reason(&appeared, "west.example"), "Merged");

    // A namespace that is not there can hold nothing.
    let mut world = settled(peers(), |world| world);
    world.namespaces.clear();
    let plan = decide(&world);
    assert!(virtual_service(&plan, NAMESPACE).is_some() && virtual_service(&plan, "shop").is_none());
}

#[test]
fn several_peers_serve_one_name_and_one_that_goes_takes_only_its_own() {
    let peers = vec![
        (local_peer("west.example", false), vec![cart_of("west.example")]),
        (local_peer("north.example", false), vec![cart_of("north.example")]),
    ];
    let world =
        settled(peers, |world| with_pod(with_cluster_service(world, service()), pod("cart-1", "cart", true)));
    let plan = decide(&world);
    let north = "cart.shop.north.example:18080 1";
    assert_eq!(routes(&plan, "shop", "tcp"), to(8_080, &[HERE, north, WEST]));
    let object = virtual_service(&plan, "shop").unwrap();
    assert_eq!(object.meta.owners.len(), 2);
    let silent = session(LinkState::Connected, Some(Vec::new()));
    let plan = decide(&world.with_session("north.example", silent));
    assert_eq!(routes(&plan, "shop", "tcp"), to(8_080, &[HERE, WEST]));
}

#[test]
fn ports_are_led_by_number_then_by_name_and_by_what_is_spoken() {
    let mut remote = remote_cart();
    let port_of = |name: &str, port, protocol| RemotePort {
        name: name.to_owned(),
        port,
        protocol,
        clients: BTreeSet::new(),
    };
    remote.ports = vec![
        port_of("http-web", 80, AppProtocol::Http),
        port_of("grpc", 9_000, AppProtocol::Grpc),
        port_of("https", 443, AppProtocol::Https),
        port_of("admin", 7_000, AppProtocol::Tcp),
        port_of("else", 1, AppProtocol::Tcp),
    ];
    let mut here = service();
    here.ports = vec![
        port("http", 80),
        port("grpc", 50_051),
        port("https", 443),
        port("admin", 7_000),
        port("own", 5),
    ];
    here.ports[4].transport = Transport::Udp;
    let world = settled(vec![(local_peer("west.example", false), vec![remote])], |world| {
        with_cluster_service(world, here)
    });
    let plan = decide(&world);
    let west = |port: u16| format!("cart.shop.west.example:{port} \"\"");
    let expected = |here: u64, there: u16| (here, vec![west(there)]);
    assert_eq!(
        routes(&plan, "shop", "http"),
        [expected(80, 80), expected(7_000, 7_000), expected(50_051, 9_000)],
        "what admin speaks is found out by Istio"
    );
    assert_eq!(routes(&plan, "shop", "tcp"), [expected(7_000, 7_000)]);
    let Ok(served) = report(&plan, "west.example") else { panic!() };
    assert_eq!(served.notes, ["not served there: port 443 (https), 1 (else)"]);
}

#[test]
fn what_cannot_be_served_there_says_why() {
    type Change = fn(&mut Peer, &mut RemoteService, &mut ClusterService);
    let table: [(&str, Change); 8] = [
        ("ServiceNotSupported", |_, _, here| here.is_headless = true),
        ("ServiceNotSupported", |_, _, here| here.kind = ClusterServiceKind::ExternalName),
        ("PortsDiffer", |_, _, here| here.ports = vec![port("other", 81)]),
        ("PortsDiffer", |_, _, here| here.ports = vec![port("tls", 18_080)]),
        ("PortsDiffer", |_, remote, _| {
            remote.tls_mode = TlsMode::Mtls;
            remote.ports[0].protocol = AppProtocol::Tls;
        }),
        ("NotVisible", |peer, _, _| peer.imports.export_to = vec!["~".to_owned()]),
        ("NamespaceReserved", |peer, remote, _| {
            peer.imports.as_local = vec![pattern("*", "*", true)];
            remote.name = ServiceName::new("kube-system", "cart").unwrap();
        }),
        ("NamespaceReserved", |peer, remote, _| {
            peer.imports.as_local = vec![pattern("default", "*", true), pattern("*", "kubernetes", true)];
            remote.name = ServiceName::new("default", "kubernetes").unwrap();
        }),
    ];
    for (expected, change) in table {
        let (mut peer, mut remote, mut here) = (local_peer("west.example", false), remote_cart(), service());
        change(&mut peer, &mut remote, &mut here);
        let host = remote.name.host(&td("west.example")).unwrap();
        let world = settled(vec![(peer, vec![remote])], |world| with_cluster_service(world, here));
        let plan = decide(&world);
        let report = &plan.import_reports[&NamespacedName::new(NAMESPACE, &host)];
        let refusal = report.local.as_ref().unwrap().as_ref().unwrap_err();
        assert_eq!(refusal.reason.as_str(), expected, "{}", refusal.message);
        assert!(report.generated.is_ok(), "it is served by its federated name");
        assert!(plan.objects.keys().all(|key| key.kind != Kind::VirtualService));
    }
}

#[test]
fn a_reserved_namespace_can_be_named() {
    for (namespace, name, exact) in
        [("kube-system", "dns", ("kube-system", "*")), ("default", "kubernetes", ("default", "kubernetes"))]
    {
        let mut peer = peer("west.example");
        peer.imports.as_local = vec![pattern("*", "*", false), pattern(exact.0, exact.1, true)];
        let name = ServiceName::new(namespace, name).unwrap();
        let asked = asked(&peer, &Settings::standard(), &name);
        assert!(asked.unwrap().unwrap(), "by the pattern that names it");
    }
}

#[test]
fn visibility_is_as_admitted_and_of_two_the_older_peers() {
    let mut west = local_peer("west.example", false);
    west.imports.export_to = vec![".".to_owned(), "web".to_owned()];
    west.created = Some(at(-200));
    let north = local_peer("north.example", false);
    let peers = vec![(west, vec![cart_of("west.example")]), (north, vec![cart_of("north.example")])];
    let plan = decide(&settled(peers, |world| with_cluster_service(world, service())));
    let spec = virtual_service(&plan, "shop").unwrap().spec().unwrap();
    assert_eq!(spec["exportTo"], json!([NAMESPACE, "web"]));
    assert_eq!(
        (reason(&plan, "west.example"), reason(&plan, "north.example")),
        ("Merged", "ExportToDiffers")
    );
    let Err(refusal) = report(&plan, "north.example") else { panic!() };
    assert!(refusal.message.contains("west-example"), "it names the winner: {}", refusal.message);
}

/// A VirtualService of the user's that was there first keeps the host; a younger one does not take it; and when the winner goes
/// the other has it.
#[test]
fn of_two_virtual_services_the_older_has_the_host() {
    for host in [LOCAL, "cart"] {
        let mut theirs = foreign(Kind::VirtualService, "shop", "mine", json!({"hosts": [host]}));
        let world = settled(vec![(local_peer("west.example", false), vec![remote_cart()])], |world| {
            with_cluster_service(world, service()).with_object(theirs.clone())
        });
        let plan = decide(&world);
        assert_eq!(reason(&plan, "west.example"), "HostExists");
        let Err(refusal) = report(&plan, "west.example") else { panic!() };
        assert!(refusal.message.contains("VirtualService shop/mine"), "{}", refusal.message);
        assert!(virtual_service(&plan, "shop").is_none());
        let mut gone = world.clone();
        gone.objects.remove(&theirs.key);
        assert!(virtual_service(&decide(&gone), "shop").is_some());
        theirs.meta.created = Some(at(500));
        assert_eq!(reason(&decide(&merged(false, true).with_object(theirs)), "west.example"), "Merged");
    }
    let spec = json!({"hosts": [LOCAL], "gateways": ["istio-system/ingress"]});
    let of_a_gateway = foreign(Kind::VirtualService, "shop", "mine", spec);
    let world = merged(false, true).with_object(of_a_gateway);
    assert_eq!(reason(&decide(&world), "west.example"), "Merged", "it is none of the mesh");
}

#[test]
fn an_object_of_that_name_that_is_not_ours_is_left() {
    let mut world = merged(false, true);
    let key = ObjectKey::namespaced(Kind::VirtualService, "shop", LOCAL);
    let theirs = foreign(Kind::VirtualService, "shop", LOCAL, json!({"hosts": ["else.example"]}));
    world.objects.insert(key.clone(), Arc::new(theirs));
    let plan = decide(&world);
    assert!(!plan.objects.contains_key(&key) && plan.blocked.contains_key(&key));
    assert_eq!(reason(&plan, "west.example"), "ObjectNotOurs");
}

/// One of two peers cannot be read: what both serve stays as it is, since nobody knows what it admits now.
#[test]
fn an_unreadable_peer_takes_nothing_from_a_shared_name() {
    let peers = vec![
        (local_peer("west.example", false), vec![cart_of("west.example")]),
        (local_peer("north.example", false), vec![cart_of("north.example")]),
    ];
    let mut world = settled(peers, |world| with_cluster_service(world, service()));
    let before = routes(&decide(&world), "shop", "tcp");
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, "north-example");
    world.peers.remove(&td("north.example"));
    let world = world.with_rejected(key, Some("north.example"));
    let plan = decide(&world);
    assert_eq!(routes(&plan, "shop", "tcp"), before);
    assert_eq!(reason(&plan, "west.example"), "OtherUnreadable");
    // Once its end is asked for, it is of no account any more.
    let ended = services(&world, &BTreeSet::from([td("north.example")]));
    let west = to(8_080, &["cart.shop.west.example:18080 \"\""]);
    assert_eq!(routes(&ended, "shop", "tcp"), west);
}

#[test]
fn without_istio_it_says_so() {
    let mut world = merged(false, true);
    world.absent.insert(Kind::VirtualService);
    assert_eq!(reason(&decide(&world), "west.example"), "IstioAbsent");
}

/// Each shape as a manifest, to be read beside Istio's documentation.
#[test]
fn golden_shapes() {
    let of = |world: &World| -> Vec<Value> {
        let plan = decide(world);
        let local = plan.objects.values().filter(|object| object.key.name == LOCAL);
        local.map(|object| crate::plan::fixtures::manifest(object)).collect()
    };
    let alone = settled(vec![(local_peer("west.example", false), vec![remote_cart()])], |world| world);
    let shapes = [("import_local_merged", of(&merged(false, true))), ("import_local_alone", of(&alone))];
    for (name, manifests) in shapes {
        assert!(!manifests.is_empty());
        insta::with_settings!({ snapshot_path => "../golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_yaml_snapshot!(name, manifests);
        });
    }
}

/// Istio takes the most telling host, but an older wildcard is somebody's word on this name as well.
#[test]
fn an_older_wildcard_keeps_the_name_and_is_named() {
    for (host, is_kept) in [
        ("*.shop.svc.cluster.local", true),
        ("*.svc.cluster.local", true),
        ("*", true),
        ("*.cart.svc.cluster.local", false),
    ] {
        let mut theirs = foreign(Kind::VirtualService, "shop", "theirs", json!({"hosts": [host]}));
        let plan = decide(&merged(false, true).with_object(theirs.clone()));
        assert_eq!(virtual_service(&plan, "shop").is_none(), is_kept, "{host}");
        let name = NamespacedName::new(NAMESPACE, "cart.shop.west.example");
        let report = plan.import_reports[&name].local.clone().unwrap();
        assert_eq!(report.is_err(), is_kept, "{host}");
        if let Err(refusal) = report {
            assert_eq!(refusal.reason.as_str(), "HostExists");
            assert!(refusal.message.contains("VirtualService shop/theirs"), "{}", refusal.message);
        }
        theirs.meta.created = Some(at(500));
        let plan = decide(&merged(false, true).with_object(theirs));
        assert!(virtual_service(&plan, "shop").is_some(), "{host}: a younger one takes nothing");
    }
}

#[test]
fn made_up_port_names_are_nobody_elses() {
    let port = |name: &str, port| RemotePort {
        name: name.to_owned(),
        port,
        protocol: AppProtocol::Tcp,
        clients: BTreeSet::new(),
    };
    let mut west = cart_of("west.example");
    west.ports = vec![port("tcp", 1), port("tcp-2", 3)];
    let mut north = cart_of("north.example");
    north.ports = vec![port("tcp", 2)];
    let peers = vec![
        (local_peer("west.example", false), vec![west]),
        (local_peer("north.example", false), vec![north]),
    ];
    // Whichever of them is first, and with the name that would be made up coming later.
    let mut turned = peers.clone();
    turned[0].0.created = Some(at(-1));
    turned[0].1[0].ports = vec![port("tcp", 2), port("tcp-1", 3)];
    turned[1].1[0].ports = vec![port("tcp", 1)];
    for peers in [peers, turned] {
        let plan = decide(&settled(peers, |world| world));
        let key = ObjectKey::namespaced(Kind::ServiceEntry, "shop", LOCAL);
        let ports = plan.objects[&key].spec().unwrap()["ports"].as_array().unwrap().clone();
        let names: BTreeSet<&str> = ports.iter().map(|port| port["name"].as_str().unwrap()).collect();
        assert_eq!((ports.len(), names.len()), (3, 3), "{ports:?}");
    }
}

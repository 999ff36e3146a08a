use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use serde_json::Value;

use super::tests::{FRONTEND, assert_golden, names, text};
use super::view::{ClientKind, View};
use super::*;
use crate::model::Peer;
use crate::model::cluster::{ClusterService, TargetPort, Transport};
use crate::model::object::{Kind, ObjectKey};
use crate::model::peer::{LocalPattern, ServicePattern};
use crate::model::reach::Tried;
use crate::model::service::{AppProtocol, RemoteService, TlsMode};
use crate::model::session::LinkState;
use crate::model::trust::SpireState;
use crate::model::world::Settings;
use crate::plan::exports::resolve::testing::{cluster_service, pod as resting, port};
use crate::plan::fixtures::{WorldExt as _, at, client, gateway, id, peer, remote_cart, session, world};
use crate::plan::{Plan, plan};
use crate::proto::xds::resources as pb;

const LOCAL: &str = "cart.shop.svc.cluster.local";
const OTHER: &str = "spiffe://east.example/ns/web/sa/other";

/// East without Istio, whose clients are served by xDS and DNS.
fn east() -> World {
    let mut world = world("east.example");
    let settings = Arc::make_mut(&mut world.settings);
    settings.serves_xds = true;
    settings.dns = true;
    settings.istio = false;
    settings.import_ranges = Settings::loopback_ranges();
    world.spire = Some(Arc::new(SpireState::default()));
    world
}

/// The cart of a trust domain, on port 80.
fn cart_of(td: &str) -> RemoteService {
    let mut service = remote_cart();
    service.server_ids = [id(&format!("spiffe://{td}/ns/shop/sa/cart"))].into();
    service.tls_mode = TlsMode::Mtls;
    service.ports[0].port = 80;
    service.ports[0].name = "http".to_owned();
    service.ports[0].protocol = AppProtocol::Http;
    service
}

/// A peer whose cart is to answer at the local name.
fn as_local(td: &str, local_first: bool) -> Peer {
    let mut peer = peer(td);
    let pattern = ServicePattern { namespace: Some("shop".to_owned()), name: Some("cart".to_owned()) };
    peer.imports.as_local = vec![LocalPattern { pattern, local_first }];
    peer
}

fn pod(name: &str, ip: &str, is_ready: bool) -> crate::model::cluster::Pod {
    let ip = Some(ip.parse().unwrap());
    crate::model::cluster::Pod { ip, is_ready, ..resting(name, "cart", Some(8_080)) }
}

fn with_near(world: World) -> World {
    let mut service = cluster_service("cart");
    service.cluster_ips = vec!["10.96.0.7".parse().unwrap()];
    world
        .with_cluster_service(service)
        .with_pod(pod("one", "10.0.0.1", true))
        .with_pod(pod("two", "10.0.0.2", true))
        .with_pod(pod("three", "10.0.0.3", false))
}

/// Imports these, and writes what is planned until nothing changes.
fn settled(mut world: World, carts: &[(&str, RemoteService)]) -> (World, Plan) {
    for (td, cart) in carts {
        world = world.with_session(td, session(LinkState::Connected, Some(vec![cart.clone()])));
    }
    for _ in 0..6 {
        let plan = plan(&world);
        world = world.with_written(&plan.objects, carts);
        for (key, write) in &plan.statuses {
            world.statuses.insert(key.clone(), Arc::new(write.status.clone()));
        }
    }
    let plan = plan(&world);
    (world, plan)
}

fn served(world: World, carts: &[(&str, RemoteService)]) -> Arc<Xds> {
    settled(world, carts).1.xds.expect("xDS is served")
}

/// Alone what is served for the local name.
fn of_local(xds: &Xds) -> Xds {
    let offers = xds.offers.iter().filter(|(host, _)| *host == LOCAL);
    Xds { offers: offers.map(|(host, offer)| (host.clone(), Arc::clone(offer))).collect(), ..Xds::default() }
}

/// The places that a client is led to at a port of the local name, by priority: each endpoint with how it is chosen.
fn led(xds: &Xds, client: &str, port: u16) -> BTreeMap<String, Vec<String>> {
    let view = View::of(xds, &id(client), ClientKind::Envoy);
    let Some(resource) = view.get(ResourceType::Endpoints, &format!("{LOCAL}:{port}")) else {
        return BTreeMap::new();
    };
    let assignment = pb::ClusterLoadAssignment::decode(resource.body.clone()).unwrap();
    let place = |place: &pb::LocalityLbEndpoints| {
        let all = place.lb_endpoints.iter().map(|one| {
            let at =
                one.endpoint.as_ref().unwrap().address.as_ref().unwrap().socket_address.as_ref().unwrap();
            let ill = if one.health_status == 2 { " ill" } else { "" };
            format!("{}:{}{ill}", at.address, at.port_value)
        });
        (format!("{} {}", place.priority, place.locality.as_ref().unwrap().region), all.collect())
    };
    assignment.endpoints.iter().map(place).collect()
}

fn said(world: &World, td: &str) -> (String, Value) {
    let key = ObjectKey::namespaced(Kind::ImportedService, "entente-system", format!("cart.shop.{td}"));
    let status = &world.statuses[&key];
    let all = status["conditions"].as_array().unwrap();
    let one = all.iter().find(|one| one["type"] == "ServedLocally").unwrap();
    let said = format!("{} {}", one["status"].as_str().unwrap(), one["reason"].as_str().unwrap());
    (said, status["localAddresses"].clone())
}

fn places(all: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    all.iter()
        .map(|(place, at)| ((*place).to_owned(), at.iter().map(|at| (*at).to_owned()).collect()))
        .collect()
}

const NEAR: &[&str] = &["10.0.0.1:8080", "10.0.0.2:8080"];
const FAR: &[&str] = &["10.77.2.2:15443"];

#[test]
fn what_an_envoy_is_sent_for_a_local_name() {
    let world = with_near(east()).with_peer(as_local("west.example", true));
    let xds = served(world, &[("west.example", cart_of("west.example"))]);
    assert_golden("local_first", text(&of_local(&xds), FRONTEND, ClientKind::Envoy));
    assert_golden("local_alone", text(&of_local(&xds), OTHER, ClientKind::Envoy));
    let mut named = cart_of("west.example");
    named.gateways = vec![gateway("gateway.west.example", 443)];
    let world = with_near(east()).with_peer(as_local("west.example", false));
    assert_golden(
        "local_by_name",
        text(&of_local(&served(world, &[("west.example", named)])), FRONTEND, ClientKind::Envoy),
    );
}

/// Local endpoints come first where that is asked for, and else have one share of as many as there are places. Those that are
/// not ready are none, and where none is left the peer's come first.
#[test]
fn local_endpoints_and_a_peers_are_one_name() {
    let west = [("west.example", cart_of("west.example"))];
    let first = with_near(east()).with_peer(as_local("west.example", true));
    let both = places(&[("0 east.example", NEAR), ("1 west.example", FAR)]);
    assert_eq!(led(&served(first.clone(), &west), FRONTEND, 80), both);
    let even = with_near(east()).with_peer(as_local("west.example", false));
    let both = places(&[("0 east.example", NEAR), ("0 west.example", FAR)]);
    assert_eq!(led(&served(even, &west), FRONTEND, 80), both);

    let none = first.clone().with_pod(pod("one", "10.0.0.1", false)).with_pod(pod("two", "10.0.0.2", false));
    let xds = served(none, &west);
    assert_eq!(led(&xds, FRONTEND, 80), places(&[("0 west.example", FAR)]));
    assert!(
        names(&of_local(&xds), OTHER, ClientKind::Envoy).is_empty(),
        "nothing is left for whom west does not name"
    );

    let alone = east().with_peer(as_local("west.example", true));
    let (world, plan) = settled(alone, &west);
    assert_eq!(led(&plan.xds.unwrap(), FRONTEND, 80), places(&[("0 west.example", FAR)]));
    assert_eq!(said(&world, "west.example").0, "True ByName");

    // What Kubernetes does not choose by labels is behind the Service's own address.
    let mut by_hand = first;
    let mut service = ClusterService::clone(&by_hand.cluster_services[&NamespacedName::new("shop", "cart")]);
    service.selector.clear();
    by_hand = by_hand.with_cluster_service(service);
    let both = places(&[("0 east.example", &["10.96.0.7:80"]), ("1 west.example", FAR)]);
    assert_eq!(led(&served(by_hand, &west), FRONTEND, 80), both);
}

/// On machines our own endpoints are those that a FederatedService of the name gives; what is on its Envoy's own machine is none.
#[test]
fn endpoints_that_are_given_are_ours() {
    let west = [("west.example", cart_of("west.example"))];
    let mut cart = crate::plan::fixtures::service("shop", "cart", "west.example");
    cart.ports[0].port = 80;
    cart.ports[0].target_port = 8_080;
    cart.gateways[0].at = gateway("10.77.9.9", 15_443);
    cart.endpoints = ["192.0.2.7", "127.0.0.1"].map(|at| Address::parse(at).unwrap()).into();
    let world = east().with_peer(as_local("west.example", true)).with_service(cart);
    let (world, plan) = settled(world, &west);
    let both = places(&[("0 east.example", &["192.0.2.7:8080"]), ("1 west.example", FAR)]);
    assert_eq!(led(&plan.xds.unwrap(), FRONTEND, 80), both);
    assert_eq!(said(&world, "west.example").0, "True Merged");
}

/// A gateway that takes no connection is said to be ill here as well.
#[test]
fn a_peers_gateway_that_refuses_connections_is_ill_at_the_local_name() {
    let mut world = with_near(east()).with_peer(as_local("west.example", false));
    let tried = Tried { last: Attempt::Refused, has_answered: true, is_doubted: false };
    world.reached = Arc::new([(gateway("10.77.2.2", 15_443), tried)].into());
    let xds = served(world.clone(), &[("west.example", cart_of("west.example"))]);
    let both = places(&[("0 east.example", NEAR), ("0 west.example", &["10.77.2.2:15443 ill"])]);
    assert_eq!(led(&xds, FRONTEND, 80), both);
    let mut alone = east().with_peer(as_local("west.example", false));
    alone.reached = world.reached;
    let xds = served(alone, &[("west.example", cart_of("west.example"))]);
    assert_eq!(led(&xds, FRONTEND, 80), places(&[("0 west.example", FAR)]), "where nothing else is left");
}

/// A client is led to those whose exporters name it, and to ours; one of another namespace than the import is for to ours alone.
#[test]
fn each_client_is_led_to_whom_it_may_call() {
    let mut north = cart_of("north.example");
    north.gateways = vec![gateway("10.77.3.3", 15_443)];
    north.clients = [client(OTHER), client(FRONTEND)].into();
    let carts = [("west.example", cart_of("west.example")), ("north.example", north)];
    let peers = |world: World, export_to: &[&str]| {
        let mut world = world;
        for (name, created) in [("west.example", -100), ("north.example", -50)] {
            let mut peer = as_local(name, false);
            peer.created = Some(at(created));
            peer.imports.export_to = export_to.iter().map(|to| (*to).to_owned()).collect();
            world = world.with_peer(peer);
        }
        world
    };
    let (world, plan) = settled(peers(with_near(east()), &["*"]), &carts);
    let xds = plan.xds.unwrap();
    let far: &[&str] = &["10.77.3.3:15443"];
    let ours = places(&[("0 east.example", NEAR)]);
    let theirs = places(&[("0 east.example", NEAR), ("0 north.example", far)]);
    let all = places(&[("0 east.example", NEAR), ("0 north.example", far), ("0 west.example", FAR)]);
    assert_eq!(led(&xds, FRONTEND, 80), all);
    assert_eq!(led(&xds, OTHER, 80), theirs);
    assert_eq!(led(&xds, "spiffe://east.example/ns/web/sa/nobody", 80), ours);
    // TLS of those alone whom it may call.
    let of_other = text(&of_local(&xds), OTHER, ClientKind::Envoy);
    assert!(of_other.contains("north.example") && !of_other.contains("west.example"), "{of_other}");
    for td in ["west.example", "north.example"] {
        assert_eq!(said(&world, td).0, "True Merged");
    }
    // One address for all of them, and DNS answers with it.
    let (_, given) = said(&world, "west.example");
    assert_eq!(given, said(&world, "north.example").1);
    let zone = plan.zone.unwrap();
    let labels: Vec<String> = LOCAL.split('.').map(str::to_owned).collect();
    let found = format!("{:?}", zone.find(&labels));
    assert!(found.contains(given[0].as_str().unwrap()) && found.contains("number: 80"), "{found}");

    let xds = served(peers(with_near(east()), &["shop"]), &carts);
    assert_eq!(led(&xds, FRONTEND, 80), all);
    assert_eq!(led(&xds, OTHER, 80), ours, "it is of another namespace");
}

/// What cannot be shared is not, and says why; what is shared has no word of another's.
#[test]
fn what_cannot_be_shared_says_why() {
    let west = [("west.example", cart_of("west.example"))];
    let with = |change: &dyn Fn(&mut ClusterService)| {
        let world = with_near(east()).with_peer(as_local("west.example", false));
        let mut service =
            ClusterService::clone(&world.cluster_services[&NamespacedName::new("shop", "cart")]);
        change(&mut service);
        let (world, plan) = settled(world.with_cluster_service(service), &west);
        (said(&world, "west.example").0, led(&plan.xds.unwrap(), FRONTEND, 80).len())
    };
    assert_eq!(with(&|_| {}), ("True Merged".to_owned(), 2));
    assert_eq!(with(&|service| service.is_headless = true), ("False ServiceNotSupported".to_owned(), 0));
    let udp = |service: &mut ClusterService| {
        let mut udp = port("dns", 53, TargetPort::Number(53));
        udp.transport = Transport::Udp;
        service.ports.push(udp);
    };
    assert_eq!(with(&udp), ("False ServiceNotSupported".to_owned(), 0));
    let grpc = |service: &mut ClusterService| service.ports[0].app_protocol = Some("grpc".to_owned());
    assert_eq!(
        with(&grpc),
        ("False PortsDiffer".to_owned(), 0),
        "HTTP/1.1 is not understood by a server of HTTP/2"
    );
    let other = |service: &mut ClusterService| {
        service.ports[0].number = 8;
        service.ports[0].name = "other".to_owned();
    };
    assert_eq!(with(&other).0, "False PortsDiffer");
    // A port that no peer has still leads to ours.
    let more = |service: &mut ClusterService| service.ports.push(port("more", 81, TargetPort::Number(8_081)));
    let world = with_near(east()).with_peer(as_local("west.example", false));
    let mut service = cluster_service("cart");
    more(&mut service);
    let xds = served(world.with_cluster_service(service), &west);
    assert_eq!(led(&xds, FRONTEND, 81), places(&[("0 east.example", &["10.0.0.1:8081", "10.0.0.2:8081"])]));
}

/// What the oldest peer speaks at a port is spoken there: who speaks something else is not led to, and is not said to be.
#[test]
fn peers_share_a_port_only_where_they_speak_the_same() {
    let [west, mut north] = ["west.example", "north.example"].map(|td| (td, cart_of(td)));
    north.1.ports[0].protocol = AppProtocol::Grpc;
    let of = |north: &(&'static str, RemoteService)| {
        let mut older = as_local("west.example", false);
        older.created = Some(at(-900));
        let world = east().with_peer(older).with_peer(as_local("north.example", false));
        let (world, plan) = settled(world, &[west.clone(), north.clone()]);
        (led(&plan.xds.unwrap(), FRONTEND, 80), world)
    };
    let (there, world) = of(&north);
    assert_eq!(there, places(&[("0 west.example", FAR)]));
    assert_eq!(said(&world, "west.example").0, "True ByName");
    assert_eq!(said(&world, "north.example").0, "False PortsDiffer");
    let second =
        crate::model::service::RemotePort { name: "second".to_owned(), port: 81, ..north.1.ports[0].clone() };
    north.1.ports.push(second);
    let (there, world) = of(&north);
    assert_eq!(there, places(&[("0 west.example", FAR)]));
    assert_eq!(said(&world, "north.example").0, "True ByName");
    let key = ObjectKey::namespaced(Kind::ImportedService, "entente-system", "cart.shop.north.example");
    let told = world.statuses[&key]["conditions"].to_string();
    assert!(told.contains("not served there: port 80 (http)"), "{told}");
}

/// What clients refuse of a local name, all whose imports answer there are told.
#[test]
fn what_is_refused_of_a_local_name_is_told_of_its_imports() {
    let west = [("west.example", cart_of("west.example"))];
    let world = with_near(east()).with_peer(as_local("west.example", false));
    let (mut world, _) = settled(world, &west);
    let key = ObjectKey::namespaced(Kind::ImportedService, "entente-system", "cart.shop.west.example");
    let refusal = crate::model::refused::ClientRefusal {
        client: FRONTEND.to_owned(),
        kind: "listener",
        message: format!("{LOCAL}:80: cannot bind"),
    };
    world.refusals = Arc::new([(LOCAL.to_owned(), [refusal].into())].into());
    let status = &plan(&world).statuses[&key].status;
    let taken = status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "TakenByClients");
    assert_eq!(taken.unwrap()["reason"], "ClientRefuses");
    world.refusals = Arc::default();
    assert!(!plan(&world).statuses.contains_key(&key), "what stands is said");
}

/// So many peers share a name at most, the older ones.
#[test]
fn few_peers_share_a_name() {
    let names = ["a.example", "b.example", "c.example", "d.example", "e.example"];
    let carts = names.map(|name| (name, cart_of(name)));
    let mut world = east();
    for (age, name) in names.iter().enumerate() {
        let mut peer = as_local(name, false);
        peer.created = Some(at(-100 + i64::try_from(age).unwrap()));
        world = world.with_peer(peer);
    }
    let (world, plan) = settled(world, &carts);
    assert_eq!(led(&plan.xds.unwrap(), FRONTEND, 80).len(), 4);
    assert_eq!(said(&world, "d.example").0, "True ByName");
    assert_eq!(said(&world, "e.example").0, "False OlderPeerServes");
}

/// The name keeps its address whoever comes and goes, and a change to one pod makes no other name anew.
#[test]
fn a_local_name_keeps_its_address() {
    let west = [("west.example", cart_of("west.example"))];
    let (mut world, _) = settled(with_near(east()).with_peer(as_local("west.example", false)), &west);
    let key = ObjectKey::namespaced(Kind::ImportedService, "entente-system", "cart.shop.west.example");
    let mut status = Value::clone(&world.statuses[&key]);
    status["localAddresses"] = serde_json::json!(["127.99.0.9"]);
    world.statuses.insert(key, Arc::new(status));
    let (world, _) = settled(world, &west);
    assert_eq!(said(&world, "west.example").1, serde_json::json!(["127.99.0.9"]));
    let carts = [west[0].clone(), ("able.example", cart_of("able.example"))];
    let (world, _) = settled(world.with_peer(as_local("able.example", false)), &carts);
    assert_eq!(
        said(&world, "able.example").1,
        serde_json::json!(["127.99.0.9"]),
        "though it comes first by name"
    );
}

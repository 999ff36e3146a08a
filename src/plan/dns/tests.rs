use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::peer::{LocalPattern, OnDisconnect, ServicePattern};
use crate::model::service::RemoteService;
use crate::model::session::LinkState;
use crate::model::trust::SpireState;
use crate::model::{NamespacedName, ServiceName};
use crate::plan::fixtures::{
    WorldExt as _, at, gateway, id, peer, remote_cart, service_of_gateway, session, td, world,
};
use crate::plan::{self, Plan};

const HOST: &str = "cart.shop.west.example";
const LOCAL: &str = "cart.shop.svc.cluster.local";

fn of(td: &str, namespace: &str, name: &str) -> RemoteService {
    let mut service = remote_cart();
    service.name = ServiceName::new(namespace, name).unwrap();
    service.server_ids = [id(&format!("spiffe://{td}/ns/{namespace}/sa/{name}"))].into();
    service
}

/// East, which answers DNS, with west, and what west exports.
fn east(istio: bool) -> World {
    let mut world = world("east.example");
    let settings = Arc::make_mut(&mut world.settings);
    settings.dns = true;
    settings.istio = istio;
    if !istio {
        settings.import_ranges = crate::model::world::Settings::loopback_ranges();
    }
    world.spire = Some(Arc::new(SpireState::default()));
    let services = vec![of("west.example", "shop", "cart")];
    world
        .with_peer(peer("west.example"))
        .with_session("west.example", session(LinkState::Connected, Some(services)))
}

/// Writes what is planned, and the statuses, until nothing changes.
fn settle(mut world: World, imported: &[(&str, RemoteService)]) -> (World, Plan) {
    for _ in 0..6 {
        let plan = plan::plan(&world);
        world = world.with_written(&plan.objects, imported);
        for (key, write) in &plan.statuses {
            world.statuses.insert(key.clone(), Arc::new(write.status.clone()));
        }
    }
    let plan = plan::plan(&world);
    (world, plan)
}

fn cart() -> Vec<(&'static str, RemoteService)> {
    vec![("west.example", of("west.example", "shop", "cart"))]
}

fn labels(name: &str) -> Vec<String> {
    name.split('.').map(str::to_owned).collect()
}

fn zone_of(plan: &Plan) -> Arc<Zone> {
    plan.zone.clone().expect("it is known what to answer")
}

fn edit(mut world: World, change: impl FnOnce(&mut Peer)) -> World {
    change(Arc::make_mut(world.peers.get_mut(&td("west.example")).unwrap()));
    world
}

fn addresses(zone: &Zone, name: &str) -> Vec<String> {
    match zone.find(&labels(name)) {
        Found::Ours { what: What::Host(host), .. } => {
            host.addresses.iter().map(ToString::to_string).collect()
        }
        _ => Vec::new(),
    }
}

/// What is found, in a word, with the number of labels of the zone.
fn found(zone: &Zone, name: &str) -> String {
    match zone.find(&labels(name)) {
        Found::Elsewhere => "elsewhere".to_owned(),
        Found::Ours { apex, what } => match what {
            What::Host(_) => format!("host {apex}"),
            What::Port { port, labels, .. } => format!("port {} of {labels} {apex}", port.number),
            What::Empty => format!("empty {apex}"),
            What::Nothing => format!("nothing {apex}"),
        },
    }
}

#[test]
fn an_import_is_answered_at_the_address_of_its_status() {
    let (world, plan) = settle(east(true), &cart());
    let zone = zone_of(&plan);
    let given = addresses(&zone, HOST);
    let key = ObjectKey::namespaced(Kind::ImportedService, "entente-system", HOST);
    assert_eq!(world.statuses[&key]["addresses"], serde_json::json!(given));
    assert!(given[0].starts_with("240.241."), "the mesh's: {given:?}");
    let entry = ObjectKey { kind: Kind::ServiceEntry, ..key };
    assert_eq!(world.objects[&entry].spec().unwrap()["addresses"], serde_json::json!(given));
    assert_eq!(zone.counts(), BTreeMap::from([(&td("west.example"), 1)]));

    let (_, plan) = settle(east(false), &cart());
    let given = addresses(&zone_of(&plan), HOST);
    assert!(given[0].starts_with("127."), "without Istio, the loopback interface's: {given:?}");
}

#[test]
fn nothing_is_answered_before_its_address_is_kept() {
    let (mut world, _) = settle(east(true), &cart());
    let key = ObjectKey::namespaced(Kind::ImportedService, "entente-system", HOST);
    world.statuses.remove(&key);
    let zone = zone_of(&plan::plan(&world));
    assert_eq!(found(&zone, HOST), "nothing 3");
}

#[test]
fn what_is_ours_and_what_is_not() {
    let world = edit(east(true), |peer| {
        peer.agent_addresses = vec!["agent.eu.west.example:7443".to_owned(), "10.0.0.1:7443".to_owned()];
    });
    let mut service = of("west.example", "shop", "cart");
    service.gateways = vec![gateway("gw.lb.west.example", 15_443), gateway("cdn.shop.north.example", 15_443)];
    let world =
        world.with_session("west.example", session(LinkState::Connected, Some(vec![service.clone()])));
    let world = world.with_peer(peer("north.example"));
    let mut quiet = peer("deep.west.example");
    quiet.imports.services.clear();
    let world = world.with_peer(quiet);
    let (_, plan) = settle(world, &[("west.example", service)]);
    let zone = zone_of(&plan);
    for (name, expected) in [
        (HOST, "host 3"),
        ("_tcp.cart.shop.west.example", "empty 3"),
        ("_tcp._tcp.cart.shop.west.example", "port 18080 of 4 3"),
        ("_http._tcp.cart.shop.west.example", "nothing 3"),
        ("_tcp.other.cart.shop.west.example", "nothing 3"),
        ("x.cart.shop.west.example", "nothing 3"),
        ("other.shop.west.example", "nothing 3"),
        ("a.b.c.shop.west.example", "nothing 3"),
        ("shop.west.example", "empty 3"),
        // No service of this namespace is imported: the name may be a host of west's.
        ("gateway.west.example", "elsewhere"),
        ("west.example", "elsewhere"),
        ("example", "elsewhere"),
        // What west says of itself is not a service; what it says of another's names does not count.
        ("gw.lb.west.example", "elsewhere"),
        ("agent.eu.west.example", "elsewhere"),
        ("x.lb.west.example", "nothing 3"),
        ("cdn.shop.north.example", "nothing 3"),
        // Ours, but of a trust domain of its own of which nothing is imported.
        ("a.b.deep.west.example", "elsewhere"),
        ("a.b.east.example", "elsewhere"),
        ("www.example.com", "elsewhere"),
        ("west.example.evil.com", "elsewhere"),
        ("notwest.example", "elsewhere"),
        ("a.b.notwest.example", "elsewhere"),
        (LOCAL, "elsewhere"),
        ("", "elsewhere"),
    ] {
        assert_eq!(found(&zone, name), expected, "{name}");
    }
    assert_eq!(zone.find(&[]), Found::Elsewhere);
}

#[test]
fn ports_are_answered_by_name() {
    let mut service = of("west.example", "shop", "cart");
    let mut http = service.ports[0].clone();
    (http.name, http.port) = ("http".to_owned(), 80);
    service.ports.push(http);
    let world =
        east(true).with_session("west.example", session(LinkState::Connected, Some(vec![service.clone()])));
    let (_, plan) = settle(world, &[("west.example", service)]);
    let zone = zone_of(&plan);
    assert_eq!(found(&zone, "_http._tcp.cart.shop.west.example"), "port 80 of 4 3");
    for none in ["http._tcp", "_http._udp", "_smtp._tcp"] {
        assert_eq!(found(&zone, &format!("{none}.{HOST}")), "nothing 3", "{none}");
    }
    let Found::Ours { what: What::Host(host), .. } = zone.find(&labels(HOST)) else { panic!() };
    let ports: Vec<u16> = host.ports.iter().map(|port| port.number).collect();
    assert_eq!(ports, [80, 18_080], "in order");
}

#[test]
fn what_is_no_longer_admitted_is_gone_and_silence_takes_nothing_away() {
    let (world, plan) = settle(east(true), &cart());
    let before = zone_of(&plan);
    let mut away = world.clone();
    Arc::make_mut(&mut away.sessions).insert(td("west.example"), session(LinkState::Idle, None));
    assert_eq!(zone_of(&plan::plan(&away)), before, "west is away");
    let withdraws = edit(away.clone(), |peer| {
        peer.on_disconnect = OnDisconnect::Withdraw { after: std::time::Duration::from_secs(60) };
    });
    assert_eq!(zone_of(&plan::plan(&withdraws)), before, "not for long enough");
    let mut withdrawn = withdraws;
    withdrawn.now = at(1_000);
    assert_eq!(found(&zone_of(&plan::plan(&withdrawn)), HOST), "nothing 3");
    let narrowed = edit(world.clone(), |peer| {
        peer.imports.services = vec![ServicePattern { namespace: Some("other".to_owned()), name: None }];
    });
    assert_eq!(found(&zone_of(&plan::plan(&narrowed)), HOST), "nothing 3");
    let closed = edit(world.clone(), |peer| peer.imports.services.clear());
    assert_eq!(found(&zone_of(&plan::plan(&closed)), HOST), "elsewhere");

    // Who we are is not known: nor is what is admitted.
    let mut blind = world.clone();
    blind.identity = None;
    assert_eq!(plan::plan(&blind).zone, None);
    let mut silent = world;
    Arc::make_mut(&mut silent.settings).dns = false;
    assert_eq!(plan::plan(&silent).zone, None, "nobody asked for it");
}

fn as_local(td: &str, created: i64) -> Peer {
    let mut peer = peer(td);
    peer.created = Some(at(created));
    let pattern = ServicePattern { namespace: Some("shop".to_owned()), name: Some("cart".to_owned()) };
    peer.imports.as_local = vec![LocalPattern { pattern, local_first: false }];
    peer
}

#[test]
fn a_local_name_that_no_service_has_is_answered_in_a_mesh() {
    let world = east(true).with_peer(as_local("west.example", -100));
    let (world, plan) = settle(world, &cart());
    let zone = zone_of(&plan);
    assert_eq!(found(&zone, LOCAL), "host 5");
    assert_eq!(found(&zone, "_tcp._tcp.cart.shop.svc.cluster.local"), "port 18080 of 5 5");
    assert_eq!(found(&zone, "_http._tcp.cart.shop.svc.cluster.local"), "nothing 5");
    assert_eq!(found(&zone, "other.shop.svc.cluster.local"), "elsewhere", "the cluster's own");
    assert_ne!(addresses(&zone, LOCAL), addresses(&zone, HOST), "its ServiceEntry has one of its own");
    let mut service = service_of_gateway("cart", &[]);
    service.object = NamespacedName::new("shop", "cart");
    let (_, plan) = settle(world.with_cluster_service(service), &cart());
    assert_eq!(found(&zone_of(&plan), LOCAL), "elsewhere", "a Service has it, and the cluster's DNS answers");
}

/// Without Istio nothing shares a name: one import has it, and says so.
#[test]
fn without_istio_the_older_peers_import_has_the_local_name() {
    let carts = [
        ("west.example", of("west.example", "shop", "cart")),
        ("north.example", of("north.example", "shop", "cart")),
    ];
    let mut world =
        east(false).with_peer(as_local("west.example", -100)).with_peer(as_local("north.example", -50));
    for (td, cart) in &carts {
        world = world.with_session(td, session(LinkState::Connected, Some(vec![cart.clone()])));
    }
    let said = |world: &World, td: &str| {
        let key = ObjectKey::namespaced(Kind::ImportedService, "entente-system", format!("cart.shop.{td}"));
        let all = world.statuses[&key]["conditions"].as_array().unwrap().clone();
        let one = all.into_iter().find(|one| one["type"] == "ServedLocally").unwrap();
        format!("{} {}", one["status"].as_str().unwrap(), one["reason"].as_str().unwrap())
    };
    let (world, plan) = settle(world, &carts);
    let zone = zone_of(&plan);
    assert_eq!(addresses(&zone, LOCAL), addresses(&zone, HOST));
    assert_eq!(said(&world, "west.example"), "True ByName");
    assert_eq!(said(&world, "north.example"), "False OlderPeerServes");
    let mut service = service_of_gateway("cart", &[]);
    service.object = NamespacedName::new("shop", "cart");
    let (world, plan) = settle(world.with_cluster_service(service), &carts);
    assert_eq!(found(&zone_of(&plan), LOCAL), "elsewhere");
    assert_eq!(said(&world, "west.example"), "False ServiceExists");
}

#[test]
fn an_equal_zone_is_the_same_one() {
    let (world, _) = settle(east(true), &cart());
    let mut memo = Memo::default();
    let first = plan::plan_anew(&world, &mut memo).zone.unwrap();
    let second = plan::plan_anew(&world, &mut memo).zone.unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(Some(first), plan::plan(&world).zone, "and what is remembered changes nothing");
}

proptest! {
    /// Of whatever is asked, a host is found for nothing but its own name.
    #[test]
    fn no_other_name_leads_to_a_host(labels in proptest::collection::vec("[a-z_.?-]{0,8}|shop|cart|west|example|_tcp|_tcp-1", 0..8)) {
        let (_, plan) = settle(east(true), &cart());
        let zone = zone_of(&plan);
        if let Found::Ours { apex, what } = zone.find(&labels) {
            prop_assert!(apex <= labels.len());
            let is_host = matches!(what, What::Host(_));
            prop_assert_eq!(is_host, labels == ["cart", "shop", "west", "example"]);
        }
    }
}

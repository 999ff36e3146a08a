use std::sync::Arc;

use serde_json::{Value, json};

use crate::model::Object;
use crate::model::service::TlsMode;
use crate::plan::fixtures::{WorldExt as _, cart, client, foreign, labels, peer, td, world};
use crate::plan::services::{ServicesPlan, services};

use super::*;

fn base() -> World {
    world("west.example").with_peer(peer("east.example")).with_service(cart())
}

fn decide(world: &World) -> ServicesPlan {
    services(world, &BTreeSet::new())
}

fn theirs(namespace: &str, spec: Value) -> Object {
    foreign(Kind::AuthorizationPolicy, namespace, "theirs", spec)
}

/// The selectors of what allows.
fn allowing(world: &World) -> Vec<Value> {
    let plan = decide(world);
    let specs = plan.objects.values().filter_map(|object| object.spec());
    specs
        .filter(|spec| spec["action"] == "ALLOW")
        .map(|spec| spec["selector"]["matchLabels"].clone())
        .collect()
}

#[test]
fn clients_are_allowed_where_others_allow_and_there_alone() {
    assert!(allowing(&base()).is_empty());
    let selecting = |pairs: &[(&str, &str)]| json!({"selector": {"matchLabels": labels(pairs)}});
    let mut targeted = selecting(&[]);
    targeted["targetRefs"] =
        json!([{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"}]);
    let mut tried = theirs("shop", json!({}));
    tried.meta.annotations.insert("istio.io/dry-run".to_owned(), "true".to_owned());
    let mut of_another_instance = theirs("shop", json!({}));
    of_another_instance.meta.labels.insert("entente.dev/instance".to_owned(), "other".to_owned());
    let cart = json!({"app": "cart"});
    for (object, expected) in [
        (theirs("shop", json!({})), vec![cart.clone()]),
        (theirs("shop", json!({"action": "ALLOW", "rules": [{}]})), vec![cart.clone()]),
        (theirs("shop", json!({"action": "DENY"})), vec![]),
        (theirs("shop", json!({"action": "AUDIT"})), vec![]),
        (theirs("shop", selecting(&[("app", "cart")])), vec![cart.clone()]),
        (theirs("shop", selecting(&[("app", "web")])), vec![]),
        (theirs("shop", selecting(&[("tier", "web")])), vec![json!({"app": "cart", "tier": "web"})]),
        (theirs("istio-system", json!({})), vec![cart.clone()]),
        (theirs("istio-system", selecting(&[("tier", "web")])), vec![json!({"app": "cart", "tier": "web"})]),
        (theirs("other", json!({})), vec![]),
        (theirs("shop", targeted), vec![]),
        (tried, vec![]),
        (of_another_instance, vec![]),
    ] {
        assert_eq!(allowing(&base().with_object(object.clone())), expected, "{object:?}");
    }
}

#[test]
fn each_port_allows_its_own_clients() {
    let mut service = cart();
    let mut admin = service.ports[0].clone();
    (admin.name, admin.port, admin.target_port) = ("admin".to_owned(), 9_000, 9_001);
    admin.clients = Some(BTreeSet::from([client("spiffe://east.example/ns/ops/*")]));
    let mut nobody = admin.clone();
    (nobody.name, nobody.port, nobody.target_port) = ("none".to_owned(), 9_100, 9_101);
    nobody.clients = Some(BTreeSet::from([client("spiffe://north.example/ns/ops/sa/a")]));
    service.ports.extend([admin, nobody]);
    let world = base().with_service(service.clone()).with_object(theirs("shop", json!({})));
    let plan = decide(&world);
    let allow =
        plan.objects.values().filter_map(|o| o.spec()).find(|spec| spec["action"] == "ALLOW").unwrap();
    let rules: Vec<(Value, Value)> = allow["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["to"][0]["operation"]["ports"].clone(), r["from"][0]["source"]["principals"].clone()))
        .collect();
    assert_eq!(
        rules,
        [
            (json!(["8080"]), json!(["east.example/ns/shop/sa/client"])),
            (json!(["9001"]), json!(["east.example/ns/ops/*"])),
        ],
        "and who is no peer's is not"
    );
    // Nobody at all would be a policy that denies all.
    assert!(
        allowing(&world.clone().with_service({
            let mut none = service.clone();
            none.clients = BTreeSet::from([client("spiffe://north.example/a")]);
            none.ports.iter_mut().for_each(|port| port.clients = None);
            none
        }))
        .is_empty()
    );
    // Where the application ends TLS no caller is known that could be allowed.
    let mut mtls = cart();
    mtls.tls_mode = TlsMode::Mtls;
    assert!(allowing(&world.with_service(mtls)).is_empty());
}

fn fenced(mut world: World) -> World {
    Arc::make_mut(&mut world.settings).fence = true;
    world
}

fn open(world: &World) -> Option<Vec<String>> {
    let plan = decide(world);
    let fence = plan.objects.get(&fence::key(world))?.spec().unwrap();
    assert_eq!((&fence["action"], fence.get("selector")), (&json!("DENY"), None));
    assert_eq!(fence["rules"][0]["from"][0]["source"]["principals"], json!(["*"]));
    Some(serde_json::from_value(fence["rules"][0]["from"][0]["source"]["notPrincipals"].clone()).unwrap())
}

#[test]
fn the_fence_is_open_to_clients_and_agents_alone() {
    assert_eq!(open(&base()), None, "unless it is asked for");
    let agent = "east.example/ns/entente-system/sa/entente";
    let expected = ["west.example/*", agent, "east.example/ns/shop/sa/client"];
    let world = fenced(base());
    assert_eq!(open(&world).unwrap(), expected);
    let mut of_nobody = cart();
    of_nobody.clients = BTreeSet::from([client("spiffe://north.example/a")]);
    assert_eq!(
        open(&fenced(base().with_service(of_nobody))).unwrap(),
        expected[..2],
        "no client of who is no peer"
    );
    let ended = services(&world, &BTreeSet::from([td("east.example")]));
    let fence = ended.objects[&fence::key(&world)].spec().unwrap().to_string();
    assert!(!fence.contains("sa/client") && fence.contains(agent), "it is told of the end: {fence}");

    // An export that cannot be read has its clients still; what is in the way stays.
    let written = decide(&world).objects;
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let mut unread = world.clone().with_written(&written, &[]).with_rejected(key, None);
    unread.services.clear();
    assert_eq!(open(&unread).unwrap(), expected);
    let theirs = foreign(Kind::AuthorizationPolicy, "istio-system", "main-fence", json!({}));
    assert_eq!(open(&world.with_object(theirs)), None);
}

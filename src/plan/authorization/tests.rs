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
    let fence = plan.objects.get(&fence::key(world))?.spec()?;
    assert_eq!((&fence["action"], fence.get("selector")), (&json!("DENY"), None));
    assert_eq!(fence["rules"][0]["from"][0]["source"]["principals"], json!(["*"]));
    serde_json::from_value(fence["rules"][0]["from"][0]["source"]["notPrincipals"].clone()).ok()
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

/// One rule says it for all ports with the same clients.
#[test]
fn ports_with_the_same_clients_share_a_rule() {
    let mut service = cart();
    let port = service.ports[0].clone();
    for number in [9_000, 9_001] {
        let mut more = port.clone();
        (more.name, more.port, more.target_port) = (format!("p{number}"), number, number);
        service.ports.push(more);
    }
    service.ports[1].clients = Some(BTreeSet::from([client("spiffe://east.example/ns/ops/*")]));
    let world = base().with_service(service).with_object(theirs("shop", json!({})));
    let plan = decide(&world);
    let ports = |action: &str| -> Vec<Value> {
        let mut specs = plan.objects.values().filter_map(|object| object.spec());
        let spec = specs.rfind(|spec| spec["action"] == action).unwrap();
        spec["rules"].as_array().unwrap().iter().map(|rule| rule["to"][0]["operation"].clone()).collect()
    };
    let (shared, own) = (json!({"ports": ["8080", "9001"]}), json!({"ports": ["9000"]}));
    assert_eq!(ports("DENY"), [shared.clone(), own.clone(), json!({"notPorts": ["8080", "9000", "9001"]})]);
    assert_eq!(ports("ALLOW"), [shared, own]);
}

/// A narrower selector beside a wider one of others needs no policy of its own.
#[test]
fn the_fewest_policies_that_cover_all_are_written() {
    let select = |name: &str, pairs: &[(&str, &str)]| {
        foreign(Kind::AuthorizationPolicy, "shop", name, json!({"selector": {"matchLabels": labels(pairs)}}))
    };
    let world = base()
        .with_object(select("wide", &[("tier", "web")]))
        .with_object(select("narrow", &[("tier", "web"), ("v", "1")]));
    assert_eq!(allowing(&world), [json!({"app": "cart", "tier": "web"})]);
}

/// What could not be told now stays let in, and nobody else.
#[test]
fn the_fence_stays_shut_to_whom_nobody_names() {
    let world = fenced(base());
    let written = decide(&world).objects;
    let agent = "east.example/ns/entente-system/sa/entente";
    let client = "east.example/ns/shop/sa/client";
    let standing = world.clone().with_written(&written, &[]);
    let peer_key = ObjectKey::cluster(Kind::TrustDomainPeer, "east.example");

    // Malformed since the start: its agent and its clients are as they were.
    let mut malformed = standing.clone().with_rejected(peer_key.clone(), Some("east.example"));
    malformed.peers.clear();
    assert_eq!(open(&malformed).unwrap(), ["west.example/*", agent, client]);
    // Being deleted, it lets in nobody.
    malformed.rejected.get_mut(&peer_key).unwrap().deletion = Some(crate::plan::fixtures::at(0));
    assert_eq!(open(&malformed).unwrap(), ["west.example/*"]);
    // An export that cannot be read keeps no client of who is no peer any more.
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let mut unread = standing.with_rejected(key, None);
    unread.services.clear();
    unread.peers.clear();
    assert_eq!(open(&unread).unwrap(), ["west.example/*"]);
}

/// istiod reads `cluster.local` in a policy as our own trust domain: nobody of there can be let in apart from local callers.
#[test]
fn a_peer_with_the_name_that_stands_for_our_own_is_let_in_nowhere() {
    let mut service = cart();
    service.exported_to = BTreeSet::from([td("cluster.local")]);
    service.clients = BTreeSet::from([client("spiffe://cluster.local/ns/shop/sa/client")]);
    let world = world("west.example").with_peer(peer("cluster.local")).with_service(service);
    let world = fenced(world.with_object(theirs("shop", json!({}))));
    let plan = decide(&world);
    let policies = plan.objects.values().filter(|o| o.key.kind == Kind::AuthorizationPolicy);
    for policy in policies {
        let text = policy.spec().unwrap().to_string();
        assert!(!text.contains("cluster.local/ns/shop/sa/client"), "{text}");
    }
    let report = plan.export_reports.values().next().unwrap();
    assert_eq!(report.exported.as_ref().unwrap_err().reason.as_str(), "TrustDomainReserved");
    assert!(!is_taken_for_own(&td("cluster.local"), &td("cluster.local")), "unless it is our own");
}

/// Two of one selector, of which one cannot be read since the start: the policy of both keeps its clients.
#[test]
fn the_shared_policy_keeps_the_clients_of_who_cannot_be_read() {
    let mut other = cart();
    other.object.name = "basket".to_owned();
    other.uid = "uid-of-basket".to_owned();
    other.name = crate::model::ServiceName::new("shop", "basket").unwrap();
    (other.ports[0].port, other.ports[0].target_port) = (9_000, 9_000);
    other.clients = BTreeSet::from([client("spiffe://east.example/ns/shop/sa/other")]);
    let world = base().with_service(other);
    let mut readable = world.clone();
    for _ in 0..3 {
        let written = decide(&readable).objects;
        readable = readable.with_written(&written, &[]);
    }
    let cart_key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let mut unread = readable.clone().with_rejected(cart_key, None);
    unread.services.retain(|name, _| name.name == "basket");
    let deny = |world: &World| {
        let policy = decide(world).objects[&key("shop", &cart().workload_labels)].clone();
        (policy.spec().unwrap().clone(), policy.meta.clone())
    };
    let ((before, meta), (now, meta_now)) = (deny(&readable), deny(&unread));
    assert_eq!(before, now);
    assert_eq!(meta.annotations["entente.dev/source"], meta_now.annotations["entente.dev/source"]);
    // Its deletion is somebody's word.
    let mut deleted = unread.clone();
    deleted.rejected.clear();
    assert_ne!(deny(&deleted).0, before);
    // Nobody else takes its host meanwhile.
    let mut rival = cart();
    rival.object.name = "rival".to_owned();
    rival.uid = "uid-of-rival".to_owned();
    let taken = decide(&unread.with_service(rival));
    let report = &taken.export_reports[&crate::model::NamespacedName::new("shop", "rival")];
    assert_eq!(report.accepted.as_ref().unwrap_err().reason.as_str(), "HostTaken");
}

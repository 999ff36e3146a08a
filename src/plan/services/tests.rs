use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::model::object::LABEL_PEER;
use crate::model::service::{Address, AppProtocol, GatewayAddress, RemotePort, TlsMode};
use crate::model::session::LinkState;
use crate::model::{Service, ServiceName, SpiffeId};
use crate::plan::exports::testing::with_policies;
use crate::plan::fixtures::{
    NAMESPACE, WorldExt as _, at, cart, client, peer, remote_cart, service, session, td, world,
};

use crate::model::service::RemoteService;

use super::*;

fn decide(world: &World) -> ServicesPlan {
    services(world, &BTreeSet::new())
}

/// An exporter whose policy stands.
fn west() -> World {
    with_policies(fresh())
}

fn fresh() -> World {
    world("west.example").with_peer(peer("east.example")).with_service(cart())
}

/// An exporter for which everything was written.
fn settled() -> World {
    let plan = decide(&west());
    west().with_written(&plan.objects, &[])
}

fn with_failure(mut world: World, key: &ObjectKey) -> World {
    world.failures = Arc::new(BTreeMap::from([(key.clone(), "denied by policy.example".to_owned())]));
    world
}

fn kinds(plan: &ServicesPlan) -> Vec<Kind> {
    plan.objects.keys().map(|key| key.kind).collect()
}

const ALL: [Kind; 3] = [Kind::AuthorizationPolicy, Kind::ServiceEntry, Kind::Gateway];

fn cart_report(plan: &ServicesPlan) -> &ExportReport {
    &plan.export_reports[&NamespacedName::new("shop", "cart")]
}

#[test]
fn the_policy_is_written_first_and_alone() {
    let key = policy(&decide(&fresh())).key.clone();
    for world in [fresh(), with_failure(fresh(), &key)] {
        let plan = decide(&world);
        assert_eq!(kinds(&plan), [Kind::AuthorizationPolicy]);
        assert!(plan.catalogues.is_empty());
    }
    let plan = decide(&west());
    assert_eq!((kinds(&plan), plan.catalogues.len()), (ALL.to_vec(), 1));
    // Whose update fails before anything is out, is not exported either.
    assert_eq!(kinds(&decide(&with_failure(west(), &key))), [Kind::AuthorizationPolicy]);
}

#[test]
fn an_export_that_is_out_stays_where_its_policy_cannot_be_updated() {
    let before = decide(&settled());
    let key = policy(&before).key.clone();
    let plan = decide(&with_failure(settled(), &key));
    assert_eq!((&plan.objects, &plan.catalogues), (&before.objects, &before.catalogues));
    assert!(cart_report(&plan).exported.is_ok());
    let enforced = cart_report(&plan).enforced.as_ref().unwrap_err();
    assert_eq!(enforced.status, crate::model::condition::Truth::False);
    assert!(enforced.message.contains("denied by policy.example"), "{}", enforced.message);
}

#[test]
fn an_export_that_is_out_stays_where_its_policy_was_deleted() {
    let before = decide(&settled());
    let key = policy(&before).key.clone();
    let mut world = settled();
    world.spire = Some(Arc::default());
    world.objects.remove(&key);
    let plan = decide(&world);
    assert_eq!(plan.objects.keys().collect::<Vec<_>>(), before.objects.keys().collect::<Vec<_>>());
    assert_eq!(plan.objects[&key], before.objects[&key], "it is written again");
    assert_eq!(plan.catalogues, before.catalogues);
    assert!(crate::plan::prune::prune(&world, &plan.objects).is_empty());
    assert!(cart_report(&plan).exported.is_ok() && cart_report(&plan).enforced.is_err());
}

/// The alias follows the workloads only once the policy guards them; those it had are guarded until then.
#[test]
fn other_workloads_are_reached_once_they_are_guarded() {
    let old = policy(&decide(&settled())).key.clone();
    let mut moved = cart();
    moved.workload_labels = crate::plan::fixtures::labels(&[("app", "cart-v2")]);
    let new = authorization::key("shop", &moved.workload_labels);
    let selected = |plan: &ServicesPlan| {
        let alias = plan.objects.values().find(|object| object.key.kind == Kind::ServiceEntry).unwrap();
        alias.spec().unwrap()["workloadSelector"]["labels"]["app"].clone()
    };
    let world = settled().with_service(moved);
    for world in [world.clone(), with_failure(world.clone(), &new)] {
        let plan = decide(&world);
        assert_eq!(selected(&plan), "cart");
        assert!(plan.objects.contains_key(&old) && plan.objects.contains_key(&new));
        assert_eq!(plan.catalogues, decide(&settled()).catalogues);
    }
    let plan = decide(&with_policies(world));
    assert_eq!(selected(&plan), "cart-v2");
    assert!(
        plan.objects.contains_key(&old) && plan.objects.contains_key(&new),
        "until the alias has followed"
    );
}

fn policy(plan: &ServicesPlan) -> &Object {
    plan.objects.values().find(|object| object.key.kind == Kind::AuthorizationPolicy).unwrap()
}

/// The principals that are not denied on the first port.
fn allowed(plan: &ServicesPlan) -> Vec<String> {
    let principals = &policy(plan).spec().unwrap()["rules"][0]["from"][0]["source"]["notPrincipals"];
    serde_json::from_value(principals.clone()).unwrap()
}

const OPEN: [&str; 2] = ["west.example/*", "east.example/ns/shop/sa/client"];

#[test]
fn nothing_is_decided_before_everything_was_read() {
    let mut unread = west();
    unread.read.remove(&Kind::TrustDomainPeer);
    assert_eq!(decide(&unread), ServicesPlan::default());

    let mut nameless = west();
    nameless.identity = None;
    let plan = decide(&nameless);
    assert!(!plan.complete && plan.objects.is_empty() && plan.catalogues.is_empty());
    assert_eq!(plan.export_reports.len(), 1, "and the FederatedService says why");
}

#[test]
fn a_workload_is_closed_before_it_is_exported() {
    type Change = fn(&mut Service);
    let changes: [Change; 3] = [|_| {}, |s| s.gateways.clear(), |s| s.server_ids.clear()];
    for change in changes {
        let mut cart = cart();
        change(&mut cart);
        let plan = decide(&world("west.example").with_peer(peer("east.example")).with_service(cart));
        assert_eq!(allowed(&plan), OPEN);
    }
    // Nobody is let in of a trust domain that is no peer.
    let plan = decide(&world("west.example").with_service(cart()));
    assert_eq!(allowed(&plan), ["west.example/*"]);
    assert_eq!(plan.objects.len(), 1);
}

/// Every rewrite of a policy cuts connections, so only what has to changes it.
#[test]
fn a_policy_changes_only_where_a_relationship_begins_or_ends() {
    let before = policy(&decide(&west())).clone();
    let connected = west().with_session("east.example", session(LinkState::Connected, Some(Vec::new())));
    let mut deleting = peer("east.example");
    deleting.deletion = Some(at(0));
    let rejected_key = ObjectKey::cluster(Kind::TrustDomainPeer, "east-example");
    let rejected =
        world("west.example").with_service(cart()).with_rejected(rejected_key, Some("east.example"));
    for world in [connected, west().with_peer(deleting), rejected] {
        assert_eq!(policy(&decide(&world)), &before);
    }
    let ended = services(&west(), &BTreeSet::from([td("east.example")]));
    assert_eq!(allowed(&ended), ["west.example/*"]);
}

#[test]
fn principals_carry_no_scheme() {
    let mut cart = cart();
    cart.clients.insert(client("spiffe://east.example/*"));
    let plan = decide(&world("west.example").with_peer(peer("east.example")).with_service(cart));
    assert!(!serde_json::to_string(&policy(&plan).body).unwrap().contains("spiffe://"));
    assert_eq!(allowed(&plan), ["west.example/*", "east.example/*", "east.example/ns/shop/sa/client"]);
}

#[test]
fn a_policy_name_tells_selectors_apart() {
    let of = |pairs: &[(&str, &str)]| authorization::key("shop", &crate::plan::fixtures::labels(pairs)).name;
    let names = BTreeSet::from([
        of(&[("a", "b-c")]),
        of(&[("a-b", "c")]),
        of(&[("a", "b"), ("x", "c")]),
        of(&[("a", "b"), ("y", "c")]),
        of(&[("app.kubernetes.io/name", "A_Very.Long-Value-That-Goes-On-And-On-For-Sixty-Three-Characters")]),
        of(&[("a", "")]),
    ]);
    assert_eq!(names.len(), 6);
    assert!(names.iter().all(|name| crate::model::name::is_dns_label(name)), "{names:?}");
}

/// West with all that it needs: the policy once more, since it is owned by what it outlives.
fn all_written() -> World {
    let plan = decide(&west());
    let world = west().with_written(&plan.objects, &[]);
    let plan = decide(&world);
    world.with_written(&plan.objects, &[])
}

#[test]
fn the_plan_of_both_sides_settles() {
    let written = all_written();
    let plan = decide(&written);
    assert_eq!(decide(&written.with_written(&plan.objects, &[])), plan);
}

/// What was generated from an object that became unreadable stays as it stands.
#[test]
fn an_unreadable_service_loses_nothing() {
    let written = all_written();
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let mut unreadable = written.clone().with_rejected(key.clone(), None);
    unreadable.services.clear();
    let keys = |plan: &ServicesPlan| plan.objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(decide(&unreadable).objects, decide(&written).objects);
    assert_eq!(keys(&decide(&unreadable)).len(), 3);

    let mut going = unreadable.clone();
    for object in going.objects.values_mut() {
        Arc::make_mut(object).meta.deletion = Some(at(0));
    }
    assert!(decide(&going).objects.is_empty(), "what is being deleted is not written again");

    let mut deleted = unreadable.clone();
    deleted.rejected.get_mut(&key).unwrap().deletion = Some(at(0));
    let closed = [Kind::AuthorizationPolicy];
    assert_eq!(kinds(&decide(&deleted)), closed, "its owner deletes it");
    unreadable.rejected.clear();
    assert_eq!(kinds(&decide(&unreadable)), closed, "it is gone");
}

/// A TrustDomainPeer that cannot be read now may be one in a moment; an import of a trust domain without one says nothing of it.
#[test]
fn only_an_unreadable_peer_holds_what_is_out_to_it() {
    let written = all_written();
    let mut without = written.clone();
    without.peers.clear();
    let objects = |world: &World| decide(world).objects;
    let peer = ObjectKey::cluster(Kind::TrustDomainPeer, "east-example");
    assert_eq!(objects(&without.clone().with_rejected(peer, Some("east.example"))), objects(&written));
    let import = imports::key(&written, "cart.shop.east.example");
    assert_eq!(objects(&without.clone().with_rejected(import, Some("east.example"))), objects(&without));
}

fn east() -> World {
    let world = world("east.example")
        .with_peer(peer("west.example"))
        .with_session("west.example", session(LinkState::Connected, Some(vec![remote_cart()])));
    let known = [("west.example", remote_cart())];
    let world = world.clone().with_written(&decide(&world).objects, &known);
    world.clone().with_written(&decide(&world).objects, &known)
}

#[test]
fn an_unreadable_peer_or_import_loses_nothing() {
    let before = decide(&east()).objects;
    assert_eq!(before.len(), 2);

    let key = ObjectKey::cluster(Kind::TrustDomainPeer, "west-example");
    let mut peer_unreadable = east().with_rejected(key, Some("west.example"));
    peer_unreadable.peers.clear();
    assert_eq!(decide(&peer_unreadable).objects, before);
    let ended = services(&peer_unreadable, &BTreeSet::from([td("west.example")]));
    assert!(ended.objects.is_empty(), "but for its end");

    let import = imports::key(&east(), "cart.shop.west.example");
    let mut import_unreadable = east().with_rejected(import, Some("west.example"));
    import_unreadable.imported.clear();
    assert_eq!(decide(&import_unreadable).objects, before, "while the catalogue is there");
    import_unreadable.sessions = Arc::default();
    assert_eq!(decide(&import_unreadable).objects, before, "while the peer is silent");
    let silent = session(LinkState::Connected, Some(Vec::new()));
    let taken_away = import_unreadable.with_session("west.example", silent);
    assert!(decide(&taken_away).objects.is_empty(), "unless the peer takes it away");
}

#[test]
fn an_import_without_a_peer_goes() {
    let mut world = east();
    world.peers.clear();
    assert!(decide(&world).objects.is_empty());
}

/// A catalogue as a hostile peer would build it, from the types that a parser would give.
fn hostile() -> impl Strategy<Value = Vec<RemoteService>> {
    let label = || prop_oneof!["[a-z0-9]{1,8}", Just("kube-system".to_owned()), Just("svc".to_owned())];
    let address = prop_oneof![
        any::<std::net::IpAddr>().prop_map(Address::Ip),
        Just(Address::Dns("kubernetes.default.svc.cluster.local".to_owned())),
        Just(Address::Dns("gw.west.example".to_owned())),
        ".{0,10}".prop_map(Address::Dns),
    ];
    // Half of each is sound, so that some services pass every rule and the others fail by one.
    let gateways = prop_oneof![
        Just(remote_cart().gateways),
        proptest::collection::vec(
            (address, any::<u16>()).prop_map(|(address, port)| GatewayAddress { address, port }),
            0..4,
        )
    ];
    let ids = prop_oneof![
        Just(vec!["spiffe://west.example/sa/a"]),
        proptest::sample::subsequence(
            vec!["spiffe://west.example/sa/a", "spiffe://east.example/sa/a", "spiffe://north.example/sa/a"],
            0..3,
        )
    ];
    let ports = prop_oneof![
        Just(vec![("tcp".to_owned(), 80)]),
        proptest::collection::vec((".{0,6}|[a-z]{1,4}", any::<u16>()), 0..3)
    ];
    let mode = prop_oneof![4 => Just(TlsMode::IstioMtls), 1 => Just(TlsMode::Mtls)];
    let service = (label(), label(), gateways, ids, ports, mode).prop_map(
        |(namespace, name, gateways, ids, ports, tls_mode)| RemoteService {
            name: ServiceName::new(&namespace, &name).unwrap(),
            ports: ports
                .into_iter()
                .map(|(name, port)| RemotePort {
                    name,
                    port,
                    protocol: AppProtocol::Tcp,
                    clients: BTreeSet::new(),
                })
                .collect(),
            tls_mode,
            server_ids: ids.into_iter().map(|id| SpiffeId::new(id).unwrap()).collect(),
            clients: BTreeSet::new(),
            gateways,
            endpoints: Vec::new(),
        },
    );
    proptest::collection::vec(service, 0..6)
}

/// Where nothing is generated, for want of Istio, it is the status that tells what is out.
#[test]
fn what_is_unreadable_since_the_start_is_held_by_its_status() {
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let unread = |status: Value| {
        let mut world =
            world("west.example").with_peer(peer("east.example")).with_peer(peer("north.example"));
        world.absent.extend(Kind::WATCHED.into_iter().filter(|kind| kind.is_istio()));
        Arc::make_mut(&mut world.settings).serves_xds = true;
        world.statuses.insert(key.clone(), Arc::new(status));
        world.with_rejected(key.clone(), None)
    };
    let to = |td: &str, is_acknowledged: bool, reason: &str| json!({"trustDomain": td, "acknowledged": is_acknowledged, "reason": reason});
    let server = "spiffe://west.example/ns/shop/sa/cart";
    let status = |to: Value| {
        json!({
            "host": "basket.shop.west.example",
            "serverSPIFFEIDs": [server, "spiffe://north.example/ns/shop/sa/cart"],
            "exportedTo": [to, to_nobody()],
        })
    };
    fn to_nobody() -> Value {
        json!({"trustDomain": "north.example", "acknowledged": false, "reason": "NoClientsThere"})
    }
    let named = BTreeSet::from([ServiceName::new("shop", "basket").unwrap()]);
    for out in [to("east.example", true, ""), to("east.example", false, "AwaitingAcknowledgement")] {
        let plan = decide(&unread(status(out.clone())));
        assert_eq!(plan.held, BTreeMap::from([(td("east.example"), named.clone())]), "{out}");
        let unknown = &plan.xds.as_ref().unwrap().unknown;
        assert_eq!(*unknown, BTreeSet::from([SpiffeId::new(server).unwrap()]), "{out}");
    }
    let never = decide(&unread(status(to("east.example", false, "NoPeer"))));
    assert!(never.held.is_empty() && never.xds.unwrap().unknown.is_empty(), "it was never out");
    let known = unread(status(to("east.example", true, ""))).with_service(cart());
    let known = decide(&known);
    assert!(
        known.held.is_empty() && known.xds.unwrap().unknown.is_empty(),
        "its last good version is in use"
    );
}

proptest! {
    /// Nothing lies outside the agent's namespace, no host outside the peer's trust domain, and nothing is without a pin;
    /// neither when the catalogue arrives nor when it has been stored.
    #[test]
    fn a_hostile_catalogue_stays_in_its_bounds(catalogue in hostile(), own_service in any::<bool>()) {
        let mut world = world("east.example")
            .with_peer(peer("west.example"))
            .with_session("west.example", session(LinkState::Connected, Some(catalogue.clone())));
        if own_service {
            world = world.with_service(service("kube-system", "a", "west.example"));
        }
        let first = decide(&world);
        prop_assert_eq!(&first, &decide(&world));
        let known: Vec<_> = catalogue.iter().map(|service| ("west.example", service.clone())).collect();
        let world = world.with_written(&first.objects, &known);
        let second = decide(&world);
        prop_assert_eq!(&second, &decide(&world));
        let names: BTreeSet<&ServiceName> = catalogue.iter().map(|service| &service.name).collect();
        prop_assert_eq!(second.outcomes[&td("west.example")].len(), names.len(), "each is answered");
        // What waits for its DestinationRule.
        let third = decide(&world.clone().with_written(&second.objects, &known));
        let all = [&first, &second, &third];
        let from_peer = all.into_iter().flat_map(|plan| plan.objects.values());
        for object in from_peer.filter(|object| object.meta.labels.contains_key(LABEL_PEER)) {
            prop_assert_eq!(object.key.namespace.as_deref(), Some(NAMESPACE));
            let kinds = [Kind::ImportedService, Kind::ServiceEntry, Kind::DestinationRule];
            prop_assert!(kinds.contains(&object.key.kind));
            prop_assert!(object.key.name.ends_with(".west.example"), "{}", object.key);
            let spec = object.spec().unwrap();
            let host = if object.key.kind == Kind::ServiceEntry { &spec["hosts"] } else { &spec["host"] };
            let host = host.clone();
            let tls = spec.pointer("/trafficPolicy/portLevelSettings/0/tls");
            let spec = tls.unwrap_or(spec);
            let expected = if host.is_array() { json!([object.key.name]) } else { json!(object.key.name) };
            prop_assert_eq!(host, expected);
            let field =
                if object.key.kind == Kind::ImportedService { "serverSPIFFEIDs" } else { "subjectAltNames" };
            let pins = spec[field].as_array().unwrap();
            let is_of_peer = |pin: &Value| pin.as_str().unwrap().starts_with("spiffe://west.example/");
            prop_assert!(!pins.is_empty() && pins.iter().all(is_of_peer));
        }
    }
}

/// Where this process never could read what is exported, importers are told to keep it, by its name.
#[test]
fn what_is_unreadable_since_the_start_is_held() {
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let unreadable = || {
        let mut world = settled().with_rejected(key.clone(), None);
        world.services.clear();
        world
    };
    let named = |name: &str| BTreeSet::from([ServiceName::new("shop", name).unwrap()]);
    let to_east = |name: &str| BTreeMap::from([(td("east.example"), named(name))]);
    assert_eq!(decide(&unreadable()).held, to_east("cart"));
    let known = settled().with_rejected(key.clone(), None);
    assert!(decide(&known).held.is_empty(), "its last good version is in use");
    assert!(!decide(&known).catalogues.is_empty());

    let mut no_alias = unreadable();
    no_alias.objects.retain(|key, _| key.kind == Kind::AuthorizationPolicy);
    assert_eq!(decide(&no_alias).held, to_east("cart"), "where no gateway carries it, by its own name");
    let mut renamed = unreadable();
    let alias = renamed.objects.keys().find(|key| key.kind == Kind::ServiceEntry).cloned().unwrap();
    let mut object = renamed.objects.remove(&alias).map(Arc::unwrap_or_clone).unwrap();
    object.key.name = "basket.shop.west.example".to_owned();
    assert_eq!(decide(&renamed.with_object(object)).held, to_east("basket"), "as it was exported");

    let mut deleted = unreadable();
    deleted.rejected.get_mut(&key).unwrap().deletion = Some(at(0));
    assert!(decide(&deleted).held.is_empty(), "it is going");
    let mut never = unreadable();
    never.objects.clear();
    assert!(decide(&never).held.is_empty(), "it was never exported");
    let mut of_nobody = unreadable();
    of_nobody.peers.clear();
    assert!(decide(&of_nobody).held.is_empty(), "nobody is there to tell");
}

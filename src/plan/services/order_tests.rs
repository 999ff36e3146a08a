//! In which order things end: what keeps callers out goes last, whatever fails.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::model::service::{AppProtocol, RemoteService, TlsMode};
use crate::model::session::LinkState;
use crate::plan::exports::resolve::testing::declared;
use crate::plan::exports::testing::with_policies;
use crate::plan::fixtures::{WorldExt as _, cart, foreign, labels, peer, remote_cart, session, world};
use crate::plan::prune::prune;

fn decide(world: &World) -> ServicesPlan {
    services(world, &BTreeSet::new())
}

fn west(service: Service) -> World {
    let mut world = world("west.example").with_peer(peer("east.example")).with_service(service);
    world.spire = Some(Arc::default());
    world
}

/// An exporter for which everything was written.
fn settled(world: World) -> World {
    let world = with_policies(world);
    let plan = decide(&world);
    world.with_written(&plan.objects, &[])
}

/// The kinds of what is deleted next, in order.
fn ends(world: &World) -> Vec<Kind> {
    prune(world, &decide(world).objects).keys().map(|key| key.kind).collect()
}

fn without(mut world: World, kind: Kind) -> World {
    world.objects.retain(|key, _| key.kind != kind);
    world
}

fn failing(mut world: World, key: &ObjectKey) -> World {
    world.failures = Arc::new(BTreeMap::from([(key.clone(), "denied".to_owned())]));
    world
}

#[test]
fn the_policy_of_an_ended_export_goes_after_what_lets_callers_in() {
    let mut ended = settled(west(cart()));
    ended.services.clear();
    assert_eq!(ends(&ended), [Kind::ServiceEntry, Kind::Gateway]);
    let plan = decide(&ended);
    assert!(crate::plan::diff::writes(&ended, &plan.objects, &mut Default::default()).is_empty());
    assert_eq!(ends(&without(ended.clone(), Kind::Gateway)), [Kind::ServiceEntry]);
    assert_eq!(ends(&without(ended.clone(), Kind::ServiceEntry)), [Kind::Gateway]);
    let closed = without(without(ended, Kind::ServiceEntry), Kind::Gateway);
    assert_eq!(ends(&closed), [Kind::AuthorizationPolicy]);
}

#[test]
fn the_policy_of_workloads_that_were_left_goes_after_the_alias() {
    let mut moved = cart();
    moved.workload_labels = labels(&[("app", "cart-v2")]);
    let world = with_policies(settled(west(cart())).with_service(moved));
    let plan = decide(&world);
    assert!(ends(&world).is_empty(), "the alias leads to the old workloads still");
    assert_eq!(ends(&world.with_written(&plan.objects, &[])), [Kind::AuthorizationPolicy]);
}

fn east(protocol: AppProtocol) -> World {
    let mut service = remote_cart();
    service.tls_mode = TlsMode::Mtls;
    service.ports[0].protocol = protocol;
    let mut world = world("east.example").with_peer(peer("west.example"));
    world.spire = Some(Arc::default());
    offered(world, service)
}

fn offered(world: World, service: RemoteService) -> World {
    let mut world = world
        .with_session("west.example", session(LinkState::Connected, Some(vec![service.clone()])))
        .with_written(&BTreeMap::new(), &[("west.example", service)]);
    for _ in 0..3 {
        let mut plan = decide(&world);
        plan.objects.retain(|key, _| !world.objects.contains_key(key));
        world = world.with_written(&plan.objects, &[]);
    }
    world
}

#[test]
fn the_pin_of_an_ended_import_goes_after_its_host() {
    let there = east(AppProtocol::Tcp);
    assert_eq!(there.of_kind(Kind::DestinationRule).count(), 1);
    assert!(ends(&there).is_empty());
    let ended = there.with_session("west.example", session(LinkState::Connected, Some(Vec::new())));
    assert_eq!(ends(&ended), [Kind::ServiceEntry]);
    let closed = without(ended, Kind::ServiceEntry);
    assert_eq!(ends(&closed), [Kind::ImportedService, Kind::DestinationRule]);
}

#[test]
fn the_pin_of_a_port_that_is_passed_through_goes_after_the_host_says_so() {
    let world = east(AppProtocol::Tcp);
    let mut passed = remote_cart();
    passed.tls_mode = TlsMode::Mtls;
    passed.ports[0].protocol = AppProtocol::Tls;
    let world = offered(world, passed);
    let plan = decide(&world);
    assert!(!ends(&world).contains(&Kind::DestinationRule), "its host stands as it was");
    let mut objects = plan.objects;
    objects.retain(|key, _| key.kind == Kind::ServiceEntry);
    assert_eq!(ends(&world.with_written(&objects, &[])), [Kind::DestinationRule]);
}

/// A FederatedService that was malformed when the agent started.
fn unreadable(mut world: World) -> World {
    world.services.clear();
    world.with_rejected(ObjectKey::namespaced(Kind::FederatedService, "shop", "cart"), None)
}

#[test]
fn no_policy_that_allows_outlives_the_one_that_it_follows() {
    let theirs = foreign(
        Kind::AuthorizationPolicy,
        "shop",
        "theirs",
        json!({"selector": {"matchLabels": {"app": "cart"}}, "action": "ALLOW", "rules": [{}]}),
    );
    let key = theirs.key.clone();
    let world = unreadable(settled(west(cart()).with_object(theirs)));
    let allows = |world: &World| {
        let is_allow = |object: &&Arc<Object>| object.spec().unwrap()["action"] == "ALLOW";
        decide(world).objects.values().filter(is_allow).count()
    };
    assert_eq!((allows(&world), ends(&world)), (1, Vec::new()));
    let mut alone = world;
    alone.objects.remove(&key);
    assert_eq!((allows(&alone), ends(&alone)), (0, vec![Kind::AuthorizationPolicy]));
}

#[test]
fn an_export_ends_where_nothing_closes_it_and_nothing_can() {
    let key = authorization::key("shop", &cart().workload_labels);
    let gone = without(settled(west(cart())), Kind::AuthorizationPolicy);
    assert!(ends(&gone).is_empty(), "it may be written again");
    let failed = failing(gone, &key);
    assert_eq!(ends(&failed), [Kind::ServiceEntry, Kind::Gateway]);
    let plan = decide(&failed);
    assert!(plan.catalogues.is_empty() && plan.objects.contains_key(&key));
    assert_eq!(ends(&without(failed.clone(), Kind::Gateway)), [Kind::ServiceEntry]);
    // Its own application asks who calls.
    let mut mtls = cart();
    mtls.tls_mode = TlsMode::Mtls;
    mtls.gateways.iter_mut().for_each(|gateway| gateway.gateway_type = TlsMode::Mtls.gateway());
    let gone = failing(without(settled(west(mtls)), Kind::AuthorizationPolicy), &key);
    assert!(gone.of_kind(Kind::Gateway).count() == 1 && ends(&gone).is_empty());
}

#[test]
fn what_is_withdrawn_of_the_last_good_version_goes() {
    let name = NamespacedName::new("shop", "cart");
    let mut withdrawn = unreadable(settled(west(cart())));
    assert!(ends(&withdrawn).is_empty(), "nothing good of it is known");
    let mut known = declared();
    known.uid = "another".to_owned();
    withdrawn.declared.insert(name.clone(), Arc::new(known.clone()));
    assert!(ends(&withdrawn).is_empty(), "nor of this one");
    known.uid = "uid".to_owned();
    withdrawn.declared.insert(name, Arc::new(known));
    assert_eq!(ends(&withdrawn), [Kind::ServiceEntry, Kind::Gateway]);
}

#[test]
fn what_is_malformed_and_being_deleted_goes() {
    let mut deleted = unreadable(settled(west(cart())));
    for rejected in deleted.rejected.values_mut() {
        rejected.deletion = Some(crate::plan::fixtures::at(0));
    }
    assert_eq!(ends(&deleted), [Kind::ServiceEntry, Kind::Gateway]);
}

/// Garbage collection deletes what nobody owns any more, in any order: what keeps callers out is owned by what lets them in.
#[test]
fn the_policy_is_owned_by_what_it_outlives() {
    let mut service = cart();
    service.tls_mode = TlsMode::Mtls;
    service.gateways[0].gateway_type = crate::model::service::GatewayType::IngressGateway;
    for service in [cart(), service] {
        let mut world = west(service);
        world = world.with_pod(crate::plan::fixtures::pod("shop", "one", "10.0.0.1", &[("app", "cart")]));
        for _ in 0..4 {
            let plan = decide(&world);
            world = world.with_written(&plan.objects, &[]);
        }
        let plan = decide(&world);
        assert!(crate::plan::diff::writes(&world, &plan.objects, &mut Default::default()).is_empty());
        let uid = |key: &ObjectKey| world.objects[key].meta.uid.clone();
        let owners = |kind: Kind| -> BTreeSet<String> {
            let object = plan.objects.values().find(|object| object.key.kind == kind).unwrap();
            object.meta.owners.iter().map(|owner| owner.uid.clone()).collect()
        };
        let doors = [Kind::Gateway, Kind::ServiceEntry, Kind::VirtualService];
        let mut expected: BTreeSet<String> =
            plan.objects.keys().filter(|key| doors.contains(&key.kind)).map(uid).collect();
        assert!(expected.len() >= 2);
        expected.insert("uid-of-shop-cart".to_owned());
        assert_eq!(owners(Kind::AuthorizationPolicy), expected);
        if plan.objects.keys().any(|key| key.kind == Kind::PeerAuthentication) {
            assert_eq!(owners(Kind::PeerAuthentication), expected);
        }
        assert_eq!(owners(Kind::Gateway), BTreeSet::from(["uid-of-shop-cart".to_owned()]));
    }
}

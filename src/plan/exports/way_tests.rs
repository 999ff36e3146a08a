use std::sync::Arc;

use serde_json::json;

use crate::model::condition::Truth;
use crate::model::object::Kind;
use crate::model::service::{DirectEndpoint, Gateway, GatewayType, RemoteService};
use crate::model::{Object, ObjectKey, ServiceName};
use crate::plan::exports::testing::catalogue;
use crate::plan::exports::testing::with_policies;
use crate::plan::exports::{ExportReport, Exports, exports};
use crate::plan::fixtures::{
    WorldExt as _, at, cart, foreign, gateway, labels, peer, pod, service_of_gateway, td, world,
};
use crate::plan::services::{ServicesPlan, services};

use super::*;

const EASTWEST: &str = "istio-eastwestgateway";

/// Exports cart, of which nobody says through which gateway.
fn base() -> World {
    let mut cart = cart();
    cart.gateways.clear();
    world("west.example").with_peer(peer("east.example")).with_service(cart)
}

fn decide(world: &World) -> (Exports, ServicesPlan) {
    let world = with_policies(world.clone());
    (exports(&world), services(&world, &BTreeSet::new()))
}

fn report(exports: &Exports) -> &ExportReport {
    exports.reports.values().next().unwrap()
}

fn offered(exports: &Exports) -> Option<RemoteService> {
    catalogue(exports, &td("east.example"))
        .remove(&ServiceName::new("shop", "cart").unwrap())
        .map(Arc::unwrap_or_clone)
}

fn of_kind(plan: &ServicesPlan, kind: Kind) -> Option<&Object> {
    plan.objects.values().map(|object| &**object).find(|object| object.key.kind == kind)
}

/// As the status of cart is once importers were told of these.
fn with_told(mut world: World, entries: &[(&str, &str, u16)]) -> World {
    let entries: Vec<_> = entries
        .iter()
        .map(|(kind, address, port)| json!({"type": kind, "address": address, "port": port}))
        .collect();
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    world.statuses.insert(key, Arc::new(json!({ "gatewayEntries": entries })));
    world
}

#[test]
fn a_gateway_that_is_found_carries_the_export() {
    let world = base().with_cluster_service(service_of_gateway(EASTWEST, &["192.0.2.9"]));
    let (exports, plan) = decide(&world);
    assert_eq!(report(&exports).gateways, [gateway("192.0.2.9", 15_443)]);
    assert_eq!(offered(&exports).unwrap().gateways, [gateway("192.0.2.9", 15_443)]);
    let spec = of_kind(&plan, Kind::Gateway).unwrap().spec().unwrap();
    assert_eq!(spec["selector"], json!({"istio": "eastwestgateway"}));
    assert_eq!(spec["servers"][0]["port"]["number"], 15_443);
    let alias = of_kind(&plan, Kind::ServiceEntry).unwrap().spec().unwrap();
    assert_eq!(alias["exportTo"], json!(["istio-system"]));
}

/// Another address reaches the peer, and nothing is rewritten for it.
#[test]
fn another_address_changes_the_catalogue_alone() {
    let before =
        decide(&base().with_cluster_service(service_of_gateway(EASTWEST, &["192.0.2.9", "192.0.2.8"])));
    let after = decide(&base().with_cluster_service(service_of_gateway(EASTWEST, &["192.0.2.7"])));
    assert_eq!(before.1.objects, after.1.objects);
    assert_eq!(offered(&before.0).unwrap().gateways.len(), 2);
    assert_eq!(
        offered(&after.0).unwrap().gateways,
        [gateway("192.0.2.7", 15_443)],
        "one that is gone is gone"
    );
}

/// What says nothing of where the gateway is takes nothing away: it is told on, and what was written stays.
#[test]
fn a_gateway_that_is_not_there_takes_nothing_away() {
    let there = base().with_cluster_service(service_of_gateway(EASTWEST, &["192.0.2.9"]));
    let (_, written) = decide(&there);
    let out = with_told(there.with_written(&written.objects, &[]), &[(EASTWEST, "192.0.2.9", 15_443)]);
    let mut gone = out.clone();
    gone.cluster_services.clear();
    let mut pending = out;
    pending = pending.with_cluster_service(service_of_gateway(EASTWEST, &[]));
    for (world, reason, status) in [
        (gone, ExportedReason::NoGateway, Truth::False),
        (pending, ExportedReason::GatewayPending, Truth::Unknown),
    ] {
        let exports = exports(&world);
        let plan = services(&world, &BTreeSet::new());
        assert_eq!(offered(&exports).unwrap().gateways, [gateway("192.0.2.9", 15_443)]);
        let kept = report(&exports).kept.clone().unwrap();
        assert_eq!((kept.reason, kept.status), (reason, status));
        assert!(kept.message.contains("what importers were told stays"), "{}", kept.message);
        for (key, object) in &written.objects {
            assert_eq!(plan.objects.get(key).map(|o| &o.body), Some(&object.body), "{key}");
        }
    }
}

/// What a rule exports has no status of its own to remember by.
#[test]
fn where_a_gateway_was_seen_is_told_on_where_no_status_says_it() {
    let there = base().with_cluster_service(service_of_gateway(EASTWEST, &["192.0.2.9"]));
    let (_, written) = decide(&there);
    let mut gone = there.with_written(&written.objects, &[]);
    gone.cluster_services.clear();
    assert!(offered(&exports(&gone)).is_none(), "nothing is known");
    let seen = BTreeSet::from([gateway("192.0.2.9", 15_443)]);
    gone.gateways_seen.insert(GatewayType::EastWestGateway, seen.clone());
    assert_eq!(offered(&exports(&gone)).unwrap().gateways, [gateway("192.0.2.9", 15_443)]);
    let mut new = with_policies(base());
    new.gateways_seen.insert(GatewayType::EastWestGateway, seen);
    assert!(offered(&exports(&new)).is_none(), "what is not out was never told");
}

#[test]
fn a_gateway_that_never_was_is_waited_for() {
    let pending = base().with_cluster_service(service_of_gateway(EASTWEST, &[]));
    let other_type = with_told(pending.clone(), &[("istio-ingressgateway", "192.0.2.9", 443)]);
    for (world, reason, words) in [
        (pending, ExportedReason::GatewayPending, "istio-system/istio-eastwestgateway"),
        (other_type, ExportedReason::GatewayPending, "has no address that a peer can use yet"),
        (base(), ExportedReason::NoGateway, "there is no Service istio-system/istio-eastwestgateway"),
    ] {
        let (exports, plan) = decide(&world);
        let problem = report(&exports).exported.clone().unwrap_err();
        assert_eq!(problem.reason, reason);
        assert!(problem.message.contains(words), "{}", problem.message);
        assert!(offered(&exports).is_none());
        assert!(
            of_kind(&plan, Kind::Gateway).is_none() && of_kind(&plan, Kind::AuthorizationPolicy).is_some()
        );
    }
}

/// `spec.gateways` wins whole; the Gateway object names the port that stands behind what it says.
#[test]
fn what_the_object_says_of_its_gateways_wins() {
    let mut cart = cart();
    cart.gateways = vec![
        Gateway { gateway_type: GatewayType::EastWestGateway, at: gateway("edge.west.example", 443) },
        Gateway { gateway_type: GatewayType::EastWestGateway, at: gateway("198.51.100.1", 31_443) },
    ];
    let mut service = service_of_gateway(EASTWEST, &["192.0.2.9"]);
    service.ports[1].node_port = Some(31_443);
    service.selector = labels(&[("app", "gw")]);
    let (exports, plan) = decide(&base().with_service(cart.clone()).with_cluster_service(service));
    assert_eq!(
        offered(&exports).unwrap().gateways,
        [gateway("198.51.100.1", 31_443), gateway("edge.west.example", 443)]
    );
    let spec = of_kind(&plan, Kind::Gateway).unwrap().spec().unwrap();
    assert_eq!(spec["selector"], json!({"app": "gw"}));
    let ports = |spec: &serde_json::Value| -> Vec<u64> {
        spec["servers"].as_array().unwrap().iter().map(|s| s["port"]["number"].as_u64().unwrap()).collect()
    };
    assert_eq!(ports(spec), [15_443], "both lead to the one that passes TLS on");
    let (_, plan) = decide(&base().with_service(cart));
    assert_eq!(ports(of_kind(&plan, Kind::Gateway).unwrap().spec().unwrap()), [443, 31_443]);
}

fn flat() -> World {
    let mut east = peer("east.example");
    east.direct_endpoints = true;
    base().with_peer(east)
}

#[test]
fn without_a_gateway_a_flat_network_reaches_the_pods() {
    let with_pod = flat().with_pod(pod("shop", "a", "10.0.0.3", &[("app", "cart")]));
    let (exports, plan) = decide(&with_pod);
    let offered_there = offered(&exports).unwrap();
    let expected = DirectEndpoint {
        address: "10.0.0.3".parse().unwrap(),
        ports: BTreeMap::from([("tcp".to_owned(), 8_080)]),
    };
    assert_eq!((offered_there.gateways, offered_there.endpoints), (vec![], vec![expected]));
    assert!(plan.objects.keys().all(|key| key.kind == Kind::AuthorizationPolicy), "nothing for a gateway");

    let (without, _) = decide(&flat());
    assert_eq!(report(&without).exported.clone().unwrap_err().reason, ExportedReason::NoEndpoints);
    let both = with_pod.with_cluster_service(service_of_gateway(EASTWEST, &["192.0.2.9"]));
    let offered_there = offered(&decide(&both).0).unwrap();
    assert!(offered_there.endpoints.is_empty() && offered_there.gateways.len() == 1, "a gateway comes first");
    let (not_flat, _) = decide(&base().with_pod(pod("shop", "a", "10.0.0.3", &[("app", "cart")])));
    assert!(offered(&not_flat).is_none(), "only where the peer is said to reach them");
}

/// A Gateway of someone else's for the host, at the same gateway.
fn theirs(created: i64, host: &str, mode: &str, port: u16, selector: &[(&str, &str)]) -> Object {
    let mut object = foreign(
        Kind::Gateway,
        "edge",
        "theirs",
        json!({
            "selector": labels(selector),
            "servers": [{"port": {"number": port, "name": "tls", "protocol": "TLS"}, "hosts": [host], "tls": {"mode": mode}}],
        }),
    );
    object.meta.created = Some(at(created));
    object
}

#[test]
fn the_older_of_two_gateways_for_a_host_wins() {
    let west = base().with_cluster_service(service_of_gateway(EASTWEST, &["192.0.2.9"]));
    let (_, plan) = decide(&west);
    let out = west.with_written(&plan.objects, &[]);
    let istio: &[(&str, &str)] = &[("istio", "eastwestgateway")];
    let host = "*/cart.shop.west.example";
    for (theirs, expected) in [
        (theirs(-10, host, "AUTO_PASSTHROUGH", 15_443, istio), Some(true)),
        (theirs(-10, "*/*.west.example", "AUTO_PASSTHROUGH", 15_443, &[]), Some(true)),
        (theirs(10, host, "AUTO_PASSTHROUGH", 15_443, istio), Some(false)),
        (theirs(-10, host, "PASSTHROUGH", 15_443, istio), None),
        (theirs(-10, host, "AUTO_PASSTHROUGH", 443, istio), None),
        (theirs(-10, host, "AUTO_PASSTHROUGH", 15_443, &[("istio", "other")]), None),
        (theirs(-10, "*.local", "AUTO_PASSTHROUGH", 15_443, istio), None),
    ] {
        let exports = exports(&out.clone().with_object(theirs.clone()));
        let report = report(&exports);
        let lost = report.exported.as_ref().err().map(|problem| problem.reason);
        let warned = report.warnings.iter().any(|warning| {
            warning.reason == ExportedReason::HostExists && warning.message.contains("Gateway edge/theirs")
        });
        match expected {
            Some(true) => assert_eq!(lost, Some(ExportedReason::HostExists), "{theirs:?}"),
            other => assert_eq!((lost, warned), (None, other.is_some()), "{theirs:?}"),
        }
    }
    let healed = exports(&out);
    assert!(report(&healed).exported.is_ok() && report(&healed).warnings.is_empty());
}

fn mtls() -> World {
    let mut cart = cart();
    cart.gateways.clear();
    cart.tls_mode = TlsMode::Mtls;
    base().with_service(cart).with_cluster_service(service_of_gateway("istio-ingressgateway", &["192.0.2.9"]))
}

#[test]
fn sidecars_pass_on_what_the_application_ends() {
    let of = |world: &World| {
        let (_, plan) = decide(world);
        assert!(of_kind(&plan, Kind::VirtualService).is_some() && of_kind(&plan, Kind::Gateway).is_some());
        plan.objects.into_values().find(|object| object.key.kind == Kind::PeerAuthentication)
    };
    let mut bare = pod("shop", "a", "10.0.0.3", &[("app", "cart")]);
    bare.has_sidecar = false;
    assert_eq!(of(&mtls()), None, "no pod is known");
    assert_eq!(of(&mtls().with_pod(bare)), None, "no sidecar");
    let with_sidecar = mtls().with_pod(pod("shop", "b", "10.0.0.4", &[("app", "cart")]));
    let ours = of(&with_sidecar).unwrap();
    assert_eq!(
        ours.spec().unwrap(),
        &json!({
            "selector": {"matchLabels": {"app": "cart"}},
            "portLevelMtls": {"8080": {"mode": "DISABLE"}},
        })
    );
    // Pods that are gone for a moment take nothing away.
    let written = std::collections::BTreeMap::from([(ours.key.clone(), ours.clone())]);
    assert_eq!(of(&mtls().with_written(&written, &[])).map(|o| o.body.clone()), Some(ours.body.clone()));
}

#[test]
fn a_peer_authentication_of_someone_elses_is_left_alone() {
    let pods = mtls().with_pod(pod("shop", "b", "10.0.0.4", &[("app", "cart"), ("tier", "web")]));
    let theirs = |selector: &[(&str, &str)], ports: serde_json::Value| {
        foreign(
            Kind::PeerAuthentication,
            "shop",
            "theirs",
            json!({"selector": {"matchLabels": labels(selector)}, "mtls": {"mode": "STRICT"}, "portLevelMtls": ports}),
        )
    };
    let strict = json!({"9090": {"mode": "DISABLE"}});
    for (theirs, is_written, warned) in [
        (theirs(&[("app", "cart")], strict.clone()), false, true),
        (theirs(&[("tier", "web")], strict.clone()), false, true),
        (theirs(&[("tier", "web")], json!({"8080": {"mode": "DISABLE"}})), false, false),
        (theirs(&[("tier", "db")], strict.clone()), true, false),
        (theirs(&[], strict), true, false),
    ] {
        let world = pods.clone().with_object(theirs.clone());
        let (exports, plan) = decide(&world);
        let report = report(&exports);
        assert!(report.exported.is_ok(), "it is reached all the same");
        assert_eq!(of_kind(&plan, Kind::PeerAuthentication).is_some(), is_written, "{theirs:?}");
        let warnings: Vec<_> = report.warnings.iter().map(|warning| &warning.message).collect();
        assert_eq!(warnings.len(), usize::from(warned), "{warnings:?}");
        assert!(warnings.iter().all(|message| message.contains("PeerAuthentication shop/theirs") && message.contains("8080")));
    }
}

//! Every shape that is generated, as a manifest in `golden/`. They are to be read beside Istio's documentation:
//! an exporter's alias, Gateway and policy, and an importer's ImportedService and ServiceEntry.

use std::collections::BTreeSet;

use serde_json::json;

use crate::model::object::Kind;
use crate::model::service::{AppProtocol, ExportedPort, Gateway, GatewayType, RemotePort, TlsMode};
use crate::model::session::LinkState;

use super::exports::resolve::testing as running;
use super::exports::resolve::testing::Cluster as _;
use super::exports::testing::with_policies;
use super::fixtures::{
    WorldExt as _, cart, client, foreign, gateway, labels, manifest, peer, pod, remote_cart, service,
    service_of_gateway, session, td, world,
};
use super::services::{ServicesPlan, services};

fn assert_golden(name: &str, plan: &ServicesPlan, kinds: &[Kind]) {
    let manifests: Vec<_> = plan
        .objects
        .values()
        .filter(|object| kinds.contains(&object.key.kind))
        .map(|object| manifest(object))
        .collect();
    assert!(!manifests.is_empty(), "{name}: nothing of {kinds:?}");
    insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_yaml_snapshot!(name, manifests);
    });
}

#[test]
fn an_export() {
    let world = with_policies(world("west.example").with_peer(peer("east.example")).with_service(cart()));
    let plan = services(&world, &BTreeSet::new());
    assert_golden("export_alias", &plan, &[Kind::ServiceEntry]);
    assert_golden("export_gateway", &plan, &[Kind::Gateway]);
    assert_golden("export_policy", &plan, &[Kind::AuthorizationPolicy]);
}

/// An application with a sidecar that ends TLS itself, behind a gateway that was found.
#[test]
fn an_export_whose_application_ends_tls() {
    let mut web = service("shop", "web", "east.example");
    web.tls_mode = TlsMode::Mtls;
    web.gateways.clear();
    web.ports[0].protocol = AppProtocol::Tls;
    let world = world("west.example")
        .with_peer(peer("east.example"))
        .with_service(web)
        .with_pod(pod("shop", "web", "10.0.0.1", &[("app", "web")]))
        .with_cluster_service(service_of_gateway("istio-ingressgateway", &["192.0.2.9"]));
    let plan = services(&with_policies(world), &BTreeSet::new());
    assert_golden(
        "export_mtls",
        &plan,
        &[Kind::ServiceEntry, Kind::Gateway, Kind::VirtualService, Kind::PeerAuthentication],
    );
}

/// What opens and closes the rest: clients where others allow, and the fence.
#[test]
fn policies_beside_others() {
    let theirs = foreign(
        Kind::AuthorizationPolicy,
        "shop",
        "theirs",
        json!({"action": "ALLOW", "selector": {"matchLabels": {"tier": "web"}}}),
    );
    let mut world =
        world("west.example").with_peer(peer("east.example")).with_service(cart()).with_object(theirs);
    std::sync::Arc::make_mut(&mut world.settings).fence = true;
    let plan = services(&world, &BTreeSet::new());
    assert_golden("policies_beside_others", &plan, &[Kind::AuthorizationPolicy]);
}

/// Two FederatedServices of one selector, several ports, gateways and trust domains.
#[test]
fn a_wide_export() {
    let mut orders = service("shop", "orders", "east.example");
    orders.workload_labels = labels(&[("app", "cart"), ("tier", "web")]);
    orders.exported_to.insert(td("north.example"));
    orders.clients.insert(client("spiffe://north.example/ns/batch/*"));
    orders.ports = vec![
        ExportedPort {
            name: "http-orders".to_owned(),
            port: 80,
            target_port: 9_090,
            protocol: AppProtocol::Http,
            clients: None,
        },
        ExportedPort {
            name: "grpc".to_owned(),
            port: 50_051,
            target_port: 50_051,
            protocol: AppProtocol::Grpc,
            clients: None,
        },
    ];
    orders
        .gateways
        .push(Gateway { gateway_type: GatewayType::EastWestGateway, at: gateway("gw.west.example", 443) });
    let mut cart = cart();
    cart.workload_labels = labels(&[("app", "cart"), ("tier", "web")]);
    let world = world("west.example")
        .with_peer(peer("east.example"))
        .with_peer(peer("north.example"))
        .with_service(orders)
        .with_service(cart);
    let plan = services(&with_policies(world), &BTreeSet::new());
    assert_golden("wide_export", &plan, &[Kind::ServiceEntry, Kind::Gateway, Kind::AuthorizationPolicy]);
}

/// A Service that a rule selects, behind the gateway that was found; the rule owns what is generated.
#[test]
fn a_rule() {
    let world = world("west.example")
        .with_peer(peer("east.example"))
        .with_rule(running::rule("carts", -10))
        .with_cluster_service(running::cluster_service("cart"))
        .with_pod(running::pod("one", "cart", Some(8080)))
        .settled();
    let mut world = with_policies(world);
    let service = std::sync::Arc::make_mut(world.services.values_mut().next().unwrap());
    service.gateways = cart().gateways;
    let plan = services(&world, &BTreeSet::new());
    assert_golden("rule_export", &plan, &[Kind::ServiceEntry, Kind::Gateway, Kind::AuthorizationPolicy]);
}

/// One port is for others than the rest.
#[test]
fn clients_of_a_port() {
    let mut cart = cart();
    let admin = ExportedPort {
        name: "admin".to_owned(),
        port: 9_000,
        target_port: 9_000,
        clients: Some(BTreeSet::from([client("spiffe://east.example/ns/ops/*")])),
        ..cart.ports[0].clone()
    };
    cart.ports.push(admin);
    let world = with_policies(world("west.example").with_peer(peer("east.example")).with_service(cart));
    let plan = services(&world, &BTreeSet::new());
    assert_golden("export_policy_by_port", &plan, &[Kind::AuthorizationPolicy]);
    let offered = plan.catalogues[&td("east.example")].values().next().unwrap();
    let clients: Vec<usize> = offered.ports.iter().map(|port| port.clients.len()).collect();
    assert_eq!((clients, offered.ports[0].name.as_str()), (vec![1, 0], "admin"), "no more than it says");
}

#[test]
fn an_import() {
    let mut west = peer("west.example");
    west.imports.export_to = vec!["shop".to_owned(), "batch".to_owned()];
    let mut by_name = remote_cart();
    by_name.name = crate::model::ServiceName::new("shop", "orders").unwrap();
    by_name.gateways.push(gateway("gw.west.example", 443));
    let known = [("west.example", remote_cart()), ("west.example", by_name.clone())];
    let world = world("east.example")
        .with_peer(west)
        .with_session("west.example", session(LinkState::Connected, Some(vec![remote_cart(), by_name])));
    let first = services(&world, &BTreeSet::new());
    assert_golden("import", &first, &[Kind::ImportedService]);
    assert!(first.objects.keys().all(|key| key.kind == Kind::ImportedService), "its uid is not known yet");

    let second = services(&world.with_written(&first.objects, &known), &BTreeSet::new());
    assert_golden("import_entry", &second, &[Kind::ServiceEntry]);
}

/// A service whose application ends TLS: on one port the client's application begins it, on the other its sidecar.
#[test]
fn an_import_of_mutual_tls() {
    let mut remote = remote_cart();
    remote.tls_mode = TlsMode::Mtls;
    let port = |name: &str, port, protocol| RemotePort {
        name: name.to_owned(),
        port,
        protocol,
        clients: BTreeSet::new(),
    };
    remote.ports = vec![port("tls", 8_443, AppProtocol::Tls), port("http", 8_080, AppProtocol::Http)];
    let world = world("east.example")
        .with_peer(peer("west.example"))
        .with_session("west.example", session(LinkState::Connected, Some(vec![remote.clone()])));
    let first = services(&world, &BTreeSet::new());
    let known = [("west.example", remote)];
    // The rule is written first, and then the entry.
    let world = world.with_written(&first.objects, &known);
    let second = services(&world, &BTreeSet::new());
    let third = services(&world.with_written(&second.objects, &known), &BTreeSet::new());
    assert_golden("import_mtls", &third, &[Kind::ServiceEntry, Kind::DestinationRule]);
}

/// Where the networks are flat: its pods, each with what it listens on.
#[test]
fn an_import_without_gateways() {
    let mut remote = remote_cart();
    remote.gateways.clear();
    let pod = |address: &str, port| crate::model::service::DirectEndpoint {
        address: address.parse().unwrap(),
        ports: std::collections::BTreeMap::from([("tcp".to_owned(), port)]),
    };
    remote.endpoints = vec![pod("10.9.0.2", 8_081), pod("10.9.0.1", 8_080)];
    let world = world("east.example")
        .with_peer(peer("west.example"))
        .with_session("west.example", session(LinkState::Connected, Some(vec![remote.clone()])));
    let first = services(&world, &BTreeSet::new());
    let known = [("west.example", remote)];
    let second = services(&world.with_written(&first.objects, &known), &BTreeSet::new());
    assert_golden("import_direct", &second, &[Kind::ImportedService, Kind::ServiceEntry]);
}

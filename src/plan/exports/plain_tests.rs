use std::sync::Arc;

use super::*;
use crate::model::NamespacedName;
use crate::model::object::Kind;
use crate::model::service::{Address, Gateway, GatewayType};
use crate::plan::exports::testing::{catalogue, with_policies};
use crate::plan::exports::{ExportReport, Exports};
use crate::plan::fixtures::{WorldExt as _, cart, gateway, peer, service, td, world};
use crate::plan::services::services;

/// West, which has no Istio, and this service.
fn plain(service: Service, serves_xds: bool) -> World {
    let mut world = world("west.example").with_peer(peer("east.example")).with_service(service);
    world.absent.extend(Kind::WATCHED.into_iter().filter(|kind| kind.is_istio()));
    serving(world, serves_xds)
}

fn serving(mut world: World, serves_xds: bool) -> World {
    Arc::make_mut(&mut world.settings).serves_xds = serves_xds;
    world
}

/// What listens at an address outside of every mesh.
fn outside() -> Service {
    let mut cart = cart();
    cart.workload_labels.clear();
    cart.endpoints.insert(Address::parse("192.0.2.8").unwrap());
    cart
}

fn report(exports: &Exports) -> &ExportReport {
    &exports.reports[&NamespacedName::new("shop", "cart")]
}

fn why(world: &World) -> &'static str {
    let exports = crate::plan::exports::exports(world);
    report(&exports).exported.as_ref().err().map_or("", |problem| problem.reason.as_str())
}

fn mtls(mut service: Service) -> Service {
    service.tls_mode = TlsMode::Mtls;
    let gateway_type = GatewayType::IngressGateway;
    service.gateways = vec![Gateway { gateway_type, at: gateway("10.77.2.2", 15_443) }];
    service
}

#[test]
fn who_ends_tls_where_there_is_no_istio() {
    for (service, serves_xds, expected, enforcer) in [
        (cart(), true, "", Enforcer::Proxy),
        (cart(), false, "IstioAbsent", Enforcer::Proxy),
        (mtls(cart()), true, "", Enforcer::Gateway),
        // The application ends TLS itself: nothing of ours is in its way.
        (mtls(cart()), false, "", Enforcer::Gateway),
        (outside(), true, "", Enforcer::Proxy),
        (outside(), false, "XdsNotServed", Enforcer::Proxy),
        (mtls(outside()), true, "", Enforcer::Proxy),
        (mtls(outside()), false, "XdsNotServed", Enforcer::Proxy),
    ] {
        let what = format!("{:?} {:?} {serves_xds}", service.tls_mode, service.endpoints);
        let world = plain(service, serves_xds);
        assert_eq!(why(&world), expected, "{what}");
        let exports = crate::plan::exports::exports(&world);
        assert_eq!(report(&exports).enforcer, enforcer, "{what}");
        assert_eq!(report(&exports).enforced.is_ok(), expected.is_empty(), "{what}");
        assert_eq!(
            catalogue(&exports, &td("east.example")).len(),
            usize::from(expected.is_empty()),
            "{what}"
        );
        assert!(services(&world, &std::collections::BTreeSet::new()).objects.is_empty(), "{what}");
    }
}

#[test]
fn some_of_istio_is_a_mesh_that_lacks_the_rest() {
    let mut world = plain(cart(), true);
    world.absent.remove(&Kind::ServiceEntry);
    assert_eq!(why(&world), "IstioAbsent");
}

/// Where there is a mesh, what is outside of it needs nothing of it, and is in nobody's way there.
#[test]
fn what_is_outside_of_a_mesh_is_left_alone_by_it() {
    let inside = service("shop", "web", "east.example");
    let world = world("west.example").with_peer(peer("east.example"));
    let with = |world: World, service: Service| with_policies(serving(world.with_service(service), true));
    let alone = with(world.clone(), inside.clone());
    let both = with(world.with_service(outside()), inside);
    let none = std::collections::BTreeSet::new();
    assert!(!services(&alone, &none).objects.is_empty());
    assert_eq!(services(&alone, &none).objects, services(&both, &none).objects);
    let exports = crate::plan::exports::exports(&both);
    assert_eq!(exports.exported.len(), 2);
    assert_eq!(catalogue(&exports, &td("east.example")).len(), 2);
}

/// No policy speaks for those outside, so that none of them stands in the way of another by it.
#[test]
fn many_stand_outside_beside_each_other() {
    let mut second = mtls(outside());
    second.object.name = "web".to_owned();
    second.name = crate::model::ServiceName::new("shop", "web").unwrap();
    let exports = crate::plan::exports::exports(&plain(outside(), true).with_service(second));
    assert_eq!(exports.exported.len(), 2, "{:?}", exports.reports);
    assert!(exports.accepted.is_empty());
}

#[test]
fn only_gateways_that_are_given_lead_there() {
    for (tune, expected) in [
        ((|service| service.gateways.clear()) as fn(&mut Service), "NoGateway"),
        (|service| service.tls_mode = TlsMode::Mtls, "GatewayTypeIgnored"),
        (|service| service.server_ids.clear(), "NoServerIds"),
        (|service| service.exported_to = [td("north.example")].into(), "NoPeer"),
    ] {
        let mut service = outside();
        tune(&mut service);
        let world = plain(service, true);
        assert_eq!(why(&world), expected);
        let report = &crate::plan::exports::exports(&world).reports[&NamespacedName::new("shop", "cart")];
        let message = &report.exported.as_ref().unwrap_err().message;
        assert!(!message.contains("ServiceEntry") && message.len() > 40, "{message}");
    }
}

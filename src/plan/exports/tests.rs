use crate::api::v1alpha1::conditions::{ExportedReason, Reason};
use crate::model::ServiceName;
use crate::model::condition::Truth;
use crate::model::object::Kind;
use crate::model::service::{ExportedPort, Gateway, GatewayType};
use crate::plan::fixtures::{
    WorldExt as _, at, cart, client, foreign, gateway, id, labels, peer, service, td, world,
};

use super::super::authorization;
use super::testing::{catalogue, catalogues};
use super::*;

fn reason<R: Reason>(result: &Result<(), ExportProblem<R>>) -> &'static str {
    result.as_ref().err().map_or("", |problem| problem.reason.as_str())
}

/// What is decided once the policies were written.
fn exports(world: &World) -> Exports {
    super::exports(&testing::with_policies(world.clone()))
}

fn report<'a>(exports: &'a Exports, name: &str) -> &'a ExportReport {
    &exports.reports[&NamespacedName::new("shop", name)]
}

fn base() -> World {
    world("west.example").with_peer(peer("east.example"))
}

#[test]
fn an_export_goes_to_its_peer() {
    let exports = exports(&base().with_service(cart()));
    let report = report(&exports, "cart");
    assert_eq!((&report.accepted, &report.exported, &report.enforced), (&Ok(()), &Ok(()), &Ok(())));
    assert_eq!(report.host.as_deref(), Some("cart.shop.west.example"));
    assert_eq!(report.gateways, [gateway("10.77.2.2", 15_443)]);
    let offered = &catalogue(&exports, &td("east.example"))[&ServiceName::new("shop", "cart").unwrap()];
    assert_eq!(**offered, crate::plan::fixtures::remote_cart());
    assert!(catalogue(&exports, &td("north.example")).is_empty());
    assert_eq!(catalogues(&exports)[&td("east.example")], catalogue(&exports, &td("east.example")));
}

#[test]
fn each_peer_sees_only_its_own_clients() {
    let mut cart = cart();
    cart.exported_to.insert(td("north.example"));
    cart.clients.insert(client("spiffe://north.example/ns/batch/*"));
    let exports = exports(&base().with_peer(peer("north.example")).with_service(cart));
    for (td_name, expected) in [
        ("east.example", "spiffe://east.example/ns/shop/sa/client"),
        ("north.example", "spiffe://north.example/ns/batch/*"),
    ] {
        let offered = catalogue(&exports, &td(td_name)).into_values().next().unwrap();
        assert_eq!(offered.clients, BTreeSet::from([client(expected)]));
    }
}

/// What keeps one service from all peers: the change to it, the reason, and whether it is accepted nevertheless.
#[test]
fn reasons_of_a_service() {
    type Change = fn(&mut Service);
    let table: [(&str, bool, Change); 6] = [
        ("NoServerIds", true, |s| s.server_ids.clear()),
        ("ForeignServerId", true, |s| {
            s.server_ids.insert(id("spiffe://east.example/ns/shop/sa/cart"));
        }),
        ("NoGateway", true, |s| s.gateways.clear()),
        ("GatewayTypeIgnored", true, |s| s.gateways[0].gateway_type = GatewayType::IngressGateway),
        ("OneTargetPort", false, |s| {
            s.tls_mode = TlsMode::Mtls;
            let other = ExportedPort { name: "b".to_owned(), port: 1, target_port: 2, ..s.ports[0].clone() };
            s.ports.push(other);
        }),
        ("HostTooLong", false, |s| {
            s.name = ServiceName::new(&"n".repeat(63), &"s".repeat(63)).unwrap();
        }),
    ];
    for (expected, is_accepted, change) in table {
        let mut changed = cart();
        change(&mut changed);
        let own = if expected == "HostTooLong" {
            format!("{0}.{0}.example", "w".repeat(60))
        } else {
            "west.example".to_owned()
        };
        let exports = exports(&world(&own).with_peer(peer("east.example")).with_service(changed));
        let report = report(&exports, "cart");
        assert_eq!(reason(&report.accepted), if is_accepted { "" } else { expected });
        let exported = if is_accepted { expected } else { "NotAccepted" };
        assert_eq!(reason(&report.exported), exported, "{expected}");
        assert_eq!(reason(&report.to[&td("east.example")]), exported, "{expected}");
        assert!(exports.exported.is_empty() && catalogues(&exports).is_empty(), "{expected}");
    }
}

#[test]
fn reasons_of_a_peer() {
    let mut deleting = peer("east.example");
    deleting.deletion = Some(at(0));
    let mut no_clients = cart();
    no_clients.exported_to.insert(td("north.example"));
    let table = [
        ("NoPeer", world("west.example").with_service(cart()), "east.example"),
        ("NoPeer", world("west.example").with_peer(deleting).with_service(cart()), "east.example"),
        ("NoClientsThere", base().with_peer(peer("north.example")).with_service(no_clients), "north.example"),
    ];
    for (expected, world, to) in table {
        let exports = exports(&world);
        assert_eq!(reason(&report(&exports, "cart").to[&td(to)]), expected);
        assert!(catalogue(&exports, &td(to)).is_empty());
        assert!(report(&exports, "cart").accepted.is_ok());
    }
}

#[test]
fn a_suspended_peer_keeps_what_it_is_offered() {
    let mut suspended = peer("east.example");
    suspended.suspend = true;
    let exports = exports(&world("west.example").with_peer(suspended).with_service(cart()));
    assert_eq!(catalogue(&exports, &td("east.example")).len(), 1);
}

#[test]
fn nothing_is_exported_before_we_know_who_we_are() {
    let mut world = base().with_service(cart());
    world.identity = None;
    let exports = exports(&world);
    assert_eq!(reason(&report(&exports, "cart").accepted), "NoIdentity");
    assert!(exports.exported.is_empty() && exports.accepted.is_empty());
}

#[test]
fn nothing_is_exported_below_a_trust_domain_that_is_no_dns_host() {
    for own in ["west_example", "west.1", "west..example"] {
        let exports = exports(&world(own).with_peer(peer("east.example")).with_service(cart()));
        assert_eq!(reason(&report(&exports, "cart").accepted), "TrustDomainNotDns", "{own}");
    }
}

#[test]
fn an_ingress_gateway_is_passed_over() {
    let mut cart = cart();
    cart.gateways.push(Gateway { gateway_type: GatewayType::IngressGateway, at: gateway("10.0.0.9", 443) });
    let exports = exports(&base().with_service(cart));
    let report = report(&exports, "cart");
    assert_eq!(
        report.warnings.iter().map(|w| w.reason).collect::<Vec<_>>(),
        [ExportedReason::GatewayTypeIgnored]
    );
    assert_eq!(report.gateways, [gateway("10.77.2.2", 15_443)]);
}

#[test]
fn the_older_of_one_host_wins() {
    let mut younger = service("shop", "another", "east.example");
    younger.name = cart().name;
    younger.created = Some(at(-1));
    let exports = exports(&base().with_service(younger).with_service(cart()));
    let loser = report(&exports, "another");
    assert_eq!(reason(&loser.accepted), "HostTaken");
    assert!(loser.accepted.as_ref().unwrap_err().message.contains("shop/cart"));
    assert_eq!(exports.exported.len(), 1);
}

#[test]
fn of_one_age_the_lower_uid_wins() {
    let mut other = service("shop", "another", "east.example");
    other.name = cart().name;
    other.uid = "0".to_owned();
    let exports = exports(&base().with_service(other).with_service(cart()));
    assert_eq!(reason(&report(&exports, "cart").accepted), "HostTaken");
}

#[test]
fn an_overlapping_selector_is_refused_to_the_younger() {
    let mut younger = service("shop", "web", "east.example");
    younger.workload_labels = labels(&[("app", "cart"), ("tier", "web")]);
    younger.created = Some(at(-1));
    let mut elsewhere = younger.clone();
    elsewhere.object.namespace = "other".to_owned();
    elsewhere.name = ServiceName::new("other", "web").unwrap();
    let exports = exports(&base().with_service(younger).with_service(cart()).with_service(elsewhere));
    let loser = report(&exports, "web");
    assert_eq!(reason(&loser.accepted), "SelectorOverlaps");
    assert!(loser.accepted.as_ref().unwrap_err().message.contains("shop/cart"));
    assert_eq!(exports.exported.len(), 2, "another namespace holds other pods");
}

/// One that is refused takes neither host nor selector from the others.
#[test]
fn a_refused_service_takes_nothing() {
    let mut older = cart();
    older.object.name = "older".to_owned();
    older.created = Some(at(-1_000));
    older.workload_labels = labels(&[("app", "older"), ("tier", "web")]);
    let mut oldest = service("shop", "oldest", "east.example");
    oldest.workload_labels = labels(&[("app", "older")]);
    oldest.created = Some(at(-2_000));
    let exports = exports(&base().with_service(oldest).with_service(older).with_service(cart()));
    assert_eq!(reason(&report(&exports, "older").accepted), "SelectorOverlaps");
    assert!(report(&exports, "cart").exported.is_ok(), "its host is free");
}

#[test]
fn one_selector_has_one_policy_of_bounded_size() {
    let mut world = base();
    for number in 0..9_u16 {
        let mut service = service("shop", &format!("s{number}"), "east.example");
        service.workload_labels = labels(&[("app", "all")]);
        let port = service.ports[0].clone();
        service.ports = (0..64)
            .map(|p| ExportedPort {
                name: format!("p{p}"),
                target_port: 1 + number * 64 + p,
                port: 1 + p,
                clients: Some(BTreeSet::from([client(&format!("spiffe://east.example/{number}/{p}"))])),
                ..port.clone()
            })
            .collect();
        world = world.with_service(service);
    }
    let exports = exports(&world);
    let refused: Vec<&str> =
        exports.reports.values().map(|r| reason(&r.accepted)).filter(|r| !r.is_empty()).collect();
    assert_eq!(refused, ["TooManyPorts", "TooManyPorts"], "7 * 64 ports fit into 511 rules");
}

#[test]
fn without_istio_nothing_is_exported() {
    for kind in [Kind::AuthorizationPolicy, Kind::ServiceEntry, Kind::Gateway] {
        let mut world = base().with_service(cart());
        world.absent.insert(kind);
        let exports = exports(&world);
        assert_eq!(reason(&report(&exports, "cart").exported), "IstioAbsent");
        assert_eq!(reason(&report(&exports, "cart").enforced), "PolicyNotInPlace");
        assert!(exports.exported.is_empty());
    }
}

/// Above all the policy: where it cannot be written, callers would not be held to `clients`.
#[test]
fn what_is_in_the_way_keeps_a_service_from_being_exported() {
    let cart_service = cart();
    let keys = [
        authorization::key("shop", &cart_service.workload_labels),
        istio::export::alias_key(&cart_service, "cart.shop.west.example"),
        istio::export::gateway_key(&cart_service),
    ];
    for key in keys {
        let theirs = foreign(key.kind, "shop", &key.name, serde_json::json!({}));
        let mut handed_over = theirs.clone();
        let annotation = crate::model::object::ANNOTATION_ADOPT.to_owned();
        handed_over.meta.annotations.insert(annotation, "true".to_owned());

        let blocked = exports(&base().with_service(cart()).with_object(theirs));
        assert_eq!(reason(&report(&blocked, "cart").exported), "ObjectNotOurs", "{key}");
        assert!(blocked.blocked[&key].contains(&key.to_string()));
        assert!(blocked.exported.is_empty() && blocked.accepted.len() == 1);

        let adopted = exports(&base().with_service(cart()).with_object(handed_over));
        assert!(report(&adopted, "cart").exported.is_ok() && adopted.blocked.is_empty(), "{key}");
    }
}

/// Without it callers would come in unchecked: neither a policy that cannot be written nor one of another agent counts.
#[test]
fn a_policy_that_does_not_stand_keeps_a_service_from_being_exported() {
    let key = policy::key(&cart());
    let pending = base().with_service(cart());
    let mut refused = pending.clone();
    refused.failures = Arc::new(BTreeMap::from([(key.clone(), "denied by policy.example".to_owned())]));
    let mut going = testing::with_policies(pending.clone());
    Arc::make_mut(going.objects.get_mut(&key).unwrap()).meta.deletion = Some(at(0));
    for (world, status, words) in [
        (&pending, Truth::Unknown, "is not there yet"),
        (&refused, Truth::False, "denied by policy.example"),
        (&going, Truth::Unknown, "is not there yet"),
    ] {
        let exports = super::exports(world);
        let report = report(&exports, "cart");
        assert!(exports.exported.is_empty() && catalogues(&exports).is_empty(), "{words}");
        assert_eq!(reason(&report.to[&td("east.example")]), "PolicyNotInPlace");
        let (exported, enforced) =
            (report.exported.clone().unwrap_err(), report.enforced.clone().unwrap_err());
        assert_eq!((exported.reason, exported.status), (ExportedReason::PolicyNotInPlace, status));
        assert_eq!((enforced.reason, enforced.status), (ClientsEnforcedReason::PolicyNotInPlace, status));
        assert!(exported.message.contains(words) && enforced.message.contains(words), "{}", exported.message);
        assert!(exported.message.contains(&key.to_string()), "{}", exported.message);
    }
}

/// What sidecars are told to pass on, they ask nobody's identity of.
#[test]
fn a_port_of_the_workloads_has_one_tls_mode() {
    let mut younger = service("shop", "wagon", "east.example");
    younger.workload_labels = cart().workload_labels;
    younger.created = Some(at(-40));
    younger.tls_mode = TlsMode::Mtls;
    let both = |younger: &Service| exports(&base().with_service(cart()).with_service(younger.clone()));
    let refused = both(&younger);
    let accepted = &report(&refused, "wagon").accepted;
    assert_eq!(reason(accepted), "TlsModeConflicts");
    assert!(accepted.as_ref().unwrap_err().message.contains("shop/cart"));
    assert!(report(&refused, "cart").accepted.is_ok());
    younger.ports[0].target_port = 9_090;
    assert!(report(&both(&younger), "wagon").accepted.is_ok(), "another port");
    younger.ports[0].target_port = 8_080;
    younger.tls_mode = TlsMode::IstioMtls;
    assert!(report(&both(&younger), "wagon").accepted.is_ok(), "the same mode");
}

/// A policy that no API server would keep is not written: who bursts it is refused, and the others stay.
#[test]
fn the_policy_of_a_selector_stays_small() {
    let long = "x".repeat(1_900);
    let with = |name: &str, count: usize, created: i64| {
        let mut service = service("shop", name, "east.example");
        service.workload_labels = labels(&[("app", "cart")]);
        service.created = Some(at(created));
        let ids = (0..count).map(|n| client(&format!("spiffe://east.example/{long}/{name}/{n}")));
        service.clients = ids.collect();
        (service.ports[0].target_port, service.ports[0].port) = (u16::try_from(created + 9_000).unwrap(), 80);
        service
    };
    let world = base()
        .with_service(with("a", 250, 1))
        .with_service(with("b", 250, 2))
        .with_service(with("c", 250, 3))
        .with_service(with("d", 20, 4));
    let exports = exports(&world);
    let accepted = |name: &str| reason(&report(&exports, name).accepted);
    assert_eq!(["a", "b", "c", "d"].map(accepted), ["", "", "PolicyTooLarge", ""]);
    let plan = crate::plan::services::services(&world, &BTreeSet::new());
    let largest = plan.objects.values().map(|object| object.spec().unwrap().to_string().len()).max().unwrap();
    assert!((900_000..=1 << 20).contains(&largest), "{largest}");

    // With a fence, all selectors are in one policy.
    let mut fenced = base();
    Arc::make_mut(&mut fenced.settings).fence = true;
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        let mut service = with(name, 250, i64::try_from(number).unwrap());
        service.workload_labels = labels(&[("app", name)]);
        fenced = fenced.with_service(service);
    }
    let exports = super::tests::exports(&fenced);
    assert_eq!(reason(&report(&exports, "c").accepted), "PolicyTooLarge");
    assert!(report(&exports, "c").accepted.as_ref().unwrap_err().message.contains("the fence"));
}

/// An alias of the mesh's own trust domain passes for a local caller: no policy holds who is of there.
#[test]
fn aliases_of_foreign_trust_domains_cast_doubt() {
    let mut world = base().with_service(cart());
    let mut mesh = crate::plan::fixtures::mesh("west.example");
    let crate::model::mesh::Seen::There(config) = &mut mesh.config else { panic!("no configuration") };
    config.aliases.insert(td("west.example"));
    world.mesh = Some(Arc::new(mesh.clone()));
    assert_eq!(report(&exports(&world), "cart").doubt, None, "our own is no doubt");
    let crate::model::mesh::Seen::There(config) = &mut mesh.config else { panic!("no configuration") };
    config.aliases.insert(td("east.example"));
    world.mesh = Some(Arc::new(mesh));
    let exports = exports(&world);
    let report = report(&exports, "cart");
    let doubt = report.doubt.as_ref().unwrap();
    assert_eq!((doubt.reason.as_str(), report.enforced.is_ok()), ("TrustDomainAliased", true));
    assert!(doubt.message.contains("east.example"), "{}", doubt.message);
    assert!(report.exported.is_ok(), "it goes on, and says so");
}

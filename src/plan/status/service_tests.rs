use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::v1alpha1::conditions::{ClientsEnforcedReason, ExportedReason, ServiceAcceptedReason};
use crate::model::condition::{Condition, Truth};
use crate::model::object::Kind;
use crate::model::service::Outcome;
use crate::model::session::{Acknowledgement, Catalogue, LinkState, Offers};
use crate::model::{NamespacedName, Service, ServiceName, World};
use crate::plan::exports::testing::with_policies;
use crate::plan::fixtures::{
    WorldExt as _, at, cart, client, peer, remote_cart, service, session, td, world,
};
use crate::plan::plan_anew;
use crate::plan::services::services;

use super::*;

const NOW: [u8; 32] = [1; 32];

fn world_with(service: &Service, acknowledged: Option<([u8; 32], Outcome)>) -> World {
    let mut session = session(LinkState::Connected, None);
    session.acknowledged = acknowledged.map(|(version, outcome)| Acknowledgement {
        version,
        offered: Arc::new(Catalogue {
            version,
            services: as_in(version),
            held: std::collections::BTreeSet::new(),
            malformed: Vec::new(),
        }),
        outcomes: Arc::new(BTreeMap::from([(ServiceName::new("shop", "cart").unwrap(), outcome)])),
    });
    let world = world("west.example")
        .with_peer(peer("east.example"))
        .with_service(service.clone())
        .with_session("east.example", session);
    with_policies(world)
}

/// What the answered catalogue of this version has: the service as it is now, or as it was once.
fn as_in(version: [u8; 32]) -> Offers {
    let mut service = remote_cart();
    if version != NOW {
        service.ports[0].port += 1;
    }
    BTreeMap::from([(service.name.clone(), Arc::new(service))])
}

fn status_of(world: &World) -> (Vec<Condition>, serde_json::Value) {
    let plan = services(world, &BTreeSet::new());
    let name = NamespacedName::new("shop", "cart");
    let subject = federated_service::Subject::of(world, &name).unwrap();
    let report = &plan.export_reports[&name];
    let outcomes = federated_service::outcomes(world, subject.name, report, &plan.catalogues);
    federated_service::status(&subject, report, &outcomes, None)
}

fn brief(conditions: &[Condition]) -> Vec<(&str, Truth, &str)> {
    conditions.iter().map(|c| (c.kind.as_str(), c.status, c.reason.as_ref())).collect()
}

#[test]
fn an_export_is_what_the_importer_says() {
    let refused = Outcome::Refused { reason: "NotAdmitted".to_owned(), message: "spec.imports".to_owned() };
    let table = [
        (
            None,
            (Truth::Unknown, "AwaitingAcknowledgement"),
            (false, "Pending", Some("AwaitingAcknowledgement")),
        ),
        (
            Some(([9; 32], Outcome::Imported)),
            (Truth::Unknown, "AwaitingAcknowledgement"),
            (false, "Pending", Some("AwaitingAcknowledgement")),
        ),
        (Some((NOW, Outcome::Imported)), (Truth::True, "Exported"), (true, "Imported", None)),
        (Some((NOW, refused)), (Truth::False, "RefusedByPeer"), (true, "Refused", Some("NotAdmitted"))),
    ];
    for (acknowledged, (status, reason), (answered, outcome, why)) in table {
        let (conditions, rest) = status_of(&world_with(&cart(), acknowledged));
        assert_eq!(
            brief(&conditions),
            [
                ("Accepted", Truth::True, "Accepted"),
                ("Exported", status, reason),
                ("ClientsEnforced", Truth::True, "SidecarEnforces"),
            ]
        );
        let entry = &rest["exportedTo"][0];
        assert_eq!(
            (entry["acknowledged"].as_bool(), entry["outcome"].as_str()),
            (Some(answered), Some(outcome))
        );
        assert_eq!(entry["reason"].as_str(), why);
        assert_eq!(rest["gatewayEntries"][0]["type"], "istio-eastwestgateway");
        assert_eq!(rest["host"], "cart.shop.west.example");
        assert_eq!(rest["imported"], if outcome == "Imported" { "1/1" } else { "0/1" });
        assert_eq!(rest["serverSPIFFEIDs"][0], "spiffe://west.example/ns/shop/sa/cart");
    }
}

#[test]
fn a_trust_domain_without_a_peer_is_named_beside_one_that_imported() {
    let mut cart = cart();
    cart.exported_to.insert(td("north.example"));
    cart.clients.insert(client("spiffe://north.example/sa/a"));
    let (conditions, rest) = status_of(&world_with(&cart, Some((NOW, Outcome::Imported))));
    assert_eq!(brief(&conditions)[1], ("Exported", Truth::False, "NoPeer"));
    assert!(conditions[1].message.contains("north.example"));
    assert_eq!(rest["exportedTo"][0]["outcome"], "Imported");
    assert_eq!(rest["exportedTo"][1]["reason"], "NoPeer");
}

#[test]
fn a_refused_service_says_so_in_every_condition() {
    let mut older = service("shop", "older", "east.example");
    older.name = cart().name;
    older.created = Some(at(-1_000));
    let (conditions, rest) = status_of(&world_with(&cart(), None).with_service(older));
    assert_eq!(
        brief(&conditions),
        [
            ("Accepted", Truth::False, "HostTaken"),
            ("Exported", Truth::False, "NotAccepted"),
            ("ClientsEnforced", Truth::False, "NotAccepted"),
        ]
    );
    assert!(conditions[0].message.contains("older FederatedService shop/older"), "{}", conditions[0].message);
    assert_eq!(rest["gatewayEntries"], serde_json::json!([]));
    assert_eq!(rest["imported"], "0/1");
}

#[test]
fn a_service_whose_policy_is_not_in_place_says_so() {
    let mut world = world_with(&cart(), None);
    let policies = std::mem::take(&mut world.objects);
    let pending = "PolicyNotInPlace";
    for (failure, truth) in [(None, Truth::Unknown), (Some("denied by policy.example"), Truth::False)] {
        let key = policies.keys().next().unwrap().clone();
        world.failures = Arc::new(failure.map(|text| (key, text.to_owned())).into_iter().collect());
        let (conditions, rest) = status_of(&world);
        assert_eq!(
            brief(&conditions)[1..],
            [("Exported", truth, pending), ("ClientsEnforced", truth, pending)]
        );
        assert_eq!(rest["exportedTo"][0]["reason"], pending);
        let says_why = |c: &Condition| c.message.contains(failure.unwrap_or("not there yet"));
        assert!(conditions[1..].iter().all(says_why), "{conditions:?}");
    }
}

#[test]
fn before_we_know_who_we_are_nothing_is_said_to_be_wrong() {
    let mut world = world_with(&cart(), None);
    world.identity = None;
    let (conditions, _) = status_of(&world);
    let nameless = |kind| (kind, Truth::Unknown, "NoIdentity");
    assert_eq!(brief(&conditions), ["Accepted", "Exported", "ClientsEnforced"].map(nameless));
    let enumerated = [
        ServiceAcceptedReason::NoIdentity.as_str(),
        ExportedReason::NoIdentity.as_str(),
        ClientsEnforcedReason::NoIdentity.as_str(),
    ];
    assert_eq!(enumerated, ["NoIdentity"; 3]);
}

#[test]
fn a_peers_words_are_cut() {
    let refused = Outcome::Refused { reason: "R".repeat(100_000), message: "m".repeat(100_000) };
    let (conditions, rest) = status_of(&world_with(&cart(), Some((NOW, refused))));
    assert!(conditions[1].message.len() < 1_000);
    assert_eq!(rest["exportedTo"][0]["reason"].as_str().map(str::len), Some(1_024));
}

#[test]
fn an_import_says_what_was_generated() {
    let known = [("west.example", remote_cart())];
    let mut world = world("east.example")
        .with_peer(peer("west.example"))
        .with_session("west.example", session(LinkState::Connected, Some(vec![remote_cart()])));
    world = world.clone().with_written(&services(&world, &BTreeSet::new()).objects, &known);
    let name = NamespacedName::new("entente-system", "cart.shop.west.example");
    let status = |world: &World| {
        imported_service::status(&name, &services(world, &BTreeSet::new()).import_reports[&name], None)
    };
    let planned = services(&world, &BTreeSet::new()).objects;
    let entry = planned.keys().find(|key| key.kind == Kind::ServiceEntry).unwrap().clone();
    let failing = |mut world: World| {
        world.failures = Arc::new(BTreeMap::from([(entry.clone(), "denied by policy.example".to_owned())]));
        world
    };
    for (world, truth, words) in [
        (world.clone(), Truth::Unknown, "is not written yet"),
        (failing(world.clone()), Truth::False, "denied by policy.example"),
        (failing(world.clone().with_written(&planned, &known)), Truth::False, "denied by policy.example"),
    ] {
        let (conditions, rest) = status(&world);
        assert_eq!(
            brief(&conditions),
            [("Admitted", Truth::True, "Admitted"), ("Generated", truth, "Pending")]
        );
        assert!(conditions[1].message.contains(words), "{}", conditions[1].message);
        assert_eq!(rest["generated"], serde_json::json!([]));
    }
    world = world.with_written(&planned, &known);
    let (conditions, rest) = status(&world);
    assert_eq!(
        brief(&conditions),
        [("Admitted", Truth::True, "Admitted"), ("Generated", Truth::True, "Generated")]
    );
    let expected = serde_json::json!([
        {"kind": "ServiceEntry", "name": "cart.shop.west.example", "namespace": "entente-system"}
    ]);
    assert_eq!(rest["generated"], expected);

    Arc::make_mut(world.peers.get_mut(&td("west.example")).unwrap()).imports.services.clear();
    let (conditions, rest) = status(&world);
    assert_eq!(
        brief(&conditions),
        [("Admitted", Truth::False, "NotAdmitted"), ("Generated", Truth::False, "NotAdmitted")]
    );
    assert_eq!(rest["generated"], serde_json::json!([]));
}

/// The Envoy in front of a server of ours that refuses what it is served may let in whom it let in before.
#[test]
fn an_export_says_that_the_envoy_in_front_of_it_refuses_it() {
    let mut world = world("west.example").with_peer(peer("east.example")).with_service(cart());
    world.absent.extend(Kind::WATCHED.into_iter().filter(|kind| kind.is_istio()));
    Arc::make_mut(&mut world.settings).serves_xds = true;
    world.spire = Some(Arc::default());
    let key = cart().key();
    let mut memo = Memo::default();
    let mut said = |refused: &[(&str, &str)]| {
        let refusal = |client: &str| ClientRefusal {
            client: client.to_owned(),
            kind: "listener",
            message: "inbound:15443: cannot bind".to_owned(),
        };
        let refused = refused.iter().map(|(host, client)| ((*host).to_owned(), [refusal(client)].into()));
        world.refusals = Arc::new(refused.collect());
        let status = plan_anew(&world, &mut memo).statuses.remove(&key).unwrap().status;
        world.statuses.insert(key.clone(), Arc::new(status.clone()));
        let conditions = status["conditions"].as_array().unwrap().clone();
        let one = conditions.into_iter().find(|one| one["type"] == "ClientsEnforced").unwrap();
        (one["status"].clone(), one["reason"].clone(), one["message"].to_string())
    };
    let server = "spiffe://west.example/ns/shop/sa/cart";
    let enforced = (json!("True"), json!("ProxyEnforces"));
    let refuses = (json!("False"), json!("ProxyRefuses"));
    let (status, reason, _) = said(&[]);
    assert_eq!((status, reason), enforced);
    for host in ["inbound", "application", "application:cart.shop.west.example"] {
        let (status, reason, message) = said(&[(host, server)]);
        assert_eq!((status, reason), refuses, "{host}");
        assert!(message.contains(server) && message.contains("cannot bind"), "{message}");
        let (status, reason, _) = said(&[(host, "spiffe://west.example/ns/shop/sa/other")]);
        assert_eq!((status, reason), enforced, "{host}: another server's");
    }
    let (_, reason, _) = said(&[("inbound", server)]);
    assert_eq!(reason, refuses.1);
    let (_, reason, _) = said(&[("cart.shop.east.example", server)]);
    assert_eq!(reason, enforced.1, "what it refuses as a client is of an import");
}

/// Whom a client of xDS refuses is told of the import alone, the same whoever refused first, and no more of once all take it.
#[test]
fn an_import_says_who_refuses_it() {
    let refusal = |client: &str| ClientRefusal {
        client: format!("spiffe://east.example/{client}"),
        kind: "listener",
        message: "cannot bind 127.64.0.1".to_owned(),
    };
    let known = [("west.example", remote_cart())];
    let mut world = world("east.example")
        .with_peer(peer("west.example"))
        .with_session("west.example", session(LinkState::Connected, Some(vec![remote_cart()])));
    world = world.clone().with_written(&services(&world, &BTreeSet::new()).objects, &known);
    let host = "cart.shop.west.example";
    let key = ObjectKey::namespaced(Kind::ImportedService, "entente-system", host);
    world.spire = Some(Arc::default());
    let mut memo = Memo::default();
    let mut said = |world: &mut World, refused: &[&str]| {
        let refused = refused.iter().map(|client| refusal(client)).collect::<BTreeSet<_>>();
        let elsewhere = ("other.shop.west.example".to_owned(), [refusal("elsewhere")].into());
        let here = Some((host.to_owned(), refused)).filter(|(_, refused)| !refused.is_empty());
        world.refusals = Arc::new(here.into_iter().chain([elsewhere]).collect());
        let write = plan_anew(world, &mut memo).statuses.remove(&key);
        if let Some(write) = &write {
            world.statuses.insert(key.clone(), Arc::new(write.status.clone()));
        }
        let condition = |write: StatusWrite| {
            let conditions = write.status["conditions"].as_array().unwrap().clone();
            conditions.into_iter().find(|one| one["type"] == "TakenByClients")
        };
        write.map(condition)
    };
    while said(&mut world, &[]).is_some() {}
    let condition = said(&mut world, &["b", "a"]).unwrap().unwrap();
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("ClientRefuses")));
    let told = condition["message"].as_str().unwrap();
    assert!(told.starts_with("spiffe://east.example/a (and 1 more) refuses a listener"), "{told}");
    assert!(told.ends_with("cannot bind 127.64.0.1"), "{told}");
    assert_eq!(said(&mut world, &["a", "b"]), None, "nothing is written again");
    assert_eq!(said(&mut world, &[]), Some(None), "it is taken");
    assert_eq!(said(&mut world, &[]), None);
}

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::model::condition::Truth;
use crate::model::peer::OnDisconnect;
use crate::model::service::{Outcome, RemoteService};
use crate::model::session::{GoodbyeReason, LinkState};
use crate::model::{NamespacedName, Peer};
use crate::plan::fixtures::{NAMESPACE, WorldExt as _, at, foreign, peer, remote_cart, session, td, world};
use crate::plan::services::{ServicesPlan, services};

use super::*;

const HOST: &str = "cart.shop.west.example";

fn named(name: &str) -> RemoteService {
    let mut service = remote_cart();
    service.name = ServiceName::new("shop", name).unwrap();
    service
}

fn decide(world: &World) -> ServicesPlan {
    services(world, &BTreeSet::new())
}

fn base(peer: Peer, services: Option<Vec<RemoteService>>) -> World {
    world("east.example")
        .with_peer(peer)
        .with_session("west.example", session(LinkState::Connected, services))
}

/// The world once everything that west.example exports was written.
fn settled(services: &[RemoteService]) -> World {
    let world = base(peer("west.example"), Some(services.to_vec()));
    let known: Vec<_> = services.iter().map(|service| ("west.example", service.clone())).collect();
    let first = decide(&world);
    let world = world.with_written(&first.objects, &known);
    let second = decide(&world);
    let world = world.with_written(&second.objects, &known);
    // What waits for its rule.
    let third = decide(&world);
    let world = world.with_written(&third.objects, &known);
    assert_eq!(decide(&world).objects, third.objects, "settled");
    world
}

fn away(mut world: World, since: i64) -> World {
    let sessions = Arc::make_mut(&mut world.sessions);
    sessions.insert(td("west.example"), session(LinkState::Idle, None));
    sessions.get_mut(&td("west.example")).unwrap().since = at(since);
    world
}

fn edit_peer(mut world: World, edit: impl FnOnce(&mut Peer)) -> World {
    edit(Arc::make_mut(world.peers.get_mut(&td("west.example")).unwrap()));
    world
}

fn outcome<'a>(plan: &'a ServicesPlan, name: &str) -> &'a str {
    match &plan.outcomes[&td("west.example")][&ServiceName::new("shop", name).unwrap()] {
        Outcome::Imported => "Imported",
        Outcome::Refused { reason, .. } => reason,
    }
}

fn kinds(plan: &ServicesPlan) -> Vec<(Kind, &str)> {
    plan.objects.keys().map(|key| (key.kind, key.name.as_str())).collect()
}

const BOTH: [(Kind, &str); 2] = [(Kind::ImportedService, HOST), (Kind::ServiceEntry, HOST)];

#[test]
fn a_silent_peer_loses_nothing() {
    let world = away(settled(&[remote_cart()]), 0);
    let plan = decide(&world);
    assert_eq!(kinds(&plan), BOTH);
    assert!(plan.outcomes.is_empty(), "there is nothing to answer");
    assert_eq!(plan.wake_at, None);
}

#[test]
fn a_peer_that_ended_the_relationship_exports_nothing_and_one_that_only_left_still_does() {
    let parted = |reason| {
        let mut world = settled(&[remote_cart()]);
        let sessions = Arc::make_mut(&mut world.sessions);
        let link = LinkState::Parted { reason, message: String::new() };
        sessions.insert(td("west.example"), session(link, Some(vec![remote_cart()])));
        kinds(&decide(&world)).len()
    };
    assert_eq!(parted(GoodbyeReason::ShuttingDown), BOTH.len());
    assert_eq!(parted(GoodbyeReason::Suspended), BOTH.len());
    assert_eq!(parted(GoodbyeReason::RelationshipEnded), 0);
}

#[test]
fn a_peer_without_a_session_loses_nothing() {
    let mut world = settled(&[remote_cart()]);
    world.sessions = Arc::default();
    assert_eq!(kinds(&decide(&world)), BOTH);
}

#[test]
fn what_stands_is_admitted_anew_while_the_peer_is_silent() {
    let world = edit_peer(away(settled(&[remote_cart()]), 0), |peer| peer.imports.services.clear());
    let plan = decide(&world);
    assert!(plan.objects.is_empty());
    let report = &plan.import_reports[&NamespacedName::new(NAMESPACE, HOST)];
    assert_eq!(report.admitted.as_ref().unwrap_err().reason.as_str(), "NotAdmitted");
}

#[test]
fn a_catalogue_takes_away() {
    let mut world = settled(&[remote_cart()]);
    Arc::make_mut(&mut world.sessions)
        .insert(td("west.example"), session(LinkState::Connected, Some(Vec::new())));
    let plan = decide(&world);
    assert!(plan.objects.is_empty());
    let report = &plan.import_reports[&NamespacedName::new(NAMESPACE, HOST)];
    assert_eq!(report.admitted.as_ref().unwrap_err().reason.as_str(), "NoLongerExported");
}

#[test]
fn a_changed_service_is_rewritten_store_first() {
    let mut changed = remote_cart();
    changed.ports[0].port = 9_999;
    let mut world = settled(&[remote_cart()]);
    Arc::make_mut(&mut world.sessions)
        .insert(td("west.example"), session(LinkState::Connected, Some(vec![changed.clone()])));
    let ports = |plan: &ServicesPlan, kind, field: &str| {
        let key = ObjectKey::namespaced(kind, NAMESPACE, HOST);
        plan.objects[&key].spec().unwrap()["ports"][0][field].clone()
    };
    let plan = decide(&world);
    assert_eq!(ports(&plan, Kind::ImportedService, "port"), 9_999);
    assert_eq!(ports(&plan, Kind::ServiceEntry, "number"), 18_080, "as the store has it");
    let world = world.with_written(&plan.objects, &[("west.example", changed)]);
    assert_eq!(ports(&decide(&world), Kind::ServiceEntry, "number"), 9_999);
}

#[test]
fn withdrawal_waits_for_its_time_and_asks_to_be_woken() {
    let after = Duration::from_secs(60);
    let base =
        edit_peer(settled(&[remote_cart()]), |peer| peer.on_disconnect = OnDisconnect::Withdraw { after });
    assert_eq!(kinds(&decide(&base)), BOTH, "connected");
    assert_eq!(decide(&base).wake_at, None);

    let mut world = away(base, 100);
    world.now = at(160);
    let plan = decide(&world);
    assert_eq!(kinds(&plan), BOTH, "not before");
    assert_eq!(plan.wake_at, Some(at(161)), "a time by which it is past, in whole seconds");
    world.now = at(161);
    let plan = decide(&world);
    assert!(plan.objects.is_empty(), "after");
    assert_eq!(plan.wake_at, None);
    let report = &plan.import_reports[&NamespacedName::new(NAMESPACE, HOST)];
    assert_eq!(report.admitted.as_ref().unwrap_err().reason.as_str(), "Withdrawn");
}

/// A catalogue of before the peer went away is answered by what was done since.
#[test]
fn what_is_withdrawn_is_not_said_to_be_imported() {
    let after = Duration::from_secs(60);
    let offered = vec![remote_cart(), named("bad")];
    let world = edit_peer(settled(&offered), |peer| {
        peer.on_disconnect = OnDisconnect::Withdraw { after };
        peer.imports.services =
            vec![crate::model::peer::ServicePattern { namespace: None, name: Some("cart".to_owned()) }];
    });
    let mut world = world.with_session("west.example", session(LinkState::Idle, Some(offered)));
    let both = |plan: &ServicesPlan| [outcome(plan, "cart").to_owned(), outcome(plan, "bad").to_owned()];
    world.now = at(60);
    assert_eq!(both(&decide(&world)), ["Imported", "NotAdmitted"]);
    world.now = at(61);
    let plan = decide(&world);
    assert!(plan.objects.is_empty());
    assert_eq!(both(&plan), ["Withdrawn", "NotAdmitted"]);
}

#[test]
fn of_too_many_those_that_are_imported_stay() {
    let world = settled(&[named("m"), named("z")]);
    let mut world = edit_peer(world, |peer| peer.imports.max_services = 3);
    let all = ["a", "b", "m", "z"].map(named).to_vec();
    Arc::make_mut(&mut world.sessions).insert(td("west.example"), session(LinkState::Connected, Some(all)));
    let plan = decide(&world);
    let outcomes: Vec<&str> = ["a", "b", "m", "z"].into_iter().map(|name| outcome(&plan, name)).collect();
    assert_eq!(outcomes, ["Imported", "TooManyServices", "Imported", "Imported"]);
}

#[test]
fn one_bad_service_harms_only_itself() {
    let mut bad = named("bad");
    bad.server_ids.clear();
    let plan = decide(&base(peer("west.example"), Some(vec![bad, remote_cart()])));
    assert_eq!((outcome(&plan, "bad"), outcome(&plan, "cart")), ("NoServerId", "Imported"));
    assert_eq!(kinds(&plan), [(Kind::ImportedService, HOST)]);
}

#[test]
fn the_end_of_a_peer_takes_its_imports() {
    let world = settled(&[remote_cart()]);
    let plan = services(&world, &BTreeSet::from([td("west.example")]));
    assert!(plan.objects.is_empty() && plan.outcomes.is_empty());
    let deleting = edit_peer(world, |peer| peer.deletion = Some(at(0)));
    assert_eq!(kinds(&decide(&deleting)), BOTH, "until the caller says so");
}

#[test]
fn an_import_that_we_did_not_write_admits_nothing() {
    let mut world = away(settled(&[remote_cart()]), 0);
    let key = ObjectKey::namespaced(Kind::ImportedService, NAMESPACE, HOST);
    Arc::make_mut(world.objects.get_mut(&key).unwrap()).meta.labels.clear();
    let plan = decide(&world);
    assert!(plan.objects.is_empty());
    let report = &plan.import_reports[&NamespacedName::new(NAMESPACE, HOST)];
    assert_eq!(report.admitted.as_ref().unwrap_err().reason.as_str(), "ObjectNotOurs");

    // Handed over it is written anew by what the peer says, and stands for nothing until then.
    let annotations = &mut Arc::make_mut(world.objects.get_mut(&key).unwrap()).meta.annotations;
    annotations.insert(crate::model::object::ANNOTATION_ADOPT.to_owned(), "true".to_owned());
    assert!(decide(&world).objects.is_empty());
    let back = session(LinkState::Connected, Some(vec![remote_cart()]));
    assert_eq!(kinds(&decide(&world.with_session("west.example", back))), BOTH[..1]);
}

#[test]
fn objects_of_others_are_left_and_named() {
    let table =
        [(Kind::ImportedService, "ObjectNotOurs", "NotAdmitted"), (Kind::ServiceEntry, "", "ObjectNotOurs")];
    for (kind, admitted, generated) in table {
        let mut world = settled(&[remote_cart()]);
        let key = ObjectKey::namespaced(kind, NAMESPACE, HOST);
        let theirs = foreign(kind, NAMESPACE, HOST, json!({"hosts": ["else.example"]}));
        world.objects.insert(key.clone(), Arc::new(theirs));
        let plan = decide(&world);
        assert!(!plan.objects.contains_key(&key), "{kind}");
        assert!(plan.blocked[&key].contains(&key.to_string()), "{kind}");
        assert_eq!(outcome(&plan, "cart"), "ObjectNotOurs", "{kind}");
        let report = &plan.import_reports[&NamespacedName::new(NAMESPACE, HOST)];
        let reason = report.admitted.as_ref().err().map_or("", |refusal| refusal.reason.as_str());
        let why = report.generated.as_ref().unwrap_err().reason.as_str();
        assert_eq!((reason, why), (admitted, generated), "{kind}");
    }
}

#[test]
fn an_older_entry_keeps_its_host_and_a_younger_does_not_take_ours() {
    let mut theirs =
        foreign(Kind::ServiceEntry, "shop", "mine", json!({"hosts": ["CART.shop.west.example"]}));
    let plan = decide(&settled(&[remote_cart()]).with_object(theirs.clone()));
    assert_eq!(outcome(&plan, "cart"), "HostExists");
    let report = &plan.import_reports[&NamespacedName::new(NAMESPACE, HOST)];
    let refusal = report.generated.as_ref().unwrap_err();
    assert!(refusal.message.contains("ServiceEntry shop/mine"), "{}", refusal.message);
    assert_eq!(kinds(&plan), [(Kind::ImportedService, HOST)], "it stays to say so");

    theirs.meta.created = Some(at(500));
    let plan = decide(&settled(&[remote_cart()]).with_object(theirs));
    assert_eq!((outcome(&plan, "cart"), kinds(&plan).len()), ("Imported", 2));
}

#[test]
fn without_istio_the_import_stands_alone() {
    let mut world = settled(&[remote_cart()]);
    world.absent.insert(Kind::ServiceEntry);
    let plan = decide(&world);
    assert_eq!(kinds(&plan), [(Kind::ImportedService, HOST)]);
    assert_eq!(outcome(&plan, "cart"), "Imported");
    let report = &plan.import_reports[&NamespacedName::new(NAMESPACE, HOST)];
    assert_eq!(report.generated.as_ref().unwrap_err().reason.as_str(), "IstioAbsent");
    assert!(!report.is_called());
}

#[test]
fn without_any_istio_what_is_served_otherwise_is_enough() {
    for (serves_xds, dns, expected) in [
        (true, false, Ok("clients are served by xDS")),
        (false, true, Ok("by DNS")),
        (false, false, Err("install Istio")),
    ] {
        let mut world = settled(&[remote_cart()]);
        world.absent.extend(Kind::WATCHED.into_iter().filter(|kind| kind.is_istio()));
        let settings = Arc::make_mut(&mut world.settings);
        (settings.serves_xds, settings.dns) = (serves_xds, dns);
        let plan = decide(&world);
        assert_eq!(outcome(&plan, "cart"), "Imported");
        let report = &plan.import_reports[&NamespacedName::new(NAMESPACE, HOST)];
        let refusal = report.generated.as_ref().unwrap_err();
        let truth = if expected.is_ok() { Truth::True } else { Truth::False };
        assert_eq!((refusal.status, report.is_called()), (truth, expected.is_ok()));
        let (Ok(words) | Err(words)) = expected;
        assert!(refusal.message.contains(words), "{}", refusal.message);
    }
}

#[test]
fn the_spec_does_not_depend_on_the_peers_order() {
    let mut one = remote_cart();
    one.gateways.push(crate::plan::fixtures::gateway("10.77.2.1", 15_443));
    one.ports.push(crate::model::service::RemotePort {
        clients: BTreeSet::new(),
        name: "a".to_owned(),
        port: 1,
        protocol: crate::model::service::AppProtocol::Http,
    });
    let mut other = one.clone();
    other.gateways.reverse();
    other.ports.reverse();
    let spec = |service| super::spec(&td("west.example"), service, HOST);
    assert_eq!(spec(&one), spec(&other));
}

/// A service whose application ends TLS, on a port where the sidecar of the client begins it.
fn begun_here() -> RemoteService {
    let mut service = remote_cart();
    service.tls_mode = crate::model::service::TlsMode::Mtls;
    service
}

const RULED: [(Kind, &str); 3] =
    [(Kind::ImportedService, HOST), (Kind::ServiceEntry, HOST), (Kind::DestinationRule, HOST)];

fn sorted(plan: &ServicesPlan) -> Vec<(Kind, &str)> {
    let mut kinds = kinds(plan);
    kinds.sort_by_key(|(kind, _)| RULED.iter().position(|(other, _)| other == kind));
    kinds
}

fn report(plan: &ServicesPlan) -> &ImportReport {
    &plan.import_reports[&NamespacedName::new(NAMESPACE, HOST)]
}

/// Without the rule the sidecar would call in plaintext.
#[test]
fn an_entry_whose_tls_begins_here_waits_for_its_rule() {
    let services = [begun_here()];
    let known = [("west.example", begun_here())];
    let world = base(peer("west.example"), Some(services.to_vec()));
    let world = world.clone().with_written(&decide(&world).objects, &known);
    let plan = decide(&world);
    assert_eq!(sorted(&plan), [RULED[0], RULED[2]], "the rule alone");
    let refusal = report(&plan).generated.as_ref().unwrap_err();
    assert_eq!((refusal.reason.as_str(), refusal.status), ("Pending", Truth::Unknown));
    assert_eq!(outcome(&plan, "cart"), "Imported");

    let world = world.clone().with_written(&plan.objects, &known);
    let plan = decide(&world);
    assert_eq!(sorted(&plan), RULED);
    let world = world.clone().with_written(&plan.objects, &known);
    assert_eq!(report(&decide(&world)).generated.as_ref().unwrap().len(), 2);

    // A port more is in the rule first, and in the entry after.
    let mut more = begun_here();
    more.ports.push(crate::model::service::RemotePort {
        name: "more".to_owned(),
        port: 9,
        ..more.ports[0].clone()
    });
    let known = [("west.example", more.clone())];
    let mut world = world.with_session("west.example", session(LinkState::Connected, Some(vec![more])));
    world = world.clone().with_written(&BTreeMap::new(), &known);
    let ports = |plan: &ServicesPlan, kind, at: &str| {
        let spec = plan.objects[&ObjectKey::namespaced(kind, NAMESPACE, HOST)].spec().unwrap().clone();
        spec.pointer(at).unwrap().as_array().unwrap().len()
    };
    let both = |plan: &ServicesPlan| {
        let rule = "/trafficPolicy/portLevelSettings";
        (ports(plan, Kind::ServiceEntry, "/ports"), ports(plan, Kind::DestinationRule, rule))
    };
    let plan = decide(&world);
    assert_eq!(both(&plan), (1, 2));
    let written = world.clone().with_written(&plan.objects, &known);
    assert_eq!(both(&decide(&written)), (2, 2));

    // A rule that is gone and cannot be written takes the entry with it.
    let rule = ObjectKey::namespaced(Kind::DestinationRule, NAMESPACE, HOST);
    let mut gone = written;
    gone.objects.remove(&rule);
    assert_eq!(sorted(&decide(&gone)), RULED, "it is written again");
    Arc::make_mut(&mut gone.failures).insert(rule, "denied".to_owned());
    let plan = decide(&gone);
    assert_eq!(sorted(&plan), [RULED[0], RULED[2]]);
    assert_eq!(report(&plan).generated.as_ref().unwrap_err().status, Truth::False);
}

#[test]
fn a_rule_of_others_that_covers_the_host_is_named() {
    let world = settled(&[begun_here()]);
    assert!(report(&decide(&world)).generated.is_ok());
    for (namespace, host, is_named) in [
        ("shop", HOST, true),
        ("shop", "*.west.example", true),
        ("istio-system", "*", true),
        ("shop", "*.north.example", false),
    ] {
        let theirs = foreign(Kind::DestinationRule, namespace, "theirs", json!({"host": host}));
        let plan = decide(&world.clone().with_object(theirs));
        assert_eq!(sorted(&plan), RULED, "{host}: what stands, stands");
        let generated = &report(&plan).generated;
        assert_eq!(generated.is_err(), is_named, "{host}");
        if let Err(refusal) = generated {
            assert_eq!((refusal.reason.as_str(), refusal.status), ("HostExists", Truth::False));
            assert!(
                refusal.message.contains(&format!("DestinationRule {namespace}/theirs")),
                "{}",
                refusal.message
            );
        }
    }
}

/// As with this catalogue, and what is held besides.
fn holding(mut world: World, services: Vec<RemoteService>, held: &[&str]) -> World {
    let mut session = session(LinkState::Connected, Some(services));
    let mut catalogue = session.catalogue.take().map(Arc::unwrap_or_clone).unwrap();
    catalogue.held = held.iter().map(|name| ServiceName::new("shop", name).unwrap()).collect();
    session.catalogue = Some(Arc::new(catalogue));
    Arc::make_mut(&mut world.sessions).insert(td("west.example"), session);
    world
}

#[test]
fn what_the_peer_cannot_read_now_is_kept_as_it_was() {
    let both = settled(&[named("cart"), named("orders")]);
    let before = decide(&both).objects;
    let held = holding(both.clone(), vec![named("orders")], &["cart", "never-seen"]);
    let plan = decide(&held);
    assert_eq!(plan.objects, before, "and what is not there is not made");
    assert_eq!((outcome(&plan, "cart"), plan.outcomes[&td("west.example")].len()), ("Imported", 2));

    let gone = decide(&holding(both.clone(), vec![named("orders")], &[]));
    assert_eq!(gone.objects.len(), 2, "unless the peer takes it away");
    let refused = edit_peer(held, |peer| peer.imports.services.clear());
    assert!(decide(&refused).objects.is_empty(), "or we do");
}

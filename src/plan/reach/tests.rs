use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::model::ServiceName;
use crate::model::session::LinkState;
use crate::model::world::Settings;
use crate::plan::fixtures::{WorldExt as _, gateway, peer, remote_cart, session, td, world};
use crate::plan::services::services;

const WEST: &str = "west.example";

fn named(name: &str, gateways: Vec<GatewayAddress>) -> RemoteService {
    RemoteService { name: ServiceName::new("shop", name).unwrap(), gateways, ..remote_cart() }
}

/// A world in which these services of west are imported and generated.
fn importing(all: &[RemoteService]) -> World {
    let mut world = world("east.example")
        .with_peer(peer(WEST))
        .with_session(WEST, session(LinkState::Connected, Some(all.to_vec())));
    let known: Vec<_> = all.iter().map(|service| (WEST, service.clone())).collect();
    for _ in 0..3 {
        let plan = services(&world, &BTreeSet::new());
        world = world.with_written(&plan.objects, &known);
    }
    world
}

fn carriers_of(world: &World) -> BTreeMap<TrustDomain, Carriers> {
    services(world, &BTreeSet::new()).carriers
}

fn say(world: &World, stored: Option<&Value>) -> Option<Condition> {
    condition(world, &carriers_of(world), &world.peers[&td(WEST)], stored)
}

fn tried(mut world: World, all: &[(&GatewayAddress, Tried)]) -> World {
    world.reached = Arc::new(all.iter().map(|(at, tried)| ((*at).clone(), *tried)).collect());
    world
}

fn stored(status: &str, reason: &str) -> Value {
    stored_with(status, reason, "as it was")
}

fn stored_with(status: &str, reason: &str, message: &str) -> Value {
    let kind = Reason::CONDITION.as_str();
    json!({"conditions": [{"type": kind, "status": status, "reason": reason, "message": message}]})
}

fn edited(mut world: World, edit: impl FnOnce(&mut Peer)) -> World {
    edit(Arc::make_mut(world.peers.get_mut(&td(WEST)).unwrap()));
    world
}

#[test]
fn what_is_tried_is_what_is_imported() {
    let one = gateway("10.77.2.2", 15_443);
    let world = importing(&[named("cart", vec![one.clone()]), named("orders", vec![one.clone()])]);
    assert_eq!(targets(&carriers_of(&world)), BTreeSet::from([one]));
    let admits_less = edited(world.clone(), |peer| peer.imports.services.clear());
    assert_eq!(targets(&carriers_of(&admits_less)), BTreeSet::new(), "nothing is admitted");
    let suspended = edited(world.clone(), |peer| peer.suspend = true);
    assert_eq!(targets(&carriers_of(&suspended)), BTreeSet::new());
    let mut off = world;
    off.settings = Arc::new(Settings { checks_gateways: false, ..Settings::clone(&off.settings) });
    assert_eq!((targets(&carriers_of(&off)), say(&off, None)), (BTreeSet::new(), None));
}

#[test]
fn an_address_that_is_not_admitted_is_not_tried() {
    for address in ["127.0.0.1", "169.254.169.254", "240.240.0.1", "kubernetes.default.svc.cluster.local"] {
        let world = importing(&[named("cart", vec![gateway(address, 443)])]);
        assert_eq!(targets(&carriers_of(&world)), BTreeSet::new(), "{address}");
    }
}

#[test]
fn no_peer_has_more_than_its_share_tried() {
    let all: Vec<RemoteService> = (0..40)
        .map(|n| named(&format!("s{n}"), vec![gateway(&format!("10.77.2.{}", n + 1), 15_443)]))
        .collect();
    let carriers = carriers_of(&importing(&all));
    let of_peer = &carriers[&td(WEST)];
    assert_eq!((of_peer.addresses.len(), of_peer.is_part), (MOST, true));
    assert!(of_peer.addresses.contains(&gateway("10.77.2.1", 15_443)));
}

#[test]
fn what_is_said_follows_from_what_was_seen() {
    use Attempt::{Answered, NoAddress, Refused, Silent};
    let (one, two) = (gateway("10.77.2.2", 15_443), gateway("10.77.2.3", 15_443));
    let world = importing(&[named("cart", vec![one.clone(), two.clone()])]);
    let first = Tried::first;
    let lost = |attempt| first(Answered).then(attempt).then(attempt);
    let rows = [
        ((first(Answered), first(Answered)), None, Truth::True, "Reached"),
        ((first(Answered), lost(Silent)), None, Truth::False, "SomeNotReached"),
        ((lost(Silent), lost(Refused)), None, Truth::False, "NoneReached"),
        ((first(Answered), first(Answered).then(Silent)), None, Truth::True, "Reached"),
        // Silence of what never answered says nothing; a refusal does.
        ((first(Silent), first(NoAddress)), None, Truth::Unknown, "NeverReached"),
        ((first(Answered), first(Silent)), None, Truth::Unknown, "NeverReached"),
        ((first(Answered), first(Refused)), None, Truth::False, "SomeNotReached"),
        ((first(Silent), first(Silent)), Some(("True", "Reached")), Truth::Unknown, "NeverReached"),
    ];
    for ((a, b), before, truth, reason) in rows {
        let world = tried(world.clone(), &[(&one, a), (&two, b)]);
        let before = before.map(|(status, reason)| stored(status, reason));
        let said = say(&world, before.as_ref()).unwrap();
        assert_eq!((said.status, &*said.reason), (truth, reason), "{a:?} {b:?}: {}", said.message);
        let again = say(&world, before.as_ref()).unwrap();
        assert_eq!(said, again);
        let names = said.message.contains("10.77.2.3:15443 (");
        assert_eq!(names, verdict(b, truth == Truth::False) != Verdict::Answers, "{}", said.message);
    }
}

/// What was lost before a restart is lost until it answers; and no other for its sake.
#[test]
fn what_was_lost_is_lost_until_it_answers() {
    use Attempt::{Answered, Silent};
    let (one, two) = (gateway("10.77.2.3", 15_443), gateway("110.77.2.3", 15_443));
    let world = importing(&[named("cart", vec![one.clone(), two.clone()])]);
    let first = Tried::first;
    let lost = first(Answered).then(Silent).then(Silent);
    let said = |a: Tried, b: Tried, before: Option<&Value>| {
        let said = say(&tried(world.clone(), &[(&one, a), (&two, b)]), before).unwrap();
        (
            stored_with(said.status.as_str(), &said.reason, &said.message),
            said.status,
            said.reason.into_owned(),
        )
    };
    let (none, truth, reason) = said(lost, lost, None);
    assert_eq!((truth, reason.as_str()), (Truth::False, "NoneReached"));
    let (again, truth, reason) = said(first(Silent), first(Silent), Some(&none));
    assert_eq!((truth, reason.as_str(), &again), (Truth::False, "NoneReached", &none));

    // The one of them was lost, the other never answered: that is not said to be lost then, whatever is planned.
    let (mut stands, ..) = said(first(Answered), lost, None);
    for _ in 0..3 {
        let (next, truth, reason) = said(first(Silent), first(Silent), Some(&stands));
        assert_eq!((truth, reason.as_str()), (Truth::False, "SomeNotReached"), "{next}");
        stands = next;
    }
    // and once the one answers, none is
    let (mut stands, truth, reason) = said(first(Silent), first(Answered), Some(&stands));
    assert_eq!((truth, reason.as_str()), (Truth::Unknown, "NeverReached"), "{stands}");
    (stands, ..) = said(first(Silent), lost, Some(&stands));
    let (_, truth, reason) = said(first(Silent), first(Answered), Some(&stands));
    assert_eq!((truth, reason.as_str()), (Truth::Unknown, "NeverReached"));
}

#[test]
fn nothing_is_said_from_not_having_looked() {
    let one = gateway("10.77.2.2", 15_443);
    let world = importing(&[named("cart", vec![one])]);
    let said = say(&world, None).unwrap();
    assert_eq!((said.status, &*said.reason), (Truth::Unknown, "NotTried"));
    for (status, reason) in [("True", "Reached"), ("False", "NoneReached")] {
        let said = say(&world, Some(&stored(status, reason))).unwrap();
        assert_eq!(
            (said.status.as_str(), &*said.reason, said.message.as_str()),
            (status, reason, "as it was")
        );
    }
    assert_eq!(say(&importing(&[]), Some(&stored("True", "Reached"))), None, "nothing is called");
}

/// What an operator goes by first is not what the agent alone may see.
#[test]
fn a_lost_gateway_has_no_part_in_ready() {
    let one = gateway("10.77.2.2", 15_443);
    let world = importing(&[named("cart", vec![one.clone()])]);
    let ready = |world: &World| {
        let plan = crate::plan::plan(world);
        let statuses = plan.statuses.into_iter();
        let of_peer = statuses.filter(|(key, _)| key.kind == crate::model::object::Kind::TrustDomainPeer);
        let write = of_peer.map(|(_, write)| write).next().unwrap();
        let conditions = write.status["conditions"].as_array().unwrap().clone();
        let of = |kind: &str| conditions.iter().find(|c| c["type"] == kind).map(|c| c["reason"].clone());
        (of("Ready"), of(Reason::CONDITION.as_str()))
    };
    let well = ready(&tried(world.clone(), &[(&one, Tried::first(Attempt::Answered))]));
    let lost = ready(&tried(world, &[(&one, Tried::first(Attempt::Refused))]));
    assert_eq!(well.0, lost.0);
    assert_eq!((well.1, lost.1), (Some(json!("Reached")), Some(json!("NoneReached"))));
}

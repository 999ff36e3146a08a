use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::object::Kind;
use crate::model::refused::ClientRefusal;
use crate::model::service::Outcome;
use crate::model::session::{Acknowledgement, LinkState};
use crate::model::trust::SpireState;
use crate::model::{ServiceName, World};
use crate::plan::fixtures::{
    NAMESPACE, WorldExt as _, gateway, peer, remote_cart, service, session, td, world,
};
use crate::plan::{Plan, plan, plan_anew};

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Service {
        number: u8,
        port: u16,
        to_north: bool,
    },
    NoService(u8),
    Peer {
        is_north: bool,
        version: u8,
    },
    NoPeer {
        is_north: bool,
    },
    /// East exports these, on this port.
    Catalogue {
        numbers: Vec<u8>,
        port: u16,
    },
    /// East has imported what it is offered.
    Acknowledged,
    Written,
    StatusesWritten,
    /// A client of xDS refuses what it is served of this one, or all take everything.
    Refused(Option<u8>),
    /// Someone changes what was written.
    Drift,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4_u8, 1..4_u16, any::<bool>())
            .prop_map(|(number, port, to_north)| Step::Service { number, port, to_north }),
        1 => (0..4_u8).prop_map(Step::NoService),
        2 => (any::<bool>(), 0..3_u8).prop_map(|(is_north, version)| Step::Peer { is_north, version }),
        1 => any::<bool>().prop_map(|is_north| Step::NoPeer { is_north }),
        2 => (proptest::collection::vec(0..4_u8, 0..4), 1..3_u16)
            .prop_map(|(numbers, port)| Step::Catalogue { numbers, port }),
        1 => Just(Step::Acknowledged),
        4 => Just(Step::Written),
        2 => Just(Step::StatusesWritten),
        1 => proptest::option::of(0..4_u8).prop_map(Step::Refused),
        1 => Just(Step::Drift),
    ];
    proptest::collection::vec(step, 1..24)
}

fn name_of(is_north: bool) -> &'static str {
    if is_north { "north.example" } else { "east.example" }
}

fn remote(number: u8, port: u16) -> RemoteService {
    let mut service = remote_cart();
    service.name = ServiceName::new("shop", &format!("remote-{number}")).unwrap();
    service.server_ids = [crate::plan::fixtures::id("spiffe://east.example/sa/remote")].into();
    service.clients.clear();
    service.gateways = vec![gateway("203.0.113.9", 15_000 + port)];
    service
}

fn after(world: World, step: &Step, plan: &Plan) -> World {
    let mut world = world;
    match step {
        Step::Service { number, port, to_north } => {
            let mut service = service("shop", &format!("service-{number}"), name_of(*to_north));
            service.ports[0].target_port = *port;
            world = world.with_service(service);
        }
        Step::NoService(number) => {
            world.services.remove(&NamespacedName::new("shop", format!("service-{number}")));
        }
        Step::Peer { is_north, version } => {
            let mut peer = peer(name_of(*is_north));
            peer.resource_version = version.to_string();
            peer.imports.export_to = vec![if *version == 0 { "*" } else { "shop" }.to_owned()];
            peer.imports.max_services = if *version == 2 { 2 } else { 100 };
            world = world.with_peer(peer);
        }
        Step::NoPeer { is_north } => drop(world.peers.remove(&td(name_of(*is_north)))),
        Step::Catalogue { numbers, port } => {
            let services = numbers.iter().map(|number| remote(*number, *port)).collect();
            world = world.with_session("east.example", session(LinkState::Connected, Some(services)));
        }
        Step::Acknowledged => {
            let Some(link) = plan.links.get(&td("east.example")) else { return world };
            let outcomes = link.catalogue.services.keys();
            let outcomes = outcomes.map(|name| (name.clone(), crate::model::service::Outcome::Imported));
            let mut session = session(LinkState::Connected, None);
            session.acknowledged = Some(Acknowledgement {
                version: link.catalogue.version,
                offered: Arc::clone(&link.catalogue),
                outcomes: Arc::new(outcomes.collect()),
            });
            world = world.with_session("east.example", session);
        }
        Step::Written => {
            let written = plan.writes.iter().map(|(key, write)| (key.clone(), Arc::clone(&write.object)));
            let imported: Vec<_> = plan
                .writes
                .keys()
                .filter(|key| key.kind == Kind::ImportedService)
                .filter_map(|key| {
                    let sessions = world.sessions.get(&td("east.example"))?;
                    let mut services = sessions.catalogue.as_ref()?.services.values();
                    let service = services.find(|s| key.name.starts_with(&format!("{}.", s.name.name())))?;
                    Some(("east.example", service.as_ref().clone()))
                })
                .collect();
            world = world.with_written(&written.collect(), &imported);
            for key in plan.prune.keys() {
                world.objects.remove(key);
                world.imported.remove(&NamespacedName::new(NAMESPACE, &key.name));
            }
        }
        Step::StatusesWritten => {
            let statuses = plan.statuses.iter();
            world.statuses.extend(statuses.map(|(key, write)| (key.clone(), Arc::new(write.status.clone()))));
        }
        Step::Refused(number) => {
            let refusal = |number: u8| {
                let (client, message) = ("spiffe://west.example/a".to_owned(), "no".to_owned());
                let host = format!("remote-{number}.shop.east.example");
                (host, [ClientRefusal { client, kind: "listener", message }].into())
            };
            world.refusals = Arc::new(number.map(refusal).into_iter().collect());
        }
        Step::Drift => {
            if let Some(object) = world.objects.values_mut().next() {
                Arc::make_mut(object).body.insert("spec".to_owned(), json!({}));
            }
        }
    }
    world
}

fn at_first() -> World {
    let mut world = world("west.example");
    world.spire = Some(Arc::new(SpireState::default()));
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_the_same_with_what_is_remembered_and_without(steps in steps()) {
        let (mut world, mut memo) = (at_first(), Memo::default());
        let mut planned = plan_anew(&world, &mut memo);
        for step in &steps {
            world = after(world, step, &planned);
            planned = plan_anew(&world, &mut memo);
            memo.share(&mut world);
            prop_assert!(planned == plan(&world), "after {step:?} of {steps:?}");
            prop_assert!(plan_anew(&world, &mut memo) == planned, "twice after {step:?}");
        }
    }
}

/// How many objects and statuses were made.
fn made(memo: &Memo) -> usize {
    memo.exports.made + memo.policies.made + memo.imported.made + memo.entries.made
}

#[test]
fn one_change_among_many_makes_what_it_changes() {
    let mut world = at_first().with_peer(peer("east.example"));
    for number in 0..50 {
        world = world.with_service(service("shop", &format!("service-{number}"), "east.example"));
    }
    let mut memo = Memo::default();
    for _ in 0..4 {
        let planned = plan_anew(&world, &mut memo);
        world = after(world, &Step::Written, &planned);
        world = after(world, &Step::StatusesWritten, &planned);
    }
    let (settled, before) = (plan_anew(&world, &mut memo), made(&memo));
    assert!(settled.writes.is_empty(), "{:?}", settled.writes);
    assert_eq!(made(&memo), before);
    assert!(settled.objects.len() >= 150, "a policy, an alias and a Gateway for each");

    let mut changed = service("shop", "service-7", "east.example");
    changed.ports[0].target_port += 1;
    world = world.with_service(changed);
    let planned = plan_anew(&world, &mut memo);
    assert_eq!(made(&memo) - before, 2, "what comes of its export, and its policy");
    assert_eq!(planned.writes.len(), 2, "{:?}", planned.writes.keys());

    // The object of a peer is written, as often as its status is.
    let mut peer = peer("east.example");
    peer.resource_version = "another".to_owned();
    world = world.with_peer(peer);
    let before = made(&memo);
    let _ = plan_anew(&world, &mut memo);
    assert_eq!(made(&memo), before);
}

/// A bundle is made a document when it has changed, and not when anything else has.
#[test]
fn an_equal_bundle_costs_no_document() {
    let ca = crate::bundle::testing::Ca::new();
    let with_bundle = |sequence: Option<u64>| {
        let mut bundle = crate::model::Bundle::clone(&ca.bundle("east.example"));
        bundle.sequence = sequence;
        let mut east = peer("east.example");
        east.bootstrap = Some(crate::model::peer::Bootstrap::Inline(Arc::new(bundle)));
        at_first().with_peer(east)
    };
    let key = crate::plan::relationship::key(&td("east.example"));
    let mut memo = Memo::default();
    for (sequence, made) in [(None, 1), (None, 1), (Some(7), 2), (Some(7), 2), (None, 3)] {
        let planned = plan_anew(&with_bundle(sequence), &mut memo);
        let text = planned.objects[&key].spec().unwrap()["trustDomainBundle"].as_str().unwrap();
        assert_eq!(text.contains(r#""spiffe_sequence":7"#), sequence == Some(7));
        assert_eq!(memo.texts.made, made, "{sequence:?}");
    }
}

/// As a watch brings it: equal, and nowhere the same in memory.
fn told(object: &Object) -> Arc<Object> {
    let body = serde_json::Map::from(object.body.clone()).clone();
    let mut told = Object { body: body.into(), ..object.clone() };
    told.meta.resource_version = "9".to_owned();
    Arc::new(told)
}

#[test]
fn what_stands_as_it_should_is_in_memory_once() {
    let mut world = at_first().with_peer(peer("east.example"));
    world = world.with_service(service("shop", "cart", "east.example"));
    let mut memo = Memo::default();
    for _ in 0..3 {
        let planned = plan_anew(&world, &mut memo);
        world = after(world, &Step::Written, &planned);
    }
    let objects = world.objects.values_mut();
    objects.for_each(|object| *object = told(object));
    let drifted = world.objects.keys().next().unwrap().clone();
    let foreign = |object: &mut Object| object.body.insert("spec".to_owned(), json!({"not": "ours"}));
    foreign(Arc::make_mut(world.objects.get_mut(&drifted).unwrap()));
    let planned = plan_anew(&world, &mut memo);
    let before = world.objects.clone();
    memo.share(&mut world);
    assert_eq!(world.objects, before, "it says the same");
    let mut shared = 0;
    for (key, there) in &world.objects {
        let is_shared = planned.objects.get(key).is_some_and(|object| there.body.is(&object.body));
        assert_eq!(is_shared, *key != drifted, "{key}");
        shared += usize::from(is_shared);
    }
    assert!(shared >= 2, "{:?}", world.objects.keys());
    assert!(plan_anew(&world, &mut memo) == planned);
}

/// A peer that offers thousands of services of which few are admitted costs what it changes.
#[test]
fn what_is_offered_is_judged_once() {
    const OFFERED: usize = 40;
    let mut limited = peer("east.example");
    limited.imports.max_services = 2;
    let offers = |port: u16| (0..OFFERED).map(|number| remote(number.try_into().unwrap(), port)).collect();
    let offering = |services: Vec<RemoteService>| session(LinkState::Connected, Some(services));
    let mut world = at_first().with_peer(limited.clone()).with_session("east.example", offering(offers(1)));
    let (mut memo, at_east) = (Memo::default(), td("east.example"));
    let first = plan_anew(&world, &mut memo);
    let answered = Arc::clone(&first.links[&at_east].outcomes);
    let refused = answered.values().filter(|outcome| matches!(outcome, Outcome::Refused { .. })).count();
    assert_eq!((answered.len(), refused, memo.decisions.judged), (OFFERED, OFFERED - 2, OFFERED));

    // What is imported is written, and so is the peer's own object.
    world = after(world, &Step::Written, &first);
    limited.resource_version = "another".to_owned();
    world = world.with_peer(limited.clone());
    for _ in 0..2 {
        let again = plan_anew(&world, &mut memo);
        assert_eq!(memo.decisions.judged, OFFERED, "nothing is judged anew");
        assert!(Arc::ptr_eq(&again.links[&at_east].outcomes, &answered), "nothing is answered anew");
        assert!(again == plan(&world));
    }

    // One of them, changed.
    let mut catalogue = Catalogue::clone(world.sessions[&at_east].catalogue.as_ref().unwrap());
    catalogue.version = [8; 32];
    let changed = remote(7, 2);
    catalogue.services.insert(changed.name.clone(), Arc::new(changed));
    let mut state = offering(Vec::new());
    state.catalogue = Some(Arc::new(catalogue));
    world = world.with_session("east.example", state);
    assert!(plan_anew(&world, &mut memo) == plan(&world));
    assert_eq!(memo.decisions.judged, OFFERED + 1);

    // Other rules.
    limited.imports.endpoint_cidrs = vec!["198.51.100.0/24".parse().unwrap()];
    world = world.with_peer(limited);
    assert!(plan_anew(&world, &mut memo) == plan(&world));
    assert_eq!(memo.decisions.judged, 2 * OFFERED + 1);
}

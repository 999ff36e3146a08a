use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::model::TrustDomain;
use crate::model::session::{Acknowledgement, Catalogue};
use crate::plan::fixtures::{WorldExt as _, at, peer, session, td, world};
use crate::plan::{memory, plan};

fn east() -> TrustDomain {
    td("east.example")
}

fn key() -> ObjectKey {
    ObjectKey::cluster(Kind::TrustDomainPeer, &peer("east.example").object)
}

/// West, connected to east, which exports nothing.
fn connected() -> World {
    let session = session(LinkState::Connected, Some(Vec::new()));
    let mut world =
        world("west.example").with_peer(peer("east.example")).with_session("east.example", session);
    world.spire = Some(Arc::default());
    world
}

/// East's answer to a catalogue of ours of that version.
fn answered(world: &mut World, version: [u8; 32]) {
    let offered =
        Catalogue { version, services: Default::default(), held: Default::default(), malformed: Vec::new() };
    let answer = Acknowledgement { version, offered: Arc::new(offered), outcomes: Default::default() };
    let sessions = Arc::make_mut(&mut world.sessions);
    sessions.get_mut(&east()).unwrap().acknowledged = Some(answer);
}

fn overdue(world: &mut World, is_overdue: bool) {
    Arc::make_mut(&mut world.sessions).get_mut(&east()).unwrap().answer_overdue = is_overdue;
}

/// The status of east, as it stands or is to be written.
fn status_of(world: &World) -> Value {
    let stands = world.statuses.get(&key()).map(|status| Value::clone(status));
    plan(world).statuses.remove(&key()).map(|write| write.status).or(stands).unwrap()
}

fn synced(world: &World) -> (Value, Value) {
    let status = status_of(world);
    let conditions = status["conditions"].as_array().unwrap();
    let synced = conditions.iter().find(|condition| condition["type"] == "ServicesSynced").unwrap();
    (synced["status"].clone(), synced["reason"].clone())
}

/// A change is answered within moments, and is no news until it is not.
#[test]
fn a_change_on_its_way_is_in_sync_still() {
    let mut world = connected();
    assert_eq!(synced(&world), (json!("Unknown"), json!("AwaitingAcknowledgement")), "never answered");
    let version = plan(&world).links[&east()].catalogue.version;
    answered(&mut world, version);
    assert_eq!(synced(&world), (json!("True"), json!("InSync")));
    let status = status_of(&world);
    world.statuses.insert(key(), Arc::new(status));
    answered(&mut world, [9; 32]);
    assert!(!plan(&world).statuses.contains_key(&key()), "nothing is written");
    overdue(&mut world, true);
    assert_eq!(synced(&world), (json!("False"), json!("AwaitingAcknowledgement")));
    let status = status_of(&world);
    world.statuses.insert(key(), Arc::new(status));
    answered(&mut world, version);
    overdue(&mut world, false);
    assert_eq!(synced(&world), (json!("True"), json!("InSync")));
}

/// An agent that starts anew counts on from when the peer went away; and gives it the time to come first.
#[test]
fn the_time_of_an_absence_runs_on_over_a_restart() {
    let mut away = peer("east.example");
    away.on_disconnect = OnDisconnect::Withdraw { after: Duration::from_secs(60) };
    let mut idle = session(LinkState::Idle, None);
    idle.since = at(1_000);
    let mut world = connected().with_peer(away).with_session("east.example", idle);
    (world.now, world.moment) = (at(1_000), at(1_000));
    world.statuses.insert(key(), Arc::new(json!({"awaySince": at(0).to_string(), "conditions": []})));
    world.memory = memory::advance(&world);
    let withdrawal = |world: &World| imports::withdrawal(world, &world.peers[&east()]).unwrap();
    assert_eq!((withdrawal(&world).since, withdrawal(&world).at), (at(0), at(1_045)));
    assert_eq!(status_of(&world)["awaySince"], at(0).to_string(), "as it was written");

    (world.now, world.moment) = (at(1_030), at(1_030));
    world.memory = memory::advance(&world);
    assert_eq!(status_of(&world)["awaySince"], at(0).to_string());
    // Once it was there, what was written before counts no more.
    let there = session(LinkState::Connected, None);
    let mut world = world.with_session("east.example", there);
    world.memory = memory::advance(&world);
    assert_eq!(world.memory[&east()].away_since, None);
    assert_eq!(status_of(&world).get("awaySince"), None);
    let mut gone = session(LinkState::Idle, None);
    gone.since = at(2_000);
    let mut world = world.with_session("east.example", gone);
    (world.now, world.moment) = (at(2_000), at(2_000));
    world.memory = memory::advance(&world);
    assert_eq!((withdrawal(&world).since, withdrawal(&world).at), (at(2_000), at(2_060)));
}

/// What is suspended stays as it is, for however long; its time begins when the suspension ends.
#[test]
fn a_suspension_is_no_absence() {
    let mut suspended = peer("east.example");
    suspended.on_disconnect = OnDisconnect::Withdraw { after: Duration::from_secs(10) };
    let back = suspended.clone();
    suspended.suspend = true;
    let mut idle = session(LinkState::Idle, None);
    idle.since = at(1_000);
    let at_time = |mut world: World, now: i64| {
        (world.now, world.moment) = (at(now), at(now));
        world.memory = memory::advance(&world);
        world
    };
    let withdrawal = |world: &World| imports::withdrawal(world, &world.peers[&east()]);
    for was_away in [false, true] {
        let mut world = at_time(connected().with_peer(back.clone()), 900);
        if was_away {
            world = at_time(world.with_session("east.example", idle.clone()), 1_000);
            world
                .statuses
                .insert(key(), Arc::new(json!({"awaySince": at(1_000).to_string(), "conditions": []})));
        }
        let world =
            at_time(world.with_peer(suspended.clone()).with_session("east.example", idle.clone()), 1_001);
        assert_eq!(withdrawal(&world), None);
        let world = at_time(world, 9_000);
        assert_eq!((withdrawal(&world), status_of(&world).get("awaySince")), (None, None));
        let world = at_time(world.with_peer(back.clone()), 9_100);
        let due = withdrawal(&world).unwrap();
        assert_eq!((due.since, due.at), (at(9_100), at(9_145)), "{was_away}");
        // There once more, it is away from when it leaves, as ever.
        let world = at_time(world.with_session("east.example", session(LinkState::Connected, None)), 9_110);
        let mut gone = idle.clone();
        gone.since = at(9_200);
        let world = at_time(world.with_session("east.example", gone), 9_200);
        let due = withdrawal(&world).unwrap();
        assert_eq!((due.since, due.at), (at(9_200), at(9_210)), "{was_away}");
    }
}

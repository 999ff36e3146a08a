//! The beginning and the end of a relationship: their order, and that nothing is left.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use entente::model::SpiffeId;
use entente::spire::SpireServer;
use serde_json::json;

use crate::world::{EAST, PEERS, Pair, WEST, federating, files, peer_file, says, td, until, write_peer};

/// What a look at east's SPIRE saw of west. Registrations are read between the two readings of the rest, so that a change
/// of both that is in order is never seen as one that is not.
#[derive(Clone, Debug, PartialEq)]
struct Sight {
    /// Relationship and bundle.
    before: [bool; 2],
    /// A workload's registration federates, and the agent's own does.
    federating: [bool; 2],
    after: [bool; 2],
}

const ALL: Sight = Sight { before: [true; 2], federating: [true; 2], after: [true; 2] };
const NOTHING: Sight = Sight { before: [false; 2], federating: [false; 2], after: [false; 2] };

async fn look(server: &SpireServer, agent: &SpiffeId) -> Sight {
    let held = async || {
        let state = server.read_bundles(&td(EAST)).await.unwrap();
        [state.relationships.contains_key(&td(WEST)), state.bundles.contains_key(&td(WEST))]
    };
    let before = held().await;
    let entries = server.read_entries().await.unwrap();
    let naming = || entries.values().filter(|entry| entry.federates_with.contains(&td(WEST)));
    let federating =
        [naming().any(|entry| entry.spiffe_id != *agent), naming().any(|entry| entry.spiffe_id == *agent)];
    Sight { before, federating, after: held().await }
}

/// Looks at east's SPIRE all the time, and keeps each new sight in order.
fn observe(pair: &Pair) -> (Arc<Mutex<Vec<Sight>>>, tokio::task::JoinHandle<()>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (sights, server) = (Arc::clone(&seen), SpireServer::connect_unix(&pair.east.spire().server_socket));
    let agent = pair.east.agent_id().clone();
    let task = tokio::spawn(async move {
        loop {
            let sight = look(&server, &agent).await;
            {
                let mut sights = sights.lock().unwrap();
                if sights.last() != Some(&sight) {
                    sights.push(sight);
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    (seen, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_registration_federates_before_the_bundle_is_there_nor_after_it_is_gone() {
    let pair = Pair::strangers().await;
    let (seen, observing) = observe(&pair);
    pair.introduce().await;
    pair.serve().await;
    let begun = std::mem::take(&mut *seen.lock().unwrap());
    for Sight { federating, after, .. } in &begun {
        assert!(
            *after == [true; 2] || *federating == [false; 2],
            "federatesWith before the rest: {begun:#?}"
        );
    }
    assert_eq!(begun.last(), Some(&ALL));

    pair.east.remove(&peer_file(&pair.west)).unwrap();
    until("east is done", async || {
        let left = pair.east.conditions(PEERS, WEST);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await;
    until("the end was seen", async || {
        ensure!(seen.lock().unwrap().last() == Some(&NOTHING), "not yet");
        Ok(())
    })
    .await;
    observing.abort();
    let ended = seen.lock().unwrap().clone();
    for Sight { before: [related, bundle], federating: [workload, agent], .. } in &ended {
        assert!(*bundle || !(workload | agent), "the bundle went before federatesWith: {ended:#?}");
        assert!(*agent || !workload, "the agent's own went before the others': {ended:#?}");
        assert!(*related || !agent, "the relationship went before federatesWith: {ended:#?}");
        assert!(*bundle || !related, "the bundle went before the relationship: {ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_relationship_leaves_nothing_and_the_other_side_is_told() {
    let pair = Pair::serving().await;
    assert!(files(&pair.east.generated()).len() >= 3);
    pair.east.remove(&peer_file(&pair.west)).unwrap();
    says(&pair.west, "Reciprocal", "False", "PeerEnded").await;
    until("east is done", async || {
        let left = pair.east.conditions(PEERS, WEST);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await;
    let state = pair.east.spire_state().await.unwrap();
    assert!(state.relationships.is_empty() && state.bundles.is_empty(), "{state:?}");
    assert!(federating(&pair.east, WEST).await.is_empty());
    let generated: Vec<_> = files(&pair.east.generated()).into_keys().collect();
    assert!(generated.is_empty(), "{generated:?}");
    pair.fails().await;

    // It can begin again.
    write_peer(&pair.east, &pair.west, |_| {});
    pair.confirmed().await;
    pair.answers().await;
}

/// A pair of which east ends its relationship in order, and an entry that nobody selected holds that up: its ID.
async fn held_back() -> (Pair, String) {
    let pair = Pair::strangers().await;
    let frontend = json!({ "spiffeIDs": ["spiffe://east.example/ns/web/sa/frontend"] });
    write_peer(&pair.east, &pair.west, |spec| spec["federatesWith"] = frontend);
    write_peer(&pair.west, &pair.east, |_| {});
    pair.confirmed().await;
    let entry = entente::devkit::NewEntry {
        federates_with: vec![td(WEST)],
        ..entente::devkit::NewEntry::workload(
            SpiffeId::new("spiffe://east.example/ns/web/sa/by-hand").unwrap(),
            "by-hand",
        )
    };
    let id = pair.east.spire().create_entry(entry).unwrap();
    pair.east.remove(&peer_file(&pair.west)).unwrap();
    until("the end waits for it, and names it", async || {
        let [_, _, reason, message] = pair.east.condition(PEERS, WEST, "Ready")?;
        ensure!(reason == "EndingHeldBack" && message.contains("by-hand"), "{reason}: {message}");
        Ok(())
    })
    .await;
    (pair, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_that_is_not_selected_holds_the_bundle_back_and_is_named() {
    let (pair, id) = held_back().await;
    assert!(pair.east.spire().federated_bundle(&td(WEST)).is_some());
    pair.east.spire().delete_entry(&id);
    until("the end comes", async || {
        let left = pair.east.conditions(PEERS, WEST);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await;
    assert!(pair.east.spire().federated_bundle(&td(WEST)).is_none());
}

/// Its manifest is gone by then: the command puts it back for as long as the agent needs to read how it is to end now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_is_held_back_is_made_an_emergency() {
    let (pair, _) = held_back().await;
    let store = format!("dir:{}", pair.east.store().display());
    let end = move || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_entente"));
        command.args(["peer", "end", WEST, "--now", "--yes", "--store", &store]).output().unwrap()
    };
    let done = tokio::task::spawn_blocking(end).await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(pair.east.conditions(PEERS, WEST).is_empty());
    assert!(pair.east.spire().federated_bundle(&td(WEST)).is_none());
    assert!(!pair.east.store().join("manifests").join(peer_file(&pair.west)).exists());
}

//! `Reciprocal`: each reason, made by breaking one thing; what each side says; and that it heals when mended.

use std::time::Duration;

use entente::devkit::Fault;
use entente::model::trust::SpireAction;
use entente::spire::SpireServer;
use serde_json::json;

use crate::relay::Relay;
use crate::world::{EAST, PEERS, Pair, WEST, always, peer_file, says, td, until, write_peer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_on_one_side_only_is_refused_by_the_other_until_it_has_one_too() {
    let pair = Pair::strangers().await;
    write_peer(&pair.east, &pair.west, |_| {});
    says(&pair.east, "Reciprocal", "False", "PeerRefusesUs").await;
    assert!(pair.west.conditions(PEERS, EAST).is_empty(), "west has nothing to say it on");
    assert!(pair.west.spire_state().await.unwrap().relationships.is_empty());
    write_peer(&pair.west, &pair.east, |_| {});
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_that_nobody_dials_awaits_its_peer() {
    let pair = Pair::strangers().await;
    write_peer(&pair.east, &pair.west, |spec| spec["agent"]["addresses"] = json!([]));
    says(&pair.east, "Reciprocal", "Unknown", "AwaitingPeer").await;
    // One side that can dial is enough.
    write_peer(&pair.west, &pair.east, |_| {});
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_exchange_awaits_its_peer_on_both_sides() {
    let pair = Pair::peers().await;
    write_peer(&pair.west, &pair.east, |spec| spec["suspend"] = json!(true));
    says(&pair.east, "Reciprocal", "Unknown", "AwaitingPeer").await;
    says(&pair.west, "Reciprocal", "Unknown", "AwaitingPeer").await;
    says(&pair.west, "Ready", "False", "Suspended").await;
    // Nothing that was is taken away.
    assert!(!crate::world::federating(&pair.west, EAST).await.is_empty());
    write_peer(&pair.west, &pair.east, |_| {});
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_network_is_unreachable_on_both_sides() {
    let pair = Pair::strangers().await;
    let to_west = Relay::to(pair.west.agent_address()).await;
    let to_east = Relay::to(pair.east.agent_address()).await;
    let through = |relay: &Relay| json!([relay.address.to_string()]);
    write_peer(&pair.east, &pair.west, |spec| spec["agent"]["addresses"] = through(&to_west));
    write_peer(&pair.west, &pair.east, |spec| spec["agent"]["addresses"] = through(&to_east));
    pair.confirmed().await;
    to_west.cut();
    to_east.cut();
    says(&pair.east, "Reciprocal", "Unknown", "PeerUnreachable").await;
    says(&pair.west, "Reciprocal", "Unknown", "PeerUnreachable").await;
    to_west.mend();
    to_east.mend();
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_stopped_is_unreachable() {
    let mut pair = Pair::peers().await;
    pair.west.stop_agent().await.unwrap();
    says(&pair.east, "Reciprocal", "Unknown", "PeerUnreachable").await;
    pair.west.start_agent().await.unwrap();
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_id_is_not_listed_is_refused() {
    let pair = Pair::peers().await;
    write_peer(&pair.west, &pair.east, |spec| {
        spec["agent"]["spiffeIDs"] = json!(["spiffe://east.example/ns/entente-system/sa/another"]);
    });
    says(&pair.east, "Reciprocal", "False", "PeerRefusesUs").await;
    says(&pair.west, "Reciprocal", "Unknown", "AwaitingPeer").await;
    says(&pair.west, "Connected", "False", "WrongPeerId").await;
    write_peer(&pair.west, &pair.east, |_| {});
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_cannot_fetch_our_new_authority_holds_a_stale_bundle() {
    let pair = Pair::peers().await;
    let spire = pair.west.spire();
    spire.set_fault(Some(Fault::Status(500)));
    says(&pair.east, "BundleEndpointHealthy", "False", "BadResponse").await;
    let prepared = spire.prepare().unwrap();
    says(&pair.west, "RotationSafe", "False", "PeerLacksAuthority").await;
    spire.activate(&prepared).unwrap();
    says(&pair.west, "Reciprocal", "False", "PeerHoldsStaleBundle").await;
    // East's part of it is whole: west holds its bundle. What is wrong on its side is what it said above.
    says(&pair.east, "Reciprocal", "True", "Confirmed").await;
    spire.set_fault(None);
    pair.confirmed().await;
    says(&pair.west, "RotationSafe", "True", "PeersHoldAuthorities").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_without_the_peers_bundle_says_so_and_refuses_the_other() {
    let pair = Pair::strangers().await;
    write_peer(&pair.west, &pair.east, |_| {});
    write_peer(&pair.east, &pair.west, |spec| {
        spec.as_object_mut().unwrap().remove("bootstrapBundle");
    });
    says(&pair.east, "Reciprocal", "False", "WeDoNotHoldPeerBundle").await;
    says(&pair.east, "BundleEndpointHealthy", "False", "NoBundleToVerifyEndpoint").await;
    says(&pair.west, "Reciprocal", "False", "PeerRefusesUs").await;
    write_peer(&pair.east, &pair.west, |_| {});
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relationship_that_someone_keeps_deleting_is_missed_by_both_sides() {
    let pair = Pair::peers().await;
    let server = SpireServer::connect_unix(&pair.west.spire().server_socket);
    let deleting = tokio::spawn(async move {
        loop {
            server.act(&td(WEST), &SpireAction::DeleteRelationship(td(EAST))).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    says(&pair.east, "Reciprocal", "False", "PeerHasNoRelationship").await;
    says(&pair.west, "Reciprocal", "False", "WeDoNotHoldPeerBundle").await;
    deleting.abort();
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_ended_the_relationship_is_said_to_have_until_it_begins_again() {
    let pair = Pair::peers().await;
    pair.west.remove(&peer_file(&pair.east)).unwrap();
    says(&pair.east, "Reciprocal", "False", "PeerEnded").await;
    until("west is done", async || {
        let left = pair.west.conditions(PEERS, EAST);
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await;
    // It stands, though west now refuses us as it would a stranger.
    always("it is still said to have ended", Duration::from_secs(5), async || {
        let [_, _, reason, message] = pair.east.condition(PEERS, WEST, "Reciprocal")?;
        anyhow::ensure!(reason == "PeerEnded", "{reason}: {message}");
        Ok(())
    })
    .await;
    write_peer(&pair.west, &pair.east, |_| {});
    pair.confirmed().await;
}

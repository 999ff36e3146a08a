//! One side's authority changes, and the other follows; nothing that runs is interrupted.

use anyhow::ensure;
use entente::model::AuthorityId;

use crate::world::{EAST, HOST, PORT, Pair, SOON, WEST, says, td, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_changes_twice_and_old_ones_are_revoked_while_calls_go_on() {
    let pair = Pair::serving().await;
    let calling = async {
        loop {
            pair.frontend.call(HOST, PORT).await.unwrap_or_else(|e| panic!("a call failed: {e}"));
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let rotating = async {
        for _ in 0..2 {
            rotate(&pair).await;
        }
    };
    tokio::select! {
        () = calling => unreachable!("it calls for ever"),
        rotated = tokio::time::timeout(3 * SOON, rotating) => rotated.unwrap(),
    }
    pair.confirmed().await;
}

async fn rotate(pair: &Pair) {
    let spire = pair.west.spire();
    let old = spire.slots().active;
    let new = prepared(pair).await;
    until("east's workloads are given the new authority, and east said so", async || {
        let identity = pair.frontend.identity().unwrap();
        let received = identity.federated.get(&td(WEST)).map(|b| b.authority_ids()).unwrap_or_default();
        ensure!(received.contains(&new), "the caller is not given {new}");
        let [_, status, _, message] = pair.west.condition(crate::world::PEERS, EAST, "RotationSafe")?;
        ensure!(status == "True", "{message}");
        Ok(())
    })
    .await;
    spire.activate(&new).unwrap();
    spire.taint(&old).unwrap();
    until("the service has an SVID of the new authority", async || {
        let answer = pair.frontend.call(HOST, PORT).await?;
        ensure!(answer.server_signed_by.as_ref() == Some(&new), "it has one of the old");
        Ok(())
    })
    .await;
    spire.revoke(&old).unwrap();
    until("east no longer holds the old authority", async || {
        let held = pair.east.spire().federated_bundle(&td(WEST)).unwrap();
        ensure!(!held.authority_ids().contains(&old), "it still does");
        Ok(())
    })
    .await;
    says(&pair.west, "Reciprocal", "True", "Confirmed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_was_followed_outlives_a_restart() {
    let mut pair = Pair::peers().await;
    // Neither the operator's bundle nor any authority in it is left at the endpoint.
    for _ in 0..2 {
        rotate_quietly(&pair).await;
    }
    pair.east.stop_agent().await.unwrap();
    pair.east.start_agent().await.unwrap();
    says(&pair.east, "BundleEndpointHealthy", "True", "Healthy").await;
    pair.confirmed().await;
}

/// The next authority of west, once east's agent has fetched it: what west says of it may be of the time before.
async fn prepared(pair: &Pair) -> AuthorityId {
    let written = pair.east.generated().join("clusterfederatedtrustdomains/west.example.yaml");
    let before = std::fs::read_to_string(&written).unwrap();
    let new = pair.west.spire().prepare().unwrap();
    until("east wrote down the new bundle", async || {
        ensure!(std::fs::read_to_string(&written)? != before, "it has not");
        Ok(())
    })
    .await;
    new
}

async fn rotate_quietly(pair: &Pair) {
    let spire = pair.west.spire();
    let old = spire.slots().active;
    let new = prepared(pair).await;
    says(&pair.west, "RotationSafe", "True", "PeersHoldAuthorities").await;
    spire.activate(&new).unwrap();
    spire.taint(&old).unwrap();
    spire.revoke(&old).unwrap();
    until("east follows", async || {
        let held = pair.east.spire().federated_bundle(&td(WEST)).unwrap();
        ensure!(!held.authority_ids().contains(&old), "it holds the old one");
        Ok(())
    })
    .await;
}

/// SPIRE goes on polling while no agent runs, or while no fetch of the agent comes through: the agent finds an endpoint that
/// nothing it holds verifies, and follows what SPIRE has fetched by the same rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_slept_over_a_rotation_hears_the_endpoint_again() {
    let mut pair = Pair::serving().await;
    pair.east.stop_agent().await.unwrap();
    let spire = pair.west.spire();
    let old = spire.slots().active;
    let new = spire.prepare().unwrap();
    until("east's SPIRE holds the new authority", async || {
        let held = pair.east.spire().federated_bundle(&td(WEST)).unwrap();
        ensure!(held.authority_ids().contains(&new), "not yet");
        Ok(())
    })
    .await;
    spire.activate(&new).unwrap();
    spire.taint(&old).unwrap();
    pair.east.start_agent().await.unwrap();
    says(&pair.east, "BundleEndpointHealthy", "True", "Healthy").await;
    pair.confirmed().await;
    pair.answers().await;
}

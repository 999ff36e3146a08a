//! An agent that is started again, with or without its peer: what it wrote stays as it is.

use std::time::Duration;

use anyhow::ensure;

use crate::world::{EAST, Pair, WEST, always, federating, files, says, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_while_the_peer_is_away_changes_no_generated_file() {
    let mut pair = Pair::serving().await;
    let before = files(&pair.east.generated());
    let federated = federating(&pair.east, WEST).await;
    pair.west.stop_agent().await.unwrap();
    says(&pair.east, "Reciprocal", "Unknown", "PeerUnreachable").await;
    pair.east.stop_agent().await.unwrap();
    pair.east.start_agent().await.unwrap();
    // It has read everything, fetched, dialled, and led for longer than a Lease.
    says(&pair.east, "BundleEndpointHealthy", "True", "Healthy").await;
    says(&pair.east, "Reciprocal", "Unknown", "PeerUnreachable").await;
    always("the files are as they were", Duration::from_secs(4), async || {
        ensure!(files(&pair.east.generated()) == before, "they changed");
        ensure!(federating(&pair.east, WEST).await == federated, "registrations changed");
        Ok(())
    })
    .await;
    pair.answers().await;
    pair.west.start_agent().await.unwrap();
    pair.confirmed().await;
    pair.answers().await;
    assert_eq!(files(&pair.east.generated()), before, "nor does its return change any");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settled_pair_writes_nothing() {
    let pair = Pair::serving().await;
    says(&pair.east, "Ready", "True", "Ready").await;
    says(&pair.west, "Ready", "True", "Ready").await;
    let stored = |domain: &entente::devkit::demo::Domain| {
        let mut found = files(&domain.generated());
        found.extend(files(&domain.store().join("status")));
        found
    };
    // What was set in motion comes to rest by itself: statuses follow what they speak of.
    let mut last = (stored(&pair.east), stored(&pair.west));
    let mut since = tokio::time::Instant::now();
    until("the files come to rest", async || {
        let now = (stored(&pair.east), stored(&pair.west));
        if now != last {
            (last, since) = (now, tokio::time::Instant::now());
        }
        ensure!(since.elapsed() >= Duration::from_secs(3), "they change still");
        Ok(())
    })
    .await;
    let before = last;
    always("the files are as they were", Duration::from_secs(6), async || {
        let now = (stored(&pair.east), stored(&pair.west));
        for (domain, before, now) in [(EAST, &before.0, &now.0), (WEST, &before.1, &now.1)] {
            let changed: Vec<_> = now.iter().filter(|(path, file)| before.get(*path) != Some(file)).collect();
            ensure!(changed.is_empty() && before.len() == now.len(), "{domain}: {changed:?}");
        }
        Ok(())
    })
    .await;
}

//! A peer that serves a bundle without a usable authority: it costs no local workload its SVID.

use std::time::Duration;

use anyhow::ensure;
use entente::devkit::Fault;
use tokio::time::Instant;

use crate::world::{EAST, Pair, WEST, federating, says, td, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_bundle_suspends_federation_and_local_svids_go_on_rotating() {
    let pair = Pair::with(|config| config.svid_ttl = Duration::from_secs(6)).await;
    pair.introduce().await;
    pair.serve().await;

    pair.west.spire().set_fault(Some(Fault::EmptyKeys));
    let start = Instant::now();
    until("no registration of east federates with west", async || {
        let names = federating(&pair.east, WEST).await;
        ensure!(names.is_empty(), "{names:?}");
        Ok(())
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(5), "suspended after {:?} only", start.elapsed());
    says(&pair.east, "BundleDistributed", "False", "SuspendedUnusableBundle").await;
    says(&pair.east, "BundleEndpointHealthy", "False", "NoUsableAuthority").await;

    // No empty bundle comes with the SVID, and the SVID is replaced as ever.
    for round in 0..2 {
        let now = pair.frontend.identity().unwrap();
        assert!(!now.federated.contains_key(&td(WEST)), "round {round}");
        until("the caller has a new SVID", async || {
            let next = pair.frontend.identity().unwrap();
            ensure!(next.not_after > now.not_after, "it still has the one until {}", now.not_after);
            Ok(())
        })
        .await;
    }
    pair.fails().await;

    pair.west.spire().set_fault(None);
    pair.answers().await;
    pair.confirmed().await;
    assert_eq!(federating(&pair.east, WEST).await.len(), 3);
    assert_eq!(federating(&pair.west, EAST).await.len(), 2, "west had nothing to suspend");
}

//! The bundle endpoint of a peer, while the rest goes on: what it may be verified by, and what each of its faults is
//! called.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use entente::bundle::document;
use entente::devkit::{Authority, Fault, Settings};
use entente::model::SpiffeId;
use entente::model::trust::SpireAction;
use entente::spire::SpireServer;
use serde_json::json;

use crate::world::{EAST, PEERS, Pair, WEST, always, says, td, until, write_peer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_only_the_workload_api_knows_verifies_no_https_spiffe_endpoint() {
    let pair = Pair::strangers().await;
    write_peer(&pair.west, &pair.east, |_| {});
    // East's operator gives a bundle of west of which nothing is west's.
    let stranger = Authority::new(td(WEST), Settings::new(entente::clock::now())).unwrap();
    write_peer(&pair.east, &pair.west, |spec| {
        spec["bootstrapBundle"]["inline"] = json!(document::write(stranger.bundle()));
    });
    says(&pair.east, "BundleEndpointHealthy", "False", "EndpointCertificateUntrusted").await;
    until("east has the relationship", async || {
        let state = pair.east.spire_state().await?;
        ensure!(state.relationships.contains_key(&td(WEST)), "not yet");
        Ok(())
    })
    .await;

    // Someone gives east's SPIRE the right one: the Workload API delivers it, and agents and workloads verify by it.
    let server = SpireServer::connect_unix(&pair.east.spire().server_socket);
    let set = SpireAction::SetBundle(Arc::clone(&pair.west.spire().bundle()));
    server.act(&td(EAST), &set).await.unwrap();
    until("the Workload API delivers the right bundle", async || {
        let identity = pair.frontend.identity().unwrap();
        let digest = identity.federated.get(&td(WEST)).map(|bundle| bundle.digest());
        ensure!(digest == Some(pair.west.spire().bundle().digest()), "not yet");
        Ok(())
    })
    .await;
    says(&pair.east, "Connected", "True", "Connected").await;
    always("the endpoint stays untrusted", Duration::from_secs(4), async || {
        let [_, status, reason, message] = pair.east.condition(PEERS, WEST, "BundleEndpointHealthy")?;
        ensure!(status == "False" && reason == "EndpointCertificateUntrusted", "{reason}: {message}");
        Ok(())
    })
    .await;
    // Given by the operator, it is what verifies the endpoint.
    write_peer(&pair.east, &pair.west, |_| {});
    says(&pair.east, "BundleEndpointHealthy", "True", "Healthy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_an_endpoint_has_its_name_and_harms_nothing_that_runs() {
    let pair = Pair::serving().await;
    let other = SpiffeId::new("spiffe://west.example/spire/other").unwrap();
    let faults = [
        (Fault::Status(503), "BadResponse"),
        (Fault::Garbage(b"<html>".to_vec()), "BundleUnparseable"),
        (Fault::EndlessBody, "BundleTooLarge"),
        (Fault::WrongSpiffeId(other), "WrongEndpointSpiffeId"),
        (Fault::UntrustedCertificate, "EndpointCertificateUntrusted"),
        (Fault::ExpiredCertificate, "EndpointCertificateExpired"),
        (Fault::Hangup, "EndpointUnreachable"),
    ];
    for (fault, reason) in faults {
        pair.west.spire().set_fault(Some(fault));
        says(&pair.east, "BundleEndpointHealthy", "False", reason).await;
        says(&pair.east, "Reciprocal", "True", "Confirmed").await;
        pair.answers().await;
    }
    pair.west.spire().set_fault(None);
    says(&pair.east, "BundleEndpointHealthy", "True", "Healthy").await;
    says(&pair.east, "Ready", "True", "Ready").await;
}

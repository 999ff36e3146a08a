//! What the agents say of the mesh, beside what really flows in it: both by the one ConfigMap that istiod and agent read.

use crate::federation::{SOON, of_peer};
use crate::istiod::trust;
use crate::meshes::{CART, Meshes, with_meshes};
use crate::wait::eventually;
use anyhow::{Result, ensure};

const HERE: &str = "127.0.0.1";

/// Without the client's trust domain in `caCertificates` the exporter says what is missing and is not Ready, and its sidecar
/// refuses the client; with it both heal. The importer lacks the exporter's trust domain all the while, and needs it not.
#[test]
fn what_is_said_to_be_missing_is_what_stops_traffic() {
    with_meshes(async |meshes| {
        eventually("frontend hears cart", SOON, || hears(meshes)).await?;
        says(meshes, "True").await?;
        trust(&meshes.west, &[]).await?;
        let message = says(meshes, "False").await?;
        ensure!(message.contains("caCertificates: [{trustDomains: [east.example]}]"), "{message}");
        let ready = of_peer(&meshes.west, "east.example", "Ready").await?;
        ensure!(ready["reason"] == "MeshNotReady", "{ready}");
        let refusals = "ssl.fail_verify_san";
        eventually("the server's sidecar refuses the client for its trust domain", SOON, || async {
            let server = &meshes.workloads().cart.proxy;
            let before = server.stats(refusals).await?;
            let heard = meshes.workloads().frontend.hears(HERE, CART.port).await?;
            ensure!(heard.is_empty(), "it hears {heard:?}");
            let after = server.stats(refusals).await?;
            ensure!(before != after, "not for its trust domain: {after}");
            Ok(())
        })
        .await?;
        trust(&meshes.west, &["east.example"]).await?;
        says(meshes, "True").await?;
        eventually("frontend hears cart again", SOON, || hears(meshes)).await?;
        let importer = of_peer(&meshes.east, "west.example", "MeshReady").await?;
        ensure!(importer["reason"] == "DnsCaptureOff", "{importer}");
        let ready = of_peer(&meshes.east, "west.example", "Ready").await?;
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    });
}

async fn hears(meshes: &Meshes) -> Result<()> {
    let heard = meshes.workloads().frontend.hears(HERE, CART.port).await?;
    ensure!(heard == CART.name, "it hears {heard:?}");
    Ok(())
}

/// Waits until west says so of its mesh; the message.
async fn says(meshes: &Meshes, status: &str) -> Result<String> {
    eventually(&format!("west says MeshReady={status}"), SOON, || async {
        let said = of_peer(&meshes.west, "east.example", "MeshReady").await?;
        ensure!(said["status"] == status, "{said}");
        Ok(said["message"].as_str().unwrap_or_default().to_owned())
    })
    .await
}

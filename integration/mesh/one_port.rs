//! Two TCP services of a peer on one port: TCP names no host, so that a client's sidecar tells them apart by their addresses
//! alone. What clients get whose connections are redirected to their sidecar, as in an installed mesh.

use crate::federation::{Exported, SOON, address, export, withdraw};
use crate::meshes::{CART, GATEWAY, GATEWAY_PORT, Meshes, with_meshes};
use crate::wait::eventually;
use crate::workload::{Interception, Role, Workload};
use anyhow::{Result, ensure};
use kube::api::DeleteParams;
use std::net::Ipv4Addr;

/// On the port that `cart` is imported on, too.
const LEDGER: Exported = Exported { name: "ledger", port: CART.port, target_port: 8096 };
const LEDGER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 60);
/// An address that nobody has.
const ELSEWHERE: &str = "203.0.113.7";

/// Each has the address that the agent gave it, and is heard there; what goes elsewhere on that port goes elsewhere.
#[test]
fn two_tcp_services_on_one_port_are_told_apart_by_their_addresses() {
    with_ledger(async |meshes| told_apart(meshes, "capturing", Interception::Redirect, 40).await);
}

/// The same where the sidecar answers for no names, and istiod therefore has no addresses of its own for it: such a client would
/// take the whole port for the first of the two.
#[test]
fn they_are_told_apart_without_dns_capture() {
    with_ledger(async |meshes| {
        told_apart(meshes, "not-capturing", Interception::RedirectWithoutDns, 41).await
    });
}

async fn told_apart(meshes: &Meshes, name: &'static str, interception: Interception, last: u8) -> Result<()> {
    let client = client(meshes, name, interception, last).await?;
    for service in [CART, LEDGER] {
        eventually(&format!("{} is heard at its own address", service.name), SOON, || async {
            let address = address(&meshes.east, service).await?;
            let heard = client.hears_redirected(&address, CART.port).await?;
            ensure!(heard == service.name, "{heard:?}: {}", client.proxy.stats("fail").await?);
            Ok(())
        })
        .await?;
    }
    let config = client.proxy.config().await?;
    ensure!(config.listener("0.0.0.0", CART.port).is_err(), "it takes the whole port");
    let heard = client.hears_redirected(ELSEWHERE, CART.port).await;
    ensure!(!matches!(&heard, Ok(heard) if !heard.is_empty()), "somebody answers elsewhere: {heard:?}");
    end(meshes, name, client).await
}

async fn client(
    meshes: &Meshes,
    name: &'static str,
    interception: Interception,
    last: u8,
) -> Result<Workload> {
    let role = Role {
        namespace: "web",
        name,
        app: name,
        address: Ipv4Addr::new(10, 77, 1, last),
        presents: "frontend",
        gateway: None,
        port: None,
        interception,
    };
    let client = meshes.start_in_east(role).await?;
    client.redirect()?;
    client.proxy.live().await?;
    Ok(client)
}

async fn end(meshes: &Meshes, name: &str, client: Workload) -> Result<()> {
    drop(client);
    let pods = meshes.east.kubernetes.api("v1", "Pod", Some("web")).await?;
    pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

/// With `ledger` exported, for the time of a test.
fn with_ledger(test: impl AsyncFnOnce(&Meshes) -> Result<()>) {
    with_meshes(async |meshes| {
        let role = Role {
            namespace: "shop",
            name: LEDGER.name,
            app: LEDGER.name,
            address: LEDGER_ADDRESS,
            presents: LEDGER.name,
            gateway: None,
            port: Some(LEDGER.target_port),
            interception: Interception::None,
        };
        let ledger = meshes.start_in_west(role).await?;
        export(&meshes.west, LEDGER, &GATEWAY.to_string(), GATEWAY_PORT).await?;
        let done = test(meshes).await;
        withdraw(&meshes.west, LEDGER).await?;
        drop(ledger);
        for (api_version, kind) in [("v1", "Pod"), ("networking.istio.io/v1", "Sidecar")] {
            let api = meshes.west.kubernetes.api(api_version, kind, Some("shop")).await?;
            api.delete(LEDGER.name, &DeleteParams::default().grace_period(0)).await?;
        }
        done
    });
}

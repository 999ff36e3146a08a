//! Two TCP services of a peer on one port: TCP names no host, so that a client's sidecar tells them apart by their addresses
//! alone. What clients get whose connections are redirected to their sidecar, as in an installed mesh.

use crate::federation::{Exported, SOON, allocated, export, withdraw};
use crate::meshes::{CART, GATEWAY, GATEWAY_PORT, Meshes, with_meshes};
use crate::wait::eventually;
use crate::workload::{Interception, Role, Workload};
use anyhow::{Context, Result, ensure};
use kube::api::DeleteParams;
use std::net::Ipv4Addr;

/// On the port that `cart` is imported on, too.
const LEDGER: Exported = Exported { name: "ledger", port: CART.port, target_port: 8096 };
const LEDGER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 60);
/// An address that nobody has.
const ELSEWHERE: &str = "203.0.113.7";

/// With DNS capture, each has the address that istiod allocates for it, and is heard there; what goes elsewhere on that port
/// goes elsewhere.
#[test]
fn two_tcp_services_on_one_port_are_told_apart_by_their_addresses() {
    with_ledger(async |meshes| {
        let client = client(meshes, "capturing", Interception::Redirect, 40).await?;
        for service in [CART, LEDGER] {
            eventually(&format!("{} is heard at its own address", service.name), SOON, || async {
                let addresses = allocated(&meshes.east, service).await?;
                let v4 = addresses.iter().find(|address| address.parse::<Ipv4Addr>().is_ok());
                let heard = client.hears_redirected(v4.context("it has none")?, CART.port).await?;
                ensure!(heard == service.name, "{heard:?}: {}", client.proxy.stats("fail").await?);
                Ok(())
            })
            .await?;
        }
        let config = client.proxy.config().await?;
        ensure!(config.listener("0.0.0.0", CART.port).is_err(), "it takes the whole port");
        let heard = client.hears_redirected(ELSEWHERE, CART.port).await;
        ensure!(!matches!(&heard, Ok(heard) if !heard.is_empty()), "somebody answers elsewhere: {heard:?}");
        end(meshes, "capturing", client).await
    });
}

/// Without it, and without addresses that the agent gives, the first of them has the whole port: the sidecar leads there
/// whatever its workload calls on it, and the other cannot be called. The agent says so of its own mesh (`setup.rs`).
#[test]
fn without_dns_capture_one_of_them_has_the_whole_port() {
    with_ledger(async |meshes| {
        let client = client(meshes, "not-capturing", Interception::RedirectWithoutDns, 41).await?;
        for address in [ELSEWHERE, "198.51.100.9"] {
            eventually(&format!("cart answers at {address}"), SOON, || async {
                let heard = client.hears_redirected(address, CART.port).await?;
                ensure!(heard == CART.name, "{heard:?}: {}", client.proxy.stats("fail").await?);
                Ok(())
            })
            .await?;
        }
        let config = client.proxy.config().await?;
        let listener = config.listener("0.0.0.0", CART.port)?.to_string();
        ensure!(!listener.contains(&LEDGER.cluster()), "{listener}");
        end(meshes, "not-capturing", client).await
    });
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

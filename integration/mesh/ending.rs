//! The end of a relationship, for connections that still run.

use crate::federation::{SOON, begin_again, end, export};
use crate::meshes::{CART, CART_ADDRESS, GATEWAY, GATEWAY_PORT, LOCAL_PORT, Meshes, with_meshes};
use crate::process::Signal;
use crate::proxy::DRAIN;
use crate::wait::eventually;
use crate::workload::Held;
use anyhow::{Result, ensure};
use kube::api::ListParams;
use std::time::{Duration, Instant};

const HERE: &str = "127.0.0.1";
const FRONTEND: &str = "east.example/ns/web/sa/frontend";
/// For istiod, and for a machine that is busy.
const LEEWAY: Duration = Duration::from_secs(10);

/// West ends the relationship with east, through the gateway: a connection of east's client that is in use is closed, and
/// does not come back. A local client's connection to the same port is closed with it, and comes back at once.
#[test]
fn connections_through_the_gateway_are_cut() {
    with_meshes(async |meshes| ends(meshes, "through-gateway", &[]).await.map(drop));
}

/// The same where no gateway of west's is between, and east does not follow: its agent stands still, so its proxies keep what
/// they had. The policy at the server cuts the connection, and changes only once trust has gone.
#[test]
fn connections_that_the_other_side_keeps_are_cut_by_policy() {
    with_meshes(async |meshes| {
        directly(meshes, async || {
            let (policy, cut) = ends(meshes, "directly", &[]).await?;
            ensure!(
                cut >= policy,
                "something else cut it: after {cut:?}, and the policy changed after {policy:?}"
            );
            Ok(())
        })
        .await
    });
}

/// At once: the policy shuts the client out while SPIRE's agents follow still.
#[test]
fn in_an_emergency_connections_are_cut_at_once() {
    with_meshes(async |meshes| {
        directly(meshes, async || {
            let (policy, cut) = ends(meshes, "at-once", &["--now"]).await?;
            ensure!(policy < Duration::from_secs(5), "the policy changed only after {policy:?}");
            ensure!(
                cut >= policy,
                "something else cut it: after {cut:?}, and the policy changed after {policy:?}"
            );
            Ok(())
        })
        .await
    });
}

/// Exports `cart` at its own address for the time of a test.
async fn directly(meshes: &Meshes, test: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    export(&meshes.west, CART, &CART_ADDRESS.to_string(), CART.target_port).await?;
    eventually("the client goes to the server directly", SOON, || async {
        let endpoints = meshes.workloads().frontend.proxy.config().await?.endpoints(&CART.cluster());
        ensure!(endpoints == [format!("{CART_ADDRESS}:{}", CART.target_port)], "{endpoints:?}");
        Ok(())
    })
    .await?;
    test().await?;
    export(&meshes.west, CART, &GATEWAY.to_string(), GATEWAY_PORT).await?;
    eventually("the client goes through the gateway", SOON, || async {
        let endpoints = meshes.workloads().frontend.proxy.config().await?.endpoints(&CART.cluster());
        ensure!(endpoints == [format!("{GATEWAY}:{GATEWAY_PORT}")], "{endpoints:?}");
        Ok(())
    })
    .await
}

/// When the policy changed, and when the connection was cut.
async fn ends(meshes: &Meshes, log: &str, how: &[&str]) -> Result<(Duration, Duration)> {
    let workloads = meshes.workloads();
    let follows = log == "through-gateway";
    eventually("frontend hears cart", SOON, || async {
        ensure!(workloads.frontend.hears(HERE, CART.port).await? == CART.name);
        Ok(())
    })
    .await?;
    let foreign = workloads.frontend.holds(&meshes.east, &format!("{log}-foreign"), HERE, CART.port)?;
    let local = workloads.local.holds(&meshes.west, &format!("{log}-local"), HERE, LOCAL_PORT)?;
    for held in [&foreign, &local] {
        eventually("the connection is in use", SOON, || async {
            ensure!(held.answers() > 2, "{} answers", held.answers());
            Ok(())
        })
        .await?;
    }
    if !follows {
        meshes.agents().signal_east(Signal::Stop)?;
    }
    let since = Instant::now();
    let ended = async {
        let said = end(meshes.agents(), how).await?;
        anyhow::Ok((said, since.elapsed()))
    };
    let ((said, ended), policy, cut, local_cut) = tokio::try_join!(
        ended,
        shut_out(meshes, how.is_empty(), since),
        closed(&foreign, since),
        closed(&local, since)
    )?;
    eprintln!(
        "{log}: policy changed after {policy:.1?}, cut after {cut:.1?}, the local one after {local_cut:.1?}"
    );
    ensure!(said.contains("closed to clients of there, whose connections are cut: shop/cart"), "{said}");
    ensure!(cut <= policy.max(ended) + DRAIN + LEEWAY, "cut only after {cut:?}, the policy after {policy:?}");
    crate::wait::always("east is refused", Duration::from_secs(3), || async {
        let heard = workloads.frontend.hears(HERE, CART.port).await;
        ensure!(!matches!(&heard, Ok(heard) if !heard.is_empty()), "it hears {heard:?}");
        Ok(())
    })
    .await?;
    ensure!(workloads.local.hears(HERE, LOCAL_PORT).await? == CART.name, "local callers are shut out");
    if !follows {
        meshes.agents().signal_east(Signal::Continue)?;
    }
    begin_again(&meshes.east, &meshes.west).await?;
    eventually("frontend hears cart again", SOON, || async {
        ensure!(workloads.frontend.hears(HERE, CART.port).await? == CART.name);
        Ok(())
    })
    .await?;
    Ok((policy, cut))
}

/// When the policy names the client no more. In order, SPIRE has no bundle of its trust domain by then.
async fn shut_out(meshes: &Meshes, in_order: bool, since: Instant) -> Result<Duration> {
    let west = &meshes.west;
    let policies = west.kubernetes.api("security.istio.io/v1", "AuthorizationPolicy", Some("shop")).await?;
    eventually("the policy names the client no more", SOON, || async {
        let all = policies.list(&ListParams::default()).await?;
        ensure!(!all.items.is_empty(), "the policy is gone");
        let named = all.items.iter().any(|one| one.data.to_string().contains(FRONTEND));
        ensure!(!named, "it does");
        Ok(())
    })
    .await?;
    let after = since.elapsed();
    let trusted = west.spire.federated_bundles().await?.contains_key("east.example");
    ensure!(!in_order || !trusted, "the policy was changed before trust was gone");
    Ok(after)
}

async fn closed(held: &Held, since: Instant) -> Result<Duration> {
    eventually("the connection is closed", 2 * SOON, || async {
        ensure!(held.is_closed(), "it is answered, {} times", held.answers());
        Ok(())
    })
    .await?;
    Ok(since.elapsed())
}

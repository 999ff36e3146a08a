//! What flows from sidecar through gateway to sidecar, and what does not.

use crate::federation::{SOON, export, withdraw};
use crate::meshes::{CART, GATEWAY, GATEWAY_PORT, LOCAL_PORT, Meshes, ORDERS, with_meshes};
use crate::proxy::Proxy;
use crate::wait::eventually;
use crate::workload::Workload;
use anyhow::{Result, ensure};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

const HERE: &str = "127.0.0.1";
/// The address of its workload, which plaintext goes to directly.
const CART_HERE: &str = "10.77.2.3";
const STRICT: (&str, &str) = ("security.istio.io/v1", "PeerAuthentication");
/// The counter of those that RBAC has denied at a TCP listener.
const DENIED: &str = "tcp.rbac.denied";

/// The client that the export names calls the server in the other trust domain.
#[test]
fn a_client_is_answered_across_trust_domains() {
    with_meshes(async |meshes| {
        eventually("frontend hears cart", SOON, || hears_cart(&meshes.workloads().frontend)).await?;
        let handshakes = format!("cluster.{};.ssl.handshake", CART.cluster());
        ensure!(meshes.workloads().frontend.proxy.stat(&handshakes).await? > 0, "it was without TLS");
        Ok(())
    });
}

async fn hears_cart(client: &Workload) -> Result<()> {
    let heard = client.hears(HERE, CART.port).await?;
    ensure!(heard == CART.name, "it hears {heard:?}: {}", client.proxy.stats("fail").await?);
    Ok(())
}

/// Another workload of the same trust domain and namespace is refused, and by the server.
#[test]
fn a_stranger_is_denied_by_the_server() {
    with_meshes(async |meshes| {
        let workloads = meshes.workloads();
        eventually("the server denies the stranger", SOON, || {
            is_denied(&workloads.stranger, &workloads.cart.proxy)
        })
        .await?;
        hears_cart(&workloads.frontend).await
    });
}

async fn is_denied(client: &Workload, server: &Proxy) -> Result<()> {
    let before = server.stat(DENIED).await?;
    let heard = client.hears(HERE, CART.port).await?;
    ensure!(heard.is_empty(), "it hears {heard:?}");
    let denied = server.stat(DENIED).await? - before;
    ensure!(denied == 1, "{denied} denied at the server; client: {}", client.proxy.stats("fail").await?);
    Ok(())
}

/// A server with another identity of its trust domain than the one it was exported with gets no byte of the client's.
#[test]
fn an_impostor_is_refused_by_the_client() {
    with_meshes(async |meshes| {
        let workloads = meshes.workloads();
        let counter = format!("cluster.{};.ssl.fail_verify_san", ORDERS.cluster());
        eventually("the client refuses the server's identity", SOON, || async {
            let before = workloads.frontend.proxy.stat(&counter).await?;
            let heard = workloads.frontend.hears(HERE, ORDERS.port).await?;
            ensure!(heard.is_empty(), "it hears {heard:?}");
            let refused = workloads.frontend.proxy.stat(&counter).await? - before;
            ensure!(refused > 0, "not for its SAN: {}", workloads.frontend.proxy.stats("fail").await?);
            Ok(())
        })
        .await
    });
}

/// Callers of the server's own mesh are left as they were, with mutual TLS and in plaintext.
#[test]
fn local_callers_are_left_alone() {
    with_meshes(async |meshes| {
        let workloads = meshes.workloads();
        eventually("a local client hears cart", SOON, || async {
            let heard = workloads.local.hears(HERE, LOCAL_PORT).await?;
            ensure!(heard == CART.name, "by its sidecar {heard:?}");
            let heard = workloads.local.hears(CART_HERE, CART.target_port).await?;
            ensure!(heard == CART.name, "in plaintext {heard:?}");
            Ok(())
        })
        .await
    });
}

/// Where the owner shuts plaintext out of the namespace, clients of the other trust domain are as they were.
#[test]
fn strict_mutual_tls_is_met() {
    with_meshes(async |meshes| {
        let workloads = meshes.workloads();
        let kubernetes = &meshes.west.kubernetes;
        let strict = json!({
            "apiVersion": STRICT.0,
            "kind": STRICT.1,
            "metadata": {"name": "strict", "namespace": "shop"},
            "spec": {"mtls": {"mode": "STRICT"}},
        });
        kubernetes.apply(&strict).await?;
        let plaintext = || workloads.local.hears(CART_HERE, CART.target_port);
        eventually("plaintext is shut out", SOON, || async {
            let heard = plaintext().await?;
            ensure!(heard.is_empty(), "{heard:?}");
            Ok(())
        })
        .await?;
        eventually("frontend hears cart", SOON, || hears_cart(&workloads.frontend)).await?;
        eventually("the server denies the stranger", SOON, || {
            is_denied(&workloads.stranger, &workloads.cart.proxy)
        })
        .await?;
        let all = kubernetes.api(STRICT.0, STRICT.1, Some("shop")).await?;
        all.delete("strict", &DeleteParams::default()).await?;
        eventually("plaintext is let in", SOON, || async {
            let heard = plaintext().await?;
            ensure!(heard == CART.name, "{heard:?}");
            Ok(())
        })
        .await
    });
}

/// Clients that are added to the export, here all of a namespace, are let in, and shut out when they are taken off.
#[test]
fn clients_come_and_go() {
    with_meshes(async |meshes| {
        let workloads = meshes.workloads();
        let frontend = "spiffe://east.example/ns/web/sa/frontend";
        set_clients(meshes, &["spiffe://east.example/ns/web/*"]).await?;
        eventually("all of the namespace are answered", SOON, || hears_cart(&workloads.stranger)).await?;
        set_clients(meshes, &[frontend]).await?;
        eventually("it is a stranger again", SOON, || is_denied(&workloads.stranger, &workloads.cart.proxy))
            .await?;
        eventually("the other client is answered", SOON, || hears_cart(&workloads.frontend)).await
    });
}

/// Once someone allows some callers of a workload, the clients of its export are allowed as well, and nobody else; and once
/// nobody does, local callers and plaintext are as they were.
#[test]
fn clients_are_let_in_where_others_allow() {
    with_meshes(async |meshes| {
        let workloads = meshes.workloads();
        let kubernetes = &meshes.west.kubernetes;
        let plaintext = || workloads.local.hears(CART_HERE, CART.target_port);
        let theirs = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "theirs", "namespace": "shop"},
            "spec": {
                "action": "ALLOW",
                "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/local"]}}]}],
            },
        });
        kubernetes.apply(&theirs).await?;
        eventually("plaintext is shut out by the policy of someone else", SOON, || async {
            let heard = plaintext().await?;
            ensure!(heard.is_empty(), "{heard:?}");
            Ok(())
        })
        .await?;
        eventually("frontend hears cart", SOON, || hears_cart(&workloads.frontend)).await?;
        eventually("the server denies the stranger", SOON, || {
            is_denied(&workloads.stranger, &workloads.cart.proxy)
        })
        .await?;
        let heard = workloads.local.hears(HERE, LOCAL_PORT).await?;
        ensure!(heard == CART.name, "the local client hears {heard:?}");
        let policies = kubernetes.api("security.istio.io/v1", "AuthorizationPolicy", Some("shop")).await?;
        policies.delete("theirs", &DeleteParams::default()).await?;
        eventually("what allows is gone, and plaintext is let in", SOON, || async {
            let all = policies.list(&ListParams::default()).await?;
            let allowing = all.items.iter().filter(|one| one.data["spec"]["action"] == "ALLOW").count();
            ensure!(allowing == 0, "{allowing} are left");
            let heard = plaintext().await?;
            ensure!(heard == CART.name, "{heard:?}");
            Ok(())
        })
        .await?;
        eventually("frontend hears cart still", SOON, || hears_cart(&workloads.frontend)).await
    });
}

async fn set_clients(meshes: &Meshes, clients: &[&str]) -> Result<()> {
    let api = meshes.west.kubernetes.api("entente.dev/v1alpha1", "FederatedService", Some("shop")).await?;
    let change = json!({"spec": {"clients": {"spiffeIDs": clients}}});
    api.patch(CART.name, &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(())
}

/// A service that is not exported any more cannot be reached, by name or by SNI; exported again, it can.
#[test]
fn what_is_withdrawn_is_gone() {
    with_meshes(async |meshes| {
        let workloads = meshes.workloads();
        eventually("frontend hears cart", SOON, || hears_cart(&workloads.frontend)).await?;
        withdraw(&meshes.west, CART).await?;
        eventually("neither client nor gateway has the service", SOON, || async {
            let client = workloads.frontend.proxy.config().await?;
            ensure!(client.cluster(&CART.cluster()).is_err(), "the client has its cluster");
            ensure!(client.listener(HERE, CART.port).is_err(), "the client has its listener");
            let gateway = workloads.gateway.proxy.config().await?;
            let listener = gateway.listener("0.0.0.0", GATEWAY_PORT)?.to_string();
            ensure!(!listener.contains(&CART.sni()), "the gateway passes it on: {listener}");
            ensure!(listener.contains(&ORDERS.sni()), "the gateway has lost another: {listener}");
            Ok(())
        })
        .await?;
        eventually("local callers are as they were", SOON, || async {
            let heard = workloads.local.hears(HERE, LOCAL_PORT).await?;
            ensure!(heard == CART.name, "{heard:?}");
            Ok(())
        })
        .await?;
        export(&meshes.west, CART, &GATEWAY.to_string(), GATEWAY_PORT).await?;
        eventually("frontend hears cart again", SOON, || hears_cart(&workloads.frontend)).await
    });
}

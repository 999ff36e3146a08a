//! `imports.asLocal`: an imported service at its local name, alone, beside a local Service, and instead of one that has no
//! endpoint left.

use crate::federation::{SOON, found};
use crate::istiod::set_status;
use crate::meshes::{CART, Meshes, with_meshes};
use crate::proxy::Config;
use crate::wait::eventually;
use crate::workload::{Interception, Role, Workload, hears_from};
use anyhow::{Context, Result, bail, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

const HERE: &str = "127.0.0.1";
const HOST: &str = "cart.shop.svc.cluster.local";
/// The port of the local Service; it has the name of the one that west exports, not its number.
const PORT: u16 = 8200;
const TARGET: u16 = 8090;
const NEAR: &str = "near";
const NEAR_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 30);
const PLAIN_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 31);
const ENTRY: (&str, &str) = ("networking.istio.io/v1", "ServiceEntry");
const ROUTES: (&str, &str) = ("networking.istio.io/v1", "VirtualService");
const RULE: (&str, &str) = ("networking.istio.io/v1", "DestinationRule");

/// Without a local Service, the name leads to the peer's; asked for no more, nothing of it is left, and the federated name
/// answers as it did.
#[test]
fn a_local_name_that_nobody_has_leads_to_the_peer() {
    with_meshes(async |meshes| {
        let east = &meshes.east;
        east.kubernetes.namespace("shop").await?;
        serve_as_local(meshes, &json!([{"namespace": "shop", "name": "cart"}])).await?;
        alone(meshes).await?;
        serve_as_local(meshes, &json!([])).await?;
        eventually("nothing of the local name is left", SOON, || async {
            for (api_version, kind) in [ENTRY, ROUTES] {
                ensure!(found(east, api_version, kind, Some("shop"), HOST).await.is_err(), "{kind}");
            }
            Ok(())
        })
        .await?;
        eventually("the federated name answers as it did", SOON, || async {
            let heard = meshes.workloads().frontend.hears(HERE, CART.port).await?;
            ensure!(heard == CART.name, "{heard:?}");
            Ok(())
        })
        .await
    });
}

/// With a local Service that comes, both answer; pods without a sidecar, the Service itself and a user's own DestinationRule
/// are as they were; and once it goes, the name leads to the peer's alone.
#[test]
fn a_local_name_that_both_have_is_shared() {
    with_near(async |meshes| {
        let before = versions(meshes).await?;
        let as_local = json!([{"namespace": "shop", "name": "cart"}]);
        serve_as_local(meshes, &as_local).await?;
        merged(meshes).await?;
        without_a_sidecar(meshes).await?;
        ensure!(before == versions(meshes).await?, "the local Service was written");
        let limit = json!({"connectionPool": {"tcp": {"maxConnections": 77}}});
        let has_limit =
            |cluster: &Value| cluster["circuit_breakers"]["thresholds"][0]["max_connections"] == 77;
        beside_the_users_own_rule(meshes, limit, has_limit).await?;
        let tls = json!({"tls": {"mode": "ISTIO_MUTUAL"}});
        // No other way than by TLS is left: the choice by endpoint is gone.
        let has_tls = |cluster: &Value| cluster["transport_socket_matches"].is_null();
        beside_the_users_own_rule(meshes, tls, has_tls).await
    });
}

/// Where that is asked for, the local endpoints have all; when none is left, the peer's have all, and back.
#[test]
fn local_endpoints_come_first_where_that_is_asked_for() {
    with_near(async |meshes| local_first(meshes).await);
}

/// With a local workload and its Service, for the time of a test.
fn with_near(test: impl AsyncFnOnce(&Meshes) -> Result<()>) {
    with_meshes(async |meshes| {
        meshes.east.kubernetes.namespace("shop").await?;
        let near = near(meshes).await?;
        let done = test(meshes).await;
        for (api_version, kind, name) in [
            ("v1", "Service", CART.name),
            ("discovery.k8s.io/v1", "EndpointSlice", CART.name),
            ("v1", "Pod", NEAR),
            ("networking.istio.io/v1", "Sidecar", NEAR),
        ] {
            delete(meshes, (api_version, kind), name).await?;
        }
        drop(near);
        done?;
        alone(meshes).await?;
        serve_as_local(meshes, &json!([])).await
    });
}

/// The resourceVersions of the local Service and its endpoints.
async fn versions(meshes: &Meshes) -> Result<Vec<Option<String>>> {
    let mut versions = Vec::new();
    for (api_version, kind) in [("v1", "Service"), ("discovery.k8s.io/v1", "EndpointSlice")] {
        let object = found(&meshes.east, api_version, kind, Some("shop"), CART.name).await?;
        versions.push(object.metadata.resource_version);
    }
    Ok(versions)
}

/// A client without a sidecar comes to the local pods, as the endpoints of the Service have them. Nothing here leads
/// connections to the Service's own address: that is a node's part.
async fn without_a_sidecar(meshes: &Meshes) -> Result<()> {
    let plain = meshes.join(PLAIN_ADDRESS)?;
    let slice = found(&meshes.east, "discovery.k8s.io/v1", "EndpointSlice", Some("shop"), CART.name).await?;
    let addresses = &slice.data["endpoints"][0]["addresses"];
    ensure!(*addresses == json!([NEAR_ADDRESS.to_string()]), "{addresses}");
    let heard = hears_from(&plain, &NEAR_ADDRESS.to_string(), TARGET).await?;
    ensure!(heard == NEAR, "{heard:?}");
    Ok(())
}

async fn serve_as_local(meshes: &Meshes, patterns: &Value) -> Result<()> {
    let peers = meshes.east.kubernetes.api("entente.dev/v1alpha1", "TrustDomainPeer", None).await?;
    let change = json!({"spec": {"imports": {"asLocal": patterns}}});
    peers.patch("west.example", &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(())
}

async fn delete(meshes: &Meshes, (api_version, kind): (&str, &str), name: &str) -> Result<()> {
    let api = meshes.east.kubernetes.api(api_version, kind, Some("shop")).await?;
    api.delete(name, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

/// Without a local Service the name has an address of its own, from which all goes to the peer's host.
async fn alone(meshes: &Meshes) -> Result<()> {
    let client = meshes.workloads().redirected_client.proxy.short_name();
    says(meshes, "Alone").await?;
    eventually("the local name has an address that leads to the peer", SOON, || async {
        let entry = found(&meshes.east, ENTRY.0, ENTRY.1, Some("shop"), HOST).await?;
        let addresses = entry.data.pointer("/spec/addresses").and_then(Value::as_array);
        let address = addresses.into_iter().flatten().find_map(Value::as_str);
        let address = address.context("it has no address")?;
        let page = format!("/debug/config_dump?proxyID={client}");
        let config = Config::of_istiod(meshes.east_istiod().debug(&page).await?);
        let listener = config.listener(address, CART.port)?;
        let filter = &listener["filter_chains"][0]["filters"][0]["typed_config"];
        ensure!(filter["cluster"] == CART.cluster(), "{listener}");
        Ok(())
    })
    .await
}

/// What the ImportedService says of its local name.
async fn says(meshes: &Meshes, reason: &str) -> Result<()> {
    eventually(&format!("the import says {reason}"), SOON, || async {
        let api = "entente.dev/v1alpha1";
        let import =
            found(&meshes.east, api, "ImportedService", Some("entente-system"), &CART.host()).await?;
        let conditions = import.data.pointer("/status/conditions").and_then(Value::as_array);
        let mut all = conditions.into_iter().flatten();
        let condition = all.find(|one| one["type"] == "ServedLocally").context("no such condition")?;
        ensure!(condition["status"] == "True" && condition["reason"] == reason, "{condition}");
        ensure!(import.data["status"]["localHost"] == HOST, "{}", import.data["status"]);
        Ok(())
    })
    .await
}

/// A local workload and its Service.
async fn near(meshes: &Meshes) -> Result<Workload> {
    let role = Role {
        namespace: "shop",
        name: NEAR,
        app: CART.name,
        address: NEAR_ADDRESS,
        presents: NEAR,
        gateway: None,
        port: Some(TARGET),
        interception: Interception::None,
    };
    let near = meshes.start_in_east(role).await?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": CART.name, "namespace": "shop"},
        "spec": {
            "selector": {"app": CART.name},
            "ports": [{"name": "tcp", "protocol": "TCP", "port": PORT, "targetPort": TARGET}],
        },
    });
    meshes.east.kubernetes.apply(&service).await?;
    set_ready(meshes, true).await?;
    near.proxy.live().await?;
    Ok(near)
}

/// As a kubelet and the endpoint controller write it.
async fn set_ready(meshes: &Meshes, is_ready: bool) -> Result<()> {
    let ip = NEAR_ADDRESS.to_string();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NEAR, "namespace": "shop"},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" }}],
        },
    });
    set_status(&meshes.east, &pod).await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": CART.name,
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": CART.name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "tcp", "protocol": "TCP", "port": TARGET}],
        "endpoints": [{
            "addresses": [ip],
            "conditions": {"ready": is_ready},
            "targetRef": {"kind": "Pod", "name": NEAR, "namespace": "shop"},
        }],
    });
    meshes.east.kubernetes.apply(&slice).await?;
    Ok(())
}

/// How often each server answered a client of the local name.
async fn heard(meshes: &Meshes, calls: usize) -> Result<BTreeMap<String, usize>> {
    let mut heard = BTreeMap::new();
    for _ in 0..calls {
        *heard.entry(meshes.workloads().frontend.hears(HERE, PORT).await?).or_default() += 1;
    }
    Ok(heard)
}

/// Both answer, about as often, and each by its own identity; istiod has nothing to say about it.
async fn merged(meshes: &Meshes) -> Result<()> {
    says(meshes, "Merged").await?;
    eventually("both answer at the local name", SOON, || async {
        let heard = heard(meshes, 6).await?;
        ensure!(heard.len() == 2, "{heard:?}");
        Ok(())
    })
    .await?;
    let heard = heard(meshes, 40).await?;
    eprintln!("at the local name of both: {heard:?}");
    let names: Vec<&str> = heard.keys().map(String::as_str).collect();
    ensure!(names == [CART.name, NEAR], "some were not answered: {heard:?}");
    ensure!(heard.values().all(|count| *count >= 8), "not even: {heard:?}");
    let config = meshes.workloads().frontend.proxy.config().await?;
    let cluster = config.cluster(&format!("outbound|{PORT}||{HOST}"))?;
    let sockets = cluster["transport_socket_matches"].as_array().context("no socket matches")?;
    let [with_tls, without] = sockets.as_slice() else { bail!("{cluster}") };
    ensure!(without["match"] == json!({}) || without["match"].is_null(), "pods without a sidecar: {without}");
    ensure!(
        !with_tls.to_string().contains("spiffe://west.example/"),
        "west's ID is good for east's: {with_tls}"
    );
    eventually("istiod has nothing to say about the routes", SOON, || async {
        let routes = found(&meshes.east, ROUTES.0, ROUTES.1, Some("shop"), HOST).await?;
        let messages = routes.data.pointer("/status/validationMessages").and_then(Value::as_array);
        ensure!(messages.is_none_or(Vec::is_empty), "{messages:?}");
        Ok(())
    })
    .await
}

/// A DestinationRule of the user's on the local name goes on to hold for the local endpoints.
async fn beside_the_users_own_rule(
    meshes: &Meshes,
    policy: Value,
    holds: impl Fn(&Value) -> bool,
) -> Result<()> {
    let rule = json!({
        "apiVersion": RULE.0,
        "kind": RULE.1,
        "metadata": {"name": "mine", "namespace": "shop"},
        "spec": {"host": HOST, "trafficPolicy": policy},
    });
    meshes.east.kubernetes.apply(&rule).await?;
    let cluster = format!("outbound|{PORT}||{HOST}");
    eventually("the rule holds", SOON, || async {
        let config = meshes.workloads().frontend.proxy.config().await?;
        let cluster = config.cluster(&cluster)?;
        ensure!(holds(cluster), "{cluster}");
        Ok(())
    })
    .await?;
    let heard = heard(meshes, 20).await?;
    ensure!(heard.len() == 2 && !heard.contains_key(""), "{heard:?}");
    delete(meshes, RULE, "mine").await
}

/// Where the local endpoints come first, they have all; when none is left, the peer's have all, and back.
async fn local_first(meshes: &Meshes) -> Result<()> {
    let only = async |name: &str, what: &str| {
        eventually(what, SOON, || async {
            let heard = heard(meshes, 12).await?;
            ensure!(heard.len() == 1 && heard.contains_key(name), "{heard:?}");
            Ok(())
        })
        .await
    };
    serve_as_local(meshes, &json!([{"namespace": "shop", "name": "cart", "localFirst": true}])).await?;
    only(NEAR, "the local endpoint has all").await?;
    set_ready(meshes, false).await?;
    let since = std::time::Instant::now();
    eventually("the peer answers", SOON, || async {
        let heard = meshes.workloads().frontend.hears(HERE, PORT).await?;
        ensure!(heard == CART.name, "{heard:?}");
        Ok(())
    })
    .await?;
    eprintln!("without a local endpoint the peer answers after {:.1?}", since.elapsed());
    only(CART.name, "the peer has all").await?;
    set_ready(meshes, true).await?;
    only(NEAR, "the local endpoint has all again").await
}

//! `imports.asLocal`: an imported service at its local name, alone, beside a local Service, and instead of one that has no
//! endpoint left.

use crate::federation::{SOON, found};
use crate::istiod::set_status;
use crate::meshes::{CART, Meshes, with_meshes};
use crate::proxy::Config;
use crate::wait::eventually;
use crate::workload::{Interception, Role, Workload};
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
const ENTRY: (&str, &str) = ("networking.istio.io/v1", "ServiceEntry");
const ROUTES: (&str, &str) = ("networking.istio.io/v1", "VirtualService");
const RULE: (&str, &str) = ("networking.istio.io/v1", "DestinationRule");

/// East imports `cart` of west as `cart.shop` too.
#[test]
fn a_local_name_is_served_by_whoever_is_there() {
    with_meshes(async |meshes| {
        let east = &meshes.east;
        east.kubernetes.namespace("shop").await?;
        serve_as_local(meshes, &json!([{"namespace": "shop", "name": "cart"}])).await?;
        alone(meshes).await?;
        let near = near(meshes).await?;
        merged(meshes).await?;
        beside_the_users_own_rule(meshes).await?;
        local_first(meshes).await?;
        for (api_version, kind, name) in [
            ("v1", "Service", CART.name),
            ("discovery.k8s.io/v1", "EndpointSlice", CART.name),
            ("v1", "Pod", NEAR),
            ("networking.istio.io/v1", "Sidecar", NEAR),
        ] {
            delete(meshes, (api_version, kind), name).await?;
        }
        drop(near);
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
        let addresses = entry.data.pointer("/status/addresses").and_then(Value::as_array);
        let address = addresses.into_iter().flatten().find_map(|one| one["value"].as_str());
        let address = address.context("no address is allocated")?;
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
async fn beside_the_users_own_rule(meshes: &Meshes) -> Result<()> {
    let rule = json!({
        "apiVersion": RULE.0,
        "kind": RULE.1,
        "metadata": {"name": "mine", "namespace": "shop"},
        "spec": {
            "host": HOST,
            "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 77}}},
        },
    });
    meshes.east.kubernetes.apply(&rule).await?;
    let cluster = format!("outbound|{PORT}||{HOST}");
    eventually("the rule holds", SOON, || async {
        let config = meshes.workloads().frontend.proxy.config().await?;
        let most = &config.cluster(&cluster)?["circuit_breakers"]["thresholds"][0]["max_connections"];
        ensure!(*most == 77, "{most}");
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

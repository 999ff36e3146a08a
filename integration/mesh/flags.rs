//! What the agent does only where it is asked to: the fence, gateways at their nodes, and pods as endpoints where the networks
//! are flat. Each in traffic, with west's agent started anew for it.

use crate::federation::{SOON, export, found, says};
use crate::istiod::{ROOT_NAMESPACE, set_status};
use crate::meshes::{CART, CART_ADDRESS, GATEWAY, GATEWAY_PORT, LOCAL_PORT, Meshes, with_meshes};
use crate::process::{Process, Spec};
use crate::wait::eventually;
use crate::workload::{Interception, Role, Workload};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

const HERE: &str = "127.0.0.1";
const API: &str = "entente.dev/v1alpha1";
const DENIED: &str = "tcp.rbac.denied";
const SHOP: Option<&str> = Some("shop");
/// A workload of west that nobody exports.
const SECRET: &str = "secret";
const SECRET_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 40);
const SECRET_TARGET: u16 = 8095;
/// Of its Service, and of what a user of east wrote for it.
const SECRET_PORT: u16 = 8300;
const SECRET_ELSEWHERE: u16 = 18300;
/// The node that west's gateway runs on.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 50);
const NODE_PORT: u16 = 30443;
/// Passes connections on, as a node does with those to a node port.
const FORWARDER: &str = "
import socket, sys, threading
target = (sys.argv[3], int(sys.argv[4]))
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        pass
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    client, _ = server.accept()
    upstream = socket.create_connection(target)
    for pair in ((client, upstream), (upstream, client)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
";

/// Without the fence, a foreign workload that some east-west way leads to a workload that is not exported is answered there:
/// its certificate is as good as that of a client. With it, it is refused by that workload's own sidecar; clients of exports,
/// local callers and those in plaintext are as they were.
#[test]
fn the_fence_closes_what_is_not_exported_to_strangers_alone() {
    with_meshes(async |meshes| {
        let secret = start_secret(meshes).await?;
        let workloads = meshes.workloads();
        let heard_by = async |client: &Workload, address: &str, port: u16, name: &str| {
            eventually(&format!("{name} is heard at {address}:{port}"), SOON, || async {
                let heard = client.hears(address, port).await?;
                ensure!(heard == name, "{heard:?}");
                Ok(())
            })
            .await
        };
        heard_by(&workloads.stranger, HERE, SECRET_ELSEWHERE, SECRET).await?;
        meshes
            .agents()
            .with_west(&meshes.west, &["--fence"], async || {
                eventually("the stranger is denied by the workload", SOON, || async {
                    let before = secret.proxy.stat(DENIED).await?;
                    let heard = workloads.stranger.hears(HERE, SECRET_ELSEWHERE).await?;
                    ensure!(heard.is_empty(), "it hears {heard:?}");
                    let denied = secret.proxy.stat(DENIED).await? - before;
                    ensure!(denied == 1, "{denied} denied");
                    Ok(())
                })
                .await?;
                heard_by(&workloads.frontend, HERE, CART.port, CART.name).await?;
                heard_by(&workloads.local, HERE, SECRET_PORT, SECRET).await?;
                heard_by(&workloads.local, &SECRET_ADDRESS.to_string(), SECRET_TARGET, SECRET).await?;
                heard_by(&workloads.local, HERE, LOCAL_PORT, CART.name).await
            })
            .await?;
        // It was the fence, and it goes with the flag.
        heard_by(&workloads.stranger, HERE, SECRET_ELSEWHERE, SECRET).await?;
        drop(secret);
        for (api_version, kind) in [
            ("v1", "Service"),
            ("discovery.k8s.io/v1", "EndpointSlice"),
            ("v1", "Pod"),
            ("networking.istio.io/v1", "Sidecar"),
        ] {
            let api = meshes.west.kubernetes.api(api_version, kind, SHOP).await?;
            api.delete(SECRET, &DeleteParams::default().grace_period(0)).await?;
        }
        let entries =
            meshes.east.kubernetes.api("networking.istio.io/v1", "ServiceEntry", Some("web")).await?;
        entries.delete(SECRET, &DeleteParams::default()).await?;
        Ok(())
    });
}

/// The workload with its Service, and the way there that a user of east made for herself.
async fn start_secret(meshes: &Meshes) -> Result<Workload> {
    let role = Role {
        namespace: "shop",
        name: SECRET,
        app: SECRET,
        address: SECRET_ADDRESS,
        presents: SECRET,
        gateway: None,
        port: Some(SECRET_TARGET),
        interception: Interception::None,
    };
    let secret = meshes.start_in_west(role).await?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SECRET, "namespace": "shop"},
        "spec": {
            "selector": {"app": SECRET},
            "ports": [{"name": "tcp", "protocol": "TCP", "port": SECRET_PORT, "targetPort": SECRET_TARGET}],
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": SECRET,
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": SECRET},
        },
        "addressType": "IPv4",
        "ports": [{"name": "tcp", "protocol": "TCP", "port": SECRET_TARGET}],
        "endpoints": [{
            "addresses": [SECRET_ADDRESS.to_string()],
            "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": SECRET, "namespace": "shop"},
        }],
    });
    for object in [service, slice] {
        meshes.west.kubernetes.apply(&object).await?;
    }
    let entry = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": SECRET, "namespace": "web"},
        "spec": {
            "hosts": ["secret.elsewhere.test"],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [{
                "number": SECRET_ELSEWHERE,
                "name": "tcp",
                "protocol": "TCP",
                "targetPort": SECRET_TARGET,
            }],
            "subjectAltNames": [format!("spiffe://west.example/ns/shop/sa/{SECRET}")],
            "endpoints": [{
                "address": SECRET_ADDRESS.to_string(),
                "labels": {"security.istio.io/tlsMode": "istio"},
            }],
        },
    });
    meshes.east.kubernetes.apply(&entry).await?;
    Ok(secret)
}

/// Changes the Service of west's gateway.
async fn gateway_service(meshes: &Meshes, kind: &str, node_port: Option<u16>) -> Result<()> {
    let services = meshes.west.kubernetes.api("v1", "Service", Some(ROOT_NAMESPACE)).await?;
    let mut port = json!({
        "name": "tls",
        "protocol": "TCP",
        "port": GATEWAY_PORT,
        "targetPort": GATEWAY_PORT,
    });
    if let Some(number) = node_port {
        port["nodePort"] = json!(number);
    }
    let change = json!({"spec": {"type": kind, "ports": [port]}, "status": {"loadBalancer": null}});
    services.patch("istio-eastwestgateway", &PatchParams::default(), &Patch::Merge(&change)).await?;
    services.patch_status("istio-eastwestgateway", &PatchParams::default(), &Patch::Merge(&change)).await?;
    Ok(())
}

/// Exports `cart` through no gateway that it names.
async fn name_no_gateway(meshes: &Meshes) -> Result<()> {
    let services = meshes.west.kubernetes.api(API, "FederatedService", SHOP).await?;
    let change = json!({"spec": {"gateways": null}});
    services.patch(CART.name, &PatchParams::default(), &Patch::Merge(&change)).await?;
    Ok(())
}

async fn client_goes_to(meshes: &Meshes, address: Ipv4Addr, port: u16) -> Result<()> {
    eventually(&format!("the client goes to {address}:{port}, and hears cart"), SOON, || async {
        let frontend = &meshes.workloads().frontend;
        let endpoints = frontend.proxy.config().await?.endpoints(&CART.cluster());
        ensure!(endpoints == [format!("{address}:{port}")], "{endpoints:?}");
        let heard = frontend.hears(HERE, CART.port).await?;
        ensure!(heard == CART.name, "{heard:?}: {}", frontend.proxy.stats("fail").await?);
        Ok(())
    })
    .await
}

/// The gateway as it was, for the tests after this one.
async fn restore(meshes: &Meshes) -> Result<()> {
    gateway_service(meshes, "ClusterIP", None).await?;
    export(&meshes.west, CART, &GATEWAY.to_string(), GATEWAY_PORT).await?;
    client_goes_to(meshes, GATEWAY, GATEWAY_PORT).await
}

/// Importers come to the gateway's node, by the node port of its Service; the gateway listens where the Service leads.
#[test]
fn gateways_are_reached_at_their_nodes() {
    with_meshes(async |meshes| {
        let node = meshes.join(NODE)?;
        let (from, to) = (NODE.to_string(), GATEWAY.to_string());
        let (outside, inside) = (NODE_PORT.to_string(), GATEWAY_PORT.to_string());
        let args = ["-c", FORWARDER, &from, &outside, &to, &inside].map(str::to_owned);
        let (program, args) = node.inside(&crate::network::which("python3")?, &args)?;
        let dir = meshes.west.dir().join("w");
        let log = dir.join("node.log");
        let name = "node".to_owned();
        let mut forwarder = Process::new(Spec { name, program, args, env: Vec::new(), dir, log });
        forwarder.start()?;
        let on_node = |ip: Value| {
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "istio-eastwestgateway", "namespace": ROOT_NAMESPACE},
                "status": {"hostIP": ip},
            })
        };
        set_status(&meshes.west, &on_node(json!(NODE.to_string()))).await?;
        gateway_service(meshes, "NodePort", Some(NODE_PORT)).await?;
        name_no_gateway(meshes).await?;
        meshes
            .agents()
            .with_west(&meshes.west, &["--gateway-node-ports"], async || {
                client_goes_to(meshes, NODE, NODE_PORT).await?;
                let cart = found(&meshes.west, API, "FederatedService", SHOP, CART.name).await?;
                let entries = &cart.data["status"]["gatewayEntries"];
                ensure!(
                    entries[0]["address"] == NODE.to_string() && entries[0]["port"] == NODE_PORT,
                    "{entries}"
                );
                restore(meshes).await
            })
            .await?;
        set_status(&meshes.west, &on_node(Value::Null)).await
    });
}

/// Where the networks are flat and no gateway is there, clients go to the pods themselves; who is no client is refused there all
/// the same, and no gateway passes the service on.
#[test]
fn pods_are_the_endpoints_where_networks_are_flat() {
    with_meshes(async |meshes| {
        let peers = meshes.west.kubernetes.api(API, "TrustDomainPeer", None).await?;
        let flat = async |is_flat: Value| {
            let change = json!({"spec": {"directEndpoints": is_flat}});
            peers.patch("east.example", &PatchParams::default(), &Patch::Merge(&change)).await
        };
        gateway_service(meshes, "ClusterIP", None).await?;
        flat(json!(true)).await?;
        name_no_gateway(meshes).await?;
        client_goes_to(meshes, CART_ADDRESS, CART.target_port).await?;
        says(&meshes.west, "FederatedService", SHOP, CART.name, "Exported").await?;
        let workloads = meshes.workloads();
        eventually("the server denies the stranger", SOON, || async {
            let before = workloads.cart.proxy.stat(DENIED).await?;
            let heard = workloads.stranger.hears(HERE, CART.port).await?;
            ensure!(heard.is_empty(), "it hears {heard:?}");
            ensure!(workloads.cart.proxy.stat(DENIED).await? > before, "not by the server");
            Ok(())
        })
        .await?;
        eventually("no gateway passes it on", SOON, || async {
            let config = workloads.gateway.proxy.config().await?;
            let listener = config.listener("0.0.0.0", GATEWAY_PORT).context("the other export's listener")?;
            ensure!(!listener.to_string().contains(&CART.sni()), "it does");
            Ok(())
        })
        .await?;
        flat(Value::Null).await?;
        restore(meshes).await
    });
}

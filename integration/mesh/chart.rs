//! The Helm chart's way in by the mesh's gateway: the port that carries services carries the agent's own and SPIRE's bundle
//! endpoint too, told apart by SNI and passed on unopened.

use crate::application::{Application, Callee};
use crate::federation::SOON;
use crate::meshes::{CART, GATEWAY, GATEWAY_PORT, Meshes, with_meshes};
use crate::tools::Tools;
use crate::wait::{always, eventually};
use crate::workload::hears_from;
use crate::world::AGENT_NAMESPACE;
use anyhow::{Context, Result, ensure};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

const HERE: &str = "127.0.0.1";
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/entente");
const AGENT: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 40);
const BUNDLES: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 41);
const CALLER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 40);
const SPIRE: &str = "spire-server";
/// What is rendered of the chart for this.
const KINDS: [&str; 3] = ["Gateway", "VirtualService", "Service"];

/// What Helm renders of these kinds, in the shape in which the API server takes it.
fn rendered() -> Result<Vec<Value>> {
    let values = "peer.gateway.enabled=true,peer.gateway.hosts={entente.west.example},\
                  peer.gateway.selector.app=istio-eastwestgateway,peer.gateway.selector.istio=null,\
                  peer.gateway.bundleEndpoint.hosts={spire.west.example}";
    let output = Command::new(Tools::get()?.program("helm")?)
        .args(["template", "entente", CHART, "--namespace", AGENT_NAMESPACE, "--set", values])
        .output()
        .context("helm cannot be run")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all = crate::kubernetes::documents(&String::from_utf8(output.stdout)?)?;
    let is_needed = |object: &Value| object["kind"].as_str().is_some_and(|kind| KINDS.contains(&kind));
    Ok(all.into_iter().filter(is_needed).collect())
}

/// What a cluster's own controllers make of a Service's pods.
fn endpoints(namespace: &str, service: &str, port: (&str, u16), address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": service, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": port.0, "protocol": "TCP", "port": port.1}],
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
    })
}

fn spire_service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SPIRE, "namespace": SPIRE},
        "spec": {"ports": [{"name": "federation", "port": 8443, "targetPort": 8443}]},
    })
}

/// One open port: by its SNI a connection is at the agent, or at SPIRE's bundle endpoint, with the caller's own TLS; by another
/// name it is nowhere; and services go on to be reached by the same port.
#[test]
fn one_port_of_the_gateway_has_the_agent_and_spires_bundles_too() {
    with_meshes(async |meshes| {
        let objects = rendered()?;
        ensure!(objects.len() == 4, "{objects:#?}");
        let west = &meshes.west;
        west.kubernetes.namespace(SPIRE).await?;
        let others = [
            spire_service(),
            endpoints(AGENT_NAMESPACE, "entente", ("tls-peer", 7443), AGENT),
            endpoints(SPIRE, SPIRE, ("federation", 8443), BUNDLES),
        ];
        for object in objects.iter().chain(&others) {
            west.kubernetes.apply(object).await?;
        }
        let done = reached(meshes).await;
        for object in objects.iter().chain(&others) {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let api = west
                .kubernetes
                .api(text("/apiVersion"), text("/kind"), Some(text("/metadata/namespace")))
                .await?;
            api.delete(text("/metadata/name"), &DeleteParams::background()).await?;
        }
        done
    });
}

async fn reached(meshes: &Meshes) -> Result<()> {
    let client = "spiffe://east.example/ns/web/sa/the-other-side".to_owned();
    let serving = async |name: &str, address: Ipv4Addr, port: u16| {
        let member = meshes.join(address)?;
        let at = SocketAddrV4::new(address, port);
        let clients = std::slice::from_ref(&client);
        let application =
            Application::serving(&meshes.west, &member, (AGENT_NAMESPACE, name), at, clients).await?;
        anyhow::Ok((application, member))
    };
    let (_agent, _agent_member) = serving("the-agent", AGENT, 7443).await?;
    let (_bundles, _bundles_member) = serving("the-bundles", BUNDLES, 8443).await?;
    let callee = |port: u16, sni: &str, name: &str| {
        let id = format!("spiffe://west.example/ns/{AGENT_NAMESPACE}/sa/{name}");
        Callee::new(port, (GATEWAY, GATEWAY_PORT).into(), sni, &id)
    };
    let callees = [
        callee(7001, "entente.west.example", "the-agent"),
        callee(7002, "spire.west.example", "the-bundles"),
        callee(7003, "other.west.example", "the-agent"),
    ];
    let caller = meshes.join(CALLER)?;
    let _caller = Application::calling(&meshes.east, &caller, ("web", "the-other-side"), &callees).await?;
    for (port, name) in [(7001, "the-agent"), (7002, "the-bundles")] {
        eventually(&format!("the caller hears {name}"), SOON, || async {
            let heard = hears_from(&caller, HERE, port).await?;
            ensure!(heard == name, "it hears {heard:?}");
            Ok(())
        })
        .await?;
    }
    let heard = hears_from(&caller, HERE, 7003).await.unwrap_or_default();
    ensure!(heard.is_empty(), "under another name it hears {heard:?}");
    let config = meshes.workloads().gateway.proxy.config().await?;
    ensure!(config.refused().is_empty(), "the gateway refuses {:?}", config.refused());
    always("frontend hears cart by the same port", Duration::from_secs(2), || async {
        let heard = meshes.workloads().frontend.hears(HERE, CART.port).await?;
        ensure!(heard == CART.name, "{heard:?}");
        Ok(())
    })
    .await
}

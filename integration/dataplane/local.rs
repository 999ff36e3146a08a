//! A local name without Istio: our own endpoints and a peer's together, by DNS and xDS.

use crate::application::{Application, Speaks, who};
use crate::ask::Client;
use crate::pair::{Pair, with_pair};
use crate::proxy::Proxy;
use crate::ring::{BATCH, Exported, FRONTEND, PORT, Ring, SOON};
use crate::wait::eventually;
use crate::world::{Domain, found};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::TcpStream;

const EAST: &str = "east";
const WEST: &str = "west";
/// Of the pod; the machine's own is the peer's gateway's, which may be at none of our pods.
const POD: Ipv4Addr = Ipv4Addr::new(127, 7, 7, 7);

/// A Service of east and west's service of its name are one to an Envoy, spread evenly, or ours first: then west's answers for
/// what of ours has gone, and no call fails. Whom west does not name is answered by ours alone. The name keeps its address.
#[test]
fn a_local_name_leads_to_our_endpoints_and_the_peers() {
    with_pair(async |pair| {
        let ring = Ring::start_with(pair, &["--istio=false"]).await?;
        let service = Exported::new("IstioMtls", Speaks::Http).await?;
        ring.export(pair, &service).await?;
        let near = near(&pair.east, &service.name).await?;
        as_local(&pair.east, &service, Some(false)).await?;
        let host = format!("{}.shop.svc.cluster.local", service.name);
        says(pair, &service, "Merged").await?;
        let mut resolver = Client::start()?;
        let at = ring.resolve(&mut resolver, &host).await?;
        ensure!(at != service.address(&pair.east).await?, "it has the address of the federated name");
        let local = Local { at, host: &host };

        let server = ring.server(&pair.west).await?;
        let batch = ring.client(&pair.east, "batch", BATCH).await?;
        local.only(EAST, "who is no client of west's is led to ours").await?;
        ensure!(batch.listeners().await? == [format!("{host}:{PORT}")], "{:?}", batch.listeners().await?);
        end(batch).await?;

        let frontend = ring.client(&pair.east, "frontend", FRONTEND).await?;
        eventually("both answer", SOON, || async {
            let heard = local.heard(6).await?;
            ensure!(heard.len() == 2, "{heard:?}");
            Ok(())
        })
        .await
        .map_err(|error| error.context(frontend.process.log_tail()).context(server.process.log_tail()))?;
        let heard = local.heard(40).await?;
        eprintln!("at a local name that both have: {heard:?}");
        ensure!(heard.values().all(|count| *count >= 8), "not even: {heard:?}");

        as_local(&pair.east, &service, Some(true)).await?;
        local.only(EAST, "ours have all").await?;
        let of_pod = SocketAddr::new(POD.into(), near.port);
        drop(near);
        eventually("nothing listens at the pod", SOON, || async {
            ensure!(TcpStream::connect(of_pod).await.is_err(), "it takes connections");
            Ok(())
        })
        .await?;
        let heard = local.heard(20).await?;
        ensure!(
            heard == BTreeMap::from([(WEST.to_owned(), 20)]),
            "though nothing of ours listens: {heard:?}"
        );
        set_ready(&pair.east, &service.name, false).await?;
        eventually("the pod that is not ready is no endpoint", SOON, || async {
            let (_, all) = frontend.admin.get("/clusters").await?;
            ensure!(
                all.contains("::region::west.example") && !all.contains("::region::east.example"),
                "{all}"
            );
            Ok(())
        })
        .await?;
        local.only(WEST, "the peer has all").await?;
        let services = pair.east.kubernetes.api("v1", "Service", Some("shop")).await?;
        services.delete(&service.name, &DeleteParams::default()).await?;
        says(pair, &service, "ByName").await?;
        local.only(WEST, "the peer has the name alone").await?;
        ensure!(ring.resolve(&mut resolver, &host).await? == at, "its address has changed");
        ensure!(frontend.refused().await? == 0, "{}", frontend.process.log_tail());

        as_local(&pair.east, &service, None).await?;
        eventually("nothing is left of the local name", SOON, || async {
            let listeners = frontend.listeners().await?;
            ensure!(listeners == [format!("{}:{PORT}", service.host())], "{listeners:?}");
            Ok(())
        })
        .await?;
        service.call(service.address(&pair.east).await?).await
    });
}

/// A local name, as a plain client of east calls it.
struct Local<'a> {
    at: SocketAddr,
    host: &'a str,
}

impl Local<'_> {
    /// How often each server answered; a call that fails is an error.
    async fn heard(&self, calls: usize) -> Result<BTreeMap<String, usize>> {
        let mut heard = BTreeMap::new();
        for _ in 0..calls {
            *heard.entry(who(self.at, self.host).await?).or_default() += 1;
        }
        Ok(heard)
    }

    async fn only(&self, name: &str, what: &str) -> Result<()> {
        eventually(what, SOON, || async {
            let heard = self.heard(12).await?;
            ensure!(heard.len() == 1 && heard.contains_key(name), "{heard:?}");
            Ok(())
        })
        .await
    }
}

async fn end(proxy: Proxy) -> Result<()> {
    let mut proxy = proxy;
    proxy.process.kill().await?;
    Ok(())
}

/// A Service of east with a pod, in whose place the test listens.
async fn near(east: &Domain, name: &str) -> Result<Application> {
    let near = Application::named(EAST, Speaks::Http, POD).await?;
    east.kubernetes.namespace("shop").await?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": near.port}],
        },
    });
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"containers": [{"name": "server", "image": "none"}]},
    });
    east.kubernetes.apply(&service).await?;
    east.kubernetes.apply(&pod).await?;
    set_ready(east, name, true).await?;
    Ok(near)
}

/// As a kubelet writes it.
async fn set_ready(east: &Domain, name: &str, is_ready: bool) -> Result<()> {
    let ip = POD.to_string();
    let status = json!({"status": {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" }}],
    }});
    let pods = east.kubernetes.api("v1", "Pod", Some("shop")).await?;
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// Asks for the local name, or no more.
async fn as_local(east: &Domain, service: &Exported, local_first: Option<bool>) -> Result<()> {
    let pattern =
        |first: bool| json!({"namespace": "shop", "name": service.name.as_str(), "localFirst": first});
    let patterns: Vec<Value> = local_first.map(pattern).into_iter().collect();
    let change = json!({"spec": {"imports": {"asLocal": patterns}}});
    let peers = east.kubernetes.api("entente.dev/v1alpha1", "TrustDomainPeer", None).await?;
    peers.patch("west.example", &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(())
}

async fn says(pair: &Pair, service: &Exported, reason: &str) -> Result<()> {
    eventually(&format!("the import says {reason}"), SOON, || async {
        let api = "entente.dev/v1alpha1";
        let import =
            found(&pair.east, api, "ImportedService", Some("entente-system"), &service.host()).await?;
        let conditions = import.data.pointer("/status/conditions").and_then(Value::as_array);
        let mut all = conditions.into_iter().flatten();
        let condition = all.find(|one| one["type"] == "ServedLocally").context("no such condition")?;
        ensure!(condition["status"] == "True" && condition["reason"] == reason, "{condition}");
        Ok(())
    })
    .await
}

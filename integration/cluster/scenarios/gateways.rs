//! The gateway of exports is found by its Service and followed, and nothing but the peer is told of where it is.

use super::services::cart;
use super::{
    GATEWAY, IMPORTED, PEER, POLICY, SERVICE, SERVICE_ENTRY, SOON, condition, delete, federated, found, merge,
};
use crate::kubernetes::AGENT_USER;
use crate::pair::with_pair;
use crate::wait::{always, eventually};
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Result, ensure};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const CLUSTER_SERVICE: (&str, &str) = ("v1", "Service");
const ISTIO: Option<&str> = Some("istio-system");
const NAME: &str = "istio-eastwestgateway";
const HOST: &str = super::services::HOST;
/// How soon a change has to be with the peer.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Gives west's gateway a Service, with these addresses of its load balancer.
async fn balance(west: &Domain, addresses: &[Value]) -> Result<()> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": "istio-system"},
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app": NAME, "istio": "eastwestgateway"},
            "ports": [
                {"name": "status-port", "protocol": "TCP", "port": 15021, "targetPort": 15021},
                {"name": "tls", "protocol": "TCP", "port": 15443, "targetPort": 15443},
            ],
        },
    });
    west.kubernetes.apply(&service).await?;
    let services = west.kubernetes.api(CLUSTER_SERVICE.0, CLUSTER_SERVICE.1, ISTIO).await?;
    let status = json!({"status": {"loadBalancer": {"ingress": addresses}}});
    services.patch_status(NAME, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

async fn exported_says(west: &Domain, status: &str, reason: &str) -> Result<String> {
    eventually(&format!("cart says Exported={status}, {reason}"), SOON, || async {
        let said = condition(&found(west, SERVICE, Some("shop"), "cart").await?, "Exported")?;
        ensure!(said.0 == status && said.1 == reason, "{said:?}");
        Ok(said.2)
    })
    .await
}

/// The endpoints of what east's clients have.
async fn endpoints(east: &Domain) -> Result<Vec<String>> {
    let entry = found(east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), HOST).await?;
    let endpoints = entry.data["spec"]["endpoints"].as_array().cloned().unwrap_or_default();
    Ok(endpoints.iter().filter_map(|one| one["address"].as_str().map(str::to_owned)).collect())
}

async fn has(east: &Domain, expected: &[&str]) -> Result<()> {
    eventually(&format!("east goes to {expected:?}"), SOON, || async {
        let endpoints = endpoints(east).await?;
        ensure!(endpoints == expected, "{endpoints:?}");
        Ok(())
    })
    .await
}

/// Changes of the agent of west, other than its Leases and Events.
fn written(west: &Domain) -> Result<Vec<String>> {
    let writes = west.kubernetes.writes_of(AGENT_USER)?;
    let ours = writes.into_iter().filter(|write| write.resource != "leases" && write.resource != "events");
    Ok(ours.map(|write| format!("{} {} {}", write.verb, write.resource, write.name)).collect())
}

#[test]
fn a_gateway_is_found_and_followed() {
    with_pair(async |pair| {
        let _agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        for namespace in ["shop", "istio-system"] {
            west.kubernetes.namespace(namespace).await?;
        }
        let mut cart = cart();
        cart["spec"]["gateways"] = json!([]);
        west.kubernetes.apply(&cart).await?;
        let said = exported_says(west, "False", "NoGateway").await?;
        ensure!(said.contains("istio-system/istio-eastwestgateway"), "{said}");

        balance(west, &[]).await?;
        exported_says(west, "Unknown", "GatewayPending").await?;
        balance(west, &[json!({"ip": "192.0.2.9"})]).await?;
        has(east, &["192.0.2.9"]).await?;
        exported_says(west, "True", "Exported").await?;
        let gateway = found(west, GATEWAY, Some("shop"), "cart-eastwestgateway").await?;
        let selector = &gateway.data["spec"]["selector"];
        ensure!(*selector == json!({"app": NAME, "istio": "eastwestgateway"}), "{selector}");

        moves_at_once(east, west).await?;
        stays_while_nothing_is_known(east, west).await?;
        balance(west, &[json!({"ip": "192.0.2.11"})]).await?;
        has(east, &["192.0.2.11"]).await?;
        delete(west, CLUSTER_SERVICE, ISTIO, NAME).await
    });
}

/// Other addresses are with the peer's clients at once, and in west statuses alone are written.
async fn moves_at_once(east: &Domain, west: &Domain) -> Result<()> {
    let kinds = [SERVICE_ENTRY, GATEWAY, POLICY];
    let rest = eventually("west's agent is at rest", SOON, || async {
        let before = written(west)?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(written(west)? == before, "it writes");
        Ok(before)
    })
    .await?;
    let versions = west.kubernetes.versions(&kinds).await?;
    let start = Instant::now();
    balance(west, &[json!({"ip": "192.0.2.10"}), json!({"hostname": "gw.west.example"})]).await?;
    has(east, &["192.0.2.10", "gw.west.example"]).await?;
    let took = start.elapsed();
    ensure!(took < AT_ONCE, "it took {took:?}");
    eprintln!("another address was in the peer's ServiceEntry after {took:?}");
    eventually("the status has the addresses", SOON, || async {
        let service = found(west, SERVICE, Some("shop"), "cart").await?;
        let entries = &service.data["status"]["gatewayEntries"];
        ensure!(entries.as_array().is_some_and(|all| all.len() == 2), "{entries}");
        Ok(())
    })
    .await?;
    exported_says(west, "True", "Exported").await?;
    ensure!(west.kubernetes.versions(&kinds).await? == versions, "what was generated was rewritten");
    let now = written(west)?;
    let new = now.get(rest.len()..).unwrap_or_default();
    ensure!(new.iter().all(|write| write.contains("/status ")), "{new:?}");
    Ok(())
}

/// A Service that goes, or has no address for a time, takes nothing from the peer.
async fn stays_while_nothing_is_known(east: &Domain, west: &Domain) -> Result<()> {
    let before = found(east, IMPORTED, Some(AGENT_NAMESPACE), HOST).await?;
    let unchanged = async || {
        let now = found(east, IMPORTED, Some(AGENT_NAMESPACE), HOST).await?;
        ensure!(now.data["spec"] == before.data["spec"], "{}", now.data["spec"]);
        ensure!(now.metadata.uid == before.metadata.uid, "it was taken away, and made again");
        found(west, GATEWAY, Some("shop"), "cart-eastwestgateway").await.map(drop)
    };
    balance(west, &[]).await?;
    let said = exported_says(west, "Unknown", "GatewayPending").await?;
    ensure!(said.contains("what importers were told stays"), "{said}");
    always("what was told stays", Duration::from_secs(2), unchanged).await?;
    delete(west, CLUSTER_SERVICE, ISTIO, NAME).await?;
    exported_says(west, "False", "NoGateway").await?;
    always("what was told stays", Duration::from_secs(2), unchanged).await
}

/// A pod of cart, ready at this address, with a sidecar that takes its certificates from SPIRE.
async fn pod(west: &Domain, name: &str, ip: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": {"app": "cart", "security.istio.io/tlsMode": "istio"},
        },
        "spec": {
            "serviceAccountName": "cart",
            "containers": [{
                "name": "istio-proxy",
                "image": "none.example/none",
                "volumeMounts": [{"name": "socket", "mountPath": "/run/secrets/workload-spiffe-uds", "readOnly": true}],
            }],
            "volumes": [{"name": "socket", "csi": {"driver": "csi.spiffe.io", "readOnly": true}}],
        },
    });
    west.kubernetes.apply(&pod).await?;
    let status = json!({
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    let pods = west.kubernetes.api("v1", "Pod", Some("shop")).await?;
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

async fn without(west: &Domain, pod: &str) -> Result<()> {
    let pods = west.kubernetes.api("v1", "Pod", Some("shop")).await?;
    pods.delete(pod, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

/// Where the peer is said to reach our pods it goes to them, as they come and go, until there is a gateway.
#[test]
fn where_networks_are_flat_pods_are_gone_to() {
    with_pair(async |pair| {
        let _agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        for namespace in ["shop", "istio-system"] {
            west.kubernetes.namespace(namespace).await?;
        }
        let mut cart = cart();
        cart["spec"]["gateways"] = json!([]);
        west.kubernetes.apply(&cart).await?;
        pod(west, "cart-a", "10.77.9.1").await?;
        exported_says(west, "False", "NoGateway").await?;
        merge(west, PEER, None, "east.example", json!({"spec": {"directEndpoints": true}})).await?;
        has(east, &["10.77.9.1"]).await?;
        exported_says(west, "True", "Exported").await?;
        let entry = found(east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), HOST).await?;
        let endpoint = &entry.data["spec"]["endpoints"][0];
        ensure!(endpoint["ports"] == json!({"tcp": 8080}), "{endpoint}");
        let gateways = west.kubernetes.api(GATEWAY.0, GATEWAY.1, Some("shop")).await?;
        ensure!(gateways.list(&ListParams::default()).await?.items.is_empty(), "a Gateway without a gateway");

        pod(west, "cart-b", "10.77.9.2").await?;
        has(east, &["10.77.9.1", "10.77.9.2"]).await?;
        without(west, "cart-a").await?;
        has(east, &["10.77.9.2"]).await?;
        balance(west, &[json!({"ip": "192.0.2.9"})]).await?;
        has(east, &["192.0.2.9"]).await?;
        without(west, "cart-b").await?;
        delete(west, CLUSTER_SERVICE, ISTIO, NAME).await
    });
}

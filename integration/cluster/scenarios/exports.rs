//! What west exports is decided by what runs in it: Services, pods, and SPIRE's entries for them; by FederatedServices that name a
//! Service, and by rules that select some.

use super::{
    IMPORTED, POLICY, SERVICE, SERVICE_ENTRY, SOON, condition, delete, federated, found, gone, merge, object,
};
use crate::pair::{Pair, with_pair};
use crate::wait::{always, eventually};
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, DynamicObject};
use serde_json::{Value, json};
use std::time::Duration;

const RULE: (&str, &str) = ("entente.dev/v1alpha1", "ServiceExportRule");
const CLUSTER_SERVICE: (&str, &str) = ("v1", "Service");
const POD: (&str, &str) = ("v1", "Pod");
const NODE: (&str, &str) = ("v1", "Node");
const AGENT: Option<&str> = Some(AGENT_NAMESPACE);
const SHOP: Option<&str> = Some("shop");
/// Longer than the agent takes to read SPIRE's entries again, and to plan.
const A_WHILE: Duration = Duration::from_secs(6);

/// A Service for the pods with the label `app` of its name: port 80 to their port `web`, and UDP.
fn cluster_service(namespace: &str, name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "selector": {"app": name},
            "ports": [
                {"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"},
                {"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"},
            ],
        },
    })
}

/// A pod with a sidecar that takes its certificates from SPIRE, and the port `web`.
fn pod(namespace: &str, name: &str, app: &str, web: u16) -> Value {
    let socket = "/run/secrets/workload-spiffe-uds";
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {
            "serviceAccountName": app,
            "nodeName": "node-1",
            "containers": [
                {"name": "app", "image": "none", "ports": [{"name": "web", "containerPort": web, "protocol": "TCP"}]},
                {"name": "istio-proxy", "image": "none", "volumeMounts": [{"name": "workload-socket", "mountPath": socket}]},
            ],
            "volumes": [{"name": "workload-socket", "csi": {"driver": "csi.spiffe.io", "readOnly": true}}],
        },
    })
}

/// Deletes a pod as a kubelet would once it has ended.
async fn end_pod(domain: &Domain, namespace: &str, name: &str) -> Result<()> {
    let pods = domain.kubernetes.api(POD.0, POD.1, Some(namespace)).await?;
    pods.delete(name, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
    Ok(())
}

async fn namespace(domain: &Domain, name: &str, labels: Value) -> Result<()> {
    let object =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    domain.kubernetes.apply(&object).await?;
    Ok(())
}

/// The FederatedService `shop/cart` of the Service of that name, that leaves all else to be found.
fn cart() -> Value {
    json!({
        "apiVersion": SERVICE.0,
        "kind": SERVICE.1,
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {
            "serviceRef": {"name": "cart"},
            "tlsMode": "IstioMtls",
            "exportedTrustDomains": ["east.example"],
            "clients": {"spiffeIDs": ["spiffe://east.example/ns/web/sa/frontend"]},
            "gateways": [{"type": "istio-eastwestgateway", "port": 15443, "ip": "10.77.2.2"}],
        },
    })
}

async fn says(domain: &Domain, kind: (&str, &str), name: &str, wanted: (&str, &str)) -> Result<Value> {
    let scope = (kind == SERVICE).then_some("shop");
    eventually(&format!("{} {name} says Exported={wanted:?}", kind.1), SOON, || async {
        let there = found(domain, kind, scope, name).await?;
        let said = condition(&there, "Exported")?;
        ensure!(said.0 == wanted.0 && said.1 == wanted.1, "{said:?}; {}", there.data["status"]);
        Ok(there.data["status"].clone())
    })
    .await
}

/// What east knows of a service of west.
async fn imported(pair: &Pair, host: &str) -> Result<Value> {
    Ok(found(&pair.east, IMPORTED, AGENT, host).await?.data["spec"].clone())
}

/// Ports, target ports and server IDs are found in the cluster, with SPIRE's real entries for the pods; they follow the pods, stay
/// when the last one goes, and the Service itself takes the export with it.
#[test]
fn a_service_is_exported_as_its_cluster_has_it() {
    with_pair(async |pair| {
        let _agents = federated(pair).await?;
        let west = &pair.west;
        namespace(west, "shop", json!({})).await?;
        let node = json!({"apiVersion": NODE.0, "kind": NODE.1, "metadata": {"name": "node-1"}});
        west.kubernetes.apply(&node).await?;
        // Another path than that of the service account, so that only the entries can tell it.
        west.kubernetes
            .apply(&json!({
                "apiVersion": "spire.spiffe.io/v1alpha1",
                "kind": "ClusterSPIFFEID",
                "metadata": {"name": "carts"},
                "spec": {
                    "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/carts/{{ .PodSpec.ServiceAccountName }}",
                    "podSelector": {"matchLabels": {"app": "cart"}},
                },
            }))
            .await?;
        west.kubernetes.apply(&cart()).await?;
        says(west, SERVICE, "cart", ("False", "ServiceNotFound")).await?;
        west.kubernetes.apply(&cluster_service("shop", "cart", json!({}))).await?;
        says(west, SERVICE, "cart", ("False", "TargetPortUnknown")).await?;
        west.kubernetes.apply(&pod("shop", "cart-1", "cart", 8080)).await?;
        let host = "cart.shop.west.example";
        eventually("east pins the ID of SPIRE's entry", SOON, || async {
            let spec = imported(pair, host).await?;
            ensure!(spec["serverSPIFFEIDs"] == json!(["spiffe://west.example/carts/cart"]), "{spec}");
            ensure!(spec["ports"] == json!([{"name": "http", "port": 80, "appProtocol": "http"}]), "{spec}");
            Ok(())
        })
        .await?;
        says(west, SERVICE, "cart", ("True", "Exported")).await?;
        let status = eventually("west knows that east imports it", SOON, || async {
            let status = found(west, SERVICE, SHOP, "cart").await?.data["status"].clone();
            ensure!(status["imported"] == "1/1", "{status}");
            Ok(status)
        })
        .await?;
        ensure!(
            status["conditions"].to_string().contains("PortNotTcp"),
            "what is left out is told: {status}"
        );
        pods_are_replaced_and_go(pair, host).await?;

        delete(west, CLUSTER_SERVICE, SHOP, "cart").await?;
        says(west, SERVICE, "cart", ("False", "ServiceNotFound")).await?;
        gone(&pair.east, SERVICE_ENTRY, AGENT, host).await?;
        gone(west, SERVICE_ENTRY, SHOP, host).await?;
        delete(west, NODE, None, "node-1").await
    });
}

async fn pods_are_replaced_and_go(pair: &Pair, host: &str) -> Result<()> {
    let west = &pair.west;
    let target = |wanted: u16| async move {
        let alias = found(west, SERVICE_ENTRY, SHOP, host).await?;
        let port = alias.data["spec"]["ports"][0].clone();
        ensure!(port["targetPort"] == wanted && port["number"] == 80, "{port}");
        Ok(())
    };
    let pinned = || async {
        let spec = imported(pair, host).await?;
        ensure!(spec["serverSPIFFEIDs"] == json!(["spiffe://west.example/carts/cart"]), "{spec}");
        Ok(())
    };
    eventually("the alias leads to the named port", SOON, || target(8080)).await?;
    west.kubernetes.apply(&pod("shop", "cart-2", "cart", 9090)).await?;
    always("two numbers: what is out stays", A_WHILE, || async { target(8080).await.and(pinned().await) })
        .await?;
    end_pod(west, "shop", "cart-1").await?;
    eventually("the alias follows the pods", SOON, || target(9090)).await?;
    end_pod(west, "shop", "cart-2").await?;
    always("no pod: what is out stays", A_WHILE, || async { target(9090).await.and(pinned().await) }).await
}

fn rule(name: &str, clients: &str) -> Value {
    json!({
        "apiVersion": RULE.0,
        "kind": RULE.1,
        "metadata": {"name": name},
        "spec": {
            "serviceSelector": {"matchExpressions": [{"key": "export", "operator": "In", "values": ["yes", "true"]}]},
            "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["other"]}]},
            "exportedTrustDomains": ["east.example"],
            "tlsMode": "IstioMtls",
            "clients": {"spiffeIDs": [clients]},
        },
    })
}

/// A gateway as Istio installs it, with an address from outside.
fn gateway() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "istio-eastwestgateway", "namespace": "istio-system", "labels": {"export": "yes"}},
        "spec": {
            "selector": {"istio": "eastwestgateway"},
            "externalIPs": ["198.51.100.7"],
            "ports": [{"name": "tls", "port": 15443, "targetPort": 15443, "protocol": "TCP"}],
        },
    })
}

/// What a rule selects is exported, by labels of Services and of namespaces, and nothing else; a FederatedService wins over it, an
/// older rule over a younger; with the rule all of it goes.
#[test]
fn a_rule_exports_what_it_selects() {
    with_pair(async |pair| {
        let _agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        namespace(west, "istio-system", json!({})).await?;
        west.kubernetes.apply(&gateway()).await?;
        for (name, team) in [("shop", "shop"), ("batch", "batch"), ("other", "other")] {
            namespace(west, name, json!({"team": team})).await?;
            west.kubernetes.apply(&cluster_service(name, "cart", json!({"export": "yes"}))).await?;
            west.kubernetes.apply(&pod(name, "cart-1", "cart", 8080)).await?;
        }
        west.kubernetes.apply(&cluster_service("shop", "quiet", json!({"export": "no"}))).await?;
        west.kubernetes.apply(&rule("first", "spiffe://east.example/ns/web/sa/frontend")).await?;
        for host in ["cart.shop.west.example", "cart.batch.west.example"] {
            eventually(&format!("east has {host}"), SOON, || found(east, SERVICE_ENTRY, AGENT, host)).await?;
        }
        says(west, RULE, "first", ("True", "Exported")).await?;
        let status = eventually("west knows that east imports both", SOON, || async {
            let status = found(west, RULE, None, "first").await?.data["status"].clone();
            ensure!(status["services"] == json!({"exported": 2, "imported": 2, "skipped": 1}), "{status}");
            Ok(status)
        })
        .await?;
        ensure!(status["skipped"][0]["reason"] == "SystemNamespace", "{status}");
        for host in ["cart.other.west.example", "quiet.shop.west.example"] {
            ensure!(object(east, IMPORTED, AGENT, host).await?.is_none(), "{host} is not selected");
        }
        owned_by(west, RULE, "first").await?;
        who_wins(pair).await?;

        delete(west, RULE, None, "first").await?;
        for host in ["cart.shop.west.example", "cart.batch.west.example"] {
            gone(east, SERVICE_ENTRY, AGENT, host).await?;
        }
        eventually("nothing generated is left", SOON, || async {
            for kind in [SERVICE_ENTRY, POLICY] {
                let left = west.kubernetes.api(kind.0, kind.1, None).await?.list(&Default::default()).await?;
                ensure!(left.items.is_empty(), "{} {}", left.items.len(), kind.1);
            }
            Ok(())
        })
        .await?;
        for name in ["shop", "batch", "other"] {
            end_pod(west, name, "cart-1").await?;
            delete(west, CLUSTER_SERVICE, Some(name), "cart").await?;
        }
        delete(west, CLUSTER_SERVICE, SHOP, "quiet").await?;
        delete(west, CLUSTER_SERVICE, Some("istio-system"), "istio-eastwestgateway").await
    });
}

/// Whether the alias of `shop/cart` is owned by this object alone.
async fn owned_by(west: &Domain, kind: (&str, &str), name: &str) -> Result<()> {
    let scope = (kind == SERVICE).then_some("shop");
    let owner = found(west, kind, scope, name).await?.metadata.uid.context("no uid")?;
    eventually(&format!("the alias is that of {} {name}", kind.1), SOON, || async {
        let alias = found(west, SERVICE_ENTRY, SHOP, "cart.shop.west.example").await?;
        let owners = alias.metadata.owner_references.unwrap_or_default();
        ensure!(owners.len() == 1 && owners.iter().all(|it| it.uid == owner), "{owners:?}");
        Ok(())
    })
    .await
}

async fn who_wins(pair: &Pair) -> Result<()> {
    let west = &pair.west;
    let status = |name: &'static str| async move {
        Ok::<_, anyhow::Error>(found(west, RULE, None, name).await?.data["status"].clone())
    };
    // Kubernetes tells ages in whole seconds.
    eventually("there is a younger rule", SOON, || async {
        let age = |rule: DynamicObject| rule.metadata.creation_timestamp.map(|time| time.0);
        let second = rule("second", "spiffe://east.example/ns/web/sa/other");
        let (first, second) =
            (age(found(west, RULE, None, "first").await?), age(west.kubernetes.apply(&second).await?));
        if second <= first {
            delete(west, RULE, None, "second").await?;
        }
        ensure!(second > first, "{second:?}");
        Ok(())
    })
    .await?;
    eventually("the younger rule exports nothing", SOON, || async {
        let status = status("second").await?;
        ensure!(status["services"]["exported"] == 0, "{status}");
        let reasons: Vec<&Value> =
            status["skipped"].as_array().into_iter().flatten().map(|skipped| &skipped["reason"]).collect();
        ensure!(reasons == ["LeftToOlderRule", "SystemNamespace", "LeftToOlderRule"], "{status}");
        Ok(())
    })
    .await?;
    let mut declared = cart();
    declared["spec"]["clients"] = json!({"spiffeIDs": ["spiffe://east.example/ns/web/sa/cashier"]});
    west.kubernetes.apply(&declared).await?;
    owned_by(west, SERVICE, "cart").await?;
    eventually("the rule leaves it to the FederatedService", SOON, || async {
        let status = status("first").await?;
        ensure!(status["services"] == json!({"exported": 1, "imported": 1, "skipped": 2}), "{status}");
        ensure!(status["skipped"][1]["reason"] == "LeftToFederatedService", "{status}");
        let clients = imported(pair, "cart.shop.west.example").await?["clients"].clone();
        ensure!(clients == json!(["spiffe://east.example/ns/web/sa/cashier"]), "{clients}");
        Ok(())
    })
    .await?;
    delete(west, SERVICE, SHOP, "cart").await?;
    owned_by(west, RULE, "first").await?;
    let clients = json!({"spec": {"clients": {"spiffeIDs": ["spiffe://east.example/ns/web/sa/third"]}}});
    merge(west, RULE, None, "first", clients).await?;
    eventually("a change of the rule reaches east", SOON, || async {
        let clients = imported(pair, "cart.batch.west.example").await?["clients"].clone();
        ensure!(clients == json!(["spiffe://east.example/ns/web/sa/third"]), "{clients}");
        Ok(())
    })
    .await?;
    delete(west, RULE, None, "second").await
}

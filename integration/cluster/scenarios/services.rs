//! A service of west is exported to east: what is written on both sides, in the real schemas, and what takes it away.

use super::{
    Agents, GATEWAY, IMPORTED, PEER, POLICY, SERVICE, SERVICE_ENTRY, SOON, both_ready, condition, delete,
    federated, found, gone, merge, object,
};
use crate::pair::with_pair;
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, bail, ensure};
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};

pub(super) const HOST: &str = "cart.shop.west.example";
const ALIAS: &str = "cart.shop.west.example";
const SHOP: Option<&str> = Some("shop");
const AGENT: Option<&str> = Some(AGENT_NAMESPACE);

/// The service `cart` of namespace `shop` of west, for the frontend of east, behind a gateway.
pub(super) fn cart() -> Value {
    json!({
        "apiVersion": SERVICE.0,
        "kind": SERVICE.1,
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {
            "workloadLabels": {"app": "cart"},
            "ports": [{"name": "tcp", "port": 18080, "targetPort": 8080}],
            "tlsMode": "IstioMtls",
            "exportedTrustDomains": ["east.example"],
            "clients": {"spiffeIDs": ["spiffe://east.example/ns/web/sa/frontend"]},
            "serverSPIFFEIDs": ["spiffe://west.example/ns/shop/sa/cart"],
            "gateways": [{"type": "istio-eastwestgateway", "port": 15443, "ip": "10.77.2.2"}],
        },
    })
}

/// Exports the service and waits until it is imported, and both sides say so.
pub(super) async fn exported(east: &Domain, west: &Domain) -> Result<()> {
    west.kubernetes.namespace("shop").await?;
    west.kubernetes.apply(&cart()).await?;
    eventually("east has the ServiceEntry", SOON, || found(east, SERVICE_ENTRY, AGENT, HOST)).await?;
    service_says(west, "Exported", "True", "Exported").await?;
    service_says(west, "Accepted", "True", "Accepted").await
}

pub(super) async fn service_says(west: &Domain, name: &str, status: &str, reason: &str) -> Result<()> {
    eventually(&format!("cart says {name}={status}, {reason}"), SOON, || async {
        let said = condition(&found(west, SERVICE, SHOP, "cart").await?, name)?;
        ensure!(said.0 == status && said.1 == reason, "{said:?}");
        Ok(())
    })
    .await
}

/// The policies of namespace `shop`, of which there is one.
async fn policy(west: &Domain) -> Result<DynamicObject> {
    let policies = west.kubernetes.api(POLICY.0, POLICY.1, SHOP).await?.list(&ListParams::default()).await?;
    let mut policies = policies.items;
    ensure!(policies.len() == 1, "{} policies", policies.len());
    policies.pop().context("no policy")
}

/// One object of each kind on each side, owned and labelled; deleting the export takes them all away.
#[test]
fn a_service_is_exported_and_imported() {
    with_pair(async |pair| {
        let _agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        exported(east, west).await?;
        in_west(west).await?;
        in_east(east).await?;
        both_ready(pair).await?;

        delete(west, SERVICE, SHOP, "cart").await?;
        gone(east, IMPORTED, AGENT, HOST).await?;
        gone(east, SERVICE_ENTRY, AGENT, HOST).await?;
        gone(west, SERVICE_ENTRY, SHOP, ALIAS).await?;
        nothing_generated(west).await?;
        nothing_generated(east).await
    });
}

async fn in_west(west: &Domain) -> Result<()> {
    let service = eventually("west knows that east imports it", SOON, || async {
        let service = found(west, SERVICE, SHOP, "cart").await?;
        let status = &service.data["status"];
        let answer = &status["exportedTo"][0];
        ensure!(answer["trustDomain"] == "east.example" && answer["acknowledged"] == true, "{status}");
        ensure!(answer["outcome"] == "Imported", "{status}");
        Ok(service)
    })
    .await?;
    let status = &service.data["status"];
    ensure!(status["host"] == HOST, "{status}");
    ensure!(status["gatewayEntries"][0]["address"] == "10.77.2.2", "{status}");
    let alias = found(west, SERVICE_ENTRY, SHOP, ALIAS).await?;
    ensure!(alias.data["spec"]["hosts"] == json!([HOST]), "{}", alias.data);
    ensure!(alias.data["spec"]["workloadSelector"]["labels"] == json!({"app": "cart"}), "{}", alias.data);
    ensure!(alias.data["spec"]["ports"][0]["targetPort"] == 8080, "{}", alias.data);
    let gateway = found(west, GATEWAY, SHOP, "cart-eastwestgateway").await?;
    let server = &gateway.data["spec"]["servers"][0];
    ensure!(server["hosts"] == json!([format!("shop/{HOST}")]), "{server}");
    ensure!(server["tls"]["mode"] == "AUTO_PASSTHROUGH" && server["port"]["number"] == 15443, "{server}");
    let policy = policy(west).await?;
    ensure!(policy.data["spec"]["action"] == "DENY", "{}", policy.data);
    let source = &policy.data["spec"]["rules"][0]["from"][0]["source"];
    ensure!(source["principals"] == json!(["*"]), "{source}");
    ensure!(
        source["notPrincipals"] == json!(["west.example/*", "east.example/ns/web/sa/frontend"]),
        "{source}"
    );
    for object in [&alias, &gateway, &policy] {
        is_ours(object, &service, "FederatedService/shop/cart")?;
    }
    Ok(())
}

async fn in_east(east: &Domain) -> Result<()> {
    let peer = found(east, PEER, None, "west.example").await?;
    let imported = found(east, IMPORTED, AGENT, HOST).await?;
    is_ours(&imported, &peer, "TrustDomainPeer/west.example")?;
    let entry = found(east, SERVICE_ENTRY, AGENT, HOST).await?;
    is_ours(&entry, &imported, &format!("ImportedService/{AGENT_NAMESPACE}/{HOST}"))?;
    let spec = &entry.data["spec"];
    ensure!(spec["hosts"] == json!([HOST]), "{spec}");
    ensure!(spec["subjectAltNames"] == json!(["spiffe://west.example/ns/shop/sa/cart"]), "{spec}");
    ensure!(spec["exportTo"] == json!(["*"]) && spec["location"] == "MESH_INTERNAL", "{spec}");
    let endpoint = &spec["endpoints"][0];
    ensure!(endpoint["address"] == "10.77.2.2" && endpoint["ports"] == json!({"tcp": 15443}), "{spec}");
    ensure!(endpoint["labels"] == json!({"security.istio.io/tlsMode": "istio"}), "{spec}");
    Ok(())
}

fn is_ours(object: &DynamicObject, owner: &DynamicObject, source: &str) -> Result<()> {
    let metadata = &object.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let labels = metadata.labels.clone().unwrap_or_default();
    ensure!(labels.get("entente.dev/instance").is_some_and(|it| it == "entente"), "{name}: {labels:?}");
    let annotations = metadata.annotations.clone().unwrap_or_default();
    ensure!(annotations.get("entente.dev/source").is_some_and(|it| it == source), "{name}: {annotations:?}");
    let owners = metadata.owner_references.clone().unwrap_or_default();
    ensure!(owners.iter().any(|it| Some(&it.uid) == owner.metadata.uid.as_ref()), "{name}: {owners:?}");
    Ok(())
}

async fn nothing_generated(domain: &Domain) -> Result<()> {
    eventually(&format!("nothing is left in {}", domain.trust_domain()), SOON, || async {
        for kind in [IMPORTED, SERVICE_ENTRY, GATEWAY, POLICY] {
            let left =
                domain.kubernetes.api(kind.0, kind.1, None).await?.list(&ListParams::default()).await?;
            let names: Vec<_> = left.iter().filter_map(|object| object.metadata.name.as_deref()).collect();
            ensure!(names.is_empty(), "{} {names:?}", kind.1);
        }
        Ok(())
    })
    .await
}

/// What `spec.imports` no longer admits is taken away, the exporter is told so, and it comes back with it.
#[test]
fn what_is_not_admitted_is_not_imported() {
    with_pair(async |pair| {
        let _agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        exported(east, west).await?;
        let only = |services: Value| json!({"spec": {"imports": {"services": services}}});
        merge(east, PEER, None, "west.example", only(json!([{"namespace": "other", "name": "*"}]))).await?;
        gone(east, IMPORTED, AGENT, HOST).await?;
        gone(east, SERVICE_ENTRY, AGENT, HOST).await?;
        service_says(west, "Exported", "False", "RefusedByPeer").await?;
        merge(east, PEER, None, "west.example", only(json!([{"namespace": "shop", "name": "cart"}]))).await?;
        eventually("it is back", SOON, || found(east, SERVICE_ENTRY, AGENT, HOST)).await?;
        service_says(west, "Exported", "True", "Exported").await
    });
}

/// Objects of the names that the agents would use, and not theirs, stay as they are; conditions name them. Handed over
/// by annotation they are taken.
#[test]
fn what_is_not_ours_is_not_touched() {
    with_pair(async |pair| {
        let _agents: Agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        west.kubernetes.namespace("shop").await?;
        let spec =
            json!({"hosts": ["theirs.example"], "ports": [{"number": 1, "name": "tcp", "protocol": "TCP"}]});
        let theirs = |namespace: &str| {
            json!({
                "apiVersion": SERVICE_ENTRY.0,
                "kind": SERVICE_ENTRY.1,
                "metadata": {"name": HOST, "namespace": namespace},
                "spec": spec,
            })
        };
        let in_east = east.kubernetes.apply(&theirs(AGENT_NAMESPACE)).await?;
        let in_west = west.kubernetes.apply(&theirs("shop")).await?;
        west.kubernetes.apply(&cart()).await?;
        eventually("west says which object is in the way", SOON, || async {
            let said = condition(&found(west, SERVICE, SHOP, "cart").await?, "Exported")?;
            ensure!(
                said.0 == "False" && said.2.contains("ServiceEntry shop/cart.shop.west.example"),
                "{said:?}"
            );
            Ok(())
        })
        .await?;
        delete(west, SERVICE_ENTRY, SHOP, ALIAS).await?;
        eventually("east says which object is in the way", SOON, || async {
            let imported = found(east, IMPORTED, AGENT, HOST).await?;
            let conditions = imported.data["status"]["conditions"].to_string();
            ensure!(
                conditions.contains("ServiceEntry entente-system/cart.shop.west.example"),
                "{conditions}"
            );
            Ok(())
        })
        .await?;
        service_says(west, "Exported", "False", "RefusedByPeer").await?;
        untouched(east, &in_east).await?;
        ensure!(in_west.metadata.uid != found(west, SERVICE_ENTRY, SHOP, ALIAS).await?.metadata.uid);
        let hand_over = json!({"metadata": {"annotations": {"entente.dev/adopt": "true"}}});
        merge(east, SERVICE_ENTRY, AGENT, HOST, hand_over).await?;
        eventually("what was handed over is taken", SOON, || async {
            match object(east, SERVICE_ENTRY, AGENT, HOST).await? {
                Some(entry) if entry.data["spec"]["hosts"] == json!([HOST]) => Ok(()),
                other => bail!("{other:?}"),
            }
        })
        .await?;
        service_says(west, "Exported", "True", "Exported").await
    });
}

async fn untouched(domain: &Domain, before: &DynamicObject) -> Result<()> {
    let name = before.metadata.name.as_deref().unwrap_or_default();
    let now = found(domain, SERVICE_ENTRY, before.metadata.namespace.as_deref(), name).await?;
    ensure!(now.metadata.uid == before.metadata.uid, "{name} was replaced");
    ensure!(now.metadata.resource_version == before.metadata.resource_version, "{name} was written");
    Ok(())
}

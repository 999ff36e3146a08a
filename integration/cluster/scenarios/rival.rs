//! What is lost, doubled or left over elsewhere where meshes are federated, and must not be here: each test is named for
//! what must hold.

use super::services::cart;
use super::trio::{HONEST, Trio, WEST, encoded, is_harmless, with_trio};
use super::{
    GATEWAY, IMPORTED, POLICY, READY, SERVICE, SERVICE_ENTRY, SOON, delete, found, gone, merge, with,
};
use crate::wait::{always, eventually};
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};
use std::time::Duration;

const AGENT: Option<&str> = Some(AGENT_NAMESPACE);
const ROUTES: (&str, &str) = ("networking.istio.io/v1", "VirtualService");
const SHOP: Option<&str> = Some("shop");
const IMPORTS: [(&str, &str); 2] = [IMPORTED, SERVICE_ENTRY];
/// Longer than the Leases of the agents.
const OUT_WAIT: Duration = Duration::from_secs(6);

/// Killed and stopped with every peer down, the agent comes back to what it has, and writes none of it.
#[test]
fn a_restart_with_every_peer_down_keeps_what_was_imported() {
    with_trio(async |trio, line| {
        let good = trio.hostile.service("shop", "good");
        trio.offer(&line, &encoded(&[good]), &["good.shop"]).await?;
        drop(line);
        ensure!(trio.in_north.stop().await? == 0, "north's agent ended badly");
        let before = trio.east.kubernetes.versions(&IMPORTS).await?;
        for host in [HONEST, &format!("good.shop.{WEST}")] {
            let entry = format!("ServiceEntry {AGENT_NAMESPACE}/{host}");
            ensure!(before.contains_key(&entry), "{:?}", before.keys());
        }
        for kill in [true, false] {
            if kill {
                trio.in_east.kill().await?;
            } else {
                ensure!(trio.in_east.stop().await? == 0, "east's agent ended badly");
            }
            trio.in_east.restart()?;
            trio.in_east.ready(READY).await?;
            always("what was imported is the same", OUT_WAIT, || async {
                let now = trio.east.kubernetes.versions(&IMPORTS).await?;
                let same = before.iter().all(|(name, uid)| now.get(name).is_some_and(|now| now.0 == uid.0));
                ensure!(same && now.len() == before.len(), "before {before:?}, now {now:?}");
                Ok(())
            })
            .await?;
        }
        let entries = |all: &std::collections::BTreeMap<String, (String, String)>| {
            all.clone().into_iter().filter(|(name, _)| name.starts_with("ServiceEntry")).collect::<Vec<_>>()
        };
        let after = trio.east.kubernetes.versions(&IMPORTS).await?;
        ensure!(entries(&before) == entries(&after), "before {before:?}, after {after:?}");
        trio.in_north.restart()?;
        trio.in_north.ready(READY).await?;
        super::peer_says(&trio.east, &trio.north, "Connected", "True", "Connected").await?;
        Ok(())
    });
}

/// What of north's service changes is changed in place at the importer, and nothing else.
async fn follows(trio: &Trio, what: &str, change: Value, stands: impl Fn(&Value) -> bool) -> Result<()> {
    let uid = found(&trio.east, SERVICE_ENTRY, AGENT, HONEST).await?.metadata.uid;
    merge(&trio.north, SERVICE, SHOP, "cart", change).await?;
    eventually(&format!("the importer follows: {what}"), SOON, || async {
        let entry = found(&trio.east, SERVICE_ENTRY, AGENT, HONEST).await?;
        ensure!(stands(&entry.data["spec"]), "{}", entry.data["spec"]);
        ensure!(entry.metadata.uid == uid, "it was replaced");
        Ok(())
    })
    .await
}

/// Brings north's service back to how others find it.
async fn as_it_was(trio: &Trio) -> Result<()> {
    let before = with(cart(), "/spec/serverSPIFFEIDs", json!(["spiffe://north.example/ns/shop/sa/cart"]))?;
    trio.is_made_anew.set(true);
    delete(&trio.north, SERVICE, SHOP, "cart").await?;
    gone(&trio.east, SERVICE_ENTRY, AGENT, HONEST).await?;
    trio.north.kubernetes.apply(&before).await?;
    eventually("east has it again", SOON, || found(&trio.east, SERVICE_ENTRY, AGENT, HONEST)).await?;
    Ok(())
}

/// As with_trio, and north's service may be another object after.
fn with_north_changed(scenario: impl AsyncFnOnce(&mut Trio) -> Result<()>) {
    with_trio(async |trio, line| {
        drop(line);
        scenario(trio).await?;
        as_it_was(trio).await
    });
}

#[test]
fn changed_ports_reach_the_importer() {
    with_north_changed(async |trio| {
        let ports = |ports: Value| json!({"spec": {"ports": ports}});
        follows(
            trio,
            "another number",
            ports(json!([{"name": "tcp", "port": 18081, "targetPort": 8080}])),
            |spec| spec["ports"][0]["number"] == 18081,
        )
        .await?;
        let two = json!([
            {"name": "tcp", "port": 18081, "targetPort": 8080},
            {"name": "admin", "port": 18082, "targetPort": 8081, "appProtocol": "grpc"},
        ]);
        follows(trio, "one more", ports(two), |spec| {
            spec["ports"].as_array().is_some_and(|all| all.len() == 2)
        })
        .await?;
        let renamed = json!([{"name": "web", "port": 18082, "targetPort": 8081, "appProtocol": "http2"}]);
        follows(trio, "another name and protocol", ports(renamed), |spec| {
            spec["ports"].as_array().is_some_and(|all| all.len() == 1)
                && spec["ports"][0]["name"] == "web"
                && spec["ports"][0]["protocol"] == "HTTP2"
        })
        .await
    });
}

#[test]
fn changed_server_ids_reach_the_importer() {
    with_north_changed(async |trio| {
        let ids = ["spiffe://north.example/ns/shop/sa/cart-2", "spiffe://north.example/ns/shop/sa/cart-3"];
        follows(trio, "other IDs", json!({"spec": {"serverSPIFFEIDs": ids}}), |spec| {
            spec["subjectAltNames"] == json!(ids)
        })
        .await
    });
}

/// A gateway that moves, from address to name, to another name, to several, and back.
#[test]
fn a_gateway_that_changes_its_name_reaches_the_importer() {
    with_north_changed(async |trio| {
        let steps = [
            (json!({"hostname": "gateway-1.north.example"}), "DNS", "gateway-1.north.example"),
            (json!({"hostname": "gateway-2.north.example"}), "DNS", "gateway-2.north.example"),
            (json!({"ip": "10.77.9.9"}), "STATIC", "10.77.9.9"),
        ];
        for (at, resolution, address) in steps {
            let mut gateway = json!({"type": "istio-eastwestgateway", "port": 15443});
            for (name, value) in at.as_object().context("no object")? {
                gateway[name] = value.clone();
            }
            follows(trio, address, json!({"spec": {"gateways": [gateway]}}), |spec| {
                spec["endpoints"].as_array().is_some_and(|all| all.len() == 1)
                    && spec["endpoints"][0]["address"] == address
                    && spec["resolution"] == resolution
            })
            .await?;
        }
        Ok(())
    });
}

/// How many objects of a kind east's agent has put back.
async fn repaired(agent: &crate::agent::Agent, kind: &str) -> Result<u64> {
    let (status, text) = agent.get("/metrics").await?;
    ensure!(status == 200, "{status}");
    let name = format!("entente_drift_repaired_total{{kind=\"{kind}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(Ok(0), |count| Ok(count.parse()?))
}

/// An object that someone deletes or edits is put back, as it was, and each time is counted.
async fn is_put_back(
    domain: &Domain,
    agent: &crate::agent::Agent,
    kind: (&str, &str),
    namespace: &str,
    name: &str,
    edit: Option<Value>,
) -> Result<()> {
    let before = found(domain, kind, Some(namespace), name).await?;
    let count = repaired(agent, kind.1).await?;
    match &edit {
        None => delete(domain, kind, Some(namespace), name).await?,
        Some(edit) => merge(domain, kind, Some(namespace), name, edit.clone()).await?,
    }
    let same = |now: &DynamicObject| {
        now.data["spec"] == before.data["spec"]
            && now.metadata.labels == before.metadata.labels
            && (edit.is_some() || now.metadata.uid != before.metadata.uid)
    };
    eventually(&format!("{} {name} is put back after {edit:?}", kind.1), SOON, || async {
        let now = found(domain, kind, Some(namespace), name).await?;
        ensure!(same(&now), "{}", now.data["spec"]);
        let counted = repaired(agent, kind.1).await?;
        ensure!(counted == count + 1, "counted {count}, then {counted}");
        Ok(())
    })
    .await
}

#[test]
fn drift_is_repaired_and_counted() {
    with_trio(async |trio, line| {
        drop(line);
        let (east, north) = (&trio.east, &trio.north);
        let emptied = json!({"spec": {"subjectAltNames": ["spiffe://evil.example/ns/a/sa/b"]}});
        is_put_back(east, &trio.in_east, SERVICE_ENTRY, AGENT_NAMESPACE, HONEST, Some(emptied)).await?;
        let bare = json!({"metadata": {"labels": {"entente.dev/peer": null}}});
        is_put_back(east, &trio.in_east, SERVICE_ENTRY, AGENT_NAMESPACE, HONEST, Some(bare)).await?;
        is_put_back(east, &trio.in_east, SERVICE_ENTRY, AGENT_NAMESPACE, HONEST, None).await?;
        let policies =
            north.kubernetes.api(POLICY.0, POLICY.1, SHOP).await?.list(&ListParams::default()).await?;
        let policy = policies.items.first().and_then(|it| it.metadata.name.clone()).context("no policy")?;
        is_put_back(north, &trio.in_north, POLICY, "shop", &policy, None).await?;
        let open = json!({"spec": {"action": "ALLOW"}});
        is_put_back(north, &trio.in_north, POLICY, "shop", &policy, Some(open)).await?;
        let gateways =
            north.kubernetes.api(GATEWAY.0, GATEWAY.1, SHOP).await?.list(&ListParams::default()).await?;
        let gateway = gateways.items.first().and_then(|it| it.metadata.name.clone()).context("no gateway")?;
        is_put_back(north, &trio.in_north, GATEWAY, "shop", &gateway, None).await?;
        // What we change ourselves is no drift.
        let count = repaired(&trio.in_east, "ServiceEntry").await?;
        as_it_was(trio).await?;
        ensure!(repaired(&trio.in_east, "ServiceEntry").await? == count, "our own writes were counted");
        Ok(())
    });
}

/// Two peers that export one service are two services, each at its own host and with its own identity; one that goes takes
/// nothing of the other's.
#[test]
fn two_remotes_with_one_service_are_two_hosts() {
    with_trio(async |trio, line| {
        drop(line);
        trio.in_west.restart()?;
        trio.in_west.ready(READY).await?;
        trio.west.kubernetes.namespace("shop").await?;
        trio.west.kubernetes.apply(&cart()).await?;
        let host = format!("cart.shop.{WEST}");
        let entry =
            eventually("east has west's too", SOON, || found(&trio.east, SERVICE_ENTRY, AGENT, &host))
                .await?;
        is_harmless(&host, &entry)?;
        let honest = found(&trio.east, SERVICE_ENTRY, AGENT, HONEST).await?;
        ensure!(honest.data["spec"]["hosts"] == json!([HONEST]), "{}", honest.data["spec"]);
        ensure!(
            honest.data["spec"]["subjectAltNames"] == json!(["spiffe://north.example/ns/shop/sa/cart"]),
            "{}",
            honest.data["spec"]
        );
        let version = honest.metadata.resource_version;
        delete(&trio.west, SERVICE, SHOP, "cart").await?;
        gone(&trio.east, SERVICE_ENTRY, AGENT, &host).await?;
        gone(&trio.east, IMPORTED, AGENT, &host).await?;
        let now = found(&trio.east, SERVICE_ENTRY, AGENT, HONEST).await?;
        ensure!(now.metadata.resource_version == version, "the other's was written");
        Ok(())
    });
}

/// Where a local name leads: the hosts of the one VirtualService that serves it.
async fn routes(trio: &Trio, host: &str) -> Result<Vec<String>> {
    let routes = found(&trio.east, ROUTES, SHOP, host).await?;
    let hosts = &routes.data["spec"]["tcp"][0]["route"];
    let hosts = hosts.as_array().with_context(|| routes.data["spec"].to_string())?;
    let mut hosts: Vec<String> =
        hosts.iter().filter_map(|to| Some(to["destination"]["host"].as_str()?.to_owned())).collect();
    hosts.sort();
    Ok(hosts)
}

/// A local Service that appears is served together with the remote ones, and they alone once it is gone: at once, with no
/// word of a peer in between. Two peers that have it share the one name.
#[test]
fn a_local_service_that_comes_and_goes_switches() {
    with_trio(async |trio, line| {
        let east = &trio.east;
        let local = "cart.shop.svc.cluster.local";
        let both = [format!("cart.shop.{WEST}"), HONEST.to_owned()];
        let leads_to = async |what: &str, wanted: &[&str]| {
            let mut wanted: Vec<String> = wanted.iter().map(|it| (*it).to_owned()).collect();
            wanted.sort();
            eventually(what, SOON, || async {
                let now = routes(trio, local).await?;
                ensure!(now == wanted, "{now:?}");
                Ok(())
            })
            .await
        };
        east.kubernetes.namespace("shop").await?;
        let as_local = |patterns: Value| json!({"spec": {"imports": {"asLocal": patterns}}});
        for peer in [WEST, "north.example"] {
            let cart = json!([{"namespace": "shop", "name": "cart"}]);
            merge(east, super::PEER, None, peer, as_local(cart)).await?;
        }
        leads_to("the remote one alone", &[HONEST]).await?;
        found(east, SERVICE_ENTRY, SHOP, local).await?;
        line.offer(&encoded(&[trio.hostile.service("shop", "cart")])).await?;
        leads_to("two remotes share the name", &[&both[0], &both[1]]).await?;
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "cart", "namespace": "shop"},
            "spec": {"selector": {"app": "cart"}, "ports": [{"name": "tcp", "port": 18080, "targetPort": 8080}]},
        });
        east.kubernetes.apply(&service).await?;
        leads_to("the local Service is with them", &[local, &both[0], &both[1]]).await?;
        gone(east, SERVICE_ENTRY, SHOP, local).await?;
        line.offer(&[]).await?;
        leads_to("one that is withdrawn is gone from it", &[local, HONEST]).await?;
        delete(east, ("v1", "Service"), SHOP, "cart").await?;
        leads_to("the remote one alone again", &[HONEST]).await?;
        eventually("the name is made again", SOON, || found(east, SERVICE_ENTRY, SHOP, local)).await?;
        for peer in [WEST, "north.example"] {
            merge(east, super::PEER, None, peer, as_local(json!(null))).await?;
        }
        gone(east, SERVICE_ENTRY, SHOP, local).await?;
        gone(east, ROUTES, SHOP, local).await
    });
}

/// A hostile peer's service of a local name joins nothing unless that name is asked for of that very peer.
#[test]
fn a_local_name_that_was_not_asked_for_is_not_joined() {
    with_trio(async |trio, line| {
        let east = &trio.east;
        east.kubernetes.namespace("shop").await?;
        let others = json!({"spec": {"imports": {"asLocal": [{"namespace": "*", "name": "*"}]}}});
        merge(east, super::PEER, None, "north.example", others).await?;
        eventually("north's is at its local name", SOON, || routes(trio, "cart.shop.svc.cluster.local"))
            .await?;
        let names = [("shop", "cart"), ("default", "kubernetes"), ("kube-system", "kube-dns")];
        let services: Vec<_> =
            names.iter().map(|(namespace, name)| trio.hostile.service(namespace, name)).collect();
        trio.offer(&line, &encoded(&services), &["cart.shop", "kubernetes.default", "kube-dns.kube-system"])
            .await?;
        ensure!(routes(trio, "cart.shop.svc.cluster.local").await? == [HONEST], "it was joined");
        // A pattern for all of a peer's names does not stand for the cluster's own workings.
        let all = json!({"spec": {"imports": {"asLocal": [{"namespace": "*", "name": "*"}]}}});
        merge(east, super::PEER, None, WEST, all).await?;
        eventually("cart alone is joined", SOON, || async {
            let now = routes(trio, "cart.shop.svc.cluster.local").await?;
            ensure!(now.len() == 2, "{now:?}");
            Ok(())
        })
        .await?;
        always("what is the cluster's own is not", OUT_WAIT, || async {
            for kind in [ROUTES, SERVICE_ENTRY] {
                let all =
                    east.kubernetes.api(kind.0, kind.1, None).await?.list(&ListParams::default()).await?;
                let place = |object: &DynamicObject| object.metadata.namespace.clone().unwrap_or_default();
                let bad: Vec<String> =
                    all.iter().map(place).filter(|it| it == "default" || it.starts_with("kube-")).collect();
                ensure!(bad.is_empty(), "{} in {bad:?}", kind.1);
            }
            Ok(())
        })
        .await?;
        for peer in [WEST, "north.example"] {
            merge(east, super::PEER, None, peer, json!({"spec": {"imports": {"asLocal": null}}})).await?;
        }
        gone(east, ROUTES, SHOP, "cart.shop.svc.cluster.local").await
    });
}

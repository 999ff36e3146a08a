//! What becomes of imports while a peer's agent is away, and what takes them away.

use super::services::{HOST, cart, exported, service_says};
use super::trio::{WEST, encoded, with_trio};
use super::{
    GATEWAY, IMPORTED, PEER, POLICY, READY, SERVICE, SERVICE_ENTRY, SOON, condition, delete, federated,
    found, merge, object, peer_says, quick, with,
};
use crate::agent::{Agent, AgentOptions};
use crate::pair::with_pair;
use crate::wait::{always, eventually};
use crate::world::AGENT_NAMESPACE;
use anyhow::{Context, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

const AGENT: Option<&str> = Some(AGENT_NAMESPACE);
/// Of `onDisconnect`.
const AFTER: Duration = Duration::from_secs(6);

fn host() -> String {
    format!("good.shop.{WEST}")
}

/// By default services stay while their peer's agent is away, and the status tells the one from the other.
#[test]
fn services_of_a_peer_that_is_away_stay_and_are_told_from_it() {
    with_trio(async |trio, line| {
        trio.offer(&line, &encoded(&[trio.hostile.service("shop", "good")]), &["good.shop"]).await?;
        let before = found(&trio.east, SERVICE_ENTRY, AGENT, &host()).await?;
        drop(line);
        eventually("Connected is False", SOON, || async {
            let said = super::of_peer(&trio.east, &trio.west, "Connected").await?;
            ensure!(said.0 == "False", "{said:?}");
            Ok(())
        })
        .await?;
        let said = peer_says(&trio.east, &trio.west, "ServicesSynced", "Unknown", "PeerAway").await?;
        ensure!(said.contains("stay as they were last known"), "{said}");
        always("the service stays", AFTER, || async {
            let now = found(&trio.east, SERVICE_ENTRY, AGENT, &host()).await?;
            ensure!(now.metadata.resource_version == before.metadata.resource_version, "it was written");
            Ok(())
        })
        .await?;
        // The word of a peer that is back counts, and an explicit removal at once.
        let line = trio.hostile.greet().await?;
        let since = Instant::now();
        super::gone(&trio.east, SERVICE_ENTRY, AGENT, &host()).await?;
        ensure!(since.elapsed() < Duration::from_secs(10), "removed after {:?}", since.elapsed());
        peer_says(&trio.east, &trio.west, "ServicesSynced", "True", "InSync").await?;
        drop(line);
        Ok(())
    });
}

/// With `Withdraw` they go after its time, not before, and come back with the peer.
#[test]
fn withdraw_takes_away_after_its_time_and_not_before() {
    with_trio(async |trio, line| {
        let withdraw = json!({"spec": {"onDisconnect": {"policy": "Withdraw", "after": format!("{}s", AFTER.as_secs())}}});
        merge(&trio.east, PEER, None, WEST, withdraw).await?;
        let services = encoded(&[trio.hostile.service("shop", "good")]);
        trio.offer(&line, &services, &["good.shop"]).await?;
        let since = Instant::now();
        drop(line);
        let said = peer_says(&trio.east, &trio.west, "ServicesSynced", "Unknown", "PeerAway").await?;
        ensure!(said.contains(&format!("{} s", AFTER.as_secs())), "{said}");
        eventually("it is withdrawn", AFTER + SOON, || async {
            let left = object(&trio.east, SERVICE_ENTRY, AGENT, &host()).await?;
            ensure!(left.is_none(), "it is there");
            Ok(())
        })
        .await?;
        let after = since.elapsed();
        eprintln!("withdrawn {after:?} after the line was cut, where {AFTER:?} was asked for");
        ensure!(after >= AFTER, "withdrawn after {after:?} already");
        peer_says(&trio.east, &trio.west, "ServicesSynced", "False", "Withdrawn").await?;
        let line = trio.hostile.greet().await?;
        let outcomes = trio.offer(&line, &services, &["good.shop"]).await?;
        ensure!(outcomes.get("good.shop") == Some(&None), "{outcomes:?}");
        line.offer(&[]).await?;
        merge(&trio.east, PEER, None, WEST, json!({"spec": {"onDisconnect": null}})).await
    });
}

/// An agent that restarts while the peer is away gives it its time anew: it cannot know how long it was away.
#[test]
fn a_restart_does_not_withdraw_early() {
    with_trio(async |trio, line| {
        let withdraw = json!({"spec": {"onDisconnect": {"policy": "Withdraw", "after": "1h"}}});
        merge(&trio.east, PEER, None, WEST, withdraw).await?;
        trio.offer(&line, &encoded(&[trio.hostile.service("shop", "good")]), &["good.shop"]).await?;
        drop(line);
        trio.in_east.kill().await?;
        trio.in_east.restart()?;
        trio.in_east.ready(READY).await?;
        always("the service stays", AFTER, || async {
            found(&trio.east, SERVICE_ENTRY, AGENT, &host()).await.map(drop)
        })
        .await?;
        merge(&trio.east, PEER, None, WEST, json!({"spec": {"onDisconnect": null}})).await
    });
}

/// May do all, but read FederatedServices.
const NEARLY_ALL: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: nearly-all}
rules:
- apiGroups: ["", apps, coordination.k8s.io, events.k8s.io, networking.istio.io, security.istio.io, spire.spiffe.io, apiextensions.k8s.io, admissionregistration.k8s.io]
  resources: ["*"]
  verbs: ["*"]
- apiGroups: [entente.dev]
  resources: [trustdomainpeers, trustdomainpeers/status, importedservices, importedservices/status, serviceexportrules, serviceexportrules/status]
  verbs: ["*"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: nearly-all}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: nearly-all}
subjects: [{kind: ServiceAccount, name: entente-limited, namespace: entente-system}]
"#;

/// What an earlier life of the agent left, of which the source is gone, is removed; but only once every source was read.
#[test]
fn orphans_are_removed_once_every_source_was_read() {
    with_pair(async |pair| {
        let mut agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        exported(east, west).await?;
        ensure!(agents.east.stop().await? == 0, "east's agent ended badly");
        let entry = found(east, SERVICE_ENTRY, AGENT, HOST).await?;
        let orphan = json!({
            "apiVersion": SERVICE_ENTRY.0,
            "kind": SERVICE_ENTRY.1,
            "metadata": {
                "name": "orphan",
                "namespace": "default",
                "labels": entry.metadata.labels,
                "annotations": {"entente.dev/source": "FederatedService/default/gone"},
            },
            "spec": {"hosts": ["orphan.default.west.example"], "ports": [{"number": 1, "name": "tcp", "protocol": "TCP"}]},
        });
        east.kubernetes.apply(&orphan).await?;
        let kubeconfig =
            east.kubernetes.service_account_kubeconfig(AGENT_NAMESPACE, "entente-limited").await?;
        east.kubernetes.apply_yaml(NEARLY_ALL).await?;
        let mut limited = Agent::start(
            east,
            AgentOptions { name: "limited".to_owned(), kubeconfig: Some(kubeconfig), ..quick() },
        )?;
        eventually("the limited agent says what it cannot read", SOON, || async {
            let log = limited.log();
            ensure!(log.contains("federatedservices"), "{}", limited.process.log_tail());
            Ok(())
        })
        .await?;
        always("nothing is removed", Duration::from_secs(8), || async {
            found(east, SERVICE_ENTRY, Some("default"), "orphan").await?;
            found(east, SERVICE_ENTRY, AGENT, HOST).await.map(drop)
        })
        .await?;
        let all = json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
        merge(east, ("rbac.authorization.k8s.io/v1", "ClusterRole"), None, "nearly-all", all).await?;
        limited.ready(Duration::from_secs(60)).await?;
        super::gone(east, SERVICE_ENTRY, Some("default"), "orphan").await?;
        let now = found(east, SERVICE_ENTRY, AGENT, HOST).await?;
        ensure!(now.metadata.uid == entry.metadata.uid, "what is imported was replaced");
        for kind in ["ClusterRoleBinding", "ClusterRole"] {
            super::delete(east, ("rbac.authorization.k8s.io/v1", kind), None, "nearly-all").await?;
        }
        let peer = found(east, PEER, None, WEST).await?;
        condition(&peer, "Ready").context("the status is there").map(drop)
    });
}

/// A FederatedService that became malformed while its agent was away goes on as it was, on both sides, while others come and
/// go; mended, it is what it was, and deleted, it is gone.
#[test]
fn what_became_malformed_while_the_exporter_was_away_is_kept() {
    with_pair(async |pair| {
        let mut agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        exported(east, west).await?;
        let imports = [SERVICE_ENTRY, IMPORTED];
        let exports = [SERVICE_ENTRY, GATEWAY, POLICY];
        let before = (east.kubernetes.versions(&imports).await?, west.kubernetes.versions(&exports).await?);
        let to = |trust_domain: &str| json!({"spec": {"exportedTrustDomains": [trust_domain]}});
        for round in ["orders", "stock"] {
            ensure!(agents.west.stop().await? == 0, "west's agent ended badly");
            // To one's own trust domain nothing is exported.
            merge(west, SERVICE, Some("shop"), "cart", to("west.example")).await?;
            agents.west.restart()?;
            agents.west.ready(READY).await?;
            eventually("the service is not accepted", SOON, || async {
                let said = condition(&found(west, SERVICE, Some("shop"), "cart").await?, "Accepted")?;
                ensure!(said.0 == "False", "{said:?}");
                Ok(())
            })
            .await?;
            // Once another is imported, the importer has the word of the exporter's new life.
            let mut other = with(cart(), "/metadata/name", json!(round))?;
            other = with(other, "/spec/workloadLabels/app", json!(round))?;
            west.kubernetes.apply(&other).await?;
            let host = format!("{round}.shop.west.example");
            eventually("another is imported", SOON, || found(east, SERVICE_ENTRY, AGENT, &host)).await?;
            let (ours, theirs) =
                (east.kubernetes.versions(&imports).await?, west.kubernetes.versions(&exports).await?);
            for (name, version) in before.0.iter().filter(|(name, _)| name.starts_with("ServiceEntry")) {
                ensure!(ours.get(name) == Some(version), "{name}: {version:?}, now {:?}", ours.get(name));
            }
            for (name, (uid, _)) in &before.0 {
                ensure!(ours.get(name).is_some_and(|now| now.0 == *uid), "{name} was replaced");
            }
            for (name, version) in &before.1 {
                ensure!(theirs.get(name) == Some(version), "{name}: {version:?}, now {:?}", theirs.get(name));
            }
            if round == "orders" {
                merge(west, SERVICE, Some("shop"), "cart", to("east.example")).await?;
                service_says(west, "Exported", "True", "Exported").await?;
                let now = found(east, SERVICE_ENTRY, AGENT, HOST).await?;
                let version = before.0.get(&format!("ServiceEntry {AGENT_NAMESPACE}/{HOST}"));
                ensure!(version.map(|it| it.0.clone()) == now.metadata.uid, "mended, it was replaced");
            }
        }
        delete(west, SERVICE, Some("shop"), "cart").await?;
        super::gone(east, SERVICE_ENTRY, AGENT, HOST).await
    });
}

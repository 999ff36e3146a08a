//! What is left once all is taken away, in whatever order.

use super::services::exported;
use super::trio::{everything, kinds};
use super::{GATEWAY, PEER, POLICY, SERVICE, SERVICE_ENTRY, SOON, both_ready, delete, federated};
use crate::kubernetes::CONTROLLERS_USER;
use crate::pair::{with_pair, with_spent_pair};
use crate::wait::eventually;
use crate::world::{Domain, Options};
use anyhow::{Context, Result, bail, ensure};
use kube::api::{DeleteParams, ListParams};
use kube::discovery::ApiResource;
use std::collections::BTreeSet;
use std::time::Duration;

/// An end waits for SPIRE's agents, and garbage collection looks for new kinds every 30 s.
const ENDED: Duration = Duration::from_secs(60);
const CRD: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");

/// The names of all objects, without what comes and goes by itself.
async fn names(domain: &Domain, kinds: &[ApiResource]) -> Result<BTreeSet<String>> {
    Ok(everything(domain, kinds).await?.into_keys().collect())
}

async fn nothing_is_left(domain: &Domain, kinds: &[ApiResource], before: &BTreeSet<String>) -> Result<()> {
    eventually(&format!("nothing is left in {}", domain.trust_domain()), ENDED, || async {
        let now = names(domain, kinds).await?;
        let left: Vec<_> = now.difference(before).collect();
        let lost: Vec<_> = before.difference(&now).collect();
        ensure!(left.is_empty() && lost.is_empty(), "left {left:?}, lost {lost:?}");
        Ok(())
    })
    .await
}

/// Exports and peers deleted, nothing is there that was not before, on either side, and nothing that was is gone.
#[test]
fn deleting_exports_and_peers_leaves_nothing() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        for domain in [east, west] {
            domain.kubernetes.namespace("shop").await?;
        }
        let all = (kinds(east).await?, kinds(west).await?);
        let settled = || async {
            let first = (names(east, &all.0).await?, names(west, &all.1).await?);
            tokio::time::sleep(Duration::from_secs(1)).await;
            let second = (names(east, &all.0).await?, names(west, &all.1).await?);
            ensure!(first == second, "objects come and go still");
            Ok(second)
        };
        let before = eventually("the namespaces are made", SOON, settled).await?;
        let mut agents = federated(pair).await?;
        exported(east, west).await?;
        both_ready(pair).await?;
        delete(west, SERVICE, Some("shop"), "cart").await?;
        for (here, there) in [(east, west), (west, east)] {
            delete(here, PEER, None, there.trust_domain().as_str()).await?;
        }
        nothing_is_left(east, &all.0, &before.0).await?;
        nothing_is_left(west, &all.1, &before.1).await?;
        ensure!(agents.east.stop().await? == 0 && agents.west.stop().await? == 0, "an agent ended badly");
        nothing_is_left(east, &all.0, &before.0).await?;
        nothing_is_left(west, &all.1, &before.1).await
    });
}

/// An export deleted while no agent runs is collected by the cluster alone: what lets callers in first, then what keeps them
/// out, and nothing is left.
#[test]
fn an_export_deleted_without_an_agent_is_closed_last() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        let mut agents = federated(pair).await?;
        exported(east, west).await?;
        // Its owners are as they will be once the Gateway was seen to stand.
        let policy = async || {
            let api = west.kubernetes.api(POLICY.0, POLICY.1, Some("shop")).await?;
            let mut all = api.list(&ListParams::default()).await?.items;
            ensure!(all.len() == 1, "{} policies", all.len());
            all.pop().context("no policy")
        };
        eventually("the policy is owned by what it outlives", SOON, || async {
            let owners = policy().await?.metadata.owner_references.unwrap_or_default();
            let mut kinds: Vec<&str> = owners.iter().map(|owner| owner.kind.as_str()).collect();
            kinds.sort_unstable();
            ensure!(kinds == ["FederatedService", "Gateway", "ServiceEntry"], "{kinds:?}");
            Ok(())
        })
        .await?;
        agents.west.kill().await?;
        delete(west, SERVICE, Some("shop"), "cart").await?;
        for kind in [GATEWAY, SERVICE_ENTRY, POLICY] {
            eventually(&format!("no {} is left", kind.1), ENDED, || async {
                let api = west.kubernetes.api(kind.0, kind.1, Some("shop")).await?;
                let left = api.list(&ListParams::default()).await?.items.len();
                ensure!(left == 0, "{left} left");
                Ok(())
            })
            .await?;
        }
        let order = || -> Result<Vec<String>> {
            let writes = west.kubernetes.writes_of(CONTROLLERS_USER)?.into_iter();
            let deleted = writes.filter(|write| write.verb == "delete" && write.namespace == "shop");
            let deleted = deleted.filter(|write| write.code == 200).map(|write| write.resource);
            let ours = |kind: &String| {
                ["gateways", "serviceentries", "authorizationpolicies"].contains(&kind.as_str())
            };
            Ok(deleted.filter(ours).collect())
        };
        let order = eventually("the audit log has it", SOON, || async {
            let order = order()?;
            ensure!(order.len() >= 3, "{order:?}");
            Ok(order)
        })
        .await?;
        ensure!(order.last().is_some_and(|last| last == "authorizationpolicies"), "{order:?}");
        ensure!(agents.east.stop().await? == 0, "an agent ended badly");
        Ok(())
    });
}

/// The CustomResourceDefinitions deleted under a running agent, it takes away what it made of them.
#[test]
fn deleting_the_crds_leaves_nothing() {
    with_spent_pair(Options::default(), Options::default(), async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        for domain in [east, west] {
            domain.kubernetes.namespace("shop").await?;
        }
        let ours = |kind: &ApiResource| kind.group == "entente.dev";
        let mut all = (kinds(east).await?, kinds(west).await?);
        let crds: Vec<String> = all
            .0
            .iter()
            .filter(|kind| ours(kind))
            .map(|kind| format!("{}.entente.dev", kind.plural))
            .collect();
        ensure!(crds.len() >= 3, "{crds:?}");
        all.0.retain(|kind| !ours(kind));
        all.1.retain(|kind| !ours(kind));
        let mut agents = federated(pair).await?;
        exported(east, west).await?;
        both_ready(pair).await?;
        for domain in [east, west] {
            let api = domain.kubernetes.api(CRD.0, CRD.1, None).await?;
            for name in &crds {
                api.delete(name, &DeleteParams::default()).await?;
            }
        }
        for domain in [east, west] {
            for name in &crds {
                eventually(&format!("{name} is gone"), ENDED, || async {
                    match super::object(domain, CRD, None, name).await? {
                        None => Ok(()),
                        Some(left) => bail!("{}", left.data["status"]["conditions"]),
                    }
                })
                .await?;
            }
            let kinds = if domain.trust_domain() == east.trust_domain() { &all.0 } else { &all.1 };
            eventually("nothing generated is left", ENDED, || async {
                let now = names(domain, kinds).await?;
                let generated =
                    ["ServiceEntry", "Gateway ", "AuthorizationPolicy", "ClusterFederatedTrustDomain"];
                let left: Vec<_> =
                    now.iter().filter(|name| generated.iter().any(|kind| name.starts_with(kind))).collect();
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })
            .await?;
        }
        ensure!(agents.east.process.is_running() && agents.west.process.is_running(), "an agent has ended");
        ensure!(agents.east.stop().await? == 0 && agents.west.stop().await? == 0, "an agent ended badly");
        Ok(())
    });
}

//! The parts themselves, without our agent: what every other scenario builds on.

use crate::pair::with_pair;
use crate::wait::eventually;
use crate::world::{Domain, Part};
use anyhow::{Context, Result, bail, ensure};
use kube::api::{DeleteParams, ListParams};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// Two domains federate by pasted bundles, on real SPIRE alone: both SPIREs have the relationship and the other's
/// authorities, a workload that federates receives them, and garbage collection works.
#[test]
fn trust_domains_stand_on_real_spire() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        east.federate_by_hand(west).await?;
        west.federate_by_hand(east).await?;
        for (here, there) in [(east, west), (west, east)] {
            eventually("SPIRE has the relationship and the bundle", SOON, || holds_bundle_of(here, there))
                .await?;
        }
        let id = east.register_test_process("cart", "/ns/shop/sa/cart", &[], &["west.example"]).await?;
        eventually("a workload receives both bundles", SOON, || async {
            let response = east.spire.workload().await?;
            let svid = response.svids.first().context("no SVID")?;
            ensure!(svid.spiffe_id == id, "SPIFFE ID {}", svid.spiffe_id);
            let foreign =
                response.federated_bundles.get("spiffe://west.example").context("no bundle of west")?;
            let authorities = west.spire.own_bundle().await?.x509_authorities;
            ensure!(*foreign == authorities.iter().flat_map(|one| one.asn1.clone()).collect::<Vec<u8>>());
            Ok(())
        })
        .await?;
        east.kubernetes.apply_yaml(&std::fs::read_to_string("spire/agent-registration-pods.yaml")?).await?;
        Ok(())
    });
}

async fn holds_bundle_of(here: &Domain, there: &Domain) -> Result<()> {
    let name = there.trust_domain().to_string();
    let relationships = here.spire.relationships().await?;
    let relationship = relationships.get(&name).context("no relationship")?;
    ensure!(relationship.bundle_endpoint_url == there.bundle_endpoint_url());
    let bundles = here.spire.federated_bundles().await?;
    let held = &bundles.get(&name).context("no bundle")?.x509_authorities;
    let authorities = there.spire.own_bundle().await?.x509_authorities;
    ensure!(!held.is_empty() && *held == authorities, "it holds {} authorities, not the same", held.len());
    let listed = here.spire.cli(&["bundle", "list"]).await?;
    ensure!(listed.contains(&name), "`spire-server bundle list`: {listed}");
    Ok(())
}

/// What the first scenario left is gone: `reset` is what lets scenarios share domains.
#[test]
fn trust_domains_can_be_shared_by_scenarios() {
    with_pair(async |pair| {
        pair.east.federate_by_hand(&pair.west).await?;
        eventually("SPIRE holds it", SOON, || holds_bundle_of(&pair.east, &pair.west)).await?;
        pair.reset().await?;
        ensure!(pair.east.spire.relationships().await?.is_empty());
        ensure!(pair.east.spire.federated_bundles().await?.is_empty());
        let entries = pair.east.spire.entries().await?;
        ensure!(entries.contains_key(&pair.east.agent_id()), "{:?}", entries.keys());
        Ok(())
    });
}

/// Owned objects go with their owner, custom resources too: the real garbage collector runs.
#[test]
fn garbage_collection_deletes_what_is_owned() {
    with_pair(async |pair| {
        let kubernetes = &pair.east.kubernetes;
        let owner = kubernetes
            .apply_yaml(
                "{apiVersion: v1, kind: ConfigMap, metadata: {name: owner, namespace: entente-system}}",
            )
            .await?;
        let uid = owner.first().and_then(|owner| owner.metadata.uid.clone()).context("no uid")?;
        kubernetes
            .apply(&serde_json::json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": "ServiceEntry",
                "metadata": {
                    "name": "owned",
                    "namespace": "entente-system",
                    "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}],
                },
                "spec": {"hosts": ["cart.shop.west.example"], "ports": [{"number": 80, "name": "http"}]},
            }))
            .await?;
        let owners = kubernetes.api("v1", "ConfigMap", Some("entente-system")).await?;
        let owned = kubernetes.api("networking.istio.io/v1", "ServiceEntry", Some("entente-system")).await?;
        owners.delete("owner", &DeleteParams::background()).await?;
        eventually("the owned object is gone", SOON, || async {
            match owned.list(&ListParams::default()).await?.items.len() {
                0 => Ok(()),
                left => bail!("{left} left"),
            }
        })
        .await
    });
}

/// Every program ends and starts again on the same data: the authorities, the objects and the identities are the same.
#[test]
fn programs_start_again_on_their_data() {
    with_pair(async |pair| {
        let east = &mut pair.east;
        let authorities = east.spire.own_bundle().await?.x509_authorities;
        let id = east.register_test_process("cart", "/ns/shop/sa/cart", &[], &[]).await?;
        for part in
            [Part::SpireServer, Part::SpireAgent, Part::SpireControllerManager, Part::ApiServer, Part::Etcd]
        {
            east.kill(part).await?;
            east.restart(part).await.with_context(|| format!("{part:?}"))?;
        }
        ensure!(east.spire.own_bundle().await?.x509_authorities == authorities);
        eventually("the workload has its SVID", SOON, || async {
            let response = east.spire.workload().await?;
            ensure!(response.svids.iter().any(|svid| svid.spiffe_id == id));
            Ok(())
        })
        .await
    });
}

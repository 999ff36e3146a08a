//! The end of a relationship, in the order in which no workload loses its SVID.

use super::services::exported;
use super::{
    CFTD, IMPORTED, PEER, SERVICE_ENTRY, SOON, STATIC_ENTRY, condition, delete, federated, federates, found,
    gone, merge, object, peer_says,
};
use crate::pair::with_pair;
use crate::wait::{always, eventually};
use crate::world::{AGENT_REGISTRATION, Domain};
use anyhow::{Context, Result, bail, ensure};
use kube::api::ListParams;
use serde_json::json;
use std::time::Duration;

/// Deleting the TrustDomainPeer in east: the other side names it, `federatesWith` goes before the relationship and the
/// bundle last, and nothing of it is left; created again it federates again.
#[test]
fn a_relationship_ends_in_the_safe_order() {
    with_pair(async |pair| {
        let mut agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        let frontend = east
            .register_test_process("frontend", "/ns/web/sa/frontend", &[("federate", "true")], &[])
            .await?;
        eventually("the frontend federates", SOON, || async {
            ensure!(federates(east, &frontend, west).await?);
            Ok(())
        })
        .await?;
        exported(east, west).await?;
        let again = super::peer(west).await?;
        let logged = east.spire.server.log().len();

        delete(east, PEER, None, "west.example").await?;
        let steps = watch_the_end(east, &frontend, west).await?;
        ensure!(steps.is_sorted(), "the order was {steps:?}");
        ensure!(steps.last() == Some(&Step::BundleGone), "{steps:?}");
        nothing_left(east).await?;
        let message = peer_says(west, east, "Reciprocal", "False", "PeerEnded").await?;
        ensure!(message.contains("ended the relationship"), "{message}");
        let log = east.spire.server.log().split_off(logged);
        ensure!(
            !log.contains("unable to find federated bundle"),
            "an entry federated with a bundle that was gone"
        );

        east.kubernetes.apply(&again).await?;
        super::both_ready(pair).await?;
        ensure!(agents.east.stop().await? == 0);
        Ok(())
    });
}

/// What is still there, in the order in which it has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    WorkloadFederates,
    AgentFederates,
    Related,
    BundleHeld,
    BundleGone,
}

/// Looks at SPIRE until it holds no bundle of `there`; what was seen, each step once. SPIRE is read from what goes last
/// to what goes first, so that a change between two reads never looks like the wrong order.
async fn watch_the_end(here: &Domain, workload: &str, there: &Domain) -> Result<Vec<Step>> {
    let name = there.trust_domain().to_string();
    let mut steps = Vec::new();
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let bundle = here.spire.federated_bundles().await?.contains_key(&name);
        let related = here.spire.relationships().await?.contains_key(&name);
        let agent = federates(here, &here.agent_id(), there).await?;
        let workload = federates(here, workload, there).await?;
        ensure!(bundle || !(agent || workload), "an entry federates, and the bundle is gone: {steps:?}");
        ensure!(related || bundle || !agent, "{steps:?}");
        let step = match (workload, agent, related, bundle) {
            (true, ..) => Step::WorkloadFederates,
            (_, true, ..) => Step::AgentFederates,
            (_, _, true, _) => Step::Related,
            (.., true) => Step::BundleHeld,
            _ => Step::BundleGone,
        };
        if steps.last() != Some(&step) {
            steps.push(step);
        }
        if step == Step::BundleGone {
            return Ok(steps);
        }
        if tokio::time::Instant::now() > deadline {
            let peer = object(here, PEER, None, &name).await?;
            bail!("after {steps:?} it goes no further: {:?}", peer.map(|peer| peer.data["status"].clone()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn nothing_left(east: &Domain) -> Result<()> {
    gone(east, PEER, None, "west.example").await?;
    gone(east, CFTD, None, "west.example").await?;
    eventually("nothing generated is left", SOON, || async {
        for kind in [IMPORTED, SERVICE_ENTRY] {
            let left = east.kubernetes.api(kind.0, kind.1, None).await?.list(&ListParams::default()).await?;
            ensure!(left.items.is_empty(), "{} {}", left.items.len(), kind.1);
        }
        Ok(())
    })
    .await?;
    ensure!(east.spire.federated_bundles().await?.is_empty(), "SPIRE holds a bundle");
    ensure!(east.spire.relationships().await?.is_empty(), "SPIRE has a relationship");
    let entries = east.spire.entries().await?;
    ensure!(entries.values().all(|entry| entry.federates_with.is_empty()), "an entry federates");
    let registration = found(east, STATIC_ENTRY, None, AGENT_REGISTRATION).await?;
    let annotations = registration.metadata.annotations.unwrap_or_default();
    ensure!(!annotations.keys().any(|key| key.starts_with("entente.dev/")), "{annotations:?}");
    Ok(())
}

/// An entry that federates and that the agent did not make holds the bundle back and is named, and the finalizer holds
/// the TrustDomainPeer; the entry changed by its owner, the end goes on.
#[test]
fn an_entry_of_someone_else_holds_the_bundle_back() {
    with_pair(async |pair| {
        let _agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        let id = east.register_test_process("theirs", "/ns/web/sa/theirs", &[], &["west.example"]).await?;
        eventually("their entry federates", SOON, || async {
            ensure!(federates(east, &id, west).await?);
            Ok(())
        })
        .await?;
        delete(east, PEER, None, "west.example").await?;
        eventually("the condition names the entry", SOON, || async {
            let peer = found(east, PEER, None, "west.example").await?;
            let (status, reason, message) = condition(&peer, "Ready")?;
            ensure!(
                status == "False" && reason == "EndingHeldBack" && message.contains(&id),
                "{reason}: {message}"
            );
            Ok(())
        })
        .await?;
        let held_back = || async {
            let peer = found(east, PEER, None, "west.example").await?;
            ensure!(peer.metadata.finalizers.is_some_and(|it| it == ["entente.dev/relationship"]));
            ensure!(east.spire.federated_bundles().await?.contains_key("west.example"), "the bundle is gone");
            ensure!(federates(east, &id, west).await?, "their entry was edited");
            Ok(())
        };
        always("the bundle is held back", Duration::from_secs(4), held_back).await?;
        let none = json!({"spec": {"federatesWith": null}});
        merge(east, STATIC_ENTRY, None, "theirs", none).await?;
        gone(east, PEER, None, "west.example").await?;
        ensure!(east.spire.federated_bundles().await?.is_empty(), "SPIRE holds a bundle");
        east.spire
            .workload()
            .await?
            .svids
            .iter()
            .find(|svid| svid.spiffe_id == id)
            .context("the SVID is lost")?;
        Ok(())
    });
}

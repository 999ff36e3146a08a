//! Inviting and joining on real SPIRE, and the adoption of what was made by hand.

use super::{
    Agents, CFTD, PEER, SOON, STATIC_ENTRY, both_ready, delete, federates, found, gone, merge, object,
    peer_says, spire_holds,
};
use crate::pair::{Pair, with_pair};
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use entente::enrol::Invites;
use entente::enrol::token::Secret;
use entente::model::{BundleDigest, TrustDomain};
use entente::store::{KubernetesStore, Store};
use serde_json::{Value, json};
use std::time::Duration;

/// Two commands take two domains that know nothing of each other to Reciprocal=True on both sides.
#[test]
fn an_invite_and_a_join_make_two_domains_peers() {
    with_pair(async |pair| {
        let agents = Agents::start(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        let (east_at, west_at) = (east.agent_address().to_string(), west.agent_address().to_string());
        let (east_url, west_url) = (east.bundle_endpoint_url(), west.bundle_endpoint_url());
        let invite = [
            "invite",
            "--trust-domain",
            "west.example",
            "--advertise",
            &east_at,
            "--bundle-endpoint-url",
            &east_url,
        ];
        let (code, token, said) = agents.east.command(&invite).await?;
        ensure!(code == 0 && token.lines().count() == 1, "invite: {said}");
        let token = token.trim();
        let secret = east.kubernetes.api("v1", "Secret", Some(AGENT_NAMESPACE)).await?;
        let kept = serde_json::to_string(&secret.get("entente-invites").await?)?;
        ensure!(!kept.contains(token) && kept.contains("entente.dev/instance"), "{kept}");

        let join = ["join", token, "--advertise", &west_at, "--bundle-endpoint-url", &west_url];
        let dry_run = [join.as_slice(), &["--dry-run"]].concat();
        let (code, would, said) = agents.west.command(&dry_run).await?;
        ensure!(code == 0 && would.contains("kind: TrustDomainPeer"), "join --dry-run: {said}");
        for (here, there) in [(east, west), (west, east)] {
            ensure!(
                object(here, PEER, None, there.trust_domain().as_str()).await?.is_none(),
                "a dry run wrote"
            );
        }
        let (code, _, said) = agents.west.command(&join).await?;
        ensure!(code == 0, "join: {said}");
        both_ready(pair).await?;
        for (here, there) in [(east, west), (west, east)] {
            spire_holds(here, there).await?;
            let relationship = found(here, CFTD, None, there.trust_domain().as_str()).await?;
            ensure!(relationship.data["spec"]["bundleEndpointURL"] == there.bundle_endpoint_url());
            ensure!(federates(here, &here.agent_id(), there).await?, "the agent's entry does not federate");
        }
        let (code, left, said) = agents.east.command(&["invite", "list", "-o", "json"]).await?;
        ensure!(code == 0 && left.trim() == "[]", "an invite is left: {left} {said}");
        let (code, _, said) = agents.west.command(&join).await?;
        ensure!(code == 1 && said.contains("there already"), "a second join: {said}");
        drop(agents);
        secret.delete("entente-invites", &kube::api::DeleteParams::default()).await?;
        Ok(())
    });
}

/// A relationship by hand, under our name in west and another one in east, with registrations that name it, is adopted
/// while workloads use it: SPIRE has relationship, bundle and entry at every moment; and the end takes all of it away.
#[test]
fn what_was_made_by_hand_is_adopted_and_nothing_flaps() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        by_hand(east, west, "the-west").await?;
        by_hand(west, east, "east.example").await?;
        spire_holds(east, west).await?;
        spire_holds(west, east).await?;
        let cart = east.register_test_process("cart", "/ns/shop/sa/cart", &[], &["west.example"]).await?;
        let agents = Agents::start(pair).await?;
        let logged = [east, west].map(|domain| domain.spire.controller_manager.log().len());
        let stop = tokio_util::sync::CancellationToken::new();
        let watching = watch(pair, &cart, &stop);
        let adopting = async {
            let _ended = stop.clone().drop_guard();
            adopt_both(pair).await
        };
        let (watched, adopted) = tokio::join!(watching, adopting);
        let looks = adopted.and(watched)?;
        ensure!(looks > 20, "only {looks} looks");
        // What is gone for less than a look is in its maker's log.
        for (domain, before) in [east, west].into_iter().zip(logged) {
            let log = domain.spire.controller_manager.log().split_off(before);
            let changed = log.lines().find(|line| line.contains("d federation relationship"));
            ensure!(changed.is_none(), "the relationship was changed: {changed:?}");
        }

        // The end takes the names out that were recorded, and so the bundle goes too.
        delete(east, PEER, None, "west.example").await?;
        gone(east, PEER, None, "west.example").await?;
        ensure!(!east.spire.federated_bundles().await?.contains_key("west.example"), "the bundle is left");
        ensure!(!federates(east, &cart, west).await?, "the entry still federates");
        drop(agents);
        delete(east, STATIC_ENTRY, None, "cart").await?;
        Ok(())
    });
}

/// Two replicas that look at one API server: an invite is used by one of them, and every try is counted once.
#[test]
fn an_invite_is_used_by_one_of_two_replicas() {
    with_pair(async |pair| {
        let kubeconfig = pair.east.kubernetes.agent_kubeconfig();
        let mut replicas = Vec::new();
        for name in ["one", "two"] {
            let client = crate::kubernetes::client_of(&kubeconfig).await?;
            let store = Store::Kubernetes(KubernetesStore::new(client, AGENT_NAMESPACE, name));
            replicas.push(Invites::new(store, AGENT_NAMESPACE, "entente"));
        }
        let (now, hour) = (entente::clock::now(), Duration::from_secs(3600));
        let digest = BundleDigest::from_bytes(&[7; 32]).context("no digest")?;
        let west = TrustDomain::new("west.example")?;
        for round in 0..5 {
            let (id, secret, _) = replicas[0].create(&west, digest, hour, now).await?;
            for replica in &replicas {
                ensure!(replica.show(id, &Secret::random(), now).await?.is_none());
            }
            ensure!(replicas[1].list(now).await?[&id].tries_left == 3, "round {round}: the tries");
            let shown = replicas[1].show(id, &secret, now).await?.context("the right secret")?;
            let burns = (0..6).map(|n| replicas[n % 2].burn(&shown, now));
            let burnt = futures::future::try_join_all(burns).await?;
            ensure!(burnt.iter().filter(|burnt| **burnt).count() == 1, "round {round}: {burnt:?}");
            // the next round begins with an object that holds none
            ensure!(replicas[0].list(now).await?.is_empty(), "round {round}: one is left");
        }
        let secrets = pair.east.kubernetes.api("v1", "Secret", Some(AGENT_NAMESPACE)).await?;
        secrets.delete("entente-invites", &kube::api::DeleteParams::default()).await?;
        Ok(())
    });
}

/// As an operator does it, with a name of his choice.
async fn by_hand(here: &Domain, there: &Domain, name: &str) -> Result<()> {
    let relationship = json!({
        "apiVersion": CFTD.0,
        "kind": CFTD.1,
        "metadata": {"name": name},
        "spec": {
            "trustDomain": there.trust_domain().to_string(),
            "bundleEndpointURL": there.bundle_endpoint_url(),
            "bundleEndpointProfile": {"type": "https_spiffe", "endpointSPIFFEID": there.spire.bundle_endpoint_id()},
            "trustDomainBundle": there.spire.bundle_document().await?,
        },
    });
    here.kubernetes.apply(&relationship).await?;
    Ok(())
}

/// `entente adopt` in one domain; its standard output.
async fn adopt(here: &Domain, there: &Domain, more: &[&str]) -> Result<String> {
    let (name, address) = (there.trust_domain().to_string(), there.agent_address().to_string());
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
    command.args(["adopt", &name, "--agent-address", &address]).args(more);
    command.env("KUBECONFIG", here.kubernetes.agent_kubeconfig()).kill_on_drop(true);
    let output = command.output().await?;
    let (out, said) =
        (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    ensure!(output.status.success(), "adopt: {said}");
    Ok(format!("{out}{said}"))
}

async fn adopt_both(pair: &Pair) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    let before = version(east, "the-west").await?;
    let would = adopt(east, west, &["--dry-run"]).await?;
    ensure!(would.contains("would record ClusterStaticEntry cart"), "{would}");
    ensure!(would.contains("the-west") && would.contains("matchLabels"), "{would}");
    ensure!(version(east, "the-west").await? == before, "a dry run wrote");
    ensure!(object(east, PEER, None, "west.example").await?.is_none(), "a dry run wrote");
    tokio::select! {
        adopted = adopt(east, west, &[]) => drop(adopted?),
        failed = write_again_and_again(east) => failed?,
    }
    adopt(west, east, &[]).await?;
    both_ready(pair).await?;
    gone(east, CFTD, None, "the-west").await?;
    for (here, there) in [(east, west), (west, east)] {
        let name = there.trust_domain().to_string();
        let ours = found(here, CFTD, None, &name).await?;
        ensure!(ours.metadata.labels.context("no labels")?.contains_key("entente.dev/instance"), "not ours");
        peer_says(here, there, "BundleDistributed", "True", "Distributed").await?;
    }
    eventually("there is nothing more to adopt", SOON, || async {
        let again = adopt(east, west, &[]).await?;
        ensure!(again.contains("nothing to do"), "{again}");
        Ok(())
    })
    .await?;
    // Long enough for spire-controller-manager to look at everything once more (every 10 s).
    tokio::time::sleep(Duration::from_secs(12)).await;
    Ok(())
}

/// Changes the entry that is handed over, as spire-controller-manager does with its status whenever it likes.
async fn write_again_and_again(here: &Domain) -> Result<()> {
    for turn in 0.. {
        let touched = json!({"metadata": {"annotations": {"another.example/turn": turn.to_string()}}});
        merge(here, STATIC_ENTRY, None, "cart", touched).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

async fn version(here: &Domain, name: &str) -> Result<Value> {
    Ok(json!(found(here, CFTD, None, name).await?.metadata.resource_version))
}

/// Looks at both SPIRE servers every 0.2 s until told to stop: what must always be there. How often it looked.
async fn watch(pair: &Pair, cart: &str, stop: &tokio_util::sync::CancellationToken) -> Result<u32> {
    let mut looks = 0;
    while !stop.is_cancelled() {
        for (here, there) in [(&pair.east, &pair.west), (&pair.west, &pair.east)] {
            let name = there.trust_domain().to_string();
            let related = here.spire.relationships().await?;
            ensure!(related.contains_key(&name), "look {looks}: no relationship with {name}");
            let bundles = here.spire.federated_bundles().await?;
            let bundle = bundles.get(&name).with_context(|| format!("look {looks}: no bundle of {name}"))?;
            ensure!(!bundle.x509_authorities.is_empty(), "look {looks}: an empty bundle of {name}");
        }
        ensure!(federates(&pair.east, cart, &pair.west).await?, "look {looks}: the entry does not federate");
        looks += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(looks)
}

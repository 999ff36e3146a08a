//! `entente diagnose` on real SPIRE and spire-controller-manager: one thing is broken at a time, and the command names
//! that link, its side, and a remedy that names the thing. A healthy pair raises nothing.

use super::{Agents, CFTD, PEER, STATIC_ENTRY, both_ready, delete, federated, merge, peer, quick, with};
use crate::agent::Agent;
use crate::pair::{Pair, with_pair};
use crate::relay::{Network, Relay};
use crate::wait::eventually;
use crate::world::{AGENT_REGISTRATION, Part};
use anyhow::{Context, Result, ensure};
use entente::proto::spire::server::bundle::v1::BatchDeleteFederatedBundleRequest;
use entente::proto::spire::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use entente::proto::spire::server::bundle::v1::bundle_client::BundleClient;
use entente::proto::spire::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use entente::proto::spire::server::trustdomain::v1::{
    BatchDeleteFederationRelationshipRequest, BatchUpdateFederationRelationshipRequest,
};
use serde_json::{Value, json};
use std::time::Duration;

const EAST: &str = "east.example";
const WEST: &str = "west.example";
/// A command looks for some ten seconds at what is in motion, and first the fault must have its effect.
const NAMED: Duration = Duration::from_secs(90);

pub(super) async fn diagnose(agent: &Agent, arguments: &[&str]) -> Result<(i32, Value)> {
    let arguments = [&["diagnose", "-o", "json"], arguments].concat();
    let (code, stdout, stderr) = agent.command(&arguments).await?;
    let printed = serde_json::from_str(&stdout).with_context(|| format!("{code}: {stdout}{stderr}"))?;
    Ok((code, printed))
}

/// Waits until the command names this link, on this side, with a remedy that says this.
async fn names(agent: &Agent, peer: &str, step: &str, side: &str, remedy: &str) -> Result<()> {
    eventually(&format!("{step} on side {side} is named about {peer}"), NAMED, || async {
        let (code, printed) = diagnose(agent, &[peer]).await?;
        let broken = &printed["broken"];
        let is = (code, broken["step"].as_str(), broken["side"].as_str());
        ensure!(is == (1, Some(step), Some(side)), "{is:?}\n{printed:#}");
        let says = broken["remedy"].as_str().unwrap_or_default();
        ensure!(says.contains(remedy), "the remedy does not say {remedy:?}: {says}");
        Ok(())
    })
    .await
}

/// Both sides say that all is well, and so does the command.
async fn is_well(pair: &Pair, agents: &Agents) -> Result<()> {
    both_ready(pair).await?;
    for (agent, peer) in [(&agents.east, WEST), (&agents.west, EAST)] {
        eventually(&format!("the path to {peer} is well"), NAMED, || async {
            let (code, printed) = diagnose(agent, &[peer]).await?;
            ensure!(code == 0, "{code}\n{printed:#}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Ten times from each side: exit code 0, and no step that failed, here or at the peer.
#[test]
fn a_healthy_pair_raises_nothing_twenty_times() {
    with_pair(async |pair| {
        let agents = federated(pair).await?;
        let mut prepared = String::new();
        for turn in 0..10 {
            // A rotation in between is nothing that is wrong.
            match turn {
                3 => prepared = pair.west.spire.prepare_authority().await?,
                7 => pair.west.spire.activate_authority(&prepared).await?,
                _ => {}
            }
            for (agent, peer) in [(&agents.east, WEST), (&agents.west, EAST)] {
                let (code, printed) = diagnose(agent, &[peer]).await?;
                ensure!(code == 0 && printed["verdict"] == "healthy", "turn {turn}: {code}\n{printed:#}");
                let told = printed["told"].as_array().context("the peer told nothing")?;
                let all = printed["checks"].as_array().context("no checks")?.iter().chain(told);
                let failed: Vec<&Value> = all.filter(|check| check["outcome"] == "failed").collect();
                ensure!(failed.is_empty(), "turn {turn}: {failed:?}");
            }
        }
        let (code, text, _) = agents.east.command(&["diagnose", WEST]).await?;
        ensure!(code == 0 && text.contains("The path to west.example is well."), "{code}: {text}");
        a_replica_that_does_not_lead(pair).await
    });
}

/// It has no exchange with peers: it says so, and who is to be asked.
async fn a_replica_that_does_not_lead(pair: &Pair) -> Result<()> {
    let mut options = quick();
    options.name = "second".to_owned();
    options.listen = Some(crate::ports::free()?);
    options.admin_listen = Some(crate::ports::free()?);
    options.args.push("--replica=second".to_owned());
    let second = Agent::start(&pair.east, options)?;
    eventually("the second replica says that it does not lead", NAMED, || async {
        let (code, text, stderr) = second.command(&["diagnose", WEST]).await?;
        let is_said =
            text.contains("the Lease entente-leader in entente-system") && text.contains("does not lead");
        ensure!(code == 3 && is_said && !text.contains("FAIL"), "{code}: {text}{stderr}");
        Ok(())
    })
    .await
}

/// What is broken in our own SPIRE, and what the peer says of it.
#[test]
fn each_link_of_our_own_spire_is_named_and_heals() {
    with_pair(async |pair| {
        let agents = federated(pair).await?;
        another_url_by_hand(pair, &agents).await.context("another URL by hand")?;
        no_relationship(pair, &agents).await.context("no relationship")?;
        no_bundle(pair, &agents).await.context("no bundle")?;
        a_contested_registration(pair, &agents).await.context("a contested registration")?;
        nothing_selected(pair, &agents).await.context("nothing selected")?;
        no_registration(pair, &agents).await.context("no registration")?;
        no_server(pair, &agents).await.context("no server")?;
        no_agent(pair, &agents).await.context("no agent")
    });
}

async fn another_url_by_hand(pair: &mut Pair, agents: &Agents) -> Result<()> {
    pair.east.stop(Part::SpireControllerManager).await?;
    let mut found = pair.east.spire.relationships().await?;
    let mut relationship = found.remove(WEST).context("no relationship")?;
    relationship.bundle_endpoint_url = "https://127.0.0.1:1/".to_owned();
    relationship.trust_domain_bundle = None;
    let request = BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![relationship],
        ..Default::default()
    };
    TrustDomainClient::new(pair.east.spire.api()).batch_update_federation_relationship(request).await?;
    names(
        &agents.east,
        WEST,
        "relationship",
        "ours",
        "spire-server federation show -trustDomain west.example",
    )
    .await?;
    pair.east.restart(Part::SpireControllerManager).await?;
    is_well(pair, agents).await
}

async fn no_relationship(pair: &mut Pair, agents: &Agents) -> Result<()> {
    pair.east.stop(Part::SpireControllerManager).await?;
    let request = BatchDeleteFederationRelationshipRequest { trust_domains: vec![WEST.to_owned()] };
    TrustDomainClient::new(pair.east.spire.api()).batch_delete_federation_relationship(request).await?;
    names(&agents.east, WEST, "relationship", "ours", "spire-controller-manager runs").await?;
    // The peer has it from our own word.
    names(&agents.west, EAST, "relationship", "theirs", "spire-controller-manager").await?;
    pair.east.restart(Part::SpireControllerManager).await?;
    is_well(pair, agents).await
}

/// Someone deletes the bundle again and again; the agent gives it back each time.
async fn no_bundle(pair: &Pair, agents: &Agents) -> Result<()> {
    let mut client = BundleClient::new(pair.east.spire.api());
    let deleting = tokio::spawn(async move {
        loop {
            let trust_domains = vec![WEST.to_owned()];
            let request = BatchDeleteFederatedBundleRequest { trust_domains, mode: Mode::Dissociate.into() };
            let _ = client.batch_delete_federated_bundle(request).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let named =
        names(&agents.east, WEST, "bundle-in-spire", "ours", "federation refresh -id spiffe://west.example")
            .await;
    deleting.abort();
    named?;
    is_well(pair, agents).await
}

/// Someone takes the peer out of the agent's own registration: the agent does not fight, and diagnose says where.
async fn a_contested_registration(pair: &Pair, agents: &Agents) -> Result<()> {
    let names_west = |list: Value| json!({"spec": {"federatesWith": list}});
    merge(&pair.east, STATIC_ENTRY, None, AGENT_REGISTRATION, names_west(json!([]))).await?;
    names(&agents.east, WEST, "agent-registration", "ours", "spec.federatesWith of ClusterStaticEntry")
        .await?;
    merge(&pair.east, STATIC_ENTRY, None, AGENT_REGISTRATION, names_west(json!([WEST]))).await?;
    is_well(pair, agents).await
}

/// There is a workload, and the selector selects none.
async fn nothing_selected(pair: &Pair, agents: &Agents) -> Result<()> {
    pair.east.register_test_process("frontend", "/ns/web/sa/frontend", &[("federate", "no")], &[]).await?;
    names(&agents.east, WEST, "workload-registrations", "ours", "spec.federatesWith of TrustDomainPeer")
        .await?;
    let labelled = json!({"metadata": {"labels": {"federate": "true"}}});
    merge(&pair.east, STATIC_ENTRY, None, "frontend", labelled).await?;
    is_well(pair, agents).await
}

async fn no_registration(pair: &Pair, agents: &Agents) -> Result<()> {
    delete(&pair.east, STATIC_ENTRY, None, AGENT_REGISTRATION).await?;
    names(&agents.east, WEST, "own-svid", "ours", "entente.dev/agent").await?;
    pair.east.register_agent().await?;
    is_well(pair, agents).await
}

async fn no_server(pair: &mut Pair, agents: &Agents) -> Result<()> {
    pair.east.stop(Part::SpireServer).await?;
    names(&agents.east, WEST, "spire-server", "ours", "spire-server healthcheck").await?;
    pair.east.restart(Part::SpireServer).await?;
    is_well(pair, agents).await
}

async fn no_agent(pair: &mut Pair, agents: &Agents) -> Result<()> {
    pair.east.stop(Part::SpireAgent).await?;
    names(&agents.east, WEST, "workload-api", "ours", "spire-agent healthcheck").await?;
    names(&agents.west, EAST, "workload-api", "theirs", "says").await?;
    pair.east.restart(Part::SpireAgent).await?;
    is_well(pair, agents).await
}

/// What is wrong between the two, or on the peer's side.
#[test]
fn each_link_to_the_peer_is_named_and_heals() {
    with_pair(async |pair| {
        let agents = federated(pair).await?;
        the_endpoint(pair, &agents).await.context("the endpoint")?;
        the_agent(pair, &agents).await.context("the agent")?;
        pair.west.stop(Part::SpireServer).await?;
        // Its endpoint is the server's, too: that is what we see first, and its agent tells the rest.
        names(&agents.east, WEST, "endpoint-tcp", "theirs", "have the operator of west.example start it")
            .await?;
        pair.west.restart(Part::SpireServer).await?;
        is_well(pair, &agents).await
    });
}

async fn the_endpoint(pair: &Pair, agents: &Agents) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    let whole = peer(west).await?;
    let url = "/spec/bundleEndpoint/url";
    let profile = "/spec/bundleEndpoint/profile";
    for (edited, step, side, remedy) in [
        (
            with(whole.clone(), url, json!("https://nowhere.invalid/"))?,
            "endpoint-dns",
            "ours",
            "spec.bundleEndpoint.url",
        ),
        (
            with(whole.clone(), url, json!("https://127.0.0.1:1/"))?,
            "endpoint-tcp",
            "theirs",
            "spec.bundleEndpoint.url",
        ),
        (
            with(whole.clone(), url, json!(format!("{}x", west.bundle_endpoint_url())))?,
            "endpoint-http",
            "theirs",
            "spec.bundleEndpoint.url",
        ),
        (
            with(
                whole.clone(),
                profile,
                json!({"type": "https_spiffe", "endpointSPIFFEID": "spiffe://west.example/other"}),
            )?,
            "endpoint-tls",
            "ours",
            "endpointSPIFFEID",
        ),
    ] {
        east.kubernetes.apply(&edited).await?;
        names(&agents.east, WEST, step, side, remedy).await?;
    }
    let web =
        json!({"spec": {"bundleEndpoint": {"profile": {"type": "https_web", "endpointSPIFFEID": null}}}});
    merge(east, PEER, None, WEST, web).await?;
    names(&agents.east, WEST, "endpoint-tls", "ours", "https_spiffe").await?;
    east.kubernetes.apply(&whole).await?;
    is_well(pair, agents).await?;

    let relay = Relay::start(west.spire.bundle_endpoint()).await?;
    let through = with(whole.clone(), url, json!(format!("https://{}/", relay.address())))?;
    east.kubernetes.apply(&through).await?;
    is_well(pair, agents).await?;
    relay.set(Network::Silent);
    names(&agents.east, WEST, "endpoint-tls", "theirs", "what answers there").await?;
    east.kubernetes.apply(&whole).await?;
    is_well(pair, agents).await
}

async fn the_agent(pair: &Pair, agents: &Agents) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    let accepts = |id: &str| json!({"spec": {"agent": {"spiffeIDs": [id]}}});
    merge(west, PEER, None, EAST, accepts("spiffe://east.example/other")).await?;
    names(&agents.east, WEST, "agent-mtls", "theirs", &east.agent_id()).await?;
    names(&agents.west, EAST, "agent-mtls", "ours", "spec.agent.spiffeIDs").await?;
    merge(west, PEER, None, EAST, accepts(&east.agent_id())).await?;
    is_well(pair, agents).await?;

    merge(west, PEER, None, EAST, json!({"spec": {"suspend": true}})).await?;
    names(&agents.east, WEST, "session", "theirs", "spec.suspend").await?;
    names(&agents.west, EAST, "peer-object", "ours", "unset spec.suspend").await?;
    merge(west, PEER, None, EAST, json!({"spec": {"suspend": false}})).await?;
    is_well(pair, agents).await
}

/// An object that stands in the way of the relationship, and a peer that does not know us.
#[test]
fn what_keeps_a_relationship_from_being_made_is_named() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        east.federate_by_hand(west).await?;
        let agents = Agents::start(pair).await?;
        east.kubernetes.apply(&peer(west).await?).await?;
        names(&agents.east, WEST, "relationship", "ours", "ClusterFederatedTrustDomain west.example").await?;
        delete(east, CFTD, None, WEST).await?;
        names(&agents.east, WEST, "agent-mtls", "theirs", "needs a TrustDomainPeer for east.example").await?;
        west.kubernetes.apply(&peer(east).await?).await?;
        is_well(pair, &agents).await
    });
}

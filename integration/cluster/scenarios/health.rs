//! What an operator sees of a peer's bundle, and what workloads are spared of it, on real SPIRE.

use super::{
    Agents, PEER, SOON, STATIC_ENTRY, both_ready, federates, found, merge, of_peer, peer, peer_says,
    spire_holds, with,
};
use crate::bundle_server::BundleServer;
use crate::pair::{Pair, with_pair};
use crate::relay::{Network, Relay};
use crate::wait::{always, eventually};
use crate::world::Domain;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

const FRONTEND: &str = "spiffe://east.example/ns/web/sa/frontend";
const WEST: &str = "west.example";
const CALM: Duration = Duration::from_secs(3);

/// Both sides, federated, with a server of the test's own as west's bundle endpoint, and a selected workload in east.
async fn federated_by_a_server(pair: &Pair) -> Result<(Agents, BundleServer)> {
    let agents = Agents::start(pair).await?;
    let (east, west) = (&pair.east, &pair.west);
    let server = BundleServer::start(west).await?;
    east.register_test_process("frontend", "/ns/web/sa/frontend", &[("federate", "true")], &[]).await?;
    let endpoint = json!({
        "url": server.url(),
        "profile": {"type": "https_spiffe", "endpointSPIFFEID": server.id()},
    });
    east.kubernetes.apply(&with(peer(west).await?, "/spec/bundleEndpoint", endpoint)?).await?;
    west.kubernetes.apply(&peer(east).await?).await?;
    both_ready(pair).await?;
    frontend_federates(east, west, true).await?;
    Ok((agents, server))
}

async fn frontend_federates(east: &Domain, west: &Domain, wanted: bool) -> Result<()> {
    eventually(&format!("the frontend federates: {wanted}"), SOON, || async {
        ensure!(federates(east, FRONTEND, west).await? == wanted);
        Ok(())
    })
    .await
}

/// The document a change later, with these keys before its own.
fn with_keys(document: &str, later: u64, keys: impl IntoIterator<Item = Value>) -> Result<String> {
    let mut document: Value = serde_json::from_str(document)?;
    let own = document["keys"].as_array().context("no keys")?.clone();
    document["keys"] = keys.into_iter().chain(own).collect();
    let sequence = document["spiffe_sequence"].as_u64().unwrap_or_default();
    document["spiffe_sequence"] = json!(sequence + later);
    Ok(document.to_string())
}

/// A bundle that real SPIRE refuses for one key of it is given to SPIRE without that key, and nobody is suspended; one with
/// an authority of ours suspends; the user can hold a peer withdrawn; and the history has all of it.
#[test]
fn bundles_are_judged_before_workloads_have_them() {
    with_pair(async |pair| {
        let (agents, server) = federated_by_a_server(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        refused_by_spire(east, west, &server).await.context("a document that SPIRE refuses")?;
        shared_with_us(east, west, &server).await.context("an authority of ours")?;
        withdrawn(east, west).await.context("a peer that is withdrawn")?;
        both_ready(pair).await?;

        let (code, said, error) = agents.east.command(&["peer", "history", WEST, "-o", "json"]).await?;
        ensure!(code == 0, "{said}{error}");
        let history: Value = serde_json::from_str(&said)?;
        let trail = history["audit"].as_array().context("no audit")?;
        ensure!(trail.len() >= 4, "{history:#}");
        let (first, second) = (&trail[trail.len() - 1], &trail[trail.len() - 2]);
        let mut witnesses = first["confirmedBy"].as_array().context("nobody confirmed it")?.iter();
        let all = ["BundleEndpoint", "Bootstrap", "Spire", "Peer"];
        ensure!(witnesses.by_ref().eq(all.iter().copied()), "{first}");
        ensure!(second["added"].as_array().map(Vec::len) == Some(1), "{second}");
        let (code, table, _) = agents.east.command(&["peer", "history", WEST]).await?;
        ensure!(code == 0 && table.contains("CONFIRMED BY") && table.contains("SPIRE"), "{table}");
        let (code, _, error) = agents.east.command(&["peer", "history", "nowhere.example"]).await?;
        ensure!(code == 1 && error.contains("no TrustDomainPeer"), "{error}");
        Ok(())
    });
}

async fn refused_by_spire(east: &Domain, west: &Domain, server: &BundleServer) -> Result<()> {
    let prepared = west.spire.prepare_authority().await?;
    let whole = west.spire.bundle_document().await?;
    let strange = json!({"kty": "EC", "use": "code-signing", "crv": "P-256",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"});
    server.serve(with_keys(&whole, 1, [strange])?);
    let refused = east.spire.refresh(WEST).await;
    let refused = format!("{:?}", refused.err().context("SPIRE took the document")?);
    ensure!(refused.contains("unrecognized use"), "{refused}");
    spire_holds(east, west).await.with_context(|| format!("with the authority {prepared}"))?;
    let said = peer_says(east, west, "BundleEndpointHealthy", "False", "RefusedBySpire").await?;
    ensure!(said.contains("keys[0]: unknown use \"code-signing\""), "{said}");
    peer_says(east, west, "BundleDistributed", "True", "Distributed").await?;
    ensure!(federates(east, FRONTEND, west).await?, "it was suspended");
    server.serve(with_keys(&whole, 2, [])?);
    peer_says(east, west, "BundleEndpointHealthy", "True", "Healthy").await?;
    Ok(())
}

async fn shared_with_us(east: &Domain, west: &Domain, server: &BundleServer) -> Result<()> {
    let whole = west.spire.bundle_document().await?;
    let ours: Value = serde_json::from_str(&east.spire.bundle_document().await?)?;
    let authorities = ours["keys"].as_array().context("no keys")?.iter();
    let authorities = authorities.filter(|key| key["use"] == "x509-svid").cloned();
    server.serve(with_keys(&whole, 3, authorities)?);
    frontend_federates(east, west, false).await?;
    let said = peer_says(east, west, "BundleDistributed", "False", "SuspendedSharedAuthority").await?;
    ensure!(said.contains("east.example"), "{said}");
    peer_says(east, west, "BundleEndpointHealthy", "False", "AuthorityShared").await?;
    event(east, "SuspendedSharedAuthority", &said).await?;
    // SPIRE fetches by itself what is served, and the agent gives it nothing of that.
    let kept = found(east, super::CFTD, None, WEST).await?.data["spec"]["trustDomainBundle"].clone();
    let kept: Value = serde_json::from_str(kept.as_str().context("no bundle")?)?;
    for key in kept["keys"].as_array().context("no keys")? {
        ensure!(!ours.to_string().contains(&key["x5c"][0].to_string()), "our authority is kept as west's");
    }
    server.serve(with_keys(&whole, 4, [])?);
    frontend_federates(east, west, true).await?;
    spire_holds(east, west).await?;
    peer_says(east, west, "BundleDistributed", "True", "Distributed").await?;
    Ok(())
}

/// The Event says what the condition says.
async fn event(east: &Domain, reason: &str, message: &str) -> Result<()> {
    let api = east.kubernetes.api("events.k8s.io/v1", "Event", None).await?;
    eventually(&format!("there is an Event {reason}"), SOON, || async {
        let events = api.list(&kube::api::ListParams::default()).await?.items;
        let found = events.iter().find(|event| event.data["reason"] == reason).context("there is none")?;
        ensure!(found.data["note"].as_str().is_some_and(|note| note.contains(message)), "{:?}", found.data);
        Ok(())
    })
    .await
}

async fn withdrawn(east: &Domain, west: &Domain) -> Result<()> {
    merge(east, PEER, None, WEST, json!({"spec": {"withdraw": true}})).await?;
    frontend_federates(east, west, false).await?;
    let said = peer_says(east, west, "BundleDistributed", "False", "Withdrawn").await?;
    ensure!(said.contains("spec.withdraw"), "{said}");
    peer_says(east, west, "Connected", "False", "Suspended").await?;
    let nothing = || async {
        ensure!(!federates(east, FRONTEND, west).await? && !federates(east, &east.agent_id(), west).await?);
        Ok(())
    };
    // The two registrations are two objects: SPIRE may be told of one before the other.
    eventually("nothing federates", SOON, nothing).await?;
    always("nothing federates", CALM, nothing).await?;
    merge(east, PEER, None, WEST, json!({"spec": {"withdraw": false}})).await?;
    frontend_federates(east, west, true).await?;
    peer_says(east, west, "BundleDistributed", "True", "Distributed").await?;
    Ok(())
}

/// An endpoint that is down and a peer that never answers cost no workload its SVID, not even one that names the peer
/// of its own; once the bundle is there it federates.
#[test]
fn an_endpoint_that_is_down_at_onboarding_costs_no_workload_its_svid() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        let mut agent = crate::agent::Agent::start(east, super::quick())?;
        agent.ready(super::READY).await?;
        let (endpoint, silent) =
            (Relay::start(west.spire.bundle_endpoint()).await?, Relay::start(west.agent_address()).await?);
        endpoint.set(Network::Cut);
        silent.set(Network::Silent);
        east.register_test_process("frontend", "/ns/web/sa/frontend", &[("federate", "true")], &[]).await?;
        has_svid(east).await?;
        let url = json!(format!("https://{}/", endpoint.address()));
        let whole = with(peer(west).await?, "/spec/bundleEndpoint/url", url)?;
        let whole = with(whole, "/spec/agent/addresses", json!([silent.address()]))?;
        let mut bare = whole.clone();
        bare["spec"].as_object_mut().context("no spec")?.remove("bootstrapBundle");

        // Nothing is known of west's bundle: not by the endpoint, and not by the operator.
        east.kubernetes.apply(&bare).await?;
        peer_says(east, west, "BundleDistributed", "False", "AwaitingBundle").await?;
        // A user writes it into the list of a workload, and SPIRE would refuse the entry.
        merge(east, STATIC_ENTRY, None, "frontend", json!({"spec": {"federatesWith": [WEST]}})).await?;
        frontend_is_spared(east).await?;
        has_svid(east).await?;
        let holds = || async {
            ensure!(east.spire.entries().await?.contains_key(FRONTEND), "SPIRE has no entry of it");
            Ok(())
        };
        always("the frontend has its entry", CALM, holds).await?;

        // The operator gives the bundle; the endpoint is down still, and the agent of west never answers.
        east.kubernetes.apply(&whole).await?;
        frontend_federates(east, west, true).await?;
        peer_says(east, west, "BundleEndpointHealthy", "False", "EndpointUnreachable").await?;
        ensure!(of_peer(east, west, "Reciprocal").await?.0 != "True");
        has_svid(east).await?;
        endpoint.set(Network::Whole);
        peer_says(east, west, "BundleEndpointHealthy", "True", "Healthy").await?;
        let entry = found(east, STATIC_ENTRY, None, "frontend").await?;
        ensure!(entry.data["spec"]["federatesWith"] == json!([WEST]), "{}", entry.data);
        Ok(())
    });
}

async fn frontend_is_spared(east: &Domain) -> Result<()> {
    eventually("west is held out of the frontend's list", SOON, || async {
        let entry = found(east, STATIC_ENTRY, None, "frontend").await?;
        let names = entry.data["spec"]["federatesWith"].as_array().map(Vec::len).unwrap_or_default();
        ensure!(names == 0, "{}", entry.data);
        Ok(())
    })
    .await
}

async fn has_svid(east: &Domain) -> Result<()> {
    eventually("the frontend has its SVID", SOON, || async {
        let svids = east.spire.workload().await?.svids;
        ensure!(svids.iter().any(|svid| svid.spiffe_id == FRONTEND), "it has {} others", svids.len());
        Ok(())
    })
    .await
}

/// What GitOps takes back is said, and not fought: the list stays as it is, until someone puts the peer into it.
#[test]
fn what_someone_takes_back_is_said_and_not_fought() {
    with_pair(async |pair| {
        let agents = super::federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        east.register_test_process("frontend", "/ns/web/sa/frontend", &[("federate", "true")], &[]).await?;
        frontend_federates(east, west, true).await?;
        merge(east, STATIC_ENTRY, None, "frontend", json!({"spec": {"federatesWith": null}})).await?;
        let said = peer_says(east, west, "BundleDistributed", "False", "RegistrationContested").await?;
        ensure!(said.contains("frontend") && said.contains("does not fight"), "{said}");
        // spire-controller-manager may follow the last of it only now.
        frontend_federates(east, west, false).await?;
        let object = found(east, STATIC_ENTRY, None, "frontend").await?;
        always("nobody writes it", CALM, || async {
            let now = found(east, STATIC_ENTRY, None, "frontend").await?;
            let (was, is) = (&object.metadata.generation, &now.metadata.generation);
            ensure!(was == is, "generation {was:?} became {is:?}");
            ensure!(!federates(east, FRONTEND, west).await?);
            Ok(())
        })
        .await?;
        merge(east, STATIC_ENTRY, None, "frontend", json!({"spec": {"federatesWith": [WEST]}})).await?;
        peer_says(east, west, "BundleDistributed", "True", "Distributed").await?;
        frontend_federates(east, west, true).await?;
        drop(agents);
        Ok(())
    });
}

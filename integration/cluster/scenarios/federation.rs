//! Two domains become peers: what is written, in which order, and what each side says of it.

use super::{
    Agents, CFTD, PEER, SOON, STATIC_ENTRY, both_ready, condition, federates, found, of_peer, peer,
    peer_says, spire_holds, with,
};
use crate::pair::{Pair, with_pair};
use crate::wait::{always, eventually};
use crate::world::{AGENT_REGISTRATION, Domain};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::Duration;

/// With a TrustDomainPeer on one side only nothing is reciprocal, and the side that has it says what is missing;
/// with both, SPIRE has the relationship and the bundle on both sides, the selected registrations federate, and both
/// sides say Reciprocal and Ready.
#[test]
fn two_domains_become_peers() {
    with_pair(async |pair| {
        let mut agents = Agents::start(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        let frontend = east
            .register_test_process("frontend", "/ns/web/sa/frontend", &[("federate", "true")], &[])
            .await?;
        let bystander = register_other(east).await?;
        let logged = (east.spire.server.log().len(), west.spire.server.log().len());

        east.kubernetes.apply(&peer(west).await?).await?;
        spire_holds(east, west).await?;
        peer_says(east, west, "BundleDistributed", "True", "Distributed").await?;
        peer_says(east, west, "Connected", "False", "RefusedNotAccepted").await?;
        let message = peer_says(east, west, "Reciprocal", "False", "PeerRefusesUs").await?;
        ensure!(message.contains("TrustDomainPeer"), "{message}");
        ensure!(of_peer(east, west, "Ready").await?.0 == "False");
        ensure!(west.spire.relationships().await?.is_empty(), "west has a relationship of its own accord");

        west.kubernetes.apply(&peer(east).await?).await?;
        both_ready(pair).await?;
        for (here, there, before) in [(east, west, logged.0), (west, east, logged.1)] {
            spire_holds(here, there).await?;
            is_labelled(here, there).await?;
            ensure!(federates(here, &here.agent_id(), there).await?, "the agent's entry does not federate");
            never_before_the_bundle(here, there, before)?;
        }
        ensure!(federates(east, &frontend, west).await?, "the selected registration does not federate");
        ensure!(!federates(east, &bystander, west).await?, "a registration that is not selected federates");
        settled_status(pair).await?;
        ensure!(agents.east.stop().await? == 0 && agents.west.stop().await? == 0, "an agent ended badly");
        Ok(())
    });
}

async fn register_other(east: &Domain) -> Result<String> {
    let id = "spiffe://east.example/ns/web/sa/bystander".to_owned();
    let entry = json!({
        "apiVersion": STATIC_ENTRY.0,
        "kind": STATIC_ENTRY.1,
        "metadata": {"name": "bystander"},
        "spec": {"spiffeID": id, "parentID": "spiffe://east.example/node", "selectors": ["unix:uid:4294967294"]},
    });
    east.kubernetes.apply(&entry).await?;
    eventually("SPIRE has the bystander", SOON, || async {
        east.spire.entries().await?.get(&id).map(drop).context("it has not")
    })
    .await?;
    Ok(id)
}

/// The relationship's object is the agent's: labelled, and owned by the TrustDomainPeer.
async fn is_labelled(here: &Domain, there: &Domain) -> Result<()> {
    let name = there.trust_domain().to_string();
    let object = found(here, CFTD, None, &name).await?;
    let labels = object.metadata.labels.unwrap_or_default();
    ensure!(labels.get("entente.dev/instance").is_some_and(|it| it == "entente"), "labels {labels:?}");
    ensure!(labels.get("entente.dev/peer") == Some(&name), "labels {labels:?}");
    let owners = object.metadata.owner_references.unwrap_or_default();
    let peer = found(here, PEER, None, &name).await?;
    ensure!(owners.len() == 1 && owners.first().map(|o| &o.uid) == peer.metadata.uid.as_ref(), "{owners:?}");
    Ok(())
}

/// SPIRE refuses an entry that federates with a trust domain whose bundle it does not hold, and says so in its log, of
/// which what came after `before` bytes counts.
fn never_before_the_bundle(here: &Domain, there: &Domain, before: usize) -> Result<()> {
    let server = here.spire.server.log().split_off(before);
    let name = there.trust_domain();
    ensure!(
        !server.contains("unable to find federated bundle"),
        "federatesWith {name} came before its bundle"
    );
    Ok(())
}

/// What the status holds beside its conditions, and that it is written no more.
async fn settled_status(pair: &Pair) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    let object = found(east, PEER, None, "west.example").await?;
    let status = &object.data["status"];
    let authorities = west.spire.own_bundle().await?.x509_authorities.len();
    ensure!(status["bundle"]["authorities"].as_array().map(Vec::len) == Some(authorities), "{status}");
    ensure!(status["bundle"]["sequence"].is_number() && status["bundle"]["refreshHint"] == 60, "{status}");
    ensure!(status["remoteView"]["held"].as_array().is_some_and(|held| !held.is_empty()), "{status}");
    ensure!(status["remoteView"]["digestOfOurs"].as_str().is_some_and(|it| it.len() == 64), "{status}");
    let registration = found(east, STATIC_ENTRY, None, AGENT_REGISTRATION).await?;
    ensure!(registration.data["spec"]["federatesWith"] == json!(["west.example"]));
    Ok(())
}

/// Objects that break a rule of the schema are refused by the API server, with the rule.
#[test]
fn the_api_server_refuses_bad_objects() {
    with_pair(async |pair| {
        let east = &pair.east;
        let good = peer(&pair.west).await?;
        let bad = [
            ("/spec/agent/spiffeIDs", json!(["spiffe://north.example/agent"]), "must lie in trustDomain"),
            ("/spec/bundleEndpoint/url", json!("http://west.example/"), "must start with https://"),
            (
                "/spec/bundleEndpoint/profile",
                json!({"type": "https_spiffe"}),
                "endpointSPIFFEID must be given",
            ),
            ("/spec/bootstrapBundle", json!({}), "exactly one of inline"),
            ("/spec/trustDomain", json!("West.Example"), "should match"),
        ];
        for (pointer, value, rule) in bad {
            let refused = east.kubernetes.apply(&with(good.clone(), pointer, value)?).await;
            let refused = format!("{:#}", refused.err().with_context(|| format!("{pointer} was taken"))?);
            ensure!(refused.contains(rule), "{pointer}: {refused}");
        }
        east.kubernetes.apply(&good).await?;
        let renamed = json!("north.example");
        let moved = with(good, "/spec/trustDomain", renamed)?;
        let moved = with(moved, "/spec/agent/spiffeIDs", json!(["spiffe://north.example/agent"]))?;
        let refused = format!("{:#}", east.kubernetes.apply(&moved).await.err().context("it was renamed")?);
        ensure!(refused.contains("trustDomain cannot be changed"), "{refused}");
        Ok(())
    });
}

/// Objects that the schema lets through and that are bad nevertheless are not accepted, each with its reason; the good
/// peer beside them is none the worse.
#[test]
fn bad_peers_harm_no_other() {
    with_pair(async |pair| {
        let _agents = Agents::start(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        let good = peer(west).await?;
        let named = |name: &str| with(good.clone(), "/metadata/name", json!(name));
        let foreign = |name: &str, trust_domain: &str| -> Result<_> {
            let object = with(named(name)?, "/spec/trustDomain", json!(trust_domain))?;
            let id = format!("spiffe://{trust_domain}/agent");
            with(object, "/spec/agent/spiffeIDs", json!([id]))
        };
        let unparseable =
            with(foreign("garbled", "garbled.example")?, "/spec/bootstrapBundle/inline", json!("{"))?;
        let unheard = json!({"configMapKeyRef": {"name": "nowhere", "key": "bundle"}});
        let missing = with(foreign("missing", "missing.example")?, "/spec/bootstrapBundle", unheard)?;
        let user_info = json!("https://user@west.example/");
        let user_info = with(foreign("user", "user.example")?, "/spec/bundleEndpoint/url", user_info)?;
        let bad = [
            (foreign("ourselves", "east.example")?, "OwnTrustDomain"),
            (unparseable, "Invalid"),
            (missing, "BootstrapUnavailable"),
            (user_info, "Invalid"),
            (foreign("no-host", "no_host.example")?, "TrustDomainNotDns"),
        ];
        east.kubernetes.apply(&good).await?;
        spire_holds(east, west).await?;
        for (object, _) in &bad {
            east.kubernetes.apply(object).await?;
        }
        eventually("a second has passed", SOON, || async {
            let first = found(east, PEER, None, "west.example").await?.metadata.creation_timestamp;
            let now = k8s_openapi::jiff::Timestamp::now().as_second();
            ensure!(
                first.is_some_and(|first| first.0.as_second() < now),
                "times of creation are whole seconds"
            );
            Ok(())
        })
        .await?;
        east.kubernetes.apply(&named("second")?).await?;
        west.kubernetes.apply(&peer(east).await?).await?;
        for (object, reason) in &bad {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            not_accepted(east, name, reason).await?;
        }
        not_accepted(east, "second", "DuplicateTrustDomain").await?;
        both_ready(pair).await?;
        let only_west = || async {
            let related = east.spire.relationships().await?;
            ensure!(related.len() == 1 && related.contains_key("west.example"), "{:?}", related.keys());
            Ok(())
        };
        always("SPIRE is told of no bad peer", Duration::from_secs(1), only_west).await
    });
}

async fn not_accepted(here: &Domain, name: &str, reason: &str) -> Result<()> {
    eventually(&format!("{name} says Accepted=False, {reason}"), SOON, || async {
        let said = condition(&found(here, PEER, None, name).await?, "Accepted")?;
        ensure!(said.0 == "False" && said.1 == reason, "{said:?}");
        Ok(())
    })
    .await
}

//! `entente diagnose`: one thing is broken at a time; the command must name that link, its side, and a remedy that
//! names the thing. A healthy pair raises nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use entente::devkit::demo::Domain;
use entente::devkit::{Authority, Fault, Meddling, Settings};
use entente::model::SpiffeId;
use serde_json::{Value, json};

use crate::world::{EAST, Pair, WEST, peer_file, says, td, write_peer};

/// The steps that are skipped: there is no Kubernetes, and so no mesh; and the gateways of these domains are only addresses, which
/// are not tried.
const SKIPPED: [&str; 2] = ["mesh", "gateways"];
/// A command looks for some ten seconds at what is in motion, and first the fault must have its effect.
const NAMED: Duration = Duration::from_secs(90);

/// Looks until it is so, at least until `NAMED` has passed; the last look is not cut, or it could not say what it saw.
async fn in_time(what: &str, mut look: impl AsyncFnMut() -> anyhow::Result<()>) {
    let start = tokio::time::Instant::now();
    while let Err(error) = look().await {
        assert!(start.elapsed() < NAMED, "not so after {NAMED:?}: {what}: {error:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Runs the command against the agent of a domain: exit code, what it printed as JSON, and stderr.
async fn diagnose(at: &Domain, arguments: &[&str]) -> anyhow::Result<(i32, Value, String)> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
    command.arg("diagnose").args(arguments).args(["-o", "json", "--control"]).arg(at.control_socket());
    let output = command.kill_on_drop(true).output().await?;
    let code = output.status.code().context("it was killed")?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = serde_json::from_slice(&output.stdout).with_context(|| format!("{code}: {stderr}"))?;
    Ok((code, printed, stderr))
}

/// Waits until the command names this link, on this side, with a remedy that says this.
async fn names(at: &Domain, arguments: &[&str], step: &str, side: &str, remedy: &str) {
    let what = format!("{} names {step} on side {side}", at.trust_domain());
    in_time(&what, async || {
        let (code, printed, _) = diagnose(at, arguments).await?;
        let broken = &printed["broken"];
        let is = (code, broken["step"].as_str(), broken["side"].as_str());
        ensure!(is == (1, Some(step), Some(side)), "{is:?}\n{printed:#}");
        let says = broken["remedy"].as_str().unwrap_or_default();
        ensure!(says.contains(remedy), "the remedy does not say {remedy:?}: {says}");
        ensure!(!broken["message"].as_str().unwrap_or_default().is_empty(), "no cause");
        Ok(())
    })
    .await;
}

/// East names it when asked about west.
async fn east_names(pair: &Pair, step: &str, side: &str, remedy: &str) {
    names(&pair.east, &[WEST], step, side, remedy).await;
}

/// Nothing is wrong, by both sides' words.
async fn is_well(pair: &Pair) {
    pair.confirmed().await;
    for (at, peer) in [(&pair.east, WEST), (&pair.west, EAST)] {
        in_time("the path is well", async || {
            let (code, printed, _) = diagnose(at, &[peer]).await?;
            ensure!(code == 0, "{code}\n{printed:#}");
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_pair_raises_nothing_twenty_times() {
    let pair = Pair::peers().await;
    for domain in [&pair.east, &pair.west] {
        says(domain, "Ready", "True", "Ready").await;
    }
    for turn in 0..10 {
        for (at, peer) in [(&pair.east, WEST), (&pair.west, EAST)] {
            let (code, printed, stderr) = diagnose(at, &[peer]).await.unwrap();
            assert_eq!((code, printed["verdict"].as_str()), (0, Some("healthy")), "turn {turn}\n{printed:#}");
            let all = printed["checks"].as_array().unwrap().iter();
            let told = printed["told"].as_array().expect("the peer was asked, and told").iter();
            let failed: Vec<&Value> = all.chain(told).filter(|check| check["outcome"] == "failed").collect();
            assert!(failed.is_empty(), "turn {turn}: {failed:?}\n{stderr}");
            // A step that is not looked at on a healthy path would find nothing on a broken one.
            assert_eq!(skipped(&printed), SKIPPED, "turn {turn}: {printed:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_there_or_not_used_is_named_before_all_else() {
    let pair = Pair::peers().await;
    let object = "peer-object";
    names(&pair.east, &["north.example"], object, "ours", "spec.trustDomain: north.example").await;
    write_peer(&pair.east, &pair.west, |spec| spec["suspend"] = json!(true));
    east_names(&pair, object, "ours", "unset spec.suspend").await;
    // West learns whose doing it is.
    names(&pair.west, &[EAST], "session", "theirs", "spec.suspend").await;
    write_peer(&pair.east, &pair.west, |spec| spec["bundleEndpoint"]["url"] = json!("http://bad.example/"));
    east_names(&pair, object, "ours", "correct the field").await;
    write_peer(&pair.east, &pair.west, |_| {});
    is_well(&pair).await;

    pair.west.remove(&peer_file(&pair.east)).unwrap();
    east_names(&pair, "session", "theirs", "begin it again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_thing_that_is_wrong_about_a_bundle_endpoint_is_named() {
    let pair = Pair::peers().await;
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit, &str, &str, &str); 4] = [
        (
            "another host",
            |spec| spec["bundleEndpoint"]["url"] = json!("https://nowhere.invalid:8443/"),
            "endpoint-dns",
            "ours",
            "spec.bundleEndpoint.url",
        ),
        (
            "a closed port",
            |spec| spec["bundleEndpoint"]["url"] = json!("https://127.0.0.1:1/"),
            "endpoint-tcp",
            "theirs",
            "spec.bundleEndpoint.url",
        ),
        (
            "another profile",
            |spec| spec["bundleEndpoint"]["profile"] = json!({"type": "https_web"}),
            "endpoint-tls",
            "ours",
            "to https_spiffe with that endpointSPIFFEID",
        ),
        (
            "another ID",
            |spec| {
                spec["bundleEndpoint"]["profile"]["endpointSPIFFEID"] = json!("spiffe://west.example/other");
            },
            "endpoint-tls",
            "ours",
            "endpointSPIFFEID in spec.bundleEndpoint.profile",
        ),
    ];
    for (what, edit, step, side, remedy) in edits {
        tracing::info!(what, "broken");
        write_peer(&pair.east, &pair.west, edit);
        east_names(&pair, step, side, remedy).await;
    }
    write_peer(&pair.east, &pair.west, |_| {});
    is_well(&pair).await;

    let faults = [
        (Fault::Hangup, "endpoint-tls", "look at what answers there"),
        (Fault::ExpiredCertificate, "endpoint-tls", "renew the certificate"),
        (Fault::UntrustedCertificate, "endpoint-tls", "spec.bootstrapBundle"),
        (Fault::Status(503), "endpoint-http", "spec.bundleEndpoint.url"),
        (Fault::EndlessBody, "endpoint-http", "bundle endpoint"),
        (Fault::Garbage(b"<html>".to_vec()), "bundle-document", "spec.bundleEndpoint.url"),
        (Fault::UnknownUseBeside, "bundle-document", "x509-svid"),
    ];
    for (fault, step, remedy) in faults {
        tracing::info!(?fault, "broken");
        pair.west.spire().set_fault(Some(fault));
        east_names(&pair, step, "theirs", remedy).await;
    }
    pair.west.spire().set_fault(None);
    is_well(&pair).await;

    for fault in [Fault::JwtOnly, Fault::EmptyKeys] {
        pair.west.spire().set_fault(Some(fault));
        east_names(&pair, "bundle-authorities", "theirs", "X.509 authorities").await;
    }
    // The command fetches for itself: that the bundle changed is known once the agent has fetched it, too.
    says(&pair.east, "BundleEndpointHealthy", "False", "NoUsableAuthority").await;
    // That its bundle was another one under the same sequence is to be explained, though it is good again.
    pair.west.spire().set_fault(None);
    east_names(&pair, "bundle-alarms", "theirs", "ask the operator").await;
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_someone_does_to_our_spire_is_named() {
    let mut pair = Pair::peers().await;
    pair.east.spire().set_meddling(Some(Meddling::NoRelationship(td(WEST))));
    east_names(&pair, "relationship", "ours", "the agent makes it so").await;
    // What is in motion is looked at for a while; who waits at a terminal is told so, and no script is.
    let (_, _, stderr) = diagnose(&pair.east, &[WEST]).await.unwrap();
    assert_eq!(stderr, "");
    // West has it from east's own word, and names the same link.
    names(&pair.west, &[EAST], "relationship", "theirs", "says").await;
    // Without being asked, it has reported it.
    names(&pair.west, &[EAST, "--no-peer"], "peer-view", "theirs", "BundleDistributed").await;
    pair.east.spire().set_meddling(None);
    is_well(&pair).await;

    let stranger = Authority::new(td(WEST), Settings::new(entente::clock::now())).unwrap();
    pair.east.spire().set_meddling(Some(Meddling::Bundle(Arc::clone(stranger.bundle()))));
    east_names(&pair, "bundle-in-spire", "ours", "federation refresh -id spiffe://west.example").await;
    pair.east.spire().set_meddling(None);
    is_well(&pair).await;

    let state = pair.east.spire_state().await.unwrap();
    let own = state.entries.values().find(|entry| entry.spiffe_id == *pair.east.agent_id()).unwrap();
    pair.east.spire().set_meddling(Some(Meddling::NoFederation(own.id.clone())));
    east_names(&pair, "agent-registration", "ours", "who takes it away").await;
    pair.east.spire().set_meddling(None);
    is_well(&pair).await;

    write_peer(&pair.east, &pair.west, |spec| {
        spec["federatesWith"] = json!({"spiffeIDs": ["spiffe://east.example/nobody"]});
    });
    east_names(&pair, "workload-registrations", "ours", "spec.federatesWith").await;
    write_peer(&pair.east, &pair.west, |_| {});
    is_well(&pair).await;

    assert!(pair.east.spire().delete_entry(&own.id));
    east_names(&pair, "own-svid", "ours", "entente.dev/agent").await;
    // An agent that never had an identity can be asked, too.
    pair.east.stop_agent().await.unwrap();
    pair.east.start_agent().await.unwrap();
    east_names(&pair, "own-svid", "ours", "entente.dev/agent").await;
    let (_, printed, stderr) = diagnose(&pair.east, &[WEST]).await.unwrap();
    assert_eq!(printed["ownTrustDomain"], Value::Null, "{printed:#}\n{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_thing_that_keeps_agents_apart_is_named() {
    let mut pair = Pair::peers().await;
    // Only east dials, or west's dialling would make up for what is wrong.
    write_peer(&pair.west, &pair.east, |spec| spec["agent"]["addresses"] = json!([]));
    is_well_but_for_addresses(&pair).await;
    let addresses = |addresses: Value| move |spec: &mut Value| spec["agent"]["addresses"] = addresses;
    // The stream that stands is kept while it lives, and who shuts down is dialled again at once: west's agent comes back when
    // east knows of the other address.
    for (address, step, side) in
        [("nowhere.invalid:7443", "agent-dns", "ours"), ("127.0.0.1:1", "agent-tcp", "theirs")]
    {
        pair.west.stop_agent().await.unwrap();
        write_peer(&pair.east, &pair.west, addresses(json!([address])));
        east_names(&pair, step, side, "spec.agent.addresses").await;
        pair.west.start_agent().await.unwrap();
        east_names(&pair, step, side, "spec.agent.addresses").await;
    }
    write_peer(&pair.east, &pair.west, |_| {});
    is_well_but_for_addresses(&pair).await;

    let other = SpiffeId::new("spiffe://west.example/ns/entente-system/sa/another").unwrap();
    write_peer(&pair.east, &pair.west, |spec| {
        spec["agent"]["spiffeIDs"] = json!([other.to_string()]);
    });
    east_names(&pair, "agent-mtls", "ours", "spec.agent.spiffeIDs").await;
    write_peer(&pair.east, &pair.west, |_| {});
    write_peer(&pair.west, &pair.east, |spec| {
        spec["agent"]["spiffeIDs"] = json!(["spiffe://east.example/ns/entente-system/sa/another"]);
    });
    east_names(&pair, "agent-mtls", "theirs", pair.east.agent_id().to_string().as_str()).await;
    write_peer(&pair.west, &pair.east, |_| {});
    is_well(&pair).await;

    write_peer(&pair.west, &pair.east, |spec| spec["suspend"] = json!(true));
    east_names(&pair, "session", "theirs", "spec.suspend").await;
    write_peer(&pair.west, &pair.east, |_| {});
    is_well(&pair).await;

    pair.west.stop_agent().await.unwrap();
    east_names(&pair, "agent-tcp", "theirs", "start the agent").await;
    pair.west.start_agent().await.unwrap();
    is_well(&pair).await;
}

/// The steps that were not looked at, in order.
fn skipped(printed: &Value) -> Vec<&str> {
    let all = printed["checks"].as_array().unwrap().iter().filter(|check| check["outcome"] == "skipped");
    all.map(|check| check["step"].as_str().unwrap()).collect()
}

/// As [`is_well`]; west, which has no address of east, skips two steps.
async fn is_well_but_for_addresses(pair: &Pair) {
    is_well(pair).await;
    let (_, printed, _) = diagnose(&pair.west, &[EAST]).await.unwrap();
    assert_eq!(skipped(&printed), ["mesh", "gateways", "agent-dns", "agent-tcp"], "{printed:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_refused_and_told_what_is_missing_there() {
    let pair = Pair::strangers().await;
    write_peer(&pair.east, &pair.west, |_| {});
    east_names(&pair, "agent-mtls", "theirs", "needs a TrustDomainPeer for east.example").await;
    // An agent that is not there cannot be asked.
    let nowhere = pair.east.control_socket().with_extension("gone");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
    let output = command.args(["diagnose", WEST, "--control"]).arg(nowhere).output().await.unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
    let output = command.args(["diagnose", "no domain"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_cannot_follow_our_rotation_says_why_itself() {
    let pair = Pair::peers().await;
    let spire = pair.east.spire();
    // What east serves, west cannot read: west says so, and east knows from it that the fault is its own endpoint's.
    spire.set_fault(Some(Fault::Status(500)));
    names(&pair.east, &[WEST], "endpoint-http", "ours", "says").await;
    let prepared = spire.prepare().unwrap();
    spire.activate(&prepared).unwrap();
    // Without being asked, it has reported it.
    names(&pair.east, &[WEST, "--no-peer"], "peer-view", "ours", "BundleEndpointHealthy").await;
    spire.set_fault(None);
    is_well(&pair).await;
}

//! Rotation of the signing authority on real SPIRE, under a load of mutual TLS between workloads of both domains.

use super::{
    Agents, PEER, READY, SOON, both_ready, federated, found, make_peers, merge, peer, peer_says, quick, with,
};
use crate::agent::{Agent, AgentOptions};
use crate::load::Load;
use crate::pair::{Pair, with_own_pair, with_pair};
use crate::process::Signal;
use crate::relay::{Network, Relay};
use crate::spire::{SpireOptions, Upstream};
use crate::wait::eventually;
use crate::world::{Domain, Options};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What `entente rotate x509` printed.
struct Rotated {
    code: i32,
    report: Value,
    progress: String,
}

async fn rotate(agent: &Agent, args: &[&str]) -> Result<Rotated> {
    let command = [&["rotate", "x509", "-o", "json"], args].concat();
    let (code, out, progress) = agent.command(&command).await?;
    let report = serde_json::from_str(&out).with_context(|| format!("exit code {code}: {out}{progress}"))?;
    Ok(Rotated { code, report, progress })
}

impl Rotated {
    fn done(&self) -> Result<()> {
        ensure!(self.code == 0, "exit code {}: {:#}\n{}", self.code, self.report, self.progress);
        ensure!(self.report["outcome"] == "done", "{:#}", self.report);
        Ok(())
    }

    /// The report of the domain's one server.
    fn server(&self) -> Result<&Value> {
        let servers = self.report["servers"].as_object().context("no servers")?;
        ensure!(servers.len() == 1, "{servers:?}");
        servers.values().next().context("no server")
    }
}

async fn active(domain: &Domain) -> Result<String> {
    let shown = domain.spire.cli(&["localauthority", "x509", "show", "-output", "json"]).await?;
    let shown: Value = serde_json::from_str(&shown)?;
    let id = shown.pointer("/active/authority_id").and_then(Value::as_str);
    Ok(id.with_context(|| format!("{shown}"))?.to_owned())
}

/// Twenty rotations on alternate sides, each with the old authority tainted, so that every SVID is replaced at once; the
/// last on each side with the old one revoked as well, which waits longer.
#[test]
fn twenty_rotations_lose_no_request() {
    with_pair(async |pair| {
        let agents = federated(pair).await?;
        let load = Load::start(pair).await?;
        let began = Instant::now();
        for round in 0..20 {
            let (domain, agent) =
                if round % 2 == 0 { (&pair.east, &agents.east) } else { (&pair.west, &agents.west) };
            let before = active(domain).await?;
            let finish = if round < 18 { "--taint" } else { "--revoke" };
            let rotated = rotate(agent, &[finish, "--timeout", "2m"]).await?;
            rotated.done().with_context(|| format!("round {round}"))?;
            let now = active(domain).await?;
            let server = rotated.server()?;
            ensure!(now != before && server["authority"] == json!(now), "{before}, {now}: {server}");
            ensure!(server["replaced"] == json!(before) && server["tainted"] == json!(true), "{server}");
            ensure!(server["revoked"] == json!(round >= 18), "{server}");
            load.signed_by(&now).await?;
            load.more(5).await.with_context(|| format!("round {round}: {}", rotated.progress))?;
        }
        let took = began.elapsed();
        both_ready(pair).await?;
        load.unharmed()?;
        let seen = load.seen();
        let requests: u64 = seen.answered.values().sum();
        println!("20 rotations in {took:.0?}: {requests} requests answered, {} failed", seen.failures.len());
        Ok(())
    });
}

/// SPIRE rotates by itself, in both domains, as it does once a day elsewhere.
#[test]
fn natural_rotation_loses_no_request() {
    let spire = SpireOptions {
        ca_ttl: Duration::from_secs(120),
        svid_ttl: Duration::from_secs(20),
        ..SpireOptions::default()
    };
    let options = Options { spire };
    with_own_pair(options.clone(), options, async |pair| {
        let _agents = federated(pair).await?;
        let load = Load::start(pair).await?;
        let before = [active(&pair.east).await?, active(&pair.west).await?];
        let during = Duration::from_secs(150);
        let turned = eventually("both domains have rotated", during, || async {
            load.unharmed()?;
            let now = [active(&pair.east).await?, active(&pair.west).await?];
            ensure!(before.iter().zip(&now).all(|(before, now)| before != now), "{before:?}, {now:?}");
            Ok(now)
        });
        let now = turned.await?;
        for authority in &now {
            load.signed_by(authority).await?;
        }
        load.more(50).await?;
        let seen = load.seen();
        println!("both rotated by themselves: {:?} answered, 0 failed", seen.answered);
        Ok(())
    });
}

/// East cannot fetch west's bundle.
async fn blocked(pair: &Pair) -> Result<(Agents, Relay)> {
    let agents = Agents::start(pair).await?;
    let (east, west) = (&pair.east, &pair.west);
    let to_endpoint = Relay::start(west.spire.bundle_endpoint()).await?;
    let url = format!("https://{}/", to_endpoint.address());
    east.kubernetes.apply(&with(peer(west).await?, "/spec/bundleEndpoint/url", json!(url))?).await?;
    west.kubernetes.apply(&peer(east).await?).await?;
    both_ready(pair).await?;
    to_endpoint.set(Network::Cut);
    peer_says(east, west, "BundleEndpointHealthy", "False", "EndpointUnreachable").await?;
    Ok((agents, to_endpoint))
}

/// A peer that cannot fetch our bundle stands in the way, and is named; once it can, the rotation goes on where it stood.
#[test]
fn a_peer_that_cannot_fetch_our_bundle_holds_a_rotation_up() {
    with_pair(async |pair| {
        let (agents, to_endpoint) = blocked(pair).await?;
        let west = &pair.west;
        let before = active(west).await?;
        let load = Load::start(pair).await?;
        let stopped = rotate(&agents.west, &["--timeout", "8s"]).await?;
        ensure!(stopped.code == 1, "{}: {:#}", stopped.code, stopped.report);
        ensure!(stopped.report["outcome"] == "timedOut", "{:#}", stopped.report);
        let prepared = stopped.server()?["authority"].as_str().context("nothing was prepared")?.to_owned();
        ensure!(active(west).await? == before, "it was activated");
        ensure!(stopped.progress.contains("waiting for east.example"), "{}", stopped.progress);
        let left = stopped.report["notes"][0].as_str().unwrap_or_default().to_owned();
        for part in [&prepared, "stays prepared", "SPIRE activates it by itself at 20", "east.example"] {
            ensure!(left.contains(part), "{part} is not in: {left}");
        }
        let message = peer_says(west, &pair.east, "RotationSafe", "False", "PeerLacksAuthority").await?;
        ensure!(message.contains("east.example") && message.contains(&prepared), "{message}");
        // Not by another way either: the agent itself refuses.
        let socket = west.spire.server_socket().display();
        let plan = rotate(&agents.west, &["--dry-run"]).await?;
        ensure!(
            plan.report["state"]["servers"][format!("unix://{socket}")]["prepared"]["id"] == json!(prepared)
        );

        to_endpoint.set(Network::Whole);
        let again = rotate(&agents.west, &["--timeout", "1m"]).await?;
        again.done()?;
        ensure!(again.server()?["authority"] == json!(prepared), "it was prepared again: {:#}", again.report);
        ensure!(again.progress.contains("was prepared already"), "{}", again.progress);
        ensure!(active(west).await? == prepared, "it was not activated");
        load.more(20).await?;
        both_ready(pair).await
    });
}

/// One that is suspended has no say.
#[test]
fn a_suspended_peer_holds_nothing_up() {
    with_pair(async |pair| {
        let (agents, _to_endpoint) = blocked(pair).await?;
        let west = &pair.west;
        let before = active(west).await?;
        merge(west, PEER, None, "east.example", json!({"spec": {"suspend": true}})).await?;
        eventually("west has suspended east", SOON, || async {
            let peer = found(west, PEER, None, "east.example").await?;
            let said = super::condition(&peer, "Ready")?;
            ensure!(said.1 == "Suspended", "{said:?}");
            Ok(())
        })
        .await?;
        let rotated = rotate(&agents.west, &["--timeout", "30s"]).await?;
        rotated.done()?;
        ensure!(active(west).await? != before, "it was not activated");
        Ok(())
    });
}

/// A second SPIRE server on the datastore of the first signs at once, with an authority of its own, and rotates by itself.
#[test]
fn each_spire_server_is_rotated_and_one_that_is_silent_holds_up_no_other() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        let dir = west.dir().join("s");
        let second = format!("unix://{}", dir.join("server2.sock").display());
        let first = format!("unix://{}", west.spire.server_socket().display());
        let options = AgentOptions { spire_server: Some(format!("{first},{second}")), ..quick() };
        let (mut in_east, mut in_west) = (Agent::start(east, quick())?, Agent::start(west, options)?);
        tokio::try_join!(in_east.ready(READY), in_west.ready(READY))?;
        let to_endpoint = Relay::start(west.spire.bundle_endpoint()).await?;
        make_peers(pair).await?;
        let url = format!("https://{}/", to_endpoint.address());
        east.kubernetes.apply(&with(peer(west).await?, "/spec/bundleEndpoint/url", json!(url))?).await?;
        both_ready(pair).await?;

        // East does not learn of it: what the new server signs would be refused there.
        to_endpoint.set(Network::Cut);
        peer_says(east, west, "BundleEndpointHealthy", "False", "EndpointUnreachable").await?;
        let mut server = west.spire.start_second_server(&dir).await?;
        let message = peer_says(west, east, "RotationSafe", "False", "PeerLacksSigningAuthority").await?;
        ensure!(message.contains(&second) && message.contains("east.example"), "{message}");
        to_endpoint.set(Network::Whole);
        both_ready(pair).await?;

        let before = active(west).await?;
        let rotated = rotate(&in_west, &["--taint", "--timeout", "1m"]).await?;
        rotated.done()?;
        ensure!(active(west).await? != before, "the first was not rotated");
        for name in [&first, &second] {
            let report = &rotated.report["servers"][name];
            let now = &rotated.report["state"]["servers"][name]["active"]["id"];
            ensure!(
                report["activated"] == json!(true) && report["authority"] == *now,
                "{name}: {report}, {now}"
            );
            ensure!(report["tainted"] == json!(true) && report["replaced"] != *now, "{name}: {report}");
        }

        server.process.signal(Signal::Stop)?;
        let before = active(west).await?;
        let stands = eventually("the agent sees that the second is silent", SOON, || async {
            let plan = rotate(&in_west, &["--dry-run"]).await?;
            ensure!(plan.code == 1, "{}", plan.code);
            let failure = &plan.report["state"]["servers"][&second]["failure"];
            ensure!(failure.as_str().is_some_and(|words| words.contains("gave no answer")), "{failure}");
            Ok(())
        });
        stands.await?;
        let rotated = rotate(&in_west, &["--timeout", "1m"]).await?;
        ensure!(rotated.code == 1, "one was left out: {:#}", rotated.report);
        ensure!(rotated.report["servers"][&second]["leftOut"].is_string(), "{:#}", rotated.report);
        ensure!(rotated.report["servers"][&first]["activated"] == json!(true), "{:#}", rotated.report);
        ensure!(active(west).await? != before, "the first was not rotated");
        server.process.signal(Signal::Continue)?;
        drop((in_east, in_west));
        server.process.kill().await
    });
}

/// Behind an upstream authority the peers hold that one; it is not finished here, and the server's own are rotated.
#[test]
fn an_upstream_authority_is_rotated_below_and_never_tainted_here() {
    let spire = SpireOptions { upstream: Upstream::Disk, ..SpireOptions::default() };
    with_own_pair(Options::default(), Options { spire }, async |pair| {
        let agents = federated(pair).await?;
        let west = &pair.west;
        let load = Load::start(pair).await?;
        let before = active(west).await?;
        let refused = agents.west.command(&["rotate", "x509", "--taint"]).await?;
        ensure!(refused.0 == 1 && refused.2.contains("upstream authority"), "{refused:?}");
        ensure!(active(west).await? == before, "it was rotated all the same");
        let roots = west.spire.own_bundle().await?.x509_authorities.len();
        let rotated = rotate(&agents.west, &["--timeout", "1m"]).await?;
        rotated.done()?;
        let now = active(west).await?;
        ensure!(now != before && rotated.server()?["authority"] == json!(now), "{before}, {now}");
        ensure!(
            west.spire.own_bundle().await?.x509_authorities.len() == roots,
            "the bundle holds the root alone"
        );
        peer_says(west, &pair.east, "RotationSafe", "True", "PeersHoldAuthorities").await?;
        load.more(20).await?;
        both_ready(pair).await
    });
}

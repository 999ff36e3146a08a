//! Trust that is taken away: from when on a foreign SVID that is good for an hour still is refused by local workloads, and
//! what that costs the local ones. By `entente peer end`, on SPIRE with its own default times, with Envoys fed by SPIRE's
//! SDS.

use super::{
    Agents, PEER, SOON, STATIC_ENTRY, TIMING, both_ready, federates, gone, make_peers, merge, peer_says,
};
use crate::agent::{Agent, AgentOptions};
use crate::envoy::{Envoy, Workload};
use crate::pair::{Pair, with_set_pair};
use crate::spire::SpireOptions;
use crate::wait::eventually;
use crate::world::{Domain, Options, Part};
use anyhow::{Context, Result, bail, ensure};
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// SPIRE renews an SVID of east at half of this.
const SVID_TTL: Duration = Duration::from_secs(16);
/// From the command on.
const REFUSED_WITHIN: Duration = Duration::from_secs(60);
/// A workload that someone registers with the trust domain that has ended.
const NEW: &str = "spiffe://east.example/ns/web/sa/new";
const END: [&str; 7] = ["peer", "end", "west.example", "--yes", "--by", "alice@east", "--timeout=120"];

/// SPIRE's own default times, and SVIDs that are renewed often.
fn defaults() -> Options {
    Options {
        spire: SpireOptions {
            svid_ttl: SVID_TTL,
            sync_interval: Duration::from_secs(5),
            gc_interval: Duration::from_secs(10),
            ..SpireOptions::default()
        },
    }
}

/// The default pause before the bundle goes, 30 s.
fn patient() -> AgentOptions {
    let args = TIMING.iter().filter(|arg| !arg.starts_with("--drain")).map(|arg| (*arg).to_owned()).collect();
    AgentOptions { args, ..AgentOptions::default() }
}

async fn federated(pair: &Pair) -> Result<Agents> {
    let mut agents =
        Agents { east: Agent::start(&pair.east, patient())?, west: Agent::start(&pair.west, patient())? };
    tokio::try_join!(agents.east.ready(SOON), agents.west.ready(SOON))?;
    make_peers(pair).await?;
    both_ready(pair).await?;
    Ok(agents)
}

/// East's server, a client of east's own and one of west.
struct Callers {
    server: Envoy,
    local: Envoy,
    foreign: Envoy,
}

impl Callers {
    async fn start(pair: &Pair) -> Result<Self> {
        let server = Envoy::ready(&pair.east, &Workload::named("server")).await?;
        let local = Envoy::ready(&pair.east, &Workload::named("local").calling(&server)).await?;
        let foreign = Envoy::ready(&pair.west, &Workload::named("foreign").calling(&server)).await?;
        eventually("the local client is answered", SOON, || local.call("server")).await?;
        eventually("the foreign client is answered", SOON, || foreign.call("server")).await?;
        Ok(Self { server, local, foreign })
    }

    /// Calls until the local client had two SVIDs more; from when on the foreign one was refused, for good, by the server
    /// and for its certificate, while the local one was always answered.
    async fn watch(&self, since: Instant) -> Result<Duration> {
        let refused_at_start = self.refused().await?;
        let mut serials = vec![self.local.serial().await?];
        let mut refused = None;
        let deadline = since + REFUSED_WITHIN + 3 * SVID_TTL;
        while refused.is_none() || serials.len() < 3 {
            ensure!(Instant::now() < deadline, "refused {refused:?}, SVIDs {serials:?}");
            self.local.call("server").await.context("the local client is not answered")?;
            let serial = self.local.serial().await?;
            if serials.last() != Some(&serial) {
                serials.push(serial);
            }
            match (self.foreign.call("server").await, refused) {
                (Ok(()), None) => {}
                (Ok(()), Some(at)) => bail!("it is answered again, after a refusal at {at:?}"),
                (Err(_), None) => refused = Some(since.elapsed()),
                (Err(_), Some(_)) => {}
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        ensure!(self.refused().await? > refused_at_start, "not for its certificate");
        for envoy in [&self.server, &self.local] {
            ensure!(envoy.svids_refused().await? + envoy.bundles_refused().await? == 0, "SDS was refused");
        }
        refused.context("never refused")
    }

    /// How often the server has refused a certificate that nothing it has verifies.
    async fn refused(&self) -> Result<u64> {
        self.server.admin().stat("listener.mtls.ssl.fail_verify_error").await
    }
}

async fn holds_no_bundle(domain: &Domain) -> Result<()> {
    let listed = domain.spire.cli(&["bundle", "list"]).await?;
    ensure!(!listed.contains("west.example"), "it is listed: {listed}");
    Ok(())
}

/// Waits until an Event with this reason says this: it comes after the status that it tells of.
async fn event(domain: &Domain, reason: &str, words: &str) -> Result<()> {
    let api = domain.kubernetes.api("events.k8s.io/v1", "Event", None).await?;
    let text = |event: &DynamicObject, field: &str| {
        event.data.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    eventually(&format!("an Event {reason} says {words:?}"), SOON, || async {
        let events = api.list(&ListParams::default()).await?.items;
        let all: Vec<_> = events.iter().map(|event| (text(event, "reason"), text(event, "note"))).collect();
        ensure!(all.iter().any(|(is, note)| is == reason && note.contains(words)), "{all:?}");
        Ok(())
    })
    .await
}

/// With the default pause: refused within a minute, the bundle gone, every local SVID renewed and a new workload's first one
/// issued meanwhile; the other side is told by whom, and that stands over a restart of its agent.
#[test]
fn an_ended_trust_domain_is_refused_and_costs_no_local_workload_its_svid() {
    with_set_pair(defaults(), Options::default(), async |pair| {
        let mut agents = federated(pair).await?;
        let callers = Callers::start(pair).await?;
        let logged = pair.east.spire.server.log().len();
        let since = Instant::now();
        let command = async {
            let done = agents.east.command(&END).await?;
            anyhow::Ok((done, since.elapsed()))
        };
        let newcomer = async {
            eventually("the workloads federate no more", SOON, || async {
                ensure!(!federates(&pair.east, callers.server.id(), &pair.west).await?);
                Ok(())
            })
            .await?;
            pair.east
                .register_test_process("newcomer", "/ns/web/sa/newcomer", &[("federate", "true")], &[])
                .await?;
            eventually("a new workload has its first SVID", SOON, || async {
                let svids = pair.east.spire.workload().await?.svids;
                ensure!(svids.iter().any(|svid| svid.spiffe_id.ends_with("/newcomer")));
                Ok(())
            })
            .await
        };
        let (((code, said, error), took), refused, ()) =
            tokio::try_join!(command, callers.watch(since), newcomer)?;
        eprintln!("refused after {refused:.1?}; ended after {took:.1?}\n{said}");
        ensure!(code == 0, "{said}{error}");
        for words in ["ClusterStaticEntry server", "ending; waits", "has ended"] {
            ensure!(said.contains(words), "{words}: {said}");
        }
        ensure!(refused < REFUSED_WITHIN, "refused only after {refused:?}");
        gone(&pair.east, PEER, None, "west.example").await?;
        holds_no_bundle(&pair.east).await?;
        no_issuance_failed(pair, logged)?;

        let told = peer_says(&pair.west, &pair.east, "Reciprocal", "False", "PeerEnded").await?;
        ensure!(
            told.contains("ended by alice@east") && told.contains("entente peer end east.example"),
            "{told}"
        );
        event(&pair.west, "PeerEnded", "alice@east").await?;
        ensure!(agents.west.stop().await? == 0);
        agents.west.restart()?;
        agents.west.ready(SOON).await?;
        eventually("the listener of the other side refuses it", SOON, || async {
            let (connected, reason, _) = super::of_peer(&pair.west, &pair.east, "Connected").await?;
            ensure!(connected == "False" && reason.starts_with("Refused"), "{connected} {reason}");
            Ok(())
        })
        .await?;
        let told = peer_says(&pair.west, &pair.east, "Reciprocal", "False", "PeerEnded").await?;
        ensure!(told.contains("ended by alice@east"), "{told}");
        Ok(())
    });
}

fn no_issuance_failed(pair: &Pair, logged: usize) -> Result<()> {
    let log = pair.east.spire.server.log().split_off(logged);
    for trouble in ["unable to find federated bundle", "Failed to sign", "level=error"] {
        let line = log.lines().find(|line| line.contains(trouble));
        ensure!(line.is_none(), "{line:?}");
    }
    Ok(())
}

/// The agent is killed while the bundle is held for SPIRE's agents to follow: what was taken away does not come back, and
/// the next life of the agent brings the end.
#[test]
fn an_end_that_is_broken_off_goes_on() {
    with_set_pair(defaults(), Options::default(), async |pair| {
        let mut agents = federated(pair).await?;
        let callers = Callers::start(pair).await?;
        let since = Instant::now();
        let (code, said, error) =
            agents.east.command(&["peer", "end", "west.example", "--yes", "--no-wait"]).await?;
        ensure!(code == 0, "{said}{error}");
        let pausing = || async {
            let (_, reason, message) = super::of_peer(&pair.east, &pair.west, "Ready").await?;
            ensure!(
                reason == "Ending" && message.contains("SPIRE's agents to follow"),
                "{reason}: {message}"
            );
            Ok(())
        };
        eventually("only the pause is left", SOON, pausing).await?;
        agents.east.kill().await?;
        let refused = callers.watch(since).await?;
        ensure!(refused < REFUSED_WITHIN, "refused only after {refused:?}");
        ensure!(pair.east.spire.federated_bundles().await?.contains_key("west.example"), "nobody deletes it");
        agents.east.restart()?;
        agents.east.ready(SOON).await?;
        let again = Instant::now();
        eventually("it ends", 2 * REFUSED_WITHIN, || async {
            ensure!(super::object(&pair.east, PEER, None, "west.example").await?.is_none());
            Ok(())
        })
        .await?;
        eprintln!("refused after {refused:.1?}; ended {:.1?} after the restart", again.elapsed());
        holds_no_bundle(&pair.east).await?;
        ensure!(callers.foreign.call("server").await.is_err());
        callers.local.call("server").await
    });
}

/// At once, while spire-controller-manager is down too: nobody is waited for. What is not ours and names the trust domain
/// is named before, keeps its SVID, and is refused changes until it names it no more.
#[test]
fn in_an_emergency_nobody_is_waited_for() {
    with_set_pair(defaults(), Options::default(), async |pair| {
        let agents = federated(pair).await?;
        let callers = Callers::start(pair).await?;
        let theirs =
            pair.east.register_test_process("theirs", "/ns/web/sa/theirs", &[], &["west.example"]).await?;
        eventually("their entry federates", SOON, || async {
            ensure!(federates(&pair.east, &theirs, &pair.west).await?);
            Ok(())
        })
        .await?;
        pair.east.stop(Part::SpireControllerManager).await?;
        let since = Instant::now();
        let command = async {
            let done = agents.east.command(&[END.as_slice(), &["--now"]].concat()).await?;
            anyhow::Ok((done, since.elapsed()))
        };
        let (((code, said, error), took), refused) = tokio::try_join!(command, callers.watch(since))?;
        eprintln!("refused after {refused:.1?}; ended after {took:.1?}\n{said}");
        ensure!(code == 0, "{said}{error}");
        let before = said.split("ending at once").next().unwrap_or_default();
        ensure!(before.contains("What this breaks: ClusterStaticEntry theirs"), "{said}");
        ensure!(took < Duration::from_secs(10), "it waited for someone: {took:?}");
        holds_no_bundle(&pair.east).await?;
        event(&pair.east, "Ending", "ClusterStaticEntry theirs").await?;
        let told = peer_says(&pair.west, &pair.east, "Reciprocal", "False", "PeerEnded").await?;
        ensure!(told.contains("ended at once, trust first, by alice@east"), "{told}");

        let logged = pair.east.spire.controller_manager.log().len();
        pair.east.restart(Part::SpireControllerManager).await?;
        breaks_and_mends(pair, &theirs, logged).await?;
        holds_no_bundle(&pair.east).await?;
        callers.local.call("server").await
    });
}

/// `logged` is how much spire-controller-manager had logged before its restart.
async fn breaks_and_mends(pair: &Pair, theirs: &str, logged: usize) -> Result<()> {
    let east = &pair.east;
    eventually("their entry is refused", SOON, || async {
        let log = east.spire.controller_manager.log().split_off(logged);
        ensure!(log.contains("unable to find federated bundle"), "not yet");
        Ok(())
    })
    .await?;
    let has_svid = || async {
        let svids = east.spire.workload().await?.svids;
        ensure!(svids.iter().any(|svid| svid.spiffe_id == theirs), "the SVID is lost");
        Ok(())
    };
    eventually("their workload has its SVID", SOON, has_svid).await?;
    let hint = || async {
        let entries = east.spire.entries().await?;
        let entry = entries.get(theirs).context("the entry is lost")?;
        Ok::<_, anyhow::Error>(entry.hint.clone())
    };
    merge(east, STATIC_ENTRY, None, "theirs", json!({"spec": {"hint": "changed"}})).await?;
    let new = json!({
        "apiVersion": STATIC_ENTRY.0,
        "kind": STATIC_ENTRY.1,
        "metadata": {"name": "new"},
        "spec": {
            "spiffeID": NEW,
            "parentID": "spiffe://east.example/node",
            "selectors": ["unix:uid:4711"],
            "federatesWith": ["west.example"],
        },
    });
    east.kubernetes.apply(&new).await?;
    crate::wait::always("a change of it is refused", Duration::from_secs(4), || async {
        ensure!(hint().await?.is_empty(), "it was taken");
        Ok(())
    })
    .await?;
    ensure!(!east.spire.entries().await?.contains_key(NEW), "a new entry of theirs was taken");
    for name in ["theirs", "new"] {
        merge(east, STATIC_ENTRY, None, name, json!({"spec": {"federatesWith": null}})).await?;
    }
    eventually("the change is taken", SOON, || async {
        ensure!(hint().await? == "changed" && east.spire.entries().await?.contains_key(NEW), "not yet");
        Ok(())
    })
    .await?;
    has_svid().await
}

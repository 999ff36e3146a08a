//! What a peer's empty bundle does to Envoys that take their certificates from SPIRE's SDS: harm without the agent, and
//! none with it. West serves it, east has the Envoys, and north is a healthy peer that east calls all the while.

use super::{PEER, READY, SOON, federates, found, of_peer, peer, peer_says, quick, with};
use crate::agent::Agent;
use crate::bundle_server::BundleServer;
use crate::envoy::{Envoy, Workload};
use crate::pair::{Pair, with_set_pair};
use crate::spire::SpireOptions;
use crate::wait::{always, eventually};
use crate::world::{Domain, Options};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// SPIRE renews an SVID at half of this.
const SVID_TTL: Duration = Duration::from_secs(12);
/// How long west serves an empty bundle: every Envoy would have lost its SVID five times over.
const POISONED: Duration = Duration::from_secs(60);
/// How much later than its detection an Envoy is restarted. It waits 15 s for what SDS does not give.
const LATER: Duration = Duration::from_secs(16);
const EMPTY: &str = r#"{"keys":[]}"#;
const WEST: &str = "west.example";
/// The Envoys of east, and the one of north.
const CLIENT: &str = "client";
const OTHER: &str = "other";
const SERVER: &str = "server";

/// Two Envoys in east: `client` calls `other` and north's `server`, `other` calls that too.
struct Proxies {
    client: Arc<Envoy>,
    other: Envoy,
    server: Envoy,
}

impl Proxies {
    /// Of trust domains that know each other already; `names` is what east's registrations name of themselves.
    async fn start(east: &Domain, north: &Domain, names: &[&str]) -> Result<Self> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let of_north =
            Workload { federates_with: vec!["east.example".to_owned()], ..Workload::named(SERVER) };
        let server = Envoy::ready(north, &of_north).await?;
        let other = Workload { federates_with: names.clone(), ..Workload::named(OTHER) }.calling(&server);
        let other = Envoy::ready(east, &other).await?;
        let client = Workload { federates_with: names, ..Workload::named(CLIENT) };
        let client = Envoy::ready(east, &client.calling(&server).calling(&other)).await?;
        let proxies = Self { client: Arc::new(client), other, server };
        proxies.all_answer().await?;
        Ok(proxies)
    }

    async fn all_answer(&self) -> Result<()> {
        eventually("every Envoy is answered", SOON, || async {
            self.client.call(SERVER).await?;
            self.client.call(OTHER).await?;
            self.other.call(SERVER).await
        })
        .await
    }

    async fn refused(&self) -> Result<u64> {
        Ok(self.client.svids_refused().await? + self.other.svids_refused().await?)
    }

    /// Both Envoys of east are given a new SVID, in good time.
    async fn renewed(&self) -> Result<()> {
        for envoy in [self.client.as_ref(), &self.other] {
            let before = envoy.serial().await?;
            eventually(&format!("{} has a new SVID", envoy.id()), SVID_TTL, || async {
                ensure!(envoy.serial().await? != before, "it has {before}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

fn short() -> Options {
    Options { spire: SpireOptions { svid_ttl: SVID_TTL, ..SpireOptions::default() } }
}

/// North beside a pair whose east has short SVIDs; its logs are kept where the scenario fails.
fn with_north(scenario: impl AsyncFnOnce(&Pair, &Domain) -> Result<()>) {
    with_set_pair(short(), Options::default(), async |pair| {
        let north = Domain::start("north.example", Options::default()).await?;
        let done = scenario(pair, &north).await;
        if done.is_err() {
            north.keep();
        }
        done
    });
}

/// SPIRE alone: the Envoys refuse their own new SVIDs, lose what they had at its end, and one that is restarted has
/// nothing to serve with.
#[test]
fn without_the_agent_an_empty_bundle_stops_every_envoy() {
    with_north(async |pair, north| {
        let (east, west) = (&pair.east, &pair.west);
        let server = BundleServer::start(west).await?;
        east.federate_by_hand_at(west, &server.url(), server.id()).await?;
        east.federate_by_hand(north).await?;
        north.federate_by_hand(east).await?;
        for (here, there) in [(east, WEST), (east, "north.example"), (north, "east.example")] {
            eventually("SPIRE holds the bundle", SOON, || async {
                here.spire.federated_bundles().await?.remove(there).map(drop).context("it does not")
            })
            .await?;
        }
        let mut proxies = Proxies::start(east, north, &[WEST, "north.example"]).await?;
        server.serve(EMPTY);
        east.spire.refresh(WEST).await?;
        eventually("the client refuses its new SVID", SOON, || async {
            ensure!(proxies.client.svids_refused().await? > 0, "it took all");
            Ok(())
        })
        .await?;
        let serial = proxies.client.serial().await?;
        proxies.other.restart().await?;
        let unserved = || async {
            ensure!(proxies.client.serial().await? == serial, "the client has a new SVID");
            ensure!(proxies.client.call(OTHER).await.is_err(), "a restarted Envoy answers");
            Ok(())
        };
        always("nothing is renewed, and nobody served", SVID_TTL + Duration::from_secs(5), unserved).await?;
        eventually("the client is refused by north", SOON, || async {
            ensure!(proxies.client.call(SERVER).await.is_err(), "it is answered");
            Ok(())
        })
        .await
    });
}

/// Calls without end, and how many of them failed.
struct Traffic {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Traffic {
    fn start(client: Arc<Envoy>) -> Self {
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&calls));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let so_far = counted.load(Ordering::Relaxed);
                client.call(SERVER).await.with_context(|| format!("after {so_far} calls to north"))?;
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        });
        Self { stop, calls, task }
    }

    /// None of them failed; how many there were.
    async fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.calls.load(Ordering::Relaxed))
    }
}

/// With the agent: west is suspended within seconds, and from then on every Envoy of east is given its SVIDs, one that is
/// restarted later too, and calls north, while west's bundle is empty and while it flaps. Each flap is held back longer, a
/// restart of the agent forgets none, and in the end federation is back.
#[test]
fn with_the_agent_an_empty_bundle_stops_no_envoy() {
    with_north(async |pair, north| {
        let (east, west) = (&pair.east, &pair.west);
        let server = BundleServer::start(west).await?;
        let mut agent = Agent::start(east, quick())?;
        agent.ready(READY).await?;
        let endpoint = json!({
            "url": server.url(),
            "profile": {"type": "https_spiffe", "endpointSPIFFEID": server.id()},
        });
        east.kubernetes.apply(&with(peer(west).await?, "/spec/bundleEndpoint", endpoint)?).await?;
        east.kubernetes.apply(&peer(north).await?).await?;
        north.federate_by_hand(east).await?;
        for there in [west, north] {
            peer_says(east, there, "BundleDistributed", "True", "Distributed").await?;
        }
        let mut proxies = Proxies::start(east, north, &[]).await?;
        is_federated(east, west, true).await?;
        let traffic = Traffic::start(Arc::clone(&proxies.client));

        let refused =
            poisoned(east, west, &server, &mut proxies).await.context("while the bundle is empty")?;
        flapping(east, west, &server, &mut agent, &proxies).await.context("while it flaps")?;

        is_federated(east, west, true).await?;
        peer_says(east, west, "BundleDistributed", "True", "Distributed").await?;
        proxies.renewed().await?;
        proxies.all_answer().await?;
        let calls = traffic.end().await?;
        ensure!(calls > 100, "only {calls} calls were made");
        eprintln!("{calls} calls to north, none failed; {refused} SVIDs were refused before the suspension");
        Ok(())
    });
}

/// Serves an empty bundle for five lives of an SVID; how many new SVIDs the Envoys refused before they were spared.
async fn poisoned(east: &Domain, west: &Domain, server: &BundleServer, proxies: &mut Proxies) -> Result<u64> {
    server.serve(EMPTY);
    let served = Instant::now();
    // Whether the agent or SPIRE sees it first is chance; here it is SPIRE, which is the worse.
    east.spire.refresh(WEST).await?;
    let said = peer_says(east, west, "BundleDistributed", "False", "SuspendedUnusableBundle").await?;
    ensure!(said.contains("after 3 good fetches"), "{said}");
    is_federated(east, west, false).await?;
    let detected = Instant::now();
    let took = detected - served;
    ensure!(took < Duration::from_secs(10), "it took {took:?}");
    peer_says(east, west, "BundleEndpointHealthy", "False", "NoUsableAuthority").await?;
    proxies.renewed().await?;
    // What came before SPIRE's agent had followed may have been refused; nothing after.
    let refused = proxies.refused().await?;
    proxies.renewed().await?;
    tokio::time::sleep_until(detected + LATER).await;
    ensure!(proxies.refused().await? == refused, "SVIDs are refused still");
    proxies.other.restart().await?;
    proxies.all_answer().await.context("after the restart of an Envoy")?;
    while served.elapsed() < POISONED {
        proxies.renewed().await?;
    }
    ensure!(proxies.client.svids_refused().await? + proxies.other.svids_refused().await? <= refused);
    Ok(refused)
}

/// Good and empty in turns; SVIDs go on all the while, and each time it takes longer to be trusted again.
async fn flapping(
    east: &Domain,
    west: &Domain,
    server: &BundleServer,
    agent: &mut Agent,
    proxies: &Proxies,
) -> Result<()> {
    let good = west.spire.bundle_document().await?;
    for needed in [6, 12] {
        server.serve(good.clone());
        eventually("federation is back", Duration::from_secs(90), || is_federated(east, west, true)).await?;
        server.serve(EMPTY);
        let words = format!("after {needed} good fetches");
        eventually("it is held back longer", SOON, || async {
            let said = of_peer(east, west, "BundleDistributed").await?;
            ensure!(said.1 == "SuspendedUnusableBundle" && said.2.contains(&words), "{said:?}");
            Ok(())
        })
        .await?;
        eventually("federation is suspended", SOON, || is_federated(east, west, false)).await?;
        proxies.renewed().await?;
    }
    let before = found(east, PEER, None, WEST).await?.data["status"]["conditions"].clone();
    agent.stop().await?;
    agent.restart()?;
    agent.ready(READY).await?;
    let remembers = || async {
        let said = of_peer(east, west, "BundleDistributed").await?;
        ensure!(said.2.contains("after 12 good fetches"), "{said:?}; before the restart {before}");
        is_federated(east, west, false).await
    };
    always("a restarted agent remembers the flaps", Duration::from_secs(5), remembers).await?;
    proxies.renewed().await?;
    server.serve(good);
    let served = Instant::now();
    eventually("federation is back", Duration::from_secs(90), || is_federated(east, west, true)).await?;
    let held_back = served.elapsed();
    ensure!(held_back > Duration::from_secs(11), "twelve fetches of a second at least took {held_back:?}");
    Ok(())
}

async fn is_federated(east: &Domain, west: &Domain, wanted: bool) -> Result<()> {
    eventually(&format!("federatesWith west is {wanted}"), Duration::from_secs(5), || async {
        for name in [CLIENT, OTHER] {
            let id = format!("spiffe://east.example/ns/apps/sa/{name}");
            ensure!(federates(east, &id, west).await? == wanted, "{id} does not, or does still");
        }
        Ok(())
    })
    .await
}

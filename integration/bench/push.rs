//! `make bench`, part two: how long after one trust domain's SPIRE has prepared a new authority another's SPIRE holds it: with
//! our agents connected, and with SPIRE alone, from the same authorities in the same run. On real SPIRE and
//! spire-controller-manager, set as they are installed: refresh hint 300 s, our agents without any setting.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a benchmark stops where its own parts are bad"
)]
#![allow(dead_code, reason = "the harness of the cluster ring has more than this needs")]

include!("../cluster/harness.rs");

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::{Agent, AgentOptions};
use anyhow::{Context, Result, bail, ensure};
use entente::proto::spire::server::bundle::v1::ListFederatedBundlesRequest;
use entente::proto::spire::server::bundle::v1::bundle_client::BundleClient;
use entente::proto::spire::server::trustdomain::v1::BatchCreateFederationRelationshipRequest;
use entente::proto::spire::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use entente::proto::spire::types::federation_relationship::BundleEndpointProfile;
use entente::proto::spire::types::{Bundle, FederationRelationship, HttpsspiffeProfile};
use scratch::Scratch;
use serde_json::json;
use spiffe::TrustDomain;
use spire::{Spire, SpireOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use wait::eventually;
use world::{Domain, Options};

/// New authorities, and so samples with push.
const AUTHORITIES: usize = 24;
/// SPIRE servers that poll by themselves; each samples every authority.
const ALONE: usize = 6;
/// SPIRE's default, which makes it poll every 75 s.
const REFRESH_HINT: Duration = Duration::from_secs(300);
const READY: Duration = Duration::from_secs(60);
/// How long SPIRE alone may take.
const LAST: Duration = Duration::from_secs(120);
/// How often it is looked: at the one where a second counts, and at the others.
const LOOK: Duration = Duration::from_millis(20);
const LOOK_ALONE: Duration = Duration::from_millis(500);

/// The DER of a new authority, and when it was prepared.
type New = (Vec<u8>, Instant);
type Prepared = Arc<Vec<New>>;

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<()> {
    let spire = || SpireOptions { refresh_hint: REFRESH_HINT, ..SpireOptions::default() };
    let start = |name: &'static str| Domain::start(name, Options { spire: spire() });
    let (east, west) = tokio::try_join!(start("east.example"), start("west.example"))?;
    let _agents = federate(&east, &west).await?;
    let mut alone = Vec::new();
    for number in 0..ALONE {
        alone.push(Alone::start(&format!("alone-{number}.example"), &spire(), &west).await?);
        // so that they do not poll in step
        tokio::time::sleep(REFRESH_HINT / 4 / u32::try_from(ALONE)?).await;
    }

    let (news, heard) = watch::channel(Prepared::default());
    let mut followers = JoinSet::new();
    let socket = east.spire.server_socket().to_owned();
    followers.spawn(follow(socket, LOOK, heard.clone(), true));
    for one in &alone {
        followers.spawn(follow(one.spire.server_socket().to_owned(), LOOK_ALONE, heard.clone(), false));
    }
    drop(heard);
    prepare(&west, &news).await?;
    drop(news);
    let (mut push, mut poll) = (Vec::new(), Vec::new());
    while let Some(followed) = followers.join_next().await {
        let (is_push, mut samples) = followed??;
        if is_push { push.append(&mut samples) } else { poll.append(&mut samples) }
    }
    println!(
        "new authority prepared at a peer's SPIRE, until our SPIRE holds it (refresh hint {REFRESH_HINT:?}):"
    );
    let (push, poll) = (Figures::of(push)?, Figures::of(poll)?);
    println!("  with our agents connected: {push}");
    println!("  SPIRE alone:               {poll}");
    println!("  ratio of the medians: {:.1}", poll.p50.as_secs_f64() / push.p50.as_secs_f64());
    Ok(())
}

/// Both agents, as they are installed, and a peer on each side.
async fn federate(east: &Domain, west: &Domain) -> Result<(Agent, Agent)> {
    let mut agents =
        (Agent::start(east, AgentOptions::default())?, Agent::start(west, AgentOptions::default())?);
    tokio::try_join!(agents.0.ready(READY), agents.1.ready(READY))?;
    for (here, there) in [(east, west), (west, east)] {
        let peer = json!({
            "apiVersion": "entente.dev/v1alpha1",
            "kind": "TrustDomainPeer",
            "metadata": {"name": there.trust_domain().to_string()},
            "spec": {
                "trustDomain": there.trust_domain().to_string(),
                "bundleEndpoint": {
                    "url": there.bundle_endpoint_url(),
                    "profile": {"type": "https_spiffe", "endpointSPIFFEID": there.spire.bundle_endpoint_id()},
                },
                "bootstrapBundle": {"inline": there.spire.bundle_document().await?},
                "agent": {"addresses": [there.agent_address().to_string()], "spiffeIDs": [there.agent_id()]},
            },
        });
        here.kubernetes.apply(&peer).await?;
    }
    for (here, there) in [(east, west), (west, east)] {
        eventually("both are ready", READY, || async {
            let api = here.kubernetes.api("entente.dev/v1alpha1", "TrustDomainPeer", None).await?;
            let peer = api.get(there.trust_domain().as_str()).await?;
            let conditions = peer.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            ensure!(
                conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"),
                "{conditions:?}"
            );
            Ok(())
        })
        .await?;
    }
    Ok(agents)
}

/// A SPIRE server that federates with west by its own means.
struct Alone {
    spire: Spire,
    _scratch: Scratch,
}

impl Alone {
    async fn start(name: &str, options: &SpireOptions, west: &Domain) -> Result<Self> {
        let scratch = Scratch::new()?;
        let dir = scratch.folder("s")?;
        let mut spire = Spire::prepare(&TrustDomain::new(name)?, &dir, Path::new("/dev/null"), options)?;
        spire.start_server().await?;
        let relationship = FederationRelationship {
            trust_domain: west.trust_domain().to_string(),
            bundle_endpoint_url: west.bundle_endpoint_url(),
            trust_domain_bundle: Some(west.spire.own_bundle().await?),
            bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsSpiffe(HttpsspiffeProfile {
                endpoint_spiffe_id: west.spire.bundle_endpoint_id(),
            })),
        };
        let request =
            BatchCreateFederationRelationshipRequest { federation_relationships: vec![relationship] };
        let mut client = TrustDomainClient::new(spire.api());
        let answer = client.batch_create_federation_relationship(request).await?.into_inner();
        match answer.results.first().and_then(|result| result.status.as_ref()) {
            Some(status) if status.code == 0 => Ok(Self { spire, _scratch: scratch }),
            other => bail!("{name} made no relationship: {other:?}"),
        }
    }
}

/// Has west prepare authorities, one after the other, at moments that keep step with nobody's polling.
async fn prepare(west: &Domain, news: &watch::Sender<Prepared>) -> Result<()> {
    let mut known = authorities(&west.spire.own_bundle().await?);
    for number in 0..AUTHORITIES {
        west.spire.prepare_authority().await?;
        let at = Instant::now();
        let now = authorities(&west.spire.own_bundle().await?);
        let new = now.difference(&known).next().cloned().context("SPIRE prepared nothing new")?;
        known = now;
        news.send_modify(|all| Arc::make_mut(all).push((new, at)));
        let fraction = u64::try_from(number)? * 377 % 1000;
        tokio::time::sleep(Duration::from_secs(8) + Duration::from_millis(fraction * 4)).await;
    }
    Ok(())
}

fn authorities(bundle: &Bundle) -> BTreeSet<Vec<u8>> {
    bundle.x509_authorities.iter().map(|authority| authority.asn1.clone()).collect()
}

/// How long after each authority was prepared the server holds it.
async fn follow(
    socket: std::path::PathBuf,
    look: Duration,
    mut heard: watch::Receiver<Prepared>,
    is_push: bool,
) -> Result<(bool, Vec<Duration>)> {
    let mut client = BundleClient::new(spire::unix_channel(&socket));
    let mut samples: Vec<Duration> = Vec::new();
    let mut waiting: Vec<New> = Vec::new();
    let mut taken = 0;
    loop {
        // in this order, or the last one could be missed
        let ended = heard.has_changed().is_err();
        let all = Arc::clone(&heard.borrow_and_update());
        waiting.extend(all.iter().skip(taken).cloned());
        taken = all.len();
        if ended && waiting.is_empty() {
            return Ok((is_push, samples));
        }
        if !waiting.is_empty() {
            let answer = client.list_federated_bundles(ListFederatedBundlesRequest::default()).await?;
            let held: BTreeSet<Vec<u8>> = answer.into_inner().bundles.iter().flat_map(authorities).collect();
            let (there, not) = waiting.into_iter().partition::<Vec<New>, _>(|(new, _)| held.contains(new));
            samples.extend(there.iter().map(|(_, at)| at.elapsed()));
            waiting = not;
            let late = waiting.iter().find(|(_, at)| at.elapsed() > LAST);
            ensure!(late.is_none(), "{} does not hold an authority after {LAST:?}", socket.display());
        }
        tokio::time::sleep(look).await;
    }
}

struct Figures {
    samples: usize,
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl Figures {
    fn of(mut samples: Vec<Duration>) -> Result<Self> {
        samples.sort();
        let at = |hundredths: usize| {
            let rank = (samples.len() * hundredths).div_ceil(100).max(1);
            samples.get(rank - 1).copied().context("no samples")
        };
        Ok(Self { samples: samples.len(), p50: at(50)?, p99: at(99)?, max: at(100)? })
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { samples, p50, p99, max } = self;
        write!(f, "p50 {p50:>8.2?}  p99 {p99:>8.2?}  longest {max:>8.2?}  ({samples} samples)")
    }
}

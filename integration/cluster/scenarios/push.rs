//! Push: a new authority of one side is held by the other's SPIRE at once, with a receipt; nobody waits for a poll.

use super::{PEER, READY, SOON, both_ready, found, make_peers, peer, with};
use crate::agent::{Agent, AgentOptions};
use crate::pair::{Pair, with_set_pair};
use crate::relay::{Network, Relay};
use crate::spire::SpireOptions;
use crate::wait::eventually;
use crate::world::{Domain, Options};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

/// SPIRE polls every 75 s, and our own agents every 20: what is quicker was told.
const TOLD: Duration = Duration::from_secs(10);

/// A bundle endpoint with SPIRE's default refresh hint.
fn unhurried() -> Options {
    let spire = SpireOptions { refresh_hint: Duration::from_secs(300), ..SpireOptions::default() };
    Options { spire }
}

/// Agents as they are installed.
async fn agents(pair: &Pair) -> Result<(Agent, Agent)> {
    let mut east = Agent::start(&pair.east, AgentOptions::default())?;
    let mut west = Agent::start(&pair.west, AgentOptions::default())?;
    tokio::try_join!(east.ready(READY), west.ready(READY))?;
    Ok((east, west))
}

/// Waits until SPIRE of `here` holds this authority of `there`; how long that took.
pub(super) async fn spire_follows(
    here: &Domain,
    there: &Domain,
    authority: &str,
    within: Duration,
) -> Result<Duration> {
    let (since, name) = (Instant::now(), there.trust_domain().to_string());
    eventually(&format!("SPIRE of {} holds {authority} of {name}", here.trust_domain()), within, || async {
        let bundles = here.spire.federated_bundles().await?;
        let held = bundles.get(&name).context("it holds no bundle")?;
        let wanted = there.spire.own_bundle().await?.x509_authorities;
        ensure!(held.x509_authorities.len() == wanted.len(), "it holds {}", held.x509_authorities.len());
        Ok(())
    })
    .await?;
    Ok(since.elapsed())
}

/// What the TrustDomainPeer for `there` says of our bundle there: its digest, and the one that was receipted.
async fn remote_view(here: &Domain, there: &Domain) -> Result<(String, Option<String>)> {
    let peer = found(here, PEER, None, there.trust_domain().as_str()).await?;
    let view = &peer.data["status"]["remoteView"];
    let text = |name: &str| view[name].as_str().map(str::to_owned);
    Ok((text("digestOfOurs").with_context(|| format!("remoteView {view}"))?, text("receipt")))
}

#[test]
fn a_new_authority_is_held_by_the_peers_spire_within_seconds_and_receipted() {
    with_set_pair(unhurried(), unhurried(), async |pair| {
        let _agents = agents(pair).await?;
        make_peers(pair).await?;
        both_ready(pair).await?;
        for round in 0..3 {
            // Both ways at once: each waits for what the other side alone does.
            let told = [(&pair.east, &pair.west), (&pair.west, &pair.east)].map(|(here, there)| async move {
                let before = remote_view(there, here).await?;
                let authority = there.spire.prepare_authority().await?;
                let took = spire_follows(here, there, &authority, TOLD).await?;
                eprintln!("round {round}: {} held it after {took:?}", here.trust_domain());
                receipted(there, here, &before.0).await.with_context(|| format!("round {round}"))
            });
            futures::future::try_join_all(told).await?;
        }
        both_ready(pair).await
    });
}

/// The receipt comes, and for the new bundle only once SPIRE's agents of the peer had time to follow.
async fn receipted(of: &Domain, by: &Domain, before: &str) -> Result<()> {
    let held = eventually("the peer says that it holds the new bundle", SOON, || async {
        let (digest, receipt) = remote_view(of, by).await?;
        ensure!(digest != before, "it holds {digest}");
        ensure!(receipt.as_deref() != Some(&digest), "the receipt is there already");
        Ok(digest)
    })
    .await?;
    let since = Instant::now();
    eventually("the receipt comes", SOON, || async {
        let (_, receipt) = remote_view(of, by).await?;
        ensure!(receipt.as_deref() == Some(&held), "it is {receipt:?}, and not {held}");
        Ok(())
    })
    .await?;
    ensure!(since.elapsed() > Duration::from_secs(4), "after {:?}: nobody followed so soon", since.elapsed());
    Ok(())
}

/// What a peer tells of is fetched from where its operator's counterpart configured it, and from nowhere else: while the
/// endpoint is cut, the notice changes nothing.
#[test]
fn a_notice_is_no_source_of_trust() {
    with_set_pair(unhurried(), unhurried(), async |pair| {
        let _agents = agents(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        let relay = Relay::start(west.spire.bundle_endpoint()).await?;
        let url = format!("https://{}/", relay.address());
        let of_west = with(peer(west).await?, "/spec/bundleEndpoint/url", json!(url))?;
        east.kubernetes.apply(&of_west).await?;
        west.kubernetes.apply(&peer(east).await?).await?;
        both_ready(pair).await?;
        relay.set(Network::Cut);
        let (accepted, before) = (relay.accepted(), east.spire.federated_bundles().await?);
        west.spire.prepare_authority().await?;
        // It is asked for at 0, 1, 3, 7 and 15 s, and once or twice in its turn.
        eventually("the endpoint is asked", SOON, || async {
            let asked = relay.accepted() - accepted;
            ensure!(asked >= 4, "{asked} times");
            Ok(())
        })
        .await?;
        ensure!(east.spire.federated_bundles().await? == before, "SPIRE holds what nobody verified");
        let asked = relay.accepted() - accepted;
        ensure!(asked <= 10, "a notice that is not confirmed was asked for {asked} times");
        relay.set(Network::Whole);
        both_ready(pair).await
    });
}

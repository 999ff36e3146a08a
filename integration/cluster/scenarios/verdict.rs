//! `Reciprocal`: each reason, made by breaking one thing; what each side says of it, and that it heals when mended.

use super::{Agents, PEER, SOON, both_ready, merge, peer, peer_says, with};
use crate::pair::{Pair, with_pair};
use crate::relay::{Network, Relay};
use crate::wait::eventually;
use crate::world::Part;
use anyhow::{Context, Result, ensure};
use entente::proto::spire::server::bundle::v1::BatchDeleteFederatedBundleRequest;
use entente::proto::spire::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use entente::proto::spire::server::bundle::v1::bundle_client::BundleClient;
use entente::proto::spire::server::trustdomain::v1::BatchDeleteFederationRelationshipRequest;
use entente::proto::spire::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use serde_json::json;

/// What stands between the two: the network from east to west's agent and from west to east's, and to west's endpoint.
struct Between {
    to_west: Relay,
    to_east: Relay,
    to_endpoint: Relay,
}

/// Both sides, federated, with a network in between that can be cut.
async fn federated_over_relays(pair: &Pair) -> Result<(Agents, Between)> {
    let agents = Agents::start(pair).await?;
    let (east, west) = (&pair.east, &pair.west);
    let between = Between {
        to_west: Relay::start(west.agent_address()).await?,
        to_east: Relay::start(east.agent_address()).await?,
        to_endpoint: Relay::start(west.spire.bundle_endpoint()).await?,
    };
    let of_west = with(peer(west).await?, "/spec/agent/addresses", json!([between.to_west.address()]))?;
    let url = format!("https://{}/", between.to_endpoint.address());
    east.kubernetes.apply(&with(of_west, "/spec/bundleEndpoint/url", json!(url))?).await?;
    let of_east = with(peer(east).await?, "/spec/agent/addresses", json!([between.to_east.address()]))?;
    west.kubernetes.apply(&of_east).await?;
    both_ready(pair).await?;
    Ok((agents, between))
}

/// One thing is broken at a time, and mended.
#[test]
fn each_reason_is_named_by_both_sides_and_heals() {
    with_pair(async |pair| {
        let (_agents, between) = federated_over_relays(pair).await?;
        a_cut_network(pair, &between).await.context("a cut network")?;
        an_id_that_is_not_accepted(pair).await.context("an ID that is not accepted")?;
        a_bundle_that_is_not_refreshed(pair, &between).await.context("a bundle that is not refreshed")?;
        a_bundle_that_is_gone(pair, &between).await.context("a bundle that is gone")?;
        a_relationship_that_is_gone(pair).await.context("a relationship that is gone")
    });
}

async fn a_cut_network(pair: &Pair, between: &Between) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    for relay in [&between.to_west, &between.to_east] {
        relay.set(Network::Cut);
    }
    peer_says(east, west, "Reciprocal", "Unknown", "PeerUnreachable").await?;
    peer_says(west, east, "Reciprocal", "Unknown", "PeerUnreachable").await?;
    for relay in [&between.to_west, &between.to_east] {
        relay.set(Network::Whole);
    }
    both_ready(pair).await
}

async fn an_id_that_is_not_accepted(pair: &Pair) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    let accepts = |id: String| json!({"spec": {"agent": {"spiffeIDs": [id]}}});
    merge(west, PEER, None, "east.example", accepts("spiffe://east.example/other".to_owned())).await?;
    peer_says(east, west, "Reciprocal", "False", "PeerRefusesUs").await?;
    peer_says(west, east, "Reciprocal", "Unknown", "AwaitingPeer").await?;
    merge(west, PEER, None, "east.example", accepts(east.agent_id())).await?;
    both_ready(pair).await
}

async fn a_bundle_that_is_not_refreshed(pair: &Pair, between: &Between) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    between.to_endpoint.set(Network::Cut);
    peer_says(east, west, "BundleEndpointHealthy", "False", "EndpointUnreachable").await?;
    let authority = west.spire.prepare_authority().await?;
    let message = peer_says(west, east, "RotationSafe", "False", "PeerLacksAuthority").await?;
    ensure!(message.contains(&authority), "{message}");
    peer_says(west, east, "Reciprocal", "False", "PeerHoldsStaleBundle").await?;
    // West holds east's bundle as it should: of that side nothing is wrong.
    peer_says(east, west, "Reciprocal", "True", "Confirmed").await?;
    between.to_endpoint.set(Network::Whole);
    both_ready(pair).await?;
    peer_says(west, east, "RotationSafe", "True", "PeersHoldAuthorities").await?;
    Ok(())
}

async fn a_bundle_that_is_gone(pair: &Pair, between: &Between) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    between.to_endpoint.set(Network::Cut);
    peer_says(east, west, "BundleEndpointHealthy", "False", "EndpointUnreachable").await?;
    let trust_domains = vec!["west.example".to_owned()];
    let request = BatchDeleteFederatedBundleRequest { trust_domains, mode: Mode::Dissociate.into() };
    BundleClient::new(east.spire.api()).batch_delete_federated_bundle(request).await?;
    peer_says(east, west, "Reciprocal", "False", "WeDoNotHoldPeerBundle").await?;
    let refused = eventually("west says that east has no bundle", SOON, || async {
        let (status, reason, message) = super::of_peer(west, east, "Reciprocal").await?;
        ensure!(status == "False", "{reason}: {message}");
        ensure!(["PeerRefusesUs", "PeerHoldsStaleBundle"].contains(&reason.as_str()), "{reason}: {message}");
        Ok(message)
    });
    refused.await?;
    between.to_endpoint.set(Network::Whole);
    both_ready(pair).await
}

async fn a_relationship_that_is_gone(pair: &mut Pair) -> Result<()> {
    pair.east.stop(Part::SpireControllerManager).await?;
    let (east, west) = (&pair.east, &pair.west);
    let request = BatchDeleteFederationRelationshipRequest { trust_domains: vec!["west.example".to_owned()] };
    TrustDomainClient::new(east.spire.api()).batch_delete_federation_relationship(request).await?;
    peer_says(east, west, "Reciprocal", "False", "WeDoNotHoldPeerBundle").await?;
    peer_says(west, east, "Reciprocal", "False", "PeerHasNoRelationship").await?;
    pair.east.restart(Part::SpireControllerManager).await?;
    both_ready(pair).await
}

/// Neither side has an address of the other: nothing is heard, and nothing is concluded.
#[test]
fn silence_is_no_verdict() {
    with_pair(async |pair| {
        let _agents = Agents::start(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        for (here, there) in [(east, west), (west, east)] {
            let silent = with(peer(there).await?, "/spec/agent/addresses", json!([]))?;
            here.kubernetes.apply(&silent).await?;
        }
        for (here, there) in [(east, west), (west, east)] {
            peer_says(here, there, "BundleDistributed", "True", "Distributed").await?;
            // Not what is said before anything was concluded: that has other words.
            eventually("it says that one side needs an address", SOON, || async {
                let said = super::of_peer(here, there, "Reciprocal").await?;
                ensure!(said.0 == "Unknown" && said.1 == "AwaitingPeer", "{said:?}");
                ensure!(said.2.contains("one side needs an address"), "{said:?}");
                Ok(())
            })
            .await?;
        }
        east.kubernetes.apply(&peer(west).await?).await?;
        both_ready(pair).await
    });
}

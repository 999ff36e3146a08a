//! SPIRE below an upstream authority that knows nothing of trust domains: cert-manager, by SPIRE's own plugin.

use super::{Agents, both_ready, federated, peer_says, spire_holds};
use crate::pair::{Pair, with_own_pair};
use crate::spire::{SpireOptions, Upstream};
use crate::world::{Domain, Options};
use anyhow::{Context, Result, ensure};
use entente::model::Authority;
use std::time::Duration;

/// The one authority that a domain publishes.
async fn root(domain: &Domain) -> Result<Authority> {
    let bundle = domain.spire.own_bundle().await?;
    let [authority] = bundle.x509_authorities.as_slice() else {
        anyhow::bail!("{} authorities, where a root alone is published", bundle.x509_authorities.len());
    };
    Ok(Authority::parse(&authority.asn1)?)
}

/// Roots that name no trust domain are as good as any: both sides federate, hold each other's root, and know whose it is after a
/// restart too; what each SPIRE signs with changes below it, and nobody has to fetch anything.
#[test]
fn two_domains_below_cert_manager_federate_and_rotate() {
    // Short lives: SPIRE lets an authority below another live no longer than it asked for.
    let spire = SpireOptions {
        upstream: Upstream::CertManager,
        ca_ttl: Duration::from_secs(3600),
        ..SpireOptions::default()
    };
    let options = Options { spire };
    with_own_pair(options.clone(), options, async |pair| {
        let roots = (root(&pair.east).await?, root(&pair.west).await?);
        ensure!(roots.0.names().is_none() && roots.1.names().is_none(), "the roots name trust domains");
        ensure!(roots.0.fingerprint() != roots.1.fingerprint(), "they share a root");
        let mut agents = federated(pair).await?;
        for (here, there) in [(&pair.east, &pair.west), (&pair.west, &pair.east)] {
            spire_holds(here, there).await?;
            peer_says(here, there, "BundleEndpointHealthy", "True", "Healthy").await?;
        }
        rotate(pair, &agents).await?;
        ensure!(root(&pair.west).await?.fingerprint() == roots.1.fingerprint(), "the root was changed");
        ensure!(agents.east.stop().await? == 0, "the agent ended badly");
        drop(agents);
        agents = Agents::start(pair).await?;
        both_ready(pair).await?;
        drop(agents);
        Ok(())
    });
}

/// West signs with another authority below its root; east goes on without having fetched any.
async fn rotate(pair: &Pair, agents: &Agents) -> Result<()> {
    let (code, printed, said) = agents.west.command(&["rotate", "x509", "--timeout", "1m"]).await?;
    ensure!(code == 0, "rotate: {printed}{said}");
    peer_says(&pair.west, &pair.east, "RotationSafe", "True", "PeersHoldAuthorities").await?;
    both_ready(pair).await.context("after the rotation")
}

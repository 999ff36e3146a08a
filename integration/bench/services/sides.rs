//! East, which imports, and west, which exports, with agents as they are installed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, DynamicObject};
use serde_json::{Value, json};

use crate::agent::{Agent, AgentOptions};
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain, Options};

pub(crate) const READY: Duration = Duration::from_secs(90);
pub(crate) const PEER: (&str, &str) = ("entente.dev/v1alpha1", "TrustDomainPeer");
pub(crate) const SERVICE: (&str, &str) = ("entente.dev/v1alpha1", "FederatedService");
pub(crate) const IMPORTED: (&str, &str) = ("entente.dev/v1alpha1", "ImportedService");
pub(crate) const SERVICE_ENTRY: (&str, &str) = ("networking.istio.io/v1", "ServiceEntry");

/// Fields are in the order in which they go.
pub(crate) struct Sides {
    pub(crate) in_east: Agent,
    pub(crate) in_west: Agent,
    pub(crate) east: Domain,
    pub(crate) west: Domain,
}

impl Sides {
    /// Both, and each a peer of the other.
    pub(crate) async fn start() -> Result<Self> {
        let start = |name: &'static str| Domain::start(name, Options::default());
        let (east, west) = tokio::try_join!(start("east.example"), start("west.example"))?;
        let in_east = Agent::start(&east, AgentOptions::default())?;
        let in_west = Agent::start(&west, AgentOptions::default())?;
        let mut sides = Self { in_east, in_west, east, west };
        tokio::try_join!(sides.in_east.ready(READY), sides.in_west.ready(READY))?;
        sides.east.kubernetes.apply(&peer(&sides.west).await?).await?;
        sides.west.kubernetes.apply(&peer(&sides.east).await?).await?;
        is_ready(&sides.east, "west.example").await?;
        is_ready(&sides.west, "east.example").await?;
        Ok(sides)
    }
}

/// The TrustDomainPeer of a domain, which admits whatever it exports.
async fn peer(there: &Domain) -> Result<Value> {
    let name = there.trust_domain().to_string();
    Ok(json!({
        "apiVersion": PEER.0,
        "kind": PEER.1,
        "metadata": {"name": name},
        "spec": {
            "trustDomain": name,
            "bundleEndpoint": {
                "url": there.bundle_endpoint_url(),
                "profile": {"type": "https_spiffe", "endpointSPIFFEID": there.spire.bundle_endpoint_id()},
            },
            "bootstrapBundle": {"inline": there.spire.bundle_document().await?},
            "agent": {"addresses": [there.agent_address().to_string()], "spiffeIDs": [there.agent_id()]},
            "imports": {"services": [{"namespace": "*", "name": "*"}], "maxServices": 10_000},
        },
    }))
}

/// Waits until a domain's peer is Ready.
pub(crate) async fn is_ready(domain: &Domain, peer: &str) -> Result<()> {
    let all = api(domain, PEER, None).await?;
    eventually(&format!("{peer} is ready in {}", domain.trust_domain()), READY, || async {
        let peer = all.get(peer).await?;
        let conditions = peer.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is_ready = |it: &Value| it["type"] == "Ready" && it["status"] == "True";
        ensure!(conditions.iter().any(is_ready), "{conditions:?}");
        Ok(())
    })
    .await
}

/// The API of a kind of ours or Istio's.
pub(crate) async fn api(
    domain: &Domain,
    kind: (&str, &str),
    namespace: Option<&str>,
) -> Result<Api<DynamicObject>> {
    domain.kubernetes.api(kind.0, kind.1, namespace).await
}

/// What the agent generates of a kind.
pub(crate) async fn generated(domain: &Domain, kind: (&str, &str)) -> Result<Api<DynamicObject>> {
    api(domain, kind, Some(AGENT_NAMESPACE)).await
}

/// Waits until an agent has written nothing for three seconds; how many writes it has made, Leases left out.
pub(crate) async fn at_rest(domain: &Domain, within: Duration) -> Result<usize> {
    let quiet = Duration::from_secs(3);
    let mut last = (writes(domain)?, tokio::time::Instant::now());
    let started = last.1;
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = writes(domain)?;
        if now != last.0 {
            last = (now, tokio::time::Instant::now());
        } else if last.1.elapsed() >= quiet {
            return Ok(now);
        }
        let waited = started.elapsed();
        ensure!(waited < within, "the agent of {} writes on after {waited:?}", domain.trust_domain());
    }
}

/// How many writes an agent has asked for, Leases left out.
pub(crate) fn writes(domain: &Domain) -> Result<usize> {
    let all = domain.kubernetes.writes_of(crate::kubernetes::AGENT_USER)?;
    Ok(all.iter().filter(|write| write.resource != "leases").count())
}

/// The uid of an object.
pub(crate) async fn uid(domain: &Domain, kind: (&str, &str), name: &str) -> Result<String> {
    api(domain, kind, None).await?.get(name).await?.metadata.uid.context("an object without uid")
}

//! What the agents do on real parts, one subject a file.

mod admin;
mod behaviour;
mod chart;
mod cli;
mod definitions;
mod diagnose;
mod disconnection;
mod dns;
#[cfg(target_os = "linux")]
mod docs;
mod ending;
mod enrol;
mod examples;
mod exports;
mod federation;
mod gateways;
mod health;
mod hostile;
mod injection;
mod kind;
mod mesh;
mod observe;
mod one_sided;
mod poison;
#[cfg(target_os = "linux")]
mod proxies;
mod push;
mod reach;
mod replicas;
mod restart;
mod revocation;
mod rival;
mod rotation;
mod scale;
mod services;
mod trio;
mod uninstall;
mod upstream;
mod values;
mod verdict;

use crate::agent::{Agent, AgentOptions};
use crate::pair::Pair;
use crate::wait::eventually;
use crate::world::{Domain, peer};
use anyhow::{Context, Result, bail, ensure};
use entente::proto::spire::types::Bundle;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::Value;
use std::time::Duration;

/// How long the agents, SPIRE and spire-controller-manager may take for what is a matter of seconds.
const SOON: Duration = Duration::from_secs(30);
const READY: Duration = Duration::from_secs(30);
/// Short times for all that an agent waits for.
const TIMING: [&str; 8] = [
    "--drain-seconds=2",
    "--agent-follow-seconds=2",
    "--bundle-poll-min-seconds=1",
    "--bundle-poll-max-seconds=4",
    "--spire-poll-seconds=4",
    "--dial-min-seconds=1",
    "--dial-max-seconds=2",
    "--lease-seconds=3",
];
const API: &str = "entente.dev/v1alpha1";
const PEER: (&str, &str) = (API, "TrustDomainPeer");
const SERVICE: (&str, &str) = (API, "FederatedService");
const IMPORTED: (&str, &str) = (API, "ImportedService");
const CFTD: (&str, &str) = ("spire.spiffe.io/v1alpha1", "ClusterFederatedTrustDomain");
const STATIC_ENTRY: (&str, &str) = ("spire.spiffe.io/v1alpha1", "ClusterStaticEntry");
const SERVICE_ENTRY: (&str, &str) = ("networking.istio.io/v1", "ServiceEntry");
const GATEWAY: (&str, &str) = ("networking.istio.io/v1", "Gateway");
const POLICY: (&str, &str) = ("security.istio.io/v1", "AuthorizationPolicy");

/// The options of an agent with short times.
fn quick() -> AgentOptions {
    AgentOptions { args: TIMING.map(str::to_owned).to_vec(), ..AgentOptions::default() }
}

/// An agent in each domain. Dropped before the domains are.
struct Agents {
    east: Agent,
    west: Agent,
}

impl Agents {
    /// Starts both; returns once both are ready.
    async fn start(pair: &Pair) -> Result<Self> {
        let mut agents =
            Self { east: Agent::start(&pair.east, quick())?, west: Agent::start(&pair.west, quick())? };
        tokio::try_join!(agents.east.ready(READY), agents.west.ready(READY))?;
        Ok(agents)
    }
}

/// A change to one place of an object, by JSON pointer.
fn with(mut object: Value, pointer: &str, value: Value) -> Result<Value> {
    let place = object.pointer_mut(pointer).with_context(|| format!("there is no {pointer}"))?;
    *place = value;
    Ok(object)
}

/// Makes each side a peer of the other.
async fn make_peers(pair: &Pair) -> Result<()> {
    pair.east.kubernetes.apply(&peer(&pair.west).await?).await?;
    pair.west.kubernetes.apply(&peer(&pair.east).await?).await?;
    Ok(())
}

/// Both agents, federated and Ready on both sides.
async fn federated(pair: &Pair) -> Result<Agents> {
    let agents = Agents::start(pair).await?;
    make_peers(pair).await?;
    both_ready(pair).await?;
    Ok(agents)
}

async fn both_ready(pair: &Pair) -> Result<()> {
    for (here, there) in [(&pair.east, &pair.west), (&pair.west, &pair.east)] {
        peer_says(here, there, "Reciprocal", "True", "Confirmed").await?;
        peer_says(here, there, "Ready", "True", "Ready").await?;
    }
    Ok(())
}

/// A condition: status, reason, message.
type Said = (String, String, String);

async fn object(
    domain: &Domain,
    (api_version, kind): (&str, &str),
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<DynamicObject>> {
    Ok(domain.kubernetes.api(api_version, kind, namespace).await?.get_opt(name).await?)
}

/// An object that must be there.
async fn found(
    domain: &Domain,
    kind: (&str, &str),
    namespace: Option<&str>,
    name: &str,
) -> Result<DynamicObject> {
    let object = object(domain, kind, namespace, name).await?;
    object.with_context(|| format!("{} has no {} {name}", domain.trust_domain(), kind.1))
}

/// Waits until an object is gone.
async fn gone(domain: &Domain, kind: (&str, &str), namespace: Option<&str>, name: &str) -> Result<()> {
    let what = format!("{} of {} is gone: {name}", kind.1, domain.trust_domain());
    eventually(&what, SOON, || async {
        match object(domain, kind, namespace, name).await? {
            None => Ok(()),
            Some(left) => bail!("it is there: {}", serde_json::to_string(&left)?),
        }
    })
    .await
}

async fn delete(domain: &Domain, kind: (&str, &str), namespace: Option<&str>, name: &str) -> Result<()> {
    domain.kubernetes.api(kind.0, kind.1, namespace).await?.delete(name, &DeleteParams::background()).await?;
    Ok(())
}

/// Changes fields of an object by JSON merge patch.
async fn merge(
    domain: &Domain,
    kind: (&str, &str),
    namespace: Option<&str>,
    name: &str,
    change: Value,
) -> Result<()> {
    let api = domain.kubernetes.api(kind.0, kind.1, namespace).await?;
    api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(())
}

fn condition(object: &DynamicObject, condition: &str) -> Result<Said> {
    let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|one| one["type"] == condition);
    let found =
        found.with_context(|| format!("no condition {condition}; status {}", object.data["status"]))?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason"), text("message")))
}

/// What a TrustDomainPeer says in one of its conditions.
async fn of_peer(here: &Domain, there: &Domain, name: &str) -> Result<Said> {
    condition(&found(here, PEER, None, there.trust_domain().as_str()).await?, name)
}

/// Waits until the TrustDomainPeer for `there` says so; the message.
async fn peer_says(here: &Domain, there: &Domain, name: &str, status: &str, reason: &str) -> Result<String> {
    let what =
        format!("{}'s peer {} says {name}={status}, {reason}", here.trust_domain(), there.trust_domain());
    eventually(&what, SOON, || async {
        let whole = found(here, PEER, None, there.trust_domain().as_str()).await?;
        let said = condition(&whole, name)?;
        if said.0 == status && said.1 == reason {
            return Ok(said.2);
        }
        bail!("{said:?}; all of it: {}", whole.data["status"]["conditions"])
    })
    .await
}

/// Whether SPIRE's entry of this SPIFFE ID federates with a trust domain.
async fn federates(here: &Domain, id: &str, there: &Domain) -> Result<bool> {
    let entries = here.spire.entries().await?;
    let entry = entries.get(id).with_context(|| format!("SPIRE has no entry {id}"))?;
    Ok(entry.federates_with.iter().any(|name| *name == there.trust_domain().to_string()))
}

/// Waits until SPIRE has the relationship with `there` and its very authorities.
async fn spire_holds(here: &Domain, there: &Domain) -> Result<()> {
    let name = there.trust_domain().to_string();
    eventually(&format!("SPIRE of {} holds {name}", here.trust_domain()), SOON, || async {
        ensure!(here.spire.relationships().await?.contains_key(&name), "no relationship");
        let bundles = here.spire.federated_bundles().await?;
        // What the agent gives SPIRE is in an order of its own.
        let sorted = |bundle: &Bundle| {
            let all = bundle.x509_authorities.iter().map(|authority| authority.asn1.clone());
            all.collect::<std::collections::BTreeSet<_>>()
        };
        let held = sorted(bundles.get(&name).context("no bundle")?);
        let own = sorted(&there.spire.own_bundle().await?);
        ensure!(held == own, "{} authorities, not its own {}", held.len(), own.len());
        Ok(())
    })
    .await
}

//! Three trust domains that scenarios share: east, which imports, of two others. North is honest, with an agent; in
//! west's place speaks the test (`hostile.rs`), unless a scenario starts west's own agent.

use super::services::cart;
use super::{IMPORTED, PEER, READY, SERVICE_ENTRY, SOON, found, peer, peer_says, quick, with};
use crate::agent::Agent;
use crate::hostile::{Hostile, Line, Outcomes};
use crate::pair::runtime;
use crate::turn::{Turn, conclude};
use crate::wait::{always, eventually};
use crate::world::{AGENT_NAMESPACE, Domain, Options};
use anyhow::{Context, Result, ensure};
use entente::proto::federation::v1::Service;
use kube::api::{Api, DynamicObject, ListParams};
use kube::discovery::{ApiResource, Discovery, verbs};
use prost::Message as _;
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(super) const WEST: &str = "west.example";
/// What north exports, as east calls it.
pub(super) const HONEST: &str = "cart.shop.north.example";
/// What east exports to north stands behind this gateway.
pub(super) const OWN_GATEWAY: &str = "10.88.1.1";
/// How long nothing more may come of an offer.
const QUIET: Duration = Duration::from_secs(1);
/// What no agent of three services comes near, in KiB.
const MOST_MEMORY: u64 = 200 * 1024;

/// Fields are in the order in which they go.
pub(super) struct Trio {
    pub(super) hostile: Hostile,
    pub(super) in_east: Agent,
    pub(super) in_north: Agent,
    /// Does not run, unless a scenario starts it.
    pub(super) in_west: Agent,
    pub(super) east: Domain,
    pub(super) west: Domain,
    pub(super) north: Domain,
    kinds: Vec<ApiResource>,
    /// Whether the scenario itself has had north's service made anew.
    pub(super) is_made_anew: Cell<bool>,
}

/// Every object of a cluster but Leases and Events: its resourceVersion by `Kind namespace/name`.
pub(super) type Everything = BTreeMap<String, String>;

impl Trio {
    async fn start() -> Result<Self> {
        let start = |name| Domain::start_at_once(name, Options::default());
        let (east, west, north) = tokio::join!(start("east.example"), start(WEST), start("north.example"));
        let (east, west, north) = (east?, west?, north?);
        let (in_east, in_north, in_west) =
            (Agent::start(&east, quick())?, Agent::start(&north, quick())?, Agent::start(&west, quick())?);
        match federate([&east, &west, &north], [in_east, in_west, in_north]).await {
            Ok((hostile, [in_east, in_west, in_north])) => {
                let kinds = kinds(&east).await?;
                let is_made_anew = Cell::new(false);
                Ok(Self { hostile, in_east, in_north, in_west, east, west, north, kinds, is_made_anew })
            }
            Err(error) => {
                for domain in [&east, &west, &north] {
                    domain.keep();
                }
                Err(error)
            }
        }
    }

    /// Brings east back to how each scenario finds it: west admitted whole, with an agent that does not run, and nothing
    /// imported from it. The line to east on which the hostile peer has said so.
    async fn calm(&mut self) -> Result<Line> {
        if self.in_west.process.is_running() {
            self.in_west.stop().await?;
        }
        self.east.kubernetes.apply(&peer(&self.west).await?).await?;
        let line = self.hostile.greet().await?;
        eventually("nothing is imported from west", SOON, || async {
            let left: Vec<_> = self.everything().await?.into_keys().filter(|it| it.contains(WEST)).collect();
            let imports: Vec<_> = left.iter().filter(|it| it.contains(AGENT_NAMESPACE)).collect();
            ensure!(imports.is_empty(), "{imports:?}");
            Ok(())
        })
        .await?;
        Ok(line)
    }

    /// What a scenario may not have harmed: the agent of east, and what it has of north.
    async fn well(&mut self, honest: &[DynamicObject]) -> Result<()> {
        ensure!(
            self.in_east.process.is_running(),
            "the agent has ended: {}",
            self.in_east.process.log_tail()
        );
        self.in_east.ready(Duration::from_secs(5)).await?;
        let log = self.in_east.log();
        ensure!(!log.contains("panicked"), "{}", self.in_east.process.log_tail());
        let memory = self.memory()?;
        ensure!(memory < MOST_MEMORY, "the agent takes {memory} KiB");
        if self.is_made_anew.take() {
            return self.honest().await.map(drop);
        }
        self.keeps(honest).await
    }

    /// The resident memory of east's agent, in KiB.
    pub(super) fn memory(&self) -> Result<u64> {
        let pid = self.in_east.process.pid().context("it does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().next().context("no number")?.parse()?)
    }

    /// What east has of north's service.
    pub(super) async fn honest(&self) -> Result<Vec<DynamicObject>> {
        let imported = found(&self.east, IMPORTED, Some(AGENT_NAMESPACE), HONEST).await?;
        Ok(vec![imported, found(&self.east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), HONEST).await?])
    }

    /// East has these of north still, by uid, and as they were.
    pub(super) async fn keeps(&self, honest: &[DynamicObject]) -> Result<()> {
        for (before, now) in honest.iter().zip(self.honest().await?) {
            ensure!(before.metadata.uid == now.metadata.uid, "{HONEST} was replaced");
            ensure!(before.data["spec"] == now.data["spec"], "{HONEST}: {}", now.data["spec"]);
        }
        Ok(())
    }

    /// Everything in east.
    pub(super) async fn everything(&self) -> Result<Everything> {
        everything(&self.east, &self.kinds).await
    }

    /// Offers these to east, and holds that exactly the services `imported` come of it: nothing else is made, nothing is
    /// lost, and what there is of Istio and of the cluster itself is not written. What became of each.
    pub(super) async fn offer(
        &self,
        line: &Line,
        services: &[Vec<u8>],
        imported: &[&str],
    ) -> Result<Outcomes> {
        let before = self.everything().await?;
        let outcomes = line.offer(services).await?;
        let entry = |host: &str| {
            [
                format!("ImportedService {AGENT_NAMESPACE}/{host}"),
                format!("ServiceEntry {AGENT_NAMESPACE}/{host}"),
            ]
        };
        let imported: BTreeSet<String> = imported.iter().map(|name| format!("{name}.{WEST}")).collect();
        let expected: BTreeSet<String> = imported.iter().flat_map(|host| entry(host)).collect();
        let only_these = || async {
            let now = self.everything().await?;
            let made: BTreeSet<&String> = now.keys().filter(|it| !before.contains_key(*it)).collect();
            ensure!(made == expected.iter().collect(), "made {made:?}, not {expected:?}");
            let lost: Vec<&String> = before.keys().filter(|it| !now.contains_key(*it)).collect();
            ensure!(lost.is_empty(), "lost {lost:?}");
            let written = |(name, version): &(&String, &String)| {
                is_still(name) && before.get(*name).is_some_and(|before| before != *version)
            };
            let written: Vec<_> = now.iter().filter(written).collect();
            ensure!(written.is_empty(), "written {written:?}");
            Ok(())
        };
        eventually("what was admitted is made", SOON, only_these).await?;
        always("nothing else is made", QUIET, only_these).await?;
        for host in &imported {
            let entry = found(&self.east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), host).await?;
            is_harmless(host, &entry)?;
        }
        Ok(outcomes)
    }

    /// The condition ServicesSynced of west in east says all of this.
    pub(super) async fn says(&self, words: &[&str]) -> Result<()> {
        eventually(&format!("the peer's status says {words:?}"), SOON, || async {
            let peer = found(&self.east, PEER, None, WEST).await?;
            let (_, _, message) = super::condition(&peer, "ServicesSynced")?;
            for word in words {
                ensure!(message.contains(word), "{message}");
            }
            Ok(())
        })
        .await
    }
}

/// The bytes of services.
pub(super) fn encoded(services: &[Service]) -> Vec<Vec<u8>> {
    services.iter().map(Service::encode_to_vec).collect()
}

/// Kinds whose objects nobody writes while nothing is imported.
fn is_still(name: &str) -> bool {
    let kind = name.split(' ').next().unwrap_or_default();
    !matches!(
        kind,
        "TrustDomainPeer"
            | "ClusterFederatedTrustDomain"
            | "ClusterStaticEntry"
            | "ImportedService"
            | "FederatedService"
            | "BundleAudit"
            | "APIService"
            | "FlowSchema"
            | "PriorityLevelConfiguration"
            | "CustomResourceDefinition"
            | "ConfigMap"
    )
}

/// What is generated for a service of west serves its own name alone, pins identities of west, and carries no label that
/// is not ours.
pub(super) fn is_harmless(host: &str, entry: &DynamicObject) -> Result<()> {
    let spec = &entry.data["spec"];
    ensure!(spec["hosts"] == json!([host]), "{spec}");
    let pinned = spec["subjectAltNames"].as_array().context("nothing is pinned")?;
    ensure!(!pinned.is_empty(), "nothing is pinned: {spec}");
    let of_west = format!("spiffe://{WEST}/");
    ensure!(pinned.iter().all(|it| it.as_str().is_some_and(|it| it.starts_with(&of_west))), "{spec}");
    for endpoint in spec["endpoints"].as_array().context("no endpoints")? {
        ensure!(endpoint["labels"] == json!({"security.istio.io/tlsMode": "istio"}), "{spec}");
    }
    let labels = entry.metadata.labels.clone().unwrap_or_default();
    ensure!(labels.keys().all(|label| label.starts_with("entente.dev/")), "{labels:?}");
    let annotations = entry.metadata.annotations.clone().unwrap_or_default();
    ensure!(annotations.keys().all(|it| it.starts_with("entente.dev/")), "{annotations:?}");
    Ok(())
}

/// Every object of these kinds in a domain, as its API server's cache has it, and of each the metadata alone: scenarios look
/// again and again, and a list of CRDs is half a megabyte of schemas.
pub(super) async fn everything(domain: &Domain, kinds: &[ApiResource]) -> Result<Everything> {
    let mut all = Everything::new();
    for kind in kinds {
        let api = Api::<DynamicObject>::all_with(domain.kubernetes.client.clone(), kind);
        for object in
            api.list_metadata(&ListParams::default().match_any()).await.with_context(|| kind.kind.clone())?
        {
            let metadata = object.metadata;
            let place = metadata.namespace.map(|it| format!("{it}/")).unwrap_or_default();
            let name = format!("{} {place}{}", kind.kind, metadata.name.unwrap_or_default());
            all.insert(name, metadata.resource_version.unwrap_or_default());
        }
    }
    Ok(all)
}

/// Every kind that a domain has, but Leases and Events.
pub(super) async fn kinds(domain: &Domain) -> Result<Vec<ApiResource>> {
    let discovery = Discovery::new(domain.kubernetes.client.clone()).run().await?;
    let all = discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources);
    Ok(all
        .filter(|(_, capabilities)| capabilities.supports_operation(verbs::LIST))
        .map(|(kind, _)| kind)
        .filter(|kind| !matches!(kind.kind.as_str(), "Lease" | "Event" | "ComponentStatus"))
        .collect())
}

/// East with the other two, and north's service imported; then west's agent ends, and the hostile peer has its identity.
async fn federate(
    [east, west, north]: [&Domain; 3],
    mut agents: [Agent; 3],
) -> Result<(Hostile, [Agent; 3])> {
    for agent in &mut agents {
        agent.ready(READY).await?;
    }
    for other in [west, north] {
        east.kubernetes.apply(&peer(other).await?).await?;
        other.kubernetes.apply(&peer(east).await?).await?;
    }
    for other in [west, north] {
        peer_says(east, other, "Ready", "True", "Ready").await?;
        peer_says(other, east, "Ready", "True", "Ready").await?;
    }
    north.kubernetes.namespace("shop").await?;
    let own_ids = json!(["spiffe://north.example/ns/shop/sa/cart"]);
    north.kubernetes.apply(&with(cart(), "/spec/serverSPIFFEIDs", own_ids)?).await?;
    east.kubernetes.namespace("web").await?;
    east.kubernetes.apply(&exported_to_north()).await?;
    eventually("east has north's service", SOON, || {
        found(east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), HONEST)
    })
    .await?;
    ensure!(agents[1].stop().await? == 0, "west's agent ended badly");
    Ok((Hostile::start(west, east).await?, agents))
}

fn exported_to_north() -> Value {
    json!({
        "apiVersion": super::SERVICE.0,
        "kind": super::SERVICE.1,
        "metadata": {"name": "own", "namespace": "web"},
        "spec": {
            "workloadLabels": {"app": "own"},
            "ports": [{"name": "tcp", "port": 18080, "targetPort": 8080}],
            "tlsMode": "IstioMtls",
            "exportedTrustDomains": ["north.example"],
            "clients": {"spiffeIDs": ["spiffe://north.example/ns/web/sa/any"]},
            "serverSPIFFEIDs": ["spiffe://east.example/ns/web/sa/own"],
            "gateways": [{"type": "istio-eastwestgateway", "port": 15443, "ip": OWN_GATEWAY}],
        },
    })
}

/// Runs a scenario on the shared three, which it finds calm, and holds that it harmed neither the agent of east nor what that
/// has of north. The line is open, and nothing was offered on it. If it fails, logs are kept, and the next gets new domains.
pub(super) fn with_trio(scenario: impl AsyncFnOnce(&mut Trio, Line) -> Result<()>) {
    static SHARED: Mutex<Option<Trio>> = Mutex::new(None);
    let turn = Turn::of_trio();
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let done = runtime().block_on(async {
        let mut trio = match shared.take() {
            Some(trio) => trio,
            None => Trio::start().await?,
        };
        let done = async {
            let line = trio.calm().await?;
            let honest = trio.honest().await?;
            scenario(&mut trio, line).await?;
            trio.well(&honest).await.context("after the attack")
        };
        let done = done.await;
        if done.is_ok() {
            // Three domains that nobody uses cost the others time.
            *shared = Some(trio).filter(|_| !turn.is_last_of_trio());
        } else {
            for domain in [&trio.east, &trio.west, &trio.north] {
                domain.keep();
            }
        }
        done
    });
    drop(shared);
    conclude(done);
}

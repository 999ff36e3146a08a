//! West with several replicas behind one address, east with one agent; and what scenarios see of them.

use crate::agent::{Agent, AgentOptions};
use crate::balancer::Balancer;
use crate::pair::Pair;
use crate::ports;
use crate::scenarios::{IMPORTED, READY, SERVICE_ENTRY, SOON, both_ready, found, peer, quick, with};
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt as _;
use kube::api::{Api, DynamicObject, ListParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const LEASE: (&str, &str) = ("coordination.k8s.io/v1", "Lease");
pub(super) const LEADER: &str = "entente-leader";
/// By trust domains' own names.
const EAST: &str = "east.example";
const WEST: &str = "west.example";

/// The agents, dropped before the domains are.
pub(super) struct Stand<'a> {
    pub(super) pair: &'a Pair,
    pub(super) replicas: Vec<Agent>,
    pub(super) east: Agent,
    /// Where east dials west.
    pub(super) balancer: Balancer,
}

/// A lease that is long enough for a leader on a crowded machine to renew it in time, where nobody waits for it to run out.
pub(super) const LONG_LEASE: u32 = 15;
/// One that others wait out.
pub(super) const SHORT_LEASE: u32 = 5;

/// Short times for all but the lease of the leader.
fn with_lease(seconds: u32) -> AgentOptions {
    let mut options = quick();
    options.args.retain(|arg| !arg.starts_with("--lease-seconds"));
    options.args.push(format!("--lease-seconds={seconds}"));
    options
}

/// The options of a replica of this number, on addresses of its own.
pub(super) fn replica(number: usize, lease: u32, kubeconfig: Option<PathBuf>) -> Result<AgentOptions> {
    let mut options = AgentOptions {
        name: format!("replica-{number}"),
        listen: Some(ports::free()?),
        admin_listen: Some(ports::free()?),
        kubeconfig,
        ..with_lease(lease)
    };
    options.args.push(format!("--replica=replica-{number}"));
    options.args.push(format!("--relay-listen={}", ports::free()?));
    Ok(options)
}

impl<'a> Stand<'a> {
    /// All of them, federated and well.
    pub(super) async fn new(pair: &'a Pair, options: Vec<AgentOptions>) -> Result<Self> {
        let mut replicas = Vec::new();
        for options in options {
            let mut agent = Agent::start(&pair.west, options)?;
            // one after the other, so that the first leads at first
            agent.ready(READY).await?;
            replicas.push(agent);
        }
        let balancer = Balancer::start(replicas.iter().map(Agent::listen).collect()).await?;
        let mut east = Agent::start(&pair.east, with_lease(LONG_LEASE))?;
        east.ready(READY).await?;
        let stand = Self { pair, replicas, east, balancer };
        stand.at(stand.balancer.address()).await?;
        // East alone dials.
        let of_east = with(peer(&pair.east).await?, "/spec/agent/addresses", json!([]))?;
        pair.west.kubernetes.apply(&of_east).await?;
        both_ready(pair).await?;
        Ok(stand)
    }

    /// Has east dial west here.
    pub(super) async fn at(&self, address: SocketAddr) -> Result<()> {
        let of_west =
            with(peer(&self.pair.west).await?, "/spec/agent/addresses", json!([address.to_string()]))?;
        self.pair.east.kubernetes.apply(&of_west).await?;
        Ok(())
    }

    /// The number of the replica that leads, by the Lease.
    pub(super) async fn leader(&self) -> Result<usize> {
        holder(&self.pair.west).await?.context("nobody leads")
    }

    /// Waits until another than this one leads.
    pub(super) async fn another_leads(&self, than: usize) -> Result<usize> {
        eventually("another leads", SOON, || async {
            let leader = self.leader().await?;
            ensure!(leader != than, "{than} still does, by the Lease");
            Ok(leader)
        })
        .await
    }

    /// What `entente about` says of a replica.
    pub(super) async fn about(&self, number: usize) -> Result<String> {
        let replica = self.replicas.get(number).context("no such replica")?;
        let (code, out, err) = replica.command(&["about"]).await?;
        ensure!(code == 0, "about: {code}: {err}");
        Ok(out)
    }
}

/// The number of the replica that holds the Lease; none where it is given up.
pub(super) async fn holder(domain: &Domain) -> Result<Option<usize>> {
    let lease = found(domain, LEASE, Some(AGENT_NAMESPACE), LEADER).await?;
    let holder = lease.data["spec"]["holderIdentity"].as_str().unwrap_or_default();
    match holder.strip_prefix("replica-") {
        Some(number) => Ok(Some(number.parse()?)),
        None if holder.is_empty() => Ok(None),
        None => bail!("it is {holder:?}"),
    }
}

/// A FederatedService `change-N` of `here` in namespace `shop`, for `there`.
pub(super) fn change(number: usize, here: &str, there: &str) -> Value {
    let name = format!("change-{number}");
    // no peer has a gateway where we have ours
    let gateway = if here == EAST { "10.77.1.1" } else { "10.77.2.2" };
    json!({
        "apiVersion": "entente.dev/v1alpha1",
        "kind": "FederatedService",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "workloadLabels": {"app": name},
            "ports": [{"name": "tcp", "port": 10_000 + number, "targetPort": 8080}],
            "tlsMode": "IstioMtls",
            "exportedTrustDomains": [there],
            "clients": {"spiffeIDs": [format!("spiffe://{there}/ns/web/sa/frontend")]},
            "serverSPIFFEIDs": [format!("spiffe://{here}/ns/shop/sa/{name}")],
            "gateways": [{"type": "istio-eastwestgateway", "port": 15443, "ip": gateway}],
        },
    })
}

/// What changes without end: services of east that west imports, services of west that east imports, and what west admits.
pub(super) struct Changes {
    task: JoinHandle<Result<usize>>,
    stop: tokio::sync::watch::Sender<bool>,
    /// When each was made.
    pub(super) made: Arc<Mutex<BTreeMap<usize, Instant>>>,
}

impl Changes {
    pub(super) async fn start(pair: &Pair, first: usize, every: Duration) -> Result<Self> {
        pair.east.kubernetes.namespace("shop").await?;
        pair.west.kubernetes.namespace("shop").await?;
        let east = pair.east.kubernetes.api("entente.dev/v1alpha1", "FederatedService", Some("shop")).await?;
        let west = pair.west.kubernetes.api("entente.dev/v1alpha1", "FederatedService", Some("shop")).await?;
        let peers = pair.west.kubernetes.api("entente.dev/v1alpha1", "TrustDomainPeer", None).await?;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let made = Arc::new(Mutex::new(BTreeMap::new()));
        let times = Arc::clone(&made);
        let task = tokio::spawn(async move {
            let mut number = first;
            while !*stopped.borrow() {
                let (api, here, there) =
                    if number.is_multiple_of(2) { (&east, EAST, WEST) } else { (&west, WEST, EAST) };
                times.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Instant::now());
                let object: DynamicObject = serde_json::from_value(change(number, here, there))?;
                api.create(&kube::api::PostParams::default(), &object).await?;
                if number.is_multiple_of(8) {
                    let admitted = json!([{"namespace": "*", "name": "*"}, {"namespace": "shop", "name": format!("only-{number}")}]);
                    let change = json!({"spec": {"imports": {"services": admitted}}});
                    let params = kube::api::PatchParams::default();
                    peers.patch(EAST, &params, &kube::api::Patch::Merge(change)).await?;
                }
                number += 1;
                tokio::time::sleep(every).await;
            }
            Ok(number)
        });
        Ok(Self { task, stop, made })
    }

    /// Ends them; the number after the last.
    pub(super) async fn stop(self) -> Result<usize> {
        self.stop.send_replace(true);
        self.task.await?
    }
}

/// Writes down each version of each object of a kind that there ever is.
pub(super) struct Recorder {
    pub(super) seen: Arc<Mutex<BTreeMap<String, Versions>>>,
    task: JoinHandle<()>,
}

/// When an object was first there, and its versions.
#[derive(Clone, Debug)]
pub(super) struct Versions {
    pub(super) first: Instant,
    pub(super) all: BTreeSet<String>,
}

impl Recorder {
    pub(super) async fn start(domain: &Domain, kind: (&str, &str), namespace: Option<&str>) -> Result<Self> {
        let api: Api<DynamicObject> = domain.kubernetes.api(kind.0, kind.1, namespace).await?;
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let listed = api.list(&ListParams::default()).await?;
        let mut version = listed.metadata.resource_version.unwrap_or_default();
        let record = Arc::clone(&seen);
        let note = move |object: &DynamicObject| {
            let mut seen = record.lock().unwrap_or_else(PoisonError::into_inner);
            let name = object.metadata.name.clone().unwrap_or_default();
            let fresh = || Versions { first: Instant::now(), all: BTreeSet::new() };
            let versions: &mut Versions = seen.entry(name).or_insert_with(fresh);
            versions.all.insert(object.metadata.resource_version.clone().unwrap_or_default());
        };
        listed.items.iter().for_each(&note);
        let task = tokio::spawn(async move {
            loop {
                let Ok(events) = api.watch(&WatchParams::default(), &version).await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let mut events = std::pin::pin!(events);
                while let Some(Ok(event)) = events.next().await {
                    if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event {
                        version = object.metadata.resource_version.clone().unwrap_or_default();
                        note(&object);
                    }
                }
            }
        });
        Ok(Self { seen, task })
    }

    pub(super) fn seen(&self) -> BTreeMap<String, Versions> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When it was first there.
    pub(super) fn first(&self, name: &str) -> Option<Instant> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(name).map(|versions| versions.first)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The host of a change, where it is imported, and in which domain that is.
pub(super) fn import(number: usize, pair: &Pair) -> (&Domain, String) {
    if number.is_multiple_of(2) {
        (&pair.west, format!("change-{number}.shop.{EAST}"))
    } else {
        (&pair.east, format!("change-{number}.shop.{WEST}"))
    }
}

/// Every change up to this one is applied on the other side, as it was made.
pub(super) async fn all_applied(pair: &Pair, to: usize) -> Result<()> {
    let number_of = |name: &str| name.strip_prefix("change-")?.split_once('.')?.0.parse::<usize>().ok();
    eventually("every change is applied", Duration::from_secs(90), || async {
        let mut applied = BTreeSet::new();
        for domain in [&pair.east, &pair.west] {
            for kind in [IMPORTED, SERVICE_ENTRY] {
                let api = domain.kubernetes.api(kind.0, kind.1, Some(AGENT_NAMESPACE)).await?;
                for object in api.list(&ListParams::default()).await? {
                    let name = object.metadata.name.unwrap_or_default();
                    let Some(number) = number_of(&name) else { continue };
                    let port = match kind.1 {
                        "ServiceEntry" => &object.data["spec"]["ports"][0]["number"],
                        _ => &object.data["spec"]["ports"][0]["port"],
                    };
                    ensure!(*port == 10_000 + number, "{name}: port {port}");
                    applied.insert((number, kind.1));
                }
            }
        }
        let missing: Vec<usize> = (0..to)
            .filter(|n| {
                !applied.contains(&(*n, "ServiceEntry")) || !applied.contains(&(*n, "ImportedService"))
            })
            .collect();
        ensure!(missing.is_empty(), "of {to} are missing: {missing:?}");
        Ok(())
    })
    .await
}

/// The middle and the greatest.
pub(super) fn summary(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    (middle, times.last().copied().unwrap_or_default())
}

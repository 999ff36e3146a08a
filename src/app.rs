//! The composition root: builds the agent, binds its listeners, starts its tasks; answers with the bound addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apply::{Applier, Targets};
use crate::bundle::endpoint::{EndpointClient, web_roots};
use crate::bundle::monitor::PollLimits;
use crate::bundle::watch::RefreshHandle;
use crate::clock;
use crate::config::{AgentArgs, StoreArg};
use crate::control::{self, Control, Enrolment};
use crate::diagnose::Diagnoser;
use crate::enrol::join::Joiner;
use crate::enrol::{Desk, Invites};
use crate::federation::diagnose::{PathProbe, Questions};
use crate::federation::{Federation, FederationConfig, Timings};
use crate::identity::source::IdentitySource;
use crate::identity::workload::WorkloadEndpoint;
use crate::index::run::{Ask, Inputs, Outputs, WorldHandle};
use crate::index::{self, Index};
use crate::leases;
use crate::model::endpoint::{EndpointState, MonitorTarget};
use crate::model::object::Kind;
use crate::model::session::{LinkPlan, SessionState};
use crate::model::world::{Relationships, Settings};
use crate::model::{ObjectKey, TrustDomain};
use crate::observe::{admin, metrics::Metrics};
use crate::plan::Plan;
use crate::reach::{Reached, Trier};
use crate::spire::replicas::{Connect, Replicas};
use crate::spire::watch::{Intervals, SpireWatch};
use crate::spire::{ServerAddress, SpireServer, tcp};
use crate::store::{DirectoryStore, DirectoryTimings, KubernetesStore, Leadership, LeaseTimings, Store};

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// Where peers reach it.
    pub listen: SocketAddr,
    /// Where health and metrics are.
    pub admin: SocketAddr,
    /// Whether every source has been read.
    pub ready: watch::Receiver<bool>,
    /// What it wants to be there.
    pub plans: watch::Receiver<Arc<Plan>>,
    cancel: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Agent {
    /// Runs until `cancel` was called on it, or a task ended early, which ends the agent.
    ///
    /// # Errors
    /// What ended it early.
    pub async fn wait(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.context("a task of the agent panicked").and_then(|ended| ended);
            if result.is_ok() && (ended.is_err() || !self.cancel.is_cancelled()) {
                result = ended.and_then(|()| anyhow::bail!("a task of the agent ended early"));
            }
            self.cancel.cancel();
        }
        if self.cancel.is_cancelled() { result } else { Ok(()) }
    }

    /// Asks it to say goodbye to its peers, give up its leases and end; [`Agent::wait`] then returns.
    pub fn stop(&self) {
        self.cancel.cancel();
    }
}

/// Starts an agent. Nothing that it needs must be there yet: it listens, and retries the rest.
///
/// # Errors
/// A flag that cannot be used, or an address that cannot be bound.
pub async fn start(args: &AgentArgs, cancel: CancellationToken) -> anyhow::Result<Agent> {
    let settings = settings(args);
    let store = open_store(args).await?;
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let sources = spawn_sources(&mut tasks, args, &cancel)?;
    let metrics = Arc::new(Metrics::default());
    let (ready_sender, ready) = watch::channel(false);
    let replica = replica(args);
    let leadership = lead(args, &store, &replica);

    let (link_sender, links) = watch::channel(Arc::default());
    let (open_sender, open) = watch::channel(false);
    tasks.spawn(open_to_peers(leadership.leading(), ready.clone(), open_sender, cancel.clone()));
    let (worlds, asks) = WorldHandle::new();
    let enrolment = enrolment(args, &store, &sources);
    let desk = desk(&enrolment, &sources, &worlds)?;
    tasks.spawn(finish(enrolment.joiner.unfinished.clone(), cancel.clone()));
    let federation = Federation::start(
        federation_config(args),
        sources.identity.clone(),
        links.clone(),
        open,
        Some(Arc::new(desk)),
        cancel.clone(),
    )
    .await
    .with_context(|| format!("--listen {}", args.listen))?;
    let (listen, sessions) = (federation.local_addr, federation.states.clone());
    let (peers, questions) = (federation.probe, federation.questions);
    supervise(&mut tasks, federation.join);

    let (admin, admin_task) =
        admin::serve(args.admin_listen, ready.clone(), Arc::clone(&metrics), cancel.clone())
            .await
            .with_context(|| format!("--admin-listen {}", args.admin_listen))?;
    supervise(&mut tasks, admin_task);

    let planning = Planning {
        store: store.clone(),
        settings: Arc::clone(&settings),
        sessions: sessions.clone(),
        links: link_sender,
        ready: ready_sender,
        metrics: Arc::clone(&metrics),
        asks,
        tries: Tries {
            every: Duration::from_secs(args.timing.gateway_check_seconds.max(1)),
            leading: leadership.leading(),
        },
    };
    let targets = sources.targets(store.clone(), metrics);
    let control = control(
        args,
        &sources,
        &leadership,
        Operators { worlds, replica: replica.clone(), enrolment, peers },
    )?;
    let (plans, failures) = planning.spawn(&mut tasks, sources, &cancel);
    spawn_control(&mut tasks, args, control, questions, &cancel).await?;
    spawn_writer(
        &mut tasks,
        Applier::new(targets, plans.clone(), leadership.leading(), failures),
        leadership,
        &cancel,
    );
    let keeping = leases::Keeper { store, settings, replica, links, sessions };
    tasks.spawn(keeping.run(cancel.clone()));

    tracing::info!(%listen, %admin, store = %args.store, version = env!("CARGO_PKG_VERSION"), "the agent runs");
    Ok(Agent { listen, admin, ready, plans, cancel, tasks })
}

/// What operators' commands work with, beside the sources.
struct Operators {
    worlds: WorldHandle,
    replica: String,
    enrolment: Enrolment,
    peers: PathProbe,
}

fn control(
    args: &AgentArgs,
    sources: &Sources,
    leadership: &Leadership,
    operators: Operators,
) -> anyhow::Result<Control> {
    let Operators { worlds, replica, enrolment, peers } = operators;
    let diagnoser = Diagnoser {
        worlds: worlds.clone(),
        leading: leadership.leading(),
        replica: replica.clone(),
        workload_api: args.workload_api.parse().context("--workload-api")?,
        admin_hint: args.admin_hint.clone(),
        spire: sources.server.clone(),
        endpoints: sources.client.clone(),
        peers,
    };
    Ok(Control {
        worlds,
        leading: leadership.leading(),
        replica,
        diagnoser,
        enrolment,
        replicas: sources.replicas.clone(),
        spire: sources.spire.clone(),
        rotating: Arc::default(),
    })
}

/// Answers peers that ask what we see, watches over open invites, and serves the control socket.
async fn spawn_control(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    args: &AgentArgs,
    control: Control,
    questions: Questions,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    supervise(tasks, tokio::spawn(control.diagnoser.clone().serve(questions, cancel.clone())));
    let following = control.enrolment.invites.clone().follow(control.leading.clone(), cancel.clone());
    tasks.spawn(async move {
        following.await;
        Ok(())
    });
    if !args.control.as_os_str().is_empty() {
        let serving = control::serve(&args.control, control, cancel.clone()).await.context("--control")?;
        supervise(tasks, serving);
    }
    Ok(())
}

/// What is followed beside the store and the peers.
struct Sources {
    identity: IdentitySource,
    server: SpireServer,
    replicas: Replicas,
    spire: SpireWatch,
    client: EndpointClient,
    endpoints: watch::Receiver<Arc<BTreeMap<TrustDomain, EndpointState>>>,
    /// Which bundle endpoints are followed.
    monitors: watch::Sender<Arc<BTreeMap<TrustDomain, MonitorTarget>>>,
    ask_again: RefreshHandle,
}

impl Sources {
    fn targets(&self, store: Store, metrics: Arc<Metrics>) -> Targets {
        Targets {
            store,
            spire: self.server.clone(),
            spire_watch: self.spire.clone(),
            identity: self.identity.subscribe(),
            metrics,
        }
    }
}

fn spawn_sources(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    args: &AgentArgs,
    cancel: &CancellationToken,
) -> anyhow::Result<Sources> {
    let endpoint: WorkloadEndpoint = args.workload_api.parse().context("--workload-api")?;
    let (identity, identity_task) =
        IdentitySource::spawn(endpoint, Some(args.admin_hint.clone()), cancel.clone());
    supervise(tasks, identity_task);

    let (server, addresses, connect) = spire_servers(args, &identity)?;
    let intervals = Intervals::default();
    let (replicas, replicas_task) = Replicas::spawn(addresses, connect, intervals.bundles, cancel.clone());
    supervise(tasks, replicas_task);
    let (spire, spire_task) =
        SpireWatch::spawn(server.clone(), replicas.clone(), identity.subscribe(), intervals, cancel.clone());
    supervise(tasks, spire_task);

    let (monitors, targets) = watch::channel(Arc::default());
    let client = EndpointClient::new(roots(args)?);
    let limits = poll_limits(args);
    let (endpoints, endpoint_task, ask_again) = crate::bundle::watch::spawn(
        client.clone(),
        limits,
        targets,
        Arc::new(clock::precise),
        cancel.clone(),
    );
    supervise(tasks, endpoint_task);
    Ok(Sources { identity, server, replicas, spire, client, endpoints, monitors, ask_again })
}

/// What the planning is made of, beside the sources.
struct Planning {
    store: Store,
    settings: Arc<Settings>,
    sessions: watch::Receiver<Arc<BTreeMap<TrustDomain, SessionState>>>,
    links: watch::Sender<Arc<BTreeMap<TrustDomain, LinkPlan>>>,
    ready: watch::Sender<bool>,
    metrics: Arc<Metrics>,
    asks: mpsc::Receiver<Ask>,
    tries: Tries,
}

/// How often, and by which replica, gateways are tried.
struct Tries {
    every: Duration,
    leading: watch::Receiver<bool>,
}

/// What cannot be written, by object.
type Failures = Arc<BTreeMap<ObjectKey, String>>;

impl Planning {
    /// The plans, and where the writer tells what failed.
    fn spawn(
        self,
        tasks: &mut JoinSet<anyhow::Result<()>>,
        sources: Sources,
        cancel: &CancellationToken,
    ) -> (watch::Receiver<Arc<Plan>>, watch::Sender<Failures>) {
        let (plan_sender, plans) = watch::channel(Arc::new(Plan::default()));
        let (failure_sender, failures) = watch::channel(Failures::default());
        let (wanted_sender, wanted) = watch::channel(BTreeMap::new());
        let (found_sender, found) = mpsc::channel(4);
        let (mesh_sender, mesh) = watch::channel(None);
        let (reached_sender, reached) = watch::channel(Reached::default());
        let inputs = Inputs {
            store: self.store.watch(&Kind::WATCHED),
            identity: sources.identity.subscribe(),
            workload_failure: sources.identity.failures(),
            spire: sources.spire.subscribe(),
            endpoints: sources.endpoints,
            sessions: self.sessions,
            bootstraps: found,
            reached,
            mesh,
            failures,
            asks: self.asks,
            asked: Vec::new(),
        };
        let outputs = Outputs {
            plans: plan_sender,
            links: self.links,
            monitors: sources.monitors,
            bootstraps: wanted_sender,
            ask_again: sources.ask_again,
            ready: self.ready,
            metrics: self.metrics,
        };
        let of_mesh =
            index::mesh::follow(self.store.clone(), Arc::clone(&self.settings), mesh_sender, cancel.clone());
        tasks.spawn(async move {
            of_mesh.await;
            Ok(())
        });
        let index = Index::new(self.settings, clock::now());
        let trier = Trier {
            every: self.tries.every,
            plans: plans.clone(),
            leading: self.tries.leading,
            reached: reached_sender,
        };
        let trying = trier.run(cancel.clone());
        tasks.spawn(async move {
            trying.await;
            Ok(())
        });
        tasks.spawn(index::run::run(index, inputs, outputs, clock::precise, cancel.clone()));
        let following = index::bootstrap::follow(self.store, wanted, found_sender, cancel.clone());
        tasks.spawn(async move {
            following.await;
            Ok(())
        });
        (plans, failure_sender)
    }
}

fn enrolment(args: &AgentArgs, store: &Store, sources: &Sources) -> Enrolment {
    Enrolment {
        invites: Invites::new(store.clone(), &args.namespace, &args.instance),
        joiner: Joiner {
            store: store.clone(),
            source: sources.identity.clone(),
            endpoints: sources.client.clone(),
            unfinished: TaskTracker::new(),
        },
        reach: args.reach.clone(),
        leader_lease: leader_lease(args),
    }
}

fn desk(enrolment: &Enrolment, sources: &Sources, worlds: &WorldHandle) -> Result<Desk, rustls::Error> {
    let Joiner { store, unfinished, .. } = enrolment.joiner.clone();
    Desk::new(&sources.identity, enrolment.invites.clone(), store, worlds.clone(), unfinished)
}

/// An agent that stops ends what it must not leave half way: each of these is bounded by itself.
async fn finish(unfinished: TaskTracker, cancel: CancellationToken) -> anyhow::Result<()> {
    cancel.cancelled().await;
    unfinished.close();
    unfinished.wait().await;
    Ok(())
}

fn leader_lease(args: &AgentArgs) -> String {
    format!("{}-leader", args.instance)
}

fn lead(args: &AgentArgs, store: &Store, replica: &str) -> Leadership {
    let duration = Duration::from_secs(args.timing.lease_seconds.max(3));
    let timings = LeaseTimings { duration, deadline: duration.mul_f64(0.66), retry: duration.div_f64(7.0) };
    store.lead(&leader_lease(args), replica, timings)
}

/// Peers are talked to by the replica that leads, once every source has been read: they keep one stream with us, and
/// who does not know its peers yet would refuse them.
async fn open_to_peers(
    mut leading: watch::Receiver<bool>,
    mut ready: watch::Receiver<bool>,
    open: watch::Sender<bool>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let is_open = *leading.borrow_and_update() && *ready.borrow_and_update();
        open.send_if_modified(|last| std::mem::replace(last, is_open) != is_open);
        let ended = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = leading.changed() => changed.err().map(|_| "the leader election"),
            changed = ready.changed() => changed.err().map(|_| "the planning"),
        };
        // Once the agent is told to stop, these end, and one may have been seen before that.
        match ended {
            Some(_) if cancel.is_cancelled() => return Ok(()),
            Some(what) => anyhow::bail!("{what} ended though the agent runs"),
            None => {}
        }
    }
}

/// The leader writes; it gives its Lease up when the agent stops.
fn spawn_writer(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    applier: Applier,
    leadership: Leadership,
    cancel: &CancellationToken,
) {
    let cancel = cancel.clone();
    tasks.spawn(async move {
        applier.run(cancel).await;
        leadership.release().await;
        Ok(())
    });
}

fn supervise(tasks: &mut JoinSet<anyhow::Result<()>>, task: tokio::task::JoinHandle<()>) {
    tasks.spawn(async move { task.await.context("a task of the agent panicked") });
}

fn settings(args: &AgentArgs) -> Arc<Settings> {
    Arc::new(Settings {
        instance: args.instance.clone(),
        namespace: args.namespace.clone(),
        spire_class_name: args.spire_class_name.clone(),
        relationships: match args.store {
            StoreArg::Kubernetes => Relationships::ControllerManager,
            StoreArg::Directory(_) => Relationships::ServerApi,
        },
        drain: args.timing.drain(),
        poll_interval: Duration::from_secs(args.timing.spire_poll_seconds),
        agent_follow: Duration::from_secs(args.timing.agent_follow_seconds),
        good_fetches: 3,
        checks_gateways: args.timing.gateway_check_seconds != 0,
        ..args.cluster.settings(Settings::standard())
    })
}

async fn open_store(args: &AgentArgs) -> anyhow::Result<Store> {
    match &args.store {
        StoreArg::Kubernetes => {
            let store = KubernetesStore::connect(&args.namespace, &args.instance).await.context(
                "--store kubernetes: no cluster by KUBECONFIG or in-cluster configuration; set one, or --store dir:PATH",
            )?;
            Ok(Store::Kubernetes(store))
        }
        StoreArg::Directory(path) => {
            let store = DirectoryStore::open(path, DirectoryTimings::default())
                .with_context(|| format!("--store dir:{}", path.display()))?;
            Ok(Store::Directory(store))
        }
    }
}

/// The first SPIRE server, where all are, and how each is reached.
fn spire_servers(
    args: &AgentArgs,
    identity: &IdentitySource,
) -> anyhow::Result<(SpireServer, Vec<ServerAddress>, Connect)> {
    let parsed = args.spire_server.iter().map(|text| ServerAddress::parse(text));
    let addresses: Vec<ServerAddress> = parsed.collect::<Result<_, _>>().context("--spire-server")?;
    let identity = identity.clone();
    let connect: Connect = Arc::new(move |address| match address {
        ServerAddress::Unix(path) => Ok(SpireServer::connect_unix(path)),
        ServerAddress::Tcp(address) => {
            let configs = tcp::admin_configs(identity.clone())?;
            SpireServer::connect_tcp(address, configs)
        }
    });
    let first = addresses.first().context("--spire-server: name at least one SPIRE server")?;
    let server = connect(first).context("--spire-server")?;
    Ok((server, addresses, connect))
}

fn roots(args: &AgentArgs) -> anyhow::Result<rustls::RootCertStore> {
    let extra = match &args.web_roots {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("--web-roots {}: it cannot be read", path.display()))?,
    };
    web_roots(&extra).context("--web-roots")
}

fn poll_limits(args: &AgentArgs) -> PollLimits {
    let max = Duration::from_secs(args.timing.bundle_poll_max_seconds.max(1));
    let min = Duration::from_secs(args.timing.bundle_poll_min_seconds.max(1)).min(max);
    PollLimits { min_interval: min, max_interval: max, default_interval: max }
}

fn federation_config(args: &AgentArgs) -> FederationConfig {
    let timings = Timings {
        backoff_min: Duration::from_secs(args.timing.dial_min_seconds.max(1)),
        backoff_max: Duration::from_secs(args.timing.dial_max_seconds.max(1)),
        ..Timings::default()
    };
    FederationConfig { listen: args.listen, timings }
}

fn replica(args: &AgentArgs) -> String {
    if !args.replica.is_empty() {
        return args.replica.clone();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_empty() { "entente".to_owned() } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn peers_are_talked_to_by_a_leader_that_has_read_everything() {
        let (leading, leads) = watch::channel(false);
        let (ready, is_ready) = watch::channel(false);
        let (open, mut opened) = watch::channel(false);
        let cancel = CancellationToken::new();
        let task = tokio::spawn(open_to_peers(leads, is_ready, open, cancel.clone()));
        let mut becomes = async |is_leader: bool, is_read: bool| {
            leading.send_replace(is_leader);
            ready.send_replace(is_read);
            let wanted = is_leader && is_read;
            tokio::time::timeout(Duration::from_secs(10), opened.wait_for(|open| *open == wanted))
                .await
                .unwrap()
                .unwrap();
        };
        for (is_leader, is_read) in [(true, true), (false, true), (true, true), (true, false), (true, true)] {
            becomes(is_leader, is_read).await;
        }
        cancel.cancel();
        drop(leading);
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_election_that_ends_ends_the_agent() {
        let ready = watch::channel(true);
        let leads = watch::channel(true).1;
        let ended = open_to_peers(leads, ready.1, watch::Sender::new(false), CancellationToken::new()).await;
        assert!(ended.unwrap_err().to_string().contains("leader election"));
    }
}

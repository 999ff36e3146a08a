//! The composition root: builds the agent, binds its listeners, starts its tasks; answers with the bound addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::{Applier, Targets};
use crate::bundle::endpoint::{EndpointClient, web_roots};
use crate::bundle::monitor::PollLimits;
use crate::clock;
use crate::config::{AgentArgs, StoreArg};
use crate::federation::{Federation, FederationConfig, Timings};
use crate::identity::source::IdentitySource;
use crate::identity::workload::WorkloadEndpoint;
use crate::index::run::{Inputs, Outputs};
use crate::index::{self, Index};
use crate::leases;
use crate::model::object::Kind;
use crate::model::world::{Relationships, Settings};
use crate::observe::{admin, metrics::Metrics};
use crate::plan::Plan;
use crate::spire::watch::{Intervals, SpireWatch};
use crate::spire::{ServerAddress, SpireServer, tcp};
use crate::store::{DirectoryStore, DirectoryTimings, KubernetesStore, LeaseTimings, Store};

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

    let endpoint: WorkloadEndpoint = args.workload_api.parse().context("--workload-api")?;
    let (identity, identity_task) =
        IdentitySource::spawn(endpoint, Some(args.admin_hint.clone()), cancel.clone());
    supervise(&mut tasks, identity_task);

    let server = spire_server(args, &identity)?;
    let (spire, spire_task) =
        SpireWatch::spawn(server.clone(), identity.subscribe(), Intervals::default(), cancel.clone());
    supervise(&mut tasks, spire_task);

    let (monitor_sender, monitors) = watch::channel(Arc::default());
    let client = EndpointClient::new(roots(args)?);
    let limits = poll_limits(args);
    let (endpoints, endpoint_task, _) =
        crate::bundle::watch::spawn(client, limits, monitors, Arc::new(clock::now), cancel.clone());
    supervise(&mut tasks, endpoint_task);

    let (link_sender, links) = watch::channel(Arc::default());
    let federation =
        Federation::start(federation_config(args), identity.clone(), links.clone(), cancel.clone())
            .await
            .with_context(|| format!("--listen {}", args.listen))?;
    let listen = federation.local_addr;
    let sessions = federation.states.clone();
    supervise(&mut tasks, federation.join);

    let (plan_sender, plans) = watch::channel(Arc::new(Plan::default()));
    let (ready_sender, ready) = watch::channel(false);
    let (failure_sender, failures) = watch::channel(Arc::new(BTreeMap::new()));
    let (wanted_sender, wanted) = watch::channel(BTreeMap::new());
    let (found_sender, found) = mpsc::channel(4);
    let metrics = Arc::new(Metrics::default());

    let (admin, admin_task) =
        admin::serve(args.admin_listen, ready.clone(), Arc::clone(&metrics), cancel.clone())
            .await
            .with_context(|| format!("--admin-listen {}", args.admin_listen))?;
    supervise(&mut tasks, admin_task);

    let inputs = Inputs {
        store: store.watch(&Kind::WATCHED),
        identity: identity.subscribe(),
        spire: spire.subscribe(),
        endpoints,
        sessions: sessions.clone(),
        bootstraps: found,
        failures,
    };
    let outputs = Outputs {
        plans: plan_sender,
        links: link_sender,
        monitors: monitor_sender,
        bootstraps: wanted_sender,
        ready: ready_sender,
        metrics: Arc::clone(&metrics),
    };
    let index = Index::new(Arc::clone(&settings), clock::now());
    tasks.spawn(index::run::run(index, inputs, outputs, clock::now, cancel.clone()));
    let following = index::bootstrap::follow(store.clone(), wanted, found_sender, cancel.clone());
    tasks.spawn(async move {
        following.await;
        Ok(())
    });

    let replica = replica(args);
    let targets = Targets {
        store: store.clone(),
        spire: server,
        spire_watch: spire,
        identity: identity.subscribe(),
        metrics,
    };
    spawn_writer(&mut tasks, args, targets, &replica, plans.clone(), failure_sender, cancel.clone());
    let keeping = leases::Keeper { store, settings, replica, links, sessions };
    tasks.spawn(keeping.run(cancel.clone()));

    tracing::info!(%listen, %admin, store = %args.store, version = env!("CARGO_PKG_VERSION"), "the agent runs");
    Ok(Agent { listen, admin, ready, plans, cancel, tasks })
}

/// The leader writes; it gives its Lease up when the agent stops.
fn spawn_writer(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    args: &AgentArgs,
    targets: Targets,
    replica: &str,
    plans: watch::Receiver<Arc<Plan>>,
    failures: watch::Sender<Arc<BTreeMap<crate::model::ObjectKey, String>>>,
    cancel: CancellationToken,
) {
    let duration = Duration::from_secs(args.timing.lease_seconds.max(3));
    let timings = LeaseTimings { duration, deadline: duration.mul_f64(0.66), retry: duration.div_f64(7.0) };
    let leadership = targets.store.lead(&format!("{}-leader", args.instance), replica, timings);
    let applier = Applier::new(targets, plans, leadership.leading(), failures);
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
        good_fetches: 3,
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

fn spire_server(args: &AgentArgs, identity: &IdentitySource) -> anyhow::Result<SpireServer> {
    match ServerAddress::parse(&args.spire_server).context("--spire-server")? {
        ServerAddress::Unix(path) => Ok(SpireServer::connect_unix(path)),
        ServerAddress::Tcp(address) => {
            let configs = tcp::admin_configs(identity.clone()).context("--spire-server")?;
            SpireServer::connect_tcp(&address, configs).context("--spire-server")
        }
    }
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

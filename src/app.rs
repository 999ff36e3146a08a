//! The composition root: builds the agent, binds its listeners, starts its tasks; answers with the bound addresses.

mod leading;
mod names;
mod operators;
mod planning;
mod settings;
mod sources;
mod without_istio;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::Applier;
use crate::config::AgentArgs;
use crate::federation::{Federation, RelayConfig};
use crate::index::run::WorldHandle;
use crate::leases;
use crate::observe::admin::{self, Watched};
use crate::observe::metrics::Metrics;
use crate::observe::seen::Seen;
use crate::plan::Plan;
use crate::xds::Clients;
use leading::{Standing, lead, replica, spawn_standing, spawn_writer};
use operators::{Operators, control, desk, enrolment, finish, spawn_control};
use planning::{Planning, Tries};
use settings::{federation_config, open_store, settings};
use sources::spawn_sources;
use without_istio::Serving;

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// Where peers reach it.
    pub listen: SocketAddr,
    /// Where health and metrics are.
    pub admin: SocketAddr,
    /// Where clients are served by xDS, if they are.
    pub xds: Option<SocketAddr>,
    /// Where names of imported services are answered, where it was told to.
    pub dns: Option<SocketAddr>,
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
#[allow(clippy::too_many_lines, reason = "the composition root: each part is started by a line or two")]
pub async fn start(args: &AgentArgs, cancel: CancellationToken) -> anyhow::Result<Agent> {
    let settings = settings(args);
    let store = open_store(args).await?;
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let sources = spawn_sources(&mut tasks, args, &cancel)?;
    let metrics = Arc::new(Metrics::default());
    let (ready_sender, ready) = watch::channel(false);
    let (replica, relay_listen) = replica(args)?;
    let leadership = lead(args, &store, &replica);
    let leader = leadership.leader();

    let (link_sender, links) = watch::channel(Arc::default());
    let (planned_sender, planned_in) = watch::channel(None);
    let standing =
        Standing { leader: leader.clone(), planned_in, ready: ready.clone(), relays: relay_listen.is_some() };
    let [acts, open, serves] = spawn_standing(&mut tasks, standing, &cancel);
    let (worlds, asks) = WorldHandle::new();
    let enrolment = enrolment(args, &store, &sources);
    let desk = desk(&enrolment, &sources, &worlds)?;
    tasks.spawn(finish(enrolment.joiner.unfinished.clone(), cancel.clone()));
    let federation = Federation::start(
        federation_config(args),
        sources.identity.clone(),
        links.clone(),
        open,
        relay_listen.map(|listen| RelayConfig { listen, leader: leader.clone() }),
        Some(Arc::new(desk)),
        cancel.clone(),
    )
    .await?;
    let Federation { local_addr: listen, states: sessions, probe: peers, questions, join, .. } = federation;
    supervise(&mut tasks, join);

    let clients = Clients::default();
    let planning = Planning {
        store: store.clone(),
        settings: Arc::clone(&settings),
        sessions: sessions.clone(),
        links: link_sender,
        ready: ready_sender,
        leader: leader.clone(),
        planned_in: planned_sender,
        metrics: Arc::clone(&metrics),
        asks,
        tries: Tries::new(&args.timing, acts.clone(), args.xds.is_on()),
        refusals: clients.refusals(),
    };
    let targets = sources.targets(store.clone(), Arc::clone(&metrics));
    let control = control(
        args,
        &sources,
        Operators {
            worlds: worlds.clone(),
            replica: replica.name.clone(),
            leading: acts.clone(),
            leader,
            enrolment,
            peers,
            clients: clients.clone(),
        },
    )?;
    let serving = Serving { identity: sources.identity.clone(), clients, metrics: Arc::clone(&metrics) };
    let (plans, failures) = planning.spawn(&mut tasks, sources, &cancel);
    let (xds, dns) = serving.start(&mut tasks, args, &plans, &cancel).await?;
    let watched = Watched {
        ready: serves,
        leading: acts.clone(),
        lease: leadership.lease(),
        metrics,
        seen: Seen::new(worlds, plans.clone()),
        store: store.clone(),
    };
    let (admin, admin_task) = admin::serve(args.admin_listen, args.view, watched, cancel.clone())
        .await
        .with_context(|| format!("--admin-listen {}", args.admin_listen))?;
    supervise(&mut tasks, admin_task);
    spawn_control(&mut tasks, args, control, questions, &cancel).await?;
    spawn_writer(&mut tasks, Applier::new(targets, plans.clone(), acts, failures), leadership, &cancel);
    let keeping = leases::Keeper { store, settings, replica: replica.name, links, sessions };
    tasks.spawn(keeping.run(cancel.clone()));

    tracing::info!(%listen, %admin, store = %args.store, version = env!("CARGO_PKG_VERSION"), "the agent runs");
    Ok(Agent { listen, admin, xds, dns, ready, plans, cancel, tasks })
}

fn supervise(tasks: &mut JoinSet<anyhow::Result<()>>, task: tokio::task::JoinHandle<()>) {
    tasks.spawn(async move { task.await.context("a task of the agent panicked") });
}

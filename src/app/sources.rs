//! What is followed beside the store and the peers: who we are, SPIRE's servers, bundle endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::supervise;
use crate::apply::Targets;
use crate::bundle::endpoint::EndpointClient;
use crate::bundle::monitor::PollLimits;
use crate::bundle::watch::RefreshHandle;
use crate::bundle::web_roots::{WebRoots, web_roots};
use crate::clock;
use crate::config::AgentArgs;
use crate::identity::source::IdentitySource;
use crate::identity::workload::WorkloadEndpoint;
use crate::model::TrustDomain;
use crate::model::endpoint::{EndpointState, MonitorTarget};
use crate::observe::metrics::Metrics;
use crate::spire::replicas::{Connect, Replicas};
use crate::spire::watch::{Intervals, SpireWatch};
use crate::spire::{ServerAddress, SpireServer, tcp};
use crate::store::Store;

/// What is followed beside the store and the peers.
pub(super) struct Sources {
    pub(super) identity: IdentitySource,
    pub(super) server: SpireServer,
    pub(super) replicas: Replicas,
    pub(super) spire: SpireWatch,
    pub(super) client: EndpointClient,
    pub(super) endpoints: watch::Receiver<Arc<BTreeMap<TrustDomain, EndpointState>>>,
    /// Which bundle endpoints are followed.
    pub(super) monitors: watch::Sender<Arc<BTreeMap<TrustDomain, MonitorTarget>>>,
    pub(super) ask_again: RefreshHandle,
}

impl Sources {
    pub(super) fn targets(&self, store: Store, metrics: Arc<Metrics>) -> Targets {
        Targets {
            store,
            spire: self.server.clone(),
            spire_watch: self.spire.clone(),
            identity: self.identity.subscribe(),
            metrics,
        }
    }
}

pub(super) fn spawn_sources(
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
    let client = EndpointClient::held_against(roots(args)?);
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

/// The first SPIRE server, where all are, and how each is reached.
pub(super) fn spire_servers(
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

fn roots(args: &AgentArgs) -> anyhow::Result<WebRoots> {
    let roots = match &args.web_roots {
        None => web_roots("").map(WebRoots::fixed),
        Some(path) => WebRoots::of_file(path),
    };
    roots.context("--web-roots")
}

pub(super) fn poll_limits(args: &AgentArgs) -> PollLimits {
    let max = Duration::from_secs(args.timing.bundle_poll_max_seconds.max(1));
    let min = Duration::from_secs(args.timing.bundle_poll_min_seconds.max(1)).min(max);
    PollLimits { min_interval: min, max_interval: max, default_interval: max }
}

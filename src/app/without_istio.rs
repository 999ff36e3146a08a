//! Clients without Istio: what of each plan they are served.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::names::spawn_dns;
use crate::config::AgentArgs;
use crate::identity::source::IdentitySource;
use crate::observe::metrics::Metrics;
use crate::plan::Plan;
use crate::plan::xds::Xds;
use crate::xds::{self, Clients};

/// What clients are served with, beside the plans.
pub(super) struct Serving {
    pub(super) identity: IdentitySource,
    pub(super) clients: Clients,
    pub(super) metrics: Arc<Metrics>,
}

impl Serving {
    /// Serves xDS, and answers DNS, each where that is asked for; answers with where.
    pub(super) async fn start(
        self,
        tasks: &mut JoinSet<anyhow::Result<()>>,
        args: &AgentArgs,
        plans: &watch::Receiver<Arc<Plan>>,
        cancel: &CancellationToken,
    ) -> anyhow::Result<(Option<SocketAddr>, Option<SocketAddr>)> {
        let dns = spawn_dns(tasks, &args.dns, plans.clone(), Arc::clone(&self.metrics), cancel).await?;
        Ok((self.xds(tasks, args, plans, cancel).await?, dns))
    }

    /// Serves xDS where that is asked for; answers with where it listens.
    async fn xds(
        self,
        tasks: &mut JoinSet<anyhow::Result<()>>,
        args: &AgentArgs,
        plans: &watch::Receiver<Arc<Plan>>,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Option<SocketAddr>> {
        if !args.xds.is_on() {
            return Ok(None);
        }
        let (served, serving) = watch::channel(None);
        let Self { identity, clients, metrics } = self;
        let sources = xds::Sources { identity, served: serving, clients, metrics: Arc::clone(&metrics) };
        let started = xds::start(args.xds.places(), sources, cancel.clone()).await?;
        let xds::Served { listen, tasks: mut all } = started;
        tasks.spawn(follow(plans.clone(), served, metrics, cancel.clone()));
        tasks.spawn(async move {
            while let Some(ended) = all.join_next().await {
                ended?;
            }
            Ok(())
        });
        Ok(listen)
    }
}

/// Passes on what each plan has, where it differs; one that has nothing leaves what there was.
async fn follow(
    mut plans: watch::Receiver<Arc<Plan>>,
    served: watch::Sender<Option<Arc<Xds>>>,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let plan = Arc::clone(&plans.borrow_and_update());
        if let Some(xds) = &plan.xds {
            let changed = served.send_if_modified(|last| {
                let changed = !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, xds));
                if changed {
                    *last = Some(Arc::clone(xds));
                }
                changed
            });
            if changed {
                metrics.xds_changed(xds.offers.len());
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = plans.changed() => match changed {
                Err(_) if !cancel.is_cancelled() => anyhow::bail!("the planning ended though the agent runs"),
                Err(_) => return Ok(()),
                Ok(()) => {}
            }
        }
    }
}

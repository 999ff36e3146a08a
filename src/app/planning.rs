//! What turns all that is known into plans.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::sources::Sources;
use crate::clock;
use crate::config::TimingArgs;
use crate::index::run::{Ask, Inputs, Outputs};
use crate::index::{self, Index};
use crate::model::refused::Refusals;
use crate::model::replica::Leader;
use crate::model::session::{LinkPlan, SessionState};
use crate::model::world::Settings;
use crate::model::{ObjectKey, TrustDomain};
use crate::observe::metrics::Metrics;
use crate::plan::Plan;
use crate::reach::{Reached, Trier};
use crate::store::Store;

/// What the planning is made of, beside the sources.
pub(super) struct Planning {
    pub(super) store: Store,
    pub(super) settings: Arc<Settings>,
    pub(super) sessions: watch::Receiver<Arc<BTreeMap<TrustDomain, SessionState>>>,
    pub(super) links: watch::Sender<Arc<BTreeMap<TrustDomain, LinkPlan>>>,
    pub(super) ready: watch::Sender<bool>,
    pub(super) leader: watch::Receiver<Leader>,
    pub(super) planned_in: watch::Sender<Option<i64>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) tries: Tries,
    /// What clients that are served by xDS refuse.
    pub(super) refusals: watch::Receiver<Arc<Refusals>>,
}

/// How often, and by which replica, gateways are tried.
pub(super) struct Tries {
    pub(super) every: Duration,
    pub(super) leading: watch::Receiver<bool>,
    /// Whether clients are served by xDS, of whom those of each replica are told what is down.
    pub(super) serves_clients: bool,
}

impl Tries {
    pub(super) fn new(timing: &TimingArgs, leading: watch::Receiver<bool>, serves_clients: bool) -> Self {
        // With 0 no plan names a gateway.
        Self { every: Duration::from_secs(timing.gateway_check_seconds.max(1)), leading, serves_clients }
    }
}

/// What cannot be written, by object.
pub(super) type Failures = Arc<BTreeMap<ObjectKey, String>>;

impl Planning {
    /// The plans, and where the writer tells what failed.
    pub(super) fn spawn(
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
            store: self.store.watch(&self.settings.watched()),
            identity: sources.identity.subscribe(),
            workload_failure: sources.identity.failures(),
            spire: sources.spire.subscribe(),
            endpoints: sources.endpoints,
            sessions: self.sessions,
            bootstraps: found,
            reached,
            refusals: self.refusals,
            mesh,
            failures,
            leader: self.leader,
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
            planned_in: self.planned_in,
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
            serves_clients: self.tries.serves_clients,
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

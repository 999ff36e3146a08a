//! Makes the plan true: the one place that writes, and only on the leader.
//!
//! The plan says what is to be written now, by comparison with what was seen; what was done is not done again until
//! the watch has had time to show it, and what failed is tried again, later each time.

mod operation;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::model::own::Identity;
use crate::model::{ObjectKey, TrustDomain};
use crate::observe::metrics::{Metrics, WriteResult};
use crate::plan::Plan;
use crate::spire::SpireServer;
use crate::spire::watch::SpireWatch;
use crate::store::Store;
use operation::{Operation, Stage};

/// How long the watch is given to show what was written.
const ECHO: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// How many objects are written at a time.
const CONCURRENCY: usize = 16;

/// What plans are made true on.
#[derive(Clone, Debug)]
pub struct Targets {
    pub store: Store,
    pub spire: SpireServer,
    pub spire_watch: SpireWatch,
    pub identity: watch::Receiver<Option<Arc<Identity>>>,
    pub metrics: Arc<Metrics>,
}

/// The writer.
#[derive(Debug)]
pub struct Applier {
    targets: Targets,
    plans: watch::Receiver<Arc<Plan>>,
    leading: watch::Receiver<bool>,
    failures: watch::Sender<Arc<BTreeMap<ObjectKey, String>>>,
    attempts: BTreeMap<String, Attempt>,
}

/// The last try of an operation.
#[derive(Debug)]
struct Attempt {
    operation: Operation,
    failures: u32,
    /// The last failure, where it failed.
    failure: Option<String>,
    /// When it may be tried again, if it is still asked for.
    again: Instant,
}

impl Applier {
    #[must_use]
    pub fn new(
        targets: Targets,
        plans: watch::Receiver<Arc<Plan>>,
        leading: watch::Receiver<bool>,
        failures: watch::Sender<Arc<BTreeMap<ObjectKey, String>>>,
    ) -> Self {
        Self { targets, plans, leading, failures, attempts: BTreeMap::new() }
    }

    /// Runs until `cancel`, or until no more plans can come.
    pub async fn run(mut self, cancel: CancellationToken) {
        loop {
            if *self.leading.borrow_and_update() {
                let plan = Arc::clone(&self.plans.borrow_and_update());
                self.execute(&plan, &cancel).await;
            } else {
                self.attempts.clear();
            }
            let again = self.attempts.values().map(|attempt| attempt.again).min();
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = self.plans.changed() => if changed.is_err() { return },
                changed = self.leading.changed() => if changed.is_err() { return },
                () = sleep_until(again) => {}
            }
        }
    }

    async fn execute(&mut self, plan: &Plan, cancel: &CancellationToken) {
        let Some(own) = self.own() else { return self.attempts.clear() };
        let operations = operation::of(plan);
        // What is no longer asked for needs no memory.
        self.attempts.retain(|id, _| operations.contains_key(id));
        for stage in Stage::ALL {
            let now = Instant::now();
            let due: Vec<(String, Operation)> = operations
                .iter()
                .filter(|(_, operation)| operation.stage() == stage)
                .filter(|(id, operation)| self.is_due(id, operation, now))
                .map(|(id, operation)| (id.clone(), operation.clone()))
                .collect();
            if due.is_empty() || cancel.is_cancelled() {
                continue;
            }
            let targets = &self.targets;
            let own = &own;
            let results: Vec<(String, Operation, Result<(), String>)> = futures::stream::iter(due)
                .map(|(id, operation)| async move {
                    let result = operation.execute(targets, own).await;
                    (id, operation, result)
                })
                .buffer_unordered(CONCURRENCY)
                .collect()
                .await;
            if stage == Stage::Spire {
                self.targets.spire_watch.refresh();
            }
            for (id, operation, result) in results {
                self.remember(id, operation, result).await;
            }
        }
        self.publish_failures();
    }

    fn own(&self) -> Option<TrustDomain> {
        self.targets.identity.borrow().as_ref().map(|identity| identity.trust_domain.clone())
    }

    fn is_due(&self, id: &str, operation: &Operation, now: Instant) -> bool {
        self.attempts.get(id).is_none_or(|last| last.operation != *operation || last.again <= now)
    }

    async fn remember(&mut self, id: String, operation: Operation, result: Result<(), String>) {
        let before = self.attempts.get(&id).filter(|last| last.operation == operation);
        let failed = before.map_or(0, |last| last.failures);
        self.targets.metrics.wrote(if result.is_ok() { WriteResult::Ok } else { WriteResult::Error });
        let (failures, wait) = match &result {
            Ok(()) => {
                tracing::info!(operation = %operation, "done");
                (0, ECHO)
            }
            Err(error) if failed == 0 => {
                tracing::warn!(operation = %operation, %error, "failed; it is tried again");
                operation.report(&self.targets.store, error).await;
                (1, FIRST_RETRY)
            }
            Err(error) => {
                tracing::debug!(operation = %operation, %error, failed, "failed again");
                (failed.saturating_add(1), LAST_RETRY.min(FIRST_RETRY * 2u32.pow(failed.min(6))))
            }
        };
        let attempt = Attempt { operation, failures, failure: result.err(), again: Instant::now() + wait };
        self.attempts.insert(id, attempt);
    }

    fn publish_failures(&self) {
        let failures: BTreeMap<ObjectKey, String> = self
            .attempts
            .values()
            .filter_map(|attempt| Some((attempt.operation.object()?.clone(), attempt.failure.clone()?)))
            .collect();
        self.failures.send_if_modified(|last| {
            let changed = **last != failures;
            if changed {
                *last = Arc::new(failures);
            }
            changed
        });
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

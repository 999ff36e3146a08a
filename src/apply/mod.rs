//! Makes the plan true: the one place that writes, and only on the leader.
//!
//! The plan says what is to be written now, by comparison with what was seen; what was done is not done again until
//! the watch has had time to show it, and what failed is tried again, later each time. What a peer can cause is paced:
//! however often it changes its word, each object is written once a second at most after a few, with what is planned then.

mod drift;
mod operation;
mod refresh;
mod reports;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::model::own::Identity;
use crate::model::{ObjectKey, TrustDomain};
use crate::observe::metrics::{Metrics, Step, WriteResult};
use crate::observe::traces;
use crate::plan::Plan;
use crate::spire::SpireServer;
use crate::spire::watch::SpireWatch;
use crate::store::Store;
use drift::Drift;
use operation::{Operation, Stage, Wrote};
use refresh::{Ended, Refreshes};
use reports::Reports;

/// How long the watch is given to show what was written.
const ECHO: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// The least time between two writes of one object, and between two of one status.
const PACE: Duration = Duration::from_secs(1);
/// How many writes of one object need not keep to it after a quiet time: a change seldom comes alone.
const BURST: u32 = 5;
/// How long any other write is given while trust is to end: what comes next of that must not wait for a webhook that hangs.
const HASTE: Duration = Duration::from_secs(2);
/// How often what ends trust may fail before the rest is given its usual time again.
const HASTY_TRIES: u32 = 5;
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
    /// Until when what is paced was tried ahead of its pace, for as long as that matters.
    paced: BTreeMap<String, Instant>,
    refreshes: Refreshes,
    drift: Drift,
    reports: Reports,
    /// What waits there, until it runs.
    told: Option<reports::Waiting>,
}

/// The last try of an operation.
#[derive(Debug)]
struct Attempt {
    operation: Operation,
    failures: u32,
    /// The last failure, where it failed.
    failure: Option<String>,
    /// What a write left, where it did not fail.
    wrote: Option<Wrote>,
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
        let (reports, told) = Reports::new(targets.store.clone());
        Self {
            targets,
            plans,
            leading,
            failures,
            attempts: BTreeMap::new(),
            paced: BTreeMap::new(),
            refreshes: Refreshes::default(),
            drift: Drift::default(),
            reports,
            told: Some(told),
        }
    }

    /// Runs until `cancel`, or until no more plans can come.
    pub async fn run(mut self, cancel: CancellationToken) {
        // Broken off when this ends.
        let mut recording = JoinSet::new();
        if let Some(told) = self.told.take() {
            recording.spawn(reports::run(self.targets.store.clone(), told));
        }
        loop {
            let mut again = None;
            if *self.leading.borrow_and_update() {
                let plan = Arc::clone(&self.plans.borrow_and_update());
                self.drift.look(&plan, &self.attempts);
                let began = Instant::now();
                again = self.execute(&plan, &cancel).instrument(traces::apply()).await;
                self.targets.metrics.took(Step::Apply, began.elapsed());
            } else {
                self.forget();
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = self.plans.changed() => if changed.is_err() { return },
                changed = self.leading.changed() => if changed.is_err() { return },
                ended = self.refreshes.ended() => if let Some((id, operation, result)) = ended {
                    self.targets.spire_watch.refresh();
                    self.remember(id, operation, result);
                },
                () = sleep_until(again) => {}
            }
        }
    }

    /// Counts a write that put back what someone else had changed.
    fn count_repair(&mut self, id: &str, operation: &Operation) {
        if let Some(key) = operation.object().filter(|_| self.drift.is_repaired(id)) {
            tracing::warn!(object = %key, "it was changed or deleted by someone else, and is put back");
            self.targets.metrics.repaired(key.kind);
        }
    }

    /// Does what is due; when something next is.
    async fn execute(&mut self, plan: &Plan, cancel: &CancellationToken) -> Option<Instant> {
        let Some(own) = self.own() else {
            self.forget();
            return None;
        };
        let operations = operation::of(plan);
        // What is no longer asked for needs no memory, but of when it was done: it may be asked for again at once.
        self.attempts.retain(|id, _| operations.contains_key(id));
        self.drift.retain(|id| operations.contains_key(id));
        let now = Instant::now();
        self.paced.retain(|_, ahead| *ahead > now);
        let limit = self.limit(&operations);
        for stage in Stage::ALL {
            let due = self.due(&operations, stage);
            if due.is_empty() || !may_write(&self.leading, cancel) {
                continue;
            }
            if stage == Stage::Refresh {
                for (id, operation) in due {
                    self.refreshes.start(id, operation, &self.targets, &self.reports, &own);
                }
                continue;
            }
            for outdated in due.iter().filter_map(|(_, operation)| operation.outdates()) {
                self.refreshes.abort(outdated);
            }
            let asks_spire = due.iter().any(|(_, operation)| matches!(operation, Operation::Spire(_)));
            let results = self.execute_all(due, stage, &own, limit, cancel).await;
            if asks_spire {
                self.targets.spire_watch.refresh();
            }
            for (id, operation, result) in results {
                self.remember(id, operation, result);
            }
        }
        self.publish_failures();
        let now = Instant::now();
        operations.iter().filter_map(|(id, operation)| self.due_at(id, operation, now)).min()
    }

    /// How long a write that does not end trust may take, if not as long as the store lets it.
    fn limit(&self, operations: &BTreeMap<String, Operation>) -> Option<Duration> {
        let is_hopeful = |id: &String| self.attempts.get(id).is_none_or(|last| last.failures < HASTY_TRIES);
        operations.iter().any(|(id, operation)| operation.is_end() && is_hopeful(id)).then_some(HASTE)
    }

    /// Does these, some at a time; what has not begun is left out when it is out of date. Once the lead is lost, or the agent is
    /// to stop, what still runs is broken off: it must not reach the store when another leads.
    async fn execute_all(
        &self,
        due: Vec<(String, Operation)>,
        stage: Stage,
        own: &TrustDomain,
        limit: Option<Duration>,
        cancel: &CancellationToken,
    ) -> Vec<Ended> {
        let all = futures::stream::iter(due)
            .map(|(id, operation)| async move {
                if !may_write(&self.leading, cancel) || self.is_outdated(stage) {
                    return None;
                }
                let limit = limit.filter(|_| operation.object().is_some() && !operation.is_end());
                let span = traces::operation(&operation);
                let done = within(limit, operation.execute(&self.targets, &self.reports, own));
                let result = done.instrument(span.clone()).await;
                if let Err(error) = &result {
                    traces::failed(&span, error);
                }
                Some((id, operation, result))
            })
            .buffer_unordered(CONCURRENCY)
            .filter_map(std::future::ready)
            .collect();
        tokio::select! {
            all = all => all,
            () = lost(self.leading.clone(), cancel) => Vec::new(),
        }
    }

    /// Whether the rest of a stage is left to a newer plan: statuses, which would say what is no longer so, and whatever
    /// stands before the end of trust.
    fn is_outdated(&self, stage: Stage) -> bool {
        if !matches!(stage, Stage::Writes | Stage::Statuses) || !self.plans.has_changed().unwrap_or(false) {
            return false;
        }
        stage == Stage::Statuses || operation::ends_trust(&self.plans.borrow())
    }

    /// Another replica may lead now: what was done before says nothing, and what still runs is broken off. What failed is
    /// known no longer: whether it still does is seen by who writes now.
    fn forget(&mut self) {
        self.attempts.clear();
        self.drift = Drift::default();
        self.paced.clear();
        self.refreshes.clear();
        self.publish_failures();
    }

    fn own(&self) -> Option<TrustDomain> {
        self.targets.identity.borrow().as_ref().map(|identity| identity.trust_domain.clone())
    }

    fn due(&self, operations: &BTreeMap<String, Operation>, stage: Stage) -> Vec<(String, Operation)> {
        let now = Instant::now();
        let mut due: Vec<(String, Operation)> = operations
            .iter()
            .filter(|(_, operation)| operation.stage() == stage)
            .filter(|(id, operation)| self.due_at(id, operation, now).is_some_and(|at| at <= now))
            .map(|(id, operation)| (id.clone(), operation.clone()))
            .collect();
        due.sort_by_key(|(_, operation)| !operation.is_end());
        due
    }

    /// When it may be done; nothing while it waits for one that runs.
    fn due_at(&self, id: &str, operation: &Operation, now: Instant) -> Option<Instant> {
        if operation.refreshes().is_some_and(|trust_domain| !self.refreshes.has_room_for(trust_domain)) {
            return None;
        }
        // What someone else undid since it was done needs no time to be shown.
        let is_known = |last: &&Attempt| last.failure.is_none() && self.drift.is_found(id);
        let last = self.attempts.get(id).filter(|last| last.operation.is_again(operation));
        let again = last.filter(|last| !is_known(last)).map(|last| last.again);
        let pace = self.paced.get(id).and_then(|ahead| ahead.checked_sub(PACE * (BURST - 1)));
        Some(again.max(pace).unwrap_or(now))
    }

    fn remember(&mut self, id: String, operation: Operation, result: Result<Option<Wrote>, String>) {
        if operation.is_paced() {
            let now = Instant::now();
            let ahead = self.paced.get(&id).map_or(now, |ahead| now.max(*ahead));
            self.paced.insert(id.clone(), ahead + PACE);
        }
        let before = self.attempts.get(&id).filter(|last| last.operation.is_again(&operation));
        let failed = before.map_or(0, |last| last.failures);
        let wrote = result.as_ref().ok().cloned().flatten();
        if before.and_then(|last| last.wrote.as_ref()).zip(wrote.as_ref()).is_some_and(drift::is_made_anew) {
            self.drift.found(&id);
        }
        self.targets.metrics.wrote(if result.is_ok() { WriteResult::Ok } else { WriteResult::Error });
        let (failures, wait) = match &result {
            Ok(_) => {
                self.count_repair(&id, &operation);
                tracing::info!(operation = %operation, "done");
                (0, operation.rests())
            }
            Err(error) if failed == 0 => {
                tracing::warn!(operation = %operation, %error, "failed; it is tried again");
                if let Some(report) = operation.report(error) {
                    self.reports.tell(report);
                }
                (1, FIRST_RETRY)
            }
            Err(error) => {
                tracing::debug!(operation = %operation, %error, failed, "failed again");
                (failed.saturating_add(1), LAST_RETRY.min(FIRST_RETRY * 2u32.pow(failed.min(6))))
            }
        };
        let again = Instant::now() + wait;
        let attempt = Attempt { operation, failures, failure: result.err(), wrote, again };
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

/// Whether this replica leads still, and is not told to stop.
fn may_write(leading: &watch::Receiver<bool>, cancel: &CancellationToken) -> bool {
    *leading.borrow() && !cancel.is_cancelled()
}

/// Returns once this replica leads no more, or is told to stop.
async fn lost(mut leading: watch::Receiver<bool>, cancel: &CancellationToken) {
    let no_longer = async {
        if leading.wait_for(|leads| !*leads).await.is_err() {
            // who told of it is gone: the agent stops, and says so
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = no_longer => {}
    }
}

/// What comes of it in this time, where there is a limit.
async fn within(
    limit: Option<Duration>,
    done: impl Future<Output = Result<Option<Wrote>, String>>,
) -> Result<Option<Wrote>, String> {
    let Some(limit) = limit else { return done.await };
    let late = |_| {
        Err(format!(
            "no answer within {} s, while trust is to end, which does not wait for it",
            limit.as_secs()
        ))
    };
    tokio::time::timeout(limit, done).await.unwrap_or_else(late)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

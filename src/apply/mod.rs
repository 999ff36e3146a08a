//! Makes the plan true: the one place that writes, and only on the leader.
//!
//! The plan says what is to be written now, by comparison with what was seen; what was done is not done again until
//! the watch has had time to show it, and what failed is tried again, later each time. What a peer can cause is paced:
//! however often it changes its word, each object is written once a second at most after a few, with what is planned then.

mod drift;
mod operation;
mod refresh;
mod reports;
mod running;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

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
use refresh::Refreshes;
use reports::Reports;
use running::Running;

/// How long the watch is given to show what was written.
const ECHO: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// The least time between two writes of one object, and between two of one status.
const PACE: Duration = Duration::from_secs(1);
/// How many writes of one object need not keep to it after a quiet time: a change seldom comes alone.
const BURST: u32 = 5;
/// How long nothing that was begun may end until it is left to itself: what hangs, in a webhook say, harms its own object alone.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many writes of one object in a row may be changed on their way until that is a failure: a single one may have met
/// someone else's.
const ALTERED: u32 = 3;
const WAS_ALTERED: &str = "what is stored is not what was written, again and again: it is changed on its way; see which mutating \
    webhook or policy does so (`kubectl get mutatingwebhookconfigurations`), and have it leave alone what the agent writes";
/// How many objects are written at a time; as many changes for the sake of trust, and as many statuses, beside them.
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
    running: Running,
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
    /// How many writes in a row left something else than was written.
    altered: u32,
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
            running: Running::default(),
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
                ended = self.running.ended() => if let Some((id, operation, result)) = ended {
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
        self.running.retain(|id| operations.contains_key(id));
        let now = Instant::now();
        self.paced.retain(|_, ahead| *ahead > now);
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
            let asks_spire = due.iter().any(|(_, operation)| operation.object().is_none());
            // What is tried again for the sake of trust waits for no writes either.
            let until = if stage > Stage::Refresh { self.trust_due(&operations) } else { None };
            let gave_way = self.execute_all(due, stage, until, &own, cancel).await;
            self.running.leave();
            if asks_spire {
                self.targets.spire_watch.refresh();
            }
            if gave_way {
                break;
            }
        }
        self.publish_failures();
        let now = Instant::now();
        operations.iter().filter_map(|(id, operation)| self.due_at(id, operation, now)).min()
    }

    /// Does these, some at a time; whether it gave way to something else that is due. What does not end is left to itself, and
    /// so is what still runs when it gives way. Once the lead is lost, or the agent is to stop, all that is broken off: it
    /// must not reach the store when another leads.
    async fn execute_all(
        &mut self,
        due: Vec<(String, Operation)>,
        stage: Stage,
        until: Option<Instant>,
        own: &TrustDomain,
        cancel: &CancellationToken,
    ) -> bool {
        let mut due = due.into_iter();
        let mut plans = self.plans.clone();
        let mut lost = pin!(lost(self.leading.clone(), cancel));
        let (mut is_outdated, mut is_late) = (false, false);
        let mut patience = Instant::now() + PATIENCE;
        loop {
            if plans.has_changed().unwrap_or(false) {
                is_outdated |= self.is_outdated(stage, &plans.borrow_and_update());
            }
            while !is_outdated && self.running.has_room_for(stage) {
                let Some((id, operation)) = due.next() else { break };
                self.running.start(id, operation, &self.targets, &self.reports, own);
            }
            let may_leave = (is_outdated || is_late) && !self.running.asks_spire();
            if may_leave || !self.running.is_awaited() {
                return is_outdated;
            }
            tokio::select! {
                ended = self.running.ended() => {
                    patience = Instant::now() + PATIENCE;
                    if let Some((id, operation, result)) = ended {
                        self.remember(id, operation, result);
                    }
                }
                ended = self.refreshes.ended() => if let Some((id, operation, result)) = ended {
                    self.targets.spire_watch.refresh();
                    self.remember(id, operation, result);
                },
                Ok(()) = plans.changed() => is_outdated |= self.is_outdated(stage, &plans.borrow_and_update()),
                () = sleep_until(until), if !is_outdated => is_outdated = true,
                () = tokio::time::sleep_until(patience), if !is_late => is_late = true,
                () = &mut lost => {
                    self.running.clear();
                    return true;
                }
            }
        }
    }

    /// Whether the rest of a stage is left to a newer plan: statuses, which would say what is no longer so, and whatever
    /// stands before what that plan has to do for the sake of trust, and this one had not. What is done or tried already is
    /// not due, and what may be done again and again is paced: so the rest gets its turn.
    fn is_outdated(&self, stage: Stage, newer: &Plan) -> bool {
        let now = Instant::now();
        let is_due = |at: Instant| at <= now;
        stage == Stage::Statuses || self.trust_due(&operation::for_trust(newer)).is_some_and(is_due)
    }

    /// When something next is due for the sake of trust.
    fn trust_due(&self, operations: &BTreeMap<String, Operation>) -> Option<Instant> {
        let now = Instant::now();
        let for_trust = operations.iter().filter(|(_, operation)| operation.stage() <= Stage::Refresh);
        for_trust.filter_map(|(id, operation)| self.due_at(id, operation, now)).min()
    }

    /// Another replica may lead now: what was done before says nothing, and what still runs is broken off. What failed is
    /// known no longer: whether it still does is seen by who writes now.
    fn forget(&mut self) {
        self.attempts.clear();
        self.drift = Drift::default();
        self.paced.clear();
        self.refreshes.clear();
        self.running.clear();
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
        let has_room = match operation.refreshes() {
            Some(trust_domain) => self.refreshes.has_room_for(trust_domain),
            None => !self.running.runs(id) && self.running.has_room_for(operation.stage()),
        };
        if !has_room {
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
        let last_failure = before.and_then(|last| last.failure.clone());
        let wrote = result.as_ref().ok().cloned().flatten();
        let altered = match &wrote {
            Some(wrote) if wrote.stands => 0,
            Some(_) => before.map_or(0, |last| last.altered).saturating_add(1),
            None => before.map_or(0, |last| last.altered),
        };
        if before.and_then(|last| last.wrote.as_ref()).zip(wrote.as_ref()).is_some_and(drift::is_made_anew) {
            self.drift.found(&id);
        }
        let result =
            result.and_then(|_| if altered < ALTERED { Ok(()) } else { Err(WAS_ALTERED.to_owned()) });
        self.targets.metrics.wrote(if result.is_ok() { WriteResult::Ok } else { WriteResult::Error });
        let (failures, wait) = match &result {
            Ok(()) => {
                self.count_repair(&id, &operation);
                tracing::info!(operation = %operation, "done");
                (0, operation.rests())
            }
            Err(error) => {
                // Another cause is news, however often it failed before.
                if last_failure.as_ref() == Some(error) {
                    tracing::debug!(operation = %operation, %error, failed, "failed again");
                } else {
                    tracing::warn!(operation = %operation, %error, "failed; it is tried again");
                    if let Some(report) = operation.report(error) {
                        self.reports.tell(report);
                    }
                }
                let wait = LAST_RETRY.min(FIRST_RETRY * 2u32.pow(failed.min(6)));
                // What was written, though not as it should be, is given the time to be seen.
                let least = if wrote.is_some() { operation.rests() } else { Duration::ZERO };
                (failed.saturating_add(1), wait.max(least))
            }
        };
        let again = Instant::now() + wait;
        let attempt = Attempt { operation, failures, failure: result.err(), wrote, altered, again };
        self.attempts.insert(id, attempt);
    }

    fn publish_failures(&self) {
        let calls = |attempt: &&Attempt| attempt.operation.object().is_none() && attempt.failure.is_some();
        self.targets.metrics.calls_fail(self.attempts.values().filter(calls).count());
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

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

//! What is under way to the store and to SPIRE: some at a time, and what is slow is left to end by itself.

use std::collections::BTreeMap;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::operation::{Operation, Stage};
use super::refresh::{Ended, next};
use super::reports::Reports;
use super::{CONCURRENCY, PATIENCE, Targets};
use crate::model::TrustDomain;
use crate::observe::traces;

/// Stages that share their places: what hangs in one of them leaves those of the others free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Trust,
    Objects,
    Statuses,
}

impl Lane {
    const fn of(stage: Stage) -> Self {
        match stage {
            Stage::Trust | Stage::Spire | Stage::Refresh => Self::Trust,
            Stage::Writes | Stage::Prune => Self::Objects,
            Stage::Statuses => Self::Statuses,
        }
    }
}

/// Operations that run, one at most for each id.
#[derive(Debug, Default)]
pub(super) struct Running {
    tasks: JoinSet<Ended>,
    all: BTreeMap<String, One>,
}

#[derive(Debug)]
struct One {
    lane: Lane,
    began: Instant,
    is_spire: bool,
    /// It is not waited for any more.
    is_left: bool,
    task: AbortHandle,
}

impl Running {
    pub(super) fn has_room_for(&self, stage: Stage) -> bool {
        self.all.values().filter(|one| one.lane == Lane::of(stage)).count() < CONCURRENCY
    }

    pub(super) fn runs(&self, id: &str) -> bool {
        self.all.contains_key(id)
    }

    /// Starts one; that it does not run yet is for the caller to see.
    pub(super) fn start(
        &mut self,
        id: String,
        operation: Operation,
        targets: &Targets,
        reports: &Reports,
        own: &TrustDomain,
    ) {
        let (lane, is_spire) = (Lane::of(operation.stage()), operation.object().is_none());
        let (targets, reports, own, name) = (targets.clone(), reports.clone(), own.clone(), id.clone());
        let span = traces::operation(&operation);
        let of = span.clone();
        let done = async move {
            let result = operation.execute(&targets, &reports, &own).await;
            if let Err(error) = &result {
                traces::failed(&of, error);
            }
            (id, operation, result)
        };
        let task = self.tasks.spawn(done.instrument(span));
        self.all.insert(name, One { lane, began: Instant::now(), is_spire, is_left: false, task });
    }

    /// Whether any is waited for.
    pub(super) fn is_awaited(&self) -> bool {
        self.all.values().any(|one| !one.is_left)
    }

    /// Whether SPIRE is asked: what follows counts on its answer, which it gives soon or not at all.
    pub(super) fn asks_spire(&self) -> bool {
        self.all.values().any(|one| one.is_spire)
    }

    /// Waits for none of them any more.
    pub(super) fn leave(&mut self) {
        self.all.values_mut().for_each(|one| one.is_left = true);
    }

    /// Breaks off what was left and is asked for no more: it must not come true after what is planned now. What just began is
    /// let be, since what it wrote may have been seen before its answer was.
    pub(super) fn retain(&mut self, mut is_wanted: impl FnMut(&String) -> bool) {
        self.all.retain(|id, one| {
            let stays = !one.is_left || one.began.elapsed() < PATIENCE || is_wanted(id);
            if !stays {
                one.task.abort();
            }
            stays
        });
    }

    /// Breaks off all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Waits for one to end; nothing where it was broken off. Never ends while none runs.
    pub(super) async fn ended(&mut self) -> Option<Ended> {
        let (id, ended) = next(&mut self.tasks, "an operation failed, and is done again").await;
        self.all.retain(|_, one| one.task.id() != id);
        ended
    }
}

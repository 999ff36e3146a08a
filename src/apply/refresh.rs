//! Calls that have SPIRE fetch a peer's bundle. The peer decides how long they take, so nothing else waits for them.

use std::collections::BTreeMap;

use tokio::task::{AbortHandle, Id, JoinSet};

use super::Targets;
use super::operation::{Operation, Wrote};
use super::reports::Reports;
use crate::model::TrustDomain;

/// How many run at a time, for all peers together.
const AT_ONCE: usize = 64;

/// An operation that ended, with what came of it.
pub(super) type Ended = (String, Operation, Result<Option<Wrote>, String>);

/// The calls that run, one at most for each trust domain.
#[derive(Debug, Default)]
pub(super) struct Refreshes {
    tasks: JoinSet<Ended>,
    running: BTreeMap<TrustDomain, AbortHandle>,
}

impl Refreshes {
    pub(super) fn has_room_for(&self, trust_domain: &TrustDomain) -> bool {
        self.running.len() < AT_ONCE && !self.running.contains_key(trust_domain)
    }

    /// Starts one, where there is room.
    pub(super) fn start(
        &mut self,
        id: String,
        operation: Operation,
        targets: &Targets,
        reports: &Reports,
        own: &TrustDomain,
    ) {
        let Some(trust_domain) = operation.refreshes().cloned() else { return };
        if !self.has_room_for(&trust_domain) {
            return;
        }
        let (targets, reports, own) = (targets.clone(), reports.clone(), own.clone());
        let task = self.tasks.spawn(async move {
            let result = operation.execute(&targets, &reports, &own).await;
            (id, operation, result)
        });
        self.running.insert(trust_domain, task);
    }

    /// Breaks off the one of a trust domain: what is done to it now must not be undone by an answer from before.
    pub(super) fn abort(&mut self, trust_domain: &TrustDomain) {
        if let Some(task) = self.running.remove(trust_domain) {
            task.abort();
        }
    }

    /// Breaks off all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Waits for one to end; nothing where it was broken off. Never ends while none runs.
    pub(super) async fn ended(&mut self) -> Option<Ended> {
        let (id, ended) = next(&mut self.tasks, "a call to SPIRE failed, and is made again").await;
        self.running.retain(|_, task| task.id() != id);
        ended
    }
}

/// Waits for a task to end: which one, and what came of it where it was not broken off; a panic is logged in these words.
/// Never ends while none runs.
pub(super) async fn next(tasks: &mut JoinSet<Ended>, of_panic: &str) -> (Id, Option<Ended>) {
    let Some(ended) = tasks.join_next_with_id().await else {
        return std::future::pending().await;
    };
    match ended {
        Ok((id, ended)) => (id, Some(ended)),
        Err(error) => {
            if error.is_panic() {
                tracing::error!(%error, "{of_panic}");
            }
            (error.id(), None)
        }
    }
}

//! Follows what SPIRE holds: its server API has nothing to subscribe to, so it is read every second.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::replicas::{Known, Replicas};
use super::{SpireError, SpireServer};
use crate::model::TrustDomain;
use crate::model::own::Identity;
use crate::model::trust::SpireState;

/// How often it is read.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// Relationships and bundles: how soon a poisoned bundle is seen.
    pub bundles: Duration,
    /// Registration entries, of which a server may hold many.
    pub entries: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { bundles: Duration::from_secs(1), entries: Duration::from_secs(5) }
    }
}

/// What is known of SPIRE, and a way to have it read at once.
#[derive(Clone, Debug)]
pub struct SpireWatch {
    states: watch::Receiver<Option<Arc<SpireState>>>,
    now: Arc<Notify>,
    replicas: Replicas,
}

impl SpireWatch {
    /// Starts to read. Nothing is read before the Workload API told which trust domain is ours, and nothing told before
    /// every one of `replicas` was asked once for its authorities.
    #[must_use]
    pub fn spawn(
        server: SpireServer,
        replicas: Replicas,
        identity: watch::Receiver<Option<Arc<Identity>>>,
        intervals: Intervals,
        cancel: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (sender, states) = watch::channel(None);
        let now = Arc::new(Notify::new());
        let known = replicas.subscribe();
        let reader =
            Reader { server, known, identity, intervals, sender, now: Arc::clone(&now), complaint: None };
        let task = tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = reader.run() => {}
            }
        });
        (Self { states, now, replicas }, task)
    }

    /// Follows the state; `None` until it was read once.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<SpireState>>> {
        self.states.clone()
    }

    /// Reads everything now: something was changed.
    pub fn refresh(&self) {
        self.now.notify_one();
        self.replicas.refresh();
    }
}

struct Reader {
    server: SpireServer,
    known: watch::Receiver<Known>,
    identity: watch::Receiver<Option<Arc<Identity>>>,
    intervals: Intervals,
    sender: watch::Sender<Option<Arc<SpireState>>>,
    now: Arc<Notify>,
    /// The last failure, which is told once.
    complaint: Option<String>,
}

impl Reader {
    async fn run(mut self) {
        let Some(own) = self.own().await else { return };
        if self.known.wait_for(Known::is_settled).await.is_err() {
            return;
        }
        let mut entries_due = tokio::time::Instant::now();
        loop {
            let with_entries = tokio::time::Instant::now() >= entries_due;
            match self.read(&own, with_entries).await {
                Ok(state) => {
                    if with_entries {
                        entries_due = tokio::time::Instant::now() + self.intervals.entries;
                    }
                    self.complaint = None;
                    self.publish(state);
                }
                Err(error) => self.publish_failure(&error),
            }
            let pause = tokio::time::sleep(self.intervals.bundles);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = self.now.notified() => {
                        entries_due = tokio::time::Instant::now();
                        break;
                    }
                    changed = self.known.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        self.publish_servers();
                    }
                }
            }
        }
    }

    /// Tells what changed of the servers' authorities beside what was read of the first.
    fn publish_servers(&mut self) {
        let servers = self.known.borrow_and_update().servers.clone();
        self.sender.send_if_modified(|last| match last {
            Some(state) if state.servers != servers => {
                Arc::make_mut(state).servers = servers;
                true
            }
            _ => false,
        });
    }

    async fn own(&mut self) -> Option<TrustDomain> {
        let identity = self.identity.wait_for(Option::is_some).await.ok()?;
        identity.as_ref().map(|identity| identity.trust_domain.clone())
    }

    async fn read(&self, own: &TrustDomain, with_entries: bool) -> Result<SpireState, SpireError> {
        let mut state = self.server.read_bundles(own).await?;
        state.servers = self.known.borrow().servers.clone();
        state.entries = if with_entries {
            self.server.read_entries().await?
        } else {
            self.sender.borrow().as_ref().map(|last| last.entries.clone()).unwrap_or_default()
        };
        Ok(state)
    }

    fn publish(&self, state: SpireState) {
        self.sender.send_if_modified(|last| {
            if last.as_deref().is_some_and(|last| *last == state) {
                return false;
            }
            if last.as_ref().is_some_and(|last| last.failure.is_some()) {
                tracing::info!(server = self.server.name(), "SPIRE's server API can be read again");
            }
            *last = Some(Arc::new(state));
            true
        });
    }

    /// What was read last stays; that it is old is said beside it. Before anything was read there is nothing to say it
    /// beside.
    fn publish_failure(&mut self, error: &SpireError) {
        let message = error.to_string();
        self.sender.send_if_modified(|last| {
            let Some(mut state) = last.as_deref().cloned() else { return false };
            if state.failure.as_ref() == Some(&message) {
                return false;
            }
            state.failure = Some(message.clone());
            *last = Some(Arc::new(state));
            true
        });
        if self.complaint.as_ref() != Some(&message) {
            tracing::warn!(server = self.server.name(), error = %message, "SPIRE's server API cannot be read");
            self.complaint = Some(message);
        }
    }
}

//! Follows what SPIRE holds: its server API has nothing to subscribe to, so it is read every second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::replicas::{Known, Replicas};
use super::{SpireError, SpireServer};
use crate::model::TrustDomain;
use crate::model::own::Identity;
use crate::model::trust::{Entry, SpireState};

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
    now: Arc<Now>,
    replicas: Replicas,
}

/// What is to be read at once.
#[derive(Debug, Default)]
struct Now {
    bundles: Notify,
    entries: Notify,
}

impl SpireWatch {
    /// Starts to read. Nothing is read before the Workload API told which trust domain is ours, and nothing told before
    /// every one of `replicas` was asked once for its authorities, and the entries were, too. After that no bundle waits for
    /// entries: they may be many, or fail where bundles do not.
    #[must_use]
    pub fn spawn(
        server: SpireServer,
        replicas: Replicas,
        identity: watch::Receiver<Option<Arc<Identity>>>,
        intervals: Intervals,
        cancel: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (sender, states) = watch::channel(None);
        let now = Arc::new(Now::default());
        let known = replicas.subscribe();
        let (listing, listed) = watch::channel(None);
        let reader = Reader {
            server,
            known,
            listed,
            identity,
            intervals,
            sender,
            now: Arc::clone(&now),
            complaint: None,
        };
        let task = tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = reader.run(listing) => {}
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
        self.now.bundles.notify_one();
        self.now.entries.notify_one();
        self.replicas.refresh();
    }
}

/// What is known of the registration entries.
#[derive(Clone, Debug, Default)]
struct Listed {
    entries: BTreeMap<String, Entry>,
    failure: Option<String>,
}

type Listing = watch::Sender<Option<Listed>>;

struct Reader {
    server: SpireServer,
    known: watch::Receiver<Known>,
    listed: watch::Receiver<Option<Listed>>,
    identity: watch::Receiver<Option<Arc<Identity>>>,
    intervals: Intervals,
    sender: watch::Sender<Option<Arc<SpireState>>>,
    now: Arc<Now>,
    /// The last failure, which is told once.
    complaint: Option<String>,
}

impl Reader {
    async fn run(mut self, listing: Listing) {
        let Some(own) = self.own().await else { return };
        if self.known.wait_for(Known::is_settled).await.is_err() {
            return;
        }
        let (server, now, every) = (self.server.clone(), Arc::clone(&self.now), self.intervals.entries);
        tokio::select! {
            () = list(server, every, &now.entries, listing) => {}
            () = self.follow(own) => {}
        }
    }

    async fn follow(mut self, own: TrustDomain) {
        if self.listed.wait_for(Option::is_some).await.is_err() {
            return;
        }
        loop {
            match self.server.read_bundles(&own).await {
                Ok(state) => {
                    self.complaint = None;
                    self.publish(state);
                }
                Err(error) => self.publish_failure(&error),
            }
            let pause = tokio::time::sleep(self.intervals.bundles);
            tokio::pin!(pause);
            loop {
                let changed = tokio::select! {
                    () = &mut pause => break,
                    () = self.now.bundles.notified() => break,
                    changed = self.known.changed() => changed,
                    changed = self.listed.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
                self.publish_beside();
            }
        }
    }

    /// Tells what changed beside what was read of the first server: all servers' authorities, and the entries.
    fn publish_beside(&mut self) {
        let (known, listed) = (self.known.borrow_and_update(), self.listed.borrow_and_update());
        let Some(listed) = &*listed else { return };
        self.sender.send_if_modified(|last| match last {
            Some(state)
                if state.servers != known.servers
                    || state.entries != listed.entries
                    || state.entries_failure != listed.failure =>
            {
                beside(Arc::make_mut(state), &known, listed);
                true
            }
            _ => false,
        });
    }

    async fn own(&mut self) -> Option<TrustDomain> {
        let identity = self.identity.wait_for(Option::is_some).await.ok()?;
        identity.as_ref().map(|identity| identity.trust_domain.clone())
    }

    fn publish(&self, mut state: SpireState) {
        if let Some(listed) = &*self.listed.borrow() {
            beside(&mut state, &self.known.borrow(), listed);
        }
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

fn beside(state: &mut SpireState, known: &Known, listed: &Listed) {
    state.servers = known.servers.clone();
    (state.entries, state.entries_failure) = (listed.entries.clone(), listed.failure.clone());
}

/// Lists the entries again and again. While that fails, what was listed last stays.
async fn list(server: SpireServer, every: Duration, now: &Notify, listing: Listing) {
    loop {
        match server.read_entries().await {
            Ok(entries) => listing.send_if_modified(|listed| {
                let is_new = listed
                    .as_ref()
                    .is_none_or(|before| before.failure.is_some() || before.entries != entries);
                *listed = Some(Listed { entries, failure: None });
                is_new
            }),
            Err(error) => listing.send_if_modified(|listed| {
                let failure = Some(error.to_string());
                let is_new = listed.as_ref().is_none_or(|before| before.failure != failure);
                if is_new {
                    tracing::warn!(server = server.name(), %error, "SPIRE's registration entries cannot be listed");
                }
                listed.get_or_insert_default().failure = failure;
                is_new
            }),
        };
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = now.notified() => {}
        }
    }
}

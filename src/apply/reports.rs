//! What is told of objects: logged at once, and recorded as Events, which nothing that is to be written waits for.

use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::model::ObjectKey;
use crate::store::{Severity, Store};

/// How many may wait to be recorded. Beyond, they are in the log alone.
const WAITING: usize = 4096;
/// How many are recorded at a time.
const AT_ONCE: usize = 16;

/// What is to be told of an object.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) about: ObjectKey,
    pub(super) uid: String,
    pub(super) severity: Severity,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Where they are handed in.
#[derive(Clone, Debug)]
pub(super) struct Reports {
    store: Store,
    sender: mpsc::Sender<Report>,
}

/// Those that wait.
pub(super) type Waiting = mpsc::Receiver<Report>;

impl Reports {
    pub(super) fn new(store: Store) -> (Self, Waiting) {
        let (sender, waiting) = mpsc::channel(WAITING);
        (Self { store, sender }, waiting)
    }

    pub(super) fn tell(&self, report: Report) {
        let Report { about, uid, severity, reason, message } = &report;
        if self.store.say(about, uid, *severity, reason, message) && self.sender.try_send(report).is_err() {
            tracing::debug!("too many Events wait: this one is left out");
        }
    }
}

/// Records what is handed in, until it is broken off.
pub(super) async fn run(store: Store, waiting: Waiting) {
    let all = futures::stream::unfold(waiting, async |mut waiting| Some((waiting.recv().await?, waiting)));
    let store = &store;
    all.for_each_concurrent(AT_ONCE, |Report { about, uid, severity, reason, message }| async move {
        store.record(&about, &uid, severity, &reason, &message).await;
    })
    .await;
}

//! A few objects, followed for as long as someone listens; what keeps them from being read is told.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::watcher;
use tokio::sync::mpsc;

use super::convert;
use super::lean::Lean;
use super::watch::{FIRST_RETRY, LAST_RETRY, is_unserved, jittered};
use crate::model::{Object, ObjectKey};
use crate::store::{Selected, Selection};

/// More objects than anybody who selects a few has use for.
const MOST: usize = 256;

/// Sends all that is selected, whenever it has changed, until the receiver is gone.
pub(super) async fn follow(selection: Selection, api: Api<Lean>, found: mpsc::Sender<Selected>) {
    let mut config = watcher::Config::default();
    if let Some(name) = &selection.name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    if !selection.labels.is_empty() {
        config = config.labels(&selection.labels);
    }
    let mut changes = pin!(watcher(api, config));
    let mut state =
        Following { selection, objects: BTreeMap::new(), list: BTreeMap::new(), retry: FIRST_RETRY };
    let mut sent = None;
    loop {
        let change = tokio::select! {
            () = found.closed() => return,
            change = changes.next() => change,
        };
        let (known, wait) = match change {
            None => return,
            Some(Ok(change)) => (state.take(change), Duration::ZERO),
            Some(Err(error)) => state.fail(&error),
        };
        if let Some(known) = known.filter(|known| sent.as_ref() != Some(known)) {
            sent = Some(known.clone());
            if found.send(known).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = found.closed() => return,
            () = tokio::time::sleep(wait), if !wait.is_zero() => {}
            () = std::future::ready(()), if wait.is_zero() => {}
        }
    }
}

struct Following {
    selection: Selection,
    objects: BTreeMap<ObjectKey, Object>,
    /// The list that is being read.
    list: BTreeMap<ObjectKey, Object>,
    retry: Duration,
}

impl Following {
    fn take(&mut self, change: watcher::Event<Lean>) -> Option<Selected> {
        let kind = self.selection.kind;
        match change {
            watcher::Event::Init => {
                self.list.clear();
                return None;
            }
            watcher::Event::InitApply(object) => {
                let object = convert::to_object(kind, object);
                if self.list.len() < MOST {
                    self.list.insert(object.key.clone(), object);
                }
                return None;
            }
            watcher::Event::InitDone => self.objects = std::mem::take(&mut self.list),
            watcher::Event::Apply(object) => {
                let object = convert::to_object(kind, object);
                if self.objects.len() < MOST || self.objects.contains_key(&object.key) {
                    self.objects.insert(object.key.clone(), object);
                }
            }
            watcher::Event::Delete(object) => {
                self.objects.remove(&convert::to_object(kind, object).key);
            }
        }
        self.retry = FIRST_RETRY;
        Some(Selected::Objects(self.objects.values().cloned().collect()))
    }

    /// What to say of a failure, and how long to wait. A passing one is waited out, and nothing said of it.
    fn fail(&mut self, error: &watcher::Error) -> (Option<Selected>, Duration) {
        let wait = jittered(self.retry);
        self.retry = (self.retry * 2).min(LAST_RETRY);
        if is_unserved(error) {
            self.objects.clear();
            return (Some(Selected::Objects(Vec::new())), wait);
        }
        let refused = refusal(error);
        if refused.is_none() {
            tracing::debug!(kind = %self.selection.kind, %error, "watch failed; what was read before stays, and it is tried again");
        }
        (refused.map(Selected::Refused), wait)
    }
}

/// What the API server says where it does not let us read.
fn refusal(error: &watcher::Error) -> Option<String> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
            if matches!(status.code, 401 | 403) =>
        {
            Some(status.message.clone())
        }
        _ => None,
    }
}

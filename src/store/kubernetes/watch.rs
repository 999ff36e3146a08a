//! One kind, followed for as long as someone listens.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::watcher;
use rand::RngExt;
use tokio::sync::mpsc;

use super::followed::Followed;
use super::lean::Lean;
use super::{convert, errors};
use crate::model::Object;
use crate::model::object::Kind;
use crate::store::Event;

/// Objects a page of a list, so that a large one is not held twice: a page is text first, then objects with all that is
/// left out of them here.
const PAGE_SIZE: u32 = 200;
/// How soon a kind that was not served is looked for again.
const ABSENT_RETRY: Duration = Duration::from_secs(3);
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(500);
pub(super) const LAST_RETRY: Duration = Duration::from_secs(15);

/// Sends the whole list, then changes, until the receiver is gone. Errors are waited out.
pub(super) async fn follow(kind: Kind, api: Api<Lean>, events: mpsc::Sender<Event>, followed: Followed) {
    followed.begins(kind);
    let mut changes = pin!(watcher(api, watcher::Config::default().page_size(PAGE_SIZE)));
    let mut state = Following { kind, followed, list: Vec::new(), absent: false, retry: FIRST_RETRY };
    loop {
        let change = tokio::select! {
            () = events.closed() => return,
            change = changes.next() => change,
        };
        let event = match change {
            None => return,
            Some(Ok(change)) => state.take(change),
            Some(Err(error)) => {
                let (event, wait) = state.fail(&error);
                if let Some(event) = event
                    && events.send(event).await.is_err()
                {
                    return;
                }
                tokio::select! {
                    () = events.closed() => return,
                    () = tokio::time::sleep(wait) => continue,
                }
            }
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return;
        }
    }
}

struct Following {
    kind: Kind,
    followed: Followed,
    /// The list that is being read.
    list: Vec<Object>,
    /// Whether it was said that the kind is not served.
    absent: bool,
    retry: Duration,
}

impl Following {
    fn take(&mut self, change: watcher::Event<Lean>) -> Option<Event> {
        match change {
            watcher::Event::Init => {
                self.list.clear();
                None
            }
            watcher::Event::InitApply(object) => {
                self.list.push(convert::to_object(self.kind, object.slim(self.kind)));
                None
            }
            watcher::Event::InitDone => {
                self.absent = false;
                self.retry = FIRST_RETRY;
                self.followed.goes_well(self.kind);
                let objects = std::mem::take(&mut self.list);
                tracing::debug!(kind = %self.kind, objects = objects.len(), "list read");
                Some(Event::Reset { kind: self.kind, objects })
            }
            watcher::Event::Apply(object) => {
                self.retry = FIRST_RETRY;
                self.followed.goes_well(self.kind);
                Some(Event::Applied(convert::to_object(self.kind, object.slim(self.kind))))
            }
            watcher::Event::Delete(object) => {
                self.retry = FIRST_RETRY;
                self.followed.goes_well(self.kind);
                Some(Event::Deleted(convert::to_object(self.kind, object.slim(self.kind)).key))
            }
        }
    }

    /// What to say of a failure, and how long to wait.
    fn fail(&mut self, error: &watcher::Error) -> (Option<Event>, Duration) {
        if is_unserved(error) {
            self.followed.goes_well(self.kind);
            if !std::mem::replace(&mut self.absent, true) {
                tracing::info!(kind = %self.kind, "kind is not served; waiting for its custom resource definition");
                return (Some(Event::Absent(self.kind)), jittered(ABSENT_RETRY));
            }
            return (None, jittered(ABSENT_RETRY));
        }
        self.followed.failed(self.kind);
        tracing::warn!(kind = %self.kind, %error, "watch failed; what was read before stays, and it is tried again");
        let wait = self.retry;
        self.retry = (self.retry * 2).min(LAST_RETRY);
        (None, jittered(wait))
    }
}

pub(super) fn is_unserved(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => errors::is_unserved(status),
        _ => false,
    }
}

/// Half to all of this time, so that replicas do not come at once.
pub(super) fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::rng().random_range(0.5..1.0))
}

//! Events on objects (`events.k8s.io/v1`), counted where they repeat.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::Mutex;

use super::REQUEST_TIMEOUT;
use crate::clock;
use crate::model::ObjectKey;
use crate::store::Severity;

const CONTROLLER: &str = "entente.dev/agent";
/// Equal events within this time of each other are one.
const AGGREGATE_FOR: SignedDuration = SignedDuration::from_mins(6);
/// A repeated event is written again no sooner than this.
const REPEAT_AFTER: SignedDuration = SignedDuration::from_secs(30);
/// How many events are remembered; beyond that the oldest is forgotten, and written anew.
const MAX_REMEMBERED: usize = 1024;
/// The API server's limits on `note`, and on `reason` and `reportingInstance`, in bytes.
const MAX_NOTE: usize = 1024;
const MAX_WORD: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EventKey {
    uid: String,
    warning: bool,
    reason: String,
    note: String,
}

/// The last writing of an event.
#[derive(Clone, Debug)]
struct Written {
    name: String,
    count: i32,
    at: Timestamp,
}

/// Writes events, and remembers those written lately.
#[derive(Clone)]
pub(super) struct Recorder {
    client: Client,
    instance: String,
    written: Arc<Mutex<BTreeMap<EventKey, Written>>>,
}

impl Recorder {
    pub(super) fn new(client: Client, instance: &str) -> Self {
        Self { client, instance: cut(instance, MAX_WORD).to_owned(), written: Arc::default() }
    }

    /// Writes the event, or counts it up. Failure is logged: an event is news, not state.
    pub(super) async fn record(
        &self,
        key: &ObjectKey,
        uid: &str,
        severity: Severity,
        reason: &str,
        note: &str,
    ) {
        let note = cut(note, MAX_NOTE);
        let reason = cut(reason, MAX_WORD);
        let now = clock::now();
        let event_key = EventKey {
            uid: uid.to_owned(),
            warning: severity == Severity::Warning,
            reason: reason.to_owned(),
            note: note.to_owned(),
        };
        let Some(mut written) = self.remember(event_key, key, now).await else { return };
        // Events of cluster-scoped objects lie in `default`, as the API server wants it.
        let namespace = key.namespace.as_deref().unwrap_or("default");
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let request = async {
            if written.count > 1 {
                let series = EventSeries { count: written.count, last_observed_time: MicroTime(now) };
                let patch = serde_json::json!({ "series": series });
                let params = PatchParams::default();
                match events.patch(&written.name, &params, &Patch::Merge(&patch)).await {
                    // It has expired: events are kept for an hour by default.
                    Err(kube::Error::Api(status)) if status.code == 404 => written.count = 1,
                    other => return other.map(drop),
                }
            }
            let event = self.event(key, uid, &written.name, severity, reason, note);
            events.create(&PostParams::default(), &event).await.map(drop)
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(object = %key, reason, %error, "event not written"),
            Err(_) => {
                tracing::warn!(object = %key, reason, "event not written: no answer from the API server")
            }
        }
    }

    /// What to write; nothing where the same was written a moment ago.
    async fn remember(&self, event: EventKey, key: &ObjectKey, now: Timestamp) -> Option<Written> {
        let mut all = self.written.lock().await;
        all.retain(|_, written| now.duration_since(written.at) < AGGREGATE_FOR);
        if let Some(written) = all.get_mut(&event) {
            written.count = written.count.saturating_add(1);
            if now.duration_since(written.at) < REPEAT_AFTER {
                return None;
            }
            written.at = now;
            return Some(written.clone());
        }
        if all.len() >= MAX_REMEMBERED {
            let oldest = all.iter().min_by_key(|(_, written)| written.at).map(|(key, _)| key.clone());
            oldest.map(|oldest| all.remove(&oldest));
        }
        let name =
            format!("{}.{:016x}", cut(&key.name, 200).trim_end_matches(['.', '-']), rand::random::<u64>());
        let written = Written { name, count: 1, at: now };
        all.insert(event, written.clone());
        Some(written)
    }

    fn event(
        &self,
        key: &ObjectKey,
        uid: &str,
        name: &str,
        severity: Severity,
        reason: &str,
        note: &str,
    ) -> Event {
        let namespace = key.namespace.clone().unwrap_or_else(|| "default".to_owned());
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(clock::now())),
            action: Some(reason.to_owned()),
            reason: Some(reason.to_owned()),
            note: Some(note.to_owned()),
            type_: Some(severity.as_str().to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(key.kind.api_version()),
                kind: Some(key.kind.kind().to_owned()),
                name: Some(key.name.clone()),
                namespace: key.namespace.clone(),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }
}

/// The longest beginning of `text` within `limit` bytes.
fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

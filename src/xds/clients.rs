//! Who is served now, and what each has refused: for an operator that asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::session::{Heard, Introduction, Nack};
use crate::clock;
use crate::model::SpiffeId;
use crate::model::refused::{ClientRefusal, Refusals};
use crate::plan::xds::ResourceType;
use crate::plan::xds::view::View;

/// How long what is refused stands before it is told otherwise: a client that takes and refuses by turns, or comes again and
/// again, has a status written no more often.
const REST: Duration = Duration::from_secs(30);

/// All streams that are open. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    all: Arc<Mutex<All>>,
    /// What is refused, for statuses.
    refusals: Arc<watch::Sender<Arc<Refusals>>>,
    /// Something is refused, or is not any more.
    turned: Arc<Notify>,
}

#[derive(Debug, Default)]
struct All {
    last: u64,
    open: BTreeMap<u64, ClientState>,
}

/// One stream of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientState {
    #[serde(rename = "spiffeID")]
    pub spiffe_id: String,
    /// `id` of its node, by its own word.
    pub node: String,
    /// `envoy` or `grpc`.
    pub kind: String,
    pub since: Timestamp,
    /// How many resources of a type it asks for; `null`: all that it may have.
    pub subscriptions: BTreeMap<String, Option<usize>>,
    /// What it refused last and has not taken another of since, by type.
    pub refused: BTreeMap<String, RefusedAnswer>,
}

/// An answer that a client refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedAnswer {
    pub at: Timestamp,
    /// In the client's words.
    pub message: String,
    /// The hosts of the imported services that these name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub services: BTreeSet<String>,
}

/// One open stream; it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct OpenClient {
    clients: Clients,
    key: u64,
}

impl Drop for OpenClient {
    fn drop(&mut self) {
        let gone = self.clients.all().open.remove(&self.key);
        if gone.is_some_and(|state| !state.refused.is_empty()) {
            self.clients.turned.notify_one();
        }
    }
}

impl Clients {
    /// The streams that are open, by their clients' IDs and then their age.
    #[must_use]
    pub fn now(&self) -> Vec<ClientState> {
        let mut all: Vec<ClientState> = self.all().open.values().cloned().collect();
        all.sort_by(|one, other| (&one.spiffe_id, one.since).cmp(&(&other.spiffe_id, other.since)));
        all
    }

    /// What is refused by the imported services that it is about: what it was at first is told at once, and what it comes to
    /// after that no more often than every half a minute.
    #[must_use]
    pub fn refusals(&self) -> watch::Receiver<Arc<Refusals>> {
        self.refusals.subscribe()
    }

    /// Tells it, for ever.
    pub(super) async fn tell(self) {
        loop {
            self.turned.notified().await;
            let refused = self.refused();
            let changed = self.refusals.send_if_modified(|last| {
                let changed = **last != refused;
                if changed {
                    *last = Arc::new(refused);
                }
                changed
            });
            if changed {
                sleep(REST).await;
            }
        }
    }

    fn refused(&self) -> Refusals {
        let mut refusals = Refusals::new();
        for state in self.all().open.values() {
            for (kind, refused) in &state.refused {
                let Some(kind) = ResourceType::ALL.into_iter().find(|one| one.as_str() == kind) else {
                    continue;
                };
                for host in &refused.services {
                    let (client, message) = (state.spiffe_id.clone(), refused.message.clone());
                    let refusal = ClientRefusal { client, kind: kind.as_str(), message };
                    refusals.entry(host.clone()).or_default().insert(refusal);
                }
            }
        }
        refusals
    }

    pub(super) fn open(&self, id: &SpiffeId) -> OpenClient {
        let state = ClientState {
            spiffe_id: id.to_string(),
            node: String::new(),
            kind: String::new(),
            since: clock::now(),
            subscriptions: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        let mut all = self.all();
        all.last += 1;
        let key = all.last;
        all.open.insert(key, state);
        OpenClient { clients: self.clone(), key }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenClient {
    /// Takes down what a request was; `view` is what the client sees.
    pub(super) fn heard(
        &self,
        who: &Introduction,
        heard: &Heard,
        view: Option<&View>,
        subscriptions: BTreeMap<ResourceType, Option<usize>>,
    ) {
        let mut all = self.clients.all();
        let Some(state) = all.open.get_mut(&self.key) else { return };
        state.node.clone_from(&who.node);
        state.kind = who.kind.map_or("", |kind| kind.as_str()).to_owned();
        state.subscriptions =
            subscriptions.into_iter().map(|(kind, count)| (kind.as_str().to_owned(), count)).collect();
        match heard {
            Heard::Asked => {}
            Heard::Acked(kind) => {
                if state.refused.remove(kind.as_str()).is_some() {
                    self.clients.turned.notify_one();
                }
            }
            Heard::Nacked(Nack { kind, message, names }) => {
                let is_seen = |name: &&String| view.is_some_and(|view| view.get(*kind, name).is_some());
                let hosts = names.iter().filter(is_seen).filter_map(|name| name.rsplit_once(':'));
                let services = hosts.map(|(host, _)| host.to_owned()).collect();
                let refused = RefusedAnswer { at: clock::now(), message: message.clone(), services };
                state.refused.insert(kind.as_str().to_owned(), refused);
                self.clients.turned.notify_one();
            }
        }
    }
}

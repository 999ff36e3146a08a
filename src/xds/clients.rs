//! Who is served now, and what each has refused: for an operator that asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::session::{Heard, Introduction, Nack};
use crate::clock;
use crate::model::SpiffeId;
use crate::plan::xds::ResourceType;

/// All streams that are open. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Clients(Arc<Mutex<All>>);

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
}

/// One open stream; it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct OpenClient {
    clients: Clients,
    key: u64,
}

impl Drop for OpenClient {
    fn drop(&mut self) {
        self.clients.all().open.remove(&self.key);
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenClient {
    /// Takes down what a request was.
    pub(super) fn heard(
        &self,
        who: &Introduction,
        heard: &Heard,
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
                state.refused.remove(kind.as_str());
            }
            Heard::Nacked(Nack { kind, message }) => {
                let refused = RefusedAnswer { at: clock::now(), message: message.clone() };
                state.refused.insert(kind.as_str().to_owned(), refused);
            }
        }
    }
}

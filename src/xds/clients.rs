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
/// Most refusals of one stream that stand at a time; the oldest is forgotten first.
const MOST_STANDING: usize = 64;

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
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    state: ClientState,
    /// The oldest first.
    standing: Vec<Standing>,
}

/// A refusal that stands.
#[derive(Debug)]
struct Standing {
    kind: ResourceType,
    answer: RefusedAnswer,
    /// Of these the client has taken nothing since; `None`: nothing of the type at all.
    names: Option<BTreeSet<Arc<str>>>,
}

impl Standing {
    /// Whether it still stands where these of its names are left.
    fn keep(&mut self, is_left: impl Fn(&str) -> bool) -> bool {
        let Some(names) = &mut self.names else { return true };
        let before = names.len();
        names.retain(|name| is_left(name));
        if names.len() < before {
            let is_of = |host: &String| names.iter().any(|name| host_of(name) == Some(host));
            self.answer.services.retain(is_of);
        }
        !names.is_empty()
    }
}

/// The host in the name of a resource.
fn host_of(name: &str) -> Option<&str> {
    name.rsplit_once(':').map(|(host, _)| host)
}

impl Open {
    /// These of a type are refused no more, or by another answer.
    fn settle(&mut self, kind: ResourceType, settled: Option<&[Arc<str>]>) {
        let settled = settled.map(|all| all.iter().map(AsRef::as_ref).collect::<BTreeSet<&str>>());
        self.standing.retain_mut(|one| match &settled {
            _ if one.kind != kind => true,
            Some(settled) if one.names.is_some() => one.keep(|name| !settled.contains(name)),
            _ => false,
        });
    }

    /// What operators are shown: the last refusal of a type, with the services of all that stand.
    fn show(&mut self) {
        let mut refused: BTreeMap<String, RefusedAnswer> = BTreeMap::new();
        for Standing { kind, answer, .. } in &self.standing {
            let mut services = answer.services.clone();
            if let Some(earlier) = refused.remove(kind.as_str()) {
                services.extend(earlier.services);
            }
            refused.insert(kind.as_str().to_owned(), RefusedAnswer { services, ..answer.clone() });
        }
        self.state.refused = refused;
    }
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
    /// What it refused last and has not taken since, by type.
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
        if gone.is_some_and(|open| !open.standing.is_empty()) {
            self.clients.turned.notify_one();
        }
    }
}

impl Clients {
    /// The streams that are open, by their clients' IDs and then their age.
    #[must_use]
    pub fn now(&self) -> Vec<ClientState> {
        let mut all: Vec<ClientState> = self.all().open.values().map(|open| open.state.clone()).collect();
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
        for Open { state, standing } in self.all().open.values() {
            for Standing { kind, answer, .. } in standing {
                for host in &answer.services {
                    let (client, message) = (state.spiffe_id.clone(), answer.message.clone());
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
        all.open.insert(key, Open { state, standing: Vec::new() });
        OpenClient { clients: self.clone(), key }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenClient {
    /// Takes down what a request was; `view` is what the client sees, `wants` what of it it still asks for.
    pub(super) fn heard(
        &self,
        who: &Introduction,
        heard: &Heard,
        view: Option<&View>,
        subscriptions: BTreeMap<ResourceType, Option<usize>>,
        wants: impl Fn(ResourceType, &str) -> bool,
    ) {
        let mut all = self.clients.all();
        let Some(open) = all.open.get_mut(&self.key) else { return };
        let state = &mut open.state;
        state.node.clone_from(&who.node);
        state.kind = who.kind.map_or("", |kind| kind.as_str()).to_owned();
        state.subscriptions =
            subscriptions.into_iter().map(|(kind, count)| (kind.as_str().to_owned(), count)).collect();
        let stood = !open.standing.is_empty();
        match heard {
            Heard::Asked => {}
            Heard::Acked(kind, taken) => open.settle(*kind, taken.as_deref()),
            Heard::Nacked(Nack { kind, message, names, refused }) => {
                let is_seen = |name: &&String| view.is_some_and(|view| view.get(*kind, name).is_some());
                let hosts = names.iter().filter(is_seen).filter_map(|name| host_of(name));
                let services = hosts.map(str::to_owned).collect();
                let answer = RefusedAnswer { at: clock::now(), message: message.clone(), services };
                open.settle(*kind, refused.as_deref());
                let names = refused.as_ref().map(|names| names.iter().cloned().collect());
                open.standing.push(Standing { kind: *kind, answer, names });
                if open.standing.len() > MOST_STANDING {
                    open.standing.remove(0);
                }
            }
        }
        open.standing.retain_mut(|one| {
            let kind = one.kind;
            one.keep(|name| wants(kind, name))
        });
        if stood || !open.standing.is_empty() {
            open.show();
            self.clients.turned.notify_one();
        }
    }
}

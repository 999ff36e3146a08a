//! Starts the listener and one actor a peer, as the plans say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::diagnose::{Ask, AskError, PathProbe, Question, Questions};
use super::link::{Parting, Stream};
use super::peer::{Actor, Inputs};
use super::relay::{Passing, RelayDoor};
use super::server::{Door, Places, Relay, serve};
use super::session::SessionLimits;
use crate::enrol::Desk;
use crate::identity::peer_tls::{Authorize, server_config};
use crate::identity::replica_tls;
use crate::identity::source::IdentitySource;
use crate::model::replica::Leader;
use crate::model::session::{GoodbyeReason, LinkPlan, SessionState};
use crate::model::{SpiffeId, TrustDomain};
use crate::rate::TokenBucket;

/// Most bytes of one frame that is read: all that are sent are smaller.
pub(crate) const MAX_FRAME: usize = 1024 * 1024;
/// Frames that wait for the stream; more are made as there is room.
pub(super) const QUEUE: usize = 4;
/// Connections that other replicas passed on and the listener has not yet looked at.
const TAKEN: usize = 16;
/// HTTP/2 keepalive: how often, and how long an answer may take.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(10);

/// Every time and rate of the exchange with peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// For DNS and TCP.
    pub connect: Duration,
    /// For TLS, for gRPC on top of it, and for a client to begin its exchange.
    pub handshake: Duration,
    /// The ceiling of the first pause between two dials.
    pub backoff_min: Duration,
    /// The ceiling of the longest.
    pub backoff_max: Duration,
    /// How long the side that does not dial first leaves it to the other.
    pub other_side: Duration,
    /// The ceiling of the pause before who shut down is dialled again: another replica of it takes its place, or it is back
    /// soon; and for how long it is dialled so often.
    pub return_pause: Duration,
    pub return_within: Duration,
    /// How long a goodbye may take to be flushed.
    pub goodbye: Duration,
    pub session: SessionLimits,
    /// How many connections a second one source may open, and how many at once.
    pub connections_per_second: u32,
    pub connections_burst: u32,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            other_side: Duration::from_secs(5),
            return_pause: Duration::from_millis(250),
            return_within: Duration::from_secs(10),
            goodbye: Duration::from_secs(5),
            session: SessionLimits::default(),
            connections_per_second: 20,
            connections_burst: 100,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FederationConfig {
    /// Where peers dial us.
    pub listen: SocketAddr,
    pub timings: Timings,
}

/// How replicas pass peers' connections on to the one that leads.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Where the others' connections are taken, while we lead.
    pub listen: SocketAddr,
    pub leader: watch::Receiver<Leader>,
}

/// Why the exchange with peers cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen for peers on {0}: {1}; choose another address (--listen)")]
    Listen(SocketAddr, std::io::Error),
    #[error("cannot listen for other replicas on {0}: {1}; choose another address (--relay-listen)")]
    Relay(SocketAddr, std::io::Error),
    #[error("TLS for peers cannot be configured: {0}")]
    Tls(#[from] rustls::Error),
}

/// How it stands with each peer that has a plan.
pub type PeerStates = Arc<BTreeMap<TrustDomain, SessionState>>;
/// What is wanted of the link with each peer.
pub type LinkPlans = Arc<BTreeMap<TrustDomain, LinkPlan>>;

/// The running exchange with all peers.
#[derive(Debug)]
pub struct Federation {
    pub local_addr: SocketAddr,
    /// Where other replicas pass connections on to, if they do.
    pub relay_addr: Option<SocketAddr>,
    pub states: watch::Receiver<PeerStates>,
    /// Looks at the path to peers' agents, and asks them what they see.
    pub probe: PathProbe,
    /// What peers ask of us; unanswered where nobody reads it.
    pub questions: Questions,
    /// Ends after cancellation, once every goodbye is flushed; or before, where the listener is lost.
    pub join: JoinHandle<()>,
}

impl Federation {
    /// Listens, and keeps one exchange with each peer of `plans` until `cancel`.
    ///
    /// Only while `open`: a peer keeps one stream with us, so of several replicas one must hold them all; and who does
    /// not know its peers yet must refuse none. Until it is open, connections are passed on to the replica that leads, by
    /// `relay`; without that they are closed before TLS, which reads as unreachable and never as a refusal, and nothing is
    /// dialled; once it is not, every peer is told goodbye. Joiners are received at the `desk`, on the same port, and touch
    /// no peer's exchange.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        config: FederationConfig,
        source: IdentitySource,
        plans: watch::Receiver<LinkPlans>,
        open: watch::Receiver<bool>,
        relay: Option<RelayConfig>,
        desk: Option<Arc<Desk>>,
        cancel: CancellationToken,
    ) -> Result<Self, StartError> {
        let failed = |e| StartError::Listen(config.listen, e);
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let hub = Arc::new(Hub::new(source.clone(), plans.clone()));
        let tls = server_config(&source, Arc::clone(&hub.authorize))?;
        let (relay, relay_addr) = match relay {
            Some(config) => Some(relay_between(config, &source, &open).await?).unzip(),
            None => (None, None),
        };
        let (states, seen) = watch::channel(PeerStates::default());
        let (ask_us, questions) = mpsc::channel(QUEUE);
        let probe = PathProbe { hub: Arc::clone(&hub), timings: config.timings };
        let manager = Manager {
            hub: Arc::clone(&hub),
            plans,
            open: open.clone(),
            states: States(Arc::new(states)),
            questions: ask_us,
            timings: config.timings,
            peers: BTreeMap::new(),
            actors: JoinSet::new(),
        };
        let join = tokio::spawn(async move {
            let closing = CancellationToken::new();
            let door = Door { listener, open, tls: Arc::new(tls), desk, relay };
            let serving = serve(door, hub, config.timings, closing.clone());
            let mut serving = std::pin::pin!(serving);
            tokio::select! {
                // the listener serves until the goodbyes are said: they go over its connections
                () = manager.run(cancel) => closing.cancel(),
                result = &mut serving => {
                    return tracing::error!(?result, "the listener for peers ended");
                }
            }
            let _ = serving.await;
        });
        Ok(Self { local_addr, relay_addr, states: seen, probe, questions, join })
    }
}

/// The listener for other replicas, and what passes on to them.
async fn relay_between(
    config: RelayConfig,
    source: &IdentitySource,
    open: &watch::Receiver<bool>,
) -> Result<(Relay, SocketAddr), StartError> {
    let RelayConfig { listen, leader } = config;
    let failed = |e| StartError::Relay(listen, e);
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (to_serve, taken) = mpsc::channel(TAKEN);
    let tls = Arc::new(replica_tls::client_config(source)?);
    let passing = Passing::new(leader, open.clone(), tls, to_serve.clone());
    let tls = Arc::new(replica_tls::server_config(source)?);
    let door = RelayDoor { listener, open: open.clone(), tls, taken: to_serve };
    Ok((Relay { passing, door, taken }, address))
}

/// What the listener and the manager share.
pub(super) struct Hub {
    pub(super) source: IdentitySource,
    /// Accepts the agents of every peer that has a plan, so that one that is parted from can be told why.
    pub(super) authorize: Authorize,
    pub(super) places: Places,
    pub(super) evidence: Mutex<TokenBucket>,
    pub(super) origin: Instant,
    doors: Mutex<BTreeMap<TrustDomain, ActorDoor>>,
}

/// How to reach the actor of a peer.
struct ActorDoor {
    streams: mpsc::Sender<Stream>,
    asks: mpsc::Sender<Ask>,
}

impl Hub {
    pub(super) fn new(source: IdentitySource, plans: watch::Receiver<LinkPlans>) -> Self {
        let authorize = move |id: &SpiffeId| {
            plans.borrow().get(id.trust_domain()).is_some_and(|plan| plan.agent_ids.contains(id))
        };
        Self {
            source,
            authorize: Arc::new(authorize),
            places: Places::default(),
            evidence: Mutex::new(TokenBucket::new(1, 5, Duration::ZERO)),
            origin: Instant::now(),
            doors: Mutex::default(),
        }
    }

    /// Hands a stream to its peer's actor; false where there is none, or it is not done with the last ones.
    pub(super) fn hand_over(&self, trust_domain: &TrustDomain, stream: Stream) -> bool {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.get(trust_domain).is_some_and(|door| door.streams.try_send(stream).is_ok())
    }

    /// Hands a question to its peer's actor.
    pub(super) fn ask(&self, trust_domain: &TrustDomain, ask: Ask) -> Result<(), AskError> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let door = doors.get(trust_domain).ok_or(AskError::NotConnected)?;
        door.asks.try_send(ask).map_err(|_| AskError::Busy)
    }

    fn set_door(&self, trust_domain: &TrustDomain, door: Option<ActorDoor>) {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        match door {
            Some(door) => {
                doors.insert(trust_domain.clone(), door);
            }
            None => {
                doors.remove(trust_domain);
                self.places.lock().unwrap_or_else(PoisonError::into_inner).remove(trust_domain);
            }
        }
    }
}

/// Where the actors publish.
#[derive(Clone)]
pub(super) struct States(Arc<watch::Sender<PeerStates>>);

impl States {
    /// Changes the state of a peer that has one; who watches wakes only where it differs.
    pub(super) fn update(&self, peer: &TrustDomain, change: impl FnOnce(&mut SessionState)) {
        self.0.send_if_modified(|states| {
            let Some(known) = states.get(peer) else { return false };
            let mut state = known.clone();
            change(&mut state);
            let differs = state != *known;
            if differs {
                Arc::make_mut(states).insert(peer.clone(), state);
            }
            differs
        });
    }

    fn set(&self, peer: &TrustDomain, state: Option<SessionState>) {
        self.0.send_modify(|states| {
            let states = Arc::make_mut(states);
            match state {
                Some(state) => states.insert(peer.clone(), state),
                None => states.remove(peer),
            };
        });
    }
}

struct PeerHandle {
    plan: watch::Sender<Arc<LinkPlan>>,
    stop: watch::Sender<Parting>,
    task: AbortHandle,
}

struct Manager {
    hub: Arc<Hub>,
    plans: watch::Receiver<LinkPlans>,
    open: watch::Receiver<bool>,
    states: States,
    questions: mpsc::Sender<Question>,
    timings: Timings,
    peers: BTreeMap<TrustDomain, PeerHandle>,
    actors: JoinSet<()>,
}

impl Manager {
    async fn run(mut self, cancel: CancellationToken) {
        loop {
            let plans = self.plans.borrow_and_update().clone();
            if *self.open.borrow_and_update() {
                self.follow(&plans);
            } else {
                self.leave("this replica of the agent leaves the exchange to another");
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                Ok(()) = self.plans.changed() => {}
                Ok(()) = self.open.changed() => {}
                Some(ended) = self.actors.join_next_with_id(), if !self.actors.is_empty() => {
                    self.on_ended(match ended { Ok((id, ())) => id, Err(error) => {
                        tracing::error!(%error, "the actor of a peer failed, and is started again");
                        error.id()
                    }});
                }
            }
        }
        self.leave("the agent is stopping");
        while self.actors.join_next().await.is_some() {}
    }

    /// Has every peer told that we go, and why. Their actors end once that is said.
    fn leave(&self, text: &str) {
        for peer in self.peers.values() {
            peer.stop.send_if_modified(|stop| {
                let first = stop.is_none();
                if first {
                    *stop = Some((GoodbyeReason::ShuttingDown, text.to_owned()));
                }
                first
            });
        }
    }

    fn follow(&mut self, plans: &BTreeMap<TrustDomain, LinkPlan>) {
        for (trust_domain, plan) in plans {
            match self.peers.get(trust_domain) {
                Some(peer) => {
                    peer.plan.send_if_modified(|known| {
                        let differs = **known != *plan;
                        if differs {
                            *known = Arc::new(plan.clone());
                        }
                        differs
                    });
                }
                None => self.spawn(trust_domain, plan),
            }
        }
        for (trust_domain, peer) in &self.peers {
            if !plans.contains_key(trust_domain) && peer.stop.borrow().is_none() {
                self.hub.set_door(trust_domain, None);
                let text = "there is no relationship any more".to_owned();
                peer.stop.send_replace(Some((GoodbyeReason::NotTrusted, text)));
            }
        }
    }

    fn spawn(&mut self, trust_domain: &TrustDomain, plan: &LinkPlan) {
        let (plan, plans) = watch::channel(Arc::new(plan.clone()));
        let (stop, stopped) = watch::channel(None);
        let (streams, inbound) = mpsc::channel(QUEUE);
        let (asks, asked) = mpsc::channel(QUEUE);
        self.states.set(trust_domain, Some(SessionState::idle(crate::clock::now())));
        self.hub.set_door(trust_domain, Some(ActorDoor { streams, asks }));
        let task = self.actors.spawn(Actor::run(Inputs {
            plan: plans,
            inbound,
            asks: asked,
            questions: self.questions.clone(),
            stop: stopped,
            source: self.hub.source.clone(),
            states: self.states.clone(),
            timings: self.timings,
        }));
        self.peers.insert(trust_domain.clone(), PeerHandle { plan, stop, task });
    }

    /// An actor is gone; where its peer has a plan again, the next round starts another.
    fn on_ended(&mut self, id: tokio::task::Id) {
        let found = self.peers.iter().find(|(_, peer)| peer.task.id() == id).map(|(td, _)| td.clone());
        if let Some(trust_domain) = found {
            self.peers.remove(&trust_domain);
            self.hub.set_door(&trust_domain, None);
            self.states.set(&trust_domain, None);
        }
    }
}

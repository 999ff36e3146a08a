//! The actor of one peer: dials, accepts, keeps one stream, and publishes how it stands.
//!
//! Of two streams between the same two domains, the one dialled by the trust domain that sorts first is kept: both sides
//! know which that is, so they cannot each close the one that the other keeps. Of two that the same side dialled, the
//! older is kept while the peer is heard on it. A stream counts once the peer's Hello has been read.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::catalogue;
use super::client::{Dialled, Target, dial};
use super::diagnose::{Ask, Question};
use super::link::{Connection, LinkEvent, Parting, Proof, Say, Stream};
use super::manager::{States, Timings};
use super::session::Heard;
use crate::identity::peer_tls::Authorize;
use crate::identity::source::IdentitySource;
use crate::identity::verify::Role;
use crate::model::own::Identity;
use crate::model::session::{
    Catalogue, GoodbyeReason, LinkIntent, LinkPlan, LinkState, Offers, SessionState,
};
use crate::model::{SpiffeId, TrustDomain};

mod diagnose;
mod streams;

/// What may wait to be said on a stream beside the plan.
const SAID: usize = 8;
/// How long an answer to a catalogue may take before it is missed: it is short of seconds as a rule.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often in a row a peer that shuts down is awaited back at once.
const EXPECTATIONS: u32 = 3;
const ANOTHER_STREAM: &str = "another stream is kept";

/// What the actor is given at its start.
pub(super) struct Inputs {
    pub(super) plan: watch::Receiver<Arc<LinkPlan>>,
    pub(super) inbound: mpsc::Receiver<Stream>,
    /// What we want to know of the peer, and where what it wants to know of us goes.
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) questions: mpsc::Sender<Question>,
    /// Set once the actor is to end, with what the peer is told.
    pub(super) stop: watch::Receiver<Parting>,
    pub(super) source: IdentitySource,
    pub(super) states: States,
    pub(super) timings: Timings,
}

/// A stream as the actor sees it.
struct LinkHandle {
    proof: Proof,
    parting: watch::Sender<Parting>,
    say: mpsc::Sender<Say>,
    last_heard: Arc<AtomicU64>,
    opened: Option<Instant>,
    heard: Heard,
    ended: bool,
}

type Dialling = Pin<Box<dyn Future<Output = Result<Dialled, LinkState>> + Send>>;

pub(super) struct Actor {
    peer: TrustDomain,
    plan: Arc<LinkPlan>,
    plans: watch::Receiver<Arc<LinkPlan>>,
    /// The plan as the links follow it.
    planned: watch::Sender<Arc<LinkPlan>>,
    source: IdentitySource,
    states: States,
    timings: Timings,
    origin: Instant,
    links: BTreeMap<u64, LinkHandle>,
    next_number: u64,
    /// The stream that counts.
    current: Option<u64>,
    events: mpsc::Sender<(u64, LinkEvent)>,
    tasks: JoinSet<()>,
    dialling: Option<Dialling>,
    failures: u32,
    next_dial: Instant,
    /// Since when the peer has owed an answer, or a further one, to our catalogue; and whether it was said to be overdue.
    owed: Option<Instant>,
    is_overdue: bool,
    /// Whether we dialled the last stream that counted: then it is ours to dial again, whoever else may.
    dialled_last: bool,
    /// Until when a peer that shut down is awaited back at any moment.
    expected_until: Option<Instant>,
    /// How often it still is, before a stream has lived for a while: a peer that shuts down at once, again and again, is not.
    expectations: u32,
    stopping: Parting,
    asked: BTreeMap<u64, diagnose::Asked>,
    next_question: u64,
    questions: mpsc::Sender<Question>,
    next_answer: Instant,
    answering: Option<AbortHandle>,
}

impl Actor {
    /// Runs until told to stop and everything said is flushed.
    pub(super) async fn run(inputs: Inputs) {
        let Inputs { plan: plans, mut inbound, mut asks, questions, mut stop, source, states, timings } =
            inputs;
        let mut identity = source.subscribe();
        let mut new_plans = plans.clone();
        let (events, mut happened) = mpsc::channel(16);
        let mut actor = Self::new(plans, source, states, timings, events, questions);
        loop {
            actor.act();
            if actor.stopping.is_some() && actor.links.is_empty() {
                return;
            }
            let wake = actor.wake();
            tokio::select! {
                Ok(stopping) = stop.wait_for(Option::is_some), if actor.stopping.is_none() => {
                    let stopping = stopping.clone();
                    actor.stopping = stopping;
                }
                Ok(()) = new_plans.changed() => actor.on_plan(),
                Ok(()) = identity.changed() => {
                    let now = identity.borrow_and_update().clone();
                    actor.on_identity(now.as_deref());
                }
                Some(stream) = inbound.recv() => actor.on_inbound(stream),
                Some(ask) = asks.recv() => actor.on_ask(ask),
                Some((number, event)) = happened.recv() => actor.on_event(number, event),
                result = dialled(&mut actor.dialling) => actor.on_dialled(result),
                Some(_) = actor.tasks.join_next(), if !actor.tasks.is_empty() => {}
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    fn new(
        plans: watch::Receiver<Arc<LinkPlan>>,
        source: IdentitySource,
        states: States,
        timings: Timings,
        events: mpsc::Sender<(u64, LinkEvent)>,
        questions: mpsc::Sender<Question>,
    ) -> Self {
        let plan = plans.borrow().clone();
        let now = Instant::now();
        let wait = if plan.dials_first { Duration::ZERO } else { timings.other_side };
        Self {
            peer: plan.trust_domain.clone(),
            planned: watch::Sender::new(Arc::clone(&plan)),
            plan,
            plans,
            source,
            states,
            timings,
            origin: now,
            links: BTreeMap::new(),
            next_number: 0,
            current: None,
            events,
            tasks: JoinSet::new(),
            dialling: None,
            failures: 0,
            next_dial: now + wait,
            owed: None,
            is_overdue: false,
            dialled_last: false,
            expected_until: None,
            expectations: EXPECTATIONS,
            stopping: None,
            asked: BTreeMap::new(),
            next_question: 1,
            questions,
            next_answer: now,
            answering: None,
        }
    }

    /// Does what is due now.
    fn act(&mut self) {
        self.watch_answer();
        if let Some((reason, text)) = self.parting() {
            self.dialling = None;
            self.part_all(reason, &text);
            if self.links.is_empty() && self.stopping.is_none() {
                self.update(|state| state.parted = true);
            }
        } else if self.wants_to_dial() && self.next_dial <= Instant::now() {
            let target = Target {
                trust_domain: self.peer.clone(),
                addresses: self.plan.addresses.clone(),
                authorize: self.authorize(),
                source: self.source.clone(),
            };
            self.dialling = Some(Box::pin(dial(target, self.timings)));
        }
    }

    /// Says so where our catalogue is not answered in time.
    fn watch_answer(&mut self) {
        let current = self.current.and_then(|number| self.links.get(&number));
        let version = self.plan.catalogue.version;
        let is_owed = current.is_some_and(|link| {
            link.heard.acknowledged.as_ref().is_none_or(|answer| answer.version != version)
        });
        self.owed = is_owed.then(|| self.owed.unwrap_or_else(Instant::now));
        let is_overdue = self.owed.is_some_and(|since| since.elapsed() >= PATIENCE);
        if is_overdue != self.is_overdue {
            self.is_overdue = is_overdue;
            self.update(|state| state.answer_overdue = is_overdue);
        }
    }

    /// What every stream is told, where there is to be none.
    fn parting(&self) -> Parting {
        self.stopping.clone().or_else(|| match self.plan.intent {
            LinkIntent::Connect => None,
            LinkIntent::Part(reason) => Some((reason, self.plan.farewell.clone())),
        })
    }

    fn wants_to_dial(&self) -> bool {
        self.stopping.is_none()
            && self.plan.intent == LinkIntent::Connect
            && !self.plan.addresses.is_empty()
            && self.dialling.is_none()
            && self.links.values().all(|link| link.ended)
            && self.source.current().is_some()
    }

    fn wake(&self) -> Option<Instant> {
        let dial = self.wants_to_dial().then_some(self.next_dial);
        let missed = self.owed.filter(|_| !self.is_overdue).map(|since| since + PATIENCE);
        dial.into_iter().chain(missed).min()
    }

    fn authorize(&self) -> Authorize {
        let plan = Arc::clone(&self.plan);
        Arc::new(move |id: &SpiffeId| plan.agent_ids.contains(id))
    }

    fn on_plan(&mut self) {
        let plan = self.plans.borrow_and_update().clone();
        let old = std::mem::replace(&mut self.plan, Arc::clone(&plan));
        self.planned.send_replace(Arc::clone(&plan));
        if plan.intent != old.intent {
            self.update(|state| state.parted = false);
        }
        if plan.agent_ids != old.agent_ids {
            self.judge_again();
        }
        let mended = plan.agent_ids != old.agent_ids
            || plan.addresses != old.addresses
            || plan.intent != old.intent
            || plan.dials_first != old.dials_first;
        if mended {
            self.dial_soon();
        }
    }

    fn on_identity(&mut self, identity: Option<&Identity>) {
        if identity.is_some() {
            self.judge_again();
            self.dial_soon();
        }
    }

    /// Something changed that may mend what kept us apart.
    fn dial_soon(&mut self) {
        self.failures = 0;
        let wait = if self.plan.dials_first { Duration::ZERO } else { self.timings.other_side };
        self.next_dial = self.next_dial.min(Instant::now() + wait);
    }

    fn on_dialled(&mut self, result: Result<Dialled, LinkState>) {
        self.dialling = None;
        match result {
            Ok(Dialled { id, chain, at, frames, out, channel }) => {
                let proof = Proof { id, chain, role: Role::Server, at };
                self.start(Stream { proof, frames, out, connection: Connection::Dialled(channel) }, None);
            }
            Err(state) => {
                self.failures += 1;
                self.schedule();
                self.set_failed(state);
            }
        }
    }

    /// Sets when to dial next: full jitter, so that agents that lost one peer do not come back in step.
    fn schedule(&mut self) {
        let Timings { backoff_min, backoff_max, return_pause, other_side, .. } = self.timings;
        let now = Instant::now();
        let pause = if self.expected_until.is_some_and(|until| now < until) {
            self.failures = 0;
            return_pause.mul_f64(rand::random::<f64>().clamp(0.1, 1.0))
        } else {
            backoff(self.failures, backoff_min, backoff_max, rand::random())
        };
        let turn = if self.plan.dials_first || self.dialled_last { Duration::ZERO } else { other_side };
        self.next_dial = now + pause + turn;
    }

    fn publish_heard(&mut self, number: u64) {
        let Some(link) = self.links.get(&number) else { return };
        let Heard { remote, catalogue, acknowledged, skew } = link.heard.clone();
        self.update(|state| {
            // what was heard before stands until the peer says otherwise
            state.remote = remote.or_else(|| state.remote.take());
            state.catalogue = catalogue.or_else(|| state.catalogue.take());
            state.acknowledged = acknowledged.or_else(|| state.acknowledged.take());
            state.skew = skew;
        });
    }

    /// What an attempt showed, while no stream stands. A peer that ended the relationship or suspended it has said why
    /// it is not reached or refuses us: that stands until it comes back, or is someone else.
    fn set_failed(&mut self, link: LinkState) {
        if self.current.is_some() {
            return;
        }
        let tells_less = matches!(link, LinkState::Unreachable { .. } | LinkState::Refused { .. });
        self.update_link(link, |known| {
            let LinkState::Parted { reason, .. } = known else { return false };
            tells_less && matches!(reason, GoodbyeReason::RelationshipEnded | GoodbyeReason::Suspended)
        });
    }

    /// The stream that counted is gone, and neither side said anything against the other.
    fn set_not_connected(&mut self) {
        self.update_link(LinkState::Idle, |known| *known != LinkState::Connected);
    }

    fn set_link(&mut self, link: LinkState) {
        self.update_link(link, |_| false);
    }

    fn update_link(&mut self, link: LinkState, keep: impl FnOnce(&LinkState) -> bool) {
        self.update(|state| {
            if state.link != link && !keep(&state.link) {
                turn(state, link);
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut SessionState)) {
        self.states.update(&self.peer, change);
    }
}

/// A peer that ended the relationship exports nothing by its own word: when it is back, what it exported before is not
/// its word until it says so anew.
fn turn(state: &mut SessionState, link: LinkState) {
    if matches!(link, LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, .. }) {
        let services = Offers::new();
        let version = catalogue::version_of(&services);
        state.catalogue =
            Some(Arc::new(Catalogue { version, services, held: BTreeSet::new(), malformed: Vec::new() }));
    }
    state.link = link;
    state.since = crate::clock::now();
}

/// Between a tenth of it and all of it, at random, of a ceiling that doubles with each failure.
fn backoff(failures: u32, min: Duration, max: Duration, random: f64) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let ceiling = min.saturating_mul(doubled).min(max);
    ceiling.mul_f64(random.clamp(0.1, 1.0))
}

async fn dialled(dialling: &mut Option<Dialling>) -> Result<Dialled, LinkState> {
    match dialling {
        Some(dialling) => dialling.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_to_its_limit_and_is_spread() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(30));
        let longest = |failures| backoff(failures, min, max, 1.0).as_secs();
        assert_eq!([0, 1, 2, 3, 5, 6, 33, u32::MAX].map(longest), [1, 1, 2, 4, 16, 30, 30, 30]);
        assert_eq!(backoff(6, min, max, 0.0), Duration::from_secs(3));
        assert_eq!(backoff(6, min, max, 0.5), Duration::from_secs(15));
    }

    #[test]
    fn what_a_peer_exported_before_it_ended_the_relationship_does_not_come_back_with_it() {
        let parted = |reason| LinkState::Parted { reason, message: String::new() };
        let kept = |reason| {
            let services = Offers::from([(
                crate::plan::fixtures::remote_cart().name,
                Arc::new(crate::plan::fixtures::remote_cart()),
            )]);
            let mut state = SessionState::idle(crate::clock::now());
            state.catalogue = Some(Arc::new(Catalogue {
                version: [1; 32],
                services,
                held: BTreeSet::new(),
                malformed: Vec::new(),
            }));
            turn(&mut state, parted(reason));
            turn(&mut state, LinkState::Connected);
            state.catalogue.unwrap().services.len()
        };
        assert_eq!(kept(GoodbyeReason::RelationshipEnded), 0);
        assert_eq!(kept(GoodbyeReason::Suspended), 1);
        assert_eq!(kept(GoodbyeReason::ShuttingDown), 1);
    }
}

//! Polls every endpoint, each in a task of its own, and publishes what is known of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::endpoint::{EndpointClient, Fetched};
use super::monitor::{PollLimits, continuation, next_poll, observe, verifying_bundle};
use crate::clock::whole;
use crate::model::endpoint::{EndpointState, FetchFailure, FetchProblem, MonitorTarget, Proof};
use crate::model::{Bundle, TrustDomain};

/// Most fetches under way at once. Each ends by its own timeout, so that nobody waits for long.
const MAX_FETCHES: usize = 64;

/// Least time between two fetches from one endpoint, however often a refresh is asked for: peers may ask.
const REFRESH_SPACING: Duration = Duration::from_millis(500);

/// What is to be watched, by trust domain.
pub type Targets = Arc<BTreeMap<TrustDomain, MonitorTarget>>;
/// What is known of each; of a target that was not fetched yet, the default.
pub type States = Arc<BTreeMap<TrustDomain, EndpointState>>;
/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// By trust domain: after which moment a fetch is asked for.
type Wakers = Arc<Mutex<BTreeMap<TrustDomain, watch::Sender<Option<Timestamp>>>>>;

/// Asks for a fetch out of turn.
#[derive(Clone, Debug, Default)]
pub struct RefreshHandle(Wakers);

impl RefreshHandle {
    /// Has the bundle of a trust domain fetched now, or shortly, if it was fetched just before. Nothing happens for one
    /// that is not watched, nor where a fetch was begun after the moment `after`.
    pub fn refresh(&self, trust_domain: &TrustDomain, after: Timestamp) {
        let wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = wakers.get(trust_domain) {
            waker.send_if_modified(|asked| {
                // Another moment, and not only a later one: the clock may have been set back.
                let is_other = *asked != Some(after);
                *asked = Some(after);
                is_other
            });
        }
    }
}

/// Watches `targets` until `cancel`, or until nobody can change them any more: at once when one is new, then by its refresh hint. A target that changes keeps its
/// bundle, and what else is known unless its URL or profile changed; it is fetched when it would have been, or at once if
/// it failed before. States are published only when they changed.
pub fn spawn(
    client: EndpointClient,
    limits: PollLimits,
    targets: watch::Receiver<Targets>,
    clock: Clock,
    cancel: CancellationToken,
) -> (watch::Receiver<States>, JoinHandle<()>, RefreshHandle) {
    let (states, published) = watch::channel(States::default());
    let wakers = Wakers::default();
    let shared = Arc::new(Shared { client, limits, clock, states, fetches: Semaphore::new(MAX_FETCHES) });
    let watcher = Watcher {
        shared,
        wakers: Arc::clone(&wakers),
        cancel,
        watched: BTreeMap::new(),
        tasks: JoinSet::new(),
    };
    let task = tokio::spawn(watcher.run(targets));
    (published, task, RefreshHandle(wakers))
}

struct Shared {
    client: EndpointClient,
    limits: PollLimits,
    clock: Clock,
    states: watch::Sender<States>,
    fetches: Semaphore,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

struct Watched {
    target: MonitorTarget,
    cancel: CancellationToken,
    course: Course,
}

/// What of the polling of a target outlives a change of the target.
#[derive(Clone, Debug, Default)]
struct Course(Arc<Mutex<CourseState>>);

#[derive(Clone, Copy, Debug, Default)]
struct CourseState {
    /// When the last fetch began.
    last: Option<Instant>,
    /// When the next one is due.
    next: Option<Instant>,
    /// The operator gave another bundle since the last successful fetch, which is the latest until the next one (SPIFFE
    /// Federation 5.3): it is how a trust domain is heard again that lost all of its authorities.
    bootstrap_is_latest: bool,
}

impl Course {
    fn get(&self) -> CourseState {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut CourseState)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

struct Watcher {
    shared: Arc<Shared>,
    wakers: Wakers,
    cancel: CancellationToken,
    watched: BTreeMap<TrustDomain, Watched>,
    tasks: JoinSet<()>,
}

impl Watcher {
    async fn run(mut self, mut targets: watch::Receiver<Targets>) {
        loop {
            let wanted = Arc::clone(&targets.borrow_and_update());
            self.follow(&wanted);
            tokio::select! {
                () = self.cancel.cancelled() => break,
                changed = targets.changed() => if changed.is_err() { break },
                Some(ended) = self.tasks.join_next() => if let Err(error) = ended && error.is_panic() {
                    // a watcher that is half dead must not look alive
                    std::panic::resume_unwind(error.into_panic());
                },
            }
        }
        for watched in self.watched.values() {
            watched.cancel.cancel();
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn follow(&mut self, wanted: &BTreeMap<TrustDomain, MonitorTarget>) {
        let gone: Vec<_> = self.watched.keys().filter(|td| !wanted.contains_key(*td)).cloned().collect();
        for trust_domain in gone {
            self.forget(&trust_domain);
        }
        for (trust_domain, target) in wanted {
            let old = self.watched.get(trust_domain).map(|watched| watched.target.clone());
            if old.as_ref() != Some(target) {
                self.start(old.as_ref(), target);
            }
        }
    }

    fn forget(&mut self, trust_domain: &TrustDomain) {
        debug!(%trust_domain, "bundle endpoint no longer watched");
        if let Some(watched) = self.watched.remove(trust_domain) {
            watched.cancel.cancel();
        }
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner).remove(trust_domain);
        self.shared.states.send_if_modified(|states| Arc::make_mut(states).remove(trust_domain).is_some());
    }

    /// Starts to watch a target, in place of what it was before.
    fn start(&mut self, old: Option<&MonitorTarget>, target: &MonitorTarget) {
        let trust_domain = &target.trust_domain;
        debug!(%trust_domain, url = %target.endpoint.url, "bundle endpoint watched");
        let cancel = self.cancel.child_token();
        let before = self.watched.remove(trust_domain);
        if let Some(before) = &before {
            before.cancel.cancel();
        }
        let course = before.map(|before| before.course).unwrap_or_default();
        let mut state = self.shared.states.borrow().get(trust_domain).cloned().unwrap_or_default();
        if old.is_some_and(|old| old.endpoint != target.endpoint) {
            state = EndpointState {
                latest: state.latest,
                latest_usable: state.latest_usable,
                fetched_at: state.fetched_at,
                ..EndpointState::default()
            };
        }
        // A bundle that could only not be read for a while is no other one.
        let given = old.is_some_and(|old| old.bootstrap.is_some() && old.bootstrap != target.bootstrap)
            && target.bootstrap.as_ref().is_some_and(|given| Some(given) != state.latest.as_ref());
        if given {
            // What descends from the bundle before is not the peer's any more, by the operator's word.
            state.latest_usable = None;
        }
        if let Some(bootstrap) = &target.bootstrap {
            state.descends_from = Some(bootstrap.digest());
        }
        self.shared.publish(trust_domain, &cancel, &state, || {
            // what was changed to mend a failure is tried at once, and so is another endpoint
            let at_once = state.failure.is_some() || state.since.is_none();
            course.update(|course| {
                course.bootstrap_is_latest |= given;
                course.next = course.next.filter(|_| !at_once);
            });
        });
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        let waker = wakers.entry(trust_domain.clone()).or_insert_with(|| watch::Sender::new(None));
        let mut asked = waker.subscribe();
        drop(wakers);
        // what was asked of the one before it, and not answered
        asked.mark_changed();
        let poll = Poll {
            shared: Arc::clone(&self.shared),
            target: target.clone(),
            state,
            course: course.clone(),
            asked,
            cancel: cancel.clone(),
        };
        self.tasks.spawn(poll.run());
        self.watched.insert(trust_domain.clone(), Watched { target: target.clone(), cancel, course });
    }
}

impl Shared {
    /// Publishes a state, if it is another one. `settle` runs with it, and neither happens once the task was replaced.
    fn publish(
        &self,
        trust_domain: &TrustDomain,
        cancel: &CancellationToken,
        state: &EndpointState,
        settle: impl FnOnce(),
    ) {
        self.states.send_if_modified(|states| {
            if cancel.is_cancelled() {
                return false;
            }
            settle();
            if states.get(trust_domain) == Some(state) {
                return false;
            }
            Arc::make_mut(states).insert(trust_domain.clone(), state.clone());
            true
        });
    }
}

/// The polling of one endpoint.
struct Poll {
    shared: Arc<Shared>,
    target: MonitorTarget,
    state: EndpointState,
    course: Course,
    asked: watch::Receiver<Option<Timestamp>>,
    cancel: CancellationToken,
}

impl Poll {
    async fn run(mut self) {
        let cancel = self.cancel.clone();
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.poll() => {}
        }
    }

    async fn poll(&mut self) {
        loop {
            let due = self.due();
            let in_turn = tokio::select! {
                () = tokio::time::sleep_until(due) => true,
                () = asked(&mut self.asked, self.state.asked_at, &self.shared.clock) => false,
            };
            if let Some(last) = self.course.get().last {
                tokio::time::sleep_until(last + REFRESH_SPACING.min(self.shared.limits.min_interval)).await;
            }
            self.fetch(in_turn).await;
        }
    }

    /// When the next fetch in turn is due. What the target asks for now holds for a fetch that was put off before, too.
    fn due(&self) -> Instant {
        let course = self.course.get();
        let due = course.next.unwrap_or_else(Instant::now);
        let latest = course.last.zip(self.target.at_most).map(|(last, at_most)| last + at_most);
        latest.map_or(due, |latest| due.min(latest))
    }

    /// Fetches, and publishes what that showed. Only fetches in turn add to what is counted: others may be many.
    async fn fetch(&mut self, in_turn: bool) {
        let Ok(_permit) = self.shared.fetches.acquire().await else { return };
        self.course.update(|course| course.last = Some(Instant::now()));
        let begun = (self.shared.clock)();
        let fetched = self.verified(begun).await;
        let is_fetched = fetched.is_ok();
        let refused_by_spire = match &fetched {
            Ok(fetched) => fetched.refused_by_spire.clone(),
            Err(_) => self.state.refused_by_spire.clone(),
        };
        let proof = match &fetched {
            Ok(fetched) => proof(self.state.proof.as_ref(), &fetched.proof, whole(begun)),
            Err(_) => self.state.proof.clone(),
        };
        let fetched = fetched.map(|fetched| fetched.bundle);
        let mut state = observe(&self.state, fetched, whole((self.shared.clock)()));
        (state.refused_by_spire, state.proof) = (refused_by_spire, proof);
        state.asked_at = Some(begun);
        state.fetched_at = if is_fetched { Some(begun) } else { state.fetched_at };
        if !in_turn {
            state.good_in_a_row = state.good_in_a_row.min(self.state.good_in_a_row);
            state.unchanged = state.unchanged.min(self.state.unchanged.max(1));
        }
        self.report(&state);
        self.state = state;
        let wait = next_poll(&self.state, &self.shared.limits, rand::random_range(0..=1000));
        self.shared.publish(&self.target.trust_domain, &self.cancel, &self.state, || {
            self.course.update(|course| {
                course.next = Some(Instant::now() + wait);
                course.bootstrap_is_latest &= !is_fetched;
            });
        });
    }

    /// Fetches, verified by what is known to be the endpoint's; or, where it has moved on from that, by what SPIRE has
    /// fetched from it since.
    async fn verified(&self, begun: Timestamp) -> Result<Fetched, FetchFailure> {
        let course = self.course.get();
        let target = &self.target;
        let ours = if course.bootstrap_is_latest {
            let given = MonitorTarget { persisted: None, ..target.clone() };
            verifying_bundle(&given, &EndpointState::default())
        } else {
            verifying_bundle(target, &self.state)
        };
        let untrusted = match self.by(ours.as_deref(), begun).await {
            Err(failure) if failure.problem == FetchProblem::EndpointCertificateUntrusted => failure,
            other => return other,
        };
        // The operator's word is not to be continued by what was there before it.
        let ours = ours.filter(|_| !course.bootstrap_is_latest);
        let newer = ours.and_then(|ours| continuation(target, &ours, self.state.fetched_at, whole(begun)));
        let Some(newer) = newer else { return Err(untrusted) };
        let (trust_domain, digest) = (&target.trust_domain, newer.digest());
        let fetched = self.by(Some(&newer), begun).await.map_err(|_| untrusted)?;
        info!(%trust_domain, %digest, "the endpoint is verified by what SPIRE fetched from it meanwhile");
        Ok(fetched)
    }

    async fn by(&self, bundle: Option<&Bundle>, begun: Timestamp) -> Result<Fetched, FetchFailure> {
        let MonitorTarget { trust_domain, endpoint, .. } = &self.target;
        self.shared.client.fetch(trust_domain, endpoint, bundle, whole(begun)).await
    }

    /// Says once what an operator must know.
    fn report(&self, state: &EndpointState) {
        let (trust_domain, url) = (&self.target.trust_domain, &self.target.endpoint.url);
        for alarm in state.alarms.iter().filter(|alarm| !self.state.alarms.contains(alarm)) {
            warn!(%trust_domain, %url, ?alarm, reason = alarm.reason(), "the fetched bundle is suspicious");
        }
        let problem = state.failure.as_ref().map(|failure| failure.problem);
        if let Some(failure) = &state.failure
            && self.state.failure.as_ref().map(|failure| failure.problem) != problem
        {
            warn!(%trust_domain, %url, reason = failure.problem.reason(), message = failure.message,
                "bundle endpoint unhealthy");
        }
    }
}

/// The same chain again is no news.
fn proof(before: Option<&Proof>, chain: &[Vec<u8>], at: Timestamp) -> Option<Proof> {
    let same = before.filter(|before| before.chain == chain).cloned();
    same.or_else(|| (!chain.is_empty()).then(|| Proof { chain: chain.to_vec(), at }))
}

/// Returns once a fetch is asked for after a moment at which none had begun. One that began in the future did so by a clock
/// that was set back since.
async fn asked(asked: &mut watch::Receiver<Option<Timestamp>>, begun: Option<Timestamp>, clock: &Clock) {
    while asked.changed().await.is_ok() {
        let after = *asked.borrow_and_update();
        if after.is_some_and(|after| begun.is_none_or(|begun| begun <= after || begun > clock())) {
            return;
        }
    }
    // it is not watched any more, or watched anew
    std::future::pending().await
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;

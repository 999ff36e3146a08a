//! The loop that turns what comes in into plans. One task owns the world; plans are published only where they differ.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Index;
use super::bootstrap::{self, Bootstraps, Wanted};
use crate::bundle::watch::RefreshHandle;
use crate::model::endpoint::{EndpointState, MonitorTarget};
use crate::model::mesh::Mesh;
use crate::model::own::{Identity, WorkloadFailure};
use crate::model::refused::Refusals;
use crate::model::replica::Leader;
use crate::model::session::{LinkPlan, SessionState};
use crate::model::trust::SpireState;
use crate::model::{ObjectKey, TrustDomain, World};
use crate::observe::metrics::{Metrics, Step};
use crate::observe::traces;
use crate::plan::memo::Memo;
use crate::plan::taking::{Sessions, Taking};
use crate::plan::{self, Plan};
use crate::reach::Reached;
use crate::store::Event;

/// How long changes are gathered before they are planned for, at least and at most: in between, planning takes a fifth
/// of the time while changes go on to come. One that comes alone waits the least.
const GATHER: Duration = Duration::from_millis(5);
const GATHER_MOST: Duration = Duration::from_millis(250);
/// How long no plan is made at most. What time alone decides has its moment in each plan, by a clock that may be set meanwhile.
const LEAST_OFTEN: Duration = Duration::from_secs(60);

/// Asks for everything that is known.
#[derive(Clone, Debug)]
pub struct WorldHandle(mpsc::Sender<Ask>);

/// A question for the world, to be answered with it.
pub type Ask = oneshot::Sender<Arc<World>>;

impl WorldHandle {
    /// A handle, and where its questions come in.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(16);
        (Self(asks), asked)
    }

    /// What is known now; nothing once the agent stops.
    pub async fn now(&self) -> Option<Arc<World>> {
        let (ask, answer) = oneshot::channel();
        self.0.send(ask).await.ok()?;
        answer.await.ok()
    }
}

/// Where the world comes from.
#[derive(Debug)]
pub struct Inputs {
    pub store: mpsc::Receiver<Event>,
    pub identity: watch::Receiver<Option<Arc<Identity>>>,
    pub workload_failure: watch::Receiver<Option<WorkloadFailure>>,
    pub spire: watch::Receiver<Option<Arc<SpireState>>>,
    pub endpoints: watch::Receiver<Arc<BTreeMap<TrustDomain, EndpointState>>>,
    pub sessions: watch::Receiver<Arc<BTreeMap<TrustDomain, SessionState>>>,
    pub bootstraps: mpsc::Receiver<Bootstraps>,
    pub reached: watch::Receiver<Reached>,
    /// What clients that are served by xDS refuse.
    pub refusals: watch::Receiver<Arc<Refusals>>,
    pub mesh: watch::Receiver<Option<Arc<Mesh>>>,
    pub failures: watch::Receiver<Arc<BTreeMap<ObjectKey, String>>>,
    /// Which replica leads.
    pub leader: watch::Receiver<Leader>,
    /// Who asks for the world as it is.
    pub asks: mpsc::Receiver<Ask>,
    /// Who has asked, and is not answered yet.
    pub asked: Vec<Ask>,
}

/// Who acts on plans.
#[derive(Debug)]
pub struct Outputs {
    pub plans: watch::Sender<Arc<Plan>>,
    pub links: watch::Sender<Arc<BTreeMap<TrustDomain, LinkPlan>>>,
    pub monitors: watch::Sender<Arc<BTreeMap<TrustDomain, MonitorTarget>>>,
    pub bootstraps: watch::Sender<Wanted>,
    /// Asks bundle endpoints out of turn.
    pub ask_again: RefreshHandle,
    /// Whether every source has been read.
    pub ready: watch::Sender<bool>,
    /// The term of our lead that the last plan was made in.
    pub planned_in: watch::Sender<Option<i64>>,
    pub metrics: Arc<Metrics>,
}

/// Runs until a source ends or `cancel`.
///
/// # Errors
/// Names the source that ended: the process must not go on with half its senses.
pub async fn run(
    index: Index,
    mut inputs: Inputs,
    outputs: Outputs,
    clock: fn() -> Timestamp,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut wake_at = None;
    let taking = Taking::default();
    let mut planner = Planner { index, outputs, memo: Memo::default(), taking, led: None, planned: None };
    let (mut rested, mut planned_at) = (Instant::now(), Instant::now());
    loop {
        let woken = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            news = take(&mut planner.index, &mut inputs) => news,
            () = sleep_until(wake_at, planned_at + LEAST_OFTEN, clock) => Ok(News::ToPlanFor),
        };
        let mut news = match while_running(woken, &cancel)? {
            None => return Ok(()),
            Some(News::None) => continue,
            Some(news) => news,
        };
        // Whatever else arrives within a moment is planned for together.
        let gather = tokio::time::sleep_until(rested.max(Instant::now() + GATHER));
        tokio::pin!(gather);
        loop {
            tokio::select! {
                () = &mut gather => break,
                more = take(&mut planner.index, &mut inputs) => match while_running(more, &cancel)? {
                    None => return Ok(()),
                    Some(more) => news = news.max(more),
                }
            }
        }
        if news == News::Asked {
            answer(&planner.index, &mut inputs.asked, clock());
            continue;
        }
        let began = Instant::now();
        // A plan for very much takes a while, in which leases are renewed and peers heard all the same.
        let heard = Arc::clone(&inputs.sessions.borrow());
        let term = term(&inputs.leader.borrow_and_update());
        let planned = tokio::task::spawn_blocking(move || {
            let wake_at = traces::plan().in_scope(|| planner.plan(&heard, term, clock()));
            (planner, wake_at)
        });
        (planner, wake_at) = match planned.await {
            Ok(planned) => planned,
            Err(ended) if ended.is_cancelled() => return Ok(()),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        planned_at = Instant::now();
        planner.outputs.metrics.took(Step::Plan, began.elapsed());
        rested = planned_at + (began.elapsed() * 4).min(GATHER_MOST);
        answer(&planner.index, &mut inputs.asked, clock());
    }
}

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    /// Nothing that anything is decided by.
    None,
    /// Someone asks what is known.
    Asked,
    ToPlanFor,
}

impl News {
    const fn of(is_any: bool) -> Self {
        if is_any { Self::ToPlanFor } else { Self::None }
    }
}

/// Answers all who ask, with what is known now.
fn answer(index: &Index, asked: &mut Vec<Ask>, now: Timestamp) {
    if asked.is_empty() {
        return;
    }
    let mut world = index.world().clone();
    (world.now, world.moment) = (crate::clock::whole(now), now);
    let world = Arc::new(world);
    for ask in asked.drain(..) {
        // who asked may have gone
        let _ = ask.send(Arc::clone(&world));
    }
}

/// The term of our lead.
fn term(leader: &Leader) -> Option<i64> {
    match leader {
        Leader::Us { term } => Some(*term),
        Leader::Other { .. } | Leader::Nobody => None,
    }
}

/// What a plan is made of, and where it goes.
struct Planner {
    index: Index,
    outputs: Outputs,
    memo: Memo,
    taking: Taking,
    /// The term in which we led last.
    led: Option<i64>,
    /// When it was planned last.
    planned: Option<Timestamp>,
}

/// A clock that is set back by no more than this delays nothing by more either.
const SLIGHTLY: SignedDuration = SignedDuration::from_secs(2);

impl Planner {
    /// Plans and publishes, in this term of our lead; when to plan again though nothing changes.
    fn plan(&mut self, heard: &Sessions, term: Option<i64>, now: Timestamp) -> Option<Timestamp> {
        let told_again = self.index.time(now);
        // By a clock that was set back, what is remembered would lie in the future, and be waited for.
        let is_set_back = self.planned.is_some_and(|before| before.duration_since(now) > SLIGHTLY);
        self.planned = Some(now);
        if is_set_back {
            self.taking = Taking::default();
        }
        let (sessions, taken_again) = self.taking.take(heard, now);
        let world = self.index.world_mut();
        world.sessions = sessions;
        // While another led, we heard no peer: what we took silence for, and waited for, is not what happened. What that one
        // concluded is in the statuses, and is recalled from there, as after a start.
        if term.is_some() && term != self.led {
            world.memory.clear();
            self.led = term;
        }
        if is_set_back {
            tracing::warn!("the clock was set back: what was remembered is looked at anew, as after a start");
            world.memory.clear();
            world.tainted_since.clear();
            world.published_since.clear();
        }
        world.memory = plan::memory::advance(world);
        world.tainted_since = plan::rotation::tainted_since(world);
        world.published_since = plan::rotation::published_since(world);
        let plan = plan::plan_anew(world, &mut self.memo);
        self.memo.share(world);
        let wake_at = plan.wake_at.into_iter().chain(told_again).chain(taken_again).min();
        publish(&self.index, plan, &self.outputs);
        set(&self.outputs.planned_in, term);
        wake_at
    }
}

/// What was taken in, as long as it goes on. Once the agent is told to stop, its sources end, some before this task has seen that.
fn while_running(taken: anyhow::Result<News>, cancel: &CancellationToken) -> anyhow::Result<Option<News>> {
    if cancel.is_cancelled() {
        return Ok(None);
    }
    taken.map(Some)
}

/// Waits for one source to have news, and takes it in.
async fn take(index: &mut Index, inputs: &mut Inputs) -> anyhow::Result<News> {
    tokio::select! {
        Some(ask) = inputs.asks.recv() => {
            inputs.asked.push(ask);
            return Ok(News::Asked);
        }
        event = inputs.store.recv() => {
            return Ok(News::of(index.store(event.ok_or_else(|| ended("the store"))?)));
        }
        changed = inputs.identity.changed() => {
            changed.map_err(|_| ended("the Workload API client"))?;
            let identity = inputs.identity.borrow_and_update().clone();
            index.identity(identity);
        }
        changed = inputs.workload_failure.changed() => {
            changed.map_err(|_| ended("the Workload API client"))?;
            index.world_mut().workload_failure = inputs.workload_failure.borrow_and_update().clone();
        }
        changed = inputs.spire.changed() => {
            changed.map_err(|_| ended("the SPIRE server API client"))?;
            let state = inputs.spire.borrow_and_update().clone();
            index.spire(state);
        }
        changed = inputs.endpoints.changed() => {
            changed.map_err(|_| ended("the bundle endpoint monitor"))?;
            let endpoints = Arc::clone(&inputs.endpoints.borrow_and_update());
            let is_any = plan::heed::endpoints(index.world(), &endpoints);
            index.world_mut().endpoints = endpoints;
            return Ok(News::of(is_any));
        }
        changed = inputs.sessions.changed() => {
            // They come into the world when it is planned for, each peer's at its pace.
            changed.map_err(|_| ended("the peer protocol"))?;
        }
        found = inputs.bootstraps.recv() => {
            index.read_bootstraps(found.ok_or_else(|| ended("the reader of bootstrap bundles"))?);
        }
        changed = inputs.mesh.changed() => {
            changed.map_err(|_| ended("the reader of the mesh"))?;
            index.world_mut().mesh = inputs.mesh.borrow_and_update().clone();
        }
        changed = inputs.leader.changed() => {
            // it is looked at when it is planned for
            changed.map_err(|_| ended("the leader election"))?;
        }
        changed = inputs.reached.changed() => {
            changed.map_err(|_| ended("the tries of gateways"))?;
            index.world_mut().reached = Arc::clone(&inputs.reached.borrow_and_update());
        }
        changed = inputs.refusals.changed() => {
            changed.map_err(|_| ended("the list of xDS clients"))?;
            index.world_mut().refusals = Arc::clone(&inputs.refusals.borrow_and_update());
        }
        changed = inputs.failures.changed() => {
            changed.map_err(|_| ended("the writer"))?;
            index.world_mut().failures = Arc::clone(&inputs.failures.borrow_and_update());
        }
    }
    Ok(News::ToPlanFor)
}

fn ended(source: &str) -> anyhow::Error {
    anyhow::anyhow!("{source} ended though the agent runs")
}

/// Waits for the time, but never past `latest`.
async fn sleep_until(at: Option<Timestamp>, latest: Instant, clock: fn() -> Timestamp) {
    let wait = |at: Timestamp| Duration::try_from(at.duration_since(clock())).unwrap_or_default();
    let until = at.map_or(latest, |at| latest.min(Instant::now() + wait(at).max(GATHER)));
    tokio::time::sleep_until(until).await;
}

fn publish(index: &Index, plan: Plan, outputs: &Outputs) {
    let world = index.world();
    let ready = world.is_read() && world.identity.is_some() && world.spire.is_some();
    plan.ask_again.iter().for_each(|(trust_domain, after)| outputs.ask_again.refresh(trust_domain, *after));
    set(&outputs.bootstraps, bootstrap::wanted(world));
    set(&outputs.links, Arc::new(plan.links.clone()));
    // after the links: who takes it for leave to talk to peers must know them by then
    set(&outputs.ready, ready);
    set(&outputs.monitors, Arc::new(plan.monitors.clone()));
    outputs.metrics.planned(world);
    set(&outputs.plans, Arc::new(plan));
}

fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|last| {
        let changed = *last != value;
        *last = value;
        changed
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::world::{Relationships, Settings};

    fn settings() -> Arc<Settings> {
        Arc::new(Settings {
            instance: "entente".to_owned(),
            namespace: "entente-system".to_owned(),
            spire_class_name: String::new(),
            relationships: Relationships::ServerApi,
            drain: Duration::ZERO,
            poll_interval: Duration::ZERO,
            agent_follow: Duration::ZERO,
            good_fetches: 1,
            ..Settings::standard()
        })
    }

    fn outputs() -> Outputs {
        Outputs {
            plans: watch::Sender::new(Arc::default()),
            links: watch::Sender::new(Arc::default()),
            monitors: watch::Sender::new(Arc::default()),
            bootstraps: watch::Sender::new(Wanted::new()),
            ask_again: RefreshHandle::default(),
            ready: watch::Sender::new(false),
            planned_in: watch::Sender::new(None),
            metrics: Arc::default(),
        }
    }

    /// Of west, which has east as its peer.
    fn planner(led: Option<i64>) -> Planner {
        use crate::plan::fixtures::{at, peer, td, world};
        let mut index = Index::new(settings(), at(0));
        *index.world_mut() = world("west.example");
        index.world_mut().peers.insert(td("east.example"), Arc::new(peer("east.example")));
        let (memo, taking) = (Memo::default(), Taking::default());
        Planner { index, outputs: outputs(), memo, taking, led, planned: None }
    }

    /// A follower hears no peer; what it took that for is not what happened while another led.
    #[test]
    fn who_takes_the_lead_over_remembers_no_more_than_after_a_start() {
        use crate::plan::fixtures::{at, td};
        let (mut planner, east) = (planner(None), td("east.example"));
        let mut away_since = |term, now| {
            planner.plan(&Arc::default(), term, at(now));
            assert_eq!(*planner.outputs.planned_in.borrow(), term);
            planner.index.world().memory[&east].away_since
        };
        assert_eq!([(None, 0), (None, 100)].map(|(term, now)| away_since(term, now)), [Some(at(0)); 2]);
        assert_eq!(away_since(Some(1), 200), Some(at(200)), "it takes the lead over");
        assert_eq!(away_since(Some(1), 300), Some(at(200)));
        // lost for a while, to nobody
        assert_eq!(away_since(None, 400), Some(at(200)));
        assert_eq!(away_since(Some(1), 500), Some(at(200)));
        assert_eq!(away_since(Some(3), 600), Some(at(600)), "another led in between");
    }

    /// A machine may start with its clock ahead, and be told the time later.
    #[test]
    fn nothing_waits_for_the_time_that_a_clock_was_set_back() {
        use crate::model::object::Kind;
        use crate::model::session::LinkState;
        use crate::plan::fixtures::{at, remote_cart, session, td};
        let (mut planner, east) = (planner(Some(1)), td("east.example"));
        let says = |planner: &mut Planner, port, now| {
            let mut cart = remote_cart();
            cart.ports[0].port = port;
            let heard: Sessions =
                Arc::new([(east.clone(), session(LinkState::Connected, Some(vec![cart])))].into());
            planner.plan(&heard, Some(1), at(now));
            let catalogue = planner.index.world().sessions[&east].catalogue.as_ref().unwrap();
            catalogue.services.values().next().unwrap().ports[0].port
        };
        for port in 1..=10 {
            assert_eq!(says(&mut planner, port, 600), port);
        }
        planner.index.store(Event::Absent(Kind::Pod));
        assert_eq!(says(&mut planner, 11, 600), 10, "it has used up its pace");
        assert_eq!(says(&mut planner, 11, 599), 10);
        assert_eq!(says(&mut planner, 12, 0), 12);
        says(&mut planner, 12, 10);
        assert!(planner.index.world().absent.contains(&Kind::Pod), "it has been missing for long enough");
    }

    /// The loop on sources that have all ended, as they do when the agent stops.
    async fn on_ended_sources(cancel: CancellationToken) -> anyhow::Result<()> {
        let inputs = Inputs {
            store: mpsc::channel(1).1,
            identity: watch::channel(None).1,
            workload_failure: watch::channel(None).1,
            spire: watch::channel(None).1,
            endpoints: watch::channel(Arc::default()).1,
            sessions: watch::channel(Arc::default()).1,
            bootstraps: mpsc::channel(1).1,
            reached: watch::channel(Arc::default()).1,
            refusals: watch::channel(Arc::default()).1,
            mesh: watch::channel(None).1,
            failures: watch::channel(Arc::default()).1,
            leader: watch::channel(Leader::Nobody).1,
            asks: mpsc::channel(1).1,
            asked: Vec::new(),
        };
        let index = Index::new(settings(), Timestamp::UNIX_EPOCH);
        run(index, inputs, outputs(), || Timestamp::UNIX_EPOCH, cancel).await
    }

    #[tokio::test]
    async fn a_source_that_ends_is_a_failure_only_while_the_agent_runs() {
        let failed = on_ended_sources(CancellationToken::new()).await;
        assert!(failed.unwrap_err().to_string().contains("ended though the agent runs"));
        // Whether the end of a source or of the agent is seen first is chance.
        for _ in 0..50 {
            let cancel = CancellationToken::new();
            cancel.cancel();
            on_ended_sources(cancel).await.unwrap();
        }
    }
}

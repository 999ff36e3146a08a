//! The writer on a directory, with a SPIRE that takes calls and never answers; time is paused.

use serde_json::json;
use tokio::net::UnixListener;
use tokio::time::sleep;

use super::*;
use crate::model::change::{PatchOp, Precondition};
use crate::model::object::Kind;
use crate::model::trust::{BundleRemoval, Refresh, SpireAction};
use crate::model::{Bundle, BundleDigest, Object, SpiffeId};
use crate::plan::diff::Write;
use crate::plan::{Patch, StatusWrite};
use crate::spire::watch::Intervals;
use crate::store::{DirectoryStore, DirectoryTimings};

const MOMENT: Duration = Duration::from_millis(100);

struct Stand {
    plans: watch::Sender<Arc<Plan>>,
    leading: watch::Sender<bool>,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
    /// Until it runs.
    applier: Option<Applier>,
    failures: watch::Receiver<Arc<BTreeMap<ObjectKey, String>>>,
    _spire: UnixListener,
    _folder: tempfile::TempDir,
}

impl Stand {
    fn new() -> Self {
        Self::on(None)
    }

    /// On this store, or on a directory of its own.
    fn on(store: Option<Store>) -> Self {
        let mut stand = Self::at_rest(store);
        tokio::spawn(stand.applier.take().unwrap().run(stand.cancel.clone()));
        stand
    }

    fn at_rest(store: Option<Store>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = SpireServer::connect_unix(socket);
        let own = td("west.test");
        let identity = Identity {
            id: SpiffeId::new("spiffe://west.test/agent").unwrap(),
            not_before: jiff::Timestamp::MIN,
            not_after: jiff::Timestamp::MAX,
            bundle: Arc::new(Bundle::new(own.clone(), [])),
            trust_domain: own,
            federated: BTreeMap::new(),
            malformed: BTreeMap::new(),
        };
        let cancel = CancellationToken::new();
        // it has no identity, so it reads nothing
        let (spire_watch, _) = SpireWatch::spawn(
            server.clone(),
            crate::spire::replicas::Replicas::none(),
            watch::channel(None).1,
            Intervals::default(),
            cancel.clone(),
        );
        let metrics = Arc::new(Metrics::default());
        let targets = Targets {
            store: store.unwrap_or_else(|| {
                Store::Directory(DirectoryStore::open(folder.path(), DirectoryTimings::default()).unwrap())
            }),
            spire: server,
            spire_watch,
            identity: watch::channel(Some(Arc::new(identity))).1,
            metrics: Arc::clone(&metrics),
        };
        let (plans, planned) = watch::channel(Arc::default());
        let (leading, leads) = watch::channel(true);
        let (failures, failed) = watch::channel(Arc::default());
        let applier = Some(Applier::new(targets, planned, leads, failures));
        Self { plans, leading, metrics, cancel, applier, failures: failed, _spire: listener, _folder: folder }
    }

    fn wants(&self, plan: Plan) {
        self.plans.send_replace(Arc::new(plan));
    }

    /// How many operations ended so, by the metrics.
    fn ended(&self, result: &str) -> u32 {
        let text = self.metrics.encode(Default::default(), true, None).unwrap();
        let start = format!("entente_writes_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().unwrap())
    }

    fn tries(&self) -> u32 {
        self.ended("Ok") + self.ended("Error")
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

/// A plan to write this status of a peer. That the peer is not there any more is no failure.
fn status(peer: &str, message: &str) -> Plan {
    let status = json!({ "message": message });
    let write = StatusWrite { uid: "1".to_owned(), status, transitions: Vec::new() };
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, peer);
    Plan { statuses: BTreeMap::from([(key, write)]), ..Plan::default() }
}

/// A plan to write this object.
fn object(message: &str) -> Plan {
    let key = ObjectKey::cluster(Kind::ClusterFederatedTrustDomain, "east");
    let object = Object::desired(key.clone(), json!({ "message": message }));
    let write = Write { object: Arc::new(object), precondition: Precondition::Absent, seen: None };
    Plan { writes: BTreeMap::from([(key, write)]), ..Plan::default() }
}

/// A plan to patch an object, which the directory does not hold.
fn patch(message: &str) -> Plan {
    let path = "/spec/federatesWith".to_owned();
    let patch = Patch {
        key: ObjectKey::cluster(Kind::ClusterStaticEntry, "cart"),
        resource_version: message.to_owned(),
        ops: vec![PatchOp::Add { path, value: json!([]) }],
    };
    Plan { patches: vec![patch], ..Plan::default() }
}

/// Has SPIRE fetch since the endpoint serves the bundle of this number.
fn refresh(served: u8) -> SpireAction {
    let served = BundleDigest::from_bytes(&[served; 32]).unwrap();
    let every = Duration::from_secs(300);
    SpireAction::RefreshBundle(Refresh { trust_domain: td("east.test"), stored: None, served, every })
}

fn with(action: SpireAction, plan: Plan) -> Plan {
    Plan { spire: vec![action], ..plan }
}

#[tokio::test(start_paused = true)]
async fn a_slow_refresh_holds_up_nothing_and_is_tried_again_after_it_ended() {
    let stand = Stand::new();
    let refresh = || refresh(1);
    stand.wants(with(refresh(), status("north", "a")));
    sleep(MOMENT).await;
    assert_eq!(stand.ended("Ok"), 1);
    // while it runs, whatever else is planned is done, and it is not made twice
    for n in 0..10 {
        sleep(PACE).await;
        stand.wants(with(refresh(), status("north", &format!("b{n}"))));
        sleep(MOMENT).await;
        assert_eq!((stand.ended("Ok"), stand.ended("Error")), (n + 2, 0));
    }
    // SPIRE is given 30 s; the failure counts as one of any operation
    sleep(Duration::from_secs(20)).await;
    assert_eq!(stand.ended("Error"), 1);
    sleep(FIRST_RETRY + Duration::from_secs(31)).await;
    assert_eq!(stand.ended("Error"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_is_broken_off_by_what_outdates_it() {
    let stand = Stand::new();
    let bundle = SpireAction::DeleteBundle(td("east.test"), BundleRemoval::Restrict);
    stand.wants(with(refresh(1), Plan::default()));
    sleep(MOMENT).await;
    stand.wants(with(bundle, Plan::default()));
    // the deletion fails, after 5 s and again and again; the refresh is not heard of
    sleep(Duration::from_secs(5) + MOMENT).await;
    assert_eq!(stand.tries(), 1);
    stand.wants(Plan::default());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(stand.tries(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_lost_the_lead_writes_nothing_more() {
    let stand = Stand::new();
    // SPIRE does not answer for 5 s, and statuses come after it
    stand.wants(with(
        SpireAction::DeleteBundle(td("east.test"), BundleRemoval::Restrict),
        status("north", "a"),
    ));
    sleep(Duration::from_secs(1)).await;
    stand.leading.send_replace(false);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(stand.tries(), 0, "what had begun is broken off");
    stand.leading.send_replace(true);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(stand.ended("Ok"), 1);
}

/// What it could not write is another's to say from then on: an alert on it would never end.
#[tokio::test(start_paused = true)]
async fn who_lost_the_lead_speaks_of_no_failures() {
    let stand = Stand::new();
    let failures = || stand.failures.borrow().len();
    stand.wants(patch("a"));
    sleep(MOMENT).await;
    assert_eq!(failures(), 1);
    stand.leading.send_replace(false);
    sleep(MOMENT).await;
    assert_eq!(failures(), 0);
    stand.leading.send_replace(true);
    sleep(MOMENT).await;
    assert_eq!(failures(), 1, "who leads again tries again");
}

#[tokio::test(start_paused = true)]
async fn who_is_to_stop_waits_for_no_write() {
    let mut stand = Stand::at_rest(Some(hanging_api_server()));
    let running = tokio::spawn(stand.applier.take().unwrap().run(stand.cancel.clone()));
    stand.wants(Plan { patches: vec![one_patch()], ..Plan::default() });
    sleep(Duration::from_secs(1)).await;
    assert!(!running.is_finished());
    stand.cancel.cancel();
    tokio::time::timeout(MOMENT, running).await.expect("it waits for the write").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_lead_breaks_off_a_refresh() {
    let stand = Stand::new();
    stand.wants(with(refresh(1), Plan::default()));
    sleep(Duration::from_secs(1)).await;
    stand.leading.send_replace(false);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(stand.tries(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_keeps_changing_is_written_once_a_second_after_a_few() {
    type Planned = fn(&str) -> Plan;
    let kinds: [Planned; 3] = [|message| status("north", message), object, patch];
    for plan in kinds {
        let stand = Stand::new();
        // some at once after a quiet time, the next one when its time has come though nothing else happens
        for n in 0..BURST {
            stand.wants(plan(&format!("at once {n}")));
            sleep(MOMENT / 10).await;
        }
        assert_eq!(stand.tries(), BURST);
        stand.wants(plan("postponed"));
        sleep(PACE - MOMENT * 2).await;
        assert_eq!(stand.tries(), BURST);
        sleep(MOMENT * 2).await;
        assert_eq!(stand.tries(), BURST + 1);
        stand.wants(Plan::default());
        sleep(PACE * BURST).await;
        let before = stand.tries();
        // a storm, also of one that is taken back each time
        for n in 0..100 {
            stand.wants(if n % 3 == 0 { Plan::default() } else { plan(&format!("{n}")) });
            sleep(MOMENT).await;
        }
        let written = stand.tries() - before - BURST;
        assert!((8..=10).contains(&written), "{written} in 10 s");
    }
}

/// SPIRE may be served something else than we are, whenever it asks.
#[tokio::test(start_paused = true)]
async fn a_refresh_that_changed_nothing_is_not_asked_for_again_before_the_poll_interval() {
    let mut stand = Stand::at_rest(None);
    let mut applier = stand.applier.take().unwrap();
    let operations = |served| operation::of(&with(refresh(served), Plan::default()));
    let (id, operation) = operations(1).pop_first().unwrap();
    applier.remember(id, operation, Ok(None));
    for (after, same) in [(0, 0), (6, 0), (292, 0), (3, 1)] {
        sleep(Duration::from_secs(after)).await;
        assert_eq!(applier.due(&operations(1), Stage::Refresh).len(), same, "{after}");
        assert_eq!(applier.due(&operations(2), Stage::Refresh).len(), 1, "something else is served");
    }
}

/// A write is shown by the watch within a while; what undid it is put back without that wait, and counted.
#[tokio::test(start_paused = true)]
async fn what_was_undone_is_put_back_at_once_and_counted() {
    let mut stand = Stand::at_rest(None);
    let mut applier = stand.applier.take().unwrap();
    let plan = |precondition: Precondition, seen: Option<&str>| {
        let mut plan = object("x");
        for write in plan.writes.values_mut() {
            (write.precondition, write.seen) = (precondition.clone(), seen.map(str::to_owned));
        }
        Arc::new(plan)
    };
    let wrote = |uid: &str, version: &str| Wrote {
        uid: uid.to_owned(),
        resource_version: version.to_owned(),
        stands: true,
    };
    let counted = || {
        let text = stand.metrics.encode(Default::default(), true, None).unwrap();
        let name = "entente_drift_repaired_total{kind=\"ClusterFederatedTrustDomain\"} ";
        text.lines().find_map(|line| line.strip_prefix(name)).map_or(0, |count| count.parse().unwrap())
    };
    let ours = |uid: &str| Precondition::Ours { uid: uid.to_owned() };
    // What is planned, how many are due, what the write leaves, how many were put back by then.
    for (precondition, seen, due, left, repaired) in [
        (ours("a"), Some("9"), 1, Some(wrote("a", "10")), 0),
        (ours("a"), Some("9"), 0, None, 0),
        (ours("a"), Some("11"), 1, Some(wrote("a", "12")), 1),
        (ours("a"), Some("11"), 0, None, 1),
        (Precondition::Absent, None, 1, Some(wrote("b", "14")), 2),
        (Precondition::Absent, None, 0, None, 2),
        (ours("b"), Some("15"), 1, Some(wrote("b", "16")), 3),
    ] {
        let plan = plan(precondition, seen);
        applier.drift.look(&plan, &applier.attempts);
        let operations = operation::of(&plan);
        let found = applier.due(&operations, Stage::Writes);
        assert_eq!(found.len(), due, "{plan:?}");
        for (id, operation) in found {
            applier.remember(id, operation, Ok(left.clone()));
        }
        assert_eq!(counted(), repaired, "{plan:?}");
    }
    // Created, and deleted before it was ever seen: that shows once it is created again, and not where it was there.
    sleep(ECHO * 2).await;
    let plan = plan(Precondition::Absent, None);
    let (id, operation) = operation::of(&plan).pop_first().unwrap();
    for (uid, repaired) in [("b", 3), ("b", 3), ("c", 4)] {
        applier.remember(id.clone(), operation.clone(), Ok(Some(wrote(uid, "20"))));
        assert_eq!(counted(), repaired, "{uid}");
    }
}

/// A webhook that changes what is written would have it written without end, and all would seem well.
#[tokio::test(start_paused = true)]
async fn what_is_changed_on_its_way_again_and_again_fails() {
    let mut stand = Stand::at_rest(None);
    let mut applier = stand.applier.take().unwrap();
    let (id, operation) = operation::of(&object("x")).pop_first().unwrap();
    let left = |stands| Ok(Some(Wrote { uid: "a".to_owned(), resource_version: "1".to_owned(), stands }));
    let failure = |applier: &mut Applier, result| {
        applier.remember(id.clone(), operation.clone(), result);
        applier.publish_failures();
        let failures = stand.failures.borrow();
        (failures.values().next().cloned(), applier.attempts[&id].again - Instant::now())
    };
    for _ in 1..ALTERED {
        assert_eq!(failure(&mut applier, left(false)), (None, ECHO));
    }
    let (said, wait) = failure(&mut applier, left(false));
    assert!(said.is_some_and(|said| said.contains("mutating webhook")));
    assert_eq!(wait, ECHO);
    // it is tried later each time, also where it failed otherwise in between
    assert_eq!(failure(&mut applier, Err("forbidden".to_owned())).0.as_deref(), Some("forbidden"));
    let waits: Vec<_> = (0..5).map(|_| failure(&mut applier, left(false)).1).collect();
    assert_eq!(waits, [5, 8, 16, 32, 60].map(Duration::from_secs));
    assert_eq!(stand.ended("Ok"), 2);
    assert_eq!(failure(&mut applier, left(true)), (None, ECHO));
    assert_eq!(failure(&mut applier, left(false)), (None, ECHO), "it counts anew");
}

/// The one cause that is told must not hide the next.
#[tokio::test(start_paused = true)]
async fn another_cause_of_a_failure_is_told_and_calls_to_spire_are_counted() {
    let mut stand = Stand::at_rest(None);
    let mut applier = stand.applier.take().unwrap();
    let logs = crate::observe::testing::Logs::of_this_thread();
    let (id, operation) = operation::of(&with(refresh(1), Plan::default())).pop_first().unwrap();
    for (error, told) in [("no way", 1), ("no way", 1), ("no permission", 2), ("no permission", 2)] {
        applier.remember(id.clone(), operation.clone(), Err(error.to_owned()));
        assert_eq!(logs.warnings().matches("failed; it is tried again").count(), told);
    }
    assert!(logs.warnings().contains("no permission"));
    let failing = || {
        let world = crate::plan::fixtures::world("west.test");
        let known = crate::observe::metrics::Known { world: &world, plan: &Plan::default(), leads: true };
        let text = stand.metrics.encode(Default::default(), true, Some(known)).unwrap();
        text.lines().find_map(|line| line.strip_prefix("entente_write_failures ")).unwrap().to_owned()
    };
    applier.publish_failures();
    assert_eq!(failing(), "1");
    applier.remember(id, operation, Ok(None));
    applier.publish_failures();
    assert_eq!(failing(), "0");
}

#[tokio::test(start_paused = true)]
async fn one_object_does_not_wait_for_another() {
    let stand = Stand::new();
    for n in 0..20 {
        stand.wants(status(&format!("peer-{n}"), "a"));
        sleep(Duration::from_millis(10)).await;
        assert_eq!(stand.tries(), n + 1);
    }
}

#[test]
fn a_status_that_differs_by_its_times_alone_is_the_same_try() {
    let at = |time: &str, reason: &str| {
        let condition = json!({ "type": "Ready", "reason": reason, "lastTransitionTime": time });
        let write = StatusWrite {
            uid: "1".to_owned(),
            status: json!({ "conditions": [condition] }),
            transitions: Vec::new(),
        };
        Operation::Status { key: ObjectKey::cluster(Kind::TrustDomainPeer, "north"), write }
    };
    assert!(at("10:00", "A").is_again(&at("10:01", "A")));
    assert!(!at("10:00", "A").is_again(&at("10:00", "B")));
}

type Request = http::Request<kube::client::Body>;

/// Answers each request after this time; `None` hangs, in an admission webhook say.
fn api_server(takes: impl Fn(&Request) -> Option<Duration> + Clone + Send + 'static) -> Store {
    let service = tower::service_fn(move |request: Request| {
        let takes = takes(&request);
        async move {
            match takes {
                None => std::future::pending::<()>().await,
                Some(time) => sleep(time).await,
            }
            let done = json!({ "apiVersion": "v1", "kind": "Status", "status": "Success", "metadata": {} });
            let body = kube::client::Body::from(done.to_string().into_bytes());
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        }
    });
    let client = kube::Client::new(service, "default");
    Store::Kubernetes(crate::store::KubernetesStore::new(client, "entente", "main"))
}

/// Patches and writes hang; what is deleted is.
fn hanging_api_server() -> Store {
    api_server(|request| (request.method() != http::Method::PATCH).then_some(Duration::ZERO))
}

/// Writes of generated objects take this time; all else is done at once.
fn slow_to_write(takes: Option<Duration>) -> Store {
    api_server(move |request| {
        let is_write = request.headers()[http::header::CONTENT_TYPE] == "application/apply-patch+yaml";
        if is_write { takes } else { Some(Duration::ZERO) }
    })
}

fn one_patch() -> crate::plan::Patch {
    patch_of("cart", "1")
}

fn patch_of(name: &str, resource_version: &str) -> crate::plan::Patch {
    let key = ObjectKey::cluster(Kind::ClusterStaticEntry, name);
    crate::plan::Patch { key, resource_version: resource_version.to_owned(), ops: Vec::new() }
}

/// A plan to write that many objects.
fn objects(count: usize) -> Plan {
    let write = |n: usize| {
        let key = ObjectKey::namespaced(Kind::ServiceEntry, "entente", format!("{n}"));
        let object = Object::desired(key.clone(), json!({}));
        (key, Write { object: Arc::new(object), precondition: Precondition::Absent, seen: None })
    };
    Plan { writes: (0..count).map(write).collect(), ..Plan::default() }
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_hangs_does_not_hold_up_the_end_of_trust() {
    let stand = Stand::on(Some(hanging_api_server()));
    let relationship =
        |name: &str| (ObjectKey::cluster(Kind::ClusterFederatedTrustDomain, name), "1".to_owned());
    let mut prune = BTreeMap::from([relationship("east")]);
    stand.wants(Plan { patches: vec![one_patch()], prune: prune.clone(), ..object("a") });
    sleep(MOMENT).await;
    assert_eq!((stand.ended("Ok"), stand.ended("Error")), (1, 0));
    // nor what comes next of the end, once that is planned
    for (n, name) in [(2, "north"), (3, "south")] {
        prune.insert(relationship(name).0, "1".to_owned());
        stand.wants(Plan { patches: vec![one_patch()], prune: prune.clone(), ..object("a") });
        sleep(MOMENT).await;
        assert_eq!((stand.ended("Ok"), stand.ended("Error")), (n, 0));
    }
}

/// The federation of a poisoned bundle is suspended while thousands of objects wait for a webhook.
#[tokio::test(start_paused = true)]
async fn writes_that_hang_do_not_hold_up_what_trust_needs() {
    let stand = Stand::on(Some(slow_to_write(None)));
    stand.wants(objects(100));
    sleep(MOMENT).await;
    assert_eq!(stand.tries(), 0);
    stand.wants(Plan { patches: vec![one_patch()], ..objects(100) });
    sleep(MOMENT).await;
    assert_eq!((stand.ended("Ok"), stand.ended("Error")), (1, 0));
    // and what SPIRE is asked, though it gives no answer here: it is given up after 5 s
    stand.wants(with(SpireAction::DeleteBundle(td("east.test"), BundleRemoval::Restrict), objects(100)));
    sleep(Duration::from_secs(5) + MOMENT).await;
    assert_eq!((stand.ended("Ok"), stand.ended("Error")), (1, 1));
}

/// As it does when they are tried for the sake of trust again, though nothing else is planned meanwhile.
#[tokio::test(start_paused = true)]
async fn what_trust_needs_is_tried_again_while_writes_hang() {
    let stand = Stand::on(Some(slow_to_write(Some(Duration::from_secs(25)))));
    let bundle = SpireAction::DeleteBundle(td("east.test"), BundleRemoval::Restrict);
    stand.wants(with(bundle, objects(100)));
    // fails after 5 s; again a second, then two seconds later
    for (seconds, failed) in [(5, 1), (6, 2), (7, 3)] {
        sleep(Duration::from_secs(seconds) + MOMENT).await;
        assert_eq!((stand.ended("Ok"), stand.ended("Error")), (0, failed));
    }
}

#[tokio::test(start_paused = true)]
async fn what_hangs_holds_up_its_own_object_alone() {
    let hangs = |request: &Request| request.uri().path().contains("/cart");
    let stand = Stand::on(Some(api_server(move |request| (!hangs(request)).then_some(Duration::ZERO))));
    let patches = vec![one_patch(), patch_of("orders", "1")];
    stand.wants(Plan { patches: patches.clone(), ..objects(40) });
    sleep(PATIENCE + MOMENT).await;
    assert_eq!((stand.ended("Ok"), stand.ended("Error")), (41, 0));
    // from then on it is waited for by nobody
    stand.wants(Plan { patches: patches.clone(), ..objects(50) });
    sleep(MOMENT).await;
    assert_eq!((stand.ended("Ok"), stand.ended("Error")), (51, 0));
    // once nobody asks for it, it must not come true any more
    stand.wants(Plan { patches: vec![patch_of("orders", "1")], ..Plan::default() });
    sleep(Duration::from_secs(60)).await;
    assert_eq!(stand.ended("Error"), 0);
}

/// A registration that someone changes without end has every write begun anew with it, and yet each has its turn.
#[tokio::test(start_paused = true)]
async fn writes_end_though_trust_has_no_rest() {
    for same in [true, false] {
        let stand = Stand::on(Some(slow_to_write(Some(Duration::from_secs(1)))));
        let turns = 100;
        for turn in 0..turns {
            let version = if same { "1".to_owned() } else { format!("{turn}") };
            stand.wants(Plan { patches: vec![patch_of("cart", &version)], ..objects(CONCURRENCY * 4) });
            sleep(MOMENT).await;
        }
        let written = stand.ended("Ok") as usize;
        assert!(written > CONCURRENCY * 4, "{written} in {turns} turns");
    }
}

/// Imports cannot be deleted, and Events that say so hang. All else is done.
fn api_server_without_events() -> Store {
    let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        if request.method() == http::Method::POST {
            std::future::pending::<()>().await;
        }
        let is_import = request.uri().path().contains("/importedservices/");
        let code = if is_import { 500 } else { 200 };
        let status = if is_import { "Failure" } else { "Success" };
        let done =
            json!({ "apiVersion": "v1", "kind": "Status", "status": status, "code": code, "metadata": {} });
        let body = kube::client::Body::from(done.to_string().into_bytes());
        Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
    });
    let client = kube::Client::new(service, "default");
    Store::Kubernetes(crate::store::KubernetesStore::new(client, "entente", "main"))
}

#[tokio::test(start_paused = true)]
async fn what_is_told_holds_up_neither_an_end_of_trust_nor_who_is_to_stop() {
    let mut stand = Stand::at_rest(Some(api_server_without_events()));
    let running = tokio::spawn(stand.applier.take().unwrap().run(stand.cancel.clone()));
    let import =
        |n| (ObjectKey::namespaced(Kind::ImportedService, "entente", format!("{n}")), "1".to_owned());
    let mut prune: BTreeMap<_, _> = (0..5).map(import).collect();
    stand.wants(Plan { prune: prune.clone(), ..Plan::default() });
    sleep(MOMENT).await;
    assert_eq!((stand.ended("Ok"), stand.ended("Error")), (0, 5));
    prune.insert(ObjectKey::cluster(Kind::ClusterFederatedTrustDomain, "east"), "1".to_owned());
    stand.wants(Plan { prune, ..Plan::default() });
    sleep(MOMENT).await;
    assert_eq!(stand.ended("Ok"), 1);
    stand.cancel.cancel();
    tokio::time::timeout(MOMENT, running).await.expect("it waits for the Events").unwrap();
}

/// What ends trust waits for no write, no patch and no other call.
#[test]
fn the_end_of_trust_comes_first() {
    let prune = |kind| Operation::Prune { key: ObjectKey::cluster(kind, "east"), uid: "1".to_owned() };
    let delete = |removal| Operation::Spire(SpireAction::DeleteBundle(td("east.test"), removal));
    let patch = Operation::Patch(one_patch());
    let relationship = Operation::Spire(SpireAction::DeleteRelationship(td("east.test")));
    let write = operation::of(&object("a")).into_values().next().unwrap();
    for end in [prune(Kind::ClusterFederatedTrustDomain), delete(BundleRemoval::Dissociate), relationship] {
        assert!(end.stage() <= patch.stage() && end.stage() < write.stage(), "{end}");
    }
    assert!(prune(Kind::ImportedService).stage() > write.stage());
    assert!(delete(BundleRemoval::Restrict).stage() > patch.stage(), "that waits for registrations");
}

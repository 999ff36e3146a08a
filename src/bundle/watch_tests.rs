use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::bundle::document;
use crate::bundle::testing::{Ca, NOW, Reply, Server, id, td};
use crate::model::Bundle;
use crate::model::endpoint::{
    BundleAlarm, BundleEndpoint, EndpointProfile, EndpointUrl, FetchProblem, HeldBySpire,
};

fn target(name: &str, url: &str, ca: &Ca) -> MonitorTarget {
    let profile = EndpointProfile::HttpsSpiffe { endpoint_id: id(&format!("spiffe://{name}/endpoint")) };
    MonitorTarget {
        trust_domain: td(name),
        endpoint: BundleEndpoint { url: EndpointUrl::parse(url).unwrap(), profile },
        bootstrap: Some(ca.bundle(name)),
        persisted: None,
        verify_with: None,
        held: None,
        at_most: None,
    }
}

async fn serve(name: &str, ca: &Ca, answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(ca.svid(&format!("spiffe://{name}/endpoint")), answer).await
}

/// A document with a sequence number, so that each can be waited for.
fn numbered(cas: &[&Ca], sequence: usize) -> String {
    let mut bundle = Bundle::new(td("west.test"), cas.iter().map(|ca| ca.authority()));
    bundle.sequence = Some(u64::try_from(sequence).unwrap());
    document::write(&bundle)
}

struct Run {
    targets: watch::Sender<Targets>,
    states: watch::Receiver<States>,
    refresh: RefreshHandle,
    task: JoinHandle<()>,
    cancel: CancellationToken,
}

fn start(interval: Duration, targets: &[MonitorTarget]) -> Run {
    start_by(Arc::new(later), interval, targets)
}

fn start_by(clock: Clock, interval: Duration, targets: &[MonitorTarget]) -> Run {
    let client = EndpointClient::new(rustls::RootCertStore::empty())
        .with_timeouts(Duration::from_secs(5), Duration::from_secs(30));
    let limits = PollLimits { min_interval: interval, max_interval: interval, default_interval: interval };
    let (sender, receiver) = watch::channel(map(targets));
    let cancel = CancellationToken::new();
    let (states, task, refresh) = spawn(client, limits, receiver, clock, cancel.clone());
    Run { targets: sender, states, refresh, task, cancel }
}

fn map(targets: &[MonitorTarget]) -> Targets {
    Arc::new(targets.iter().map(|target| (target.trust_domain.clone(), target.clone())).collect())
}

impl Run {
    /// Waits until the state of a trust domain is as wanted, and returns it.
    async fn until(&mut self, name: &str, wanted: impl Fn(&EndpointState) -> bool) -> EndpointState {
        let trust_domain = td(name);
        let reached = self.states.wait_for(|states| states.get(&trust_domain).is_some_and(&wanted));
        let states = tokio::time::timeout(Duration::from_secs(20), reached).await.unwrap().unwrap();
        states[&trust_domain].clone()
    }

    async fn until_gone(&mut self, name: &str) {
        let trust_domain = td(name);
        let gone = self.states.wait_for(|states| !states.contains_key(&trust_domain));
        drop(tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap().unwrap());
    }
}

fn sequence(state: &EndpointState) -> Option<u64> {
    state.latest.as_ref().and_then(|bundle| bundle.sequence)
}

/// A moment at which no fetch has begun yet, by the clock of these tests.
fn later() -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap()
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn endpoints_are_fetched_at_once_then_polled_through_rotations_and_stop_on_cancel() {
    let (first, second) = (Ca::new(), Ca::new());
    let documents = [
        numbered(&[&first], 1),
        numbered(&[&first, &second], 2),
        numbered(&[], 3),
        numbered(&[&first, &second], 4),
    ];
    let west = serve("west.test", &first, move |_, n| Reply::Ok(documents[n.min(3)].clone())).await;
    let mut run = start(Duration::from_millis(50), &[target("west.test", &west.url("/"), &first)]);
    run.until("west.test", |state| sequence(state) == Some(1)).await;
    let empty = run.until("west.test", |state| sequence(state) == Some(3)).await;
    assert_eq!(empty.alarms, [BundleAlarm::NoUsableAuthority]);
    let healed = run.until("west.test", |state| sequence(state) == Some(4) && state.good_in_a_row >= 3).await;
    assert!(healed.alarms.is_empty(), "an endpoint that served an empty bundle is heard again");
    assert!(healed.proof.is_some_and(|proof| proof.chain.len() == 1));
    run.cancel.cancel();
    tokio::time::timeout(Duration::from_secs(5), run.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_slow_endpoint_delays_nobody_else() {
    let ca = Ca::new();
    let slow = serve("slow.test", &ca, |_, _| Reply::Stall("HTTP/1.1 200 OK\r\n\r\n".to_owned())).await;
    let body = numbered(&[&ca], 7);
    let west = serve("west.test", &ca, move |_, _| Reply::Ok(body.clone())).await;
    let slow = target("slow.test", &slow.url("/"), &ca);
    let mut run = start(HOUR, &[slow, target("west.test", &west.url("/"), &ca)]);
    let started = std::time::Instant::now();
    run.until("west.test", |state| sequence(state) == Some(7)).await;
    assert!(started.elapsed() < Duration::from_secs(20));
    let state = run.until("slow.test", |_| true).await;
    assert_eq!((state.since, state.latest), (None, None), "not fetched yet");
}

#[tokio::test]
async fn a_refresh_fetches_out_of_turn_and_bursts_are_one() {
    let ca = Ca::new();
    let other = ca.authority();
    let west = serve("west.test", &ca, move |_, n| {
        let mut bundle = Bundle::new(td("west.test"), [other.clone()]);
        bundle.sequence = Some(u64::try_from(n).unwrap());
        Reply::Ok(document::write(&bundle))
    })
    .await;
    let mut run = start(HOUR, &[target("west.test", &west.url("/"), &ca)]);
    run.until("west.test", |state| sequence(state) == Some(0)).await;
    run.refresh.refresh(&td("west.test"), Timestamp::UNIX_EPOCH);
    tokio::time::sleep(REFRESH_SPACING + Duration::from_millis(300)).await;
    assert_eq!(west.requests(), 1, "one was begun after that moment");
    for n in 0..100 {
        let after = later().saturating_add(Duration::from_nanos(n)).unwrap();
        run.refresh.refresh(&td("west.test"), after);
        run.refresh.refresh(&td("unknown.test"), later());
    }
    run.until("west.test", |state| sequence(state) == Some(1)).await;
    assert!(west.requests() <= 3, "{} requests", west.requests());
}

#[tokio::test]
async fn a_clock_that_was_set_back_holds_no_refresh_back() {
    let ca = Ca::new();
    let (authority, back) = (ca.authority(), Arc::new(AtomicU64::new(0)));
    let west = serve("west.test", &ca, move |_, n| {
        let mut bundle = Bundle::new(td("west.test"), [authority.clone()]);
        bundle.sequence = Some(u64::try_from(n).unwrap());
        Reply::Ok(document::write(&bundle))
    })
    .await;
    let by = Arc::clone(&back);
    let now = move || later() - Duration::from_secs(by.load(Ordering::SeqCst));
    let mut run = start_by(Arc::new(now), HOUR, &[target("west.test", &west.url("/"), &ca)]);
    run.until("west.test", |state| sequence(state) == Some(0)).await;
    run.refresh.refresh(&td("west.test"), later());
    run.until("west.test", |state| sequence(state) == Some(1)).await;
    back.store(600, Ordering::SeqCst);
    run.refresh.refresh(&td("west.test"), later() - Duration::from_secs(601));
    run.until("west.test", |state| sequence(state) == Some(2)).await;
}

/// It does not say itself how long its suspension lasts.
#[tokio::test]
async fn a_target_is_polled_as_often_as_it_is_asked_for_whatever_its_hint() {
    let ca = Ca::new();
    let body = numbered(&[&ca], 1);
    let west = serve("west.test", &ca, move |_, _| Reply::Ok(body.clone())).await;
    let mut hurried = target("west.test", &west.url("/"), &ca);
    let mut run = start(HOUR, &[hurried.clone()]);
    run.until("west.test", |state| state.good_in_a_row == 1).await;
    hurried.at_most = Some(Duration::from_millis(100));
    run.targets.send_replace(map(&[hurried]));
    run.until("west.test", |state| state.good_in_a_row >= 4).await;
}

#[tokio::test]
async fn changes_of_targets_are_followed_and_keep_what_is_known() {
    let (ca, new) = (Ca::new(), Ca::new());
    let body = numbered(&[&ca], 1);
    let west = serve("west.test", &ca, move |_, _| Reply::Ok(body.clone())).await;
    let mut run = start(HOUR, &[target("west.test", &west.url("/"), &ca)]);
    let known = run.until("west.test", |state| state.good_in_a_row == 1).await;

    // the same target again, and another bootstrap while all is well: nothing is fetched, but until the next fetch the
    // operator's bundle is the latest
    let mut given = target("west.test", &west.url("/"), &ca);
    run.targets.send_replace(map(&[given.clone()]));
    given.bootstrap = Some(Arc::new(Bundle::new(td("west.test"), [ca.authority(), Ca::new().authority()])));
    run.targets.send_replace(map(&[given.clone()]));
    let east = serve("east.test", &ca, |_, _| Reply::HangUp).await;
    run.targets.send_replace(map(&[given.clone(), target("east.test", &east.url("/"), &ca)]));
    let failed = run.until("east.test", |state| state.failure.is_some()).await;
    assert_eq!(failed.failure.unwrap().problem, FetchProblem::EndpointUnreachable);
    let descends_from = given.bootstrap.as_ref().map(|bundle| bundle.digest());
    let superseded = EndpointState { latest_usable: None, descends_from, ..known.clone() };
    assert_eq!((west.requests(), run.until("west.test", |_| true).await), (1, superseded));

    // another URL, where another authority answers: what is held cannot verify it, and is kept
    let body = numbered(&[&new], 2);
    let moved = serve("west.test", &new, move |_, _| Reply::Ok(body.clone())).await;
    given.endpoint.url = EndpointUrl::parse(&moved.url("/")).unwrap();
    run.targets.send_replace(map(&[given]));
    let failed = run.until("west.test", |state| state.failure.is_some()).await;
    assert_eq!(failed.failure.unwrap().problem, FetchProblem::EndpointCertificateUntrusted);
    assert_eq!(failed.latest, known.latest);
    assert_eq!(moved.requests(), 0);
    run.until_gone("east.test").await;

    // until the operator gives the right bundle
    let mut mended = target("west.test", &moved.url("/"), &new);
    mended.bootstrap = Some(Arc::new(Bundle::new(td("west.test"), [new.authority(), Ca::new().authority()])));
    run.targets.send_replace(map(&[mended]));
    let healed =
        run.until("west.test", |state| state.failure.is_none() && state.latest != known.latest).await;
    assert_eq!(healed.alarms, [], "by the operator's own word");

    run.targets.send_replace(map(&[]));
    run.until_gone("west.test").await;
}

#[tokio::test]
async fn a_bundle_given_by_the_operator_is_the_latest_until_the_next_fetch() {
    let (ca, new) = (Ca::new(), Ca::new());
    let body = numbered(&[&ca], 1);
    let west = serve("west.test", &ca, move |_, _| Reply::Ok(body.clone())).await;
    let mut run = start(HOUR, &[target("west.test", &west.url("/"), &ca)]);
    run.until("west.test", |state| sequence(state) == Some(1)).await;
    // first the bundle, then, before any fetch, the URL
    let mut given = target("west.test", &west.url("/"), &new);
    run.targets.send_replace(map(&[given.clone()]));
    let east = serve("east.test", &ca, |_, _| Reply::HangUp).await;
    run.targets.send_replace(map(&[given.clone(), target("east.test", &east.url("/"), &ca)]));
    run.until("east.test", |state| state.failure.is_some()).await;
    let body = numbered(&[&new], 2);
    let moved =
        serve("west.test", &new, move |_, n| if n == 0 { Reply::Ok(body.clone()) } else { Reply::HangUp })
            .await;
    given.endpoint.url = EndpointUrl::parse(&moved.url("/")).unwrap();
    run.targets.send_replace(map(&[given]));
    run.until("west.test", |state| sequence(state) == Some(2)).await;
    run.refresh.refresh(&td("west.test"), later());
    let failed = run.until("west.test", |state| state.failure.is_some()).await;
    assert_eq!(failed.failure.unwrap().problem, FetchProblem::EndpointUnreachable, "believed, but cut");
}

/// SPIRE's fetches came through while ours did not: the endpoint presents what only it knows.
#[tokio::test]
async fn an_endpoint_that_moved_on_unseen_is_heard_by_what_spire_fetched_but_not_against_the_operator() {
    let (old, new) = (Ca::new(), Ca::new());
    let body = numbered(&[&old, &new], 2);
    let west = serve("west.test", &new, move |_, _| Reply::Ok(body.clone())).await;
    let mut moved = target("west.test", &west.url("/"), &old);
    let mut run = start(HOUR, &[moved.clone()]);
    let failed = run.until("west.test", |state| state.failure.is_some()).await;
    assert_eq!(failed.failure.unwrap().problem, FetchProblem::EndpointCertificateUntrusted);
    let both = Arc::new(Bundle::new(td("west.test"), [old.authority(), new.authority()]));
    let since = later().saturating_add(Duration::from_secs(1)).unwrap();
    moved.held = Some(HeldBySpire { bundle: both, since });
    run.targets.send_replace(map(&[moved.clone()]));
    let healed = run.until("west.test", |state| state.failure.is_none() && state.latest.is_some()).await;
    assert_eq!((sequence(&healed), healed.alarms), (Some(2), vec![]));
    // The operator takes the new authority's word back: what SPIRE holds is what was there before.
    moved.bootstrap = Some(Arc::new(Bundle::new(td("west.test"), [old.authority(), Ca::new().authority()])));
    run.targets.send_replace(map(&[moved]));
    run.refresh.refresh(&td("west.test"), later());
    let failed = run.until("west.test", |state| state.failure.is_some()).await;
    assert_eq!(failed.failure.unwrap().problem, FetchProblem::EndpointCertificateUntrusted);
}

//! Pairs of agents in one process, over loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::catalogue::version_of;
use super::client::{Dialled, Target, dial};
use super::manager::LinkPlans;
use super::session::SessionLimits;
use super::{Federation, FederationConfig, Timings};
use crate::bundle::testing::{id, leaf_params, valid};
use crate::identity::peer_tls::{Verdict, server_config};
use crate::identity::source::IdentitySource;
use crate::identity::testing::{Domain, authority};
use crate::identity::workload::read;
use crate::model::object::Kind;
use crate::model::service::{AppProtocol, Outcome, RemotePort, RemoteService, TlsMode};
use crate::model::session::{
    Acknowledgement, Catalogue, GoodbyeReason, HeldBundle, LinkIntent, LinkPlan, LinkState, Refusal,
    SessionState, TrustReport,
};
use crate::model::{Bundle, OwnerRef, ServiceName, TrustDomain};
use crate::proto::federation::v1::{
    CatalogueSnapshot, Frame, Goodbye, Heartbeat, Hello, frame::Body, goodbye::Reason,
};

pub(super) fn quick() -> Timings {
    Timings {
        connect: Duration::from_secs(5),
        handshake: Duration::from_secs(10),
        backoff_min: Duration::from_millis(20),
        backoff_max: Duration::from_millis(200),
        other_side: Duration::from_millis(200),
        return_pause: Duration::from_millis(20),
        return_within: Duration::from_secs(1),
        goodbye: Duration::from_secs(2),
        session: SessionLimits {
            heartbeat: Duration::from_millis(500),
            silence: Duration::from_secs(10),
            hello: Duration::from_secs(10),
            ..SessionLimits::default()
        },
        connections_per_second: 100_000,
        connections_burst: 100_000,
    }
}

pub(super) fn catalogue(names: &[&str]) -> Arc<Catalogue> {
    let service = |name: &str| RemoteService {
        name: ServiceName::new("shop", name).unwrap(),
        ports: vec![RemotePort {
            name: "http".into(),
            port: 80,
            protocol: AppProtocol::Http,
            clients: BTreeSet::new(),
        }],
        tls_mode: TlsMode::IstioMtls,
        server_ids: BTreeSet::from([id("spiffe://west.test/ns/shop/sa/web")]),
        clients: BTreeSet::new(),
        gateways: Vec::new(),
        endpoints: Vec::new(),
    };
    let services: BTreeMap<_, _> =
        names.iter().map(|n| service(n)).map(|s| (s.name.clone(), Arc::new(s))).collect();
    Arc::new(Catalogue {
        version: version_of(&services),
        services,
        held: std::collections::BTreeSet::new(),
        malformed: Vec::new(),
    })
}

/// A plan for the link with `peer`, which is not dialled.
pub(super) fn plan_for(peer: &Domain) -> LinkPlan {
    LinkPlan {
        trust_domain: peer.td.clone(),
        owner: OwnerRef { kind: Kind::TrustDomainPeer, name: peer.td.to_string(), uid: "1".to_owned() },
        addresses: Vec::new(),
        agent_ids: BTreeSet::from([id(&peer.agent)]),
        dials_first: false,
        intent: LinkIntent::Connect,
        farewell: String::new(),
        report: TrustReport::default(),
        catalogue: catalogue(&[]),
        outcomes: Arc::default(),
        answered: None,
    }
}

struct Agent {
    domain: Domain,
    source: IdentitySource,
    plans: watch::Sender<LinkPlans>,
    open: watch::Sender<bool>,
    federation: Federation,
    cancel: CancellationToken,
}

impl Agent {
    async fn start(domain: Domain, holds: &[&Bundle]) -> Self {
        let source = domain.source(holds);
        Self::with(domain, source, quick()).await
    }

    async fn with(domain: Domain, source: IdentitySource, timings: Timings) -> Self {
        Self::opened(domain, source, timings, true).await
    }

    async fn opened(domain: Domain, source: IdentitySource, timings: Timings, is_open: bool) -> Self {
        let (plans, seen) = watch::channel(LinkPlans::default());
        let (open, opened) = watch::channel(is_open);
        let cancel = CancellationToken::new();
        let config = FederationConfig { listen: "127.0.0.1:0".parse().unwrap(), timings };
        let federation = Federation::start(config, source.clone(), seen, opened, None, None, cancel.clone())
            .await
            .unwrap();
        Self { domain, source, plans, open, federation, cancel }
    }

    fn address(&self) -> SocketAddr {
        self.federation.local_addr
    }

    fn expects(&self, peer: &Domain) {
        self.plan(plan_for(peer));
    }

    /// Dials `peer`, as the side that dials first.
    fn dials(&self, peer: &Domain, address: SocketAddr) {
        self.plan(LinkPlan { addresses: vec![address.to_string()], dials_first: true, ..plan_for(peer) });
    }

    fn plan(&self, plan: LinkPlan) {
        self.plans.send_modify(|plans| {
            Arc::make_mut(plans).insert(plan.trust_domain.clone(), plan);
        });
    }

    fn change(&self, peer: &TrustDomain, change: impl FnOnce(&mut LinkPlan)) {
        self.plans.send_modify(|plans| change(Arc::make_mut(plans).get_mut(peer).unwrap()));
    }

    async fn until(&self, peer: &TrustDomain, holds: impl Fn(&SessionState) -> bool) -> SessionState {
        let mut states = self.federation.states.clone();
        let found = |states: &Arc<BTreeMap<TrustDomain, SessionState>>| states.get(peer).is_some_and(&holds);
        let wait = states.wait_for(found);
        match tokio::time::timeout(Duration::from_secs(20), wait).await {
            Ok(states) => states.unwrap()[peer].clone(),
            Err(_) => panic!("not in time; now {:?}", self.federation.states.borrow().get(peer)),
        }
    }

    async fn connected(&self, peer: &TrustDomain) -> SessionState {
        self.until(peer, SessionState::is_connected).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Two agents that hold each other's bundle.
async fn pair() -> (Agent, Agent) {
    let (west, east) = (Domain::new("west.test"), Domain::new("east.test"));
    let (of_west, of_east) = (west.bundle(), east.bundle());
    (Agent::start(west, &[&of_east]).await, Agent::start(east, &[&of_west]).await)
}

/// West dials east and is connected.
async fn connected_pair() -> (Agent, Agent) {
    let (west, east) = pair().await;
    east.expects(&west.domain);
    west.dials(&east.domain, east.address());
    west.connected(&east.domain.td).await;
    east.connected(&west.domain.td).await;
    (west, east)
}

fn report(domain: &Domain) -> TrustReport {
    let held = Some(HeldBundle::from(&*domain.bundle()));
    TrustReport { delivered: held.clone(), held, relationship: true, ..TrustReport::default() }
}

/// Everything that is said, in both directions.
async fn converse(west: &Agent, east: &Agent) {
    let (w, e) = (&west.domain, &east.domain);
    for (agent, peer, other) in [(west, e, east), (east, w, west)] {
        agent.change(&peer.td, |plan| plan.report = report(peer));
        let told = other.until(&agent.domain.td, |s| s.remote == Some(report(peer))).await;
        assert!(told.is_connected());
    }
    let offered = catalogue(&["cart", "web"]);
    west.change(&e.td, |plan| plan.catalogue = Arc::clone(&offered));
    east.until(&w.td, |s| s.catalogue.as_ref() == Some(&offered)).await;
    let refused = Outcome::Refused { reason: "NotAdmitted".into(), message: "spec.imports".into() };
    let cart = ServiceName::new("shop", "cart").unwrap();
    let web = ServiceName::new("shop", "web").unwrap();
    for cart_is in [refused, Outcome::Imported] {
        let outcomes = BTreeMap::from([(cart.clone(), cart_is), (web.clone(), Outcome::Imported)]);
        let outcomes = Arc::new(outcomes);
        east.change(&w.td, |plan| {
            plan.outcomes = Arc::clone(&outcomes);
            plan.answered = Some(offered.version);
        });
        let answer = Acknowledgement { version: offered.version, offered: Arc::clone(&offered), outcomes };
        west.until(&e.td, |s| s.acknowledged.as_ref() == Some(&answer)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_may_dial_and_both_say_everything() {
    let (west, east) = connected_pair().await;
    converse(&west, &east).await;
    let (west, east) = pair().await;
    west.expects(&east.domain);
    east.dials(&west.domain, west.address());
    west.connected(&east.domain.td).await;
    converse(&west, &east).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_side_that_dials_second_dials_where_the_first_does_not_come() {
    let (west, east) = pair().await;
    east.expects(&west.domain);
    west.plan(LinkPlan { addresses: vec![east.address().to_string()], ..plan_for(&east.domain) });
    west.connected(&east.domain.td).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_dialling_at_once_ends_with_one_stream() {
    for _ in 0..10 {
        let (west, east) = pair().await;
        west.dials(&east.domain, east.address());
        east.dials(&west.domain, west.address());
        west.connected(&east.domain.td).await;
        east.connected(&west.domain.td).await;
        converse(&west, &east).await;
        // settled: from here on the same stream stands
        let since = (west.connected(&east.domain.td).await, east.connected(&west.domain.td).await);
        tokio::time::sleep(quick().session.heartbeat * 2).await;
        let now = (west.connected(&east.domain.td).await, east.connected(&west.domain.td).await);
        assert_eq!((since.0.since, since.1.since), (now.0.since, now.1.since));
    }
}

/// Who says nothing takes the places of its own network alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_of_one_source_keep_no_peer_out() {
    let (west, east) = pair().await;
    east.expects(&west.domain);
    let mut silent = Vec::new();
    for _ in 0..300 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(east.address()).await.unwrap());
    }
    let since = std::time::Instant::now();
    west.dials(&east.domain, east.address());
    west.connected(&east.domain.td).await;
    assert!(since.elapsed() < quick().handshake / 2, "{:?}", since.elapsed());
}

fn is_refused(by: Refusal) -> impl Fn(&SessionState) -> bool {
    move |state| matches!(state.link, LinkState::Refused { by: b, .. } if b == by)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_be_refused_is_told_apart_and_heals() {
    let (west, east) = pair().await;
    let (w, e) = (west.domain.td.clone(), east.domain.td.clone());
    west.dials(&east.domain, east.address());
    let dialled = async || {
        let target = Target {
            trust_domain: e.clone(),
            addresses: vec![east.address().to_string()],
            authorize: Arc::new(|_| true),
            source: west.source.clone(),
        };
        dial(target, quick()).await.err()
    };
    // no plan for us
    west.until(&e, is_refused(Refusal::NotAccepted)).await;
    // another ID of us
    east.plan(LinkPlan { agent_ids: BTreeSet::from([id("spiffe://west.test/x")]), ..plan_for(&west.domain) });
    east.until(&w, |_| true).await;
    let refused = dialled().await;
    assert!(matches!(refused, Some(LinkState::Refused { by: Refusal::NotAccepted, .. })), "{refused:?}");
    let seen = east.federation.states.borrow()[&w].link.clone();
    assert_eq!(seen, LinkState::Idle, "a stranger changes no verdict");
    east.expects(&west.domain);
    west.connected(&e).await;

    // another bundle of us
    let stale = west.domain.bundle_of(&[&authority()]);
    east.source.publish(east.domain.svids(&[&stale]));
    west.until(&e, is_refused(Refusal::UnknownAuthority)).await;
    // none
    east.source.publish(east.domain.svids(&[]));
    let refused = dialled().await;
    assert!(matches!(refused, Some(LinkState::Refused { by: Refusal::NotAccepted, .. })), "{refused:?}");
    west.until(&e, is_refused(Refusal::NotAccepted)).await;
    // an expired SVID of ours
    east.source.publish(east.domain.svids(&[&west.domain.bundle()]));
    west.connected(&e).await;
    let mut params = leaf_params(&[&west.domain.agent]);
    valid(&mut params, -1_000_000_000, -900_000_000);
    let expired = west.domain.message(&west.domain.agent, "", &west.domain.ca.sign(&params));
    let mut message = west.domain.response(&[&east.domain.bundle()]);
    message.svids = vec![expired];
    west.source.publish(read(message, None).unwrap());
    // which drops no connection by itself
    assert!(west.federation.states.borrow()[&e].is_connected());
    east.change(&w, |plan| plan.agent_ids.clear());
    west.until(&e, |s| !s.is_connected()).await;
    east.expects(&west.domain);
    west.until(&e, is_refused(Refusal::Expired)).await;
    west.source.publish(west.domain.svids(&[&east.domain.bundle()]));
    west.connected(&e).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_refuse_the_peer_is_told_apart_and_heals() {
    let (west, east) = pair().await;
    let e = east.domain.td.clone();
    east.expects(&west.domain);
    let other = BTreeSet::from([id("spiffe://east.test/x")]);
    west.dials(&east.domain, east.address());
    west.change(&e, |plan| plan.agent_ids = other.clone());
    west.until(&e, |s| matches!(s.link, LinkState::WrongPeerId { .. })).await;
    west.source.publish(west.domain.svids(&[&east.domain.bundle_of(&[&authority()])]));
    west.until(&e, |s| matches!(s.link, LinkState::Unverified { .. })).await;
    west.source.publish(west.domain.svids(&[]));
    west.until(&e, |s| matches!(&s.link, LinkState::Unverified { message } if message.contains("no bundle")))
        .await;
    west.source.publish(west.domain.svids(&[&east.domain.bundle()]));
    west.change(&e, |plan| plan.agent_ids = BTreeSet::from([id(&east.domain.agent)]));
    west.connected(&e).await;
    // an agent of another trust domain that we hold the bundle of
    let north = Domain::new("north.test");
    west.source.publish(west.domain.svids(&[&east.domain.bundle(), &north.bundle()]));
    west.plan(LinkPlan {
        addresses: vec![east.address().to_string()],
        dials_first: true,
        ..plan_for(&north)
    });
    west.until(&north.td, |s| matches!(s.link, LinkState::WrongPeerId { .. })).await;
    west.connected(&e).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_svid_keeps_the_stream_and_a_bundle_that_goes_closes_it() {
    let (west, east) = connected_pair().await;
    let (w, e) = (west.domain.td.clone(), east.domain.td.clone());
    // gaps would show as transitions
    let mut seen = west.federation.states.clone();
    let watcher = tokio::spawn({
        let e = e.clone();
        async move {
            let cut = seen.wait_for(|states| !states[&e].is_connected()).await;
            cut.unwrap()[&e].link.clone()
        }
    });
    west.source.publish(west.domain.svids(&[&east.domain.bundle()]));
    east.source.publish(east.domain.svids(&[&west.domain.bundle()]));
    // another authority beside the one in use
    let new = authority();
    east.source.publish(east.domain.svids(&[&west.domain.bundle_of(&[&west.domain.ca, &new])]));
    converse(&west, &east).await;
    assert!(!watcher.is_finished(), "{:?}", watcher.await);

    east.source.publish(east.domain.svids(&[&west.domain.bundle_of(&[&new])]));
    east.until(&w, |s| matches!(&s.link, LinkState::Unverified { .. })).await;
    let first = watcher.await.unwrap();
    assert!(matches!(first, LinkState::Refused { by: Refusal::NotAccepted, .. }), "{first:?}");
    west.until(&e, is_refused(Refusal::UnknownAuthority)).await;
    // what was said before stays to be seen
    assert!(east.federation.states.borrow()[&w].catalogue.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_said_and_stands_until_the_peer_comes_back() {
    for (dialler_parts, reason) in
        [(true, GoodbyeReason::RelationshipEnded), (false, GoodbyeReason::Suspended)]
    {
        let (west, east) = connected_pair().await;
        let (parts, told) = if dialler_parts { (&west, &east) } else { (&east, &west) };
        let (other, own) = (told.domain.td.clone(), parts.domain.td.clone());
        parts.change(&other, |plan| plan.intent = LinkIntent::Part(reason));
        parts.until(&other, |s| s.parted && s.link == LinkState::Idle).await;
        let is_parted =
            |s: &SessionState| matches!(s.link, LinkState::Parted { reason: r, .. } if r == reason);
        let since = told.until(&own, is_parted).await.since;
        if !dialler_parts {
            // it dials on, and is told again; then refused, then not answered
            tokio::time::sleep(quick().backoff_max * 3).await;
            parts.plans.send_modify(|plans| Arc::make_mut(plans).clear());
            tokio::time::sleep(quick().backoff_max * 3).await;
            let state = told.until(&own, is_parted).await;
            assert_eq!(state.since, since);
            parts.expects(&told.domain);
        } else {
            parts.change(&other, |plan| plan.intent = LinkIntent::Connect);
        }
        told.connected(&own).await;
        assert!(!parts.connected(&other).await.parted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_there_need_not_be_told() {
    let (west, east) = pair().await;
    west.plan(LinkPlan {
        addresses: vec![east.address().to_string()],
        dials_first: true,
        intent: LinkIntent::Part(GoodbyeReason::RelationshipEnded),
        ..plan_for(&east.domain)
    });
    let state = west.until(&east.domain.td, |s| s.parted).await;
    assert_eq!(state.link, LinkState::Idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_listen_cannot_hold_up_the_end() {
    let (west, north) = (Domain::new("west.test"), Domain::new("north.test"));
    let of_north = north.bundle();
    let west = Agent::start(west, &[&of_north]).await;
    west.expects(&north);
    let deaf = hostile(&west, &north).await;
    deaf.out.send(Frame { body: Some(hello("north.test")) }).await.unwrap();
    west.connected(&north.td).await;
    // more than any window takes
    let names: Vec<String> = (0..20_000).map(|n| format!("service-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    west.change(&north.td, |plan| plan.catalogue = catalogue(&names));
    tokio::time::sleep(quick().session.heartbeat).await;
    let began = tokio::time::Instant::now();
    west.change(&north.td, |plan| plan.intent = LinkIntent::Part(GoodbyeReason::Suspended));
    west.until(&north.td, |s| s.parted).await;
    let took = began.elapsed();
    assert!(took >= quick().goodbye && took < quick().goodbye * 4, "{took:?}");
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_is_said_and_starting_again_connects() {
    let (west, mut east) = connected_pair().await;
    let (w, e) = (west.domain.td.clone(), east.domain.td.clone());
    let mut seen = west.federation.states.clone();
    east.cancel.cancel();
    let cut = seen.wait_for(|s| !s[&e].is_connected()).await.unwrap()[&e].link.clone();
    assert!(matches!(cut, LinkState::Parted { reason: GoodbyeReason::ShuttingDown, .. }), "{cut:?}");
    let join = std::mem::replace(&mut east.federation.join, tokio::spawn(async {}));
    tokio::time::timeout(Duration::from_secs(10), join).await.expect("it ends").unwrap();
    west.until(&e, |s| matches!(s.link, LinkState::Unreachable { .. })).await;

    let again = Agent::with(Domain::new("east.test"), east.source.clone(), quick()).await;
    again.expects(&west.domain);
    west.change(&e, |plan| plan.addresses = vec![again.address().to_string()]);
    again.connected(&w).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_open_dials_nobody_and_refuses_nobody() {
    const TIMES: usize = 100;
    let (west, east) = (Domain::new("west.test"), Domain::new("east.test"));
    let (of_west, of_east) = (west.bundle(), east.bundle());
    let west = Agent::start(west, &[&of_east]).await;
    let source = east.source(&[&of_west]);
    let east = Agent::opened(east, source, quick(), false).await;
    let (w, e) = (west.domain.td.clone(), east.domain.td.clone());
    // it knows of no peer yet: open, it would refuse every one
    for time in 0..TIMES {
        let target = Target {
            trust_domain: e.clone(),
            addresses: vec![east.address().to_string()],
            authorize: Arc::new(|_| true),
            source: west.source.clone(),
        };
        match dial(target, quick()).await {
            Err(LinkState::Unreachable { .. }) => {}
            Err(other) => panic!("{time}: {other:?}"),
            Ok(_) => panic!("{time}: accepted"),
        }
    }
    west.expects(&east.domain);
    east.dials(&west.domain, west.address());
    tokio::time::sleep(quick().backoff_max).await;
    assert!(east.federation.states.borrow().is_empty());
    assert_eq!(west.federation.states.borrow()[&e].link, LinkState::Idle);

    east.open.send_replace(true);
    west.connected(&e).await;
    east.connected(&w).await;
    let mut seen = west.federation.states.clone();
    east.open.send_replace(false);
    let cut = seen.wait_for(|s| !s[&e].is_connected()).await.unwrap()[&e].link.clone();
    assert!(matches!(cut, LinkState::Parted { reason: GoodbyeReason::ShuttingDown, .. }), "{cut:?}");
    // at once, while the goodbye may still be under way
    east.open.send_replace(true);
    east.connected(&w).await;
    west.connected(&e).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shut_down_is_dialled_again_at_once_by_who_dialled_before() {
    // every other pause is a minute at least
    let long = Duration::from_secs(600);
    let timings =
        Timings { backoff_min: long, backoff_max: long, return_within: Duration::from_secs(30), ..quick() };
    let (west, east) = (Domain::new("west.test"), Domain::new("east.test"));
    let (of_west, of_east) = (west.bundle(), east.bundle());
    let source = west.source(&[&of_east]);
    let west = Agent::with(west, source, timings).await;
    let east = Agent::start(east, &[&of_west]).await;
    let (w, e) = (west.domain.td.clone(), east.domain.td.clone());
    east.expects(&west.domain);
    west.dials(&east.domain, east.address());
    // once as soon as it has parted, once after it dialled in vain
    for in_vain in [false, true] {
        west.connected(&e).await;
        east.connected(&w).await;
        east.open.send_replace(false);
        let is_away = |link: &LinkState| !in_vain || matches!(link, LinkState::Unreachable { .. });
        west.until(&e, |state| !state.is_connected() && is_away(&state.link)).await;
        east.open.send_replace(true);
    }
    west.connected(&e).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_the_one_that_is_open_has_the_stream() {
    let west = Domain::new("west.test");
    let east = Domain::new("east.test");
    let (of_west, of_east) = (west.bundle(), east.bundle());
    let source = east.source(&[&of_west]);
    let west = Agent::start(west, &[&of_east]).await;
    west.expects(&east);
    let (w, e) = (west.domain.td.clone(), east.td.clone());
    let mut replicas = Vec::new();
    for is_open in [true, false] {
        let replica = Agent::opened(Domain::new("east.test"), source.clone(), quick(), is_open).await;
        replica.dials(&west.domain, west.address());
        replicas.push(replica);
    }
    let mut leader = 0;
    for _ in 0..4 {
        replicas[leader].connected(&w).await;
        west.connected(&e).await;
        assert!(replicas[1 - leader].federation.states.borrow().is_empty());
        replicas[leader].open.send_replace(false);
        leader = 1 - leader;
        replicas[leader].open.send_replace(true);
        replicas[leader].connected(&w).await;
        let mut states = replicas[1 - leader].federation.states.clone();
        tokio::time::timeout(Duration::from_secs(20), states.wait_for(|s| s.is_empty()))
            .await
            .unwrap()
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_read_as_refusals_and_cut_connections_as_unreachable() {
    const TIMES: usize = 300;
    let (west, east) = pair().await;
    let stale = west.domain.bundle_of(&[&authority()]);
    east.source.publish(east.domain.svids(&[&stale]));
    east.expects(&west.domain);
    let target = |address: SocketAddr| Target {
        trust_domain: east.domain.td.clone(),
        addresses: vec![address.to_string()],
        authorize: Arc::new(|_| true),
        source: west.source.clone(),
    };
    for (bundles, expected) in [(vec![&*stale], Refusal::UnknownAuthority), (vec![], Refusal::NotAccepted)] {
        east.source.publish(east.domain.svids(&bundles));
        for time in 0..TIMES {
            match dial(target(east.address()), quick()).await {
                Err(LinkState::Refused { by, .. }) if by == expected => {}
                Err(other) => panic!("{time}: {other:?}"),
                Ok(_) => panic!("{time}: accepted"),
            }
        }
    }

    // cut before the handshake, during it, and after it
    let tls = server_config(&east.domain.source(&[&west.domain.bundle()]), Arc::new(|_| true)).unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cutting = tokio::spawn(async move {
        for time in 0.. {
            let (mut tcp, _) = listener.accept().await.unwrap();
            match time % 4 {
                0 => drop(tcp),
                1 => tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap_or_default(),
                2 => drop(tls.accept(tcp).await),
                _ => {
                    let _ = tls.accept(tcp).await.unwrap().shutdown().await;
                }
            }
        }
    });
    for time in 0..TIMES {
        match dial(target(address), quick()).await {
            Err(LinkState::Unreachable { .. }) => {}
            Err(other) => panic!("{time}: {other:?}"),
            Ok(_) => panic!("{time}: accepted"),
        }
    }
    cutting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_counts_only_from_whom_we_have_verified() {
    // a server of our own making that refuses every client, with the certificate of another authority
    let (west, east) = (Domain::new("west.test"), Domain::new("east.test"));
    let forged = Domain { ca: authority(), ..Domain::new("east.test") };
    let tls = server_config(&forged.source(&[]), Arc::new(|_| false)).unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = vec![listener.local_addr().unwrap().to_string()];
    let refusing = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let _ = tls.accept(tcp).await;
        }
    });
    let source = west.source(&[&east.bundle()]);
    let target = Target { trust_domain: east.td, addresses, authorize: Arc::new(|_| true), source };
    let state = dial(target, quick()).await.err();
    assert!(matches!(state, Some(LinkState::Unverified { .. })), "{state:?}");
    refusing.abort();
}

/// A peer of our own making: a stream to `agent`, on which nothing has been said.
async fn hostile(agent: &Agent, domain: &Domain) -> Dialled {
    let target = Target {
        trust_domain: agent.domain.td.clone(),
        addresses: vec![agent.address().to_string()],
        authorize: Arc::new(|_| true),
        source: domain.source(&[&agent.domain.bundle()]),
    };
    dial(target, quick()).await.unwrap_or_else(|state| panic!("{state:?}"))
}

async fn goodbye(mut stream: Dialled) -> Goodbye {
    let reading = async {
        while let Some(frame) = stream.frames.message().await.expect("a goodbye first") {
            if let Some(Body::Goodbye(goodbye)) = frame.body {
                return goodbye;
            }
        }
        panic!("no goodbye");
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("in time")
}

fn hello(domain: &str) -> Body {
    let agent_version = "test".to_owned();
    Body::Hello(Hello {
        protocol_version: 7,
        agent_version,
        trust_domain: domain.to_owned(),
        ..Hello::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_breaks_the_protocol_is_told_and_harms_no_other() {
    let east = Domain::new("east.test");
    let (west, north) = (Domain::new("west.test"), Domain::new("north.test"));
    let (of_west, of_north, of_east) = (west.bundle(), north.bundle(), east.bundle());
    let east = Agent::start(east, &[&of_west, &of_north]).await;
    let west = Agent::start(west, &[&of_east]).await;
    east.expects(&west.domain);
    east.expects(&north);
    west.dials(&east.domain, east.address());
    let before = east.connected(&west.domain.td).await;

    let snapshot = |version: Vec<u8>, services: Vec<Vec<u8>>| {
        Body::Catalogue(CatalogueSnapshot { version, services, more: true })
    };
    let heartbeats =
        (0..2_000).map(|sequence| Body::Heartbeat(Heartbeat { sequence, ..Heartbeat::default() }));
    let cases: Vec<(&str, Vec<Body>)> = vec![
        ("before the Hello", vec![Body::Heartbeat(Heartbeat { sequence: 1, ..Heartbeat::default() })]),
        ("Hello of trust domain", vec![hello("west.test")]),
        ("second Hello", vec![hello("north.test"), hello("north.test")]),
        ("32 bytes", vec![hello("north.test"), snapshot(vec![1], vec![])]),
        ("20000 services", vec![hello("north.test"), snapshot(vec![1; 32], vec![vec![]; 20_001])]),
        ("100 frames a second", std::iter::once(hello("north.test")).chain(heartbeats).collect()),
        ("cannot be read", vec![hello("north.test"), snapshot(vec![1; 32], vec![vec![0; 5 * 1024 * 1024]])]),
    ];
    for (cause, bodies) in cases {
        let stream = hostile(&east, &north).await;
        for body in bodies {
            if stream.out.send(Frame { body: Some(body) }).await.is_err() {
                break;
            }
        }
        let goodbye = goodbye(stream).await;
        assert_eq!(goodbye.reason(), Reason::ProtocolError, "{cause}: {goodbye:?}");
        assert!(goodbye.message.contains(cause), "{cause}: {goodbye:?}");
        let is_told = |s: &SessionState| {
            matches!(&s.link, LinkState::Parted { reason: GoodbyeReason::ProtocolError, message }
                if message.contains(cause))
        };
        // Who comes back sooner may find its own stream there still.
        east.until(&north.td, is_told).await;
    }
    assert_eq!(east.connected(&west.domain.td).await.since, before.since);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stream_of_one_peer_is_refused_while_the_first_lives() {
    let (west, east) = connected_pair().await;
    let mut stream = hostile(&east, &west.domain).await;
    stream.out.send(Frame { body: Some(hello("west.test")) }).await.unwrap();
    let first = stream.frames.message().await.unwrap().unwrap();
    assert!(
        matches!(&first.body, Some(Body::Goodbye(g)) if g.reason() == Reason::AlreadyConnected),
        "{first:?}"
    );
    assert!(east.connected(&west.domain.td).await.is_connected());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_went_silent_gives_way_to_a_new_one() {
    let (west, north) = (Domain::new("west.test"), Domain::new("north.test"));
    let timings = Timings {
        session: SessionLimits { heartbeat: Duration::from_millis(100), ..quick().session },
        ..quick()
    };
    let source = west.source(&[&north.bundle()]);
    let west = Agent::with(west, source, timings).await;
    west.expects(&north);
    let old = hostile(&west, &north).await;
    old.out.send(Frame { body: Some(hello("north.test")) }).await.unwrap();
    west.connected(&north.td).await;
    tokio::time::sleep(timings.session.heartbeat * 3).await;
    let mut new = hostile(&west, &north).await;
    new.out.send(Frame { body: Some(hello("north.test")) }).await.unwrap();
    let first = new.frames.message().await.unwrap().unwrap();
    assert!(matches!(first.body, Some(Body::Hello(_))), "{first:?}");
    assert_eq!(goodbye(old).await.reason(), Reason::AlreadyConnected);
    assert!(west.connected(&north.td).await.is_connected());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_unreachable_and_an_unused_connection_is_closed() {
    let (west, north) = (Domain::new("west.test"), Domain::new("north.test"));
    let timings = Timings {
        handshake: Duration::from_secs(2),
        session: SessionLimits {
            heartbeat: Duration::from_millis(100),
            silence: Duration::from_millis(700),
            ..quick().session
        },
        ..quick()
    };
    let source = west.source(&[&north.bundle()]);
    let west = Agent::with(west, source, timings).await;
    west.expects(&north);
    let silent = hostile(&west, &north).await;
    silent.out.send(Frame { body: Some(hello("north.test")) }).await.unwrap();
    west.connected(&north.td).await;
    let is_silent = |s: &SessionState| matches!(&s.link, LinkState::Unreachable { message } if message.contains("said nothing"));
    west.until(&north.td, is_silent).await;

    // TLS and nothing more
    let tls = crate::identity::peer_tls::client_config(
        &north.source(&[&west.domain.bundle()]),
        Arc::new(|_| true),
        Verdict::default(),
    );
    let tcp = tokio::net::TcpStream::connect(west.address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls.unwrap()));
    let mut idle = connector.connect("west.test".try_into().unwrap(), tcp).await.unwrap();
    let mut sink = tokio::io::sink();
    let ended = tokio::time::timeout(Duration::from_secs(15), tokio::io::copy(&mut idle, &mut sink)).await;
    assert!(ended.is_ok(), "it is still open");
}

#[tokio::test]
async fn a_peer_is_asked_what_it_sees_and_not_more_often_than_it_answers() {
    use crate::federation::diagnose::{ANSWER_EVERY, AskError};
    use crate::model::diagnosis::{Outcome, ToldCheck};
    let (west, mut east) = connected_pair().await;
    let (w, e) = (west.domain.td.clone(), east.domain.td.clone());
    let check = |n: usize| ToldCheck {
        step: "session".to_owned(),
        outcome: Outcome::Passed,
        message: format!("answer {n}"),
        remedy: String::new(),
        side: None,
    };
    let (_gone, unread) = tokio::sync::mpsc::channel(1);
    let mut questions = std::mem::replace(&mut east.federation.questions, unread);
    let asker = w.clone();
    let answering = tokio::spawn(async move {
        let mut answered = 0;
        while let Some(question) = questions.recv().await {
            assert_eq!(question.peer, asker);
            answered += 1;
            question.reply.send(vec![check(answered)]).unwrap();
        }
    });
    let start = tokio::time::Instant::now();
    let told = west.federation.probe.ask(&e).await.unwrap();
    assert_eq!(told[0].message, "answer 1");
    assert!(start.elapsed() < ANSWER_EVERY, "the first is answered at once");
    let told = west.federation.probe.ask(&e).await.unwrap();
    assert_eq!(told[0].message, "answer 2");
    assert!(start.elapsed() >= ANSWER_EVERY, "the second waits: {:?}", start.elapsed());
    answering.abort();

    assert_eq!(west.federation.probe.ask(&w).await, Err(AskError::NotConnected));
    east.cancel.cancel();
    west.until(&e, |s| !s.is_connected()).await;
    assert_eq!(west.federation.probe.ask(&e).await, Err(AskError::NotConnected));
}

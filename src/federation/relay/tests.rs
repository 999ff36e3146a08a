//! Replicas of one agent in one process, and a peer that reaches those alone that do not lead.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::pass::splice;
use super::{Header, PARTING, REACH, UNPROVEN_OF_ONE};
use crate::federation::manager::LinkPlans;
use crate::federation::tests::{plan_for, quick};
use crate::federation::{Federation, FederationConfig, RelayConfig};
use crate::identity::replica_tls;
use crate::identity::source::IdentitySource;
use crate::identity::testing::Domain;
use crate::model::TrustDomain;
use crate::model::replica::Leader;
use crate::model::session::{LinkPlan, SessionState};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_header_says_where_a_connection_is_from() {
    for (text, canonical) in [
        ("192.0.2.1:4711", "192.0.2.1:4711"),
        ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ("[::ffff:192.0.2.1]:65535", "192.0.2.1:65535"),
    ] {
        let header = Header(text.parse().unwrap());
        assert_eq!(Header::decode(&header.encode()).unwrap().0.to_string(), canonical);
    }
    let good = Header("192.0.2.1:4711".parse().unwrap()).encode();
    for (place, value) in [(0, 0), (0, 5), (5, 1), (16, 1)] {
        let mut bad = good;
        bad[place] = value;
        assert!(Header::decode(&bad).is_err(), "{bad:?}");
    }
}

/// One agent; of east there are several.
struct Replica {
    federation: Federation,
    open: watch::Sender<bool>,
    leader: watch::Sender<Leader>,
    plans: watch::Sender<LinkPlans>,
    cancel: CancellationToken,
}

impl Replica {
    async fn start(source: &IdentitySource, peer: &Domain, dials: Option<SocketAddr>, relays: bool) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let plan = LinkPlan {
            addresses: dials.iter().map(ToString::to_string).collect(),
            dials_first: dials.is_some(),
            ..plan_for(peer)
        };
        let (plans, planned) = watch::channel(Arc::new([(peer.td.clone(), plan)].into()));
        let (open, opened) = watch::channel(!relays);
        let (leader, leads) = watch::channel(Leader::Nobody);
        let cancel = CancellationToken::new();
        let config = FederationConfig { listen: any, timings: quick() };
        let relay = relays.then_some(RelayConfig { listen: any, leader: leads });
        let federation =
            Federation::start(config, source.clone(), planned, opened, relay, None, cancel.clone());
        Self { federation: federation.await.unwrap(), open, leader, plans, cancel }
    }

    fn dials(&self, peer: &TrustDomain, address: SocketAddr) {
        self.plans.send_modify(|plans| {
            let plan = Arc::make_mut(plans).get_mut(peer).unwrap();
            plan.addresses = vec![address.to_string()];
            plan.dials_first = true;
        });
    }

    async fn connected(&self, peer: &TrustDomain) {
        let mut states = self.federation.states.clone();
        let wait = states.wait_for(|all| all.get(peer).is_some_and(SessionState::is_connected));
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("not connected; {:?}", self.federation.states.borrow().get(peer));
        }
    }

    async fn parted(&self, peer: &TrustDomain) {
        let mut states = self.federation.states.clone();
        let wait = states.wait_for(|all| !all.get(peer).is_some_and(SessionState::is_connected));
        timeout(PATIENCE, wait).await.expect("still connected").unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// West, and replicas of east of which none leads yet.
struct Stand {
    west: Replica,
    east: Vec<Replica>,
    source: IdentitySource,
    w: TrustDomain,
    e: TrustDomain,
}

impl Stand {
    async fn new(replicas: usize) -> Self {
        let (west, east) = (Domain::new("west.test"), Domain::new("east.test"));
        let source = east.source(&[&west.bundle()]);
        let mut all = Vec::new();
        for _ in 0..replicas {
            all.push(Replica::start(&source, &west, None, true).await);
        }
        let of_west = west.source(&[&east.bundle()]);
        let (w, e) = (west.td.clone(), east.td.clone());
        let west = Replica::start(&of_west, &east, None, false).await;
        Self { west, east: all, source, w, e }
    }

    /// Has this one lead, and the others know of it.
    fn leads(&self, leader: usize) {
        let relay = self.east[leader].federation.relay_addr;
        for (number, replica) in self.east.iter().enumerate() {
            let other = || Leader::Other { name: leader.to_string(), relay };
            replica.leader.send_replace(if number == leader { Leader::Us { term: 1 } } else { other() });
            replica.open.send_replace(number == leader);
        }
    }

    fn nobody_leads(&self) {
        for replica in &self.east {
            replica.leader.send_replace(Leader::Nobody);
            replica.open.send_replace(false);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_reaches_a_follower_alone_talks_to_the_leader_whoever_that_is() {
    let stand = Stand::new(3).await;
    stand.leads(1);
    stand.west.dials(&stand.e, stand.east[0].federation.local_addr);
    for leader in [1, 2, 1] {
        stand.leads(leader);
        stand.east[leader].connected(&stand.w).await;
        stand.west.connected(&stand.e).await;
        for (_, replica) in stand.east.iter().enumerate().filter(|(number, _)| *number != leader) {
            let mut states = replica.federation.states.clone();
            let wait = states.wait_for(|all| !all.contains_key(&stand.w));
            timeout(PATIENCE, wait).await.expect("another talks too").unwrap();
        }
        stand.nobody_leads();
        stand.west.parted(&stand.e).await;
    }
    // the one that it dials leads: nothing is passed on
    stand.leads(0);
    stand.east[0].connected(&stand.w).await;
    stand.west.connected(&stand.e).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_finds_no_leader_waits_for_the_next() {
    let stand = Stand::new(2).await;
    let tcp = TcpStream::connect(stand.east[0].federation.local_addr).await.unwrap();
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(500), tcp.peek(&mut byte)).await.is_err(), "closed, or spoken to");
    // this one is to be known as leader, but does not answer at first
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = Some(dead.local_addr().unwrap());
    drop(dead);
    stand.east[0].leader.send_replace(Leader::Other { name: "gone".to_owned(), relay });
    stand.west.dials(&stand.e, stand.east[0].federation.local_addr);
    assert!(timeout(Duration::from_millis(500), tcp.peek(&mut byte)).await.is_err(), "closed, or spoken to");
    let since = Instant::now();
    stand.leads(1);
    stand.west.connected(&stand.e).await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    // a leader to which nothing is passed on: sent away
    stand.east[0].leader.send_replace(Leader::Other { name: "old".to_owned(), relay: None });
    let mut refused = TcpStream::connect(stand.east[0].federation.local_addr).await.unwrap();
    assert_eq!(timeout(PATIENCE, refused.read(&mut byte)).await.unwrap().unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_cuts_what_it_passed_to_one_that_leads_no_more() {
    let stand = Stand::new(2).await;
    stand.leads(1);
    stand.west.dials(&stand.e, stand.east[0].federation.local_addr);
    stand.west.connected(&stand.e).await;
    // the old leader believes in itself still: it has not heard that it leads no more
    stand.east[0].leader.send_replace(Leader::Us { term: 2 });
    stand.east[0].open.send_replace(true);
    let since = Instant::now();
    stand.east[0].connected(&stand.w).await;
    assert!(since.elapsed() < PARTING * 4, "{:?}", since.elapsed());
}

/// What becomes of a connection to the relay listener; whether anything was taken.
async fn knock(address: SocketAddr, tls: Option<rustls::ClientConfig>, header: &[u8]) -> bool {
    let tcp = TcpStream::connect(address).await.unwrap();
    let Some(tls) = tls else {
        let mut tcp = tcp;
        let _ = tcp.write_all(header).await;
        let read = timeout(REACH * 2, tcp.read(&mut [0])).await.expect("it is left open");
        return read.is_ok_and(|read| read > 0 && header.is_empty());
    };
    let name = rustls::pki_types::ServerName::from(address.ip());
    let Ok(mut tls) = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await else { return false };
    let _ = tls.write_all(header).await;
    let _ = tls.flush().await;
    timeout(REACH * 2, tls.read_u8()).await.expect("it is left open").is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_listener_takes_nothing_from_who_is_not_this_agent() {
    let stand = Stand::new(1).await;
    stand.leads(0);
    let relay = stand.east[0].federation.relay_addr.unwrap();
    let header = Header("192.0.2.1:4711".parse().unwrap()).encode();
    let own = || Some(replica_tls::client_config(&stand.source).unwrap());
    assert!(knock(relay, own(), &header).await);
    assert!(!knock(relay, own(), &[9; 19]).await, "a broken header");
    assert!(!knock(relay, None, &header).await, "no TLS");
    assert!(!knock(relay, own(), &[]).await, "nothing said");
    // another of the same trust domain, and a stranger with the same name
    let stranger = Domain::new("east.test").source(&[]);
    assert!(!knock(relay, Some(replica_tls::client_config(&stranger).unwrap()), &header).await);
    stand.nobody_leads();
    assert!(!knock(relay, own(), &header).await, "it leads no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_at_the_relay_listener_do_not_hold_up_replicas_for_long() {
    let stand = Stand::new(2).await;
    stand.leads(1);
    let relay = stand.east[1].federation.relay_addr.unwrap();
    let mut silent = Vec::new();
    for _ in 0..2 * UNPROVEN_OF_ONE {
        silent.push(TcpStream::connect(relay).await.unwrap());
    }
    stand.west.dials(&stand.e, stand.east[0].federation.local_addr);
    let since = Instant::now();
    stand.west.connected(&stand.e).await;
    assert!(since.elapsed() < REACH * 2, "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_passed_on_counts_for_where_it_is_from() {
    let (west, east) = (Domain::new("west.test"), Domain::new("east.test"));
    let source = east.source(&[&west.bundle()]);
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let timings = crate::federation::Timings { connections_per_second: 0, connections_burst: 3, ..quick() };
    let cancel = CancellationToken::new();
    let leader = watch::channel(Leader::Us { term: 1 }).1;
    let federation = Federation::start(
        FederationConfig { listen: any, timings },
        source.clone(),
        watch::channel(LinkPlans::default()).1,
        watch::channel(true).1,
        Some(RelayConfig { listen: any, leader }),
        None,
        cancel.clone(),
    );
    let federation = federation.await.unwrap();
    // Whether a connection that was passed on is spoken to: a hello that is none is answered with an alert.
    let spoken_to = async |from: &str| {
        let tcp = TcpStream::connect(federation.relay_addr.unwrap()).await.unwrap();
        let tls = Arc::new(replica_tls::client_config(&source).unwrap());
        let name = rustls::pki_types::ServerName::from(any.ip());
        let mut stream = TlsConnector::from(tls).connect(name, tcp).await.unwrap();
        stream.write_all(&Header(from.parse().unwrap()).encode()).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), super::TAKEN);
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        let _ = stream.flush().await;
        let mut said = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.unwrap();
        !said.is_empty()
    };
    let mut first = 0;
    for _ in 0..8 {
        first += usize::from(spoken_to("192.0.2.1:1").await);
    }
    assert_eq!(first, 3, "of one source");
    assert!(spoken_to("192.0.2.2:1").await, "another source pays for it");
    cancel.cancel();
}

#[tokio::test(start_paused = true)]
async fn what_says_nothing_for_long_is_cut_and_each_end_hears_the_other() {
    let ((mut peer, one), (other, mut leader)) = (duplex(64), duplex(64));
    let idle = Duration::from_secs(60);
    let carried = tokio::spawn(splice(one, other, idle));
    let long = vec![7; 1000];
    let (sent, mut got) = (peer.write_all(&long), vec![0; 1000]);
    let (sent, read) = tokio::join!(sent, leader.read_exact(&mut got));
    assert!(sent.is_ok() && read.is_ok() && got == long);
    tokio::time::sleep(idle / 2).await;
    leader.write_all(b"x").await.unwrap();
    assert_eq!(peer.read_u8().await.unwrap(), b'x');
    tokio::time::sleep(idle * 3 / 4).await;
    assert!(!carried.is_finished(), "half of it said something lately");
    let since = Instant::now();
    carried.await.unwrap();
    assert!(since.elapsed() <= idle, "{:?}", since.elapsed());
    assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);

    // one end says its last, and still hears what the other says
    let ((mut peer, one), (other, mut leader)) = (duplex(64), duplex(64));
    let carried = tokio::spawn(splice(one, other, idle));
    peer.shutdown().await.unwrap();
    assert_eq!(leader.read(&mut [0]).await.unwrap(), 0);
    leader.write_all(b"bye").await.unwrap();
    drop(leader);
    let mut last = String::new();
    peer.read_to_string(&mut last).await.unwrap();
    assert_eq!(last, "bye");
    carried.await.unwrap();
}

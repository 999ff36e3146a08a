//! The server on real sockets, with upstreams of the test.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::TcpStream;

use super::testing::{ask, decoded, zone};
use super::*;

const LIMIT: Duration = Duration::from_secs(20);

struct Stand {
    server: DnsServer,
    plans: watch::Sender<Arc<Plan>>,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn plan() -> Arc<Plan> {
    Arc::new(Plan { zone: Some(Arc::new(zone())), ..Plan::default() })
}

impl Stand {
    async fn with(upstreams: Vec<SocketAddr>, rate: u32, plan: Arc<Plan>) -> Self {
        let (plans, seen) = watch::channel(plan);
        let (metrics, cancel) = (Arc::<Metrics>::default(), CancellationToken::new());
        let config = DnsConfig { listen: local(), upstreams, rate };
        let server = DnsServer::start(config, seen, Arc::clone(&metrics), cancel.clone()).await.unwrap();
        Self { server, plans, metrics, cancel }
    }

    async fn new(upstreams: Vec<SocketAddr>) -> Self {
        let stand = Self::with(upstreams, 1_000, plan()).await;
        stand.answers("cart.shop.west.example.", ResponseCode::NoError).await;
        stand
    }

    /// Waits until this is what a question is answered with.
    async fn answers(&self, name: &str, code: ResponseCode) -> Message {
        tokio::time::timeout(LIMIT, async {
            loop {
                let message = self.ask(name, RecordType::A).await;
                if message.metadata.response_code == code {
                    return message;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap()
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        decoded(&exchange(self.server.listen, &ask(name, kind, None)).await.expect("an answer"))
    }

    fn counted(&self, outcome: &str) -> usize {
        let text = self.metrics.encode(crate::observe::metrics::Lead::default(), true, None).unwrap();
        let line = format!("entente_dns_queries_total{{outcome=\"{outcome}\"}} ");
        text.lines().find_map(|it| it.strip_prefix(&line)?.parse().ok()).unwrap_or_default()
    }
}

/// One question by UDP, asked again where it is lost; `None` where nothing comes.
async fn exchange(server: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind(local()).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(LIMIT, socket.recv(&mut buffer)).await.ok()?.ok()?;
    Some(buffer[..length].to_vec())
}

/// A server that answers every question for an address with 192.0.2.`last`, as often as it says, and counts.
async fn upstream(last: u8, answers: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind(local()).await.unwrap();
    let (at, count) = (socket.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut message = decoded(&buffer[..length]).into_response();
            let name = message.queries[0].name().clone();
            message.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, last)))));
            if answers {
                // Somebody else's answer, and then the right one.
                message.metadata.id ^= 1;
                socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
                message.metadata.id ^= 1;
                socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    (at, count)
}

fn address(message: &Message) -> Option<IpAddr> {
    message.answers.iter().find_map(|record| record.data.ip_addr())
}

#[tokio::test]
async fn the_last_zone_that_was_known_is_served() {
    let stand = Stand::with(Vec::new(), 1_000, Arc::default()).await;
    stand.answers("cart.shop.west.example.", ResponseCode::ServFail).await;
    stand.plans.send_replace(plan());
    stand.answers("cart.shop.west.example.", ResponseCode::NoError).await;
    // What comes after it is taken in the order of the plans.
    stand.plans.send_replace(Arc::default());
    stand.plans.send_modify(|_| {});
    for _ in 0..50 {
        let message = stand.ask("cart.shop.west.example.", RecordType::A).await;
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    }
    stand.plans.send_replace(Arc::new(Plan { zone: Some(Arc::default()), ..Plan::default() }));
    stand.answers("cart.shop.west.example.", ResponseCode::Refused).await;
    let text = stand.metrics.encode(crate::observe::metrics::Lead::default(), true, None).unwrap();
    assert!(text.contains("\nentente_dns_zone_changed_timestamp_seconds "), "{text}");
}

#[tokio::test]
async fn tcp_answers_one_question_after_the_other() {
    let stand = Stand::new(Vec::new()).await;
    let mut stream = TcpStream::connect(stand.server.listen).await.unwrap();
    for name in ["many.shop.west.example.", "cart.shop.west.example."] {
        tcp::write(&mut stream, &ask(name, RecordType::SRV, None)).await.unwrap();
        let answer = decoded(&tcp::read(&mut stream).await.unwrap().unwrap());
        assert!(!answer.metadata.truncation && answer.answers.len() >= 2, "{name}");
    }
    // What is no question ends it.
    tcp::write(&mut stream, &[0; 3]).await.unwrap();
    assert_eq!(tokio::time::timeout(LIMIT, tcp::read(&mut stream)).await.unwrap().unwrap(), None);
    assert_eq!(stand.counted("Malformed"), 1);
}

#[tokio::test]
async fn one_source_has_a_rate_and_so_many_connections() {
    let stand = Stand::with(Vec::new(), 5, plan()).await;
    let mut held = Vec::new();
    let mut closed = 0;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(stand.server.listen).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_millis(200), tcp::read(&mut stream)).await;
        closed += usize::from(ended.is_ok());
        held.push(stream);
    }
    assert_eq!(closed, 4, "sixteen at a time");
    drop(held);
    let socket = UdpSocket::bind(local()).await.unwrap();
    socket.connect(stand.server.listen).await.unwrap();
    for _ in 0..100 {
        socket.send(&ask("cart.shop.west.example.", RecordType::A, None)).await.unwrap();
    }
    tokio::time::timeout(LIMIT, async {
        while stand.counted("Limited") + stand.counted("Answered") + stand.counted("Failed") < 104 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let taken = stand.counted("Answered") + stand.counted("Failed");
    assert!((10..=20).contains(&taken), "{taken} of a hundred");
}

#[tokio::test]
async fn other_names_are_asked_of_the_first_upstream_that_answers() {
    let gone = {
        let socket = UdpSocket::bind(local()).await.unwrap();
        socket.local_addr().unwrap()
    };
    let (there, count) = upstream(7, true).await;
    let stand = Stand::new(vec![gone, there]).await;
    let message = stand.ask("WwW.example.com.", RecordType::A).await;
    assert_eq!(address(&message), Some("192.0.2.7".parse().unwrap()));
    assert_eq!(
        (message.metadata.id, message.queries[0].name().to_ascii()),
        (0x1234, "WwW.example.com.".to_owned())
    );
    assert_eq!(count.load(Ordering::SeqCst), 1);
    // What is ours is told to nobody.
    for name in ["cart.shop.west.example.", "secret.shop.west.example.", "a.b.west.example."] {
        stand.ask(name, RecordType::A).await;
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    assert_eq!(stand.counted("Forwarded"), 1);
}

/// However many ask, an upstream that says nothing is asked once at a time.
#[tokio::test]
async fn one_question_is_asked_once_at_a_time() {
    let (there, count) = upstream(7, false).await;
    let stand = Stand::new(vec![there]).await;
    let all = (0..50).map(|_| stand.ask("www.example.com.", RecordType::A));
    for message in futures::future::join_all(all).await {
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

/// A socket of this source, that asks the server.
async fn asking(source: [u8; 4], server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddr::from((source, 0))).await.unwrap();
    socket.connect(server).await.unwrap();
    socket
}

async fn heard(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(LIMIT, socket.recv(&mut buffer)).await.unwrap().unwrap();
    decoded(&buffer[..length])
}

/// An upstream that says nothing of names that begin with `silent`, and how often it was asked for these.
async fn silent_of_some() -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind(local()).await.unwrap();
    let (there, count) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let message = decoded(&buffer[..length]).into_response();
            if message.queries[0].name().to_ascii().starts_with("silent") {
                counted.fetch_add(1, Ordering::SeqCst);
            } else {
                socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    (there, count)
}

/// However many wait for an upstream that says nothing, our own names are answered, and what others ask of it is asked.
#[tokio::test]
async fn who_waits_for_an_upstream_holds_up_nobody_else() {
    let (there, _) = silent_of_some().await;
    // It is asked five times, and each time given two seconds.
    let stand = Stand::with(vec![there; 5], 1_000_000, plan()).await;
    stand.answers("cart.shop.west.example.", ResponseCode::NoError).await;
    let since = std::time::Instant::now();
    let silent = ask("silent.example.com.", RecordType::A, None);
    let mut flood = Vec::new();
    for source in 2..6 {
        let socket = asking([127, 0, 0, source], stand.server.listen).await;
        for _ in 0..1_000 {
            socket.send(&silent).await.unwrap();
            tokio::task::yield_now().await;
        }
        flood.push(socket);
    }
    stand.answers("cart.shop.west.example.", ResponseCode::NoError).await;
    for socket in &flood[1..] {
        // What there is no place for is said at once.
        assert_eq!(heard(socket).await.metadata.response_code, ResponseCode::ServFail);
    }
    drop(flood.pop());
    let other = asking([127, 0, 0, 9], stand.server.listen).await;
    other.send(&ask("www.example.com.", RecordType::A, None)).await.unwrap();
    let of_all = heard(&other).await.metadata.response_code;
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    assert_eq!(of_all, ResponseCode::ServFail, "four sources have all places");

    // By TCP there are other places; who has none is answered, and closed.
    let mut closed = 0;
    let mut waiting = Vec::new();
    for _ in 0..12 {
        let mut stream = TcpStream::connect(stand.server.listen).await.unwrap();
        tcp::write(&mut stream, &silent).await.unwrap();
        match tokio::time::timeout(Duration::from_millis(100), tcp::read(&mut stream)).await {
            Ok(answer) => {
                let answer = decoded(&answer.unwrap().unwrap());
                assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
                assert_eq!(tcp::read(&mut stream).await.unwrap(), None);
                closed += 1;
            }
            Err(_) => waiting.push(stream),
        }
    }
    assert_eq!((waiting.len(), closed), (8, 4));
}

/// What one source may wait for leaves places to the others.
#[tokio::test]
async fn one_source_has_a_share_of_what_is_asked_elsewhere() {
    let (silent, _) = upstream(7, false).await;
    let stand = Stand::with(vec![silent; 5], 1_000_000, plan()).await;
    stand.answers("cart.shop.west.example.", ResponseCode::NoError).await;
    let greedy = asking([127, 0, 0, 2], stand.server.listen).await;
    for _ in 0..1_000 {
        greedy.send(&ask("one.example.com.", RecordType::A, None)).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(heard(&greedy).await.metadata.response_code, ResponseCode::ServFail);
    let modest = asking([127, 0, 0, 3], stand.server.listen).await;
    modest.send(&ask("other.example.com.", RecordType::A, None)).await.unwrap();
    let mut buffer = [0; 4096];
    let soon = tokio::time::timeout(Duration::from_secs(1), modest.recv(&mut buffer)).await;
    assert!(soon.is_err(), "it has no place: it is answered at once");
}

/// Two sources that wait at all of their places, each with questions of its own, leave the upstream to others.
#[tokio::test]
async fn two_sources_do_not_use_up_what_can_be_asked_elsewhere() {
    let (there, asked) = silent_of_some().await;
    // It is asked five times, and each time given two seconds.
    let stand = Stand::with(vec![there; 5], 1_000_000, plan()).await;
    stand.answers("cart.shop.west.example.", ResponseCode::NoError).await;
    let mut flood = Vec::new();
    for source in 2..4 {
        let socket = asking([127, 0, 0, source], stand.server.listen).await;
        for number in 0..200 {
            let name = format!("silent-{source}-{number}.example.com.");
            socket.send(&ask(&name, RecordType::A, None)).await.unwrap();
            tokio::task::yield_now().await;
        }
        flood.push(socket);
    }
    tokio::time::timeout(LIMIT, async {
        while asked.load(Ordering::SeqCst) < 256 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let other = asking([127, 0, 0, 9], stand.server.listen).await;
    other.send(&ask("www.example.com.", RecordType::A, None)).await.unwrap();
    assert_eq!(heard(&other).await.metadata.response_code, ResponseCode::NoError);
}

/// Two that ask each other for what neither knows come to an end, and soon.
#[tokio::test]
async fn a_question_does_not_go_in_circles() {
    let (plans, seen) = watch::channel(plan());
    let cancel = CancellationToken::new();
    // The address of the one must be known before the other has it.
    let first = std::net::UdpSocket::bind(local()).unwrap().local_addr().unwrap();
    let stand = Stand::new(vec![first]).await;
    let config = DnsConfig { listen: first, upstreams: vec![stand.server.listen], rate: 1_000 };
    let other = DnsServer::start(config, seen, Arc::clone(&stand.metrics), cancel.clone()).await.unwrap();
    let message = stand.ask("www.example.com.", RecordType::A).await;
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert!(stand.counted("Failed") <= 3, "{}", stand.counted("Failed"));
    cancel.cancel();
    drop((other, plans));
}

#[tokio::test]
async fn an_upstream_that_is_this_server_is_refused() {
    assert!(is_own("0.0.0.0:53".parse().unwrap(), "127.0.0.1:53".parse().unwrap()));
    assert!(!is_own("0.0.0.0:53".parse().unwrap(), "127.0.0.1:54".parse().unwrap()));
    assert!(!is_own("127.0.0.1:53".parse().unwrap(), "127.0.0.53:53".parse().unwrap()));
    let listen = std::net::UdpSocket::bind(local()).unwrap().local_addr().unwrap();
    let config = DnsConfig { listen, upstreams: vec![listen], rate: 1 };
    let (_plans, seen) = watch::channel(plan());
    let failed = DnsServer::start(config, seen, Arc::default(), CancellationToken::new()).await.unwrap_err();
    assert!(failed.to_string().contains("--dns-upstream"), "{failed}");
}

#[tokio::test]
async fn a_server_that_is_stopped_ends() {
    let mut stand = Stand::new(Vec::new()).await;
    let _idle = TcpStream::connect(stand.server.listen).await.unwrap();
    stand.cancel.cancel();
    tokio::time::timeout(LIMIT, async {
        while let Some(ended) = stand.server.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    })
    .await
    .unwrap();
}

/// The numbers that SECURITY.md tells are these.
#[test]
fn the_limits_are_those_of_the_document() {
    let number = |number: usize| match (number / 1_000, number % 1_000) {
        (0, below) => below.to_string(),
        (thousands, below) => format!("{thousands},{below:03}"),
    };
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md")).unwrap();
    for limit in [
        format!("at most {} of them told apart", number(Sources::MOST)),
        format!("{} bytes by UDP", number(question::DATAGRAM.into())),
        format!(
            "{} connections, {} of one source, {} s each between messages",
            number(tcp::CONNECTIONS),
            tcp::CONNECTIONS_OF_ONE,
            PATIENCE.as_secs()
        ),
        format!("{} s for each upstream", upstream::WAIT.as_secs()),
        format!(
            "{} wait that came by UDP, {} of one source, and {} that came by TCP, {} of one source",
            Waiting::UDP.0,
            Waiting::UDP.1,
            Waiting::TCP.0,
            Waiting::TCP.1
        ),
    ] {
        assert!(page.contains(&limit), "SECURITY.md does not say: {limit}");
    }
}

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use super::*;
use crate::identity::source::IdentitySource;
use crate::identity::testing::{Domain, authority};
use crate::model::import::Imported;
use crate::model::service::{ClientPattern, RemoteService};
use crate::model::{NamespacedName, ServiceName};
use crate::observe::metrics::{Lead, Metrics};
use crate::plan::fixtures::{id, remote_cart, td};
use crate::plan::xds::testing::{offered, xds_of};
use crate::plan::xds::view::ClientKind;
use crate::plan::xds::{ResourceType, Xds};
use crate::proto::workload::X509svidResponse;
use crate::proto::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Refusal};

const SOON: Duration = Duration::from_secs(10);
/// How long a client may leave its answers unread.
const PATIENCE: Duration = Duration::from_millis(700);
const FRONTEND: &str = "spiffe://east.example/ns/web/sa/frontend";

/// Services of west, each for one client.
fn serving(services: &[(&str, &str)]) -> Option<Arc<Xds>> {
    let offers = services.iter().map(|(name, client)| {
        let service = RemoteService {
            name: ServiceName::new("shop", name).unwrap(),
            clients: [ClientPattern::parse(client).unwrap()].into(),
            ..remote_cart()
        };
        let host = service.name.host(&td("west.example")).unwrap();
        let imported = Imported {
            object: NamespacedName::new("entente-system", host),
            uid: String::new(),
            generation: 1,
            trust_domain: td("west.example"),
            service: Arc::new(service),
        };
        offered(imported, &["127.64.0.1"])
    });
    Some(Arc::new(xds_of(offers)))
}

/// An agent of east that serves by TLS and by a socket for the frontend.
struct Stand {
    east: Domain,
    source: IdentitySource,
    served: watch::Sender<Option<Arc<Xds>>>,
    clients: Clients,
    metrics: Arc<Metrics>,
    running: Served,
    folder: tempfile::TempDir,
    _cancel: tokio_util::sync::DropGuard,
}

impl Stand {
    async fn new() -> Self {
        let east = Domain::new("east.example");
        let source = east.source(&[]);
        let folder = tempfile::tempdir().unwrap();
        let (served, serving) = watch::channel(None);
        let metrics = Arc::new(Metrics::default());
        let settings = Settings {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            sockets: vec![Socket { path: folder.path().join("run/x.sock"), id: id(FRONTEND) }],
            patience: PATIENCE,
        };
        let cancel = CancellationToken::new();
        let clients = Clients::default();
        let sources = Sources {
            identity: source.clone(),
            served: serving,
            clients: clients.clone(),
            metrics: Arc::clone(&metrics),
        };
        let running = start(settings, sources, cancel.clone()).await.unwrap();
        Self { east, source, served, clients, metrics, running, folder, _cancel: cancel.drop_guard() }
    }

    async fn by_socket(&self) -> Client {
        Client::open(self.connection(1 << 20)).await.unwrap()
    }

    /// A connection by the socket, on which so much is taken that nobody reads.
    fn connection(&self, window: u32) -> Channel {
        let path = self.folder.path().join("run/x.sock");
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { std::io::Result::Ok(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://agent").initial_stream_window_size(window);
        endpoint.connect_with_connector_lazy(connector)
    }

    /// Waits until so many streams are open.
    async fn serves(&self, streams: usize) {
        let all = async {
            while self.clients.now().len() != streams {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, all).await.unwrap_or_else(|_| panic!("{} streams are open", self.clients.now().len()));
    }

    /// As this workload, whose authority may be another's.
    async fn by_tls(&self, domain: &Domain, workload: &str) -> Result<Client, String> {
        let channel = self.channel(domain, workload).await?;
        Client::open(channel).await.map_err(|status| status.to_string())
    }

    /// Its connection, on which nothing is asked yet.
    async fn channel(&self, domain: &Domain, workload: &str) -> Result<Channel, String> {
        let response = X509svidResponse { svids: vec![domain.svid(workload, "")], ..Default::default() };
        let svids = crate::identity::workload::read(response, None).unwrap();
        let source = IdentitySource::empty();
        source.publish(svids);
        // Whom it takes the agent for is no matter here.
        let config = crate::identity::peer_tls::dialling_anybody(&source);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let address = self.running.listen.unwrap();
        let connect = tower::service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let name = ServerName::try_from("agent").unwrap();
                let stream = TcpStream::connect(address).await?;
                std::io::Result::Ok(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://agent");
        endpoint.connect_with_connector(connect).await.map_err(|error| error.to_string())
    }

    fn count(&self, metric: &str) -> Option<String> {
        let text = self.metrics.encode(Lead::default(), true, None).unwrap();
        text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')).map(str::to_owned)
    }
}

struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    answers: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    async fn open(channel: Channel) -> Result<Self, tonic::Status> {
        let (requests, out) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let answers = client.delta_aggregated_resources(ReceiverStream::new(out)).await?.into_inner();
        Ok(Self { requests, answers })
    }

    async fn ask(&self, subscribe: Vec<String>) {
        let request = DeltaDiscoveryRequest {
            type_url: ResourceType::Listener.url().to_owned(),
            resource_names_subscribe: subscribe,
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The first labels of what came and went with the next answer.
    async fn told(&mut self) -> (Vec<String>, Vec<String>) {
        let answer = timeout(SOON, self.answers.message()).await.unwrap().unwrap().unwrap();
        let short = |name: &String| name.split('.').next().unwrap().to_owned();
        let came = answer.resources.iter().map(|resource| short(&resource.name)).collect();
        (came, answer.removed_resources.iter().map(short).collect())
    }

    async fn ended(&mut self) -> Code {
        loop {
            match timeout(SOON, self.answers.message()).await.expect("it is not ended") {
                Ok(None) => return Code::Ok,
                Ok(Some(_)) => {}
                Err(status) => return status.code(),
            }
        }
    }
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test]
async fn a_client_follows_what_its_id_may_call() {
    let stand = Stand::new().await;
    let mut client = stand.by_socket().await;
    client.ask(Vec::new()).await;
    // Nothing is said before it is known what there is: an empty answer would take away what the client runs with.
    let silence = timeout(Duration::from_millis(300), client.answers.message()).await;
    assert!(silence.is_err(), "{silence:?}");
    stand.served.send_replace(serving(&[("a", FRONTEND), ("b", "spiffe://east.example/other")]));
    assert_eq!(client.told().await, (names(&["a"]), names(&[])));
    stand.served.send_replace(serving(&[("a", FRONTEND), ("b", FRONTEND)]));
    assert_eq!(client.told().await, (names(&["b"]), names(&[])));
    stand.served.send_replace(serving(&[("b", FRONTEND)]));
    assert_eq!(client.told().await, (names(&[]), names(&["a"])));
    assert_eq!(stand.count("entente_xds_answers_total{type=\"listener\"}").as_deref(), Some("3"));
}

#[tokio::test]
async fn a_client_is_who_its_svid_says() {
    let stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND), ("b", "spiffe://east.example/other")]));
    for (workload, sees) in [(FRONTEND, "a"), ("spiffe://east.example/other", "b")] {
        let mut client = stand.by_tls(&stand.east, workload).await.unwrap();
        client.ask(Vec::new()).await;
        assert_eq!(client.told().await, (names(&[sees]), names(&[])), "{workload}");
    }
    let west = Domain::new("west.example");
    let forged = Domain { td: td("east.example"), ca: authority(), agent: stand.east.agent.clone() };
    for (domain, workload) in [(&west, "spiffe://west.example/ns/web/sa/frontend"), (&forged, FRONTEND)] {
        assert!(stand.by_tls(domain, workload).await.is_err(), "{workload} is let in");
    }
}

/// A client whose authority is revoked loses its stream, though its connection was made in time.
#[tokio::test]
async fn a_client_whose_authority_is_gone_is_served_no_more() {
    let mut stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND)]));
    let mut client = stand.by_tls(&stand.east, FRONTEND).await.unwrap();
    client.ask(Vec::new()).await;
    assert_eq!(client.told().await, (names(&["a"]), names(&[])));
    stand.east.ca = authority();
    stand.source.publish(stand.east.svids(&[]));
    assert_ne!(client.ended().await, Code::ResourceExhausted);
    stand.served.send_replace(serving(&[("b", FRONTEND)]));
    assert!(!matches!(client.answers.message().await, Ok(Some(_))));
}

/// The same where it was connected, and had asked for nothing yet.
#[tokio::test]
async fn a_connection_whose_authority_is_gone_opens_no_stream() {
    let mut stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND)]));
    let channel = stand.channel(&stand.east, FRONTEND).await.unwrap();
    // Once it has been refused a stream, it has been let in.
    let mut request = tonic::Request::new(tokio_stream::empty::<DeltaDiscoveryRequest>());
    request.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
    let refused = client.delta_aggregated_resources(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    stand.east.ca = authority();
    stand.source.publish(stand.east.svids(&[]));
    // Its channel would connect again, and fail.
    let served = async {
        loop {
            match Client::open(channel.clone()).await {
                Ok(mut client) => {
                    client.ask(Vec::new()).await;
                    if timeout(SOON, client.answers.message()).await.is_ok_and(|told| told.is_ok()) {
                        return;
                    }
                }
                Err(_) => std::future::pending().await,
            }
        }
    };
    assert!(timeout(Duration::from_secs(1), served).await.is_err(), "it is served");
}

/// Who says nothing takes the places of its own network alone.
#[tokio::test]
async fn silent_connections_of_one_source_keep_nobody_out() {
    let stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND)]));
    let mut silent = Vec::new();
    for _ in 0..300 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(stand.running.listen.unwrap()).await.unwrap());
    }
    let came = timeout(SOON / 2, stand.by_tls(&stand.east, FRONTEND)).await;
    came.expect("it waits for those who say nothing").unwrap();
}

#[tokio::test]
async fn who_asks_for_too_much_loses_its_stream_alone() {
    let stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND)]));
    let (mut greedy, mut modest) = (stand.by_socket().await, stand.by_socket().await);
    greedy.ask((0..15_000).map(|n| n.to_string()).collect()).await;
    greedy.ask((15_000..30_000).map(|n| n.to_string()).collect()).await;
    assert_eq!(greedy.ended().await, Code::ResourceExhausted);
    assert_eq!(stand.count("entente_xds_violations_total").as_deref(), Some("1"));
    modest.ask(Vec::new()).await;
    assert_eq!(modest.told().await, (names(&["a"]), names(&[])));
}

/// What a client refuses is kept in its words until it takes another answer, and forgotten with its stream.
#[tokio::test]
async fn what_a_client_refuses_is_told_while_it_stands() {
    let stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND)]));
    let mut client = stand.by_socket().await;
    client.ask(Vec::new()).await;
    let url = ResourceType::Listener.url().to_owned();
    let answer = |nonce: String, why: Option<&str>| DeltaDiscoveryRequest {
        type_url: url.clone(),
        response_nonce: nonce,
        error_detail: why.map(|why| Refusal { code: 13, message: why.to_owned() }),
        ..Default::default()
    };
    let first = timeout(SOON, client.answers.message()).await.unwrap().unwrap().unwrap();
    client.requests.send(answer(first.nonce, Some("cannot bind 127.64.0.1"))).await.unwrap();
    let refused = |stand: &Stand| -> Vec<String> {
        let all = stand.clients.now();
        assert!(all.iter().all(|client| client.spiffe_id == FRONTEND), "{all:?}");
        all.iter().flat_map(|client| client.refused.values()).map(|one| one.message.clone()).collect()
    };
    let until = async |wanted: &[&str]| {
        let all = async {
            while refused(&stand) != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, all).await.unwrap_or_else(|_| panic!("{:?}", stand.clients.now()));
    };
    until(&["cannot bind 127.64.0.1"]).await;
    assert_eq!(stand.count("entente_xds_nacks_total{type=\"listener\"}").as_deref(), Some("1"));
    stand.served.send_replace(serving(&[("b", FRONTEND)]));
    let second = timeout(SOON, client.answers.message()).await.unwrap().unwrap().unwrap();
    client.requests.send(answer(second.nonce, None)).await.unwrap();
    until(&[]).await;
    assert_eq!(stand.clients.now().len(), 1);
    drop(client);
    stand.serves(0).await;
}

/// That a client takes other resources of the type says nothing of one that it refuses: that stands until it takes that one, or is
/// told that it is gone. Several stand beside each other.
#[tokio::test]
async fn a_refusal_stands_while_others_are_taken() {
    let stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND), ("b", FRONTEND)]));
    let mut client = stand.by_socket().await;
    client.ask(Vec::new()).await;
    let url = ResourceType::Listener.url().to_owned();
    let word = |nonce: String, why: Option<&str>| DeltaDiscoveryRequest {
        type_url: url.clone(),
        response_nonce: nonce,
        error_detail: why.map(|why| Refusal { code: 13, message: why.to_owned() }),
        ..Default::default()
    };
    let host = |name: &str| format!("{name}.shop.west.example");
    let cannot = |name: &str| format!("{}:18080: cannot bind", host(name));
    let refused = || -> Vec<String> {
        let all = stand.clients.now();
        all.into_iter().flat_map(|client| client.refused.into_values()).flat_map(|one| one.services).collect()
    };
    let until = async |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|name| host(name)).collect();
        let all = async {
            while refused() != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, all).await.unwrap_or_else(|_| panic!("{:?}", stand.clients.now()));
    };
    let first = timeout(SOON, client.answers.message()).await.unwrap().unwrap().unwrap();
    client.requests.send(word(first.nonce, Some(&cannot("a")))).await.unwrap();
    until(&["a"]).await;
    stand.served.send_replace(serving(&[("a", FRONTEND), ("b", FRONTEND), ("c", FRONTEND), ("d", FRONTEND)]));
    let second = timeout(SOON, client.answers.message()).await.unwrap().unwrap().unwrap();
    client.requests.send(word(second.nonce, Some(&cannot("c")))).await.unwrap();
    until(&["a", "c"]).await;
    stand.served.send_replace(serving(&[("a", FRONTEND), ("c", FRONTEND), ("d", FRONTEND)]));
    let third = timeout(SOON, client.answers.message()).await.unwrap().unwrap().unwrap();
    client.requests.send(word(third.nonce, None)).await.unwrap();
    // What is asked for after that is heard after it.
    let clusters = ResourceType::Cluster.url().to_owned();
    client.requests.send(DeltaDiscoveryRequest { type_url: clusters, ..Default::default() }).await.unwrap();
    let asked = async {
        while stand.clients.now()[0].subscriptions.len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, asked).await.unwrap();
    assert_eq!(refused(), [host("a"), host("c")]);
    stand.served.send_replace(serving(&[("c", FRONTEND)]));
    loop {
        let answer = timeout(SOON, client.answers.message()).await.unwrap().unwrap().unwrap();
        let is_of_listeners = answer.type_url == url;
        let ack = DeltaDiscoveryRequest { type_url: answer.type_url, ..word(answer.nonce, None) };
        client.requests.send(ack).await.unwrap();
        if is_of_listeners {
            break;
        }
    }
    until(&["c"]).await;
}

/// A server of which it is not known what its proxy needs is told nothing; others are.
#[test]
fn who_needs_what_is_not_known_sees_nothing() {
    let other = "spiffe://east.example/other";
    let mut xds = Xds::clone(&serving(&[("a", FRONTEND), ("b", other)]).unwrap());
    xds.unknown.insert(id(FRONTEND));
    let (served, serving) = watch::channel(Some(Arc::new(xds.clone())));
    let views = views::Views::new(serving);
    assert!(views.of(&id(FRONTEND), ClientKind::Envoy).is_none());
    assert!(views.of(&id(other), ClientKind::Envoy).is_some());
    xds.unknown.clear();
    served.send_replace(Some(Arc::new(xds)));
    assert!(views.of(&id(FRONTEND), ClientKind::Envoy).is_some());
}

#[tokio::test]
async fn the_socket_is_for_our_user_and_group() {
    use std::os::unix::fs::PermissionsExt as _;
    let stand = Stand::new().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let path = stand.folder.path().join("run/x.sock");
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o660, 0o710));
    for wrong in ["/x.sock", "=spiffe://td/a", "/x.sock=spiffe://td", "/x.sock=td/a"] {
        assert!(wrong.parse::<Socket>().is_err(), "{wrong}");
    }
}

/// Statuses are told what is refused of which service: at once, and then with rests between.
#[tokio::test]
async fn what_a_client_refuses_is_told_of_the_service_that_it_names() {
    let stand = Stand::new().await;
    let mut refusals = stand.clients.refusals();
    stand.served.send_replace(serving(&[("a", FRONTEND), ("b", "spiffe://east.example/other")]));
    let mut client = stand.by_socket().await;
    client.ask(Vec::new()).await;
    let first = timeout(SOON, client.answers.message()).await.unwrap().unwrap().unwrap();
    let refuse = |message: &str| DeltaDiscoveryRequest {
        type_url: ResourceType::Listener.url().to_owned(),
        response_nonce: first.nonce.clone(),
        error_detail: Some(Refusal { code: 13, message: message.to_owned() }),
        ..Default::default()
    };
    // What the client does not see is none of its business.
    let words = "a.shop.west.example:18080: cannot bind; b.shop.west.example:18080: nor that";
    client.requests.send(refuse(words)).await.unwrap();
    timeout(SOON, refusals.changed()).await.unwrap().unwrap();
    let told = Arc::clone(&refusals.borrow_and_update());
    assert_eq!(told.keys().collect::<Vec<_>>(), ["a.shop.west.example"]);
    let refusal = told["a.shop.west.example"].first().unwrap();
    assert_eq!(
        (refusal.client.as_str(), refusal.kind, refusal.message.as_str()),
        (FRONTEND, "listener", words)
    );
    for other in ["a.shop.west.example:18080: not again", "a.shop.west.example:18080: and again"] {
        client.requests.send(refuse(other)).await.unwrap();
    }
    let soon = timeout(Duration::from_millis(500), refusals.changed()).await;
    assert!(soon.is_err(), "what changes soon after is told later");
}

/// A client that leaves its answers unread loses its connection, and nobody else waits for it.
#[tokio::test]
async fn who_does_not_read_is_cut_off_alone() {
    let stand = Stand::new().await;
    let many: Vec<String> = (0..3_000).map(|n| format!("s{n:04}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), FRONTEND)).collect();
    stand.served.send_replace(serving(&many));
    let mut modest = stand.by_socket().await;
    let mut slow = Client::open(stand.connection(65_535)).await.unwrap();
    slow.ask(Vec::new()).await;
    stand.serves(2).await;
    modest.ask(vec!["s0001.shop.west.example:18080".to_owned()]).await;
    assert_eq!(modest.told().await, (names(&["s0001"]), names(&[])));
    stand.serves(1).await;
    assert_eq!(stand.count("entente_xds_violations_total").as_deref(), Some("1"));
    assert_ne!(slow.ended().await, Code::Ok, "its connection is gone");
    stand.served.send_replace(serving(&many[2..]));
    assert_eq!(modest.told().await, (names(&[]), names(&["s0001"])));
    // Who reads, however little at a time, is no such client.
    let mut reader = Client::open(stand.connection(65_535)).await.unwrap();
    reader.ask(Vec::new()).await;
    let mut came = 0;
    while came < many.len() - 2 {
        came += reader.told().await.0.len();
    }
}

/// One connection has so many streams and one ID so many connections; others come in all the while.
#[tokio::test]
async fn one_client_takes_no_more_than_its_places() {
    let stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND), ("b", "spiffe://east.example/other")]));
    let channel = stand.connection(65_535);
    let mut streams = Vec::new();
    for _ in 0..16 {
        let mut stream = Client::open(channel.clone()).await.unwrap();
        stream.ask(Vec::new()).await;
        assert_eq!(stream.told().await, (names(&["a"]), names(&[])));
        streams.push(stream);
    }
    let one_more = timeout(Duration::from_millis(300), Client::open(channel.clone())).await;
    assert!(one_more.is_err(), "a seventeenth stream is open");
    streams.clear();
    stand.serves(0).await;
    drop(channel);

    let path = stand.folder.path().join("run/x.sock");
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(UnixStream::connect(&path).await.unwrap());
        tokio::task::yield_now().await;
    }
    // Those beyond its places are closed without a word; the others wait for it to speak.
    let mut byte = [0];
    let mut closed = 0;
    for stream in &mut idle {
        let read = tokio::io::AsyncReadExt::read(stream, &mut byte);
        closed += usize::from(matches!(timeout(Duration::from_millis(2), read).await, Ok(Ok(0) | Err(_))));
    }
    assert!((44..=60).contains(&closed), "{closed} of 300 connections were refused");
    let mut other = stand.by_tls(&stand.east, "spiffe://east.example/other").await.unwrap();
    other.ask(Vec::new()).await;
    assert_eq!(other.told().await, (names(&["b"]), names(&[])));
    drop(idle);
    let again = async {
        loop {
            if let Ok(mut client) = Client::open(stand.connection(65_535)).await {
                client.ask(Vec::new()).await;
                return client.told().await;
            }
        }
    };
    assert_eq!(timeout(SOON, again).await.unwrap(), (names(&["a"]), names(&[])));
}

/// All clients at once, again and again, leave nothing behind.
#[tokio::test]
async fn clients_that_come_again_and_again_leave_nothing() {
    let stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND)]));
    for _ in 0..3 {
        let storm = (0..60).map(|_| async {
            let mut client = stand.by_socket().await;
            client.ask(Vec::new()).await;
            client.told().await
        });
        for told in futures::future::join_all(storm).await {
            assert_eq!(told, (names(&["a"]), names(&[])));
        }
    }
    stand.serves(0).await;
}

/// Names that nobody serves, on many streams, are bounded for all of an ID's streams together; and so are requests that never end.
#[tokio::test]
async fn endless_names_on_many_streams_are_bounded() {
    let stand = Stand::new().await;
    stand.served.send_replace(serving(&[("a", FRONTEND), ("b", "spiffe://east.example/other")]));
    let (mut streams, mut refused) = (Vec::new(), 0);
    for stream in 0..12 {
        let mut greedy = stand.by_socket().await;
        // 19,000 names of 400 bytes: some nine megabytes a stream.
        for part in 0..10 {
            let many = (0..1_900).map(|n| format!("{stream}-{part}-{n:0>380}")).collect();
            greedy.ask(many).await;
            match timeout(SOON, greedy.answers.message()).await.unwrap() {
                Ok(Some(answer)) => assert_eq!(answer.removed_resources.len(), 1_900),
                ended => {
                    assert_eq!(ended.unwrap_err().code(), Code::ResourceExhausted);
                    refused += 1;
                    break;
                }
            }
        }
        streams.push(greedy);
    }
    assert!((2..8).contains(&refused), "{refused} of 12 streams were ended");
    let mut other = stand.by_tls(&stand.east, "spiffe://east.example/other").await.unwrap();
    other.ask(Vec::new()).await;
    assert_eq!(other.told().await, (names(&["b"]), names(&[])));
    drop(streams);
    stand.serves(1).await;
    let mut modest = stand.by_socket().await;
    modest.ask((0..1_900).map(|n| format!("{n:0>380}")).collect()).await;
    let answer = timeout(SOON, modest.answers.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.removed_resources.len(), 1_900, "what others had is free again");
}

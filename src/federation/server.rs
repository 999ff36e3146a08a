//! The listener that faces peers: handshakes, bounded in number, time and rate, then the exchange for whoever proved to
//! be a peer's agent. A stranger that is refused is evidence for the log and changes nothing else.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::link::{Connection, Proof, Stream};
use super::manager::{Hub, KEEPALIVE, MAX_FRAME, QUEUE, Timings};
use super::relay::{Passing, RelayDoor};
use super::wire::Wire;
use crate::enrol::{self, Desk};
use crate::identity::peer_tls::{ALPN_HTTP2, PeerRefusal, judge};
use crate::identity::verify::{Role, moment};
use crate::model::TrustDomain;
use crate::proto::federation::v1::Frame;
use crate::proto::federation::v1::federation_server::{Federation, FederationServer};
use crate::rate::{self, Place, Sources};

/// Who has not yet shown who it is: in all, and of one source. Whoever is silent takes no more than its part, and beyond it
/// is closed.
const UNPROVEN: usize = 512;
const UNPROVEN_OF_ONE: usize = 32;
/// Connections of one peer at one time: its agents, and what they have not closed yet.
const CONNECTIONS_A_PEER: usize = 16;
/// What is still read of a client that was refused, so that it can read the alert (RFC 8446, section 6.1: a reset
/// would overtake it), and for how long.
const LINGER_BYTES: u64 = 64 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// Where peers come in.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    /// While it is false, whoever connects is passed on, or sent away before TLS.
    pub(super) open: watch::Receiver<bool>,
    pub(super) tls: Arc<ServerConfig>,
    /// Where joiners are received, while an invite is open.
    pub(super) desk: Option<Arc<Desk>>,
    pub(super) relay: Option<Relay>,
}

/// What passes between replicas.
pub(super) struct Relay {
    pub(super) passing: Passing,
    pub(super) door: RelayDoor,
    /// What comes of both.
    pub(super) taken: mpsc::Receiver<(Wire, SocketAddr)>,
}

/// Serves until `cancel`.
pub(super) async fn serve(
    door: Door,
    hub: Arc<Hub>,
    timings: Timings,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (ready, connections) = mpsc::channel(16);
    let service = FederationServer::new(Exchange(Arc::clone(&hub))).max_decoding_message_size(MAX_FRAME);
    let Door { listener, open, tls, desk, relay } = door;
    let (passing, at_relay, taken) = match relay {
        Some(Relay { passing, door, taken }) => (Some(passing), Some(door), taken),
        None => (None, None, mpsc::channel(1).1),
    };
    let accepting = Acceptor { tls, desk, open, hub, timings, ready, passing }.run(listener, taken);
    let taking = async {
        match at_relay {
            Some(door) => door.run().await,
            None => std::future::pending().await,
        }
    };
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(4)
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(connections).map(Ok::<_, io::Error>));
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        () = accepting => Ok(()),
        () = taking => Ok(()),
        result = serving => result,
    }
}

struct Acceptor {
    tls: Arc<ServerConfig>,
    desk: Option<Arc<Desk>>,
    open: watch::Receiver<bool>,
    hub: Arc<Hub>,
    timings: Timings,
    ready: mpsc::Sender<PeerConnection>,
    /// Where this replica does not lead.
    passing: Option<Passing>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener, mut taken: mpsc::Receiver<(Wire, SocketAddr)>) {
        let (mut handshakes, mut passed) = (JoinSet::new(), JoinSet::new());
        let timings = self.timings;
        let places = rate::Places::new(UNPROVEN, UNPROVEN_OF_ONE);
        let sources = Sources::new(timings.connections_per_second, timings.connections_burst);
        loop {
            tokio::select! {
                Some(_) = handshakes.join_next(), if !handshakes.is_empty() => {}
                Some(_) = passed.join_next(), if !passed.is_empty() => {}
                // What another replica passes on is within the rate of where it came from; what waited here has been counted.
                Some((wire, address)) = taken.recv() => {
                    let is_counted = matches!(wire, Wire::Left(_)) || sources.allow(address.ip());
                    if is_counted && *self.open.borrow() && let Some(place) = places.take(address.ip()) {
                        handshakes.spawn(self.handshake(wire, address.ip(), place));
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((tcp, address)) => {
                        if !sources.allow(address.ip()) {
                            continue;
                        }
                        if *self.open.borrow() {
                            let Some(place) = places.take(address.ip()) else { continue };
                            let _ = tcp.set_nodelay(true);
                            handshakes.spawn(self.handshake(Wire::Left(tcp), address.ip(), place));
                        } else if let Some(passing) = &self.passing {
                            passed.spawn(passing.clone().pass(tcp, address));
                        }
                        // else closed, not refused: to refuse in TLS is a verdict
                    }
                    Err(error) => {
                        // of this connection, or of the process (too many files): not of the listener
                        tracing::warn!(%error, "a connection of a peer cannot be accepted");
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }

    fn handshake(
        &self,
        wire: Wire,
        source: IpAddr,
        place: Place,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (tls, hub, desk) = (Arc::clone(&self.tls), Arc::clone(&self.hub), self.desk.clone());
        let (ready, timings) = (self.ready.clone(), self.timings);
        async move {
            let accepted = timeout(timings.handshake, accept(tls, desk, wire, source)).await;
            let stream = match accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(Accepted::Peer(stream)) => *stream,
                Ok(Accepted::Joiner(stream, desk)) => return desk.receive(*stream, source).await,
                Err(cause) => return hub.evidence(source, &cause),
            };
            match PeerConnection::new(stream, &hub, timings.handshake) {
                Ok(connection) => {
                    drop(place);
                    let _ = ready.send(connection).await;
                }
                Err(cause) => hub.evidence(source, &cause),
            }
        }
    }
}

/// Who a handshake was made with, by the protocol that it asked for.
enum Accepted {
    Peer(Box<TlsStream<Wire>>),
    Joiner(Box<TlsStream<Wire>>, Arc<Desk>),
}

async fn accept(
    tls: Arc<ServerConfig>,
    desk: Option<Arc<Desk>>,
    wire: Wire,
    source: IpAddr,
) -> io::Result<Accepted> {
    let mut hello = std::pin::pin!(LazyConfigAcceptor::new(rustls::server::Acceptor::default(), wire));
    let start = match hello.as_mut().await {
        Ok(start) => start,
        Err(cause) => return part(cause, hello.take_io()).await,
    };
    let joins = start.client_hello().alpn().is_some_and(|mut protocols| protocols.any(|p| p == enrol::ALPN));
    // Without an open invite, that protocol is as unknown here as any other.
    let desk = desk.filter(|_| joins).filter(|desk| {
        let is_open = desk.is_open();
        if !is_open {
            desk.stray(source);
        }
        is_open
    });
    if desk.as_ref().is_some_and(|desk| !desk.admits(source)) {
        return Err(io::Error::other("too many joiners"));
    }
    let config = desk.as_ref().map_or(tls, |desk| desk.config());
    match (start.into_stream(config).into_fallible().await, desk) {
        (Ok(stream), None) => Ok(Accepted::Peer(Box::new(stream))),
        (Ok(stream), Some(desk)) => Ok(Accepted::Joiner(Box::new(stream), desk)),
        (Err((cause, wire)), _) => part(cause, Some(wire)).await,
    }
}

/// Lets a client that was refused read why.
async fn part<T>(cause: io::Error, wire: Option<Wire>) -> io::Result<T> {
    if let Some(mut wire) = wire {
        let _ = wire.shutdown().await;
        let mut rest = wire.take(LINGER_BYTES);
        let _ = timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    }
    Err(cause)
}

/// Who is at the other end of a connection; the handler gets it with each call.
#[derive(Clone)]
pub(super) struct Peer {
    proof: Proof,
    used: Arc<AtomicBool>,
    /// Closes the connection.
    close: CancellationToken,
    /// Cancelled once it is closed.
    gone: CancellationToken,
}

/// A connection of a peer's agent. It carries one exchange: it closes when that ends, or where none begins in time.
struct PeerConnection {
    stream: TlsStream<Wire>,
    peer: Peer,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    unused: Pin<Box<Sleep>>,
    _gone: DropGuard,
    _place: OwnedSemaphorePermit,
}

impl PeerConnection {
    fn new(stream: TlsStream<Wire>, hub: &Hub, patience: Duration) -> io::Result<Self> {
        let connection = stream.get_ref().1;
        if connection.alpn_protocol() != Some(ALPN_HTTP2) {
            return Err(io::Error::other("the client does not speak HTTP/2 (ALPN h2)"));
        }
        let chain: Vec<_> = connection
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|c| c.clone().into_owned())
            .collect();
        let at = moment(crate::clock::now());
        let id = hub.judge(&chain, at).map_err(io::Error::other)?;
        let place = hub
            .place(id.trust_domain())
            .ok_or_else(|| io::Error::other(format!("{id} has {CONNECTIONS_A_PEER} connections already")))?;
        let proof = Proof { id, chain, role: Role::Client, at };
        let (close, gone) = (CancellationToken::new(), CancellationToken::new());
        Ok(Self {
            stream,
            closed: Box::pin(close.clone().cancelled_owned()),
            unused: Box::pin(sleep(patience)),
            _gone: gone.clone().drop_guard(),
            peer: Peer { proof, used: Arc::new(AtomicBool::new(false)), close, gone },
            _place: place,
        })
    }
}

impl Hub {
    fn judge(
        &self,
        chain: &[CertificateDer<'static>],
        at: UnixTime,
    ) -> Result<crate::model::SpiffeId, PeerRefusal> {
        judge(&self.source, &self.authorize, chain, Role::Client, at)
    }

    fn place(&self, trust_domain: &TrustDomain) -> Option<OwnedSemaphorePermit> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let semaphore = places
            .entry(trust_domain.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(CONNECTIONS_A_PEER)));
        Arc::clone(semaphore).try_acquire_owned().ok()
    }

    /// Logs that someone was refused, at most once a second.
    fn evidence(&self, source: IpAddr, cause: &io::Error) {
        let mut limit = self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        if limit.take(self.origin.elapsed()) {
            tracing::info!(%source, %cause, "a connection to the peers' port was refused");
        }
    }
}

/// Places for the connections of each peer.
pub(super) type Places = Mutex<BTreeMap<TrustDomain, Arc<Semaphore>>>;

impl Connected for PeerConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !self.peer.used.load(Ordering::Relaxed) && self.unused.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The gRPC service: hands each stream to the actor of its peer.
struct Exchange(Arc<Hub>);

#[tonic::async_trait]
impl Federation for Exchange {
    type ExchangeStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<Frame, Status>> + Send + 'static>>;

    async fn exchange(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let Peer { proof, used, close, gone } = peer.ok_or_else(|| Status::internal("no peer"))?;
        if used.swap(true, Ordering::Relaxed) {
            return Err(Status::failed_precondition("a connection carries one exchange"));
        }
        // from here on, the connection ends with the exchange
        let connection = Connection::Accepted { close: close.drop_guard(), gone };
        // time has passed since the handshake
        self.0.judge(&proof.chain, proof.at).map_err(|e| Status::permission_denied(e.to_string()))?;
        let (out, frames) = mpsc::channel(QUEUE);
        let trust_domain = proof.id.trust_domain().clone();
        let stream = Stream { proof, frames: request.into_inner(), out, connection };
        if !self.0.hand_over(&trust_domain, stream) {
            return Err(Status::unavailable("not ready for an exchange"));
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(frames).map(Ok))))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::identity::peer_tls::server_config;
    use crate::identity::source::IdentitySource;
    use crate::identity::tls::provider;
    use crate::observe::testing::Logs;

    #[tokio::test]
    async fn who_comes_to_join_while_no_invite_is_open_is_logged() {
        let folder = tempfile::tempdir().unwrap();
        let timings = crate::store::DirectoryTimings::default();
        let store = crate::store::DirectoryStore::open(folder.path(), timings).unwrap();
        let store = crate::store::Store::Directory(store);
        let invites = enrol::Invites::new(store.clone(), "entente-system", "entente");
        let source = IdentitySource::empty();
        let worlds = crate::index::run::WorldHandle::new().0;
        let desk = Arc::new(Desk::new(&source, invites, store, worlds, Default::default()).unwrap());
        let tls = Arc::new(server_config(&source, Arc::new(|_| false)).unwrap());
        let logs = Logs::of_this_thread();
        for (protocol, logged) in [(ALPN_HTTP2, 0), (enrol::ALPN, 1), (enrol::ALPN, 2)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = rustls::ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            client.alpn_protocols = vec![protocol.to_vec()];
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
            let (tcp_there, _) = listener.accept().await.unwrap();
            let accepting = accept(
                Arc::clone(&tls),
                Some(Arc::clone(&desk)),
                Wire::Left(tcp_there),
                [192, 0, 2, 1].into(),
            );
            let connecting = connector.connect("inviter.test".try_into().unwrap(), tcp);
            let (accepted, connected) = tokio::join!(accepting, connecting);
            assert!(accepted.is_err() && connected.is_err());
            let said = logs.warnings();
            assert_eq!(said.matches("no invite is open").count(), logged, "{said}");
            assert_eq!(said.matches("source=192.0.2.1").count(), logged, "{said}");
        }
        for _ in 0..20 {
            desk.stray([192, 0, 2, 1].into());
        }
        assert!(logs.warnings().lines().count() < 10, "{}", logs.warnings());
    }
}

//! The server: its listeners, its gRPC service, and the end of streams whose proof does not hold any more.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::allowance::Allowances;
use super::clients::Clients;
use super::discovery::Discovery;
use super::door::{Places, TlsDoor, unix};
use super::here::Here;
use super::views::Views;
use crate::identity::client_tls;
use crate::identity::source::IdentitySource;
use crate::model::SpiffeId;
use crate::observe::metrics::Metrics;
use crate::plan::xds::Xds;
use crate::socket;

/// Streams of one connection.
const STREAMS: u32 = 16;
/// The bytes of requests that a client may send before they are read, on one stream and on a connection.
const WINDOW: u32 = 256 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A Unix socket, and whom it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    pub path: PathBuf,
    pub id: SpiffeId,
}

impl std::str::FromStr for Socket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form =
            || format!("{text:?} is not PATH=SPIFFE-ID, such as /run/entente/cart.sock=spiffe://td/cart");
        let (path, id) = text.split_once('=').ok_or_else(form)?;
        let id = SpiffeId::new(id).map_err(|error| format!("{}: {error}", form()))?;
        if path.is_empty() || id.path().is_empty() {
            return Err(form());
        }
        Ok(Self { path: path.into(), id })
    }
}

/// Where clients come in.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: Option<SocketAddr>,
    pub sockets: Vec<Socket>,
    /// How long a client may leave what it is sent unread, until its connection is ended.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: None, sockets: Vec::new(), patience: Duration::from_secs(30) }
    }
}

/// Why it cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen for xDS clients on {0}: {1}; choose another address (--xds-listen)")]
    Listen(SocketAddr, io::Error),
    #[error("--xds-socket: {0}")]
    Socket(#[from] socket::SocketError),
    #[error("TLS for xDS clients cannot be configured: {0}")]
    Tls(#[from] rustls::Error),
}

/// The running server.
#[derive(Debug)]
pub struct Served {
    /// Where it listens for clients with an SVID, if it does.
    pub listen: Option<SocketAddr>,
    /// Ends after cancellation, or where a listener is lost.
    pub tasks: JoinSet<()>,
}

/// What is served with what.
#[derive(Debug)]
pub struct Sources {
    /// Our SVID, and the bundle that clients are verified with.
    pub identity: IdentitySource,
    /// What is served; while it is nothing, clients wait.
    pub served: watch::Receiver<Option<Arc<Xds>>>,
    /// Where it is kept who is served.
    pub clients: Clients,
    pub metrics: Arc<Metrics>,
}

/// Listens, and serves until `cancel`.
///
/// # Errors
/// An address or path that cannot be listened on.
pub async fn start(
    settings: Settings,
    sources: Sources,
    cancel: CancellationToken,
) -> Result<Served, StartError> {
    let Sources { identity: source, served, clients, metrics } = sources;
    let mut tasks = JoinSet::new();
    let (ready, connections) = mpsc::channel(64);
    let (places, here) = (Arc::new(Places::new()), Here::default());
    let mut listen = None;
    if let Some(address) = settings.listen {
        let bound = TcpListener::bind(address).await.map_err(|error| StartError::Listen(address, error))?;
        listen = Some(bound.local_addr().map_err(|error| StartError::Listen(address, error))?);
        let door = TlsDoor {
            listener: bound,
            tls: Arc::new(client_tls::server_config(&source)?),
            source: source.clone(),
            places: Arc::clone(&places),
            here: here.clone(),
            ready: ready.clone(),
        };
        tasks.spawn(until(cancel.clone(), door.run()));
    }
    for Socket { path, id } in settings.sockets {
        let bound = socket::Bound::at(&path, 0o660).await?;
        let (places, ready) = (Arc::clone(&places), ready.clone());
        tasks.spawn(until(cancel.clone(), async move {
            let (listener, left) = bound.split();
            unix(listener, id, places, ready).await;
            drop(left);
        }));
    }
    tasks.spawn(until(cancel.clone(), clients.clone().tell()));
    tasks.spawn(until(cancel.clone(), here.watch_over(source)));
    let discovery = Discovery {
        views: Views::new(served),
        clients,
        metrics,
        allowances: Allowances::default(),
        patience: settings.patience,
        cancel: cancel.clone(),
    };
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .add_service(discovery)
        .serve_with_incoming(ReceiverStream::new(connections).map(Ok::<_, io::Error>));
    tasks.spawn(until(cancel, async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the xDS server failed");
        }
    }));
    Ok(Served { listen, tasks })
}

async fn until(cancel: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = task => {}
    }
}

//! Where clients come in: a TCP listener for whoever proves an ID of our own trust domain by TLS, bounded in number, time and
//! rate; and Unix sockets, each for one ID.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::caller::{CallerConnection, Proof};
use super::here::Here;
use crate::identity::client_tls;
use crate::identity::source::IdentitySource;
use crate::identity::verify::moment;
use crate::model::SpiffeId;
use crate::rate::{self, Place, Sources};

/// Who has not yet shown who it is: in all, and of one source, since a node has many clients. Whoever is silent takes no more
/// than its part, and beyond it is closed.
const UNPROVEN: usize = 1024;
const UNPROVEN_OF_ONE: usize = 64;
/// How long one may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections of one ID at one time: its Envoys and channels, on all of its machines.
const CONNECTIONS_OF_ONE: usize = 256;
/// Connections of all.
const CONNECTIONS: usize = 16_384;
/// How many of one source are taken at once, and each second: a node has many clients.
const BURST: u32 = 500;
const EACH_SECOND: u32 = 100;

/// Places for connections: so many of each ID, and so many in all.
#[derive(Debug)]
pub(super) struct Places {
    all: Mutex<BTreeMap<SpiffeId, Arc<Semaphore>>>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self { all: Mutex::default() }
    }

    fn take(&self, id: &SpiffeId) -> io::Result<OwnedSemaphorePermit> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, places| places.available_permits() < CONNECTIONS_OF_ONE);
        let taken: usize = all.values().map(|places| CONNECTIONS_OF_ONE - places.available_permits()).sum();
        if taken >= CONNECTIONS {
            return Err(io::Error::other(format!("{CONNECTIONS} xDS clients are connected already")));
        }
        let places = all.entry(id.clone()).or_insert_with(|| Arc::new(Semaphore::new(CONNECTIONS_OF_ONE)));
        Arc::clone(places)
            .try_acquire_owned()
            .map_err(|_| io::Error::other(format!("{id} has {CONNECTIONS_OF_ONE} connections already")))
    }
}

/// What TLS clients come in by.
pub(super) struct TlsDoor {
    pub(super) listener: TcpListener,
    pub(super) tls: Arc<ServerConfig>,
    pub(super) source: IdentitySource,
    pub(super) places: Arc<Places>,
    pub(super) here: Here,
    pub(super) ready: mpsc::Sender<CallerConnection>,
}

impl TlsDoor {
    /// Takes clients in, for ever.
    pub(super) async fn run(self) {
        let mut handshakes = JoinSet::new();
        let unproven = rate::Places::new(UNPROVEN, UNPROVEN_OF_ONE);
        let sources = Sources::new(EACH_SECOND, BURST);
        loop {
            tokio::select! {
                Some(_) = handshakes.join_next(), if !handshakes.is_empty() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, address)) if sources.allow(address.ip()) => {
                        if let Some(place) = unproven.take(address.ip()) {
                            handshakes.spawn(self.handshake(tcp, address, place));
                        }
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "a connection of an xDS client cannot be accepted");
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }

    fn handshake(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        unproven: Place,
    ) -> impl Future<Output = ()> + Send + 'static {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        let (source, places, ready) = (self.source.clone(), Arc::clone(&self.places), self.ready.clone());
        let here = self.here.clone();
        async move {
            let taken = async {
                let _ = tcp.set_nodelay(true);
                let stream = timeout(HANDSHAKE, acceptor.accept(tcp)).await??;
                let chain: Vec<_> = stream
                    .get_ref()
                    .1
                    .peer_certificates()
                    .unwrap_or_default()
                    .iter()
                    .map(|one| one.clone().into_owned())
                    .collect();
                let at = moment(crate::clock::now());
                // It is here before it is judged: whenever our bundle changes, either of the two looks at the new one.
                let present = here.add(Proof { chain, at });
                let id = client_tls::judge(&source, present.chain(), at).map_err(io::Error::other)?;
                let place = places.take(&id)?;
                io::Result::Ok(CallerConnection::tls(stream, id, present, place))
            };
            match taken.await {
                Ok(connection) => {
                    drop(unproven);
                    let _ = ready.send(connection).await;
                }
                Err(cause) => {
                    tracing::debug!(source = %address, %cause, "a connection to the xDS port was refused");
                }
            }
        }
    }
}

/// Takes in whoever may open the socket, as this ID, for ever.
pub(super) async fn unix(
    listener: UnixListener,
    id: SpiffeId,
    places: Arc<Places>,
    ready: mpsc::Sender<CallerConnection>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match places.take(&id) {
                Ok(place) => {
                    let _ = ready.send(CallerConnection::unix(stream, id.clone(), place)).await;
                }
                Err(cause) => tracing::debug!(%cause, "a connection to an xDS socket was refused"),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection to an xDS socket cannot be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

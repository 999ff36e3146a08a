//! The listener of the leader, for what other replicas pass on.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::{Header, REACH, TAKEN, UNPROVEN, UNPROVEN_OF_ONE};
use crate::federation::wire::Wire;
use crate::rate::Places;

/// Where replicas that do not lead come in. Whoever is not one of ours is closed before it has said anything.
pub(in crate::federation) struct Door {
    pub(in crate::federation) listener: TcpListener,
    /// While it is false, nothing is taken: this replica does not lead.
    pub(in crate::federation) open: watch::Receiver<bool>,
    pub(in crate::federation) tls: Arc<ServerConfig>,
    /// Where what was taken goes, with the address that it is from.
    pub(in crate::federation) taken: mpsc::Sender<(Wire, SocketAddr)>,
}

impl Door {
    /// Serves until dropped.
    pub(in crate::federation) async fn run(self) {
        let Self { listener, open, tls, taken } = self;
        let mut unproven = JoinSet::new();
        let places = Places::new(UNPROVEN, UNPROVEN_OF_ONE);
        loop {
            tokio::select! {
                Some(_) = unproven.join_next(), if !unproven.is_empty() => {}
                accepted = listener.accept() => match accepted {
                    Ok((tcp, from)) => {
                        if !*open.borrow() {
                            continue;
                        }
                        let Some(place) = places.take(from.ip()) else { continue };
                        let taking = take(tcp, Arc::clone(&tls), open.clone(), taken.clone());
                        unproven.spawn(async move {
                            match timeout(REACH, taking).await {
                                Ok(Ok(())) => {}
                                Ok(Err(error)) => tracing::debug!(%from, %error, "nothing is taken from what is no replica of ours"),
                                Err(_) => tracing::debug!(%from, "nothing is taken from what says nothing"),
                            }
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection of a replica cannot be accepted");
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }
}

/// Has a replica show who it is, and takes the connection that it passes on.
async fn take(
    tcp: TcpStream,
    tls: Arc<ServerConfig>,
    open: watch::Receiver<bool>,
    taken: mpsc::Sender<(Wire, SocketAddr)>,
) -> io::Result<()> {
    let _ = tcp.set_nodelay(true);
    let mut stream = TlsAcceptor::from(tls).accept(tcp).await?;
    if stream.get_ref().1.alpn_protocol() != Some(crate::identity::replica_tls::ALPN_RELAY) {
        return Err(io::Error::other("it does not speak the protocol of what is passed on"));
    }
    let mut header = [0; Header::LENGTH];
    stream.read_exact(&mut header).await?;
    let Header(source) = Header::decode(&header)?;
    // A replica that is not told so tries again, with whoever leads by then.
    let place = taken.reserve().await.map_err(|_| io::Error::other("the agent is stopping"))?;
    if !*open.borrow() {
        return Err(io::Error::other("we lead no more"));
    }
    stream.write_all(&[TAKEN]).await?;
    stream.flush().await?;
    place.send((Wire::Right(Box::new(stream)), source));
    Ok(())
}

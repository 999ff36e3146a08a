//! The part of a replica that does not lead: peers' connections are passed on to the one that does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{AGAIN, HOLD, Header, IDLE, PARTING, PASSED, REACH, TAKEN};
use crate::federation::wire::Wire;
use crate::model::replica::Leader;

const BUFFER: usize = 16 * 1024;

/// Passes connections on. Clones share their places.
#[derive(Clone)]
pub(in crate::federation) struct Passing {
    leader: watch::Receiver<Leader>,
    /// Whether we serve peers ourselves.
    open: watch::Receiver<bool>,
    tls: Arc<ClientConfig>,
    places: Arc<Semaphore>,
    /// Where a connection goes that we came to serve ourselves while it waited.
    ours: mpsc::Sender<(Wire, SocketAddr)>,
}

/// What became of a connection that waited.
enum Way {
    /// To the leader, which has taken it.
    Leader(Box<TlsStream<TcpStream>>, SocketAddr),
    Ourselves,
    /// Nobody leads, or the one that does takes none.
    None,
}

impl Passing {
    pub(in crate::federation) fn new(
        leader: watch::Receiver<Leader>,
        open: watch::Receiver<bool>,
        tls: Arc<ClientConfig>,
        ours: mpsc::Sender<(Wire, SocketAddr)>,
    ) -> Self {
        Self { leader, open, tls, places: Arc::new(Semaphore::new(PASSED)), ours }
    }

    /// Passes a connection on, to its end; closes it where there is no place, or no way in time.
    pub(in crate::federation) async fn pass(mut self, tcp: TcpStream, source: SocketAddr) {
        let Ok(_place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        let _ = tcp.set_nodelay(true);
        match timeout(HOLD, self.way(source)).await.unwrap_or(Way::None) {
            Way::Leader(stream, leader) => {
                tracing::debug!(%source, %leader, "a connection is passed on");
                tokio::select! {
                    () = splice(tcp, *stream, IDLE) => {}
                    () = self.parted(leader) => {}
                }
            }
            Way::Ourselves => {
                let _ = self.ours.send((Wire::Left(tcp), source)).await;
            }
            Way::None => {}
        }
    }

    /// Where a connection goes, once there is somewhere.
    async fn way(&mut self, source: SocketAddr) -> Way {
        loop {
            if *self.open.borrow_and_update() {
                return Way::Ourselves;
            }
            let leader = self.leader.borrow_and_update().clone();
            let mut again = None;
            match leader {
                Leader::Other { relay: Some(address), .. } => {
                    match timeout(REACH, reach(address, &self.tls, source)).await {
                        Ok(Ok(stream)) => return Way::Leader(Box::new(stream), address),
                        Ok(Err(error)) => tracing::debug!(%address, %error, "the leader takes no connection"),
                        Err(_) => tracing::debug!(%address, "the leader does not answer"),
                    }
                    again = Some(Instant::now() + AGAIN);
                }
                // there is nothing to wait for
                Leader::Other { relay: None, .. } => return Way::None,
                Leader::Us { .. } | Leader::Nobody => {}
            }
            tokio::select! {
                Ok(()) = self.leader.changed() => {}
                Ok(()) = self.open.changed() => {}
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
                else => return Way::None,
            }
        }
    }

    /// Returns once another than the one at this address leads, and connections to it have had their time.
    async fn parted(&mut self, address: SocketAddr) {
        let is_another = |leader: &Leader| match leader {
            Leader::Other { relay, .. } => *relay != Some(address),
            Leader::Us { .. } | Leader::Nobody => true,
        };
        // without an election any more, the agent ends
        let _ = self.leader.wait_for(is_another).await;
        sleep(PARTING).await;
    }
}

/// Has the leader take a connection.
async fn reach(
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
    source: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let _ = tcp.set_nodelay(true);
    // the server is known by its SPIFFE ID, and its name is nothing
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await?;
    stream.write_all(&Header(source).encode()).await?;
    stream.flush().await?;
    let answer = stream.read_u8().await?;
    if answer == TAKEN { Ok(stream) } else { Err(io::Error::other("the leader gave another answer")) }
}

/// Carries bytes in both directions until both have ended, one breaks, or nothing has passed for `idle`.
pub(super) async fn splice(
    one: impl AsyncRead + AsyncWrite,
    other: impl AsyncRead + AsyncWrite,
    idle: Duration,
) {
    let (origin, passed) = (Instant::now(), AtomicU64::new(0));
    let seen =
        || passed.store(u64::try_from(origin.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    let (one_reads, one_writes) = tokio::io::split(one);
    let (other_reads, other_writes) = tokio::io::split(other);
    let both = async {
        // one that broke ends both; one that ended lets the other say the rest
        let _ = tokio::try_join!(pump(one_reads, other_writes, &seen), pump(other_reads, one_writes, &seen));
    };
    let silent = async {
        loop {
            let until = origin + Duration::from_millis(passed.load(Ordering::Relaxed)) + idle;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    };
    tokio::select! {
        () = both => {}
        () = silent => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    seen: &impl Fn(),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        seen();
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        to.write_all(bytes).await?;
        to.flush().await?;
        seen();
    }
    // a peer that does not read holds nothing up for long
    timeout_at(Instant::now() + PARTING, to.shutdown()).await.unwrap_or(Ok(()))
}

//! The way from a socket to the agent: bytes as they are, by TLS with the workload's SVID of this moment, to the agent's SPIFFE ID
//! and no other.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::KeepError;
use crate::identity::client_tls;
use crate::identity::source::IdentitySource;
use crate::model::SpiffeId;
use crate::socket::{Bound, Left};

/// Connections at one time: a library makes one for each of its channels' targets at most.
const CONNECTIONS: usize = 128;
/// How long it may take to reach the agent.
const PATIENCE: Duration = Duration::from_secs(10);

/// An agent that serves xDS by TLS.
#[derive(Clone, Debug)]
pub struct Agent {
    /// `host:port`.
    pub address: String,
    /// Its SPIFFE ID, of the workload's own trust domain.
    pub id: SpiffeId,
}

/// A socket that is open, and where it leads.
pub(super) struct Relay {
    listener: UnixListener,
    _left: Left,
    agent: Agent,
    tls: Arc<ClientConfig>,
}

impl Relay {
    /// Opens the socket, for its user alone.
    pub(super) async fn open(path: &Path, agent: Agent, source: &IdentitySource) -> Result<Self, KeepError> {
        let tls = Arc::new(client_tls::client_config(source, agent.id.clone())?);
        let (listener, left) = Bound::at(path, 0o600).await?.split();
        Ok(Self { listener, _left: left, agent, tls })
    }

    /// Passes connections on, for ever.
    pub(super) async fn run(self) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut passing = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = passing.join_next(), if !passing.is_empty() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                            tracing::warn!(CONNECTIONS, "a connection is refused: so many are open already");
                            continue;
                        };
                        let passed = pass(stream, self.agent.clone(), Arc::clone(&self.tls));
                        passing.spawn(async move {
                            passed.await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection cannot be accepted");
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }
}

async fn pass(mut here: UnixStream, agent: Agent, tls: Arc<ClientConfig>) {
    let reached = async {
        let tcp = TcpStream::connect(&agent.address).await?;
        tcp.set_nodelay(true)?;
        // Names are nothing here: the ID is what counts.
        let name = ServerName::try_from("entente").map_err(io::Error::other)?;
        TlsConnector::from(tls).connect(name, tcp).await
    };
    let mut there = match timeout(PATIENCE, reached).await {
        Ok(Ok(there)) => there,
        Ok(Err(cause)) => {
            tracing::warn!(
                agent = %agent.id, address = agent.address, %cause,
                "the agent is not reached; the library asks again, and keeps what it has"
            );
            return;
        }
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            tracing::warn!(agent = %agent.id, address = agent.address, seconds, "the agent does not answer in time");
            return;
        }
    };
    if let Err(cause) = tokio::io::copy_bidirectional(&mut here, &mut there).await {
        tracing::debug!(agent = %agent.id, %cause, "a connection to the agent ended");
    }
}

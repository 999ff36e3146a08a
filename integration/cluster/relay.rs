//! A TCP relay that can be cut: stands between two agents, or in front of a bundle endpoint, in place of the network.

use crate::wait::eventually;
use anyhow::{Result, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of connections, old and new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// They reach the target.
    Whole,
    /// They are closed at once, as by a proxy whose target is gone.
    Cut,
    /// They stay open, and nothing comes through: neither bytes nor an end.
    Silent,
}

/// A relay on 127.0.0.1. Dropped, it closes everything.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    network: watch::Sender<Network>,
    accepted: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens on a port of its own and passes connections to `target`, which need not be there yet.
    pub(crate) async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (network, watched) = watch::channel(Network::Whole);
        let accepted = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                connections.spawn(carry(stream, target, watched.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, network, accepted, task })
    }

    /// What to dial instead of the target.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Waits until no connection is carried, as is soon so once the network is cut.
    pub(crate) async fn ended(&self) -> Result<()> {
        eventually("the relay carries nothing", Duration::from_secs(5), || async {
            // Each connection listens for the network, and whoever takes new ones.
            let carried = self.network.receiver_count().saturating_sub(1);
            ensure!(carried == 0, "{carried} connections");
            Ok(())
        })
        .await
    }

    /// How many connections were opened to it.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries one connection until it ends or the network is cut. While the network is silent the bytes wait: a network
/// that is whole again delivers them, as TCP does.
async fn carry(mut stream: TcpStream, target: SocketAddr, mut network: watch::Receiver<Network>) {
    if network.wait_for(|network| *network != Network::Silent).await.is_err()
        || *network.borrow() == Network::Cut
    {
        return;
    }
    let Ok(mut onward) = TcpStream::connect(target).await else { return };
    let (mut inbound, mut outbound) = (stream.split(), onward.split());
    let there = pump(&mut inbound.0, &mut outbound.1, network.clone());
    let back = pump(&mut outbound.0, &mut inbound.1, network.clone());
    tokio::select! {
        _ = async { tokio::join!(there, back) } => {}
        _ = network.wait_for(|network| *network == Network::Cut) => {}
    }
}

async fn pump(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut network: watch::Receiver<Network>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        if network.wait_for(|network| *network == Network::Whole).await.is_err() {
            break;
        }
        let sent = to.write_all(buffer.get(..read).unwrap_or_default()).await;
        if read == 0 || sent.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

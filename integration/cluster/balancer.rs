//! A load balancer of TCP connections, as a Service of Kubernetes is one: each new connection goes to the next target that
//! takes it.

use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// On 127.0.0.1. Dropped, it closes everything.
#[derive(Debug)]
pub(crate) struct Balancer {
    address: SocketAddr,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
    task: JoinHandle<()>,
}

impl Balancer {
    pub(crate) async fn start(targets: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let targets = Arc::new(Mutex::new(targets));
        let known = Arc::clone(&targets);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut turn = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let mut order = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
                turn += 1;
                let first = turn % order.len().max(1);
                order.rotate_left(first);
                connections.spawn(carry(stream, order));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, targets, task })
    }

    /// What to dial.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where connections go from now on; those that are open stay.
    pub(crate) fn set(&self, targets: Vec<SocketAddr>) {
        *self.targets.lock().unwrap_or_else(PoisonError::into_inner) = targets;
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut stream: TcpStream, targets: Vec<SocketAddr>) {
    for target in targets {
        if let Ok(mut onward) = TcpStream::connect(target).await {
            let _ = copy_bidirectional(&mut stream, &mut onward).await;
            return;
        }
    }
}

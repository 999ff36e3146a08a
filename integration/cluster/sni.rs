//! A TCP relay that looks at the name that TLS clients ask for, as a gateway does that passes TLS on by it.

use anyhow::Result;
use rustls::server::Acceptor;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Longer than any first flight of a client.
const MOST: usize = 16 * 1024;

/// Passes everything on to one target. Dropped, it closes everything.
#[derive(Debug)]
pub(crate) struct ByName {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Option<String>>>>,
    task: JoinHandle<()>,
}

impl ByName {
    pub(crate) async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let asked = Arc::<Mutex<Vec<_>>>::default();
        let names = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let names = Arc::clone(&names);
                connections.spawn(async move {
                    let name = name_of(&stream).await;
                    names.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                    let mut stream = stream;
                    let Ok(mut onward) = TcpStream::connect(target).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, asked, task })
    }

    /// The port to dial, at `localhost`.
    pub(crate) const fn port(&self) -> u16 {
        self.address.port()
    }

    /// The names that were asked for since the last time this was called; `None` is a client that names none.
    pub(crate) fn take(&self) -> BTreeSet<Option<String>> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }
}

impl Drop for ByName {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The server name in a client's first words, which are left to be read.
async fn name_of(stream: &TcpStream) -> Option<String> {
    let mut bytes = vec![0; MOST];
    let mut before = 0;
    loop {
        let read = stream.peek(&mut bytes).await.ok()?;
        let mut acceptor = Acceptor::default();
        let mut words = bytes.get(..read)?;
        acceptor.read_tls(&mut words).ok()?;
        match acceptor.accept() {
            Ok(Some(accepted)) => return accepted.client_hello().server_name().map(str::to_owned),
            Ok(None) if read > before => before = read,
            _ => return None,
        }
        // What was peeked is there still: the rest of it comes with the next packet.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

//! A service of the demo: HTTP over mutual TLS. It is its own gateway and its own sidecar: it takes the SNI under which
//! importers call it, and applies the AuthorizationPolicy that its agent wrote.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::policy::Policies;
use crate::identity::peer_tls::{Authorize, server_config};
use crate::identity::source::IdentitySource;
use crate::identity::verify::{Role, moment, verify_svid};
use crate::identity::workload::WorkloadEndpoint;
use crate::model::SpiffeId;

/// The application protocol by which Istio's sidecars know each other.
pub(super) const ALPN_ISTIO: &[u8] = b"istio";
/// How long a caller may take for all of its call.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_HEAD: usize = 8 * 1024;
const MAX_CALLS: usize = 64;

/// What a service is started with.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// What importers call it.
    pub host: String,
    /// What importers see, and what it is known to listen on.
    pub port: u16,
    /// What policies select it by.
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    /// Its Workload API.
    pub workload_socket: PathBuf,
    /// Where its agent writes.
    pub generated: PathBuf,
}

/// A running service. It ends when it is dropped.
#[derive(Debug)]
pub struct Service {
    /// Where it really listens: what a gateway would forward to.
    pub address: SocketAddr,
    identity: IdentitySource,
    _stop: DropGuard,
}

impl Service {
    /// Listens, and follows its Workload API.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(config: ServiceConfig) -> anyhow::Result<Self> {
        let cancel = CancellationToken::new();
        let listener = TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0)).await?;
        let address = listener.local_addr()?;
        let endpoint = WorkloadEndpoint::Unix(config.workload_socket.clone());
        let (identity, _) = IdentitySource::spawn(endpoint, None, cancel.clone());
        // Any verified caller comes through TLS, as at a sidecar; whom the policy refuses, is told so.
        let anyone: Authorize = Arc::new(|_| true);
        let mut tls = server_config(&identity, anyone)?;
        tls.alpn_protocols = vec![ALPN_ISTIO.to_vec()];
        let server = Server { config, identity: identity.clone(), tls: TlsAcceptor::from(Arc::new(tls)) };
        tokio::spawn(serve(listener, Arc::new(server), cancel.clone()));
        Ok(Self { address, identity, _stop: cancel.drop_guard() })
    }

    /// Its SPIFFE ID, once the Workload API told.
    ///
    /// # Errors
    /// Where it has none yet.
    pub fn id(&self) -> anyhow::Result<SpiffeId> {
        let svids = self.identity.current().context("the service has no SVID yet")?;
        Ok(svids.identity.id.clone())
    }
}

struct Server {
    config: ServiceConfig,
    identity: IdentitySource,
    tls: TlsAcceptor,
}

async fn serve(listener: TcpListener, server: Arc<Server>, cancel: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CALLS));
    let mut calls = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        while calls.try_join_next().is_some() {}
        let (Ok((tcp, _)), Ok(place)) = (accepted, Arc::clone(&places).try_acquire_owned()) else { continue };
        let server = Arc::clone(&server);
        calls.spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, server.call(tcp)).await {
                tracing::debug!(host = %server.config.host, %error, "a call failed");
            }
            drop(place);
        });
    }
}

impl Server {
    async fn call(&self, tcp: TcpStream) -> anyhow::Result<()> {
        let mut stream = self.tls.accept(tcp).await?;
        let session = stream.get_ref().1;
        let sni = session.server_name().unwrap_or_default().to_owned();
        let chain: Vec<_> = session.peer_certificates().unwrap_or_default().to_vec();
        let svids = self.identity.current().context("no SVID")?;
        let now = crate::clock::now();
        let caller = verify_svid(&chain, &|td| svids.peer_bundle(td), Role::Client, moment(now))?;
        let (status, body) = self.answer(&sni, &caller, &svids.identity.id);
        read_head(&mut stream).await?;
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n");
        stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes()).await?;
        stream.shutdown().await?;
        Ok(())
    }

    fn answer(&self, sni: &str, caller: &SpiffeId, own: &SpiffeId) -> (&'static str, String) {
        let ServiceConfig { host, port, namespace, labels, generated, .. } = &self.config;
        if sni != super::client::sni(*port, host) {
            return ("404 Not Found", format!("no route at this gateway for {sni:?}"));
        }
        let policies = match Policies::read(generated, namespace, labels) {
            Ok(policies) => policies,
            Err(cause) => return ("403 Forbidden", format!("no policy can be read: {cause}")),
        };
        match policies.judge(caller, *port) {
            Err(denied) => ("403 Forbidden", denied.to_string()),
            Ok(()) => ("200 OK", format!("hello {caller}, this is {own}")),
        }
    }
}

/// Reads the head of a request. What it asks for is all the same.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(head.len() < MAX_HEAD, "a head of more than {MAX_HEAD} bytes");
        head.push(stream.read_u8().await?);
    }
    Ok(())
}

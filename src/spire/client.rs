//! The connection to a SPIRE server: lazy, reconnecting, bounded.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::{AddressError, ServerAddress, SpireError};
use crate::proto::spire::server::bundle::v1::bundle_client::BundleClient;
use crate::proto::spire::server::entry::v1::entry_client::EntryClient;
use crate::proto::spire::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use crate::proto::spire::server::trustdomain::v1::trust_domain_client::TrustDomainClient;

/// How long a call may take.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `RefreshBundle` may take: SPIRE fetches from the peer's endpoint meanwhile, with no limit of its own.
pub(super) const REFRESH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long `PrepareX509Authority` may take: an upstream authority or a key manager elsewhere has a part in it.
pub(super) const PREPARE_TIMEOUT: Duration = Duration::from_secs(45);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;
/// How many different complaints are remembered so that each is logged once.
const COMPLAINTS: usize = 1_000;

/// A SPIRE server's API. Cheap to clone; clones share one connection, which is made with the first call and made
/// again when it is lost.
#[derive(Clone)]
pub struct SpireServer {
    channel: Channel,
    name: Arc<str>,
    complaints: Arc<Mutex<BTreeSet<String>>>,
}

impl fmt::Debug for SpireServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpireServer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl SpireServer {
    /// Over the server's Unix socket, where SPIRE trusts the caller as local. Does not connect yet; must be called
    /// within a runtime.
    #[must_use]
    pub fn connect_unix(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = ServerAddress::Unix(path.clone()).to_string();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Self::new(name, endpoint().connect_with_connector_lazy(connector))
    }

    /// Over TCP with mTLS. `config` is asked at each connect, so that it follows rotation; it presents an admin SVID
    /// and verifies the server as `spiffe://<trust domain>/spire/server`. Does not connect yet; must be called within
    /// a runtime.
    ///
    /// # Errors
    /// [`SpireError::Address`] unless `host_port` is `host:port`.
    pub fn connect_tcp(
        host_port: &str,
        config: impl Fn() -> io::Result<Arc<ClientConfig>> + Send + Sync + 'static,
    ) -> Result<Self, SpireError> {
        let form = || AddressError::Form(host_port.to_owned());
        let ServerAddress::Tcp(address) = ServerAddress::parse(host_port)? else {
            return Err(form().into());
        };
        let host = address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
        let server_name = ServerName::try_from(host.to_owned()).map_err(|_| form())?;
        let config = Arc::new(config);
        let connector = tower::service_fn({
            let address = address.clone();
            move |_: Uri| {
                let (address, server_name, config) = (address.clone(), server_name.clone(), config());
                async move { connect_tls(address, server_name, config?).await }
            }
        });
        Ok(Self::new(address, endpoint().connect_with_connector_lazy(connector)))
    }

    fn new(name: String, channel: Channel) -> Self {
        Self { channel, name: name.into(), complaints: Arc::default() }
    }

    /// The address, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn trust_domains(&self) -> TrustDomainClient<Channel> {
        TrustDomainClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(super) fn bundles(&self) -> BundleClient<Channel> {
        BundleClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(super) fn entries(&self) -> EntryClient<Channel> {
        EntryClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(super) fn authorities(&self) -> LocalAuthorityClient<Channel> {
        LocalAuthorityClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Waits for one call, no longer than `limit`.
    pub(super) async fn call<T>(
        &self,
        call: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>> + Send,
    ) -> Result<T, SpireError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(SpireError::Call {
                server: self.name.to_string(),
                call,
                code: status.code(),
                message: words(&status),
            }),
            Err(_) => Err(SpireError::Timeout { server: self.name.to_string(), call, after: limit }),
        }
    }

    pub(super) fn refused(&self, call: &'static str, item: &str, code: i32, message: String) -> SpireError {
        SpireError::Item {
            server: self.name.to_string(),
            call,
            item: item.to_owned(),
            code: Code::from_i32(code),
            message,
        }
    }

    pub(super) fn nonsense(&self, call: &'static str, what: impl Into<String>) -> SpireError {
        SpireError::Answer { server: self.name.to_string(), call, what: what.into() }
    }

    /// Logs what is wrong with an item, once: the same state is read every second.
    pub(super) fn complain(&self, what: String) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.contains(&what) {
            return;
        }
        tracing::warn!(server = %self.name, "{what}");
        if complaints.len() >= COMPLAINTS {
            complaints.clear();
        }
        complaints.insert(what);
    }
}

/// The words of a status; of a transport error the innermost cause, which is the one that says something.
fn words(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut innermost = None;
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    match innermost {
        Some(inner) if !status.message().contains(&inner) => format!("{}: {inner}", status.message()),
        _ => status.message().to_owned(),
    }
}

/// The URI is never dialled: the connector knows where to go.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://spire-server.invalid")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
}

async fn connect_tls(
    address: String,
    server_name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    // gRPC servers refuse connections that did not negotiate HTTP/2.
    let mut config = ClientConfig::clone(&config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(Arc::new(config)).connect(server_name, stream).await.map(TokioIo::new)
}

//! A caller of the demo: a sidecar in small. Where it calls, under which name, and whom it accepts there, it takes from
//! the ServiceEntry that its agent wrote; what verifies that, from its Workload API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use super::Names;
use super::service::ALPN_ISTIO;
use crate::identity::peer_tls::{Authorize, Verdict, client_config};
use crate::identity::source::IdentitySource;
use crate::identity::workload::WorkloadEndpoint;
use crate::istio::ServiceEntrySpec;
use crate::model::{AuthorityId, SpiffeId};
use crate::store::directory;

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_ANSWER: u64 = 64 * 1024;

/// The server name by which Istio's gateways route without a VirtualService.
pub(super) fn sni(port: u16, host: &str) -> String {
    format!("outbound_.{port}_._.{host}")
}

/// What a caller is started with.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Its Workload API.
    pub workload_socket: PathBuf,
    /// Where its agent writes.
    pub generated: PathBuf,
    /// What stands for DNS.
    pub names: Names,
}

/// A caller. It ends when it is dropped.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    identity: IdentitySource,
    _stop: DropGuard,
}

/// An answer of a service.
#[derive(Clone, Debug)]
pub struct Answer {
    pub body: String,
    pub client: SpiffeId,
    pub server: SpiffeId,
    /// The authority that signed the server's SVID.
    pub server_signed_by: Option<AuthorityId>,
    pub target: Target,
}

/// Where and as what a service is called, as the ServiceEntry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The file that says so.
    pub file: PathBuf,
    /// The name or address of the endpoint.
    pub endpoint: String,
    pub port: u16,
    pub sni: String,
    /// Whom to accept there.
    pub pins: Vec<SpiffeId>,
}

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("the caller has no SVID yet")]
    NoIdentity,
    #[error("there is no ServiceEntry for {0}: nothing says where it is")]
    NoServiceEntry(String),
    #[error("{}: {cause}", file.display())]
    BadServiceEntry { file: PathBuf, cause: String },
    #[error("nobody knows the name {0}")]
    UnknownName(String),
    #[error("{endpoint} cannot be reached: {cause}")]
    Unreachable { endpoint: String, cause: String },
    #[error("the server is refused: {0}")]
    ServerRefused(String),
    #[error("the server refused the caller in TLS: {0}")]
    CallerRefused(String),
    #[error("{status}: {body}")]
    Status { status: String, body: String },
}

impl Client {
    /// Follows its Workload API.
    #[must_use]
    pub fn start(config: ClientConfig) -> Self {
        let cancel = CancellationToken::new();
        let endpoint = WorkloadEndpoint::Unix(config.workload_socket.clone());
        let (identity, _) = IdentitySource::spawn(endpoint, None, cancel.clone());
        Self { config, identity, _stop: cancel.drop_guard() }
    }

    /// Who it is and whom it can verify, as its Workload API says.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<crate::model::own::Identity>> {
        self.identity.current().map(|svids| Arc::clone(&svids.identity))
    }

    /// Calls a service by its host name and port, on a connection of its own.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, host: &str, port: u16) -> Result<Answer, CallError> {
        let client = self.identity().ok_or(CallError::NoIdentity)?.id.clone();
        let target = target(&self.config.generated, host, port)?;
        let late = |_| CallError::Unreachable {
            endpoint: target.endpoint.clone(),
            cause: format!("no answer in {PATIENCE:?}"),
        };
        let (server, server_signed_by, text) =
            tokio::time::timeout(PATIENCE, self.exchange(&target, host)).await.map_err(late)??;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text.as_str(), ""));
        let status = head.lines().next().unwrap_or_default().trim_start_matches("HTTP/1.1 ").to_owned();
        let body = body.to_owned();
        if status != "200 OK" {
            return Err(CallError::Status { status, body });
        }
        Ok(Answer { body, client, server, server_signed_by, target })
    }

    async fn exchange(
        &self,
        target: &Target,
        host: &str,
    ) -> Result<(SpiffeId, Option<AuthorityId>, String), CallError> {
        let unreachable = |cause: &dyn std::fmt::Display| CallError::Unreachable {
            endpoint: format!("{}:{}", target.endpoint, target.port),
            cause: cause.to_string(),
        };
        let unknown = || CallError::UnknownName(target.endpoint.clone());
        let address =
            SocketAddr::new(self.config.names.resolve(&target.endpoint).ok_or_else(unknown)?, target.port);
        let pins = target.pins.clone();
        let pinned: Authorize = Arc::new(move |id: &SpiffeId| pins.contains(id));
        let verdict = Verdict::default();
        let mut tls = client_config(&self.identity, pinned, verdict.clone()).map_err(|e| unreachable(&e))?;
        tls.alpn_protocols = vec![ALPN_ISTIO.to_vec()];
        let name = ServerName::try_from(target.sni.clone()).map_err(|e| unreachable(&e))?;
        let tcp = TcpStream::connect(address).await.map_err(|e| unreachable(&e))?;
        let connected = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await;
        let mut stream = connected.map_err(|error| match verdict.get() {
            Some(Err(refusal)) => CallError::ServerRefused(refusal.to_string()),
            _ => unreachable(&error),
        })?;
        let Some(Ok(server)) = verdict.get() else { return Err(unreachable(&"no certificate")) };
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
        let signed_by = leaf.as_ref().and_then(|leaf| signer(leaf));
        // In TLS 1.3 the server judges the caller only now.
        let refused = |error: std::io::Error| match error.get_ref().and_then(|e| e.downcast_ref()) {
            Some(rustls::Error::AlertReceived(alert)) => CallError::CallerRefused(format!("{alert:?}")),
            _ => unreachable(&error),
        };
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        // Where this fails, reading says why.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        (&mut stream).take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(refused)?;
        Ok((server, signed_by, String::from_utf8_lossy(&answer).into_owned()))
    }
}

/// The authority that a certificate says signed it.
fn signer(leaf: &CertificateDer<'_>) -> Option<AuthorityId> {
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let key = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(key) => key.key_identifier.as_ref(),
        _ => None,
    })?;
    AuthorityId::parse(&hex::encode(key.0)).ok()
}

/// What the ServiceEntries that the agent wrote say of a host and port.
fn target(generated: &Path, host: &str, port: u16) -> Result<Target, CallError> {
    let none = || CallError::NoServiceEntry(host.to_owned());
    let entries = std::fs::read_dir(generated.join("serviceentries")).map_err(|_| none())?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    for file in files {
        let bad = |cause: &str| CallError::BadServiceEntry { file: file.clone(), cause: cause.to_owned() };
        let document = directory::read_document(&file).map_err(|e| bad(&e))?;
        let spec = document.get("spec").cloned().unwrap_or_default();
        let spec: ServiceEntrySpec = serde_json::from_value(spec).map_err(|e| bad(&e.to_string()))?;
        if !spec.hosts.iter().any(|of| of == host) || spec.workload_selector.is_some() {
            continue;
        }
        let named = spec.ports.iter().find(|p| p.number == port).ok_or_else(|| bad("it has no such port"))?;
        let endpoint = spec.endpoints.first().ok_or_else(|| bad("it has no endpoint"))?;
        let pins: Result<Vec<SpiffeId>, _> = spec.subject_alt_names.iter().map(SpiffeId::new).collect();
        let pins = pins.map_err(|e| bad(&e.to_string()))?;
        if pins.is_empty() {
            return Err(bad("it pins nobody, so that anybody could answer"));
        }
        return Ok(Target {
            endpoint: endpoint.address.clone(),
            port: endpoint.ports.get(&named.name).copied().unwrap_or(named.number),
            sni: sni(port, host),
            pins,
            file,
        });
    }
    Err(none())
}

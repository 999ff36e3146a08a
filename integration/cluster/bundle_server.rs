//! A bundle endpoint that serves what a test wants, with the `https_spiffe` profile and a real SVID: what a peer can
//! do to us that real SPIRE never does.

use crate::world::Domain;
use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// The path of the endpoint's SPIFFE ID: SPIRE keeps paths under `/spire` to itself.
const PATH: &str = "/bundle-endpoint";
const ISSUED_DEADLINE: Duration = Duration::from_secs(20);

/// A bundle endpoint on 127.0.0.1. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct BundleServer {
    address: SocketAddr,
    id: String,
    body: watch::Sender<String>,
    fetches: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl BundleServer {
    /// Serves `domain`'s bundle, until told otherwise, under an SVID that `domain` issues to the test process.
    pub(crate) async fn start(domain: &Domain) -> Result<Self> {
        let id = domain.register_test_process("bundle-endpoint", PATH, &[], &[]).await?;
        let what = format!("the test process has the SVID {id}");
        let acceptor = crate::wait::eventually(&what, ISSUED_DEADLINE, || acceptor_of(domain, &id)).await?;
        let (body, watched) = watch::channel(domain.spire.bundle_document().await?);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let fetches = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&fetches);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, body, counter) =
                    (acceptor.clone(), watched.borrow().clone(), Arc::clone(&counter));
                connections.spawn(async move {
                    if answer(acceptor, stream, &body).await.is_ok() {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, id, body, fetches, task })
    }

    /// Serves this from now on, whatever it is.
    pub(crate) fn serve(&self, body: impl Into<String>) {
        self.body.send_replace(body.into());
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}/", self.address)
    }

    /// The SPIFFE ID that it presents.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// How often the bundle was fetched.
    pub(crate) fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::Relaxed)
    }
}

impl Drop for BundleServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn acceptor_of(domain: &Domain, id: &str) -> Result<TlsAcceptor> {
    let svids = domain.spire.workload().await?.svids;
    let svid = svids.into_iter().find(|svid| svid.spiffe_id == id).context("not among the SVIDs")?;
    let chain = certificates(&svid.x509_svid)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The certificates of concatenated DER, as the Workload API has chains and bundles.
pub(crate) fn certificates(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let mut chain = Vec::new();
    while !der.is_empty() {
        let (rest, _) = x509_parser::parse_x509_certificate(der)?;
        let one = der.get(..der.len() - rest.len()).unwrap_or_default();
        chain.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(chain)
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream, body: &str) -> Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut request = vec![0; 8 * 1024];
    let _ = stream.read(&mut request).await?;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

/// The certificates that a TLS server presents, in DER one after the other, whoever it is.
pub(crate) async fn presented(address: SocketAddr) -> Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().context("it presented none")?;
    Ok(chain.iter().flat_map(|one| one.iter().copied()).collect())
}

/// Takes every certificate: for a look, not for trust.
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

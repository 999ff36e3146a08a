//! Another trust domain, whose bundle the clients of east hold as well: its authority is the test's own.

use crate::proxy::Proxy;
use crate::ring::SOON;
use crate::wait::eventually;
use crate::world::Domain;
use anyhow::{Context, Result, ensure};
use entente::proto::spire::types::{Bundle, X509Certificate};
use kube::api::{Patch, PatchParams};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

const NAME: &str = "north.example";

/// Its authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{NAME}").try_into()?)];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().to_vec();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// What ends TLS as whoever it says that it is.
    fn server(&self, id: &str) -> Result<TlsAcceptor> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// A server that counts the handshakes that its clients end well.
struct Server {
    good: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(at: SocketAddr, acceptor: TlsAcceptor) -> Result<Self> {
        let listener =
            eventually("the port is free", SOON, || async { Ok(TcpListener::bind(at).await?) }).await?;
        let good = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&good);
        let task = tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
                all.spawn(async move {
                    // By TLS 1.3 a client that refuses says so after the server has ended its own part.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let (mut read, mut write) = tokio::io::split(stream);
                    if tokio::io::copy(&mut read, &mut write).await.is_ok_and(|bytes| bytes > 0) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Ok(Self { good, task })
    }
}

/// A server with the very ID that the client wants, and one with its own, each by the authority of another trust domain with which the
/// client's workload federates too: both are refused, for that authority.
pub(crate) async fn is_refused(
    east: &Domain,
    client: &Proxy,
    gateway: SocketAddr,
    call: impl AsyncFn() -> Result<()>,
) -> Result<()> {
    let authority = Authority::new()?;
    let held = X509Certificate { asn1: authority.certificate.clone(), tainted: false };
    let bundle = Bundle {
        trust_domain: NAME.to_owned(),
        x509_authorities: vec![held],
        refresh_hint: 300,
        ..Bundle::default()
    };
    east.spire.set_federated_bundle(bundle).await?;
    let entries = east.kubernetes.api("spire.spiffe.io/v1alpha1", "ClusterStaticEntry", None).await?;
    let both = json!({"spec": {"federatesWith": [NAME, "west.example"]}});
    entries.patch("frontend", &PatchParams::default(), &Patch::Merge(both)).await?;
    eventually("the client's workload federates with north too", SOON, || async {
        let entries = east.spire.entries().await?;
        let entry = entries.get(&client.id).context("no entry")?;
        ensure!(entry.federates_with.iter().any(|with| with == NAME), "{:?}", entry.federates_with);
        Ok(())
    })
    .await?;
    for id in ["spiffe://west.example/ns/shop/sa/cart", "spiffe://north.example/ns/shop/sa/cart"] {
        let server = Server::start(gateway, authority.server(id)?).await?;
        let before = client.admin.stats("ssl.fail_verify").await?;
        eventually(&format!("{id} by another authority is refused"), SOON, || async {
            ensure!(call().await.is_err(), "it is answered");
            let now = client.admin.stats("ssl.fail_verify_error").await?;
            ensure!(
                !now.is_empty() && !before.contains(&now),
                "not for its authority: {}",
                client.admin.stats("ssl").await?
            );
            Ok(())
        })
        .await?;
        ensure!(server.good.load(Ordering::Relaxed) == 0, "{id} was taken");
    }
    Ok(())
}

//! The Server API over TCP with mTLS: the client follows rotation of its own SVID, and comes back after a cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use entente::devkit::{EmbeddedSpire, Svid};
use entente::identity::tls::provider;
use entente::identity::verify::{
    Role, supported_verify_schemes, verify_svid, verify_tls12_signature, verify_tls13_signature,
};
use entente::model::{Bundle, SpiffeId, TrustDomain};
use entente::spire::SpireServer;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::{id, start, west};

#[derive(Debug)]
struct Wants(SpiffeId, Arc<Bundle>);

impl ServerCertVerifier for Wants {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let held = |_: &TrustDomain| Some(Arc::clone(&self.1));
        let found = verify_svid(std::slice::from_ref(leaf), &held, Role::Server, now)?;
        if found == self.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General(found.to_string()))
        }
    }

    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        s: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(m, c, s)
    }

    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        s: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(m, c, s)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        supported_verify_schemes()
    }
}

fn issue(spire: &EmbeddedSpire, path: &[&str]) -> Svid {
    spire.with_authority(|authority| authority.issue(&id(path), entente::clock::now()).unwrap())
}

fn served(svid: Svid) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    (vec![svid.certificate.into()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key)))
}

/// Ends TLS as a SPIRE server does on its port, and passes what is inside to the server's socket.
async fn front(spire: &EmbeddedSpire, listener: TcpListener) {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(spire.bundle().authorities().map(|a| a.der().to_vec().into()));
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    let (chain, key) = served(issue(spire, &["spire", "server"]));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, socket) = (acceptor.clone(), spire.server_socket.clone());
        connections.spawn(async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            let mut inside = UnixStream::connect(socket).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut inside).await;
        });
    }
}

fn client_config(spire: &EmbeddedSpire, server: &[&str]) -> Arc<ClientConfig> {
    let (chain, key) = served(issue(spire, &["admin"]));
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Wants(id(server), spire.bundle())))
        .with_client_auth_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

#[tokio::test]
async fn each_connection_takes_the_configuration_of_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let spire = Arc::new(start(dir.path()).await.spire);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let serve = |listener| {
        let spire = Arc::clone(&spire);
        tokio::spawn(async move { front(&spire, listener).await })
    };
    let running = serve(listener);
    let server = SpireServer::connect_tcp(&address.to_string(), {
        let (spire, asked) = (Arc::clone(&spire), Arc::clone(&asked));
        move || {
            asked.fetch_add(1, Ordering::SeqCst);
            Ok(client_config(&spire, &["spire", "server"]))
        }
    })
    .unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 0, "it connects with the first call");
    server.read(&west()).await.unwrap();
    server.read(&west()).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while server.read(&west()).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the cut was not noticed");
    }
    let again = serve(TcpListener::bind(address).await.unwrap());
    while server.read(&west()).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "it did not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(asked.load(Ordering::SeqCst) >= 2);
    again.abort();
}

#[tokio::test]
async fn a_server_of_another_id_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let spire = Arc::new(start(dir.path()).await.spire);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let front = {
        let spire = Arc::clone(&spire);
        tokio::spawn(async move { front(&spire, listener).await })
    };
    let config = client_config(&spire, &["spire", "agent"]);
    let server = SpireServer::connect_tcp(&address, move || Ok(Arc::clone(&config))).unwrap();
    let error = server.read(&west()).await.unwrap_err().to_string();
    assert!(error.contains(&address) && error.contains("spiffe://west.example/spire/server"), "{error}");
    front.abort();
    assert!(SpireServer::connect_tcp("no address", || unreachable!()).is_err());
}

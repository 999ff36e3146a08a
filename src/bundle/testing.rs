//! Authorities and SVIDs of any shape, for tests.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::model::{Authority, Bundle, SpiffeId, TrustDomain};

/// The time of all tests that need one: certificates made here are valid an hour around it.
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW))
}

pub(crate) fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::new(text).unwrap()
}

/// A certificate with its key.
pub(crate) struct Signed {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// A CA. All have one subject, as those of SPIRE may.
pub(crate) struct Ca {
    pub(crate) der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) fn valid(params: &mut CertificateParams, from: i64, to: i64) {
    let at = |offset: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW.checked_add_signed(offset).unwrap())
    };
    params.not_before = at(from);
    params.not_after = at(to);
}

/// Parameters of a CA that a test may still bend.
pub(crate) fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "SPIFFE");
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, -3600, 3600);
    params
}

/// Parameters of a leaf with these URI names that a test may still bend.
pub(crate) fn leaf_params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, -3600, 3600);
    params
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::with(ca_params())
    }

    pub(crate) fn with(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { der, issuer: Issuer::new(params, key) }
    }

    /// A CA below this one.
    pub(crate) fn below(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { der, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sign(&self, params: &CertificateParams) -> Signed {
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Signed { der, key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
    }

    pub(crate) fn svid(&self, id: &str) -> Signed {
        self.sign(&leaf_params(&[id]))
    }

    pub(crate) fn authority(&self) -> Authority {
        Authority::parse(&self.der).unwrap()
    }

    /// The public key of this CA in a certificate that someone else made.
    pub(crate) fn public_key_in(&self, params: CertificateParams) -> Authority {
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.der).unwrap();
        let key = rcgen::SubjectPublicKeyInfo::from_der(parsed.public_key().raw).unwrap();
        Authority::parse(params.signed_by(&key, &Self::new().issuer).unwrap().der()).unwrap()
    }

    pub(crate) fn bundle(&self, trust_domain: &str) -> Arc<Bundle> {
        Arc::new(Bundle::new(td(trust_domain), [self.authority()]))
    }
}

/// What a test server says to a request, after which it hangs up unless told otherwise.
#[derive(Clone)]
pub(crate) enum Reply {
    /// A whole answer with this body.
    Ok(String),
    /// These bytes, whatever they are.
    Raw(String),
    /// A redirect to here.
    Redirect(String),
    /// These bytes, and then nothing, for ever.
    Stall(String),
    /// A body without end.
    Endless,
    /// The connection is closed before any answer.
    HangUp,
}

/// What a test server answers, by path and the number of requests before.
type Answer = dyn Fn(&str, usize) -> Reply + Send + Sync;

/// An HTTPS server on the loopback, gone when dropped.
pub(crate) struct Server {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) requests: Arc<std::sync::atomic::AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(
        chain: Signed,
        answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let provider = crate::identity::tls::provider();
        // not by with_single_cert, which would refuse a key that is not the certificate's
        let key = provider.key_provider.load_private_key(chain.key).unwrap();
        let identity = rustls::sign::CertifiedKey::new(vec![chain.der], key);
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity)));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (count, answer): (_, Arc<Answer>) = (Arc::clone(&requests), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, count, answer) = (acceptor.clone(), Arc::clone(&count), Arc::clone(&answer));
                connections.spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = respond(stream, &count, &*answer).await;
                    }
                });
            }
        });
        Self { address, requests, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(std::sync::atomic::Ordering::SeqCst)
    }
}

async fn respond(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    count: &std::sync::atomic::AtomicUsize,
    answer: &Answer,
) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    let request = String::from_utf8(request).unwrap();
    let path = request.split(' ').nth(1).unwrap();
    let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let text = match answer(path, number) {
        Reply::Ok(body) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        Reply::Raw(text) => text,
        Reply::Redirect(to) => format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"),
        Reply::HangUp => return Ok(()),
        Reply::Stall(text) => {
            stream.write_all(text.as_bytes()).await?;
            stream.flush().await?;
            std::future::pending().await
        }
        Reply::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(&[b' '; 4096]).await?;
            }
        }
    };
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

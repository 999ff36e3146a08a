//! TLS between the agents of two trust domains: both ends present their SVID of this moment, and accept exact SPIFFE
//! IDs, verified with the bundles that the Workload API delivers, so that a handshake proves the path through SPIRE.
//!
//! TLS 1.3 only, without resumption: a ticket would outlive the bundle that its handshake was judged by.
//!
//! What the other end reads of a refusal is the alert: `unknown_ca` where the held bundle does not verify it,
//! `handshake_failure` where none is held, `access_denied` where its ID is not accepted, `certificate_expired`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DistinguishedName, ServerConfig, SignatureScheme};

use super::source::IdentitySource;
use super::tls::provider;
use super::verify::{Role, SvidError, verify_signatures, verify_svid};
use crate::model::SpiffeId;

/// The application protocols of the listener that faces peers.
pub const ALPN_HTTP2: &[u8] = b"h2";

/// Which SPIFFE IDs are accepted, at the moment of asking.
pub type Authorize = Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// Why a peer's certificate is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error("{0} is none of the SPIFFE IDs in spec.agent.spiffeIDs")]
    NotAccepted(SpiffeId),
    #[error("we have no identity yet: the Workload API has not answered")]
    NoIdentity,
}

impl From<PeerRefusal> for rustls::Error {
    fn from(refusal: PeerRefusal) -> Self {
        match refusal {
            PeerRefusal::Svid(error) => error.into(),
            PeerRefusal::NotAccepted(_) => CertificateError::ApplicationVerificationFailure.into(),
            PeerRefusal::NoIdentity => Self::General(refusal.to_string()),
        }
    }
}

/// Judges a chain that a peer presents, or has presented, as of the bundles and rules of this moment.
///
/// # Errors
/// [`PeerRefusal`].
pub fn judge(
    source: &IdentitySource,
    authorize: &Authorize,
    chain: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, PeerRefusal> {
    let svids = source.current().ok_or(PeerRefusal::NoIdentity)?;
    let id = verify_svid(chain, &|trust_domain| svids.peer_bundle(trust_domain), role, now)?;
    if authorize(&id) { Ok(id) } else { Err(PeerRefusal::NotAccepted(id)) }
}

/// What a verifier decided, for whoever started the handshake: it learns the cause without reading texts.
#[derive(Clone, Debug, Default)]
pub struct Verdict(Arc<Mutex<Option<Result<SpiffeId, PeerRefusal>>>>);

impl Verdict {
    /// `None` where the handshake did not come to the peer's certificate.
    #[must_use]
    pub fn get(&self) -> Option<Result<SpiffeId, PeerRefusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, verdict: Result<SpiffeId, PeerRefusal>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
    }
}

/// For the listener: any chain that is verified and whose ID `authorize` accepts.
///
/// # Errors
/// Where the provider does not offer TLS 1.3.
pub fn server_config(source: &IdentitySource, authorize: Authorize) -> Result<ServerConfig, rustls::Error> {
    serving(source, judging(source, authorize, Verdict::default()), ALPN_HTTP2)
}

/// For one dial: the server's name does not matter, its ID does. `verdict` keeps what was decided about the server.
///
/// # Errors
/// Where the provider does not offer TLS 1.3.
pub fn client_config(
    source: &IdentitySource,
    authorize: Authorize,
    verdict: Verdict,
) -> Result<ClientConfig, rustls::Error> {
    dialling(source, judging(source, authorize, verdict), ALPN_HTTP2)
}

/// Judges a chain of our own trust domain by our own bundle as it is now.
///
/// # Errors
/// [`PeerRefusal`]; a chain of another trust domain is one without a bundle.
pub(crate) fn judge_own(
    source: &IdentitySource,
    chain: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, PeerRefusal> {
    let svids = source.current().ok_or(PeerRefusal::NoIdentity)?;
    let own = &svids.identity;
    let bundle = |trust_domain: &_| (*trust_domain == own.trust_domain).then(|| Arc::clone(&own.bundle));
    Ok(verify_svid(chain, &bundle, role, now)?)
}

/// Accepts or refuses a chain that the other end presents.
pub(crate) type Check =
    Arc<dyn Fn(&[CertificateDer<'_>], Role, UnixTime) -> Result<(), rustls::Error> + Send + Sync>;

fn judging(source: &IdentitySource, authorize: Authorize, verdict: Verdict) -> Check {
    let source = source.clone();
    Arc::new(move |chain, role, now| {
        let judged = judge(&source, &authorize, chain, role, now);
        verdict.set(judged.clone());
        judged.map(|_| ()).map_err(Into::into)
    })
}

/// A listener that presents our SVID and takes who passes the check, for one protocol.
///
/// # Errors
/// Where the provider does not offer TLS 1.3.
pub(crate) fn serving(
    source: &IdentitySource,
    check: Check,
    alpn: &[u8],
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier(check)))
        .with_cert_resolver(Arc::new(OwnSvid::new(source)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// A dialler that presents our SVID and takes a server that passes the check, for one protocol.
///
/// # Errors
/// Where the provider does not offer TLS 1.3.
pub(crate) fn dialling(
    source: &IdentitySource,
    check: Check,
    alpn: &[u8],
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier(check)))
        .with_client_cert_resolver(Arc::new(OwnSvid::new(source)));
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// A dialler that presents our SVID and takes any server.
#[cfg(test)]
pub(crate) fn dialling_anybody(source: &IdentitySource) -> ClientConfig {
    dialling(source, Arc::new(|_: &[CertificateDer<'_>], _: Role, _: UnixTime| Ok(())), ALPN_HTTP2).unwrap()
}

/// Presents our SVID as it is at the time of the handshake.
#[derive(Debug)]
struct OwnSvid(IdentitySource);

impl OwnSvid {
    fn new(source: &IdentitySource) -> Self {
        Self(source.clone())
    }

    fn key(&self) -> Option<Arc<CertifiedKey>> {
        self.0.current().map(|svids| Arc::clone(&svids.peer_facing))
    }
}

impl ResolvesServerCert for OwnSvid {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key()
    }
}

impl ResolvesClientCert for OwnSvid {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.key()
    }

    fn has_certs(&self) -> bool {
        self.key().is_some()
    }
}

/// A certificate verifier of either end, which asks one check.
pub(crate) struct Verifier(pub(crate) Check);

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
        (self.0)(&chain, role, now)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, Role::Server, now).map(|()| ServerCertVerified::assertion())
    }

    verify_signatures!();
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, Role::Client, now).map(|()| ClientCertVerified::assertion())
    }

    verify_signatures!();
}

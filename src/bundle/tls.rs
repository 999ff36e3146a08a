//! How a bundle endpoint proves that it may serve a bundle, by either profile (SPIFFE Federation, section 5.2).
//!
//! rustls passes a verifier's refusal on as text, so the verifier keeps its own verdict for who asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig};

use crate::identity::tls::provider;
use crate::identity::verify::{Role, SvidError, claimed_id, verify_signatures, verify_svid};
use crate::model::{Bundle, SpiffeId};

/// What an endpoint's certificate is held against.
#[derive(Debug)]
pub(super) enum Trust {
    /// `https_web`: Web PKI and the host name.
    Web(Arc<WebPkiServerVerifier>),
    /// `https_spiffe`: exactly this ID by exactly this bundle; the host name is not looked at.
    Spiffe { endpoint_id: SpiffeId, bundle: Arc<Bundle> },
    /// `https_spiffe` before any bundle is held: who answers must hold its key, and its chain is kept, to be judged by
    /// [`EndpointVerifier::judge_seen`] once a bundle is known to be the right one. Until then nothing it says counts.
    Later { endpoint_id: SpiffeId, seen: Mutex<Vec<Vec<CertificateDer<'static>>>> },
}

/// Why an endpoint was not believed.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    Web(CertificateError),
    Svid(SvidError),
    WrongId(SpiffeId),
}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Web(cause) => cause.into(),
            Refusal::Svid(error) => error.into(),
            Refusal::WrongId(_) => CertificateError::ApplicationVerificationFailure.into(),
        }
    }
}

/// The verifier of one fetch.
#[derive(Debug)]
pub(super) struct EndpointVerifier {
    trust: Trust,
    now: UnixTime,
    seen: Mutex<Seen>,
}

/// What the last endpoint showed.
#[derive(Debug, Default)]
struct Seen {
    chain: Vec<Vec<u8>>,
    is_accepted: bool,
    refusal: Option<Refusal>,
}

impl EndpointVerifier {
    pub(super) fn new(trust: Trust, now: UnixTime) -> Arc<Self> {
        Arc::new(Self { trust, now, seen: Mutex::default() })
    }

    /// Why the last endpoint was not believed, if so.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.seen().refusal.clone()
    }

    /// Whether the last endpoint was believed.
    pub(super) fn is_accepted(&self) -> bool {
        self.seen().is_accepted
    }

    /// The SPIFFE ID that the last endpoint's certificate names, whoever signed it.
    pub(super) fn presented(&self) -> Option<SpiffeId> {
        claimed_id(self.seen().chain.first()?)
    }

    /// The chain by which the last endpoint proved its SPIFFE ID; empty where it did not, or needed not.
    pub(super) fn proof(&self) -> Vec<Vec<u8>> {
        let seen = self.seen();
        let proves = seen.is_accepted && matches!(self.trust, Trust::Spiffe { .. });
        if proves { seen.chain.clone() } else { Vec::new() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges every chain that was kept for later by this bundle: at least one, and each of the endpoint's exact ID.
    pub(super) fn judge_seen(&self, bundle: &Arc<Bundle>) -> Result<(), Refusal> {
        let Trust::Later { endpoint_id, seen } = &self.trust else { return Ok(()) };
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_empty() {
            return Err(Refusal::Svid(SvidError::NoCertificate));
        }
        seen.iter().try_for_each(|chain| self.judge_svid(chain, endpoint_id, bundle))
    }

    fn judge_svid(
        &self,
        chain: &[CertificateDer<'_>],
        endpoint_id: &SpiffeId,
        bundle: &Arc<Bundle>,
    ) -> Result<(), Refusal> {
        let held = |asked: &_| (asked == endpoint_id.trust_domain()).then(|| Arc::clone(bundle));
        match verify_svid(chain, &held, Role::Server, self.now) {
            Ok(id) if id == *endpoint_id => Ok(()),
            Ok(id) => Err(Refusal::WrongId(id)),
            Err(error) => Err(Refusal::Svid(error)),
        }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
    ) -> Result<(), Refusal> {
        match &self.trust {
            Trust::Web(web) => match web.verify_server_cert(leaf, intermediates, name, &[], self.now) {
                Ok(_) => Ok(()),
                Err(rustls::Error::InvalidCertificate(cause)) => Err(Refusal::Web(cause)),
                Err(_) => Err(Refusal::Web(CertificateError::BadEncoding)),
            },
            Trust::Spiffe { endpoint_id, bundle } => {
                let chain: Vec<CertificateDer<'_>> =
                    std::iter::once(leaf).chain(intermediates).cloned().collect();
                self.judge_svid(&chain, endpoint_id, bundle)
            }
            Trust::Later { seen, .. } => {
                let chain = std::iter::once(leaf).chain(intermediates).cloned();
                let chain = chain.map(CertificateDer::into_owned).collect();
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(chain);
                Ok(())
            }
        }
    }
}

impl ServerCertVerifier for EndpointVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.judge(end_entity, intermediates, server_name);
        let refusal = verdict.err();
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.to_vec()).collect();
        *self.seen() = Seen { chain, is_accepted: refusal.is_none(), refusal: refusal.clone() };
        match refusal {
            None => Ok(ServerCertVerified::assertion()),
            Some(why) => Err(why.into()),
        }
    }

    verify_signatures!();
}

/// TLS 1.2 or later, without a client certificate, which an endpoint must not ask for (5.2), and without resumption,
/// which would skip the verifier.
pub(super) fn client_config(verifier: Arc<EndpointVerifier>) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

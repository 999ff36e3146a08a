//! X509-SVID path validation (X509-SVID, section 5): the one place that decides whether a chain proves a SPIFFE ID.
//!
//! A chain is verified against the bundle of the trust domain that its own leaf names, and no other: an authority of
//! one trust domain can never speak for another (SPIFFE Federation, section 7.3).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::tls::provider;
use crate::model::{Bundle, SpiffeId, TrustDomain};

/// Longest chain that is looked at, leaf included. SPIRE nests to four.
const MAX_CHAIN: usize = 10;

/// How many authorities are tried at once. They may all have one subject, as SPIRE's do where its configuration sets
/// one, and then each costs a signature check, of which webpki allows 100 a path: a large bundle is tried in parts.
const AUTHORITIES_AT_ONCE: usize = 24;

/// A time as TLS has it: in seconds, and none before 1970.
#[must_use]
pub fn moment(time: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default()))
}

/// The role in the handshake of who presented the chain: an extended key usage, where present, must allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// Why a chain proves no SPIFFE ID. One variant a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    #[error("no certificate was presented; the peer must present an X509-SVID")]
    NoCertificate,
    #[error("the chain has {0} certificates, more than {MAX_CHAIN}")]
    ChainTooLong(usize),
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    #[error("the certificate has no URI name, so it is no X509-SVID (X509-SVID section 2)")]
    NoUriSan,
    #[error("the certificate has {0} URI names; an X509-SVID has exactly one (X509-SVID section 2)")]
    SeveralUriSans(usize),
    #[error("the certificate's URI name is no SPIFFE ID: {0}")]
    NotSpiffe(String),
    #[error("{0} has no path: an authority's ID is none of a workload (X509-SVID section 5.2)")]
    NoPath(SpiffeId),
    #[error("the certificate of {0} is a CA and so no workload's (X509-SVID section 5.2)")]
    CaLeaf(SpiffeId),
    #[error(
        "the key usage of the certificate of {0} must have digitalSignature and neither keyCertSign nor cRLSign \
         (X509-SVID section 4.3)"
    )]
    KeyUsage(SpiffeId),
    #[error("the extended key usage of the certificate of {0} does not allow its role in this handshake")]
    ExtendedKeyUsage(SpiffeId),
    #[error("the certificate of {0}, or one that it chains to, has expired: renew it, or check both clocks")]
    Expired(SpiffeId),
    #[error("the certificate of {0}, or one that it chains to, is not valid yet: check both clocks")]
    NotYetValid(SpiffeId),
    #[error("no bundle of trust domain {0} is held: federate with it first")]
    NoBundle(TrustDomain),
    #[error(
        "no authority in the held bundle of trust domain {0} signed the chain: the bundle is stale, or another's"
    )]
    UnknownAuthority(TrustDomain),
    #[error("the chain of {0} does not validate: {1}")]
    Path(SpiffeId, String),
}

impl From<SvidError> for rustls::Error {
    /// What a peer reads of it is the alert, so each cause that it must tell apart gets one of its own: `unknown_ca`,
    /// `certificate_expired`, and `handshake_failure` for all the rest. The cause itself can be taken out of
    /// [`rustls::Error::Other`] again.
    fn from(error: SvidError) -> Self {
        match error {
            SvidError::UnknownAuthority(_) => CertificateError::UnknownIssuer.into(),
            SvidError::Expired(_) => CertificateError::Expired.into(),
            SvidError::NotYetValid(_) => CertificateError::NotValidYet.into(),
            other => Self::Other(OtherError(Arc::new(other))),
        }
    }
}

/// Verifies a chain, leaf first, and returns the SPIFFE ID that it proves. `bundle_for` gives the bundle held of a trust
/// domain; one of another trust domain than asked for counts as none.
///
/// # Errors
/// [`SvidError`] names the rule that the chain breaks.
pub fn verify_svid(
    chain: &[CertificateDer<'_>],
    bundle_for: &dyn Fn(&TrustDomain) -> Option<Arc<Bundle>>,
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, SvidError> {
    let (leaf, rest) = chain.split_first().ok_or(SvidError::NoCertificate)?;
    if chain.len() > MAX_CHAIN {
        return Err(SvidError::ChainTooLong(chain.len()));
    }
    let id = leaf_id(leaf)?;
    let trust_domain = id.trust_domain();
    let bundle = bundle_for(trust_domain)
        .filter(|bundle| bundle.trust_domain() == trust_domain)
        .ok_or_else(|| SvidError::NoBundle(trust_domain.clone()))?;
    let intermediates: Vec<CertificateDer<'_>> = rest.iter().filter(|der| may_sign(der)).cloned().collect();
    let path = Path { leaf, intermediates: &intermediates, id: &id, role, now };
    path.verify(&bundle)?;
    Ok(id)
}

/// The SPIFFE ID that a certificate names, whoever signed it: for words to an operator, never for trust.
#[must_use]
pub fn claimed_id(der: &[u8]) -> Option<SpiffeId> {
    leaf_id(der).ok()
}

/// The SPIFFE ID of a leaf that keeps the rules for leaves; its chain is not looked at.
fn leaf_id(der: &[u8]) -> Result<SpiffeId, SvidError> {
    let malformed = |e: &dyn std::fmt::Display| SvidError::Malformed(e.to_string());
    let (trailing, leaf) = X509Certificate::from_der(der).map_err(|e| malformed(&e))?;
    if !trailing.is_empty() {
        return Err(SvidError::Malformed("bytes follow the certificate".to_owned()));
    }
    let names = leaf.subject_alternative_name().map_err(|e| malformed(&e))?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // a name that cannot be read might be a second URI
            GeneralName::Invalid(..) => return Err(SvidError::Malformed("a subject name".to_owned())),
            _ => {}
        }
    }
    let uri = match uris.as_slice() {
        [] => return Err(SvidError::NoUriSan),
        [uri] => *uri,
        several => return Err(SvidError::SeveralUriSans(several.len())),
    };
    let id = SpiffeId::new(uri).map_err(|e| SvidError::NotSpiffe(e.to_string()))?;
    if id.path().is_empty() {
        return Err(SvidError::NoPath(id));
    }
    if leaf.basic_constraints().map_err(|e| malformed(&e))?.is_some_and(|c| c.value.ca) {
        return Err(SvidError::CaLeaf(id));
    }
    match leaf.key_usage().map_err(|e| malformed(&e))? {
        Some(usage)
            if usage.value.digital_signature() && !usage.value.key_cert_sign() && !usage.value.crl_sign() =>
        {
            Ok(id)
        }
        _ => Err(SvidError::KeyUsage(id)),
    }
}

/// Whether a certificate may stand between leaf and authority as far as its key usage goes (RFC 5280, 6.1.4 n), which
/// webpki leaves to its caller. One that may not is left out, so that it harms nothing unless the path needs it.
fn may_sign(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|u| u.value.key_cert_sign()))
    })
}

struct Path<'a> {
    leaf: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
    id: &'a SpiffeId,
    role: Role,
    now: UnixTime,
}

impl Path<'_> {
    fn verify(&self, bundle: &Bundle) -> Result<(), SvidError> {
        let seconds = i64::try_from(self.now.as_secs()).unwrap_or(i64::MAX);
        let is_current = |a: &&crate::model::Authority| {
            a.not_before().as_second() <= seconds && seconds <= a.not_after().as_second()
        };
        // webpki takes an anchor as given and does not look at its validity
        let (current, other): (Vec<_>, Vec<_>) = bundle.authorities().partition(is_current);
        match self.any(current.into_iter()) {
            Err(SvidError::UnknownAuthority(td)) => match self.any(other.into_iter()) {
                Ok(()) => Err(SvidError::Expired(self.id.clone())),
                Err(_) => Err(SvidError::UnknownAuthority(td)),
            },
            verdict => verdict,
        }
    }

    /// Whether one of the authorities ends the path; if none does, what kept the most telling one from it.
    fn any<'b>(
        &self,
        authorities: impl Iterator<Item = &'b crate::model::Authority>,
    ) -> Result<(), SvidError> {
        let unknown = SvidError::UnknownAuthority(self.id.trust_domain().clone());
        let anchors: Vec<_> = authorities.map(|a| CertificateDer::from(a.der())).collect();
        let mut verdict = unknown.clone();
        for part in anchors.chunks(AUTHORITIES_AT_ONCE) {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(part.iter().cloned());
            if roots.is_empty() {
                continue;
            }
            match self.under(roots) {
                Ok(()) => return Ok(()),
                Err(error) if verdict == unknown => verdict = error,
                Err(_) => {}
            }
        }
        Err(verdict)
    }

    fn under(&self, roots: RootCertStore) -> Result<(), SvidError> {
        let provider = provider();
        let result = match self.role {
            Role::Server => ParsedCertificate::try_from(self.leaf).and_then(|leaf| {
                rustls::client::verify_server_cert_signed_by_trust_anchor(
                    &leaf,
                    &roots,
                    self.intermediates,
                    self.now,
                    provider.signature_verification_algorithms.all,
                )
            }),
            Role::Client => WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| SvidError::Path(self.id.clone(), e.to_string()))?
                .verify_client_cert(self.leaf, self.intermediates, self.now)
                .map(|_| ()),
        };
        result.map_err(|error| self.cause(error))
    }

    fn cause(&self, error: rustls::Error) -> SvidError {
        use CertificateError as E;
        let id = || self.id.clone();
        match error {
            rustls::Error::InvalidCertificate(error) => match error {
                // where authorities share a subject, a missing one shows as a wrong signature or key type
                E::UnknownIssuer
                | E::BadSignature
                | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                    SvidError::UnknownAuthority(self.id.trust_domain().clone())
                }
                E::Expired | E::ExpiredContext { .. } => SvidError::Expired(id()),
                E::NotValidYet | E::NotValidYetContext { .. } => SvidError::NotYetValid(id()),
                E::InvalidPurpose | E::InvalidPurposeContext { .. } => SvidError::ExtendedKeyUsage(id()),
                other => SvidError::Path(id(), other.to_string()),
            },
            other => SvidError::Path(id(), other.to_string()),
        }
    }
}

/// For [`rustls::client::danger::ServerCertVerifier`] and its counterpart at the server: who holds the chain's key?
///
/// # Errors
/// The signature does not verify, or is of a kind that was not offered.
pub fn verify_tls12_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = provider().signature_verification_algorithms;
    rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
}

/// As [`verify_tls12_signature`], for TLS 1.3.
///
/// # Errors
/// The signature does not verify, or is of a kind that was not offered.
pub fn verify_tls13_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
}

/// The signature schemes that these two verify, most wanted first.
#[must_use]
pub fn supported_verify_schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}

/// Inside an implementation of [`rustls::client::danger::ServerCertVerifier`] or its counterpart at the server: what
/// both ask beside the judgement of a chain, answered by the functions above.
macro_rules! verify_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &rustls::pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            $crate::identity::verify::verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &rustls::pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            $crate::identity::verify::verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            $crate::identity::verify::supported_verify_schemes()
        }
    };
}
pub(crate) use verify_signatures;

/// Whether who has the key of this certificate signed it: then what it says of itself is that holder's word, and not
/// that of someone who put another's public key into a certificate of their own.
#[must_use]
pub fn is_self_signed(der: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let key = &certificate.public_key().subject_public_key.data;
    let (message, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
    let provider = provider();
    let mut algorithms = provider.signature_verification_algorithms.all.iter();
    algorithms.any(|algorithm| algorithm.verify_signature(key, message, signature).is_ok())
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;

//! An X.509 authority of a trust domain.

use std::fmt;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::TrustDomain;

/// The longest subject key identifier that names an authority, in bytes.
const MAX_KEY_ID: usize = 64;

/// Names an authority as SPIRE does: the subject key identifier in lower-case hex; the SHA-256 of the certificate
/// where it has none, or one of more than 64 bytes, which no status takes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorityId(String);

impl AuthorityId {
    /// Reads an ID that a peer or an API sent: lower-case hex of 1 to 64 bytes.
    ///
    /// # Errors
    /// [`AuthorityError::Id`] for anything else.
    pub fn parse(text: &str) -> Result<Self, AuthorityError> {
        let legal = !text.is_empty()
            && text.len() <= MAX_KEY_ID * 2
            && text.len().is_multiple_of(2)
            && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if legal { Ok(Self(text.to_owned())) } else { Err(AuthorityError::Id) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One CA certificate that signs for a trust domain.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    id: AuthorityId,
    fingerprint: [u8; 32],
    key: [u8; 32],
    names: Option<TrustDomain>,
    der: Vec<u8>,
    not_before: Timestamp,
    not_after: Timestamp,
    /// Set where SPIRE's own API says so; bundle endpoints do not carry it.
    pub tainted: bool,
}

/// Why bytes are no X.509 authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("not one DER certificate: {0}")]
    Der(String),
    #[error("the certificate is not a CA (basic constraints), so it cannot be an authority")]
    NotCa,
    #[error("the certificate's validity is out of range")]
    Validity,
    #[error("an authority ID is lower-case hex of 1 to 64 bytes")]
    Id,
}

impl Authority {
    /// Parses exactly one DER certificate that is a CA.
    ///
    /// # Errors
    /// [`AuthorityError`] says what is wrong with it.
    pub fn parse(der: &[u8]) -> Result<Self, AuthorityError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|e| AuthorityError::Der(e.to_string()))?;
        if !rest.is_empty() {
            return Err(AuthorityError::Der(format!("{} bytes follow it", rest.len())));
        }
        if !certificate.is_ca() {
            return Err(AuthorityError::NotCa);
        }
        let at = |seconds| Timestamp::from_second(seconds).map_err(|_| AuthorityError::Validity);
        let fingerprint: [u8; 32] = Sha256::digest(der).into();
        let key_id = certificate.extensions().iter().find_map(|extension| {
            if let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() {
                Some(id.0).filter(|id| (1..=MAX_KEY_ID).contains(&id.len())).map(hex::encode)
            } else {
                None
            }
        });
        Ok(Self {
            id: AuthorityId(key_id.unwrap_or_else(|| hex::encode(fingerprint))),
            fingerprint,
            key: Sha256::digest(certificate.public_key().raw).into(),
            names: named(&certificate),
            der: der.to_vec(),
            not_before: at(certificate.validity().not_before.timestamp())?,
            not_after: at(certificate.validity().not_after.timestamp())?,
            tainted: false,
        })
    }

    #[must_use]
    pub fn id(&self) -> &AuthorityId {
        &self.id
    }

    /// SHA-256 of the DER.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// SHA-256 of its public key (SubjectPublicKeyInfo): what signs, in whatever certificate it stands.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        self.key
    }

    /// The trust domain that the certificate itself says it signs for (X509-SVID 3.1: `spiffe://` and no path), as
    /// SPIRE's do.
    #[must_use]
    pub fn names(&self) -> Option<&TrustDomain> {
        self.names.as_ref()
    }

    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    #[must_use]
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether it can validate an SVID at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

fn named(certificate: &X509Certificate<'_>) -> Option<TrustDomain> {
    let names = certificate.subject_alternative_name().ok().flatten()?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (uri, more) = (uris.next()?, uris.next());
    let name = uri.strip_prefix("spiffe://").filter(|_| more.is_none())?;
    TrustDomain::new(name.strip_suffix('/').unwrap_or(name)).ok()
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .field("tainted", &self.tainted)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::KeyIdMethod;

    use super::*;
    use crate::bundle::testing::{Ca, ca_params};

    #[test]
    fn every_authority_has_an_id_that_can_be_written() {
        for (length, is_its_own) in [(0, false), (1, true), (64, true), (65, false), (4_000, false)] {
            let mut params = ca_params();
            params.key_identifier_method = KeyIdMethod::PreSpecified(vec![0xab; length]);
            let authority = Authority::parse(&Ca::with(params).der).unwrap();
            let id = authority.id();
            assert_eq!(AuthorityId::parse(id.as_str()).as_ref(), Ok(id), "{length}");
            let expected =
                if is_its_own { "ab".repeat(length) } else { hex::encode(authority.fingerprint()) };
            assert_eq!(id.as_str(), expected);
        }
    }
}

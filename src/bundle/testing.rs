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

/// A CA. All have one subject, as those of SPIRE do.
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

    pub(crate) fn bundle(&self, trust_domain: &str) -> Arc<Bundle> {
        Arc::new(Bundle::new(td(trust_domain), [self.authority()]))
    }
}

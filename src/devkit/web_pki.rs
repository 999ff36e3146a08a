//! A certificate authority of the kind that browsers trust, made for one run: it signs for `https_web`.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::DevkitError;
use crate::identity::tls::provider;

/// The root, and a certificate of it for `localhost` and the loopback addresses.
#[derive(Clone, Debug)]
pub(super) struct WebPki {
    pub(super) root: CertificateDer<'static>,
    pub(super) server: Arc<CertifiedKey>,
}

impl WebPki {
    pub(super) fn new() -> Result<Self, DevkitError> {
        let mut root = CertificateParams::default();
        root.distinguished_name.push(DnType::CommonName, "entente devkit web root, not for production");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root_key = KeyPair::generate().map_err(certificate)?;
        let root_certificate = root.self_signed(&root_key).map_err(certificate)?;

        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut leaf = CertificateParams::new(names).map_err(certificate)?;
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(certificate)?;
        let issuer = Issuer::from_params(&root, &root_key);
        let leaf = leaf.signed_by(&key, &issuer).map_err(certificate)?;
        Ok(Self {
            root: root_certificate.der().clone(),
            server: certified(vec![leaf.der().clone()], key.serialize_der())?,
        })
    }
}

/// A chain with its PKCS#8 key, as rustls serves it.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
) -> Result<Arc<CertifiedKey>, DevkitError> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(DevkitError::Tls)
}

fn certificate(error: rcgen::Error) -> DevkitError {
    DevkitError::Authority(error.into())
}

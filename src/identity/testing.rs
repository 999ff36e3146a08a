//! Trust domains of any shape for tests: authority, SVIDs, and what a Workload API would say of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rcgen::CertificateParams;
use rustls::pki_types::PrivateKeyDer;

use super::source::IdentitySource;
use super::workload::{Svids, read};
use crate::bundle::testing::{Ca, Signed, ca_params, leaf_params, td};
use crate::model::{Authority, Bundle, TrustDomain};
use crate::proto::workload::{X509svid, X509svidResponse};

/// Valid at any time a test may run, unlike those of `bundle::testing`, which have a time of their own.
pub(crate) fn lasting(mut params: CertificateParams) -> CertificateParams {
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2100, 1, 1);
    params
}

pub(crate) fn authority() -> Ca {
    Ca::with(lasting(ca_params()))
}

/// One trust domain, with its agent.
pub(crate) struct Domain {
    pub(crate) td: TrustDomain,
    pub(crate) ca: Ca,
    pub(crate) agent: String,
}

impl Domain {
    pub(crate) fn new(name: &str) -> Self {
        let agent = format!("spiffe://{name}/ns/entente-system/sa/entente");
        Self { td: td(name), ca: authority(), agent }
    }

    pub(crate) fn bundle(&self) -> Arc<Bundle> {
        self.bundle_of(&[&self.ca])
    }

    pub(crate) fn bundle_of(&self, authorities: &[&Ca]) -> Arc<Bundle> {
        Arc::new(Bundle::new(
            self.td.clone(),
            authorities.iter().map(|ca| Authority::parse(&ca.der).unwrap()),
        ))
    }

    pub(crate) fn svid(&self, id: &str, hint: &str) -> X509svid {
        self.message(id, hint, &self.ca.sign(&lasting(leaf_params(&[id]))))
    }

    /// A message for any certificate at all.
    pub(crate) fn message(&self, id: &str, hint: &str, signed: &Signed) -> X509svid {
        let PrivateKeyDer::Pkcs8(key) = &signed.key else { panic!("PKCS#8") };
        X509svid {
            spiffe_id: id.to_owned(),
            x509_svid: signed.der.to_vec(),
            x509_svid_key: key.secret_pkcs8_der().to_vec(),
            bundle: self.ca.der.to_vec(),
            hint: hint.to_owned(),
        }
    }

    /// What the Workload API says to the agent.
    pub(crate) fn response(&self, federated: &[&Bundle]) -> X509svidResponse {
        let federated: BTreeMap<_, _> = federated
            .iter()
            .map(|bundle| {
                let der = bundle.authorities().flat_map(|a| a.der().to_vec()).collect();
                (bundle.trust_domain().id_string(), der)
            })
            .collect();
        X509svidResponse {
            svids: vec![self.svid(&self.agent, "")],
            federated_bundles: federated.into_iter().collect(),
        }
    }

    pub(crate) fn svids(&self, federated: &[&Bundle]) -> Svids {
        read(self.response(federated), None).unwrap()
    }

    /// A source as of a Workload API that has answered.
    pub(crate) fn source(&self, federated: &[&Bundle]) -> IdentitySource {
        let source = IdentitySource::empty();
        source.publish(self.svids(federated));
        source
    }
}

//! ClusterFederatedTrustDomain: the part of it that the agent looks at, of its own and of others'.

use serde::Deserialize;

use super::field::{self, Problem};
use super::{reject, spec};
use crate::model::world::Rejected;
use crate::model::{Object, TrustDomain};

/// A ClusterFederatedTrustDomain that names a trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederatedTrustDomain {
    pub trust_domain: TrustDomain,
    pub class_name: String,
    /// `trustDomainBundle` as it stands there, not parsed; `None` where it is absent or empty.
    pub bundle: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    trust_domain: String,
    #[serde(default)]
    class_name: Option<String>,
    #[serde(default)]
    trust_domain_bundle: Option<String>,
}

/// Reads a ClusterFederatedTrustDomain. Its own schema lets names through that are no trust domain, and
/// spire-controller-manager does nothing with these either.
///
/// # Errors
/// [`Rejected`] with the field and the rule.
pub fn parse(object: &Object) -> Result<FederatedTrustDomain, Rejected> {
    read(object).map_err(|problem| reject(object, None, problem))
}

fn read(object: &Object) -> Result<FederatedTrustDomain, Problem> {
    let spec: Spec = spec(object)?;
    Ok(FederatedTrustDomain {
        trust_domain: field::trust_domain("spec.trustDomain", &spec.trust_domain)?,
        class_name: spec.class_name.unwrap_or_default(),
        bundle: spec.trust_domain_bundle.filter(|text| !text.is_empty()),
    })
}

//! Bundles and endpoints, between SPIRE's API types and the model.

use super::jwk;
use crate::model::endpoint::{BundleEndpoint, EndpointProfile, EndpointUrl};
use crate::model::trust::Relationship;
use crate::model::{Authority, Bundle, SpiffeId, TrustDomain};
use crate::proto::spire::types;
use crate::proto::spire::types::federation_relationship::BundleEndpointProfile;

/// Reads a bundle of SPIRE's API. What of it does not parse is left out, and named to `complain`.
///
/// # Errors
/// The reason, if its trust domain is no trust domain.
pub fn bundle_from_proto(proto: &types::Bundle, mut complain: impl FnMut(String)) -> Result<Bundle, String> {
    let trust_domain =
        TrustDomain::new(&proto.trust_domain).map_err(|e| format!("{:?}: {e}", proto.trust_domain))?;
    let mut authorities = Vec::with_capacity(proto.x509_authorities.len());
    for (index, certificate) in proto.x509_authorities.iter().enumerate() {
        match Authority::parse(&certificate.asn1) {
            Ok(mut authority) => {
                authority.tainted = certificate.tainted;
                authorities.push(authority);
            }
            Err(e) => complain(format!("X.509 authority {index} of {trust_domain} is left out: {e}")),
        }
    }
    let mut bundle = Bundle::new(trust_domain, authorities);
    for key in &proto.jwt_authorities {
        if let Some(jwk) = jwk::from_proto(key) {
            bundle.jwt.insert(key.key_id.clone(), jwk);
        } else {
            let of = bundle.trust_domain().clone();
            complain(format!(
                "JWT authority {:?} of {of} is left out: not a P-256, P-384 or RSA key",
                key.key_id
            ));
        }
    }
    // SPIRE drops the sequence of federated bundles and says 0.
    bundle.sequence = Some(proto.sequence_number).filter(|n| *n != 0);
    bundle.refresh_hint = u64::try_from(proto.refresh_hint).ok().filter(|n| *n != 0);
    Ok(bundle)
}

/// Writes a bundle for SPIRE's API. JWT authorities of a kind that SPIRE cannot take are left out.
#[must_use]
pub fn bundle_to_proto(bundle: &Bundle) -> types::Bundle {
    types::Bundle {
        trust_domain: bundle.trust_domain().to_string(),
        x509_authorities: bundle
            .authorities()
            .map(|a| types::X509Certificate { asn1: a.der().to_vec(), tainted: a.tainted })
            .collect(),
        jwt_authorities: bundle.jwt.iter().filter_map(|(id, jwk)| jwk::to_proto(id, jwk)).collect(),
        refresh_hint: bundle.refresh_hint.and_then(|n| i64::try_from(n).ok()).unwrap_or(0),
        sequence_number: bundle.sequence.unwrap_or(0),
    }
}

/// Reads a relationship.
///
/// # Errors
/// The reason, naming the field.
pub(crate) fn relationship_from_proto(proto: &types::FederationRelationship) -> Result<Relationship, String> {
    let trust_domain = TrustDomain::new(&proto.trust_domain).map_err(|e| format!("trust domain: {e}"))?;
    let url =
        EndpointUrl::parse(&proto.bundle_endpoint_url).map_err(|e| format!("bundle endpoint URL: {e}"))?;
    let profile = match &proto.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => EndpointProfile::HttpsWeb,
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => EndpointProfile::HttpsSpiffe {
            endpoint_id: SpiffeId::new(&profile.endpoint_spiffe_id)
                .map_err(|e| format!("endpoint SPIFFE ID {:?}: {e}", profile.endpoint_spiffe_id))?,
        },
        None => return Err("bundle endpoint profile: neither https_web nor https_spiffe".to_owned()),
    };
    Ok(Relationship { trust_domain, endpoint: BundleEndpoint { url, profile } })
}

/// Writes a relationship, with the bundle to store beside it; without one SPIRE keeps what it has.
pub(crate) fn relationship_to_proto(
    relationship: &Relationship,
    bundle: Option<&Bundle>,
) -> types::FederationRelationship {
    let profile = match &relationship.endpoint.profile {
        EndpointProfile::HttpsWeb => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
        EndpointProfile::HttpsSpiffe { endpoint_id } => {
            BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: endpoint_id.to_string(),
            })
        }
    };
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.to_string(),
        bundle_endpoint_url: relationship.endpoint.url.to_string(),
        bundle_endpoint_profile: Some(profile),
        trust_domain_bundle: bundle.map(bundle_to_proto),
    }
}

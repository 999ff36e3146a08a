//! How a trust domain is reached, as it tells another one: what a TrustDomainPeer is made of.

use std::collections::BTreeSet;

use serde_json::json;

use crate::bundle::document;
use crate::index::parse::trust_domain_peer;
use crate::model::endpoint::{BundleEndpoint, EndpointProfile};
use crate::model::object::{Kind, ObjectKey};
use crate::model::{Bundle, Object, SpiffeId, TrustDomain};
use crate::plan::generated::object_name;
use crate::proto::enrol::v1 as wire;

/// Marks a TrustDomainPeer that was made by joining. It is the operator's own all the same.
pub const LABEL_JOINED: &str = "entente.dev/joined";
/// On such a TrustDomainPeer: the fingerprint of the bundle that it begins with, to be compared by voice.
pub const ANNOTATION_FINGERPRINT: &str = "entente.dev/joined-fingerprint";

/// How a trust domain is reached. Always such that a TrustDomainPeer of it is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub trust_domain: TrustDomain,
    /// `host:port`, in order of preference; empty where only the other side can be dialled.
    pub agent_addresses: Vec<String>,
    /// Never empty, and in its trust domain.
    pub agent_ids: BTreeSet<SpiffeId>,
    /// With `https_spiffe`, the endpoint's ID lies in the same trust domain.
    pub endpoint: BundleEndpoint,
}

/// Why what was told cannot be used; in words for an operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OfferError(String);

impl Offer {
    /// Reads what the other side, or our own configuration, says. `agent_ids` and addresses are bounded as in a
    /// TrustDomainPeer, whose rules these are.
    ///
    /// # Errors
    /// [`OfferError`] names the field of a TrustDomainPeer that it would break.
    pub fn parse(given: &wire::Offer) -> Result<Self, OfferError> {
        let trust_domain = crate::index::parse::field::trust_domain("trustDomain", &given.trust_domain)
            .map_err(|problem| OfferError(problem.message))?;
        let object = manifest(&trust_domain, given, None);
        let peer =
            trust_domain_peer::parse(&object, None).map_err(|rejected| OfferError(rejected.message))?;
        if let EndpointProfile::HttpsSpiffe { endpoint_id } = &peer.endpoint.profile
            && *endpoint_id.trust_domain() != trust_domain
        {
            return Err(OfferError(format!(
                "the bundle endpoint's ID {endpoint_id} lies in another trust domain than {trust_domain}, whose bundle \
                 nobody holds here: write the TrustDomainPeers by hand"
            )));
        }
        Ok(Self {
            trust_domain: peer.trust_domain,
            agent_addresses: peer.agent_addresses,
            agent_ids: peer.agent_ids,
            endpoint: peer.endpoint,
        })
    }

    /// As it is sent.
    #[must_use]
    pub fn to_wire(&self) -> wire::Offer {
        let bundle_endpoint_id = match &self.endpoint.profile {
            EndpointProfile::HttpsWeb => String::new(),
            EndpointProfile::HttpsSpiffe { endpoint_id } => endpoint_id.to_string(),
        };
        wire::Offer {
            trust_domain: self.trust_domain.to_string(),
            agent_addresses: self.agent_addresses.clone(),
            agent_ids: self.agent_ids.iter().map(ToString::to_string).collect(),
            bundle_endpoint_url: self.endpoint.url.to_string(),
            bundle_endpoint_id,
        }
    }

    /// The TrustDomainPeer with which the other side makes this trust domain its peer: nothing is imported, and no
    /// registration but the agent's own federates, until its operator says so.
    #[must_use]
    pub fn peer_object(&self, bundle: &Bundle) -> Object {
        let mut object = manifest(&self.trust_domain, &self.to_wire(), Some(bundle));
        object.meta.labels.insert(LABEL_JOINED.to_owned(), "true".to_owned());
        let spoken = super::fingerprint::spoken(&bundle.digest());
        object.meta.annotations.insert(ANNOTATION_FINGERPRINT.to_owned(), spoken);
        object
    }

    /// The name of that object.
    #[must_use]
    pub fn peer_key(trust_domain: &TrustDomain) -> ObjectKey {
        ObjectKey::cluster(Kind::TrustDomainPeer, object_name(trust_domain.as_str()))
    }
}

fn manifest(trust_domain: &TrustDomain, given: &wire::Offer, bundle: Option<&Bundle>) -> Object {
    let profile = if given.bundle_endpoint_id.is_empty() {
        json!({ "type": "https_web" })
    } else {
        json!({ "type": "https_spiffe", "endpointSPIFFEID": given.bundle_endpoint_id })
    };
    let mut spec = json!({
        "trustDomain": trust_domain.as_str(),
        "bundleEndpoint": { "url": given.bundle_endpoint_url, "profile": profile },
        "agent": { "addresses": given.agent_addresses, "spiffeIDs": given.agent_ids },
    });
    if let (Some(fields), Some(bundle)) = (spec.as_object_mut(), bundle) {
        fields.insert("bootstrapBundle".to_owned(), json!({ "inline": document::write(bundle) }));
    }
    Object::desired(Offer::peer_key(trust_domain), spec)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// An offer of this trust domain by SPIRE's conventions.
    pub(crate) fn offer(trust_domain: &str, address: &str, url: &str) -> Offer {
        Offer::parse(&wire::Offer {
            trust_domain: trust_domain.to_owned(),
            agent_addresses: vec![address.to_owned()],
            agent_ids: vec![format!("spiffe://{trust_domain}/ns/entente-system/sa/entente")],
            bundle_endpoint_url: url.to_owned(),
            bundle_endpoint_id: format!("spiffe://{trust_domain}/spire/server"),
        })
        .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::testing::Ca;

    #[test]
    fn what_is_sent_is_read_back_and_makes_a_peer_that_is_accepted() {
        let offer = testing::offer("west.example", "192.0.2.1:7443", "https://192.0.2.1:8443/");
        assert_eq!(Offer::parse(&offer.to_wire()).unwrap(), offer);
        let bundle = Ca::new().bundle("west.example");
        let object = offer.peer_object(&bundle);
        let peer = trust_domain_peer::parse(&object, None).unwrap();
        assert_eq!((peer.trust_domain, peer.endpoint), (offer.trust_domain, offer.endpoint));
        assert!(peer.federates_with.is_none() && peer.imports.services.is_empty());
        assert_eq!(peer.bootstrap, Some(crate::model::peer::Bootstrap::Inline(bundle)));
    }

    #[test]
    fn what_breaks_a_rule_of_a_peer_is_refused_by_its_name() {
        let good = testing::offer("west.example", "192.0.2.1:7443", "https://192.0.2.1:8443/").to_wire();
        let other = "spiffe://east.example/spire/server".to_owned();
        let bad = [
            (wire::Offer { trust_domain: "West".to_owned(), ..good.clone() }, "trustDomain"),
            (wire::Offer { agent_ids: vec![other.clone()], ..good.clone() }, "spiffeIDs"),
            (wire::Offer { agent_ids: Vec::new(), ..good.clone() }, "spiffeIDs"),
            (wire::Offer { agent_addresses: vec!["x".to_owned()], ..good.clone() }, "addresses"),
            (
                wire::Offer { agent_addresses: vec!["192.0.2.1:1".to_owned(); 17], ..good.clone() },
                "addresses",
            ),
            (wire::Offer { bundle_endpoint_url: "http://x/".to_owned(), ..good.clone() }, "url"),
            (wire::Offer { bundle_endpoint_id: other, ..good }, "another trust domain"),
        ];
        for (offer, field) in bad {
            let error = Offer::parse(&offer).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}

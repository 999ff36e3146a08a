//! `GET /v1/bundles`: the bundles that our workloads verify with, ours and the peers'. They are public.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Control, Problem};
use crate::model::Bundle;

/// What the Workload API delivers to the agent, as it does to every workload that federates with all peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldBundles {
    /// Our own trust domain, which has a bundle among the others.
    pub trust_domain: String,
    /// By trust domain.
    pub bundles: BTreeMap<String, HeldAuthorities>,
    /// Foreign bundles that do not parse, with the reason.
    pub malformed: BTreeMap<String, String>,
}

/// One bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldAuthorities {
    /// Of the X.509 authorities, as statuses have it.
    pub digest: String,
    pub authorities: Vec<HeldAuthority>,
}

/// One X.509 authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldAuthority {
    /// As SPIRE names it: the subject key identifier.
    pub id: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// Its DER, in base64.
    pub certificate: String,
}

impl From<&Bundle> for HeldAuthorities {
    fn from(bundle: &Bundle) -> Self {
        let authorities = bundle.authorities().map(|authority| HeldAuthority {
            id: authority.id().to_string(),
            not_before: authority.not_before(),
            not_after: authority.not_after(),
            certificate: BASE64.encode(authority.der()),
        });
        Self { digest: bundle.digest().to_string(), authorities: authorities.collect() }
    }
}

pub(super) async fn bundles(State(control): State<Control>) -> Result<Json<HeldBundles>, Problem> {
    let world = control.world().await?;
    let identity = world.identity.as_ref().ok_or_else(|| {
        Problem::unavailable(
            "the Workload API has not told us who we are yet: is the agent registered in SPIRE?",
        )
    })?;
    let own = [(&identity.trust_domain, &identity.bundle)];
    let all = own.into_iter().chain(&identity.federated);
    Ok(Json(HeldBundles {
        trust_domain: identity.trust_domain.to_string(),
        bundles: all.map(|(name, bundle)| (name.to_string(), (&**bundle).into())).collect(),
        malformed: identity.malformed.clone(),
    }))
}

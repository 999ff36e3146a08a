//! The bundle map of a workload (SPIFFE Trust Domain and Bundle, section 5), as gRPC libraries read it (gRFC A87): keys of X.509
//! authorities alone, each with one certificate and without `kid`. They refuse the whole map for one key that they do not know.

use serde_json::{Map, Value, json};

use crate::bundle::document;
use crate::model::Bundle;
use crate::model::own::Identity;

/// The kinds of keys that all of them read.
const KINDS: [&str; 2] = ["EC", "RSA"];

/// All that the workload can verify: its own trust domain, and those that it federates with. A bundle without authorities is in it,
/// since nobody of that trust domain is believed any more; one that does not parse is not, which comes to the same.
#[must_use]
pub(super) fn map(identity: &Identity) -> String {
    let all = std::iter::once(&identity.bundle).chain(identity.federated.values());
    let trust_domains: Map<String, Value> =
        all.map(|bundle| (bundle.trust_domain().to_string(), keys(bundle))).collect();
    let mut text = json!({ "trust_domains": trust_domains }).to_string();
    text.push('\n');
    text
}

fn keys(bundle: &Bundle) -> Value {
    let document: Value = serde_json::from_str(&document::write(bundle)).unwrap_or_default();
    let all = document.get("keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let says = |key: &Value, name: &str, value: &str| key.get(name).is_some_and(|there| there == value);
    let is_read =
        |key: &&Value| says(key, "use", "x509-svid") && KINDS.iter().any(|kind| says(key, "kty", kind));
    let keys: Vec<Value> = all.iter().filter(is_read).cloned().collect();
    if keys.len() < bundle.len() {
        tracing::warn!(
            trust_domain = %bundle.trust_domain(), left_out = bundle.len() - keys.len(),
            "an authority whose key is neither RSA nor EC is left out of the bundle map: gRPC libraries cannot read it"
        );
    }
    json!({ "keys": keys })
}

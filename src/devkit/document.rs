//! Bundle documents as SPIRE writes them, and as SPIRE reads them: stricter than the specification, one key that it
//! does not know costs the whole document. The agent's own reader is another one, in `crate::bundle`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::model::{Authority, Bundle, TrustDomain};
use crate::spire::public_members;

/// The document of a bundle (Trust Domain and Bundle, section 4): `spiffe_sequence` where it is not zero.
#[must_use]
pub fn write(bundle: &Bundle) -> String {
    with_keys(bundle, bundle.authorities().map(x509_key).chain(jwt_keys(bundle)).collect())
}

/// The document of a bundle, with other keys.
pub(super) fn with_keys(bundle: &Bundle, keys: Vec<Value>) -> String {
    let mut document = Map::from_iter([("keys".to_owned(), Value::Array(keys))]);
    if let Some(sequence) = bundle.sequence.filter(|n| *n != 0) {
        document.insert("spiffe_sequence".to_owned(), sequence.into());
    }
    document.insert("spiffe_refresh_hint".to_owned(), bundle.refresh_hint.unwrap_or(0).into());
    Value::Object(document).to_string()
}

/// The JWK of an X.509 authority: no `kid`, one certificate.
pub(super) fn x509_key(authority: &Authority) -> Value {
    let mut key = X509Certificate::from_der(authority.der())
        .ok()
        .and_then(|(_, certificate)| public_members(certificate.public_key().raw))
        .unwrap_or_default();
    key.insert("use".to_owned(), "x509-svid".into());
    key.insert("x5c".to_owned(), json!([STANDARD.encode(authority.der())]));
    Value::Object(key)
}

fn jwt_keys(bundle: &Bundle) -> impl Iterator<Item = Value> {
    bundle.jwt.values().cloned().map(Value::Object)
}

/// Reads a document as SPIRE does. Its sequence is dropped, and `keys` may be missing.
///
/// # Errors
/// SPIRE's words.
pub fn read_as_spire(trust_domain: &TrustDomain, body: &[u8]) -> Result<Bundle, String> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let document =
        values.next().unwrap_or(Ok(Value::Null)).map_err(|e| format!("failed to decode bundle: {e}"))?;
    if !document.is_object() {
        return Err("failed to decode bundle: not a JSON object".to_owned());
    }
    let mut authorities = Vec::new();
    let mut jwt = crate::model::bundle::JwtAuthorities::new();
    let none = Vec::new();
    let keys = document.get("keys").and_then(Value::as_array).unwrap_or(&none);
    for (index, key) in keys.iter().enumerate() {
        match key.get("use").and_then(Value::as_str).unwrap_or_default() {
            "x509-svid" => authorities.push(x509_entry(index, key)?),
            "jwt-svid" => {
                let id = key.get("kid").and_then(Value::as_str).filter(|id| !id.is_empty());
                let id = id.ok_or_else(|| format!("missing key ID in jwt-svid entry {index}"))?;
                jwt.insert(id.to_owned(), key.as_object().cloned().unwrap_or_default());
            }
            "" => return Err(format!("missing use for key entry {index}")),
            other => return Err(format!("unrecognized use {other:?} for key entry {index}")),
        }
    }
    let mut bundle = Bundle::new(trust_domain.clone(), authorities);
    bundle.jwt = jwt;
    bundle.refresh_hint = document.get("spiffe_refresh_hint").and_then(Value::as_u64).filter(|n| *n != 0);
    Ok(bundle)
}

fn x509_entry(index: usize, key: &Value) -> Result<Authority, String> {
    let certificates = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let [certificate] = certificates else {
        let count = certificates.len();
        return Err(format!("expected a single certificate in x509-svid entry {index}; got {count}"));
    };
    let der = certificate.as_str().and_then(|text| STANDARD.decode(text).ok());
    let der =
        der.ok_or_else(|| format!("failed to decode bundle: x5c of key entry {index} is not base64"))?;
    Authority::parse(&der).map_err(|e| format!("failed to decode bundle: key entry {index}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devkit::{Authority as Devkit, Settings};

    fn west() -> TrustDomain {
        TrustDomain::new("west.example").unwrap()
    }

    #[test]
    fn what_is_written_is_read_but_for_the_sequence() {
        let bundle =
            Devkit::new(west(), Settings::new(crate::clock::now())).unwrap().bundle().as_ref().clone();
        let document: Value = serde_json::from_str(&write(&bundle)).unwrap();
        assert_eq!(document["spiffe_sequence"], 1);
        assert_eq!(document["spiffe_refresh_hint"], 300);
        assert_eq!(document["keys"][0]["kty"], "EC");
        assert_eq!(document["keys"][0]["crv"], "P-256");
        assert_eq!(document["keys"][0].get("kid"), None);
        let read = read_as_spire(&west(), write(&bundle).as_bytes()).unwrap();
        assert_eq!((read.digest(), read.sequence), (bundle.digest(), None));
        assert_eq!(read.refresh_hint, Some(300));
    }

    #[test]
    fn one_strange_key_costs_the_document_and_missing_keys_do_not() {
        let read = |text: &str| read_as_spire(&west(), text.as_bytes());
        assert!(read("{}").unwrap().is_empty());
        assert!(read(r#"{"keys":[]}"#).unwrap().is_empty());
        for (text, words) in [
            (r#"{"keys":[{"use":"new"}]}"#, "unrecognized use \"new\" for key entry 0"),
            (r#"{"keys":[{"kty":"EC"}]}"#, "missing use for key entry 0"),
            (r#"{"keys":[{"use":"jwt-svid"}]}"#, "missing key ID in jwt-svid entry 0"),
            (
                r#"{"keys":[{"use":"x509-svid"}]}"#,
                "expected a single certificate in x509-svid entry 0; got 0",
            ),
            ("<html>", "failed to decode bundle"),
            ("", "failed to decode bundle"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
    }
}

//! Reading and writing SPIFFE bundle documents (SPIFFE Trust Domain and Bundle, section 4).
//!
//! The reader keeps the specification's tolerance: what it does not know it leaves out and names. The writer keeps
//! SPIRE's strictness: its own reader refuses a whole bundle for one key of an unknown use.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::jwk::{self, Jwk, Points};
use crate::model::{Authority, Bundle, TrustDomain};

/// Largest document, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Most keys in a document.
pub const MAX_KEYS: usize = 1000;
/// Most members and elements in a document, at any depth: in memory each may take a hundred times its place there.
const MAX_VALUES: usize = 32 * MAX_KEYS;
/// Longest key ID, in bytes.
const MAX_KEY_ID: usize = 1024;
/// Most remarks on what was left out.
const MAX_IGNORED: usize = 32;

/// A bundle, and what its document held that was left out, in words for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub bundle: Bundle,
    pub ignored: Vec<String>,
    /// Why SPIRE's own reader refuses the whole document, where it does (as SPIRE 1.15 and the JOSE library below it).
    pub refused_by_spire: Option<String>,
}

/// Why bytes are no bundle document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("the bundle document is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("the bundle document is not UTF-8")]
    NotUtf8,
    #[error("not a SPIFFE bundle document: {0}")]
    Json(String),
    #[error("the bundle document has {0} members and elements, more than {MAX_VALUES}")]
    TooManyValues(usize),
    #[error("the bundle has {0} keys, more than {MAX_KEYS}")]
    TooManyKeys(usize),
    /// Unlike an empty `keys`, which revokes, this must not be taken for a revocation.
    #[error("no X.509 authority in the bundle can be read: {0}")]
    NothingReadable(String),
    #[error("neither a SPIFFE bundle document (JSON) nor PEM certificates")]
    UnknownFormat,
    #[error("certificate {number} of the PEM is no authority: {cause}")]
    Pem { number: usize, cause: String },
    #[error("the PEM holds {0}: only certificates belong there, and a private key nowhere")]
    PemSection(String),
    #[error("the bundle holds no X.509 authority, so it can verify nothing")]
    Empty,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

/// Reads the bundle document of a trust domain. Keys that the specification says to ignore are; a key that is broken is
/// left out too, unless no X.509 authority is left by that. No keys at all are a bundle: an empty one, which revokes.
///
/// # Errors
/// [`DocumentError`] for what is no bundle document, or over a limit.
pub fn parse(trust_domain: &TrustDomain, bytes: &[u8]) -> Result<Parsed, DocumentError> {
    if bytes.len() > MAX_BYTES {
        return Err(DocumentError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| DocumentError::NotUtf8)?;
    // Before anything is made of it.
    let values = text.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if values > MAX_VALUES {
        return Err(DocumentError::TooManyValues(values));
    }
    let document: Document = serde_json::from_str(text).map_err(|e| DocumentError::Json(e.to_string()))?;
    if document.keys.len() > MAX_KEYS {
        return Err(DocumentError::TooManyKeys(document.keys.len()));
    }
    let mut keys = Keys::new();
    for (index, key) in document.keys.iter().enumerate() {
        keys.read(index, key);
    }
    if let (true, Some(cause)) = (keys.x509.is_empty(), keys.broken) {
        return Err(DocumentError::NothingReadable(cause));
    }
    let mut bundle = Bundle::new(trust_domain.clone(), keys.x509);
    bundle.jwt = keys.jwt.into_iter().collect();
    bundle.sequence = document.spiffe_sequence;
    bundle.refresh_hint = document.spiffe_refresh_hint;
    if keys.left_out > MAX_IGNORED {
        keys.ignored.push(format!("and {} more keys", keys.left_out - MAX_IGNORED));
    }
    Ok(Parsed { bundle, ignored: keys.ignored, refused_by_spire: keys.refused_by_spire })
}

struct Keys {
    points: Points,
    x509: Vec<Authority>,
    jwt: std::collections::BTreeMap<String, Jwk>,
    ignored: Vec<String>,
    left_out: usize,
    /// Why the first `x509-svid` key that is broken is so.
    broken: Option<String>,
    refused_by_spire: Option<String>,
}

impl Keys {
    const fn new() -> Self {
        Self {
            points: Points::unknown(),
            x509: Vec::new(),
            jwt: std::collections::BTreeMap::new(),
            ignored: Vec::new(),
            left_out: 0,
            broken: None,
            refused_by_spire: None,
        }
    }

    fn ignore(&mut self, index: usize, why: &str) {
        self.left_out += 1;
        if self.ignored.len() < MAX_IGNORED {
            self.ignored.push(format!("keys[{index}]: {why}"));
        }
    }

    fn read(&mut self, index: usize, key: &Value) {
        if self.refused_by_spire.is_none() {
            let why = refused_by_spire(key, &mut self.points);
            self.refused_by_spire = why.map(|why| format!("keys[{index}]: {why}"));
        }
        let Some(key) = key.as_object() else {
            return self.ignore(index, "not an object");
        };
        match key.get("kty").and_then(Value::as_str) {
            Some("EC" | "RSA" | "OKP") => {}
            Some(other) => return self.ignore(index, &format!("unknown kty {:?}", excerpt(other))),
            None => return self.ignore(index, "no kty"),
        }
        match key.get("use").and_then(Value::as_str) {
            Some("x509-svid") => self.x509(index, key),
            Some("jwt-svid") => self.jwt(index, key),
            Some(other) => self.ignore(index, &format!("unknown use {:?}", excerpt(other))),
            None => self.ignore(index, "no use"),
        }
    }

    fn x509(&mut self, index: usize, key: &Jwk) {
        let certificates = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let Some((first, rest)) = certificates.split_first() else {
            return self.ignore(index, "an x509-svid key without x5c");
        };
        match authority(first, &mut self.points) {
            Ok(authority) => {
                self.x509.push(authority);
                if !rest.is_empty() {
                    self.ignore(index, &format!("{} more certificates than the one of x5c", rest.len()));
                }
            }
            Err(cause) => {
                self.ignore(index, &cause);
                self.broken.get_or_insert_with(|| format!("keys[{index}]: {cause}"));
            }
        }
    }

    fn jwt(&mut self, index: usize, key: &Jwk) {
        let id = match key.get("kid").and_then(Value::as_str) {
            None | Some("") => return self.ignore(index, "a jwt-svid key without kid"),
            Some(id) if id.len() > MAX_KEY_ID => return self.ignore(index, "a kid of over 1,024 bytes"),
            Some(id) => id,
        };
        match jwk::public_members(key, &mut self.points) {
            Ok(mut members) => {
                if self.jwt.get(id).is_some_and(|held| !same_key(held, &members)) {
                    return self.ignore(index, "a second jwt-svid key of the same kid");
                }
                members.insert("kid".to_owned(), Value::from(id));
                members.insert("use".to_owned(), Value::from("jwt-svid"));
                self.jwt.insert(id.to_owned(), members);
            }
            Err(cause) => self.ignore(index, &format!("a jwt-svid key: {cause}")),
        }
    }
}

/// Why this key makes SPIRE refuse the document that it stands in.
fn refused_by_spire(key: &Value, points: &mut Points) -> Option<String> {
    let Some(key) = key.as_object() else { return Some("not an object".to_owned()) };
    let text = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or_default();
    match text("kty") {
        "EC" | "RSA" | "OKP" => {
            if let Err(cause) = jwk::public_members(key, points) {
                return Some(cause);
            }
        }
        "oct" => {}
        other => return Some(format!("unknown kty {:?}", excerpt(other))),
    }
    let certificates = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for certificate in certificates {
        let der = certificate.as_str().and_then(|text| STANDARD.decode(text).ok());
        let Some(members) = der.as_deref().and_then(|der| jwk::of_certificate(der, points)) else {
            return Some("x5c holds something else than certificates".to_owned());
        };
        if Some(certificate) == certificates.first()
            && jwk::public_members(key, points).is_ok_and(|own| own != members)
        {
            return Some("its public key is not that of its certificate".to_owned());
        }
    }
    match text("use") {
        "x509-svid" if certificates.len() != 1 => {
            Some(format!("{} certificates in x5c, where there must be one", certificates.len()))
        }
        "x509-svid" => None,
        "jwt-svid" | "wit-svid" if text("kid").is_empty() => Some("no kid".to_owned()),
        "jwt-svid" | "wit-svid" => None,
        "" => Some("no use".to_owned()),
        other => Some(format!("unknown use {:?}", excerpt(other))),
    }
}

fn same_key(held: &Jwk, members: &Jwk) -> bool {
    members.iter().all(|(name, value)| held.get(name) == Some(value))
}

fn authority(x5c: &Value, points: &mut Points) -> Result<Authority, String> {
    let text = x5c.as_str().ok_or("x5c holds something else than text")?;
    let der = STANDARD.decode(text).map_err(|e| format!("x5c is not base64: {e}"))?;
    expressible(&der, points)
}

/// An authority whose key a bundle document can carry: what cannot be written back for SPIRE is not held either.
fn expressible(der: &[u8], points: &mut Points) -> Result<Authority, String> {
    let authority = Authority::parse(der).map_err(|e| e.to_string())?;
    match jwk::of_certificate(der, points) {
        Some(_) => Ok(authority),
        None => Err("the kind of its public key has no JWK form".to_owned()),
    }
}

/// The beginning of text that a stranger wrote, for a message.
fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The bundle document of a bundle: equal bundles give equal bytes. SPIRE takes it, whatever the bundle was made from.
#[must_use]
pub fn write(bundle: &Bundle) -> String {
    let (mut keys, mut points) = (Vec::new(), Points::held());
    for authority in bundle.authorities() {
        if let Some(mut key) = jwk::of_certificate(authority.der(), &mut points) {
            key.insert("use".to_owned(), Value::from("x509-svid"));
            key.insert("x5c".to_owned(), json!([STANDARD.encode(authority.der())]));
            keys.push(Value::Object(key));
        }
    }
    for (id, members) in &bundle.jwt {
        if let (false, Ok(mut key)) = (id.is_empty(), jwk::public_members(members, &mut points)) {
            key.insert("kid".to_owned(), Value::from(id.as_str()));
            key.insert("use".to_owned(), Value::from("jwt-svid"));
            keys.push(Value::Object(key));
        }
    }
    let mut document = serde_json::Map::new();
    document.insert("keys".to_owned(), Value::Array(keys));
    if let Some(hint) = bundle.refresh_hint {
        // SPIRE multiplies it into a signed count of nanoseconds
        document.insert("spiffe_refresh_hint".to_owned(), Value::from(hint.min(u64::from(u32::MAX))));
    }
    if let Some(sequence) = bundle.sequence {
        document.insert("spiffe_sequence".to_owned(), Value::from(sequence));
    }
    Value::Object(document).to_string()
}

/// Reads a bundle of PEM certificates. It is an operator's own text, so one bad certificate refuses it.
///
/// # Errors
/// [`DocumentError`] names what is wrong, and with which certificate.
pub fn parse_pem(trust_domain: &TrustDomain, text: &str) -> Result<Bundle, DocumentError> {
    if text.len() > MAX_BYTES {
        return Err(DocumentError::TooLarge);
    }
    let (mut authorities, mut points) = (Vec::new(), Points::unknown());
    for (index, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()).enumerate() {
        let bad = |cause: String| DocumentError::Pem { number: index + 1, cause };
        if index >= MAX_KEYS {
            return Err(DocumentError::TooManyKeys(index + 1));
        }
        match section.map_err(|e| bad(e.to_string()))? {
            (SectionKind::Certificate, der) => authorities.push(expressible(&der, &mut points).map_err(bad)?),
            (kind, _) => return Err(DocumentError::PemSection(format!("{kind:?}"))),
        }
    }
    if authorities.is_empty() {
        Err(DocumentError::Empty)
    } else {
        Ok(Bundle::new(trust_domain.clone(), authorities))
    }
}

/// Reads the bundle that an operator gave to begin with: a SPIFFE bundle document (SPIFFE Federation, 5.2.2.2) or PEM.
///
/// # Errors
/// [`DocumentError`]; also for a bundle without X.509 authority, which can verify nothing.
pub fn parse_bootstrap(trust_domain: &TrustDomain, text: &str) -> Result<Parsed, DocumentError> {
    if text.trim_start().starts_with('{') {
        let parsed = parse(trust_domain, text.as_bytes())?;
        if parsed.bundle.is_empty() { Err(DocumentError::Empty) } else { Ok(parsed) }
    } else if text.contains("-----BEGIN ") {
        Ok(Parsed { bundle: parse_pem(trust_domain, text)?, ignored: Vec::new(), refused_by_spire: None })
    } else {
        Err(DocumentError::UnknownFormat)
    }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;

//! Public keys as JSON Web Keys (RFC 7517, 7518, 8037), in exactly the shape that SPIRE's reader takes: it refuses a
//! whole bundle for one key that it cannot build.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::NamedGroup;
use serde_json::{Map, Value};
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_SIG_ED25519, Oid};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::identity::tls::provider;

pub(super) type Jwk = Map<String, Value>;

/// Largest RSA modulus, in bytes: Go's TLS and ours take no larger one either.
const MAX_MODULUS: usize = 1024;

/// A public key as the members of its JWK.
enum Key {
    Ec { curve: &'static str, x: Vec<u8>, y: Vec<u8> },
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ed25519(Vec<u8>),
}

/// Points that were looked at: each is once, since that takes a key agreement.
#[derive(Debug)]
pub(super) struct Points {
    known: BTreeMap<(&'static str, Vec<u8>, Vec<u8>), bool>,
    trusted: bool,
}

impl Points {
    /// For keys that a stranger wrote.
    pub(super) const fn unknown() -> Self {
        Self { known: BTreeMap::new(), trusted: false }
    }

    /// For keys that are held: nothing is held before its points were looked at, by us or by SPIRE.
    pub(super) const fn held() -> Self {
        Self { known: BTreeMap::new(), trusted: true }
    }

    /// Whether coordinates have the size of the curve and lie on it.
    fn check(&mut self, curve: &'static str, x: &[u8], y: &[u8]) -> Result<(), String> {
        let group = has_size(curve, x, y)?;
        if self.trusted {
            return Ok(());
        }
        let key = (curve, x.to_vec(), y.to_vec());
        let is_on_it = match self.known.get(&key) {
            Some(known) => *known,
            None => {
                let is_on_it = group.map_or(Ok(true), |group| is_on_curve(group, x, y))?;
                self.known.insert(key, is_on_it);
                is_on_it
            }
        };
        if is_on_it { Ok(()) } else { Err(format!("its point is not on {curve}")) }
    }
}

/// The members that name the public key of a certificate; `None` where its kind has no JWK form.
pub(super) fn of_certificate(der: &[u8], points: &mut Points) -> Option<Jwk> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let info = certificate.public_key();
    let algorithm = &info.algorithm;
    let key = match info.parsed().ok()? {
        PublicKey::EC(point) => {
            let parameters: Oid<'_> = algorithm.parameters.as_ref()?.as_oid().ok()?;
            let curve = if parameters == OID_EC_P256 {
                "P-256"
            } else if parameters == OID_NIST_EC_P384 {
                "P-384"
            } else if parameters == OID_NIST_EC_P521 {
                "P-521"
            } else {
                return None;
            };
            let coordinates = point.data().strip_prefix(&[4])?;
            let (x, y) = coordinates.split_at_checked(coordinates.len() / 2)?;
            Key::Ec { curve, x: x.to_vec(), y: y.to_vec() }
        }
        PublicKey::RSA(key) => Key::Rsa { n: key.modulus.to_vec(), e: key.exponent.to_vec() },
        PublicKey::Unknown(bytes) if algorithm.algorithm == OID_SIG_ED25519 => Key::Ed25519(bytes.to_vec()),
        _ => return None,
    };
    key.members(points).ok()
}

/// The public members of a JWK, checked and in canonical form; everything else in it is left out.
///
/// # Errors
/// Says what is wrong with the key.
pub(super) fn public_members(jwk: &Jwk, points: &mut Points) -> Result<Jwk, String> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| {
        let text = text(name).ok_or_else(|| format!("it has no {name:?}"))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|e| format!("its {name:?} is not base64url: {e}"))
    };
    let key = match (text("kty"), text("crv")) {
        (Some("EC"), Some("P-256")) => Key::Ec { curve: "P-256", x: bytes("x")?, y: bytes("y")? },
        (Some("EC"), Some("P-384")) => Key::Ec { curve: "P-384", x: bytes("x")?, y: bytes("y")? },
        (Some("EC"), Some("P-521")) => Key::Ec { curve: "P-521", x: bytes("x")?, y: bytes("y")? },
        (Some("RSA"), _) => Key::Rsa { n: bytes("n")?, e: bytes("e")? },
        (Some("OKP"), Some("Ed25519")) => Key::Ed25519(bytes("x")?),
        _ => return Err("its kind of key or curve is unknown".to_owned()),
    };
    key.members(points)
}

impl Key {
    fn members(self, points: &mut Points) -> Result<Jwk, String> {
        let mut jwk = Jwk::new();
        let mut text = |name: &str, value: &str| jwk.insert(name.to_owned(), Value::from(value));
        match self {
            Self::Ec { curve, x, y } => {
                points.check(curve, &x, &y)?;
                text("crv", curve);
                text("kty", "EC");
                text("x", &URL_SAFE_NO_PAD.encode(x));
                text("y", &URL_SAFE_NO_PAD.encode(y));
            }
            Self::Rsa { n, e } => {
                let (n, e) = (unsigned(&n), unsigned(&e));
                if n.is_empty() || n.len() > MAX_MODULUS || e.is_empty() || e.len() > 4 {
                    return Err("its RSA modulus or exponent is out of range".to_owned());
                }
                text("e", &URL_SAFE_NO_PAD.encode(e));
                text("kty", "RSA");
                text("n", &URL_SAFE_NO_PAD.encode(n));
            }
            Self::Ed25519(x) if x.len() == 32 => {
                text("crv", "Ed25519");
                text("kty", "OKP");
                text("x", &URL_SAFE_NO_PAD.encode(x));
            }
            Self::Ed25519(_) => return Err("its Ed25519 key is not 32 bytes".to_owned()),
        }
        Ok(jwk)
    }
}

/// An unsigned number without leading zeros.
fn unsigned(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// Whether the coordinates have the size of the curve; with what it is looked at whether they lie on it, which the provider
/// lacks for P-521.
fn has_size(curve: &str, x: &[u8], y: &[u8]) -> Result<Option<NamedGroup>, String> {
    let (size, group) = match curve {
        "P-256" => (32, Some(NamedGroup::secp256r1)),
        "P-384" => (48, Some(NamedGroup::secp384r1)),
        _ => (66, None),
    };
    if x.len() == size && y.len() == size {
        Ok(group)
    } else {
        Err(format!("its coordinates are not {size} bytes, as {curve} has them"))
    }
}

/// A key agreement with a point tells whether it lies on the curve.
fn is_on_curve(group: NamedGroup, x: &[u8], y: &[u8]) -> Result<bool, String> {
    #[cfg(test)]
    AGREEMENTS.with(|made| made.set(made.get() + 1));
    let provider = provider();
    let group = provider.kx_groups.iter().find(|g| g.name() == group).ok_or("its curve is unknown")?;
    let agreement = group.start().map_err(|e| e.to_string())?;
    Ok(agreement.complete(&[&[4], x, y].concat()).is_ok())
}

#[cfg(test)]
thread_local! {
    /// How many key agreements this thread has made.
    pub(super) static AGREEMENTS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

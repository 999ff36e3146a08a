//! JWT authorities: SPIRE's API carries a PKIX public key, the bundle a JWK (JWT-SVID, section 6). Nothing is lost
//! either way for EC P-256, P-384 and RSA keys.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::proto::spire::types::JwtKey;

/// A named curve: its JWK name, its DER object identifier (tag and length included), the bytes of a coordinate.
struct Curve {
    name: &'static str,
    oid_text: &'static str,
    oid: &'static [u8],
    size: usize,
}

const CURVES: [Curve; 2] = [
    Curve {
        name: "P-256",
        oid_text: "1.2.840.10045.3.1.7",
        oid: &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        size: 32,
    },
    Curve {
        name: "P-384",
        oid_text: "1.3.132.0.34",
        oid: &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        size: 48,
    },
];

/// `id-ecPublicKey`, DER.
const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// `AlgorithmIdentifier` of `rsaEncryption` with its NULL parameters, DER.
const RSA_ALGORITHM: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// The JWK of a JWT authority; `None` for a kind that is not known here, or bytes that are no key.
pub(super) fn from_proto(key: &JwtKey) -> Option<Map<String, Value>> {
    if key.key_id.is_empty() {
        return None;
    }
    let mut jwk = public_members(&key.public_key)?;
    jwk.insert("kid".to_owned(), Value::String(key.key_id.clone()));
    jwk.insert("use".to_owned(), Value::String("jwt-svid".to_owned()));
    Some(jwk)
}

/// The members of a JWK that say its key (RFC 7518, section 6), of a PKIX public key.
pub(crate) fn public_members(pkix: &[u8]) -> Option<Map<String, Value>> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(pkix).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let mut jwk = Map::new();
    let mut set = |name: &str, value: String| jwk.insert(name.to_owned(), Value::String(value));
    match info.parsed().ok()? {
        PublicKey::EC(point) => {
            let oid = info.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string();
            let curve = CURVES.iter().find(|c| c.oid_text == oid)?;
            // Uncompressed form: 4, x, y.
            let (&form, xy) = point.data().split_first()?;
            if form != 4 || xy.len() != 2 * curve.size {
                return None;
            }
            let (x, y) = xy.split_at(curve.size);
            set("kty", "EC".to_owned());
            set("crv", curve.name.to_owned());
            set("x", URL_SAFE_NO_PAD.encode(x));
            set("y", URL_SAFE_NO_PAD.encode(y));
        }
        PublicKey::RSA(rsa) => {
            set("kty", "RSA".to_owned());
            set("n", URL_SAFE_NO_PAD.encode(without_zeros(rsa.modulus)));
            set("e", URL_SAFE_NO_PAD.encode(without_zeros(rsa.exponent)));
        }
        _ => return None,
    }
    Some(jwk)
}

/// The key of a JWK; `None` for a kind that is not known here.
pub(super) fn to_proto(key_id: &str, jwk: &Map<String, Value>) -> Option<JwtKey> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| text(name).and_then(|t| URL_SAFE_NO_PAD.decode(t).ok());
    let public_key = match text("kty")? {
        "EC" => {
            let curve = CURVES.iter().find(|c| Some(c.name) == text("crv"))?;
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != curve.size || y.len() != curve.size {
                return None;
            }
            let algorithm = der(0x30, &[EC_PUBLIC_KEY, curve.oid].concat());
            // A bit string begins with the count of its unused bits.
            let point = der(0x03, &[&[0, 4], x.as_slice(), &y].concat());
            der(0x30, &[algorithm, point].concat())
        }
        "RSA" => {
            let key = der(0x30, &[integer(&bytes("n")?), integer(&bytes("e")?)].concat());
            let bits = der(0x03, &[&[0], key.as_slice()].concat());
            der(0x30, &[RSA_ALGORITHM, &bits].concat())
        }
        _ => return None,
    };
    Some(JwtKey { public_key, key_id: key_id.to_owned(), expires_at: 0, tainted: false })
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// A DER INTEGER that is not negative.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let bytes = without_zeros(bytes);
    let sign = bytes.first().is_none_or(|b| *b >= 0x80);
    der(0x02, &if sign { [&[0], bytes].concat() } else { bytes.to_vec() })
}

/// Tag, length, content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short @ ..=0x7f) => out.push(short),
        _ => {
            let length = content.len().to_be_bytes();
            let length = without_zeros(&length);
            out.push(0x80 | u8::try_from(length.len()).unwrap_or(0));
            out.extend_from_slice(length);
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(public_key: Vec<u8>) -> Map<String, Value> {
        let key = JwtKey { public_key, key_id: "k1".to_owned(), expires_at: 0, tainted: false };
        let jwk = from_proto(&key).unwrap();
        assert_eq!(to_proto("k1", &jwk).unwrap(), key);
        assert_eq!(jwk["kid"], "k1");
        assert_eq!(jwk["use"], "jwt-svid");
        jwk
    }

    #[test]
    fn ec_keys_go_there_and_back() {
        for (algorithm, crv, length) in
            [(&rcgen::PKCS_ECDSA_P256_SHA256, "P-256", 43), (&rcgen::PKCS_ECDSA_P384_SHA384, "P-384", 64)]
        {
            use rcgen::PublicKeyData;
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let jwk = round_trip(key.subject_public_key_info());
            assert_eq!(jwk["crv"], crv);
            assert_eq!(jwk["x"].as_str().unwrap().len(), length);
        }
    }

    #[test]
    fn rsa_keys_go_there_and_back() {
        // A modulus of 256 bytes with its top bit set, as every RSA modulus has, and the usual exponent.
        let modulus: Vec<u8> = (0..256u32).map(|i| if i == 0 { 0xc5 } else { (i * 7 % 251) as u8 }).collect();
        let key = der(0x30, &[integer(&modulus), integer(&[1, 0, 1])].concat());
        let bits = der(0x03, &[&[0], key.as_slice()].concat());
        let jwk = round_trip(der(0x30, &[RSA_ALGORITHM, &bits].concat()));
        assert_eq!(jwk["e"], "AQAB");
        assert_eq!(jwk["n"], URL_SAFE_NO_PAD.encode(&modulus));
    }

    #[test]
    fn what_is_no_known_key_is_dropped() {
        use rcgen::PublicKeyData;
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let p256 = rcgen::KeyPair::generate().unwrap().subject_public_key_info();
        let key = |public_key: Vec<u8>, id: &str| JwtKey {
            public_key,
            key_id: id.to_owned(),
            expires_at: 0,
            tainted: false,
        };
        assert_eq!(from_proto(&key(ed25519.subject_public_key_info(), "k")), None);
        assert_eq!(from_proto(&key(b"not a key".to_vec(), "k")), None);
        assert_eq!(from_proto(&key(p256.clone(), "")), None);
        assert_eq!(from_proto(&key([p256.as_slice(), b"more"].concat(), "k")), None);
        assert!(from_proto(&key(p256, "k")).is_some());
    }
}

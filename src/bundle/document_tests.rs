use super::*;
use crate::bundle::testing::{Ca, leaf_params, td};
use proptest::prelude::*;
use std::sync::LazyLock;

static CAS: LazyLock<Vec<Ca>> = LazyLock::new(|| (0..4).map(|_| Ca::new()).collect());

const JWT: &str = r#"{"kty":"EC","use":"jwt-svid","kid":"k1","crv":"P-256",
    "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","d":"secret"}"#;

fn x5c(ca: &Ca) -> String {
    STANDARD.encode(&ca.der)
}

fn key(ca: &Ca) -> String {
    format!(r#"{{"kty":"EC","use":"x509-svid","x5c":["{}"]}}"#, x5c(ca))
}

fn read(document: &str) -> Result<Parsed, DocumentError> {
    parse(&td("west.test"), document.as_bytes())
}

fn read_keys(keys: &[String]) -> Result<Parsed, DocumentError> {
    read(&format!(r#"{{"keys":[{}]}}"#, keys.join(",")))
}

#[test]
fn a_whole_document_is_read() {
    let document = format!(
        r#"{{"keys":[{},{JWT}],"spiffe_sequence":18446744073709551615,"spiffe_refresh_hint":300,"other":[1]}}"#,
        key(&CAS[0])
    );
    let parsed = read(&document).unwrap();
    assert_eq!(parsed.ignored, Vec::<String>::new());
    assert_eq!(parsed.bundle.authorities().collect::<Vec<_>>(), [&CAS[0].authority()]);
    assert_eq!(parsed.bundle.sequence, Some(u64::MAX));
    assert_eq!(parsed.bundle.refresh_hint, Some(300));
    let jwt = &parsed.bundle.jwt["k1"];
    assert_eq!(jwt["kid"], "k1");
    assert!(!jwt.contains_key("d"), "private members are not carried along");
}

#[test]
fn keys_must_be_there_and_may_be_empty() {
    for document in ["{}", r#"{"keys":null}"#, r#"{"keys":{}}"#, "[]", "null", "", r#"{"keys":[],"keys":[]}"#]
    {
        assert!(matches!(read(document), Err(DocumentError::Json(_))), "{document}");
    }
    let parsed = read(r#"{"keys":[]}"#).unwrap();
    assert!(parsed.bundle.is_empty());
    assert_eq!(parsed.bundle.sequence, None);
    for number in ["-1", "1.5", "\"1\"", "18446744073709551616"] {
        assert!(read(&format!(r#"{{"keys":[],"spiffe_sequence":{number}}}"#)).is_err(), "{number}");
        assert!(read(&format!(r#"{{"keys":[],"spiffe_refresh_hint":{number}}}"#)).is_err(), "{number}");
    }
}

#[test]
fn what_is_unknown_is_left_out_and_named_and_harms_nothing_else() {
    let good = x5c(&CAS[1]);
    for (unknown, remark) in [
        (r#"{"kty":"PQ","use":"x509-svid"}"#.to_owned(), "unknown kty"),
        (format!(r#"{{"use":"x509-svid","x5c":["{good}"]}}"#), "no kty"),
        (format!(r#"{{"kty":"EC","x5c":["{good}"]}}"#), "no use"),
        (format!(r#"{{"kty":"EC","use":null,"x5c":["{good}"]}}"#), "no use"),
        (format!(r#"{{"kty":"EC","use":"X509-SVID","x5c":["{good}"]}}"#), "unknown use"),
        (JWT.replace("jwt-svid", "wit-svid"), "unknown use"),
        (r#"{"kty":"EC","use":"x509-svid"}"#.to_owned(), "without x5c"),
        (r#"{"kty":"EC","use":"x509-svid","x5c":[]}"#.to_owned(), "without x5c"),
        (r#"{"kty":"EC","use":"x509-svid","x5c":[7]}"#.to_owned(), "something else"),
        (r#"{"kty":"EC","use":"x509-svid","x5c":["AAAA"]}"#.to_owned(), "not one DER"),
        ("7".to_owned(), "not an object"),
        (JWT.replace(r#""kid":"k1","#, ""), "without kid"),
        (JWT.replace("k1", ""), "without kid"),
        (JWT.replace("P-256", "secp256k1"), "unknown"),
        (JWT.replace("4Etl", "4Etm"), "not on P-256"),
        (JWT.replace("4Etl", "4Et="), "not base64url"),
        (JWT.replace("4Etl", ""), "not 32 bytes"),
    ] {
        let parsed = read_keys(&[unknown.clone(), key(&CAS[0])]).unwrap();
        assert_eq!(parsed.bundle, Bundle::new(td("west.test"), [CAS[0].authority()]), "{unknown}");
        assert_eq!(parsed.ignored.len(), 1, "{unknown}");
        assert!(parsed.ignored[0].contains(remark), "{unknown}: {:?}", parsed.ignored);
    }
}

#[test]
fn a_kid_on_an_x509_key_and_duplicates_are_taken() {
    let with_kid = key(&CAS[0]).replace(r#""use""#, r#""kid":"x","use""#);
    let parsed = read_keys(&[with_kid, key(&CAS[0]), JWT.to_owned(), JWT.to_owned()]).unwrap();
    assert_eq!((parsed.bundle.len(), parsed.bundle.jwt.len()), (1, 1));
    assert!(parsed.ignored.is_empty());
}

#[test]
fn of_several_certificates_the_first_counts() {
    let two = format!(r#"{{"kty":"EC","use":"x509-svid","x5c":["{}","{}"]}}"#, x5c(&CAS[0]), x5c(&CAS[1]));
    let parsed = read_keys(&[two]).unwrap();
    assert_eq!(parsed.bundle, Bundle::new(td("west.test"), [CAS[0].authority()]));
    assert_eq!(parsed.ignored.len(), 1);
}

#[test]
fn a_document_in_which_nothing_can_be_read_is_no_revocation() {
    let mut trailing = CAS[0].der.to_vec();
    trailing.push(0);
    let leaf = CAS[0].sign(&leaf_params(&["spiffe://west.test/x"])).der;
    let url_safe = base64::engine::general_purpose::URL_SAFE.encode(&CAS[0].der);
    assert!(url_safe.contains(['-', '_']), "the vector must differ from standard base64");
    for bad in [STANDARD.encode(trailing), STANDARD.encode(leaf), url_safe, "AAAA".to_owned()] {
        let document = format!(r#"{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{bad}"]}}]}}"#);
        assert!(matches!(read(&document), Err(DocumentError::NothingReadable(_))));
    }
}

#[test]
fn hostile_documents_are_refused_within_bounds() {
    let deep = format!(r#"{{"keys":[{}{}]}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(read(&deep), Err(DocumentError::TooManyValues(_))));
    let deep = format!(r#"{{"keys":[{}{}]}}"#, "[".repeat(30_000), "]".repeat(30_000));
    assert!(matches!(read(&deep), Err(DocumentError::Json(_))));
    let deep = format!(r#"{{"x":{}{},"keys":[]}}"#, "[".repeat(30_000), "]".repeat(30_000));
    let _ = read(&deep);
    // Each of these small objects takes more than 600 bytes of memory, as keys and within one.
    let small = vec![r#"{"":0}"#; 120_000].join(",");
    for text in [format!(r#"{{"keys":[{small}]}}"#), format!(r#"{{"keys":[{{"x5c":[{small}]}}]}}"#)] {
        assert!(text.len() < MAX_BYTES);
        assert!(matches!(read(&text), Err(DocumentError::TooManyValues(_))));
    }
    assert_eq!(parse(&td("west.test"), &vec![b' '; MAX_BYTES + 1]), Err(DocumentError::TooLarge));
    assert_eq!(parse(&td("west.test"), b"{\"keys\":[],\"x\":\"\xff\"}"), Err(DocumentError::NotUtf8));
    let many = vec!["{}".to_owned(); MAX_KEYS + 1];
    assert_eq!(read_keys(&many), Err(DocumentError::TooManyKeys(MAX_KEYS + 1)));
    let parsed = read_keys(&many[1..]).unwrap();
    assert_eq!(parsed.ignored.len(), MAX_IGNORED + 1);
    let long = JWT.replace("k1", &"k".repeat(2000));
    assert_eq!(read_keys(&[long, key(&CAS[0])]).unwrap().ignored.len(), 1);
}

#[test]
fn what_is_written_has_only_what_spire_reads() {
    let mut bundle = read_keys(&[key(&CAS[0]), key(&CAS[1]), JWT.to_owned()]).unwrap().bundle;
    bundle.sequence = Some(u64::MAX);
    bundle.refresh_hint = Some(u64::MAX);
    bundle.jwt.insert("bad".to_owned(), serde_json::from_str(r#"{"kty":"oct","k":"AA"}"#).unwrap());
    let written: Value = serde_json::from_str(&write(&bundle)).unwrap();
    let keys = written["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 3, "a key that SPIRE cannot read is left out");
    for key in &keys[..2] {
        let names: Vec<_> = key.as_object().unwrap().keys().cloned().collect();
        assert_eq!(names, ["crv", "kty", "use", "x", "x5c", "y"]);
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
    }
    assert_eq!(keys[2]["kid"], "k1");
    assert_eq!(written["spiffe_sequence"], u64::MAX);
    assert_eq!(written["spiffe_refresh_hint"], u32::MAX);
    assert!(written.get("spiffe_sequence").is_some());
    let plain: Value = serde_json::from_str(&write(&Bundle::new(td("west.test"), []))).unwrap();
    assert_eq!(plain, json!({"keys": []}));
}

#[test]
fn authorities_of_every_usual_kind_of_key_are_written() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let der = crate::bundle::testing::ca_params().self_signed(&key).unwrap().der().to_vec();
        let bundle = Bundle::new(td("west.test"), [Authority::parse(&der).unwrap()]);
        assert_eq!(parse(&td("west.test"), write(&bundle).as_bytes()).unwrap().bundle, bundle);
    }
}

#[test]
fn a_bootstrap_is_json_or_pem() {
    let pem = |der: &[u8]| {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
    };
    let expected = Bundle::new(td("west.test"), [CAS[0].authority(), CAS[1].authority()]);
    let bootstrap = |text: &str| parse_bootstrap(&td("west.test"), text);
    let both = format!("# two\n{}{}{}", pem(&CAS[0].der), pem(&CAS[1].der), pem(&CAS[0].der));
    assert_eq!(bootstrap(&both).unwrap().bundle, expected);
    assert_eq!(bootstrap(&format!("\n  {}", write(&expected))).unwrap().bundle, expected);
    assert_eq!(bootstrap(r#"{"keys":[]}"#), Err(DocumentError::Empty));
    assert_eq!(bootstrap("hello"), Err(DocumentError::UnknownFormat));
    assert_eq!(bootstrap(""), Err(DocumentError::UnknownFormat));
    let leaf = CAS[0].sign(&leaf_params(&["spiffe://west.test/x"])).der;
    let bad = bootstrap(&format!("{}{}", pem(&CAS[0].der), pem(&leaf)));
    assert!(matches!(bad, Err(DocumentError::Pem { number: 2, .. })), "{bad:?}");
    let key = pem(&[1, 2, 3]).replace("CERTIFICATE", "PRIVATE KEY");
    assert!(matches!(bootstrap(&key), Err(DocumentError::PemSection(_))));
    assert!(bootstrap("-----BEGIN CERTIFICATE-----\nAAAA").is_err());
}

proptest! {
    #[test]
    fn what_is_written_reads_back_the_same(
        picked in proptest::collection::vec(0_usize..4, 0..6),
        sequence: Option<u64>,
        hint: Option<u32>,
        kids in proptest::collection::btree_set("[ -~]{1,12}", 0..3),
    ) {
        let mut bundle = Bundle::new(td("west.test"), picked.iter().map(|i| CAS[*i].authority()));
        bundle.sequence = sequence;
        bundle.refresh_hint = hint.map(u64::from);
        for kid in kids {
            let mut jwk: Jwk = serde_json::from_str(JWT).unwrap();
            jwk.remove("d");
            jwk.insert("kid".to_owned(), Value::from(kid.as_str()));
            bundle.jwt.insert(kid, jwk);
        }
        let written = write(&bundle);
        let parsed = parse(&td("west.test"), written.as_bytes()).unwrap();
        prop_assert_eq!(&parsed.bundle, &bundle);
        prop_assert!(parsed.ignored.is_empty());
        prop_assert_eq!(write(&parsed.bundle), written);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&td("west.test"), &bytes);
        let _ = parse_bootstrap(&td("west.test"), &String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_change_of_a_document_makes_the_reader_panic(at in 0_usize..900, byte: u8) {
        let mut document = format!(r#"{{"keys":[{},{JWT}]}}"#, key(&CAS[0])).into_bytes();
        if let Some(place) = document.get_mut(at) {
            *place = byte;
        }
        if let Ok(parsed) = parse(&td("west.test"), &document) {
            prop_assert!(parsed.bundle.len() <= 1);
        }
    }
}

/// How many key agreements something takes: each is a good part of a handshake.
fn agreements<T>(of: impl FnOnce() -> T) -> (usize, T) {
    let made = || jwk::AGREEMENTS.with(std::cell::Cell::get);
    let before = made();
    let value = of();
    (made() - before, value)
}

#[test]
fn each_point_is_looked_at_once_and_where_it_is_read() {
    let (first, parsed) = agreements(|| read_keys(&[key(&CAS[0]), key(&CAS[1]), JWT.to_owned()]).unwrap());
    assert_eq!(first, 3);
    let (written, text) = agreements(|| write(&parsed.bundle));
    assert_eq!(written, 0, "what is held was looked at");
    // Now with the members of each key beside its certificate.
    let (again, parsed_again) = agreements(|| read(&text).unwrap());
    assert_eq!((again, &parsed_again.bundle), (3, &parsed.bundle));
    assert_eq!(parsed_again.refused_by_spire, None);
    let wrong = text.replacen(r#""y":""#, r#""y":"A"#, 1);
    assert!(read(&wrong).unwrap().refused_by_spire.is_some());
}

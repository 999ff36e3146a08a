use proptest::prelude::*;

use super::*;
use crate::enrol::offer::testing::offer;

fn token() -> Token {
    Token {
        id: InviteId([1; 8]),
        secret: Secret([0x5e; 32]),
        joiner: TrustDomain::new("west.example").unwrap(),
        inviter: offer("east.example", "192.0.2.1:7443", "https://192.0.2.1:8443/"),
        fingerprint: BundleDigest::from_bytes(&[7; 32]).unwrap(),
        expires: Timestamp::from_second(1_800_000_000).unwrap(),
    }
}

#[test]
fn a_token_is_read_back_however_it_was_wrapped() {
    let text = token().to_text();
    assert!(text.starts_with("entente1.") && text.len() < 600, "{}", text.len());
    let wrapped: String = text
        .chars()
        .enumerate()
        .map(|(n, c)| format!("{c}{}", if n % 60 == 59 { "\r\n " } else { "" }))
        .collect();
    for pasted in [text.clone(), format!("  {text}\n"), wrapped] {
        let read = Token::parse(&pasted).unwrap();
        assert_eq!(read.to_text(), text);
        assert_eq!(read.secret.expose(), [0x5e; 32]);
        assert_eq!((read.joiner, read.inviter), (token().joiner, token().inviter));
    }
}

#[test]
fn neither_token_nor_secret_nor_hash_is_shown() {
    let token = token();
    let hash = token.secret.hash(&token.id);
    let shown = format!("{token:?} {:#?} {hash:?}", token.secret);
    assert!(!shown.contains("94") && !shown.contains(&hex::encode([0x5e; 4])), "{shown}");
    assert!(!shown.contains(&hash.to_text()), "{shown}");
}

#[test]
fn a_cut_token_is_told_from_a_changed_one_and_from_none() {
    let text = token().to_text();
    for end in PREFIX.len()..text.len() {
        let error = Token::parse(&text[..end]).unwrap_err();
        assert_eq!(error, TokenError::Cut, "cut at {end} of {}", text.len());
    }
    for at in (PREFIX.len() + 8)..text.len() - 1 {
        let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
        let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
        assert_eq!(Token::parse(&changed).unwrap_err(), TokenError::Changed, "at {at}");
    }
    assert_eq!(Token::parse(&format!("{text}{text}")).unwrap_err(), TokenError::Changed);
    assert_eq!(Token::parse("").unwrap_err(), TokenError::NotAToken);
    assert_eq!(Token::parse("eyJhbGciOi").unwrap_err(), TokenError::NotAToken);
    assert_eq!(Token::parse(&text.replacen('1', "2", 1)).unwrap_err(), TokenError::OtherVersion);
    assert_eq!(Token::parse(&"a".repeat(MAX_TOKEN + 1)).unwrap_err(), TokenError::TooLong);
}

/// The token of a message that is bent, with a right checksum: whoever makes tokens by hand.
fn bent(bend: impl FnOnce(&mut wire::Token)) -> TokenError {
    let mut message = token().to_wire();
    bend(&mut message);
    Token::from_wire(&message).unwrap_err()
}

#[test]
fn each_part_of_it_must_be_whole() {
    let offer_of = |message: &mut wire::Token| message.inviter.take().unwrap();
    assert!(matches!(bent(|t| t.id = vec![1]), TokenError::Malformed(what) if what.contains("ID")));
    assert!(matches!(bent(|t| t.secret = vec![1; 31]), TokenError::Malformed("the secret")));
    assert!(matches!(bent(|t| t.fingerprint = vec![]), TokenError::Malformed("the fingerprint")));
    assert!(matches!(bent(|t| t.joiner = "West".to_owned()), TokenError::Malformed("the joiner")));
    assert!(matches!(bent(|t| t.joiner = "east.example".to_owned()), TokenError::Malformed(_)));
    assert!(matches!(bent(|t| t.expires = i64::MAX), TokenError::Malformed("the expiry")));
    assert!(matches!(bent(|t| t.inviter = None), TokenError::Malformed("no inviter")));
    let no_address = |t: &mut wire::Token| {
        t.inviter = Some(wire::Offer { agent_addresses: Vec::new(), ..offer_of(t) });
    };
    assert!(matches!(bent(no_address), TokenError::Malformed(what) if what.contains("address")));
    let plain = |t: &mut wire::Token| {
        t.inviter = Some(wire::Offer { bundle_endpoint_url: "http://192.0.2.1/".to_owned(), ..offer_of(t) });
    };
    assert!(matches!(bent(plain), TokenError::Offer(_)));
}

proptest! {
    #[test]
    fn garbage_is_refused_and_nothing_else_happens(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Token::parse(&text).is_err());
        let prefixed = format!("{PREFIX}{text}");
        prop_assert!(Token::parse(&prefixed).is_err());
        let message = [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes.as_slice(), &checksum(&bytes)].concat();
        let _ = Token::parse(&format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(message)));
    }
}

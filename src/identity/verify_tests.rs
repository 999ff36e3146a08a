use super::*;
use crate::bundle::testing::{Ca, ca_params, id, leaf_params, now, td, valid};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls::AlertDescription;

const WEB: &str = "spiffe://west.test/ns/shop/sa/web";

fn verify(bundle: &Arc<Bundle>, chain: &[CertificateDer<'_>], role: Role) -> Result<SpiffeId, SvidError> {
    let held = |asked: &TrustDomain| (asked == bundle.trust_domain()).then(|| Arc::clone(bundle));
    verify_svid(chain, &held, role, now())
}

/// The verdict on a leaf of a CA that is held, in both roles, which must agree.
fn verdict(params: &CertificateParams) -> Result<SpiffeId, SvidError> {
    let ca = Ca::new();
    let leaf = ca.sign(params).der;
    let server = verify(&ca.bundle("west.test"), std::slice::from_ref(&leaf), Role::Server);
    assert_eq!(server, verify(&ca.bundle("west.test"), &[leaf], Role::Client));
    server
}

#[test]
fn a_good_svid_proves_its_id_in_both_roles() {
    assert_eq!(verdict(&leaf_params(&[WEB])), Ok(id(WEB)));
    let mut no_extended_usage = leaf_params(&[WEB]);
    no_extended_usage.extended_key_usages.clear();
    assert_eq!(verdict(&no_extended_usage), Ok(id(WEB)));
    let mut with_dns = leaf_params(&[WEB]);
    with_dns.subject_alt_names.push(rcgen::SanType::DnsName("web.shop".try_into().unwrap()));
    assert_eq!(verdict(&with_dns), Ok(id(WEB)));
}

#[test]
fn a_leaf_that_breaks_a_rule_is_refused_by_name_of_the_rule() {
    assert_eq!(verdict(&leaf_params(&[])), Err(SvidError::NoUriSan));
    let two = leaf_params(&[WEB, "https://west.test/"]);
    assert_eq!(verdict(&two), Err(SvidError::SeveralUriSans(2)));
    assert!(matches!(verdict(&leaf_params(&["https://west.test/x"])), Err(SvidError::NotSpiffe(_))));
    assert!(matches!(verdict(&leaf_params(&["spiffe://west.test/a/../b"])), Err(SvidError::NotSpiffe(_))));
    assert_eq!(
        verdict(&leaf_params(&["spiffe://west.test"])),
        Err(SvidError::NoPath(id("spiffe://west.test")))
    );
    let mut ca = leaf_params(&[WEB]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(verdict(&ca), Err(SvidError::CaLeaf(id(WEB))));
    for usages in [
        vec![],
        vec![KeyUsagePurpose::KeyEncipherment],
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign],
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign],
    ] {
        let mut params = leaf_params(&[WEB]);
        params.key_usages = usages;
        assert_eq!(verdict(&params), Err(SvidError::KeyUsage(id(WEB))));
    }
}

#[test]
fn time_is_kept() {
    let mut params = leaf_params(&[WEB]);
    valid(&mut params, -100, -1);
    assert_eq!(verdict(&params), Err(SvidError::Expired(id(WEB))));
    valid(&mut params, 1, 100);
    assert_eq!(verdict(&params), Err(SvidError::NotYetValid(id(WEB))));
    valid(&mut params, -100, 0);
    assert_eq!(verdict(&params), Ok(id(WEB)));
}

#[test]
fn an_extended_key_usage_must_allow_the_role() {
    let ca = Ca::new();
    let mut params = leaf_params(&[WEB]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let chain = [ca.sign(&params).der];
    assert_eq!(verify(&ca.bundle("west.test"), &chain, Role::Server), Ok(id(WEB)));
    let refused = verify(&ca.bundle("west.test"), &chain, Role::Client);
    assert_eq!(refused, Err(SvidError::ExtendedKeyUsage(id(WEB))));
}

#[test]
fn only_the_bundle_of_the_leafs_own_trust_domain_counts() {
    let (west, east) = (Ca::new(), Ca::new());
    let chain = [west.svid(WEB).der];
    assert_eq!(
        verify(&west.bundle("east.test"), &chain, Role::Client),
        Err(SvidError::NoBundle(td("west.test"))),
        "its signer is held, but for another trust domain"
    );
    assert_eq!(
        verify(&east.bundle("west.test"), &chain, Role::Client),
        Err(SvidError::UnknownAuthority(td("west.test"))),
        "both CAs have one subject: a wrong signature is an unknown authority"
    );
    let mislabelled = west.bundle("east.test");
    let verdict = verify_svid(&chain, &|_| Some(Arc::clone(&mislabelled)), Role::Client, now());
    assert_eq!(verdict, Err(SvidError::NoBundle(td("west.test"))));
    let empty = Arc::new(Bundle::new(td("west.test"), []));
    assert_eq!(verify(&empty, &chain, Role::Server), Err(SvidError::UnknownAuthority(td("west.test"))));
}

#[test]
fn an_expired_authority_validates_nothing() {
    let mut params = ca_params();
    valid(&mut params, -100, -1);
    let expired = Ca::with(params);
    let chain = [expired.svid(WEB).der];
    assert_eq!(verify(&expired.bundle("west.test"), &chain, Role::Server), Err(SvidError::Expired(id(WEB))));
    let both = Arc::new(Bundle::new(td("west.test"), [expired.authority(), Ca::new().authority()]));
    assert_eq!(verify(&both, &chain, Role::Server), Err(SvidError::Expired(id(WEB))));
}

#[test]
fn intermediates_are_followed_if_they_may_sign() {
    let root = Ca::new();
    let middle = root.below(ca_params());
    let leaf = middle.svid(WEB).der;
    let bundle = root.bundle("west.test");
    let chain = [leaf.clone(), middle.der.clone()];
    assert_eq!(verify(&bundle, &chain, Role::Client), Ok(id(WEB)));
    assert_eq!(verify(&bundle, &[leaf], Role::Client), Err(SvidError::UnknownAuthority(td("west.test"))));

    let mut params = ca_params();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let powerless = root.below(params);
    let chain = [powerless.svid(WEB).der, powerless.der.clone()];
    assert_eq!(verify(&bundle, &chain, Role::Client), Err(SvidError::UnknownAuthority(td("west.test"))));

    let workload = root.svid("spiffe://west.test/evil");
    let forged = [Ca::new().svid(WEB).der, workload.der.clone()];
    assert!(verify(&bundle, &forged, Role::Client).is_err());
}

#[test]
fn a_bundle_of_very_many_authorities_of_one_subject_still_verifies() {
    let cas: Vec<Ca> = (0..150).map(|_| Ca::new()).collect();
    let bundle = Arc::new(Bundle::new(td("west.test"), cas.iter().map(Ca::authority)));
    for ca in [&cas[0], &cas[149]] {
        assert_eq!(verify(&bundle, &[ca.svid(WEB).der], Role::Server), Ok(id(WEB)));
    }
    let stranger = verify(&bundle, &[Ca::new().svid(WEB).der], Role::Server);
    assert_eq!(stranger, Err(SvidError::UnknownAuthority(td("west.test"))));
}

#[test]
fn junk_is_refused_without_a_panic() {
    let ca = Ca::new();
    let bundle = ca.bundle("west.test");
    let good = ca.svid(WEB).der;
    assert_eq!(verify(&bundle, &[], Role::Client), Err(SvidError::NoCertificate));
    let long = vec![good.clone(); MAX_CHAIN + 1];
    assert_eq!(verify(&bundle, &long, Role::Client), Err(SvidError::ChainTooLong(MAX_CHAIN + 1)));
    let mut trailing = good.to_vec();
    trailing.push(0);
    assert!(matches!(
        verify(&bundle, &[CertificateDer::from(trailing)], Role::Client),
        Err(SvidError::Malformed(_))
    ));
    for cut in 0..good.len() {
        assert!(verify(&bundle, &[CertificateDer::from(&good[..cut])], Role::Client).is_err());
        let mut bent = good.to_vec();
        bent[cut] ^= 0x55;
        assert!(verify(&bundle, &[CertificateDer::from(bent)], Role::Client).is_err(), "byte {cut}");
    }
    let with_junk = [good, CertificateDer::from(vec![0x30, 0x80, 0xff])];
    assert_eq!(verify(&bundle, &with_junk, Role::Client), Ok(id(WEB)));
}

#[test]
fn each_cause_that_a_peer_must_tell_apart_has_its_own_alert() {
    let alert = |error: SvidError| match rustls::Error::from(error) {
        rustls::Error::InvalidCertificate(error) => AlertDescription::from(error),
        rustls::Error::Other(inner) => {
            assert!(inner.0.downcast_ref::<SvidError>().is_some());
            AlertDescription::HandshakeFailure
        }
        other => panic!("{other}"),
    };
    assert_eq!(alert(SvidError::UnknownAuthority(td("west.test"))), AlertDescription::UnknownCA);
    assert_eq!(alert(SvidError::Expired(id(WEB))), AlertDescription::CertificateExpired);
    assert_eq!(alert(SvidError::NotYetValid(id(WEB))), AlertDescription::CertificateExpired);
    assert_eq!(alert(SvidError::NoBundle(td("west.test"))), AlertDescription::HandshakeFailure);
    assert_eq!(alert(SvidError::NoUriSan), AlertDescription::HandshakeFailure);
}

/// Leaf, downstream CA and root as Go encodes SPIRE's templates: 128-bit serials with the top bit set, an ID on the
/// CAs, a unique identifier in the leaf's subject.
#[test]
fn what_spire_issues_verifies() {
    use rustls::pki_types::pem::PemObject;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(include_bytes!("testdata/spire-chain.pem"))
        .collect::<Result<_, _>>()
        .unwrap();
    let root = crate::model::Authority::parse(&chain[2]).unwrap();
    let bundle = Arc::new(Bundle::new(td("west.test"), [root]));
    for role in [Role::Server, Role::Client] {
        assert_eq!(verify(&bundle, &chain[..2], role), Ok(id(WEB)));
        assert_eq!(verify(&bundle, &chain, role), Ok(id(WEB)), "the root may be sent along");
        let unknown = Err(SvidError::UnknownAuthority(td("west.test")));
        assert_eq!(verify(&bundle, &chain[..1], role), unknown);
        assert_eq!(verify(&Ca::new().bundle("west.test"), &chain[..2], role), unknown);
    }
}

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::*;
use crate::identity::verify::{Role, SvidError, moment, verify_svid};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn authority(ca_ttl: u64) -> Authority {
    let settings = Settings {
        ca_ttl: Duration::from_secs(ca_ttl),
        svid_ttl: Duration::from_secs(60),
        ..Settings::new(at(0))
    };
    Authority::new(TrustDomain::new("west.example").unwrap(), settings).unwrap()
}

fn id() -> SpiffeId {
    SpiffeId::new("spiffe://west.example/ns/a/sa/b").unwrap()
}

fn verify(svid: &Svid, bundle: &Arc<Bundle>, now: Timestamp) -> Result<SpiffeId, SvidError> {
    let chain = [CertificateDer::from(svid.certificate.clone())];
    let now = moment(now);
    let held = |td: &TrustDomain| (td == bundle.trust_domain()).then(|| Arc::clone(bundle));
    verify_svid(&chain, &held, Role::Server, now)?;
    verify_svid(&chain, &held, Role::Client, now)
}

#[test]
fn an_svid_is_what_the_specification_wants() {
    let authority = authority(3600);
    let svid = authority.issue(&id(), at(5)).unwrap();
    let (_, leaf) = X509Certificate::from_der(&svid.certificate).unwrap();
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(!constraints.value.ca);
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(format!("{names:?}"), r#"[URI("spiffe://west.example/ns/a/sa/b")]"#);
    let issuer = leaf.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(a) => a.key_identifier.as_ref().map(|k| hex::encode(k.0)),
        _ => None,
    });
    assert_eq!(issuer.as_deref(), Some(svid.signer.as_str()));
    assert!(
        leaf.extensions()
            .iter()
            .any(|e| matches!(e.parsed_extension(), ParsedExtension::SubjectKeyIdentifier(_)))
    );
    assert_eq!(verify(&svid, authority.bundle(), at(6)), Ok(id()));
}

#[test]
fn an_authority_is_what_the_specification_wants() {
    let authority = authority(3600);
    let der = authority.bundle().authorities().next().unwrap().der().to_vec();
    let (_, ca) = X509Certificate::from_der(&der).unwrap();
    let usage = ca.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign());
    assert!(ca.basic_constraints().unwrap().unwrap().value.ca);
    let names = &ca.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(format!("{names:?}"), r#"[URI("spiffe://west.example")]"#);
    assert_eq!(authority.expiry(&authority.slots().active), Some(at(3600)));
}

#[test]
fn an_svid_lives_no_longer_than_its_authority_and_not_at_all_elsewhere() {
    let west = authority(30);
    let svid = west.issue(&id(), at(0)).unwrap();
    assert_eq!(svid.not_after, at(30));
    assert!(verify(&svid, west.bundle(), at(31)).is_err());
    // Same subject, same trust domain, another key.
    let other = authority(30);
    assert!(verify(&svid, other.bundle(), at(1)).is_err());
    let expired = west.issue_as(&id(), at(0), Validity::Expired).unwrap();
    assert!(verify(&expired, west.bundle(), at(0)).is_err());
}

#[test]
fn rotation_publishes_before_it_signs() {
    let mut authority = authority(3600);
    let first = authority.slots().active;
    let before = authority.issue(&id(), at(0)).unwrap();
    let second = authority.prepare(at(1)).unwrap();
    assert_eq!(authority.bundle().len(), 2);
    assert_eq!(authority.bundle().sequence, Some(2));
    assert_eq!(authority.previous_bundle().len(), 1);
    assert_eq!(authority.issue(&id(), at(2)).unwrap().signer, first);

    assert!(matches!(authority.activate(&first), Err(AuthorityError::UnknownAuthority)));
    authority.activate(&second).unwrap();
    assert_eq!(authority.slots(), Slots { active: second.clone(), prepared: None, old: Some(first.clone()) });
    assert!(matches!(authority.activate(&first), Err(AuthorityError::NotPrepared)));
    let after = authority.issue(&id(), at(3)).unwrap();
    assert_eq!(after.signer, second);
    assert!(
        verify(&before, authority.bundle(), at(4)).is_ok()
            && verify(&after, authority.bundle(), at(4)).is_ok()
    );

    assert!(matches!(authority.revoke(&first), Err(AuthorityError::Untainted)));
    assert!(matches!(authority.taint(&second), Err(AuthorityError::NotOld)));
    authority.taint(&first).unwrap();
    assert!(authority.bundle().authorities().any(|a| a.tainted && *a.id() == first));
    assert!(matches!(authority.taint(&first), Err(AuthorityError::AlreadyTainted)));
    authority.revoke(&first).unwrap();
    assert_eq!(authority.bundle().authority_ids(), [second].into());
    assert_eq!(authority.slots().old, Some(first.clone()), "it stays in its slot");
    assert!(matches!(authority.revoke(&first), Err(AuthorityError::Gone)));
    assert!(verify(&before, authority.bundle(), at(4)).is_err());
}

#[test]
fn preparing_again_takes_the_slot_and_leaves_the_bundle() {
    let mut authority = authority(3600);
    let first = authority.prepare(at(1)).unwrap();
    let second = authority.prepare(at(2)).unwrap();
    assert_eq!(authority.bundle().len(), 3);
    assert!(matches!(authority.activate(&first), Err(AuthorityError::UnknownAuthority)));
    authority.activate(&second).unwrap();
}

#[test]
fn rotation_by_time_keeps_spires_thresholds() {
    let mut authority = authority(3600);
    let first = authority.slots().active;
    assert!(!authority.tick(at(1800)).unwrap());
    assert!(authority.tick(at(1801)).unwrap());
    let second = authority.slots().prepared.unwrap();
    assert!(!authority.tick(at(3000)).unwrap());
    assert!(authority.tick(at(3001)).unwrap());
    assert_eq!(authority.slots(), Slots { active: second.clone(), prepared: None, old: Some(first.clone()) });
    // The second lives from 1801 to 5401; the first leaves the bundle a day after its end.
    let day = 24 * 3600;
    authority.tick(at(3600 + day)).unwrap();
    assert!(authority.bundle().authority_ids().contains(&first));
    authority.tick(at(3601 + day)).unwrap();
    assert!(!authority.bundle().authority_ids().contains(&first));
}

#[test]
fn an_svid_is_due_at_half_its_life() {
    let svid = authority(3600).issue(&id(), at(0)).unwrap();
    assert!(!svid.is_due_at(at(29)));
    assert!(svid.is_due_at(at(30)));
    assert!(!format!("{svid:?}").contains("key"));
}

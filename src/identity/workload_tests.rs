use super::*;
use crate::bundle::testing::{leaf_params, td, valid};
use crate::identity::testing::{Domain, authority};

const AGENT: &str = "spiffe://west.test/ns/entente-system/sa/entente";
const ADMIN: &str = "spiffe://west.test/entente/admin";

fn response(west: &Domain, svids: Vec<X509svid>) -> X509svidResponse {
    X509svidResponse { svids, ..west.response(&[]) }
}

#[test]
fn an_endpoint_is_a_socket_or_an_ip_address() {
    let parse = str::parse::<WorkloadEndpoint>;
    assert_eq!(
        parse("unix:///run/spire/agent.sock"),
        Ok(WorkloadEndpoint::Unix("/run/spire/agent.sock".into()))
    );
    assert_eq!(parse("tcp://127.0.0.1:8081"), Ok(WorkloadEndpoint::Tcp("127.0.0.1:8081".parse().unwrap())));
    assert!(parse("tcp://[::1]:1").is_ok());
    for bad in [
        "",
        "unix://",
        "unix:///",
        "unix://host/path",
        "unix:relative",
        "/run/x.sock",
        "tcp://localhost:80",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:80/x",
        "tcp://u@127.0.0.1:80",
        "http://127.0.0.1:1",
        "unix:///x?y",
        "unix:///x#y",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn an_empty_or_malformed_foreign_bundle_costs_nothing_else() {
    let (west, east) = (Domain::new("west.test"), Domain::new("east.test"));
    let mut message = west.response(&[&east.bundle()]);
    let mut two = east.ca.der.to_vec();
    two.extend_from_slice(&authority().der);
    let leaf = east.ca.svid("spiffe://two.test/x").der.to_vec();
    for (name, der) in [
        ("spiffe://two.test", two.clone()),
        ("spiffe://empty.test", Vec::new()),
        ("spiffe://cut.test", two[..two.len() - 1].to_vec()),
        ("spiffe://text.test", b"-----BEGIN".to_vec()),
        ("spiffe://leaf.test", leaf),
        ("spiffe://long.test", vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0]),
        ("spiffe://endless.test", vec![0x30, 0x80, 0, 0]),
        ("not a trust domain", east.ca.der.to_vec()),
    ] {
        message.federated_bundles.insert(name.to_owned(), der);
    }
    let svids = read(message, None).unwrap();
    let identity = &svids.identity;
    assert_eq!(identity.id.to_string(), AGENT);
    assert_eq!(identity.trust_domain, td("west.test"));
    assert_eq!(*identity.bundle, *west.bundle());
    let sizes: Vec<_> = identity.federated.iter().map(|(td, b)| (td.as_str(), b.len())).collect();
    assert_eq!(sizes, [("east.test", 1), ("empty.test", 0), ("two.test", 2)]);
    let malformed: Vec<_> = identity.malformed.keys().map(String::as_str).collect();
    assert_eq!(
        malformed,
        [
            "not a trust domain",
            "spiffe://cut.test",
            "spiffe://endless.test",
            "spiffe://leaf.test",
            "spiffe://long.test",
            "spiffe://text.test"
        ]
    );
}

#[test]
fn a_peer_is_never_verified_with_our_own_bundle() {
    let (west, east) = (Domain::new("west.test"), Domain::new("east.test"));
    let svids = west.svids(&[&east.bundle(), &west.bundle()]);
    assert!(svids.peer_bundle(&east.td).is_some());
    assert!(svids.peer_bundle(&west.td).is_none());
}

#[test]
fn peers_never_see_the_administrators_svid() {
    let west = Domain::new("west.test");
    let (agent, admin) = (west.svid(AGENT, ""), west.svid(ADMIN, ADMIN_HINT));
    let other = west.svid("spiffe://west.test/other", "x");
    let named = west.svid("spiffe://west.test/named", PEER_HINT);
    let read = |svids: &[&X509svid], hint| {
        let message = response(&west, svids.iter().copied().cloned().collect());
        read(message, hint)
            .map(|s| (s.identity.id.path().to_owned(), s.admin.map(|a| a.id.path().to_owned())))
    };
    let agent_path = "/ns/entente-system/sa/entente".to_owned();
    let admin_path = Some("/entente/admin".to_owned());
    let hint = Some(ADMIN_HINT);
    assert_eq!(read(&[&admin, &agent], hint), Ok((agent_path.clone(), admin_path.clone())));
    assert_eq!(read(&[&agent, &admin], hint), Ok((agent_path.clone(), admin_path)));
    assert_eq!(read(&[&admin, &agent], None), Ok((agent_path.clone(), None)));
    assert_eq!(read(&[&agent, &other], None), Ok((agent_path, None)));
    assert_eq!(read(&[&other, &named], None), Ok(("/named".to_owned(), None)));
    assert!(matches!(read(&[&admin], hint), Err(ResponseError::NoSvid(_))));
    assert!(matches!(read(&[&admin], None), Err(ResponseError::NoSvid(_))));
    assert_eq!(
        read(&[&agent, &other], Some("x")),
        read(&[&agent], None).map(|(id, _)| (id, Some("/other".into())))
    );
    assert!(matches!(read(&[], None), Err(ResponseError::NoSvid(_))));
}

#[test]
fn an_svid_that_does_not_fit_is_left_out() {
    let west = Domain::new("west.test");
    let good = west.svid(AGENT, "");
    let other = west.svid(AGENT, "");
    let another_key = X509svid { x509_svid_key: other.x509_svid_key, ..good.clone() };
    let another_name = X509svid { spiffe_id: ADMIN.to_owned(), ..good.clone() };
    let no_key = X509svid { x509_svid_key: vec![1, 2], ..good.clone() };
    let cut = X509svid { x509_svid: good.x509_svid[..100].to_vec(), ..good.clone() };
    for bad in [another_key, another_name, no_key, cut] {
        let error = read(response(&west, vec![bad.clone()]), None).unwrap_err();
        assert!(error.to_string().contains("cannot be used"), "{error}");
        assert_eq!(
            read(response(&west, vec![bad, good.clone()]), None).unwrap().identity.id.to_string(),
            AGENT
        );
    }
}

#[test]
fn an_expired_svid_is_still_ours_and_no_key_reaches_a_log() {
    let west = Domain::new("west.test");
    let mut params = leaf_params(&[AGENT]);
    valid(&mut params, -1_000_000_000, -900_000_000);
    let expired = west.message(AGENT, "", &west.ca.sign(&params));
    let key = hex::encode(&expired.x509_svid_key);
    let svids = read(response(&west, vec![expired]), None).unwrap();
    assert_eq!(svids.identity.not_before, Timestamp::from_second(800_000_000).unwrap());
    assert_eq!(svids.identity.not_after, Timestamp::from_second(900_000_000).unwrap());
    assert!(!format!("{svids:?}").contains(&key[..32]));
    assert!(format!("{svids:?}").contains(AGENT));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_split_or_refused(der in proptest::collection::vec(0_u8.., 0..200)) {
        if let Ok(parts) = split_der(&der) {
            proptest::prop_assert_eq!(parts.concat(), der);
        }
    }
}

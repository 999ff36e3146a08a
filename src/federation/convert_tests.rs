use super::*;
use crate::bundle::testing::id;

fn good() -> proto::Service {
    proto::Service {
        name: "web".into(),
        namespace: "shop".into(),
        ports: vec![port("http", 80, "http"), port("grpc", 65_535, "grpc")],
        tls_mode: proto::TlsMode::IstioMtls.into(),
        server_spiffe_ids: vec!["spiffe://west.test/ns/shop/sa/web".into()],
        client_spiffe_ids: vec!["spiffe://east.test/ns/shop/*".into(), "spiffe://east.test/a".into()],
        gateways: vec![gateway("192.0.2.1", 15_443), gateway("2001:db8::1", 1), gateway("gw.west.test", 443)],
        endpoints: vec![endpoint("192.0.2.9", &[("grpc", 9_090), ("http", 8_080)])],
        held: false,
    }
}

fn port(name: &str, port: u32, app_protocol: &str) -> proto::Port {
    proto::Port { name: name.into(), port, app_protocol: app_protocol.into(), client_spiffe_ids: Vec::new() }
}

fn gateway(address: &str, port: u32) -> proto::Gateway {
    proto::Gateway { address: address.into(), port }
}

fn endpoint(address: &str, ports: &[(&str, u32)]) -> proto::Endpoint {
    let port = |(name, port): &(&str, u32)| proto::EndpointPort { name: (*name).into(), port: *port };
    proto::Endpoint { address: address.into(), ports: ports.iter().map(port).collect() }
}

#[test]
fn a_good_service_survives_both_ways() {
    let service = service_from_proto(&good()).unwrap();
    assert_eq!(service.server_ids, BTreeSet::from([id("spiffe://west.test/ns/shop/sa/web")]));
    assert_eq!(service.ports[1].port, 65_535);
    assert_eq!(service_from_proto(&service_to_proto(&service)), Ok(service));
    let bare = proto::Service { client_spiffe_ids: vec![], gateways: vec![], ..good() };
    assert!(service_from_proto(&bare).is_ok());
}

#[test]
fn each_bound_of_a_service_is_held() {
    type Bend = Box<dyn Fn(&mut proto::Service)>;
    let ids = |count: usize| (0..count).map(|n| format!("spiffe://west.test/{n}")).collect::<Vec<_>>();
    let ports = |count: u32| (1..=count).map(|n| port(&format!("p{n}"), n, "tcp")).collect::<Vec<_>>();
    let long = format!("spiffe://west.test/{}", "a".repeat(MAX_SPIFFE_ID));
    let cases: Vec<(&str, Bend)> = vec![
        ("no name", Box::new(|s| s.name.clear())),
        ("a name that is no label", Box::new(|s| s.name = "a.b".into())),
        ("a long namespace", Box::new(|s| s.namespace = "a".repeat(64))),
        ("a namespace with a path", Box::new(|s| s.namespace = "../kube-system".into())),
        ("no ports", Box::new(|s| s.ports.clear())),
        ("many ports", Box::new(move |s| s.ports = ports(65))),
        ("port 0", Box::new(|s| s.ports[0].port = 0)),
        ("port 65536", Box::new(|s| s.ports[0].port = 65_536)),
        ("a port name that is no label", Box::new(|s| s.ports[0].name = "HTTP".into())),
        ("one port name twice", Box::new(|s| s.ports[1].name = "http".into())),
        ("one port twice", Box::new(|s| s.ports[1].port = 80)),
        ("an unknown protocol", Box::new(|s| s.ports[0].app_protocol = "smtp".into())),
        ("no TLS mode", Box::new(|s| s.tls_mode = 0)),
        ("an unknown TLS mode", Box::new(|s| s.tls_mode = 77)),
        ("no server ID", Box::new(|s| s.server_spiffe_ids.clear())),
        ("many server IDs", Box::new(move |s| s.server_spiffe_ids = ids(65))),
        ("a server ID without a path", Box::new(|s| s.server_spiffe_ids = vec!["spiffe://west.test".into()])),
        (
            "a server ID with a wildcard",
            Box::new(|s| s.server_spiffe_ids = vec!["spiffe://west.test/*".into()]),
        ),
        ("a long server ID", {
            let long = long.clone();
            Box::new(move |s| s.server_spiffe_ids = vec![long.clone()])
        }),
        ("an empty server ID", Box::new(|s| s.server_spiffe_ids = vec![String::new()])),
        ("many clients", Box::new(move |s| s.client_spiffe_ids = ids(1_001))),
        ("a client that is none", Box::new(|s| s.client_spiffe_ids = vec!["*".into()])),
        ("a long client", Box::new(move |s| s.client_spiffe_ids = vec![long.clone()])),
        ("many gateways", Box::new(|s| s.gateways = vec![gateway("192.0.2.1", 1); 65])),
        ("a Unix socket", Box::new(|s| s.gateways[0].address = "unix:///run/x".into())),
        ("an address with a port", Box::new(|s| s.gateways[0].address = "192.0.2.1:80".into())),
        ("a bare host", Box::new(|s| s.gateways[0].address = "localhost".into())),
        ("gateway port 0", Box::new(|s| s.gateways[0].port = 0)),
        ("many endpoints", Box::new(|s| s.endpoints = vec![s.endpoints[0].clone(); 65])),
        ("an endpoint by name", Box::new(|s| s.endpoints[0].address = "pod.west.test".into())),
        ("an endpoint without a port", Box::new(|s| s.endpoints[0].ports.truncate(1))),
        ("an endpoint's port of no name", Box::new(|s| s.endpoints[0].ports[0].name = "tcp".into())),
        ("an endpoint's port twice", Box::new(|s| s.endpoints[0].ports[0].name = "http".into())),
        ("an endpoint's port 0", Box::new(|s| s.endpoints[0].ports[0].port = 0)),
    ];
    for (case, bend) in cases {
        let mut service = good();
        bend(&mut service);
        let error = service_from_proto(&service).expect_err(case);
        assert!(error.to_string().len() < 400, "{case}: {error}");
    }
}

#[test]
fn reports_are_held_to_their_bounds() {
    let held = |digest: usize, ids: Vec<String>| proto::TrustReport {
        held: Some(proto::HeldBundle { digest: vec![7; digest], authority_ids: ids }),
        delivered: None,
        relationship: true,
        ..proto::TrustReport::default()
    };
    let good = report_from_proto(held(32, vec!["00ff".into(), "00ff".into()])).unwrap();
    assert_eq!(good.held.as_ref().unwrap().authority_ids.len(), 1);
    assert_eq!(report_from_proto(report_to_proto(&good)), Ok(good));
    assert_eq!(report_from_proto(held(31, vec![])), Err(ConvertError::Digest));
    assert!(report_from_proto(held(32, vec!["FF".into()])).is_err());
    assert!(report_from_proto(held(32, vec!["00".into(); 1_001])).is_err());
    assert_eq!(report_from_proto(report_to_proto(&TrustReport::default())), Ok(TrustReport::default()));
}

#[test]
fn outcomes_are_cut_to_what_a_status_can_hold() {
    let outcome = |reason: &str, message: &str| proto::ServiceOutcome {
        name: "web".into(),
        namespace: "shop".into(),
        imported: false,
        reason: reason.into(),
        message: message.into(),
    };
    let read = |reason: &str| match outcome_from_proto(&outcome(reason, "no\n\u{1b}[31m")).unwrap().1 {
        Outcome::Refused { reason, message } => (reason, message),
        Outcome::Imported => panic!("refused"),
    };
    assert_eq!(read("NotAdmitted"), ("NotAdmitted".to_owned(), "no  [31m".to_owned()));
    for bad in ["", "not camel", "lower", "X\n", &"X".repeat(65)] {
        assert_eq!(read(bad).0, "Refused", "{bad}");
    }
    let long = outcome_from_proto(&outcome("X", &"é".repeat(5_000))).unwrap();
    assert!(matches!(long.1, Outcome::Refused { message, .. } if message.chars().count() == 1_024));
    assert!(outcome_from_proto(&proto::ServiceOutcome { name: "A".into(), ..outcome("X", "") }).is_err());
    let name = ServiceName::new("shop", "web").unwrap();
    let imported = outcome_to_proto(&name, &Outcome::Imported);
    assert_eq!(outcome_from_proto(&imported), Ok((name, Outcome::Imported)));
}

#[test]
fn every_goodbye_survives_and_unknown_ones_are_unspecified() {
    use GoodbyeReason as G;
    for reason in [
        G::Unspecified,
        G::ShuttingDown,
        G::RelationshipEnded,
        G::Suspended,
        G::AlreadyConnected,
        G::ProtocolError,
        G::NotTrusted,
    ] {
        assert_eq!(goodbye_from_proto(goodbye_to_proto(reason, "").reason), reason);
    }
    assert_eq!(goodbye_from_proto(99), G::Unspecified);
    assert_eq!(goodbye_from_proto(-1), G::Unspecified);
}

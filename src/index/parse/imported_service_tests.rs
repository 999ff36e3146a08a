use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::tests::{object, refuses};
use super::*;
use crate::model::SpiffeId;
use crate::model::object::Kind;
use crate::model::service::{Address, ClientPattern, TlsMode};

pub(in crate::index::parse) fn good() -> Value {
    json!({
        "trustDomain": "west.example",
        "name": "orders",
        "namespace": "shop",
        "host": "orders.shop.west.example",
        "ports": [{ "name": "web", "port": 80, "appProtocol": "http" }, { "name": "api", "port": 81, "appProtocol": "grpc" }],
        "tlsMode": "IstioMtls",
        "serverSPIFFEIDs": ["spiffe://west.example/ns/shop/sa/orders"],
        "clients": ["spiffe://east.example/ns/web/*"],
        "gateways": [{ "address": "192.0.2.9", "port": 15443 }, { "address": "gw.west.example", "port": 15443 }],
    })
}

fn parse_spec(spec: Value) -> Result<Imported, Rejected> {
    parse(&object(Kind::ImportedService, Some("entente-system"), "orders.shop.west.example", spec))
}

#[test]
fn reads_every_field_and_writes_the_same() {
    let imported = parse_spec(good()).unwrap();
    assert_eq!(imported.object, NamespacedName::new("entente-system", "orders.shop.west.example"));
    assert_eq!(imported.trust_domain.as_str(), "west.example");
    assert_eq!(imported.service.ports[1].protocol, AppProtocol::Grpc);
    assert_eq!(imported.service.gateways.len(), 2);
    assert_eq!(spec_of(&imported.service, "orders.shop.west.example", &imported.trust_domain), good());
}

#[test]
fn refuses_what_a_hand_has_changed() {
    let id = "spec.serverSPIFFEIDs[0]";
    refuses(
        &good(),
        vec![
            ("/trustDomain", Some(json!("West.example")), "spec.trustDomain", "lower"),
            ("/trustDomain", Some(json!("north.example")), "spec.host", "orders.shop.north.example"),
            ("/trustDomain", Some(json!("we_st.example")), "spec.host", "not a legal DNS host"),
            ("/host", Some(json!("kubernetes.default.svc")), "spec.host", "orders.shop.west.example"),
            ("/name", Some(json!("a.b")), "spec.name", "DNS label"),
            ("/namespace", Some(json!("")), "spec.namespace", "DNS label"),
            ("/serverSPIFFEIDs", Some(json!([])), "spec.serverSPIFFEIDs", "at least one"),
            ("/serverSPIFFEIDs/0", Some(json!("spiffe://east.example/a")), id, "the peer's trust domain"),
            ("/clients/0", Some(json!("*")), "spec.clients[0]", "neither a SPIFFE ID"),
            ("/ports", Some(json!([])), "spec.ports", "at least one"),
            ("/ports/1/port", Some(json!(80)), "spec.ports[1]", "given once"),
            ("/ports/1/name", Some(json!("web")), "spec.ports[1]", "given once"),
            ("/ports/1/appProtocol", Some(json!("udp")), "spec.ports[1].appProtocol", "it must be tcp"),
            ("/gateways/0/address", Some(json!("unix:///x")), "spec.gateways[0].address", "neither an IP"),
            ("/gateways/0/port", Some(json!(70_000)), "spec.gateways[0].port", "1 to 65535"),
        ],
        |spec| {
            let parsed = parse_spec(spec);
            if let Err(rejected) = &parsed {
                assert_eq!(rejected.reason, "Invalid");
            }
            parsed
        },
    );
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        any::<std::net::Ipv4Addr>().prop_map(|ip| Address::Ip(ip.into())),
        any::<std::net::Ipv6Addr>().prop_map(|ip| Address::Ip(ip.into())),
        "[a-z][a-z0-9]{0,8}(\\.[a-z][a-z0-9]{0,8}){1,3}".prop_map(Address::Dns),
    ]
}

fn remote_service() -> impl Strategy<Value = RemoteService> {
    let protocols = [
        AppProtocol::Tcp,
        AppProtocol::Http,
        AppProtocol::Http2,
        AppProtocol::Grpc,
        AppProtocol::Https,
        AppProtocol::Tls,
    ];
    // Names by number, so that both are distinct.
    let ports =
        btree_map(1..=u16::MAX, proptest::sample::select(protocols.to_vec()), 1..8).prop_map(|ports| {
            let one = |(port, protocol)| RemotePort {
                name: format!("p-{port}"),
                port,
                protocol,
                clients: BTreeSet::new(),
            };
            ports.into_iter().map(one).collect::<Vec<_>>()
        });
    let gateways = vec((address(), 1..=u16::MAX), 0..5).prop_map(|gateways| {
        gateways.into_iter().map(|(address, port)| GatewayAddress { address, port }).collect()
    });
    let modes = proptest::sample::select(vec![TlsMode::IstioMtls, TlsMode::Mtls]);
    let ids = btree_set("[a-zA-Z0-9_-]{1,20}(/[a-zA-Z0-9_-]{1,20}){0,3}", 1..5);
    let clients = btree_set("[a-z]{1,8}\\.example/([a-z]{1,8}|([a-z]{1,8}/)?\\*)", 0..5);
    (
        "[a-z]([a-z0-9-]{0,20}[a-z0-9])?",
        "[a-z]([a-z0-9-]{0,20}[a-z0-9])?",
        ports,
        modes,
        ids,
        clients,
        gateways,
    )
        .prop_map(|(name, namespace, ports, tls_mode, ids, clients, gateways)| RemoteService {
            name: ServiceName::new(&namespace, &name).unwrap(),
            ports,
            tls_mode,
            server_ids: ids
                .iter()
                .map(|path| SpiffeId::new(format!("spiffe://west.example/{path}")).unwrap())
                .collect(),
            clients: clients
                .iter()
                .map(|text| ClientPattern::parse(&format!("spiffe://{text}")).unwrap())
                .collect(),
            gateways,
            endpoints: Vec::new(),
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_what_is_read(service in remote_service()) {
        let west = TrustDomain::new("west.example").unwrap();
        let host = service.name.host(&west).unwrap();
        let spec = spec_of(&service, &host, &west);
        let read = parse_spec(spec.clone()).unwrap();
        prop_assert_eq!(&read.service, &service);
        prop_assert_eq!(spec_of(&read.service, &host, &west), spec);
    }
}

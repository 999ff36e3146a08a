use serde_json::{Value, json};

use super::super::tests::{object, refuses, with};
use super::*;
use crate::model::object::Kind;
use crate::model::service::TlsMode;

pub(in crate::index::parse) fn good() -> Value {
    json!({
        "name": "orders-v2",
        "workloadLabels": { "app": "orders" },
        "ports": [
            { "name": "http-web", "port": 80, "targetPort": 8080 },
            {
                "name": "api", "port": 81, "appProtocol": "grpc",
                "clients": { "spiffeIDs": ["spiffe://west.example/admin"] },
            },
        ],
        "tlsMode": "IstioMtls",
        "exportedTrustDomains": ["west.example", "north.example"],
        "clients": { "spiffeIDs": ["spiffe://west.example/ns/web/*", "spiffe://north.example/billing"] },
        "serverSPIFFEIDs": ["spiffe://east.example/ns/shop/sa/orders"],
        "gateways": [
            { "type": "istio-eastwestgateway", "port": 15443, "ip": "192.0.2.9" },
            { "type": "istio-ingressgateway", "port": 443, "hostname": "gw.east.example" },
        ],
    })
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn parse_spec(spec: Value) -> Result<DeclaredService, Rejected> {
    parse(&object(Kind::FederatedService, Some("shop"), "orders", spec), Some(&td("east.example")))
}

#[test]
fn reads_every_field() {
    let service = parse_spec(good()).unwrap();
    assert_eq!(service.object, NamespacedName::new("shop", "orders"));
    assert_eq!((service.uid.as_str(), service.generation), ("u-1", 7));
    assert_eq!(service.name, ServiceName::new("shop", "orders-v2").unwrap());
    let labels = std::collections::BTreeMap::from([("app".to_owned(), "orders".to_owned())]);
    assert_eq!(service.backing, Backing::Labels(labels));
    let ports: Vec<_> =
        service.ports.iter().map(|p| (p.name.as_str(), p.port, p.target.clone(), p.protocol)).collect();
    assert_eq!(
        ports,
        [("http-web", 80, Some(TargetPort::Number(8080)), None), ("api", 81, None, Some(AppProtocol::Grpc)),]
    );
    let of_port = service.ports[1].clients.as_ref().unwrap();
    assert_eq!(
        of_port.iter().map(ClientPattern::as_str).collect::<Vec<_>>(),
        ["spiffe://west.example/admin"]
    );
    assert_eq!(service.tls_mode, TlsMode::IstioMtls);
    assert_eq!(service.exported_to.len(), 2);
    let clients: Vec<_> = service.clients.iter().map(ClientPattern::as_str).collect();
    assert_eq!(clients, ["spiffe://north.example/billing", "spiffe://west.example/ns/web/*"]);
    assert_eq!(service.server_ids.len(), 1);
    let gateways: Vec<_> = service
        .gateways
        .iter()
        .map(|g| (g.gateway_type.as_str(), g.at.address.to_string(), g.at.port))
        .collect();
    assert_eq!(
        gateways,
        [
            ("istio-eastwestgateway", "192.0.2.9".to_owned(), 15443),
            ("istio-ingressgateway", "gw.east.example".to_owned(), 443),
        ]
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let spec = json!({
        "workloadLabels": { "app": "orders" },
        "ports": [{ "name": "web", "port": 80 }],
        "tlsMode": "Mtls",
        "exportedTrustDomains": ["west.example"],
        "clients": { "spiffeIDs": ["spiffe://west.example/*"] },
    });
    let service = parse_spec(spec).unwrap();
    assert_eq!(service.name, ServiceName::new("shop", "orders").unwrap());
    let port = &service.ports[0];
    assert_eq!((&port.target, &port.protocol, &port.clients), (&None, &None, &None));
    assert!(service.server_ids.is_empty() && service.gateways.is_empty(), "the plan reports what is missing");
}

#[test]
fn a_service_stands_for_labels_and_ports() {
    let spec = with(with(good(), "/workloadLabels", None), "/serviceRef", Some(json!({ "name": "orders" })));
    assert_eq!(parse_spec(spec.clone()).unwrap().backing, Backing::Service("orders".to_owned()));
    assert!(parse_spec(with(spec, "/ports", None)).unwrap().ports.is_empty());
    let rejected = parse_spec(with(good(), "/ports", None)).unwrap_err();
    assert!(rejected.message.contains("at least one"), "{}", rejected.message);
}

#[test]
fn an_application_outside_of_a_mesh_is_where_it_is_said_to_be() {
    let given = |endpoints: Value| {
        parse_spec(with(with(good(), "/workloadLabels", None), "/endpoints", Some(endpoints)))
    };
    let parsed =
        given(json!([{ "ip": "127.0.0.1" }, { "hostname": "cart.shop.svc.cluster.local" }])).unwrap();
    let all = ["127.0.0.1", "cart.shop.svc.cluster.local"].map(|one| Address::parse(one).unwrap());
    assert_eq!(parsed.backing, Backing::Endpoints(all.into()));
    for (endpoints, expected) in [
        (json!([]), "it is missing"),
        (json!([{}]), "exactly one"),
        (json!([{ "ip": "127.0.0.1", "hostname": "a.b" }]), "exactly one"),
        (json!([{ "ip": "a.b" }]), "not an IP address"),
        (json!([{ "ip": "0.0.0.0" }]), "nobody can be called"),
        (json!([{ "ip": "ff02::1" }]), "nobody can be called"),
        (json!([{ "hostname": "127.0.0.1" }]), "give it as ip"),
        (json!([{ "hostname": "localhost" }]), "two labels"),
        (json!(vec![json!({ "ip": "192.0.2.1" }); 65]), "64"),
    ] {
        let message = given(endpoints.clone()).unwrap_err().message;
        assert!(message.contains(expected), "{endpoints}: {message}");
    }
    let both = with(good(), "/endpoints", Some(json!([{ "ip": "127.0.0.1" }])));
    assert!(parse_spec(both).unwrap_err().message.contains("not two"));
    let bare = with(given_spec(), "/ports", None);
    assert!(parse_spec(bare).unwrap_err().message.contains("at least one"));
}

fn given_spec() -> Value {
    with(with(good(), "/workloadLabels", None), "/endpoints", Some(json!([{ "ip": "127.0.0.1" }])))
}

#[test]
fn a_target_port_may_be_a_name() {
    let target = |name: Value| {
        let parsed = parse_spec(with(good(), "/ports/0/targetPort", Some(name)));
        parsed.map(|service| service.ports[0].target.clone())
    };
    assert_eq!(target(json!("web")).unwrap(), Some(TargetPort::Name("web".to_owned())));
    for bad in [json!("Web"), json!("8080"), json!(""), json!("a-name-that-is-long"), json!("-a")] {
        assert!(target(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn refuses_what_breaks_a_rule() {
    let labels = "spec.workloadLabels";
    let clients = "spec.clients.spiffeIDs[0]";
    let server = "spec.serverSPIFFEIDs[0]";
    let domains = "spec.exportedTrustDomains[0]";
    refuses(
        &good(),
        vec![
            ("/name", Some(json!("orders.v2")), "spec.name", "DNS label"),
            ("/name", Some(json!("Orders")), "spec.name", "DNS label"),
            ("/workloadLabels", None, labels, "it is missing"),
            ("/workloadLabels", Some(json!({})), labels, "every pod"),
            ("/workloadLabels", Some(json!({ "a b": "c" })), labels, "a label key is"),
            ("/workloadLabels", Some(json!({ "a": 1 })), "spec.workloadLabels.a", "invalid type"),
            ("/serviceRef", Some(json!({ "name": "orders" })), labels, "not two"),
            ("/tlsMode", None, "spec", "missing field `tlsMode`"),
            ("/tlsMode", Some(json!("mTLS")), "spec.tlsMode", "unknown variant"),
            ("/exportedTrustDomains", Some(json!([])), "spec.exportedTrustDomains", "at least one"),
            ("/exportedTrustDomains/0", Some(json!("West.example")), domains, "write \"west.example\""),
            ("/exportedTrustDomains/0", Some(json!("east.example")), domains, "our own trust domain"),
            (
                "/exportedTrustDomains/0",
                Some(json!("south.example")),
                clients,
                "not in spec.exportedTrustDomains",
            ),
            ("/clients", None, "spec", "missing field `clients`"),
            ("/clients/spiffeIDs", Some(json!([])), "spec.clients.spiffeIDs", "at least one"),
            ("/clients/spiffeIDs/0", Some(json!("*")), clients, "neither a SPIFFE ID"),
            ("/clients/spiffeIDs/0", Some(json!("spiffe://west.example")), clients, "no path"),
            ("/clients/spiffeIDs/0", Some(json!("spiffe://west.example/a*")), clients, "neither a SPIFFE ID"),
            ("/clients/spiffeIDs/0", Some(json!("spiffe://*/a")), clients, "neither a SPIFFE ID"),
            ("/clients/spiffeIDs/0", Some(json!("spiffe://WEST.example/a")), clients, "lower case"),
            ("/clients/spiffeIDs/0", Some(json!("spiffe://east.example/a")), clients, "exportedTrustDomains"),
            (
                "/clients/spiffeIDs",
                Some(json!(vec!["spiffe://west.example/a"; 1_001])),
                "spec.clients.spiffeIDs",
                "1001 items",
            ),
            ("/serverSPIFFEIDs/0", Some(json!("spiffe://west.example/a")), server, "our own trust domain"),
            ("/serverSPIFFEIDs/0", Some(json!("spiffe://east.example")), server, "no path"),
            ("/serverSPIFFEIDs/0", Some(json!("spiffe://east.example/*")), server, "not a SPIFFE ID"),
        ],
        parse_spec,
    );
}

#[test]
fn refuses_ports_and_gateways_that_break_a_rule() {
    let hostname = "spec.gateways[1].hostname";
    refuses(
        &good(),
        vec![
            ("/ports", Some(json!([])), "spec.ports", "at least one"),
            ("/ports/1/name", Some(json!("http-web")), "spec.ports[1].name", "another port has this name"),
            ("/ports/1/port", Some(json!(80)), "spec.ports[1].port", "another port has this number"),
            ("/ports/1/port", Some(json!(0)), "spec.ports[1].port", "1 to 65535"),
            ("/ports/1/port", Some(json!(65_536)), "spec.ports[1].port", "1 to 65535"),
            ("/ports/1/port", Some(json!("81")), "spec.ports[1].port", "invalid type"),
            ("/ports/0/targetPort", Some(json!(-1)), "spec.ports[0].targetPort", "1 to 65535"),
            ("/ports/0/targetPort", Some(json!("Web")), "spec.ports[0].targetPort", "the name of a port"),
            ("/ports/0/targetPort", Some(json!(true)), "spec.ports[0].targetPort", "did not match"),
            (
                "/ports/1/clients/spiffeIDs",
                Some(json!([])),
                "spec.ports[1].clients.spiffeIDs",
                "at least one",
            ),
            (
                "/ports/1/clients/spiffeIDs/0",
                Some(json!("spiffe://south.example/a")),
                "spec.ports[1].clients.spiffeIDs[0]",
                "not in spec.exportedTrustDomains",
            ),
            ("/ports/0/name", Some(json!("Web")), "spec.ports[0].name", "DNS label"),
            ("/ports/0/name", Some(json!("udp-dns")), "spec.ports[0].name", "UDP cannot be exported"),
            (
                "/ports/1/appProtocol",
                Some(json!("UDP")),
                "spec.ports[1].appProtocol",
                "UDP cannot be exported",
            ),
            (
                "/ports/1/appProtocol",
                Some(json!("kubernetes.io/ws")),
                "spec.ports[1].appProtocol",
                "tcp serves",
            ),
            ("/gateways/0/ip", None, "spec.gateways[0]", "exactly one of hostname and ip"),
            (
                "/gateways/0/hostname",
                Some(json!("a.b")),
                "spec.gateways[0]",
                "exactly one of hostname and ip",
            ),
            ("/gateways/0/ip", Some(json!("gw.east.example")), "spec.gateways[0].ip", "goes into hostname"),
            ("/gateways/1/hostname", Some(json!("192.0.2.9")), hostname, "give it as ip"),
            ("/gateways/1/hostname", Some(json!("gateway")), hostname, "two labels"),
            ("/gateways/1/hostname", Some(json!("*.east.example")), hostname, "two labels"),
            ("/gateways/1/port", Some(json!(0)), "spec.gateways[1].port", "1 to 65535"),
            ("/gateways/1/type", Some(json!("nginx")), "spec.gateways[1].type", "unknown variant"),
        ],
        parse_spec,
    );
}

#[test]
fn an_object_whose_name_is_no_label_needs_a_name_for_the_service() {
    let unnamed = object(Kind::FederatedService, Some("shop"), "orders.v2", with(good(), "/name", None));
    let message = parse(&unnamed, None).unwrap_err().message;
    assert!(message.starts_with("metadata.name: ") && message.contains("give spec.name"), "{message}");
    let named = object(Kind::FederatedService, Some("shop"), "orders.v2", good());
    assert_eq!(parse(&named, None).unwrap().name.name(), "orders-v2");
}

#[test]
fn a_host_that_is_too_long_is_refused_and_one_that_our_trust_domain_spoils_is_not() {
    let mut spec = with(good(), "/serverSPIFFEIDs", Some(json!([])));
    let object_of = |spec: Value| object(Kind::FederatedService, Some("shop"), "orders", spec);
    let long = td(&format!("{0}.{0}.{0}.example", "t".repeat(60)));
    assert!(parse(&object_of(spec.clone()), Some(&long)).is_ok());
    spec["name"] = json!("o".repeat(63));
    let message = parse(&object_of(spec.clone()), Some(&long)).unwrap_err().message;
    assert!(message.starts_with("spec.name: ") && message.contains("longer than 253"), "{message}");
    assert!(parse(&object_of(spec), Some(&td("ea_st"))).is_ok(), "the plan says so of all services at once");
}

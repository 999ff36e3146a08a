use crate::model::ServiceName;
use crate::model::peer::ServicePattern;
use crate::plan::fixtures::{WorldExt as _, cart, client, gateway, id, peer, remote_cart, world};

use super::*;

/// What west.example's `service` becomes in east.example.
fn judge(peer: Peer, service: &RemoteService) -> Result<String, &'static str> {
    judge_in(world("east.example"), peer, service)
}

fn judge_in(world: World, peer: Peer, service: &RemoteService) -> Result<String, &'static str> {
    let world = world.with_peer(peer.clone());
    let around = Arc::new(Surroundings::new(&world, || Arc::new(addresses_of_pods(&world))));
    Admission::new(Arc::new(peer), around).admit(service).map_err(|refusal| {
        assert!(refusal.message.contains(&service.name.to_string()), "{}", refusal.message);
        refusal.reason.as_str()
    })
}

#[test]
fn a_sound_service_is_admitted_at_its_host() {
    assert_eq!(judge(peer("west.example"), &remote_cart()), Ok("cart.shop.west.example".to_owned()));
}

#[test]
fn both_modes_are_admitted() {
    let mut service = remote_cart();
    service.tls_mode = crate::model::service::TlsMode::Mtls;
    assert!(judge(peer("west.example"), &service).is_ok());
}

#[test]
fn only_what_the_patterns_name_is_admitted() {
    let pattern = |namespace: Option<&str>, name: Option<&str>| ServicePattern {
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
    };
    let table = [
        (vec![], false),
        (vec![pattern(Some("shop"), Some("cart"))], true),
        (vec![pattern(Some("shop"), None)], true),
        (vec![pattern(None, Some("cart"))], true),
        (vec![pattern(Some("shop"), Some("orders")), pattern(Some("cart"), None)], false),
    ];
    for (services, expected) in table {
        let mut peer = peer("west.example");
        peer.imports.services.clone_from(&services);
        let verdict = judge(peer, &remote_cart());
        assert_eq!(verdict.is_ok(), expected, "{services:?}");
        assert!(expected || verdict == Err("NotAdmitted"));
    }
}

#[test]
fn each_rule_has_its_reason() {
    type Change = fn(&mut RemoteService);
    let port = |s: &RemoteService| s.ports[0].clone();
    let table: [(&str, Change); 11] = [
        ("NoServerId", |s| s.server_ids.clear()),
        ("ForeignServerId", |s| {
            s.server_ids.insert(id("spiffe://east.example/ns/shop/sa/cart"));
        }),
        ("ForeignServerId", |s| {
            s.server_ids.insert(id("spiffe://west.example.evil/ns/shop/sa/cart"));
        }),
        ("TooManyIds", |s| {
            s.server_ids.extend((0..64).map(|n| id(&format!("spiffe://west.example/sa/{n}"))));
        }),
        ("TooManyIds", |s| {
            s.clients.extend((0..1_000).map(|n| client(&format!("spiffe://east.example/sa/{n}"))));
        }),
        ("NoGateway", |s| s.gateways.clear()),
        ("TooManyEndpoints", |s| {
            s.gateways = (1..=65).map(|port| gateway("10.0.0.1", port)).collect();
        }),
        ("PortsInvalid", |s| s.ports.clear()),
        ("PortsInvalid", |s| s.ports[0].port = 0),
        ("PortsInvalid", |s| s.ports[0].name = "not a label".to_owned()),
        ("AddressNotAdmitted", |s| s.gateways[0].port = 0),
    ];
    for (expected, change) in table {
        let mut service = remote_cart();
        change(&mut service);
        assert_eq!(judge(peer("west.example"), &service), Err(expected));
    }
    let mut twice = remote_cart();
    twice.ports.push(port(&twice));
    assert_eq!(judge(peer("west.example"), &twice), Err("PortsInvalid"));
}

#[test]
fn the_importer_limits_endpoints() {
    let mut peer = peer("west.example");
    peer.imports.max_endpoints_per_service = 1;
    let mut service = remote_cart();
    assert!(judge(peer.clone(), &service).is_ok());
    service.gateways.push(gateway("10.77.2.3", 15_443));
    assert_eq!(judge(peer, &service), Err("TooManyEndpoints"));
}

#[test]
fn a_trust_domain_that_is_no_dns_host_exports_nothing() {
    for name in ["west_example", "10.0.0.1", "a..b", "-a.b"] {
        let mut service = remote_cart();
        service.server_ids = BTreeSet::from([id(&format!("spiffe://{name}/sa/cart"))]);
        assert_eq!(judge(peer(name), &service), Err("TrustDomainNotDns"), "{name}");
    }
}

#[test]
fn addresses() {
    let table = [
        ("10.77.2.2", true),
        ("203.0.113.9", true),
        ("fd00::1", true),
        ("2001:db8::1", true),
        ("::ffff:10.0.0.1", true),
        ("127.0.0.1", false),
        ("127.200.1.1", false),
        ("0.0.0.0", false),
        ("0.1.2.3", false),
        ("169.254.169.254", false),
        ("224.0.0.1", false),
        ("239.255.255.255", false),
        ("240.240.0.1", false),
        ("255.255.255.255", false),
        ("::", false),
        ("::1", false),
        ("fe80::1", false),
        ("febf::1", false),
        ("ff02::1", false),
        ("::ffff:127.0.0.1", false),
        ("::ffff:169.254.169.254", false),
        ("::ffff:0.0.0.0", false),
        ("::ffff:255.255.255.255", false),
        ("::127.0.0.1", false),
        ("64:ff9b::7f00:1", false),
        ("2002:7f00:1::1", false),
        ("gw.west.example", true),
        ("a1b2.elb.eu-west-1.amazonaws.com", true),
        ("gateway.localhost", false),
        ("a.gateway.localhost", false),
        ("istiod.istio-system.svc.cluster.local", false),
        ("printer.office.local", false),
        ("istiod.istio-system.svc", false),
        ("kubernetes.default", false),
        ("10-0-0-1.shop.pod", false),
        ("host.lan.localdomain", false),
    ];
    for (address, expected) in table {
        let mut service = remote_cart();
        service.gateways = vec![gateway(address, 15_443)];
        let verdict = judge(peer("west.example"), &service);
        assert_eq!(verdict.is_ok(), expected, "{address}");
        assert!(expected || verdict == Err("AddressNotAdmitted"), "{address}");
    }
    // Names that the parser of a catalogue lets nobody write.
    for name in ["localhost", "UPPER.example.com", "a b.example.com", ""] {
        let mut service = remote_cart();
        service.gateways = vec![GatewayAddress { address: Address::Dns(name.to_owned()), port: 1 }];
        assert_eq!(judge(peer("west.example"), &service), Err("AddressNotAdmitted"), "{name}");
    }
}

#[test]
fn one_bad_endpoint_refuses_the_service() {
    let mut service = remote_cart();
    service.gateways.push(gateway("127.0.0.1", 15_443));
    assert_eq!(judge(peer("west.example"), &service), Err("AddressNotAdmitted"));
}

#[test]
fn where_cidrs_are_given_only_addresses_in_them_are_admitted() {
    let mut peer = peer("west.example");
    peer.imports.endpoint_cidrs = vec!["10.77.0.0/16".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    let table = [
        ("10.77.2.2", true),
        ("::ffff:10.77.2.2", true),
        ("2001:db8::9", true),
        ("10.78.0.1", false),
        ("2001:db9::1", false),
        ("gw.west.example", false),
    ];
    for (address, expected) in table {
        let mut service = remote_cart();
        service.gateways = vec![gateway(address, 15_443)];
        assert_eq!(judge(peer.clone(), &service).is_ok(), expected, "{address}");
    }
    // A CIDR does not admit what never is a gateway.
    peer.imports.endpoint_cidrs = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let mut service = remote_cart();
    service.gateways = vec![gateway("127.0.0.1", 15_443)];
    assert_eq!(judge(peer, &service), Err("AddressNotAdmitted"));
}

#[test]
fn our_own_gateway_is_nobody_elses() {
    let world = world("east.example").with_service(cart());
    assert_eq!(judge_in(world, peer("west.example"), &remote_cart()), Err("AddressNotAdmitted"));
}

/// The namespace that a peer chooses must not put a host into another zone.
#[test]
fn hosts_stay_out_of_other_zones() {
    let named = |namespace: &str, name: &str, td: &str| {
        let mut service = remote_cart();
        service.name = ServiceName::new(namespace, name).unwrap();
        service.server_ids = BTreeSet::from([id(&format!("spiffe://{td}/sa/cart"))]);
        service
    };
    let table = [
        // own, another peer, the exporter, namespace, name, admitted
        ("east.example", "north.example", "west.example", "shop", "cart", true),
        ("shop.west.example", "north.example", "west.example", "shop", "cart", false),
        ("cart.shop.west.example", "north.example", "west.example", "shop", "cart", false),
        ("east.example", "shop.west.example", "west.example", "shop", "cart", false),
        ("east.example", "other.west.example", "west.example", "shop", "cart", true),
        // A trust domain below another: its hosts have one more label than the other's ever have.
        ("example", "north.example", "west.example", "shop", "cart", true),
        ("east.example", "north.example", "cluster.local", "shop", "cart", false),
        ("east.example", "north.example", "svc.cluster.local", "shop", "cart", false),
        ("east.example", "north.example", "local", "cluster", "cart", false),
        ("east.example", "north.example", "svc", "shop", "cart", false),
        ("east.example", "north.example", "localhost", "shop", "cart", false),
        ("east.example", "north.example", "mycluster.local", "shop", "cart", true),
        // `cart-0.cart.staging` is a pod of ours.
        ("east.example", "north.example", "staging", "cart", "cart-0", false),
        ("east.example", "north.example", "production", "cart", "cart-0", true),
        ("east.example", "north.example", "staging.example", "cart", "cart-0", true),
    ];
    for (own, other, td, namespace, name, expected) in table {
        let mut world = world(own).with_peer(peer(other));
        world.namespaces.insert("staging".to_owned(), Default::default());
        let verdict = judge_in(world, peer(td), &named(namespace, name, td));
        assert_eq!(verdict.is_ok(), expected, "{name}.{namespace}.{td} in {own}");
        assert!(expected || verdict == Err("HostShadows"), "{name}.{namespace}.{td} in {own}");
    }
}

/// Both the hosts and the addresses that are the cluster's follow its DNS domain.
#[test]
fn the_clusters_own_domain_is_no_peers() {
    let mut world = world("east.example");
    let settings = std::sync::Arc::make_mut(&mut world.settings);
    settings.cluster_domain = "corp.example.net".to_owned();
    let judge = |td: &str, address: &str| {
        let mut service = remote_cart();
        service.server_ids = BTreeSet::from([id(&format!("spiffe://{td}/sa/cart"))]);
        service.gateways = vec![gateway(address, 15_443)];
        judge_in(world.clone(), peer(td), &service)
    };
    assert_eq!(judge("corp.example.net", "10.0.0.1"), Err("HostShadows"));
    assert_eq!(judge("svc.corp.example.net", "10.0.0.1"), Err("HostShadows"));
    assert_eq!(judge("west.example", "db.shop.svc.corp.example.net"), Err("AddressNotAdmitted"));
    assert!(judge("cluster.local", "10.0.0.1").is_ok(), "it is not ours here");
    assert!(judge("acorp.example.net", "10.0.0.1").is_ok());
}

#[test]
fn pods_of_a_flat_network_are_admitted_as_gateways_are() {
    use crate::model::service::DirectEndpoint;
    let with = |address: &str, ports: &[(&str, u16)]| {
        let mut service = remote_cart();
        service.gateways.clear();
        service.endpoints = vec![DirectEndpoint {
            address: address.parse().unwrap(),
            ports: ports.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect(),
        }];
        service
    };
    // What the peer names is looked at where it is known, so the session has it as well.
    let judge = |service: &RemoteService| {
        let mut world = world("east.example");
        let session = crate::plan::fixtures::session(
            crate::model::session::LinkState::Connected,
            Some(vec![service.clone()]),
        );
        world = world.with_session("west.example", session);
        let object = crate::model::NamespacedName::new("shop", "ours");
        let pod = crate::model::cluster::Pod {
            object: object.clone(),
            uid: "u".to_owned(),
            labels: Default::default(),
            service_account: "a".to_owned(),
            ip: Some("10.1.0.9".parse().unwrap()),
            host_ip: Some("192.168.0.9".parse().unwrap()),
            other_ips: ["2001:db8::9", "2001:db8:1::9"].map(|ip| ip.parse().unwrap()).into(),
            is_ready: true,
            uses_host_network: false,
            named_ports: Default::default(),
            has_sidecar: false,
            has_spire_socket: false,
            is_ambient: false,
        };
        world.pods.insert(object, std::sync::Arc::new(pod));
        let mut west = peer("west.example");
        west.imports.endpoint_cidrs = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        west.imports.max_endpoints_per_service = 2;
        judge_in(world, west, service)
    };
    let table = [
        ("10.9.0.1", vec![("tcp", 8_080)], Ok("cart.shop.west.example".to_owned())),
        ("2001:db8::1", vec![("tcp", 8_080)], Ok("cart.shop.west.example".to_owned())),
        ("11.9.0.1", vec![("tcp", 8_080)], Err("AddressNotAdmitted")),
        ("127.0.0.1", vec![("tcp", 8_080)], Err("AddressNotAdmitted")),
        ("10.1.0.9", vec![("tcp", 8_080)], Err("AddressNotAdmitted")),
        ("::ffff:10.1.0.9", vec![("tcp", 8_080)], Err("AddressNotAdmitted")),
        ("2001:db8::9", vec![("tcp", 8_080)], Err("AddressNotAdmitted")),
        ("2001:db8:1::9", vec![("tcp", 8_080)], Err("AddressNotAdmitted")),
        ("10.9.0.1", vec![("tcp", 0)], Err("AddressNotAdmitted")),
        ("10.9.0.1", vec![("other", 8_080)], Err("AddressNotAdmitted")),
        ("10.9.0.1", vec![("tcp", 8_080), ("more", 1)], Err("AddressNotAdmitted")),
        ("10.9.0.1", vec![], Err("AddressNotAdmitted")),
    ];
    for (address, ports, expected) in table {
        assert_eq!(judge(&with(address, &ports)), expected, "{address} {ports:?}");
    }
    let mut many = with("10.9.0.1", &[("tcp", 1)]);
    many.endpoints.extend(with("10.9.0.2", &[("tcp", 1)]).endpoints);
    assert!(judge(&many).is_ok());
    many.endpoints.extend(with("10.9.0.3", &[("tcp", 1)]).endpoints);
    assert_eq!(judge(&many), Err("TooManyEndpoints"));
}

/// What is ours is nobody else's gateway; where the importer gave CIDRs, that is its word, but for the cluster's own Services.
#[test]
fn a_gateway_is_no_address_of_our_own_cluster() {
    use crate::plan::fixtures::{pod, service_of_gateway, session};
    let judge = |address: &str, cidrs: &[&str]| {
        let mut service = remote_cart();
        service.gateways = vec![gateway(address, 15_443)];
        let link = crate::model::session::LinkState::Connected;
        let mut ours = pod("shop", "ours", "10.1.0.9", &[]);
        ours.host_ip = Some("192.168.0.9".parse().unwrap());
        let world = world("east.example")
            .with_pod(ours)
            .with_cluster_service(service_of_gateway("other", &[]))
            .with_session("west.example", session(link, Some(vec![service.clone()])));
        let mut west = peer("west.example");
        west.imports.endpoint_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        judge_in(world, west, &service).is_ok()
    };
    let all = ["10.0.0.0/8", "192.168.0.0/16"];
    for (address, alone, within) in [
        ("10.77.2.2", true, true),
        ("10.1.0.9", false, true),
        ("192.168.0.9", false, true),
        ("10.96.0.9", false, false),
        ("::ffff:10.96.0.9", false, false),
        ("64:ff9b::10.96.0.9", false, false),
    ] {
        assert_eq!(judge(address, &[]), alone, "{address}");
        assert_eq!(judge(address, &all), within && !address.contains("ff"), "{address} in {all:?}");
    }
}

/// `{pod}.{service}.{namespace}` is completed by the search list of a pod.
#[test]
fn names_of_three_labels_do_not_end_in_a_namespace_of_ours() {
    let mut world = world("east.example");
    world.namespaces.insert("shop".to_owned(), Default::default());
    for (name, expected) in [
        ("web-0.web.shop", false),
        ("web-0.web.SHOP", false),
        ("gw.example.com", true),
        ("gw.west.example.shop", true),
        ("istiod.istio-system.svc", false),
    ] {
        let mut service = remote_cart();
        service.gateways = vec![gateway(&name.to_ascii_lowercase(), 15_443)];
        assert_eq!(judge_in(world.clone(), peer("west.example"), &service).is_ok(), expected, "{name}");
    }
}

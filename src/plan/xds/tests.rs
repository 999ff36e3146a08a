use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost::Message as _;

use super::view::{ClientKind, View};
use super::*;
use crate::model::object::{Kind, ObjectKey};
use crate::model::reach::Tried;
use crate::model::service::{AppProtocol, Gateway, GatewayType, RemotePort, RemoteService, TlsMode};
use crate::model::session::LinkState;
use crate::model::{Peer, ServiceName};
use crate::plan::exports::testing::with_policies;
use crate::plan::fixtures::{
    WorldExt as _, cart, client, gateway, id, peer, remote_cart, service, session, td, world,
};
use crate::plan::services::services;
use crate::proto::xds::resources as pb;

/// East, with these services of west imported, and xDS served.
fn importing(services: Vec<RemoteService>, tune: impl FnOnce(&mut Peer, &mut World)) -> Xds {
    let mut world = world("east.example");
    {
        let settings = Arc::make_mut(&mut world.settings);
        settings.serves_xds = true;
        settings.import_ranges = vec!["127.64.0.0/10".parse().unwrap()];
    }
    let mut west = peer("west.example");
    tune(&mut west, &mut world);
    let link = LinkState::Idle;
    let world = world.with_peer(west).with_session("west.example", session(link, Some(services.clone())));
    let first = crate::plan::services::services(&world, &BTreeSet::new());
    let imported: Vec<(&str, RemoteService)> =
        services.into_iter().map(|service| ("west.example", service)).collect();
    let world = world.with_written(&first.objects, &imported);
    let xds = crate::plan::services::services(&world, &BTreeSet::new()).xds;
    Xds::clone(&xds.expect("xDS is served"))
}

fn of(mode: TlsMode, protocol: AppProtocol) -> RemoteService {
    let mut service = remote_cart();
    service.tls_mode = mode;
    service.ports[0].protocol = protocol;
    service.ports[0].name = protocol.as_str().to_owned();
    service
}

pub(super) const FRONTEND: &str = "spiffe://east.example/ns/shop/sa/client";

pub(super) fn names(xds: &Xds, client: &str, kind: ClientKind) -> Vec<String> {
    let view = View::of(xds, &id(client), kind);
    let all = ResourceType::ALL.into_iter();
    all.flat_map(|kind| view.of_type(kind).into_keys().map(move |name| format!("{} {name}", kind.as_str())))
        .collect()
}

/// What a client is sent, as text: messages that are packed are unpacked by the types that they name.
pub(super) fn text(xds: &Xds, client: &str, kind: ClientKind) -> String {
    let view = View::of(xds, &id(client), kind);
    let mut text = String::new();
    for resource in ResourceType::ALL.into_iter().flat_map(|kind| view.of_type(kind).into_values()) {
        let body = resource.body.clone();
        let decoded = match resource.kind {
            ResourceType::Cluster => {
                let cluster = pb::Cluster::decode(body).unwrap();
                let options =
                    cluster.typed_extension_protocol_options.values().map(unpacked).collect::<Vec<_>>();
                let socket =
                    cluster.transport_socket.as_ref().and_then(|socket| socket.typed_config.as_ref());
                let socket = socket.map(unpacked).unwrap_or_default();
                let choices: String = cluster.transport_socket_matches.iter().map(choice).collect();
                let bare = pb::Cluster {
                    transport_socket: None,
                    transport_socket_matches: Vec::new(),
                    typed_extension_protocol_options: BTreeMap::new(),
                    ..cluster
                };
                format!("{bare:#?}\nTLS: {socket}\n{choices}options: {}", options.join("\n"))
            }
            ResourceType::Endpoints => format!("{:#?}", pb::ClusterLoadAssignment::decode(body).unwrap()),
            ResourceType::Listener => {
                let mut listener = pb::Listener::decode(body).unwrap();
                let api = listener.api_listener.take().and_then(|api| api.api_listener);
                let api = api.as_ref().map(unpacked).unwrap_or_default();
                let chains: Vec<String> = listener.filter_chains.drain(..).map(chain).collect();
                format!("{listener:#?}\n{}{api}", chains.join("\n"))
            }
        };
        writeln!(text, "== {} {}\n{decoded}", resource.kind.as_str(), resource.name).unwrap();
    }
    text
}

fn choice(choice: &pb::TransportSocketMatch) -> String {
    let socket = choice.transport_socket.as_ref().and_then(|socket| socket.typed_config.as_ref());
    let socket = socket.map(unpacked).unwrap_or_default();
    format!("TLS of {} where {:?}: {socket}\n", choice.name, choice.r#match)
}

fn chain(mut chain: pb::FilterChain) -> String {
    let filters: Vec<String> = chain
        .filters
        .drain(..)
        .map(|filter| {
            format!("{}: {}", filter.name, filter.typed_config.as_ref().map(unpacked).unwrap_or_default())
        })
        .collect();
    let socket = chain.transport_socket.take().and_then(|socket| socket.typed_config);
    let socket = socket.as_ref().map(unpacked).unwrap_or_default();
    format!("{chain:#?}\n{}\nTLS: {socket}", filters.join("\n"))
}

fn unpacked(any: &prost_types::Any) -> String {
    let body = any.value.as_slice();
    let name = any.type_url.rsplit('.').next().unwrap();
    let decoded = match name {
        "UpstreamTlsContext" => format!("{:#?}", pb::UpstreamTlsContext::decode(body).unwrap()),
        "DownstreamTlsContext" => format!("{:#?}", pb::DownstreamTlsContext::decode(body).unwrap()),
        "RawBuffer" => String::new(),
        "TcpProxy" => format!("{:#?}", pb::TcpProxy::decode(body).unwrap()),
        "HttpProtocolOptions" => format!("{:#?}", pb::HttpProtocolOptions::decode(body).unwrap()),
        "RBAC" => format!("{:#?}", pb::RbacFilter::decode(body).unwrap()),
        "HttpConnectionManager" => {
            let mut manager = pb::HttpConnectionManager::decode(body).unwrap();
            let filters: Vec<String> = manager.http_filters.drain(..).map(|filter| filter.name).collect();
            format!("{manager:#?} filters {filters:?}")
        }
        other => panic!("{other}"),
    };
    format!("{}\n{decoded}", any.type_url)
}

pub(super) fn assert_golden(name: &str, text: String) {
    insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

#[test]
fn what_an_envoy_is_sent() {
    let xds = importing(vec![of(TlsMode::IstioMtls, AppProtocol::Tcp)], |_, _| {});
    assert_golden("tcp", text(&xds, FRONTEND, ClientKind::Envoy));
    let xds = importing(vec![of(TlsMode::Mtls, AppProtocol::Grpc)], |_, _| {});
    assert_golden("grpc", text(&xds, FRONTEND, ClientKind::Envoy));
    let mut named = of(TlsMode::Mtls, AppProtocol::Http);
    named.gateways = vec![gateway("gateway.west.example", 443)];
    assert_golden("http_by_name", text(&importing(vec![named], |_, _| {}), FRONTEND, ClientKind::Envoy));
}

#[test]
fn what_a_grpc_library_is_sent() {
    let xds = importing(vec![of(TlsMode::Mtls, AppProtocol::Grpc)], |_, _| {});
    assert_golden("proxyless", text(&xds, FRONTEND, ClientKind::Grpc));
    let xds = importing(vec![of(TlsMode::Mtls, AppProtocol::Tcp)], |_, _| {});
    assert!(names(&xds, FRONTEND, ClientKind::Grpc).is_empty());
}

/// Each mode and protocol has the SNI that the gateway wants and protocols that it passes on; what brings its own TLS is
/// given none.
#[test]
fn tls_is_begun_as_the_exporters_gateway_wants_it() {
    use AppProtocol::{Grpc, Http, Http2, Https, Tcp, Tls};
    let istio = "outbound_.18080_._.cart.shop.west.example";
    let host = "cart.shop.west.example";
    for (mode, protocol, expected) in [
        (TlsMode::IstioMtls, Tcp, Some((istio, "istio"))),
        (TlsMode::IstioMtls, Tls, Some((istio, "istio"))),
        (TlsMode::IstioMtls, Http, Some((istio, "istio-http/1.1"))),
        (TlsMode::IstioMtls, Http2, Some((istio, "istio-h2"))),
        (TlsMode::IstioMtls, Grpc, Some((istio, "istio-h2"))),
        (TlsMode::Mtls, Tcp, Some((host, ""))),
        (TlsMode::Mtls, Http, Some((host, "http/1.1"))),
        (TlsMode::Mtls, Grpc, Some((host, "h2"))),
        (TlsMode::Mtls, Tls, None),
        (TlsMode::Mtls, Https, None),
    ] {
        let xds = importing(vec![of(mode, protocol)], |_, _| {});
        let view = View::of(&xds, &id(FRONTEND), ClientKind::Envoy);
        let cluster = view.of_type(ResourceType::Cluster).into_values().next().unwrap();
        let cluster = pb::Cluster::decode(cluster.body.clone()).unwrap();
        let socket = cluster.transport_socket.and_then(|socket| socket.typed_config);
        let found = socket.map(|socket| {
            let tls = pb::UpstreamTlsContext::decode(socket.value.as_slice()).unwrap();
            let common = tls.common_tls_context.unwrap();
            let pins = common.combined_validation_context.unwrap();
            let pins = pins.default_validation_context.unwrap().match_typed_subject_alt_names;
            assert_eq!(pins.len(), 1, "the server is pinned");
            (tls.sni, common.alpn_protocols.join(","))
        });
        let expected = expected.map(|(sni, alpn)| (sni.to_owned(), alpn.to_owned()));
        assert_eq!(found, expected, "{mode:?} {protocol:?}");
    }
}

#[test]
fn a_client_sees_what_its_id_may_call_and_nothing_else() {
    let port = |name: &str, port: u16, clients: &[&str]| RemotePort {
        name: name.to_owned(),
        port,
        protocol: AppProtocol::Tcp,
        clients: clients.iter().map(|text| client(text)).collect(),
    };
    let mut service = remote_cart();
    service.ports = vec![
        port("all", 1, &[]),
        port("below", 2, &["spiffe://east.example/ns/web/*"]),
        port("one", 3, &["spiffe://east.example/ns/web/sa/one"]),
    ];
    let xds = importing(vec![service], |_, _| {});
    let listeners = |client: &str| -> Vec<String> {
        let all = names(&xds, client, ClientKind::Envoy);
        let ports = all.iter().filter_map(|name| name.strip_prefix("listener ")?.rsplit(':').next());
        ports.map(str::to_owned).collect()
    };
    assert_eq!(listeners(FRONTEND), ["1"]);
    assert_eq!(listeners("spiffe://east.example/ns/web/sa/one"), ["2", "3"]);
    assert_eq!(listeners("spiffe://east.example/ns/web/sa/two"), ["2"]);
    for other in [
        "spiffe://east.example/ns/shop/sa/client2",
        "spiffe://east.example/ns/webb/sa/one",
        "spiffe://north.example/ns/shop/sa/client",
        "spiffe://west.example/ns/shop/sa/cart",
    ] {
        assert!(names(&xds, other, ClientKind::Envoy).is_empty(), "{other}");
    }
}

#[test]
fn an_import_for_some_namespaces_is_for_their_clients_alone() {
    for (export_to, sees) in [("*", true), ("shop", true), ("web", false), ("~", false), (".", false)] {
        let tune = |peer: &mut Peer, _: &mut World| peer.imports.export_to = vec![export_to.to_owned()];
        let xds = importing(vec![remote_cart()], tune);
        assert_eq!(!names(&xds, FRONTEND, ClientKind::Envoy).is_empty(), sees, "{export_to}");
    }
    let named = Audience::Namespaces(BTreeSet::from(["shop".to_owned()]));
    for (path, holds) in
        [("/ns/shop/sa/a", true), ("/shop/sa/a", false), ("/ns/shopp/sa/a", false), ("/x/ns/shop", false)]
    {
        assert_eq!(named.holds(&id(&format!("spiffe://east.example{path}"))), holds, "{path}");
    }
}

/// A gateway that takes no connection from us is said to be ill to an Envoy while another is left, and never to a gRPC library,
/// which calls none that is.
#[test]
fn gateways_that_refuse_connections_are_said_to_be_ill() {
    let mut service = of(TlsMode::Mtls, AppProtocol::Grpc);
    service.gateways.push(gateway("10.77.2.3", 15_443));
    let health = |kind, down: &[&str]| -> Vec<i32> {
        let xds = importing(vec![service.clone()], |_, world| {
            let tried = Tried { last: Attempt::Refused, has_answered: true, is_doubted: false };
            world.reached = Arc::new(down.iter().map(|down| (gateway(down, 15_443), tried)).collect());
        });
        let view = View::of(&xds, &id(FRONTEND), kind);
        let body = view.of_type(ResourceType::Endpoints).values().next().unwrap().body.clone();
        let assignment = pb::ClusterLoadAssignment::decode(body).unwrap();
        assignment.endpoints[0].lb_endpoints.iter().map(|endpoint| endpoint.health_status).collect()
    };
    for (down, to_envoy) in
        [(&[][..], [0, 0]), (&["10.77.2.3"], [0, 2]), (&["10.77.2.2", "10.77.2.3"], [0, 0])]
    {
        assert_eq!(health(ClientKind::Envoy, down), to_envoy, "{down:?}");
        assert_eq!(health(ClientKind::Grpc, down), [0, 0], "{down:?}");
    }
}

/// What nothing changes for keeps its bytes and versions; what changes for one service changes nothing of another.
#[test]
fn a_version_is_of_the_content() {
    let other = RemoteService { name: ServiceName::new("shop", "other").unwrap(), ..remote_cart() };
    let view = |services: Vec<RemoteService>| {
        View::of(&importing(services, |_, _| {}), &id(FRONTEND), ClientKind::Envoy)
    };
    let both = view(vec![remote_cart(), other.clone()]);
    let again = view(vec![remote_cart(), other.clone()]);
    for kind in ResourceType::ALL {
        assert_eq!(both.all(kind), again.all(kind));
        assert!(again.since(&both, kind).is_empty());
    }
    let mut moved = remote_cart();
    moved.server_ids.insert(id("spiffe://west.example/ns/shop/sa/cart2"));
    let changed = view(vec![moved, other]);
    let versions = |view: &View, kind| -> Vec<Version> {
        view.of_type(kind).values().map(|resource| resource.version).collect()
    };
    let (before, after) = (versions(&both, ResourceType::Cluster), versions(&changed, ResourceType::Cluster));
    assert_ne!(before[0], after[0]);
    assert_eq!(before[1], after[1]);
    assert_eq!(versions(&both, ResourceType::Listener), versions(&changed, ResourceType::Listener));
}

/// West, with services that are exported, in front of which an Envoy stands.
fn exporting(services_of: Vec<crate::model::Service>, to: &[&str]) -> Xds {
    let mut world = world("west.example");
    Arc::make_mut(&mut world.settings).serves_xds = true;
    for name in to {
        world = world.with_peer(peer(name));
    }
    for service in services_of {
        world = world.with_service(service);
    }
    let xds = services(&with_policies(world), &BTreeSet::new()).xds;
    Xds::clone(&xds.expect("xDS is served"))
}

const CART: &str = "spiffe://west.example/ns/shop/sa/cart";

#[test]
fn the_envoy_of_a_server_lets_in_its_clients_alone() {
    let xds = exporting(vec![cart()], &["east.example"]);
    assert_golden("inbound", text(&xds, CART, ClientKind::Envoy));
    for other in [FRONTEND, "spiffe://west.example/ns/shop/sa/other"] {
        assert!(names(&xds, other, ClientKind::Envoy).is_empty(), "{other}");
    }
}

/// Importers reach it by IPv4 and by IPv6, or by a name: one listener takes them all, and has each door once, since Envoy refuses
/// one that has two chains for one SNI.
#[test]
fn the_envoy_of_a_server_takes_both_families_on_one_port() {
    let listener = |gateways: &[&str]| {
        let mut cart = cart();
        cart.gateways = gateways
            .iter()
            .map(|at| Gateway { gateway_type: GatewayType::EastWestGateway, at: gateway(at, 15_443) })
            .collect();
        let view = View::of(&exporting(vec![cart], &["east.example"]), &id(CART), ClientKind::Envoy);
        let listeners = view.of_type(ResourceType::Listener);
        let all: Vec<pb::Listener> =
            listeners.values().map(|one| pb::Listener::decode(one.body.clone()).unwrap()).collect();
        let [one] = <[pb::Listener; 1]>::try_from(all).unwrap();
        let at = one.address.unwrap().socket_address.unwrap();
        (at.address, at.port_value, one.filter_chains.len())
    };
    for (gateways, address) in [
        (&["192.0.2.8"][..], "0.0.0.0"),
        (&["192.0.2.8", "2001:db8::8"], "::"),
        (&["2001:db8::8", "192.0.2.8"], "::"),
        (&["gateway.west.example", "2001:db8::8", "192.0.2.9"], "::"),
    ] {
        assert_eq!(listener(gateways), (address.to_owned(), 15_443, 1), "{gateways:?}");
    }
}

/// Many clients come by one cluster of a server's Envoy, and a client may have many connections.
#[test]
fn no_cluster_cuts_off_what_is_one_too_many() {
    let imported = importing(vec![of(TlsMode::Mtls, AppProtocol::Grpc)], |_, _| {});
    let exported = exporting(vec![cart()], &["east.example"]);
    for (xds, client, kind) in [
        (&imported, FRONTEND, ClientKind::Envoy),
        (&imported, FRONTEND, ClientKind::Grpc),
        (&exported, CART, ClientKind::Envoy),
    ] {
        let clusters = View::of(xds, &id(client), kind).of_type(ResourceType::Cluster);
        assert_eq!(clusters.len(), 1);
        let cluster = pb::Cluster::decode(clusters.values().next().unwrap().body.clone()).unwrap();
        let [limits] = <[pb::Thresholds; 1]>::try_from(cluster.circuit_breakers.unwrap().thresholds).unwrap();
        let limits =
            [limits.max_connections, limits.max_pending_requests, limits.max_requests, limits.max_retries];
        assert_eq!(limits, [Some(u32::MAX); 4], "{}", cluster.name);
    }
}

/// What is outside of a mesh is reached where it is said to be, by names that Envoy resolves where there are any.
#[test]
fn the_envoy_of_a_server_passes_on_to_where_the_application_is() {
    let (mut near, mut far) = (cart(), service("shop", "web", "east.example"));
    far.server_ids = near.server_ids.clone();
    for (service, endpoints) in
        [(&mut near, &["192.0.2.8", "192.0.2.9"][..]), (&mut far, &["web.west.example"])]
    {
        service.workload_labels.clear();
        service.endpoints = endpoints.iter().map(|one| Address::parse(one).unwrap()).collect();
    }
    let xds = exporting(vec![near, far], &["east.example"]);
    assert_golden("outside", text(&xds, CART, ClientKind::Envoy));
}

#[test]
fn services_of_one_server_share_a_listener_and_have_doors_of_their_own() {
    let mut both = cart();
    both.exported_to = BTreeSet::from([td("east.example"), td("north.example"), td("void.example")]);
    for name in ["north.example", "void.example"] {
        both.clients.insert(client(&format!("spiffe://{name}/*")));
    }
    let mut second = service("shop", "web", "east.example");
    second.server_ids = both.server_ids.clone();
    second.tls_mode = TlsMode::Mtls;
    second.ports[0].target_port = 9_090;
    second.gateways =
        vec![Gateway { gateway_type: GatewayType::IngressGateway, at: gateway("10.77.2.2", 15_443) }];
    // void.example is no peer: nobody of it is let in.
    let xds = exporting(vec![both, second], &["east.example", "north.example"]);
    let view = View::of(&xds, &id(CART), ClientKind::Envoy);
    let listeners = view.of_type(ResourceType::Listener);
    assert_eq!(listeners.len(), 1);
    let listener = pb::Listener::decode(listeners.values().next().unwrap().body.clone()).unwrap();
    let chains: Vec<String> = listener.filter_chains.into_iter().map(chain).collect();
    assert_eq!(chains.len(), 2);
    assert!(chains[0].contains("\"ALL\"") && chains[1].contains("\"spiffe://east.example\""), "{chains:?}");
    assert!(chains[0].contains("spiffe://north.example/") && !chains.concat().contains("void"), "{chains:?}");
    assert!(chains[1].contains("web.shop.west.example") && chains[1].contains("application:9090"));
}

/// A TrustDomainPeer that cannot be read takes nothing from its clients: their door stays as it was.
#[test]
fn the_clients_of_a_peer_that_cannot_be_read_keep_their_door() {
    let doors = |readable: &[&str], unread: &[&str]| {
        let mut cart = cart();
        cart.exported_to = [td("east.example"), td("north.example")].into();
        cart.clients.insert(client("spiffe://north.example/*"));
        let mut world = world("west.example").with_service(cart);
        Arc::make_mut(&mut world.settings).serves_xds = true;
        world.absent.extend(Kind::WATCHED.into_iter().filter(|kind| kind.is_istio()));
        for name in readable {
            world = world.with_peer(peer(name));
        }
        for name in unread {
            world = world.with_rejected(ObjectKey::cluster(Kind::TrustDomainPeer, *name), Some(name));
        }
        text(&services(&world, &BTreeSet::new()).xds.unwrap(), CART, ClientKind::Envoy)
    };
    let (east, north) = ("east.example", "north.example");
    let both = doors(&[east, north], &[]);
    assert!(both.contains("spiffe://north.example/") && both.contains("\"ALL\""), "{both}");
    assert_eq!(doors(&[east], &[north]), both);
    assert_eq!(doors(&[], &[east, north]), both);
    assert!(!doors(&[east], &[]).contains(north), "of a peer that is gone nobody is let in");
}

/// With `Mtls` all ports of a host are one door, by which all come to one port of the application: whom any of them names is let
/// in, and may speak what any of them speaks.
#[test]
fn the_ports_of_one_host_are_one_door() {
    let second = "spiffe://east.example/ns/web/sa/second";
    let mut service = cart();
    service.tls_mode = TlsMode::Mtls;
    service.gateways[0].gateway_type = GatewayType::IngressGateway;
    service.ports.push(crate::model::service::ExportedPort {
        name: "grpc".to_owned(),
        port: 18_081,
        protocol: AppProtocol::Grpc,
        clients: Some(BTreeSet::from([client(second)])),
        ..service.ports[0].clone()
    });
    let text = text(&exporting(vec![service], &["east.example"]), CART, ClientKind::Envoy);
    assert_eq!(text.matches("server_names").count(), 1, "{text}");
    for client in [FRONTEND, second] {
        assert_eq!(text.matches(client).count(), 2, "in the handshake and by RBAC: {text}");
    }
    assert!(text.contains("\"h2\""), "{text}");
}

#[test]
fn nothing_is_served_where_that_is_not_asked_for_or_not_known() {
    let world = world("east.example");
    assert_eq!(services(&world, &BTreeSet::new()).xds, None);
    let mut unread = world;
    Arc::make_mut(&mut unread.settings).serves_xds = true;
    assert!(services(&unread, &BTreeSet::new()).xds.is_some());
    unread.identity = None;
    assert_eq!(services(&unread, &BTreeSet::new()).xds, None);
}

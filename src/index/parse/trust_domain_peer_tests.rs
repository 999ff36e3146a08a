use std::time::Duration;

use serde_json::{Value, json};

use super::super::tests::{object, refuses, with};
use super::*;
use crate::bundle::testing::Ca;
use crate::model::SpiffeId;
use crate::model::object::Kind;
use crate::model::peer::{LabelExpression, LabelSelector};

pub(in crate::index::parse) fn good() -> Value {
    json!({
        "trustDomain": "west.example",
        "bundleEndpoint": {
            "url": "https://spire.west.example:8443",
            "profile": { "type": "https_spiffe", "endpointSPIFFEID": "spiffe://west.example/spire/server" },
        },
        "bootstrapBundle": { "configMapKeyRef": { "name": "west", "key": "bundle.json" } },
        "agent": {
            "addresses": ["entente.west.example:8843", "192.0.2.7:8843", "[2001:db8::7]:8843"],
            "spiffeIDs": ["spiffe://west.example/ns/entente-system/sa/entente"],
        },
        "federatesWith": {
            "selector": {
                "matchLabels": { "team": "shop" },
                "matchExpressions": [{ "key": "example.com/tier", "operator": "In", "values": ["web", "db"] }],
            },
            "spiffeIDs": ["spiffe://east.example/vm/billing"],
        },
        "imports": {
            "services": [{ "namespace": "shop", "name": "*" }],
            "asLocal": [{ "namespace": "*", "name": "orders", "localFirst": true }],
            "exportTo": [".", "shop"],
            "endpointCIDRs": ["192.0.2.0/24", "2001:db8::/32"],
            "maxServices": 5,
            "maxEndpointsPerService": 2,
        },
        "onDisconnect": { "policy": "Withdraw", "after": "1h30m" },
        "suspend": true,
        "directEndpoints": true,
    })
}

fn east() -> TrustDomain {
    TrustDomain::new("east.example").unwrap()
}

fn parse_spec(spec: Value) -> Result<Peer, Rejected> {
    parse(&object(Kind::TrustDomainPeer, None, "west", spec), Some(&east()))
}

#[test]
fn reads_every_field() {
    let peer = parse_spec(good()).unwrap();
    assert_eq!((peer.object.as_str(), peer.uid.as_str(), peer.generation), ("west", "u-1", 7));
    assert_eq!(peer.trust_domain.as_str(), "west.example");
    assert_eq!(peer.endpoint.url.as_str(), "https://spire.west.example:8443");
    let endpoint_id = SpiffeId::new("spiffe://west.example/spire/server").unwrap();
    assert_eq!(peer.endpoint.profile, EndpointProfile::HttpsSpiffe { endpoint_id });
    let bootstrap = Bootstrap::ConfigMapKey { name: "west".into(), key: "bundle.json".into() };
    assert_eq!(peer.bootstrap, Some(bootstrap));
    assert_eq!(peer.agent_addresses, ["entente.west.example:8843", "192.0.2.7:8843", "[2001:db8::7]:8843"]);
    assert_eq!(peer.agent_ids.len(), 1);
    let selection = peer.federates_with.unwrap();
    assert_eq!(selection.selector.match_labels["team"], "shop");
    let values = ["db", "web"].map(str::to_owned).into();
    assert_eq!(
        selection.selector.match_expressions,
        [LabelExpression::In("example.com/tier".into(), values)]
    );
    assert_eq!(selection.spiffe_ids.len(), 1);
    let any_in_shop = ServicePattern { namespace: Some("shop".into()), name: None };
    assert_eq!(peer.imports.services, [any_in_shop]);
    let pattern = ServicePattern { namespace: None, name: Some("orders".into()) };
    assert_eq!(peer.imports.as_local, [LocalPattern { pattern, local_first: true }]);
    assert_eq!(peer.imports.export_to, [".", "shop"]);
    assert_eq!(
        peer.imports.endpoint_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.0/24", "2001:db8::/32"]
    );
    assert_eq!((peer.imports.max_services, peer.imports.max_endpoints_per_service), (5, 2));
    assert_eq!(peer.on_disconnect, OnDisconnect::Withdraw { after: Duration::from_secs(5_400) });
    assert!(peer.suspend && peer.direct_endpoints);
}

#[test]
fn what_is_left_out_has_its_default() {
    let minimal = json!({
        "trustDomain": "west.example",
        "bundleEndpoint": { "url": "https://west.example/bundle", "profile": { "type": "https_web" } },
        "agent": { "spiffeIDs": ["spiffe://west.example/agent"] },
    });
    let peer = parse_spec(minimal.clone()).unwrap();
    assert_eq!(peer.endpoint.profile, EndpointProfile::HttpsWeb);
    assert_eq!(peer.bootstrap, None);
    assert!(peer.agent_addresses.is_empty());
    assert_eq!(peer.federates_with, None, "absent: no registration but the agent's own");
    let imports = peer.imports;
    assert!(imports.services.is_empty() && imports.as_local.is_empty() && imports.endpoint_cidrs.is_empty());
    assert_eq!(imports.export_to, ["*"]);
    assert_eq!((imports.max_services, imports.max_endpoints_per_service), (1_000, 64));
    assert_eq!(peer.on_disconnect, OnDisconnect::Keep);
    assert!(!peer.suspend && !peer.direct_endpoints);

    let empty = with(minimal.clone(), "/imports", Some(json!({})));
    assert_eq!(parse_spec(empty).unwrap().imports, imports, "an empty object has the same defaults");
    for (given, is_all) in [
        (json!({}), true),
        (json!({ "selector": {} }), true),
        (json!({ "selector": null }), true),
        (json!({ "spiffeIDs": ["spiffe://east.example/vm"] }), false),
    ] {
        let peer = parse_spec(with(minimal.clone(), "/federatesWith", Some(given))).unwrap();
        let selection = peer.federates_with.unwrap();
        assert_eq!(selection.selector, LabelSelector::default());
        assert_eq!(selection.spiffe_ids.is_empty(), is_all);
    }
}

#[test]
fn refuses_what_breaks_a_rule() {
    let url = "spec.bundleEndpoint.url";
    let endpoint_id = "spec.bundleEndpoint.profile.endpointSPIFFEID";
    refuses(
        &good(),
        vec![
            ("/trustDomain", None, "spec", "missing field `trustDomain`"),
            ("/trustDomain", Some(json!(7)), "spec.trustDomain", "invalid type"),
            ("/trustDomain", Some(json!("")), "spec.trustDomain", "SPIFFE-ID 2.1"),
            ("/trustDomain", Some(json!("West.example")), "spec.trustDomain", "write \"west.example\""),
            ("/trustDomain", Some(json!("spiffe://west.example")), "spec.trustDomain", "without spiffe://"),
            ("/trustDomain", Some(json!("west.example:443")), "spec.trustDomain", "SPIFFE-ID 2.1"),
            ("/trustDomain", Some(json!("w".repeat(256))), "spec.trustDomain", "1 to 255"),
            ("/trustDomain", Some(json!("east.example")), "spec.trustDomain", "our own trust domain"),
            ("/trustDomain", Some(json!("we_st.example")), "spec.trustDomain", "imports.services"),
            ("/bundleEndpoint/url", Some(json!("http://west.example")), url, "must be https"),
            ("/bundleEndpoint/url", Some(json!("https://u:p@west.example")), url, "user information"),
            ("/bundleEndpoint/url", Some(json!("west")), url, "https"),
            (
                "/bundleEndpoint/profile/type",
                Some(json!("https")),
                "spec.bundleEndpoint.profile.type",
                "https_web",
            ),
            ("/bundleEndpoint/profile/type", Some(json!("https_web")), endpoint_id, "takes no SPIFFE ID"),
            ("/bundleEndpoint/profile/endpointSPIFFEID", None, endpoint_id, "https_spiffe needs"),
            (
                "/bundleEndpoint/profile/endpointSPIFFEID",
                Some(json!("spiffe://west.example")),
                endpoint_id,
                "no path",
            ),
            (
                "/bundleEndpoint/profile/endpointSPIFFEID",
                Some(json!("spiffe://west.example/a?b")),
                endpoint_id,
                "not a SPIFFE ID",
            ),
            ("/bootstrapBundle", Some(json!({})), "spec.bootstrapBundle", "exactly one"),
            (
                "/bootstrapBundle/secretKeyRef",
                Some(json!({ "name": "a", "key": "b" })),
                "spec.bootstrapBundle",
                "exactly one",
            ),
            (
                "/bootstrapBundle/configMapKeyRef/name",
                Some(json!("../a")),
                "spec.bootstrapBundle.configMapKeyRef.name",
                "RFC 1123",
            ),
            (
                "/bootstrapBundle/configMapKeyRef/key",
                Some(json!("../a")),
                "spec.bootstrapBundle.configMapKeyRef.key",
                "a key is",
            ),
            (
                "/bootstrapBundle",
                Some(json!({ "inline": "{}" })),
                "spec.bootstrapBundle.inline",
                "west.example",
            ),
        ],
        parse_spec,
    );
}

#[test]
fn refuses_agents_and_policies_that_break_a_rule() {
    let agent = "spec.agent.spiffeIDs[0]";
    refuses(
        &good(),
        vec![
            ("/agent/spiffeIDs", Some(json!([])), "spec.agent.spiffeIDs", "at least one"),
            (
                "/agent/spiffeIDs",
                Some(json!(vec!["spiffe://west.example/a"; 17])),
                "spec.agent.spiffeIDs",
                "16",
            ),
            ("/agent/spiffeIDs/0", Some(json!(7)), agent, "invalid type"),
            ("/agent/spiffeIDs/0", Some(json!("spiffe://north.example/a")), agent, "the peer's trust domain"),
            (
                "/agent/spiffeIDs/0",
                Some(json!("spiffe://west.example.evil/a")),
                agent,
                "the peer's trust domain",
            ),
            ("/agent/spiffeIDs/0", Some(json!("spiffe://west.example")), agent, "no path"),
            ("/agent/spiffeIDs/0", Some(json!("spiffe://west.example/*")), agent, "not a SPIFFE ID"),
            ("/agent/spiffeIDs/0", Some(json!("SPIFFE://west.example/a")), agent, "lower case"),
            ("/onDisconnect", Some(json!({ "policy": "Withdraw" })), "spec.onDisconnect.after", "needs it"),
            ("/onDisconnect", Some(json!({ "after": "5m" })), "spec.onDisconnect.after", "Withdraw"),
            ("/onDisconnect/after", Some(json!("soon")), "spec.onDisconnect.after", "span of time"),
            ("/onDisconnect/after", Some(json!("0s")), "spec.onDisconnect.after", "from 1s"),
            ("/onDisconnect/policy", Some(json!("Drop")), "spec.onDisconnect.policy", "unknown variant"),
            ("/suspend", Some(json!("yes")), "spec.suspend", "invalid type"),
        ],
        parse_spec,
    );
}

#[test]
fn refuses_addresses_that_cannot_be_dialled() {
    let rule = "the port of an address";
    let host = "the host of an address";
    let table = [
        ("west.example", "add the port"),
        ("west.example:", rule),
        ("west.example:0", rule),
        ("west.example:65536", rule),
        ("west.example:+443", rule),
        ("west.example:000443", rule),
        (":443", host),
        ("West.example:443", host),
        ("west_.example:443", host),
        ("2001:db8::7:443", host),
        ("[2001:db8::7:443", host),
        ("[192.0.2.7]:443", host),
        ("192.0.2.300:443", host),
        ("https://west.example:443", host),
        ("west.example.:443", host),
        ("[fe80::1%eth0]:443", host),
    ];
    let table =
        table.map(|(text, rule)| ("/agent/addresses/1", Some(json!(text)), "spec.agent.addresses[1]", rule));
    refuses(&good(), table.to_vec(), parse_spec);
}

#[test]
fn refuses_selections_and_imports_that_break_a_rule() {
    let expression = |value: Value| Some(json!({ "matchExpressions": [value] }));
    let at = "/federatesWith/selector";
    let path = "spec.federatesWith.selector.matchExpressions[0]";
    let values = "spec.federatesWith.selector.matchExpressions[0].values";
    let export_to = "spec.imports.exportTo";
    refuses(
        &good(),
        vec![
            (at, expression(json!({ "key": "a", "operator": "In" })), values, "must be given with In"),
            (
                at,
                expression(json!({ "key": "a", "operator": "NotIn", "values": [] })),
                values,
                "must be given",
            ),
            (
                at,
                expression(json!({ "key": "a", "operator": "Exists", "values": ["b"] })),
                values,
                "must not be",
            ),
            (
                at,
                expression(json!({ "key": "a", "operator": "Is" })),
                "spec.federatesWith.selector.matchExpressions[0].operator",
                "unknown variant",
            ),
            (
                at,
                expression(json!({ "key": "a b", "operator": "Exists" })),
                "spec.federatesWith.selector.matchExpressions[0].key",
                "a label key is",
            ),
            (at, expression(json!({ "operator": "Exists" })), path, "missing field `key`"),
            (
                at,
                Some(json!({ "matchLabels": { "a": "b c" } })),
                "spec.federatesWith.selector.matchLabels",
                "a label value is",
            ),
            (
                "/federatesWith/spiffeIDs/0",
                Some(json!("spiffe://west.example/vm")),
                "spec.federatesWith.spiffeIDs[0]",
                "our own trust domain",
            ),
            ("/imports/services/0/name", Some(json!("o*")), "spec.imports.services[0].name", "'*' for any"),
            ("/imports/services/0/name", None, "spec.imports.services[0]", "missing field `name`"),
            (
                "/imports/asLocal/0/namespace",
                Some(json!("")),
                "spec.imports.asLocal[0].namespace",
                "DNS label",
            ),
            ("/imports/exportTo", Some(json!([])), export_to, "at least one"),
            ("/imports/exportTo", Some(json!(["*", "shop"])), "spec.imports.exportTo[0]", "stand alone"),
            ("/imports/exportTo", Some(json!([".", "~"])), "spec.imports.exportTo[1]", "stand alone"),
            ("/imports/exportTo", Some(json!(["a.b"])), "spec.imports.exportTo[0]", "DNS label"),
            ("/imports/endpointCIDRs/0", Some(json!("192.0.2.1")), "spec.imports.endpointCIDRs[0]", "CIDR"),
            (
                "/imports/endpointCIDRs/0",
                Some(json!("192.0.2.0/33")),
                "spec.imports.endpointCIDRs[0]",
                "CIDR",
            ),
            ("/imports/maxServices", Some(json!(0)), "spec.imports.maxServices", "from 1 to 10000"),
            ("/imports/maxServices", Some(json!(10_001)), "spec.imports.maxServices", "from 1 to 10000"),
            ("/imports/maxServices", Some(json!(1e30)), "spec.imports.maxServices", "invalid type"),
            (
                "/imports/maxEndpointsPerService",
                Some(json!(-1)),
                "spec.imports.maxEndpointsPerService",
                "from 1 to 1024",
            ),
        ],
        parse_spec,
    );
}

#[test]
fn a_rejection_has_a_reason_that_says_more_where_there_is_one() {
    let own = with(good(), "/trustDomain", Some(json!("east.example")));
    assert_eq!(parse_spec(own.clone()).unwrap_err().reason, "OwnTrustDomain");
    let not_dns = with(good(), "/trustDomain", Some(json!("we_st.example")));
    assert_eq!(parse_spec(not_dns.clone()).unwrap_err().reason, "TrustDomainNotDns");
    let trusted = with(not_dns, "/imports/services", Some(json!([])));
    let trusted = with(trusted, "/agent/spiffeIDs/0", Some(json!("spiffe://we_st.example/a")));
    assert!(parse_spec(trusted).is_ok(), "trust needs no DNS name");
}

#[test]
fn our_own_trust_domain_is_refused_once_it_is_known() {
    let object = object(Kind::TrustDomainPeer, None, "west", good());
    assert!(parse(&object, None).is_ok());
    let west = TrustDomain::new("west.example").unwrap();
    assert_eq!(parse(&object, Some(&west)).unwrap_err().reason, "OwnTrustDomain");
}

#[test]
fn an_inline_bundle_is_read_as_json_and_as_pem() {
    let bundle = Ca::new().bundle("west.example");
    let authority = bundle.authorities().next().unwrap();
    let pem = pem_of(authority.der());
    for text in [document::write(&bundle), pem] {
        let spec = with(good(), "/bootstrapBundle", Some(json!({ "inline": text })));
        match parse_spec(spec).unwrap().bootstrap {
            Some(Bootstrap::Inline(read)) => {
                assert_eq!(read.digest(), bundle.digest());
                assert_eq!(read.trust_domain().as_str(), "west.example");
            }
            other => panic!("{other:?}"),
        }
    }
}

fn pem_of(der: &[u8]) -> String {
    use base64::Engine;
    let base64 = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[test]
fn an_endpoint_may_lie_in_another_trust_domain() {
    let other = json!("spiffe://spire.example/spire/server");
    let peer = parse_spec(with(good(), "/bundleEndpoint/profile/endpointSPIFFEID", Some(other))).unwrap();
    let EndpointProfile::HttpsSpiffe { endpoint_id } = peer.endpoint.profile else { panic!() };
    assert_eq!(endpoint_id.trust_domain_name(), "spire.example");
}

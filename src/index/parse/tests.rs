//! What all kinds have in common, and builders of objects for their tests.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::ObjectKey;
use crate::model::object::Kind;

/// An object of a kind, as a store gives it.
pub(super) fn object(kind: Kind, namespace: Option<&str>, name: &str, spec: Value) -> Object {
    let key = ObjectKey { kind, namespace: namespace.map(str::to_owned), name: name.to_owned() };
    let mut object = Object::desired(key, spec);
    object.meta.uid = "u-1".to_owned();
    object.meta.generation = 7;
    object.meta.resource_version = "42".to_owned();
    object
}

/// Sets the value at a JSON pointer; `None` takes the field away.
pub(super) fn with(mut spec: Value, pointer: &str, value: Option<Value>) -> Value {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    match (spec.pointer_mut(parent).unwrap(), value) {
        (Value::Object(fields), Some(value)) => {
            fields.insert(last.to_owned(), value);
        }
        (Value::Object(fields), None) => {
            fields.remove(last).unwrap();
        }
        (Value::Array(items), Some(value)) => items[last.parse::<usize>().unwrap()] = value,
        (other, _) => panic!("{pointer} is in {other}"),
    }
    spec
}

/// A row of a table: what is set where, and what the message must begin with and contain.
pub(super) type Bad = (&'static str, Option<Value>, &'static str, &'static str);

/// Holds every row of a table of bad objects to the field and the rule that it names.
pub(super) fn refuses<T: std::fmt::Debug>(
    good: &Value,
    table: Vec<Bad>,
    parse: impl Fn(Value) -> Result<T, Rejected>,
) {
    assert!(parse(good.clone()).is_ok(), "{:?}", parse(good.clone()));
    for (pointer, value, field, rule) in table {
        let shown = format!("{pointer} = {value:?}");
        let rejected = match parse(with(good.clone(), pointer, value)) {
            Err(rejected) => rejected,
            Ok(parsed) => panic!("{shown} was accepted: {parsed:?}"),
        };
        let message = &rejected.message;
        assert!(message.starts_with(&format!("{field}: ")), "{shown}: {message}");
        assert!(message.contains(rule), "{shown}: {message}");
        assert_eq!((rejected.uid.as_str(), rejected.generation), ("u-1", 7));
        assert_eq!(rejected.resource_version, "42");
    }
}

#[test]
fn a_rejection_keeps_what_is_needed_to_report_it_and_to_end_the_object() {
    let mut object = object(Kind::TrustDomainPeer, None, "west", json!({ "trustDomain": "west.example" }));
    object.meta.deletion = Some(jiff::Timestamp::UNIX_EPOCH);
    object.meta.finalizers = vec!["entente.dev/relationship".to_owned()];
    let rejected = trust_domain_peer::parse(&object, None).unwrap_err();
    assert_eq!(rejected.reason, "Invalid");
    assert_eq!(rejected.trust_domain, Some(TrustDomain::new("west.example").unwrap()));
    assert_eq!(rejected.deletion, object.meta.deletion);
    assert_eq!(rejected.finalizers, object.meta.finalizers);
    assert!(rejected.message.starts_with("spec: missing field `"), "{}", rejected.message);
    assert!(rejected.message.contains("kubectl explain trustdomainpeers"), "{}", rejected.message);
}

#[test]
fn names_that_kubernetes_would_not_have_are_refused() {
    let spec = trust_domain_peer::tests::good();
    for name in ["", "../../etc/passwd", "West", "a/b", "-a", "a..b", "a\n", &"a".repeat(254)] {
        let message =
            trust_domain_peer::parse(&object(Kind::TrustDomainPeer, None, name, spec.clone()), None)
                .unwrap_err()
                .message;
        assert!(message.starts_with("metadata.name: "), "{name}: {message}");
    }
    let spec = federated_service::tests::good();
    for namespace in [None, Some(""), Some(".."), Some("a.b"), Some("A")] {
        let object = object(Kind::FederatedService, namespace, "orders", spec.clone());
        let message = federated_service::parse(&object, None).unwrap_err().message;
        assert!(message.starts_with("metadata.namespace: "), "{namespace:?}: {message}");
    }
}

#[test]
fn messages_are_bounded_and_hold_no_control_characters() {
    let long = format!("{}\n\u{1b}[31m", "x".repeat(100_000));
    for pointer in ["/trustDomain", "/bundleEndpoint/url", "/agent/spiffeIDs/0", "/onDisconnect"] {
        let spec = with(trust_domain_peer::tests::good(), pointer, Some(json!(long)));
        let rejected =
            trust_domain_peer::parse(&object(Kind::TrustDomainPeer, None, "west", spec), None).unwrap_err();
        assert!(rejected.message.chars().count() <= MAX_MESSAGE + 3, "{pointer}");
        assert!(!rejected.message.contains(['\n', '\u{1b}']), "{pointer}: {}", rejected.message);
    }
}

#[test]
fn fields_that_no_schema_knows_are_named() {
    let spec = with(trust_domain_peer::tests::good(), "/suspended", Some(json!(true)));
    let spec = with(spec, "/agent/spiffeIds", Some(json!([])));
    let spec = with(spec, "/imports/services/0/nam", Some(json!("x")));
    let object = object(Kind::TrustDomainPeer, None, "west", spec);
    let unknown = schema::unknown_fields(&object);
    assert_eq!(unknown, ["spec.agent.spiffeIds", "spec.imports.services[0].nam", "spec.suspended"]);
}

#[test]
fn a_field_that_is_null_is_as_if_left_out() {
    let parse = |spec| trust_domain_peer::parse(&object(Kind::TrustDomainPeer, None, "west", spec), None);
    for pointer in [
        "/imports",
        "/imports/exportTo",
        "/imports/maxServices",
        "/suspend",
        "/federatesWith",
        "/agent/addresses",
    ] {
        let null = with(trust_domain_peer::tests::good(), pointer, Some(Value::Null));
        let absent = with(trust_domain_peer::tests::good(), pointer, None);
        assert_eq!(parse(null).unwrap(), parse(absent).unwrap(), "{pointer}");
    }
    let item = with(trust_domain_peer::tests::good(), "/agent/addresses/0", Some(Value::Null));
    assert!(parse(item).unwrap_err().message.starts_with("spec.agent.addresses[0]: "));
}

#[test]
fn a_list_is_not_read_as_the_fields_of_a_struct() {
    let bad = [
        ("/bundleEndpoint/profile", json!(["https_web"])),
        ("/onDisconnect", json!([])),
        ("/imports/services/0", json!(["shop", "orders"])),
    ];
    for (pointer, value) in bad {
        let spec = with(trust_domain_peer::tests::good(), pointer, Some(value));
        let object = object(Kind::TrustDomainPeer, None, "west", spec);
        let message = trust_domain_peer::parse(&object, None).unwrap_err().message;
        let field = format!("spec{}", pointer.replace("/0", "[0]").replace('/', "."));
        assert_eq!(message, format!("{field}: it is a list, and must be an object with named fields"));
    }
}

#[test]
fn every_field_of_a_good_object_is_known_to_its_schema() {
    for object in samples() {
        assert_eq!(schema::unknown_fields(&object), Vec::<String>::new(), "{}", object.key);
    }
}

/// One good object of each kind.
fn samples() -> Vec<Object> {
    vec![
        object(Kind::TrustDomainPeer, None, "west", trust_domain_peer::tests::good()),
        object(Kind::FederatedService, Some("shop"), "orders", federated_service::tests::good()),
        object(Kind::ServiceExportRule, None, "shop", service_export_rule::tests::good()),
        object(Kind::ImportedService, Some("entente-system"), "orders", imported_service::tests::good()),
        object(
            Kind::ClusterSpiffeId,
            None,
            "agent",
            json!({ "federatesWith": ["west.example"], "className": "c" }),
        ),
        object(
            Kind::ClusterFederatedTrustDomain,
            None,
            "west",
            json!({ "trustDomain": "west.example", "trustDomainBundle": "{}" }),
        ),
    ]
}

fn parse_as_all(object: &Object) {
    let own = TrustDomain::new("east.example").unwrap();
    for own in [None, Some(&own)] {
        let _ = trust_domain_peer::parse(object, own);
        let _ = federated_service::parse(object, own);
        let _ = service_export_rule::parse(object, own);
    }
    let _ = imported_service::parse(object);
    let _ = registration::parse(object);
    let _ = schema::unknown_fields(object);
}

/// Any JSON, with the words and numbers among it that rules are about.
fn any_json() -> impl Strategy<Value = Value> {
    let words = [
        "",
        "*",
        "~",
        ".",
        "spiffe://",
        "spiffe://west.example/*",
        "https://",
        "[::1]:1",
        "1h",
        "\u{0}",
        "é:1",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
        proptest::sample::select(words.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map("[a-zA-Z]{0,8}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn pointers(value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let path = format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
                out.push(path.clone());
                pointers(inner, &path, out);
            }
        }
        Value::Array(items) => {
            for (i, inner) in items.iter().enumerate() {
                let path = format!("{path}/{i}");
                out.push(path.clone());
                pointers(inner, &path, out);
            }
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_stands_in_an_object_it_is_read_or_rejected(
        sample in 0..6_usize,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any_json()), 1..4),
    ) {
        let mut object = samples().swap_remove(sample);
        for (at, value) in changes {
            let mut spec = object.body["spec"].clone();
            let mut all = Vec::new();
            pointers(&spec, "", &mut all);
            if all.is_empty() {
                break;
            }
            *spec.pointer_mut(at.get(&all[..]).as_str()).unwrap() = value;
            object.body.insert("spec".to_owned(), spec);
        }
        parse_as_all(&object);
    }

    #[test]
    fn an_object_may_be_any_json(spec in any_json(), annotation in "\\PC{0,60}") {
        let mut object = object(Kind::TrustDomainPeer, None, "west", spec);
        object.meta.annotations.insert(crate::model::registration::ANNOTATION_RECORD.to_owned(), annotation);
        parse_as_all(&object);
    }
}

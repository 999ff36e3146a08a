use serde_json::{Value, json};

use super::super::tests::object;
use super::*;
use crate::model::object::Kind;

fn registration(spec: Value) -> Object {
    object(Kind::ClusterSpiffeId, None, "web", spec)
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

#[test]
fn reads_what_spire_controller_manager_has() {
    let mut given = registration(json!({
        "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/x", "className": "spire-spire",
        "federatesWith": ["west.example", "not a trust domain", "NORTH.example"],
    }));
    given.meta.labels.insert("team".into(), "shop".into());
    let read = parse(&given).unwrap();
    assert_eq!(read.key, given.key);
    assert_eq!((read.uid.as_str(), read.resource_version.as_str()), ("u-1", "42"));
    assert_eq!(read.labels["team"], "shop");
    assert_eq!(read.class_name, "spire-spire");
    assert_eq!(
        read.federates_with,
        ["west.example", "not a trust domain", "NORTH.example"],
        "kept as they are"
    );
    assert!(!read.is_agent && !read.has_annotations);
    assert_eq!(read.record, Record::default());
    for spec in [json!({}), json!({ "federatesWith": null })] {
        assert!(parse(&registration(spec)).unwrap().federates_with.is_empty());
    }
}

#[test]
fn the_agents_own_is_known_by_its_label() {
    for (value, is_agent) in [("true", true), ("false", false), ("True", false), ("", false)] {
        let mut given = object(Kind::ClusterStaticEntry, None, "agent", json!({}));
        given.meta.labels.insert(LABEL_AGENT.to_owned(), value.to_owned());
        assert_eq!(parse(&given).unwrap().is_agent, is_agent, "{value}");
    }
}

#[test]
fn a_record_that_cannot_be_read_is_empty() {
    let record_of = |text: &str| {
        let mut given = registration(json!({}));
        given.meta.annotations.insert(ANNOTATION_RECORD.to_owned(), text.to_owned());
        let read = parse(&given).unwrap();
        assert!(read.has_annotations);
        read.record
    };
    for text in ["", "{", "null", "[]", "7", r#"{"added":"west.example"}"#, r#"{"added":[7,"A B"]}"#] {
        assert_eq!(record_of(text), Record::default(), "{text}");
    }
    assert_eq!(record_of(r#"{"added":["west.example","A B"]}"#).added, [td("west.example")].into());
}

#[test]
fn a_record_is_read_as_it_was_written() {
    assert_eq!(Record::default().to_annotation(), None);
    let record = Record {
        added: [td("west.example"), td("north.example")].into(),
        suspended: [td("south.example")].into(),
    };
    let text = record.to_annotation().unwrap();
    assert_eq!(text, r#"{"added":["north.example","west.example"],"suspended":["south.example"]}"#);
    let mut given = registration(json!({}));
    given.meta.annotations.insert(ANNOTATION_RECORD.to_owned(), text);
    assert_eq!(parse(&given).unwrap().record, record);
}

#[test]
fn a_registration_of_another_shape_is_rejected() {
    for (spec, field) in [
        (json!({ "federatesWith": "west.example" }), "spec.federatesWith: "),
        (json!({ "federatesWith": [7] }), "spec.federatesWith[0]: "),
        (json!({ "className": {} }), "spec.className: "),
        (json!([]), "spec: it is a list"),
        (json!(7), "spec: invalid type"),
    ] {
        let message = parse(&registration(spec)).unwrap_err().message;
        assert!(message.starts_with(field), "{message}");
    }
}

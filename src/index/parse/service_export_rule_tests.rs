use serde_json::{Value, json};

use super::super::tests::{object, refuses, with};
use super::*;
use crate::model::object::Kind;
use crate::model::peer::LabelExpression;

pub(in crate::index::parse) fn good() -> Value {
    json!({
        "serviceSelector": { "matchLabels": { "export": "true" } },
        "namespaceSelector": {
            "matchExpressions": [{ "key": "team", "operator": "In", "values": ["shop", "batch"] }],
        },
        "exportedTrustDomains": ["west.example"],
        "tlsMode": "IstioMtls",
        "clients": { "spiffeIDs": ["spiffe://west.example/ns/web/*"] },
    })
}

fn parse_spec(spec: Value) -> Result<ExportRule, Rejected> {
    let own = TrustDomain::new("east.example").unwrap();
    parse(&object(Kind::ServiceExportRule, None, "shop", spec), Some(&own))
}

#[test]
fn reads_every_field() {
    let rule = parse_spec(good()).unwrap();
    assert_eq!((rule.name.as_str(), rule.uid.as_str(), rule.generation), ("shop", "u-1", 7));
    assert_eq!(rule.services.match_labels["export"], "true");
    let values = ["batch", "shop"].map(str::to_owned).into();
    assert_eq!(rule.namespaces.match_expressions, [LabelExpression::In("team".to_owned(), values)]);
    assert_eq!((rule.exported_to.len(), rule.clients.len()), (1, 1));
    let anywhere = parse_spec(with(good(), "/namespaceSelector", None)).unwrap();
    assert!(anywhere.namespaces.is_empty());
}

#[test]
fn refuses_what_breaks_a_rule() {
    let values = "spec.namespaceSelector.matchExpressions[0].values";
    refuses(
        &good(),
        vec![
            ("/serviceSelector", None, "spec", "missing field `serviceSelector`"),
            (
                "/serviceSelector/matchLabels",
                Some(json!({ "a b": "c" })),
                "spec.serviceSelector.matchLabels",
                "a label key is",
            ),
            (
                "/namespaceSelector/matchExpressions/0/values",
                Some(json!([])),
                values,
                "must be given with In",
            ),
            ("/tlsMode", None, "spec", "missing field `tlsMode`"),
            ("/exportedTrustDomains", Some(json!([])), "spec.exportedTrustDomains", "at least one"),
            (
                "/exportedTrustDomains/0",
                Some(json!("east.example")),
                "spec.exportedTrustDomains[0]",
                "our own trust domain",
            ),
            (
                "/clients/spiffeIDs/0",
                Some(json!("spiffe://north.example/a")),
                "spec.clients.spiffeIDs[0]",
                "not in spec.exportedTrustDomains",
            ),
        ],
        parse_spec,
    );
}

//! The schema, as it is published.

use std::path::Path;

use serde_json::Value;

use crate::cli::crds;

/// What is published, here and in the chart. Run with `UPDATE_GOLDEN=1` to write it anew, and read the difference.
#[test]
fn published_definitions_are_those_of_the_types() {
    let yaml = crds::yaml().unwrap();
    for path in ["src/api/crds.yaml", "charts/entente/files/crds.yaml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &yaml).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(golden == yaml, "{} differs from the types: run again with UPDATE_GOLDEN=1", path.display());
    }
    assert_eq!(crds::yaml().unwrap(), yaml, "equal input gives equal bytes");
}

fn walk(path: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, visit);
    }
    for (step, inner) in [("[]", &schema["items"]), ("{}", &schema["additionalProperties"])] {
        if inner.is_object() {
            walk(&format!("{path}{step}"), inner, visit);
        }
    }
}

#[test]
fn every_value_is_described_and_bounded_and_of_a_type() {
    for crd in super::crds() {
        let crd = serde_json::to_value(&crd).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut seen = 0;
        for part in ["spec", "status"] {
            walk(part, &schema["properties"][part], &mut |path, value| {
                seen += 1;
                let bounded = match value["type"].as_str() {
                    Some("string") => {
                        value.get("maxLength").is_some()
                            || value.get("enum").is_some()
                            || value["format"] == "date-time"
                    }
                    Some("array") => value.get("maxItems").is_some(),
                    Some("object") => {
                        value.get("properties").is_some() || value.get("maxProperties").is_some()
                    }
                    Some("integer" | "boolean") => true,
                    // Either a string or a number, which has no one type.
                    None if value["x-kubernetes-int-or-string"] == true => value.get("maxLength").is_some(),
                    other => panic!("{path}: type {other:?}"),
                };
                assert!(bounded, "{path} has no bound: {value}");
                let is_item = path.ends_with("[]") || path.ends_with("{}");
                assert!(is_item || value["description"].is_string(), "{path} has no description");
                assert!(value.get("nullable").is_none(), "{path} is nullable");
                let known = [Value::Null, "date-time".into(), "int32".into(), "int64".into()];
                assert!(
                    known.contains(&value["format"]),
                    "{path}: the API server knows no {}",
                    value["format"]
                );
            });
        }
        assert!(seen > 20, "{}", crd["metadata"]["name"]);
    }
}

#[test]
fn kinds_are_those_of_the_model() {
    use crate::model::object::Kind;
    let kinds =
        [Kind::TrustDomainPeer, Kind::FederatedService, Kind::ServiceExportRule, Kind::ImportedService];
    for (crd, kind) in super::crds().iter().zip(kinds) {
        let (group, version, name, plural) = kind.api();
        assert_eq!(crd.spec.group, group);
        assert_eq!(crd.spec.versions[0].name, version);
        assert_eq!(crd.spec.names.kind, name);
        assert_eq!(crd.spec.names.plural, plural);
        assert_eq!(crd.spec.scope == "Namespaced", kind.is_namespaced());
        assert_eq!(crd.spec.names.categories.as_deref(), Some(&["entente".to_owned()][..]));
    }
}

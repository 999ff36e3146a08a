//! Fields that no schema knows. An API server drops them, and tells who applied them; a directory store must tell itself, or a
//! misspelt field is silently the default.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray,
};
use serde_json::Value;

use crate::api::v1alpha1;
use crate::model::Object;
use crate::model::object::Kind;

/// Most fields that are named.
const MAX_NAMED: usize = 16;

/// The schema of `spec`, by kind.
static SPECS: LazyLock<BTreeMap<&'static str, JSONSchemaProps>> = LazyLock::new(|| {
    let kinds = [Kind::TrustDomainPeer, Kind::FederatedService, Kind::ImportedService];
    let spec_of = |kind: Kind| {
        let crd = v1alpha1::crds().into_iter().find(|crd| crd.spec.names.kind == kind.kind())?;
        let schema = crd.spec.versions.into_iter().next()?.schema?.open_api_v3_schema?;
        Some((kind.kind(), schema.properties?.remove("spec")?))
    };
    kinds.into_iter().filter_map(spec_of).collect()
});

/// The fields of `spec` that the schema of an Entente object does not know, in order, at most 16; empty for objects of other
/// kinds. They are no reason to reject an object: it may have been written for a newer agent.
#[must_use]
pub fn fields(object: &Object) -> Vec<String> {
    let mut found = Vec::new();
    if let (Some(schema), Some(spec)) = (SPECS.get(object.key.kind.kind()), object.spec()) {
        walk("spec", spec, schema, &mut found);
    }
    found
}

fn walk(path: &str, value: &Value, schema: &JSONSchemaProps, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            // A map whose keys are free has no properties.
            let Some(properties) = &schema.properties else { return };
            for (name, inner) in fields {
                let path = format!("{path}.{}", super::cut(name, 63));
                match properties.get(name) {
                    Some(schema) => walk(&path, inner, schema, found),
                    None if found.len() < MAX_NAMED => found.push(path),
                    None => return,
                }
            }
        }
        Value::Array(items) => {
            let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items else { return };
            for (i, item) in items.iter().enumerate() {
                walk(&format!("{path}[{i}]"), item, schema, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

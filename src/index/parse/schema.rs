//! Objects held to the published schema where reading them into its types is too lenient, and an API server is not there to be
//! strict: fields that are misspelt, and lists where a struct is meant.

use std::borrow::Cow;
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
    let kinds =
        [Kind::TrustDomainPeer, Kind::FederatedService, Kind::ServiceExportRule, Kind::ImportedService];
    let spec_of = |kind: Kind| {
        let crd = v1alpha1::crds().into_iter().find(|crd| crd.spec.names.kind == kind.kind())?;
        let schema = crd.spec.versions.into_iter().next()?.schema?.open_api_v3_schema?;
        Some((kind.kind(), schema.properties?.remove("spec")?))
    };
    kinds.into_iter().filter_map(spec_of).collect()
});

/// The fields of `spec` that the schema of an Entente object does not know, in order, at most 16; empty for objects of other
/// kinds. They are no reason to reject an object, since it may have been written for a newer agent; but where there is no API
/// server to say so, a misspelt field would be silently the default.
#[must_use]
pub fn unknown_fields(object: &Object) -> Vec<String> {
    let mut found = Vec::new();
    if let (Some(schema), Some(spec)) = (SPECS.get(object.key.kind.kind()), object.spec()) {
        walk("spec", spec, schema, &mut found);
    }
    found
}

/// The first place in `spec` that is no object, though the schema says so. A list would be read there as the fields of a struct
/// in the order of their declaration, which nobody can mean.
pub(super) fn not_an_object(kind: Kind, spec: &Value) -> Option<String> {
    fn first(path: &str, value: &Value, schema: &JSONSchemaProps) -> Option<String> {
        match (schema.type_.as_deref(), value) {
            (Some("object"), Value::Object(fields)) => {
                let properties = schema.properties.as_ref()?;
                let inner = |(name, value)| Some((name, value, properties.get(name)?));
                fields
                    .iter()
                    .filter_map(inner)
                    .find_map(|(name, v, s)| first(&format!("{path}.{name}"), v, s))
            }
            (Some("object"), Value::Array(_)) => Some(path.to_owned()),
            (Some("array"), Value::Array(items)) => {
                let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items else { return None };
                items.iter().enumerate().find_map(|(i, item)| first(&format!("{path}[{i}]"), item, schema))
            }
            _ => None,
        }
    }
    match SPECS.get(kind.kind()) {
        Some(schema) => first("spec", spec, schema),
        None => spec.is_array().then(|| "spec".to_owned()),
    }
}

/// `spec` without the fields that are null, as the API server drops them where a schema does not allow null: `imports:` with
/// nothing behind it is the same as no `imports`.
pub(super) fn without_nulls(spec: &Value) -> Cow<'_, Value> {
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Object(fields) => fields.values().any(|value| value.is_null() || has_null(value)),
            Value::Array(items) => items.iter().any(has_null),
            _ => false,
        }
    }
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|_, value| !value.is_null());
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    if !has_null(spec) {
        return Cow::Borrowed(spec);
    }
    let mut spec = spec.clone();
    strip(&mut spec);
    Cow::Owned(spec)
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

//! ClusterSPIFFEID and ClusterStaticEntry to [`Registration`]: the part of them that the agent looks at.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::field::Problem;
use super::{reject, spec};
use crate::model::object::LABEL_AGENT;
use crate::model::registration::{ANNOTATION_RECORD, Record, Registration};
use crate::model::world::Rejected;
use crate::model::{Object, TrustDomain};

/// What the agent reads of a `spec`; all the rest is spire-controller-manager's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    federates_with: Option<Vec<String>>,
    #[serde(default)]
    class_name: Option<String>,
}

/// Reads a registration. Names in `federatesWith` that are no trust domain are kept as they are: they are not ours to
/// judge, and what is written back must not lose them.
///
/// # Errors
/// [`Rejected`] where `spec.federatesWith` or `spec.className` is of another type.
pub fn parse(object: &Object) -> Result<Registration, Rejected> {
    read(object).map_err(|problem| reject(object, None, problem))
}

fn read(object: &Object) -> Result<Registration, Problem> {
    let spec: Spec = spec(object)?;
    let meta = &object.meta;
    Ok(Registration {
        key: object.key.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        labels: meta.labels.clone(),
        has_annotations: !meta.annotations.is_empty(),
        class_name: spec.class_name.unwrap_or_default(),
        is_agent: meta.labels.get(LABEL_AGENT).is_some_and(|value| value == "true"),
        federates_with: spec.federates_with.unwrap_or_default(),
        record: meta.annotations.get(ANNOTATION_RECORD).map_or_else(Record::default, |text| record(text)),
    })
}

/// Reads the agent's record. One that cannot be read is empty, so that the agent takes away nothing that it is not known to
/// have added; so is a name in it that is no trust domain.
fn record(text: &str) -> Record {
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        return Record::default();
    };
    let trust_domains = |key: &str| -> BTreeSet<TrustDomain> {
        let names = value.get(key).and_then(Value::as_array).into_iter().flatten();
        names
            .filter_map(Value::as_str)
            .filter_map(|name| super::field::trust_domain(key, name).ok())
            .collect()
    };
    Record { added: trust_domains("added"), suspended: trust_domains("suspended") }
}

#[cfg(test)]
#[path = "registration_tests.rs"]
mod tests;

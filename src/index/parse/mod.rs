//! From an object as a store gives it to the model: a value that is well formed, or a rejection of that object alone.
//!
//! Everything that the schema checks is checked again, because a directory store has no API server before it, and so is
//! what a schema cannot say. One file a kind. All of it is pure and total: whatever stands in an object, the answer is a
//! value or a [`Rejected`] whose message names the field, the value, the rule and what to do.

#![allow(clippy::result_large_err, reason = "there is one answer an object, and the other is larger")]

pub mod cluster;
pub mod federated_service;
pub mod field;
pub mod imported_service;
pub mod mesh;
pub mod registration;
pub mod schema;
pub mod selector;
pub mod service_export_rule;
pub mod time_span;
pub mod trust_domain_peer;

use serde::de::DeserializeOwned;

use crate::model::world::Rejected;
use crate::model::{Object, TrustDomain};
use field::{Problem, cut};

/// Most characters of a message: more would be the object's own words, given back.
const MAX_MESSAGE: usize = 1_000;

/// Reads `spec` into the struct that is its schema.
fn spec<T: DeserializeOwned>(object: &Object) -> Result<T, Problem> {
    let Some(spec) = object.spec() else {
        return Err(Problem::new("spec", "it is missing: give it"));
    };
    if let Some(path) = schema::not_an_object(object.key.kind, spec) {
        return Err(Problem::new(path, "it is a list, and must be an object with named fields"));
    }
    serde_path_to_error::deserialize(schema::without_nulls(spec).as_ref()).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "spec".to_owned() } else { format!("spec.{path}") };
        let cause = cut(&error.inner().to_string(), 300);
        Problem::new(field, format!("{cause}; see `kubectl explain {}`", object.key.kind.api().3))
    })
}

/// Refuses names that Kubernetes would not have, as a manifest in a directory may have them.
fn names(object: &Object) -> Result<(), Problem> {
    field::dns_subdomain("metadata.name", &object.key.name)?;
    match &object.key.namespace {
        Some(namespace) => field::dns_label("metadata.namespace", namespace),
        None if object.key.kind.is_namespaced() => {
            Err(Problem::new("metadata.namespace", "it is missing, and this kind is namespaced: give it"))
        }
        None => Ok(()),
    }
}

/// The rejection of an object.
fn reject(object: &Object, trust_domain: Option<TrustDomain>, problem: Problem) -> Rejected {
    let meta = &object.meta;
    Rejected {
        uid: meta.uid.clone(),
        generation: meta.generation,
        trust_domain,
        reason: problem.reason,
        message: cut(&problem.message, MAX_MESSAGE),
        deletion: meta.deletion,
        finalizers: meta.finalizers.clone(),
        resource_version: meta.resource_version.clone(),
    }
}

#[cfg(test)]
mod tests;

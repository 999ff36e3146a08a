//! `entente.dev/v1alpha1`: what an operator writes (TrustDomainPeer, FederatedService, ServiceExportRule), what the agent writes
//! (ImportedService), and how it reports on them (`status`, `conditions/`).
//!
//! The structs are the schema: their doc comments are the descriptions that `kubectl explain` shows. Every list and
//! string is bounded, because the API server prices a CEL rule by the largest value that the schema admits. What the
//! schema checks is checked again in `index/parse/`, since a directory store has no API server before it.

#![allow(
    unreachable_pub,
    reason = "the derive of KubeSchema declares a copy of each struct within a function"
)]

pub mod bundle_audit;
pub mod condition;
pub mod conditions;
pub mod federated_service;
pub mod imported_service;
pub mod selector;
pub mod service_export_rule;
pub mod trust_domain_peer;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use schemars::{JsonSchema, Schema, json_schema};
use serde::{Deserialize, Serialize};

use crate::model;

pub use condition::Condition;
pub use federated_service::{FederatedService, FederatedServiceSpec, FederatedServiceStatus};
pub use imported_service::{ImportedService, ImportedServiceSpec, ImportedServiceStatus};
pub use selector::LabelSelector;
pub use service_export_rule::{ServiceExportRule, ServiceExportRuleSpec, ServiceExportRuleStatus};
pub use trust_domain_peer::{TrustDomainPeer, TrustDomainPeerSpec, TrustDomainPeerStatus};

/// The bounds of the schema, which `index/parse/` holds a directory store to as well.
pub mod limits {
    /// Ports of one service.
    pub const PORTS: usize = 64;
    /// SPIFFE IDs or patterns in `clients`.
    pub const CLIENTS: usize = 1_000;
    /// SPIFFE IDs of the servers of one service.
    pub const SERVER_IDS: usize = 64;
    /// Addresses of the application of one service.
    pub const SERVICE_ENDPOINTS: usize = 64;
    /// Gateways of one service.
    pub const GATEWAYS: usize = 64;
    /// Trust domains that one service is exported to.
    pub const EXPORTED_TRUST_DOMAINS: usize = 256;
    /// Services that a rule's status names.
    pub const SKIPPED: usize = 32;
    /// Labels in a selector, and values in one of its expressions.
    pub const SELECTOR: usize = 64;
    /// Addresses, or SPIFFE IDs, of a peer's agents.
    pub const AGENTS: usize = 16;
    /// Items in `imports.services` and `imports.asLocal`.
    pub const IMPORT_PATTERNS: usize = 256;
    /// Items in `imports.exportTo` and `imports.endpointCIDRs`.
    pub const IMPORT_SCOPES: usize = 64;
    /// The most that `imports.maxServices` may admit.
    pub const MAX_SERVICES: i32 = 10_000;
    /// The most that `imports.maxEndpointsPerService` may admit.
    pub const MAX_ENDPOINTS_PER_SERVICE: i32 = 1_024;
    /// SPIFFE IDs in `federatesWith.spiffeIDs`.
    pub const REGISTRATIONS: usize = 256;
    /// Bytes of an inline bootstrap bundle.
    pub const BUNDLE: usize = 1_048_576;
    /// Bundles in the audit trail of a peer, and authorities that one of them names.
    pub const AUDIT: usize = 20;
    pub const AUDIT_AUTHORITIES: usize = 32;
    /// Bytes of a SPIFFE ID or an `https` URL (SPIFFE-ID 2.3).
    pub const SPIFFE_ID: usize = 2_048;
}

/// Who ends mutual TLS at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsMode {
    IstioMtls,
    Mtls,
}

impl From<TlsMode> for model::service::TlsMode {
    fn from(mode: TlsMode) -> Self {
        match mode {
            TlsMode::IstioMtls => Self::IstioMtls,
            TlsMode::Mtls => Self::Mtls,
        }
    }
}

impl From<model::service::TlsMode> for TlsMode {
    fn from(mode: model::service::TlsMode) -> Self {
        match mode {
            model::service::TlsMode::IstioMtls => Self::IstioMtls,
            model::service::TlsMode::Mtls => Self::Mtls,
        }
    }
}

/// Every CustomResourceDefinition of this version, in the order in which to create them.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        TrustDomainPeer::crd(),
        FederatedService::crd(),
        ServiceExportRule::crd(),
        ImportedService::crd(),
    ];
    for schema in all
        .iter_mut()
        .flat_map(|crd| &mut crd.spec.versions)
        .filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut())
    {
        drop_nullable(schema);
    }
    all
}

/// A field that is optional may be left out. Where it is not `nullable` too, the API server drops an explicit null, so
/// that no rule sees a field that is there and has no value.
fn drop_nullable(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        drop_nullable(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_nullable(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        drop_nullable(values);
    }
}

/// A time: RFC 3339, UTC.
fn date_time(_: &mut schemars::SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}

/// Labels that a pod or object must have, all of them.
fn labels(_: &mut schemars::SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": limits::SELECTOR,
        "additionalProperties": { "type": "string", "maxLength": 63 },
    })
}

#[cfg(test)]
mod status_tests;
#[cfg(test)]
mod tests;

//! The Istio objects of exports and imports, in the shapes that let two meshes meet without a DestinationRule: the exporter
//! serves the importer's host as an alias of its own, so that Istio's default SNI fits on both sides.

pub mod export;
pub mod import;

use crate::model::name::NameError;

/// The namespace of the gateways that carry exports.
pub const GATEWAY_NAMESPACE: &str = "istio-system";

/// The reason why a host name cannot be made.
#[must_use]
pub const fn name_problem(error: &NameError) -> &'static str {
    match error {
        NameError::TrustDomain(..) => "TrustDomainNotDns",
        NameError::Label(_) | NameError::TooLong(_) => "HostTooLong",
    }
}

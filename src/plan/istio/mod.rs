//! The Istio objects of exports and imports, in the shapes that let two meshes meet without a DestinationRule: the exporter
//! serves the importer's host as an alias of its own, so that Istio's default SNI fits on both sides.

pub mod export;
pub mod import;
pub mod local;
pub mod peer_authentication;

use crate::api::v1alpha1::conditions::{AdmittedReason, ServiceAcceptedReason};
use crate::model::name::NameError;

/// Why the host name of an export cannot be made.
impl From<&NameError> for ServiceAcceptedReason {
    fn from(error: &NameError) -> Self {
        match error {
            NameError::TrustDomain(..) => Self::TrustDomainNotDns,
            NameError::Label(_) | NameError::TooLong(_) => Self::HostTooLong,
        }
    }
}

/// Why the host name of an import cannot be made.
impl From<&NameError> for AdmittedReason {
    fn from(error: &NameError) -> Self {
        match error {
            NameError::TrustDomain(..) => Self::TrustDomainNotDns,
            NameError::Label(_) | NameError::TooLong(_) => Self::HostTooLong,
        }
    }
}

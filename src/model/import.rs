//! ImportedServices: what a peer exported and we admitted, as it is kept in the store.

use std::sync::Arc;

use super::service::RemoteService;
use super::{NamespacedName, TrustDomain};

/// An ImportedService that is well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub object: NamespacedName,
    pub uid: String,
    pub generation: i64,
    pub trust_domain: TrustDomain,
    /// As the peer exported it, at the last word from it.
    pub service: Arc<RemoteService>,
}

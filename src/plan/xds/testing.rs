//! Offers for tests.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::types::{Resource, ResourceType};
use super::view::{ClientKind, Snapshot, View};
use super::{Audience, Offer, OfferOf, Xds, offer};
use crate::model::SpiffeId;
use crate::model::import::Imported;

/// An import that is for everybody, with these addresses.
pub(crate) fn offered(imported: Imported, addresses: &[&str]) -> (String, Arc<Offer>) {
    let host = imported.object.name.clone();
    let input = OfferOf {
        imported: Arc::new(imported),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        audience: Audience::Everybody,
        down: BTreeSet::new(),
    };
    (host, Arc::new(offer(&input)))
}

pub(crate) fn xds_of(offers: impl Iterator<Item = (String, Arc<Offer>)>) -> Xds {
    Xds { offers: offers.collect(), ..Xds::default() }
}

impl View {
    /// Of this alone.
    pub(crate) fn of(xds: &Xds, client: &SpiffeId, kind: ClientKind) -> Self {
        Self::new(Arc::new(Snapshot::new(Arc::new(xds.clone()))), client, kind)
    }
}

impl Resource {
    /// One of this name and about this size.
    pub(crate) fn of_bytes(kind: ResourceType, name: &str, bytes: usize) -> Self {
        Self::new(kind, name, &prost_types::Any { type_url: String::new(), value: vec![7; bytes] })
    }
}

//! Offers for tests.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Audience, Offer, OfferOf, Xds, offer};
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

//! Worlds a step further on, for tests.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::object::Kind;
use crate::model::session::Offers;
use crate::model::world::Settings;
use crate::model::{TrustDomain, World};
use crate::plan::exports::{self, Exports};
use crate::plan::fixtures::WorldExt as _;
use crate::plan::memo::Memo;
use crate::plan::services::services;

/// The world once the policies of its services were written.
pub(in crate::plan) fn with_policies(world: World) -> World {
    let mut objects = services(&world, &BTreeSet::new()).objects;
    objects.retain(|key, _| key.kind == Kind::AuthorizationPolicy);
    world.with_written(&objects, &[])
}

/// What each peer is offered.
pub(in crate::plan) fn catalogues(exports: &Exports) -> BTreeMap<TrustDomain, Offers> {
    exports::catalogues(&mut exports.clone(), &Settings::standard(), &mut Memo::default())
}

/// What one peer is offered.
pub(in crate::plan) fn catalogue(exports: &Exports, peer: &TrustDomain) -> Offers {
    catalogues(exports).remove(peer).unwrap_or_default()
}

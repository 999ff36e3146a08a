//! Worlds a step further on, for tests.

use std::collections::BTreeSet;

use crate::model::World;
use crate::model::object::Kind;
use crate::plan::fixtures::WorldExt as _;
use crate::plan::services::services;

/// The world once the policies of its services were written.
pub(in crate::plan) fn with_policies(world: World) -> World {
    let mut objects = services(&world, &BTreeSet::new()).objects;
    objects.retain(|key, _| key.kind == Kind::AuthorizationPolicy);
    world.with_written(&objects, &[])
}

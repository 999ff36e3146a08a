//! From what is known to what should be: pure, total, deterministic.

pub mod admission;
pub mod authorization;
pub mod exports;
#[cfg(test)]
mod fixtures;
pub mod generated;
#[cfg(test)]
mod golden;
pub mod imports;
pub mod istio;
#[cfg(test)]
mod purity;
pub mod selectors;
pub mod services;
pub mod status;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::model::endpoint::MonitorTarget;
use crate::model::session::LinkPlan;
use crate::model::trust::SpireAction;
use crate::model::{Object, ObjectKey, TrustDomain};

/// What should be. Two equal plans are no work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Every generated object that should be there, whole.
    pub objects: BTreeMap<ObjectKey, Object>,
    /// Generated objects to delete, by the uid they were seen with.
    pub prune: BTreeMap<ObjectKey, String>,
    /// Changes to objects that are not ours, each consented to: `federatesWith` and finalizers.
    pub patches: Vec<Patch>,
    pub spire: Vec<SpireAction>,
    pub links: BTreeMap<TrustDomain, LinkPlan>,
    pub monitors: BTreeMap<TrustDomain, MonitorTarget>,
    /// Statuses that differ from what stands in the store.
    pub statuses: BTreeMap<ObjectKey, StatusWrite>,
    /// When to plan again though nothing changes.
    pub wake_at: Option<Timestamp>,
}

/// A JSON patch (RFC 6902) that holds for one resourceVersion only.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    pub key: ObjectKey,
    pub resource_version: String,
    pub ops: Vec<PatchOp>,
}

/// One operation of a patch.
#[derive(Clone, Debug, PartialEq)]
pub enum PatchOp {
    /// Sets the value at a JSON pointer, whether or not there is one.
    Add {
        path: String,
        value: Value,
    },
    Remove {
        path: String,
    },
}

/// A status to write, whole, with the conditions' transition times set.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusWrite {
    pub uid: String,
    pub status: Value,
}

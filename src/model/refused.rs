//! What clients without Istio refuse of what they are served by xDS.

use std::collections::{BTreeMap, BTreeSet};

/// One refusal, as a client of ours stands by it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientRefusal {
    /// Its SPIFFE ID.
    pub client: String,
    /// The type of the resource: `cluster`, `endpoints` or `listener`, say.
    pub kind: &'static str,
    /// Why, in its own words, cut.
    pub message: String,
}

/// By the host of the imported service that a refusal names.
pub type Refusals = BTreeMap<String, BTreeSet<ClientRefusal>>;

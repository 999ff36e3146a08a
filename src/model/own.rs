//! Our own trust domain and identity.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::session::HeldBundle;
use super::{Bundle, BundleDigest, SpiffeId, TrustDomain};

/// What the Workload API delivers to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The ID that peers see.
    pub id: SpiffeId,
    pub trust_domain: TrustDomain,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// Our own trust domain's bundle.
    pub bundle: Arc<Bundle>,
    /// Foreign bundles, as every workload that federates with them gets them. An empty one stands here, empty.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Foreign bundles that did not parse, with the reason; they harm nothing else.
    pub malformed: BTreeMap<String, String>,
}

/// The Workload API gives us nothing: what it gave last stands, and gets old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadFailure {
    pub since: Timestamp,
    /// Its own words, or why it was not reached.
    pub message: String,
}

/// How many digests of our own bundle are remembered.
const HISTORY: usize = 32;

/// The digests that our own bundle has had, newest last. Only its owner can say which of two bundles is older: SPIRE
/// keeps no sequence for federated ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnHistory {
    seen: Vec<(BundleDigest, Timestamp)>,
}

impl OwnHistory {
    /// Records what the bundle is now.
    pub fn observe(&mut self, digest: BundleDigest, now: Timestamp) {
        if self.seen.last().is_none_or(|(last, _)| *last != digest) {
            self.seen.push((digest, now));
            if self.seen.len() > HISTORY {
                self.seen.remove(0);
            }
        }
    }

    /// When `digest` was superseded by another; `None` where it is the newest or never was ours.
    #[must_use]
    pub fn superseded_at(&self, digest: &BundleDigest) -> Option<Timestamp> {
        let at = self.seen.iter().rposition(|(seen, _)| seen == digest)?;
        self.seen.get(at + 1).map(|(_, since)| *since)
    }
}

impl From<&Bundle> for HeldBundle {
    fn from(bundle: &Bundle) -> Self {
        Self { digest: bundle.digest(), authority_ids: bundle.authority_ids() }
    }
}

//! How it goes with the kinds that are followed, for who watches the agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::object::Kind;

/// How long a failure counts where nothing follows it: a watch that stands again is silent until something changes. Longer than
/// the pause before the next try, and what that may take to fail.
const COUNTS: Duration = Duration::from_secs(60);

/// The kinds that are followed. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Followed(Arc<Mutex<BTreeMap<Kind, One>>>);

#[derive(Clone, Copy, Debug, Default)]
struct One {
    /// Whether it was read once, or is known not to be served.
    is_read: bool,
    /// When the last try failed, where nothing has come since.
    failed: Option<Instant>,
}

impl Followed {
    pub(super) fn begins(&self, kind: Kind) {
        self.lock().insert(kind, One::default());
    }

    /// It was read, or something came.
    pub(super) fn goes_well(&self, kind: Kind) {
        self.lock().insert(kind, One { is_read: true, failed: None });
    }

    pub(super) fn failed(&self, kind: Kind) {
        self.lock().entry(kind).or_default().failed = Some(Instant::now());
    }

    pub(super) fn all(&self) -> BTreeMap<Kind, bool> {
        let is_up = |one: &One| one.is_read && one.failed.is_none_or(|at| at.elapsed() >= COUNTS);
        self.lock().iter().map(|(kind, one)| (*kind, is_up(one))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, One>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

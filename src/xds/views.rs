//! What clients are served now, made ready once for all of them.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::model::SpiffeId;
use crate::plan::xds::Xds;
use crate::plan::xds::view::{ClientKind, Snapshot, View};

/// What is served. Clones are one.
#[derive(Clone, Debug)]
pub(super) struct Views {
    served: watch::Receiver<Option<Arc<Xds>>>,
    now: Arc<Mutex<Arc<Snapshot>>>,
}

impl Views {
    /// Of what is served now, and is to be served next.
    pub(super) fn new(served: watch::Receiver<Option<Arc<Xds>>>) -> Self {
        Self { served, now: Arc::default() }
    }

    /// Tells when what is served has changed.
    pub(super) fn changes(&self) -> watch::Receiver<Option<Arc<Xds>>> {
        self.served.clone()
    }

    /// What this client sees now; nothing while it is not known what is to be served, or what it needs in front of a server of ours.
    pub(super) fn of(&self, client: &SpiffeId, kind: ClientKind) -> Option<View> {
        let xds = self.served.borrow().clone().filter(|xds| !xds.unknown.contains(client))?;
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(now.xds(), &xds) {
            *now = Arc::new(Snapshot::new(xds));
        }
        Some(View::new(Arc::clone(&now), client, kind))
    }
}

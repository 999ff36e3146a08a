//! What each client sees now, made once for all of its streams.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::model::SpiffeId;
use crate::plan::xds::Xds;
use crate::plan::xds::view::{ClientKind, View};

/// What is served, and what of it the clients see that are here. Clones are one.
#[derive(Clone, Debug)]
pub(super) struct Views {
    served: watch::Receiver<Option<Arc<Xds>>>,
    made: Arc<Mutex<Made>>,
}

#[derive(Debug, Default)]
struct Made {
    /// Of what the views are.
    of: Option<Arc<Xds>>,
    views: BTreeMap<(SpiffeId, ClientKind), View>,
}

impl Views {
    /// Of what is served now, and is to be served next.
    pub(super) fn new(served: watch::Receiver<Option<Arc<Xds>>>) -> Self {
        Self { served, made: Arc::default() }
    }

    /// Tells when what is served has changed.
    pub(super) fn changes(&self) -> watch::Receiver<Option<Arc<Xds>>> {
        self.served.clone()
    }

    /// What this client sees now; nothing while it is not known what is to be served.
    pub(super) fn of(&self, client: &SpiffeId, kind: ClientKind) -> Option<View> {
        let xds = self.served.borrow().clone()?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &xds)) {
            // Who is gone does not ask again.
            *made = Made { of: Some(Arc::clone(&xds)), views: BTreeMap::new() };
        }
        let key = (client.clone(), kind);
        let view = made.views.entry(key).or_insert_with(|| View::of(&xds, client, kind));
        Some(view.clone())
    }
}

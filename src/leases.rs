//! The Lease of each connected peer: its `renewTime` is the last contact, so that statuses need not be written for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::model::TrustDomain;
use crate::model::object::{LABEL_INSTANCE, LABEL_PEER};
use crate::model::session::{LinkPlan, SessionState};
use crate::model::world::Settings;
use crate::plan::generated::{label_value, object_name};
use crate::store::{PeerLease, Store};

const EVERY: Duration = Duration::from_secs(10);
/// How long a contact counts.
const HOLDS: Duration = Duration::from_secs(30);

/// Renews the leases of the peers that this replica talks to.
#[derive(Debug)]
pub struct Keeper {
    pub store: Store,
    pub settings: Arc<Settings>,
    /// The name of this replica.
    pub replica: String,
    pub links: watch::Receiver<Arc<BTreeMap<TrustDomain, LinkPlan>>>,
    pub sessions: watch::Receiver<Arc<BTreeMap<TrustDomain, SessionState>>>,
}

impl Keeper {
    /// Runs until `cancel`.
    ///
    /// # Errors
    /// None: a lease that cannot be written is logged, and tried again at the next turn.
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut turn = tokio::time::interval(EVERY);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = turn.tick() => {}
            }
            let sessions = Arc::clone(&self.sessions.borrow());
            for trust_domain in sessions.iter().filter(|(_, s)| s.is_connected()).map(|(td, _)| td) {
                if let Err(error) = self.store.touch_lease(&self.lease(trust_domain)).await {
                    tracing::warn!(peer = %trust_domain, %error, "the peer's lease cannot be renewed");
                }
            }
        }
    }

    fn lease(&self, trust_domain: &TrustDomain) -> PeerLease {
        let owner = self.links.borrow().get(trust_domain).map(|link| link.owner.clone());
        let labels = [
            (LABEL_INSTANCE.to_owned(), label_value(&self.settings.instance)),
            (LABEL_PEER.to_owned(), label_value(trust_domain.as_str())),
        ];
        PeerLease {
            name: object_name(&format!("{}-peer-{trust_domain}", self.settings.instance)),
            holder: self.replica.clone(),
            duration: HOLDS,
            labels: labels.into(),
            owners: owner.into_iter().collect(),
        }
    }
}

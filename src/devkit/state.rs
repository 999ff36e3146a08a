//! What the embedded authority holds: the one state behind the server API, the Workload API and the bundle endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::authority::{Authority, AuthorityError};
use super::fault::{Fault, Meddling};
use super::svid::{Svid, Validity};
use crate::clock;
use crate::model::trust::Relationship;
use crate::model::{Bundle, SpiffeId, TrustDomain};

/// A selector: type and value, as in SPIRE.
pub type Selector = (String, String);

/// A registration entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) id: String,
    pub(super) spiffe_id: SpiffeId,
    pub(super) parent_id: SpiffeId,
    pub(super) selectors: BTreeSet<Selector>,
    pub(super) federates_with: BTreeSet<TrustDomain>,
    pub(super) x509_svid_ttl: i32,
    pub(super) admin: bool,
    pub(super) hint: String,
    /// Grows with each change, and each change makes a new SVID.
    pub(super) revision: u64,
    /// Order of creation: the oldest matching entry gives the default SVID.
    pub(super) created: u64,
}

/// What a workload is to be given now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Update {
    /// With hints.
    pub(super) svids: Vec<(Arc<Svid>, String)>,
    pub(super) own: Arc<Bundle>,
    /// Those that an entry of the caller federates with, and whose bundle is there.
    pub(super) federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) authority: Authority,
    pub(super) entries: BTreeMap<String, Registration>,
    pub(super) relationships: BTreeMap<TrustDomain, Relationship>,
    pub(super) bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    pub(super) fault: Option<Fault>,
    pub(super) meddling: Option<Meddling>,
    /// How long preparing an authority through the API takes, as with an upstream authority, and whether it then fails.
    pub(super) preparing: (Duration, bool),
    /// How often that was begun.
    pub(super) preparations: u32,
    /// By entry ID, with the revision of the entry it was made for.
    svids: BTreeMap<String, (u64, Arc<Svid>)>,
    counter: u64,
}

impl State {
    /// A number that was not given before.
    pub(super) fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// The SVID of an entry: the one there is, unless the entry changed, half its life is over, or its authority is
    /// tainted or revoked.
    fn svid(&mut self, entry: &Registration, now: Timestamp) -> Result<Arc<Svid>, AuthorityError> {
        if let Some((revision, svid)) = self.svids.get(&entry.id)
            && *revision == entry.revision
            && !svid.is_due_at(now)
            && !self.authority.is_tainted(&svid.signer)
        {
            return Ok(Arc::clone(svid));
        }
        let svid = Arc::new(match u64::try_from(entry.x509_svid_ttl) {
            Ok(ttl @ 1..) => {
                self.authority.issue_as(&entry.spiffe_id, now, Validity::For(Duration::from_secs(ttl)))?
            }
            _ => self.authority.issue(&entry.spiffe_id, now)?,
        });
        self.svids.insert(entry.id.clone(), (entry.revision, Arc::clone(&svid)));
        Ok(svid)
    }

    /// What a caller with these selectors is given; `None` without an entry for it.
    pub(super) fn update_for(
        &mut self,
        selectors: &BTreeSet<Selector>,
        now: Timestamp,
    ) -> Result<Option<Update>, AuthorityError> {
        let mut matching: Vec<Registration> =
            self.entries.values().filter(|e| e.selectors.is_subset(selectors)).cloned().collect();
        matching.sort_by_key(|e| e.created);
        if matching.is_empty() {
            return Ok(None);
        }
        let names: BTreeSet<&TrustDomain> = matching.iter().flat_map(|e| &e.federates_with).collect();
        let federated = names
            .into_iter()
            .filter_map(|td| self.bundles.get(td).map(|b| (td.clone(), Arc::clone(b))))
            .collect();
        let mut svids = Vec::with_capacity(matching.len());
        let mut hints = BTreeSet::new();
        for entry in &matching {
            // Two entries with one hint: the older one has it, the other is not delivered.
            if entry.hint.is_empty() || hints.insert(&entry.hint) {
                svids.push((self.svid(entry, now)?, entry.hint.clone()));
            }
        }
        Ok(Some(Update { svids, own: Arc::clone(self.authority.bundle()), federated }))
    }

    /// Whether some SVID that was handed out has to be replaced.
    fn has_due_svid(&self, now: Timestamp) -> bool {
        self.svids.values().any(|(_, svid)| svid.is_due_at(now) || self.authority.is_tainted(&svid.signer))
    }

    pub(super) fn forget_svids_of_gone_entries(&mut self) {
        let Self { svids, entries, .. } = self;
        svids.retain(|id, _| entries.contains_key(id));
    }
}

/// The state, shared, with a signal for each change.
pub(super) struct Shared {
    trust_domain: TrustDomain,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("trust_domain", &self.trust_domain.as_str()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(authority: Authority) -> Arc<Self> {
        Arc::new(Self {
            trust_domain: authority.trust_domain().clone(),
            state: Mutex::new(State {
                authority,
                entries: BTreeMap::new(),
                relationships: BTreeMap::new(),
                bundles: BTreeMap::new(),
                fault: None,
                meddling: None,
                preparing: (Duration::ZERO, false),
                preparations: 0,
                svids: BTreeMap::new(),
                counter: 0,
            }),
            changes: watch::Sender::new(0),
        })
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Looks at the state; never held across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and says so to all who watch it.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut State, Timestamp) -> R) -> R {
        let outcome = {
            let mut state = self.lock();
            let outcome = change(&mut state, clock::now());
            if let Some(meddling) = state.meddling.clone() {
                meddling.have_it_so(&mut state);
            }
            outcome
        };
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
        outcome
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Does what time asks for: rotation, and replacement of SVIDs.
    pub(super) fn tick(&self, now: Timestamp) {
        let due = {
            let mut state = self.lock();
            let rotated = state.authority.tick(now).unwrap_or_else(|error| {
                tracing::error!(trust_domain = %self.trust_domain, %error, "the embedded authority cannot rotate");
                false
            });
            rotated || state.has_due_svid(now)
        };
        if due {
            self.changes.send_modify(|n| *n = n.wrapping_add(1));
        }
    }
}

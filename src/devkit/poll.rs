//! Polling of federated bundles, by SPIRE's rules: a quarter of the refresh hint, never below a minimum; at once for a
//! relationship that is new or changed; any bundle that comes is stored, be it empty or older.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fetch::{Fetch, FetchRequest};
use super::state::Shared;
use crate::model::endpoint::EndpointProfile;
use crate::model::trust::Relationship;
use crate::model::{Bundle, TrustDomain};

/// A bundle without a refresh hint is polled so many times in the life of its shortest authority.
const LEEWAY: i64 = 10;
/// Polls in a refresh hint.
const ATTEMPTS: u32 = 4;

/// Fetches the bundles of the relationships there are.
pub(super) struct Poller {
    shared: Arc<Shared>,
    fetch: Fetch,
    /// SPIRE's is a minute, which makes 15 seconds between polls.
    minimum_hint: Duration,
    /// Relationships to poll now.
    urgent: Mutex<BTreeSet<TrustDomain>>,
    wake: Notify,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").field("minimum_hint", &self.minimum_hint).finish_non_exhaustive()
    }
}

impl Poller {
    pub(super) fn new(shared: Arc<Shared>, fetch: Fetch, minimum_hint: Duration) -> Arc<Self> {
        Arc::new(Self { shared, fetch, minimum_hint, urgent: Mutex::default(), wake: Notify::new() })
    }

    /// Polls this relationship at once, in the background.
    pub(super) fn poll_soon(&self, trust_domain: &TrustDomain) {
        self.urgent.lock().unwrap_or_else(PoisonError::into_inner).insert(trust_domain.clone());
        self.wake.notify_one();
    }

    /// Fetches now, and waits for it. `None` without a relationship; the error is in words.
    pub(super) async fn refresh(&self, trust_domain: &TrustDomain) -> Option<Result<(), String>> {
        let (relationship, request) = self.request(trust_domain)?;
        let fetched = (self.fetch)(request).await;
        let fetched = fetched.map_err(|e| format!("failed to fetch federated bundle from endpoint: {e}"));
        Some(fetched.and_then(|bundle| self.store(&relationship, bundle)))
    }

    fn request(&self, trust_domain: &TrustDomain) -> Option<(Relationship, FetchRequest)> {
        let state = self.shared.lock();
        let relationship = state.relationships.get(trust_domain)?.clone();
        let verify_with = match &relationship.endpoint.profile {
            EndpointProfile::HttpsWeb => None,
            EndpointProfile::HttpsSpiffe { endpoint_id } => {
                let of = endpoint_id.trust_domain();
                if *of == *self.shared.trust_domain() {
                    Some(Arc::clone(state.authority.bundle()))
                } else {
                    state.bundles.get(of).cloned()
                }
            }
        };
        let endpoint = relationship.endpoint.clone();
        let request = FetchRequest { trust_domain: trust_domain.clone(), endpoint, verify_with };
        Some((relationship, request))
    }

    /// Stores what was fetched, unless the relationship has changed meanwhile.
    fn store(&self, fetched_for: &Relationship, mut bundle: Bundle) -> Result<(), String> {
        if bundle.trust_domain() != &fetched_for.trust_domain {
            return Err(format!("the bundle fetched is one of {}", bundle.trust_domain()));
        }
        // SPIRE loses the sequence number on its way in.
        bundle.sequence = None;
        self.shared.change(|state, _| {
            if state.relationships.get(&fetched_for.trust_domain) == Some(fetched_for) {
                state.bundles.insert(fetched_for.trust_domain.clone(), Arc::new(bundle));
            }
        });
        Ok(())
    }

    /// How long to wait for the next poll of a trust domain.
    fn interval(&self, trust_domain: &TrustDomain) -> Duration {
        let state = self.shared.lock();
        let hint = state.bundles.get(trust_domain).map_or(Duration::ZERO, |bundle| refresh_hint(bundle));
        hint.max(self.minimum_hint) / ATTEMPTS
    }

    /// Polls until stopped. An endpoint that does not answer delays no other.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut due: BTreeMap<TrustDomain, Instant> = BTreeMap::new();
        let mut running: BTreeSet<TrustDomain> = BTreeSet::new();
        let mut polls = JoinSet::new();
        loop {
            let now = Instant::now();
            let urgent = std::mem::take(&mut *self.urgent.lock().unwrap_or_else(PoisonError::into_inner));
            due.extend(urgent.into_iter().map(|td| (td, now)));
            let ready: Vec<_> = due
                .iter()
                .filter(|(td, at)| **at <= now && !running.contains(*td))
                .map(|(td, _)| td.clone())
                .collect();
            for trust_domain in ready {
                due.remove(&trust_domain);
                running.insert(trust_domain.clone());
                let poller = Arc::clone(&self);
                polls.spawn(async move { poller.poll(trust_domain).await });
            }
            let idle = due.iter().filter(|(td, _)| !running.contains(*td)).map(|(_, at)| *at).min();
            let next = idle.unwrap_or_else(|| now + Duration::from_secs(3600));
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(next) => {}
                Some(done) = polls.join_next() => if let Ok((trust_domain, again)) = done {
                    running.remove(&trust_domain);
                    if let Some(after) = again {
                        due.entry(trust_domain).or_insert_with(|| Instant::now() + after);
                    }
                },
            }
        }
    }

    /// One poll; gives when the next is due, if there is still a relationship.
    async fn poll(&self, trust_domain: TrustDomain) -> (TrustDomain, Option<Duration>) {
        let outcome = self.refresh(&trust_domain).await;
        if let Some(Err(error)) = &outcome {
            let own = self.shared.trust_domain();
            tracing::warn!(trust_domain = %own, peer = %trust_domain, error, "Error updating bundle");
        }
        let again = outcome.map(|_| self.interval(&trust_domain));
        (trust_domain, again)
    }
}

/// As SPIRE's `CalculateRefreshHint`, without its minimum.
fn refresh_hint(bundle: &Bundle) -> Duration {
    if let Some(hint) = bundle.refresh_hint.filter(|n| *n != 0) {
        return Duration::from_secs(hint);
    }
    let life = bundle.authorities().map(|a| a.not_after().as_second() - a.not_before().as_second()).min();
    Duration::from_secs(life.and_then(|s| u64::try_from(s / LEEWAY).ok()).unwrap_or(0))
}

//! Which of several replicas leads, and when a peer was last heard of.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::model::OwnerRef;
use crate::model::replica::Leader;

/// The times of a leader election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimings {
    /// How long others wait, after the last renewal they saw, before they take the lease. Whole seconds, 1 at least.
    pub duration: Duration,
    /// The leader stops leading when it could not renew for this long. Shorter than `duration`.
    pub deadline: Duration,
    /// How often the leader renews. Others look as often, and every second at least: a lease that is given up is taken within
    /// that.
    pub retry: Duration,
}

impl Default for LeaseTimings {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

impl LeaseTimings {
    /// These times, made to be in order: retry, then deadline, then duration.
    #[must_use]
    pub(super) fn ordered(self) -> Self {
        let duration = Duration::from_secs(self.duration.as_secs().max(1));
        let deadline = self.deadline.min(duration.mul_f64(0.8));
        Self { duration, deadline, retry: self.retry.clamp(Duration::from_millis(50), deadline.div_f64(2.0)) }
    }
}

/// How long the lease of a replica holds, for who watches it.
#[derive(Clone, Debug)]
pub struct LeaseClock {
    renewed: watch::Receiver<Option<Instant>>,
    holds: Duration,
}

impl LeaseClock {
    pub(super) const fn new(renewed: watch::Receiver<Option<Instant>>, holds: Duration) -> Self {
        Self { renewed, holds }
    }

    /// What is left of it now, and how long it holds once it is renewed. `None` where it never was this replica's, or needs
    /// no renewal.
    #[must_use]
    pub fn left(&self) -> Option<(Duration, Duration)> {
        let renewed = (*self.renewed.borrow())?;
        Some((self.holds.saturating_sub(renewed.elapsed()), self.holds))
    }
}

/// A part in a leader election. Dropped, it gives the lease up in the background; see [`Leadership::release`].
#[derive(Debug)]
pub struct Leadership {
    leader: watch::Receiver<Leader>,
    lease: LeaseClock,
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Leadership {
    pub(super) fn new(
        leader: watch::Receiver<Leader>,
        lease: LeaseClock,
        stop: CancellationToken,
        task: JoinHandle<()>,
    ) -> Self {
        Self { leader, lease, stop: stop.drop_guard(), task }
    }

    /// Follows who leads. Not we at first, and not we as soon as renewal failed for the deadline.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<Leader> {
        self.leader.clone()
    }

    /// How long the lease of this replica holds.
    #[must_use]
    pub fn lease(&self) -> LeaseClock {
        self.lease.clone()
    }

    /// Gives the lease up, so that another takes it at once, and waits until that is written.
    pub async fn release(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the leader election ended badly; others wait out the lease");
        }
    }
}

/// The Lease of a peer, whose `renewTime` is the last contact with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLease {
    pub name: String,
    /// The replica that holds the stream of this peer.
    pub holder: String,
    /// Whole seconds, 1 at least.
    pub duration: Duration,
    pub labels: BTreeMap<String, String>,
    /// The TrustDomainPeer, so that the lease goes when it goes.
    pub owners: Vec<OwnerRef>,
}

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// `None` where it was released.
    pub holder: Option<String>,
    pub renewed: Option<Timestamp>,
    pub duration: Duration,
}

//! Leases (`coordination.k8s.io/v1`): who leads, and when a peer was last heard of.
//!
//! The election is that of client-go: a candidate takes the lease when it saw no renewal for the lease's duration by
//! its own clock (clocks of other nodes are not believed), by a write that the API server refuses if the lease has
//! changed; and the leader stops leading when it could not renew for the deadline, which is shorter, so that there
//! are never two, even while the API server cannot be reached. Who cannot reach it for the duration knows of no leader.
//!
//! The leader's Lease says where it takes the connections of peers that other replicas pass on.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{REQUEST_TIMEOUT, convert, errors};
use crate::clock;
use crate::model::object::ANNOTATION_RELAY;
use crate::model::replica::{Leader, Replica, relay_address};
use crate::store::{FIELD_MANAGER, Leadership, LeaseClock, LeaseTimings, LeaseView, PeerLease, StoreError};

/// How long a replica that does not lead waits at most before it looks again: a lease that was given up is taken within this.
const LOOK: Duration = Duration::from_secs(1);

/// Takes part in the election until the result is dropped.
pub(super) fn lead(
    client: Client,
    namespace: &str,
    name: &str,
    replica: &Replica,
    timings: LeaseTimings,
) -> Leadership {
    let (leader, receiver) = watch::channel(Leader::Nobody);
    let (renewals, renewed) = watch::channel(None);
    let lease = LeaseClock::new(renewed, timings.duration);
    let stop = CancellationToken::new();
    let candidate = Candidate {
        leases: Api::namespaced(client, namespace),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        replica: replica.clone(),
        timings,
        leader,
        seen: None,
        held: None,
        looked: Instant::now(),
        renewed: Instant::now(),
        renewals,
    };
    let task = tokio::spawn(candidate.run(stop.clone()));
    Leadership::new(receiver, lease, stop, task)
}

struct Candidate {
    leases: Api<Lease>,
    namespace: String,
    name: String,
    replica: Replica,
    timings: LeaseTimings,
    leader: watch::Sender<Leader>,
    /// The resource version at which another's lease stands, and since when. Each renewal makes a new one.
    seen: Option<(String, Instant)>,
    /// Our own lease as the last renewal left it, to be renewed without a look at it.
    held: Option<Lease>,
    /// When this candidate began its last round that was answered.
    looked: Instant,
    /// When this candidate, as leader, began its last successful renewal.
    renewed: Instant,
    /// The same, for who watches it.
    renewals: watch::Sender<Option<Instant>>,
}

impl Candidate {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let round = Instant::now();
            // A round that takes longer than what is left of the deadline must not hold the leader in office.
            let limit = if self.leads() {
                (self.renewed + self.timings.deadline).saturating_duration_since(round)
            } else {
                self.timings.deadline
            };
            let outcome = tokio::select! {
                () = stop.cancelled() => break,
                outcome = tokio::time::timeout(limit, self.round()) => outcome,
            };
            match outcome {
                Ok(Ok(leader)) => {
                    self.looked = round;
                    if leader.is_us() {
                        self.renewed = round;
                        self.renewals.send_replace(Some(round));
                    }
                    self.set(leader);
                }
                Ok(Err(error)) => {
                    tracing::warn!(lease = %self.name, %error, "leader election failed; trying again")
                }
                Err(_) => {
                    tracing::warn!(lease = %self.name, "leader election: no answer from the API server")
                }
            }
            // Who was seen to lead may not by now, where this could not be seen for so long.
            let is_stale = if self.leads() {
                self.renewed.elapsed() >= self.timings.deadline
            } else {
                self.looked.elapsed() >= self.timings.duration
            };
            if is_stale {
                self.set(Leader::Nobody);
            }
            let pause = if self.leads() { self.timings.retry } else { self.timings.retry.min(LOOK) };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.release().await;
    }

    fn leads(&self) -> bool {
        self.leader.borrow().is_us()
    }

    fn set(&self, leader: Leader) {
        let led = self.leads();
        let leads = leader.is_us();
        let changed = self.leader.send_if_modified(|last| {
            let changed = *last != leader;
            *last = leader;
            changed
        });
        if changed && led != leads {
            tracing::info!(lease = %self.name, identity = %self.replica.name, leads, "leadership changed");
        } else if changed {
            tracing::info!(lease = %self.name, leader = ?*self.leader.borrow(), "who leads has changed");
        }
    }

    /// Takes or renews the lease where it may; who leads then.
    async fn round(&mut self) -> Result<Leader, StoreError> {
        if let Some(lease) = self.held.take() {
            let spec = lease.spec.clone().unwrap_or_default();
            match self.write(Some(lease), spec).await {
                // It is not as we left it: see whose it is now.
                Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => {}
                done => return done,
            }
        }
        let Some(lease) = self.leases.get_opt(&self.name).await.map_err(|e| self.error("get", &e))? else {
            return self.write(None, LeaseSpec::default()).await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder == self.replica.name || holder.is_empty() || self.has_expired(&lease) {
            return self.write(Some(lease), spec).await;
        }
        let told = lease.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_RELAY));
        Ok(Leader::Other { name: holder, relay: told.and_then(|told| relay_address(told)) })
    }

    /// Whether another's lease stood still for its duration, by our own clock.
    fn has_expired(&mut self, lease: &Lease) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == version => {
                let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
                let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
                since.elapsed() >= duration.max(self.timings.retry)
            }
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    /// Writes our name into the lease, which must not have changed since. Who leads then, if it did not change: we.
    async fn write(&mut self, lease: Option<Lease>, before: LeaseSpec) -> Result<Leader, StoreError> {
        let now = MicroTime(clock::now());
        let ours = before.holder_identity.as_deref() == Some(self.replica.name.as_str());
        let term = before.lease_transitions.unwrap_or(0).saturating_add(i32::from(!ours));
        let spec = LeaseSpec {
            holder_identity: Some(self.replica.name.clone()),
            lease_duration_seconds: i32::try_from(self.timings.duration.as_secs()).ok(),
            acquire_time: if ours { before.acquire_time } else { Some(now.clone()) },
            lease_transitions: Some(term),
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let is_new = lease.is_none();
        let mut lease = lease.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        lease.spec = Some(spec);
        lease.metadata.managed_fields = None;
        tell_relay(&mut lease.metadata, self.replica.relay);
        let written = if is_new {
            self.leases.create(&params, &lease).await
        } else {
            self.leases.replace(&self.name, &params, &lease).await
        };
        match written.map_err(|e| self.error("renew", &e)) {
            Ok(lease) => {
                self.held = Some(lease);
                Ok(Leader::Us { term: i64::from(term) })
            }
            // Another was first. A leader that finds it changed has not renewed: who reads it next sees who holds it.
            Err(StoreError::Conflict { .. } | StoreError::AlreadyExists { .. }) if !ours => {
                Ok(Leader::Nobody)
            }
            Err(error) => Err(error),
        }
    }

    /// Says that nobody holds the lease, where it is ours.
    async fn release(&mut self) {
        self.set(Leader::Nobody);
        let request = async {
            let Some(mut lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
            let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
            if spec.holder_identity.as_deref() != Some(self.replica.name.as_str()) {
                return Ok(());
            }
            spec.holder_identity = None;
            spec.acquire_time = None;
            spec.lease_duration_seconds = Some(1);
            tell_relay(&mut lease.metadata, None);
            lease.metadata.managed_fields = None;
            let params =
                PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            self.leases.replace(&self.name, &params, &lease).await.map(drop)
        };
        match tokio::time::timeout(self.timings.deadline, request).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(lease = %self.name, %error, "lease not released; others wait it out")
            }
            Err(_) => tracing::warn!(lease = %self.name, "lease not released in time; others wait it out"),
        }
    }

    fn error(&self, verb: &'static str, error: &kube::Error) -> StoreError {
        errors::of_request(verb, object(&self.namespace, &self.name), error)
    }
}

/// Says where the holder takes what is passed on, or that it does not.
fn tell_relay(metadata: &mut ObjectMeta, relay: Option<SocketAddr>) {
    let annotations = metadata.annotations.get_or_insert_default();
    match relay {
        Some(relay) => annotations.insert(ANNOTATION_RELAY.to_owned(), relay.to_string()),
        None => annotations.remove(ANNOTATION_RELAY),
    };
}

fn object(namespace: &str, name: &str) -> String {
    format!("Lease {namespace}/{name}")
}

/// Writes a peer's lease, by apply: one request, whether it is there or not.
pub(super) async fn touch(client: Client, namespace: &str, lease: &PeerLease) -> Result<(), StoreError> {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let owners: Vec<_> = lease.owners.iter().map(convert::owner_reference).collect();
    let content = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": lease.name, "namespace": namespace, "labels": lease.labels, "ownerReferences": owners },
        "spec": {
            "holderIdentity": lease.holder,
            "leaseDurationSeconds": lease.duration.as_secs().clamp(1, i32::MAX.unsigned_abs().into()),
            "renewTime": MicroTime(clock::now()),
        },
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&content);
    let request = leases.patch(&lease.name, &params, &patch);
    answer("apply", object(namespace, &lease.name), request).await.map(drop)
}

/// Reads a lease.
pub(super) async fn read(
    client: Client,
    namespace: &str,
    name: &str,
) -> Result<Option<LeaseView>, StoreError> {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let found = answer("get", object(namespace, name), leases.get_opt(name)).await?;
    Ok(found.map(|lease| {
        let spec = lease.spec.unwrap_or_default();
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or(0);
        LeaseView {
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            renewed: spec.renew_time.map(|time| time.0),
            duration: Duration::from_secs(seconds),
        }
    }))
}

async fn answer<T>(
    verb: &'static str,
    object: String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(errors::of_request(verb, object, &error)),
        Err(_) => Err(errors::timed_out(verb, object)),
    }
}

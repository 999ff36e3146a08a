//! Leases in a directory: a file locked by the leader, and a file for each peer.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::files::{self, Manner};
use super::manifest;
use crate::model::replica::{Leader, Replica};
use crate::store::{Leadership, LeaseClock, LeaseTimings, LeaseView, PeerLease, StoreError};

/// Leads while it holds the lock of a file, which the system takes back from a process that dies. Who else leads is not told.
pub(super) fn lead(folder: &Path, name: &str, replica: &Replica, timings: LeaseTimings) -> Leadership {
    let (leader, receiver) = watch::channel(Leader::Nobody);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let path = folder.join(format!("{name}.lock"));
    let (name, identity) = (name.to_owned(), replica.name.clone());
    let task = tokio::spawn(async move {
        let held = loop {
            match take(&path) {
                Ok(Some(file)) => break Some(file),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the lock cannot be taken; trying again")
                }
            }
            tokio::select! {
                () = stopped.cancelled() => break None,
                () = tokio::time::sleep(timings.retry) => {}
            }
        };
        if held.is_some() {
            tracing::info!(lease = name, identity, leads = true, "leadership changed");
            leader.send_replace(Leader::Us { term: 0 });
            stopped.cancelled().await;
            leader.send_replace(Leader::Nobody);
        }
        drop(held);
    });
    // A lock needs no renewal.
    let lease = LeaseClock::new(watch::channel(None).1, timings.duration);
    Leadership::new(receiver, lease, stop, task)
}

/// The locked file; nothing where another holds it.
fn take(path: &PathBuf) -> io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    holder: String,
    renew_time: Timestamp,
    lease_duration_seconds: u64,
}

/// Writes a peer's lease.
pub(super) fn touch(folder: &Path, lease: &PeerLease, now: Timestamp) -> Result<(), StoreError> {
    let kept = Kept {
        holder: lease.holder.clone(),
        renew_time: now,
        lease_duration_seconds: lease.duration.as_secs().max(1),
    };
    let path = path(folder, &lease.name)?;
    files::write(&path, &manifest::to_yaml(&kept), Manner { private: false, durable: false })
        .map_err(|error| failed("apply", &lease.name, error.to_string()))
}

/// Reads a peer's lease.
pub(super) fn read(folder: &Path, name: &str) -> Result<Option<LeaseView>, StoreError> {
    let path = path(folder, name)?;
    if !path.exists() {
        return Ok(None);
    }
    let kept: Kept = files::read(&path)
        .and_then(|text| manifest::from_yaml_as(&text))
        .map_err(|message| failed("get", name, message))?;
    Ok(Some(LeaseView {
        holder: Some(kept.holder),
        renewed: Some(kept.renew_time),
        duration: Duration::from_secs(kept.lease_duration_seconds),
    }))
}

fn path(folder: &Path, name: &str) -> Result<PathBuf, StoreError> {
    if !manifest::is_name(name, 253) {
        let message = "its name must be a lower-case DNS name".to_owned();
        return Err(StoreError::Invalid { object: format!("Lease {name}"), message });
    }
    Ok(folder.join(format!("{}.yaml", name.get(..name.floor_char_boundary(240)).unwrap_or(name))))
}

fn failed(verb: &'static str, name: &str, message: String) -> StoreError {
    StoreError::Other { verb, object: format!("Lease {name}"), message }
}

//! Where objects are read and written: a Kubernetes API server, or a directory.
//!
//! Both answer in the same way, so that one pipeline runs on either: whole lists, then changes; writes that never
//! touch an object other than the one that was read; deletion that waits for finalizers; owners whose going takes
//! along what they own. What an object means is not known here: `index/` parses, `plan/` decides.

pub mod directory;
mod error;
mod kubernetes;
mod lease;
mod patch;
mod said;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use tokio::sync::mpsc;

pub use crate::model::change::Precondition;
pub use directory::{DirectoryStore, DirectoryTimings};
pub use error::StoreError;
pub use kubernetes::KubernetesStore;
pub use lease::{Leadership, LeaseClock, LeaseTimings, LeaseView, PeerLease};
pub use patch::{PatchOp, pointer};
pub use said::Told;

use crate::model::object::Kind;
use crate::model::replica::Replica;
use crate::model::{Object, ObjectKey};

/// The field manager under which generated objects are applied.
pub const FIELD_MANAGER: &str = "entente";
/// The field manager under which statuses are applied.
pub const STATUS_FIELD_MANAGER: &str = "entente-status";
/// How many events wait for a reader of a watch; the watch waits beyond that.
const WATCH_CAPACITY: usize = 256;

/// A change in the store.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly every event is of the largest variant")]
pub enum Event {
    /// Every object of this kind that there is; what is not in it, is not there.
    Reset { kind: Kind, objects: Vec<Object> },
    /// This object is there, as it is here.
    Applied(Object),
    /// This object is gone.
    Deleted(ObjectKey),
    /// The store does not serve this kind (yet). A `Reset` follows once it does.
    Absent(Kind),
    /// Every manifest that cannot be read at present, in place of those said before; sent first when there are any.
    Unreadable(Vec<Unreadable>),
}

impl Event {
    /// The kind it speaks of; none where it is of the store as a whole.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        match self {
            Self::Reset { kind, .. } | Self::Absent(kind) => Some(*kind),
            Self::Applied(object) => Some(object.key.kind),
            Self::Deleted(key) => Some(key.kind),
            Self::Unreadable(_) => None,
        }
    }
}

/// A few objects of one kind that are followed beside those that are watched whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub kind: Kind,
    /// `None`: of every namespace.
    pub namespace: Option<String>,
    /// The one of this name.
    pub name: Option<String>,
    /// Those with these labels, as `kubectl -l` has them; empty: all.
    pub labels: String,
}

/// What is known of a [`Selection`].
#[derive(Clone, Debug, PartialEq)]
pub enum Selected {
    /// All that there are now; what is not in it, is not there.
    Objects(Vec<Object>),
    /// They cannot be read, for this cause. It is tried again, and what was there before may be there still.
    Refused(String),
}

/// A manifest, or one document of it, that is not used. Objects known from it before are kept as they were.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unreadable {
    pub path: PathBuf,
    /// Line and rule.
    pub message: String,
    /// The object it is about, where that much could be read.
    pub key: Option<ObjectKey>,
}

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    /// As Kubernetes spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One of the two stores. Cheap to clone.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
pub enum Store {
    Kubernetes(KubernetesStore),
    Directory(DirectoryStore),
}

macro_rules! either {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Store::Kubernetes($store) => $call,
            Store::Directory($store) => $call,
        }
    };
}

impl Store {
    /// Follows these kinds: for each a `Reset` (or `Absent`), then its changes. Reconnects by itself, with a new
    /// `Reset` where events may have been missed. Ends when the receiver is dropped. Must be called in a runtime.
    #[must_use]
    pub fn watch(&self, kinds: &[Kind]) -> mpsc::Receiver<Event> {
        either!(self, store => store.watch(kinds))
    }

    /// The kinds that are followed, and whether each can be read now. A directory tells of what it cannot read by itself.
    #[must_use]
    pub fn followed(&self) -> BTreeMap<Kind, bool> {
        match self {
            Self::Kubernetes(store) => store.followed(),
            Self::Directory(_) => BTreeMap::new(),
        }
    }

    /// Follows a selection: all of it at first, and whenever it has changed. Ends when the receiver is dropped. `None`:
    /// there is no cluster. Must be called in a runtime.
    #[must_use]
    pub fn select(&self, selection: Selection) -> Option<mpsc::Receiver<Selected>> {
        match self {
            Self::Kubernetes(store) => Some(store.select(selection)),
            Self::Directory(_) => None,
        }
    }

    /// Reads one object; `None` where it is not there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        either!(self, store => store.get(key).await)
    }

    /// Writes labels, annotations, owners and body (without `status`) by server-side apply: what was applied before
    /// and is not in `object` goes. Answers with the object as it is now.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] and [`StoreError::Conflict`] where the precondition does not hold.
    pub async fn apply(&self, object: &Object, precondition: &Precondition) -> Result<Object, StoreError> {
        either!(self, store => store.apply(object, precondition).await)
    }

    /// Makes an object that is its operator's from then on, and of no other owner: the agent neither changes nor
    /// prunes it. In a directory it is a manifest, as the operator would have written it.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] where one of that name is there.
    pub async fn create_for_operator(&self, object: &Object) -> Result<Object, StoreError> {
        either!(self, store => store.create_for_operator(object).await)
    }

    /// Deletes the object with this uid. One that is not there is deleted.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where the object of that name has another uid.
    pub async fn delete(&self, key: &ObjectKey, uid: &str) -> Result<(), StoreError> {
        either!(self, store => store.delete(key, uid).await)
    }

    /// Changes a part of the object, if it still has this resource version.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where it has another, or a test in `ops` fails.
    pub async fn patch_json(
        &self,
        key: &ObjectKey,
        resource_version: &str,
        ops: Vec<PatchOp>,
    ) -> Result<Object, StoreError> {
        either!(self, store => store.patch_json(key, resource_version, ops).await)
    }

    /// Writes the status of the object with this uid.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where the object of that name has another uid, or goes on changing meanwhile;
    /// [`StoreError::NotFound`] where there is none.
    pub async fn update_status(&self, key: &ObjectKey, uid: &str, status: Value) -> Result<(), StoreError> {
        either!(self, store => store.update_status(key, uid, status).await)
    }

    /// Logs an event on the object with this uid and, in Kubernetes, records it there in the same words. Equal ones are
    /// counted, not repeated; of one reason, five at once and then one a minute are told. Failure to record it is logged
    /// only.
    pub async fn event(&self, key: &ObjectKey, uid: &str, severity: Severity, reason: &str, message: &str) {
        if self.say(key, uid, severity, reason, message) {
            self.record(key, uid, severity, reason, message).await;
        }
    }

    /// The first half of [`Self::event`]: logs it; whether it is to be recorded.
    #[must_use]
    pub(crate) fn say(
        &self,
        key: &ObjectKey,
        uid: &str,
        severity: Severity,
        reason: &str,
        message: &str,
    ) -> bool {
        let (said, now) = (either!(self, store => store.said()), crate::clock::now());
        if !said.may_say(uid, reason, now) {
            tracing::debug!(object = %key, reason, "told too often: {message}");
            return false;
        }
        match severity {
            Severity::Normal => tracing::info!(object = %key, reason, "{message}"),
            Severity::Warning => tracing::warn!(object = %key, reason, "{message}"),
        }
        said.lately().keep(Told {
            at: now,
            object: key.clone(),
            severity,
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
        true
    }

    /// The second half of [`Self::event`]: records in Kubernetes what was said.
    pub(crate) async fn record(
        &self,
        key: &ObjectKey,
        uid: &str,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        if let Self::Kubernetes(store) = self {
            store.event(key, uid, severity, reason, message).await;
        }
    }

    /// The last events that this process told, newest first, 50 at most.
    #[must_use]
    pub fn told_lately(&self) -> Vec<Told> {
        either!(self, store => store.said()).lately().all()
    }

    /// Takes part in the election of the leader under the lease `name`. Must be called in a runtime.
    #[must_use]
    pub fn lead(&self, name: &str, replica: &Replica, timings: LeaseTimings) -> Leadership {
        either!(self, store => store.lead(name, replica, timings))
    }

    /// Writes the lease of a peer, with the time now as its `renewTime`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn touch_lease(&self, lease: &PeerLease) -> Result<(), StoreError> {
        either!(self, store => store.touch_lease(lease).await)
    }

    /// Reads a lease; `None` where there is none.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn read_lease(&self, name: &str) -> Result<Option<LeaseView>, StoreError> {
        either!(self, store => store.read_lease(name).await)
    }
}

//! Objects in a directory, for SPIRE without Kubernetes, for GitOps, and for trying it out.
//!
//! ```text
//! PATH/manifests/**            what users want: .yaml, .yml and .json, several documents a file. Never changed here; a
//!                              new file is put there only where an operator asked for the object (`entente join`)
//! PATH/generated/<plural>/     what the agent made: <namespace>_<name>.yaml, or <name>.yaml
//! PATH/status/<plural>/        of each object: uid, creation, generation, finalizers, status, and what was last read
//! PATH/status/epoch            how many objects were deleted so far; part of each new uid
//! PATH/locks/                  <lease>.lock held by the leader, and a <lease>.yaml for each peer
//! ```
//!
//! It behaves as an API server does where the agent relies on it. An object has a uid, which another of the same
//! name does not get; a resource version, which is a digest of it; a generation, which counts changes other than of
//! metadata and status. Removing a manifest deletes the object, unless finalizers hold it: then it stays, marked, as
//! it was last read, over restarts too, until they are gone. What was generated goes when all its owners are gone.
//!
//! Missing information deletes nothing. A file that cannot be read, or a document that does not parse, is reported,
//! and the objects known from it stay as they were; each document stands for itself. A manifest must be missing for
//! a moment before it counts as removed, and a folder without any counts as emptied only where they were seen in it before: it may
//! be where a volume is to be mounted. Of two definitions of one object the first by path counts.
//!
//! Only finalizers of a user's object can be patched, and its status written: the rest is in the user's file.

mod files;
mod lock;
mod manifest;
mod record;
mod state;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, watch as channel};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use manifest::from_yaml;
pub use manifest::{manifest_of, to_yaml};

use self::state::{GENERATED, LOCKS, MANIFESTS, STATUS, State, View};
use super::said::Said;
use super::{
    Event, Leadership, LeaseTimings, LeaseView, PatchOp, PeerLease, Precondition, StoreError, WATCH_CAPACITY,
};
use crate::clock;
use crate::model::object::Kind;
use crate::model::replica::Replica;
use crate::model::{Object, ObjectKey};

/// The one document of a file of the store, bounded as everything that is read here.
///
/// # Errors
/// What to tell the file's owner.
pub fn read_document(path: &Path) -> Result<Value, String> {
    files::read(path).and_then(|text| manifest::from_yaml_as(&text))
}

/// The annotations of an object as the agent that follows the directory last read them; `None` where none has.
#[must_use]
pub fn kept_annotations(root: &Path, key: &ObjectKey) -> Option<BTreeMap<String, String>> {
    kept(root, key).map(|record| record.definition.annotations)
}

/// The manifest of an object as the agent that follows the directory last read it, and the file that it lay in.
#[must_use]
pub fn kept_manifest(root: &Path, key: &ObjectKey) -> Option<(PathBuf, Value)> {
    let record = kept(root, key)?;
    let manifest = manifest::from_yaml_as(&manifest::render(&record.definition)).ok()?;
    Some((root.join(&record.source), manifest))
}

/// Whether this lies where the agent keeps what it knows of each object.
#[must_use]
pub fn is_record(root: &Path, path: &Path) -> bool {
    path.starts_with(root.join(STATUS))
}

fn kept(root: &Path, key: &ObjectKey) -> Option<record::Record> {
    let text = files::read(&root.join(STATUS).join(files::place(key))).ok()?;
    record::Record::parse(&text).ok()
}

/// How a directory is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryTimings {
    /// How long to wait for more changes after one was noticed.
    pub debounce: Duration,
    /// How often to look without having been told of a change.
    pub rescan: Duration,
    /// How long a manifest must be missing before its object is deleted.
    pub settle: Duration,
}

impl Default for DirectoryTimings {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(50),
            rescan: Duration::from_secs(10),
            settle: Duration::from_millis(500),
        }
    }
}

/// The objects of one directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DirectoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// `None` until the directory was first read.
    view: channel::Sender<Option<Arc<View>>>,
    timings: DirectoryTimings,
    /// Ends the scanner, which is started by the first watch.
    scanner: OnceLock<DropGuard>,
    root: PathBuf,
    said: Said,
}

impl DirectoryStore {
    /// Opens a directory, and makes it and its folders where they are not there. Only the folder of manifests is left out where there
    /// are records: it was there, and an empty one in its place would say that users removed all that they wrote.
    ///
    /// # Errors
    /// Where they cannot be made.
    pub fn open(root: &Path, timings: DirectoryTimings) -> Result<Self, StoreError> {
        let is_new = files::list(&root.join(STATUS), 1).files.is_empty();
        for folder in [GENERATED, STATUS, LOCKS].into_iter().chain(is_new.then_some(MANIFESTS)) {
            std::fs::create_dir_all(root.join(folder)).map_err(|error| StoreError::Other {
                verb: "make",
                object: format!("the folder {}", root.join(folder).display()),
                message: error.to_string(),
            })?;
        }
        Ok(Self::new(root, timings, true))
    }

    /// Opens a directory to be read: nothing in it is changed, and every write is refused.
    #[must_use]
    pub fn open_read_only(root: &Path, timings: DirectoryTimings) -> Self {
        Self::new(root, timings, false)
    }

    fn new(root: &Path, timings: DirectoryTimings, writable: bool) -> Self {
        let state = State::new(root.to_owned(), writable, timings.settle);
        let (view, _) = channel::channel(None);
        let shared = Shared {
            state: Mutex::new(state),
            view,
            timings,
            scanner: OnceLock::new(),
            root: root.to_owned(),
            said: Said::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What was told lately.
    pub(super) fn said(&self) -> &Said {
        &self.shared.said
    }

    /// The file under `manifests` that defines an object, where one does.
    #[must_use]
    pub fn manifest(&self, key: &ObjectKey) -> Option<PathBuf> {
        let source = self.shared.with_state(|state| {
            state.ensure_scanned(clock::now());
            state.records.get(key).map(|record| record.source.clone())
        })?;
        let path = self.shared.root.join(&source);
        (Path::new(&source).starts_with(MANIFESTS) && path.is_file()).then_some(path)
    }

    pub(super) fn watch(&self, kinds: &[Kind]) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(WATCH_CAPACITY);
        self.shared.scanner.get_or_init(|| {
            let stop = CancellationToken::new();
            tokio::spawn(watch::scan(Arc::downgrade(&self.shared), stop.clone()));
            stop.drop_guard()
        });
        tokio::spawn(watch::follow(Arc::clone(&self.shared), kinds.to_vec(), events));
        receiver
    }

    pub(super) async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        let wanted = key.clone();
        self.with("get", key, move |state| Ok(state.read(&wanted))).await
    }

    pub(super) async fn apply(
        &self,
        object: &Object,
        precondition: &Precondition,
    ) -> Result<Object, StoreError> {
        let (desired, precondition) = (object.clone(), precondition.clone());
        self.with("apply", &object.key, move |state| state.apply(&desired, &precondition, clock::now())).await
    }

    pub(super) async fn create_for_operator(&self, object: &Object) -> Result<Object, StoreError> {
        let created = object.clone();
        self.with("create", &object.key, move |state| state.create_manifest(&created, clock::now())).await
    }

    pub(super) async fn delete(&self, key: &ObjectKey, uid: &str) -> Result<(), StoreError> {
        let (unwanted, uid) = (key.clone(), uid.to_owned());
        self.with("delete", key, move |state| state.remove(&unwanted, &uid, clock::now())).await
    }

    pub(super) async fn patch_json(
        &self,
        key: &ObjectKey,
        resource_version: &str,
        ops: Vec<PatchOp>,
    ) -> Result<Object, StoreError> {
        let (patched, version) = (key.clone(), resource_version.to_owned());
        self.with("patch", key, move |state| state.patch(&patched, &version, ops, clock::now())).await
    }

    pub(super) async fn update_status(
        &self,
        key: &ObjectKey,
        uid: &str,
        status: Value,
    ) -> Result<(), StoreError> {
        let (updated, uid) = (key.clone(), uid.to_owned());
        self.with("update the status of", key, move |state| state.set_status(&updated, &uid, status)).await
    }

    pub(super) fn lead(&self, name: &str, replica: &Replica, timings: LeaseTimings) -> Leadership {
        lock::lead(&self.shared.root.join(LOCKS), name, replica, timings.ordered())
    }

    pub(super) async fn touch_lease(&self, lease: &PeerLease) -> Result<(), StoreError> {
        let folder = self.shared.root.join(LOCKS);
        let lease = lease.clone();
        let object = format!("Lease {}", lease.name);
        blocking("apply", object, move || lock::touch(&folder, &lease, clock::now())).await
    }

    pub(super) async fn read_lease(&self, name: &str) -> Result<Option<LeaseView>, StoreError> {
        let (folder, name) = (self.shared.root.join(LOCKS), name.to_owned());
        let object = format!("Lease {name}");
        blocking("get", object, move || lock::read(&folder, &name)).await
    }

    /// Does this where files may be waited for, with the directory read, and shows what came of it.
    async fn with<T: Send + 'static>(
        &self,
        verb: &'static str,
        key: &ObjectKey,
        action: impl FnOnce(&mut State) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(verb, key.to_string(), move || {
            shared.with_state(|state| {
                state.ensure_scanned(clock::now());
                action(state)
            })
        })
        .await
    }
}

impl Shared {
    /// Changes the state, and publishes the view where that changed it.
    fn with_state<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        // A panic while it was held cannot leave files half written: they are replaced whole.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = action(&mut state);
        // Under the lock, so that views come in order.
        if let Some(view) = state.take_view() {
            self.view.send_replace(Some(Arc::new(view)));
        }
        result
    }
}

async fn blocking<T: Send + 'static>(
    verb: &'static str,
    object: String,
    action: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(action).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Other { verb, object, message: error.to_string() }),
    }
}

//! The objects of a directory: what its files define, and what its records know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::files::{self, MAX_FILES, Manner, Stamp};
use super::manifest::{self, Definition, Document, Refusal};
use super::record::Record;
use crate::model::object::Kind;
use crate::model::peer::{ANNOTATION_END, ANNOTATION_ENDED_BY};
use crate::model::{Object, ObjectKey};
use crate::store::Unreadable;

/// Where users and GitOps put what they want.
pub(super) const MANIFESTS: &str = "manifests";
/// What the agent made.
pub(super) const GENERATED: &str = "generated";
/// What is known of each object beside its manifest.
pub(super) const STATUS: &str = "status";
/// Leases and locks.
pub(super) const LOCKS: &str = "locks";
/// Holds the number of objects deleted so far.
const EPOCH: &str = "epoch";

/// What everyone outside sees. Never changed, only replaced.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) objects: BTreeMap<ObjectKey, Arc<Object>>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// A file as it was last read.
#[derive(Debug)]
struct ReadFile {
    stamp: Stamp,
    documents: Result<Vec<Document>, String>,
}

/// What the files define at present.
#[derive(Default)]
struct Defined {
    definitions: BTreeMap<ObjectKey, (Definition, String)>,
    unreadable: Vec<Unreadable>,
    /// Objects of which a definition is there that cannot be read.
    broken: BTreeSet<ObjectKey>,
    /// Files and folders that may hold any object.
    opaque: Vec<String>,
    manifests: Manifests,
}

/// What was found of the folder of manifests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Manifests {
    #[default]
    Unread,
    /// It is there, without a single manifest.
    Empty,
    Filled,
}

/// The state of a store. Guarded by one lock, which also guards its files.
#[derive(Debug)]
pub(super) struct State {
    pub(super) root: PathBuf,
    pub(super) writable: bool,
    /// How long a manifest must be missing before its object is deleted: editors and checkouts write files anew.
    settle: Duration,
    pub(super) records: BTreeMap<ObjectKey, Record>,
    /// Files of records, as last read or written.
    kept: BTreeMap<PathBuf, (Stamp, ObjectKey)>,
    files: BTreeMap<PathBuf, ReadFile>,
    missing: BTreeMap<ObjectKey, Instant>,
    /// Whether manifests were seen in their folder since it was last missing: only then does an empty one say that all were removed.
    was_filled: bool,
    /// Objects whose manifests were gone when the folder was first looked at: kept until they are there again.
    doubted: BTreeSet<ObjectKey>,
    unreadable: Vec<Unreadable>,
    /// Records that who only reads could not read: nobody makes them anew there.
    unread_records: Vec<Unreadable>,
    /// The objects of the last view, and which of them are out of date.
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    pub(super) touched: BTreeSet<ObjectKey>,
    /// Objects whose record could not be written.
    unsaved: BTreeSet<ObjectKey>,
    scanned: bool,
    /// Whether something other than objects changed since the last view.
    stale: bool,
}

impl State {
    pub(super) fn new(root: PathBuf, writable: bool, settle: Duration) -> Self {
        Self {
            root,
            writable,
            settle,
            records: BTreeMap::new(),
            kept: BTreeMap::new(),
            files: BTreeMap::new(),
            missing: BTreeMap::new(),
            was_filled: false,
            doubted: BTreeSet::new(),
            unreadable: Vec::new(),
            unread_records: Vec::new(),
            objects: BTreeMap::new(),
            touched: BTreeSet::new(),
            unsaved: BTreeSet::new(),
            scanned: false,
            stale: false,
        }
    }

    /// Reads the directory, unless it was read before.
    pub(super) fn ensure_scanned(&mut self, now: Timestamp) {
        if !self.scanned {
            self.scan(now);
        }
    }

    /// Reads what changed, and settles what follows from it. Answers in how long to look again, where objects are
    /// missing and not yet given up.
    pub(super) fn scan(&mut self, now: Timestamp) -> Option<Duration> {
        self.read_records();
        let mut defined = self.read_definitions();
        defined.leave_ended(&self.root, &self.records);
        self.doubt(&mut defined);
        defined.unreadable.append(&mut self.unread_records);
        self.take_definitions(&defined, now);
        let again = self.drop_missing(&defined, now);
        self.collect_garbage(now);
        for key in std::mem::take(&mut self.unsaved) {
            self.keep(&key);
        }
        self.stale |= !self.scanned || self.unreadable != defined.unreadable;
        self.unreadable = defined.unreadable;
        self.scanned = true;
        again
    }

    /// The state as it is now, where it is another than was last taken.
    pub(super) fn take_view(&mut self) -> Option<View> {
        if self.touched.is_empty() && !std::mem::take(&mut self.stale) {
            return None;
        }
        for key in std::mem::take(&mut self.touched) {
            match self.records.get(&key) {
                Some(record) => self.objects.insert(key, Arc::new(record.object())),
                None => self.objects.remove(&key),
            };
        }
        Some(View { objects: self.objects.clone(), unreadable: self.unreadable.clone() })
    }

    /// Reads records that another process wrote, or an earlier one.
    fn read_records(&mut self) {
        let listing = files::list_own(&self.root.join(STATUS), self.writable);
        if listing.failed.is_empty() {
            let there: BTreeSet<&PathBuf> = listing.files.iter().map(|(path, _)| path).collect();
            let gone: Vec<PathBuf> = self.kept.keys().filter(|path| !there.contains(path)).cloned().collect();
            for path in gone {
                if let Some((_, key)) = self.kept.remove(&path) {
                    self.records.remove(&key);
                    self.touched.insert(key);
                }
            }
        }
        self.unread_records.clear();
        for (path, message) in listing.failed {
            tracing::warn!(path = %path.display(), message, "records cannot be read; those known stay as they are");
            self.miss_record(path, message);
        }
        for (path, stamp) in listing.files {
            if self.kept.get(&path).is_some_and(|(known, _)| *known == stamp) {
                continue;
            }
            match files::read(&path).and_then(|text| Record::parse(&text)) {
                Ok(record) => {
                    let key = record.definition.key.clone();
                    self.kept.insert(path, (stamp, key.clone()));
                    self.touched.insert(key.clone());
                    self.records.insert(key, record);
                }
                Err(message) => {
                    tracing::warn!(path = %path.display(), message, "a record cannot be read; an agent makes it anew");
                    self.miss_record(path, message);
                }
            }
        }
    }

    fn miss_record(&mut self, path: PathBuf, message: String) {
        if !self.writable {
            self.unread_records.push(Unreadable { path, message, key: None });
        }
    }

    /// Reads manifests, then generated files: where both define an object, the user's word counts.
    fn read_definitions(&mut self) -> Defined {
        let mut defined = Defined::default();
        let mut present = BTreeSet::new();
        let manifests = files::list(&self.root.join(MANIFESTS), MAX_FILES);
        let mut generated = files::list_own(&self.root.join(GENERATED), self.writable);
        if !self.writable {
            // For the agent's own user, and of no use to who only reads.
            let secrets = self.root.join(GENERATED).join(Kind::Secret.api().3);
            generated.files.retain(|(path, _)| !path.starts_with(&secrets));
            generated.failed.retain(|(path, _)| !path.starts_with(&secrets));
        }
        let folder = self.root.join(MANIFESTS);
        defined.manifests = if manifests.failed.iter().any(|(path, _)| *path == folder) {
            Manifests::Unread
        } else if manifests.files.is_empty() {
            Manifests::Empty
        } else {
            Manifests::Filled
        };
        for listing in [manifests, generated] {
            for (path, stamp) in listing.files {
                if self.files.get(&path).is_none_or(|file| file.stamp != stamp) {
                    let is_json = path.extension().is_some_and(|e| e == "json");
                    let documents = match files::read(&path) {
                        // As a writer leaves it that was cut off. What we made is made anew.
                        Ok(text) if text.trim().is_empty() && path.starts_with(&folder) => {
                            Err("is empty; remove the file to end what it defined".to_owned())
                        }
                        read => read.map(|text| manifest::parse(&text, is_json)),
                    };
                    self.files.insert(path.clone(), ReadFile { stamp, documents });
                }
                if let Some(file) = self.files.get(&path) {
                    defined.add(&self.root, &path, file);
                }
                present.insert(path);
            }
            for (path, mut message) in listing.failed {
                if path == folder {
                    message.push_str("; what was read from it before stays as it is: is its volume mounted?");
                }
                defined.add_opaque(&self.root, &path, message);
            }
        }
        self.files.retain(|path, _| present.contains(path));
        defined
    }

    /// Keeps what an empty folder does not define, where nobody has seen manifests go from it.
    fn doubt(&mut self, defined: &mut Defined) {
        let is_there = |record: &Record| record.deletion.is_none();
        match defined.manifests {
            Manifests::Unread => self.was_filled = false,
            Manifests::Filled => self.was_filled = true,
            Manifests::Empty if self.was_filled => {}
            Manifests::Empty => {
                let wanted = self.records.iter().filter(|(_, record)| !is_generated(&record.source));
                self.doubted.extend(wanted.map(|(key, _)| key.clone()));
            }
        }
        self.doubted.retain(|key| {
            self.records.get(key).is_some_and(is_there) && !defined.definitions.contains_key(key)
        });
        let mut names = self.doubted.iter().map(ToString::to_string);
        if let Some(first) = names.next() {
            let others = match names.count() {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            let message = format!(
                "no manifest was here at the first look, though what one defined is known: {first}{others}. Is the volume mounted? \
                 What is known stays as it is until its manifest is back. What is to end: a peer by `entente peer end`; anything else by \
                 putting its manifest here, and removing it while the agent runs"
            );
            defined.broken.extend(self.doubted.iter().cloned());
            defined.refuse(&self.root.join(MANIFESTS), Refusal { message, key: None });
        }
    }

    /// Why the folder of manifests cannot be taken for what users want: one that is put there now would make it seem so.
    pub(super) fn distrusted(&self) -> Option<&str> {
        let folder = self.root.join(MANIFESTS);
        self.unreadable.iter().find(|unread| unread.path == folder).map(|unread| unread.message.as_str())
    }

    fn take_definitions(&mut self, defined: &Defined, now: Timestamp) {
        for (key, (definition, source)) in &defined.definitions {
            self.missing.remove(key);
            let known = self.records.get_mut(key);
            let changed = match known {
                // Where it is being deleted that goes on, by what the manifest says of how; once it is gone, it comes back as another.
                Some(record) => record.define(definition.clone(), source.clone()),
                None => {
                    let record = Record::new(definition.clone(), source.clone(), self.epoch(), now);
                    self.records.insert(key.clone(), record);
                    true
                }
            };
            if changed {
                self.keep(key);
            }
        }
    }

    /// Deletes objects whose definition has been missing for long enough, and is not merely unreadable.
    fn drop_missing(&mut self, defined: &Defined, now: Timestamp) -> Option<Duration> {
        let (mut again, mut gone) = (None::<Duration>, Vec::new());
        for (key, record) in &self.records {
            if record.deletion.is_some() || defined.definitions.contains_key(key) {
                continue;
            }
            if defined.may_hold(key, &record.source) {
                self.missing.remove(key);
                continue;
            }
            let since = *self.missing.entry(key.clone()).or_insert_with(Instant::now);
            let left = self.settle.saturating_sub(since.elapsed());
            if left.is_zero() {
                gone.push(key.clone());
            } else {
                again = Some(again.map_or(left, |soonest| soonest.min(left)));
            }
        }
        for key in gone {
            self.missing.remove(&key);
            self.delete(&key, now);
        }
        again
    }

    /// Deletes generated objects all of whose owners are gone, as the API server's garbage collector does.
    pub(super) fn collect_garbage(&mut self, now: Timestamp) {
        loop {
            let is_orphan = |record: &&Record| {
                record.deletion.is_none()
                    && is_generated(&record.source)
                    && !record.definition.owners.is_empty()
                    && !record.definition.owners.iter().any(|owner| {
                        let namespace =
                            record.definition.key.namespace.clone().filter(|_| owner.kind.is_namespaced());
                        let key = ObjectKey { kind: owner.kind, namespace, name: owner.name.clone() };
                        // By name: its uid may have been lost with its record, and this runs at each deletion.
                        self.records.contains_key(&key)
                    })
            };
            let orphans: Vec<ObjectKey> =
                self.records.values().filter(is_orphan).map(|record| record.definition.key.clone()).collect();
            if orphans.is_empty() {
                return;
            }
            for key in orphans {
                tracing::debug!(object = %key, "owners are gone; deleted with them");
                self.delete(&key, now);
            }
        }
    }

    /// Deletes an object, or marks it where finalizers hold it.
    pub(super) fn delete(&mut self, key: &ObjectKey, now: Timestamp) {
        self.touched.insert(key.clone());
        let Some(record) = self.records.get_mut(key) else { return };
        if !record.finalizers.is_empty() {
            record.deletion.get_or_insert(now);
            self.keep(key);
            return;
        }
        let generated = is_generated(&record.source).then(|| self.root.join(&record.source));
        self.records.remove(key);
        if !self.writable {
            return;
        }
        let kept = self.kept_at(key);
        self.kept.remove(&kept);
        let removed = generated.map_or(Ok(()), |path| {
            self.files.remove(&path);
            files::remove(&path)
        });
        let epoch = self.epoch().saturating_add(1);
        let manner = Manner { private: false, durable: false };
        let outcome = removed
            .and_then(|()| files::remove(&kept))
            .and_then(|()| files::write(&self.root.join(STATUS).join(EPOCH), &format!("{epoch}\n"), manner));
        if let Err(error) = outcome {
            tracing::warn!(object = %key, %error, "deleted, but its files could not be removed");
        }
    }

    /// As [`State::try_keep`]. Failure is logged, and the next scan tries again.
    fn keep(&mut self, key: &ObjectKey) {
        if let Err(error) = self.try_keep(key) {
            tracing::warn!(object = %key, %error, "its record cannot be written; tried again at the next scan");
            self.unsaved.insert(key.clone());
        }
    }

    /// Writes the record of an object, if it is one that is kept.
    pub(super) fn try_keep(&mut self, key: &ObjectKey) -> std::io::Result<()> {
        self.touched.insert(key.clone());
        let path = self.kept_at(key);
        let Some(record) = self.records.get(key).filter(|record| self.writable && record.is_kept()) else {
            return Ok(());
        };
        let durable = !record.finalizers.is_empty() || record.deletion.is_some();
        files::write(&path, &record.render(), Manner { private: false, durable })?;
        let stamp = Stamp::of(&path)?;
        self.kept.insert(path, (stamp, key.clone()));
        Ok(())
    }

    fn kept_at(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(STATUS).join(files::place(key))
    }

    /// How many objects were deleted so far.
    pub(super) fn epoch(&self) -> u64 {
        let text = files::read(&self.root.join(STATUS).join(EPOCH)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// The file that a generated object lies in, from the store's root.
    pub(super) fn generated_at(key: &ObjectKey) -> String {
        Path::new(GENERATED).join(files::place(key)).to_string_lossy().into_owned()
    }

    /// Where a manifest lies that an operator has made by the agent.
    pub(super) fn manifest_at(&self, key: &ObjectKey) -> PathBuf {
        let name = files::place(key);
        self.root.join(MANIFESTS).join(name.file_name().unwrap_or(name.as_os_str()))
    }

    /// Writes the manifest of a generated object.
    pub(super) fn write_generated(&self, definition: &Definition) -> std::io::Result<()> {
        let path = self.root.join(Self::generated_at(&definition.key));
        let private = definition.key.kind == Kind::Secret;
        files::write(&path, &manifest::render(definition), Manner { private, durable: false })
    }
}

/// Whether a source is of what the agent made.
pub(super) fn is_generated(source: &str) -> bool {
    Path::new(source).starts_with(GENERATED)
}

impl Defined {
    fn add(&mut self, root: &Path, path: &Path, file: &ReadFile) {
        let source = relative(root, path);
        let documents = match &file.documents {
            Ok(documents) => documents,
            Err(message) => return self.add_opaque(root, path, message.clone()),
        };
        for document in documents {
            match document {
                Ok(definition) => match self.definitions.get(&definition.key) {
                    None => {
                        self.definitions.insert(definition.key.clone(), (definition.clone(), source.clone()));
                    }
                    Some((_, first)) => {
                        let message = format!("{}: already defined in {first}, which counts", definition.key);
                        self.refuse(path, Refusal { message, key: Some(definition.key.clone()) });
                    }
                },
                Err(refused) => {
                    match &refused.key {
                        Some(key) => {
                            self.broken.insert(key.clone());
                        }
                        None => self.opaque.push(source.clone()),
                    }
                    self.refuse(path, refused.clone());
                }
            }
        }
    }

    /// Leaves out what says how it ends, and is not there (any more): nobody who writes that into a manifest wants it to begin, and
    /// a command that hurries an end may come after it.
    fn leave_ended(&mut self, root: &Path, records: &BTreeMap<ObjectKey, Record>) {
        let ended = self.definitions.extract_if(.., |key, (definition, _)| {
            key.kind == Kind::TrustDomainPeer
                && !records.contains_key(key)
                && [ANNOTATION_END, ANNOTATION_ENDED_BY]
                    .iter()
                    .any(|of| definition.annotations.contains_key(*of))
        });
        for (key, (_, source)) in ended.collect::<Vec<_>>() {
            let message = format!(
                "{key}: it has ended, as its annotation {ANNOTATION_END} or {ANNOTATION_ENDED_BY} asks for; remove the manifest, \
                 or the annotation to begin anew"
            );
            self.refuse(&root.join(source), Refusal { message, key: Some(key) });
        }
    }

    fn add_opaque(&mut self, root: &Path, path: &Path, message: String) {
        self.opaque.push(relative(root, path));
        self.refuse(path, Refusal { message, key: None });
    }

    fn refuse(&mut self, path: &Path, refused: Refusal) {
        let Refusal { message, key } = refused;
        self.unreadable.push(Unreadable { path: path.to_owned(), message, key });
    }

    /// Whether a definition of this object, last read from `source`, may be there unread.
    fn may_hold(&self, key: &ObjectKey, source: &str) -> bool {
        self.broken.contains(key) || self.opaque.iter().any(|opaque| Path::new(source).starts_with(opaque))
    }
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}

//! Writes to a directory, with the preconditions that an API server would check.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::files::{self, Manner};
use super::manifest::{self, Definition};
use super::record::Record;
use super::state::{MANIFESTS, State, is_generated};
use crate::model::{Object, ObjectKey};
use crate::store::patch::to_json_patch;
use crate::store::{PatchOp, Precondition, StoreError};

impl State {
    pub(super) fn apply(
        &mut self,
        object: &Object,
        precondition: &Precondition,
        now: Timestamp,
    ) -> Result<Object, StoreError> {
        let key = &object.key;
        self.check_writable("apply", key)?;
        check_name(key)?;
        match (self.records.get(key), precondition) {
            (None, Precondition::Absent) => {}
            (None, _) => return Err(conflict(key, "it is gone")),
            (Some(_), Precondition::Absent) => {
                return Err(StoreError::AlreadyExists { object: key.to_string() });
            }
            (Some(record), Precondition::Ours { uid } | Precondition::Adopt { uid }) => {
                if record.uid != *uid {
                    return Err(conflict(key, "it is another object of the same name"));
                }
                check_generated(key, record)?;
            }
        }
        let definition = Definition::from(object);
        self.write_generated(&definition).map_err(|error| failed("apply", key, &error))?;
        let source = Self::generated_at(key);
        let epoch = self.epoch();
        let changed = match self.records.get_mut(key) {
            Some(record) => record.define(definition, source),
            None => {
                self.records.insert(key.clone(), Record::new(definition, source, epoch, now));
                true
            }
        };
        if changed {
            self.try_keep(key).map_err(|error| failed("apply", key, &error))?;
        }
        self.read(key).ok_or_else(|| conflict(key, "it is gone"))
    }

    /// Writes a new manifest, as a user would, and reads it.
    pub(super) fn create_manifest(&mut self, object: &Object, now: Timestamp) -> Result<Object, StoreError> {
        let key = &object.key;
        self.check_writable("create", key)?;
        check_name(key)?;
        // another process, or the user, may have made it since the directory was read
        self.scan(now);
        if let Some(why) = self.distrusted() {
            let message = format!("{}: {why}", self.root.join(MANIFESTS).display());
            return Err(StoreError::Other { verb: "create", object: key.to_string(), message });
        }
        let path = self.manifest_at(key);
        if self.records.contains_key(key) || path.exists() {
            return Err(StoreError::AlreadyExists { object: key.to_string() });
        }
        let content = manifest::manifest_of(object);
        files::write(&path, &content, Manner { private: false, durable: true })
            .map_err(|error| failed("create", key, &error))?;
        self.scan(now);
        self.read(key).ok_or_else(|| conflict(key, "what was written is not read"))
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, uid: &str, now: Timestamp) -> Result<(), StoreError> {
        self.check_writable("delete", key)?;
        let Some(record) = self.records.get(key) else { return Ok(()) };
        if record.uid != uid {
            return Err(conflict(key, "it is another object of the same name"));
        }
        check_generated(key, record)?;
        self.delete(key, now);
        self.collect_garbage(now);
        Ok(())
    }

    pub(super) fn patch(
        &mut self,
        key: &ObjectKey,
        resource_version: &str,
        ops: Vec<PatchOp>,
        now: Timestamp,
    ) -> Result<Object, StoreError> {
        self.check_writable("patch", key)?;
        let invalid = |message: String| StoreError::Invalid { object: key.to_string(), message };
        let Some(object) = self.read(key) else {
            return Err(StoreError::NotFound { object: key.to_string(), message: "it is gone".to_owned() });
        };
        if object.meta.resource_version != resource_version {
            return Err(conflict(key, "it has changed"));
        }
        let mut document = to_document(&object);
        let before = document.clone();
        let patch = to_json_patch(ops).map_err(invalid)?;
        json_patch::patch(&mut document, &patch).map_err(|error| match error.kind {
            json_patch::PatchErrorKind::TestFailed => conflict(key, "a test of the patch failed"),
            _ => invalid(error.to_string()),
        })?;
        let finalizers = take_finalizers(&mut document).map_err(invalid)?;
        let mut plain = before;
        let _ = take_finalizers(&mut plain);
        let changed = plain != document;
        let Some(record) = self.records.get_mut(key) else { return Err(conflict(key, "it is gone")) };
        if changed {
            check_generated(key, record)?;
            let definition = parse_patched(key, &document)?;
            let source = record.source.clone();
            record.define(definition.clone(), source);
            record.finalizers = finalizers;
            self.write_generated(&definition).map_err(|error| failed("patch", key, &error))?;
        } else {
            record.finalizers = finalizers;
        }
        self.try_keep(key).map_err(|error| failed("patch", key, &error))?;
        let Some(patched) = self.read(key) else { return Err(conflict(key, "it is gone")) };
        if patched.meta.deletion.is_some() && patched.meta.finalizers.is_empty() {
            self.delete(key, now);
            self.collect_garbage(now);
        }
        Ok(patched)
    }

    pub(super) fn set_status(&mut self, key: &ObjectKey, uid: &str, status: Value) -> Result<(), StoreError> {
        self.check_writable("update the status of", key)?;
        let Some(record) = self.records.get_mut(key) else {
            return Err(StoreError::NotFound { object: key.to_string(), message: "it is gone".to_owned() });
        };
        if record.uid != uid {
            return Err(conflict(key, "it is another object of the same name"));
        }
        record.status = Some(status);
        self.try_keep(key).map_err(|error| failed("update the status of", key, &error))
    }

    pub(super) fn read(&self, key: &ObjectKey) -> Option<Object> {
        self.records.get(key).map(Record::object)
    }

    fn check_writable(&self, verb: &'static str, key: &ObjectKey) -> Result<(), StoreError> {
        if self.writable {
            return Ok(());
        }
        let message = "the directory was opened to be read".to_owned();
        Err(StoreError::Forbidden { verb, object: key.to_string(), message })
    }
}

/// The object as JSON, for a patch.
fn to_document(object: &Object) -> Value {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(object.key.name));
    if let Some(namespace) = &object.key.namespace {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    if !object.meta.labels.is_empty() {
        metadata.insert("labels".to_owned(), json!(object.meta.labels));
    }
    if !object.meta.annotations.is_empty() {
        metadata.insert("annotations".to_owned(), json!(object.meta.annotations));
    }
    if !object.meta.owners.is_empty() {
        let owners = object.meta.owners.iter().map(manifest::owner_reference).collect();
        metadata.insert("ownerReferences".to_owned(), owners);
    }
    if !object.meta.finalizers.is_empty() {
        metadata.insert("finalizers".to_owned(), json!(object.meta.finalizers));
    }
    metadata.insert("uid".to_owned(), json!(object.meta.uid));
    metadata.insert("resourceVersion".to_owned(), json!(object.meta.resource_version));
    let mut document: Map<String, Value> = object.body.clone().into();
    document.insert("apiVersion".to_owned(), json!(object.key.kind.api_version()));
    document.insert("kind".to_owned(), json!(object.key.kind.kind()));
    document.insert("metadata".to_owned(), Value::Object(metadata));
    Value::Object(document)
}

fn take_finalizers(document: &mut Value) -> Result<Vec<String>, String> {
    let finalizers =
        document.get_mut("metadata").and_then(Value::as_object_mut).and_then(|m| m.remove("finalizers"));
    match finalizers {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(list) => {
            serde_json::from_value(list).map_err(|_| "finalizers must be a list of strings".to_owned())
        }
    }
}

/// What a patched object defines. Its name must be as it was.
fn parse_patched(key: &ObjectKey, document: &Value) -> Result<Definition, StoreError> {
    let invalid = |message: String| StoreError::Invalid { object: key.to_string(), message };
    match manifest::parse(&document.to_string(), true).pop() {
        Some(Ok(definition)) if definition.key == *key => Ok(definition),
        Some(Err(refused)) => Err(invalid(refused.message)),
        _ => Err(invalid("a patch cannot change kind, name or namespace".to_owned())),
    }
}

fn check_name(key: &ObjectKey) -> Result<(), StoreError> {
    let namespaced = key.namespace.is_some() == key.kind.is_namespaced();
    let legal = manifest::is_name(&key.name, 253)
        && key.namespace.as_deref().is_none_or(|n| manifest::is_name(n, 63));
    if namespaced && legal {
        return Ok(());
    }
    let message = "its name and namespace must be lower-case DNS names, as its kind has them".to_owned();
    Err(StoreError::Invalid { object: key.to_string(), message })
}

/// What users wrote is never written.
fn check_generated(key: &ObjectKey, record: &Record) -> Result<(), StoreError> {
    if is_generated(&record.source) {
        return Ok(());
    }
    let message = format!("{} defines it, which only its owner changes", record.source);
    Err(StoreError::Invalid { object: key.to_string(), message })
}

fn conflict(key: &ObjectKey, message: &str) -> StoreError {
    StoreError::Conflict { object: key.to_string(), message: message.to_owned() }
}

fn failed(verb: &'static str, key: &ObjectKey, error: &std::io::Error) -> StoreError {
    StoreError::Other { verb, object: key.to_string(), message: error.to_string() }
}

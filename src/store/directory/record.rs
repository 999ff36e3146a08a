//! What the store knows of an object beside its manifest, as an API server would: uid, time of creation, generation,
//! finalizers, status, and the definition as it was last read, which outlives its manifest while finalizers hold it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

use super::manifest::{self, Definition};
use crate::model::object::{Kind, Meta};
use crate::model::{Object, ObjectKey, OwnerRef};

/// One object of the store.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) definition: Definition,
    /// The file that defines it, from the store's root.
    pub(super) source: String,
    pub(super) uid: String,
    pub(super) created: Timestamp,
    pub(super) generation: i64,
    pub(super) finalizers: Vec<String>,
    pub(super) deletion: Option<Timestamp>,
    pub(super) status: Option<Value>,
}

impl Record {
    /// A new object. The uid follows from its key and from how many objects were deleted before: the same in equal
    /// stores, another for an object that is made again.
    pub(super) fn new(definition: Definition, source: String, epoch: u64, now: Timestamp) -> Self {
        Self {
            uid: uid(&definition.key, epoch),
            definition,
            source,
            created: now,
            generation: 1,
            finalizers: Vec::new(),
            deletion: None,
            status: None,
        }
    }

    /// Takes over what its manifest says now. Whether anything changed.
    pub(super) fn define(&mut self, definition: Definition, source: String) -> bool {
        if self.definition == definition && self.source == source {
            return false;
        }
        if self.definition.body != definition.body {
            self.generation = self.generation.saturating_add(1);
        }
        self.definition = definition;
        self.source = source;
        true
    }

    /// Whether it is written down. What a Secret or ConfigMap holds is not copied about.
    pub(super) fn is_kept(&self) -> bool {
        !matches!(self.definition.key.kind, Kind::Secret | Kind::ConfigMap)
    }

    /// The object, as a watch reports it. Its resource version is a digest of all of it.
    pub(super) fn object(&self) -> Object {
        let mut body = self.definition.body.clone();
        if let Some(status) = &self.status {
            body.insert("status".to_owned(), status.clone());
        }
        let meta = Meta {
            labels: self.definition.labels.clone(),
            annotations: self.definition.annotations.clone(),
            owners: self.definition.owners.clone(),
            deletion: self.deletion,
            finalizers: self.finalizers.clone(),
            created: Some(self.created),
            uid: self.uid.clone(),
            resource_version: digest(&serde_json::to_string(&self.kept()).unwrap_or_default()),
            generation: self.generation,
        };
        Object { key: self.definition.key.clone(), meta, body: body.into() }
    }

    /// The file it is kept in.
    pub(super) fn render(&self) -> String {
        manifest::to_yaml(&self.kept())
    }

    fn kept(&self) -> Kept {
        let key = &self.definition.key;
        Kept {
            api_version: key.kind.api_version(),
            kind: key.kind.kind().to_owned(),
            metadata: KeptMetadata {
                name: key.name.clone(),
                namespace: key.namespace.clone(),
                uid: self.uid.clone(),
                creation_timestamp: self.created,
                generation: self.generation,
                finalizers: self.finalizers.clone(),
                deletion_timestamp: self.deletion,
            },
            status: self.status.clone(),
            last_read: LastRead {
                source: self.source.clone(),
                labels: self.definition.labels.clone(),
                annotations: self.definition.annotations.clone(),
                owners: self.definition.owners.iter().map(KeptOwner::from).collect(),
                body: self.definition.body.clone(),
            },
        }
    }

    /// The record that a file keeps.
    ///
    /// # Errors
    /// Where it is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let kept: Kept = manifest::from_yaml_as(text)?;
        let kind = Kind::of_manifest(&kept.api_version, &kept.kind).ok_or("of another kind")?;
        let metadata = kept.metadata;
        let namespaced = kind.is_namespaced() == metadata.namespace.is_some();
        let legal = |name: &str| manifest::is_name(name, 253);
        if !namespaced || !legal(&metadata.name) || !metadata.namespace.as_deref().is_none_or(legal) {
            return Err("its name is none".to_owned());
        }
        let last = kept.last_read;
        let owners = last.owners.into_iter().filter_map(KeptOwner::parse).collect();
        Ok(Self {
            definition: Definition {
                key: ObjectKey { kind, namespace: metadata.namespace, name: metadata.name },
                labels: last.labels,
                annotations: last.annotations,
                owners,
                body: last.body,
            },
            source: last.source,
            uid: metadata.uid,
            created: metadata.creation_timestamp,
            generation: metadata.generation,
            finalizers: metadata.finalizers,
            deletion: metadata.deletion_timestamp,
            status: kept.status,
        })
    }
}

fn uid(key: &ObjectKey, epoch: u64) -> String {
    let mut hex = digest(&format!("{}/{key}/{epoch}", key.kind.api_version()));
    for at in [8, 13, 18, 23] {
        hex.insert(at, '-');
    }
    hex
}

/// 32 hexadecimal digits that stand for this text.
fn digest(text: &str) -> String {
    let mut hex = hex::encode(Sha256::digest(text.as_bytes()));
    hex.truncate(32);
    hex
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    api_version: String,
    kind: String,
    metadata: KeptMetadata,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
    last_read: LastRead,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptMetadata {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    uid: String,
    creation_timestamp: Timestamp,
    generation: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    finalizers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deletion_timestamp: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
struct LastRead {
    source: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    owners: Vec<KeptOwner>,
    #[serde(default)]
    body: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptOwner {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
}

impl From<&OwnerRef> for KeptOwner {
    fn from(owner: &OwnerRef) -> Self {
        Self {
            api_version: owner.kind.api_version(),
            kind: owner.kind.kind().to_owned(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        }
    }
}

impl KeptOwner {
    fn parse(self) -> Option<OwnerRef> {
        let kind = Kind::of_manifest(&self.api_version, &self.kind)?;
        Some(OwnerRef { kind, name: self.name, uid: self.uid })
    }
}

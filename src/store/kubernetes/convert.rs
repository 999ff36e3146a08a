//! Between the API server's objects and ours.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Map, Value, json};

use super::lean::Lean;
use crate::model::change::{PatchOp, pointer};
use crate::model::object::{ANNOTATION_DRY_RUN, Kind, Meta};
use crate::model::{Object, ObjectKey, OwnerRef};

/// What kubectl keeps of its own in an object, as large as the object. Nothing is decided on it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// A resource version that no object has: etcd's first write of a key is revision 2.
const NO_RESOURCE_VERSION: &str = "1";

/// An object as it was read.
pub(super) fn to_object(kind: Kind, object: Lean) -> Object {
    let metadata = object.metadata;
    let mut annotations = metadata.annotations.unwrap_or_default();
    // its name stays, so that a patch does not take the object for one without annotations
    annotations.entry(LAST_APPLIED.to_owned()).and_modify(String::clear);
    let owners = metadata.owner_references.unwrap_or_default();
    let meta = Meta {
        labels: metadata.labels.unwrap_or_default(),
        annotations,
        owners: owners.into_iter().filter_map(to_owner).collect(),
        deletion: metadata.deletion_timestamp.map(|time| time.0),
        finalizers: metadata.finalizers.unwrap_or_default(),
        created: metadata.creation_timestamp.map(|time| time.0),
        uid: metadata.uid.unwrap_or_default(),
        resource_version: metadata.resource_version.unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
    };
    let namespace = if kind.is_namespaced() { metadata.namespace } else { None };
    Object {
        key: ObjectKey { kind, namespace, name: metadata.name.unwrap_or_default() },
        meta,
        body: object.data.into(),
    }
}

/// The owner, where it is of a kind that we know.
fn to_owner(owner: OwnerReference) -> Option<OwnerRef> {
    let kind = Kind::of_manifest(&owner.api_version, &owner.kind)?;
    Some(OwnerRef { kind, name: owner.name, uid: owner.uid })
}

/// An owner as the API server has it.
pub(super) fn owner_reference(owner: &OwnerRef) -> Value {
    json!({
        "apiVersion": owner.kind.api_version(),
        "kind": owner.kind.kind(),
        "name": owner.name,
        "uid": owner.uid,
    })
}

/// What is applied: of the object with this uid, or of one that must not be there yet.
pub(super) fn to_apply(object: &Object, uid: Option<&str>) -> Value {
    let precondition = match uid {
        Some(uid) => ("uid", json!(uid)),
        None => ("resourceVersion", json!(NO_RESOURCE_VERSION)),
    };
    content(object, Some(precondition))
}

/// What takes others' additions out of an object of Istio's, whose CRDs set no defaults, once it was applied.
pub(super) fn foreign(object: &Object, written: &Object) -> Vec<PatchOp> {
    let mut ops = Vec::new();
    if !object.key.kind.is_istio() {
        return ops;
    }
    if let Some(spec) = object.body.get("spec").filter(|spec| written.body.get("spec") != Some(*spec)) {
        ops.push(PatchOp::Add { path: pointer(&["spec"]), value: spec.clone() });
    }
    let is_marked = |object: &Object| object.meta.annotations.contains_key(ANNOTATION_DRY_RUN);
    if is_marked(written) && !is_marked(object) {
        ops.push(PatchOp::Remove { path: pointer(&["metadata", "annotations", ANNOTATION_DRY_RUN]) });
    }
    ops
}

/// What is created.
pub(super) fn to_create(object: &Object) -> Value {
    content(object, None)
}

fn content(object: &Object, precondition: Option<(&str, Value)>) -> Value {
    let mut metadata = Map::new();
    let mut set = |name: &str, value: Value| metadata.insert(name.to_owned(), value);
    set("name", json!(object.key.name));
    if let Some(namespace) = &object.key.namespace {
        set("namespace", json!(namespace));
    }
    if let Some((name, value)) = precondition {
        set(name, value);
    }
    if !object.meta.labels.is_empty() {
        set("labels", json!(object.meta.labels));
    }
    if !object.meta.annotations.is_empty() {
        set("annotations", json!(object.meta.annotations));
    }
    if !object.meta.owners.is_empty() {
        set("ownerReferences", object.meta.owners.iter().map(owner_reference).collect());
    }
    let mut content: Map<String, Value> = object
        .body
        .iter()
        .filter(|(name, _)| *name != "status")
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    content.insert("apiVersion".to_owned(), json!(object.key.kind.api_version()));
    content.insert("kind".to_owned(), json!(object.key.kind.kind()));
    content.insert("metadata".to_owned(), Value::Object(metadata));
    Value::Object(content)
}

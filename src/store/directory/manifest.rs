//! Manifests: text in, definitions of objects out, and back.
//!
//! Each document of a file stands for itself: one that does not parse harms no other.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::model::object::{Kind, Meta};
use crate::model::{Object, ObjectKey, OwnerRef};

/// Limits of one document, far above any manifest and far below what hurts.
const MAX_DEPTH: usize = 64;
const MAX_NODES: usize = 100_000;
const MAX_ALIASES: usize = 1_000;

/// What a manifest says of an object: what its author decides on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Definition {
    pub(super) key: ObjectKey,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) owners: Vec<OwnerRef>,
    pub(super) body: Map<String, Value>,
}

/// Why a document is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) key: Option<ObjectKey>,
}

pub(super) type Document = Result<Definition, Refusal>;

/// Every document of a kind that we know. Those of other kinds are left out, where they are not said to be ours.
pub(super) fn parse(text: &str, is_json: bool) -> Vec<Document> {
    let mut found = Vec::new();
    if is_json {
        let value = serde_json::from_str(text).map_err(|error| refusal(error.to_string(), None));
        take(value, &mut found);
        return found;
    }
    for (line, document) in split(text) {
        match from_yaml(document) {
            Ok(None) => {}
            Ok(Some(value)) => take(Ok(value), &mut found),
            Err(message) => {
                found.push(Err(refusal(format!("document from line {line}: {message}"), None)));
            }
        }
    }
    found
}

/// The documents of a file, with the line each begins in. `---` at the start of a line is a boundary wherever it
/// stands (YAML 1.2, 9.1.2), so that they can be told apart before any is parsed.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_boundary = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        let before = text.get(start..at).unwrap_or_default();
        // Directives (`%YAML 1.2`) belong to the document that the boundary begins.
        if is_boundary && before.lines().any(|l| !(l.trim().is_empty() || l.starts_with(['#', '%']))) {
            documents.push((first_line, before));
            (start, first_line) = (at, number + 1);
        }
        at += line.len();
    }
    documents.push((first_line, text.get(start..).unwrap_or_default()));
    documents
}

/// One YAML document, bounded in depth and size; nothing where it is empty.
pub(crate) fn from_yaml(text: &str) -> Result<Option<Value>, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
        },
    };
    let value: Option<Value> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| first_line(&error.to_string()))?;
    Ok(value.filter(|value| !value.is_null()))
}

/// An error of the parser may go on with an excerpt, which may be of a secret.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

fn take(value: Result<Value, Refusal>, found: &mut Vec<Document>) {
    let value = match value {
        Ok(value) => value,
        Err(refused) => return found.push(Err(refused)),
    };
    let is_list = value.get("kind").and_then(Value::as_str) == Some("List")
        && value.get("apiVersion").and_then(Value::as_str) == Some("v1");
    if !is_list {
        found.extend(define(value));
        return;
    }
    match value.get("items") {
        Some(Value::Array(items)) => found.extend(items.iter().cloned().filter_map(define)),
        _ => found.push(Err(refusal("a List without items".to_owned(), None))),
    }
}

/// The definition that a document holds; nothing where it is of another kind.
fn define(document: Value) -> Option<Document> {
    let Value::Object(mut document) = document else {
        return Some(Err(refusal("not a mapping with apiVersion, kind and metadata".to_owned(), None)));
    };
    let (Some(Value::String(api_version)), Some(Value::String(name))) =
        (document.remove("apiVersion"), document.remove("kind"))
    else {
        return Some(Err(refusal("apiVersion and kind must be given, as strings".to_owned(), None)));
    };
    let Some(kind) = Kind::of_manifest(&api_version, &name) else {
        let ours = Kind::WATCHED.into_iter().filter(|kind| kind.api().0 == Kind::TrustDomainPeer.api().0);
        if api_version.split_once('/').is_some_and(|(group, _)| group == Kind::TrustDomainPeer.api().0) {
            let kinds = ours.map(Kind::kind).collect::<Vec<_>>().join(", ");
            let message = format!("{api_version} has no kind {name}, only {kinds}");
            return Some(Err(refusal(message, None)));
        }
        tracing::debug!(api_version, kind = name, "manifest of another kind is left alone");
        return None;
    };
    let Some(Value::Object(metadata)) = document.remove("metadata") else {
        return Some(Err(refusal(format!("{kind}: metadata with a name must be given"), None)));
    };
    let key = match key(kind, &metadata) {
        Ok(key) => key,
        Err(message) => return Some(Err(refusal(format!("{kind}: {message}"), None))),
    };
    document.remove("status");
    if kind == Kind::Secret {
        encode_string_data(&mut document);
    }
    let definition = || {
        Ok(Definition {
            key: key.clone(),
            labels: strings(&metadata, "labels")?,
            annotations: strings(&metadata, "annotations")?,
            owners: owners(&metadata)?,
            body: document,
        })
    };
    Some(definition().map_err(|message: String| refusal(format!("{key}: {message}"), Some(key.clone()))))
}

fn key(kind: Kind, metadata: &Map<String, Value>) -> Result<ObjectKey, String> {
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if !is_name(name, 253) {
        return Err(format!("metadata.name must be a lower-case DNS name, not {name:?}"));
    }
    if !kind.is_namespaced() {
        return Ok(ObjectKey::cluster(kind, name));
    }
    match metadata.get("namespace") {
        None | Some(Value::Null) => Ok(ObjectKey::namespaced(kind, "default", name)),
        Some(Value::String(namespace)) if is_name(namespace, 63) && !namespace.contains('.') => {
            Ok(ObjectKey::namespaced(kind, namespace, name))
        }
        Some(other) => Err(format!("metadata.namespace must be a DNS label, not {other}")),
    }
}

/// Whether this is a name that the API server would take (RFC 1123), and so is safe in a path.
pub(super) fn is_name(name: &str, limit: usize) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=limit).contains(&name.len())
        && name.chars().all(|c| legal(c) || c == '-' || c == '.')
        && name.starts_with(legal)
        && name.ends_with(legal)
        && !name.contains("..")
}

fn strings(metadata: &Map<String, Value>, field: &str) -> Result<BTreeMap<String, String>, String> {
    match metadata.get(field) {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(value) => BTreeMap::deserialize(value)
            .map_err(|_| format!("metadata.{field} must map strings to strings; quote numbers and booleans")),
    }
}

fn owners(metadata: &Map<String, Value>) -> Result<Vec<OwnerRef>, String> {
    let list = match metadata.get("ownerReferences") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("metadata.ownerReferences must be a list".to_owned()),
    };
    let text = |owner: &Value, field: &str| {
        owner
            .get(field)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| format!("metadata.ownerReferences: {field} must be given"))
    };
    let mut owners = Vec::new();
    for owner in list {
        if let Some(kind) = Kind::of_manifest(&text(owner, "apiVersion")?, &text(owner, "kind")?) {
            owners.push(OwnerRef { kind, name: text(owner, "name")?, uid: text(owner, "uid")? });
        }
    }
    Ok(owners)
}

/// `stringData` goes into `data`, as the API server has it.
fn encode_string_data(secret: &mut Map<String, Value>) {
    let Some(Value::Object(plain)) = secret.remove("stringData") else { return };
    let data = secret.entry("data").or_insert_with(|| json!({}));
    if let Value::Object(data) = data {
        for (name, value) in plain {
            if let Value::String(value) = value {
                data.insert(name, Value::String(STANDARD.encode(value)));
            }
        }
    }
}

fn refusal(message: String, key: Option<ObjectKey>) -> Refusal {
    Refusal { message, key }
}

/// The manifest of a definition: the same bytes for the same definition, with sorted keys.
pub(super) fn render(definition: &Definition) -> String {
    let mut metadata = Map::new();
    let mut set = |name: &str, value: Value| metadata.insert(name.to_owned(), value);
    set("name", json!(definition.key.name));
    if let Some(namespace) = &definition.key.namespace {
        set("namespace", json!(namespace));
    }
    if !definition.labels.is_empty() {
        set("labels", json!(definition.labels));
    }
    if !definition.annotations.is_empty() {
        set("annotations", json!(definition.annotations));
    }
    if !definition.owners.is_empty() {
        set("ownerReferences", definition.owners.iter().map(owner_reference).collect());
    }
    let mut manifest: BTreeMap<&str, Value> =
        definition.body.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    manifest.insert("apiVersion", json!(definition.key.kind.api_version()));
    manifest.insert("kind", json!(definition.key.kind.kind()));
    manifest.insert("metadata", Value::Object(metadata));
    to_yaml(&manifest)
}

/// The manifest of an object, without owners, whose uids only a cluster knows.
#[must_use]
pub fn manifest_of(object: &Object) -> String {
    render(&Definition { owners: Vec::new(), ..Definition::from(object) })
}

/// An owner, as manifests have it.
pub(super) fn owner_reference(owner: &OwnerRef) -> Value {
    json!({
        "apiVersion": owner.kind.api_version(),
        "kind": owner.kind.kind(),
        "name": owner.name,
        "uid": owner.uid,
    })
}

/// YAML that reads back as the same value. Where the YAML writer's would not, JSON, which is YAML too.
#[must_use]
pub fn to_yaml<T: serde::Serialize>(value: &T) -> String {
    let Ok(value) = serde_json::to_value(value) else { return String::new() };
    match serde_saphyr::to_string(&value) {
        Ok(yaml) if from_yaml(&yaml).ok().flatten().as_ref() == Some(&value) => yaml,
        _ => format!("{value:#}\n"),
    }
}

/// One YAML document, as this type.
pub(super) fn from_yaml_as<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let value = from_yaml(text)?.unwrap_or_default();
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// The object that a definition desires.
impl From<&Object> for Definition {
    fn from(object: &Object) -> Self {
        let Meta { labels, annotations, owners, .. } = object.meta.clone();
        let body = object.body.iter().filter(|(n, _)| *n != "status").map(|(n, v)| (n.clone(), v.clone()));
        Self { key: object.key.clone(), labels, annotations, owners, body: body.collect() }
    }
}

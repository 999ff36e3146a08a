//! An object as the API server sends it, without what nobody decides on: most of an object that was applied is its managed
//! fields, which are not even kept while it is read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::api::{ApiResource, DynamicObject};
use kube::core::DynamicResourceScope;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::model::object::Kind;

/// Reads as a [`DynamicObject`] does, but for the managed fields, and in one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Lean {
    pub(super) metadata: ObjectMeta,
    /// Its other fields, but for `apiVersion` and `kind`.
    pub(super) data: Map<String, Value>,
}

/// What is read of `metadata`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    creation_timestamp: Option<Time>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
}

impl From<Metadata> for ObjectMeta {
    fn from(read: Metadata) -> Self {
        Self {
            name: read.name,
            namespace: read.namespace,
            labels: read.labels,
            annotations: read.annotations,
            owner_references: read.owner_references,
            deletion_timestamp: read.deletion_timestamp,
            finalizers: read.finalizers,
            creation_timestamp: read.creation_timestamp,
            uid: read.uid,
            resource_version: read.resource_version,
            generation: read.generation,
            ..Self::default()
        }
    }
}

impl<'de> Deserialize<'de> for Lean {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Lean;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Lean, A::Error> {
        let mut lean = Lean::default();
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "apiVersion" | "kind" => {
                    fields.next_value::<IgnoredAny>()?;
                }
                "metadata" => {
                    lean.metadata = fields.next_value::<Option<Metadata>>()?.unwrap_or_default().into()
                }
                _ => {
                    lean.data.insert(name, fields.next_value()?);
                }
            }
        }
        Ok(lean)
    }
}

/// What of a container nobody reads is most of a pod.
const OF_CONTAINER: [&str; 3] = ["name", "ports", "volumeMounts"];

impl Lean {
    /// Leaves out what is not read (`index::parse::cluster`) of objects that a cluster has many of, and that are large.
    pub(super) fn slim(mut self, kind: Kind) -> Self {
        match kind {
            Kind::Namespace => self.data.clear(),
            Kind::Pod => {
                let of_status = ["phase", "podIP", "podIPs", "hostIP", "hostIPs", "conditions"];
                if let Some(status) = part(&mut self.data, "status", &of_status) {
                    // Of one address the list says nothing more.
                    let is_more = |list: &Value| list.as_array().is_some_and(|all| all.len() > 1);
                    status.retain(|field, value| !field.ends_with("IPs") || is_more(value));
                }
                let of_spec =
                    ["serviceAccountName", "hostNetwork", "containers", "initContainers", "volumes"];
                if let Some(spec) = part(&mut self.data, "spec", &of_spec) {
                    each(spec, "containers", &OF_CONTAINER);
                    each(spec, "initContainers", &OF_CONTAINER);
                    each(spec, "volumes", &["name", "csi", "hostPath"]);
                }
            }
            _ => {}
        }
        self
    }
}

/// Of an object among the fields, keeps these fields alone.
fn part<'a>(
    fields: &'a mut Map<String, Value>,
    name: &str,
    keep: &[&str],
) -> Option<&'a mut Map<String, Value>> {
    let part = fields.get_mut(name).and_then(Value::as_object_mut)?;
    part.retain(|field, _| keep.contains(&field.as_str()));
    Some(part)
}

/// Of each member of a list of objects, keeps these fields alone.
fn each(fields: &mut Map<String, Value>, list: &str, keep: &[&str]) {
    let items = fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
    for item in items.filter_map(Value::as_object_mut) {
        item.retain(|field, _| keep.contains(&field.as_str()));
    }
}

impl From<DynamicObject> for Lean {
    fn from(object: DynamicObject) -> Self {
        let data = match object.data {
            Value::Object(data) => data,
            _ => Map::new(),
        };
        Self { metadata: object.metadata, data }
    }
}

impl Resource for Lean {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::group(resource)
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::version(resource)
    }

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::kind(resource)
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::api_version(resource)
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::plural(resource)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::convert;
    use super::*;
    use crate::index::parse::cluster;

    fn read(value: &Value) -> Lean {
        serde_json::from_str(&value.to_string()).unwrap()
    }

    fn pod() -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "cart-0", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 2,
                "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "cart"},
                "annotations": {"ambient.istio.io/redirection": "enabled"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:phase": {}}}}],
            },
            "spec": {
                "serviceAccountName": "cart", "hostNetwork": true, "nodeName": "one",
                "containers": [{
                    "name": "app", "image": "cart", "env": [{"name": "A", "value": "b"}],
                    "ports": [{"name": "http", "containerPort": 8080}],
                }],
                "initContainers": [{
                    "name": "istio-proxy", "image": "proxy",
                    "volumeMounts": [{"name": "socket", "mountPath": "/run/secrets/workload-spiffe-uds"}],
                }],
                "volumes": [
                    {"name": "socket", "csi": {"driver": "csi.spiffe.io"}}, {"name": "rest", "projected": {}},
                ],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "hostIP": "10.0.0.2",
                "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "hostIPs": [{"ip": "10.0.0.2"}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "app", "imageID": "sha256:1"}],
            },
        })
    }

    #[test]
    fn it_reads_as_a_dynamic_object_does_but_for_managed_fields() {
        let whole: DynamicObject = serde_json::from_value(pod()).unwrap();
        assert!(whole.metadata.managed_fields.is_some());
        let lean = read(&pod());
        assert_eq!(lean.metadata.managed_fields, None);
        let mut whole = Lean::from(whole);
        whole.metadata.managed_fields = None;
        assert_eq!(lean, whole);
        assert_eq!(read(&json!({"metadata": null})), Lean::default());
    }

    #[test]
    fn what_is_left_out_of_a_pod_is_not_read() {
        let lean = read(&pod());
        let slim = lean.clone().slim(Kind::Pod);
        let container = slim.data["spec"]["containers"][0].as_object().unwrap();
        assert_eq!(container.keys().collect::<Vec<_>>(), ["name", "ports"]);
        let status = slim.data["status"].to_string();
        assert!(!status.contains("imageID") && !status.contains("hostIPs"), "{status}");
        let parsed = |lean: Lean| cluster::pod(&convert::to_object(Kind::Pod, lean)).unwrap();
        let pod = parsed(slim);
        assert!(pod.has_spire_socket && pod.is_ready && pod.uses_host_network && pod.is_ambient);
        assert_eq!(pod.named_ports.len(), 1);
        assert_eq!(pod, parsed(lean));
    }
}

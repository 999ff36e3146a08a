//! Objects in a Kubernetes API server. Desired objects are written by server-side apply under the field manager
//! `entente`, statuses under `entente-status`.
//!
//! The uid of the object that was read goes along with each write of it (with a status, the resource version), so that an object deleted and made again by
//! someone else is never written over: the API server refuses another uid as a change of an immutable field. An
//! object that must not be there yet is applied with a resource version that no object has: the API server ignores
//! it where it creates, and refuses it where an object is. (A POST would leave the fields to a second, `Update`
//! entry of managed fields, and later applies could not take them away.)

mod convert;
mod errors;
mod events;
mod followed;
mod lean;
mod lease;
mod select;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client;
use kube::Resource;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
};
use kube::core::{DynamicResourceScope, GroupVersionKind};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::events::Recorder;
use self::followed::Followed;
use self::lean::Lean;
use super::patch::to_json_patch;
use super::said::Said;
use super::{
    Event, FIELD_MANAGER, Leadership, LeaseTimings, LeaseView, PatchOp, PeerLease, Precondition,
    STATUS_FIELD_MANAGER, Selected, Selection, Severity, StoreError, WATCH_CAPACITY, pointer,
};
use crate::model::object::Kind;
use crate::model::replica::Replica;
use crate::model::{Object, ObjectKey};

/// How long one request may take. Watches are not bounded by it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How many objects are listed at once.
const PAGE: u32 = 500;
/// How often a status is read and written before somebody else's writes are said to be in the way.
const STATUS_TRIES: u32 = 3;

/// The objects of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct KubernetesStore {
    client: Client,
    namespace: String,
    recorder: Recorder,
    said: Said,
    followed: Followed,
}

impl std::fmt::Debug for KubernetesStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesStore").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl KubernetesStore {
    /// The cluster that KUBECONFIG or `~/.kube/config` names, or the one this runs in. No request is made yet.
    ///
    /// `namespace` is the agent's own, for leases; `instance` names this replica in events.
    ///
    /// # Errors
    /// Where neither configuration is there, or it is wrong.
    pub async fn connect(namespace: &str, instance: &str) -> Result<Self, StoreError> {
        match Client::try_default().await {
            Ok(client) => Ok(Self::new(client, namespace, instance)),
            Err(error) => Err(StoreError::Other {
                verb: "use",
                object: "the Kubernetes configuration".to_owned(),
                message: format!("{error}; set KUBECONFIG, or run in a pod with a ServiceAccount"),
            }),
        }
    }

    /// The cluster behind this client.
    #[must_use]
    pub fn new(client: Client, namespace: &str, instance: &str) -> Self {
        let recorder = Recorder::new(client.clone(), instance);
        Self {
            client,
            namespace: namespace.to_owned(),
            recorder,
            said: Said::default(),
            followed: Followed::default(),
        }
    }

    pub(super) fn watch(&self, kinds: &[Kind]) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(WATCH_CAPACITY);
        for kind in kinds {
            let api = Api::all_with(self.client.clone(), &resource(*kind));
            tokio::spawn(watch::follow(*kind, api, events.clone(), self.followed.clone()));
        }
        receiver
    }

    /// The kinds that are watched, and whether each can be.
    pub(super) fn followed(&self) -> BTreeMap<Kind, bool> {
        self.followed.all()
    }

    /// Every object of a kind, as they are at this moment.
    ///
    /// # Errors
    /// [`StoreError::Absent`] where the API server does not know the kind; see [`StoreError`] for the others.
    pub async fn list(&self, kind: Kind) -> Result<Vec<Object>, StoreError> {
        let api: Api<Lean> = Api::all_with(self.client.clone(), &resource(kind));
        let key = ObjectKey::cluster(kind, "(all)");
        let mut objects = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = bounded("list", &key, api.list(&params)).await?;
            objects.extend(page.items.into_iter().map(|object| convert::to_object(kind, object)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(objects),
            }
        }
    }

    pub(super) fn select(&self, selection: Selection) -> mpsc::Receiver<Selected> {
        let (found, receiver) = mpsc::channel(WATCH_CAPACITY);
        let resource = resource(selection.kind);
        let api = match &selection.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        tokio::spawn(select::follow(selection, api, found));
        receiver
    }

    pub(super) async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        let api: Api<Lean> = self.api(key);
        match bounded("get", key, api.get_opt(&key.name)).await {
            Ok(found) => Ok(found.map(|object| convert::to_object(key.kind, object))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn apply(
        &self,
        object: &Object,
        precondition: &Precondition,
    ) -> Result<Object, StoreError> {
        let key = &object.key;
        let (content, force) = match precondition {
            Precondition::Absent => (convert::to_apply(object, None), false),
            Precondition::Ours { uid } | Precondition::Adopt { uid } => {
                (convert::to_apply(object, Some(uid)), true)
            }
        };
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), force, ..PatchParams::default() };
        let api: Api<Lean> = self.api(key);
        let patch = Patch::Apply(&content);
        let written = bounded("apply", key, api.patch(&key.name, &params, &patch)).await;
        match (written, precondition) {
            (Ok(written), _) => self.rid(object, convert::to_object(key.kind, written)).await,
            (Err(StoreError::Conflict { .. }), Precondition::Absent) => {
                Err(StoreError::AlreadyExists { object: key.to_string() })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Takes out what others put into an object of Istio's that we wrote: an apply leaves the members of other managers.
    async fn rid(&self, object: &Object, written: Object) -> Result<Object, StoreError> {
        let ops = convert::foreign(object, &written);
        if ops.is_empty() {
            return Ok(written);
        }
        self.patch_json(&object.key, &written.meta.resource_version, ops).await
    }

    pub(super) async fn create_for_operator(&self, object: &Object) -> Result<Object, StoreError> {
        let key = &object.key;
        let content: DynamicObject = serde_json::from_value(convert::to_create(object))
            .map_err(|error| StoreError::Invalid { object: key.to_string(), message: error.to_string() })?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let api: Api<DynamicObject> = self.api(key);
        let created = bounded("create", key, api.create(&params, &content)).await?;
        Ok(convert::to_object(key.kind, created.into()))
    }

    pub(super) async fn delete(&self, key: &ObjectKey, uid: &str) -> Result<(), StoreError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::background()
        };
        let api: Api<Lean> = self.api(key);
        match bounded("delete", key, api.delete(&key.name, &params)).await {
            Ok(_) | Err(StoreError::NotFound { .. } | StoreError::Absent { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn patch_json(
        &self,
        key: &ObjectKey,
        resource_version: &str,
        ops: Vec<PatchOp>,
    ) -> Result<Object, StoreError> {
        // Set, not tested: both refuse another version, but a failed test is answered with a 422 that says nothing.
        let version = PatchOp::Replace {
            path: pointer(&["metadata", "resourceVersion"]),
            value: Value::String(resource_version.to_owned()),
        };
        let ops = std::iter::once(version).chain(ops).collect();
        let patch =
            to_json_patch(ops).map_err(|message| StoreError::Invalid { object: key.to_string(), message })?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api: Api<Lean> = self.api(key);
        let patch = Patch::Json::<()>(patch);
        let patched = bounded("patch", key, api.patch(&key.name, &params, &patch)).await?;
        Ok(convert::to_object(key.kind, patched))
    }

    /// What someone else writes to the object between our read and our write is no failure: it is read again.
    pub(super) async fn update_status(
        &self,
        key: &ObjectKey,
        uid: &str,
        status: Value,
    ) -> Result<(), StoreError> {
        let api: Api<Lean> = self.api(key);
        let params = PatchParams::apply(STATUS_FIELD_MANAGER).force();
        let mut tries = 1;
        loop {
            // The API server takes no notice of a uid in a status, but of a resource version.
            let Some(there) = self.get(key).await? else {
                let message = "it is gone".to_owned();
                return Err(StoreError::NotFound { object: key.to_string(), message });
            };
            if there.meta.uid != uid {
                let message = "it is another object of the same name".to_owned();
                return Err(StoreError::Conflict { object: key.to_string(), message });
            }
            let content = with_status(key, &there.meta.resource_version, &status);
            let patch = Patch::Apply(&content);
            let patched = api.patch_status(&key.name, &params, &patch);
            match bounded("update the status of", key, patched).await {
                Err(StoreError::Conflict { .. }) if tries < STATUS_TRIES => tries += 1,
                done => return done.map(drop),
            }
        }
    }

    /// What was told lately.
    pub(super) fn said(&self) -> &Said {
        &self.said
    }

    pub(super) async fn event(
        &self,
        key: &ObjectKey,
        uid: &str,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        self.recorder.record(key, uid, severity, reason, message).await;
    }

    pub(super) fn lead(&self, name: &str, replica: &Replica, timings: LeaseTimings) -> Leadership {
        lease::lead(self.client.clone(), &self.namespace, name, replica, timings.ordered())
    }

    pub(super) async fn touch_lease(&self, lease: &PeerLease) -> Result<(), StoreError> {
        lease::touch(self.client.clone(), &self.namespace, lease).await
    }

    pub(super) async fn read_lease(&self, name: &str) -> Result<Option<LeaseView>, StoreError> {
        lease::read(self.client.clone(), &self.namespace, name).await
    }

    fn api<K>(&self, key: &ObjectKey) -> Api<K>
    where
        K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
    {
        let resource = resource(key.kind);
        match &key.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version, name, plural) = kind.api();
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, name), plural)
}

/// The object with this status alone, for the resource version that was read.
fn with_status(key: &ObjectKey, resource_version: &str, status: &Value) -> Value {
    let mut metadata = json!({ "name": key.name, "resourceVersion": resource_version });
    if let (Some(metadata), Some(namespace)) = (metadata.as_object_mut(), &key.namespace) {
        metadata.insert("namespace".to_owned(), Value::String(namespace.clone()));
    }
    json!({
        "apiVersion": key.kind.api_version(),
        "kind": key.kind.kind(),
        "metadata": metadata,
        "status": status,
    })
}

/// Waits for the answer no longer than [`REQUEST_TIMEOUT`], and names the object where there is none.
async fn bounded<T>(
    verb: &'static str,
    key: &ObjectKey,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(errors::of_object(verb, key, &error)),
        Err(_) => Err(errors::timed_out(verb, key.to_string())),
    }
}

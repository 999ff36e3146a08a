use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::KubernetesStore;
use crate::model::object::{Kind, OwnerRef};
use crate::model::replica::{Leader, Replica};
use crate::model::{Object, ObjectKey};
use crate::store::{
    Event, LeaseTimings, PatchOp, PeerLease, Precondition, Severity, Store, StoreError, pointer,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// Never answers.
const SILENCE: u16 = 0;

#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    path: String,
    query: BTreeMap<String, String>,
    content_type: String,
    body: Value,
}

/// A store before an API server that answers as `answer` says, and what it was asked.
fn mock(mut answer: impl FnMut(&Asked) -> (u16, Value) + Send + 'static) -> (Store, Arc<Mutex<Vec<Asked>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let answer = Arc::new(Mutex::new(move |request: &Asked| {
        log.lock().unwrap().push(request.clone());
        answer(request)
    }));
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = Arc::clone(&answer);
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let pair = |pair: &str| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (name.to_owned(), value.to_owned())
            };
            let request = Asked {
                method: parts.method,
                path: parts.uri.path().to_owned(),
                query: parts
                    .uri
                    .query()
                    .unwrap_or("")
                    .split('&')
                    .filter(|p| !p.is_empty())
                    .map(pair)
                    .collect(),
                content_type: parts
                    .headers
                    .get("content-type")
                    .map_or("", |v| v.to_str().unwrap())
                    .to_owned(),
                body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            };
            let (code, body) = (answer.lock().unwrap())(&request);
            if code == SILENCE {
                std::future::pending::<()>().await;
            }
            // A plain text, as for a path that is unknown.
            let bytes = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
            Ok::<_, Infallible>(
                Response::builder().status(code).body(Body::from(bytes.into_bytes())).unwrap(),
            )
        }
    });
    let client = Client::new(service, "default");
    (Store::Kubernetes(KubernetesStore::new(client, "entente-system", "agent-0")), asked)
}

fn failure(code: u16, reason: &str, message: &str, details: Value) -> (u16, Value) {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "code": code, "reason": reason, "message": message, "details": details,
    });
    (code, status)
}

fn key() -> ObjectKey {
    ObjectKey::namespaced(Kind::ServiceEntry, "shop", "cart")
}

fn served(name: &str, version: u32) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": version.to_string(),
            "generation": 3, "creationTimestamp": "2026-01-02T03:04:05Z",
            "deletionTimestamp": "2026-01-02T03:04:06Z", "finalizers": ["a/b"],
            "labels": { "l": "1" },
            "annotations": { "a": "2", "kubectl.kubernetes.io/last-applied-configuration": "{}" },
            "managedFields": [{ "manager": "x", "operation": "Apply" }],
            "ownerReferences": [
                { "apiVersion": "entente.dev/v1alpha1", "kind": "ImportedService", "name": "o", "uid": "u" },
                { "apiVersion": "apps/v1", "kind": "Deployment", "name": "o", "uid": "u" },
            ],
        },
        "spec": { "hosts": "junk, not a list" },
        "status": { "s": 1 },
    })
}

fn desired() -> Object {
    let mut object = Object::desired(key(), json!({ "hosts": ["a"] }));
    object.body.insert("status".to_owned(), json!({ "not": "ours" }));
    object.meta.labels.insert("l".to_owned(), "1".to_owned());
    object.meta.annotations.insert("a".to_owned(), "2".to_owned());
    object.meta.owners.push(OwnerRef { kind: Kind::ImportedService, name: "o".into(), uid: "u".into() });
    object
}

#[tokio::test]
async fn an_object_is_read_whole_but_for_what_nobody_decides_on() {
    let (store, asked) = mock(|_| (200, served("cart", 7)));
    let read = store.get(&key()).await.unwrap().unwrap();
    assert_eq!(read.key, key());
    assert_eq!(read.meta.labels, BTreeMap::from([("l".to_owned(), "1".to_owned())]));
    // that kubectl keeps something there is known; what it is, is not
    let last_applied = "kubectl.kubernetes.io/last-applied-configuration".to_owned();
    let annotations = [("a".to_owned(), "2".to_owned()), (last_applied, String::new())];
    assert_eq!(read.meta.annotations, BTreeMap::from(annotations));
    assert_eq!(read.meta.owners, desired().meta.owners);
    assert_eq!(read.meta.deletion, Some("2026-01-02T03:04:06Z".parse().unwrap()));
    assert_eq!(read.meta.created, Some("2026-01-02T03:04:05Z".parse().unwrap()));
    assert_eq!(read.meta.finalizers, ["a/b"]);
    let meta = (read.meta.uid.as_str(), read.meta.resource_version.as_str(), read.meta.generation);
    assert_eq!(meta, ("uid-cart", "7", 3));
    assert_eq!(
        Value::Object(read.body.into()),
        json!({ "spec": { "hosts": "junk, not a list" }, "status": { "s": 1 } })
    );
    let path = "/apis/networking.istio.io/v1/namespaces/shop/serviceentries/cart";
    assert_eq!(asked.lock().unwrap()[0].path, path);
}

#[tokio::test]
async fn what_is_there_is_applied_by_force_to_its_uid_alone() {
    let (store, asked) = mock(|_| (200, served("cart", 7)));
    store.apply(&desired(), &Precondition::Ours { uid: "uid-cart".to_owned() }).await.unwrap();
    let request = asked.lock().unwrap()[0].clone();
    assert_eq!(request.method, Method::PATCH);
    assert_eq!(request.content_type, "application/apply-patch+yaml");
    assert_eq!(request.query.get("fieldManager").map(String::as_str), Some("entente"));
    assert_eq!(request.query.get("force").map(String::as_str), Some("true"));
    let expected = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {
            "name": "cart", "namespace": "shop", "uid": "uid-cart",
            "labels": { "l": "1" }, "annotations": { "a": "2" },
            "ownerReferences": [
                { "apiVersion": "entente.dev/v1alpha1", "kind": "ImportedService", "name": "o", "uid": "u" },
            ],
        },
        "spec": { "hosts": ["a"] },
    });
    assert_eq!(request.body, expected);
}

/// The members of other managers stay in an apply.
#[tokio::test]
async fn what_others_put_into_an_object_of_istio_goes() {
    let (store, asked) = mock(|_| {
        let mut served = served("cart", 7);
        served["spec"] = json!({ "hosts": ["a"], "workloadSelector": { "labels": { "v": "1" } } });
        served["metadata"]["annotations"] = json!({ "a": "2", "istio.io/dry-run": "true", "theirs": "x" });
        (200, served)
    });
    store.apply(&desired(), &Precondition::Ours { uid: "uid-cart".to_owned() }).await.unwrap();
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].content_type, "application/json-patch+json");
    let expected = json!([
        { "op": "replace", "path": "/metadata/resourceVersion", "value": "7" },
        { "op": "add", "path": "/spec", "value": { "hosts": ["a"] } },
        { "op": "remove", "path": "/metadata/annotations/istio.io~1dry-run" },
    ]);
    assert_eq!(asked[1].body, expected);
}

#[tokio::test]
async fn what_is_not_there_is_created_and_never_written_over() {
    let (store, asked) =
        mock(|_| failure(409, "Conflict", "the object has been modified", json!({ "name": "cart" })));
    let error = store.apply(&desired(), &Precondition::Absent).await.unwrap_err();
    assert_eq!(error, StoreError::AlreadyExists { object: key().to_string() });
    let request = asked.lock().unwrap()[0].clone();
    assert_eq!(request.method, Method::PATCH);
    assert_ne!(request.query.get("force").map(String::as_str), Some("true"));
    assert_eq!(request.body["metadata"]["resourceVersion"], "1");
    assert_eq!(request.body["metadata"].get("uid"), None);
}

#[tokio::test]
async fn deletion_names_the_uid() {
    let (store, asked) = mock(|_| (200, served("cart", 7)));
    store.delete(&key(), "uid-cart").await.unwrap();
    let request = asked.lock().unwrap()[0].clone();
    assert_eq!(request.method, Method::DELETE);
    assert_eq!(request.body["preconditions"], json!({ "uid": "uid-cart" }));

    let (store, _) = mock(|_| failure(404, "NotFound", "not found", json!({ "name": "cart" })));
    store.delete(&key(), "uid-cart").await.unwrap();
    let (store, _) =
        mock(|_| failure(409, "Conflict", "the UID in the precondition", json!({ "name": "cart" })));
    assert!(matches!(store.delete(&key(), "x").await, Err(StoreError::Conflict { .. })));
}

#[tokio::test]
async fn a_patch_holds_for_one_resource_version() {
    let (store, asked) = mock(|_| (200, served("cart", 8)));
    let ops = vec![
        PatchOp::Test { path: "/spec/federatesWith".to_owned(), value: json!([]) },
        PatchOp::Add { path: pointer(&["metadata", "annotations", "a/b~c"]), value: json!("d") },
        PatchOp::Remove { path: "/spec/x".to_owned() },
    ];
    let patched = store.patch_json(&key(), "7", ops).await.unwrap();
    assert_eq!(patched.meta.resource_version, "8");
    let request = asked.lock().unwrap()[0].clone();
    assert_eq!(request.content_type, "application/json-patch+json");
    let expected = json!([
        { "op": "replace", "path": "/metadata/resourceVersion", "value": "7" },
        { "op": "test", "path": "/spec/federatesWith", "value": [] },
        { "op": "add", "path": "/metadata/annotations/a~1b~0c", "value": "d" },
        { "op": "remove", "path": "/spec/x" },
    ]);
    assert_eq!(request.body, expected);
}

#[tokio::test]
async fn a_status_is_applied_under_its_own_manager_to_its_object_alone() {
    let (store, asked) = mock(|_| (200, served("cart", 8)));
    store.update_status(&key(), "uid-cart", json!({ "s": 2 })).await.unwrap();
    let other = store.update_status(&key(), "another", json!({ "s": 2 })).await.unwrap_err();
    assert!(matches!(other, StoreError::Conflict { .. }), "{other}");
    let asked = asked.lock().unwrap();
    let written: Vec<_> = asked.iter().filter(|request| request.method == Method::PATCH).collect();
    let [request] = written[..] else { panic!("{asked:#?}") };
    assert!(request.path.ends_with("/serviceentries/cart/status"), "{}", request.path);
    assert_eq!(request.query.get("fieldManager").map(String::as_str), Some("entente-status"));
    assert_eq!(request.query.get("force").map(String::as_str), Some("true"));
    let metadata = json!({ "name": "cart", "namespace": "shop", "resourceVersion": "8" });
    assert_eq!(request.body["metadata"], metadata);
    assert_eq!(request.body["status"], json!({ "s": 2 }));
    assert_eq!(request.body.get("spec"), None);
}

/// Who edits a peer while its status is written reads of no failure.
#[tokio::test]
async fn a_status_that_meets_another_writer_is_written_over_what_that_one_left() {
    let mut version = 7;
    let (store, asked) = mock(move |request| {
        if request.method == Method::GET {
            version += 1;
            return (200, served("cart", version));
        }
        let named = json!({ "name": "cart" });
        match request.body["metadata"]["resourceVersion"].as_str() {
            Some("10") => (200, served("cart", 11)),
            _ => failure(409, "Conflict", "the object has been modified", named),
        }
    });
    store.update_status(&key(), "uid-cart", json!({ "s": 2 })).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 6, "three reads, and a write after each");
    let busy = store.update_status(&key(), "uid-cart", json!({ "s": 2 })).await.unwrap_err();
    assert!(matches!(busy, StoreError::Conflict { .. }), "{busy}");
    assert_eq!(asked.lock().unwrap().len(), 12, "it is not tried for ever");
}

/// The bodies are those of kube-apiserver 1.36.
#[tokio::test]
async fn refusals_say_what_they_mean() {
    let named = json!({ "name": "cart", "group": "networking.istio.io", "kind": "serviceentries" });
    let uid =
        json!({ "name": "cart", "causes": [{ "reason": "FieldValueInvalid", "field": "metadata.uid" }] });
    let field =
        json!({ "name": "cart", "causes": [{ "reason": "FieldValueInvalid", "field": "spec.hosts" }] });
    let typed = "failed to create typed patch object (/a; ...): .spec.n: expected numeric, got string";
    let cases = [
        (
            failure(
                404,
                "NotFound",
                "namespaces \"shop\" not found",
                json!({ "name": "shop", "kind": "namespaces" }),
            ),
            "NotFound",
        ),
        ((404, json!("404 page not found\n")), "Absent"),
        (failure(409, "Conflict", "the object has been modified", named.clone()), "Conflict"),
        (failure(409, "AlreadyExists", "exists", named.clone()), "AlreadyExists"),
        (failure(403, "Forbidden", "cannot patch resource", named.clone()), "Forbidden"),
        (failure(422, "Invalid", "field is immutable", uid), "Conflict"),
        (failure(422, "Invalid", "hosts must be there", field), "Invalid"),
        (failure(400, "BadRequest", "unknown field", Value::Null), "Invalid"),
        (failure(500, "", typed, Value::Null), "Invalid"),
        (failure(500, "InternalError", "etcdserver: request timed out", Value::Null), "Other"),
        (failure(429, "TooManyRequests", "slow down", Value::Null), "Other"),
    ];
    for (answer, expected) in cases {
        let said = answer.1["message"].as_str().unwrap_or("custom resource definition").to_owned();
        let (store, _) = mock(move |_| answer.clone());
        let error = store.apply(&desired(), &Precondition::Ours { uid: "u".to_owned() }).await.unwrap_err();
        assert_eq!(error.reason(), expected, "{error}");
        let text = error.to_string();
        let names = if expected == "Absent" { "ServiceEntry" } else { "ServiceEntry shop/cart" };
        assert!(text.contains(names) && (text.contains(&said) || expected == "AlreadyExists"), "{text}");
    }
    // A test that failed is answered without a cause.
    let (store, _) = mock(|_| failure(422, "Invalid", "the server rejected our request", Value::Null));
    let error = store.patch_json(&key(), "7", Vec::new()).await.unwrap_err();
    assert_eq!(error.reason(), "Conflict");
    // What is not there is no error to a reader; a kind that is not served is.
    let (store, _) = mock(|_| failure(404, "NotFound", "no", json!({ "name": "cart" })));
    assert_eq!(store.get(&key()).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_for_ever() {
    let (store, _) = mock(|_| (SILENCE, Value::Null));
    let error = store.get(&key()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Other { message, .. } if message.contains("30 s")), "{error}");
}

fn list(version: &str, next: Option<&str>, items: &[Value]) -> (u16, Value) {
    let metadata = json!({ "resourceVersion": version, "continue": next.unwrap_or("") });
    (200, json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items }))
}

fn lines(events: &[Value]) -> (u16, Value) {
    let text: String = events.iter().map(|e| format!("{e}\n")).collect();
    (200, Value::String(text))
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    tokio::time::timeout(PATIENCE * 6, events.recv()).await.unwrap().unwrap()
}

fn names(event: &Event) -> Vec<&str> {
    match event {
        Event::Reset { objects, .. } => objects.iter().map(|o| o.key.name.as_str()).collect(),
        other => panic!("not a list: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_waits_for_the_kind_lists_it_in_pages_and_lists_it_again_when_it_fell_behind() {
    let mut lists = 0;
    let mut watches = 0;
    let (store, asked) = mock(move |request| {
        if request.query.contains_key("watch") {
            watches += 1;
            return match watches {
                1 => lines(&[
                    json!({ "type": "MODIFIED", "object": served("b", 11) }),
                    json!({ "type": "DELETED", "object": served("a", 12) }),
                ]),
                2 => failure(500, "InternalError", "for a moment", Value::Null),
                3 => lines(&[
                    json!({ "type": "ERROR", "object": failure(410, "Expired", "too old", Value::Null).1 }),
                ]),
                _ => (SILENCE, Value::Null),
            };
        }
        lists += 1;
        match lists {
            1 | 2 => (404, json!("404 page not found\n")),
            3 => list("10", Some("more"), &[served("a", 1)]),
            4 => list("10", None, &[served("b", 2)]),
            _ => list("20", None, &[served("c", 3)]),
        }
    });
    let mut events = store.watch(&[Kind::ServiceEntry]);
    assert_eq!(next(&mut events).await, Event::Absent(Kind::ServiceEntry));
    assert_eq!(names(&next(&mut events).await), ["a", "b"], "said absent once, then one whole list");
    assert!(
        matches!(next(&mut events).await, Event::Applied(o) if o.key.name == "b" && o.meta.resource_version == "11")
    );
    let gone = ObjectKey::namespaced(Kind::ServiceEntry, "shop", "a");
    assert_eq!(next(&mut events).await, Event::Deleted(gone));
    assert_eq!(names(&next(&mut events).await), ["c"]);
    let asked = asked.lock().unwrap();
    let first = asked.iter().find(|r| r.query.contains_key("watch")).unwrap();
    assert_eq!(first.query["resourceVersion"], "10");
    assert!(asked.iter().any(|r| r.query.get("limit").map(String::as_str) == Some("200")));
}

#[tokio::test]
async fn a_watch_ends_with_its_reader() {
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let (store, _) = mock(move |request| {
        let _ = &held;
        if request.query.contains_key("watch") { (SILENCE, Value::Null) } else { list("1", None, &[]) }
    });
    let mut events = store.watch(&[Kind::ServiceEntry]);
    assert!(names(&next(&mut events).await).is_empty());
    drop((events, store));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while Arc::strong_count(&alive) > 1 {
        assert!(tokio::time::Instant::now() < deadline, "something still holds the client");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn equal_events_are_written_once() {
    let (store, asked) = mock(|request| (201, request.body.clone()));
    let peer = ObjectKey::cluster(Kind::TrustDomainPeer, "west");
    let long = "ä".repeat(2000);
    for message in ["down", "down", &long] {
        store.event(&peer, "uid", Severity::Warning, "PeerUnreachable", message).await;
    }
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 2, "{asked:#?}");
    assert_eq!(asked[0].path, "/apis/events.k8s.io/v1/namespaces/default/events");
    let body = &asked[0].body;
    assert_eq!(
        (&body["type"], &body["reason"], &body["note"]),
        (&json!("Warning"), &json!("PeerUnreachable"), &json!("down"))
    );
    let regarding = json!({ "apiVersion": "entente.dev/v1alpha1", "kind": "TrustDomainPeer", "name": "west", "uid": "uid" });
    assert_eq!(body["regarding"], regarding);
    assert!(asked[1].body["note"].as_str().unwrap().len() <= 1024);
}

#[tokio::test]
async fn who_changes_its_words_each_time_makes_few_events() {
    let (store, asked) = mock(|request| (201, request.body.clone()));
    let peer = ObjectKey::cluster(Kind::TrustDomainPeer, "west");
    for word in 0..50 {
        for (severity, reason) in [(Severity::Warning, "PeerUnreachable"), (Severity::Normal, "Confirmed")] {
            store.event(&peer, "uid", severity, reason, &format!("word {word}")).await;
        }
    }
    // One more each may have come where this took a minute.
    assert!((10..=12).contains(&asked.lock().unwrap().len()));
}

#[tokio::test]
async fn a_peers_lease_is_one_apply() {
    let (store, asked) = mock(|request| (200, request.body.clone()));
    let lease = PeerLease {
        name: "entente-peer-west".to_owned(),
        holder: "agent-0".to_owned(),
        duration: Duration::from_secs(30),
        labels: BTreeMap::from([("l".to_owned(), "1".to_owned())]),
        owners: vec![OwnerRef { kind: Kind::TrustDomainPeer, name: "west".into(), uid: "u".into() }],
    };
    store.touch_lease(&lease).await.unwrap();
    let request = asked.lock().unwrap()[0].clone();
    assert_eq!(
        request.path,
        "/apis/coordination.k8s.io/v1/namespaces/entente-system/leases/entente-peer-west"
    );
    assert_eq!(request.content_type, "application/apply-patch+yaml");
    assert_eq!(request.body["spec"]["holderIdentity"], "agent-0");
    assert_eq!(request.body["spec"]["leaseDurationSeconds"], 30);
    assert_eq!(request.body["metadata"]["ownerReferences"][0]["kind"], "TrustDomainPeer");
    assert!(request.body["spec"]["renewTime"].as_str().is_some());
}

/// An API server that holds one lease, with the conflicts that a real one answers with.
#[derive(Default)]
struct LeaseServer {
    lease: Option<Value>,
    version: u64,
    is_cut: bool,
}

impl LeaseServer {
    fn answer(&mut self, request: &Asked) -> (u16, Value) {
        if self.is_cut {
            return (SILENCE, Value::Null);
        }
        let named = json!({ "name": "agent" });
        match (&request.method, &self.lease) {
            (&Method::GET, Some(lease)) => (200, lease.clone()),
            (&Method::GET, None) => failure(404, "NotFound", "not found", named),
            (&Method::POST, Some(_)) => failure(409, "AlreadyExists", "exists", named),
            (&Method::PUT, Some(lease))
                if request.body["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"] =>
            {
                failure(409, "Conflict", "modified", named)
            }
            (&Method::POST, None) | (&Method::PUT, Some(_)) => {
                self.version += 1;
                let mut lease = request.body.clone();
                lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
                self.lease = Some(lease.clone());
                (200, lease)
            }
            other => panic!("not expected: {other:?}"),
        }
    }
}

/// Half of what an agent at rest asks of the API server would be reads of its own lease.
#[tokio::test(start_paused = true)]
async fn a_leader_renews_without_a_look_until_someone_else_wrote() {
    let server = Arc::new(Mutex::new(LeaseServer::default()));
    let of_mock = Arc::clone(&server);
    let (store, asked) = mock(move |request| of_mock.lock().unwrap().answer(request));
    let leadership = store.lead("agent", &Replica::named("one"), LeaseTimings::default());
    leadership.leader().wait_for(Leader::is_us).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let looks = || asked.lock().unwrap().iter().filter(|request| request.method == Method::GET).count();
    assert_eq!(looks(), 1, "it looked again");
    assert!(asked.lock().unwrap().len() > 20, "it did not renew");

    // Someone takes it by hand: what stood before is not written over.
    {
        let mut server = server.lock().unwrap();
        server.version += 1;
        let version = server.version.to_string();
        let lease = server.lease.as_mut().unwrap();
        lease["metadata"]["resourceVersion"] = json!(version);
        lease["spec"]["holderIdentity"] = json!("another");
    }
    leadership.leader().wait_for(|leader| !leader.is_us()).await.unwrap();
    assert_eq!(looks(), 2);
}

/// It would pass peers on to one that leads no more, and call itself able to.
#[tokio::test(start_paused = true)]
async fn who_is_cut_off_knows_of_no_leader_after_the_duration() {
    let server = Arc::new(Mutex::new(LeaseServer::default()));
    let named = |name: &'static str| {
        let of_mock = Arc::clone(&server);
        let cut = Arc::new(Mutex::new(false));
        let is_cut = Arc::clone(&cut);
        let (store, _) = mock(move |request| {
            if *is_cut.lock().unwrap() {
                (SILENCE, Value::Null)
            } else {
                of_mock.lock().unwrap().answer(request)
            }
        });
        (store.lead("agent", &Replica::named(name), LeaseTimings::default()), cut)
    };
    let (first, _) = named("one");
    first.leader().wait_for(Leader::is_us).await.unwrap();
    let (second, cut) = named("two");
    let mut seen = second.leader();
    seen.wait_for(Leader::is_known).await.unwrap();
    *cut.lock().unwrap() = true;
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(seen.borrow().is_known(), "one answer that is late is none that is missing");
    tokio::time::sleep(Duration::from_secs(18)).await;
    assert_eq!(*seen.borrow(), Leader::Nobody);
    *cut.lock().unwrap() = false;
    tokio::time::timeout(Duration::from_secs(15), seen.wait_for(Leader::is_known)).await.unwrap().unwrap();
}

/// The API server is there again long before anything changes that a watch would tell.
#[tokio::test(start_paused = true)]
async fn a_kind_that_cannot_be_read_is_told_of() {
    let refuses = Arc::new(Mutex::new(true));
    let is_refused = Arc::clone(&refuses);
    let (store, _) = mock(move |request| {
        if *is_refused.lock().unwrap() {
            return failure(403, "Forbidden", "no", json!({}));
        }
        if request.query.contains_key("watch") {
            return (SILENCE, Value::Null);
        }
        (
            200,
            json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "1" }, "items": [] }),
        )
    });
    let up = || store.followed().into_iter().collect::<Vec<_>>();
    assert_eq!(up(), []);
    let mut events = store.watch(&[Kind::TrustDomainPeer]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(up(), [(Kind::TrustDomainPeer, false)]);
    *refuses.lock().unwrap() = false;
    events.recv().await.unwrap();
    assert_eq!(up(), [(Kind::TrustDomainPeer, true)]);
    drop(events);

    let followed = super::followed::Followed::default();
    followed.goes_well(Kind::ServiceEntry);
    followed.failed(Kind::ServiceEntry);
    tokio::time::sleep(Duration::from_secs(45)).await;
    followed.failed(Kind::ServiceEntry);
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert!(!followed.all()[&Kind::ServiceEntry]);
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert!(followed.all()[&Kind::ServiceEntry], "tried again, it did not fail");
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_a_leader_that_is_cut_off_stops_before_another_starts() {
    let server = Arc::new(Mutex::new(LeaseServer::default()));
    let stand = |server: &Arc<Mutex<LeaseServer>>, cut: Arc<Mutex<bool>>| {
        let server = Arc::clone(server);
        mock(move |request| {
            if *cut.lock().unwrap() { (SILENCE, Value::Null) } else { server.lock().unwrap().answer(request) }
        })
        .0
    };
    let cut = Arc::new(Mutex::new(false));
    let (one, two) = (stand(&server, Arc::clone(&cut)), stand(&server, Arc::default()));
    let first = one.lead("agent", &Replica::named("one"), LeaseTimings::default());
    first.leader().wait_for(Leader::is_us).await.unwrap();
    let second = two.lead("agent", &Replica::named("two"), LeaseTimings::default());
    // Renewed for longer than it lasts: nothing changes.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(first.leader().borrow().is_us() && !second.leader().borrow().is_us());

    *cut.lock().unwrap() = true;
    let at = tokio::time::Instant::now();
    first.leader().wait_for(|leader| !leader.is_us()).await.unwrap();
    let stopped = at.elapsed();
    assert!(!second.leader().borrow().is_us(), "two lead at once");
    second.leader().wait_for(Leader::is_us).await.unwrap();
    assert!(
        stopped <= Duration::from_secs(11) && at.elapsed() >= Duration::from_secs(13),
        "{stopped:?}, {:?}",
        at.elapsed()
    );
    *cut.lock().unwrap() = false;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!first.leader().borrow().is_us() && second.leader().borrow().is_us(), "what was lost stays lost");

    // Given up, it is taken within a retry.
    let at = tokio::time::Instant::now();
    second.release().await;
    first.leader().wait_for(Leader::is_us).await.unwrap();
    assert!(at.elapsed() <= Duration::from_secs(3), "{:?}", at.elapsed());
    let lease = server.lock().unwrap().lease.clone().unwrap();
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]),
        (&json!("one"), &json!(3))
    );
}

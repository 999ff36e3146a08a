use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{DirectoryStore, DirectoryTimings};
use crate::model::object::{Kind, OwnerRef};
use crate::model::replica::{Leader, Replica};
use crate::model::{Object, ObjectKey};
use crate::store::{
    Event, LeaseTimings, PatchOp, PeerLease, Precondition, Store, StoreError, Unreadable, pointer,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PEER: &str = "apiVersion: entente.dev/v1alpha1\nkind: TrustDomainPeer\nmetadata: {name: west}\nspec: {trustDomain: west.example}\n";
const KINDS: [Kind; 3] = [Kind::TrustDomainPeer, Kind::FederatedService, Kind::ServiceEntry];

fn timings() -> DirectoryTimings {
    DirectoryTimings {
        debounce: Duration::from_millis(5),
        rescan: Duration::from_millis(100),
        settle: Duration::from_millis(50),
    }
}

/// A directory, and what is there by its last events.
struct Stand {
    folder: TempDir,
    store: Store,
    events: mpsc::Receiver<Event>,
    objects: std::collections::BTreeMap<ObjectKey, Object>,
    unreadable: Vec<Unreadable>,
    log: Vec<Event>,
}

impl Stand {
    async fn new(manifests: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        for (path, text) in manifests {
            let path = folder.path().join("manifests").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self::over(folder).await
    }

    async fn over(folder: TempDir) -> Self {
        let store = Store::Directory(DirectoryStore::open(folder.path(), timings()).unwrap());
        let events = store.watch(&KINDS);
        let mut stand = Self {
            folder,
            store,
            events,
            objects: std::collections::BTreeMap::new(),
            unreadable: Vec::new(),
            log: Vec::new(),
        };
        let all_read =
            |s: &Self| s.log.iter().filter(|e| matches!(e, Event::Reset { .. })).count() == KINDS.len();
        stand.until("every kind was listed", all_read).await;
        stand
    }

    /// Stops the store, and opens the directory anew.
    async fn restart(self) -> Self {
        let Self { folder, store, events, .. } = self;
        drop((store, events));
        Self::over(folder).await
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !is_so(self) {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            let Ok(Some(event)) = event else { panic!("not seen: {what}; events: {:#?}", self.log) };
            match &event {
                Event::Reset { kind, objects } => {
                    self.objects.retain(|key, _| key.kind != *kind);
                    self.objects.extend(objects.iter().map(|o| (o.key.clone(), o.clone())));
                }
                Event::Applied(object) => {
                    self.objects.insert(object.key.clone(), object.clone());
                }
                Event::Deleted(key) => {
                    self.objects.remove(key);
                }
                Event::Unreadable(all) => self.unreadable.clone_from(all),
                Event::Absent(kind) => panic!("{kind} said to be absent"),
            }
            self.log.push(event);
        }
    }

    fn manifest(&self, path: &str) -> PathBuf {
        self.folder.path().join("manifests").join(path)
    }

    /// Puts a manifest there at once, as careful writers do.
    fn put(&self, path: &str, text: &str) {
        let temporary = self.folder.path().join("manifests/.new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.manifest(path)).unwrap();
    }

    fn peer(&self) -> &Object {
        &self.objects[&west()]
    }

    /// Waits for a scan to have ended after now: a probe put there is seen.
    async fn settle(&mut self) {
        let name = format!("probe-{}", self.log.len());
        let key = ObjectKey::cluster(Kind::TrustDomainPeer, &name);
        self.put(&format!("{name}.yaml"), &PEER.replace("west", &name));
        let seen = key.clone();
        self.until("a probe", move |s| s.objects.contains_key(&seen)).await;
        fs::remove_file(self.manifest(&format!("{name}.yaml"))).unwrap();
        self.until("the probe's end", move |s| !s.objects.contains_key(&key)).await;
    }

    async fn patch_finalizers(&self, key: &ObjectKey, finalizers: &[&str]) -> Result<Object, StoreError> {
        let version = self.store.get(key).await.unwrap().unwrap().meta.resource_version;
        let op = PatchOp::Add { path: pointer(&["metadata", "finalizers"]), value: json!(finalizers) };
        self.store.patch_json(key, &version, vec![op]).await
    }
}

fn west() -> ObjectKey {
    ObjectKey::cluster(Kind::TrustDomainPeer, "west")
}

fn entry(name: &str, spec: Value) -> Object {
    Object::desired(ObjectKey::namespaced(Kind::ServiceEntry, "shop", name), spec)
}

fn owned(mut object: Object, owner: &Object) -> Object {
    object.meta.owners.push(OwnerRef {
        kind: owner.key.kind,
        name: owner.key.name.clone(),
        uid: owner.meta.uid.clone(),
    });
    object
}

fn ours(object: &Object) -> Precondition {
    Precondition::Ours { uid: object.meta.uid.clone() }
}

#[tokio::test]
async fn manifests_are_listed_and_followed() {
    let two = format!(
        "# first\n{PEER}---\napiVersion: entente.dev/v1alpha1\nkind: FederatedService\nmetadata: {{name: cart}}\nspec: {{a: 1}}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: other}}\n"
    );
    let mut s = Stand::new(&[("a/b/all.yaml", &two)]).await;
    let cart = ObjectKey::namespaced(Kind::FederatedService, "default", "cart");
    assert_eq!(s.objects.keys().cloned().collect::<Vec<_>>(), [west(), cart.clone()]);
    assert_eq!(s.objects[&cart].spec(), Some(&json!({ "a": 1 })));
    assert!(s.unreadable.is_empty(), "other kinds are left alone: {:?}", s.unreadable);
    let first = s.peer().clone();
    assert_eq!(first.meta.generation, 1);
    assert!(first.meta.created.is_some() && !first.meta.uid.is_empty());

    s.put("a/b/all.yaml", &two.replace("west.example", "wild.example"));
    s.until("the change", |s| s.peer().spec() == Some(&json!({ "trustDomain": "wild.example" }))).await;
    assert_eq!(s.peer().meta.generation, 2);
    assert_eq!(s.peer().meta.uid, first.meta.uid);
    assert_ne!(s.peer().meta.resource_version, first.meta.resource_version);

    fs::remove_file(s.manifest("a/b/all.yaml")).unwrap();
    s.until("the end of both", |s| s.objects.is_empty()).await;
    s.put("west.yaml", PEER);
    s.until("it again", |s| s.objects.contains_key(&west())).await;
    assert_ne!(s.peer().meta.uid, first.meta.uid, "made again, it is another");
}

#[tokio::test]
async fn uid_generation_and_status_outlast_a_restart() {
    let mut s = Stand::new(&[("west.yaml", PEER)]).await;
    s.put("west.yaml", &PEER.replace("west.example", "wild.example"));
    s.until("the change", |s| s.peer().meta.generation == 2).await;
    let uid = s.peer().meta.uid.clone();
    s.store.update_status(&west(), &uid, json!({ "conditions": [] })).await.unwrap();
    s.until("the status", |s| s.peer().status().is_some()).await;
    let before = s.peer().clone();
    assert_eq!(before.meta.generation, 2, "a status is no new generation");
    let s = s.restart().await;
    assert_eq!(s.peer(), &before);
}

#[tokio::test]
async fn equal_directories_give_equal_uids() {
    let (one, two) = (Stand::new(&[("w.yaml", PEER)]).await, Stand::new(&[("x.yaml", PEER)]).await);
    assert_eq!(one.peer().meta.uid, two.peer().meta.uid);
}

#[tokio::test]
async fn an_object_is_held_by_its_finalizers_over_a_restart() {
    let mut s = Stand::new(&[("west.yaml", PEER)]).await;
    s.patch_finalizers(&west(), &["entente.dev/relationship"]).await.unwrap();
    s.until("the finalizer", |s| s.peer().meta.finalizers == ["entente.dev/relationship"]).await;
    let uid = s.peer().meta.uid.clone();
    fs::remove_file(s.manifest("west.yaml")).unwrap();
    s.until("the deletion", |s| s.peer().meta.deletion.is_some()).await;
    assert_eq!(s.peer().spec(), Some(&json!({ "trustDomain": "west.example" })), "as it was last read");

    let mut s = s.restart().await;
    let held = s.peer().clone();
    assert!(held.meta.deletion.is_some() && held.meta.uid == uid);
    assert_eq!(held.spec(), Some(&json!({ "trustDomain": "west.example" })));

    // Its manifest comes back, and says how it is to end: the deletion goes on by that, and then it is another.
    let annotated = PEER.replace("{name: west}", "{name: west, annotations: {entente.dev/end: now}}");
    s.put("west.yaml", &annotated);
    s.until("what it says now", |s| !s.peer().meta.annotations.is_empty()).await;
    assert!(s.peer().meta.deletion.is_some() && s.peer().meta.uid == uid);
    fs::remove_file(s.manifest("west.yaml")).unwrap();
    s.settle().await;
    assert_eq!(s.peer().meta.annotations["entente.dev/end"], "now", "as it was last read");

    // The manifest that says so may outlast the end.
    s.put("west.yaml", &annotated);
    s.settle().await;
    s.patch_finalizers(&west(), &[]).await.unwrap();
    s.until("the end, and why it does not begin", |s| s.objects.is_empty() && !s.unreadable.is_empty()).await;
    let Unreadable { message, key, .. } = &s.unreadable[0];
    assert!(message.contains("entente.dev/end") && *key == Some(west()), "{message}");
    s.put("west.yaml", PEER);
    s.until("it anew", |s| s.objects.get(&west()).is_some_and(|o| o.meta.deletion.is_none())).await;
    assert_ne!(s.peer().meta.uid, uid);
}

#[tokio::test]
async fn clearing_finalizers_ends_what_was_deleted() {
    let mut s = Stand::new(&[("west.yaml", PEER)]).await;
    s.patch_finalizers(&west(), &["a.example/b"]).await.unwrap();
    fs::remove_file(s.manifest("west.yaml")).unwrap();
    s.until("the deletion", |s| s.peer().meta.deletion.is_some()).await;
    s.patch_finalizers(&west(), &[]).await.unwrap();
    s.until("the end", |s| s.objects.is_empty()).await;
    assert!(!s.folder.path().join("status/trustdomainpeers/west.yaml").exists());
    let s = s.restart().await;
    assert!(s.objects.is_empty());
}

#[tokio::test]
async fn what_cannot_be_read_keeps_what_was() {
    let two = format!("{PEER}---\n{}", PEER.replace("west", "north"));
    let mut s = Stand::new(&[("both.yaml", &two), ("other.yaml", &PEER.replace("west", "south"))]).await;
    assert_eq!(s.objects.len(), 3);
    let before = s.peer().clone();

    // One document breaks, the other changes.
    let broken =
        format!("kind: [\n---\n{}", PEER.replace("west.example", "x.example").replace("west", "north"));
    s.put("both.yaml", &broken);
    let north = ObjectKey::cluster(Kind::TrustDomainPeer, "north");
    let changed = north.clone();
    s.until("the readable document", |s| s.objects[&changed].meta.generation == 2).await;
    s.until("the report", |s| s.unreadable.len() == 1).await;
    assert_eq!(s.unreadable[0].path, s.manifest("both.yaml"));
    assert!(s.unreadable[0].message.contains("line 1"), "{}", s.unreadable[0].message);
    s.settle().await;
    assert_eq!(s.peer(), &before);

    // Over a restart too; and other files are free to go.
    let mut s = s.restart().await;
    assert_eq!(s.peer(), &before);
    fs::remove_file(s.manifest("other.yaml")).unwrap();
    s.until("the other's end", |s| s.objects.len() == 2).await;
    s.settle().await;
    assert_eq!(s.peer(), &before);

    // Mended without it: it is gone.
    s.put("both.yaml", &PEER.replace("west", "north"));
    s.until("the end of what was broken", |s| s.objects.keys().eq([&north])).await;
    s.until("no report", |s| s.unreadable.is_empty()).await;
}

#[tokio::test]
async fn a_missing_manifest_folder_deletes_nothing() {
    let mut s = Stand::new(&[("west.yaml", PEER)]).await;
    let (there, away) = (s.folder.path().join("manifests"), s.folder.path().join("away"));
    fs::rename(&there, &away).unwrap();
    s.until("the report", |s| !s.unreadable.is_empty()).await;
    assert!(s.objects.contains_key(&west()));
    fs::rename(&away, &there).unwrap();
    s.until("no report", |s| s.unreadable.is_empty()).await;
    s.settle().await;
    assert_eq!(s.log.iter().filter(|e| **e == Event::Deleted(west())).count(), 0);

    // As the machine comes up without the volume that they lie on; then with an empty folder in its place.
    fs::rename(&there, &away).unwrap();
    let mut s = s.restart().await;
    assert!(!there.exists());
    s.until("the report", |s| s.unreadable.iter().any(|u| u.path == there)).await;
    fs::create_dir(&there).unwrap();
    let is_doubted =
        |s: &Stand| s.unreadable.iter().any(|u| u.message.contains("is known: TrustDomainPeer west."));
    s.until("what is missing", is_doubted).await;
    s.settle().await;
    let mut s = s.restart().await;
    s.until("what is missing", is_doubted).await;
    s.settle().await;
    assert!(s.objects.contains_key(&west()) && is_doubted(&s), "{:?}", s.unreadable);

    // What is put there by the agent would make the rest look removed at the next start.
    let north = Object::desired(ObjectKey::cluster(Kind::TrustDomainPeer, "north"), json!({}));
    let refused = s.store.create_for_operator(&north).await.unwrap_err().to_string();
    assert!(refused.contains("at the first look"), "{refused}");
    assert!(fs::read_dir(&there).unwrap().next().is_none());

    // It comes back, and is removed by someone.
    fs::remove_dir(&there).unwrap();
    fs::rename(&away, &there).unwrap();
    s.until("no report", |s| s.unreadable.is_empty()).await;
    fs::remove_file(s.manifest("west.yaml")).unwrap();
    s.until("the end", |s| s.objects.is_empty()).await;
}

#[tokio::test]
async fn a_file_that_was_cut_off_or_has_a_mistyped_kind_removes_nothing() {
    let mut s = Stand::new(&[("west.yaml", PEER)]).await;
    for (text, why) in [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (&PEER.replace("TrustDomainPeer", "TrustDomainPear"), "has no kind TrustDomainPear"),
    ] {
        s.put("west.yaml", text);
        s.until("the report", |s| s.unreadable.iter().any(|u| u.message.contains(why))).await;
        s.settle().await;
        assert!(s.objects.contains_key(&west()), "{why}");
    }
    fs::remove_file(s.manifest("west.yaml")).unwrap();
    s.until("the end", |s| s.objects.is_empty()).await;
}

#[tokio::test]
async fn bad_documents_harm_only_themselves() {
    let bombs = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
    let head = "apiVersion: entente.dev/v1alpha1\nkind: TrustDomainPeer\n";
    let big = format!("{PEER}# {}", "x".repeat(1 << 20));
    let deep = format!("{head}metadata: {{name: deep}}\nspec: {}{}", "[".repeat(200), "]".repeat(200));
    let duplicate_key = format!("{head}metadata: {{name: twice}}\nspec: {{a: 1, a: 2}}");
    let label = format!("{head}metadata: {{name: label, labels: {{n: 1}}}}");
    let name = format!("{head}metadata: {{name: ../../etc}}");
    let namespace =
        "apiVersion: entente.dev/v1alpha1\nkind: FederatedService\nmetadata: {name: a, namespace: 7}";
    let mut s = Stand::new(&[
        ("a.yaml", PEER),
        ("b.yaml", PEER),
        ("bomb.yaml", bombs),
        ("big.yaml", &big),
        ("deep.yaml", &deep),
        ("key.yaml", &duplicate_key),
        ("label.yaml", &label),
        ("name.yaml", &name),
        ("namespace.yaml", namespace),
        ("list.yaml", "- 1\n"),
        ("json.json", "{\"kind\":"),
        (".hidden.yaml", "kind: ["),
        ("readme.md", "kind: ["),
        ("empty.yaml", "---\n# nothing\n---\n"),
    ])
    .await;
    s.until("the reports", |s| !s.unreadable.is_empty()).await;
    let reported: Vec<_> =
        s.unreadable.iter().map(|u| u.path.file_name().unwrap().to_str().unwrap()).collect();
    let expected = [
        "b.yaml",
        "big.yaml",
        "bomb.yaml",
        "deep.yaml",
        "json.json",
        "key.yaml",
        "label.yaml",
        "list.yaml",
        "name.yaml",
        "namespace.yaml",
    ];
    assert_eq!(reported, expected, "{:#?}", s.unreadable);
    assert!(s.unreadable[0].message.contains("a.yaml"), "{}", s.unreadable[0].message);
    assert_eq!(s.unreadable[6].key, Some(ObjectKey::cluster(Kind::TrustDomainPeer, "label")));
    assert_eq!(s.objects.keys().collect::<Vec<_>>(), [&west()]);
}

#[tokio::test]
async fn what_is_applied_is_written_once_and_in_order() {
    let mut s = Stand::new(&[]).await;
    let spec = json!({ "z": "on", "hosts": ["a"], "b": { "y": "1e3", "x": "null", "n": 1.5, "o": {}, "l": [] }, "v": "a: b\n#c", "w": "0x1F" });
    let made = s.store.apply(&entry("cart", spec.clone()), &Precondition::Absent).await.unwrap();
    assert_eq!(made.spec(), Some(&spec));
    s.until("it", |s| s.objects.contains_key(&made.key)).await;
    let path = s.folder.path().join("generated/serviceentries/shop_cart.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().filter(|l| !l.starts_with(' ')).collect();
    assert_eq!(lines, ["apiVersion: networking.istio.io/v1", "kind: ServiceEntry", "metadata:", "spec:"]);

    let files = [path.clone(), s.folder.path().join("status/serviceentries/shop_cart.yaml")];
    let stamps = || files.each_ref().map(|f| super::files::Stamp::of(f).unwrap());
    let before = stamps();
    let again = s.store.apply(&entry("cart", spec.clone()), &ours(&made)).await.unwrap();
    assert_eq!(again, made);
    s.settle().await;
    assert_eq!(stamps(), before, "neither the apply nor a scan wrote anything");
    assert_eq!(s.objects[&made.key], made);

    let changed = s.store.apply(&entry("cart", json!({ "hosts": ["b"] })), &ours(&made)).await.unwrap();
    assert_eq!((changed.meta.generation, changed.meta.uid), (2, made.meta.uid.clone()));
    assert_eq!(changed.body.get("spec"), Some(&json!({ "hosts": ["b"] })), "what is no more desired goes");

    // Someone edits what was made: it is seen.
    fs::write(&path, text.replace("- a", "- evil")).unwrap();
    let key = made.key.clone();
    s.until("the drift", |s| s.objects[&key].meta.generation == 3).await;
    let s = s.restart().await;
    assert_eq!(s.objects[&made.key].meta.uid, made.meta.uid);
}

#[tokio::test]
async fn preconditions_guard_every_write() {
    let mut s = Stand::new(&[("west.yaml", PEER)]).await;
    let desired = entry("cart", json!({}));
    let key = desired.key.clone();
    let stranger = Precondition::Ours { uid: "another".to_owned() };
    let gone = s.store.apply(&desired, &stranger).await.unwrap_err();
    assert!(matches!(gone, StoreError::Conflict { .. }), "{gone}");
    let made = s.store.apply(&desired, &Precondition::Absent).await.unwrap();
    let there = s.store.apply(&desired, &Precondition::Absent).await.unwrap_err();
    assert!(matches!(there, StoreError::AlreadyExists { .. }), "{there}");
    let other = s.store.apply(&desired, &stranger).await.unwrap_err();
    assert!(matches!(other, StoreError::Conflict { .. }), "{other}");
    for error in [
        s.store.delete(&key, "another").await.unwrap_err(),
        s.store.update_status(&key, "another", json!({})).await.unwrap_err(),
        s.store.patch_json(&key, "another", Vec::new()).await.unwrap_err(),
        s.store
            .patch_json(
                &key,
                &made.meta.resource_version,
                vec![PatchOp::Test { path: "/spec".to_owned(), value: json!(1) }],
            )
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    }
    assert_eq!(s.store.get(&key).await.unwrap(), Some(made.clone()));
    s.store.delete(&key, &made.meta.uid).await.unwrap();
    s.store.delete(&key, &made.meta.uid).await.unwrap();
    assert_eq!(s.store.get(&key).await.unwrap(), None);
    let missing = s.store.update_status(&key, &made.meta.uid, json!({})).await.unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }), "{missing}");

    // What a user's file defines is not ours to write, whatever is known of it.
    let peer = s.peer().clone();
    let mut theirs = peer.clone();
    theirs.body.insert("spec".to_owned(), json!({ "trustDomain": "evil.example" }));
    for precondition in [ours(&peer), Precondition::Adopt { uid: peer.meta.uid.clone() }] {
        let refused = s.store.apply(&theirs, &precondition).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Invalid { message, .. } if message.contains("manifests/west.yaml")),
            "{refused}"
        );
    }
    let op = PatchOp::Add { path: pointer(&["spec", "suspend"]), value: json!(true) };
    let refused = s.store.patch_json(&west(), &peer.meta.resource_version, vec![op]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Invalid { .. }), "{refused}");
    assert!(matches!(s.store.delete(&west(), &peer.meta.uid).await, Err(StoreError::Invalid { .. })));
    assert_eq!(fs::read_to_string(s.manifest("west.yaml")).unwrap(), PEER);
    let bad = Object::desired(ObjectKey::namespaced(Kind::ServiceEntry, "shop", "../x"), json!({}));
    assert!(matches!(s.store.apply(&bad, &Precondition::Absent).await, Err(StoreError::Invalid { .. })));
    s.settle().await;
}

#[tokio::test]
async fn a_patch_changes_a_part_of_what_was_made() {
    let s = Stand::new(&[("west.yaml", PEER)]).await;
    let desired = owned(entry("cart", json!({ "hosts": ["a"] })), s.peer());
    let made = s.store.apply(&desired, &Precondition::Absent).await.unwrap();
    let ops = vec![
        PatchOp::Test { path: "/spec/hosts".to_owned(), value: json!(["a"]) },
        PatchOp::Add { path: "/spec/hosts/-".to_owned(), value: json!("b") },
        PatchOp::Add { path: "/metadata/annotations".to_owned(), value: json!({}) },
        PatchOp::Add { path: pointer(&["metadata", "annotations", "a/b~c"]), value: json!("d") },
    ];
    let patched = s.store.patch_json(&made.key, &made.meta.resource_version, ops).await.unwrap();
    assert_eq!(patched.spec(), Some(&json!({ "hosts": ["a", "b"] })));
    assert_eq!(patched.meta.annotations["a/b~c"], "d");
    assert_eq!(patched.meta.owners, desired.meta.owners);
    let s = s.restart().await;
    assert_eq!(s.objects[&made.key], patched);
}

#[tokio::test]
async fn what_was_made_goes_with_its_last_owner() {
    let two = format!("{PEER}---\n{}", PEER.replace("west", "north"));
    let mut s = Stand::new(&[("both.yaml", &two)]).await;
    let north = s.objects[&ObjectKey::cluster(Kind::TrustDomainPeer, "north")].clone();
    let peer = s.peer().clone();
    let of_west =
        s.store.apply(&owned(entry("west", json!({})), &peer), &Precondition::Absent).await.unwrap();
    let of_both = owned(owned(entry("both", json!({})), &peer), &north);
    let of_both = s.store.apply(&of_both, &Precondition::Absent).await.unwrap();
    let of_entry =
        s.store.apply(&owned(entry("deep", json!({})), &of_west), &Precondition::Absent).await.unwrap();
    let of_none = s.store.apply(&entry("free", json!({})), &Precondition::Absent).await.unwrap();
    s.until("all of them", |s| s.objects.len() == 6).await;

    s.put("both.yaml", &PEER.replace("west", "north"));
    let (gone, deep) = (of_west.key.clone(), of_entry.key.clone());
    s.until("the end of both generations", |s| {
        !s.objects.contains_key(&gone) && !s.objects.contains_key(&deep)
    })
    .await;
    assert!(!s.folder.path().join("generated/serviceentries/shop_west.yaml").exists());
    s.settle().await;
    assert!(s.objects.contains_key(&of_both.key) && s.objects.contains_key(&of_none.key));
    let s = s.restart().await;
    assert_eq!(s.objects.keys().collect::<Vec<_>>(), [&north.key, &of_both.key, &of_none.key]);
}

#[tokio::test]
async fn an_owner_held_by_finalizers_keeps_what_it_owns() {
    let mut s = Stand::new(&[("west.yaml", PEER)]).await;
    s.patch_finalizers(&west(), &["a.example/b"]).await.unwrap();
    let peer = s.peer().clone();
    let made = s.store.apply(&owned(entry("cart", json!({})), &peer), &Precondition::Absent).await.unwrap();
    fs::remove_file(s.manifest("west.yaml")).unwrap();
    s.until("the deletion", |s| s.peer().meta.deletion.is_some()).await;
    s.settle().await;
    assert!(s.objects.contains_key(&made.key));
    s.patch_finalizers(&west(), &[]).await.unwrap();
    s.until("the end of both", |s| s.objects.is_empty()).await;
}

#[tokio::test]
async fn what_a_secret_holds_is_not_copied_about() {
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: shop}\ndata: {a: eA==}\nstringData: {b: hunter2}\n";
    let s = Stand::new(&[("s.yaml", secret), ("west.yaml", PEER)]).await;
    let key = ObjectKey::namespaced(Kind::Secret, "shop", "s");
    let read = s.store.get(&key).await.unwrap().unwrap();
    assert_eq!(read.body["data"], json!({ "a": "eA==", "b": "aHVudGVyMg==" }));
    assert!(s.folder.path().join("status/trustdomainpeers/west.yaml").exists());
    assert!(!s.folder.path().join("status/secrets").exists());
    let missing = ObjectKey::namespaced(Kind::Secret, "shop", "t");
    assert_eq!(s.store.get(&missing).await.unwrap(), None);

    let mut made = Object::desired(missing.clone(), json!({}));
    made.body = json!({ "data": { "c": "eA==" } }).as_object().unwrap().clone().into();
    s.store.apply(&made, &Precondition::Absent).await.unwrap();
    let metadata = fs::metadata(s.folder.path().join("generated/secrets/shop_t.yaml")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777, 0o600);
}

#[tokio::test]
async fn a_reader_changes_nothing() {
    let folder = TempDir::new().unwrap();
    fs::create_dir_all(folder.path().join("manifests")).unwrap();
    fs::write(folder.path().join("manifests/west.yaml"), PEER).unwrap();
    let store = Store::Directory(DirectoryStore::open_read_only(folder.path(), timings()));
    assert!(store.get(&west()).await.unwrap().is_some());
    let refused = store.apply(&entry("cart", json!({})), &Precondition::Absent).await.unwrap_err();
    assert!(matches!(refused, StoreError::Forbidden { .. }), "{refused}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["manifests"]);
}

#[tokio::test]
async fn a_reader_tells_of_records_that_it_cannot_read() {
    let s = Stand::new(&[("west.yaml", PEER)]).await;
    let Stand { folder, store, events, .. } = s;
    drop((store, events));
    let record = folder.path().join("status/trustdomainpeers/west.yaml");
    fs::write(&record, "kind: [").unwrap();
    // What holds the agent's keys is for its own user.
    let secrets = folder.path().join("generated/secrets");
    fs::create_dir_all(&secrets).unwrap();
    fs::write(secrets.join("shop_t.yaml"), "kind: [").unwrap();
    let store = Store::Directory(DirectoryStore::open_read_only(folder.path(), timings()));
    let mut events = store.watch(&[Kind::TrustDomainPeer]);
    let first = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    let Event::Unreadable(found) = &first else { panic!("{first:?}") };
    assert_eq!(found.iter().map(|unread| &unread.path).collect::<Vec<_>>(), [&record]);
}

#[tokio::test]
async fn a_reader_finds_nothing_wrong_with_manifests_alone() {
    let folder = TempDir::new().unwrap();
    fs::create_dir_all(folder.path().join("manifests")).unwrap();
    fs::write(folder.path().join("manifests/west.yaml"), PEER).unwrap();
    let store = Store::Directory(DirectoryStore::open_read_only(folder.path(), timings()));
    let mut events = store.watch(&[Kind::TrustDomainPeer]);
    let first = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    assert!(matches!(&first, Event::Reset { objects, .. } if objects.len() == 1), "{first:?}");
}

#[tokio::test]
async fn a_reader_is_told_that_there_are_no_manifests() {
    let folder = TempDir::new().unwrap();
    let store = Store::Directory(DirectoryStore::open_read_only(folder.path(), timings()));
    let mut events = store.watch(&[Kind::TrustDomainPeer]);
    let first = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    assert!(matches!(&first, Event::Unreadable(found) if found.len() == 1), "{first:?}");
}

#[tokio::test]
async fn two_processes_see_what_either_wrote() {
    let mut s = Stand::new(&[("west.yaml", PEER)]).await;
    let other = Store::Directory(DirectoryStore::open(s.folder.path(), timings()).unwrap());
    let uid = s.peer().meta.uid.clone();
    other.update_status(&west(), &uid, json!({ "by": "other" })).await.unwrap();
    let made = other.apply(&entry("cart", json!({})), &Precondition::Absent).await.unwrap();
    let key = made.key.clone();
    s.until("both writes", |s| s.objects.contains_key(&key) && s.peer().status().is_some()).await;
    assert_eq!(s.objects[&made.key], made);
}

#[tokio::test]
async fn one_leads_until_it_gives_up() {
    let s = Stand::new(&[]).await;
    let timings = LeaseTimings { retry: Duration::from_millis(50), ..LeaseTimings::default() };
    let first = s.store.lead("agent", &Replica::named("one"), timings);
    tokio::time::timeout(PATIENCE, first.leader().wait_for(Leader::is_us)).await.unwrap().unwrap();
    let second = s.store.lead("agent", &Replica::named("two"), timings);
    let mut leading = second.leader();
    let early =
        tokio::time::timeout(Duration::from_millis(200), leading.wait_for(Leader::is_us)).await.is_err();
    assert!(early, "two lead at once");
    first.release().await;
    tokio::time::timeout(PATIENCE, second.leader().wait_for(Leader::is_us)).await.unwrap().unwrap();
    assert!(second.leader().borrow().is_us());
}

#[tokio::test]
async fn a_peers_lease_tells_the_last_contact() {
    let s = Stand::new(&[]).await;
    assert_eq!(s.store.read_lease("peer-west").await.unwrap(), None);
    let lease = PeerLease {
        name: "peer-west".to_owned(),
        holder: "agent-0".to_owned(),
        duration: Duration::from_secs(30),
        labels: std::collections::BTreeMap::new(),
        owners: Vec::new(),
    };
    let before = crate::clock::now();
    s.store.touch_lease(&lease).await.unwrap();
    let read = s.store.read_lease("peer-west").await.unwrap().unwrap();
    assert_eq!((read.holder.as_deref(), read.duration), (Some("agent-0"), Duration::from_secs(30)));
    assert!(read.renewed.is_some_and(|at| at >= before));
}

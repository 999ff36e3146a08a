use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::Index;
use crate::model::object::Kind;
use crate::model::own::Identity;
use crate::model::world::Settings;
use crate::model::{Bundle, NamespacedName, SpiffeId, TrustDomain};
use crate::store::Event;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn object(kind: Kind, name: &str, spec: Value) -> Object {
    let key = if kind.is_namespaced() {
        ObjectKey::namespaced(kind, "shop", name)
    } else {
        ObjectKey::cluster(kind, name)
    };
    let mut object = Object::desired(key, spec);
    object.meta.uid = format!("uid-of-{name}");
    object.meta.created = Some(at(1));
    object
}

fn service() -> Object {
    let mut service = object(
        Kind::Service,
        "cart",
        json!({"selector": {"app": "cart"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}),
    );
    service.meta.labels.insert("export".to_owned(), "yes".to_owned());
    service
}

fn pod(web: u16, is_ready: bool) -> Object {
    let mut pod = object(
        Kind::Pod,
        "cart-1",
        json!({
            "serviceAccountName": "cart",
            "containers": [{"name": "app", "ports": [{"name": "web", "containerPort": web}]}],
        }),
    );
    pod.meta.labels.insert("app".to_owned(), "cart".to_owned());
    let status =
        json!({"conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" }}]});
    pod.body.insert("status".to_owned(), status);
    pod
}

fn what(kind: Kind, name: &str) -> Object {
    let mut spec = json!({
        "tlsMode": "IstioMtls",
        "exportedTrustDomains": ["east.example"],
        "clients": {"spiffeIDs": ["spiffe://east.example/*"]},
    });
    let (field, value) = match kind {
        Kind::FederatedService => ("serviceRef", json!({"name": "cart"})),
        _ => ("serviceSelector", json!({"matchLabels": {"export": "yes"}})),
    };
    spec[field] = value;
    object(kind, name, spec)
}

fn identity(own: &str) -> Option<Arc<Identity>> {
    let own = TrustDomain::new(own).unwrap();
    Some(Arc::new(Identity {
        id: SpiffeId::new(format!("spiffe://{own}/agent")).unwrap(),
        not_before: at(0),
        not_after: at(10_000),
        bundle: Arc::new(Bundle::new(own.clone(), [])),
        trust_domain: own,
        federated: BTreeMap::new(),
        malformed: BTreeMap::new(),
    }))
}

fn spire(id: &str) -> Option<Arc<SpireState>> {
    let entry = Entry {
        id: "e".to_owned(),
        spiffe_id: SpiffeId::new(id).unwrap(),
        selectors: ["k8s:pod-uid:uid-of-cart-1".to_owned()].into(),
        federates_with: BTreeSet::new(),
    };
    let entries = BTreeMap::from([(entry.id.clone(), entry)]);
    Some(Arc::new(SpireState { entries, ..SpireState::default() }))
}

/// An index that has read a FederatedService, its Service and a pod.
fn index() -> Index {
    let mut index = Index::new(Arc::new(Settings::standard()), at(0));
    index.identity(identity("west.example"));
    for object in [what(Kind::FederatedService, "cart"), service(), pod(8080, true)] {
        index.store(Event::Applied(object));
    }
    assert!(index.settle_exports());
    index
}

fn cart(index: &Index) -> Option<&Arc<crate::model::Service>> {
    index.world().services.get(&NamespacedName::new("shop", "cart"))
}

#[test]
fn what_decides_nothing_changes_nothing() {
    let mut index = index();
    let before = Arc::clone(cart(&index).unwrap());
    assert!(!index.settle_exports(), "nothing has come in");
    for event in [
        Event::Applied(pod(8080, false)),
        Event::Applied(service()),
        Event::Applied(what(Kind::FederatedService, "cart")),
    ] {
        index.store(event);
        assert!(!index.settle_exports());
    }
    assert!(Arc::ptr_eq(&before, cart(&index).unwrap()), "what is equal stays the same");
}

#[test]
fn each_change_is_followed() {
    let mut index = index();
    let by_account = "spiffe://west.example/ns/shop/sa/cart";
    let state = |index: &Index| {
        let service = cart(index)?;
        Some((service.ports[0].target_port, service.server_ids.first()?.to_string()))
    };
    assert_eq!(state(&index), Some((8080, by_account.to_owned())));
    index.store(Event::Applied(pod(9090, true)));
    assert!(index.settle_exports());
    assert_eq!(state(&index), Some((9090, by_account.to_owned())));
    index.spire(spire("spiffe://west.example/carts"));
    assert!(index.settle_exports());
    assert_eq!(state(&index), Some((9090, "spiffe://west.example/carts".to_owned())));
    index.spire(spire("spiffe://west.example/carts"));
    assert!(!index.settle_exports(), "the same entries, read again");
    index.store(Event::Deleted(service().key));
    assert!(index.settle_exports());
    assert!(cart(&index).is_none() && index.world().unresolved.len() == 1);
    index.store(Event::Applied(service()));
    index.settle_exports();
    index.store(Event::Deleted(pod(9090, true).key));
    index.settle_exports();
    assert!(cart(&index).is_none(), "nothing is out, so nothing is kept");
    index.store(Event::Deleted(what(Kind::FederatedService, "cart").key));
    assert!(index.settle_exports());
    assert!(index.world().unresolved.is_empty());
}

#[test]
fn a_rule_comes_and_goes() {
    let mut index = index();
    index.store(Event::Deleted(what(Kind::FederatedService, "cart").key));
    index.store(Event::Applied(what(Kind::ServiceExportRule, "all")));
    assert!(index.settle_exports());
    assert_eq!(cart(&index).unwrap().owner().name, "all");
    let mut bad = what(Kind::ServiceExportRule, "all");
    bad.body.insert("spec".to_owned(), json!({"tlsMode": "none"}));
    index.store(Event::Applied(bad));
    index.settle_exports();
    assert!(
        cart(&index).is_some() && index.world().rejected.len() == 1,
        "its last good version stays in use"
    );
    index.store(Event::Reset { kind: Kind::ServiceExportRule, objects: Vec::new() });
    assert!(index.settle_exports());
    assert!(cart(&index).is_none() && index.world().rejected.is_empty());
}

/// What is said of the trust domain that turns out to be ours is checked once that is known.
#[test]
fn who_we_are_changes_what_is_well_formed() {
    let mut index = index();
    index.identity(identity("east.example"));
    index.settle_exports();
    assert!(cart(&index).is_none());
    assert_eq!(index.world().rejected.len(), 1, "it is exported to our own trust domain");
}

#[test]
fn the_last_good_version_is_that_of_the_same_object() {
    let mut index = index();
    let mut bad = what(Kind::FederatedService, "cart");
    bad.body.insert("spec".to_owned(), json!({"tlsMode": "none"}));
    index.store(Event::Applied(bad.clone()));
    index.settle_exports();
    assert!(cart(&index).is_some(), "it was edited");
    bad.meta.uid = "another".to_owned();
    index.store(Event::Applied(bad));
    index.settle_exports();
    assert!(cart(&index).is_none(), "it was made anew");
    assert!(index.world().declared.is_empty());
}

#[test]
fn what_is_being_deleted_is_exported_no_more() {
    let deleted = |mut object: Object| {
        object.meta.deletion = Some(at(2));
        Event::Applied(object)
    };
    let declared = what(Kind::FederatedService, "cart");
    let mut malformed = declared.clone();
    malformed.body.insert("spec".to_owned(), json!({"tlsMode": "none"}));
    for object in [declared.clone(), malformed, service()] {
        let mut index = index();
        index.store(deleted(object));
        index.settle_exports();
        assert!(cart(&index).is_none());
    }
    let mut index = index();
    index.store(Event::Deleted(declared.key));
    index.store(Event::Applied(what(Kind::ServiceExportRule, "all")));
    index.settle_exports();
    assert!(cart(&index).is_some());
    index.store(deleted(service()));
    index.settle_exports();
    assert!(cart(&index).is_none(), "its Service is");
    index.store(Event::Applied(service()));
    index.settle_exports();
    assert!(cart(&index).is_some());
    index.store(deleted(what(Kind::ServiceExportRule, "all")));
    index.settle_exports();
    assert!(cart(&index).is_none(), "its rule is");
}

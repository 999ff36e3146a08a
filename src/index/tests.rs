use serde_json::json;

use super::*;

/// A gateway's Service, with these addresses of its load balancer.
fn gateway(addresses: &[&str]) -> Object {
    let key = ObjectKey::namespaced(Kind::Service, "istio-system", "istio-eastwestgateway");
    let spec = json!({
        "type": "LoadBalancer",
        "selector": {"istio": "eastwestgateway"},
        "ports": [{"name": "tls", "port": 15443}],
    });
    let mut object = Object::desired(key, spec);
    let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    object.body.insert("status".to_owned(), json!({"loadBalancer": {"ingress": ingress}}));
    object
}

#[test]
fn where_a_gateway_was_seen_is_kept_in_mind_while_nothing_says_it() {
    let mut index = Index::new(Arc::new(Settings::standard()), Timestamp::UNIX_EPOCH);
    let seen = |index: &Index| -> Vec<String> {
        index
            .world()
            .gateways_seen
            .values()
            .flatten()
            .map(|at| format!("{}:{}", at.address, at.port))
            .collect()
    };
    index.store(Event::Reset { kind: Kind::Service, objects: vec![gateway(&["192.0.2.9", "192.0.2.8"])] });
    assert_eq!(seen(&index), ["192.0.2.8:15443", "192.0.2.9:15443"]);
    index.store(Event::Applied(gateway(&["192.0.2.8"])));
    assert_eq!(seen(&index), ["192.0.2.8:15443"], "one that is gone is gone");
    index.store(Event::Applied(gateway(&[])));
    index.store(Event::Deleted(gateway(&[]).key));
    assert!(index.world().cluster_services.is_empty());
    assert_eq!(seen(&index), ["192.0.2.8:15443"]);
}

/// Without Istio nothing of it is waited for; with it, everything is.
#[test]
fn kinds_that_are_not_followed_are_not_waited_for() {
    for istio in [true, false] {
        let settings = Settings { istio, ..Settings::standard() };
        let watched = settings.watched();
        assert_eq!(watched.len(), if istio { Kind::WATCHED.len() } else { Kind::WATCHED.len() - 6 });
        let mut index = Index::new(Arc::new(settings), Timestamp::UNIX_EPOCH);
        for kind in watched {
            assert!(!index.world().is_read(), "{kind} was not waited for");
            index.store(Event::Reset { kind, objects: Vec::new() });
        }
        assert!(index.world().is_read());
    }
}

/// Of our own objects the status is known apart from them; of others', not at all.
#[test]
fn a_status_is_held_once() {
    let mut index = Index::new(Arc::new(Settings::standard()), Timestamp::UNIX_EPOCH);
    let with_status = |kind, status| {
        let mut object = Object::desired(ObjectKey::namespaced(kind, "shop", "cart"), json!({"a": 1}));
        object.body.insert("status".to_owned(), json!(status));
        object
    };
    for kind in [Kind::ImportedService, Kind::ServiceEntry] {
        let object = with_status(kind, "one");
        let key = object.key.clone();
        assert!(index.store(Event::Applied(object.clone())));
        assert!(!index.store(Event::Applied(object)), "nothing is new");
        assert!(!index.world().objects[&key].body.contains_key("status"));
        let is_ours = kind == Kind::ImportedService;
        assert_eq!(
            index.world().statuses.get(&key).map(|status| *status == json!("one").into()),
            is_ours.then_some(true)
        );
        assert_eq!(index.store(Event::Applied(with_status(kind, "two"))), is_ours);
        index.store(Event::Applied(Object::desired(key.clone(), json!({"a": 1}))));
        assert!(!index.world().statuses.contains_key(&key));
    }
}

#[test]
fn what_is_kept_small_is_whole_again() {
    let object = gateway(&["192.0.2.8"]);
    assert_eq!(Packed::of(&object).unpack(), object);
}

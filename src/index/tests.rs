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

/// Where the agent is told no class, any may be its spire-controller-manager's.
#[test]
fn registrations_of_another_class_are_another_controllers() {
    let of_class = |class: &str| {
        let key = ObjectKey::cluster(Kind::ClusterSpiffeId, "cart");
        Object::desired(key, json!({"className": class}))
    };
    for (ours, theirs, is_followed) in [("", "a", true), ("a", "", true), ("a", "a", true), ("a", "b", false)]
    {
        let settings = Settings { spire_class_name: ours.to_owned(), ..Settings::standard() };
        let mut index = Index::new(Arc::new(settings), Timestamp::UNIX_EPOCH);
        assert_eq!(index.store(Event::Applied(of_class(theirs))), is_followed, "{ours:?} {theirs:?}");
        assert_eq!(index.world().registrations.len(), usize::from(is_followed));
    }
    let settings = Settings { spire_class_name: "a".to_owned(), ..Settings::standard() };
    let mut index = Index::new(Arc::new(settings), Timestamp::UNIX_EPOCH);
    index.store(Event::Applied(of_class("a")));
    assert!(index.store(Event::Applied(of_class("b"))), "it is no longer ours");
    assert!(index.world().registrations.is_empty());
}

/// Deleted and made again before it is planned for, the peer is the same to who reads its bundle, which says nothing anew.
#[test]
fn a_peer_that_is_made_anew_has_the_bundle_that_was_read_for_it() {
    let named = |key: &str| {
        let spec = json!({
            "trustDomain": "east.example",
            "bundleEndpoint": {
                "url": "https://east.example/",
                "profile": {"type": "https_web"},
            },
            "agent": {"spiffeIDs": ["spiffe://east.example/ns/entente-system/sa/entente"]},
            "bootstrapBundle": {"configMapKeyRef": {"name": "east", "key": key}},
        });
        Object::desired(ObjectKey::cluster(Kind::TrustDomainPeer, "east"), spec)
    };
    let td = TrustDomain::new("east.example").unwrap();
    let mut index = Index::new(Arc::new(Settings::standard()), Timestamp::UNIX_EPOCH);
    index.store(Event::Applied(named("bundle")));
    let of = bootstrap::wanted(index.world())[&td].clone();
    let read = bootstrap::Read { of, found: Err("it is not there".to_owned()) };
    index.read_bootstraps(Bootstraps::from([(td.clone(), read)]));
    assert!(index.world().bootstraps.contains_key(&td));
    index.store(Event::Deleted(named("bundle").key));
    assert!(index.world().bootstraps.is_empty());
    index.store(Event::Applied(named("bundle")));
    assert!(index.world().bootstraps.contains_key(&td));
    index.store(Event::Applied(named("other")));
    assert!(index.world().bootstraps.is_empty(), "it was read of another place");
}

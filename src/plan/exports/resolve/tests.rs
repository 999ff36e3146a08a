use proptest::prelude::*;

use super::testing::{Cluster as _, cluster_service, declared, declared_port, entry, pod, port, rule};
use super::*;
use crate::model::cluster::{Pod, TargetPort, Transport};
use crate::model::object::ANNOTATION_SERVER_IDS;
use crate::model::peer::{LabelExpression, LabelSelector};
use crate::model::service::{AppProtocol, TlsMode};
use crate::plan::fixtures::{WorldExt as _, at, labels, world};

const BY_ACCOUNT: &str = "spiffe://west.example/ns/shop/sa/cart";
const OWN_PATH: &str = "spiffe://west.example/carts";

fn west() -> World {
    world("west.example").with_cluster_service(cluster_service("cart")).with_declared(declared())
}

fn cart() -> NamespacedName {
    NamespacedName::new("shop", "cart")
}

fn ids(world: &World) -> Vec<String> {
    world.services[&cart()].server_ids.iter().map(ToString::to_string).collect()
}

fn ports(world: &World) -> Vec<(String, u16, u16, AppProtocol)> {
    let ports = world.services[&cart()].ports.iter();
    ports.map(|port| (port.name.clone(), port.port, port.target_port, port.protocol)).collect()
}

fn reason(world: &World) -> &'static str {
    world.unresolved.get(&cart()).map_or("", |unresolved| unresolved.problem.reason.as_str())
}

fn noted(world: &World) -> Vec<&'static str> {
    world.notes.get(&cart()).into_iter().flatten().map(|note| note.reason.as_str()).collect()
}

/// What stands for `service` at `host` in the gateway, as an earlier plan wrote it.
fn alias(world: &World, service: Arc<Service>, host: &str) -> crate::model::Object {
    let export = crate::plan::exports::Export {
        service,
        host: host.to_owned(),
        to: BTreeSet::new(),
        gateways: Vec::new(),
        through: crate::plan::exports::Through {
            namespace: "istio-system".to_owned(),
            selector: BTreeMap::new(),
            listening: BTreeSet::new(),
        },
        direct: BTreeSet::new(),
        endpoints: Vec::new(),
        passes_tls: false,
        is_plain: false,
    };
    crate::plan::istio::export::alias(&world.settings, &export)
}

/// The world once the alias of the export was written.
fn out(mut world: World) -> World {
    let service = world.services[&cart()].clone();
    let mut object = alias(&world, service, "cart.shop.west.example");
    object.meta.uid = "alias".to_owned();
    world = world.with_object(object);
    world
}

#[test]
fn a_service_gives_its_pods_and_ports() {
    let world = west().with_pod(pod("one", "cart", Some(8080))).settled();
    let service = &world.services[&cart()];
    assert_eq!(service.workload_labels, labels(&[("app", "cart")]));
    assert_eq!(ports(&world), [("http".to_owned(), 80, 8080, AppProtocol::Http)]);
    assert_eq!(ids(&world), [BY_ACCOUNT]);
    assert!(noted(&world).is_empty() && world.unresolved.is_empty());
    let again = world.clone().settled();
    assert!(Arc::ptr_eq(&world.services[&cart()], &again.services[&cart()]), "what is equal stays the same");
}

#[test]
fn what_a_service_lacks_is_named() {
    type Edit = fn(&mut ClusterService);
    let table: [(&str, Edit); 5] = [
        ("ServiceHasNoSelector", |service| service.selector.clear()),
        ("ServiceHasNoSelector", |service| service.kind = ClusterServiceKind::ExternalName),
        ("NoTcpPort", |service| service.ports.clear()),
        ("NoTcpPort", |service| service.ports[0].transport = Transport::Udp),
        ("TargetPortUnknown", |service| {
            service.ports[0].target = TargetPort::Name("metrics".to_owned());
        }),
    ];
    for (expected, change) in table {
        let mut service = cluster_service("cart");
        change(&mut service);
        let world = west().with_cluster_service(service).with_pod(pod("one", "cart", Some(8080))).settled();
        assert_eq!(reason(&world), expected);
        assert!(world.services.is_empty());
        let message = &world.unresolved[&cart()].problem.message;
        assert!(message.starts_with("FederatedService shop/cart: "), "{message}");
    }
    let mut gone = west().with_pod(pod("one", "cart", Some(8080))).settled();
    gone.cluster_services.clear();
    let gone = out(gone).settled();
    assert_eq!(reason(&gone), "ServiceNotFound");
    assert!(gone.services.is_empty(), "also where it was out: somebody took the Service away");
}

#[test]
fn what_is_not_tcp_is_left_out_of_a_service_and_refused_by_name() {
    let mut service = cluster_service("cart");
    service.ports.push(port("dns", 53, TargetPort::Number(53)));
    service.ports[1].transport = Transport::Udp;
    let base = west().with_cluster_service(service).with_pod(pod("one", "cart", Some(8080)));
    let world = base.clone().settled();
    assert_eq!((ports(&world).len(), noted(&world)), (1, vec!["PortNotTcp"]));
    assert!(world.notes[&cart()][0].message.contains("53"), "{:?}", world.notes);
    for (number, expected) in [(53, "PortNotTcp"), (81, "PortNotFound"), (80, "")] {
        let mut declared = declared();
        declared.ports = vec![declared_port("tcp", number)];
        assert_eq!(reason(&base.clone().with_declared(declared).settled()), expected, "{number}");
    }
}

#[test]
fn a_port_says_what_it_speaks() {
    let mut service = cluster_service("cart");
    service.ports = vec![
        port("grpc-a", 1, TargetPort::Number(1)),
        port("web", 2, TargetPort::Number(2)),
        port("redis", 3, TargetPort::Number(3)),
    ];
    service.ports[1].app_protocol = Some("http".to_owned());
    service.ports[2].app_protocol = Some("redis.io/resp".to_owned());
    let all = |tls_mode, ports| {
        let mut declared = declared();
        (declared.tls_mode, declared.ports) = (tls_mode, ports);
        let world = west().with_cluster_service(service.clone()).with_declared(declared).settled();
        super::tests::ports(&world).into_iter().map(|port| port.3).collect::<Vec<_>>()
    };
    use AppProtocol as P;
    assert_eq!(all(TlsMode::IstioMtls, Vec::new()), [P::Grpc, P::Http, P::Tcp]);
    let mut given = vec![declared_port("http-x", 1), declared_port("x", 2), declared_port("https-x", 4)];
    given[2].target = Some(TargetPort::Number(9));
    assert_eq!(
        all(TlsMode::IstioMtls, given.clone()),
        [P::Grpc, P::Http, P::Https],
        "the Service's word first"
    );
    given[0].protocol = Some(P::Http2);
    given[2].name = "x".to_owned();
    assert_eq!(all(TlsMode::IstioMtls, given.clone()), [P::Http2, P::Http, P::Tcp]);
    assert_eq!(all(TlsMode::Mtls, given), [P::Http2, P::Http, P::Tls], "the application's own");
}

/// A port by name, while the pods that have it are replaced and go.
#[test]
fn a_named_port_stays_while_pods_churn() {
    let one = west().with_pod(pod("one", "cart", Some(8080))).settled();
    let target = |world: &World| super::tests::ports(world)[0].2;
    assert_eq!(target(&one), 8080);
    let both = |world: World| world.with_pod(pod("two", "cart", Some(9090)));
    assert_eq!(reason(&both(west().with_pod(pod("one", "cart", Some(8080)))).settled()), "TargetPortUnequal");
    let rolling = both(out(one)).settled();
    assert_eq!((target(&rolling), noted(&rolling)), (8080, vec!["TargetPortUnequal"]), "what is out stays");
    let mut rolled = rolling.clone();
    rolled.pods.remove(&NamespacedName::new("shop", "one"));
    let mut rolled = out(rolled.settled());
    assert_eq!((target(&rolled), noted(&rolled).len()), (9090, 0));
    rolled.pods.clear();
    let mut none = rolled.settled();
    assert_eq!(target(&none), 9090, "no pod tells otherwise");
    Arc::make_mut(none.objects.values_mut().next().unwrap()).meta.labels.clear();
    assert_eq!(reason(&none.settled()), "TargetPortUnknown", "an object that is not ours is not believed");
}

/// Where there is no Istio nothing is generated that would have it: the status of the FederatedService does.
#[test]
fn a_named_port_stays_by_the_status_without_istio() {
    let without_istio = |mut world: World| {
        world.absent.extend(Kind::WATCHED.into_iter().filter(|kind| kind.is_istio()));
        let settings = Arc::make_mut(&mut world.settings);
        (settings.serves_xds, settings.istio) = (true, false);
        world.spire = Some(Arc::default());
        world
    };
    let target = |world: &World| super::tests::ports(world)[0].2;
    let mut world = without_istio(west()).with_pod(pod("one", "cart", Some(8080))).settled();
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let status = crate::plan::plan(&world).statuses.remove(&key).unwrap().status;
    assert_eq!(status["targetPorts"], serde_json::json!([{"port": 80, "targetPort": 8080}]));
    world.statuses.insert(key.clone(), Arc::new(status));
    world.pods.clear();
    let mut none = world.settled();
    assert_eq!(target(&none), 8080, "no pod tells otherwise");
    none.statuses.remove(&key);
    assert_eq!(reason(&none.settled()), "TargetPortUnknown");
}

#[test]
fn server_ids_are_those_of_the_pods_entries() {
    let label = "k8s:pod-label:app:cart";
    let table: [(&[&str], &str); 9] = [
        (&["k8s:pod-uid:uid-of-one"], OWN_PATH),
        (&["k8s:ns:shop", "k8s:sa:cart"], OWN_PATH),
        (&["k8s:ns:shop"], OWN_PATH),
        (&[label], OWN_PATH),
        (&["k8s:pod-name:one", label], OWN_PATH),
        (&["k8s:ns:other", "k8s:sa:cart"], BY_ACCOUNT),
        (&["k8s:ns:shop", "k8s:sa:cart", "k8s:pod-label:app:web"], BY_ACCOUNT),
        (&["k8s:ns:shop", "k8s:container-image:cart:1"], BY_ACCOUNT),
        (&["unix:uid:1000"], BY_ACCOUNT),
    ];
    for (selectors, expected) in table {
        let entries = vec![entry(OWN_PATH, selectors), entry("spiffe://other.example/a", &[label])];
        let world = west().with_pod(pod("one", "cart", Some(1))).with_entries(entries).settled();
        assert_eq!(ids(&world), [expected], "{selectors:?}");
    }
    let mut given = declared();
    given.server_ids.insert(crate::plan::fixtures::id("spiffe://west.example/given"));
    let entries = vec![entry(OWN_PATH, &[label])];
    let world = west().with_declared(given).with_pod(pod("one", "cart", Some(1))).with_entries(entries);
    assert_eq!(ids(&world.settled()), ["spiffe://west.example/given"]);
}

/// Pods are replaced one by one, and SPIRE is read later than they come: the IDs do not change for it.
#[test]
fn server_ids_do_not_flap_while_pods_are_replaced() {
    let of = |pod: &str| format!("k8s:pod-uid:uid-of-{pod}");
    // By convention a new pod counts as what it will be; else it waits.
    for path in [BY_ACCOUNT, OWN_PATH] {
        let first =
            west().with_pod(pod("one", "cart", Some(1))).with_entries(vec![entry(path, &[&of("one")])]);
        let first = out(first.settled());
        assert_eq!(ids(&first), [path], "{path}");
        let surge = first.clone().with_pod(pod("two", "cart", Some(1))).settled();
        assert_eq!(ids(&surge), [path], "{path}: one without an entry yet");
        let mut replaced = surge;
        replaced.pods.remove(&NamespacedName::new("shop", "one"));
        let replaced = replaced.settled();
        assert_eq!(ids(&replaced), [path], "{path}: nobody has an entry");
        let known = replaced.with_entries(vec![entry(path, &[&of("two")])]).settled();
        assert_eq!(ids(&known), [path], "{path}");
        let mut none = known;
        none.pods.clear();
        assert_eq!(ids(&none.settled()), [path], "{path}: scaled to nothing");
    }
    // Another account: both are pinned while both serve, and the new one before SPIRE was read again.
    let mut moved = pod("two", "cart", Some(1));
    moved.service_account = "cart-v2".to_owned();
    let first =
        west().with_pod(pod("one", "cart", Some(1))).with_entries(vec![entry(BY_ACCOUNT, &[&of("one")])]);
    let mut both = out(first.settled()).with_pod(moved).settled();
    assert_eq!(ids(&both), [BY_ACCOUNT, "spiffe://west.example/ns/shop/sa/cart-v2"]);
    both.pods.remove(&NamespacedName::new("shop", "one"));
    let after = both.with_entries(vec![entry("spiffe://west.example/ns/shop/sa/cart-v2", &[&of("two")])]);
    assert_eq!(ids(&after.settled()), ["spiffe://west.example/ns/shop/sa/cart-v2"]);
}

#[test]
fn without_a_pod_no_id_is_made_up() {
    let mut given = declared();
    given.ports = vec![declared_port("tcp", 80)];
    given.ports[0].target = Some(TargetPort::Number(1));
    let world = west().with_declared(given).settled();
    assert!(ids(&world).is_empty(), "the export says NoServerIds");
}

#[test]
fn more_ids_than_importers_take_are_refused() {
    let mut world = west();
    let mut entries = Vec::new();
    for number in 0..=limits::SERVER_IDS {
        world = world.with_pod(pod(&format!("p{number}"), "cart", Some(1)));
        let uid = format!("k8s:pod-uid:uid-of-p{number}");
        entries.push(entry(&format!("spiffe://west.example/p{number}"), &[&uid]));
    }
    assert_eq!(reason(&world.with_entries(entries).settled()), "TooManyServerIds");
}

#[test]
fn what_is_out_is_known_by_the_alias_alone() {
    let world = out(west().with_pod(pod("one", "cart", Some(8080))).settled());
    let alias = world.objects.values().next().unwrap();
    assert_eq!(alias.meta.annotations[ANNOTATION_SERVER_IDS], BY_ACCOUNT);
}

fn with_rules(rules: Vec<ExportRule>) -> World {
    let mut world = world("west.example").with_cluster_service(cluster_service("cart")).with_pod(pod(
        "one",
        "cart",
        Some(8080),
    ));
    world.namespaces.insert("shop".to_owned(), labels(&[("team", "shop")]));
    rules.into_iter().fold(world, World::with_rule)
}

fn skipped(world: &World, service: &NamespacedName, rule: &str) -> &'static str {
    world.skipped.get(service).and_then(|rules| rules.get(rule)).map_or("", |note| note.reason.as_str())
}

#[test]
fn a_rule_exports_what_it_selects() {
    let world = with_rules(vec![rule("a", -10)]).settled();
    let service = &world.services[&cart()];
    assert_eq!(service.by, ExportedBy::Rule { name: "a".to_owned(), uid: "uid-of-a".to_owned() });
    assert_eq!((service.created, service.generation), (Some(at(-10)), 0), "since both are there");
    assert_eq!(ports(&world), [("http".to_owned(), 80, 8080, AppProtocol::Http)]);
    assert!(world.skipped.is_empty());

    let expression =
        |expression| LabelSelector { match_expressions: vec![expression], ..LabelSelector::default() };
    let team = |values: &[&str]| {
        LabelExpression::In("team".to_owned(), values.iter().map(|v| (*v).to_owned()).collect())
    };
    type Change = fn(&mut ExportRule, LabelSelector);
    let on_namespace: Change = |rule, selector| rule.namespaces = selector;
    let on_service: Change = |rule, selector| rule.services = selector;
    for (change, selector, selects) in [
        (on_namespace, expression(team(&["shop", "x"])), true),
        (on_namespace, expression(team(&["x"])), false),
        (on_namespace, expression(LabelExpression::DoesNotExist("team".to_owned())), false),
        (on_namespace, expression(LabelExpression::Exists(LABEL_NAMESPACE.to_owned())), true),
        (on_service, expression(LabelExpression::Exists("export".to_owned())), true),
        (
            on_service,
            expression(LabelExpression::NotIn("export".to_owned(), ["true".to_owned()].into())),
            false,
        ),
        (on_service, LabelSelector::default(), true),
    ] {
        let mut changed = rule("a", -10);
        change(&mut changed, selector.clone());
        let world = with_rules(vec![changed]).settled();
        assert_eq!(world.services.contains_key(&cart()), selects, "{selector:?}");
    }
}

#[test]
fn the_older_of_two_rules_wins() {
    let world = with_rules(vec![rule("a", -10), rule("b", -20)]).settled();
    assert!(matches!(&world.services[&cart()].by, ExportedBy::Rule { name, .. } if name == "b"));
    assert_eq!(skipped(&world, &cart(), "a"), "LeftToOlderRule");
    assert!(world.skipped[&cart()]["a"].message.contains("ServiceExportRule b"));
}

/// By its name, by the name that it gives, by the Service that it names; while it comes to nothing, and while it cannot be read.
#[test]
fn a_federated_service_wins_over_a_rule() {
    let base = || with_rules(vec![rule("a", -100)]);
    let named = |object: &str, name: &str, service: &str| {
        let mut declared = declared();
        declared.object.name = object.to_owned();
        declared.name = ServiceName::new("shop", name).unwrap();
        declared.backing = Backing::Service(service.to_owned());
        declared
    };
    for (declared, wins) in [
        (named("cart", "x", "none"), true),
        (named("x", "cart", "none"), true),
        (named("x", "x", "cart"), true),
        (named("x", "x", "none"), false),
    ] {
        let world = base().with_declared(declared.clone()).settled();
        let expected = if wins { "LeftToFederatedService" } else { "" };
        assert_eq!(skipped(&world, &cart(), "a"), expected, "{declared:?}");
        let by_rule = world.services.get(&cart()).is_some_and(|s| s.by != ExportedBy::FederatedService);
        assert_eq!(by_rule, !wins);
    }
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let world = base().with_rejected(key, None).settled();
    assert_eq!(skipped(&world, &cart(), "a"), "LeftToFederatedService");
}

#[test]
fn a_rule_keeps_away_from_what_is_not_the_users() {
    let mut all = rule("a", -10);
    all.services = LabelSelector::default();
    for namespace in ["kube-system", "istio-system", "entente-system"] {
        let mut service = cluster_service("cart");
        service.object.namespace = namespace.to_owned();
        let name = service.object.clone();
        let mut world = with_rules(vec![all.clone()]).with_cluster_service(service);
        world.namespaces.insert(namespace.to_owned(), BTreeMap::new());
        let world = world.settled();
        assert_eq!(skipped(&world, &name, "a"), "SystemNamespace", "{namespace}");
        assert_eq!(world.services.len(), 1);
    }
    let mut kubernetes = cluster_service("kubernetes");
    kubernetes.selector.clear();
    let name = kubernetes.object.clone();
    let world = with_rules(vec![all]).with_cluster_service(kubernetes).settled();
    assert_eq!(skipped(&world, &name, "a"), "ServiceHasNoSelector");
    assert_eq!(world.services.len(), 1, "one that cannot be exported harms only itself");
}

fn any_pod() -> impl Strategy<Value = Pod> {
    ("[a-d]", prop_oneof![Just("cart"), Just("web")], proptest::option::of(1..4_u16), "[x-z]").prop_map(
        |(name, app, web, account)| {
            let mut pod = pod(&name, app, web);
            pod.service_account = account;
            pod
        },
    )
}

proptest! {
    /// It does not matter in which order things were learned, nor what was there in between.
    #[test]
    fn the_way_does_not_matter(
        pods in proptest::collection::vec(any_pod(), 0..6),
        rules in proptest::collection::vec(("[a-c]", -20..0_i64), 0..3),
        with_declared in any::<bool>(),
        passing in any_pod(),
        entries in proptest::collection::vec(("[a-d]", "[p-q]"), 0..4),
    ) {
        let base = || {
            let base = world("west.example").with_cluster_service(cluster_service("cart"))
                .with_cluster_service(cluster_service("web"));
            if with_declared { base.with_declared(declared()) } else { base }
        };
        let entries: Vec<_> = entries.iter().map(|(pod, path)| {
            entry(&format!("spiffe://west.example/{path}"), &[&format!("k8s:pod-uid:uid-of-{pod}")])
        }).collect();
        let mut distinct: BTreeMap<NamespacedName, Pod> = BTreeMap::new();
        distinct.extend(pods.into_iter().map(|pod| (pod.object.clone(), pod)));
        let rules: BTreeMap<String, i64> = rules.into_iter().collect();
        let mut at_once = base().with_entries(entries.clone());
        for pod in distinct.values() {
            at_once = at_once.with_pod(pod.clone());
        }
        for (name, created) in &rules {
            at_once = at_once.with_rule(rule(name, *created));
        }
        let at_once = at_once.settled();

        let mut step_by_step = base().with_pod(passing.clone()).settled();
        step_by_step.pods.clear();
        for (name, created) in rules.iter().rev() {
            step_by_step = step_by_step.with_rule(rule(name, *created)).settled();
        }
        for pod in distinct.values().rev() {
            step_by_step = step_by_step.with_pod(pod.clone()).settled();
        }
        let step_by_step = step_by_step.with_entries(entries).settled();
        prop_assert_eq!(&at_once.services, &step_by_step.services);
        prop_assert_eq!(&at_once.unresolved, &step_by_step.unresolved);
        prop_assert_eq!(&at_once.notes, &step_by_step.notes);
        prop_assert_eq!(&at_once.skipped, &step_by_step.skipped);
    }
}

#[test]
fn no_rule_exports_a_gateway_of_the_mesh() {
    let gateway = |edit: fn(&mut ClusterService)| {
        let mut service = cluster_service("gateway");
        edit(&mut service);
        let name = service.object.clone();
        let mut world = with_rules(vec![rule("a", -10)]).with_cluster_service(service);
        let settings = Arc::make_mut(&mut world.settings);
        settings.ingress_gateway = "shop/in=front".parse().unwrap();
        let world = world.settled();
        skipped(&world, &name, "a").to_owned()
    };
    assert_eq!(
        gateway(|s| s.labels.extend(labels(&[("in", "front")]))),
        "GatewayService",
        "the one that is looked for"
    );
    assert_eq!(gateway(|s| s.selector = labels(&[("istio", "eastwestgateway")])), "GatewayService");
    let of_api = labels(&[("gateway.networking.k8s.io/gateway-name", "front")]);
    assert_eq!(of_api.len(), 1);
    assert_eq!(
        gateway(|s| s.selector = labels(&[("gateway.networking.k8s.io/gateway-name", "front")])),
        "GatewayService"
    );
    assert_ne!(gateway(|_| ()), "GatewayService");
}

/// A Service may be told of before its namespace: a selector that wants a label not to be there would hold until then.
#[test]
fn a_rule_waits_for_the_labels_of_a_namespace() {
    let mut unless = rule("a", -10);
    unless.namespaces.match_expressions = vec![LabelExpression::DoesNotExist("private".to_owned())];
    let mut world = with_rules(vec![unless]);
    world.namespaces = BTreeMap::from([("default".to_owned(), BTreeMap::new())]);
    assert!(world.clone().settled().services.is_empty(), "not known yet");
    world.namespaces.insert("shop".to_owned(), labels(&[("private", "")]));
    assert!(world.clone().settled().services.is_empty());
    world.namespaces.insert("shop".to_owned(), BTreeMap::new());
    assert_eq!(world.clone().settled().services.len(), 1);
    world.namespaces.clear();
    assert_eq!(world.settled().services.len(), 1, "a directory has none");
}

/// A Job's pod with the labels of the servers neither adds its ID, nor takes theirs away while none of them is there.
#[test]
fn pods_that_do_not_serve_have_no_say_in_the_servers_ids() {
    let with = |account: &str, edit: fn(&mut Pod)| {
        let mut pod = pod("other", "cart", Some(8080));
        pod.service_account = account.to_owned();
        edit(&mut pod);
        pod
    };
    let job: fn(&mut Pod) =
        |pod| drop(pod.labels.insert("batch.kubernetes.io/job-name".to_owned(), "seed".to_owned()));
    let bare: fn(&mut Pod) = |pod| pod.has_sidecar = false;
    for edit in [job, bare] {
        let both = west().with_pod(pod("one", "cart", Some(8080))).with_pod(with("seed", edit)).settled();
        assert_eq!(ids(&both), [BY_ACCOUNT]);
        let mut alone = out(both);
        alone.pods.remove(&NamespacedName::new("shop", "one"));
        assert_eq!(ids(&alone.settled()), [BY_ACCOUNT], "as while there is no pod");
    }
    let first = west().with_pod(with("seed", job)).settled();
    assert_eq!(ids(&first), ["spiffe://west.example/ns/shop/sa/seed"], "where there is nothing else");
}

/// A FederatedService of another name that was malformed at the start: what it exported is known by what stands.
#[test]
fn no_rule_takes_over_what_an_unreadable_service_exports() {
    let mut declared = declared();
    declared.object.name = "front".to_owned();
    declared.name = ServiceName::new("shop", "basket").unwrap();
    let readable = with_rules(vec![rule("a", -100)]).with_declared(declared).settled();
    let host = "basket.shop.west.example";
    let service = readable.services[&NamespacedName::new("shop", "front")].clone();
    let mut alias = alias(&readable, service, host);
    alias.meta.uid = "alias".to_owned();
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "front");
    let unread = with_rules(vec![rule("a", -100)]).with_object(alias).with_rejected(key, None).settled();
    assert_eq!(skipped(&unread, &cart(), "a"), "LeftToFederatedService", "{:?}", unread.services);
    assert!(unread.services.is_empty());
}

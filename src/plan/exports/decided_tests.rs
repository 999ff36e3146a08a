use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::v1alpha1::conditions::ExportedReason;
use crate::model::mesh::Seen;
use crate::model::object::Kind;
use crate::model::service::{ExportedBy, GatewayType, TlsMode};
use crate::model::trust::SpireState;
use crate::plan::exports::policy;
use crate::plan::exports::resolve::testing::declared;
use crate::plan::fixtures::{
    WorldExt as _, at, client, foreign, gateway, labels, mesh, peer, pod, service, service_of_gateway, td,
    world,
};
use crate::plan::{istio, plan, plan_anew};

/// Something that happens. What is numbered is a service, and what concerns it.
#[derive(Clone, Debug)]
enum Step {
    Service {
        number: u8,
        port: u16,
        to: u8,
        is_mtls: bool,
        has_gateway: bool,
        age: i64,
        labels: u8,
    },
    NoService(u8),
    Unresolved(u8),
    Noted(u8),
    ByRule(u8),
    Pod {
        number: u8,
        what: u8,
    },
    /// The gateway of the mesh: none, or one without an address, or with one of two.
    Gateway(u8),
    Peer {
        name: u8,
        what: u8,
    },
    /// Something of someone else's that has to do with a service comes or goes.
    Foreign {
        number: u8,
        what: u8,
        is_old: bool,
    },
    /// Its policy cannot be written, or can again.
    Failing(u8),
    /// It cannot be read, or can again.
    Rejected(u8),
    Aliased(bool),
    Absent(bool),
    Written,
    StatusesWritten,
    /// Someone deletes or takes over what was written for it.
    Drift {
        number: u8,
        what: u8,
    },
}

const PEERS: [&str; 2] = ["east.example", "north.example"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = || 0..4_u8;
    let service = (number(), 1..4_u16, 0..3_u8, any::<bool>(), any::<bool>(), 0..3_i64, 0..4_u8);
    let service = service.prop_map(|(number, port, to, is_mtls, has_gateway, age, labels)| Step::Service {
        number,
        port,
        to,
        is_mtls,
        has_gateway,
        age,
        labels,
    });
    let step = prop_oneof![
        6 => service,
        1 => number().prop_map(Step::NoService),
        1 => number().prop_map(Step::Unresolved),
        1 => number().prop_map(Step::Noted),
        1 => number().prop_map(Step::ByRule),
        3 => (number(), 0..5_u8).prop_map(|(number, what)| Step::Pod { number, what }),
        2 => (0..4_u8).prop_map(Step::Gateway),
        3 => (0..2_u8, 0..5_u8).prop_map(|(name, what)| Step::Peer { name, what }),
        3 => (number(), 0..5_u8, any::<bool>())
            .prop_map(|(number, what, is_old)| Step::Foreign { number, what, is_old }),
        1 => number().prop_map(Step::Failing),
        1 => number().prop_map(Step::Rejected),
        1 => any::<bool>().prop_map(Step::Aliased),
        1 => any::<bool>().prop_map(Step::Absent),
        6 => Just(Step::Written),
        2 => Just(Step::StatusesWritten),
        2 => (number(), 0..6_u8).prop_map(|(number, what)| Step::Drift { number, what }),
    ];
    proptest::collection::vec(step, 1..30)
}

/// Two are in each of two namespaces.
fn named(number: u8) -> NamespacedName {
    let namespace = if number < 2 { "shop" } else { "store" };
    NamespacedName::new(namespace, format!("service-{number}"))
}

fn toggle<K: Ord, V>(all: &mut BTreeMap<K, V>, key: K, value: V) {
    if all.remove(&key).is_none() {
        all.insert(key, value);
    }
}

/// The keys of all that may be generated for a service, whatever its mode.
fn keys(number: u8) -> Vec<ObjectKey> {
    let name = named(number);
    let mut service = service(&name.namespace, &name.name, PEERS[0]);
    let host = service.name.host(&td("west.example")).unwrap();
    let mut keys = vec![policy::key(&service)];
    for mode in [TlsMode::IstioMtls, TlsMode::Mtls] {
        service.tls_mode = mode;
        keys.extend(istio::export::keys(&service, &host));
    }
    keys.push(ObjectKey { kind: Kind::PeerAuthentication, ..policy::key(&service) });
    keys
}

fn a_service(world: World, step: &Step) -> World {
    let Step::Service { number, port, to, is_mtls, has_gateway, age, labels: of } = step else {
        return world;
    };
    let name = named(*number);
    let mut service = service(&name.namespace, &name.name, PEERS[usize::from(to % 2)]);
    if *to == 2 {
        service.exported_to = PEERS.map(td).into();
        service.clients = PEERS.map(|peer| client(&format!("spiffe://{peer}/ns/shop/sa/client"))).into();
    }
    service.ports[0].target_port = *port;
    service.created = Some(at(*age));
    if *is_mtls {
        service.tls_mode = TlsMode::Mtls;
        service.gateways[0].gateway_type = GatewayType::IngressGateway;
    }
    if !has_gateway {
        service.gateways.clear();
    }
    if *of == 0 {
        // With the other of its namespace it contends for pods.
        service.workload_labels = labels(&[("tier", "web")]);
    }
    world.with_service(service)
}

fn of_others(number: u8, what: u8, is_old: bool) -> crate::model::Object {
    let name = named(number);
    let host = format!("{}.{}.west.example", name.name, name.namespace);
    let select = json!({"matchLabels": {"app": name.name}});
    let theirs = format!("theirs-{number}");
    let namespace = name.namespace.as_str();
    let tls = |mode: &str| {
        json!({"servers": [{
            "port": {"number": 15_443}, "tls": {"mode": mode}, "hosts": [format!("*/{host}")],
        }]})
    };
    let mut object = match what {
        0 => foreign(Kind::Gateway, namespace, &theirs, tls("AUTO_PASSTHROUGH")),
        1 => foreign(Kind::Gateway, namespace, &theirs, tls("PASSTHROUGH")),
        2 => foreign(Kind::VirtualService, "else", &theirs, json!({"hosts": [host], "gateways": ["g"]})),
        3 => foreign(Kind::AuthorizationPolicy, namespace, &theirs, json!({"selector": select})),
        _ => foreign(Kind::PeerAuthentication, namespace, &theirs, json!({"selector": select})),
    };
    object.meta.created = Some(at(if is_old { -10 } else { 10 }));
    object
}

fn a_peer(mut world: World, name: u8, what: u8) -> World {
    let name = PEERS[usize::from(name)];
    let mut peer = peer(name);
    match what {
        0 => {
            world.peers.remove(&td(name));
            return world;
        }
        1 => peer.direct_endpoints = true,
        2 => peer.deletion = Some(at(1)),
        3 => {
            world.peers.remove(&td(name));
            let key = ObjectKey::cluster(Kind::TrustDomainPeer, name);
            let is_there = world.rejected.remove(&key).is_some();
            return if is_there { world } else { world.with_rejected(key, Some(name)) };
        }
        _ => peer.resource_version = "7".to_owned(),
    }
    world.with_peer(peer)
}

fn a_pod(mut world: World, number: u8, what: u8) -> World {
    let name = named(number);
    let ip = format!("10.1.0.{number}");
    let mut pod = pod(&name.namespace, &name.name, &ip, &[("app", &name.name), ("tier", "web")]);
    match what {
        0 => {
            world.pods.remove(&pod.object);
            return world;
        }
        1 => {}
        2 => pod.has_spire_socket = false,
        3 => pod.has_sidecar = false,
        _ => pod.is_ready = false,
    }
    world.with_pod(pod)
}

fn drifted(mut world: World, number: u8, what: u8) -> World {
    let keys = keys(number);
    let Some(key) = keys.get(usize::from(what)) else { return world };
    if let Some(object) = world.objects.get_mut(key) {
        let object = Arc::make_mut(object);
        if what.is_multiple_of(2) {
            object.meta.labels.clear();
        } else {
            world.objects.remove(key);
        }
    }
    world
}

fn a_gateway(mut world: World, what: u8) -> World {
    let none: &[&str] = &[];
    for name in ["istio-eastwestgateway", "istio-ingressgateway"] {
        let addresses = [none, none, &["203.0.113.1"], &["203.0.113.2"]][usize::from(what)];
        let gateway = service_of_gateway(name, addresses);
        match what {
            0 => drop(world.cluster_services.remove(&gateway.object)),
            _ => world = world.with_cluster_service(gateway),
        }
    }
    if what == 3 {
        let seen = [gateway("203.0.113.2", 15_443)].into();
        world.gateways_seen.insert(GatewayType::EastWestGateway, seen);
    }
    world
}

fn after(mut world: World, step: &Step, planned: &crate::plan::Plan) -> World {
    match step {
        Step::Service { .. } => return a_service(world, step),
        Step::NoService(number) => drop(world.services.remove(&named(*number))),
        Step::Unresolved(number) => {
            let name = named(*number);
            let mut declared = declared();
            (declared.object, declared.exported_to) = (name.clone(), [td(PEERS[0])].into());
            declared.name = crate::model::ServiceName::new(&name.namespace, &name.name).unwrap();
            let problem = Note { reason: ExportedReason::ServiceNotFound, message: "gone".to_owned() };
            world.services.remove(&name);
            let unresolved = Unresolved { declared: Arc::new(declared), problem };
            toggle(&mut world.unresolved, name, Arc::new(unresolved));
        }
        Step::Noted(number) => {
            let note = Note { reason: ExportedReason::ServiceNotFound, message: "noted".to_owned() };
            toggle(&mut world.notes, named(*number), vec![note]);
        }
        Step::ByRule(number) => {
            if let Some(service) = world.services.get_mut(&named(*number)) {
                let by = ExportedBy::Rule { name: "all".to_owned(), uid: "uid".to_owned() };
                Arc::make_mut(service).by = by;
            }
        }
        Step::Pod { number, what } => return a_pod(world, *number, *what),
        Step::Gateway(what) => return a_gateway(world, *what),
        Step::Peer { name, what } => return a_peer(world, *name, *what),
        Step::Foreign { number, what, is_old } => {
            let object = of_others(*number, *what, *is_old);
            toggle(&mut world.objects, object.key.clone(), Arc::new(object));
        }
        Step::Failing(number) => {
            let key = keys(*number).remove(0);
            toggle(Arc::make_mut(&mut world.failures), key, "no".to_owned());
        }
        Step::Rejected(number) => {
            let name = named(*number);
            let key = ObjectKey::namespaced(Kind::FederatedService, &name.namespace, &name.name);
            let is_there = world.rejected.remove(&key).is_some();
            return if is_there { world } else { world.with_rejected(key, None) };
        }
        Step::Aliased(is) => {
            let mut mesh = mesh("west.example");
            if let Seen::There(config) = &mut mesh.config {
                config.aliases.extend(is.then(|| td("north.example")));
            }
            world.mesh = Some(Arc::new(mesh));
        }
        Step::Absent(is) => {
            let kind = Kind::VirtualService;
            if *is {
                world.absent.insert(kind)
            } else {
                world.absent.remove(&kind)
            };
        }
        Step::Written => {
            let written = planned.writes.iter().map(|(key, write)| (key.clone(), Arc::clone(&write.object)));
            world = world.with_written(&written.collect(), &[]);
            for key in planned.prune.keys() {
                world.objects.remove(key);
            }
        }
        Step::StatusesWritten => {
            let statuses = planned.statuses.iter();
            world.statuses.extend(statuses.map(|(key, write)| (key.clone(), Arc::new(write.status.clone()))));
        }
        Step::Drift { number, what } => return drifted(world, *number, *what),
    }
    world
}

fn at_first(has_fence: bool) -> World {
    let mut world = world("west.example").with_peer(peer(PEERS[0]));
    Arc::make_mut(&mut world.settings).fence = has_fence;
    world.spire = Some(Arc::new(SpireState::default()));
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn what_is_remembered_is_what_would_be_decided(steps in steps(), has_fence in proptest::bool::weighted(0.1)) {
        let (mut world, mut memo) = (at_first(has_fence), Memo::default());
        let mut planned = plan_anew(&world, &mut memo);
        for step in &steps {
            world = after(world, step, &planned);
            let decided = crate::plan::exports::decide(&world, &mut memo);
            let anew = crate::plan::exports::exports(&world);
            prop_assert!(decided == anew, "after {step:?}: {decided:#?} is not {anew:#?}");
            planned = plan_anew(&world, &mut memo);
            memo.share(&mut world);
            prop_assert!(planned == plan(&world), "after {step:?}");
        }
    }
}

#[test]
fn one_change_among_many_has_decided_on_what_it_changes() {
    let mut world = at_first(false);
    for number in 0..50 {
        world = world.with_service(service("shop", &format!("service-{number}"), PEERS[0]));
    }
    let mut memo = Memo::default();
    for _ in 0..4 {
        let planned = plan_anew(&world, &mut memo);
        world = after(world, &Step::Written, &planned);
        world = after(world, &Step::StatusesWritten, &planned);
    }
    let _ = plan_anew(&world, &mut memo);
    let mut made = memo.decided.made;
    let mut decided = |world: &World, memo: &mut Memo| {
        let _ = plan_anew(world, memo);
        memo.decided.made - std::mem::replace(&mut made, memo.decided.made)
    };
    assert_eq!(decided(&world, &mut memo), 0, "nothing has changed");
    let mut changed = service("shop", "service-7", PEERS[0]);
    changed.ports[0].target_port += 1;
    let world = world.with_service(changed);
    assert_eq!(decided(&world, &mut memo), 1);
    let world = world.with_pod(pod("shop", "pod", "10.1.0.1", &[("app", "service-3")]));
    assert_eq!(decided(&world, &mut memo), 1, "whose pod it is");
    let world = world.with_object(of_others(1, 0, true));
    assert_eq!(decided(&world, &mut memo), 50, "any host may be named by it");
    let mut another = peer(PEERS[0]);
    another.resource_version = "another".to_owned();
    assert_eq!(decided(&world.with_peer(another), &mut memo), 0);
}

/// Of two services of one selector, one cannot be read for a while: what it let in is let in until then, and no longer.
#[test]
fn what_was_kept_for_what_could_not_be_read_goes_with_it() {
    let of = |name: &str, port: u16, client: &str| {
        let mut service = service("shop", name, PEERS[0]);
        service.workload_labels = labels(&[("app", "cart")]);
        service.ports[0].target_port = port;
        service.clients = [self::client(client)].into();
        service
    };
    let (stays, unread) =
        (of("stays", 1, "spiffe://east.example/one"), of("unread", 2, "spiffe://east.example/other"));
    let key = policy::key(&stays);
    let mut world = at_first(false).with_service(stays).with_service(unread);
    let mut memo = Memo::default();
    let mut opens = |world: &mut World| {
        let planned = plan_anew(world, &mut memo);
        assert!(planned == plan(world));
        *world = after(world.clone(), &Step::Written, &planned);
        planned.objects[&key].spec().unwrap().to_string().contains("east.example/other")
    };
    assert_eq!([(); 3].map(|()| opens(&mut world)), [true; 3]);
    let name = NamespacedName::new("shop", "unread");
    world.services.remove(&name);
    let rejected = ObjectKey::namespaced(Kind::FederatedService, "shop", "unread");
    world = world.with_rejected(rejected.clone(), None);
    assert_eq!([(); 3].map(|()| opens(&mut world)), [true; 3], "nobody knows what it says");
    world.rejected.remove(&rejected);
    assert!(!opens(&mut world), "it is gone");
}

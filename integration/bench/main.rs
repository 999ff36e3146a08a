//! `make bench`: what planning costs, as ratios measured in one run. Nothing here passes or fails.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark stops where its own objects are bad"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entente::clock;
use entente::index::Index;
use entente::model::object::Kind;
use entente::model::own::Identity;
use entente::model::trust::SpireState;
use entente::model::world::{Relationships, Settings};
use entente::model::{Bundle, Object, ObjectKey, SpiffeId, TrustDomain};
use entente::plan::memo::Memo;
use entente::plan::{plan, plan_anew};
use entente::store::Event;
use serde_json::json;

const RUNS: usize = 9;

fn main() {
    let small = Planned::of(1_000);
    let large = Planned::of(10_000);
    println!("planning, median of {RUNS} runs:");
    println!("  first plan of  1,000 exported services, 10 peers: {:>9.3?}", small.plan);
    println!("  first plan of 10,000 exported services, 10 peers: {:>9.3?}", large.plan);
    println!("  ratio for ten times as many: {:.2}", ratio(large.plan, small.plan));
    println!("  one changed service among  1,000, taken in and planned: {:>9.3?}", small.change);
    println!("  one changed service among 10,000, taken in and planned: {:>9.3?}", large.change);
    println!("  ratio for ten times as many: {:.2}", ratio(large.change, small.change));
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

/// What planning took.
struct Planned {
    plan: Duration,
    change: Duration,
}

impl Planned {
    fn of(services: usize) -> Self {
        let mut index = index(services);
        settle(&mut index);
        let plan_time = median(|| {
            black_box(plan(index.world()));
        });
        let mut memo = Memo::default();
        black_box(plan_anew(index.world(), &mut memo));
        let mut port = 9_000;
        let change = median(|| {
            port += 1;
            assert!(index.store(Event::Applied(service(0, port))), "it is a change");
            index.settle_exports();
            let plan = black_box(plan_anew(index.world(), &mut memo));
            // its alias and its policy
            assert_eq!(plan.writes.len(), 2);
        });
        Self { plan: plan_time, change }
    }
}

/// Writes what is planned, until nothing is.
fn settle(index: &mut Index) {
    let mut memo = Memo::default();
    loop {
        index.settle_exports();
        let plan = plan_anew(index.world(), &mut memo);
        if plan.writes.is_empty() && plan.statuses.is_empty() {
            return;
        }
        for write in plan.writes.into_values() {
            let mut object = Object::clone(&write.object);
            object.meta.uid = format!("uid-of-{}", object.key);
            index.store(Event::Applied(object));
        }
        for (key, write) in plan.statuses {
            let mut object = match key.kind {
                Kind::TrustDomainPeer => peer(number_in(&key.name)),
                _ => service(number_in(&key.name), 8_080),
            };
            object.body.insert("status".to_owned(), write.status);
            index.store(Event::Applied(object));
        }
    }
}

/// The number in the name of a peer or a service.
fn number_in(name: &str) -> usize {
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("its name has one number")
}

fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}

fn index(services: usize) -> Index {
    let settings = Settings {
        instance: "entente".to_owned(),
        namespace: "entente-system".to_owned(),
        spire_class_name: String::new(),
        relationships: Relationships::ControllerManager,
        drain: Duration::from_secs(30),
        poll_interval: Duration::from_secs(75),
        agent_follow: Duration::from_secs(6),
        good_fetches: 3,
        ..Settings::standard()
    };
    let own = TrustDomain::new("west.example").expect("a legal name");
    let mut index = Index::new(Arc::new(settings), clock::now());
    index.identity(Some(Arc::new(Identity {
        id: SpiffeId::new("spiffe://west.example/ns/entente-system/sa/entente").expect("a legal ID"),
        trust_domain: own.clone(),
        not_before: clock::now(),
        not_after: clock::now(),
        bundle: Arc::new(Bundle::new(own, [])),
        federated: BTreeMap::new(),
        malformed: BTreeMap::new(),
    })));
    index.spire(Some(Arc::new(SpireState::default())));
    for kind in Kind::WATCHED {
        let objects = match kind {
            Kind::TrustDomainPeer => (0..10).map(peer).collect(),
            Kind::FederatedService => (0..services).map(|number| service(number, 8_080)).collect(),
            _ => Vec::new(),
        };
        index.store(Event::Reset { kind, objects });
    }
    index.settle_exports();
    let world = index.world();
    assert!(world.rejected.is_empty(), "the benchmark's own objects are good: {:?}", world.rejected);
    assert_eq!((world.peers.len(), world.services.len()), (10, services));
    index
}

fn peer(number: usize) -> Object {
    let name = format!("peer{number}.example");
    let spec = json!({
        "trustDomain": name,
        "bundleEndpoint": { "url": format!("https://spire.{name}:8443"), "profile": { "type": "https_web" } },
        "agent": {
            "addresses": [format!("entente.{name}:7443")],
            "spiffeIDs": [format!("spiffe://{name}/ns/entente-system/sa/entente")],
        },
    });
    let mut object = Object::desired(ObjectKey::cluster(Kind::TrustDomainPeer, &name), spec);
    object.meta.uid = format!("uid-of-{name}");
    object
}

fn service(number: usize, port: u16) -> Object {
    let name = format!("service-{number}");
    let namespace = format!("team-{}", number % 50);
    let to = format!("peer{}.example", number % 10);
    let spec = json!({
        "workloadLabels": { "app": name },
        "ports": [{ "name": "http", "port": port, "appProtocol": "http" }],
        "tlsMode": "IstioMtls",
        "exportedTrustDomains": [to],
        "clients": { "spiffeIDs": [format!("spiffe://{to}/ns/web/sa/frontend")] },
        "serverSPIFFEIDs": [format!("spiffe://west.example/ns/{namespace}/sa/{name}")],
        "gateways": [{ "type": "istio-eastwestgateway", "ip": "203.0.113.10", "port": 15_443 }],
    });
    let key = ObjectKey::namespaced(Kind::FederatedService, namespace, &name);
    let mut object = Object::desired(key, spec);
    object.meta.uid = format!("uid-of-{name}");
    object
}

//! What the plan writes as statuses, held to the published schema and to the enumerated reasons. The API server would refuse
//! or prune what does not fit, and the operator would see an old status or none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::conditions::*;
use crate::bundle::testing::Ca;
use crate::index::parse;
use crate::model::endpoint::EndpointState;
use crate::model::object::Kind;
use crate::model::own::Identity;
use crate::model::session::{
    Catalogue, GoodbyeReason, HeldBundle, LinkState, Refusal, SessionState, TrustReport,
};
use crate::model::trust::{Relationship, SpireState};
use crate::model::world::{Relationships, Settings};
use crate::model::{Bundle, Object, ObjectKey, SpiffeId, TrustDomain, World};
use crate::plan::plan;

fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_second(crate::bundle::testing::now().as_secs().cast_signed()).unwrap()
}

fn object(kind: Kind, namespace: Option<&str>, name: &str, spec: Value) -> Object {
    let key = ObjectKey { kind, namespace: namespace.map(str::to_owned), name: name.to_owned() };
    let mut object = Object::desired(key, spec);
    object.meta.uid = format!("uid-{name}");
    object
}

fn peer_spec(trust_domain: &str) -> Value {
    json!({
        "trustDomain": trust_domain,
        "bundleEndpoint": { "url": "https://w.example", "profile": { "type": "https_web" } },
        "agent": { "addresses": ["w.example:1"], "spiffeIDs": [format!("spiffe://{trust_domain}/agent")] },
        "federatesWith": {},
        "imports": { "services": [{ "namespace": "*", "name": "*" }], "asLocal": [{ "namespace": "*", "name": "*" }] },
    })
}

fn imported_spec(host_ip: &str) -> Value {
    json!({
        "trustDomain": "west.example", "name": "orders", "namespace": "shop", "host": "orders.shop.west.example",
        "ports": [{ "name": "web", "port": 80, "appProtocol": "http" }], "tlsMode": "IstioMtls",
        "serverSPIFFEIDs": ["spiffe://west.example/orders"], "clients": ["spiffe://east.example/*"],
        "gateways": [{ "address": host_ip, "port": 15443 }],
    })
}

/// East, which knows west well, has two services of its own and one of west's, and one bad object of each kind.
fn world() -> World {
    let settings = Settings {
        instance: "main".to_owned(),
        namespace: "entente-system".to_owned(),
        spire_class_name: String::new(),
        relationships: Relationships::ControllerManager,
        drain: Duration::from_secs(30),
        poll_interval: Duration::from_secs(300),
        agent_follow: Duration::from_secs(6),
        good_fetches: 3,
        ..Settings::standard()
    };
    let mut world = World::empty(Arc::new(settings), now());
    world.read = Kind::WATCHED.into_iter().collect();
    let (east, west) = (td("east.example"), td("west.example"));
    let (own, foreign) = (Ca::new().bundle("east.example"), Ca::new().bundle("west.example"));
    world.identity = Some(Arc::new(Identity {
        id: SpiffeId::new("spiffe://east.example/agent").unwrap(),
        trust_domain: east.clone(),
        not_before: now(),
        not_after: now(),
        bundle: own.clone(),
        federated: BTreeMap::from([(west.clone(), foreign.clone())]),
        malformed: BTreeMap::new(),
    }));
    world.own_history.observe(own.digest(), now());
    let good = object(Kind::TrustDomainPeer, None, "west", peer_spec("west.example"));
    let peer = Arc::new(parse::trust_domain_peer::parse(&good, Some(&east)).unwrap());
    let relationship = Relationship { trust_domain: west.clone(), endpoint: peer.endpoint.clone() };
    world.spire = Some(Arc::new(SpireState {
        relationships: BTreeMap::from([(west.clone(), relationship)]),
        bundles: BTreeMap::from([(west.clone(), foreign.clone())]),
        own: Some(own),
        ..SpireState::default()
    }));
    world.endpoints = Arc::new(BTreeMap::from([(west.clone(), endpoint(&foreign))]));
    let bad = object(Kind::TrustDomainPeer, None, "self", peer_spec("east.example"));
    world.rejected.insert(bad.key.clone(), parse::trust_domain_peer::parse(&bad, Some(&east)).unwrap_err());
    world.peers.insert(west, peer);
    for (name, ids) in [("orders", json!(["spiffe://east.example/orders"])), ("bare", json!([]))] {
        let spec = json!({
            "workloadLabels": { "app": name }, "ports": [{ "name": "http", "port": 80 }], "tlsMode": "IstioMtls",
            "exportedTrustDomains": ["west.example"], "clients": { "spiffeIDs": ["spiffe://west.example/*"] },
            "serverSPIFFEIDs": ids,
            "gateways": [{ "type": "istio-eastwestgateway", "port": 15443, "ip": "192.0.2.1" }],
        });
        let object = object(Kind::FederatedService, Some("shop"), name, spec);
        let service = parse::federated_service::parse(&object, Some(&east)).unwrap();
        world.declared.insert(service.object.clone(), Arc::new(service));
    }
    let resolved = crate::plan::exports::resolve::namespace(&world, &Default::default(), "shop");
    world.resolve("shop", resolved);
    let bad = object(Kind::FederatedService, Some("shop"), "bad", json!({}));
    world.rejected.insert(bad.key.clone(), parse::federated_service::parse(&bad, Some(&east)).unwrap_err());
    let host = "orders.shop.west.example";
    let mut good = object(Kind::ImportedService, Some("entente-system"), host, imported_spec("192.0.2.9"));
    good.meta.labels.insert(crate::model::object::LABEL_INSTANCE.to_owned(), "main".to_owned());
    let imported = parse::imported_service::parse(&good).unwrap();
    world.imported.insert(imported.object.clone(), Arc::new(imported));
    world.objects.insert(good.key.clone(), Arc::new(good));
    world
}

fn endpoint(bundle: &Arc<Bundle>) -> EndpointState {
    EndpointState {
        latest: Some(bundle.clone()),
        latest_usable: Some(bundle.clone()),
        good_in_a_row: 5,
        since: Some(now()),
        ..EndpointState::default()
    }
}

fn with_link(mut world: World, link: LinkState) -> World {
    let held = world.identity.as_ref().map(|identity| HeldBundle::from(&*identity.bundle));
    let mut session = SessionState::idle(now());
    session.link = link;
    session.remote = Some(TrustReport {
        held: held.clone(),
        delivered: held,
        relationship: true,
        ..TrustReport::default()
    });
    let services = world.imported.values().map(|i| (i.service.name.clone(), i.service.clone())).collect();
    session.catalogue = Some(Arc::new(Catalogue {
        version: [1; 32],
        services,
        held: std::collections::BTreeSet::new(),
        malformed: Vec::new(),
    }));
    world.sessions = Arc::new(BTreeMap::from([(td("west.example"), session)]));
    world
}

/// The ways in which a world can be, by name.
fn worlds() -> Vec<(&'static str, World)> {
    let message = || "why".to_owned();
    let changed = |change: fn(&mut World)| {
        let mut world = with_link(world(), LinkState::Connected);
        change(&mut world);
        world
    };
    let mut all = vec![
        ("nothing known", World { identity: None, spire: None, ..world() }),
        ("nobody dialled", world()),
        ("connected", with_link(world(), LinkState::Connected)),
        ("unreachable", with_link(world(), LinkState::Unreachable { message: message() })),
        ("unverified", with_link(world(), LinkState::Unverified { message: message() })),
        ("another ID", with_link(world(), LinkState::WrongPeerId { message: message() })),
        ("idle", with_link(world(), LinkState::Idle)),
        ("no SPIRE", changed(|world| world.spire = None)),
        ("empty SPIRE", changed(|world| world.spire = Some(Arc::default()))),
        ("no endpoint", changed(|world| world.endpoints = Arc::default())),
        ("no peer", changed(|world| world.peers.clear())),
        ("no Istio", changed(|world| world.absent = [Kind::ServiceEntry, Kind::Gateway].into())),
    ];
    for by in [Refusal::UnknownAuthority, Refusal::NotAccepted, Refusal::Expired] {
        all.push(("refused", with_link(world(), LinkState::Refused { by, message: message() })));
    }
    for reason in [GoodbyeReason::ShuttingDown, GoodbyeReason::RelationshipEnded, GoodbyeReason::Suspended] {
        all.push(("parted", with_link(world(), LinkState::Parted { reason, message: message() })));
    }
    for change in [
        |peer: &mut crate::model::Peer| peer.suspend = true,
        |peer: &mut crate::model::Peer| peer.deletion = Some(now()),
        |peer: &mut crate::model::Peer| peer.imports.services.clear(),
    ] {
        let mut world = with_link(world(), LinkState::Connected);
        change(Arc::make_mut(world.peers.values_mut().next().unwrap()));
        all.push(("changed peer", world));
    }
    all
}

fn words<R: Reason>(all: &[R]) -> Vec<&'static str> {
    all.iter().map(|reason| reason.as_str()).collect()
}

/// The reasons that a condition of a kind may have.
fn reasons(kind: Kind, condition: &str) -> Vec<&'static str> {
    match (kind, condition) {
        (Kind::TrustDomainPeer, "Accepted") => words(PeerAcceptedReason::ALL),
        (Kind::TrustDomainPeer, "BundleEndpointHealthy") => words(BundleEndpointReason::ALL),
        (Kind::TrustDomainPeer, "BundleDistributed") => words(BundleDistributedReason::ALL),
        (Kind::TrustDomainPeer, "Connected") => words(ConnectedReason::ALL),
        (Kind::TrustDomainPeer, "Reciprocal") => words(ReciprocalReason::ALL),
        (Kind::TrustDomainPeer, "RotationSafe") => words(RotationSafeReason::ALL),
        (Kind::TrustDomainPeer, "ServicesSynced") => words(ServicesSyncedReason::ALL),
        (Kind::TrustDomainPeer, "Ready") => words(ReadyReason::ALL),
        (Kind::FederatedService | Kind::ServiceExportRule, "Accepted") => words(ServiceAcceptedReason::ALL),
        (Kind::FederatedService | Kind::ServiceExportRule, "Exported") => words(ExportedReason::ALL),
        (Kind::FederatedService, "ClientsEnforced") => words(ClientsEnforcedReason::ALL),
        (Kind::ImportedService, "Admitted") => words(AdmittedReason::ALL),
        (Kind::ImportedService, "Generated") => words(GeneratedReason::ALL),
        (Kind::ImportedService, "ServedLocally") => words(LocalReason::ALL),
        (Kind::ImportedService, "TakenByClients") => words(TakenReason::ALL),
        other => panic!("{other:?} is no condition"),
    }
}

/// What of `value` the schema does not allow.
fn violations(path: &str, value: &Value, schema: &Value, out: &mut Vec<String>) {
    let over = |len: usize, bound: &str| schema[bound].as_u64().is_some_and(|max| len as u64 > max);
    let fits = match (schema["type"].as_str().unwrap(), value) {
        ("object", Value::Object(fields)) => {
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !fields.contains_key(name) {
                    out.push(format!("{path}.{name} is required"));
                }
            }
            for (name, inner) in fields {
                match schema["properties"].get(name) {
                    Some(schema) => violations(&format!("{path}.{name}"), inner, schema, out),
                    None => out.push(format!("{path}.{name} is unknown")),
                }
            }
            true
        }
        ("array", Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                violations(&format!("{path}[{i}]"), item, &schema["items"], out);
            }
            !over(items.len(), "maxItems")
        }
        ("string", Value::String(text)) => {
            let is_time = schema["format"] != "date-time" || text.parse::<Timestamp>().is_ok();
            let allowed = schema["enum"].as_array().is_none_or(|allowed| allowed.contains(value));
            is_time && allowed && !over(text.chars().count(), "maxLength")
        }
        ("integer", Value::Number(number)) => number.is_i64(),
        ("boolean", Value::Bool(_)) => true,
        _ => false,
    };
    if !fits {
        out.push(format!("{path}: {value} does not fit {schema}"));
    }
}

#[test]
fn statuses_fit_the_schema_and_reasons_are_enumerated() {
    let schemas: BTreeMap<String, Value> = super::crds()
        .iter()
        .map(|crd| {
            let value = serde_json::to_value(crd).unwrap();
            let schema = &value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            (crd.spec.names.kind.clone(), schema["properties"]["status"].clone())
        })
        .collect();
    let mut seen: BTreeMap<(Kind, String), std::collections::BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (name, world) in worlds() {
        for (key, write) in plan(&world).statuses {
            let mut unfit = Vec::new();
            violations("status", &write.status, &schemas[key.kind.kind()], &mut unfit);
            wrong.extend(unfit.into_iter().map(|what| format!("{name}: {key}: {what}")));
            for condition in write.status["conditions"].as_array().unwrap() {
                let (kind, reason) =
                    (condition["type"].as_str().unwrap(), condition["reason"].as_str().unwrap());
                if !reasons(key.kind, kind).contains(&reason) {
                    wrong.push(format!("{name}: {key}: {kind} has no reason {reason}"));
                }
                seen.entry((key.kind, kind.to_owned())).or_default().insert(reason.to_owned());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(seen.len(), 14, "each condition of each kind was written: {seen:#?}");
    let distinct: usize = seen.values().map(std::collections::BTreeSet::len).sum();
    assert!(distinct > 40, "worlds differ by enough to mean something: {distinct} reasons, {seen:#?}");
}

//! Federations to show, for tests: one that is well, one in which much is wrong, and one that rotates.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rcgen::KeyIdMethod;
use serde_json::{Value, json};

use crate::bundle::testing::{Ca, ca_params};
use crate::model::endpoint::EndpointState;
use crate::model::object::{Kind, ObjectKey};
use crate::model::service::Outcome;
use crate::model::session::{HeldBundle, LinkState, TrustReport};
use crate::model::trust::{LocalAuthorities, LocalAuthority, LocalServer, SpireState};
use crate::model::{Bundle, World};
use crate::plan::Plan;
use crate::plan::fixtures::{WorldExt as _, at, peer, remote_cart, session, td, world};
use crate::store::{Severity, Told};

pub(super) const EAST: &str = "east.example";
const WEST: &str = "west.example";
const NORTH: &str = "north.example";
const SOUTH: &str = "partners.south.example";

/// What is shown.
pub(super) struct Federation {
    pub(super) world: World,
    pub(super) plan: Plan,
    pub(super) events: Vec<Told>,
}

const HOUR: i64 = 3_600;

/// An authority with an ID that is always the same, valid within these hours of now.
fn ca(id: u8, from: i64, until: i64) -> Ca {
    let mut params = ca_params();
    params.key_identifier_method = KeyIdMethod::PreSpecified(vec![id; 20]);
    let time = |hours: i64| {
        let seconds = at(hours * HOUR).as_second().unsigned_abs();
        rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(seconds)
    };
    params.not_before = time(from);
    params.not_after = time(until);
    Ca::with(params)
}

fn held(bundle: &Bundle) -> HeldBundle {
    HeldBundle::from(bundle)
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2023-11-14T20:13:20Z",
    })
}

fn good() -> Vec<Value> {
    [
        ("Accepted", "Accepted", "every field is understood and in use"),
        ("BundleEndpointHealthy", "Healthy", "the last fetch gave a bundle with usable authorities"),
        ("BundleDistributed", "Distributed", "SPIRE holds the freshest bundle, and workloads get it"),
        ("Connected", "Connected", "the agents talk, each with an ID that the other expects"),
        ("Reciprocal", "Confirmed", "it holds our present bundle and federates with us"),
        ("RotationSafe", "PeersHoldAuthorities", "it gave a receipt for every authority of ours"),
        ("ServicesSynced", "InSync", "everything is answered on both sides"),
        ("Ready", "Ready", "everything is as it should be"),
    ]
    .map(|(kind, reason, message)| condition(kind, "True", reason, message))
    .to_vec()
}

fn with(mut conditions: Vec<Value>, changes: &[(&str, &str, &str, &str)]) -> Vec<Value> {
    for (kind, status, reason, message) in changes {
        let at = conditions.iter().position(|one| one["type"] == *kind).unwrap();
        conditions[at] = condition(kind, status, reason, message);
    }
    conditions
}

fn add(federation: &mut Federation, own: &Bundle, name: &str, conditions: Vec<Value>, heard: bool) {
    let bundle = Arc::new(Bundle::new(td(name), [ca(name.as_bytes()[0], -200, 160).authority()]));
    let world = &mut federation.world;
    world.peers.insert(td(name), Arc::new(peer(name)));
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, name.replace('.', "-"));
    let services = json!({"exported": 2, "imported": 3, "refused": 1});
    world.statuses.insert(key, Arc::new(json!({"conditions": conditions, "services": services})));
    Arc::make_mut(world.spire.as_mut().unwrap()).bundles.insert(td(name), Arc::clone(&bundle));
    Arc::make_mut(world.identity.as_mut().unwrap()).federated.insert(td(name), Arc::clone(&bundle));
    let state = EndpointState { latest: Some(bundle), ..EndpointState::default() };
    Arc::make_mut(&mut world.endpoints).insert(td(name), state);
    let link = if heard {
        LinkState::Connected
    } else {
        LinkState::Unreachable { message: "connection refused".to_owned() }
    };
    let mut exchange = session(link, Some(Vec::new()));
    exchange.remote = Some(TrustReport {
        held: Some(held(own)),
        delivered: Some(held(own)),
        relationship: true,
        ..TrustReport::default()
    });
    Arc::make_mut(&mut world.sessions).insert(td(name), exchange);
}

fn empty(own: &Bundle) -> Federation {
    let mut world = world(EAST);
    let authority = |id: u8| LocalAuthority {
        id: ca(id, -1, 1).authority().id().clone(),
        expires_at: at(96 * HOUR),
        upstream: None,
    };
    let slots = LocalAuthorities { active: authority(0xaa), prepared: None, old: None };
    let server = LocalServer { authorities: Some(slots), failure: None };
    let spire = SpireState {
        own: Some(Arc::new(own.clone())),
        servers: [("spire-server:8081".to_owned(), server)].into(),
        ..SpireState::default()
    };
    world.spire = Some(Arc::new(spire));
    Arc::make_mut(world.identity.as_mut().unwrap()).bundle = Arc::new(own.clone());
    Federation { world, plan: Plan::default(), events: Vec::new() }
}

fn services(federation: &mut Federation, answers: &[(&str, &str, &str, &str)]) {
    let to: Vec<Value> = answers
        .iter()
        .map(|(to, outcome, reason, message)| {
            json!({"trustDomain": to, "outcome": outcome, "reason": reason, "message": message})
        })
        .collect();
    let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let status = json!({"host": "cart.shop.east.example", "exportedTo": to});
    federation.world.statuses.insert(key, Arc::new(status));
    let world = std::mem::replace(&mut federation.world, world(EAST));
    federation.world = world.with_written(&std::collections::BTreeMap::new(), &[(WEST, remote_cart())]);
    let imported: Vec<_> = federation.world.imported.keys().cloned().collect();
    for object in imported {
        let key = ObjectKey::namespaced(Kind::ImportedService, &object.namespace, &object.name);
        let conditions = [condition("Admitted", "True", "Admitted", "")];
        federation.world.statuses.insert(key, Arc::new(json!({ "conditions": conditions })));
    }
}

fn told(seconds: i64, severity: Severity, object: &str, reason: &str, message: &str) -> Told {
    Told {
        at: at(-seconds),
        object: ObjectKey::cluster(Kind::TrustDomainPeer, object),
        severity,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// Everything is as it should be, with three peers.
pub(super) fn healthy() -> Federation {
    let own = Bundle::new(td(EAST), [ca(0xaa, -72, 96).authority()]);
    let mut federation = empty(&own);
    for name in [WEST, NORTH, SOUTH] {
        add(&mut federation, &own, name, good(), true);
    }
    services(&mut federation, &[(WEST, "Imported", "", ""), (NORTH, "Imported", "", "")]);
    federation.events = vec![
        told(40, Severity::Normal, "west-example", "Ready", "Ready: everything is as it should be"),
        told(44, Severity::Normal, "west-example", "Confirmed", "Reciprocal: it federates with us"),
    ];
    federation
}

/// One peer is well, one holds an old bundle of ours, and one is away.
pub(super) fn degraded() -> Federation {
    let own = Bundle::new(td(EAST), [ca(0xaa, -72, 96).authority()]);
    let mut federation = empty(&own);
    add(&mut federation, &own, WEST, good(), true);
    let stale = "it holds a bundle of ours that was superseded 12 minutes ago: its operator must see why its SPIRE does not \
                 follow our bundle endpoint";
    let changes =
        [("Reciprocal", "False", "PeerHoldsStaleBundle", stale), ("Ready", "False", "NotReciprocal", stale)];
    add(&mut federation, &own, NORTH, with(good(), &changes), true);
    let away =
        "no answer from agent.south.example:7443 (connection refused): check agent.addresses and the network";
    let endpoint = "https://bundle.south.example does not answer: check the URL, the network and the peer's SPIRE server";
    let changes = [
        ("BundleEndpointHealthy", "False", "EndpointUnreachable", endpoint),
        ("Connected", "False", "Unreachable", away),
        ("Reciprocal", "Unknown", "PeerUnreachable", "it cannot be asked; see Connected"),
        ("RotationSafe", "Unknown", "Unknown", "it is not heard now"),
        ("ServicesSynced", "Unknown", "PeerAway", "its services stay as they were last known"),
        ("Ready", "False", "BundleEndpointUnhealthy", endpoint),
    ];
    add(&mut federation, &own, SOUTH, with(good(), &changes), false);
    let refusal = "no pattern of imports.services matches shop/cart";
    services(&mut federation, &[(WEST, "Imported", "", ""), (NORTH, "Refused", "NotAdmitted", refusal)]);
    let catalogue = Arc::clone(federation.world.sessions[&td(WEST)].catalogue.as_ref().unwrap());
    let refused = Outcome::Refused {
        reason: "ForeignServerId".to_owned(),
        message: "spiffe://elsewhere.example/db is not in west.example".to_owned(),
    };
    let link = crate::model::session::LinkPlan {
        trust_domain: td(WEST),
        owner: peer(WEST).owner(),
        addresses: Vec::new(),
        agent_ids: BTreeSet::new(),
        dials_first: true,
        intent: crate::model::session::LinkIntent::Connect,
        farewell: String::new(),
        report: TrustReport::default(),
        catalogue,
        outcomes: Arc::new([(crate::model::ServiceName::new("db", "store").unwrap(), refused)].into()),
        answered: None,
    };
    federation.plan.links.insert(td(WEST), link);
    federation.events = vec![
        told(20, Severity::Warning, "partners-south-example", "Unreachable", away),
        told(700, Severity::Warning, "north-example", "PeerHoldsStaleBundle", stale),
    ];
    federation
}

/// More peers than are shown, of which the last by name is away.
pub(super) fn many() -> Federation {
    let own = Bundle::new(td(EAST), [ca(0xaa, -72, 96).authority()]);
    let mut federation = empty(&own);
    for n in 0..100 {
        add(&mut federation, &own, &format!("a{n}.example"), good(), true);
    }
    let away = [("Ready", "False", "NotConnected", "no answer")];
    add(&mut federation, &own, "z.example", with(good(), &away), false);
    federation
}

/// A new authority is prepared: one peer holds it, one does not yet.
pub(super) fn rotating() -> Federation {
    let last = ca(0x99, -150, 6).authority();
    let active = ca(0xaa, -72, 24).authority();
    let old = Bundle::new(td(EAST), [last.clone(), active.clone()]);
    let next = ca(0xbb, -2, 94);
    let own = Bundle::new(td(EAST), [last, active, next.authority()]);
    let mut federation = empty(&own);
    let spire = Arc::make_mut(federation.world.spire.as_mut().unwrap());
    let slots = spire.servers.get_mut("spire-server:8081").unwrap().authorities.as_mut().unwrap();
    let authority = |id: u8, hours: i64| LocalAuthority {
        id: ca(id, -1, 1).authority().id().clone(),
        expires_at: at(hours * HOUR),
        upstream: None,
    };
    (slots.prepared, slots.old) = (Some(authority(0xbb, 94)), Some(authority(0x99, 6)));
    add(&mut federation, &own, WEST, good(), true);
    let lacks = "it does not hold our authority bbbbbbbbbb, which spire-server:8081 has prepared and activates by itself: do not \
                 activate it before";
    let changes = [
        ("RotationSafe", "False", "PeerLacksAuthority", lacks),
        ("Ready", "False", "NotRotationSafe", lacks),
    ];
    add(&mut federation, &old, NORTH, with(good(), &changes), true);
    services(&mut federation, &[(WEST, "Imported", "", "")]);
    federation.events = vec![told(60, Severity::Warning, "north-example", "PeerLacksAuthority", lacks)];
    federation
}

/// A peer that says what it can to break the page.
pub(super) fn hostile() -> Federation {
    const EVIL: &str =
        "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover=\"alert(3)";
    let own = Bundle::new(td(EAST), [ca(0xaa, -72, 96).authority()]);
    let mut federation = empty(&own);
    let changes = [
        ("Connected", "False", EVIL, EVIL),
        ("Ready", EVIL, EVIL, EVIL),
        ("Reciprocal", "False", EVIL, EVIL),
    ];
    add(&mut federation, &own, WEST, with(good(), &changes), false);
    services(&mut federation, &[(EVIL, EVIL, EVIL, EVIL)]);
    federation.events = vec![told(1, Severity::Warning, EVIL, EVIL, EVIL)];
    federation
}

/// Later than anything in them began.
pub(super) fn later(federation: &mut Federation, by: SignedDuration) {
    let now: Timestamp = federation.world.now.checked_add(by).unwrap();
    federation.world.now = now;
}

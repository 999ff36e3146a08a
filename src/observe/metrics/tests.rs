//! What is served, of worlds in which something is wrong.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::model::endpoint::EndpointState;
use crate::model::object::ObjectKey;
use crate::model::session::{GoodbyeReason, LinkState};
use crate::model::trust::{LocalAuthorities, LocalAuthority, LocalServer, SpireState};
use crate::model::world::Notice;
use crate::model::{AuthorityId, Bundle};
use crate::plan::fixtures::{WorldExt as _, at, peer, session, td, world};
use crate::plan::{self, Plan};

const EAST: &str = "east.example";
const WEST: &str = "west.example";

fn text(metrics: &Metrics, world: &World, plan: &Plan, leads: bool) -> String {
    metrics.encode(Lead { leads, lease: None }, true, Some(Known { world, plan, leads })).unwrap()
}

fn federation() -> World {
    let mut world = world(EAST).with_peer(peer(WEST));
    let conditions = json!([
        {"type": "Connected", "status": "True", "reason": "Connected"},
        {"type": "Reciprocal", "status": "False", "reason": "PeerHoldsStaleBundle"},
        {"type": "RotationSafe", "status": "Unknown", "reason": "Unknown"},
    ]);
    let status = json!({
        "conditions": conditions,
        "services": {"exported": 3, "imported": 2, "refused": 1},
        "audit": [{"time": "2026-01-01T00:00:00Z", "digest": ""}],
        "remoteView": {"missing": ["ab", "cd"]},
    });
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, "west-example");
    world.statuses.insert(key, Arc::new(status));
    let service = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
    let conditions = json!([{"type": "Exported", "status": "True", "reason": "Exported"}]);
    world.statuses.insert(service, Arc::new(json!({ "conditions": conditions })));
    let authority =
        |id: &str| LocalAuthority { id: AuthorityId::parse(id).unwrap(), expires_at: at(60), upstream: None };
    let authorities =
        LocalAuthorities { active: authority("aa"), prepared: Some(authority("bb")), old: None };
    let server = LocalServer { authorities: Some(authorities), failure: None };
    let mut spire = SpireState { servers: [("spire-0".to_owned(), server)].into(), ..SpireState::default() };
    spire.bundles.insert(td(WEST), Arc::new(Bundle::new(td(WEST), [])));
    world.spire = Some(Arc::new(spire));
    let state = EndpointState { asked_at: Some(at(5)), ..EndpointState::default() };
    world.endpoints = Arc::new([(td(WEST), state)].into());
    world.sessions = Arc::new([(td(WEST), session(LinkState::Connected, None))].into());
    world
}

#[test]
fn what_is_known_is_told() {
    let world = federation();
    let plan = plan::plan(&world);
    let text = text(&Metrics::default(), &world, &plan, true);
    for line in [
        "entente_ready 1",
        "entente_leader 1",
        "entente_workload_api_up 1",
        "entente_svid_not_before_timestamp_seconds 1700000000",
        "entente_svid_not_after_timestamp_seconds 1700003600",
        r#"entente_spire_server_up{server="spire-0"} 1"#,
        r#"entente_authority_not_after_timestamp_seconds{server="spire-0",slot="prepared"} 1700000060"#,
        r#"entente_peer_condition{trust_domain="west.example",type="Reciprocal",status="False"} 1"#,
        r#"entente_peer_condition{trust_domain="west.example",type="Reciprocal",status="True"} 0"#,
        r#"entente_peer_condition{trust_domain="west.example",type="RotationSafe",status="Unknown"} 1"#,
        r#"entente_peer_condition_reason{trust_domain="west.example",type="Reciprocal",reason="PeerHoldsStaleBundle"} 1"#,
        r#"entente_peer_services{trust_domain="west.example",outcome="imported"} 2"#,
        r#"entente_peer_authorities_missing{trust_domain="west.example"} 2"#,
        r#"entente_peer_bundle_changed_timestamp_seconds{trust_domain="west.example"} 1767225600"#,
        r#"entente_peer_bundle_fetch_timestamp_seconds{trust_domain="west.example"} 1700000005"#,
        r#"entente_peer_stream{trust_domain="west.example",state="Connected"} 1"#,
        r#"entente_peer_stream{trust_domain="west.example",state="Unreachable"} 0"#,
        r#"entente_object_conditions{kind="FederatedService",type="Exported",status="True"} 1"#,
        "entente_plans_total 0",
    ] {
        assert!(text.lines().any(|served| served == line), "{line}\nis not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn a_store_that_cannot_be_read_is_told_by_kind() {
    let metrics = Metrics::default();
    metrics.follows([(Kind::ServiceEntry, false), (Kind::TrustDomainPeer, true)].into());
    let text = metrics.encode(Lead::default(), true, None).unwrap();
    assert!(text.contains("entente_store_up{kind=\"ServiceEntry\"} 0"), "{text}");
    assert!(text.contains("entente_store_up{kind=\"TrustDomainPeer\"} 1"), "{text}");
}

/// What only the leader knows is not told wrongly by the others.
#[test]
fn who_does_not_lead_tells_nothing_of_streams() {
    let world = federation();
    let text = text(&Metrics::default(), &world, &Plan::default(), false);
    assert!(!text.contains("entente_peer_stream"), "{text}");
    assert!(text.contains("entente_peer_condition{"), "{text}");
}

#[test]
fn everything_that_is_served_is_described() {
    let metrics = Metrics::default();
    metrics.wrote(WriteResult::Ok);
    metrics.repaired(Kind::ServiceEntry);
    metrics.took(Step::Plan, Duration::from_millis(3));
    metrics.asked(Asked::Answered);
    metrics.zone_changed(at(7));
    metrics.follows([(Kind::ServiceEntry, true)].into());
    let world = federation();
    let text = text(&metrics, &world, &plan::plan(&world), true);
    let served: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(served.len() > 20, "{text}");
    for line in served {
        let (name, sort) = line.split_once(' ').unwrap();
        let name = if sort == "counter" { format!("{name}_total") } else { name.to_owned() };
        let described = described::ALL.iter().find(|metric| metric.name == name);
        assert_eq!(described.map(|metric| metric.sort.as_str()), Some(sort), "{name}");
    }
    // Each family's head stands once.
    let mut heads: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let all = heads.len();
    heads.sort_unstable();
    heads.dedup();
    assert_eq!(heads.len(), all);
}

#[test]
fn a_lost_stream_is_counted_once() {
    let metrics = Metrics::default();
    let mut world = federation();
    metrics.planned(&world);
    let parted = LinkState::Parted { reason: GoodbyeReason::ShuttingDown, message: String::new() };
    world.sessions = Arc::new([(td(WEST), session(parted, None))].into());
    metrics.planned(&world);
    metrics.planned(&world);
    let text = text(&metrics, &world, &Plan::default(), true);
    assert!(text.contains("entente_peer_disconnects_total{trust_domain=\"west.example\"} 1\n"), "{text}");
    assert!(text.contains("entente_plans_total 3\n"), "{text}");
}

#[test]
fn a_bundle_that_a_peer_tells_of_is_timed_until_spire_holds_it() {
    let metrics = Metrics::default();
    let mut world = federation();
    let next = crate::bundle::testing::Ca::new().bundle(WEST);
    let notice = Notice { digest: next.digest(), asks: 0, asked: None, next: None };
    world.memory.entry(td(WEST)).or_default().notice = Some(notice);
    metrics.planned(&world);
    let count = |world: &World| {
        let text = text(&metrics, world, &Plan::default(), true);
        let line = text.lines().find_map(|line| line.strip_prefix("entente_peer_bundle_push_seconds_count "));
        line.unwrap().to_owned()
    };
    assert_eq!(count(&world), "0");
    Arc::make_mut(world.spire.as_mut().unwrap()).bundles.insert(td(WEST), next);
    world.memory.get_mut(&td(WEST)).unwrap().notice = None;
    metrics.planned(&world);
    metrics.planned(&world);
    assert_eq!(count(&world), "1");
}

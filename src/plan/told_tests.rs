use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::bundle::testing::{Ca, NOW};
use crate::model::endpoint::{EndpointState, FetchFailure};
use crate::model::session::{HeldBundle, LinkState, SessionState};
use crate::model::trust::{Relationship, SpireState};
use crate::model::{Bundle, SpiffeId};
use crate::plan::ending::FINALIZER;
use crate::plan::fixtures::{WorldExt as _, peer, td, world};
use crate::plan::{memory, plan};

/// East or west, which know each other well.
struct Side {
    world: World,
    other: TrustDomain,
}

impl Side {
    fn new(own: &Arc<Bundle>, other: &Arc<Bundle>) -> Self {
        let (name, foreign) = (own.trust_domain().clone(), other.trust_domain().clone());
        let mut peer = peer(foreign.as_str());
        peer.finalizers = vec![FINALIZER.to_owned()];
        let relationship = Relationship { trust_domain: foreign.clone(), endpoint: peer.endpoint.clone() };
        let mut world = world(name.as_str()).with_peer(peer);
        world.now = Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap();
        let identity = Arc::make_mut(world.identity.as_mut().unwrap());
        identity.id = SpiffeId::new(format!("spiffe://{name}/agent")).unwrap();
        identity.bundle = Arc::clone(own);
        identity.federated.insert(foreign.clone(), Arc::clone(other));
        world.spire = Some(Arc::new(SpireState {
            relationships: BTreeMap::from([(foreign.clone(), relationship)]),
            bundles: BTreeMap::from([(foreign.clone(), Arc::clone(other))]),
            own: Some(Arc::clone(own)),
            ..SpireState::default()
        }));
        let state = EndpointState {
            latest: Some(Arc::clone(other)),
            latest_usable: Some(Arc::clone(other)),
            since: Some(world.now),
            asked_at: world.now.saturating_add(SignedDuration::from_secs(3600)).ok(),
            ..EndpointState::default()
        };
        world.endpoints = Arc::new(BTreeMap::from([(foreign.clone(), state)]));
        Self { world, other: foreign }
    }

    fn pass(&mut self, seconds: i64) {
        self.world.now = self.world.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap();
        self.world.moment = self.world.now;
        self.world.memory = memory::advance(&self.world);
    }

    fn report(&self) -> TrustReport {
        plan(&self.world).links[&self.other].report.clone()
    }

    fn hears(&mut self, remote: TrustReport, skew: Option<i64>) {
        let mut session = SessionState::idle(self.world.now);
        session.link = LinkState::Connected;
        session.remote = Some(remote);
        session.skew = skew;
        Arc::make_mut(&mut self.world.sessions).insert(self.other.clone(), session);
    }

    fn spire(&mut self) -> &mut SpireState {
        Arc::make_mut(self.world.spire.as_mut().unwrap())
    }

    fn endpoint(&mut self) -> &mut EndpointState {
        Arc::make_mut(&mut self.world.endpoints).get_mut(&self.other).unwrap()
    }

    /// Status, reason and message of a condition.
    fn says(&self, kind: &str) -> (String, String, String) {
        let status = plan(&self.world).statuses.into_values().next().unwrap().status;
        let conditions = status["conditions"].as_array().unwrap().clone();
        let found: Value = conditions.into_iter().find(|c| c["type"] == kind).unwrap();
        let text = |name: &str| found[name].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    }
}

fn pair() -> (Side, Side) {
    let (east, west) = (Ca::new().bundle("east.example"), Ca::new().bundle("west.example"));
    (Side::new(&east, &west), Side::new(&west, &east))
}

/// Breaks east, and lets both tell each other until nothing new is said.
fn after(break_east: impl FnOnce(&mut Side)) -> (Side, Side) {
    let (mut east, mut west) = pair();
    break_east(&mut east);
    for _ in 0..3 {
        let (of_east, of_west) = (east.report(), west.report());
        west.hears(of_east, None);
        east.hears(of_west, None);
        east.pass(1);
        west.pass(1);
    }
    (east, west)
}

fn failure(problem: FetchProblem) -> Option<FetchFailure> {
    Some(FetchFailure { problem, message: "connection refused by 10.0.0.5:22".to_owned() })
}

#[test]
fn a_whole_pair_tells_of_nothing() {
    let (east, west) = after(|_| {});
    assert_eq!((east.report().troubles, west.report().troubles), (vec![], vec![]));
    for side in [&east, &west] {
        assert_eq!(side.says("Reciprocal").1, "Confirmed");
        assert_eq!(side.says("RotationSafe").1, "PeersHoldAuthorities");
    }
}

#[test]
fn both_sides_name_the_side_and_the_cause() {
    type Break = fn(&mut Side);
    type Said = (&'static str, &'static str);
    let cases: [(Break, Said, Said); 6] = [
        (
            |east| east.spire().relationships.clear(),
            ("BundleDistributed", "AwaitingRelationship"),
            ("Reciprocal", "PeerHasNoRelationship"),
        ),
        (
            |east| {
                east.spire().bundles.clear();
                east.endpoint().failure = failure(FetchProblem::EndpointUnreachable);
            },
            ("BundleDistributed", "AwaitingSpire"),
            ("Reciprocal", "PeerHoldsStaleBundle"),
        ),
        (
            |east| Arc::make_mut(east.world.identity.as_mut().unwrap()).federated.clear(),
            ("BundleDistributed", "AwaitingWorkloadApi"),
            ("Reciprocal", "PeerRefusesUs"),
        ),
        (
            |east| {
                let message = "PermissionDenied: no identity issued".to_owned();
                let since = east.world.now.saturating_sub(PATIENCE).unwrap();
                east.world.workload_failure = Some(WorkloadFailure { since, message });
            },
            ("BundleDistributed", "WorkloadApiUnavailable"),
            ("Reciprocal", "PeerRefusesUs"),
        ),
        (
            |east| east.endpoint().failure = failure(FetchProblem::EndpointUnreachable),
            ("BundleEndpointHealthy", "EndpointUnreachable"),
            ("RotationSafe", "PeerCannotFetchOurBundle"),
        ),
        (
            |east| east.endpoint().failure = failure(FetchProblem::BundleUnparseable),
            ("BundleEndpointHealthy", "BundleUnparseable"),
            ("RotationSafe", "PeerCannotFetchOurBundle"),
        ),
    ];
    for (break_east, here, there) in cases {
        let (east, west) = after(break_east);
        let (status, reason, message) = east.says(here.0);
        assert_eq!((status.as_str(), reason.as_str()), ("False", here.1), "{message}");
        let (status, reason, told) = west.says(there.0);
        assert_eq!((status.as_str(), reason.as_str()), ("False", there.1), "{told}");
        // Only fixed words: who has its endpoint lead us into our networks reads nothing of what is there.
        assert!(told.contains(here.1), "{told}: not {}", here.1);
        assert!(!told.contains(&message) && !told.contains("10.0.0.5"), "{told}; here: {message}");
        let is_failed = here.0 == ENDPOINT.as_str();
        assert_eq!(message.contains("10.0.0.5"), is_failed, "our operator reads the cause: {message}");
        assert_eq!(east.says("Ready").0, "False");
        assert_eq!(west.says("Ready").0, "False");
        assert_eq!(west.report().troubles, [], "what was told is not told back");
    }
}

#[test]
fn a_suspicious_bundle_is_no_failure_to_fetch_it() {
    let (_, west) = after(|east| {
        let alarm = crate::model::endpoint::BundleAlarm::SequenceWentBack { from: 7, to: 3 };
        east.endpoint().alarms = vec![alarm];
    });
    assert_eq!(west.says("RotationSafe").1, "PeersHoldAuthorities");
    let (status, _, message) = west.says("Reciprocal");
    assert!(status == "True" && message.contains("SequenceWentBack"), "{message}");
}

#[test]
fn a_workload_api_that_restarts_is_no_trouble() {
    let (mut east, _) = pair();
    let since = east.world.now;
    east.world.workload_failure = Some(WorkloadFailure { since, message: "Unavailable: gone".to_owned() });
    east.pass(9);
    assert_eq!(east.says("BundleDistributed").0, "True");
    assert!(east.report().delivered.is_some());
    assert_eq!(
        plan(&east.world).wake_at,
        since.saturating_add(PATIENCE).ok().filter(|at| *at > east.world.now)
    );
    east.pass(1);
    assert_eq!(east.says("BundleDistributed").1, "WorkloadApiUnavailable");
    assert_eq!(east.report().delivered, None);
    assert_eq!(east.report().troubles.len(), 1);
}

#[test]
fn clocks_that_differ_are_named_by_both_sides() {
    let (mut east, mut west) = after(|_| {});
    let (of_east, of_west) = (east.report(), west.report());
    east.hears(of_west, Some(-60));
    west.hears(of_east, Some(60));
    for (side, words) in [(&east, "about 60 s behind ours"), (&west, "about 60 s ahead of ours")] {
        let (status, reason, message) = side.says("Connected");
        assert_eq!((status.as_str(), reason.as_str()), ("True", "ClocksDiffer"));
        assert!(message.contains(words), "{message}");
        let (_, reason, message) = side.says("Ready");
        assert!(reason != "Ready" && (reason != "ClocksDiffer" || message.contains(words)), "{message}");
    }
}

#[test]
fn what_was_told_before_a_cut_is_no_word() {
    let (mut east, mut west) = after(|east| east.endpoint().failure = failure(FetchProblem::BadResponse));
    west.hears(east.report(), None);
    Arc::make_mut(&mut west.world.sessions).get_mut(&td("east.example")).unwrap().link = LinkState::Idle;
    assert_ne!(west.says("RotationSafe").1, "PeerCannotFetchOurBundle");
    east.pass(1);
    assert_eq!(
        east.report().held,
        Some(HeldBundle::from(east.spire().bundles.values().next().unwrap().as_ref()))
    );
}

/// Our objects, sockets, stores and other peers are nobody else's business.
#[test]
fn nobody_is_told_what_is_called_how_here() {
    let secret = "ClusterSPIFFEID payroll, unix:///run/secret.sock, etcd: denied, north.example".to_owned();
    let of = |kind: ConditionType, reason: &str| {
        troubles(&[Condition::worded(kind, false, reason.to_owned(), secret.clone())])
    };
    let distributed = BundleDistributedReason::ALL.iter().map(|reason| (DISTRIBUTED, reason.as_str()));
    let endpoint = BundleEndpointReason::ALL.iter().map(|reason| (ENDPOINT, reason.as_str()));
    let mut words = std::collections::BTreeSet::new();
    for (kind, reason) in distributed.chain(endpoint) {
        let told = of(kind, reason);
        let is_well = ["Distributed", "Ending", "Healthy", "AwaitingFirstFetch"].contains(&reason);
        assert_eq!(told.is_empty(), is_well, "{kind} {reason}");
        for trouble in told {
            assert!(!trouble.message.contains("payroll") && !trouble.message.is_empty(), "{trouble:?}");
            assert!(words.insert(trouble.message.clone()), "two reasons, one word: {trouble:?}");
        }
    }
    assert_eq!(of(DISTRIBUTED, "Other"), [], "what is no reason is not told");
}

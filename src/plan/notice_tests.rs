use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::*;
use crate::bundle::testing::{Ca, NOW};
use crate::model::endpoint::EndpointState;
use crate::model::session::{LinkState, SessionState};
use crate::model::trust::{Relationship, SpireAction, SpireState};
use crate::model::{Bundle, TrustDomain};
use crate::plan::fixtures::{WorldExt as _, peer, td, world};
use crate::plan::{memory, plan};

const EAST: &str = "east.example";

fn east() -> TrustDomain {
    td(EAST)
}

/// Our domain west, related to east, whose endpoint serves what SPIRE holds and the Workload API delivers.
struct Scene {
    world: World,
    ca: Ca,
}

impl Scene {
    fn new() -> Self {
        let mut peer = peer(EAST);
        peer.finalizers = vec![crate::plan::ending::FINALIZER.to_owned()];
        let relationship = Relationship { trust_domain: east(), endpoint: peer.endpoint.clone() };
        let mut world = world("west.example").with_peer(peer);
        world.now = Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap();
        let spire =
            SpireState { relationships: BTreeMap::from([(east(), relationship)]), ..SpireState::default() };
        world.spire = Some(Arc::new(spire));
        let mut scene = Self { world, ca: Ca::new() };
        let bundle = scene.ca.bundle(EAST);
        scene.stores(&bundle);
        scene.delivers(&bundle);
        scene.serves(&bundle);
        scene.tells(&bundle);
        scene.pass(1);
        scene
    }

    fn stores(&mut self, bundle: &Arc<Bundle>) {
        let spire = Arc::make_mut(self.world.spire.as_mut().unwrap());
        spire.bundles.insert(east(), Arc::clone(bundle));
    }

    fn delivers(&mut self, bundle: &Arc<Bundle>) {
        let identity = Arc::make_mut(self.world.identity.as_mut().unwrap());
        identity.federated.insert(east(), Arc::clone(bundle));
    }

    /// The endpoint was asked a moment ago, and served this.
    fn serves(&mut self, bundle: &Arc<Bundle>) {
        self.world.moment = self.world.moment.saturating_add(SignedDuration::from_millis(1)).unwrap();
        let state = EndpointState {
            latest: Some(Arc::clone(bundle)),
            latest_usable: Some(Arc::clone(bundle)),
            asked_at: Some(self.world.moment),
            since: Some(self.world.now),
            ..EndpointState::default()
        };
        Arc::make_mut(&mut self.world.endpoints).insert(east(), state);
    }

    fn tells(&mut self, bundle: &Bundle) {
        let mut session = SessionState::idle(self.world.now);
        session.link = LinkState::Connected;
        session.remote = Some(TrustReport { own: Some(HeldBundle::from(bundle)), ..TrustReport::default() });
        Arc::make_mut(&mut self.world.sessions).insert(east(), session);
    }

    fn pass(&mut self, seconds: i64) {
        self.world.now = self.world.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap();
        self.world.moment = self.world.now.max(self.world.moment);
        self.world.memory = memory::advance(&self.world);
    }

    /// Whether the endpoint is to be asked now.
    fn asks(&self) -> bool {
        plan(&self.world).ask_again.contains_key(&east())
    }

    fn receipt(&self) -> Option<HeldBundle> {
        crate::plan::links::report(&self.world, &east(), None).receipt
    }

    fn rotated(&self) -> Arc<Bundle> {
        Arc::new(Bundle::new(east(), [self.ca.authority(), Ca::new().authority()]))
    }
}

#[test]
fn a_notice_has_the_endpoint_asked_and_what_it_serves_is_refreshed_at_once() {
    let mut scene = Scene::new();
    scene.serves(&scene.ca.bundle(EAST));
    scene.pass(1);
    assert!(!scene.asks(), "all agree");
    let rotated = scene.rotated();
    scene.tells(&rotated);
    scene.pass(1);
    assert!(scene.asks());
    assert_eq!(plan(&scene.world).spire, [], "nothing is taken from the notice itself");
    scene.serves(&rotated);
    scene.pass(0);
    assert!(!scene.asks(), "it is not asked twice");
    assert!(matches!(plan(&scene.world).spire.as_slice(), [SpireAction::RefreshBundle(refresh)]
        if refresh.trust_domain == east() && refresh.served == rotated.digest()));
    scene.stores(&rotated);
    scene.pass(1);
    assert_eq!(plan(&scene.world).spire, []);
    assert_eq!(scene.world.memory[&east()].notice, None);
    assert!(!scene.asks(), "all agree again");
}

#[test]
fn a_notice_that_the_endpoint_never_confirms_is_followed_a_few_times_and_rests() {
    let mut scene = Scene::new();
    let served = scene.ca.bundle(EAST);
    scene.tells(&scene.rotated());
    let mut seconds = Vec::new();
    for second in 1..=600 {
        scene.pass(1);
        if scene.asks() {
            seconds.push(second);
            scene.serves(&served);
        }
    }
    assert_eq!(seconds, [1, 2, 4, 8, 16]);
}

#[test]
fn a_peer_that_changes_its_notice_all_the_time_is_followed_at_a_pace() {
    let mut scene = Scene::new();
    let served = scene.ca.bundle(EAST);
    let mut asked = 0;
    for _ in 0..600 {
        scene.tells(&scene.rotated());
        scene.pass(1);
        if scene.asks() {
            asked += 1;
            scene.serves(&served);
        }
    }
    assert!((100..=142).contains(&asked), "{asked}");
}

#[test]
fn only_a_peer_that_is_connected_is_believed() {
    let mut scene = Scene::new();
    scene.tells(&scene.rotated());
    let sessions = Arc::make_mut(&mut scene.world.sessions);
    sessions.get_mut(&east()).unwrap().link = LinkState::Idle;
    scene.pass(1);
    assert!(!scene.asks());
}

#[test]
fn a_receipt_is_given_once_spires_agents_had_time_to_follow() {
    let mut scene = Scene::new();
    let first = scene.ca.bundle(EAST);
    assert_eq!(scene.receipt(), None);
    let due = scene.world.now.saturating_add(SignedDuration::from_secs(6)).unwrap();
    assert!(plan(&scene.world).wake_at.is_some_and(|at| at <= due), "it is not forgotten");
    scene.pass(5);
    assert_eq!(scene.receipt(), None);
    scene.pass(1);
    assert_eq!(scene.receipt(), Some(HeldBundle::from(first.as_ref())));

    let rotated = scene.rotated();
    scene.stores(&rotated);
    scene.pass(1);
    assert_eq!(
        scene.receipt(),
        Some(HeldBundle::from(first.as_ref())),
        "what was followed is followed still"
    );
    scene.pass(100);
    assert_eq!(
        scene.receipt(),
        Some(HeldBundle::from(first.as_ref())),
        "the Workload API does not deliver it"
    );
    scene.delivers(&rotated);
    scene.pass(0);
    assert_eq!(scene.receipt(), Some(HeldBundle::from(rotated.as_ref())));

    // An authority that is gone is not receipted any more.
    scene.stores(&first);
    scene.pass(1);
    assert_eq!(scene.receipt(), None);
    scene.delivers(&first);
    scene.pass(6);
    assert_eq!(scene.receipt(), Some(HeldBundle::from(first.as_ref())));
    Arc::make_mut(scene.world.spire.as_mut().unwrap()).bundles.clear();
    scene.pass(1);
    assert_eq!(scene.receipt(), None);
}

#[test]
fn a_bundle_that_is_replaced_in_spire_is_put_back_each_time() {
    let mut scene = Scene::new();
    let own = scene.ca.bundle(EAST);
    let wrong = Ca::new().bundle(EAST);
    for turn in 0..3 {
        scene.stores(&wrong);
        scene.pass(1);
        assert!(scene.asks(), "turn {turn}: SPIRE may be ahead");
        scene.serves(&own);
        scene.pass(0);
        assert_eq!(plan(&scene.world).spire, [SpireAction::SetBundle(Arc::clone(&own))], "turn {turn}");
        scene.stores(&own);
        scene.pass(1);
        assert_eq!(plan(&scene.world).spire, [], "turn {turn}");
    }
}

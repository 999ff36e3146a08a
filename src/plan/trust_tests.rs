//! Trust over time: onboarding, poisoned bundles, ending, the verdict; each step a world, and what is planned for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use super::ending::{FINALIZER, Stage, stage};
use super::fixtures::{WorldExt as _, id, peer, td, world};
use super::registrations::{Want, entry_actions, not_ours, patches, reverted, want};
use super::{finalizers, memory, monitors, plan, poison, relationship, verdict};
use crate::api::v1alpha1::conditions::ReciprocalReason as Reason;
use crate::bundle::testing::{Ca, NOW, ca_params};
use crate::model::change::PatchOp;
use crate::model::condition::Truth;
use crate::model::endpoint::{EndpointState, EndpointUrl, FetchFailure, FetchProblem, Proof};
use crate::model::object::{Kind, ObjectKey};
use crate::model::peer::RegistrationSelection;
use crate::model::registration::{ANNOTATION_RECORD, Record, Registration};
use crate::model::session::{GoodbyeReason, HeldBundle, LinkState, Refusal, SessionState, TrustReport};
use crate::model::trust::{
    BundleRemoval, Entry, LocalAuthorities, LocalAuthority, LocalServer, Refresh, Relationship, SpireAction,
    SpireState,
};
use crate::model::world::Relationships;
use crate::model::{AuthorityId, Bundle, Peer, World};

const EAST: &str = "east.example";

#[path = "contest_tests.rs"]
mod contest_tests;

/// West, with a peer east, at a time at which test certificates are valid.
struct Scene {
    world: World,
    east: Arc<Bundle>,
}

fn now() -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap()
}

fn registration(name: &str, is_agent: bool) -> Registration {
    Registration {
        key: ObjectKey::cluster(Kind::ClusterStaticEntry, name),
        uid: format!("uid-of-{name}"),
        resource_version: "7".to_owned(),
        labels: BTreeMap::new(),
        has_annotations: false,
        class_name: String::new(),
        is_agent,
        federates_with: Vec::new(),
        record: Record::default(),
    }
}

impl Scene {
    fn new() -> Self {
        let east = Ca::new().bundle(EAST);
        let mut peer = peer(EAST);
        peer.federates_with = Some(RegistrationSelection::default());
        peer.finalizers = vec![FINALIZER.to_owned()];
        let mut world = world("west.example").with_peer(peer);
        world.now = now();
        let identity = Arc::make_mut(world.identity.as_mut().unwrap());
        identity.bundle = Ca::new().bundle("west.example");
        world.spire = Some(Arc::new(SpireState::default()));
        let mut scene = Self { world, east };
        scene.register(registration("agent", true));
        scene.register(registration("cart", false));
        scene
    }

    /// As it is once SPIRE has relationship and bundle, and the endpoint serves that bundle.
    fn related() -> Self {
        let mut scene = Self::new();
        let east = Arc::clone(&scene.east);
        scene.serves(Arc::clone(&east), 5);
        scene.spire(|spire, peer| {
            let relationship = Relationship { trust_domain: td(EAST), endpoint: peer.endpoint.clone() };
            spire.relationships.insert(td(EAST), relationship);
            spire.bundles.insert(td(EAST), east);
        });
        scene
    }

    fn register(&mut self, registration: Registration) {
        self.world.registrations.insert(registration.key.clone(), Arc::new(registration));
    }

    fn spire(&mut self, change: impl FnOnce(&mut SpireState, &Peer)) {
        let peer = self.peer();
        let mut state = self.world.spire.as_deref().cloned().unwrap();
        change(&mut state, &peer);
        self.world.spire = Some(Arc::new(state));
    }

    fn serves(&mut self, bundle: Arc<Bundle>, good_in_a_row: u32) {
        let usable = bundle.is_usable_at(now()).then(|| Arc::clone(&bundle));
        let states = Arc::make_mut(&mut self.world.endpoints);
        let state = states.entry(td(EAST)).or_default();
        let latest_usable = usable.or_else(|| state.latest_usable.clone());
        *state = EndpointState {
            latest: Some(bundle),
            latest_usable,
            good_in_a_row,
            since: Some(now()),
            ..EndpointState::default()
        };
    }

    /// What SPIRE is asked to do, once the endpoint was asked again where that is needed first.
    fn actions(&mut self) -> Vec<SpireAction> {
        self.pass(1);
        if !plan(&self.world).ask_again.is_empty() {
            assert_eq!(relationship::actions(&self.world, &self.peer()), [], "nothing is concluded before");
            self.pass(1);
            let asked_at = Some(self.world.now);
            Arc::make_mut(&mut self.world.endpoints).get_mut(&td(EAST)).unwrap().asked_at = asked_at;
        }
        relationship::actions(&self.world, &self.peer())
    }

    fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.world.peers[&td(EAST)])
    }

    fn change_peer(&mut self, change: impl FnOnce(&mut Peer)) {
        change(Arc::make_mut(self.world.peers.get_mut(&td(EAST)).unwrap()));
    }

    fn link(&mut self, link: LinkState, remote: Option<TrustReport>) {
        let mut session = SessionState::idle(now());
        session.link = link;
        session.remote = remote;
        Arc::make_mut(&mut self.world.sessions).insert(td(EAST), session);
    }

    /// Time goes by, and the memory with it.
    fn pass(&mut self, seconds: i64) {
        self.world.now = Timestamp::from_second(self.world.now.as_second() + seconds).unwrap();
        self.world.moment = self.world.now;
        self.world.memory = memory::advance(&self.world);
    }

    /// Makes the patches true, as the store would.
    fn write_patches(&mut self) -> usize {
        let patches = patches(&self.world);
        for patch in &patches {
            let mut registration = self.world.registrations[&patch.key].as_ref().clone();
            for op in &patch.ops {
                match op {
                    PatchOp::Add { path, value } if path == "/spec/federatesWith" => {
                        registration.federates_with = serde_json::from_value(value.clone()).unwrap();
                    }
                    PatchOp::Add { path, value } if path.contains("entente.dev") => {
                        registration.has_annotations = true;
                        let text: serde_json::Value = serde_json::from_str(value.as_str().unwrap()).unwrap();
                        let list = |name: &str| -> BTreeSet<_> {
                            text[name].as_array().unwrap().iter().map(|v| td(v.as_str().unwrap())).collect()
                        };
                        registration.record = Record { added: list("added"), suspended: list("suspended") };
                    }
                    PatchOp::Remove { .. } => registration.record = Record::default(),
                    PatchOp::Add { path, .. } => assert_eq!(path, "/metadata/annotations"),
                    PatchOp::Replace { .. } | PatchOp::Test { .. } => panic!("unexpected {op:?}"),
                }
            }
            self.register(registration);
        }
        patches.len()
    }

    fn names(&self, name: &str) -> Vec<String> {
        let key = ObjectKey::cluster(Kind::ClusterStaticEntry, name);
        self.world.registrations[&key].federates_with.clone()
    }

    fn verdict(&self) -> Option<(Truth, Reason)> {
        verdict::reciprocal(&self.world, &self.peer()).map(|v| (v.truth, v.reason))
    }
}

fn empty() -> Arc<Bundle> {
    Arc::new(Bundle::new(td(EAST), []))
}

#[test]
fn nothing_federates_before_spire_holds_relationship_and_bundle() {
    let mut scene = Scene::new();
    scene.serves(Arc::clone(&scene.east), 1);
    assert_eq!(patches(&scene.world), []);
    let east = Arc::clone(&scene.east);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), east);
    });
    assert_eq!(patches(&scene.world), [], "a bundle alone is not kept fresh");
    let mut scene = Scene::related();
    assert_eq!(scene.write_patches(), 2);
    assert_eq!(scene.names("agent"), [EAST]);
    assert_eq!(scene.names("cart"), [EAST]);
    assert_eq!(scene.write_patches(), 0, "a settled registration is not written");
}

#[test]
fn unselected_registrations_are_left_alone() {
    let mut scene = Scene::related();
    scene.change_peer(|peer| peer.federates_with = None);
    assert_eq!(scene.write_patches(), 1);
    assert_eq!(scene.names("agent"), [EAST]);
    assert!(scene.names("cart").is_empty());
}

#[test]
fn what_the_user_wrote_stays_and_what_someone_reverts_is_not_fought_over() {
    let mut scene = Scene::related();
    let mut cart = registration("cart", false);
    cart.federates_with = vec!["other.example".to_owned(), EAST.to_owned()];
    scene.register(cart);
    scene.write_patches();
    assert_eq!(scene.names("cart"), ["other.example", EAST]);
    assert!(reverted(&scene.world, &scene.peer()).is_empty());

    let key = ObjectKey::cluster(Kind::ClusterStaticEntry, "agent");
    let mut agent = scene.world.registrations[&key].as_ref().clone();
    agent.federates_with.clear();
    scene.register(agent);
    assert_eq!(scene.write_patches(), 0);
    assert_eq!(reverted(&scene.world, &scene.peer()), [key.to_string()]);
}

/// spire-controller-manager takes it so too; two of the same would have it update the entry for ever.
#[test]
fn a_trust_domain_that_is_written_as_a_spiffe_id_is_the_same_one() {
    let as_id = format!("spiffe://{EAST}");
    let mut scene = Scene::related();
    let mut cart = registration("cart", false);
    cart.federates_with = vec!["other.example".to_owned(), as_id.clone(), "no://domain".to_owned()];
    scene.register(cart.clone());
    scene.pass(1);
    assert_eq!(scene.write_patches(), 1, "the agent's own");
    assert_eq!(scene.names("cart"), cart.federates_with);

    scene.change_peer(|peer| peer.withdraw = true);
    assert_eq!(scene.write_patches(), 2);
    assert_eq!(scene.names("cart"), ["other.example", "no://domain"]);
    scene.change_peer(|peer| peer.withdraw = false);
    assert_eq!(scene.write_patches(), 2);
    assert_eq!(scene.names("cart"), ["other.example", "no://domain", EAST]);

    // Someone writes it beside what the agent has added: theirs stays.
    let mut cart = registration("cart", false);
    (cart.federates_with, cart.has_annotations) = (vec![as_id.clone(), EAST.to_owned()], true);
    cart.record.added.insert(td(EAST));
    scene.register(cart);
    assert_eq!((scene.write_patches(), scene.names("cart")), (1, vec![as_id]));
    assert_eq!(scene.write_patches(), 0);

    scene.change_peer(|peer| {
        peer.deletion = Some(now());
        peer.ending.at_once = true;
    });
    assert_eq!(scene.write_patches(), 2);
    assert!(scene.names("cart").is_empty());
}

#[test]
fn a_poisoned_bundle_is_withdrawn_at_once_and_comes_back_after_three_good_fetches() {
    let mut scene = Scene::related();
    scene.write_patches();
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), empty());
    });
    scene.serves(empty(), 0);
    scene.pass(1);
    assert_eq!(want(&scene.world, &scene.peer()), Want::Suspend);
    assert_eq!(scene.write_patches(), 2);
    assert!(scene.names("cart").is_empty() && scene.names("agent").is_empty());

    // The endpoint is good again: SPIRE, which cannot verify it any more, is given the bundle, but nobody federates yet.
    scene.serves(Arc::clone(&scene.east), 1);
    assert_eq!(scene.actions(), [SpireAction::SetBundle(Arc::clone(&scene.east))]);
    let east = Arc::clone(&scene.east);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), east);
    });
    scene.pass(1);
    assert_eq!(scene.write_patches(), 0);
    scene.serves(Arc::clone(&scene.east), 3);
    scene.pass(1);
    assert_eq!(scene.write_patches(), 2);
    assert_eq!(scene.names("cart"), [EAST]);
    scene.pass(1);

    // The second time it is held back twice as long.
    scene.serves(empty(), 0);
    scene.pass(1);
    scene.write_patches();
    for good in [3, 5] {
        scene.serves(Arc::clone(&scene.east), good);
        scene.pass(1);
        assert_eq!(scene.write_patches(), 0);
    }
    scene.serves(Arc::clone(&scene.east), 6);
    scene.pass(1);
    assert_eq!(scene.write_patches(), 2);
}

/// SPIRE takes what its agents cannot receive, and then none of them renews any SVID of theirs. Entries are of no account.
#[test]
fn a_bundle_that_is_too_large_is_withdrawn_as_any_poison() {
    let mut scene = Scene::related();
    scene.pass(1);
    scene.write_patches();
    let failure = FetchFailure { problem: FetchProblem::BundleTooLarge, message: "endless".to_owned() };
    Arc::make_mut(&mut scene.world.endpoints).get_mut(&td(EAST)).unwrap().failure = Some(failure);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), empty());
        spire.too_large.insert(td(EAST));
        spire.entries_failure = Some("they are too many".to_owned());
    });
    scene.pass(1);
    assert_eq!(scene.write_patches(), 2);
    assert!(scene.names("cart").is_empty() && scene.names("agent").is_empty());
    let said = distributed(&scene);
    assert!(said.starts_with("SuspendedOversizedBundle") && said.contains("of more than 1 MiB"), "{said}");
    let east = Arc::clone(&scene.east);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), east);
        spire.too_large.clear();
    });
    for (good, restored) in [(6, 0), (7, 0), (8, 2)] {
        scene.serves(Arc::clone(&scene.east), good);
        scene.pass(1);
        assert_eq!(scene.write_patches(), restored, "{good}");
    }
    assert!(distributed(&scene).starts_with("SpireUnavailable"), "{}", distributed(&scene));
    scene.change_peer(|peer| peer.deletion = Some(now()));
    scene.link(LinkState::Idle, None);
    Arc::make_mut(&mut scene.world.sessions).get_mut(&td(EAST)).unwrap().parted = true;
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Spire("they are too many".to_owned())));
}

/// SPIRE, and the channels to it, may outlast a jump of our clock.
#[test]
fn a_clock_that_has_left_our_own_authorities_behind_poisons_nobody() {
    let mut scene = Scene::related();
    scene.pass(1);
    assert_eq!(want(&scene.world, &scene.peer()), Want::Federate);
    scene.pass(100 * 365 * 86_400);
    assert!(!scene.east.is_usable_at(scene.world.now));
    assert_eq!(want(&scene.world, &scene.peer()), Want::Federate);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), empty());
    });
    scene.pass(1);
    assert_eq!(want(&scene.world, &scene.peer()), Want::Suspend, "no clock makes that usable");
}

#[test]
fn good_fetches_before_the_poison_do_not_count() {
    let mut scene = Scene::related();
    scene.serves(Arc::clone(&scene.east), 900);
    scene.pass(1);
    scene.write_patches();
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), empty());
    });
    scene.pass(1);
    scene.write_patches();
    let east = Arc::clone(&scene.east);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), east);
    });
    for (good, restored) in [(901, 0), (902, 0), (903, 2)] {
        scene.serves(Arc::clone(&scene.east), good);
        scene.pass(1);
        assert_eq!(scene.write_patches(), restored, "{good}");
    }
}

#[test]
fn spire_that_is_ahead_of_us_is_left_alone() {
    let mut scene = Scene::related();
    let rotated = Ca::new().bundle(EAST);
    let newer = Arc::clone(&rotated);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), newer);
    });
    scene.pass(1);
    assert_eq!(plan(&scene.world).ask_again, BTreeMap::from([(td(EAST), scene.world.now)]));
    assert_eq!(relationship::actions(&scene.world, &scene.peer()), [], "what we hold may be old, or revoked");
    scene.serves(rotated, 6);
    assert_eq!(scene.actions(), []);
}

#[test]
fn an_endpoint_that_serves_another_bundle_each_time_is_left_alone_for_longer() {
    let mut scene = Scene::related();
    let shared = Ca::new();
    let mut asked = 0;
    for _ in 0..120 {
        let next = Bundle::new(td(EAST), [shared.authority(), Ca::new().authority()]);
        scene.serves(Arc::new(next), 5);
        asked += scene.actions().len();
        // SPIRE follows, and gets another one.
        let other = Bundle::new(td(EAST), [shared.authority(), Ca::new().authority()]);
        scene.spire(|spire, _| {
            spire.bundles.insert(td(EAST), Arc::new(other));
        });
    }
    assert!(
        (10..=26).contains(&asked),
        "{asked} in two to four minutes: ten, and then one every 15 s at most"
    );
}

#[test]
fn an_old_answer_of_a_silent_endpoint_poisons_nothing() {
    let mut scene = Scene::related();
    scene.pass(1);
    scene.write_patches();
    let state = Arc::make_mut(&mut scene.world.endpoints).get_mut(&td(EAST)).unwrap();
    state.latest = Some(empty());
    state.failure =
        Some(FetchFailure { problem: FetchProblem::EndpointUnreachable, message: "gone".to_owned() });
    scene.pass(1);
    assert_eq!(scene.write_patches(), 0, "SPIRE holds a usable bundle");
}

#[test]
fn a_bootstrap_bundle_that_was_replaced_starts_over() {
    let mut scene = Scene::related();
    let bundle_of = |scene: &Scene| relationship::freshest(&scene.world, &scene.peer());
    assert_eq!(bundle_of(&scene), Some(Arc::clone(&scene.east)));
    let given = Ca::new().bundle(EAST);
    let inline = Arc::clone(&given);
    scene.change_peer(|peer| peer.bootstrap = Some(crate::model::peer::Bootstrap::Inline(inline)));
    assert_eq!(bundle_of(&scene), Some(given), "what was fetched before descends from another");
}

/// As long as an agent runs, it takes a bootstrap bundle that is gone for no other one; and so does the next.
#[test]
fn a_bootstrap_bundle_that_was_taken_away_while_nobody_ran_starts_nothing_over() {
    use crate::model::peer::Bootstrap;
    let mut scene = Scene::related();
    let given = Ca::new().bundle(EAST);
    let descends_from = Some(given.digest());
    scene.change_peer(|peer| peer.bootstrap = Some(Bootstrap::Inline(given)));
    Arc::make_mut(&mut scene.world.endpoints).get_mut(&td(EAST)).unwrap().descends_from = descends_from;
    let object = relationship::object(&scene.world, &scene.peer()).unwrap();
    scene.world = scene.world.clone().with_object(object.clone());
    (scene.world.endpoints, scene.world.memory) = Default::default();
    scene.change_peer(|peer| peer.bootstrap = None);
    let kept = |scene: &Scene| relationship::persisted(&scene.world, &scene.peer()).map(|b| b.digest());
    assert_eq!(kept(&scene), Some(scene.east.digest()));
    assert_eq!(relationship::object(&scene.world, &scene.peer()), Some(object));
    let other = Ca::new().bundle(EAST);
    scene.change_peer(|peer| peer.bootstrap = Some(Bootstrap::Inline(other)));
    assert_eq!(kept(&scene), None);
}

#[test]
fn what_stands_is_not_pruned_for_someone_elses_object() {
    let mut scene = Scene::related();
    let mut ours = relationship::object(&scene.world, &scene.peer()).unwrap();
    ours.meta.created = Some(now());
    let key = ObjectKey::cluster(Kind::ClusterFederatedTrustDomain, "by-hand");
    let other = |created: i64, class: &str| {
        let spec = json!({ "trustDomain": EAST, "className": class });
        let mut other = crate::model::Object::desired(key.clone(), spec);
        other.meta.created = Timestamp::from_second(now().as_second() + created).ok();
        other
    };
    scene.world = scene.world.clone().with_object(ours);
    for (created, class, blocked) in [(-10, "", true), (10, "", false), (-10, "another", false)] {
        scene.world = scene.world.clone().with_object(other(created, class));
        scene.pass(1);
        let plan = plan(&scene.world);
        assert!(plan.prune.is_empty(), "{created} {class}");
        let status = plan.statuses.values().next().unwrap().status.to_string();
        assert_eq!(status.contains("ObjectNotOurs"), blocked, "{created} {class}: {status}");
    }
}

#[test]
fn what_was_handed_over_under_another_name_goes_once_ours_stands_beside_it() {
    let mut scene = Scene::related();
    let mut theirs = relationship::object(&scene.world, &scene.peer()).unwrap();
    theirs.key.name = "by-hand".to_owned();
    theirs.meta = crate::model::object::Meta { uid: "theirs".to_owned(), ..Default::default() };
    theirs.meta.created = Timestamp::from_second(now().as_second() - 10).ok();
    let planned = |scene: &mut Scene, theirs: &crate::model::Object| {
        scene.world = scene.world.clone().with_object(theirs.clone());
        scene.pass(1);
        plan(&scene.world)
    };
    let before = planned(&mut scene, &theirs);
    assert!(before.writes.is_empty() && before.prune.is_empty(), "it was not handed over");
    theirs.meta.annotations.insert("entente.dev/adopt".to_owned(), "true".to_owned());
    let first = planned(&mut scene, &theirs);
    let wrote: Vec<_> = first.writes.values().map(|write| write.object.clone()).collect();
    assert!(wrote.len() == 1 && first.prune.is_empty(), "ours first, and nothing goes before it stands");
    let mut ours = wrote[0].as_ref().clone();
    ours.meta.created = Some(now());
    ours.meta.uid = "ours".to_owned();
    scene.world = scene.world.clone().with_object(ours.clone());
    let then = planned(&mut scene, &theirs);
    assert_eq!(then.prune, BTreeMap::from([(theirs.key.clone(), "theirs".to_owned())]));
    // Someone's tool brings it back: it is younger, is not obeyed, and is not fought.
    theirs.meta.created = Timestamp::from_second(now().as_second() + 10).ok();
    assert!(planned(&mut scene, &theirs).prune.is_empty());
    // Ours says something else than the peer wants now: it is written first.
    theirs.meta.created = Timestamp::from_second(now().as_second() - 10).ok();
    ours.body["spec"]["bundleEndpointURL"] = json!("https://elsewhere.example");
    scene.world = scene.world.clone().with_object(ours);
    assert!(planned(&mut scene, &theirs).prune.is_empty());
}

#[test]
fn nothing_is_begun_before_the_finalizer_stands() {
    let mut scene = Scene::related();
    scene.change_peer(|peer| peer.finalizers.clear());
    scene.pass(1);
    let before = plan(&scene.world);
    let keys: Vec<_> = before.patches.iter().map(|patch| patch.key.kind).collect();
    assert_eq!((keys, before.writes.len(), before.spire.len()), (vec![Kind::TrustDomainPeer], 0, 0));
    scene.change_peer(|peer| peer.finalizers = vec![FINALIZER.to_owned()]);
    assert_eq!((plan(&scene.world).patches.len(), plan(&scene.world).writes.len()), (2, 1));
}

#[test]
fn an_ending_waits_for_spire_and_for_the_goodbye_even_when_suspended_before() {
    let mut scene = Scene::related();
    scene.write_patches();
    let object = relationship::object(&scene.world, &scene.peer()).unwrap();
    scene.world = scene.world.clone().with_object(object.clone());
    scene.change_peer(|peer| {
        peer.suspend = true;
        peer.deletion = Some(now());
    });
    scene.link(LinkState::Idle, None);
    assert!(plan(&scene.world).prune.is_empty());
    Arc::make_mut(&mut scene.world.sessions).get_mut(&td(EAST)).unwrap().parted = true;
    scene.spire(|spire, _| spire.failure = Some("no answer".to_owned()));
    assert!(matches!(stage(&scene.world, &scene.peer()), Some(Stage::Spire(_))));
    assert!(plan(&scene.world).prune.is_empty() && patches(&scene.world).is_empty());
}

#[test]
fn another_object_of_the_trust_domain_blocks_ours_and_is_named() {
    let mut scene = Scene::related();
    let key = ObjectKey::cluster(Kind::ClusterFederatedTrustDomain, "by-hand");
    let other = crate::model::Object::desired(key, json!({ "trustDomain": EAST }));
    scene.world = scene.world.clone().with_object(other);
    scene.pass(1);
    let plan = plan(&scene.world);
    assert!(plan.writes.is_empty());
    let status = plan.statuses.values().next().unwrap().status.to_string();
    assert!(status.contains("ObjectNotOurs") && status.contains("by-hand"), "{status}");
}

/// The peers east, and north after it; what each one's endpoint and SPIRE hold of it.
fn with_north(scene: &mut Scene, north: &Arc<Bundle>, created: i64) {
    let mut peer = peer("north.example");
    peer.created = Timestamp::from_second(now().as_second() + created).ok();
    scene.world = scene.world.clone().with_peer(peer);
    let state = EndpointState {
        latest: Some(Arc::clone(north)),
        latest_usable: Some(Arc::clone(north)),
        since: Some(now()),
        ..EndpointState::default()
    };
    Arc::make_mut(&mut scene.world.endpoints).insert(td("north.example"), state);
    let bundle = Arc::clone(north);
    scene.spire(|spire, _| {
        spire.bundles.insert(td("north.example"), bundle);
    });
}

fn harms(scene: &Scene) -> Vec<String> {
    let poisoned = scene.world.memory.iter().filter(|(_, memory)| memory.poisoned.is_some());
    poisoned.map(|(trust_domain, _)| trust_domain.to_string()).collect()
}

/// The bundle of east, with an authority of someone else's.
fn stolen(scene: &Scene, from: &Bundle) -> Arc<Bundle> {
    let both = scene.east.authorities().chain(from.authorities()).cloned();
    Arc::new(Bundle::new(td(EAST), both))
}

#[test]
fn who_serves_our_authority_is_suspended_and_spire_is_not_given_it() {
    let mut scene = Scene::related();
    scene.pass(1);
    scene.write_patches();
    let own = Arc::clone(&scene.world.identity.as_ref().unwrap().bundle);
    let bad = stolen(&scene, &own);
    scene.serves(Arc::clone(&bad), 890);
    assert_eq!(scene.actions(), []);
    assert_eq!(harms(&scene), [EAST]);
    assert_eq!(scene.write_patches(), 2);
    assert!(scene.names("cart").is_empty());
    let status = plan(&scene.world).statuses.into_values().next().unwrap().status.to_string();
    assert!(status.contains("SuspendedSharedAuthority") && status.contains("west.example"), "{status}");
    // Good fetches before and during it do not count.
    scene.serves(bad, 900);
    scene.pass(1);
    for (good, restored) in [(901, 0), (902, 0), (903, 2)] {
        scene.serves(Arc::clone(&scene.east), good);
        scene.pass(1);
        assert_eq!(scene.write_patches(), restored, "{good}");
    }
}

#[test]
fn nobody_throws_another_out_by_serving_its_authority() {
    let north = Ca::new().bundle("north.example");
    // North was there later, but what was kept of it has the authority.
    let mut scene = Scene::related();
    with_north(&mut scene, &north, 100);
    let mut kept = relationship::object(&scene.world, &scene.world.peers[&td("north.example")]).unwrap();
    kept.meta.uid = "kept".to_owned();
    scene.world = scene.world.clone().with_object(kept);
    let bad = stolen(&scene, &north);
    scene.serves(bad, 5);
    scene.pass(1);
    assert_eq!(harms(&scene), [EAST]);
    let good = Arc::clone(&scene.east);
    assert_ne!(
        relationship::freshest(&scene.world, &scene.peer()).map(|b| b.digest()),
        Some(stolen(&scene, &north).digest())
    );
    scene.serves(good, 9);
    scene.pass(1);
    assert!(harms(&scene).is_empty());

    // Nothing is kept of either: the older TrustDomainPeer has it, but for one whose bundle is in use already.
    for (created, in_use, suspended) in
        [(-1_000_000_000, false, EAST), (100, false, "north.example"), (100, true, EAST)]
    {
        let mut scene = Scene::related();
        with_north(&mut scene, &north, created);
        if in_use {
            scene.pass(1);
        } else {
            scene.spire(|spire, _| {
                spire.bundles.remove(&td("north.example"));
            });
        }
        let bad = stolen(&scene, &north);
        scene.serves(bad, 5);
        scene.pass(1);
        assert_eq!(harms(&scene), [suspended]);
    }
}

#[test]
fn an_authority_is_that_of_the_trust_domain_that_it_names() {
    let mut params = ca_params();
    params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://north.example".try_into().unwrap())];
    let ca = Ca::with(params);
    let named = ca.bundle("north.example");
    // East is older, and saw it first.
    let mut scene = Scene::related();
    let bad = stolen(&scene, &named);
    scene.serves(Arc::clone(&bad), 5);
    let kept = relationship::object(&scene.world, &scene.peer()).unwrap();
    scene.world = scene.world.clone().with_object(kept);
    with_north(&mut scene, &named, 100);
    scene.pass(1);
    assert_eq!(harms(&scene), [EAST]);

    // East puts north's key into a certificate that names east: who has no key cannot sign for itself.
    let mut params = ca_params();
    params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://east.example".try_into().unwrap())];
    let forged = ca.public_key_in(params);
    assert_eq!(forged.key(), named.authorities().next().unwrap().key());
    let forged = Bundle::new(td(EAST), scene.east.authorities().cloned().chain([forged]));
    scene.serves(Arc::new(forged), 6);
    scene.pass(1);
    assert_eq!(harms(&scene), [EAST]);
}

/// East serves the public root of north before north is onboarded: who has a certificate under it wins.
#[test]
fn an_authority_is_that_of_who_shows_that_it_uses_it() {
    let (ca, elsewhere) = (Ca::new(), Ca::new());
    let north = ca.bundle("north.example");
    let signs = |ca: &Ca, id: &str| vec![ca.svid(id).der.to_vec()];
    let of_north = "spiffe://north.example/spire/server";
    for (chain, suspended) in [
        (Some(signs(&ca, of_north)), EAST),
        (None, "north.example"),
        (Some(signs(&elsewhere, of_north)), "north.example"),
        (Some(signs(&ca, "spiffe://east.example/spire/server")), "north.example"),
    ] {
        let mut scene = Scene::related();
        let claimed = stolen(&scene, &north);
        scene.serves(Arc::clone(&claimed), 5);
        scene.spire(|spire, _| {
            spire.bundles.insert(td(EAST), claimed);
        });
        scene.pass(1);
        assert!(harms(&scene).is_empty());
        with_north(&mut scene, &north, 100);
        let state = Arc::make_mut(&mut scene.world.endpoints).get_mut(&td("north.example")).unwrap();
        state.proof = chain.map(|chain| Proof { chain, at: now() });
        scene.pass(1);
        assert_eq!(harms(&scene), [suspended]);
        let cause = &scene.world.memory[&td(suspended)].poisoned.as_ref().unwrap().cause;
        assert_eq!(cause.contains("not known"), suspended != EAST, "{cause}");
    }
}

#[test]
fn who_loses_its_bundle_for_a_while_does_not_lose_its_authority() {
    let north = Ca::new().bundle("north.example");
    let mut scene = Scene::related();
    with_north(&mut scene, &north, 100);
    scene.pass(1);
    scene.spire(|spire, _| {
        spire.bundles.insert(td("north.example"), Arc::new(Bundle::new(td("north.example"), [])));
    });
    scene.pass(1);
    let claimed = stolen(&scene, &north);
    scene.serves(Arc::clone(&claimed), 5);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), claimed);
        spire.bundles.insert(td("north.example"), Arc::clone(&north));
    });
    scene.pass(1);
    assert!(harms(&scene).contains(&EAST.to_owned()), "{:?}", harms(&scene));
    assert!(scene.world.memory[&td("north.example")].disputed.is_empty());
}

#[test]
fn the_object_of_a_relationship_outlives_the_loss_of_every_bundle() {
    let mut scene = Scene::related();
    let object = relationship::object(&scene.world, &scene.peer()).unwrap();
    scene.world = scene.world.clone().with_object(object);
    scene.change_peer(|peer| {
        peer.endpoint.profile = crate::model::endpoint::EndpointProfile::HttpsSpiffe {
            endpoint_id: id("spiffe://east.example/endpoint"),
        };
    });
    let identity = Arc::make_mut(scene.world.identity.as_mut().unwrap());
    identity.bundle = Arc::clone(&scene.east);
    scene.pass(1);
    assert_eq!(relationship::freshest(&scene.world, &scene.peer()), None);
    assert!(plan(&scene.world).prune.is_empty());
}

#[test]
fn flaps_are_remembered_over_a_restart_and_forgiven_after_a_day() {
    let mut scene = Scene::related();
    scene.pass(1);
    assert_eq!(poison::annotation(&scene.world, &scene.peer()), None, "nothing is written of a good peer");
    let restarted = |scene: &mut Scene, suspended: bool| {
        let object = relationship::object(&scene.world, &scene.peer()).unwrap();
        let text = object.meta.annotations[poison::ANNOTATION_POISONED].clone();
        assert!(text.contains(&format!("\"suspended\":{suspended}")), "{text}");
        scene.world = scene.world.clone().with_object(object);
        scene.world.memory.clear();
        scene.serves(Arc::clone(&scene.east), 1);
        scene.pass(1);
        assert_eq!(
            relationship::object(&scene.world, &scene.peer()).unwrap().meta.annotations
                [poison::ANNOTATION_POISONED],
            text
        );
    };
    let poisoned = |scene: &mut Scene| {
        scene.serves(empty(), 0);
        scene.pass(1);
    };
    let restored_after = |scene: &mut Scene, fetches: u32| {
        for good in 1..fetches {
            scene.serves(Arc::clone(&scene.east), good);
            scene.pass(1);
            assert_eq!(harms(scene), [EAST], "{good}");
        }
        scene.serves(Arc::clone(&scene.east), fetches);
        scene.pass(1);
        assert!(harms(scene).is_empty());
    };
    poisoned(&mut scene);
    restored_after(&mut scene, 3);
    restarted(&mut scene, false);
    poisoned(&mut scene);
    // It goes down while suspended, and goes on with the same hold-back.
    restarted(&mut scene, true);
    assert_eq!(harms(&scene), [EAST]);
    restored_after(&mut scene, 6);
    restarted(&mut scene, false);
    poisoned(&mut scene);
    restored_after(&mut scene, 12);
    // A day later, with another authority: those of tests live for an hour.
    scene.world.now = Timestamp::from_second(scene.world.now.as_second() + 86_401).unwrap();
    let mut params = ca_params();
    crate::bundle::testing::valid(&mut params, 0, 1_000_000);
    scene.east = Ca::with(params).bundle(EAST);
    let east = Arc::clone(&scene.east);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), east);
    });
    poisoned(&mut scene);
    restored_after(&mut scene, 3);
}

#[test]
fn what_the_user_withdraws_no_registration_names_until_it_is_unset() {
    let mut scene = Scene::related();
    let mut cart = registration("cart", false);
    cart.federates_with = vec![EAST.to_owned()];
    scene.register(cart);
    scene.pass(1);
    scene.write_patches();
    scene.change_peer(|peer| peer.withdraw = true);
    scene.pass(1);
    assert_eq!(scene.write_patches(), 2);
    assert!(scene.names("cart").is_empty() && scene.names("agent").is_empty());
    let status = plan(&scene.world).statuses.into_values().next().unwrap().status.to_string();
    assert!(status.contains("\"Withdrawn\""), "{status}");
    // A restart meanwhile takes it for nothing else, and it holds over any good fetch.
    scene.world.memory.clear();
    for good in [5, 900] {
        scene.serves(Arc::clone(&scene.east), good);
        scene.pass(1);
        assert_eq!(scene.write_patches(), 0);
    }
    scene.change_peer(|peer| peer.withdraw = false);
    scene.pass(1);
    assert_eq!(scene.write_patches(), 2);
    assert_eq!((scene.names("cart"), scene.names("agent")), (vec![EAST.to_owned()], vec![EAST.to_owned()]));
}

#[test]
fn spire_is_given_what_its_reader_refuses() {
    let mut scene = Scene::related();
    let both = Bundle::new(td(EAST), scene.east.authorities().cloned().chain([Ca::new().authority()]));
    let both = Arc::new(both);
    scene.serves(Arc::clone(&both), 5);
    let state = Arc::make_mut(&mut scene.world.endpoints).get_mut(&td(EAST)).unwrap();
    state.refused_by_spire = Some("keys[1]: no use".to_owned());
    assert_eq!(scene.actions(), [SpireAction::SetBundle(both)]);
    assert!(harms(&scene).is_empty(), "SPIRE keeps what it has: nobody is suspended");
}

#[test]
fn a_suspension_outlives_a_restart() {
    let mut scene = Scene::related();
    let mut cart = registration("cart", false);
    cart.record.suspended = BTreeSet::from([td(EAST)]);
    cart.has_annotations = true;
    scene.register(cart);
    scene.serves(Arc::clone(&scene.east), 1);
    scene.pass(1);
    assert_eq!(want(&scene.world, &scene.peer()), Want::Suspend);
    scene.serves(Arc::clone(&scene.east), 3);
    scene.pass(1);
    scene.write_patches();
    assert_eq!(scene.names("cart"), [EAST]);
}

/// The kinds are read one after the other, and one of them may be long in coming.
#[test]
fn what_was_suspended_is_not_restored_before_that_can_be_known() {
    for suspends in [false, true] {
        let mut scene = Scene::related();
        let mut cart = registration("cart", false);
        cart.record.suspended = BTreeSet::from([td(EAST)]);
        cart.has_annotations = true;
        scene.register(cart);
        // Nothing is written into it while the peer is suspended.
        let object = relationship::object(&scene.world, &scene.peer()).filter(|_| suspends);
        scene.world.objects.extend(object.map(|object| (object.key.clone(), Arc::new(object))));
        scene.change_peer(|peer| peer.suspend = suspends);
        scene.serves(Arc::clone(&scene.east), 1);
        assert!(scene.world.read.remove(&Kind::Pod));
        scene.pass(1);
        assert_eq!((want(&scene.world, &scene.peer()), scene.write_patches()), (Want::Leave, 0));
        scene.world.read.insert(Kind::Pod);
        scene.pass(1);
        scene.change_peer(|peer| peer.suspend = false);
        scene.pass(1);
        assert_eq!(
            (want(&scene.world, &scene.peer()), harms(&scene)),
            (Want::Suspend, vec![EAST.to_owned()])
        );
        scene.serves(Arc::clone(&scene.east), 3);
        scene.pass(1);
        scene.write_patches();
        assert_eq!(scene.names("cart"), [EAST]);
    }
}

#[test]
fn a_missing_bundle_suspends_without_a_hold_back() {
    let mut scene = Scene::new();
    let mut cart = registration("cart", false);
    cart.federates_with = vec![EAST.to_owned()];
    scene.register(cart);
    scene.pass(1);
    scene.write_patches();
    assert!(scene.names("cart").is_empty(), "it would get no SVID");
    scene.pass(1);
    let east = Arc::clone(&scene.east);
    scene.serves(Arc::clone(&east), 1);
    scene.spire(|spire, peer| {
        let relationship = Relationship { trust_domain: td(EAST), endpoint: peer.endpoint.clone() };
        spire.relationships.insert(td(EAST), relationship);
        spire.bundles.insert(td(EAST), east);
    });
    scene.pass(1);
    scene.write_patches();
    assert_eq!(scene.names("cart"), [EAST]);
}

#[test]
fn spire_is_asked_to_refresh_or_given_what_it_cannot_verify() {
    let mut scene = Scene::related();
    let next = Ca::new();
    let both = Bundle::new(td(EAST), scene.east.authorities().cloned().chain([next.authority()]));
    scene.serves(Arc::new(both), 5);
    let refresh = Refresh {
        trust_domain: td(EAST),
        stored: Some(scene.east.digest()),
        served: scene.world.endpoints[&td(EAST)].latest.as_ref().unwrap().digest(),
        every: scene.world.settings.poll_interval,
    };
    assert_eq!(scene.actions(), [SpireAction::RefreshBundle(refresh)]);
    scene.serves(next.bundle(EAST), 5);
    assert_eq!(scene.actions(), [SpireAction::SetBundle(next.bundle(EAST))]);
}

#[test]
fn unreadable_spire_changes_nothing() {
    let mut scene = Scene::related();
    scene.write_patches();
    scene.spire(|spire, _| {
        spire.bundles.clear();
        spire.failure = Some("no answer".to_owned());
    });
    scene.pass(1);
    assert_eq!(patches(&scene.world), []);
    assert_eq!(relationship::actions(&scene.world, &scene.peer()), []);
}

#[test]
fn a_relationship_ends_in_the_safe_order() {
    let mut scene = Scene::related();
    scene.write_patches();
    let object = relationship::object(&scene.world, &scene.peer()).unwrap();
    scene.world = scene.world.clone().with_object(object.clone());
    scene.spire(|spire, _| {
        let spiffe_id = id("spiffe://west.example/ns/shop/sa/cart");
        let entry = Entry {
            id: "e".to_owned(),
            spiffe_id,
            selectors: BTreeSet::new(),
            federates_with: BTreeSet::from([td(EAST)]),
        };
        spire.entries.insert(entry.id.clone(), entry);
    });
    scene.change_peer(|peer| {
        peer.deletion = Some(now());
        peer.finalizers = vec![FINALIZER.to_owned()];
    });
    scene.link(LinkState::Connected, None);
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Goodbye));
    assert_eq!(patches(&scene.world), []);

    Arc::make_mut(&mut scene.world.sessions).get_mut(&td(EAST)).unwrap().parted = true;
    let key = ObjectKey::cluster(Kind::ClusterStaticEntry, "cart");
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Registrations(vec![key.to_string()])));
    scene.write_patches();
    assert_eq!((scene.names("cart"), scene.names("agent")), (vec![], vec![EAST.to_owned()]));
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::OwnRegistration));
    scene.write_patches();
    assert!(scene.names("agent").is_empty());

    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Relationship(object.key.to_string())));
    assert!(plan(&scene.world).prune.contains_key(&object.key));
    scene.world.objects.remove(&object.key);
    assert_eq!(relationship::object(&scene.world, &scene.peer()), None, "what has gone does not come back");
    assert!(matches!(stage(&scene.world, &scene.peer()), Some(Stage::Relationship(_))));
    scene.spire(|spire, _| spire.relationships.clear());
    assert!(matches!(stage(&scene.world, &scene.peer()), Some(Stage::Entries(_))));
    scene.pass(100);
    scene.spire(|spire, _| spire.entries.clear());
    scene.pass(1);
    assert!(matches!(stage(&scene.world, &scene.peer()), Some(Stage::Drain(_))));
    assert_eq!(relationship::actions(&scene.world, &scene.peer()), []);
    scene.pass(30);
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Bundle));
    assert_eq!(
        relationship::actions(&scene.world, &scene.peer()),
        [SpireAction::DeleteBundle(td(EAST), BundleRemoval::Restrict)]
    );
    assert_eq!(finalizers::patches(&scene.world), []);
    scene.spire(|spire, _| spire.bundles.clear());
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Done));
    let release = finalizers::patches(&scene.world);
    let op = PatchOp::Add { path: "/metadata/finalizers".to_owned(), value: json!([]) };
    assert_eq!(release.into_iter().map(|p| p.ops).collect::<Vec<_>>(), [vec![op]]);
}

/// Everything that speaks for trust goes in one plan, of the agent and of what the user wrote in what is selected too;
/// then the bundle, out of whatever still names it; the goodbye is waited for last.
#[test]
fn in_an_emergency_trust_goes_first_and_at_once() {
    let mut scene = Scene::related();
    let (mut by_user, mut theirs) = (registration("by-user", false), registration("theirs", false));
    by_user.federates_with = vec![EAST.to_owned(), "north.example".to_owned()];
    by_user.labels = BTreeMap::from([("federate".to_owned(), "true".to_owned())]);
    theirs.federates_with = vec![EAST.to_owned()];
    scene.register(by_user.clone());
    scene.write_patches();
    scene.register(theirs);
    let object = relationship::object(&scene.world, &scene.peer()).unwrap();
    scene.world = scene.world.clone().with_object(object.clone());
    // What SPIRE has of it cannot even be read: objects need no SPIRE.
    scene.spire(|spire, _| {
        let entry = Entry {
            id: "e".to_owned(),
            spiffe_id: id("spiffe://west.example/ns/shop/sa/theirs"),
            selectors: BTreeSet::new(),
            federates_with: BTreeSet::from([td(EAST)]),
        };
        spire.entries.insert(entry.id.clone(), entry);
        spire.failure = Some("no answer".to_owned());
    });
    scene.change_peer(|peer| {
        let selection = peer.federates_with.as_mut().unwrap();
        selection.selector.match_labels = by_user.labels.clone();
        peer.deletion = Some(now());
        peer.finalizers = vec![FINALIZER.to_owned()];
        peer.ending = crate::model::peer::Ending { at_once: true, by: None };
    });
    scene.link(LinkState::Connected, None);

    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Relationship(object.key.to_string())));
    let first = plan(&scene.world);
    assert!(first.prune.contains_key(&object.key), "the relationship goes with federatesWith");
    assert_eq!(first.patches.len(), 3, "agent, by-user, cart: {:?}", first.patches);
    let told = first.statuses.values().next().unwrap().status.to_string();
    assert!(told.contains("ClusterStaticEntry by-user"), "what is still to be stripped is named: {told}");
    assert!(told.contains("theirs") && told.contains("get no SVID"), "what breaks is said before: {told}");
    assert!(first.statuses.values().next().unwrap().transitions.iter().any(|t| t.message.contains("theirs")));
    scene.write_patches();
    assert_eq!(scene.names("by-user"), ["north.example"]);
    assert_eq!(scene.names("theirs"), [EAST], "not selected: not edited");
    assert!(scene.names("agent").is_empty() && scene.names("cart").is_empty());

    assert!(matches!(stage(&scene.world, &scene.peer()), Some(Stage::Relationship(_))));
    scene.world.objects.remove(&object.key);
    assert!(matches!(stage(&scene.world, &scene.peer()), Some(Stage::Spire(_))));
    scene.spire(|spire, _| spire.failure = None);
    assert!(matches!(stage(&scene.world, &scene.peer()), Some(Stage::Relationship(_))));
    assert_eq!(scene.actions(), [SpireAction::DeleteRelationship(td(EAST))], "nobody else is waited for");
    scene.spire(|spire, _| spire.relationships.clear());
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Bundle), "entries do not hold it back");
    assert_eq!(scene.actions(), [SpireAction::DeleteBundle(td(EAST), BundleRemoval::Dissociate)]);
    scene.spire(|spire, _| spire.bundles.clear());
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Goodbye));
    Arc::make_mut(&mut scene.world.sessions).get_mut(&td(EAST)).unwrap().parted = true;
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Done));
}

/// Who refuses a patch, by a webhook or by rights, keeps nobody's trust alive: its registration is waited for last.
#[test]
fn a_registration_that_cannot_be_patched_holds_back_no_emergency() {
    let mut scene = Scene::related();
    scene.write_patches();
    let object = relationship::object(&scene.world, &scene.peer()).unwrap();
    scene.world = scene.world.clone().with_object(object.clone());
    scene.change_peer(|peer| {
        peer.deletion = Some(now());
        peer.ending = crate::model::peer::Ending { at_once: true, by: None };
    });
    scene.link(LinkState::Connected, None);
    let strips = |scene: &Scene| patches(&scene.world).len();
    assert_eq!(strips(&scene), 2);
    scene.world.objects.remove(&object.key);
    assert_eq!(scene.actions(), [SpireAction::DeleteRelationship(td(EAST))]);
    scene.spire(|spire, _| spire.relationships.clear());
    assert_eq!(scene.actions(), [SpireAction::DeleteBundle(td(EAST), BundleRemoval::Dissociate)]);
    scene.spire(|spire, _| spire.bundles.clear());
    assert_eq!((scene.actions(), strips(&scene)), (vec![], 2), "it is tried all the while");
    Arc::make_mut(&mut scene.world.sessions).get_mut(&td(EAST)).unwrap().parted = true;
    let left = ["agent", "cart"].map(|name| ObjectKey::cluster(Kind::ClusterStaticEntry, name).to_string());
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Registrations(left.to_vec())));
    assert_eq!(finalizers::patches(&scene.world), [], "and held until it is done");
    scene.write_patches();
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Done));
}

/// What was shut out stays out, though a restart or a silent SPIRE has the ending look as if it were at an earlier stage.
#[test]
fn an_ending_that_has_passed_the_bundle_brings_no_clients_back() {
    let drops = |scene: &Scene| super::ending::drops_services(&scene.world, &scene.peer());
    let restart = |scene: &mut Scene| scene.link(LinkState::Idle, None);
    let mut scene = Scene::related();
    scene.change_peer(|peer| peer.deletion = Some(now()));
    restart(&mut scene);
    scene.spire(|spire, _| spire.relationships.clear());
    assert!(!drops(&scene), "the bundle is there, and may wait for its drain");
    scene.spire(|spire, _| spire.failure = Some("no answer".to_owned()));
    assert!(!drops(&scene), "as it was read last");
    scene.spire(|spire, _| spire.bundles.clear());
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Goodbye));
    assert!(drops(&scene));
    Arc::make_mut(&mut scene.world.sessions).get_mut(&td(EAST)).unwrap().parted = true;
    assert!(matches!(stage(&scene.world, &scene.peer()), Some(Stage::Spire(_))));
    assert!(drops(&scene));
    scene.world.spire = None;
    assert!(drops(&scene), "nothing names it any more: what SPIRE holds can be no reason");
    scene.write_patches();
    let mut cart = registration("cart", false);
    cart.federates_with = vec![EAST.to_owned()];
    cart.record.added.insert(td(EAST));
    scene.register(cart);
    assert!(!drops(&scene), "a registration names it still");
    scene.register(registration("cart", false));
    Arc::make_mut(&mut scene.world.settings).relationships = Relationships::ServerApi;
    assert!(!drops(&scene), "there SPIRE alone knows");
    scene.change_peer(|peer| peer.deletion = None);
    assert!(!drops(&scene));
}

#[test]
fn who_holds_the_bundle_back_is_named_and_told_once() {
    let mut scene = Scene::related();
    let mut theirs = registration("theirs", false);
    theirs.federates_with = vec![EAST.to_owned()];
    scene.register(theirs);
    scene.spire(|spire, _| {
        spire.relationships.clear();
        let spiffe_id = id("spiffe://west.example/ns/shop/sa/theirs");
        let entry = Entry {
            id: "e".to_owned(),
            spiffe_id,
            selectors: BTreeSet::new(),
            federates_with: BTreeSet::from([td(EAST)]),
        };
        spire.entries.insert(entry.id.clone(), entry);
    });
    scene.change_peer(|peer| peer.deletion = Some(now()));
    scene.link(LinkState::Idle, None);
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &scene.peer().object);
    let told = |scene: &mut Scene| -> Vec<(String, String)> {
        let Some(write) = plan(&scene.world).statuses.remove(&key) else { return Vec::new() };
        scene.world.statuses.insert(key.clone(), Arc::new(write.status));
        let ready = write.transitions.into_iter().filter(|t| t.condition == "Ready");
        ready.map(|t| (t.reason, t.message)).collect()
    };
    assert_eq!(told(&mut scene)[0].0, "Ending", "the goodbye comes first");
    Arc::make_mut(&mut scene.world.sessions).get_mut(&td(EAST)).unwrap().parted = true;
    let news = told(&mut scene);
    let [(reason, message)] = news.as_slice() else { panic!("{news:?}") };
    assert!(
        reason == "EndingHeldBack" && message.contains("ClusterStaticEntry theirs"),
        "{reason}: {message}"
    );
    scene.pass(60);
    assert_eq!(told(&mut scene), [], "it is told once");
    assert_eq!(super::ending::impact(&scene.world, &scene.peer()).not_ours, ["ClusterStaticEntry theirs"]);
}

/// Entries that were made by hand in SPIRE are in no object: they are named once nothing else can explain them.
#[test]
fn entries_that_nothing_explains_are_named_after_a_minute() {
    let mut scene = Scene::related();
    scene.spire(|spire, _| {
        spire.relationships.clear();
        let spiffe_id = id("spiffe://west.example/by-hand");
        let entry = Entry {
            id: "e".to_owned(),
            spiffe_id,
            selectors: BTreeSet::new(),
            federates_with: BTreeSet::from([td(EAST)]),
        };
        spire.entries.insert(entry.id.clone(), entry);
    });
    scene.change_peer(|peer| peer.deletion = Some(now()));
    scene.link(LinkState::Idle, None);
    Arc::make_mut(&mut scene.world.sessions).get_mut(&td(EAST)).unwrap().parted = true;
    scene.pass(1);
    let said = |scene: &Scene| {
        let at = stage(&scene.world, &scene.peer()).unwrap();
        (at.is_held_back(), at.waits_for(&scene.peer()))
    };
    let (held_back, message) = said(&scene);
    assert!(!held_back && message.contains("spiffe://west.example/by-hand"), "{message}");
    assert!(super::ending::wake_at(&scene.world, &scene.peer()).is_some());
    scene.pass(60);
    let (held_back, message) = said(&scene);
    assert!(held_back && message.contains("by hand in SPIRE"), "{message}");
    scene.spire(|spire, _| spire.entries.clear());
    scene.pass(1);
    assert!(matches!(stage(&scene.world, &scene.peer()), Some(Stage::Drain(_))));
}

#[test]
fn what_a_peer_said_of_its_end_stands_over_a_restart() {
    let mut scene = Scene::related();
    let message = "ended by alice@east".to_owned();
    scene.link(LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, message }, None);
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &scene.peer().object);
    let reciprocal = |scene: &mut Scene| {
        if let Some(write) = plan(&scene.world).statuses.remove(&key) {
            scene.world.statuses.insert(key.clone(), Arc::new(write.status));
        }
        let status = scene.world.statuses[&key].to_string();
        let at = status.find("\"reason\":\"PeerEnded\"");
        (at.is_some(), status.contains("ended by alice@east"))
    };
    assert_eq!(reciprocal(&mut scene), (true, true));
    let east = Arc::clone(&scene.east);
    Arc::make_mut(scene.world.identity.as_mut().unwrap()).federated.insert(td(EAST), east);
    scene.link(LinkState::Refused { by: Refusal::NotAccepted, message: String::new() }, None);
    scene.pass(60);
    assert_eq!(reciprocal(&mut scene), (true, true));
    scene.link(LinkState::Connected, Some(TrustReport::default()));
    assert_eq!(reciprocal(&mut scene), (false, false), "it is back");
}

#[test]
fn the_relationship_carries_the_freshest_verified_bundle() {
    let mut scene = Scene::new();
    let spec =
        |scene: &Scene| relationship::object(&scene.world, &scene.peer()).unwrap().spec().cloned().unwrap();
    assert!(
        spec(&scene).get("trustDomainBundle").is_none(),
        "the web's authorities let SPIRE fetch the first one"
    );
    scene.serves(Arc::clone(&scene.east), 1);
    let fetched = spec(&scene)["trustDomainBundle"].clone();
    assert!(fetched.as_str().unwrap().contains("x5c"));
    scene.serves(empty(), 0);
    assert_eq!(spec(&scene)["trustDomainBundle"], fetched, "an empty one is never written");

    // After a restart nothing was fetched yet: what stands in the object is not taken back.
    let object = relationship::object(&scene.world, &scene.peer()).unwrap();
    scene.world = scene.world.clone().with_object(object);
    scene.world.endpoints = Arc::default();
    assert_eq!(spec(&scene)["trustDomainBundle"], fetched);
}

/// SPIRE reaches the peer where we do not, or it went on while no agent ran; then the endpoint becomes another one, for which
/// spire-controller-manager writes the relationship anew, with the bundle in the object.
#[test]
fn a_bundle_that_spire_has_followed_further_than_we_is_not_written_over() {
    let moved = || EndpointUrl::parse("https://moved.example").unwrap();
    let written = |scene: &Scene| {
        let write = plan(&scene.world).writes.into_values().next()?;
        let text = write.object.spec()?["trustDomainBundle"].as_str()?.to_owned();
        let parsed = crate::bundle::document::parse(&td(EAST), text.as_bytes()).ok()?;
        Some(parsed.bundle.digest())
    };
    let asked = |scene: &mut Scene| {
        Arc::make_mut(&mut scene.world.settings).relationships = Relationships::ServerApi;
        match relationship::actions(&scene.world, &scene.peer()).as_slice() {
            [SpireAction::UpdateRelationship(_, bundle)] => bundle.as_ref().map(|bundle| bundle.digest()),
            other => panic!("{other:?}"),
        }
    };
    let (is_fetched, is_anew) = (
        |scene: &mut Scene| {
            let moment = Some(scene.world.moment);
            Arc::make_mut(&mut scene.world.endpoints).get_mut(&td(EAST)).unwrap().fetched_at = moment;
        },
        |scene: &mut Scene| {
            scene.world.endpoints = Arc::default();
            scene.world.memory.clear();
        },
    );
    type Change = fn(&mut Scene);
    let given: Change = |scene| {
        let bundle = Arc::clone(&scene.east);
        scene.change_peer(|peer| peer.bootstrap = Some(crate::model::peer::Bootstrap::Inline(bundle)));
    };
    for (is_continued, change, is_kept) in [
        (true, (|_| ()) as Change, true),
        (true, is_anew, true),
        (false, |_| (), false),
        (true, is_fetched, false),
        (true, given, false),
    ] {
        let mut scene = Scene::related();
        scene.pass(1);
        is_fetched(&mut scene);
        let object = relationship::object(&scene.world, &scene.peer()).unwrap();
        scene.world = scene.world.clone().with_object(object);
        let next = Ca::new().authority();
        let old = scene.east.authorities().filter(|_| is_continued).cloned();
        let rotated = Arc::new(Bundle::new(td(EAST), old.chain([next])));
        let newer = Arc::clone(&rotated);
        scene.spire(|spire, _| drop(spire.bundles.insert(td(EAST), newer)));
        scene.pass(10);
        scene.change_peer(|peer| peer.endpoint.url = moved());
        change(&mut scene);
        let spire = scene.world.spire.take();
        scene.pass(1);
        assert_eq!(written(&scene), None, "nobody knows what SPIRE holds");
        scene.world.spire = spire;
        scene.pass(1);
        let expected = if is_kept { rotated.digest() } else { scene.east.digest() };
        assert_eq!(written(&scene), Some(expected), "{is_continued}");
        // It stands so until SPIRE has it.
        let object = relationship::object(&scene.world, &scene.peer()).unwrap();
        scene.world = scene.world.clone().with_object(object.clone());
        scene.pass(1);
        assert_eq!(relationship::object(&scene.world, &scene.peer()), Some(object));
        assert_eq!(asked(&mut scene), (!is_kept).then_some(expected), "{is_continued}");
    }
}

#[test]
fn without_a_controller_manager_the_server_api_is_asked() {
    let mut scene = Scene::new();
    let settings = Arc::make_mut(&mut scene.world.settings);
    settings.relationships = Relationships::ServerApi;
    scene.serves(Arc::clone(&scene.east), 1);
    let actions = relationship::actions(&scene.world, &scene.peer());
    assert!(matches!(actions.as_slice(), [SpireAction::CreateRelationship(_, Some(_))]), "{actions:?}");
    assert_eq!(patches(&scene.world), []);
}

/// What is asked for is the difference: what an operator writes into an entry meanwhile is not undone.
#[test]
fn an_entry_is_changed_in_the_name_of_the_peer_alone() {
    let mut scene = Scene::related();
    Arc::make_mut(&mut scene.world.settings).relationships = Relationships::ServerApi;
    let entry = |federates_with: &[&str]| Entry {
        id: "e".to_owned(),
        spiffe_id: id("spiffe://west.example/ns/shop/sa/cart"),
        selectors: BTreeSet::new(),
        federates_with: federates_with.iter().map(|name| td(name)).collect(),
    };
    let change = |add: &[&str], remove: &[&str]| {
        let domains = |names: &[&str]| names.iter().map(|name| td(name)).collect();
        SpireAction::ChangeFederatesWith { entry: "e".to_owned(), add: domains(add), remove: domains(remove) }
    };
    for (federates_with, withdraw, expected) in [
        (vec!["other.example"], false, vec![change(&[EAST], &[])]),
        (vec![EAST, "other.example"], false, vec![]),
        (vec![EAST, "other.example"], true, vec![change(&[], &[EAST])]),
        (vec!["other.example"], true, vec![]),
    ] {
        scene.change_peer(|peer| peer.withdraw = withdraw);
        scene.spire(|spire, _| {
            spire.entries.insert("e".to_owned(), entry(&federates_with));
        });
        assert_eq!(entry_actions(&scene.world), expected, "{federates_with:?}");
    }
}

/// An entry has no place for a record; without one, what is not selected any more could be told from what an operator wrote
/// by nobody.
#[test]
fn what_was_added_to_an_entry_goes_once_that_is_not_selected_any_more() {
    let mut scene = Scene::related();
    Arc::make_mut(&mut scene.world.settings).relationships = Relationships::ServerApi;
    let entry = |name: &str, federates: bool| Entry {
        id: name.to_owned(),
        spiffe_id: id(&format!("spiffe://west.example/{name}")),
        selectors: BTreeSet::new(),
        federates_with: federates.then(|| td(EAST)).into_iter().collect(),
    };
    let enter = |scene: &mut Scene, all: [Entry; 3]| {
        scene.spire(|spire, _| {
            spire.entries = all.into_iter().map(|entry| (entry.id.clone(), entry)).collect()
        });
        scene.pass(1);
    };
    let write = |scene: &mut Scene| {
        let object = relationship::object(&scene.world, &scene.peer()).unwrap();
        let record = object.meta.annotations.get(ANNOTATION_RECORD).cloned();
        scene.world = scene.world.clone().with_object(object);
        record
    };
    let change = |name: &str, adds: bool| {
        let (is, no) = (BTreeSet::from([td(EAST)]), BTreeSet::new());
        let (add, remove) = if adds { (is, no) } else { (no, is) };
        SpireAction::ChangeFederatesWith { entry: name.to_owned(), add, remove }
    };
    let select = |scene: &mut Scene, names: &[&str]| {
        let spiffe_ids = names.iter().map(|name| id(&format!("spiffe://west.example/{name}"))).collect();
        scene.change_peer(|peer| peer.federates_with.as_mut().unwrap().spiffe_ids = spiffe_ids);
        scene.pass(1);
    };
    enter(&mut scene, [entry("by-hand", true), entry("cart", false), entry("shop", false)]);
    select(&mut scene, &["by-hand", "cart", "shop"]);
    scene.world.objects.clear();
    assert_eq!(write(&mut scene), Some(r#"["cart","shop"]"#.to_owned()));
    assert_eq!(entry_actions(&scene.world), [change("cart", true), change("shop", true)]);
    let recorded = scene.world.objects.clone();
    let key = relationship::key(&td(EAST));
    Arc::make_mut(scene.world.objects.get_mut(&key).unwrap()).meta.annotations.remove(ANNOTATION_RECORD);
    assert_eq!(entry_actions(&scene.world), [], "it is written down first");
    scene.world.objects = recorded;

    let all = [entry("by-hand", true), entry("cart", true), entry("shop", true)];
    enter(&mut scene, all.clone());
    assert_eq!(
        (write(&mut scene).unwrap(), entry_actions(&scene.world)),
        (r#"["cart","shop"]"#.to_owned(), vec![])
    );
    // While the entries cannot be listed, nothing is forgotten.
    let read = scene.world.spire.clone();
    scene.spire(|spire, _| {
        spire.entries.clear();
        spire.entries_failure = Some("no answer".to_owned());
    });
    assert_eq!(write(&mut scene).unwrap(), r#"["cart","shop"]"#);
    scene.world.spire.take();
    assert_eq!(write(&mut scene).unwrap(), r#"["cart","shop"]"#, "nor after a restart");
    scene.world.spire = read;
    enter(&mut scene, all);
    select(&mut scene, &["shop"]);
    assert_eq!(entry_actions(&scene.world), [change("cart", false)]);
    assert_eq!(not_ours(&scene.world, &scene.peer()), ["spiffe://west.example/by-hand"]);
    assert_eq!(write(&mut scene).unwrap(), r#"["cart","shop"]"#, "until it is done");
    enter(&mut scene, [entry("by-hand", true), entry("cart", false), entry("shop", true)]);
    assert_eq!((write(&mut scene).unwrap(), entry_actions(&scene.world)), (r#"["shop"]"#.to_owned(), vec![]));

    // The end takes it out of what is recorded, selected or not.
    scene.change_peer(|peer| {
        peer.federates_with = None;
        peer.deletion = Some(now());
    });
    scene.link(LinkState::Idle, None);
    Arc::make_mut(&mut scene.world.sessions).get_mut(&td(EAST)).unwrap().parted = true;
    let shop = vec!["spiffe://west.example/shop".to_owned()];
    assert_eq!(stage(&scene.world, &scene.peer()), Some(Stage::Registrations(shop)));
    assert_eq!(entry_actions(&scene.world), [change("shop", false)]);
}

#[test]
fn each_verdict_names_the_side_and_the_cause() {
    let mut scene = Scene::related();
    scene.link(LinkState::Idle, None);
    assert_eq!(scene.verdict(), Some((Truth::False, Reason::WeDoNotHoldPeerBundle)), "not delivered to us");
    let east = Arc::clone(&scene.east);
    Arc::make_mut(scene.world.identity.as_mut().unwrap()).federated.insert(td(EAST), east);
    assert_eq!(scene.verdict(), None, "too early");
    scene.pass(20);
    assert_eq!(scene.verdict(), Some((Truth::Unknown, Reason::AwaitingPeer)));
    let text = String::new;
    let parted = |reason| LinkState::Parted { reason, message: String::new() };
    let refused = |by| LinkState::Refused { by, message: String::new() };
    for (link, verdict) in [
        (LinkState::Unreachable { message: text() }, (Truth::Unknown, Reason::PeerUnreachable)),
        (refused(Refusal::NotAccepted), (Truth::False, Reason::PeerRefusesUs)),
        (refused(Refusal::Expired), (Truth::False, Reason::PeerRefusesUs)),
        (refused(Refusal::UnknownAuthority), (Truth::False, Reason::PeerHoldsStaleBundle)),
        (LinkState::Unverified { message: text() }, (Truth::False, Reason::WeDoNotHoldPeerBundle)),
        (LinkState::WrongPeerId { message: text() }, (Truth::Unknown, Reason::AwaitingPeer)),
        (parted(GoodbyeReason::RelationshipEnded), (Truth::False, Reason::PeerEnded)),
        (parted(GoodbyeReason::NotTrusted), (Truth::False, Reason::PeerRefusesUs)),
        (parted(GoodbyeReason::Suspended), (Truth::Unknown, Reason::AwaitingPeer)),
        (parted(GoodbyeReason::ShuttingDown), (Truth::Unknown, Reason::PeerUnreachable)),
    ] {
        scene.link(link.clone(), None);
        assert_eq!(scene.verdict(), Some(verdict), "{link:?}");
    }
}

#[test]
fn a_report_is_believed_and_a_stale_bundle_is_forgiven_for_two_intervals() {
    let mut scene = Scene::related();
    let ours = Arc::clone(&scene.world.identity.as_ref().unwrap().bundle);
    let held = |bundle: &Bundle| Some(HeldBundle::from(bundle));
    let report = |bundle: &Bundle| TrustReport {
        held: held(bundle),
        delivered: held(bundle),
        relationship: true,
        ..TrustReport::default()
    };
    scene.link(LinkState::Connected, Some(report(&ours)));
    assert_eq!(scene.verdict(), Some((Truth::True, Reason::Confirmed)));

    scene.link(LinkState::Connected, Some(TrustReport { relationship: false, ..report(&ours) }));
    assert_eq!(scene.verdict(), Some((Truth::False, Reason::PeerHasNoRelationship)));
    scene.link(LinkState::Connected, Some(TrustReport { held: None, ..report(&ours) }));
    assert_eq!(scene.verdict(), Some((Truth::False, Reason::PeerHoldsStaleBundle)));
    scene.link(LinkState::Connected, Some(TrustReport { delivered: None, ..report(&ours) }));
    assert_eq!(scene.verdict(), Some((Truth::False, Reason::PeerRefusesUs)));

    let old = Ca::new().bundle("west.example");
    scene.link(LinkState::Connected, Some(report(&old)));
    scene.pass(1);
    assert_eq!(scene.verdict(), Some((Truth::True, Reason::Confirmed)), "it may take two intervals");
    scene.pass(2 * 300);
    assert_eq!(scene.verdict(), Some((Truth::False, Reason::PeerHoldsStaleBundle)));

    scene.link(LinkState::Connected, Some(report(&old)));
    scene.world.memory = BTreeMap::new();
    let signing = ours.authorities().next().unwrap().id().clone();
    scene.spire(|spire, _| signs_with(spire, signing));
    assert_eq!(
        scene.verdict(),
        Some((Truth::False, Reason::PeerHoldsStaleBundle)),
        "it lacks what signs now"
    );
}

fn signs_with(spire: &mut SpireState, id: AuthorityId) {
    let active = LocalAuthority { id, expires_at: now(), upstream: None };
    let authorities = LocalAuthorities { active, prepared: None, old: None };
    let server = LocalServer { authorities: Some(authorities), failure: None };
    spire.servers.insert("unix:///spire.sock".to_owned(), server);
}

#[test]
fn what_is_missing_here_is_said_of_here() {
    let mut scene = Scene::related();
    scene.link(LinkState::Connected, Some(TrustReport::default()));
    scene.spire(|spire, _| spire.bundles.clear());
    assert_eq!(scene.verdict(), Some((Truth::False, Reason::WeDoNotHoldPeerBundle)));
}

#[test]
fn a_failing_endpoint_heals_nothing() {
    let mut scene = Scene::related();
    scene.spire(|spire, _| spire.bundles.clear());
    let state = Arc::make_mut(&mut scene.world.endpoints).get_mut(&td(EAST)).unwrap();
    state.failure =
        Some(FetchFailure { problem: FetchProblem::EndpointUnreachable, message: "gone".to_owned() });
    assert_eq!(relationship::actions(&scene.world, &scene.peer()), []);
    assert_eq!(want(&scene.world, &scene.peer()), Want::Suspend);
}

#[test]
fn equal_worlds_make_equal_plans_and_a_suspended_peer_is_left_as_it_is() {
    let mut scene = Scene::related();
    assert_eq!(plan(&scene.world), plan(&scene.world.clone()));
    let object = relationship::object(&scene.world, &scene.peer()).unwrap();
    scene.world = scene.world.clone().with_object(object);
    scene.change_peer(|peer| {
        peer.suspend = true;
        peer.finalizers = vec![FINALIZER.to_owned()];
    });
    let plan = plan(&scene.world);
    assert_eq!((plan.writes.len(), plan.prune.len(), plan.patches.len(), plan.spire.len()), (0, 0, 0, 0));
}

#[test]
fn the_status_of_a_peer_is_what_its_schema_says() {
    use crate::api::v1alpha1::TrustDomainPeerStatus;
    let mut scene = Scene::related();
    let ours = Arc::clone(&scene.world.identity.as_ref().unwrap().bundle);
    let held = HeldBundle { digest: ours.digest(), authority_ids: ours.authority_ids() };
    let report = TrustReport {
        held: Some(held.clone()),
        delivered: Some(held.clone()),
        relationship: true,
        ..TrustReport::default()
    };
    scene.link(LinkState::Connected, Some(report));
    let plan = plan(&scene.world);
    let (_, write) = plan.statuses.iter().next().unwrap();
    let status: TrustDomainPeerStatus = serde_json::from_value(write.status.clone()).unwrap();
    let view = status.remote_view.unwrap();
    assert_eq!(view.held, held.authority_ids.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(status.bundle.unwrap().digest, scene.east.digest().to_string());
    assert!(!write.status.to_string().contains("null"), "the API server refuses nulls: {}", write.status);

    scene.link(LinkState::Connected, Some(TrustReport::default()));
    let status = &super::plan(&scene.world).statuses.into_values().next().unwrap().status;
    assert_eq!(status.get("remoteView"), None, "an empty one would be a null in the API server");
}

#[test]
fn a_bootstrap_bundle_that_is_not_there_begins_nothing_and_ends_nothing() {
    use crate::model::peer::Bootstrap;
    let mut scene = Scene::related();
    let east = Arc::clone(&scene.east);
    let named = Bootstrap::ConfigMapKey { name: "east".to_owned(), key: "bundle".to_owned() };
    scene.change_peer(|peer| peer.bootstrap = Some(named));
    let at = relationship::key(&td(EAST));
    assert!(!plan(&scene.world).objects.contains_key(&at), "nothing is begun");
    scene.world.bootstraps.insert(td(EAST), Ok(east));
    let begun = plan(&scene.world).objects[&at].clone();
    scene.world = scene.world.with_object(begun.clone());
    scene.world.bootstraps.insert(td(EAST), Err("it is not there".to_owned()));
    assert_eq!(plan(&scene.world).objects.get(&at), Some(&begun), "what was begun stays as it is");
    scene.world.bootstraps.clear();
    assert_eq!(plan(&scene.world).objects.get(&at), Some(&begun), "as after a restart");
}

/// The reason and the message of `BundleDistributed`.
fn distributed(scene: &Scene) -> String {
    let plan = plan(&scene.world);
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &scene.peer().object);
    let conditions = plan.statuses[&key].status["conditions"].as_array().unwrap().clone();
    let found = conditions.into_iter().find(|condition| condition["type"] == "BundleDistributed").unwrap();
    format!("{}: {}", found["reason"].as_str().unwrap(), found["message"].as_str().unwrap())
}

#[test]
fn a_suspended_peer_is_polled_at_our_own_pace_and_is_told_what_it_waits_for() {
    let mut scene = Scene::related();
    let at_most = |scene: &Scene| monitors::monitors(&scene.world)[&td(EAST)].at_most;
    scene.pass(1);
    assert_eq!(at_most(&scene), None);
    scene.serves(empty(), 0);
    scene.pass(1);
    assert!(at_most(&scene).is_some_and(|at_most| at_most.as_secs() <= 20));
    assert!(!distributed(&scene).contains("spec.suspend"));
    scene.change_peer(|peer| peer.suspend = true);
    assert!(distributed(&scene).contains("once spec.suspend is unset"), "{}", distributed(&scene));
}

#[test]
fn what_spire_fetched_is_offered_to_the_monitor_of_the_same_endpoint_alone() {
    let mut scene = Scene::related();
    let held = |scene: &Scene| {
        let held = monitors::monitors(&scene.world)[&td(EAST)].held.clone();
        held.map(|held| (held.bundle.digest(), held.since))
    };
    assert_eq!(held(&scene), None, "since when is not known");
    scene.pass(1);
    let first = Some((scene.east.digest(), scene.world.now));
    assert_eq!(held(&scene), first);
    scene.pass(5);
    assert_eq!(held(&scene), first, "time alone changes nothing");
    scene.spire(|spire, _| {
        let moved = EndpointUrl::parse("https://moved.example").unwrap();
        spire.relationships.get_mut(&td(EAST)).unwrap().endpoint.url = moved;
    });
    assert_eq!(held(&scene), None, "it is of another endpoint");
    let mut unread = Scene::related();
    unread.pass(1);
    unread.spire(|spire, _| spire.failure = Some("down".to_owned()));
    assert_eq!(held(&unread), None);
    let mut poisoned = Scene::related();
    poisoned.spire(|spire, _| drop(spire.bundles.insert(td(EAST), empty())));
    poisoned.pass(1);
    assert_eq!(held(&poisoned), None);
}

#[test]
fn a_long_suspension_is_not_forgiven_before_a_day_has_gone_by_since_its_end() {
    let mut scene = Scene::related();
    let mut params = ca_params();
    crate::bundle::testing::valid(&mut params, 0, 1_000_000);
    scene.east = Ca::with(params).bundle(EAST);
    let east = Arc::clone(&scene.east);
    scene.spire(|spire, _| {
        spire.bundles.insert(td(EAST), east);
    });
    scene.serves(empty(), 0);
    scene.pass(1);
    scene.pass(90_000);
    scene.serves(Arc::clone(&scene.east), 3);
    scene.pass(1);
    assert!(harms(&scene).is_empty());
    for (wait, flaps) in [(10, 2), (86_402, 1)] {
        scene.pass(wait);
        scene.serves(empty(), 0);
        scene.pass(1);
        assert_eq!(scene.world.memory[&td(EAST)].flaps, flaps);
        scene.serves(Arc::clone(&scene.east), 6);
        scene.pass(1);
    }
}

#[test]
fn a_withdrawal_that_was_unset_while_nobody_ran_is_no_poisoning() {
    for (annotation, is_suspended) in [
        (None, false),
        (Some(r#"{"times":2,"last":"2027-01-01T00:00:00Z","suspended":false}"#), false),
        (Some(r#"{"times":2,"last":"2027-01-01T00:00:00Z","suspended":true}"#), true),
        (Some("bent"), true),
    ] {
        let mut scene = Scene::related();
        let mut cart = registration("cart", false);
        cart.record.suspended = BTreeSet::from([td(EAST)]);
        cart.has_annotations = true;
        scene.register(cart);
        let mut object = relationship::object(&scene.world, &scene.peer()).unwrap();
        if let Some(text) = annotation {
            object.meta.annotations.insert(poison::ANNOTATION_POISONED.to_owned(), text.to_owned());
        }
        scene.world = scene.world.clone().with_object(object);
        scene.serves(Arc::clone(&scene.east), 1);
        scene.pass(1);
        assert_eq!(!harms(&scene).is_empty(), is_suspended, "{annotation:?}");
        scene.write_patches();
        assert_eq!(scene.names("cart").is_empty(), is_suspended, "{annotation:?}");
    }
}

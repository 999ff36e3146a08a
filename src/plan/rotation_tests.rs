use std::sync::Arc;

use super::*;
use crate::bundle::testing::{Ca, NOW};
use crate::model::object::Kind;
use crate::model::session::{GoodbyeReason, HeldBundle, LinkState, SessionState, Trouble, TrustReport};
use crate::model::trust::{LocalServer, SpireState};
use crate::model::{Authority, ObjectKey};
use crate::plan::fixtures::{WorldExt as _, peer, td, world};
use crate::plan::memory;

const EAST: &str = "east.example";
const SERVER: &str = "unix:///spire.sock";

/// West with a peer east; one server that signs with the first authority and has prepared the second.
struct Scene {
    world: World,
    active: Authority,
    prepared: Authority,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW).unwrap() + second).unwrap()
}

fn local(authority: &Authority) -> LocalAuthority {
    LocalAuthority { id: authority.id().clone(), expires_at: authority.not_after(), upstream: None }
}

fn bundle(authorities: &[&Authority]) -> Bundle {
    Bundle::new(td("west.example"), authorities.iter().map(|a| (*a).clone()))
}

fn report(authorities: &[&Authority]) -> TrustReport {
    let held = Some(HeldBundle::from(&bundle(authorities)));
    TrustReport { delivered: held.clone(), held, relationship: true, ..TrustReport::default() }
}

impl Scene {
    fn new() -> Self {
        let (active, prepared) = (Ca::new().authority(), Ca::new().authority());
        let mut world = world("west.example").with_peer(peer(EAST));
        world.now = at(0);
        let mut scene = Self { world, active, prepared };
        scene.publish(&[&scene.active.clone(), &scene.prepared.clone()]);
        let slots = scene.slots();
        scene.server(SERVER, slots);
        scene.follow();
        scene
    }

    fn slots(&self) -> LocalAuthorities {
        LocalAuthorities { active: local(&self.active), prepared: Some(local(&self.prepared)), old: None }
    }

    fn spire(&mut self, change: impl FnOnce(&mut SpireState)) {
        let mut state = self.world.spire.as_deref().cloned().unwrap_or_default();
        change(&mut state);
        self.world.spire = Some(Arc::new(state));
    }

    fn publish(&mut self, authorities: &[&Authority]) {
        let own = Some(Arc::new(bundle(authorities)));
        self.spire(|spire| spire.own = own);
    }

    /// Our own agents hold what SPIRE publishes.
    fn follow(&mut self) {
        self.world.published_since.clear();
        let now = std::mem::replace(&mut self.world.moment, at(-60));
        self.world.published_since = published_since(&self.world);
        self.world.moment = now.max(at(0));
        self.deliver();
    }

    fn deliver(&mut self) {
        let own = self.world.spire.as_ref().unwrap().own.clone().unwrap();
        let identity = self.world.identity.as_mut().unwrap();
        Arc::make_mut(identity).bundle = own;
    }

    fn server(&mut self, name: &str, authorities: LocalAuthorities) {
        let server = LocalServer { authorities: Some(authorities), failure: None };
        self.spire(|spire| drop(spire.servers.insert(name.to_owned(), server)));
    }

    fn hears(&mut self, report: TrustReport) {
        let mut session = SessionState::idle(at(0));
        session.link = LinkState::Connected;
        session.remote = Some(report);
        Arc::make_mut(&mut self.world.sessions).insert(td(EAST), session);
        self.world.memory = memory::advance(&self.world);
    }

    fn link(&mut self, link: LinkState) {
        Arc::make_mut(&mut self.world.sessions).get_mut(&td(EAST)).unwrap().link = link;
        self.world.memory = memory::advance(&self.world);
    }

    fn judge(&self) -> (Truth, Reason, String) {
        let judged = judge(&self.world, &self.world.peers[&td(EAST)]).unwrap();
        (judged.truth, judged.reason, judged.message)
    }

    fn reason(&self) -> Reason {
        self.judge().1
    }

    /// The leave, or the words of the refusal.
    fn allow(&self, id: &AuthorityId, step: Step) -> Result<Leave, String> {
        self.ask(id, step, &[]).map_err(|refused| refused.to_string())
    }

    fn ask(&self, id: &AuthorityId, step: Step, ignored: &[&str]) -> Result<Leave, Refused> {
        let state = self.world.spire.as_ref().unwrap();
        let authorities = state.servers[SERVER].authorities.as_ref().unwrap();
        let ignored = ignored.iter().map(|name| td(name)).collect();
        allow(&self.world, SERVER, authorities, id, step, &ignored)
    }
}

#[test]
fn spires_own_threshold_is_known() {
    let scene = Scene::new();
    let own = bundle(&[&scene.active]);
    // Made at -3590 for 7,190 s: a sixth of it is left at 3,600 - 1,198.
    assert_eq!(activates_at(&own, &scene.slots()), Some(at(3_600 - 1_198)));
    let mut params = crate::bundle::testing::ca_params();
    crate::bundle::testing::valid(&mut params, 0, 365 * 86_400);
    let yearly = Ca::with(params).authority();
    let slots = LocalAuthorities { active: local(&yearly), prepared: None, old: None };
    assert_eq!(activates_at(&bundle(&[&yearly]), &slots), Some(at((365 - 7) * 86_400)), "seven days at most");
    assert_eq!(activates_at(&own, &slots), None, "what is not in our bundle tells nothing");
}

#[test]
fn a_peer_that_lacks_what_is_prepared_is_named_with_the_time_and_sooner_than_it_is_too_late() {
    let mut scene = Scene::new();
    scene.hears(report(&[&scene.active]));
    let (truth, reason, message) = scene.judge();
    assert_eq!((truth, reason), (Truth::False, Reason::PeerLacksAuthority));
    for part in [EAST, scene.prepared.id().as_str(), SERVER, &at(2_402).to_string()] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    // Three poll intervals of 300 s.
    let near = at(2_402 - 900);
    assert!(wake_at(&scene.world).any(|at| at == near), "{:?}", wake_at(&scene.world).collect::<Vec<_>>());
    scene.world.now = at(2_402 - 901);
    assert_eq!(scene.reason(), Reason::PeerLacksAuthority);
    scene.world.now = near;
    assert_eq!(scene.reason(), Reason::ActivationNear);
    assert!(scene.judge().2.contains(&at(2_402).to_string()), "the time stays the same: {}", scene.judge().2);
    scene.hears(report(&[&scene.active, &scene.prepared]));
    let (truth, reason, _) = scene.judge();
    assert_eq!((truth, reason), (Truth::True, Reason::PeersHoldAuthorities));
}

#[test]
fn what_signs_already_is_worse_than_what_will() {
    let mut scene = Scene::new();
    let second = Ca::new().authority();
    // A new server, which signs at once.
    let slots = LocalAuthorities { active: local(&second), prepared: None, old: None };
    scene.server("10.0.0.2:8081", slots);
    scene.hears(report(&[&scene.active]));
    let (_, reason, message) = scene.judge();
    assert_eq!(reason, Reason::PeerLacksSigningAuthority);
    assert!(message.find("10.0.0.2:8081") < message.find(SERVER), "the worst comes first: {message}");
    assert_eq!(signing_without(&scene.world, &[scene.active.id().clone()].into()), [second.id().clone()]);
}

#[test]
fn tainted_and_expired_authorities_need_not_be_held_and_old_ones_must() {
    let mut scene = Scene::new();
    let mut old = Ca::new().authority();
    scene.publish(&[&scene.active.clone(), &scene.prepared.clone(), &old]);
    scene.hears(report(&[&scene.active, &scene.prepared]));
    assert_eq!(scene.reason(), Reason::PeerLacksAuthority);
    assert_eq!(of_no_server(&scene.world), [old.id().clone()].into());
    old.tainted = true;
    scene.publish(&[&scene.active.clone(), &scene.prepared.clone(), &old]);
    assert_eq!(scene.reason(), Reason::PeersHoldAuthorities);
    assert!(of_no_server(&scene.world).is_empty());
}

#[test]
fn a_receipt_counts_for_more_than_what_is_stored() {
    let mut scene = Scene::new();
    let both = [&scene.active.clone(), &scene.prepared.clone()];
    let first = HeldBundle::from(&bundle(&both[..1]));
    // Stored, but the peer's workloads are not known to have it.
    scene.hears(TrustReport { receipt: Some(first.clone()), ..report(&both) });
    assert_eq!(scene.reason(), Reason::PeerLacksAuthority);
    // Between two receipts the last one counts.
    scene.hears(TrustReport { receipt: None, ..report(&both) });
    assert_eq!(scene.reason(), Reason::PeerLacksAuthority);
    scene.hears(TrustReport { receipt: Some(HeldBundle::from(&bundle(&both))), ..report(&both) });
    assert_eq!(scene.reason(), Reason::PeersHoldAuthorities);
    // A receipt for what is no longer stored counts for nothing.
    let both_receipted = Some(HeldBundle::from(&bundle(&both)));
    scene.hears(TrustReport { receipt: both_receipted, ..report(&both[..1]) });
    assert_eq!(scene.reason(), Reason::PeerLacksAuthority);

    // Who gives no receipts is believed once its own agent is delivered it.
    let mut scene = Scene::new();
    scene.hears(TrustReport { delivered: Some(first), ..report(&both) });
    assert_eq!(scene.reason(), Reason::PeerLacksSigningAuthority, "another scene, other authorities");
    let both = [&scene.active.clone(), &scene.prepared.clone()];
    scene.hears(TrustReport { delivered: Some(HeldBundle::from(&bundle(&both[..1]))), ..report(&both) });
    assert_eq!(scene.reason(), Reason::PeerLacksAuthority);
    scene.hears(report(&both));
    assert_eq!(scene.reason(), Reason::PeersHoldAuthorities);
}

#[test]
fn a_peer_that_cannot_fetch_our_bundle_says_so() {
    let mut scene = Scene::new();
    let trouble = Trouble {
        condition: "BundleEndpointHealthy".to_owned(),
        reason: "EndpointUnreachable".to_owned(),
        message: "connection refused".to_owned(),
    };
    let troubles = vec![trouble];
    scene.hears(TrustReport { troubles: troubles.clone(), ..report(&[&scene.active, &scene.prepared]) });
    assert_eq!(scene.reason(), Reason::PeerCannotFetchOurBundle);
    scene.hears(TrustReport { troubles, ..report(&[&scene.active]) });
    let (_, reason, message) = scene.judge();
    assert_eq!(reason, Reason::PeerLacksAuthority);
    assert!(message.contains("says EndpointUnreachable: connection refused"), "{message}");
}

#[test]
fn behind_an_upstream_authority_that_one_must_be_held() {
    let mut scene = Scene::new();
    let root = Ca::new().authority();
    let below =
        |authority: &Authority| LocalAuthority { upstream: Some(root.id().clone()), ..local(authority) };
    let (active, prepared) = (below(&scene.active), below(&scene.prepared));
    let slots = LocalAuthorities { active, prepared: Some(prepared), old: None };
    scene.server(SERVER, slots.clone());
    scene.publish(&[&root]);
    scene.follow();
    scene.hears(report(&[&root]));
    assert_eq!(scene.reason(), Reason::PeersHoldAuthorities);
    assert!(scene.allow(scene.prepared.id(), Step::Activate).is_ok());
    scene.hears(report(&[]));
    assert_eq!(scene.reason(), Reason::PeerLacksSigningAuthority);
    // An upstream authority below the root: only the root is published.
    let middle = Ca::new().authority();
    let deep = |slot: LocalAuthority| LocalAuthority { upstream: Some(middle.id().clone()), ..slot };
    let deep = LocalAuthorities { active: deep(slots.active), prepared: slots.prepared.map(deep), old: None };
    scene.server(SERVER, deep);
    assert_eq!(scene.reason(), Reason::PeerLacksAuthority);
    assert!(scene.allow(scene.prepared.id(), Step::Activate).is_err());
    scene.hears(report(&[&root]));
    assert_eq!(scene.reason(), Reason::PeersHoldAuthorities);
    assert!(scene.allow(scene.prepared.id(), Step::Activate).is_ok());
}

#[test]
fn nothing_is_activated_before_every_peer_that_has_a_say_holds_it() {
    let mut scene = Scene::new();
    let id = scene.prepared.id().clone();
    let refused = scene.allow(&id, Step::Activate).unwrap_err();
    assert!(refused.contains(EAST) && refused.contains("not connected"), "{refused}");
    scene.hears(report(&[&scene.active]));
    let refused = scene.allow(&id, Step::Activate).unwrap_err();
    assert!(refused.contains(EAST) && refused.contains(id.as_str()), "{refused}");
    scene.hears(report(&[&scene.active, &scene.prepared]));
    scene.allow(&id, Step::Activate).unwrap();
    let other = Ca::new().authority().id().clone();
    let refused = scene.ask(&other, Step::Activate, &[]).unwrap_err();
    assert!(matches!(&refused, Refused::Changed(words) if words.contains("look again")), "{refused}");
    assert_eq!(scene.allow(scene.active.id(), Step::Activate), Ok(Leave::Taken), "asked for again");
    // What was said before the exchange broke off is not believed.
    scene.link(LinkState::Unreachable { message: "no route".to_owned() });
    assert!(scene.allow(&id, Step::Activate).unwrap_err().contains("no route"));
    scene.link(LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, message: String::new() });
    scene.allow(&id, Step::Activate).unwrap();
    scene.link(LinkState::Unreachable { message: "no route".to_owned() });
    let east = Arc::make_mut(scene.world.peers.get_mut(&td(EAST)).unwrap());
    east.suspend = true;
    scene.allow(&id, Step::Activate).unwrap();
    let east = Arc::make_mut(scene.world.peers.get_mut(&td(EAST)).unwrap());
    (east.suspend, east.deletion) = (false, Some(at(0)));
    scene.allow(&id, Step::Activate).unwrap();
    scene.world.peers.clear();
    scene.allow(&id, Step::Activate).unwrap();
}

#[test]
fn the_old_one_goes_after_the_peers_and_spires_agents_have_moved() {
    let mut scene = Scene::new();
    let (old, new) = (scene.active.clone(), scene.prepared.clone());
    let slots = LocalAuthorities { active: local(&new), prepared: None, old: Some(local(&old)) };
    scene.server(SERVER, slots.clone());
    scene.hears(report(&[&old]));
    for step in [Step::Taint, Step::Revoke] {
        let refused = scene.allow(old.id(), step).unwrap_err();
        assert!(refused.contains(EAST) && refused.contains(new.id().as_str()), "{refused}");
    }
    scene.hears(report(&[&old, &new]));
    scene.allow(old.id(), Step::Taint).unwrap();
    assert!(scene.allow(new.id(), Step::Taint).unwrap_err().contains("look again"));
    assert!(scene.allow(old.id(), Step::Revoke).unwrap_err().contains("taint it first"));

    let mut tainted = old.clone();
    tainted.tainted = true;
    scene.publish(&[&tainted, &new]);
    scene.world.tainted_since = tainted_since(&scene.world);
    scene.world.now = at(29);
    scene.world.tainted_since = tainted_since(&scene.world);
    let refused = scene.allow(old.id(), Step::Revoke).unwrap_err();
    assert!(refused.contains(&at(30).to_string()), "{refused}");
    assert_eq!(scene.allow(old.id(), Step::Taint), Ok(Leave::Taken), "asked for again");
    scene.world.now = at(30);
    assert_eq!(scene.allow(old.id(), Step::Revoke), Ok(Leave::Take));
    scene.publish(&[&new]);
    assert_eq!(scene.allow(old.id(), Step::Revoke), Ok(Leave::Taken), "asked for again");
    scene.publish(&[&tainted, &new]);
    // However short the pause is set: SPIRE's own takes its time.
    Arc::make_mut(&mut scene.world.settings).drain = Duration::from_secs(1);
    scene.world.now = at(19);
    assert!(scene.allow(old.id(), Step::Revoke).unwrap_err().contains(&at(20).to_string()));

    let upstream = Some(Ca::new().authority().id().clone());
    let below = LocalAuthority { upstream, ..local(&old) };
    scene.server(SERVER, LocalAuthorities { old: Some(below), ..slots });
    for step in [Step::Taint, Step::Revoke] {
        let refused = scene.allow(old.id(), step).unwrap_err();
        assert!(refused.contains("upstream authority"), "{refused}");
    }
}

#[test]
fn our_own_agents_hold_it_before_it_signs() {
    let mut scene = Scene::new();
    scene.world.peers.clear();
    let id = scene.prepared.id().clone();
    let (active, prepared) = (scene.active.clone(), scene.prepared.clone());
    scene.allow(&id, Step::Activate).unwrap();
    // Not published, or not known to be.
    scene.publish(&[&active]);
    scene.world.published_since = published_since(&scene.world);
    let refused = scene.allow(&id, Step::Activate).unwrap_err();
    assert!(refused.contains("not in our own bundle in SPIRE yet"), "{refused}");
    // Published just now: the agents are given their time, which is named, and does not move.
    scene.publish(&[&active, &prepared]);
    scene.deliver();
    for second in [0, 5] {
        scene.world.moment = at(second);
        scene.world.published_since = published_since(&scene.world);
        let refused = scene.allow(&id, Step::Activate).unwrap_err();
        assert!(refused.contains(&at(6).to_string()) && refused.contains(id.as_str()), "{refused}");
    }
    scene.world.moment = at(6);
    scene.allow(&id, Step::Activate).unwrap();
    // Long published, and our own agent does not deliver it.
    let mut identity = scene.world.identity.as_deref().cloned().unwrap();
    identity.bundle = Arc::new(bundle(&[&active]));
    scene.world.identity = Some(Arc::new(identity));
    scene.world.moment = at(600);
    let refused = scene.allow(&id, Step::Activate).unwrap_err();
    assert!(refused.contains("does not deliver") && refused.contains(id.as_str()), "{refused}");
    // Behind an upstream authority that one is what has to be held.
    let root = Ca::new().authority();
    let below = |a: &Authority| LocalAuthority { upstream: Some(root.id().clone()), ..local(a) };
    let slots = LocalAuthorities { active: below(&active), prepared: Some(below(&prepared)), old: None };
    scene.server(SERVER, slots);
    scene.publish(&[&root]);
    scene.deliver();
    scene.world.published_since = published_since(&scene.world);
    let refused = scene.allow(&id, Step::Activate).unwrap_err();
    assert!(refused.contains(root.id().as_str()) && refused.contains(&at(606).to_string()), "{refused}");
    scene.world.moment = at(606);
    scene.allow(&id, Step::Activate).unwrap();
}

#[test]
fn who_federates_with_us_and_cannot_be_asked_is_named_unless_ignored() {
    let mut scene = Scene::new();
    let id = scene.prepared.id().clone();
    scene.hears(report(&[&scene.active, &scene.prepared]));
    scene.spire(|spire| {
        // A peer's own is no surprise.
        spire.bundles.insert(td(EAST), Arc::new(Bundle::new(td(EAST), [])));
        spire.bundles.insert(td("north.example"), Arc::new(Bundle::new(td("north.example"), [])));
        spire.unreadable.insert("south.example".to_owned(), "no profile".to_owned());
    });
    let refused = scene.ask(&id, Step::Activate, &[]).unwrap_err();
    let Refused::Never(words) = &refused else { panic!("{refused:?}") };
    for part in ["north.example (a bundle is stored)", "south.example (a federation", "--ignore", id.as_str()]
    {
        assert!(words.contains(part), "{part} is not in: {words}");
    }
    assert!(!words.contains(EAST), "{words}");
    let refused = scene.ask(&id, Step::Activate, &["north.example"]).unwrap_err().to_string();
    assert!(!refused.contains("north.example") && refused.contains("south.example"), "{refused}");
    scene.ask(&id, Step::Activate, &["north.example", "south.example"]).unwrap();
    // To ignore a peer is not to be had.
    scene.hears(report(&[&scene.active]));
    scene.ask(&id, Step::Activate, &["north.example", "south.example", EAST]).unwrap_err();
}

#[test]
fn a_peer_that_is_not_heard_is_judged_by_its_last_word_and_the_time_that_is_left() {
    let mut scene = Scene::new();
    let judge = |scene: &Scene| judge_unheard(&scene.world, &scene.world.peers[&td(EAST)]);
    let gone = || LinkState::Unreachable { message: "no route".to_owned() };
    scene.hears(report(&[&scene.active]));
    assert_eq!(judge(&scene), None, "it is heard");
    scene.link(gone());
    let judged = judge(&scene).unwrap();
    assert_eq!((judged.truth, judged.reason), (Truth::Unknown, Reason::Unknown));
    for part in
        [EAST, scene.prepared.id().as_str(), SERVER, &at(2_402).to_string(), "last heard did not hold"]
    {
        assert!(judged.message.contains(part), "{part} is not in: {}", judged.message);
    }
    scene.world.now = at(2_402 - 900);
    let near = judge(&scene).unwrap();
    assert_eq!((near.truth, near.reason), (Truth::False, Reason::ActivationNear));
    assert_eq!(near.message, judged.message, "no part of it changes with time");
    // Its last receipt stands, but is no leave.
    let both = [&scene.active.clone(), &scene.prepared.clone()];
    scene.hears(TrustReport { receipt: Some(HeldBundle::from(&bundle(&both))), ..report(&both) });
    scene.link(gone());
    assert_eq!(judge(&scene), None);
    assert!(scene.allow(scene.prepared.id(), Step::Activate).is_err());
    // Nothing was heard in this life of the agent.
    scene.world.memory.clear();
    assert!(judge(&scene).unwrap().message.contains("since this agent started"));
    let east = Arc::make_mut(scene.world.peers.get_mut(&td(EAST)).unwrap());
    east.suspend = true;
    assert_eq!(judge(&scene), None, "it has no say");
}

#[test]
fn near_is_three_fetches_as_peers_make_them() {
    let mut scene = Scene::new();
    Arc::make_mut(&mut scene.world.settings).poll_interval = Duration::from_secs(75);
    let mut near = |hint: Option<u64>| {
        let mut own = bundle(&[&scene.active, &scene.prepared]);
        own.refresh_hint = hint;
        scene.spire(|spire| spire.own = Some(Arc::new(own)));
        near_from(&scene.world, at(10_000)).unwrap()
    };
    // An hour: peers fetch every 15 minutes.
    assert_eq!(near(Some(3_600)), at(10_000 - 2_700));
    for often in [None, Some(1), Some(300)] {
        assert_eq!(near(often), at(10_000 - 225), "{often:?}");
    }
    assert_eq!(near(Some(u64::MAX)), at(10_000 - 3 * 7 * 86_400 / 4), "however long it is");
}

/// Who no registration federates with, or who ended the relationship, has no say; after a restart of ours neither.
#[test]
fn a_peer_that_is_withdrawn_or_that_ended_has_no_say() {
    let east = |scene: &Scene| exempt(&scene.world, &scene.world.peers[&td(EAST)]);
    let mut scene = Scene::new();
    scene.hears(report(&[]));
    scene.link(LinkState::Idle);
    assert_eq!(east(&scene), None);
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, "east-example");
    let stored = serde_json::json!({"conditions": [
        {"type": "Reciprocal", "status": "False", "reason": "PeerEnded", "message": "ended"}
    ]});
    scene.world.statuses.insert(key.clone(), Arc::new(stored));
    assert_eq!(east(&scene), Some("it ended the relationship"));
    scene.link(LinkState::Connected);
    assert_eq!(east(&scene), None, "it is back");
    scene.world.statuses.remove(&key);
    Arc::make_mut(scene.world.peers.get_mut(&td(EAST)).unwrap()).withdraw = true;
    assert!(east(&scene).is_some_and(|why| why.contains("withdrawn")));
}

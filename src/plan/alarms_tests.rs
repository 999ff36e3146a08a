use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::bundle::monitor::{PollLimits, next_poll, observe};
use crate::bundle::testing::{Ca, NOW, ca_params, valid};
use crate::model::endpoint::{FetchFailure, FetchProblem};
use crate::model::session::{HeldBundle, LinkState, SessionState, TrustReport};
use crate::model::trust::SpireState;
use crate::plan::fixtures::{WorldExt as _, peer, td, world};
use crate::plan::memory;

const WEST: &str = "west.test";
const DAY: i64 = 86_400;

fn at(offset: i64) -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW).unwrap() + offset).unwrap()
}

/// A SPIRE that rotates as SPIRE does: the next authority is published at half the life of the last, and what expired is
/// taken out a day later.
struct Rotating {
    ttl: i64,
    hint: u64,
    authorities: Vec<(i64, Ca)>,
    published: Arc<Bundle>,
}

impl Rotating {
    fn new(ttl: i64, hint: u64) -> Self {
        let published = Arc::new(Bundle::new(td(WEST), []));
        let mut spire = Self { ttl, hint, authorities: Vec::new(), published };
        spire.prepare(0);
        spire
    }

    fn prepare(&mut self, now: i64) {
        let mut params = ca_params();
        valid(&mut params, now - 10, now + self.ttl);
        self.authorities.push((now + self.ttl, Ca::with(params)));
        self.publish(now);
    }

    fn publish(&mut self, now: i64) {
        self.authorities.retain(|(end, _)| end + DAY > now);
        let mut bundle = Bundle::new(td(WEST), self.authorities.iter().map(|(_, ca)| ca.authority()));
        bundle.sequence = Some(self.published.sequence.unwrap_or_default() + 1);
        bundle.refresh_hint = Some(self.hint);
        self.published = Arc::new(bundle);
    }

    fn tick(&mut self, now: i64) {
        let last = self.authorities.iter().map(|(end, _)| *end).max().unwrap();
        if now > last - self.ttl / 2 {
            self.prepare(now);
        } else if self.authorities.iter().any(|(end, _)| end + DAY <= now) {
            self.publish(now);
        }
    }
}

fn set_spire(world: &mut World, bundle: &Arc<Bundle>) {
    let spire =
        SpireState { bundles: BTreeMap::from([(td(WEST), Arc::clone(bundle))]), ..SpireState::default() };
    world.spire = Some(Arc::new(spire));
}

fn set_word(world: &mut World, bundle: &Bundle) {
    let mut session = SessionState::idle(world.now);
    session.link = LinkState::Connected;
    session.remote = Some(TrustReport { own: Some(HeldBundle::from(bundle)), ..TrustReport::default() });
    world.sessions = Arc::new(BTreeMap::from([(td(WEST), session)]));
}

fn fetch(world: &mut World, bundle: &Bundle) {
    let before = world.endpoints.get(&td(WEST)).cloned().unwrap_or_default();
    let mut state = observe(&before, Ok(bundle.clone()), world.now);
    state.asked_at = Some(world.now);
    world.endpoints = Arc::new(BTreeMap::from([(td(WEST), state)]));
}

/// A world with the peer west that has fetched this, holds it in SPIRE and hears it from the peer.
fn agreed(bundle: &Bundle) -> World {
    let mut world = world("east.test").with_peer(peer(WEST));
    world.now = at(0);
    fetch(&mut world, bundle);
    set_spire(&mut world, &Arc::new(bundle.clone()));
    set_word(&mut world, bundle);
    world
}

fn unreachable() -> FetchFailure {
    FetchFailure { problem: FetchProblem::EndpointUnreachable, message: "gone".to_owned() }
}

fn raised(world: &World) -> Vec<Reason> {
    alarms(world, &world.peers[&td(WEST)]).into_iter().map(|alarm| alarm.reason).collect()
}

fn pass(world: &mut World, seconds: i64) {
    world.now = Timestamp::from_second(world.now.as_second() + seconds).unwrap();
    world.memory = memory::advance(world);
}

/// A day of rotations, with each side following at its own interval, and the peer's word ahead of both.
#[test]
fn a_healthy_endpoint_raises_none_over_a_day() {
    let limits = PollLimits::default();
    for (ttl, hint) in [(24 * 3600, 300), (6 * 3600, 300), (3600, 60)] {
        let mut spire = Rotating::new(ttl, hint);
        let mut world = agreed(&spire.published);
        let (mut our_poll, mut their_poll, mut rotations) = (0, 0, 0);
        for now in (0..DAY).step_by(15) {
            world.now = at(now);
            let before = spire.published.sequence;
            spire.tick(now);
            rotations += usize::from(before != spire.published.sequence);
            set_word(&mut world, &spire.published);
            if now >= our_poll {
                fetch(&mut world, &spire.published);
                let state = &world.endpoints[&td(WEST)];
                our_poll = now + i64::try_from(next_poll(state, &limits, 0).as_secs()).unwrap();
            }
            if now >= their_poll {
                set_spire(&mut world, &spire.published);
                their_poll = now + 75;
            }
            world.memory = memory::advance(&world);
            assert_eq!(raised(&world), [], "{ttl} {hint} at {now}");
            assert!(world.memory[&td(WEST)].poisoned.is_none());
        }
        assert!(rotations >= usize::try_from(DAY / ttl).unwrap(), "{rotations}");
    }
}

#[test]
fn an_authority_that_is_not_followed_is_told_of_once_it_is_near_its_end() {
    let spire = Rotating::new(24 * 3600, 300);
    let mut world = agreed(&spire.published);
    let begins = wake_at(&world, &world.peers[&td(WEST)]).unwrap();
    assert_eq!(begins, at(24 * 3600 - 8641), "a tenth of its life, which begins ten seconds before its use");
    world.now = begins;
    assert_eq!(raised(&world), [Reason::AuthorityNearExpiry]);
    world.now = Timestamp::from_second(begins.as_second() - 1).unwrap();
    assert_eq!(raised(&world), []);
    // A CA of ten years is renewed by hand: a week is enough.
    let years = Rotating::new(10 * 365 * DAY, 300);
    let world = agreed(&years.published);
    let begins = wake_at(&world, &world.peers[&td(WEST)]).unwrap();
    assert_eq!(begins, at(10 * 365 * DAY - 7 * DAY));
}

/// The end does not end the alarm: an endpoint that is gone is how it comes to it.
#[test]
fn what_has_expired_is_told_of_whatever_the_fetch_gave() {
    let spire = Rotating::new(24 * 3600, 300);
    let healthy = agreed(&spire.published);
    let mut gone = healthy.clone();
    Arc::make_mut(&mut gone.endpoints).get_mut(&td(WEST)).unwrap().failure = Some(unreachable());
    // after a restart, only SPIRE knows it
    let mut restarted = gone.clone();
    Arc::make_mut(&mut restarted.endpoints).get_mut(&td(WEST)).unwrap().latest = None;
    let (unreached, ended) = (Reason::EndpointUnreachable, Reason::NoUsableAuthority);
    let rows = [(healthy, vec![]), (gone, vec![unreached]), (restarted, vec![unreached])];
    for (mut world, others) in rows {
        let with = |reason| {
            let mut all = others.clone();
            all.push(reason);
            all.sort_unstable();
            all
        };
        world.now = at(24 * 3600 - 60);
        assert_eq!(raised(&world), with(Reason::AuthorityNearExpiry));
        let ends = wake_at(&world, &world.peers[&td(WEST)]).unwrap();
        assert_eq!(ends, at(24 * 3600 + 1));
        world.now = ends;
        assert_eq!(raised(&world), with(ended));
    }
}

#[test]
fn spire_that_does_not_follow_is_told_of_after_two_poll_intervals() {
    let mut spire = Rotating::new(24 * 3600, 300);
    let mut world = agreed(&spire.published);
    spire.prepare(1);
    fetch(&mut world, &spire.published);
    set_word(&mut world, &spire.published);
    pass(&mut world, 1);
    pass(&mut world, 599);
    assert_eq!(raised(&world), []);
    assert_eq!(wake_at(&world, &world.peers[&td(WEST)]), Some(at(601)));
    pass(&mut world, 1);
    assert_eq!(raised(&world), [Reason::SpireDiffersFromEndpoint]);
    // What it holds may change: it is not what is served still.
    set_spire(&mut world, &Ca::new().bundle(WEST));
    pass(&mut world, 1);
    assert_eq!(raised(&world), [Reason::SpireDiffersFromEndpoint]);
    set_spire(&mut world, &spire.published);
    pass(&mut world, 1);
    assert_eq!(raised(&world), []);
}

#[test]
fn a_peer_whose_word_is_not_what_its_endpoint_serves_is_told_of_after_two_poll_intervals() {
    let spire = Rotating::new(24 * 3600, 60);
    let mut world = agreed(&spire.published);
    set_word(&mut world, &Ca::new().bundle(WEST));
    pass(&mut world, 1);
    pass(&mut world, 599);
    assert_eq!(raised(&world), []);
    pass(&mut world, 1);
    assert_eq!(raised(&world), [Reason::PeerDiffersFromEndpoint]);
    let state = Arc::make_mut(&mut world.endpoints).get_mut(&td(WEST)).unwrap();
    state.failure = Some(unreachable());
    pass(&mut world, 1);
    assert_eq!(raised(&world), [Reason::EndpointUnreachable], "what is served now is not known");
}

#[test]
fn the_message_lists_every_alarm_worst_first() {
    let spire = Rotating::new(24 * 3600, 300);
    let mut world = agreed(&spire.published);
    set_word(&mut world, &Ca::new().bundle(WEST));
    pass(&mut world, 1);
    pass(&mut world, DAY - 100);
    let all = alarms(&world, &world.peers[&td(WEST)]);
    let words = in_words(&all);
    let places = [words.find("AuthorityNearExpiry: "), words.find("PeerDiffersFromEndpoint: ")];
    assert!(places[0] == Some(0) && places[1] > places[0], "{words}");
    assert_eq!(in_words(&all[..1]), all[0].message);
}

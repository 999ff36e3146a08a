use super::*;
use crate::bundle::testing::{Ca, NOW, ca_params, id, td, valid};
use crate::model::endpoint::{BundleEndpoint, EndpointUrl, FetchProblem, HeldBySpire};
use std::sync::LazyLock;

static CAS: LazyLock<Vec<Ca>> = LazyLock::new(|| (0..3).map(|_| Ca::new()).collect());

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW + seconds).unwrap()).unwrap()
}

fn bundle(cas: &[usize], sequence: Option<u64>) -> Bundle {
    let mut bundle = Bundle::new(td("west.test"), cas.iter().map(|i| CAS[*i].authority()));
    bundle.sequence = sequence;
    bundle
}

fn failure() -> FetchFailure {
    FetchFailure { problem: FetchProblem::EndpointUnreachable, message: "gone".to_owned() }
}

/// The state after these fetches, one a second.
fn after(fetches: impl IntoIterator<Item = Result<Bundle, FetchFailure>>) -> EndpointState {
    fetches
        .into_iter()
        .zip(0..)
        .fold(EndpointState::default(), |state, (fetched, second)| observe(&state, fetched, at(second)))
}

fn alarms(bundles: impl IntoIterator<Item = Bundle>) -> Vec<BundleAlarm> {
    after(bundles.into_iter().map(Ok)).alarms
}

#[test]
fn a_good_fetch_is_held_without_alarm() {
    let state = after([Ok(bundle(&[0], Some(1)))]);
    assert_eq!(state.latest.as_deref(), Some(&bundle(&[0], Some(1))));
    assert_eq!(state.latest, state.latest_usable);
    assert_eq!((state.good_in_a_row, state.since, state.alarms.len()), (1, Some(at(0)), 0));
    assert!(alarms([bundle(&[0], Some(1)), bundle(&[0, 1], Some(2)), bundle(&[1], Some(3))]).is_empty());
    assert!(alarms([bundle(&[0], None), bundle(&[0, 1], None)]).is_empty());
}

#[test]
fn an_unchanged_bundle_changes_only_the_count() {
    let first = after([Ok(bundle(&[0], Some(1)))]);
    let second = observe(&first, Ok(bundle(&[0], Some(1))), at(60));
    assert_eq!(second, EndpointState { good_in_a_row: 2, unchanged: 1, ..first.clone() });
    assert!(Arc::ptr_eq(first.latest.as_ref().unwrap(), second.latest.as_ref().unwrap()));
    let full = EndpointState { good_in_a_row: u32::MAX, unchanged: u32::MAX, ..first };
    assert_eq!(observe(&full, Ok(bundle(&[0], Some(1))), at(99)), full, "a settled endpoint changes nothing");
}

#[test]
fn a_failure_keeps_what_is_held() {
    let state = after([Ok(bundle(&[0], Some(1))), Err(failure()), Err(failure())]);
    assert_eq!(state.failure, Some(failure()));
    assert_eq!(state.since, Some(at(1)), "since the first failure");
    assert_eq!(state.latest.as_deref(), Some(&bundle(&[0], Some(1))));
    assert_eq!(state.good_in_a_row, 1);
    let healed = observe(&state, Ok(bundle(&[0], Some(1))), at(9));
    assert_eq!((healed.failure, healed.since, healed.good_in_a_row), (None, Some(at(9)), 2));
}

#[test]
fn a_bundle_without_usable_authority_is_told_and_the_usable_one_kept() {
    let mut params = ca_params();
    valid(&mut params, -100, -1);
    let expired = Bundle::new(td("west.test"), [Ca::with(params).authority()]);
    for unusable in [bundle(&[], Some(2)), expired] {
        let state = after([Ok(bundle(&[0], Some(1))), Ok(unusable.clone())]);
        assert_eq!(state.alarms.first(), Some(&BundleAlarm::NoUsableAuthority));
        assert_eq!(state.latest.as_deref(), Some(&unusable));
        assert_eq!(state.latest_usable.as_deref(), Some(&bundle(&[0], Some(1))));
        assert_eq!(state.good_in_a_row, 0);
        let again = observe(&state, Ok(unusable), at(9));
        assert_eq!(again.alarms, state.alarms, "told once, and still");
        let healed = observe(&again, Ok(bundle(&[0], Some(3))), at(10));
        assert_eq!((healed.alarms, healed.good_in_a_row), (vec![], 1));
    }
}

#[test]
fn an_authority_that_expires_meanwhile_makes_an_unchanged_bundle_unusable() {
    let state = after([Ok(bundle(&[0], Some(1)))]);
    let later = observe(&state, Ok(bundle(&[0], Some(1))), at(7200));
    assert_eq!(later.alarms, [BundleAlarm::NoUsableAuthority]);
}

#[test]
fn a_sequence_that_goes_back_or_stands_still_is_told() {
    let back = [bundle(&[0], Some(9)), bundle(&[0, 1], Some(3))];
    let expected = [BundleAlarm::SequenceWentBack { from: 9, to: 3 }];
    assert_eq!(alarms(back.clone()), expected);
    let again = [back[0].clone(), back[1].clone(), back[1].clone()];
    assert_eq!(alarms(again), expected, "it stands while the bundle does");
    assert!(alarms([back[0].clone(), back[1].clone(), bundle(&[0, 1], Some(4))]).is_empty());

    let changed = alarms([bundle(&[0], Some(5)), bundle(&[0, 1], Some(5))]);
    assert_eq!(changed, [BundleAlarm::ContentChangedUnderSequence { sequence: 5 }]);
    let mut hint = bundle(&[0], Some(5));
    hint.refresh_hint = Some(60);
    assert!(alarms([bundle(&[0], Some(5)), hint]).is_empty());
}

#[test]
fn substituted_authorities_are_told_even_over_an_empty_bundle() {
    let expected = [BundleAlarm::AuthoritiesSubstituted];
    assert_eq!(alarms([bundle(&[0, 1], Some(1)), bundle(&[2], Some(2))]), expected);
    assert_eq!(alarms([bundle(&[0], Some(1)), bundle(&[], Some(2)), bundle(&[2], Some(3))]), expected);
    assert!(alarms([bundle(&[], Some(1)), bundle(&[2], Some(2))]).is_empty());
    assert!(alarms([bundle(&[0], Some(1)), bundle(&[], Some(2)), bundle(&[0], Some(3))]).is_empty());
}

#[test]
fn polls_follow_the_hint_within_limits() {
    let limits = PollLimits {
        min_interval: Duration::from_secs(10),
        max_interval: Duration::from_secs(1000),
        default_interval: Duration::from_secs(300),
    };
    let wait = |hint: Option<u64>, jitter| {
        let mut bundle = bundle(&[0], None);
        bundle.refresh_hint = hint;
        let state = after([Ok(bundle)]);
        let failed = observe(&state, Err(failure()), at(5));
        assert_eq!(next_poll(&state, &limits, jitter), next_poll(&failed, &limits, jitter));
        next_poll(&state, &limits, jitter).as_secs()
    };
    assert_eq!(next_poll(&EndpointState::default(), &limits, 0), Duration::ZERO);
    assert_eq!(next_poll(&after([Err(failure())]), &limits, 0), limits.default_interval);
    assert_eq!(wait(None, 0), 300);
    assert_eq!(wait(Some(60), 0), 60);
    assert_eq!(wait(Some(0), 0), 10);
    assert_eq!(wait(Some(u64::MAX), 0), 1000);
    assert_eq!(wait(Some(100), 1000), 90);
    assert_eq!(wait(Some(100), u32::MAX), 90);
}

#[test]
fn an_endpoint_is_verified_by_the_right_bundle() {
    let target = |profile: EndpointProfile| MonitorTarget {
        trust_domain: td("west.test"),
        endpoint: BundleEndpoint { url: EndpointUrl::parse("https://west.test/").unwrap(), profile },
        bootstrap: Some(Arc::new(bundle(&[0], None))),
        persisted: None,
        verify_with: Some(CAS[2].bundle("other.test")),
        held: None,
        at_most: None,
    };
    let by = |profile: EndpointProfile, fetches: Vec<Bundle>| {
        verifying_bundle(&target(profile), &after(fetches.into_iter().map(Ok)))
            .map(|bundle| (*bundle).clone())
    };
    let own = || EndpointProfile::HttpsSpiffe { endpoint_id: id("spiffe://west.test/endpoint") };
    let other = || EndpointProfile::HttpsSpiffe { endpoint_id: id("spiffe://other.test/endpoint") };
    assert_eq!(by(EndpointProfile::HttpsWeb, vec![bundle(&[1], None)]), None);
    assert_eq!(by(own(), vec![]), Some(bundle(&[0], None)));
    assert_eq!(by(own(), vec![bundle(&[1], None)]), Some(bundle(&[1], None)));
    assert_eq!(by(own(), vec![bundle(&[1], None), bundle(&[], None)]), Some(bundle(&[1], None)));
    assert_eq!(by(own(), vec![bundle(&[], None)]), Some(bundle(&[0], None)));
    assert_eq!(by(other(), vec![bundle(&[1], None)]), Some((*CAS[2].bundle("other.test")).clone()));
}

#[test]
fn what_spire_fetched_verifies_only_where_it_continues_what_is_held_and_is_no_older() {
    let mut params = ca_params();
    valid(&mut params, -100, -1);
    let expired = Bundle::new(td("west.test"), [Ca::with(params).authority()]);
    let target = |held: &Bundle, endpoint: &str| MonitorTarget {
        trust_domain: td("west.test"),
        endpoint: BundleEndpoint {
            url: EndpointUrl::parse("https://west.test/").unwrap(),
            profile: EndpointProfile::HttpsSpiffe { endpoint_id: id(endpoint) },
        },
        bootstrap: None,
        persisted: None,
        verify_with: None,
        held: Some(HeldBySpire { bundle: Arc::new(held.clone()), since: at(10) }),
        at_most: None,
    };
    let own = "spiffe://west.test/endpoint";
    let both = bundle(&[0, 1], None);
    let taken = |held: &Bundle, endpoint: &str, ours: &Bundle, fetched: Option<u64>| {
        continuation(&target(held, endpoint), ours, fetched.map(at), at(30)).is_some()
    };
    let old = bundle(&[0], None);
    assert!(taken(&both, own, &old, None) && taken(&both, own, &old, Some(9)));
    assert!(!taken(&both, own, &old, Some(10)), "SPIRE had it when ours was fetched: it is behind");
    assert!(!taken(&both, own, &both, None), "it is the same");
    assert!(!taken(&both, own, &bundle(&[2], None), None), "nothing in common");
    assert!(taken(&both, own, &expired, None), "ours says nothing any more");
    assert!(!taken(&expired, own, &expired, None) && !taken(&bundle(&[], None), own, &expired, None));
    assert!(!taken(&both, "spiffe://other.test/endpoint", &old, None), "another trust domain's endpoint");
}

#[test]
fn an_alarm_ends_once_the_bundle_was_served_for_an_hour() {
    let mut state = after([Ok(bundle(&[0], Some(9))), Ok(bundle(&[0, 1], Some(8)))]);
    for turn in 1..=ALARMED {
        assert!(!state.alarms.is_empty(), "{turn}");
        state = observe(&state, Ok(bundle(&[0, 1], Some(8))), at(60));
    }
    assert!(!state.alarms.is_empty());
    state = observe(&state, Ok(bundle(&[0, 1], Some(8))), at(60));
    assert_eq!(state.alarms, []);
}

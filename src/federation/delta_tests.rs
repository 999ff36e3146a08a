use proptest::prelude::*;

use super::*;
use crate::federation::catalogue::tests::holding;
use crate::federation::catalogue::{Assembly, Frames};
use crate::federation::tests::catalogue;

/// What is held of a catalogue that came as a snapshot.
fn held(catalogue: &Arc<Catalogue>) -> Held {
    let mut frames = Frames::new(Arc::clone(catalogue), false);
    let mut assembly = Assembly::default();
    loop {
        if let Some(received) = assembly.push(frames.next()).unwrap() {
            return received.held.unwrap();
        }
    }
}

fn whole(mut changes: Changes) -> Delta {
    let mut assembly = DeltaAssembly::default();
    loop {
        if let Some(delta) = assembly.push(changes.next()).unwrap() {
            return delta;
        }
    }
}

fn many(range: std::ops::Range<usize>) -> Arc<Catalogue> {
    let names: Vec<String> = range.map(|n| format!("service-{n}")).collect();
    catalogue(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn what_changed_alone_is_sent_and_leads_to_the_same_catalogue() {
    let (before, after) = (many(0..40), many(2..41));
    let mut changes = Changes::between(&before, &after).unwrap();
    let frame = changes.next();
    assert_eq!((frame.services.len(), frame.removed.len(), frame.more), (1, 2, false));
    let delta = DeltaAssembly::default().push(frame).unwrap().unwrap();
    let now = held(&before).with([&delta]).unwrap();
    assert_eq!(now.catalogue, after);
    let kept = crate::model::ServiceName::new("shop", "service-5").unwrap();
    let held = held(&before);
    let next = held.with([&delta]).unwrap();
    assert!(Arc::ptr_eq(&held.catalogue.services[&kept], &next.catalogue.services[&kept]), "the same one");
    assert!(Changes::between(&before, &many(30..70)).is_none(), "a snapshot is as well");
}

#[test]
fn what_does_not_lead_there_is_not_taken() {
    let (before, after) = (many(0..40), many(1..41));
    let delta = || whole(Changes::between(&before, &after).unwrap());
    let held = held(&before);
    assert!(held.with([&delta()]).is_some());
    assert!(held.with([&Delta { from: [9; 32], ..delta() }]).is_none(), "from another one");
    assert!(held.with([&Delta { version: [9; 32], ..delta() }]).is_none(), "to another one");
    assert!(held.with([&Delta { removed: Vec::new(), ..delta() }]).is_none(), "something is kept");
    let mut twice = delta();
    twice.removed.push(twice.removed[0].clone());
    assert!(held.with([&twice]).is_none(), "what is not there is taken away");
    let mut twice = delta();
    twice.services.push(twice.services[0].clone());
    assert!(held.with([&twice]).is_none(), "one is there twice");
    let mut malformed = delta();
    malformed.services.push(vec![0xff]);
    assert!(held.with([&malformed]).is_none(), "one cannot be read");
}

#[test]
fn changes_are_bounded() {
    let frame = |services: usize, removed: usize| proto::CatalogueDelta {
        from: vec![0; 32],
        version: vec![1; 32],
        services: vec![Vec::new(); services],
        removed: vec![proto::RemovedService::default(); removed],
        more: true,
    };
    let mut assembly = DeltaAssembly::default();
    assert!(assembly.push(frame(MAX_SERVICES, MAX_SERVICES)).unwrap().is_none());
    assert_eq!(assembly.push(frame(1, 0)).unwrap_err(), CatalogueError::Services);
    assert_eq!(
        DeltaAssembly::default().push(frame(0, MAX_SERVICES + 1)).unwrap_err(),
        CatalogueError::Services
    );
    let large = proto::CatalogueDelta { services: vec![vec![0; MAX_BYTES + 1]], ..frame(0, 0) };
    assert_eq!(DeltaAssembly::default().push(large).unwrap_err(), CatalogueError::Bytes);
    let short = proto::CatalogueDelta { from: vec![0; 31], ..frame(0, 0) };
    assert_eq!(DeltaAssembly::default().push(short).unwrap_err(), CatalogueError::Version);
}

/// Changes that follow on each other lead where the last of them says, and nowhere if one does not belong there.
#[test]
fn several_changes_are_followed_at_once() {
    let steps = [many(0..40), many(1..41), many(2..42), many(3..43)];
    let deltas: Vec<Delta> =
        steps.windows(2).map(|pair| whole(Changes::between(&pair[0], &pair[1]).unwrap())).collect();
    assert_eq!(held(&steps[0]).with(&deltas).unwrap(), held(&steps[3]));
    assert!(held(&steps[0]).with(&deltas[1..]).is_none(), "the first is missing");
    assert!(held(&steps[0]).with([&deltas[0], &deltas[2]]).is_none(), "one between is missing");
    assert!(held(&steps[0]).with([&deltas[1], &deltas[0], &deltas[2]]).is_none(), "in another order");
    let bad = Delta { version: [9; 32], ..whole(Changes::between(&steps[2], &steps[3]).unwrap()) };
    assert!(held(&steps[0]).with([&deltas[0], &deltas[1], &bad]).is_none(), "to another one");
}

/// What waits is no more than one catalogue may be, and what came last.
#[test]
fn changes_that_wait_are_bounded() {
    let removed =
        |count| Delta { removed: vec![proto::RemovedService::default(); count], ..Delta::default() };
    let mut pending = Pending::default();
    pending.push(removed(MAX_SERVICES / 2));
    assert!(!pending.is_full());
    pending.push(removed(MAX_SERVICES / 2));
    assert!(pending.is_full());
    let mut pending = Pending::default();
    pending.push(Delta { bytes: MAX_BYTES, ..Delta::default() });
    assert!(pending.is_full());
    let mut pending = Pending::default();
    (0..MAX_SERVICES).for_each(|_| pending.push(Delta::default()));
    assert!(pending.is_full(), "with nothing in them");
}

proptest! {
    #[test]
    fn any_two_catalogues_are_a_delta_apart(
        before in proptest::collection::btree_set(0..60_usize, 0..60),
        after in proptest::collection::btree_set(0..60_usize, 0..60),
    ) {
        let of = |all: &std::collections::BTreeSet<usize>| {
            let names: Vec<String> = all.iter().map(|n| format!("service-{n}")).collect();
            catalogue(&names.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let (before, after) = (of(&before), of(&after));
        if let Some(changes) = Changes::between(&before, &after) {
            prop_assert_eq!(held(&before).with([&whole(changes)]).unwrap().catalogue, after);
        }
    }
}

#[test]
fn what_is_held_comes_and_goes_by_changes() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let (all, seven) = (catalogue(&names), &names[1..]);
    let (one_held, gone) = (holding(seven, &["a"]), catalogue(seven));
    for (before, after) in [(&all, &one_held), (&one_held, &all), (&one_held, &gone), (&gone, &one_held)] {
        let delta = whole(Changes::between(before, after).unwrap());
        assert_eq!((delta.services.len() + delta.removed.len()), 1);
        let now = held(before).with([&delta]).unwrap();
        assert_eq!(now, held(after));
    }
}

/// One that is malformed costs nobody the changes: those of the others, its own, and its end are followed.
#[test]
fn a_malformed_service_is_changed_like_any_other() {
    let service = |name: &str, mend: bool| proto::Service {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        held: mend,
        ..proto::Service::default()
    };
    let encoded = |service: proto::Service| prost::Message::encode_to_vec(&service);
    let hashes = |all: &[Vec<u8>]| version(all.iter().map(|one| Sha256::digest(one).into()).collect());
    let bad = encoded(service("bad", false));
    let good = encoded(service("good", true));
    let nameless = vec![0xff];
    let all = [bad.clone(), good.clone(), nameless.clone()];
    let frame =
        proto::CatalogueSnapshot { version: hashes(&all).to_vec(), services: all.to_vec(), more: false };
    let held = Assembly::default().push(frame).unwrap().unwrap().held.expect("it can be changed");
    assert_eq!((held.refused().len(), held.catalogue.malformed.len()), (2, 2));
    let delta = |to: &[Vec<u8>], services: Vec<Vec<u8>>, removed: &[&str]| Delta {
        from: hashes(&all),
        version: hashes(to),
        services,
        removed: removed
            .iter()
            .map(|name| proto::RemovedService { name: (*name).to_owned(), namespace: "shop".to_owned() })
            .collect(),
        bytes: 0,
    };
    let more = encoded(service("more", true));
    let grown = held
        .with([&delta(&[bad.clone(), good.clone(), nameless.clone(), more.clone()], vec![more], &[])])
        .expect("another");
    assert_eq!((grown.catalogue.held.len(), grown.refused().len()), (2, 2));
    let mended = encoded(service("bad", true));
    let whole = held
        .with([&delta(&[mended.clone(), good.clone(), nameless.clone()], vec![mended], &[])])
        .expect("it is mended");
    assert_eq!((whole.catalogue.held.len(), whole.refused().len()), (2, 1));
    let spoilt = encoded(service("good", false));
    let worse = held
        .with([&delta(&[bad.clone(), spoilt.clone(), nameless.clone()], vec![spoilt], &[])])
        .expect("another is spoilt");
    assert_eq!((worse.catalogue.held.len(), worse.refused().len()), (0, 3));
    let gone = held.with([&delta(&[good, nameless], Vec::new(), &["bad"])]).expect("it is gone");
    assert_eq!((gone.catalogue.held.len(), gone.refused().len()), (1, 1));
}

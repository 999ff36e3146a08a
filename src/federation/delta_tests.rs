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
    let now = held(&before).with(&delta).unwrap();
    assert_eq!(now.catalogue, after);
    let kept = crate::model::ServiceName::new("shop", "service-5").unwrap();
    let held = held(&before);
    let next = held.with(&delta).unwrap();
    assert!(Arc::ptr_eq(&held.catalogue.services[&kept], &next.catalogue.services[&kept]), "the same one");
    assert!(Changes::between(&before, &many(30..70)).is_none(), "a snapshot is as well");
}

#[test]
fn what_does_not_lead_there_is_not_taken() {
    let (before, after) = (many(0..40), many(1..41));
    let delta = || whole(Changes::between(&before, &after).unwrap());
    let held = held(&before);
    assert!(held.with(&delta()).is_some());
    assert!(held.with(&Delta { from: [9; 32], ..delta() }).is_none(), "from another one");
    assert!(held.with(&Delta { version: [9; 32], ..delta() }).is_none(), "to another one");
    assert!(held.with(&Delta { removed: Vec::new(), ..delta() }).is_none(), "something is kept");
    let mut twice = delta();
    twice.removed.push(twice.removed[0].clone());
    assert!(held.with(&twice).is_none(), "what is not there is taken away");
    let mut twice = delta();
    twice.services.push(twice.services[0].clone());
    assert!(held.with(&twice).is_none(), "one is there twice");
    let mut malformed = delta();
    malformed.services.push(vec![0xff]);
    assert!(held.with(&malformed).is_none(), "one cannot be read");
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
            prop_assert_eq!(held(&before).with(&whole(changes)).unwrap().catalogue, after);
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
        let now = held(before).with(&delta).unwrap();
        assert_eq!(now, held(after));
    }
}

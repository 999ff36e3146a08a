use super::*;
use crate::model::session::LinkState;
use crate::model::trust::{Relationship, SpireState};
use crate::model::world::World;
use crate::plan::ending::FINALIZER;
use crate::plan::fixtures::{WorldExt as _, at, peer, remote_cart, session, td, world};
use crate::plan::plan;

const WEST: &str = "west.example";

/// Malformed objects that name a trust domain: another TrustDomainPeer of it, and an ImportedService that somebody wrote.
fn with_malformed(world: World) -> World {
    let second = ObjectKey::cluster(Kind::TrustDomainPeer, "west-again");
    let import = ObjectKey::namespaced(Kind::ImportedService, "sandbox", "anything");
    let mut world = world.with_rejected(second, Some(WEST)).with_rejected(import, Some(WEST));
    for (uid, rejected) in world.rejected.values_mut().enumerate() {
        rejected.uid = format!("uid-of-malformed-{uid}");
    }
    world
}

/// An importer of everything that west offers, for which everything was written.
fn settled() -> World {
    let mut west = peer(WEST);
    west.finalizers = vec![FINALIZER.to_owned()];
    let relationship = Relationship { trust_domain: td(WEST), endpoint: west.endpoint.clone() };
    let mut world = world("east.example").with_peer(west);
    world.spire = Some(Arc::new(SpireState {
        relationships: BTreeMap::from([(td(WEST), relationship)]),
        ..SpireState::default()
    }));
    let offered = session(LinkState::Connected, Some(vec![remote_cart()]));
    let mut world =
        world.with_session(WEST, offered).with_written(&BTreeMap::new(), &[(WEST, remote_cart())]);
    for _ in 0..3 {
        let mut plan = plan(&world);
        plan.objects.retain(|key, _| !world.objects.contains_key(key));
        world = world.with_written(&plan.objects, &[]);
    }
    assert!(plan(&world).prune.is_empty());
    world
}

fn change(world: &mut World, change: impl FnOnce(&mut crate::model::Peer)) {
    change(Arc::make_mut(world.peers.get_mut(&td(WEST)).unwrap()));
}

fn pruned(world: &World) -> Vec<Kind> {
    plan(world).prune.keys().map(|key| key.kind).collect()
}

#[test]
fn what_is_malformed_beside_an_accepted_peer_keeps_nothing_of_it() {
    let mut narrowed = with_malformed(settled());
    assert_eq!(pruned(&narrowed), []);
    change(&mut narrowed, |west| west.imports.services.clear());
    assert_eq!(pruned(&narrowed), [Kind::ImportedService, Kind::ServiceEntry]);

    // Where none is accepted, nobody knows what is admitted; somebody's import says nothing of that.
    let mut unknown = narrowed.clone();
    unknown.peers.clear();
    assert_eq!(pruned(&unknown), []);
    unknown.rejected.retain(|key, _| key.kind != Kind::TrustDomainPeer);
    assert!(!pruned(&unknown).is_empty());
}

#[test]
fn a_relationship_ends_beside_what_is_malformed() {
    for at_once in [false, true] {
        let mut ending = with_malformed(settled());
        let relationship = super::super::relationship::key(&td(WEST));
        let with_bundle = crate::bundle::testing::Ca::new().bundle(WEST);
        change(&mut ending, |west| {
            west.bootstrap = Some(crate::model::peer::Bootstrap::Inline(with_bundle));
        });
        let written = plan(&ending).objects.get(&relationship).cloned().unwrap();
        ending = ending.with_object(written);
        change(&mut ending, |west| {
            west.deletion = Some(at(0));
            west.ending = crate::model::peer::Ending { at_once, by: None };
        });
        Arc::make_mut(&mut ending.sessions).get_mut(&td(WEST)).unwrap().parted = true;
        let planned = plan(&ending);
        assert!(planned.prune.contains_key(&relationship), "at once: {at_once}: {:?}", planned.prune);
        assert!(!planned.objects.contains_key(&relationship));
    }
}

use super::*;

/// Someone's own manifest names the peer, and is put back by them each time, with or without what the agent wrote down.
fn heal(scene: &mut Scene, name: &str, version: usize, keeps_record: bool) {
    let key = ObjectKey::cluster(Kind::ClusterStaticEntry, name);
    let mut healed = scene.world.registrations[&key].as_ref().clone();
    healed.federates_with = vec![EAST.to_owned()];
    healed.resource_version = version.to_string();
    if !keeps_record {
        healed.record = Record::default();
    }
    scene.register(healed);
}

#[test]
fn who_puts_a_name_back_each_time_is_told_and_not_fought() {
    type Change = fn(&mut Scene);
    let wants: [(Change, &str); 3] = [
        (
            |scene| {
                scene.spire(|spire, _| {
                    spire.bundles.insert(td(EAST), empty());
                });
            },
            "without a usable X.509 authority",
        ),
        (|scene| scene.change_peer(|peer| peer.withdraw = true), "spec.withdraw"),
        (
            |scene| {
                scene.change_peer(|peer| {
                    peer.deletion = Some(now());
                    peer.ending.at_once = true;
                });
            },
            "ending at once",
        ),
    ];
    for (change, words) in wants {
        for keeps_record in [true, false] {
            for is_coalesced in [true, false] {
                contest(change, words, keeps_record, is_coalesced);
            }
        }
    }
}

fn contest(change: fn(&mut Scene), words: &str, keeps_record: bool, is_coalesced: bool) {
    let mut scene = Scene::related();
    scene.write_patches();
    heal(&mut scene, "cart", 8, false);
    change(&mut scene);
    scene.pass(1);
    // What never was seen to be gone is only known to have come back by the record.
    let is_known = !is_coalesced || (keeps_record && words != "ending at once");
    let mut written = 0;
    for round in 0..20 {
        if scene.write_patches() == 0 {
            break;
        }
        written += 1;
        if !is_coalesced {
            scene.pass(1);
        }
        heal(&mut scene, "cart", 10 + round, keeps_record);
        scene.pass(1);
    }
    if !is_known {
        return;
    }
    assert!((2..=4).contains(&written), "{words} {keeps_record} {is_coalesced}: {written} patches");
    assert_eq!(scene.names("cart"), [EAST]);
    assert!(scene.names("agent").is_empty(), "others are kept out");
    let status = distributed(&scene);
    assert!(status.contains(words) && status.contains("ClusterStaticEntry cart"), "{status}");
    assert!(status.contains("RegistrationContested") || words == "ending at once", "{status}");
    // In an emergency the rest of the end does not wait for it.
    assert!(stage(&scene.world, &scene.peer()).is_none_or(|stage| stage > Stage::Registrations(Vec::new())));

    // Its source is changed; an hour later it is something new.
    let key = ObjectKey::cluster(Kind::ClusterStaticEntry, "cart");
    let mut mended = scene.world.registrations[&key].as_ref().clone();
    mended.federates_with.clear();
    scene.register(mended);
    scene.pass(1);
    assert!(!distributed(&scene).contains("RegistrationContested"));
    scene.pass(3_600);
    heal(&mut scene, "cart", 99, keeps_record);
    scene.pass(1);
    assert_eq!(scene.write_patches(), 1);
}

/// Someone's tool replaces the object whole, with what the agent wrote into it.
fn replace(scene: &mut Scene, name: &str) {
    let key = ObjectKey::cluster(Kind::ClusterStaticEntry, name);
    let mut replaced = registration(name, false);
    replaced.labels.clone_from(&scene.world.registrations[&key].labels);
    scene.register(replaced);
    scene.pass(1);
}

#[test]
fn who_takes_a_name_out_each_time_is_told_and_not_fought() {
    let mut scene = Scene::related();
    let mut written = 0;
    for _ in 0..20 {
        scene.pass(1);
        if scene.write_patches() == 0 {
            break;
        }
        written += 1;
        scene.pass(1);
        replace(&mut scene, "cart");
    }
    assert!((2..=4).contains(&written), "{written} patches");
    assert!(scene.names("cart").is_empty());
    assert_eq!(scene.names("agent"), [EAST], "others name it");
    let status = distributed(&scene);
    assert!(
        status.contains("RegistrationContested") && status.contains("ClusterStaticEntry cart"),
        "{status}"
    );

    // Its source names the peer now; an hour later it is something new.
    heal(&mut scene, "cart", 9, false);
    scene.pass(1);
    assert!(!distributed(&scene).contains("RegistrationContested"));
    scene.pass(3_600);
    replace(&mut scene, "cart");
    assert_eq!(scene.write_patches(), 1);
}

/// Two nodes' entries of one workload.
fn entries(scene: &mut Scene, federating: [bool; 2]) {
    Arc::make_mut(&mut scene.world.settings).relationships = Relationships::ServerApi;
    scene.spire(|spire, _| {
        for (id_of_entry, federates) in ["e1", "e2"].into_iter().zip(federating) {
            let entry = Entry {
                id: id_of_entry.to_owned(),
                spiffe_id: id("spiffe://west.example/ns/shop/sa/cart"),
                selectors: BTreeSet::new(),
                federates_with: federates.then(|| td(EAST)).into_iter().collect(),
            };
            spire.entries.insert(id_of_entry.to_owned(), entry);
        }
    });
}

fn changed(scene: &Scene) -> Vec<String> {
    let actions = entry_actions(&scene.world).into_iter();
    actions
        .map(|action| match action {
            SpireAction::ChangeFederatesWith { entry, .. } => entry,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn an_entry_that_could_not_be_changed_yet_is_no_contest_of_another_with_its_id() {
    let mut scene = Scene::related();
    entries(&mut scene, [true, true]);
    scene.change_peer(|peer| peer.withdraw = true);
    scene.pass(1);
    // The first was changed; the second failed, again and again.
    entries(&mut scene, [false, true]);
    for _ in 0..10 {
        scene.pass(1);
        assert_eq!(changed(&scene), ["e2"]);
    }
    assert!(!distributed(&scene).contains("RegistrationContested"));
}

#[test]
fn who_restores_entries_of_spire_is_told_and_not_fought() {
    let mut scene = Scene::related();
    let mut rounds = 0;
    for _ in 0..20 {
        entries(&mut scene, [true, false]);
        scene.pass(1);
        if changed(&scene).is_empty() {
            break;
        }
        rounds += 1;
        entries(&mut scene, [true, true]);
        scene.pass(1);
    }
    assert!((2..=4).contains(&rounds), "{rounds} changes");
    let status = distributed(&scene);
    assert!(
        status.contains("RegistrationContested") && status.contains("spiffe://west.example/ns/shop/sa/cart"),
        "{status}"
    );
}

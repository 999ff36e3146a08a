use super::*;
use crate::bundle::testing::{Ca, td};

const INSTANCE: &str = "entente";

fn wish() -> Wish {
    Wish {
        trust_domain: td("west.example"),
        instance: INSTANCE.to_owned(),
        class_name: String::new(),
        agent_addresses: Vec::new(),
        agent_ids: vec![conventional_agent(&td("west.example"))],
        bundle: None,
        keep_registrations: false,
    }
}

fn relationship(name: &str) -> Object {
    let bundle = document::write(&Ca::new().bundle("west.example"));
    let spec = json!({
        "trustDomain": "west.example",
        "bundleEndpointURL": "https://192.0.2.1/",
        "bundleEndpointProfile": { "type": "https_spiffe", "endpointSPIFFEID": "spiffe://west.example/spire/server" },
        "trustDomainBundle": bundle,
    });
    let mut object = Object::desired(ObjectKey::cluster(Kind::ClusterFederatedTrustDomain, name), spec);
    object.meta.resource_version = "5".to_owned();
    object
}

fn entry(name: &str, federates_with: &[&str]) -> Object {
    let spec = json!({ "spiffeID": "spiffe://east.example/x", "federatesWith": federates_with });
    Object::desired(ObjectKey::cluster(Kind::ClusterStaticEntry, name), spec)
}

fn objects(all: impl IntoIterator<Item = Object>) -> BTreeMap<ObjectKey, Object> {
    all.into_iter().map(|object| (object.key.clone(), object)).collect()
}

#[test]
fn what_stands_becomes_a_peer_that_selects_what_names_it() {
    let mut agent = entry("agent", &["west.example"]);
    agent.meta.labels.insert("entente.dev/agent".to_owned(), "true".to_owned());
    let all = objects([
        relationship("west.example"),
        agent,
        entry("cart", &["north.example", "west.example"]),
        entry("other", &["north.example"]),
    ]);
    let adoption = adopt(&all, &wish()).unwrap();
    let kinds: Vec<_> = adoption.steps.iter().map(|step| step.describe(&td("west.example"))).collect();
    assert_eq!(adoption.steps.len(), 4, "{kinds:#?}");
    assert!(
        matches!(&adoption.steps[0], Step::Record { key, ops, .. } if key.name == "agent" && ops.len() == 2)
    );
    let Step::Record { key, ops, .. } = &adoption.steps[1] else { panic!("{kinds:#?}") };
    assert_eq!((key.name.as_str(), ops.len()), ("cart", 4));
    assert!(matches!(&adoption.steps[2], Step::HandOver { replaced_by: None, .. }));
    let Step::Create(peer) = &adoption.steps[3] else { panic!("{kinds:#?}") };
    let parsed = trust_domain_peer::parse(peer, Some(&td("east.example"))).unwrap();
    assert!(adoption.notes.is_empty(), "{:?}", adoption.notes);

    // Once it is done, the peer selects what was recorded, and a second run has nothing to do.
    let mut after = all.clone();
    for (key, object) in &mut after {
        if key.name == "cart" || key.name == "agent" {
            let record = r#"{"added":["west.example"],"suspended":[]}"#.to_owned();
            object.meta.annotations.insert(ANNOTATION_RECORD.to_owned(), record);
        }
        if key.name == "cart" {
            object.meta.labels.insert(label(&td("west.example")), "true".to_owned());
            assert!(registrations::selects(&parsed, &registration::parse(object).unwrap()));
        }
        if key.name == "other" {
            assert!(!registrations::selects(&parsed, &registration::parse(object).unwrap()));
        }
        if key.kind == Kind::ClusterFederatedTrustDomain {
            object.meta.labels.insert(crate::model::object::LABEL_INSTANCE.to_owned(), INSTANCE.to_owned());
        }
    }
    after.insert(peer.key.clone(), (**peer).clone());
    let again = adopt(&after, &wish()).unwrap();
    assert_eq!((again.steps, again.notes), (vec![], vec![]));
}

#[test]
fn a_peer_that_is_there_keeps_its_selection() {
    let all = objects([relationship("west.example"), entry("cart", &["west.example"])]);
    let Step::Create(mut peer) = adopt(&all, &wish()).unwrap().steps.pop().unwrap() else { panic!() };
    peer.body["spec"].as_object_mut().unwrap().remove("federatesWith");
    let mut with_peer = all;
    with_peer.insert(peer.key.clone(), *peer.clone());
    let adoption = adopt(&with_peer, &wish()).unwrap();
    // recorded, it would lose the name at once: the peer does not select it
    assert!(recorded(&adoption).is_empty() && adoption.notes.len() == 1, "{adoption:?}");
    peer.body["spec"]["bundleEndpoint"]["url"] = json!("https://192.0.2.2/");
    with_peer.insert(peer.key.clone(), *peer);
    assert!(adopt(&with_peer, &wish()).unwrap_err().contains("different bundle endpoints"));
}

#[test]
fn another_name_is_replaced_and_registrations_can_be_kept_out() {
    let all = objects([relationship("by-hand"), entry("cart", &["west.example"])]);
    let adoption = adopt(&all, &Wish { keep_registrations: true, ..wish() }).unwrap();
    assert!(
        matches!(&adoption.steps[0], Step::HandOver { replaced_by: Some(ours), .. } if ours.name == "west.example")
    );
    let Step::Create(peer) = &adoption.steps[1] else { panic!() };
    assert!(peer.spec().unwrap().get("federatesWith").is_none());
    assert_eq!(adoption.notes.len(), 2, "{:?}", adoption.notes);
}

#[test]
fn what_cannot_be_adopted_says_why() {
    let refused = |all: Vec<Object>, wish: &Wish| adopt(&objects(all), wish).unwrap_err();
    assert!(refused(vec![], &wish()).contains("nothing to adopt"));
    let two = refused(vec![relationship("a"), relationship("b")], &wish());
    assert!(two.contains("several") && two.contains("a, b"), "{two}");
    let mut classed = relationship("a");
    classed.body["spec"]["className"] = json!("x");
    assert!(refused(vec![classed], &wish()).contains("class"));
    let mut bare = relationship("a");
    bare.body["spec"].as_object_mut().unwrap().remove("trustDomainBundle");
    assert!(refused(vec![bare.clone()], &wish()).contains("--bundle FILE"));
    let given = document::write(&Ca::new().bundle("west.example"));
    assert!(adopt(&objects([bare]), &Wish { bundle: Some(given), ..wish() }).is_ok());
    let wrong = Wish { agent_ids: vec!["spiffe://north.example/a".to_owned()], ..wish() };
    assert!(refused(vec![relationship("a")], &wrong).contains("spiffeIDs"));
}

#[test]
fn what_is_of_another_class_is_another_controllers() {
    let of_class = |mut object: Object, class: &str| {
        object.body["spec"]["className"] = json!(class);
        object
    };
    let all = objects([
        of_class(relationship("another"), "x"),
        of_class(relationship("west.example"), "mine"),
        of_class(entry("theirs", &["west.example"]), "x"),
        of_class(entry("cart", &["west.example"]), "mine"),
        entry("unclassed", &["west.example"]),
    ]);
    let adoption = adopt(&all, &Wish { class_name: "mine".to_owned(), ..wish() }).unwrap();
    let names: Vec<_> = recorded(&adoption).into_iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["cart", "unclassed"]);
    let handed = |step: &Step| matches!(step, Step::HandOver { key, .. } if key.name == "west.example");
    assert!(adoption.steps.iter().any(handed), "{adoption:?}");
    assert!(adoption.notes.is_empty(), "{:?}", adoption.notes);
}

use super::*;
use crate::federation::tests::catalogue;

fn frames(catalogue: &Arc<Catalogue>) -> Vec<proto::CatalogueSnapshot> {
    let mut frames = Frames::new(Arc::clone(catalogue), false);
    let mut out = Vec::new();
    loop {
        out.push(frames.next());
        if !out.last().unwrap().more {
            return out;
        }
    }
}

fn version_of_encoded(services: &[Vec<u8>]) -> CatalogueVersion {
    version(services.iter().map(|service| Sha256::digest(service).into()).collect())
}

/// A snapshot of raw services, in one frame, with the version that they have.
fn snapshot(services: Vec<Vec<u8>>) -> proto::CatalogueSnapshot {
    let version = version_of_encoded(&services).to_vec();
    proto::CatalogueSnapshot { version, services, more: false }
}

fn encoded(name: &str) -> Vec<u8> {
    encode(catalogue(&[name]).services.values().next().unwrap())
}

fn large(count: usize) -> Arc<Catalogue> {
    let names: Vec<String> = (0..count).map(|n| format!("service-{n}")).collect();
    catalogue(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn the_version_is_of_the_content_alone() {
    assert_eq!(catalogue(&["a", "b"]).version, catalogue(&["b", "a"]).version);
    assert_ne!(catalogue(&["a", "b"]).version, catalogue(&["a"]).version);
    assert_ne!(catalogue(&["a"]).version, catalogue(&[]).version);
    // a length before each: no two catalogues are the same bytes
    assert_ne!(first_version(vec![b"ab".to_vec()]), first_version(vec![b"a".to_vec(), b"b".to_vec()]));
    // part of the protocol: it must not change with a later version of this crate
    let first = hex::encode(Frames::new(catalogue(&["web"]), true).version());
    assert_eq!(first, "6d69e904dcac382962f2aaf59eeddf17be8095d62ade6b56ebb2518d843e2cf6");
}

#[test]
fn a_large_catalogue_crosses_in_frames_under_a_mebibyte() {
    let large = large(MAX_SERVICES);
    let frames = frames(&large);
    assert!(frames.len() > 1);
    let mut assembly = Assembly::default();
    for frame in frames {
        assert!(frame.encoded_len() < 1024 * 1024);
        let is_last = !frame.more;
        match assembly.push(frame).unwrap() {
            Some(received) => {
                assert!(is_last && received.refused.is_empty());
                assert_eq!(received.catalogue, large);
            }
            None => assert!(!is_last),
        }
    }
    assert_eq!(super::Frames::new(catalogue(&[]), false).next().services, Vec::<Vec<u8>>::new());
}

#[test]
fn a_snapshot_that_changes_version_midway_starts_anew() {
    let (old, new) = (large(20_000), catalogue(&["web"]));
    let mut assembly = Assembly::default();
    assert_eq!(assembly.push(frames(&old).remove(0)), Ok(None));
    let received = assembly.push(frames(&new).remove(0)).unwrap().unwrap();
    assert_eq!(received.catalogue, new);
}

#[test]
fn a_malformed_service_harms_only_itself() {
    let mut nameless = proto::Service::decode(encoded("a").as_slice()).unwrap();
    nameless.name = "Not A Label\n".repeat(30);
    let services = vec![
        encoded("web"),
        encoded("cart"),
        nameless.encode_to_vec(),
        vec![0xff; 20],
        vec![0; MAX_SERVICE_BYTES + 1],
        encoded("twice"),
        [encoded("twice"), vec![0xf8, 0x7f, 1]].concat(),
        // a field that a later version may add
        [encoded("later"), vec![0xf8, 0x7f, 1]].concat(),
    ];
    let received = Assembly::default().push(snapshot(services)).unwrap().unwrap();
    let names: Vec<_> = received.catalogue.services.keys().map(ServiceName::name).collect();
    assert_eq!(names, ["cart", "later", "web"]);
    assert_eq!(received.catalogue.malformed.len(), 4);
    assert!(
        received.catalogue.malformed.iter().all(|(label, cause)| label.len() <= 100 && !cause.is_empty())
    );
    assert!(received.catalogue.malformed.iter().any(|(label, _)| label == "twice.shop"));
    assert_eq!(received.refused.len(), 4);
    assert!(received.refused.iter().all(|r| !r.imported && r.reason == MALFORMED));
}

#[test]
fn what_is_remembered_of_malformed_services_is_bounded() {
    let services = (0..5_000_u32).map(|n| [&[0xff; 16][..], &n.to_be_bytes()].concat()).collect();
    let received = Assembly::default().push(snapshot(services)).unwrap().unwrap();
    assert_eq!(received.catalogue.malformed.len(), MAX_MALFORMED);
    assert_eq!(received.refused.len(), MAX_MALFORMED);
}

#[test]
fn limits_hold_over_all_frames_and_a_wrong_version_is_refused() {
    let frame = |services, more| proto::CatalogueSnapshot { version: vec![9; 32], services, more };
    let mut assembly = Assembly::default();
    assert_eq!(assembly.push(frame(vec![vec![]; MAX_SERVICES], true)), Ok(None));
    assert_eq!(assembly.push(frame(vec![vec![]], true)), Err(CatalogueError::Services));
    let mut assembly = Assembly::default();
    for _ in 0..16 {
        assert_eq!(assembly.push(frame(vec![vec![0; 1024 * 1024]], true)), Ok(None));
    }
    assert_eq!(assembly.push(frame(vec![vec![0]], true)), Err(CatalogueError::Bytes));
    assert_eq!(Assembly::default().push(frame(vec![], false)), Err(CatalogueError::Mismatch));
    let short = proto::CatalogueSnapshot { version: vec![9; 31], ..frame(vec![], false) };
    assert_eq!(Assembly::default().push(short), Err(CatalogueError::Version));
}

#[test]
fn a_service_that_is_too_large_stands_there_by_its_name() {
    let mut service = catalogue(&["web"]).services.values().next().unwrap().as_ref().clone();
    service.server_ids = (0..1_000)
        .map(|n| crate::bundle::testing::id(&format!("spiffe://west.test/{}/{n}", "a".repeat(1_000))))
        .collect();
    let services = BTreeMap::from([(service.name.clone(), Arc::new(service))]);
    let whole = Arc::new(Catalogue {
        version: version_of(&services),
        services,
        held: std::collections::BTreeSet::new(),
        malformed: vec![],
    });
    let received = Assembly::default().push(frames(&whole).remove(0)).unwrap().unwrap();
    assert!(received.catalogue.services.is_empty());
    assert_eq!(received.catalogue.malformed[0].0, "web.shop");
}

/// A catalogue in which some services are held.
pub(in crate::federation) fn holding(services: &[&str], held: &[&str]) -> Arc<Catalogue> {
    let services = catalogue(services).services.clone();
    let held: BTreeSet<ServiceName> =
        held.iter().map(|name| ServiceName::new("shop", name).unwrap()).collect();
    let hashes = services.values().map(|service| hash(service)).chain(held.iter().map(hash_held));
    Arc::new(Catalogue { version: version(hashes.collect()), services, held, malformed: Vec::new() })
}

#[test]
fn what_is_held_is_told_by_its_name() {
    let whole = holding(&["a", "b"], &["c", "d"]);
    assert_ne!(whole.version, holding(&["a", "b"], &["c"]).version);
    let [frame] = frames(&whole).try_into().unwrap();
    assert_eq!(frame.services.len(), 4);
    let named = proto::Service::decode(frame.services[2].as_slice()).unwrap();
    let name_alone =
        proto::Service { name: "c".into(), namespace: "shop".into(), held: true, ..Default::default() };
    assert_eq!(named, name_alone);
    let received = Assembly::default().push(frame).unwrap().unwrap();
    assert_eq!((received.catalogue, received.refused), (whole, Vec::new()));
}

#[test]
fn what_is_offered_and_held_is_malformed() {
    let held = encode_held(&ServiceName::new("shop", "a").unwrap());
    let received = Assembly::default().push(snapshot(vec![encoded("a"), held])).unwrap().unwrap();
    assert!(received.held.is_none());
    assert!(received.catalogue.services.is_empty() && received.catalogue.held.is_empty());
    assert_eq!(received.refused.len(), 1);

    let nameless = proto::Service { namespace: "shop".into(), held: true, ..Default::default() };
    let received = Assembly::default().push(snapshot(vec![nameless.encode_to_vec()])).unwrap().unwrap();
    assert!(received.catalogue.held.is_empty() && received.refused.len() == 1);
}

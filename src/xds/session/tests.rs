use std::sync::Arc;

use super::delta::Delta;
use super::sotw::Sotw;
use super::*;
use crate::model::import::Imported;
use crate::model::service::{AppProtocol, RemoteService};
use crate::model::{NamespacedName, ServiceName, SpiffeId};
use crate::plan::fixtures::{id, remote_cart, td};
use crate::plan::xds::testing::{offered, xds_of};
use crate::proto::xds::discovery::{DeltaDiscoveryRequest, DiscoveryRequest, Refusal};

fn client() -> SpiffeId {
    id("spiffe://east.example/ns/shop/sa/client")
}

/// `name` of namespace shop, reached at this port of its gateway.
fn service(name: &str, gateway_port: u16) -> Imported {
    let mut service = RemoteService { name: ServiceName::new("shop", name).unwrap(), ..remote_cart() };
    service.gateways[0].port = gateway_port;
    service.ports[0].protocol = AppProtocol::Tcp;
    let host = service.name.host(&td("west.example")).unwrap();
    Imported {
        object: NamespacedName::new("entente-system", host),
        uid: String::new(),
        generation: 1,
        trust_domain: td("west.example"),
        service: Arc::new(service),
    }
}

/// What the client sees of these services.
fn view(services: &[(&str, u16)]) -> View {
    let offers = services.iter().map(|(name, port)| offered(service(name, *port), &["127.64.0.1"]));
    View::of(&xds_of(offers), &client(), ClientKind::Envoy)
}

/// The same, where another server stands behind `a`: its cluster is another, its endpoints are not.
fn with_another_server(services: &[(&str, u16)]) -> View {
    let of = |(name, port): &(&str, u16)| {
        let mut imported = service(name, *port);
        if *name == "a" {
            Arc::make_mut(&mut imported.service).server_ids =
                [id("spiffe://west.example/ns/shop/sa/b")].into();
        }
        offered(imported, &["127.64.0.1"])
    };
    View::of(&xds_of(services.iter().map(of)), &client(), ClientKind::Envoy)
}

fn names(of: &str) -> String {
    format!("{of}.shop.west.example:18080")
}

const LISTENERS: ResourceType = ResourceType::Listener;
const CLUSTERS: ResourceType = ResourceType::Cluster;
const ENDPOINTS: ResourceType = ResourceType::Endpoints;

fn delta(kind: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: kind.url().to_owned(), ..Default::default() }
}

fn sotw(kind: ResourceType) -> DiscoveryRequest {
    DiscoveryRequest { type_url: kind.url().to_owned(), ..Default::default() }
}

/// What each answer of one type has: names that came, and names that went.
fn told(answers: &[Answer], kind: ResourceType) -> Vec<(Vec<String>, Vec<String>)> {
    let short = |name: &Arc<str>| name.split('.').next().unwrap().to_owned();
    let of = |answer: &Answer| {
        let came = answer.resources.iter().map(|resource| short(&resource.name)).collect();
        (came, answer.removed.iter().map(short).collect())
    };
    answers.iter().filter(|answer| answer.kind == kind).map(of).collect()
}

fn came(names: &[&str]) -> (Vec<String>, Vec<String>) {
    (names.iter().map(|&name| name.to_owned()).collect(), Vec::new())
}

fn went(names: &[&str]) -> (Vec<String>, Vec<String>) {
    (Vec::new(), names.iter().map(|&name| name.to_owned()).collect())
}

#[test]
fn who_takes_everything_is_sent_what_changed_and_what_went() {
    let mut session = Delta::default();
    let first = view(&[("a", 1), ("b", 1)]);
    session.request(delta(CLUSTERS)).unwrap();
    session.request(delta(LISTENERS)).unwrap();
    let answers = session.answers(&first);
    let order: Vec<ResourceType> = answers.iter().map(|answer| answer.kind).collect();
    assert_eq!(order, [CLUSTERS, LISTENERS], "clusters before the listeners that lead to them");
    assert_eq!(told(&answers, CLUSTERS), [came(&["a", "b"])]);
    let nonces: BTreeSet<&String> = answers.iter().map(|answer| &answer.nonce).collect();
    assert_eq!(nonces.len(), 2);
    let subscribe = vec![names("a"), names("b")];
    session
        .request(DeltaDiscoveryRequest { resource_names_subscribe: subscribe, ..delta(ENDPOINTS) })
        .unwrap();
    assert_eq!(told(&session.answers(&first), ENDPOINTS), [came(&["a", "b"])]);
    assert!(session.answers(&first).is_empty(), "nothing is sent twice");

    // Only an endpoint of `a` changes: the cluster and the listener stay as they are.
    let moved = view(&[("a", 2), ("b", 1)]);
    let answers = session.answers(&moved);
    assert_eq!((answers.len(), told(&answers, ENDPOINTS)), (1, vec![came(&["a"])]));

    let fewer = view(&[("b", 1), ("c", 1)]);
    let answers = session.answers(&fewer);
    assert_eq!(told(&answers, CLUSTERS), [(vec!["c".to_owned()], vec!["a".to_owned()])]);
    assert_eq!(told(&answers, LISTENERS), [(vec!["c".to_owned()], vec!["a".to_owned()])]);
    assert_eq!(told(&answers, ENDPOINTS), [went(&["a"])], "c was not asked for");
    assert!(session.answers(&fewer).is_empty());
}

/// An Envoy goes on with what a cluster was until it is told the endpoints of what it has become, though they are the same.
#[test]
fn a_cluster_that_becomes_another_is_followed_by_its_endpoints() {
    let services = [("a", 1), ("b", 1)];
    let (before, after) = (view(&services), with_another_server(&services));
    let kinds = |answers: &[Answer]| answers.iter().map(|answer| answer.kind).collect::<Vec<_>>();
    let asked = vec![names("a"), names("b")];

    let mut session = Delta::default();
    session.request(delta(CLUSTERS)).unwrap();
    session.answers(&before);
    let request = DeltaDiscoveryRequest { resource_names_subscribe: asked.clone(), ..delta(ENDPOINTS) };
    session.request(request).unwrap();
    session.answers(&before);
    let answers = session.answers(&after);
    assert_eq!(kinds(&answers), [CLUSTERS, ENDPOINTS]);
    assert_eq!(told(&answers, CLUSTERS), [came(&["a"])]);
    assert_eq!(told(&answers, ENDPOINTS), [came(&["a"])], "those of b are as they were");
    assert!(session.answers(&after).is_empty());

    let mut session = Sotw::default();
    session.request(sotw(CLUSTERS)).unwrap();
    session.answers(&before);
    session.request(DiscoveryRequest { resource_names: asked.clone(), ..sotw(ENDPOINTS) }).unwrap();
    let held = one(session.answers(&before));
    session.request(ack(&held, &asked)).unwrap();
    let answers = session.answers(&after);
    assert_eq!(kinds(&answers), [CLUSTERS, ENDPOINTS]);
    assert_eq!(answers[1].resources, held.resources);
    // It asks for them again before it has read the answer.
    session.request(ack(&held, &asked)).unwrap();
    session.request(ack(&answers[1], &asked)).unwrap();
    assert!(session.answers(&after).is_empty());
    let grown = with_another_server(&[("a", 1), ("b", 1), ("c", 1)]);
    assert_eq!(kinds(&session.answers(&grown)), [CLUSTERS], "those that nobody asks for yet");
}

/// The same for who comes again with what it held, whichever it asks for first.
#[test]
fn who_comes_again_is_told_the_endpoints_of_the_clusters_that_it_lacks() {
    let services = [("a", 1), ("b", 1)];
    let (before, after) = (view(&services), with_another_server(&services));
    let versions =
        |kind| before.of_type(kind).into_values().map(|one| (one.name.to_string(), one.version.to_string()));
    let asked = |kind| if kind == ENDPOINTS { vec![names("a"), names("b")] } else { Vec::new() };
    let version_info = |kind| {
        let mut earlier = Sotw::default();
        earlier.request(DiscoveryRequest { resource_names: asked(kind), ..sotw(kind) }).unwrap();
        one(earlier.answers(&before)).version
    };
    for (now, is_due) in [(&after, true), (&before, false)] {
        for order in [[CLUSTERS, ENDPOINTS], [ENDPOINTS, CLUSTERS]] {
            let (mut by_name, mut whole) = (Delta::default(), Sotw::default());
            let (mut named, mut all) = (Vec::new(), Vec::new());
            for kind in order {
                let request = DeltaDiscoveryRequest {
                    resource_names_subscribe: asked(kind),
                    initial_resource_versions: versions(kind).collect(),
                    ..delta(kind)
                };
                by_name.request(request).unwrap();
                named.extend(by_name.answers(now));
                let request = DiscoveryRequest {
                    resource_names: asked(kind),
                    version_info: version_info(kind),
                    ..sotw(kind)
                };
                whole.request(request).unwrap();
                all.extend(whole.answers(now));
            }
            for answers in [named, all] {
                let last = answers.iter().rev().find(|answer| !answer.resources.is_empty());
                let is_told = last.is_some_and(|answer| {
                    answer.kind == ENDPOINTS && answer.resources.iter().any(|one| *one.name == *names("a"))
                });
                assert_eq!(is_told, is_due, "{order:?} {answers:?}");
            }
        }
    }
}

#[test]
fn who_waits_for_everything_is_told_that_there_is_nothing() {
    let mut session = Delta::default();
    session.request(delta(LISTENERS)).unwrap();
    assert_eq!(told(&session.answers(&view(&[])), LISTENERS), [came(&[])]);
    assert!(session.answers(&view(&[])).is_empty());
    let mut session = Sotw::default();
    session.request(sotw(LISTENERS)).unwrap();
    assert_eq!(session.answers(&view(&[])).len(), 1);
    assert!(session.answers(&view(&[])).is_empty());
}

#[test]
fn names_are_subscribed_to_and_given_up() {
    let mut session = Delta::default();
    let all = view(&[("a", 1), ("b", 1)]);
    let subscribe = |of: &[&str]| DeltaDiscoveryRequest {
        resource_names_subscribe: of.iter().map(|name| names(name)).collect(),
        ..delta(LISTENERS)
    };
    let give_up = |of: &[&str]| DeltaDiscoveryRequest {
        resource_names_unsubscribe: of
            .iter()
            .map(|&name| if name == "*" { name.to_owned() } else { names(name) })
            .collect(),
        ..delta(LISTENERS)
    };
    session.request(subscribe(&["a", "nowhere"])).unwrap();
    let first = told(&session.answers(&all), LISTENERS);
    assert_eq!(
        first,
        [(vec!["a".to_owned()], vec!["nowhere".to_owned()])],
        "what is not there is said to be gone"
    );
    assert!(session.answers(&all).is_empty());
    session.request(subscribe(&["a"])).unwrap();
    assert_eq!(told(&session.answers(&all), LISTENERS), [came(&["a"])], "who asks again is sent it again");
    session.request(give_up(&["a"])).unwrap();
    assert!(session.answers(&view(&[("a", 2)])).is_empty(), "nobody asks for it any more");

    // Everything, and a name beside it.
    let star = DeltaDiscoveryRequest { resource_names_subscribe: vec!["*".to_owned()], ..delta(LISTENERS) };
    session.request(star).unwrap();
    assert_eq!(told(&session.answers(&all), LISTENERS), [came(&["a", "b"])]);
    session.request(subscribe(&["a"])).unwrap();
    session.answers(&all);
    session.request(give_up(&["a"])).unwrap();
    assert_eq!(told(&session.answers(&all), LISTENERS), [came(&["a"])], "the wildcard holds it still");
    session.request(give_up(&["*"])).unwrap();
    assert!(session.answers(&view(&[("b", 1), ("c", 1)])).is_empty());
    // `nowhere` is subscribed to still.
    let there = session.answers(&view(&[("nowhere", 1)]));
    assert_eq!(told(&there, LISTENERS), [came(&["nowhere"])]);
}

#[test]
fn who_comes_again_is_sent_what_it_lacks() {
    let all = view(&[("a", 1), ("b", 1)]);
    let mut before = Delta::default();
    before.request(delta(LISTENERS)).unwrap();
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    for answer in before.answers(&all) {
        let of = |resource: &Resource| (resource.name.to_string(), resource.version.to_string());
        held.extend(answer.resources.iter().map(of));
    }
    assert_eq!(held.len(), 2);
    let versions = |held: &BTreeMap<String, String>| held.clone().into_iter().collect();
    let mut again = Delta::default();
    again
        .request(DeltaDiscoveryRequest { initial_resource_versions: versions(&held), ..delta(LISTENERS) })
        .unwrap();
    assert_eq!(told(&again.answers(&all), LISTENERS), [came(&[])], "it has all of it");
    let mut late = Delta::default();
    held.insert(names("b"), "another".to_owned());
    late.request(DeltaDiscoveryRequest { initial_resource_versions: versions(&held), ..delta(LISTENERS) })
        .unwrap();
    let answers = late.answers(&view(&[("b", 1), ("c", 1)]));
    assert_eq!(told(&answers, LISTENERS), [(vec!["b".to_owned(), "c".to_owned()], vec!["a".to_owned()])]);
}

#[test]
fn large_answers_come_in_parts_that_can_be_read() {
    let many: Vec<String> = (0..3_000).map(|n| format!("s{n:04}")).collect();
    let many: Vec<(&str, u16)> = many.iter().map(|name| (name.as_str(), 1)).collect();
    let all = view(&many);
    let mut session = Delta::default();
    session.request(delta(CLUSTERS)).unwrap();
    let answers = session.answers(&all);
    let size = |answer: &Answer| answer.resources.iter().map(|one| one.incremental().len()).sum();
    let sizes: Vec<usize> = answers.iter().map(size).collect();
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size <= 1 << 20), "{sizes:?}");
    let sent: usize = answers.iter().map(|answer| answer.resources.len()).sum();
    assert_eq!(sent, 3_000);
}

fn ack(answer: &Answer, names: &[String]) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: answer.version.clone(),
        response_nonce: answer.nonce.clone(),
        type_url: answer.kind.url().to_owned(),
        resource_names: names.to_vec(),
        ..Default::default()
    }
}

fn one(answers: Vec<Answer>) -> Answer {
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers.into_iter().next().unwrap()
}

#[test]
fn the_state_of_the_world_is_sent_whole_when_any_of_it_changes() {
    let mut session = Sotw::default();
    let first = view(&[("a", 1), ("b", 1)]);
    session.request(sotw(LISTENERS)).unwrap();
    let answer = one(session.answers(&first));
    assert_eq!(answer.resources.len(), 2);
    assert_eq!(session.request(ack(&answer, &[])).unwrap(), Heard::Acked(LISTENERS, None));
    assert!(session.answers(&first).is_empty(), "an ACK is not answered");
    let more = one(session.answers(&view(&[("a", 1), ("b", 1), ("c", 1)])));
    assert_eq!(more.resources.len(), 3);
    assert_ne!((&more.version, &more.nonce), (&answer.version, &answer.nonce));
    // It answers to the first one only now.
    let stale = DiscoveryRequest { resource_names: vec![names("a")], ..ack(&answer, &[]) };
    assert_eq!(session.request(stale).unwrap(), Heard::Asked);
    assert!(session.answers(&view(&[("a", 1), ("b", 1), ("c", 1)])).is_empty());
    let fewer = one(session.answers(&view(&[("c", 1)])));
    assert_eq!(fewer.resources.len(), 1);
}

#[test]
fn a_refusal_is_heard_and_nothing_is_sent_until_something_changes() {
    let mut session = Sotw::default();
    let first = view(&[("a", 1)]);
    session.request(sotw(LISTENERS)).unwrap();
    let answer = one(session.answers(&first));
    let refusal = Some(Refusal { code: 13, message: format!("no\nsuch {}", "x".repeat(10_000)) });
    let request =
        DiscoveryRequest { version_info: String::new(), error_detail: refusal.clone(), ..ack(&answer, &[]) };
    let Heard::Nacked(nack) = session.request(request).unwrap() else { panic!("it was refused") };
    assert!(nack.message.starts_with("nosuch xx") && nack.message.len() <= 500, "{}", nack.message);
    assert!(session.answers(&first).is_empty());
    assert_eq!(session.answers(&view(&[("b", 1)])).len(), 1);

    let mut session = Delta::default();
    session.request(delta(LISTENERS)).unwrap();
    let answer = session.answers(&first).remove(0);
    let request =
        DeltaDiscoveryRequest { response_nonce: answer.nonce, error_detail: refusal, ..delta(LISTENERS) };
    assert!(matches!(session.request(request).unwrap(), Heard::Nacked(_)));
    assert!(session.answers(&first).is_empty());
}

/// What is taken and refused is that of one answer alone, of which a refusal may name some; of an answer that is not known, all.
#[test]
fn a_word_of_the_client_is_of_one_answer() {
    let mut session = Delta::default();
    session.request(delta(LISTENERS)).unwrap();
    let both = session.answers(&view(&[("a", 1), ("b", 1)])).remove(0);
    let next = session.answers(&view(&[("a", 1), ("c", 1)])).remove(0);
    let mut say = |answer: &Answer, why: Option<&str>| {
        let error_detail = why.map(|why| Refusal { code: 13, message: why.to_owned() });
        let nonce = answer.nonce.clone();
        session.request(DeltaDiscoveryRequest { response_nonce: nonce, error_detail, ..delta(LISTENERS) })
    };
    let short = |all: Option<Vec<Arc<str>>>| {
        let short = |name: &Arc<str>| name.split('.').next().unwrap().to_owned();
        all.map(|all| all.iter().map(short).collect::<Vec<_>>())
    };
    let all = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
    let Heard::Nacked(nack) = say(&both, Some(&names("b"))).unwrap() else { panic!("it was refused") };
    assert_eq!(short(nack.refused), all(&["b"]));
    let Heard::Acked(LISTENERS, taken) = say(&next, None).unwrap() else { panic!("it was taken") };
    assert_eq!(short(taken), all(&["c"]));
    assert_eq!(say(&next, None), Ok(Heard::Asked), "it has been taken already");
    let Heard::Nacked(nack) = say(&both, Some("no")).unwrap() else { panic!("it was refused") };
    assert_eq!(nack.refused, None);
    let wants = |session: &Delta, name| session.wants(LISTENERS, &names(name));
    assert!(wants(&session, "a") && !wants(&session, "b"), "what is gone is refused no more");
    let last = session.answers(&view(&[("d", 1), ("e", 1)])).remove(0);
    let refusal = Some(Refusal { code: 13, message: "no".to_owned() });
    let request =
        DeltaDiscoveryRequest { response_nonce: last.nonce, error_detail: refusal, ..delta(LISTENERS) };
    let Heard::Nacked(nack) = session.request(request).unwrap() else { panic!("it was refused") };
    assert_eq!(short(nack.refused), all(&["d", "e"]), "it names none");
}

/// Of who never answers, what it was sent is not kept for ever.
#[test]
fn answers_that_nobody_takes_are_bounded() {
    let mut session = Delta::default();
    session.request(delta(LISTENERS)).unwrap();
    let first = session.answers(&view(&[("a", 1)])).remove(0);
    for _ in 0..1_000 {
        session.answers(&view(&[]));
        session.answers(&view(&[("a", 1)]));
    }
    let ack = DeltaDiscoveryRequest { response_nonce: first.nonce, ..delta(LISTENERS) };
    assert_eq!(session.request(ack), Ok(Heard::Asked));
}

#[test]
fn named_resources_are_sent_when_they_are_asked_for() {
    let mut session = Sotw::default();
    let all = view(&[("a", 1), ("b", 1)]);
    let asked = DiscoveryRequest { resource_names: vec![names("a")], ..sotw(ENDPOINTS) };
    session.request(asked).unwrap();
    let answer = one(session.answers(&all));
    assert_eq!(answer.resources.len(), 1);
    session.request(ack(&answer, &[names("a"), names("b")])).unwrap();
    let answer = one(session.answers(&all));
    assert_eq!(answer.resources.len(), 2, "one more was asked for");
    session.request(ack(&answer, &[names("b")])).unwrap();
    let answers = session.answers(&all);
    assert!(answers.len() <= 1, "{answers:?}");
    session.request(ack(answers.first().unwrap_or(&answer), &[])).unwrap();
    assert!(session.answers(&view(&[("a", 2)])).is_empty(), "nothing is asked for any more");
    // Listeners by name, as gRPC asks for them; once named, no name is nothing.
    session.request(DiscoveryRequest { resource_names: vec![names("a")], ..sotw(LISTENERS) }).unwrap();
    let answer = one(session.answers(&all));
    assert_eq!(answer.resources.len(), 1);
    session.request(ack(&answer, &[])).unwrap();
    assert!(session.answers(&view(&[("c", 1)])).iter().all(|answer| answer.kind != LISTENERS));
}

#[test]
fn who_comes_again_with_what_is_served_is_sent_nothing() {
    let all = view(&[("a", 1)]);
    let mut before = Sotw::default();
    before.request(sotw(CLUSTERS)).unwrap();
    let version_info = one(before.answers(&all)).version;
    let mut again = Sotw::default();
    again.request(DiscoveryRequest { version_info: version_info.clone(), ..sotw(CLUSTERS) }).unwrap();
    assert!(again.answers(&all).is_empty());
    assert_eq!(again.answers(&view(&[("b", 1)])).len(), 1);
    let mut behind = Sotw::default();
    behind.request(DiscoveryRequest { version_info: "old".to_owned(), ..sotw(CLUSTERS) }).unwrap();
    assert_eq!(one(behind.answers(&all)).version, version_info);
}

#[test]
fn what_is_not_served_and_what_is_too_much_is_bounded() {
    let mut session = Delta::default();
    let other =
        DeltaDiscoveryRequest { type_url: "type.googleapis.com/other".to_owned(), ..Default::default() };
    assert_eq!(session.request(other), Ok(Heard::Asked));
    assert!(session.answers(&view(&[("a", 1)])).is_empty());
    let long = DeltaDiscoveryRequest { resource_names_subscribe: vec!["x".repeat(600)], ..delta(LISTENERS) };
    assert_eq!(session.request(long), Err(Violation::LongName(600)));
    let mut session = Delta::default();
    let many = |from: usize| DeltaDiscoveryRequest {
        resource_names_subscribe: (from..from + 15_000).map(|n| n.to_string()).collect(),
        ..delta(LISTENERS)
    };
    session.request(many(0)).unwrap();
    assert_eq!(session.request(many(20_000)), Err(Violation::TooManyNames));
    let names = (0..20_001).map(|n| n.to_string()).collect();
    let many = DiscoveryRequest { resource_names: names, ..sotw(ENDPOINTS) };
    assert_eq!(Sotw::default().request(many), Err(Violation::TooManyNames));
}

/// Names that are asked for and given up again, while nobody knows yet what there is, are not kept for ever.
#[test]
fn names_that_nobody_answers_are_bounded() {
    let mut session = Delta::default();
    session.request(delta(LISTENERS)).unwrap();
    let flood = (0..10).try_for_each(|round| {
        let some: Vec<String> = (0..10_000).map(|n| format!("{round}-{n}")).collect();
        let asked = DeltaDiscoveryRequest { resource_names_subscribe: some.clone(), ..delta(LISTENERS) };
        session.request(asked)?;
        session.request(DeltaDiscoveryRequest { resource_names_unsubscribe: some, ..delta(LISTENERS) })?;
        Ok(())
    });
    assert_eq!(flood, Err(Violation::TooManyNames));
}

/// Many names that are served cost each stream no more than a pointer each: all have the same.
#[test]
fn names_that_are_served_are_kept_once() {
    let all = view(&[("a", 1)]);
    let held = all.get(ENDPOINTS, &names("a")).unwrap();
    let before = Arc::strong_count(&held.name);
    let mut session = Delta::default();
    let asked = DeltaDiscoveryRequest { resource_names_subscribe: vec![names("a")], ..delta(ENDPOINTS) };
    session.request(asked).unwrap();
    let nonce = session.answers(&all).remove(0).nonce;
    session.request(DeltaDiscoveryRequest { response_nonce: nonce, ..delta(ENDPOINTS) }).unwrap();
    assert_eq!(Arc::strong_count(&held.name), before + 1);
    let mut session = Sotw::default();
    session.request(DiscoveryRequest { resource_names: vec![names("a")], ..sotw(ENDPOINTS) }).unwrap();
    session.answers(&all);
    assert_eq!(Arc::strong_count(&held.name), before + 2);
    assert_eq!(session.unserved(), 0);
}

/// What nobody serves is counted, whether it is known yet what is served or not.
#[test]
fn names_that_nobody_serves_are_counted() {
    let asked = |of: &str| DeltaDiscoveryRequest {
        resource_names_subscribe: (0..10).map(|n| format!("{of}-{n}")).collect(),
        initial_resource_versions: [(format!("{of}-0"), "1".repeat(100))].into(),
        ..delta(ENDPOINTS)
    };
    let mut session = Delta::default();
    session.request(asked("nowhere")).unwrap();
    assert!(session.unserved() >= 10 * "nowhere-0".len() + 100);
    session.answers(&view(&[("a", 1)]));
    assert!(session.unserved() >= 10 * "nowhere-0".len());
    let give_up = DeltaDiscoveryRequest {
        resource_names_unsubscribe: asked("nowhere").resource_names_subscribe,
        ..delta(ENDPOINTS)
    };
    session.request(give_up).unwrap();
    assert_eq!(session.unserved(), 0);
    let mut session = Sotw::default();
    let names = asked("nowhere").resource_names_subscribe;
    session.request(DiscoveryRequest { resource_names: names, ..sotw(ENDPOINTS) }).unwrap();
    session.answers(&view(&[("a", 1)]));
    assert!(session.unserved() >= 10 * "nowhere-0".len());
}

/// Whatever happens to services and to who may call them, a client that follows has in the end what one has that comes anew: of
/// clients of both variants, that take everything or ask by name.
#[test]
fn who_follows_has_what_who_comes_anew_has() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let name = |n: u64| format!("s{n}");
    let (mut delta_session, mut sotw_session) = (Delta::default(), Sotw::default());
    let (mut by_delta, mut by_sotw) = (Holding::default(), Holding::default());
    for kind in [CLUSTERS, LISTENERS] {
        delta_session.request(delta(kind)).unwrap();
        sotw_session.request(sotw(kind)).unwrap();
    }
    let asked: Vec<String> = (0..6).map(|n| names(&name(n))).collect();
    let request = DeltaDiscoveryRequest { resource_names_subscribe: asked.clone(), ..delta(ENDPOINTS) };
    delta_session.request(request).unwrap();
    sotw_session.request(DiscoveryRequest { resource_names: asked.clone(), ..sotw(ENDPOINTS) }).unwrap();
    for _ in 0..200 {
        let drawn: Vec<u64> = (0..8).map(|_| draw(6)).collect();
        // Of each, a third of the time nothing, and otherwise one of two.
        let there = (0..).zip(drawn).filter(|(_, drawn)| *drawn > 1);
        let services: Vec<(String, u16)> =
            there.map(|(n, drawn)| (name(n), u16::try_from(drawn % 2).unwrap() + 1)).collect();
        let services: Vec<(&str, u16)> = services.iter().map(|(name, port)| (name.as_str(), *port)).collect();
        let now = view(&services);
        if draw(4) == 0 {
            let again = vec![names(&name(draw(6)))];
            let request = DeltaDiscoveryRequest { resource_names_subscribe: again, ..delta(ENDPOINTS) };
            delta_session.request(request).unwrap();
        }
        for answer in delta_session.answers(&now) {
            by_delta.take(&answer);
        }
        for answer in sotw_session.answers(&now) {
            if answer.kind.has_wildcard() {
                by_sotw.0.retain(|(kind, _), _| *kind != answer.kind);
            }
            by_sotw.take(&answer);
            let of: &[String] = if answer.kind == ENDPOINTS { &asked } else { &[] };
            sotw_session.request(ack(&answer, of)).unwrap();
        }
        for kind in ResourceType::ALL {
            let all = now.of_type(kind);
            let wanted: BTreeMap<String, String> = all
                .values()
                .filter(|one| kind != ENDPOINTS || asked.contains(&one.name.to_string()))
                .map(|one| (one.name.to_string(), one.version.to_string()))
                .collect();
            assert_eq!(by_delta.of(kind), wanted);
            // Of endpoints nothing says that there are none any more: these go with their cluster.
            let mut held = by_sotw.of(kind);
            held.retain(|name, _| kind != ENDPOINTS || wanted.contains_key(name));
            assert_eq!(held, wanted);
        }
    }
}

/// What a client has by what it was sent.
#[derive(Default)]
struct Holding(BTreeMap<(ResourceType, String), String>);

impl Holding {
    fn take(&mut self, answer: &Answer) {
        for name in &answer.removed {
            self.0.remove(&(answer.kind, name.to_string()));
        }
        for one in &answer.resources {
            self.0.insert((answer.kind, one.name.to_string()), one.version.to_string());
        }
    }

    fn of(&self, kind: ResourceType) -> BTreeMap<String, String> {
        let of = self.0.iter().filter(|((of, _), _)| *of == kind);
        of.map(|((_, name), version)| (name.clone(), version.clone())).collect()
    }
}

/// What Envoy and gRPC libraries say when they refuse names what it is about.
#[test]
fn a_refusal_says_what_it_is_about() {
    for text in [
        "Error adding/updating listener(s) cart.shop.west.example:8080: cannot bind '127.64.0.1:8080': Address already in use\n",
        "xds: resource \"cart.shop.west.example:8080\" of type listener: no router",
    ] {
        assert!(nack(LISTENERS, text, None).names.contains("cart.shop.west.example:8080"), "{text}");
    }
    let many: String = (0..100_000).map(|n| format!("a{n}:1 ")).collect();
    assert_eq!(nack(LISTENERS, &many, None).names.len(), 64);
}

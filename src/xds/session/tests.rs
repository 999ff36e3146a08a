use std::collections::BTreeSet;
use std::sync::Arc;

use super::delta::Delta;
use super::sotw::Sotw;
use super::*;
use crate::model::import::Imported;
use crate::model::service::{AppProtocol, RemoteService};
use crate::model::{NamespacedName, ServiceName, SpiffeId};
use crate::plan::fixtures::{id, remote_cart, td};
use crate::plan::xds::testing::{offered, xds_of};
use crate::proto::xds::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Refusal,
};

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
fn told(
    answers: &[(ResourceType, DeltaDiscoveryResponse)],
    kind: ResourceType,
) -> Vec<(Vec<String>, Vec<String>)> {
    let short = |name: &String| name.split('.').next().unwrap().to_owned();
    let of = |answer: &DeltaDiscoveryResponse| {
        let came = answer.resources.iter().map(|resource| short(&resource.name)).collect();
        (came, answer.removed_resources.iter().map(short).collect())
    };
    answers.iter().filter(|(of, _)| *of == kind).map(|(_, answer)| of(answer)).collect()
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
    let order: Vec<ResourceType> = answers.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(order, [CLUSTERS, LISTENERS], "clusters before the listeners that lead to them");
    assert_eq!(told(&answers, CLUSTERS), [came(&["a", "b"])]);
    let nonces: BTreeSet<&String> = answers.iter().map(|(_, answer)| &answer.nonce).collect();
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

#[test]
fn who_waits_for_everything_is_told_that_there_is_nothing() {
    let mut session = Delta::default();
    session.request(delta(LISTENERS)).unwrap();
    assert_eq!(told(&session.answers(&View::default()), LISTENERS), [came(&[])]);
    assert!(session.answers(&View::default()).is_empty());
    let mut session = Sotw::default();
    session.request(sotw(LISTENERS)).unwrap();
    assert_eq!(session.answers(&View::default()).len(), 1);
    assert!(session.answers(&View::default()).is_empty());
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
    for (_, answer) in before.answers(&all) {
        held.extend(answer.resources.into_iter().map(|resource| (resource.name, resource.version)));
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
    let sizes: Vec<usize> = answers.iter().map(|(_, answer)| prost::Message::encoded_len(answer)).collect();
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size < 2 << 20), "{sizes:?}");
    let sent: usize = answers.iter().map(|(_, answer)| answer.resources.len()).sum();
    assert_eq!(sent, 3_000);
}

fn ack(answer: &DiscoveryResponse, names: &[String]) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: answer.version_info.clone(),
        response_nonce: answer.nonce.clone(),
        type_url: answer.type_url.clone(),
        resource_names: names.to_vec(),
        ..Default::default()
    }
}

fn one(answers: Vec<(ResourceType, DiscoveryResponse)>) -> DiscoveryResponse {
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers.into_iter().next().unwrap().1
}

#[test]
fn the_state_of_the_world_is_sent_whole_when_any_of_it_changes() {
    let mut session = Sotw::default();
    let first = view(&[("a", 1), ("b", 1)]);
    session.request(sotw(LISTENERS)).unwrap();
    let answer = one(session.answers(&first));
    assert_eq!(answer.resources.len(), 2);
    assert_eq!(session.request(ack(&answer, &[])).unwrap(), Heard::Acked(LISTENERS));
    assert!(session.answers(&first).is_empty(), "an ACK is not answered");
    let more = one(session.answers(&view(&[("a", 1), ("b", 1), ("c", 1)])));
    assert_eq!(more.resources.len(), 3);
    assert_ne!((&more.version_info, &more.nonce), (&answer.version_info, &answer.nonce));
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
    let (_, answer) = session.answers(&first).remove(0);
    let request =
        DeltaDiscoveryRequest { response_nonce: answer.nonce, error_detail: refusal, ..delta(LISTENERS) };
    assert!(matches!(session.request(request).unwrap(), Heard::Nacked(_)));
    assert!(session.answers(&first).is_empty());
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
    session.request(ack(answers.first().map_or(&answer, |(_, answer)| answer), &[])).unwrap();
    assert!(session.answers(&view(&[("a", 2)])).is_empty(), "nothing is asked for any more");
    // Listeners by name, as gRPC asks for them; once named, no name is nothing.
    session.request(DiscoveryRequest { resource_names: vec![names("a")], ..sotw(LISTENERS) }).unwrap();
    let answer = one(session.answers(&all));
    assert_eq!(answer.resources.len(), 1);
    session.request(ack(&answer, &[])).unwrap();
    assert!(session.answers(&view(&[("c", 1)])).iter().all(|(kind, _)| *kind != LISTENERS));
}

#[test]
fn who_comes_again_with_what_is_served_is_sent_nothing() {
    let all = view(&[("a", 1)]);
    let mut before = Sotw::default();
    before.request(sotw(CLUSTERS)).unwrap();
    let version_info = one(before.answers(&all)).version_info;
    let mut again = Sotw::default();
    again.request(DiscoveryRequest { version_info: version_info.clone(), ..sotw(CLUSTERS) }).unwrap();
    assert!(again.answers(&all).is_empty());
    assert_eq!(again.answers(&view(&[("b", 1)])).len(), 1);
    let mut behind = Sotw::default();
    behind.request(DiscoveryRequest { version_info: "old".to_owned(), ..sotw(CLUSTERS) }).unwrap();
    assert_eq!(one(behind.answers(&all)).version_info, version_info);
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

use std::collections::BTreeMap;

use super::*;
use crate::bundle::testing::td;
use crate::federation::catalogue::{Frames, hash, hash_held, version};
use crate::federation::tests::{catalogue, plan_for};
use crate::identity::testing::Domain;
use crate::model::ServiceName;
use crate::model::service::Outcome;
use crate::proto::federation::v1::{CatalogueDelta, Goodbye, TrustReport as Report, goodbye::Reason};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn plan() -> LinkPlan {
    plan_for(&Domain::new("east.test"))
}

fn session(plan: &LinkPlan) -> Session {
    Session::new(&td("west.test"), plan, SessionLimits::default(), s(100))
}

fn hello(trust_domain: &str, protocol_version: u32) -> Frame {
    let agent_version = String::new();
    frame(Body::Hello(Hello {
        protocol_version,
        agent_version,
        trust_domain: trust_domain.to_owned(),
        ..Hello::default()
    }))
}

fn frame(body: Body) -> Frame {
    Frame { body: Some(body) }
}

fn farewell(reason: Reason) -> Frame {
    frame(Body::Goodbye(Goodbye { reason: reason.into(), message: "bye\u{7}".into() }))
}

/// All that the session has to say now, by kind.
fn said(session: &mut Session, now: Duration) -> Vec<Body> {
    std::iter::from_fn(|| session.next_frame(now)).filter_map(|f| f.body).collect()
}

fn kinds(bodies: &[Body]) -> Vec<&'static str> {
    let kind = |body: &Body| match body {
        Body::Hello(_) => "hello",
        Body::TrustReport(_) => "report",
        Body::Catalogue(_) => "catalogue",
        Body::CatalogueAck(_) => "ack",
        Body::Heartbeat(_) => "heartbeat",
        Body::Goodbye(_) => "goodbye",
        Body::DiagnoseRequest(_) => "diagnose request",
        Body::DiagnoseReply(_) => "diagnose reply",
        Body::CatalogueDelta(_) => "delta",
        Body::Again(_) => "again",
    };
    bodies.iter().map(kind).collect()
}

/// A session that has said and heard Hello, and said all it had to.
fn open(plan: &LinkPlan) -> Session {
    let mut session = session(plan);
    session.on_frame(hello("east.test", PROTOCOL_VERSION), s(100));
    said(&mut session, s(100));
    assert!(session.is_open() && session.end().is_none());
    session
}

/// What a session says when it has heard these frames.
fn heard(frames: &[Frame]) -> Session {
    let mut session = session(&plan());
    for frame in frames {
        session.on_frame(frame.clone(), s(100));
    }
    session
}

#[test]
fn hello_comes_first_and_all_else_after_the_peers() {
    let mut session = session(&plan());
    assert_eq!(kinds(&said(&mut session, s(100))), ["hello"]);
    assert_eq!(kinds(&said(&mut session, s(105))), [] as [&str; 0]);
    session.on_frame(hello("east.test", 3), s(106));
    assert!(session.is_open());
    assert_eq!(kinds(&said(&mut session, s(106))), ["report", "catalogue"]);
    assert_eq!(kinds(&said(&mut session, s(106))), [] as [&str; 0]);
}

#[test]
fn a_bad_beginning_ends_the_exchange() {
    for (first, cause) in [
        (hello("west.test", 1), "Hello of trust domain"),
        (hello("", 1), "Hello of trust domain"),
        (hello("east.test", 0), "protocol version"),
        (frame(Body::Heartbeat(Heartbeat { sequence: 1, ..Heartbeat::default() })), "before the Hello"),
        (frame(Body::TrustReport(Report::default())), "before the Hello"),
    ] {
        let mut session = heard(&[first, hello("east.test", PROTOCOL_VERSION)]);
        let Some(End::Link(LinkState::Parted { reason: GoodbyeReason::ProtocolError, message })) =
            session.end()
        else {
            panic!("{:?}", session.end())
        };
        assert!(message.contains(cause), "{message}");
        assert_eq!(kinds(&said(&mut session, s(100))), ["goodbye"]);
        assert!(!session.is_open());
    }
    assert!(heard(&[hello("east.test", PROTOCOL_VERSION), hello("east.test", 1)]).end().is_some());
    // what a later version may send is passed over
    assert!(
        heard(&[Frame { body: None }, hello("east.test", PROTOCOL_VERSION), Frame { body: None }]).is_open()
    );
}

#[test]
fn what_changes_in_the_plan_is_said_and_nothing_else() {
    let mut plan = plan();
    let mut session = open(&plan);
    session.on_plan(&plan);
    assert_eq!(kinds(&said(&mut session, s(100))), [] as [&str; 0]);
    plan.report.relationship = true;
    session.on_plan(&plan);
    assert_eq!(kinds(&said(&mut session, s(100))), ["report"]);
    plan.catalogue = catalogue(&["web"]);
    session.on_plan(&plan);
    assert_eq!(kinds(&said(&mut session, s(100))), ["catalogue"]);
    plan.agent_ids.clear();
    plan.addresses.push("x:1".into());
    session.on_plan(&plan);
    assert_eq!(kinds(&said(&mut session, s(100))), [] as [&str; 0]);
}

#[test]
fn a_busy_exporter_finishes_what_it_began_and_then_sends_the_newest() {
    let names: Vec<String> = (0..20_000).map(|n| format!("service-{n}")).collect();
    let first = catalogue(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut plan = LinkPlan { catalogue: Arc::clone(&first), ..plan() };
    let mut session = session(&plan);
    session.on_frame(hello("east.test", PROTOCOL_VERSION), s(100));
    let mut versions = Vec::new();
    let newest = catalogue(&["newest"]);
    while let Some(frame) = session.next_frame(s(100)) {
        if let Some(Body::Catalogue(frame)) = frame.body {
            versions.push((frame.version, frame.more));
            let between = catalogue(&[&format!("between-{}", versions.len())]);
            plan.catalogue = if versions.len() < 2 { between } else { Arc::clone(&newest) };
            session.on_plan(&plan);
        }
    }
    let (last, rest) = versions.split_last().unwrap();
    assert_eq!(*last, (newest.version.to_vec(), false));
    assert!(rest.len() > 1 && rest.iter().all(|(version, _)| *version == first.version));
}

#[test]
fn a_catalogue_is_answered_once_it_is_planned_and_at_each_change_of_outcome() {
    let mut plan = plan();
    let mut session = open(&plan);
    let offered = catalogue(&["cart", "web"]);
    let mut snapshot = Frames::new(Arc::clone(&offered), false).next();
    session.on_frame(frame(Body::Catalogue(snapshot.clone())), s(101));
    assert_eq!(session.heard().catalogue.as_deref(), Some(&*offered));
    assert_eq!(kinds(&said(&mut session, s(101))), [] as [&str; 0], "nothing is decided yet");
    let web = ServiceName::new("shop", "web").unwrap();
    plan.outcomes = Arc::new(BTreeMap::from([(web.clone(), Outcome::Imported)]));
    plan.answered = Some([1; 32]);
    session.on_plan(&plan);
    assert_eq!(kinds(&said(&mut session, s(101))), [] as [&str; 0], "of another version");
    plan.answered = Some(offered.version);
    session.on_plan(&plan);
    let bodies = said(&mut session, s(101));
    assert!(
        matches!(bodies.as_slice(), [Body::CatalogueAck(a)] if a.outcomes.len() == 1 && !a.more),
        "{bodies:?}"
    );
    session.on_plan(&plan);
    assert_eq!(kinds(&said(&mut session, s(101))), [] as [&str; 0]);
    Arc::make_mut(&mut plan.outcomes)
        .insert(web, Outcome::Refused { reason: "NotAdmitted".into(), message: String::new() });
    session.on_plan(&plan);
    assert_eq!(kinds(&said(&mut session, s(101))), ["ack"]);

    // a malformed entry is answered beside the planned ones, under the version of what was sent
    snapshot.services.push(vec![0xff]);
    let mut all = snapshot.services.clone();
    all.sort();
    let mut hash = sha2::Sha256::default();
    for service in all {
        use sha2::Digest as _;
        hash.update((service.len() as u64).to_be_bytes());
        hash.update(service);
    }
    let version: CatalogueVersion = sha2::Digest::finalize(hash).into();
    snapshot.version = version.to_vec();
    session.on_frame(frame(Body::Catalogue(snapshot)), s(101));
    assert_eq!(session.heard().catalogue.as_ref().unwrap().malformed.len(), 1);
    plan.answered = Some(version);
    session.on_plan(&plan);
    let bodies = said(&mut session, s(101));
    let [Body::CatalogueAck(ack)] = bodies.as_slice() else { panic!("{bodies:?}") };
    let reasons: Vec<_> = ack.outcomes.iter().map(|o| o.reason.as_str()).collect();
    assert_eq!(
        (reasons.as_slice(), ack.since.is_empty()),
        (&["Malformed"][..], false),
        "beside what was said before"
    );
}

#[test]
fn a_long_answer_comes_in_parts_and_only_of_what_was_offered() {
    let names: Vec<String> = (0..450).map(|n| format!("service-{n}")).collect();
    let offered = catalogue(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let outcomes: BTreeMap<_, _> = offered.services.keys().map(|n| (n.clone(), Outcome::Imported)).collect();
    let mut importer = session(&LinkPlan {
        outcomes: Arc::new(outcomes.clone()),
        answered: Some(offered.version),
        ..plan()
    });
    let mut exporter = open(&LinkPlan { catalogue: Arc::clone(&offered), ..plan() });
    importer.on_frame(hello("east.test", PROTOCOL_VERSION), s(100));
    importer.on_frame(frame(Body::Catalogue(Frames::new(Arc::clone(&offered), false).next())), s(100));
    let answers: Vec<_> =
        said(&mut importer, s(100)).into_iter().filter(|b| matches!(b, Body::CatalogueAck(_))).collect();
    assert_eq!(answers.len(), 3);
    let revision = exporter.revision();
    for (number, answer) in answers.into_iter().enumerate() {
        let Body::CatalogueAck(mut answer) = answer else { panic!("filtered") };
        let of_nothing = ServiceOutcome { name: format!("other-{number}"), ..answer.outcomes[0].clone() };
        answer.outcomes.push(of_nothing);
        assert_eq!(exporter.heard().acknowledged, None);
        exporter.on_frame(frame(Body::CatalogueAck(answer)), s(100));
    }
    assert_eq!(
        exporter.heard().acknowledged,
        Some(Acknowledgement { version: offered.version, offered, outcomes: Arc::new(outcomes) })
    );
    assert_eq!(exporter.revision(), revision + 1);
    // to a catalogue that was never offered
    let stale = CatalogueAck { version: vec![3; 32], ..CatalogueAck::default() };
    exporter.on_frame(frame(Body::CatalogueAck(stale)), s(100));
    assert_eq!(exporter.revision(), revision + 1);
    assert!(exporter.end().is_none());
    exporter.on_frame(frame(Body::CatalogueAck(CatalogueAck::default())), s(100));
    assert!(exporter.end().is_some(), "a version is 32 bytes");
}

#[test]
fn silence_is_filled_here_and_noticed_there() {
    let mut session = open(&plan());
    assert_eq!(kinds(&said(&mut session, s(109))), [] as [&str; 0]);
    assert_eq!(kinds(&said(&mut session, s(110))), ["heartbeat"]);
    assert_eq!(kinds(&said(&mut session, s(119))), [] as [&str; 0]);
    assert_eq!(kinds(&said(&mut session, s(120))), ["heartbeat"]);
    session.on_frame(frame(Body::Heartbeat(Heartbeat { sequence: 1, ..Heartbeat::default() })), s(115));
    session.on_tick(s(144));
    assert!(session.end().is_none());
    session.on_tick(s(145));
    assert!(matches!(session.end(), Some(End::Link(LinkState::Unreachable { .. }))));
    assert_eq!(kinds(&said(&mut session, s(145))), [] as [&str; 0], "nobody is there to be told");

    let mut session = super::tests::session(&plan());
    session.on_tick(s(109));
    assert!(session.end().is_none());
    session.on_tick(s(110));
    assert!(
        matches!(session.end(), Some(End::Link(LinkState::Unreachable { message })) if message.contains("hello"))
    );
}

#[test]
fn each_side_tells_its_clock_and_compares() {
    let mut session = super::tests::session(&plan());
    session.on_clock(1_000_000);
    let bodies = said(&mut session, s(100));
    assert!(
        matches!(bodies.as_slice(), [Body::Hello(hello)] if hello.unix_millis == 1_000_000),
        "{bodies:?}"
    );
    let Some(Body::Hello(ahead)) = hello("east.test", PROTOCOL_VERSION).body else { panic!("it is a Hello") };
    session.on_frame(frame(Body::Hello(Hello { unix_millis: 1_061_000, ..ahead })), s(100));
    assert_eq!(session.heard().skew, Some(60));
    said(&mut session, s(100));
    let beat = |unix_millis| frame(Body::Heartbeat(Heartbeat { sequence: 1, unix_millis }));
    let revision = session.revision();
    session.on_clock(1_010_000);
    session.on_frame(beat(1_070_500), s(110));
    session.on_frame(beat(0), s(110));
    assert_eq!(session.revision(), revision, "nothing new");
    let bodies = said(&mut session, s(110));
    assert!(matches!(bodies.as_slice(), [Body::Heartbeat(h)] if h.unix_millis == 1_010_000), "{bodies:?}");
    session.on_frame(beat(1_010_200), s(110));
    assert_eq!(session.heard().skew, None, "mended");
    session.on_frame(beat(900_000), s(110));
    assert_eq!(session.heard().skew, Some(-110));
}

#[test]
fn a_busy_side_tells_the_time_as_well() {
    let mut plan = plan();
    let mut session = open(&plan);
    let mut beats = 0;
    for second in 101..=140 {
        plan.report.relationship = !plan.report.relationship;
        session.on_plan(&plan);
        beats += kinds(&said(&mut session, s(second))).iter().filter(|kind| **kind == "heartbeat").count();
    }
    assert_eq!(beats, 4);
}

#[test]
fn each_goodbye_means_what_it_says() {
    for (said, reason) in [
        (Reason::ShuttingDown, GoodbyeReason::ShuttingDown),
        (Reason::RelationshipEnded, GoodbyeReason::RelationshipEnded),
        (Reason::Suspended, GoodbyeReason::Suspended),
        (Reason::ProtocolError, GoodbyeReason::ProtocolError),
        (Reason::Unspecified, GoodbyeReason::Unspecified),
    ] {
        let session = heard(&[hello("east.test", PROTOCOL_VERSION), farewell(said)]);
        let Some(End::Link(LinkState::Parted { reason: read, message })) = session.end() else {
            panic!("{said:?}")
        };
        assert_eq!(*read, reason);
        assert!(message.ends_with("bye "), "{message:?}");
    }
    // before Hello as well
    assert_eq!(heard(&[farewell(Reason::AlreadyConnected)]).end(), Some(&End::AlreadyConnected));
    let refused = heard(&[farewell(Reason::NotTrusted)]);
    let is_refused =
        |end: &End| matches!(end, End::Link(LinkState::Refused { by: Refusal::NotAccepted, .. }));
    assert!(refused.end().is_some_and(is_refused));
    // it answers no goodbye, and hears nothing after it
    let mut session = heard(&[farewell(Reason::Suspended), hello("east.test", PROTOCOL_VERSION)]);
    assert_eq!(kinds(&said(&mut session, s(200))), [] as [&str; 0]);
    assert!(!session.is_open());
}

#[test]
fn parting_says_so_and_nothing_after() {
    let mut session = session(&plan());
    session.part(GoodbyeReason::Suspended, "text");
    session.part(GoodbyeReason::ShuttingDown, "later");
    let bodies = said(&mut session, s(500));
    assert!(matches!(bodies.as_slice(), [Body::Goodbye(g)] if g.reason() == Reason::Suspended), "{bodies:?}");
    assert_eq!(session.end(), Some(&End::Ours(GoodbyeReason::Suspended)));
}

#[test]
fn a_cut_stream_is_unreachable_and_an_unreadable_frame_an_error() {
    let mut session = open(&plan());
    session.on_closed("reset");
    assert!(matches!(session.end(), Some(End::Link(LinkState::Unreachable { .. }))));
    let mut session = open(&plan());
    session.on_unreadable("too large");
    assert_eq!(kinds(&said(&mut session, s(100))), ["goodbye"]);
}

#[test]
fn a_flood_ends_the_exchange() {
    let beat = frame(Body::Heartbeat(Heartbeat { sequence: 1, ..Heartbeat::default() }));
    let mut session = open(&plan());
    // the Hello was the first of the burst
    for _ in 1..1_000 {
        session.on_frame(beat.clone(), s(100));
    }
    assert!(session.end().is_none());
    for _ in 0..100 {
        session.on_frame(beat.clone(), s(101));
    }
    assert!(session.end().is_none());
    session.on_frame(beat, s(101));
    assert!(matches!(session.end(), Some(End::Link(LinkState::Parted { .. }))));
}

#[test]
fn a_malformed_report_ends_the_exchange_and_a_good_one_is_kept() {
    let mut session = open(&plan());
    let report = Report { relationship: true, ..Report::default() };
    session.on_frame(frame(Body::TrustReport(report)), s(100));
    assert!(session.heard().remote.as_ref().unwrap().relationship);
    let bad = crate::proto::federation::v1::HeldBundle { digest: vec![1], authority_ids: vec![] };
    session.on_frame(frame(Body::TrustReport(Report { held: Some(bad), ..Report::default() })), s(100));
    assert!(session.end().is_some());
    assert!(session.heard().remote.is_some());
}

#[test]
fn a_question_is_asked_and_answered_beside_the_exchange() {
    use crate::model::diagnosis::{Outcome, Side, ToldCheck};
    let plan = plan();
    let mut asker = open(&plan);
    asker.ask(7);
    let bodies = said(&mut asker, s(100));
    assert_eq!(kinds(&bodies), ["diagnose request"]);

    let mut asked = open(&plan);
    asked.on_frame(frame(bodies[0].clone()), s(101));
    assert_eq!((asked.take_aside(), asked.take_aside()), (Some(Aside::Asked(7)), None));
    assert_eq!(kinds(&said(&mut asked, s(101))), [] as [&str; 0], "nothing is answered by itself");
    let check = ToldCheck {
        step: "bundle-in-spire".to_owned(),
        outcome: Outcome::Failed,
        message: "none".to_owned(),
        remedy: "set one".to_owned(),
        side: Some(Side::Ours),
    };
    asked.reply(7, std::slice::from_ref(&check));
    let bodies = said(&mut asked, s(101));
    assert_eq!(kinds(&bodies), ["diagnose reply"]);

    let revision = asker.revision();
    let other = frame(Body::DiagnoseReply(DiagnoseReply { id: 6, checks: Vec::new() }));
    asker.on_frame(other, s(102));
    assert_eq!(asker.take_aside(), None, "what was not asked is not read");
    asker.on_frame(frame(bodies[0].clone()), s(102));
    assert_eq!(
        asker.take_aside(),
        Some(Aside::Told(7, vec![ToldCheck { side: Some(Side::Theirs), ..check }]))
    );
    asker.on_frame(frame(bodies[0].clone()), s(103));
    assert_eq!(asker.take_aside(), None, "once");
    assert_eq!(asker.revision(), revision, "what is told of the path is not part of the exchange");
}

#[test]
fn of_many_questions_the_last_waits() {
    let mut session = open(&plan());
    for id in 0..100 {
        session.on_frame(frame(Body::DiagnoseRequest(DiagnoseRequest { id })), s(101));
    }
    assert_eq!((session.take_aside(), session.take_aside()), (Some(Aside::Asked(99)), None));
}

/// A catalogue of the services of these numbers.
fn numbered(numbers: std::ops::Range<usize>) -> Arc<Catalogue> {
    let names: Vec<String> = numbers.map(|n| format!("service-{n}")).collect();
    catalogue(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Two that talk: everything that one has to say is heard by the other, until both are silent.
fn talk(a: &mut Session, b: &mut Session, now: Duration) -> Vec<Body> {
    let mut all = Vec::new();
    loop {
        let before = all.len();
        for body in said(a, now) {
            b.on_frame(frame(body.clone()), now);
            all.push(body);
        }
        for body in said(b, now) {
            a.on_frame(frame(body.clone()), now);
            all.push(body);
        }
        if all.len() == before {
            return all;
        }
    }
}

/// An exporter in west and an importer in east, both open.
fn pair(offered: &Arc<Catalogue>) -> (LinkPlan, Session, LinkPlan, Session) {
    let out = LinkPlan { catalogue: Arc::clone(offered), ..plan() };
    let west = Domain::new("west.test");
    let taken = plan_for(&west);
    let exporter = Session::new(&td("west.test"), &out, SessionLimits::default(), s(100));
    let importer = Session::new(&td("east.test"), &taken, SessionLimits::default(), s(100));
    (out, exporter, taken, importer)
}

/// The importer imports all that it holds.
fn imports(importer: &mut Session, plan: &mut LinkPlan) {
    let held = importer.heard().catalogue.clone().unwrap();
    plan.outcomes = Arc::new(held.services.keys().map(|name| (name.clone(), Outcome::Imported)).collect());
    plan.answered = Some(held.version);
    importer.on_plan(plan);
}

#[test]
fn one_changed_service_is_sent_alone_and_answered_alone() {
    let first = numbered(0..400);
    let (mut out, mut exporter, mut taken, mut importer) = pair(&first);
    talk(&mut exporter, &mut importer, s(100));
    assert_eq!(importer.heard().catalogue.as_ref(), Some(&first));
    imports(&mut importer, &mut taken);
    talk(&mut exporter, &mut importer, s(100));
    assert_eq!(exporter.heard().acknowledged.as_ref().unwrap().outcomes.len(), 400);

    let second = numbered(1..401);
    out.catalogue = Arc::clone(&second);
    exporter.on_plan(&out);
    let bodies = talk(&mut exporter, &mut importer, s(101));
    let is_small =
        |b: &Body| matches!(b, Body::CatalogueDelta(d) if d.services.len() == 1 && d.removed.len() == 1);
    assert!(matches!(bodies.as_slice(), [body] if is_small(body)), "{bodies:?}");
    assert_eq!(importer.heard().catalogue.as_ref(), Some(&second));
    imports(&mut importer, &mut taken);
    let bodies = talk(&mut exporter, &mut importer, s(101));
    assert!(matches!(bodies.as_slice(), [Body::CatalogueAck(ack)] if ack.outcomes.len() == 1), "{bodies:?}");
    let acknowledged = exporter.heard().acknowledged.clone().unwrap();
    assert_eq!((acknowledged.version, &acknowledged.outcomes), (second.version, &taken.outcomes));
}

/// The importer has said what it does with a name of which it was told nothing more, and says no second time what has not
/// changed: told of the service again, the exporter knows the answer.
#[test]
fn a_service_that_was_held_and_is_told_again_is_answered() {
    let first = numbered(0..2);
    let (mut out, mut exporter, mut taken, mut importer) = pair(&first);
    let outcomes: Outcomes = first.services.keys().map(|name| (name.clone(), Outcome::Imported)).collect();
    let mut say = |importer: &mut Session| {
        taken.outcomes = Arc::new(outcomes.clone());
        taken.answered = importer.heard().catalogue.as_ref().map(|held| held.version);
        importer.on_plan(&taken);
    };
    let mut held = Catalogue::clone(&first);
    let (name, service) = held.services.pop_first().unwrap();
    held.held.insert(name.clone());
    let hashes = held.services.values().map(|service| hash(service)).chain([hash_held(&name)]);
    held.version = version(hashes.collect());
    out.catalogue = Arc::new(held);
    exporter.on_plan(&out);
    talk(&mut exporter, &mut importer, s(100));
    say(&mut importer);
    talk(&mut exporter, &mut importer, s(100));
    let acknowledged = exporter.heard().acknowledged.clone().unwrap();
    assert_eq!(acknowledged.version, out.catalogue.version);

    out.catalogue = Arc::clone(&first);
    exporter.on_plan(&out);
    talk(&mut exporter, &mut importer, s(101));
    assert_eq!(importer.heard().catalogue.as_ref().unwrap().services.get(&name), Some(&service));
    say(&mut importer);
    talk(&mut exporter, &mut importer, s(101));
    let acknowledged = exporter.heard().acknowledged.clone().unwrap();
    assert_eq!((acknowledged.version, &*acknowledged.outcomes), (first.version, &outcomes));
}

#[test]
fn changes_that_lead_nowhere_have_the_whole_sent_again_and_no_more_often_than_its_pace() {
    let first = numbered(0..40);
    let (_out, mut exporter, _taken, mut importer) = pair(&first);
    talk(&mut exporter, &mut importer, s(100));
    let astray = |to| {
        let delta = CatalogueDelta { from: vec![9; 32], version: vec![to; 32], ..CatalogueDelta::default() };
        frame(Body::CatalogueDelta(delta))
    };
    importer.on_frame(astray(1), s(101));
    importer.on_frame(astray(2), s(101));
    let asks = said(&mut importer, s(101));
    assert!(
        matches!(asks.as_slice(), [Body::Again(again)] if again.catalogue && !again.answer),
        "once: {asks:?}"
    );
    assert_eq!(importer.heard().catalogue.as_ref(), Some(&first), "what was held stays");
    exporter.on_frame(frame(asks[0].clone()), s(101));
    let whole = said(&mut exporter, s(101));
    assert!(matches!(whole.as_slice(), [Body::Catalogue(_)]), "{whole:?}");
    exporter.on_frame(frame(asks[0].clone()), s(101));
    assert!(said(&mut exporter, s(101)).is_empty(), "a second time at once");
    assert_eq!(said(&mut exporter, s(102)).len(), 1, "once its pace allows it");
    importer.on_frame(frame(whole[0].clone()), s(102));
    importer.on_frame(astray(3), s(102));
    assert!(matches!(said(&mut importer, s(102)).as_slice(), [Body::Again(_)]), "it follows again");
}

/// The services of a plan move on by one, so often; the importer hears of each.
fn moves(
    out: &mut LinkPlan,
    exporter: &mut Session,
    importer: &mut Session,
    steps: std::ops::Range<usize>,
    now: Duration,
) {
    for step in steps {
        out.catalogue = numbered(step..step + 40);
        exporter.on_plan(out);
        for body in said(exporter, now) {
            assert!(matches!(body, Body::CatalogueDelta(_)), "{body:?}");
            importer.on_frame(frame(body), now);
        }
    }
}

/// To follow a change costs as much as the whole catalogue: a flood of small ones is followed together, at a pace, and none is
/// lost.
#[test]
fn a_flood_of_changes_is_followed_at_a_pace() {
    let (mut out, mut exporter, _taken, mut importer) = pair(&numbered(0..40));
    talk(&mut exporter, &mut importer, s(100));
    let before = importer.revision();
    assert_eq!(importer.due(), None);
    moves(&mut out, &mut exporter, &mut importer, 1..301, s(101));
    assert_eq!(importer.revision(), before + 50, "so many at once");
    assert_eq!(importer.heard().catalogue.as_ref(), Some(&numbered(50..90)));
    assert_eq!(importer.due(), Some(s(101) + Duration::from_millis(100)));
    assert!(said(&mut importer, s(101)).is_empty());
    importer.on_tick(s(101) + Duration::from_millis(50));
    assert_eq!(importer.revision(), before + 50, "it is not time yet");
    importer.on_tick(s(101) + Duration::from_millis(101));
    assert_eq!(importer.revision(), before + 51, "the rest of them together");
    assert_eq!((importer.heard().catalogue.as_ref(), importer.due()), (Some(&out.catalogue), None));
    assert!(said(&mut importer, s(101)).is_empty(), "it could follow");
    moves(&mut out, &mut exporter, &mut importer, 301..302, s(103));
    assert_eq!(
        importer.heard().catalogue.as_ref(),
        Some(&out.catalogue),
        "one by itself is followed at once"
    );
}

/// Changes that wait are followed before an exchange ends, and are nothing any more once the whole has come.
#[test]
fn changes_that_wait_are_not_lost() {
    let flooded = || {
        let (mut out, mut exporter, _taken, mut importer) = pair(&numbered(0..40));
        talk(&mut exporter, &mut importer, s(100));
        moves(&mut out, &mut exporter, &mut importer, 1..101, s(101));
        assert_ne!(importer.heard().catalogue.as_ref(), Some(&out.catalogue));
        (out.catalogue, exporter, importer)
    };
    let ends: [fn(&mut Session); 3] = [
        |importer| importer.on_frame(farewell(Reason::ShuttingDown), s(101)),
        |importer| importer.on_closed("reset"),
        |importer| importer.part(GoodbyeReason::Suspended, "text"),
    ];
    for end in ends {
        let (last, _, mut importer) = flooded();
        end(&mut importer);
        assert_eq!(importer.heard().catalogue.as_ref(), Some(&last));
    }
    let (last, mut exporter, mut importer) = flooded();
    exporter.on_frame(frame(Body::Again(Again { catalogue: true, ..Again::default() })), s(102));
    for body in said(&mut exporter, s(102)) {
        importer.on_frame(frame(body), s(102));
    }
    assert_eq!((importer.heard().catalogue.as_ref(), importer.due()), (Some(&last), None));
    importer.on_tick(s(103));
    assert!(said(&mut importer, s(103)).is_empty(), "it asks for nothing");
}

#[test]
fn a_whole_answer_is_given_no_more_often_than_its_pace() {
    let first = numbered(0..40);
    let (_out, mut exporter, mut taken, mut importer) = pair(&first);
    talk(&mut exporter, &mut importer, s(100));
    imports(&mut importer, &mut taken);
    talk(&mut exporter, &mut importer, s(100));
    let again = frame(Body::Again(Again { answer: true, ..Again::default() }));
    let asked = |importer: &mut Session, now| {
        importer.on_frame(again.clone(), now);
        said(importer, now)
    };
    let bodies = asked(&mut importer, s(101));
    let is_whole =
        |b: &Body| matches!(b, Body::CatalogueAck(ack) if ack.since.is_empty() && ack.outcomes.len() == 40);
    assert!(matches!(bodies.as_slice(), [body] if is_whole(body)), "{bodies:?}");
    assert!(asked(&mut importer, s(101)).is_empty(), "a second time at once");
    let bodies = said(&mut importer, s(102));
    assert!(matches!(bodies.as_slice(), [body] if is_whole(body)), "once its pace allows it: {bodies:?}");
}

#[test]
fn a_peer_of_the_first_protocol_is_sent_snapshots_and_whole_answers() {
    let first = numbered(0..40);
    let mut out = LinkPlan { catalogue: Arc::clone(&first), ..plan() };
    let mut exporter = Session::new(&td("west.test"), &out, SessionLimits::default(), s(100));
    exporter.on_frame(hello("east.test", 1), s(100));
    let version_of = |bodies: Vec<Body>| {
        let mut snapshots = bodies.into_iter().filter_map(|body| match body {
            Body::Catalogue(snapshot) => Some(snapshot.version),
            Body::CatalogueDelta(_) => panic!("it does not know these"),
            _ => None,
        });
        snapshots.next_back().unwrap()
    };
    let sent = version_of(said(&mut exporter, s(100)));
    assert_ne!(sent, first.version, "the version that it computes itself");
    out.catalogue = numbered(0..41);
    exporter.on_plan(&out);
    let sent = version_of(said(&mut exporter, s(101)));
    let ack = CatalogueAck { version: sent, ..CatalogueAck::default() };
    exporter.on_frame(frame(Body::CatalogueAck(ack)), s(101));
    assert_eq!(exporter.heard().acknowledged.as_ref().unwrap().version, out.catalogue.version);
}

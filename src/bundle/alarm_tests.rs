//! Every alarm that an endpoint can raise, by an endpoint that does just that: it is raised, and no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::document;
use super::endpoint::EndpointClient;
use super::monitor::PollLimits;
use super::testing::{Ca, NOW, Reply, Server, Signed, ca_params, id, leaf_params, td, valid};
use super::watch::{Clock, spawn};
use crate::api::v1alpha1::conditions::BundleEndpointReason as Reason;
use crate::model::endpoint::{BundleEndpoint, EndpointProfile, EndpointState, EndpointUrl, MonitorTarget};
use crate::model::trust::SpireState;
use crate::model::{Bundle, World};
use crate::observe::metrics::{Known, Lead, Metrics};
use crate::plan::fixtures::{self, WorldExt as _};
use crate::plan::{alarms, memory};

const WEST: &str = "west.test";
/// In another trust domain, so that the bundle of west may be anything.
const ENDPOINT: &str = "spiffe://hosting.test/endpoint";

/// An endpoint of west, and what the world beside it holds.
struct Case {
    hosting: Ca,
    west: Ca,
    own: Ca,
    north: Ca,
    svid: Option<Signed>,
    replies: Vec<Reply>,
}

fn now() -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap()
}

fn document_of<'a>(cas: impl IntoIterator<Item = &'a Ca>, sequence: u64) -> String {
    let mut bundle = Bundle::new(td(WEST), cas.into_iter().map(Ca::authority));
    bundle.sequence = Some(sequence);
    document::write(&bundle)
}

impl Case {
    fn new() -> Self {
        let hosting = Ca::new();
        let svid = Some(hosting.svid(ENDPOINT));
        Self { hosting, west: Ca::new(), own: Ca::new(), north: Ca::new(), svid, replies: Vec::new() }
    }

    /// Serves these, one after the other, and then the last.
    fn serving(documents: impl FnOnce(&Self) -> Vec<String>) -> Self {
        let case = Self::new();
        let replies = documents(&case).into_iter().map(Reply::Ok).collect();
        Self { replies, ..case }
    }

    /// Serves what is good under this SVID.
    fn presenting(svid: impl FnOnce(&Self) -> Signed) -> Self {
        let case = Self::serving(|case| vec![document_of([&case.west], 1)]);
        let svid = Some(svid(&case));
        Self { svid, ..case }
    }

    fn replying(reply: Reply) -> Self {
        Self { replies: vec![reply], ..Self::new() }
    }

    /// What is known of the endpoint once each reply was fetched.
    async fn state(&mut self, gone: bool) -> EndpointState {
        let replies = self.replies.clone();
        let answer = move |_: &str, n: usize| replies[n.min(replies.len() - 1)].clone();
        let server = Server::start(self.svid.take().unwrap(), answer).await;
        let target = MonitorTarget {
            trust_domain: td(WEST),
            endpoint: BundleEndpoint {
                url: EndpointUrl::parse(&server.url("/")).unwrap(),
                profile: EndpointProfile::HttpsSpiffe { endpoint_id: id(ENDPOINT) },
            },
            bootstrap: None,
            persisted: None,
            verify_with: Some(self.hosting.bundle("hosting.test")),
            held: None,
            at_most: None,
        };
        let server = (!gone).then_some(server);
        let interval = Duration::from_millis(40);
        let limits =
            PollLimits { min_interval: interval, max_interval: interval, default_interval: interval };
        let (_targets, targets) = watch::channel(Arc::new(BTreeMap::from([(td(WEST), target)])));
        let clock: Clock = Arc::new(now);
        let client = EndpointClient::new(rustls::RootCertStore::empty());
        let cancel = CancellationToken::new();
        let (mut states, task, _) = spawn(client, limits, targets, clock, cancel.clone());
        let mut seen = |wanted: fn(&EndpointState) -> bool| {
            let states = states.borrow_and_update();
            states.get(&td(WEST)).filter(|state| wanted(state)).cloned()
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let state = loop {
            assert!(tokio::time::Instant::now() < deadline, "the endpoint was not fetched");
            // The next fetch begins once what the last one showed is published.
            let fetched = server.as_ref().is_none_or(|server| server.requests() > self.replies.len());
            let refused = seen(|state| state.failure.is_some());
            if let Some(state) = refused.or_else(|| fetched.then(|| seen(|s| s.since.is_some())).flatten()) {
                break state;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        cancel.cancel();
        task.await.unwrap();
        state
    }

    /// A world that knows this of west, holds what it served in SPIRE, and north's bundle too.
    fn world(&self, state: EndpointState) -> World {
        let mut world = fixtures::world("east.test")
            .with_peer(fixtures::peer(WEST))
            .with_peer(fixtures::peer("north.test"));
        world.now = now();
        Arc::make_mut(world.identity.as_mut().unwrap()).bundle = self.own.bundle("east.test");
        let mut spire = SpireState::default();
        spire.bundles.insert(td("north.test"), self.north.bundle("north.test"));
        spire.bundles.extend(state.latest.iter().map(|bundle| (td(WEST), Arc::clone(bundle))));
        world.spire = Some(Arc::new(spire));
        world.endpoints = Arc::new(BTreeMap::from([(td(WEST), state)]));
        world.memory = memory::advance(&world);
        world
    }

    async fn raises(mut self, expected: &[Reason]) {
        let gone = self.replies.is_empty();
        let state = self.state(gone).await;
        let world = self.world(state);
        let raised = alarms::alarms(&world, &world.peers[&td(WEST)]);
        let reasons: Vec<Reason> = raised.iter().map(|alarm| alarm.reason).collect();
        assert_eq!(reasons, expected, "{raised:?}");
        assert!(alarms::alarms(&world, &world.peers[&td("north.test")]).is_empty(), "north is not harmed");
        for alarm in &raised {
            assert!(alarm.message.contains("https://127.0.0.1") || alarm.message.contains(WEST), "{alarm:?}");
        }
        let plan = crate::plan::Plan::default();
        let known = Known { world: &world, plan: &plan, leads: true };
        let text = Metrics::default().encode(Lead::default(), true, Some(known)).unwrap();
        let shown: Vec<&str> = text.lines().filter(|l| l.starts_with("entente_peer_bundle_alarm{")).collect();
        assert_eq!(shown.len(), expected.len(), "{shown:?}");
        for reason in expected {
            let line = format!("entente_peer_bundle_alarm{{trust_domain=\"{WEST}\",alarm=\"{reason}\"}} 1");
            assert!(shown.contains(&line.as_str()), "{shown:?}");
        }
    }
}

#[tokio::test]
async fn a_good_endpoint_raises_none() {
    Case::serving(|c| vec![document_of([&c.west], 1)]).raises(&[]).await;
    let rotating = Case::serving(|c| {
        vec![document_of([&c.west], 1), document_of([&c.west, &c.hosting], 2), document_of([&c.hosting], 3)]
    });
    rotating.raises(&[]).await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached() {
    Case::new().raises(&[Reason::EndpointUnreachable]).await;
    Case::replying(Reply::HangUp).raises(&[Reason::EndpointUnreachable]).await;
}

#[tokio::test]
async fn an_endpoint_that_is_not_who_it_should_be() {
    let other = "spiffe://hosting.test/other";
    Case::presenting(|c| c.hosting.svid(other)).raises(&[Reason::WrongEndpointSpiffeId]).await;
    let expired = |c: &Case| {
        let mut params = leaf_params(&[ENDPOINT]);
        valid(&mut params, -100, -1);
        c.hosting.sign(&params)
    };
    Case::presenting(expired).raises(&[Reason::EndpointCertificateExpired]).await;
    Case::presenting(|c| c.north.svid(ENDPOINT)).raises(&[Reason::EndpointCertificateUntrusted]).await;
}

#[tokio::test]
async fn an_answer_that_is_no_bundle() {
    Case::replying(Reply::Ok("<html>".to_owned())).raises(&[Reason::BundleUnparseable]).await;
    Case::replying(Reply::Endless).raises(&[Reason::BundleTooLarge]).await;
    let missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned();
    Case::replying(Reply::Raw(missing)).raises(&[Reason::BadResponse]).await;
}

#[tokio::test]
async fn a_bundle_that_revokes_everything() {
    Case::serving(|_| vec![r#"{"keys":[]}"#.to_owned()]).raises(&[Reason::NoUsableAuthority]).await;
    let mut params = ca_params();
    valid(&mut params, -100, -1);
    let expired = Ca::with(params);
    Case::serving(|_| vec![document_of([&expired], 1)]).raises(&[Reason::NoUsableAuthority]).await;
    let emptied = Case::serving(|c| vec![document_of([&c.west], 1), document_of([], 2)]);
    emptied.raises(&[Reason::NoUsableAuthority]).await;
    let jwt_only = r#"{"keys":[{"kty":"EC","use":"jwt-svid","kid":"k1","crv":"P-256",
        "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
    Case::replying(Reply::Ok(jwt_only.to_owned())).raises(&[Reason::NoUsableAuthority]).await;
}

#[tokio::test]
async fn a_change_that_its_operator_must_explain() {
    let back = Case::serving(|c| vec![document_of([&c.west], 9), document_of([&c.west, &c.hosting], 3)]);
    back.raises(&[Reason::SequenceWentBack]).await;
    let same = Case::serving(|c| vec![document_of([&c.west], 5), document_of([&c.west, &c.hosting], 5)]);
    same.raises(&[Reason::ContentChangedUnderSequence]).await;
    let other = Case::serving(|c| vec![document_of([&c.west], 1), document_of([&c.hosting], 2)]);
    other.raises(&[Reason::AuthoritiesSubstituted]).await;
}

#[tokio::test]
async fn an_authority_that_is_anothers() {
    Case::serving(|c| vec![document_of([&c.west, &c.own], 1)]).raises(&[Reason::AuthorityShared]).await;
    Case::serving(|c| vec![document_of([&c.west, &c.north], 1)]).raises(&[Reason::AuthorityShared]).await;
    let several = Case::serving(|c| vec![document_of([&c.west], 9), document_of([&c.west, &c.own], 3)]);
    several.raises(&[Reason::AuthorityShared, Reason::SequenceWentBack]).await;
}

#[tokio::test]
async fn an_authority_that_is_near_its_end() {
    let until = |seconds: i64| {
        let mut params = ca_params();
        valid(&mut params, seconds - 3600, seconds);
        Ca::with(params)
    };
    // Three times five minutes before its end, which is the last quarter of an hour too.
    for (left, expected) in [(899, &[Reason::AuthorityNearExpiry][..]), (901, &[])] {
        let last = until(left);
        Case::serving(|_| vec![document_of([&last], 1)]).raises(expected).await;
    }
    let last = until(60);
    Case::serving(|c| vec![document_of([&last, &c.west], 1)]).raises(&[]).await;
}

#[tokio::test]
async fn a_document_that_spire_refuses() {
    let with = |key: String| {
        Case::serving(|c| {
            let good = document_of([&c.west], 1);
            vec![good.replacen(r#"{"keys":["#, &format!(r#"{{"keys":[{key},"#), 1)]
        })
    };
    let jwt = r#"{"kty":"EC","use":"jwt-svid","kid":"k1","crv":"P-256",
        "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}"#;
    let two = {
        let ca = Ca::new();
        let whole = document_of([&ca], 1);
        let start = whole.find('[').unwrap() + 1;
        let key = &whole[start..=whole.find("}]").unwrap()];
        key.replace("\"x5c\":[", &format!("\"x5c\":[\"{}\",", STANDARD.encode(&ca.der)))
    };
    with(jwt.to_owned()).raises(&[]).await;
    with(jwt.replace("jwt-svid", "wit-svid")).raises(&[]).await;
    for key in [
        jwt.replace("jwt-svid", "code-signing"),
        jwt.replace(r#""use":"jwt-svid","#, ""),
        jwt.replace(r#""kid":"k1","#, ""),
        jwt.replace("P-256", "secp256k1"),
        two,
        r#"{"kty":"PQ","use":"jwt-svid","kid":"k"}"#.to_owned(),
    ] {
        with(key).raises(&[Reason::RefusedBySpire]).await;
    }
}

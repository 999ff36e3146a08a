use jiff::Timestamp;

use super::*;
use crate::bundle::testing::{Ca, NOW, td};
use crate::enrol::offer::testing::offer;
use crate::enrol::token::{InviteId, Secret};
use crate::model::trust::SpireState;
use crate::observe::testing::Logs;
use crate::plan::fixtures;
use crate::store::{DirectoryStore, DirectoryTimings};

fn token(expires: u64) -> Token {
    Token {
        id: InviteId::random(),
        secret: Secret::random(),
        joiner: td("west.example"),
        inviter: offer("east.example", "192.0.2.1:7443", "https://127.0.0.1:9/"),
        fingerprint: crate::model::BundleDigest::from_bytes(&[7; 32]).unwrap(),
        expires: Timestamp::from_second(i64::try_from(expires).unwrap()).unwrap(),
    }
}

fn own() -> Offer {
    offer("west.example", "192.0.2.2:7443", "https://192.0.2.2:8443/")
}

fn world() -> World {
    let mut world = fixtures::world("west.example");
    world.now = Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap();
    let own = Some(Ca::new().bundle("west.example"));
    world.spire = Some(Arc::new(SpireState { own, ..Default::default() }));
    world
}

#[test]
fn what_the_inviter_accepted_may_have_expired_since() {
    let expired = token(NOW - 1);
    for until in [Until::Joined, Until::DryRun] {
        let refused = check_token(&world(), &own(), &expired, until);
        assert!(matches!(refused, Err(JoinError::Expired(_))), "{refused:?}");
    }
    assert!(check_token(&world(), &own(), &expired, Until::Accepted).is_ok());
}

#[test]
fn a_fingerprint_that_fits_no_more_names_the_way_out() {
    let token = token(NOW + 60);
    let served = crate::model::BundleDigest::from_bytes(&[8; 32]).unwrap();
    let said = |until| {
        let url = token.inviter.endpoint.url.clone();
        fetch_error(FirstFetchError::Fingerprint { url, served }, &token, until).to_string()
    };
    assert!(
        said(Until::Joined).contains("Do not go on; ask there for a new invite"),
        "{}",
        said(Until::Joined)
    );
    let accepted = said(Until::Accepted);
    assert!(accepted.contains("is used up") && accepted.contains("by hand"), "{accepted}");
}

#[tokio::test]
async fn a_join_that_is_refused_is_logged_and_one_that_comes_too_early_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::Directory(DirectoryStore::open(folder.path(), DirectoryTimings::default()).unwrap());
    let joiner = Joiner {
        store,
        source: IdentitySource::empty(),
        endpoints: EndpointClient::new(rustls::RootCertStore::empty()),
        unfinished: TaskTracker::new(),
    };
    let logs = Logs::of_this_thread();
    let early = fixtures::world("west.example");
    let refused = joiner.join(&early, &own(), &token(NOW + 60), Until::Joined).await.unwrap_err();
    assert!(matches!(refused, JoinError::NotReady(_)), "{refused}");
    assert_eq!(logs.warnings(), "");
    for token in [token(NOW - 1), token(NOW + 60)] {
        joiner.join(&world(), &own(), &token, Until::Joined).await.unwrap_err();
    }
    let said = logs.warnings();
    assert!(said.contains("has expired at") && said.contains("cannot be fetched"), "{said}");
    assert_eq!(said.matches("inviter=east.example").count(), 2, "{said}");
}

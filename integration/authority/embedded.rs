//! What an embedded authority does by itself: polling, renewal, callers without an entry, stopping.

use std::sync::Arc;
use std::time::Duration;

use entente::devkit::{EmbeddedConfig, EmbeddedSpire, NewEntry};
use entente::model::TrustDomain;
use entente::model::trust::{Refresh, Relationship, SpireAction};
use entente::proto::workload::X509svidRequest;
use entente::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use entente::spire::SpireServer;
use tonic::{Code, Request};

use crate::behaviour::{Spire, Workload, channel};
use crate::{id, start, west};

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn request() -> Request<X509svidRequest> {
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

#[tokio::test]
async fn polls_its_peers_over_both_profiles() {
    let dir = tempfile::tempdir().unwrap();
    let east = TrustDomain::new("east.example").unwrap();
    let mut config = EmbeddedConfig::new(east.clone(), dir.path().join("east"));
    config.settings.refresh_hint = Duration::from_secs(1);
    let east = EmbeddedSpire::start(config).await.unwrap();
    let mut config = EmbeddedConfig::new(west(), dir.path().join("west"));
    config.minimum_refresh_hint = Duration::from_millis(400);
    let west_spire = EmbeddedSpire::start(config).await.unwrap();
    west_spire.trust_web_root(east.web_root().clone());
    let server = SpireServer::connect_unix(&west_spire.server_socket);

    let own = west();
    for (round, endpoint) in
        [east.bundle_endpoint().unwrap(), east.web_bundle_endpoint()].into_iter().enumerate()
    {
        let relationship = Relationship { trust_domain: east.trust_domain().clone(), endpoint };
        let bootstrap = (round == 0).then(|| east.bundle());
        server.act(&own, &SpireAction::CreateRelationship(relationship, bootstrap)).await.unwrap();
        east.prepare().unwrap();
        let wanted = east.bundle().digest();
        until("the new authority is polled", || {
            west_spire.federated_bundle(east.trust_domain()).is_some_and(|b| b.digest() == wanted)
        })
        .await;
    }
}

#[tokio::test]
async fn without_a_local_bundle_https_spiffe_is_not_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let west_spire = start(&dir.path().join("w")).await.spire;
    let east = TrustDomain::new("east.example").unwrap();
    let east = EmbeddedSpire::start(EmbeddedConfig::new(east, dir.path().join("e"))).await.unwrap();
    let server = SpireServer::connect_unix(&west_spire.server_socket);
    let relationship =
        Relationship { trust_domain: east.trust_domain().clone(), endpoint: east.bundle_endpoint().unwrap() };
    server.act(&west(), &SpireAction::CreateRelationship(relationship, None)).await.unwrap();
    let refresh = SpireAction::RefreshBundle(Refresh {
        trust_domain: east.trust_domain().clone(),
        stored: None,
        served: east.bundle().digest(),
        every: Duration::ZERO,
    });
    let error = server.act(&west(), &refresh).await.unwrap_err();
    assert!(error.to_string().contains("local copy of bundle not found"), "{error}");
    assert!(west_spire.federated_bundle(east.trust_domain()).is_none());
}

#[tokio::test]
async fn a_caller_without_an_entry_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = start(dir.path()).await;
    let socket = embedded.spire.workload_socket("nobody").unwrap();
    let mut client = SpiffeWorkloadApiClient::new(channel(&socket));
    let refused = async { client.fetch_x509svid(request()).await?.into_inner().message().await };
    assert_eq!(refused.await.unwrap_err().code(), Code::PermissionDenied);

    let mut client = SpiffeWorkloadApiClient::new(channel(&embedded.socket));
    let mut stream = client.fetch_x509svid(request()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    assert!(embedded.spire.delete_entry(&embedded.entry));
    assert_eq!(stream.message().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn two_entries_of_one_caller_are_told_apart_by_hint() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = start(dir.path()).await;
    let second =
        NewEntry { hint: "admin".to_owned(), admin: true, ..NewEntry::workload(id(&["admin"]), "workload") };
    embedded.spire.create_entry(second.clone()).unwrap();
    let again = embedded.spire.create_entry(second).unwrap_err();
    assert!(again.to_string().contains("similar entry already exists"), "{again}");
    let update = Workload::open(&embedded).until("two SVIDs", |u| u.svids.len() == 2).await;
    let given: Vec<_> = update.svids.iter().map(|s| (s.spiffe_id.as_str(), s.hint.as_str())).collect();
    assert_eq!(given, [("spiffe://west.example/workload", ""), ("spiffe://west.example/admin", "admin")]);
}

#[tokio::test]
async fn svids_are_renewed_by_time_and_when_their_authority_is_tainted() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = EmbeddedConfig::new(west(), dir.path());
    config.settings.svid_ttl = Duration::from_secs(4);
    let spire = EmbeddedSpire::start(config).await.unwrap();
    let entry = spire.create_entry(NewEntry::workload(id(&["workload"]), "workload")).unwrap();
    let socket = spire.workload_socket("workload").unwrap();
    let embedded = crate::Embedded { spire, socket, entry };
    let mut workload = Workload::open(&embedded);
    let first = workload.until("an SVID", |_| true).await;
    let second = workload.until("a renewed one", |u| u.leaf() != first.leaf()).await;
    assert_eq!(second.signer(), first.signer());

    let old = embedded.spire.slots().active;
    let new = embedded.spire.prepare().unwrap();
    embedded.spire.activate(&new).unwrap();
    embedded.spire.taint(&old).unwrap();
    let third = workload.until("one of the new authority", |u| u.signer() == new).await;
    assert_ne!(third.leaf(), second.leaf());
    embedded.spire.revoke(&old).unwrap();
    assert_eq!(embedded.spire.bundle().authority_ids(), [new].into());
}

#[tokio::test]
async fn it_stops_when_told_and_when_dropped_and_starts_again_in_the_same_place() {
    let dir = tempfile::tempdir().unwrap();
    for drop_it in [false, true, false] {
        let embedded = start(dir.path()).await;
        let (server, workload) = (embedded.server_socket().to_owned(), embedded.socket.clone());
        let mut client = SpiffeWorkloadApiClient::new(channel(&workload));
        let mut stream = client.fetch_x509svid(request()).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        if drop_it {
            drop(embedded);
        } else {
            tokio::time::timeout(Duration::from_secs(10), embedded.spire.shutdown()).await.unwrap();
        }
        // An open stream ends, however it does.
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap();
        assert!(!matches!(ended, Ok(Some(_))));
        until("both sockets are gone", || !server.exists() && !workload.exists()).await;
        let client = SpireServer::connect_unix(server);
        let error = client.read(&west()).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Unavailable), "{error}");
    }
}

#[tokio::test]
async fn a_server_of_another_trust_domain_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = start(dir.path()).await;
    let server = SpireServer::connect_unix(embedded.server_socket());
    let error = server.read(&TrustDomain::new("east.example").unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("it serves west.example, we are of east.example"), "{error}");
    assert_eq!(server.read(&west()).await.unwrap().own, Some(Arc::clone(&embedded.spire.bundle())));
}

#[tokio::test]
async fn more_than_a_page_of_entries_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = start(dir.path()).await;
    for n in 0..450 {
        let entry = NewEntry::workload(id(&["many", &n.to_string()]), "many");
        embedded.spire.create_entry(entry).unwrap();
    }
    let server = SpireServer::connect_unix(embedded.server_socket());
    assert_eq!(server.read_entries().await.unwrap().len(), 451);
}

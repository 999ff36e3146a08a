//! A server that answers what SPIRE never should: each bad item harms only itself, and nothing is endless.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::devkit::{Authority, Settings};
use crate::model::TrustDomain;
use crate::model::trust::{BundleRemoval, Refresh, SpireAction};
use crate::proto::spire::server::bundle::v1::bundle_server::{Bundle, BundleServer};
use crate::proto::spire::server::entry::v1::entry_server::{Entry, EntryServer};
use crate::proto::spire::server::trustdomain::v1::trust_domain_server::{
    TrustDomain as Relationships, TrustDomainServer,
};
use crate::proto::spire::server::{bundle, entry, trustdomain};
use crate::proto::spire::types;
use crate::proto::spire::types::federation_relationship::BundleEndpointProfile;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    BadItems,
    /// Every page names itself as the next.
    SamePage,
    /// Every page has a next one, and items.
    Endless,
    /// No answer.
    Silent,
    /// Batches answered without a result, or with a refusal.
    NoResults,
    Refusing,
    /// Listings fail, the one that is asked first later than the others.
    Failing,
    /// Bundles that are over what is taken, and over what is received.
    Huge,
    /// The second listing of entries never ends, and from then on the bundle of east is empty.
    Turning,
}

#[derive(Clone, Debug)]
struct Odd(Mood, Arc<AtomicUsize>);

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn good_bundle(name: &str) -> types::Bundle {
    let settings = Settings::new(crate::clock::now());
    bundle_to_proto(Authority::new(domain(name), settings).unwrap().bundle())
}

fn relationship(name: &str, url: &str) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain: name.to_owned(),
        bundle_endpoint_url: url.to_owned(),
        bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
        trust_domain_bundle: None,
    }
}

fn refused() -> types::Status {
    types::Status { code: Code::PermissionDenied.into(), message: "not today".to_owned() }
}

#[tonic::async_trait]
impl Relationships for Odd {
    async fn list_federation_relationships(
        &self,
        request: Request<trustdomain::v1::ListFederationRelationshipsRequest>,
    ) -> Result<Response<trustdomain::v1::ListFederationRelationshipsResponse>, Status> {
        let token = request.into_inner().page_token;
        let good = relationship("east.example", "https://east.example/");
        let next_page_token = match self.0 {
            Mood::Silent => std::future::pending().await,
            Mood::Failing => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                return Err(Status::unavailable("late"));
            }
            Mood::SamePage => "same".to_owned(),
            Mood::Endless => format!("{token}x"),
            _ => String::new(),
        };
        let bad = BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: "https://x".to_owned(),
        });
        let federation_relationships = vec![
            relationship("no trust domain", "https://x.example/"),
            relationship("plain.example", "http://plain.example/"),
            types::FederationRelationship {
                bundle_endpoint_profile: None,
                ..relationship("none.example", "https://none.example/")
            },
            types::FederationRelationship {
                bundle_endpoint_profile: Some(bad),
                ..relationship("id.example", "https://id.example/")
            },
            good,
        ];
        let answer = trustdomain::v1::ListFederationRelationshipsResponse {
            federation_relationships,
            next_page_token,
        };
        Ok(Response::new(answer))
    }

    async fn batch_create_federation_relationship(
        &self,
        _: Request<trustdomain::v1::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<trustdomain::v1::BatchCreateFederationRelationshipResponse>, Status> {
        type Item = trustdomain::v1::batch_create_federation_relationship_response::Result;
        let results = if self.0 == Mood::Refusing { vec![Item { status: Some(refused()) }] } else { vec![] };
        Ok(Response::new(trustdomain::v1::BatchCreateFederationRelationshipResponse { results }))
    }

    async fn batch_update_federation_relationship(
        &self,
        _: Request<trustdomain::v1::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<trustdomain::v1::BatchUpdateFederationRelationshipResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn batch_delete_federation_relationship(
        &self,
        _: Request<trustdomain::v1::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<trustdomain::v1::BatchDeleteFederationRelationshipResponse>, Status> {
        type Item = trustdomain::v1::batch_delete_federation_relationship_response::Result;
        let item = Item { status: Some(refused()), trust_domain: String::new() };
        let results = if self.0 == Mood::Refusing { vec![item] } else { vec![] };
        Ok(Response::new(trustdomain::v1::BatchDeleteFederationRelationshipResponse { results }))
    }

    async fn refresh_bundle(
        &self,
        _: Request<trustdomain::v1::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::internal("failed to refresh bundle"))
    }
}

/// A page of five bundles, the second and the fourth of which are too large.
fn huge(request: &bundle::v1::ListFederatedBundlesRequest) -> bundle::v1::ListFederatedBundlesResponse {
    let sizes = [("a", 0), ("b", 17 << 20), ("c", 0), ("d", 2 << 20), ("e", 0)];
    let (from, count): (usize, usize) =
        (request.page_token.parse().unwrap_or(0), request.page_size.try_into().unwrap());
    let bundles = sizes.iter().skip(from).take(count).map(|(name, size)| {
        let mut bundle = good_bundle(&format!("{name}.example"));
        bundle.x509_authorities.push(types::X509Certificate { asn1: vec![0; *size], tainted: false });
        if request.output_mask.is_some() {
            bundle.x509_authorities.clear();
        }
        bundle
    });
    let next = from + count;
    let next_page_token = if next < sizes.len() { next.to_string() } else { String::new() };
    bundle::v1::ListFederatedBundlesResponse { bundles: bundles.collect(), next_page_token }
}

#[tonic::async_trait]
impl Bundle for Odd {
    async fn get_bundle(
        &self,
        _: Request<bundle::v1::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Ok(Response::new(good_bundle("west.example")))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<bundle::v1::ListFederatedBundlesRequest>,
    ) -> Result<Response<bundle::v1::ListFederatedBundlesResponse>, Status> {
        match self.0 {
            Mood::Failing => return Err(Status::unavailable("early")),
            Mood::Huge => return Ok(Response::new(huge(&request.into_inner()))),
            Mood::Turning => {
                let has_turned = self.1.load(Ordering::SeqCst) > 1;
                let mut east = good_bundle("east.example");
                east.x509_authorities.retain(|_| !has_turned);
                let bundles = vec![east];
                let answer =
                    bundle::v1::ListFederatedBundlesResponse { bundles, next_page_token: String::new() };
                return Ok(Response::new(answer));
            }
            _ => {}
        }
        let mut mixed = good_bundle("mixed.example");
        mixed.x509_authorities[0].tainted = true;
        mixed.x509_authorities.push(types::X509Certificate { asn1: b"junk".to_vec(), tainted: false });
        mixed.jwt_authorities.push(types::JwtKey { key_id: "odd".to_owned(), ..Default::default() });
        (mixed.sequence_number, mixed.refresh_hint) = (0, -7);
        let nameless = types::Bundle { trust_domain: "No Such".to_owned(), ..Default::default() };
        let bundles = vec![nameless, mixed, good_bundle("east.example")];
        Ok(Response::new(bundle::v1::ListFederatedBundlesResponse {
            bundles,
            next_page_token: String::new(),
        }))
    }

    async fn batch_set_federated_bundle(
        &self,
        _: Request<bundle::v1::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<bundle::v1::BatchSetFederatedBundleResponse>, Status> {
        Ok(Response::new(bundle::v1::BatchSetFederatedBundleResponse { results: vec![] }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        _: Request<bundle::v1::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<bundle::v1::BatchDeleteFederatedBundleResponse>, Status> {
        Ok(Response::new(bundle::v1::BatchDeleteFederatedBundleResponse { results: vec![] }))
    }
}

#[tonic::async_trait]
impl Entry for Odd {
    async fn list_entries(
        &self,
        request: Request<entry::v1::ListEntriesRequest>,
    ) -> Result<Response<entry::v1::ListEntriesResponse>, Status> {
        if self.0 == Mood::Failing {
            return Err(Status::unavailable("early"));
        }
        if self.1.fetch_add(1, Ordering::SeqCst) > 0 && self.0 == Mood::Turning {
            std::future::pending().await
        }
        let token = request.into_inner().page_token;
        let id = |td: &str, path: &str| {
            Some(types::Spiffeid { trust_domain: td.to_owned(), path: path.to_owned() })
        };
        let entry = |n: &str, spiffe_id| types::Entry {
            id: n.to_owned(),
            spiffe_id,
            federates_with: vec!["east.example".to_owned(), "not one".to_owned()],
            ..Default::default()
        };
        let mut entries = vec![
            entry("none", None),
            entry("bad", id("west.example", "/a/../b")),
            entry("good", id("west.example", "/a")),
        ];
        let mut next_page_token = String::new();
        if self.0 == Mood::Endless {
            next_page_token = format!("{token}x");
            entries = vec![types::Entry::default(); 5_000];
        }
        Ok(Response::new(entry::v1::ListEntriesResponse { entries, next_page_token }))
    }

    async fn get_entry(
        &self,
        request: Request<entry::v1::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let id = request.into_inner().id;
        Ok(Response::new(types::Entry { id, ..Default::default() }))
    }

    async fn batch_create_entry(
        &self,
        _: Request<entry::v1::BatchCreateEntryRequest>,
    ) -> Result<Response<entry::v1::BatchCreateEntryResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn batch_update_entry(
        &self,
        _: Request<entry::v1::BatchUpdateEntryRequest>,
    ) -> Result<Response<entry::v1::BatchUpdateEntryResponse>, Status> {
        type Item = entry::v1::batch_update_entry_response::Result;
        let results = if self.0 == Mood::Refusing { vec![Item { status: None }] } else { vec![] };
        Ok(Response::new(entry::v1::BatchUpdateEntryResponse { results }))
    }
}

/// Without `LocalAuthority`, as SPIRE before 1.11.
async fn serve(mood: Mood) -> (tempfile::TempDir, SpireServer) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("api.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
    let odd = Odd(mood, Arc::default());
    let router = Server::builder()
        .add_service(TrustDomainServer::new(odd.clone()))
        .add_service(BundleServer::new(odd.clone()))
        .add_service(EntryServer::new(odd));
    tokio::spawn(router.serve_with_incoming(incoming));
    (dir, SpireServer::connect_unix(path))
}

#[tokio::test]
async fn a_bad_item_harms_only_itself() {
    let (_dir, server) = serve(Mood::BadItems).await;
    let state = server.read(&domain("west.example")).await.unwrap();
    assert_eq!(state.relationships.keys().collect::<Vec<_>>(), [&domain("east.example")]);
    let unreadable: Vec<_> =
        state.unreadable.iter().map(|(td, why)| (td.as_str(), why.split(':').next().unwrap())).collect();
    let expected = [
        ("id.example", "endpoint SPIFFE ID \"https"),
        ("no trust domain", "trust domain"),
        ("none.example", "bundle endpoint profile"),
        ("plain.example", "bundle endpoint URL"),
    ];
    assert_eq!(unreadable, expected);
    assert_eq!(state.bundles.len(), 2);
    let mixed = &state.bundles[&domain("mixed.example")];
    assert_eq!((mixed.len(), mixed.jwt.len(), mixed.sequence, mixed.refresh_hint), (1, 0, None, None));
    assert!(mixed.authorities().all(|a| a.tainted));
    assert_eq!(state.entries.keys().collect::<Vec<_>>(), ["good"]);
    assert_eq!(state.entries["good"].federates_with, [domain("east.example")].into());
    assert_eq!(server.read_authorities().await.unwrap(), None);
}

#[tokio::test]
async fn no_listing_is_endless() {
    let (_dir, server) = serve(Mood::SamePage).await;
    let error = server.read_bundles(&domain("west.example")).await.unwrap_err();
    assert!(matches!(error, SpireError::Answer { .. }), "{error}");
    let (_dir, server) = serve(Mood::Endless).await;
    let error = server.read_bundles(&domain("west.example")).await.unwrap_err();
    assert!(matches!(error, SpireError::TooMany { limit: 10_000, .. }), "{error}");
    let error = server.read_entries().await.unwrap_err();
    assert!(matches!(error, SpireError::TooMany { limit: 100_000, .. }), "{error}");
}

#[tokio::test]
async fn silence_ends_after_five_seconds() {
    let (_dir, server) = serve(Mood::Silent).await;
    let error = server.read_bundles(&domain("west.example")).await.unwrap_err();
    assert!(
        matches!(&error, SpireError::Timeout { after, .. } if *after == Duration::from_secs(5)),
        "{error}"
    );
    assert!(error.to_string().contains("ListFederationRelationships gave no answer within 5 s"), "{error}");
}

#[tokio::test]
async fn of_several_failures_the_same_one_is_always_told() {
    let (_dir, server) = serve(Mood::Failing).await;
    let own = domain("west.example");
    for error in [server.read_bundles(&own).await.unwrap_err(), server.read(&own).await.unwrap_err()] {
        assert!(error.to_string().contains("ListFederationRelationships failed: late"), "{error}");
    }
}

#[tokio::test]
async fn what_was_not_said_to_be_done_is_an_error() {
    let own = domain("west.example");
    let east = domain("east.example");
    let held =
        convert::relationship_from_proto(&relationship("east.example", "https://east.example/")).unwrap();
    let actions = [
        SpireAction::CreateRelationship(held, None),
        SpireAction::DeleteRelationship(east.clone()),
        SpireAction::ChangeFederatesWith {
            entry: "good".to_owned(),
            add: [domain("north.example")].into(),
            remove: [].into(),
        },
        SpireAction::DeleteBundle(east.clone(), BundleRemoval::Restrict),
    ];
    let (_dir, server) = serve(Mood::NoResults).await;
    for action in &actions {
        let error = server.act(&own, action).await.unwrap_err();
        assert!(matches!(error, SpireError::Answer { .. }), "{action:?}: {error}");
    }
    let (_dir, server) = serve(Mood::Refusing).await;
    for action in &actions[..2] {
        let error = server.act(&own, action).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::PermissionDenied));
        assert!(error.to_string().contains("of east.example: not today"), "{error}");
    }
    assert!(matches!(server.act(&own, &actions[2]).await, Err(SpireError::Answer { .. })));
    let refresh = |trust_domain: TrustDomain| {
        let served = crate::model::Bundle::new(trust_domain.clone(), []).digest();
        let every = std::time::Duration::from_secs(300);
        SpireAction::RefreshBundle(Refresh { trust_domain, stored: None, served, every })
    };
    let error = server.act(&own, &refresh(east)).await.unwrap_err().to_string();
    assert!(error.contains("RefreshBundle failed: failed to refresh bundle (Internal)"), "{error}");
    for action in [refresh(own.clone()), SpireAction::DeleteRelationship(own.clone())] {
        assert!(matches!(server.act(&own, &action).await, Err(SpireError::OwnTrustDomain { .. })));
    }
}

#[tokio::test]
async fn a_bundle_that_is_too_large_harms_no_other() {
    let (_dir, server) = serve(Mood::Huge).await;
    let state = server.read_bundles(&domain("west.example")).await.unwrap();
    let held: Vec<_> = state.bundles.iter().map(|(name, bundle)| (name.as_str(), bundle.len())).collect();
    let expected =
        [("a", 1), ("b", 0), ("c", 1), ("d", 0), ("e", 1)].map(|(n, len)| (format!("{n}.example"), len));
    assert_eq!(held, expected.each_ref().map(|(name, len)| (name.as_str(), *len)));
    assert_eq!(state.too_large, [domain("b.example"), domain("d.example")].into());
}

#[tokio::test]
async fn bundles_do_not_wait_for_entries() {
    let (dir, server) = serve(Mood::Turning).await;
    let connect: replicas::Connect = Arc::new(|address| match address {
        ServerAddress::Unix(path) => Ok(SpireServer::connect_unix(path)),
        ServerAddress::Tcp(_) => unreachable!(),
    });
    let (cancel, often) = (tokio_util::sync::CancellationToken::new(), Duration::from_millis(20));
    let addresses = vec![ServerAddress::Unix(dir.path().join("api.sock"))];
    let (replicas, _task) = replicas::Replicas::spawn(addresses, connect, often, cancel.clone());
    let identity = crate::plan::fixtures::world("west.example").identity;
    let (_identity, identity) = tokio::sync::watch::channel(identity);
    let intervals = watch::Intervals { bundles: often, entries: often };
    let (spire, _task) = watch::SpireWatch::spawn(server, replicas, identity, intervals, cancel);
    let mut states = spire.subscribe();
    let first = states.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!((first.entries.len(), first.why_unlisted()), (1, None));
    // Sooner than the listing is given up.
    let is_empty = |state: &Option<Arc<crate::model::trust::SpireState>>| {
        state.as_ref().is_some_and(|state| state.bundles[&domain("east.example")].is_empty())
    };
    let turned = tokio::time::timeout(Duration::from_secs(4), states.wait_for(is_empty));
    let turned = turned.await.expect("in time").unwrap().clone().unwrap();
    assert_eq!((turned.entries.len(), turned.why_unlisted()), (1, None));
    let is_told = |state: &Option<Arc<crate::model::trust::SpireState>>| {
        state.as_ref().is_some_and(|state| state.entries_failure.is_some())
    };
    let told = states.wait_for(is_told).await.unwrap().clone().unwrap();
    assert_eq!((told.entries.len(), &told.failure), (1, &None), "what was listed last stays");
}

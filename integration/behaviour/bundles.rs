//! Federated bundles, stored and fetched.

use std::sync::Arc;

use entente::devkit::{Authority, Fault, FetchRequest, Settings, WebRoots, as_spire};
use entente::model::trust::{BundleRemoval, SpireAction};
use entente::model::{Bundle, SpiffeId, TrustDomain};
use tonic::Code;

use super::{Case, Spire, Workload};

pub(crate) async fn federating_needs_the_bundle_first(case: &Case<'_, impl Spire>) {
    let peer = case.peer_domain();
    let action = SpireAction::ChangeFederatesWith {
        entry: case.spire.workload_entry().to_owned(),
        add: [peer.clone()].into(),
        remove: [].into(),
    };
    let error = case.server.act(case.own(), &action).await.unwrap_err();
    let words = format!("failed to update entry: unable to find federated bundle \"{}\"", peer.id_string());
    assert!(error.to_string().contains(&words), "{error}");
    assert_eq!(error.code(), Some(Code::Internal));
    assert_eq!(case.state().await.federating_with(&peer).count(), 0);
    case.relate().await;
    case.act(action).await;
    assert_eq!(case.state().await.federating_with(&peer).count(), 1);
}

/// What is planned may be seconds old: what an operator wrote into the entry since stays.
pub(crate) async fn a_change_leaves_what_someone_else_wrote(case: &Case<'_, impl Spire>) {
    let peer = case.peer_domain();
    let other =
        Authority::new(TrustDomain::new("other.example").unwrap(), Settings::new(entente::clock::now()))
            .unwrap();
    let other = (other.bundle().trust_domain().clone(), Arc::clone(other.bundle()));
    case.relate().await;
    case.act(SpireAction::SetBundle(other.1)).await;
    let entry = || case.spire.workload_entry().to_owned();
    let planned =
        SpireAction::ChangeFederatesWith { entry: entry(), add: [peer.clone()].into(), remove: [].into() };
    case.federate(&[&other.0]).await;
    case.act(planned.clone()).await;
    let names = async || case.state().await.entries[&entry()].federates_with.clone();
    assert_eq!(names().await, [other.0.clone(), peer.clone()].into());
    // Not even an update where it is so already.
    case.act(planned).await;
    case.act(SpireAction::ChangeFederatesWith { entry: entry(), add: [].into(), remove: [peer].into() })
        .await;
    assert_eq!(names().await, [other.0.clone()].into());
    case.federate(&[]).await;
    case.act(SpireAction::DeleteBundle(other.0, BundleRemoval::Restrict)).await;
}

pub(crate) async fn a_bundle_in_use_is_not_deleted(case: &Case<'_, impl Spire>) {
    let peer = case.peer_domain();
    case.relate().await;
    case.federate(&[&peer]).await;
    let delete = SpireAction::DeleteBundle(peer.clone(), BundleRemoval::Restrict);
    let error = case.server.act(case.own(), &delete).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::FailedPrecondition), "{error}");
    assert!(error.to_string().contains("federated with 1 registration entries"), "{error}");
    assert!(case.held().await.is_some());

    case.act(SpireAction::DeleteBundle(peer.clone(), BundleRemoval::Dissociate)).await;
    let state = case.state().await;
    assert_eq!(state.federating_with(&peer).count(), 0);
    assert!(!state.bundles.contains_key(&peer));
    assert!(state.relationships.contains_key(&peer));
}

pub(crate) async fn an_empty_bundle_is_stored_and_delivered_empty(case: &Case<'_, impl Spire>) {
    let peer = case.peer_domain();
    case.relate().await;
    case.federate(&[&peer]).await;
    let mut workload = Workload::open(case.spire);
    workload.until("the peer's bundle", |u| u.federated(&peer).is_some_and(|der| !der.is_empty())).await;

    case.peer.set_fault(Some(Fault::EmptyKeys));
    case.refreshed("no authority", Bundle::is_empty).await;
    let update =
        workload.until("an empty bundle", |u| u.federated(&peer).is_some_and(<[u8]>::is_empty)).await;
    assert!(!update.svids.is_empty());

    // Nothing verifies the endpoint any more: SPIRE does not come back by itself, though the peer has mended.
    case.peer.set_fault(None);
    let error = case.refresh().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Internal), "{error}");
    assert!(case.held().await.unwrap().is_empty());
    case.server.set_bundle(case.own(), &case.peer.bundle()).await.unwrap();
    case.refresh().await.unwrap();
    workload.until("the bundle again", |u| u.federated(&peer).is_some_and(|der| !der.is_empty())).await;
}

pub(crate) async fn an_older_bundle_is_taken(case: &Case<'_, impl Spire>) {
    case.relate().await;
    case.peer.prepare().unwrap();
    // The endpoint serves a sequence, which SPIRE drops.
    case.refreshed("both authorities", |bundle| bundle.len() == 2 && bundle.sequence.is_none()).await;
    case.peer.set_fault(Some(Fault::OlderBundle));
    case.refreshed("the first authority alone", |bundle| bundle.len() == 1).await;
}

pub(crate) async fn what_is_not_to_be_trusted_is_not_fetched(case: &Case<'_, impl Spire>) {
    // From the start, so that no poll of SPIRE's own comes between.
    case.peer.set_fault(Some(Fault::Hangup));
    case.relate().await;
    // It would be seen if it were fetched.
    case.peer.prepare().unwrap();
    let other = SpiffeId::from_segments(case.peer_domain(), &["spire", "other"]).unwrap();
    for fault in [
        Fault::WrongSpiffeId(other),
        Fault::ExpiredCertificate,
        Fault::UntrustedCertificate,
        Fault::Garbage(b"<html>".to_vec()),
        Fault::Status(500),
        Fault::UnknownUseBeside,
        Fault::Hangup,
    ] {
        case.peer.set_fault(Some(fault.clone()));
        let error = case.refresh().await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Internal), "{fault:?}: {error}");
        assert_eq!(case.held().await.unwrap().len(), 1, "{fault:?}");
    }
    case.peer.set_fault(None);
    case.refreshed("both authorities", |bundle| bundle.len() == 2).await;
}

pub(crate) async fn the_endpoint_serves_what_the_api_says(case: &Case<'_, impl Spire>) {
    let own = case.state().await.own.unwrap();
    let fetch = as_spire(WebRoots::default());
    let request = FetchRequest {
        trust_domain: case.own().clone(),
        endpoint: case.spire.bundle_endpoint(),
        verify_with: Some(Arc::clone(&own)),
    };
    let served = fetch(request.clone()).await.unwrap();
    assert_eq!(served.digest(), own.digest());
    assert!(served.refresh_hint.is_some());
    // By the bundle of anyone else it is not to be trusted.
    let stranger = FetchRequest { verify_with: Some(case.peer.bundle()), ..request.clone() };
    assert!(fetch(stranger).await.is_err());
    let elsewhere = TrustDomain::new("elsewhere.example").unwrap();
    let mut other = request;
    other.endpoint.profile = entente::model::endpoint::EndpointProfile::HttpsSpiffe {
        endpoint_id: SpiffeId::from_segments(elsewhere, &["spire", "server"]).unwrap(),
    };
    assert!(fetch(other).await.is_err());
}

//! Federation relationships.

use entente::devkit::Fault;
use entente::model::trust::{BundleRemoval, SpireAction};
use entente::spire::{SpireError, bundle_to_proto};
use tonic::Code;

use super::api::DeleteMode;
use super::{Case, Spire};

pub(crate) async fn own_trust_domain_is_refused(case: &Case<'_, impl Spire>) {
    let own = case.own().as_str();
    let (code, _) = case.api.create_relationship(own, "https://127.0.0.1:1/").await;
    assert_eq!(code, Code::InvalidArgument);
    let bundle = case.state().await.own.unwrap();
    assert_eq!(case.api.set_bundle(bundle_to_proto(&bundle)).await.0, Code::InvalidArgument);
    assert_eq!(case.api.delete_bundle(own, DeleteMode::Restrict).await.0, Code::InvalidArgument);
    // The agent's client does not even ask.
    let action = SpireAction::DeleteBundle(case.own().clone(), BundleRemoval::Restrict);
    let refused = case.server.act(case.own(), &action).await;
    assert!(matches!(refused, Err(SpireError::OwnTrustDomain { .. })));
}

pub(crate) async fn ending_a_relationship_leaves_the_bundle(case: &Case<'_, impl Spire>) {
    let peer = case.peer_domain();
    case.relate().await;
    let state = case.state().await;
    assert_eq!(state.relationships.get(&peer), Some(&case.relationship()));
    assert_eq!(state.bundles.get(&peer).unwrap().digest(), case.peer.bundle().digest());
    assert!(state.unreadable.is_empty());
    case.refresh().await.unwrap();

    case.act(SpireAction::DeleteRelationship(peer.clone())).await;
    let state = case.state().await;
    assert!(!state.relationships.contains_key(&peer));
    assert_eq!(state.bundles.get(&peer).unwrap().digest(), case.peer.bundle().digest());
    assert_eq!(case.api.delete_relationship(peer.as_str()).await.0, Code::NotFound);
    // To the agent, what is not there is deleted.
    case.act(SpireAction::DeleteRelationship(peer.clone())).await;

    case.act(SpireAction::DeleteBundle(peer.clone(), BundleRemoval::Restrict)).await;
    assert!(case.held().await.is_none());
    let again = case.api.delete_bundle(peer.as_str(), DeleteMode::Restrict).await;
    assert_eq!(again, (Code::NotFound, "bundle not found".to_owned()));
    case.act(SpireAction::DeleteBundle(peer, BundleRemoval::Restrict)).await;
}

pub(crate) async fn creating_twice_is_refused_and_taken_as_an_update(case: &Case<'_, impl Spire>) {
    let peer = case.peer_domain();
    case.relate().await;
    let (code, message) = case.api.create_relationship(peer.as_str(), "https://127.0.0.1:1/").await;
    // Not AlreadyExists: SPIRE keeps that to its log.
    assert_eq!(code, Code::Internal, "{message}");
    assert_eq!(case.state().await.relationships.get(&peer), Some(&case.relationship()));

    let mut moved = case.relationship();
    moved.endpoint = case.peer.web_bundle_endpoint();
    case.act(SpireAction::CreateRelationship(moved.clone(), None)).await;
    assert_eq!(case.state().await.relationships.get(&peer), Some(&moved));
}

pub(crate) async fn an_update_overwrites_the_bundle_only_if_it_brings_one(case: &Case<'_, impl Spire>) {
    // Nothing is fetched meanwhile.
    case.peer.set_fault(Some(Fault::Hangup));
    let old = case.peer.bundle();
    case.peer.prepare().unwrap();
    case.relate().await;
    assert_eq!(case.held().await.unwrap().len(), 2);

    case.act(SpireAction::UpdateRelationship(case.relationship(), None)).await;
    assert_eq!(case.held().await.unwrap().len(), 2);
    case.act(SpireAction::UpdateRelationship(case.relationship(), Some(old.clone()))).await;
    assert_eq!(case.held().await.unwrap().digest(), old.digest());
    assert!(case.refresh().await.is_err());
    case.peer.set_fault(None);
    case.refreshed("both authorities", |bundle| bundle.len() == 2).await;
}

pub(crate) async fn an_unknown_relationship_is_neither_updated_nor_refreshed(case: &Case<'_, impl Spire>) {
    let error = case.refresh().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::NotFound), "{error}");
    let update = SpireAction::UpdateRelationship(case.relationship(), None);
    assert!(case.server.act(case.own(), &update).await.is_err());
    assert!(case.state().await.relationships.is_empty());
}

//! Rotation of the X.509 authority.

use std::sync::Arc;
use std::time::Duration;

use entente::devkit::{FetchRequest, WebRoots, as_spire};
use entente::model::trust::LocalAuthorities;
use entente::model::{AuthorityId, Bundle};
use entente::proto::spire::server::localauthority::v1 as api;
use tonic::Code;

use super::{Case, Spire, Workload};

pub(crate) async fn an_authority_is_published_before_it_signs(case: &Case<'_, impl Spire>) {
    let mut authorities = case.api.authorities();
    let state = authorities.get_x509_authority_state(api::GetX509AuthorityStateRequest {}).await;
    let first = id(state.unwrap().into_inner().active);
    assert_eq!(slots(case).await.active.id, first);

    let prepared = authorities.prepare_x509_authority(api::PrepareX509AuthorityRequest {}).await;
    let second = id(prepared.unwrap().into_inner().prepared_authority);
    let published = case.state().await.own.unwrap().authority_ids();
    assert!(published.contains(&first) && published.contains(&second), "{published:?}");
    let state = slots(case).await;
    assert_eq!((&state.active.id, state.prepared.map(|p| p.id)), (&first, Some(second.clone())));
    assert_eq!(state.active.upstream, None);

    let activate = |id: &str| api::ActivateX509AuthorityRequest { authority_id: id.to_owned() };
    for wrong in ["", "00ff", first.as_str()] {
        let refused = authorities.activate_x509_authority(activate(wrong)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong}: {refused}");
    }
    // Still signed by the first, though new.
    case.relate().await;
    let mut workload = Workload::open(case.spire);
    let before = workload.until("an SVID", |u| u.federates_with_nobody()).await;
    assert_eq!(before.signer(), first);

    authorities.activate_x509_authority(activate(second.as_str())).await.unwrap();
    assert_eq!(slots(case).await.active.id, second);
    // What is issued from now on is signed by the second.
    case.federate(&[&case.peer_domain()]).await;
    workload.until("an SVID of the new authority", |u| u.signer() == second).await;
    let published = case.state().await.own.unwrap().authority_ids();
    assert!(published.contains(&first), "the old authority stays in the bundle");
    // The old one is in the slot, and is no prepared one.
    let refused = authorities.activate_x509_authority(activate(first.as_str())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused}");
}

pub(crate) async fn only_an_old_authority_is_tainted_and_only_a_tainted_one_revoked(
    case: &Case<'_, impl Spire>,
) {
    let mut authorities = case.api.authorities();
    let taint = |id: &AuthorityId| api::TaintX509AuthorityRequest { authority_id: id.to_string() };
    let revoke = |id: &AuthorityId| api::RevokeX509AuthorityRequest { authority_id: id.to_string() };
    let prepared = authorities.prepare_x509_authority(api::PrepareX509AuthorityRequest {}).await;
    let second = id(prepared.unwrap().into_inner().prepared_authority);
    let first = slots(case).await.active.id;
    let nobodys = AuthorityId::parse("00ff").unwrap();
    for wrong in [&first, &second, &nobodys] {
        let refused = authorities.taint_x509_authority(taint(wrong)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "taint {wrong}: {refused}");
        let refused = authorities.revoke_x509_authority(revoke(wrong)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "revoke {wrong}: {refused}");
    }

    let mut workload = Workload::open(case.spire);
    let before = workload.until("an SVID", |_| true).await;
    let activate = api::ActivateX509AuthorityRequest { authority_id: second.to_string() };
    authorities.activate_x509_authority(activate).await.unwrap();
    let refused = authorities.revoke_x509_authority(revoke(&first)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused}");
    assert!(refused.message().contains("untainted"), "{refused}");

    let tainted = authorities.taint_x509_authority(taint(&first)).await.unwrap().into_inner();
    assert_eq!(id(tainted.tainted_authority), first);
    let own = case.state().await.own.unwrap();
    assert!(
        own.authorities().any(|a| *a.id() == first && a.tainted),
        "published still, and tainted: {own:?}"
    );
    // What it signed is replaced though its time is not up.
    let after = workload.until("an SVID of the second", |u| u.signer() == second).await;
    assert_ne!(before.leaf(), after.leaf());
    let refused = authorities.taint_x509_authority(taint(&first)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused}");
    assert!(refused.message().contains("already tainted"), "{refused}");

    // An agent whose server still has an SVID of a revoked authority ends, and so does one that has one itself.
    let_go(case, &first).await;
    let revoked = authorities.revoke_x509_authority(revoke(&first)).await.unwrap().into_inner();
    assert_eq!(id(revoked.revoked_authority), first);
    assert!(!case.state().await.own.unwrap().authority_ids().contains(&first));
    // It stays in its slot, and cannot be revoked again.
    assert_eq!(slots(case).await.old.map(|old| old.id), Some(first.clone()));
    let refused = authorities.revoke_x509_authority(revoke(&first)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused}");
}

/// Waits until the server, and its agent where there is one, have no SVID of their own that this authority signed.
async fn let_go(case: &Case<'_, impl Spire>, tainted: &AuthorityId) {
    let own = case.state().await.own.unwrap();
    let others = own.authorities().filter(|a| a.id() != tainted).cloned();
    let request = FetchRequest {
        trust_domain: case.own().clone(),
        endpoint: case.spire.bundle_endpoint(),
        verify_with: Some(Arc::new(Bundle::new(case.own().clone(), others))),
    };
    let fetch = as_spire(WebRoots::default());
    let deadline = tokio::time::Instant::now() + case.spire.patience();
    loop {
        let server = fetch(request.clone()).await.map(drop);
        let agent = case.spire.agent_has_let_go(tainted);
        if server.is_ok() && agent {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "the server: {server:?}, its agent: {agent}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) async fn preparing_again_replaces_what_is_prepared(case: &Case<'_, impl Spire>) {
    let mut authorities = case.api.authorities();
    let mut prepare = async || {
        let prepared = authorities.prepare_x509_authority(api::PrepareX509AuthorityRequest {}).await;
        id(prepared.unwrap().into_inner().prepared_authority)
    };
    let (first, second) = (prepare().await, prepare().await);
    let slots = slots(case).await;
    assert_eq!(slots.prepared.map(|prepared| prepared.id), Some(second.clone()));
    let published = case.state().await.own.unwrap().authority_ids();
    assert!(published.contains(&first) && published.contains(&second), "{published:?}");
    let activate = |id: &AuthorityId| api::ActivateX509AuthorityRequest { authority_id: id.to_string() };
    let refused = case.api.authorities().activate_x509_authority(activate(&first)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

async fn slots(case: &Case<'_, impl Spire>) -> LocalAuthorities {
    case.server.read_authorities().await.unwrap().unwrap()
}

fn id(state: Option<api::AuthorityState>) -> AuthorityId {
    AuthorityId::parse(&state.unwrap().authority_id).unwrap()
}

//! Rotation of the X.509 authority.

use entente::model::AuthorityId;
use entente::proto::spire::server::localauthority::v1 as api;
use tonic::Code;

use super::{Case, Spire, Workload};

pub(crate) async fn an_authority_is_published_before_it_signs(case: &Case<'_, impl Spire>) {
    let mut authorities = case.api.authorities();
    let state = authorities.get_x509_authority_state(api::GetX509AuthorityStateRequest {}).await;
    let first = id(state.unwrap().into_inner().active);
    assert_eq!(case.state().await.active_authority.as_ref(), Some(&first));

    let prepared = authorities.prepare_x509_authority(api::PrepareX509AuthorityRequest {}).await;
    let second = id(prepared.unwrap().into_inner().prepared_authority);
    let state = case.state().await;
    let published = state.own.unwrap().authority_ids();
    assert!(published.contains(&first) && published.contains(&second), "{published:?}");
    assert_eq!(state.active_authority.as_ref(), Some(&first));

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
    assert_eq!(case.state().await.active_authority.as_ref(), Some(&second));
    // What is issued from now on is signed by the second.
    case.federate(&[&case.peer_domain()]).await;
    workload.until("an SVID of the new authority", |u| u.signer() == second).await;
    let published = case.state().await.own.unwrap().authority_ids();
    assert!(published.contains(&first), "the old authority stays in the bundle");
    // The old one is in the slot, and is no prepared one.
    let refused = authorities.activate_x509_authority(activate(first.as_str())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused}");
}

fn id(state: Option<api::AuthorityState>) -> AuthorityId {
    AuthorityId::parse(&state.unwrap().authority_id).unwrap()
}

//! `LocalAuthority`: the slots of the X.509 authority.

use tonic::{Code, Request, Response, Status};

use super::{Refusal, ServerApi};
use crate::devkit::authority::{Authority, AuthorityError};
use crate::model::AuthorityId;
use crate::proto::spire::server::localauthority::v1 as api;
use crate::proto::spire::server::localauthority::v1::local_authority_server::LocalAuthority;

/// The state of an authority. It is self-signed, so that it has no upstream one.
fn state(authority: &Authority, id: &AuthorityId) -> api::AuthorityState {
    api::AuthorityState {
        authority_id: id.to_string(),
        expires_at: authority.expiry(id).map_or(0, jiff::Timestamp::as_second),
        upstream_authority_subject_key_id: String::new(),
    }
}

#[tonic::async_trait]
impl LocalAuthority for ServerApi {
    async fn get_x509_authority_state(
        &self,
        _: Request<api::GetX509AuthorityStateRequest>,
    ) -> Result<Response<api::GetX509AuthorityStateResponse>, Status> {
        let held = self.shared.lock();
        let slots = held.authority.slots();
        Ok(Response::new(api::GetX509AuthorityStateResponse {
            active: Some(state(&held.authority, &slots.active)),
            prepared: slots.prepared.as_ref().map(|id| state(&held.authority, id)),
            old: slots.old.as_ref().map(|id| state(&held.authority, id)),
        }))
    }

    async fn prepare_x509_authority(
        &self,
        _: Request<api::PrepareX509AuthorityRequest>,
    ) -> Result<Response<api::PrepareX509AuthorityResponse>, Status> {
        let (takes, fails) = self.shared.change(|held, _| {
            held.preparations += 1;
            held.preparing
        });
        tokio::time::sleep(takes).await;
        if fails {
            return Err(Status::internal("failed to prepare X.509 authority: upstream authority is away"));
        }
        let prepared = self.shared.change(|held, now| {
            let id = held.authority.prepare(now)?;
            Ok::<_, AuthorityError>(state(&held.authority, &id))
        });
        let prepared = prepared
            .map_err(|cause| Refusal::because(Code::Internal, "failed to prepare X.509 authority", cause))?;
        Ok(Response::new(api::PrepareX509AuthorityResponse { prepared_authority: Some(prepared) }))
    }

    async fn activate_x509_authority(
        &self,
        request: Request<api::ActivateX509AuthorityRequest>,
    ) -> Result<Response<api::ActivateX509AuthorityResponse>, Status> {
        let id = request.into_inner().authority_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("no authority ID provided"));
        }
        let id = AuthorityId::parse(&id).map_err(|_| Status::invalid_argument("unexpected authority ID"))?;
        let activated = self.shared.change(|held, _| {
            held.authority.activate(&id)?;
            Ok(state(&held.authority, &id))
        });
        match activated {
            Ok(state) => {
                Ok(Response::new(api::ActivateX509AuthorityResponse { activated_authority: Some(state) }))
            }
            // Not FailedPrecondition, as its own description says.
            Err(error @ AuthorityError::NotPrepared) => Err(Status::internal(error.to_string())),
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        }
    }

    async fn taint_x509_authority(
        &self,
        request: Request<api::TaintX509AuthorityRequest>,
    ) -> Result<Response<api::TaintX509AuthorityResponse>, Status> {
        let id = request.into_inner().authority_id;
        let tainted = self.shared.change(|held, _| {
            let slots = held.authority.slots();
            let parsed = match AuthorityId::parse(&id) {
                _ if id.is_empty() => return Err(Status::invalid_argument("no authority ID provided")),
                Ok(parsed) if parsed == slots.active => {
                    return Err(Status::invalid_argument("unable to taint current local authority"));
                }
                Ok(parsed) if slots.prepared.as_ref() == Some(&parsed) => {
                    let words = "only Old local authorities can be tainted: unsupported local authority status: PREPARED";
                    return Err(Status::invalid_argument(words));
                }
                Ok(parsed) if slots.old.as_ref() == Some(&parsed) => parsed,
                _ => return Err(Status::invalid_argument("unexpected authority ID")),
            };
            held.authority
                .taint(&parsed)
                .map_err(|cause| Status::internal(format!("failed to taint X.509 authority: {cause}")))?;
            Ok(state(&held.authority, &parsed))
        })?;
        Ok(Response::new(api::TaintX509AuthorityResponse { tainted_authority: Some(tainted) }))
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<api::RevokeX509AuthorityRequest>,
    ) -> Result<Response<api::RevokeX509AuthorityResponse>, Status> {
        let id = request.into_inner().authority_id;
        self.shared.change(|held, _| {
            let slots = held.authority.slots();
            let invalid = |why: &str| Status::invalid_argument(format!("invalid authority ID: {why}"));
            let parsed = match AuthorityId::parse(&id) {
                _ if id.is_empty() => return Err(invalid("no authority ID provided")),
                Ok(parsed) if parsed == slots.active => {
                    return Err(invalid("unable to use current authority"));
                }
                Ok(parsed) if slots.old.as_ref() == Some(&parsed) => parsed,
                _ => return Err(invalid("only Old local authority can be revoked")),
            };
            held.authority
                .revoke(&parsed)
                .map_err(|cause| Status::internal(format!("failed to revoke X.509 authority: {cause}")))
        })?;
        // SPIRE names the authority and nothing else of it.
        let revoked = api::AuthorityState { authority_id: id, ..Default::default() };
        Ok(Response::new(api::RevokeX509AuthorityResponse { revoked_authority: Some(revoked) }))
    }
}

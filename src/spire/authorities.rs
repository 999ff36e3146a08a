//! The authorities of one SPIRE server: reading them, and rotating them.

use jiff::Timestamp;
use tonic::Code;

use super::client::{CALL_TIMEOUT, PREPARE_TIMEOUT};
use super::{SpireError, SpireServer};
use crate::model::AuthorityId;
use crate::model::trust::{LocalAuthorities, LocalAuthority};
use crate::proto::spire::server::localauthority::v1 as api;

impl SpireServer {
    /// The authorities in this server's slots. `None` where it does not tell: before 1.11, or denied by its policy.
    ///
    /// # Errors
    /// [`SpireError`] if the server did not answer, or its answer makes no sense.
    pub async fn read_authorities(&self) -> Result<Option<LocalAuthorities>, SpireError> {
        const CALL: &str = "GetX509AuthorityState";
        let request = api::GetX509AuthorityStateRequest {};
        let answer =
            self.call(CALL, CALL_TIMEOUT, self.authorities().get_x509_authority_state(request)).await;
        let state = match answer {
            Ok(state) => state,
            Err(e) if matches!(e.code(), Some(Code::Unimplemented | Code::PermissionDenied)) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let slot = |slot: Option<api::AuthorityState>| slot.map(|s| self.local(CALL, &s)).transpose();
        Ok(Some(LocalAuthorities {
            active: slot(state.active)?.ok_or_else(|| self.nonsense(CALL, "no active authority"))?,
            prepared: slot(state.prepared)?,
            old: slot(state.old)?,
        }))
    }

    /// Makes and publishes the next authority. One that is prepared already, or old, loses its slot to it.
    ///
    /// # Errors
    /// What SPIRE or the transport says.
    pub async fn prepare_authority(&self) -> Result<LocalAuthority, SpireError> {
        const CALL: &str = "PrepareX509Authority";
        let request = api::PrepareX509AuthorityRequest {};
        let answer =
            self.call(CALL, PREPARE_TIMEOUT, self.authorities().prepare_x509_authority(request)).await?;
        let prepared = answer.prepared_authority.ok_or_else(|| self.nonsense(CALL, "no authority"))?;
        self.local(CALL, &prepared)
    }

    /// Has this server sign with its prepared authority from now on.
    ///
    /// # Errors
    /// What SPIRE or the transport says: this one must be in the slot, and prepared.
    pub async fn activate_authority(&self, id: &AuthorityId) -> Result<(), SpireError> {
        let request = api::ActivateX509AuthorityRequest { authority_id: id.to_string() };
        let call = "ActivateX509Authority";
        self.call(call, CALL_TIMEOUT, self.authorities().activate_x509_authority(request)).await.map(drop)
    }

    /// Has every SVID that this server's old authority signed replaced.
    ///
    /// # Errors
    /// What SPIRE or the transport says: it must be the old one, not tainted yet, and of no upstream authority.
    pub async fn taint_authority(&self, id: &AuthorityId) -> Result<(), SpireError> {
        let request = api::TaintX509AuthorityRequest { authority_id: id.to_string() };
        let call = "TaintX509Authority";
        self.call(call, CALL_TIMEOUT, self.authorities().taint_x509_authority(request)).await.map(drop)
    }

    /// Takes this server's old authority out of the bundle.
    ///
    /// # Errors
    /// What SPIRE or the transport says: it must be the old one, tainted, and of no upstream authority.
    pub async fn revoke_authority(&self, id: &AuthorityId) -> Result<(), SpireError> {
        let request = api::RevokeX509AuthorityRequest { authority_id: id.to_string() };
        let call = "RevokeX509Authority";
        self.call(call, CALL_TIMEOUT, self.authorities().revoke_x509_authority(request)).await.map(drop)
    }

    fn local(&self, call: &'static str, state: &api::AuthorityState) -> Result<LocalAuthority, SpireError> {
        let id = |text: &str| {
            AuthorityId::parse(text).map_err(|e| self.nonsense(call, format!("authority {text:?}: {e}")))
        };
        let upstream = &state.upstream_authority_subject_key_id;
        let expiry = Timestamp::from_second(state.expires_at);
        Ok(LocalAuthority {
            id: id(&state.authority_id)?,
            expires_at: expiry.map_err(|_| self.nonsense(call, "an expiry out of range"))?,
            upstream: if upstream.is_empty() { None } else { Some(id(upstream)?) },
        })
    }
}

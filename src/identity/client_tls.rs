//! TLS with clients of our own trust domain: they present an SVID that our own bundle verifies, and see ours.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, ClientConfig, ServerConfig};

use super::peer_tls::{ALPN_HTTP2, PeerRefusal, dialling, judge_own, serving};
use super::source::IdentitySource;
use super::verify::Role;
use crate::model::SpiffeId;

/// For the listener: whoever has an SVID of our trust domain.
///
/// # Errors
/// Where the provider does not offer TLS 1.3.
pub fn server_config(source: &IdentitySource) -> Result<ServerConfig, rustls::Error> {
    let judging = source.clone();
    let check = Arc::new(move |chain: &[CertificateDer<'_>], _: Role, now: UnixTime| {
        judge(&judging, chain, now).map(|_| ()).map_err(Into::into)
    });
    serving(source, check, ALPN_HTTP2)
}

/// For a client: the agent with this ID alone, of our own trust domain.
///
/// # Errors
/// Where the provider does not offer TLS 1.3.
pub fn client_config(source: &IdentitySource, agent: SpiffeId) -> Result<ClientConfig, rustls::Error> {
    let judging = source.clone();
    let check = Arc::new(move |chain: &[CertificateDer<'_>], _: Role, now: UnixTime| {
        match judge_own(&judging, chain, Role::Server, now)? {
            id if id == agent => Ok(()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    });
    dialling(source, check, ALPN_HTTP2)
}

/// Who presents this chain, by our own bundle as it is now.
///
/// # Errors
/// [`PeerRefusal`]; a chain of another trust domain is one without a bundle.
pub fn judge(
    source: &IdentitySource,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<SpiffeId, PeerRefusal> {
    judge_own(source, chain, Role::Client, now)
}

//! What goes wrong with the SPIRE Server API, in words for an operator.

use std::time::Duration;

use tonic::Code;

use super::AddressError;

/// A failed call, or a failed item of a batch, of the SPIRE Server API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpireError {
    #[error(transparent)]
    Address(#[from] AddressError),
    /// No TLS configuration can be made.
    #[error("no TLS to a SPIRE server: {0}")]
    Tls(String),
    /// The call as a whole failed; the words are SPIRE's, or the transport's.
    #[error("SPIRE server {server}: {call} failed: {message} ({code:?}){}", hint(*.code))]
    Call { server: String, call: &'static str, code: Code, message: String },
    /// The call went through, SPIRE refused this item of it; the words are SPIRE's.
    #[error("SPIRE server {server}: {call} of {item}: {message} ({code:?})")]
    Item { server: String, call: &'static str, item: String, code: Code, message: String },
    #[error("SPIRE server {server}: {call} gave no answer within {} s", after.as_secs())]
    Timeout { server: String, call: &'static str, after: Duration },
    #[error(
        "SPIRE server {server}: {call} lists more than {limit} items, which is over our limit; nothing was read"
    )]
    TooMany { server: String, call: &'static str, limit: usize },
    /// The answer breaks the protocol.
    #[error("SPIRE server {server}: the answer to {call} makes no sense: {what}")]
    Answer { server: String, call: &'static str, what: String },
    /// We hold ourselves back: nothing here may touch our own trust domain.
    #[error("{call} names {trust_domain}, our own trust domain: it does not federate with itself")]
    OwnTrustDomain { call: &'static str, trust_domain: String },
}

impl From<rustls::Error> for SpireError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error.to_string())
    }
}

impl SpireError {
    /// The gRPC code, where SPIRE or the transport gave one.
    #[must_use]
    pub const fn code(&self) -> Option<Code> {
        match self {
            Self::Call { code, .. } | Self::Item { code, .. } => Some(*code),
            Self::Address(_)
            | Self::Tls(_)
            | Self::Timeout { .. }
            | Self::TooMany { .. }
            | Self::Answer { .. }
            | Self::OwnTrustDomain { .. } => None,
        }
    }
}

/// What to do about it, where the code alone says so.
const fn hint(code: Code) -> &'static str {
    match code {
        Code::PermissionDenied | Code::Unauthenticated => {
            "; over TCP the agent needs a registration entry with admin set, or its ID in the server's admin_ids"
        }
        Code::Unavailable => "; is the server running, and the address right?",
        _ => "",
    }
}

//! Why a request was not done, as its asker reads it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A refusal or a failure: `{"error": "..."}` with an HTTP status. The message names the object, the cause and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    pub message: String,
}

impl Problem {
    /// What was asked for cannot be, as it was asked.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    /// What was named is not there.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.into() }
    }

    /// It is refused as things stand.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self { status: StatusCode::CONFLICT, message: message.into() }
    }

    /// Another replica is to be asked: this one does not lead.
    #[must_use]
    pub fn elsewhere(message: impl Into<String>) -> Self {
        Self { status: StatusCode::MISDIRECTED_REQUEST, message: message.into() }
    }

    /// What it was asked for by is no longer so: look again before asking again.
    #[must_use]
    pub fn changed(message: impl Into<String>) -> Self {
        Self { status: StatusCode::PRECONDITION_FAILED, message: message.into() }
    }

    /// It is refused until someone does something about it.
    #[must_use]
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, message: message.into() }
    }

    /// It was tried, and failed elsewhere.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_GATEWAY, message: message.into() }
    }

    /// Something that is needed for it did not answer, or is not known yet.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, message: message.into() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}

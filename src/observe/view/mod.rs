//! A page that shows the federation to people: read only, made here, without scripts. Everything on it is escaped, since much
//! of it is a peer's words, and nothing on it is loaded from elsewhere.

mod authorities;
#[cfg(test)]
mod federations;
mod map;
mod page;
#[cfg(test)]
mod screenshots;
#[cfg(test)]
mod tests;
mod words;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

pub use page::Known;

/// Nothing but our own style sheet: no scripts, no frames, no forms, nothing of others.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
const STYLE: &str = include_str!("templates/style.css");

const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// The page; 503 while nothing is known.
pub(super) fn page(known: Option<Known<'_>>) -> Response {
    const HTML: (HeaderName, HeaderValue) =
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    const PLAIN: (HeaderName, HeaderValue) =
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let Some(known) = known else {
        let text = "the agent does not answer now; try again";
        return (StatusCode::SERVICE_UNAVAILABLE, HEADERS, [PLAIN], text).into_response();
    };
    match page::html(known) {
        Ok(html) => (HEADERS, [HTML], html).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, HEADERS, [PLAIN], error).into_response(),
    }
}

/// The style sheet.
pub(super) fn style() -> Response {
    const CSS: (HeaderName, HeaderValue) =
        (header::CONTENT_TYPE, HeaderValue::from_static("text/css; charset=utf-8"));
    (HEADERS, [CSS], STYLE).into_response()
}

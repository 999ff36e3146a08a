//! The admin listener: `/livez` (and `/healthz`), `/readyz`, `/metrics`, and the view at `/` where it is asked for.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::metrics::{Known, Lead, Metrics};
use super::seen::Seen;
use super::view;
use crate::store::{LeaseClock, Store};

/// What is told of.
#[derive(Debug)]
pub struct Watched {
    /// Whether peers can be served: by this replica, or by the one to which it passes them on.
    pub ready: watch::Receiver<bool>,
    pub leading: watch::Receiver<bool>,
    pub lease: LeaseClock,
    pub metrics: Arc<Metrics>,
    pub seen: Seen,
    /// Which knows what was told of objects.
    pub store: Store,
}

/// Binds and serves until `cancel`; answers with the bound address. `with_view`: the page for people, too.
///
/// # Errors
/// Where the address cannot be bound.
pub async fn serve(
    listen: SocketAddr,
    with_view: bool,
    watched: Watched,
    cancel: CancellationToken,
) -> std::io::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let mut router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text));
    if with_view {
        router = router.route("/", get(page)).route("/style.css", get(|| async { view::style() }));
    }
    let router = router.with_state(Arc::new(watched));
    let task = tokio::spawn(async move {
        let server = axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned());
        if let Err(error) = server.await {
            tracing::error!(%error, "the admin listener failed");
        }
    });
    Ok((address, task))
}

async fn readyz(State(watched): State<Arc<Watched>>) -> impl IntoResponse {
    if *watched.ready.borrow() {
        (StatusCode::OK, "ok")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting for the store, the Workload API, SPIRE's server API, or to know which replica leads",
        )
    }
}

async fn metrics_text(State(watched): State<Arc<Watched>>) -> impl IntoResponse {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    // What was counted is told even where what is known is not answered.
    let seen = watched.seen.now().await;
    let (leads, ready) = (*watched.leading.borrow(), *watched.ready.borrow());
    let known = seen.as_ref().map(|(world, plan)| Known { world, plan, leads });
    match watched.metrics.encode(Lead { leads, lease: watched.lease.left() }, ready, known) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, TEXT)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error),
    }
}

async fn page(State(watched): State<Arc<Watched>>) -> Response {
    let seen = watched.seen.now().await;
    let (leads, ready) = (*watched.leading.borrow(), *watched.ready.borrow());
    let events = watched.store.told_lately();
    let known = seen.as_ref().map(|(world, plan)| view::Known { world, plan, leads, ready, events: &events });
    view::page(known)
}

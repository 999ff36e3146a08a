//! The admin listener: `/livez` (and `/healthz`), `/readyz`, `/metrics`, and the view at `/` where it is asked for.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::metrics::{Known, Lead, Metrics};
use super::seen::Seen;
use super::view;
use crate::rate::Places;
use crate::store::{LeaseClock, Store};

/// What all who connect may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Served at a time; more are closed at once.
    connections: usize,
    /// Of one source, so that nobody can keep probes and monitoring out.
    of_one: usize,
    /// How long a request may be on its way.
    header: Duration,
    /// How long a connection may stand in all, whether its answer is read or not.
    whole: Duration,
}

const LIMITS: Limits =
    Limits { connections: 256, of_one: 32, header: Duration::from_secs(10), whole: Duration::from_secs(30) };
/// How long an answer that was begun may take once the agent is to end.
const LAST: Duration = Duration::from_secs(1);

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
    Ok((address, tokio::spawn(accept(listener, router, LIMITS, cancel))))
}

/// Serves whoever connects, one request each, until `cancel`.
async fn accept(listener: TcpListener, router: Router, limits: Limits, cancel: CancellationToken) {
    let mut connections = JoinSet::new();
    let places = Places::new(limits.connections, limits.of_one);
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, source)) => if let Some(place) = places.take(source.ip()) {
                    let served = connection(stream, router.clone(), limits, cancel.clone());
                    connections.spawn(async move {
                        served.await;
                        drop(place);
                    });
                },
                // Out of file descriptors: try again when some may be free.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, cancel: CancellationToken) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        // So that nobody holds a place without asking for something.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = timeout(limits.whole, served.as_mut()) => ended,
        () = cancel.cancelled() => {
            served.as_mut().graceful_shutdown();
            timeout(LAST, served).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the admin listener ended"),
        Err(_) => tracing::debug!("a connection to the admin listener took too long, and was ended"),
    }
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
    watched.metrics.follows(watched.store.followed());
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const REQUEST: &[u8] = b"GET /livez HTTP/1.1\r\nhost: agent\r\n\r\n";

    const SOON: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(60);

    async fn start(router: Router, limits: Limits) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, cancel) = (listener.local_addr().unwrap(), CancellationToken::new());
        let task = tokio::spawn(accept(listener, router, limits, cancel.clone()));
        (address, cancel, task)
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let read = timeout(LONG / 2, stream.read_to_end(&mut bytes)).await;
        // Whoever is let go may see the connection reset.
        let _ = read.expect("it is held open");
        String::from_utf8(bytes).unwrap()
    }

    async fn ask(address: SocketAddr, request: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn who_does_not_ask_is_let_go() {
        let limits = Limits { connections: 4, of_one: 4, header: SOON, whole: LONG };
        let router = Router::new().route("/livez", get(|| async { "ok" }));
        let (address, cancel, task) = start(router, limits).await;
        let mut idle = Vec::new();
        for _ in 0..4 {
            idle.push(ask(address, b"GET /livez HTTP/1.1\r\n").await);
        }
        for mut stream in idle {
            assert!(!answer(&mut stream).await.contains("200"));
        }
        cancel.cancel();
        timeout(LONG / 2, task).await.unwrap().unwrap();
    }

    /// Linux has the whole of 127.0.0.0/8.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn who_holds_many_connections_keeps_nobody_else_out() {
        let limits = Limits { connections: 5, of_one: 4, header: LONG, whole: LONG };
        let router = Router::new().route("/livez", get(|| async { "ok" }));
        let (address, cancel, task) = start(router, limits).await;
        let mut idle = Vec::new();
        for _ in 0..10 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let other = tokio::net::TcpSocket::new_v4().unwrap();
        other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut other = other.connect(address).await.unwrap();
        other.write_all(REQUEST).await.unwrap();
        let text = answer(&mut other).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("ok"), "{text}");
        drop(idle);
        cancel.cancel();
        timeout(LONG / 2, task).await.unwrap().unwrap();
    }

    /// One who is in a handler.
    struct Inside(Arc<AtomicUsize>);

    impl Drop for Inside {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn no_more_than_so_many_are_served_at_a_time_and_none_for_ever() {
        let limits = Limits { connections: 4, of_one: 10, header: LONG, whole: SOON };
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (of_now, of_most) = (Arc::clone(&now), Arc::clone(&most));
        let hangs = move || async move {
            of_most.fetch_max(of_now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _inside = Inside(of_now);
            std::future::pending::<()>().await;
        };
        let (address, cancel, task) = start(Router::new().route("/livez", get(hangs)), limits).await;
        let mut all = Vec::new();
        for _ in 0..10 {
            // Who is too many may be let go before it asks.
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(REQUEST).await;
            all.push(stream);
        }
        for mut stream in all {
            assert_eq!(answer(&mut stream).await, "");
        }
        assert!(most.load(Ordering::SeqCst) <= limits.connections, "{most:?}");
        cancel.cancel();
        timeout(LONG / 2, task).await.unwrap().unwrap();
        assert_eq!(now.load(Ordering::SeqCst), 0);
    }
}

//! The gRPC service. It reads requests by tonic, and writes answers itself (`wire`): tonic would write each of them out whole,
//! for each client again.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::Streaming;
use tonic::server::NamedService;
use tower::Service;

use super::allowance::{Allowances, Counted, Unread};
use super::caller::Caller;
use super::clients::Clients;
use super::session::Session;
use super::session::delta::Delta;
use super::session::sotw::Sotw;
use super::stream::Stream;
use super::views::Views;
use super::wire::{self, Progress};
use crate::bounded::BoundedDecoder;
use crate::observe::metrics::Metrics;

/// The most bytes of one request: 20,000 names with their versions.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// Answers of one stream that wait to be read.
const QUEUE: usize = 1;

const INCREMENTAL: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const STATE_OF_THE_WORLD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// Envoy's aggregated discovery service.
#[derive(Clone, Debug)]
pub(super) struct Discovery {
    pub(super) views: Views,
    pub(super) clients: Clients,
    pub(super) metrics: Arc<Metrics>,
    pub(super) allowances: Allowances,
    /// How long a client may leave what it is sent unread.
    pub(super) patience: Duration,
    pub(super) cancel: CancellationToken,
}

impl NamedService for Discovery {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<Request<Body>> for Discovery {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let opened = match request.uri().path() {
            _ if request.method() != Method::POST => Err(Status::unimplemented("gRPC is by POST")),
            INCREMENTAL => self.open::<Delta>(request),
            STATE_OF_THE_WORLD => self.open::<Sotw>(request),
            _ => Err(Status::unimplemented("this method of the service is not served")),
        };
        ready(Ok(opened.unwrap_or_else(Status::into_http)))
    }
}

impl Discovery {
    fn open<S: Session>(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        if request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
            return Err(Status::unimplemented("requests are not to be compressed"));
        }
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::internal("no caller"))?;
        let (answers, out) = mpsc::channel(QUEUE);
        let progress = Arc::new(Progress::default());
        let decoder = BoundedDecoder::<S::Request>::default();
        let unread = Unread::new(self.allowances.of(&caller.id));
        let requests = Counted { requests: request.into_body(), unread: unread.clone() };
        let stream = Stream::<S> {
            open: self.clients.open(&caller.id),
            names: self.allowances.of(&caller.id),
            client: caller.id,
            requests: Streaming::new_request(decoder, requests, None, Some(MOST_BYTES)),
            unread,
            answers,
            progress: Arc::clone(&progress),
            patience: self.patience,
            views: self.views.clone(),
            metrics: Arc::clone(&self.metrics),
            cancel: caller.end.child_token(),
            connection: caller.end,
        };
        let stopping = self.cancel.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stream.run() => {}
                () = stopping.cancelled() => {}
            }
        });
        let mut response = Response::new(Body::new(wire::Body::new(out, S::VARIANT, progress)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }
}

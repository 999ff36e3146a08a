//! Traces for OpenTelemetry, where `--otlp-endpoint` names a collector: each turn of reconciliation (`plan`, then `apply` with an
//! `operation` for each write), and the exchange with each peer (`peer.dial`, `peer.exchange` with a `peer.heard` for each word).
//!
//! The collector is reached by OTLP over gRPC without TLS, as one beside the agent is. Where no collector is named, nothing
//! is recorded.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::field::{Empty, display};
use tracing::{Span, Subscriber, info_span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

/// The target of every span here: what is traced is not logged, and what is logged is not traced.
pub const TARGET: &str = "entente::trace";
/// How long the collector may take for what it is given.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error(
        "--otlp-endpoint {0:?}: give http://HOST:PORT of a collector that takes OTLP over gRPC; run one beside the agent where \
         TLS is needed"
    )]
    Endpoint(String),
    #[error("--otlp-endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Sends what was traced. Shut down, it sends the rest.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Sends what has not been sent, for five seconds at most. Not to be called on a thread of the runtime.
    pub fn shutdown(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(%error, "not every trace was sent to the collector");
        }
    }
}

/// A layer that records the spans of [`TARGET`] for the collector at `endpoint`. Must be called in a runtime.
///
/// # Errors
/// Where `endpoint` is none.
pub fn layer<S>(endpoint: &str) -> Result<(impl Layer<S> + Send + Sync + use<S>, Exporter), TraceError>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    if !endpoint.starts_with("http://") {
        return Err(TraceError::Endpoint(endpoint.to_owned()));
    }
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(PATIENCE).build()?;
    let resource = Resource::builder()
        .with_service_name("entente")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("entente"))
        .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET));
    Ok((layer, Exporter(provider)))
}

/// A plan is made.
pub(crate) fn plan() -> Span {
    info_span!(target: TARGET, "plan")
}

/// A plan is made true.
pub(crate) fn apply() -> Span {
    info_span!(target: TARGET, "apply")
}

/// One step of that, as the log names it.
pub(crate) fn operation(operation: &dyn std::fmt::Display) -> Span {
    info_span!(
        target: TARGET,
        "operation",
        operation = %operation,
        otel.status_code = Empty,
        otel.status_description = Empty
    )
}

/// A peer is dialled.
pub(crate) fn dial(peer: &dyn std::fmt::Display) -> Span {
    info_span!(
        target: TARGET,
        "peer.dial",
        otel.kind = "client",
        peer = %peer,
        otel.status_code = Empty,
        otel.status_description = Empty
    )
}

/// The exchange with a peer on one stream.
pub(crate) fn exchange(peer: &dyn std::fmt::Display) -> Span {
    info_span!(target: TARGET, "peer.exchange", peer = %peer)
}

/// The peer said something new: its report, its catalogue or its answers.
pub(crate) fn heard() -> Span {
    info_span!(target: TARGET, "peer.heard")
}

/// Marks what a span stands for as failed.
pub(crate) fn failed(span: &Span, why: &dyn std::fmt::Display) {
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", display(why));
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
        TraceService, TraceServiceServer,
    };
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
    };
    use opentelemetry_proto::tonic::trace::v1::Span as Received;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// A collector that keeps what it is sent.
    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            self.0.lock().unwrap().push(request.into_inner());
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    impl Collector {
        async fn serve(&self) -> String {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server =
                tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            format!("http://{address}")
        }

        fn spans(&self) -> Vec<Received> {
            let all = self.0.lock().unwrap();
            let scopes = all.iter().flat_map(|request| &request.resource_spans).flat_map(|r| &r.scope_spans);
            scopes.flat_map(|scope| scope.spans.clone()).collect()
        }
    }

    fn attribute(span: &Received, name: &str) -> String {
        let found = span.attributes.iter().find(|attribute| attribute.key == name).unwrap();
        format!("{:?}", found.value)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_collector_gets_what_was_done_and_for_what() {
        let collector = Collector::default();
        let (layer, exporter) = layer(&collector.serve().await).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            plan().in_scope(|| tracing::info_span!("of another target").in_scope(|| {}));
            apply().in_scope(|| {
                let write = operation(&"write ServiceEntry shop/cart");
                failed(&write, &"it is refused");
            });
            exchange(&"west.example").in_scope(|| drop(heard()));
        });
        tokio::task::spawn_blocking(move || exporter.shutdown()).await.unwrap();
        let spans = collector.spans();
        let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
        let mut names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["apply", "operation", "peer.exchange", "peer.heard", "plan"]);
        let write = named("operation");
        assert_eq!(write.parent_span_id, named("apply").span_id);
        assert_eq!(write.trace_id, named("apply").trace_id);
        assert!(attribute(write, "operation").contains("write ServiceEntry shop/cart"));
        let status = write.status.clone().unwrap();
        assert_eq!((status.code, status.message.as_str()), (2, "it is refused"));
        assert_eq!(named("peer.heard").parent_span_id, named("peer.exchange").span_id);
        assert!(attribute(named("peer.exchange"), "peer").contains("west.example"));
        assert!(named("plan").parent_span_id.is_empty());
    }

    #[tokio::test]
    async fn an_endpoint_that_cannot_be_used_is_refused() {
        for endpoint in ["https://collector:4317", "collector:4317", ""] {
            let refused = layer::<tracing_subscriber::Registry>(endpoint).map(drop).unwrap_err().to_string();
            assert!(refused.contains("http://HOST:PORT"), "{refused}");
        }
    }
}

use std::pin::Pin;
use std::sync::Mutex;

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::Response;
use tonic::transport::Server;

use super::*;
use crate::identity::testing::Domain;
use crate::proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use crate::proto::workload::{X509BundlesRequest, X509BundlesResponse, X509svidResponse};

type Answers = mpsc::Receiver<Result<X509svidResponse, Status>>;

/// A Workload API that answers as it is told, call by call.
struct Scripted(Mutex<std::collections::VecDeque<Result<Answers, Status>>>);

type Answering<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Scripted {
    type FetchX509SVIDStream = Answering<X509svidResponse>;
    type FetchX509BundlesStream = Answering<X509BundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let header: Vec<_> = request.metadata().get_all("workload.spiffe.io").iter().collect();
        if header != ["true"] {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        let next = self.0.lock().unwrap().pop_front();
        let answers = next.unwrap_or_else(|| Err(Status::unavailable("nothing more")))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

async fn until(source: &IdentitySource, holds: impl Fn(&Identity) -> bool) -> Arc<Identity> {
    let mut identity = source.subscribe();
    let wait = identity.wait_for(|i| i.as_deref().is_some_and(&holds));
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time").unwrap().clone().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_is_reopened_and_the_last_identity_kept() {
    let (west, east) = (Domain::new("west.test"), Domain::new("east.test"));
    let (first, answers) = mpsc::channel(4);
    let (second, more_answers) = mpsc::channel(4);
    let calls = [
        Err(Status::permission_denied("no identity issued")),
        Err(Status::unavailable("attesting")),
        Ok(answers),
        Err(Status::unavailable("restarting")),
        Ok(more_answers),
    ];
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let service = SpiffeWorkloadApiServer::new(Scripted(Mutex::new(calls.into_iter().collect())));
    let server = tokio::spawn(Server::builder().add_service(service).serve_with_incoming(listener));

    let cancel = CancellationToken::new();
    let (source, task) = IdentitySource::spawn(WorkloadEndpoint::Unix(socket), None, cancel.clone());
    assert!(source.current().is_none());
    first.send(Ok(west.response(&[&east.bundle()]))).await.unwrap();
    let identity = until(&source, |_| true).await;
    assert_eq!(identity.federated.len(), 1);
    let key = Arc::clone(&source.current().unwrap().peer_facing);

    // full state: what is not there any more is gone
    first.send(Ok(west.response(&[]))).await.unwrap();
    until(&source, |i| i.federated.is_empty()).await;
    assert_ne!(source.current().unwrap().peer_facing.cert, key.cert, "the SVID was replaced with it");

    // a message that gives us nothing takes nothing from us
    let kept = source.current().unwrap();
    first.send(Ok(X509svidResponse::default())).await.unwrap();
    drop(first);
    second.send(Ok(west.response(&[&east.bundle()]))).await.unwrap();
    until(&source, |i| i.federated.len() == 1).await;
    assert_eq!(kept.identity.id, source.current().unwrap().identity.id);

    // who asks only now is told, though nothing changes any more
    let mut late = source.subscribe();
    tokio::time::timeout(Duration::from_secs(20), late.changed()).await.expect("told at once").unwrap();
    assert!(late.borrow_and_update().is_some());
    assert!(!late.has_changed().unwrap(), "told once");

    cancel.cancel();
    task.await.unwrap();
    assert!(source.current().is_some());
    server.abort();
}

#[test]
fn a_mistake_is_asked_again_rarely_and_all_else_with_growing_pauses() {
    assert_eq!(pause(1, Code::InvalidArgument, 0.0), MISTAKEN);
    assert_eq!(pause(0, Code::Unavailable, 1.0), BACKOFF_MIN);
    assert_eq!(pause(0, Code::PermissionDenied, 0.0), BACKOFF_MIN / 2);
    assert_eq!(pause(3, Code::Unavailable, 1.0), BACKOFF_MIN * 8);
    assert_eq!(pause(16, Code::Unavailable, 1.0), BACKOFF_MAX);
    assert_eq!(pause(40, Code::Unavailable, 1.0), BACKOFF_MAX);
}

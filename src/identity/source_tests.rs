use std::pin::Pin;
use std::sync::Mutex;

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
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

async fn fails(source: &IdentitySource, words: &str) -> WorkloadFailure {
    let mut failures = source.failures();
    let wait = failures.wait_for(|failure| failure.as_ref().is_some_and(|one| one.message.contains(words)));
    let told = tokio::time::timeout(Duration::from_secs(1_000), wait).await;
    told.unwrap_or_else(|_| panic!("{:?}", source.failures().borrow())).unwrap().clone().unwrap()
}

/// An answer is no success where it has nothing that peers may see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_our_svid_is_told_as_a_failure() {
    let west = Domain::new("west.test");
    let (told, answers) = mpsc::channel(4);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let service = SpiffeWorkloadApiServer::new(Scripted(Mutex::new([Ok(answers)].into())));
    let server = tokio::spawn(Server::builder().add_service(service).serve_with_incoming(listener));
    let (source, _task) =
        IdentitySource::spawn(WorkloadEndpoint::Unix(socket), None, CancellationToken::new());
    let good = west.response(&[]);
    told.send(Ok(good.clone())).await.unwrap();
    until(&source, |_| true).await;
    let admin = west.svid("spiffe://west.test/entente/admin", crate::identity::workload::ADMIN_HINT);
    let only_admin = X509svidResponse { svids: vec![admin], ..west.response(&[]) };
    told.send(Ok(only_admin)).await.unwrap();
    let failure = tokio::time::timeout(Duration::from_secs(20), fails(&source, "register the agent")).await;
    failure.expect("nobody is told");
    told.send(Ok(good)).await.unwrap();
    let mut failures = source.failures();
    let mended = tokio::time::timeout(Duration::from_secs(20), failures.wait_for(Option::is_none)).await;
    mended.expect("it is forgotten").unwrap();
    server.abort();
}

/// What hangs behind its socket is told, and asked again.
#[tokio::test(start_paused = true)]
async fn a_workload_api_that_takes_nobody_is_told_as_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let hung = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (source, _task) =
        IdentitySource::spawn(WorkloadEndpoint::Unix(socket), None, CancellationToken::new());
    let first = fails(&source, "").await;
    let since = tokio::time::Instant::now();
    // Its first one and its second.
    let mut failures = source.failures();
    hung.set_nonblocking(true).unwrap();
    while std::iter::from_fn(|| hung.accept().ok()).count() < 1 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(since.elapsed() < Duration::from_secs(300), "it is not asked again");
    }
    assert_eq!(failures.borrow_and_update().as_ref().map(|one| one.since), Some(first.since));
}

/// So is what answered once, and hangs since.
#[tokio::test(start_paused = true)]
async fn a_workload_api_that_hangs_later_is_told_as_a_failure() {
    let west = Domain::new("west.test");
    let (told, answers) = mpsc::channel(4);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (theirs, ours) = tokio::io::duplex(64 * 1024);
    let service = SpiffeWorkloadApiServer::new(Scripted(Mutex::new([Ok(answers)].into())));
    let incoming = tokio_stream::iter([Ok::<_, std::io::Error>(theirs)]).chain(tokio_stream::pending());
    let server = tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let (hang, hangs) = tokio::sync::oneshot::channel::<()>();
    let between = tokio::spawn(async move {
        let (mut there, mut ours) = (listener.accept().await.unwrap().0, ours);
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut there, &mut ours) => {}
            _ = hangs => std::future::pending().await,
        }
    });
    let (source, _task) =
        IdentitySource::spawn(WorkloadEndpoint::Unix(socket), None, CancellationToken::new());
    told.send(Ok(west.response(&[]))).await.unwrap();
    until(&source, |_| true).await;
    assert_eq!(*source.failures().borrow(), None);
    // While nothing changes it is quiet for hours, and well.
    tokio::time::sleep(Duration::from_secs(3 * 3_600)).await;
    assert_eq!(*source.failures().borrow(), None);
    hang.send(()).unwrap();
    fails(&source, "").await;
    assert!(source.current().is_some(), "the last identity is kept");
    between.abort();
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

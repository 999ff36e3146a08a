//! The agent's identity as it is now: follows the Workload API, keeps the last good one while that is gone.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status, Streaming};

use super::workload::{MAX_MESSAGE, Svids, WorkloadEndpoint, read};
use crate::model::own::{Identity, WorkloadFailure};
use crate::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::proto::workload::{X509svidRequest, X509svidResponse};

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// After an answer that says that we ask wrongly (Workload API, section 6.4: do not retry), or that we are answered
/// wrongly: only a change of configuration mends it.
const MISTAKEN: Duration = Duration::from_secs(60);
/// The most characters of its words that are kept.
const MAX_CAUSE: usize = 300;
const CONNECT: Duration = Duration::from_secs(5);
/// How long the first answer may take. It may be held back until we are registered (a SPIRE agent looks for a new pod for half a
/// minute), and whoever does that holds the next call back as well; who hangs is told, and asked anew.
const FIRST: Duration = Duration::from_secs(60);
/// How often it is asked whether it is still there, while nothing changes. Servers in Go with gRPC's own settings, such as SPIRE's
/// agent, end a connection that asks more often than every five minutes.
const KEEPALIVE: Duration = Duration::from_secs(6 * 60);
/// How long the answer to that may take.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(20);

/// A handle to the identity; clones see the same one.
#[derive(Clone, Debug)]
pub struct IdentitySource {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    svids: ArcSwapOption<Svids>,
    identity: watch::Sender<Option<Arc<Identity>>>,
    failure: watch::Sender<Option<WorkloadFailure>>,
}

impl IdentitySource {
    /// Follows the Workload API at `endpoint` until `cancel`. The task ends for no other reason.
    #[must_use]
    pub fn spawn(
        endpoint: WorkloadEndpoint,
        admin_hint: Option<String>,
        cancel: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let source = Self::empty();
        let follower = Follower { endpoint, admin_hint, source: source.clone() };
        let task = tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = follower.run() => {}
            }
        });
        (source, task)
    }

    pub(crate) fn empty() -> Self {
        let (identity, failure) = (watch::Sender::new(None), watch::Sender::new(None));
        Self { shared: Arc::new(Shared { svids: ArcSwapOption::empty(), identity, failure }) }
    }

    /// Who we are and whom we can verify, at each change; `None` until the Workload API first answered. What is known
    /// already counts as a change: who subscribes late waits for none to learn it.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Identity>>> {
        let mut identity = self.shared.identity.subscribe();
        identity.mark_changed();
        identity
    }

    /// Since when the Workload API gives us nothing, and why; `None` while it does.
    #[must_use]
    pub fn failures(&self) -> watch::Receiver<Option<WorkloadFailure>> {
        self.shared.failure.subscribe()
    }

    /// The keys and bundles of this moment; `None` until the Workload API first answered.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Svids>> {
        self.shared.svids.load_full()
    }

    /// Tells that the Workload API gave nothing; the moment is that of the first time.
    fn fail(&self, message: String) {
        self.shared.failure.send_if_modified(|failure| {
            let since = failure.as_ref().map_or_else(crate::clock::now, |failure| failure.since);
            let new = Some(WorkloadFailure { since, message });
            let changed = *failure != new;
            *failure = new;
            changed
        });
    }

    pub(crate) fn publish(&self, svids: Svids) {
        let identity = Arc::clone(&svids.identity);
        self.shared.svids.store(Some(Arc::new(svids)));
        self.shared.failure.send_if_modified(|failure| failure.take().is_some());
        self.shared.identity.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&*identity);
            if changed {
                tracing::info!(
                    id = %identity.id, not_after = %identity.not_after, federated = identity.federated.len(),
                    "identity from the Workload API"
                );
                for (name, cause) in &identity.malformed {
                    tracing::warn!(peer = %name, %cause, "a federated bundle from the Workload API does not parse");
                }
                *known = Some(identity);
            }
            changed
        });
    }
}

/// How long to wait before the next attempt, by what the last one met.
fn pause(failed: u32, code: Code, jitter: f64) -> Duration {
    if matches!(code, Code::InvalidArgument | Code::Unimplemented) {
        return MISTAKEN;
    }
    let ceiling = BACKOFF_MIN.saturating_mul(1_u32.checked_shl(failed).unwrap_or(u32::MAX)).min(BACKOFF_MAX);
    // half of it, and up to the other half at random: agents that lost one SPIRE agent do not return in step
    ceiling.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

struct Follower {
    endpoint: WorkloadEndpoint,
    admin_hint: Option<String>,
    source: IdentitySource,
}

impl Follower {
    async fn run(&self) {
        follow(&self.endpoint, |answer| {
            match answer.map(|response| read(response, self.admin_hint.as_deref())) {
                Ok(Ok(svids)) => {
                    self.source.publish(svids);
                    true
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "the last identity is kept");
                    self.source.fail(error.to_string().chars().take(MAX_CAUSE).collect());
                    false
                }
                Err(status) => {
                    let cause: String = status.message().chars().take(MAX_CAUSE).collect();
                    self.source.fail(format!("{:?}: {cause}", status.code()));
                    false
                }
            }
        })
        .await;
    }
}

/// Follows the Workload API for ever: `take` gets each message, or why there is none for now, and says whether it was of use.
pub(crate) async fn follow(
    endpoint: &WorkloadEndpoint,
    mut take: impl FnMut(Result<X509svidResponse, &Status>) -> bool,
) {
    let mut failed = 0;
    loop {
        let mut answered = false;
        let ended = async {
            let opened = async {
                let mut stream = open(endpoint).await?;
                let first = stream.message().await?;
                Ok::<_, Status>((stream, first))
            };
            let opened = tokio::time::timeout(FIRST, opened).await;
            let (mut stream, mut next) = opened.map_err(|_| silent())??;
            while let Some(response) = next {
                answered |= take(Ok(response));
                next = stream.message().await?;
            }
            Err::<(), _>(Status::unavailable("the stream ended"))
        };
        let Err(status) = ended.await else { continue };
        failed = if answered { 0 } else { failed + 1 };
        let wait = pause(failed.min(16), status.code(), rand::random());
        report(endpoint, &status, wait);
        take(Err(&status));
        tokio::time::sleep(wait).await;
    }
}

fn silent() -> Status {
    let cause = format!(
        "it says nothing for {} s: restart the SPIRE agent if it hangs, or register this process",
        FIRST.as_secs()
    );
    Status::deadline_exceeded(cause)
}

fn report(endpoint: &WorkloadEndpoint, status: &Status, wait: Duration) {
    let (code, cause) = (status.code(), status.message());
    if wait == MISTAKEN {
        tracing::error!(
            %endpoint, ?code, cause, retry_in = ?wait,
            "the Workload API does not understand us: is this socket a SPIFFE Workload API?"
        );
    } else {
        tracing::warn!(
            %endpoint, ?code, cause, retry_in = ?wait,
            "no answer of the Workload API; the last identity is kept. Is the SPIRE agent up and this process registered?"
        );
    }
}

/// Why the Workload API gave no identity when it was asked once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskError {
    /// It answers, and has nothing for us that we can use.
    Refused(String),
    Unreachable(String),
}

/// Asks the Workload API once, beside whoever follows it: who we are now. Takes up to 5 s.
///
/// # Errors
/// [`AskError`].
pub async fn ask_once(
    endpoint: &WorkloadEndpoint,
    admin_hint: Option<&str>,
) -> Result<Arc<Identity>, AskError> {
    let response = fetch_once(endpoint).await?;
    let svids = read(response, admin_hint).map_err(|error| AskError::Refused(error.to_string()))?;
    Ok(svids.identity)
}

/// Asks the Workload API once for all that it has for this process. Takes up to 5 s.
///
/// # Errors
/// [`AskError`].
pub async fn fetch_once(endpoint: &WorkloadEndpoint) -> Result<X509svidResponse, AskError> {
    let of_status = |status: Status| match status.code() {
        Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented => {
            AskError::Refused(status.message().to_owned())
        }
        _ => AskError::Unreachable(status.message().to_owned()),
    };
    let asked = async {
        let mut stream = open(endpoint).await?;
        stream.message().await
    };
    match tokio::time::timeout(CONNECT, asked).await {
        Ok(Ok(Some(response))) => Ok(response),
        Ok(Ok(None)) => Err(AskError::Unreachable("the stream ended".to_owned())),
        Ok(Err(status)) => Err(of_status(status)),
        Err(_) => Err(AskError::Unreachable(format!("no answer within {} s", CONNECT.as_secs()))),
    }
}

/// Opens the stream of our SVIDs.
async fn open(endpoint: &WorkloadEndpoint) -> Result<Streaming<X509svidResponse>, Status> {
    let channel = connect(endpoint).await?;
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    Ok(client.fetch_x509svid(request).await?.into_inner())
}

async fn connect(endpoint: &WorkloadEndpoint) -> Result<Channel, Status> {
    let unavailable = |e: &dyn std::fmt::Display| Status::unavailable(format!("cannot connect: {e}"));
    // the address is the socket's; gRPC wants an authority, which nobody looks at
    let builder = Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE)
        // The stream outlives the channel that it was opened by, and counts for nothing without it.
        .keep_alive_while_idle(true)
        .keep_alive_timeout(KEEPALIVE_ANSWER);
    let connected = match endpoint.clone() {
        WorkloadEndpoint::Unix(path) => {
            {
                // at hand already, so that the cause is told as it is
                let mut io = Some(UnixStream::connect(path).await.map_err(|e| unavailable(&e))?);
                builder.connect_with_connector(tower::service_fn(move |_: Uri| {
                    let io = io.take().map(TokioIo::new).ok_or_else(closed);
                    async move { io }
                }))
            }
            .await
        }
        WorkloadEndpoint::Tcp(address) => {
            {
                let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
                let io = connecting.map_err(|e| unavailable(&e))?.map_err(|e| unavailable(&e))?;
                let mut io = Some(io);
                builder.connect_with_connector(tower::service_fn(move |_: Uri| {
                    let io = io.take().map(TokioIo::new).ok_or_else(closed);
                    async move { io }
                }))
            }
            .await
        }
    };
    connected.map_err(|e| unavailable(&e))
}

fn closed() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the connection ended")
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;

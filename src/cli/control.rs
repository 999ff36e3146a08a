//! The client of a running agent's control API: over its socket where it runs beside us, else through its pod.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::exit::NotAsked;
use super::output::{noticed, tell_waiting};
use super::reach::{self, Remote, Stream};
use super::store::{ClusterFlags, WHICH};
use crate::config::CONTROL_SOCKET;

/// Beyond what any single request of the control API takes: long work is asked for in steps.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a replica may take to lead, and to read everything, as far as a command waits for that.
const SETTLING: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The most bytes of an answer.
const MOST: usize = 64 * 1024 * 1024;

/// The socket of an agent beside us.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct SocketFlag {
    /// The control socket of an agent beside us. Without it, `/run/entente/control.sock` where that is there; else the agent that
    /// leads in the cluster, through `kubectl exec` (it needs `get` on the agent's Lease and Pod, `get` and `create` on `pods/exec`).
    #[arg(long, env = "ENTENTE_CONTROL", value_name = "SOCKET", help_heading = WHICH)]
    pub(super) control: Option<PathBuf>,
}

impl SocketFlag {
    /// The socket that is named, else the one by default.
    pub(super) fn path(&self) -> &Path {
        self.control.as_deref().unwrap_or(Path::new(CONTROL_SOCKET))
    }

    /// A client; nothing is asked yet.
    pub(super) fn client(&self, cluster: &ClusterFlags) -> ControlClient {
        // A cluster that is named on the command line counts more than a socket of the environment; beside a flag it was refused.
        // In the agent's own pod there is no kubeconfig, and nobody else to be asked.
        let is_beside =
            !cluster.is_named() && (self.control.is_some() || self.path().exists() || !has_kubeconfig());
        let way = if is_beside { Way::Socket(self.path().to_owned()) } else { Way::Pod(cluster.clone()) };
        ControlClient::new(way, PATIENCE)
    }
}

/// Whether kubectl would find a kubeconfig, be it a good one.
fn has_kubeconfig() -> bool {
    let home = || std::env::home_dir().is_some_and(|home| home.join(".kube/config").exists());
    std::env::var_os("KUBECONFIG").is_some_and(|named| !named.is_empty()) || home()
}

/// Which agent is asked.
#[derive(Args, Clone, Debug)]
pub(super) struct ControlFlags {
    #[command(flatten)]
    socket: SocketFlag,

    #[command(flatten)]
    cluster: ClusterFlags,
}

impl ControlFlags {
    /// A client; nothing is asked yet.
    pub(super) fn client(&self) -> ControlClient {
        self.socket.client(&self.cluster)
    }
}

/// The agent answered, and did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refusal {
    /// The HTTP status.
    status: u16,
    /// Its own words.
    message: String,
}

impl Refusal {
    /// Whether it may do it later, asked in the same words: it is not so yet (409), it does not lead (421), or something did not
    /// answer (503).
    pub(super) const fn may_pass(&self) -> bool {
        matches!(self.status, 409 | 421 | 503)
    }

    /// Whether another replica is to be asked (421).
    pub(super) const fn is_misdirected(&self) -> bool {
        self.status == 421
    }

    /// Whether it was asked by what is no longer so (412).
    pub(super) const fn is_changed(&self) -> bool {
        self.status == 412
    }

    /// Whether it was tried, and failed elsewhere (502).
    pub(super) const fn is_failure(&self) -> bool {
        self.status == 502
    }
}

/// The agent took the request, and what came of it is not known.
#[derive(Debug, thiserror::Error)]
#[error("the agent {agent} {what}: it may still do what it was asked; see its log and `entente status`")]
pub(super) struct Unanswered {
    agent: String,
    what: &'static str,
}

/// No agent serves the socket.
pub(super) fn no_agent(socket: &Path, error: &std::io::Error) -> NotAsked {
    NotAsked(format!(
        "no agent answers at {} ({error}): run this beside a running agent, name its socket with --control, or its cluster \
         with --kubeconfig or --context",
        socket.display()
    ))
}

#[derive(Debug)]
enum Way {
    Socket(PathBuf),
    Pod(ClusterFlags),
}

/// Asks one agent, by one connection as long as that holds. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct ControlClient {
    way: Arc<Way>,
    patience: Duration,
    line: Arc<Mutex<Option<Line>>>,
}

/// Who says what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    AfterASecond,
    ByCaller,
}

/// A connection, and what is at the other end.
#[derive(Debug)]
struct Line {
    sender: SendRequest<Full<Bytes>>,
    remote: Option<Remote>,
    agent: String,
}

impl ControlClient {
    fn new(way: Way, patience: Duration) -> Self {
        Self { way: Arc::new(way), patience, line: Arc::default() }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`Refusal`] has the agent's own words; [`NotAsked`] and [`Unanswered`] tell whether it may have been asked.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(Method::GET, path, Vec::new(), Notice::AfterASecond).await
    }

    /// `GET path` of an agent that may be taking over or still reading: it is asked again for [`SETTLING`], and who waits at a
    /// terminal is told what for.
    ///
    /// # Errors
    /// As [`Self::get`]; the last refusal where that time was not enough.
    pub(super) async fn get_settled<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let until = Instant::now() + SETTLING;
        let mut said = String::new();
        loop {
            let error = match self.get(path).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let may_pass = error.downcast_ref::<Refusal>().is_some_and(Refusal::may_pass);
            if !may_pass || Instant::now() >= until {
                return Err(error);
            }
            let words = format!("waiting: {error:#}");
            if words != said {
                tell_waiting(&words);
                said = words;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// `POST path` with a body.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body).context("the request cannot be written")?;
        self.send(Method::POST, path, body, Notice::AfterASecond).await
    }

    /// As [`Self::post`], for who says what is waited for in words of its own.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) async fn post_quietly<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body).context("the request cannot be written")?;
        self.send(Method::POST, path, body, Notice::ByCaller).await
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(Method::DELETE, path, Vec::new(), Notice::AfterASecond).await
    }

    /// Where the agent is that was asked last, where that was through its pod.
    pub(super) async fn pod(&self) -> Option<String> {
        self.line.lock().await.as_ref()?.remote.as_ref().map(|remote| remote.pod.clone())
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        notice: Notice,
    ) -> anyhow::Result<T> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "agent")
            .header("content-type", "application/json")
            .body(Full::from(body))
            .context("the request cannot be written")?;
        let mut place = self.line.lock().await;
        // Taken out: where this is dropped half way, nobody reads the answer to another's question.
        let kept = place.take().filter(|line| line.sender.is_ready());
        let (line, status, text) = match kept {
            // One that the agent closes at this moment: nothing of the request has left.
            Some(line) => match self.ask(line, request.clone(), notice).await {
                Err(error) if error.is::<NotAsked>() => {
                    self.ask(self.connect().await?, request, notice).await?
                }
                asked => asked?,
            },
            None => self.ask(self.connect().await?, request, notice).await?,
        };
        let agent = line.agent.clone();
        let refusal = (!status.is_success()).then(|| {
            let text = String::from_utf8_lossy(&text);
            let error: Option<Value> = serde_json::from_str(&text).ok();
            let error = error.as_ref().and_then(|e| e.get("error")).and_then(Value::as_str);
            let message = error.unwrap_or(text.trim()).to_owned();
            Refusal { status: status.as_u16(), message }
        });
        // The next question is for whoever leads by then.
        if !refusal.as_ref().is_some_and(Refusal::is_misdirected) {
            *place = Some(line);
        }
        if let Some(refusal) = refusal {
            return Err(refusal.into());
        }
        serde_json::from_slice(&text).with_context(|| format!("the agent {agent} is of another version"))
    }

    async fn ask(
        &self,
        mut line: Line,
        request: Request<Full<Bytes>>,
        notice: Notice,
    ) -> anyhow::Result<(Line, StatusCode, Bytes)> {
        let agent = line.agent.clone();
        let asking = async {
            let (head, body) = line.sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, MOST).collect().await.map_err(anyhow::Error::from_boxed)?;
            Ok::<_, anyhow::Error>((head.status, body.to_bytes()))
        };
        let asking = tokio::time::timeout(self.patience, asking);
        let answer = match notice {
            Notice::AfterASecond => noticed(|| format!("waiting for the agent {agent}"), asking).await,
            Notice::ByCaller => asking.await,
        };
        match answer {
            Ok(Ok((status, body))) => Ok((line, status, body)),
            Ok(Err(error)) => Err(broken(line, &error).await),
            Err(_) => Err(Unanswered { agent: line.agent, what: "has not answered in time" }.into()),
        }
    }

    async fn connect(&self) -> anyhow::Result<Line> {
        let (stream, remote): (Box<dyn Stream>, _) = match &*self.way {
            Way::Socket(path) => {
                let connected = UnixStream::connect(path).await;
                (Box::new(connected.map_err(|error| no_agent(path, &error))?), None)
            }
            Way::Pod(cluster) => {
                let what = || format!("reaching the agent in namespace {}", cluster.namespace);
                let (stream, remote) = noticed(what, reach::dial(cluster)).await?;
                (stream, Some(remote))
            }
        };
        let agent = match (&*self.way, &remote) {
            (_, Some(remote)) => format!("in pod {}", remote.pod),
            (Way::Socket(path), None) => format!("at {}", path.display()),
            (Way::Pod(cluster), None) => format!("in namespace {}", cluster.namespace),
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the stream, and each request tells what came of it.
        tokio::spawn(connection);
        Ok(Line { sender, remote, agent })
    }
}

/// What to say of a line that broke: the program in the pod knows whether the agent heard anything.
async fn broken(line: Line, error: &anyhow::Error) -> anyhow::Error {
    let is_unsent = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
    if let Some(remote) = line.remote
        && let Some(not_asked) = remote.last_words().await
    {
        return not_asked.into();
    }
    if is_unsent {
        return NotAsked(format!("the agent {} hung up before it was asked; run this again", line.agent))
            .into();
    }
    Unanswered { agent: line.agent, what: "broke off" }.into()
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use super::*;
    use crate::cli::exit;

    #[test]
    fn a_cluster_on_the_command_line_counts_more_than_a_socket_of_the_environment() {
        let socket = SocketFlag { control: Some("/s".into()) };
        let way = |context: Option<&str>| {
            let cluster = ClusterFlags {
                kubeconfig: None,
                context: context.map(str::to_owned),
                namespace: "entente-system".to_owned(),
                instance: "entente".to_owned(),
            };
            socket.client(&cluster).way
        };
        assert!(
            matches!(&*way(Some("east")), Way::Pod(cluster) if cluster.context.as_deref() == Some("east"))
        );
        assert!(matches!(&*way(None), Way::Socket(_)));
    }

    #[tokio::test]
    async fn an_agent_that_is_not_there_is_told_from_one_that_does_not_answer() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let ask = async || {
            let client = ControlClient::new(Way::Socket(socket.clone()), Duration::from_millis(200));
            client.get::<Value>("/v1/about").await.unwrap_err()
        };
        let nobody = ask().await;
        assert!(nobody.to_string().contains("no agent answers") && nobody.is::<NotAsked>(), "{nobody:#}");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let silent = ask().await;
        assert!(silent.is::<Unanswered>() && silent.to_string().contains("in time"), "{silent:#}");
        let hang_up = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 16]).await;
            }
        };
        let broken = tokio::select! { error = ask() => error, () = hang_up => unreachable!() };
        assert!(broken.is::<Unanswered>() && broken.to_string().contains("broke off"), "{broken:#}");
    }

    /// One connection serves every question; one that the agent has closed is made anew; and a question that was given up
    /// half way leaves no answer behind for the next one.
    #[tokio::test]
    async fn a_connection_is_kept_as_long_as_it_is_good() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let service = hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
                    if request.uri().path() == "/slow" {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                    let body = Value::from(request.uri().path()).to_string();
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::from(body)))
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        let client = ControlClient::new(Way::Socket(socket), Duration::from_secs(5));
        for path in ["/a", "/b"] {
            assert_eq!(client.get::<String>(path).await.unwrap(), path);
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1);
        let given_up = tokio::time::timeout(Duration::from_millis(50), client.get::<String>("/slow")).await;
        assert!(given_up.is_err());
        assert_eq!(client.get::<String>("/c").await.unwrap(), "/c");
        assert_eq!(connections.load(Ordering::SeqCst), 2);
    }

    /// One that leads a moment later is waited for; what stays as it is, or may not be done at all, is said.
    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_taking_over_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            // Each connection is to another replica; the fourth leads.
            for replica in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (status, body) = match request.uri().path() {
                        "/soon" if replica > 2 => (200, r#""it leads""#),
                        "/never" => (404, r#"{"error": "there is none"}"#),
                        _ => (421, r#"{"error": "it does not lead"}"#),
                    };
                    let answer = http::Response::builder().status(status).body(Full::<Bytes>::from(body));
                    std::future::ready(answer)
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        let client = ControlClient::new(Way::Socket(socket), Duration::from_secs(60));
        assert_eq!(client.get_settled::<String>("/soon").await.unwrap(), "it leads");
        let began = Instant::now();
        let never = client.get_settled::<String>("/never").await.unwrap_err();
        assert!(never.to_string() == "there is none" && began.elapsed() < ASK_AGAIN, "{never:#}");
        let stays = client.get_settled::<String>("/other").await.unwrap_err();
        assert!(stays.to_string() == "it does not lead" && began.elapsed() >= SETTLING, "{stays:#}");
        assert_eq!(exit::of_error(&stays), ExitCode::from(exit::NOT_ASKED));
        assert_eq!(exit::of_error(&never), ExitCode::from(exit::NOT_WELL));
    }
}

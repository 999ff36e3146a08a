//! A lean client: it subscribes to all clusters, counts the bytes that come, keeps of an answer no more than its nonce and version,
//! and takes it.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use anyhow::{Result, bail, ensure};
use entente::proto::xds::discovery::{DeltaDiscoveryRequest, DiscoveryRequest, Node};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// What is read ahead, of a stream and of a connection.
const WINDOW: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Incremental,
    StateOfTheWorld,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Incremental { "incremental" } else { "state of the world" })
    }
}

pub struct Client {
    bytes: Arc<AtomicU64>,
    /// How many times it has been brought up to date; it begins with all clusters.
    updates: watch::Receiver<usize>,
    /// Reads until it is dropped.
    reading: AbortOnDrop,
}

impl Client {
    /// Connects, and returns once it has all clusters.
    pub async fn come(socket: &Path, number: usize, variant: Variant, clusters: usize) -> Result<Self> {
        let bytes = Arc::new(AtomicU64::new(0));
        let stream = Counted { stream: UnixStream::connect(socket).await?, bytes: Arc::clone(&bytes) };
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (requests, out) = mpsc::channel::<Bytes>(4);
        let body =
            StreamBody::new(ReceiverStream::new(out).map(|bytes| Ok::<_, io::Error>(Frame::data(bytes))));
        let method = match variant {
            Variant::Incremental => "DeltaAggregatedResources",
            Variant::StateOfTheWorld => "StreamAggregatedResources",
        };
        let request = hyper::Request::post(format!(
            "http://server/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}"
        ))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)?;
        requests.send(asking(variant, number)).await?;
        let (updated, mut updates) = watch::channel(0);
        let response = sender.send_request(request).await?;
        ensure!(response.status() == 200, "{response:?}");
        let reader = Reader { variant, clusters, requests, updated, seen: 0, answer: Answer::default() };
        let reading = tokio::spawn(async move {
            // The connection lives as long as somebody may send by it.
            let _sender = sender;
            if let Err(error) = reader.read(response.into_body()).await {
                eprintln!("client {number}: {error:#}");
            }
        });
        if updates.wait_for(|updates| *updates > 0).await.is_err() {
            reading.await?;
            bail!("client {number} has not got all clusters");
        }
        Ok(Self { bytes, updates, reading: AbortOnDrop(reading) })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns once it has had so many changes.
    pub async fn has(&mut self, changes: usize) -> Result<()> {
        self.updates.wait_for(|updates| *updates > changes).await?;
        Ok(())
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn message(message: &impl prost::Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(body.len()).expect("a small request").to_be_bytes());
    bytes.extend(body);
    bytes.into()
}

fn asking(variant: Variant, number: usize) -> Bytes {
    let node = Some(Node {
        id: format!("node-{number}"),
        user_agent_name: "envoy".to_owned(),
        ..Default::default()
    });
    let type_url = CLUSTER.to_owned();
    match variant {
        Variant::Incremental => message(&DeltaDiscoveryRequest { node, type_url, ..Default::default() }),
        Variant::StateOfTheWorld => message(&DiscoveryRequest { node, type_url, ..Default::default() }),
    }
}

/// What is kept of an answer.
#[derive(Default)]
struct Answer {
    resources: usize,
    version: String,
    nonce: String,
}

struct Reader {
    variant: Variant,
    clusters: usize,
    requests: mpsc::Sender<Bytes>,
    updated: watch::Sender<usize>,
    /// Clusters that came with the first answers.
    seen: usize,
    answer: Answer,
}

impl Reader {
    async fn read(mut self, mut body: hyper::body::Incoming) -> Result<()> {
        let mut scanner = Scanner::default();
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            if let Some(trailers) = frame.trailers_ref() {
                bail!("it was ended: {trailers:?}");
            }
            let Ok(data) = frame.into_data() else { continue };
            let mut data: &[u8] = &data;
            while !data.is_empty() {
                let taken = scanner.take(data, &mut self.answer);
                data = &data[taken..];
                if scanner.is_whole() {
                    let answer = std::mem::take(&mut self.answer);
                    self.whole(answer).await?;
                }
            }
        }
        bail!("the stream ended")
    }

    async fn whole(&mut self, answer: Answer) -> Result<()> {
        self.seen += answer.resources;
        let type_url = CLUSTER.to_owned();
        let taken = match self.variant {
            Variant::Incremental => message(&DeltaDiscoveryRequest {
                type_url,
                response_nonce: answer.nonce,
                ..Default::default()
            }),
            Variant::StateOfTheWorld => message(&DiscoveryRequest {
                type_url,
                version_info: answer.version,
                response_nonce: answer.nonce,
                ..Default::default()
            }),
        };
        self.requests.send(taken).await?;
        if self.seen >= self.clusters {
            self.updated.send_modify(|updates| *updates += 1);
        }
        Ok(())
    }
}

/// Reads gRPC messages field by field, and passes over what is not wanted.
#[derive(Default)]
struct Scanner {
    /// Of the current message; nothing before its prefix is whole.
    left: Option<usize>,
    /// Of a field that is passed over.
    skip: usize,
    /// Bytes of a prefix, or of a field that is not whole yet.
    part: Vec<u8>,
}

impl Scanner {
    fn is_whole(&mut self) -> bool {
        let is_whole = self.left == Some(0);
        if is_whole {
            self.left = None;
        }
        is_whole
    }

    /// Takes some of it; how much.
    fn take(&mut self, data: &[u8], answer: &mut Answer) -> usize {
        let Some(left) = self.left else {
            self.part.push(data[0]);
            if let [_, a, b, c, d] = *self.part.as_slice() {
                self.left = Some(u32::from_be_bytes([a, b, c, d]) as usize);
                self.part.clear();
            }
            return 1;
        };
        if self.skip > 0 {
            let taken = self.skip.min(data.len());
            self.skip -= taken;
            self.left = Some(left - taken);
            return taken;
        }
        self.part.push(data[0]);
        self.left = Some(left - 1);
        self.field(answer);
        1
    }

    /// Takes the field that has begun, as far as it is there.
    fn field(&mut self, answer: &mut Answer) {
        let Some((&key, rest)) = self.part.split_first() else { return };
        let mut length = 0usize;
        let mut at = 0;
        loop {
            let Some(byte) = rest.get(at) else { return };
            length |= usize::from(byte & 0x7f) << (7 * at);
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        assert_eq!(key & 7, 2, "every field of an answer has a length");
        let value = &rest[at..];
        match key >> 3 {
            1 | 5 if value.len() < length => return,
            1 => answer.version = String::from_utf8_lossy(value).into_owned(),
            5 => answer.nonce = String::from_utf8_lossy(value).into_owned(),
            2 => {
                answer.resources += 1;
                self.skip = length;
            }
            _ => self.skip = length,
        }
        self.part.clear();
    }
}

/// Counts what is read.
struct Counted {
    stream: UnixStream,
    bytes: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.bytes.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

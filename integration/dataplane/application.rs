//! Plain applications: servers without TLS, and their clients.

use anyhow::{Context, Result, ensure};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// How a server says which one it is.
const NAME: &str = "server-name";

/// What an application speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Echoes bytes.
    Tcp,
    Http,
    /// HTTP/2 without TLS, with gRPC's framing and trailers.
    Grpc,
}

impl Speaks {
    pub(crate) const fn protocol(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// A server. Ended when dropped, with every connection to it.
#[derive(Debug)]
pub(crate) struct Application {
    pub(crate) port: u16,
    task: JoinHandle<()>,
}

impl Drop for Application {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Application {
    /// On a port of 127.0.0.1.
    pub(crate) async fn start(speaks: Speaks) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, speaks).await
    }

    /// At another address of this machine.
    pub(crate) async fn start_at(address: Ipv4Addr, speaks: Speaks) -> Result<Self> {
        Self::named("", speaks, address).await
    }

    /// One that says its name to who asks by HTTP.
    pub(crate) async fn named(name: &str, speaks: Speaks, at: Ipv4Addr) -> Result<Self> {
        let listener = TcpListener::bind((at, 0)).await?;
        let port = listener.local_addr()?.port();
        Ok(Self { port, task: tokio::spawn(serve(listener, speaks, name.into())) })
    }
}

async fn serve(listener: TcpListener, speaks: Speaks, name: Arc<str>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let name = Arc::clone(&name);
        connections.spawn(async move {
            if speaks == Speaks::Tcp {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            } else {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let answer = service_fn(|request| answer(request, Arc::clone(&name)));
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

type Body = BoxBody<Bytes, Infallible>;

/// Says by which version of HTTP it was asked, and for which host; to a call of gRPC as a message of its own.
async fn answer(
    request: Request<hyper::body::Incoming>,
    name: Arc<str>,
) -> Result<Response<Body>, hyper::http::Error> {
    let headers = request.headers();
    let host = headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
    let host = host.or_else(|| request.uri().authority().map(ToString::to_string)).unwrap_or_default();
    let text = format!("{:?} {host}", request.version());
    let mut response = Response::builder().header(NAME, &*name);
    if request.version() == Version::HTTP_11 {
        // So that every request has a connection of its own all the way, and none is lost with one that is kept.
        response = response.header("connection", "close");
    }
    if headers.get(CONTENT_TYPE) != Some(&GRPC) {
        return response.body(Full::from(text).boxed());
    }
    // Without this a proxy on the way may have dropped trailers (gRPC over HTTP/2).
    let has_trailers = headers.get(TE).is_some_and(|te| te == "trailers");
    let status = HeaderValue::from_static(if has_trailers { "0" } else { "13" });
    let trailers = HeaderMap::from_iter([(hyper::header::HeaderName::from_static("grpc-status"), status)]);
    let frames = [Frame::data(message(text.as_bytes())), Frame::trailers(trailers)].map(Ok);
    response.header(CONTENT_TYPE, GRPC).body(StreamBody::new(tokio_stream::iter(frames)).boxed())
}

/// A message as gRPC frames it: not compressed, its length, itself.
fn message(text: &[u8]) -> Bytes {
    let length = u32::try_from(text.len()).unwrap_or_default().to_be_bytes();
    [&[0], length.as_slice(), text].concat().into()
}

/// Calls a server as a plain client does, by the address of a name; an error where it is not answered.
pub(crate) async fn call(speaks: Speaks, at: SocketAddr, host: &str) -> Result<()> {
    let called = async {
        let stream = TcpStream::connect(at).await?;
        match speaks {
            Speaks::Tcp => Held(stream).say().await,
            Speaks::Http => ask(stream, host, Version::HTTP_11).await,
            Speaks::Grpc => ask(stream, host, Version::HTTP_2).await,
        }
    };
    tokio::time::timeout(CALL, called).await.with_context(|| format!("{host} at {at} does not answer"))?
}

/// The name of the server that answers by HTTP/1.1.
pub(crate) async fn who(at: SocketAddr, host: &str) -> Result<String> {
    let asked = async {
        let answer = http1(TcpStream::connect(at).await?, host).await?;
        let name = answer.headers().get(NAME).cloned();
        text(answer).await?;
        Ok(name.context("it does not say its name")?.to_str()?.to_owned())
    };
    tokio::time::timeout(CALL, asked).await.with_context(|| format!("{host} at {at} does not answer"))?
}

async fn ask(stream: TcpStream, host: &str, version: Version) -> Result<()> {
    let answer = if version == Version::HTTP_2 {
        grpc(stream, host).await?
    } else {
        text(http1(stream, host).await?).await?
    };
    let expected = format!("{version:?} {host}");
    ensure!(answer == expected, "it says {answer:?}");
    Ok(())
}

async fn http1(stream: TcpStream, host: &str) -> Result<Response<hyper::body::Incoming>> {
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer, which is taken whole.
    tokio::spawn(connection);
    let request = Request::get("/").header("host", host).header("connection", "close");
    Ok(send.send_request(request.body(Full::<Bytes>::default())?).await?)
}

/// A unary call: the message that came back, if the trailers say that all went well.
async fn grpc(stream: TcpStream, host: &str) -> Result<String> {
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let request = Request::post(format!("http://{host}/echo.Echo/Say"))
        .header(CONTENT_TYPE, GRPC)
        .header(TE, "trailers")
        .body(Full::<Bytes>::from(message(b"hello")))?;
    let answer = async {
        let answer = send.send_request(request).await?;
        let head = format!("{} {:?}", answer.status(), answer.headers());
        let whole = answer.into_body().collect().await?;
        let status = whole.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        ensure!(
            status.as_ref().is_some_and(|status| status == "0"),
            "{head}, trailers {:?}",
            whole.trailers()
        );
        let body = whole.to_bytes();
        let text = String::from_utf8_lossy(body.get(5..).unwrap_or_default()).into_owned();
        ensure!(body == message(text.as_bytes()), "no message: {body:?}");
        anyhow::Ok(text)
    };
    let answer = answer.await;
    driving.abort();
    answer
}

async fn text(answer: Response<hyper::body::Incoming>) -> Result<String> {
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    ensure!(status.is_success(), "{status}: {text}");
    Ok(text)
}

/// A TCP connection that stays.
#[derive(Debug)]
pub(crate) struct Held(TcpStream);

impl Held {
    pub(crate) async fn open(at: SocketAddr) -> Result<Self> {
        let mut held = Self(TcpStream::connect(at).await?);
        held.say().await?;
        Ok(held)
    }

    /// Says something and hears it again.
    pub(crate) async fn say(&mut self) -> Result<()> {
        const WORDS: &[u8] = b"hello";
        let heard = async {
            self.0.write_all(WORDS).await?;
            let mut heard = [0; WORDS.len()];
            self.0.read_exact(&mut heard).await?;
            ensure!(heard == WORDS, "the echo says {heard:?}");
            Ok(())
        };
        tokio::time::timeout(CALL, heard).await.context("no echo")?
    }
}

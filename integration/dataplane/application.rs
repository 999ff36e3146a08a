//! Plain applications: servers without TLS, and their clients.

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);

/// What an application speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Echoes bytes.
    Tcp,
    Http,
    /// HTTP/2 without TLS, as gRPC.
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

/// A server on a port of 127.0.0.1. Ended when dropped.
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
    pub(crate) async fn start(speaks: Speaks) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, speaks).await
    }

    /// At another address of this machine.
    pub(crate) async fn start_at(address: Ipv4Addr, speaks: Speaks) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let port = listener.local_addr()?.port();
        Ok(Self { port, task: tokio::spawn(serve(listener, speaks)) })
    }
}

async fn serve(listener: TcpListener, speaks: Speaks) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            if speaks == Speaks::Tcp {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            } else {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Says by which version of HTTP it was asked, and for which host.
async fn answer(request: Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let host = request.headers().get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
    let host = host.or_else(|| request.uri().authority().map(ToString::to_string)).unwrap_or_default();
    Ok(Response::new(Full::from(format!("{:?} {host}", request.version()))))
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

async fn ask(stream: TcpStream, host: &str, version: Version) -> Result<()> {
    let uri = format!("http://{host}/");
    let answer = if version == Version::HTTP_2 {
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let driving = tokio::spawn(connection);
        let answer = send.send_request(Request::get(uri).body(Full::<Bytes>::default())?).await?;
        let text = text(answer).await;
        driving.abort();
        text?
    } else {
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driving = tokio::spawn(connection);
        let request = Request::get("/").header("host", host).body(Full::<Bytes>::default())?;
        let answer = send.send_request(request).await?;
        let text = text(answer).await;
        driving.abort();
        text?
    };
    let expected = format!("{version:?} {host}");
    ensure!(answer == expected, "it says {answer:?}");
    Ok(())
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

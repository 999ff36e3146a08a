//! Dialling a peer's agent, and reading out of a failure what it says about trust.
//!
//! In TLS 1.3 the dialler's handshake succeeds before the server has judged its certificate, and HTTP/2 keeps no more of
//! an alert than that the connection broke. So one byte of what the server says first (its HTTP/2 settings) is read here,
//! where an alert still shows as one, and handed on with the rest of the stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};
use tracing::Instrument as _;

use super::convert::printable;
use super::manager::{KEEPALIVE, MAX_FRAME, QUEUE, Timings};
use crate::identity::peer_tls::{Authorize, PeerRefusal, Verdict, client_config};
use crate::identity::source::IdentitySource;
use crate::identity::verify::moment;
use crate::model::session::{LinkState, Refusal};
use crate::model::{SpiffeId, TrustDomain};
use crate::observe::metrics::stream_state;
use crate::observe::traces;
use crate::proto::federation::v1::Frame;
use crate::proto::federation::v1::federation_client::FederationClient;

/// Whom to dial.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) trust_domain: TrustDomain,
    /// `host:port`, tried in order.
    pub(super) addresses: Vec<String>,
    /// Accepts exactly the peer's agents.
    pub(super) authorize: Authorize,
    pub(super) source: IdentitySource,
}

/// A stream to a peer's agent.
pub(super) struct Dialled {
    pub(super) id: SpiffeId,
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// When it was verified.
    pub(super) at: UnixTime,
    pub(super) frames: Streaming<Frame>,
    pub(super) out: mpsc::Sender<Frame>,
    pub(super) channel: Channel,
}

/// Dials the addresses in turn; of several failures the one that says most about trust is returned.
pub(super) async fn dial(target: Target, timings: Timings) -> Result<Dialled, LinkState> {
    let message = format!("there is no address of the agent of {}", target.trust_domain);
    let mut worst = LinkState::Unreachable { message };
    for (number, address) in target.addresses.iter().enumerate() {
        let span = traces::dial(&target.trust_domain);
        match dial_one(&target, address, timings).instrument(span.clone()).await {
            Ok(dialled) => return Ok(dialled),
            Err(state) => {
                traces::failed(&span, &stream_state(&state));
                tracing::debug!(peer = %target.trust_domain, %address, ?state, "dialling failed");
                if number == 0 || telling(&state) > telling(&worst) {
                    worst = state;
                }
            }
        }
    }
    Err(worst)
}

fn telling(state: &LinkState) -> u8 {
    match state {
        LinkState::Refused { .. } => 3,
        LinkState::WrongPeerId { .. } => 2,
        LinkState::Unverified { .. } => 1,
        _ => 0,
    }
}

async fn dial_one(target: &Target, address: &str, timings: Timings) -> Result<Dialled, LinkState> {
    let greeted = reach(target, address, timings).await?;
    let opening = open(greeted, &target.trust_domain, address);
    timeout(timings.handshake, opening)
        .await
        .map_err(|_| late(&target.trust_domain, address, "gRPC", timings.handshake))?
}

fn unreachable(peer: &TrustDomain, address: &str, what: &str, cause: &dyn std::fmt::Display) -> LinkState {
    let message = printable(&format!("the agent of {peer} at {address}: {what}: {cause}"), 500);
    LinkState::Unreachable { message }
}

fn late(peer: &TrustDomain, address: &str, what: &str, limit: Duration) -> LinkState {
    unreachable(peer, address, what, &format!("no answer in {limit:?}"))
}

/// Connects, shakes hands, and reads the first byte of what the server says once it has judged us.
pub(super) async fn reach(target: &Target, address: &str, timings: Timings) -> Result<Greeted, LinkState> {
    let peer = &target.trust_domain;
    let unreachable = |what: &str, cause: &dyn std::fmt::Display| unreachable(peer, address, what, cause);
    let late = |what: &str, limit: Duration| late(peer, address, what, limit);
    let tcp = timeout(timings.connect, TcpStream::connect(address))
        .await
        .map_err(|_| late("TCP", timings.connect))?
        .map_err(|e| unreachable("TCP", &e))?;
    // frames are small and answers are waited for
    let _ = tcp.set_nodelay(true);
    let verdict = Verdict::default();
    let greeting = greet(target, address, tcp, verdict.clone());
    let outcome =
        timeout(timings.handshake, greeting).await.map_err(|_| late("TLS handshake", timings.handshake))?;
    outcome.map_err(|failure| match failure {
        Failure::Handshake(error) => match verdict.get() {
            Some(Err(refusal)) => unverified(peer, address, &refusal),
            Some(Ok(_)) | None => unreachable("TLS handshake", &error),
        },
        // only now does the server's word count: it has proved who it is
        Failure::FirstByte(error) => refusal_of(peer, address, &error)
            .unwrap_or_else(|| unreachable("the connection was closed after the handshake", &error)),
    })
}

enum Failure {
    Handshake(io::Error),
    FirstByte(io::Error),
}

/// A connection on which both sides know who the other is.
pub(super) struct Greeted {
    pub(super) id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    at: UnixTime,
    stream: Replayed<tokio_rustls::client::TlsStream<TcpStream>>,
}

/// The TLS handshake, and the first byte of what the server says after it has judged us.
async fn greet(target: &Target, address: &str, tcp: TcpStream, verdict: Verdict) -> Result<Greeted, Failure> {
    let config = client_config(&target.source, Arc::clone(&target.authorize), verdict.clone())
        .map_err(|e| Failure::Handshake(io::Error::other(e)))?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(server_name(address), tcp).await.map_err(Failure::Handshake)?;
    let Some(Ok(id)) = verdict.get() else {
        return Err(Failure::Handshake(io::Error::other("the server's certificate was not looked at")));
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = chain.iter().cloned().map(CertificateDer::into_owned).collect();
    let mut stream = stream;
    let mut first = [0_u8; 1];
    stream.read_exact(&mut first).await.map_err(Failure::FirstByte)?;
    let stream = Replayed { first: Some(first), inner: stream };
    Ok(Greeted { id, chain, at: moment(crate::clock::now()), stream })
}

/// The host is sent as SNI, for load balancers that route by it; the server's identity is its SPIFFE ID.
pub(crate) fn server_name(address: &str) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned())
        .unwrap_or_else(|_| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

fn unverified(peer: &TrustDomain, address: &str, refusal: &PeerRefusal) -> LinkState {
    let message = format!("what answers for {peer} at {address} is refused: {refusal}");
    match refusal {
        PeerRefusal::NotAccepted(_) => LinkState::WrongPeerId { message },
        PeerRefusal::Svid(_) => LinkState::Unverified { message },
        PeerRefusal::NoIdentity => LinkState::Unreachable { message },
    }
}

/// What an alert says about trust (RFC 8446, section 6.2); `None` for any other end of a connection.
fn refusal_of(peer: &TrustDomain, address: &str, error: &io::Error) -> Option<LinkState> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::AlertReceived(alert) = inner else { return None };
    let (by, advice) = match alert {
        AlertDescription::UnknownCA => (
            Refusal::UnknownAuthority,
            "it holds a bundle of ours that does not have the authority that signed our SVID",
        ),
        AlertDescription::CertificateExpired => {
            (Refusal::Expired, "for it our SVID has expired or is not valid yet: check both clocks")
        }
        AlertDescription::HandshakeFailure
        | AlertDescription::AccessDenied
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateRequired
        | AlertDescription::UnsupportedCertificate => (
            Refusal::NotAccepted,
            "it holds no bundle of our trust domain, or our SPIFFE ID is none of those that it accepts",
        ),
        _ => return None,
    };
    let message = format!("the agent of {peer} at {address} refused us in TLS ({alert:?}): {advice}");
    Some(LinkState::Refused { by, message })
}

/// Opens the exchange on a connection.
async fn open(greeted: Greeted, peer: &TrustDomain, address: &str) -> Result<Dialled, LinkState> {
    let failed = |status: Status| {
        let message = printable(&format!("the agent of {peer} at {address}: {}", status.message()), 500);
        match status.code() {
            Code::PermissionDenied => LinkState::Refused { by: Refusal::NotAccepted, message },
            _ => LinkState::Unreachable { message },
        }
    };
    let Greeted { id, chain, at, stream } = greeted;
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: Uri| {
        // a connection that breaks is not replaced: the next one has to be verified anew
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted)) }
    });
    let channel = Endpoint::from_static("http://peer")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|e| failed(Status::unavailable(e.to_string())))?;
    let (out, rx) = mpsc::channel(QUEUE);
    let mut client = FederationClient::new(channel.clone()).max_decoding_message_size(MAX_FRAME);
    let frames = client.exchange(ReceiverStream::new(rx)).await.map_err(failed)?.into_inner();
    Ok(Dialled { id, chain, at, frames, out, channel })
}

/// A stream of which one byte was read already.
struct Replayed<S> {
    first: Option<[u8; 1]>,
    inner: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buffer.put_slice(&first);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

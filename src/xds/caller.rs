//! Who is at the other end of a connection, and the connection itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::here::Present;
use crate::model::SpiffeId;

/// By what a client proved its ID, to be judged again when the authorities change.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) at: UnixTime,
}

/// Who calls; the handler gets it with each call.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) id: SpiffeId,
    /// Cancelled when the connection is to end, or has ended: nothing is read or written any more, whether the client reads or not.
    pub(super) end: CancellationToken,
}

/// From afar by TLS, or from this machine by a socket.
type Wire = Either<Box<TlsStream<TcpStream>>, UnixStream>;

/// A connection of a client.
pub(super) struct CallerConnection {
    wire: Wire,
    caller: Caller,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    _gone: DropGuard,
    /// Nothing on a Unix socket: who may open that is who may connect.
    _present: Option<Present>,
    _place: OwnedSemaphorePermit,
}

impl CallerConnection {
    pub(super) fn tls(
        stream: TlsStream<TcpStream>,
        id: SpiffeId,
        present: Present,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self::new(Wire::Left(Box::new(stream)), id, Some(present), place)
    }

    pub(super) fn unix(stream: UnixStream, id: SpiffeId, place: OwnedSemaphorePermit) -> Self {
        Self::new(Wire::Right(stream), id, None, place)
    }

    fn new(wire: Wire, id: SpiffeId, present: Option<Present>, place: OwnedSemaphorePermit) -> Self {
        let end = present.as_ref().map_or_else(CancellationToken::new, Present::end);
        Self {
            wire,
            ended: Box::pin(end.clone().cancelled_owned()),
            _gone: end.clone().drop_guard(),
            caller: Caller { id, end },
            _present: present,
            _place: place,
        }
    }
}

impl Connected for CallerConnection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for CallerConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.wire).poll_read(cx, buffer)
    }
}

impl AsyncWrite for CallerConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.caller.end.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.wire).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.caller.end.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.caller.end.is_cancelled() {
            // Who does not read would not let TLS say goodbye.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

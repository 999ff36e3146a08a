//! What a peer's TLS runs over: its own TCP connection, or one that another replica passes on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A connection before the TLS of whoever opened it.
#[derive(Debug)]
pub(crate) enum Wire {
    Direct(TcpStream),
    /// Within the TLS of the replica that passes it on.
    PassedOn(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::PassedOn(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Direct(tcp) => Pin::new(tcp).poll_write(cx, data),
            Self::PassedOn(tls) => Pin::new(tls).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::PassedOn(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::PassedOn(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

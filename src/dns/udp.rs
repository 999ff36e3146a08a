//! Questions by UDP: each datagram stands for itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Answers, Way};
use crate::observe::metrics::Asked;

/// The largest question that is read: there is room for any name, and for EDNS.
const LARGEST: usize = 4096;
/// How many are answered at a time; beyond, questions wait in the socket, which drops what it has no room for.
pub(super) const AT_ONCE: usize = 1024;

pub(super) async fn serve(
    socket: UdpSocket,
    answers: Arc<Answers>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let socket = Arc::new(socket);
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut buffer = vec![0; LARGEST];
    loop {
        let received = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            received = receive(&socket, &permits, &mut buffer) => received,
        };
        let (permit, length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                // Of one datagram or another: the socket is still there.
                tracing::debug!(%error, "a DNS question cannot be received");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        if !can_be_answered(from) {
            continue;
        }
        if !answers.sources.allow(from.ip()) {
            answers.metrics.asked(Asked::Limited);
            continue;
        }
        let packet: Box<[u8]> = buffer.get(..length).unwrap_or_default().into();
        let (socket, answers) = (Arc::clone(&socket), Arc::clone(&answers));
        // In a task of its own, so that nothing in a packet can end the server; it ends by itself, within the time of upstreams.
        tokio::spawn(async move {
            if let Some(answer) = answers.answer(&packet, Way::Udp, from.ip()).await
                && let Err(error) = socket.send_to(&answer.bytes, from).await
            {
                tracing::debug!(%error, %from, "a DNS answer cannot be sent");
            }
            drop(permit);
        });
    }
}

async fn receive(
    socket: &UdpSocket,
    permits: &Arc<Semaphore>,
    buffer: &mut [u8],
) -> std::io::Result<(tokio::sync::OwnedSemaphorePermit, usize, SocketAddr)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (length, from) = socket.recv_from(buffer).await?;
    Ok((permit, length, from))
}

/// Nobody asks from there, and an answer could reach many.
fn can_be_answered(from: SocketAddr) -> bool {
    let is_broadcast = matches!(from.ip(), IpAddr::V4(v4) if v4.is_broadcast());
    from.port() != 0 && !from.ip().is_unspecified() && !from.ip().is_multicast() && !is_broadcast
}

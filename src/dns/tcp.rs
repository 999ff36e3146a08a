//! Questions by TCP: one after the other on each connection (RFC 7766), each connection for a bounded time.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Answers, PATIENCE, Way};
use crate::observe::metrics::Asked;

/// How many connections there may be; beyond, they wait to be taken.
pub(super) const CONNECTIONS: usize = 1024;
/// How many of them one source may have.
pub(super) const CONNECTIONS_OF_ONE: usize = 16;

pub(super) async fn serve(
    listener: TcpListener,
    answers: Arc<Answers>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let permit = tokio::select! {
            () = cancel.cancelled() => break,
            permit = Arc::clone(&permits).acquire_owned() => permit?,
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a DNS connection cannot be taken");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        // Who has too many is closed.
        let Some(counted) = answers.connections.take(from.ip()) else {
            answers.metrics.asked(Asked::Limited);
            continue;
        };
        let (answers, cancel) = (Arc::clone(&answers), cancel.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                ended = converse(stream, &answers) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, %from, "a DNS connection ended");
                    }
                }
            }
            drop((permit, counted));
        });
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Answers one question after the other, until there is none for a while.
async fn converse(mut stream: TcpStream, answers: &Answers) -> anyhow::Result<()> {
    let from = stream.peer_addr()?.ip();
    while let Some(packet) = timeout(PATIENCE, read(&mut stream)).await?? {
        if !answers.sources.allow(from) {
            answers.metrics.asked(Asked::Limited);
            return Ok(());
        }
        let Some(answer) = answers.answer(&packet, Way::Tcp, from).await else { return Ok(()) };
        timeout(PATIENCE, write(&mut stream, &answer.bytes)).await??;
        if answer.is_last {
            return Ok(());
        }
    }
    Ok(())
}

/// The next message; `None` where the other side is done.
pub(super) async fn read(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    // As much is taken as there comes, not as was promised.
    let mut packet = Vec::new();
    let promised = u64::try_from(length).unwrap_or(u64::MAX);
    (&mut *stream).take(promised).read_to_end(&mut packet).await?;
    Ok((packet.len() == length).then_some(packet))
}

/// Sends a message.
pub(super) async fn write(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    // In one piece: some who read expect that.
    let mut bytes = Vec::with_capacity(message.len() + 2);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}

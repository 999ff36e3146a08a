//! One message each way: its length in four bytes, big-endian, and itself. Bounded before anything is read.

use std::io;
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

/// Most bytes of a message.
pub(super) const MAX_MESSAGE: usize = 256 * 1024;

/// Reads one message, whose length must be there within `patience`.
pub(super) async fn read<M: Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
    patience: Duration,
) -> io::Result<M> {
    let silent = || io::Error::new(io::ErrorKind::TimedOut, format!("it said nothing within {patience:?}"));
    let length = timeout(patience, stream.read_u32()).await.map_err(|_| silent())??;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(invalid(format!("a message of {length} bytes, more than {MAX_MESSAGE}")));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    M::decode(bytes.as_slice()).map_err(|error| invalid(format!("no message of the protocol: {error}")))
}

pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    if bytes.len() > MAX_MESSAGE {
        return Err(invalid(format!("a message of {length} bytes, more than {MAX_MESSAGE}")));
    }
    stream.write_u32(length).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

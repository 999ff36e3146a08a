//! `entente dial-stdio`: standard input and output are passed on to the control socket. What other commands run in the agent's
//! pod.

use std::os::fd::AsFd;
use std::path::Path;

use tokio::fs::File;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional, join};
use tokio::net::UnixStream;

use super::control::no_agent;

/// Passes bytes on until either side ends.
///
/// # Errors
/// Where no agent serves the socket; nothing was passed on then.
pub(super) async fn run(socket: &Path) -> anyhow::Result<()> {
    let connected = UnixStream::connect(socket).await;
    let mut agent = connected.map_err(|error| no_agent(socket, &error))?;
    let mut asker = join(file(std::io::stdin())?, file(std::io::stdout())?);
    // Which side broke off, and how, is known to who asks.
    let _ = copy_bidirectional(&mut asker, &mut agent).await;
    let _ = asker.flush().await;
    Ok(())
}

/// A stream of our own, whatever it is: a pipe, a socket, a terminal.
fn file(stream: impl AsFd) -> std::io::Result<File> {
    Ok(File::from_std(stream.as_fd().try_clone_to_owned()?.into()))
}

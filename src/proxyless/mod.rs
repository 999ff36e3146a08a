//! What a workload with a gRPC library has beside it: certificate, key and bundles as files that its certificate providers watch
//! (gRFC A29, A87), kept as the Workload API has them, and a way to the agent's xDS by a socket. gRPC libraries speak neither the
//! Workload API nor SDS, and pin no SPIFFE ID of the server that configures them: what runs here does both in their place.

mod bundles;
mod files;
mod relay;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::identity::source::{IdentitySource, follow};
use crate::identity::workload::{Svids, WorkloadEndpoint, read};
use crate::model::SpiffeId;
use crate::proto::workload::{X509svid, X509svidResponse};
use crate::socket::SocketError;
use files::Files;
pub use relay::Agent;
use relay::Relay;

/// The folder, in the directory, that always holds certificate, key and bundles of one moment.
pub const CURRENT: &str = "current";
/// The workload's certificate with its chain, leaf first, in PEM.
pub const CERTIFICATE: &str = "svid.pem";
/// Its key, PKCS#8 in PEM.
pub const KEY: &str = "svid_key.pem";
/// Each trust domain's authorities (SPIFFE Trust Domain and Bundle, section 5).
pub const BUNDLES: &str = "bundles.json";
/// Where the agent is reached, in the directory. gRPC's C core names a server that it reaches by a socket after the socket's path,
/// with `%2F` for each slash, which HTTP takes for a name before an `@` alone (RFC 3986, section 3.2.1).
pub const SOCKET: &str = "xds@agent";
/// The configuration of the gRPC library, in the directory.
pub const BOOTSTRAP: &str = "bootstrap.json";

/// How soon what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What is kept, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    pub workload_api: WorkloadEndpoint,
    /// Which of the workload's SVIDs; by default the first, as the Workload API has it.
    pub id: Option<SpiffeId>,
    pub directory: PathBuf,
    /// What [`SOCKET`] leads to.
    pub agent: Reach,
    /// What is written to [`BOOTSTRAP`] once all that it names is there.
    pub bootstrap: String,
}

/// How the agent is reached.
#[derive(Clone, Debug)]
pub enum Reach {
    /// By TLS, from a socket of ours.
    Tls(Agent),
    /// By a socket of its own, which ours is a link to.
    Socket(PathBuf),
}

/// Why nothing can be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("{path} cannot be written: {1}; give a --directory that this user may write", path = .0.display())]
    Directory(PathBuf, io::Error),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Keeps the files as the Workload API has them, and the way to the agent open, until `cancel`. What was written last stays.
///
/// # Errors
/// [`KeepError`], at the start alone: what fails later is logged and tried again.
pub async fn keep(settings: Settings, cancel: CancellationToken) -> Result<(), KeepError> {
    let directory = &settings.directory;
    let unwritable = |error| KeepError::Directory(directory.clone(), error);
    files::prepare(directory).map_err(unwritable)?;
    let (source, socket) = (IdentitySource::empty(), directory.join(SOCKET));
    let relay = match &settings.agent {
        Reach::Tls(agent) => {
            files::unlink(&socket).map_err(unwritable)?;
            Some(Relay::open(&socket, agent.clone(), &source).await?)
        }
        Reach::Socket(path) => {
            files::link(path, &socket).map_err(unwritable)?;
            None
        }
    };
    let (wanted, latest) = watch::channel(None);
    let keeper = Keeper { settings: &settings, source, wanted };
    let writer = Writer { settings: &settings, is_announced: false, failed: String::new() };
    let following = follow(&settings.workload_api, |answer| match answer {
        Ok(response) => keeper.take(response),
        Err(_) => false,
    });
    let relaying = async {
        match relay {
            Some(relay) => relay.run().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = following => {}
        () = writer.run(latest) => {}
        () = relaying => {}
    }
    Ok(())
}

struct Keeper<'a> {
    settings: &'a Settings,
    source: IdentitySource,
    wanted: watch::Sender<Option<Files>>,
}

impl Keeper<'_> {
    /// Takes a message of the Workload API; whether it has what the workload needs.
    fn take(&self, response: X509svidResponse) -> bool {
        match chosen(response, self.settings.id.as_ref()) {
            Ok((svids, files)) => {
                self.source.publish(svids);
                self.wanted.send_replace(Some(files));
                true
            }
            Err(cause) => {
                tracing::error!(%cause, "the Workload API has no SVID to write; the last one is kept");
                false
            }
        }
    }
}

/// Writes what is wanted, as often as it takes.
struct Writer<'a> {
    settings: &'a Settings,
    is_announced: bool,
    /// What was said of the last attempt, where it failed.
    failed: String,
}

impl Writer<'_> {
    /// Until nobody wants anything any more.
    async fn run(mut self, mut wanted: watch::Receiver<Option<Files>>) {
        loop {
            let latest = wanted.borrow_and_update().clone();
            let is_written = latest.is_none_or(|files| self.write(&files));
            let changed = if is_written {
                wanted.changed().await
            } else {
                timeout(AGAIN, wanted.changed()).await.unwrap_or(Ok(()))
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Whether all is there.
    fn write(&mut self, files: &Files) -> bool {
        let directory = &self.settings.directory;
        let written = files.put(directory).and_then(|is_new| {
            if !self.is_announced {
                files::replace(&directory.join(BOOTSTRAP), self.settings.bootstrap.as_bytes())?;
                self.is_announced = true;
            }
            Ok(is_new)
        });
        if matches!(written, Ok(true)) {
            tracing::info!(directory = %directory.display(), "certificate, key and bundles are new");
        }
        let failed = written.err().map(|error| error.to_string()).unwrap_or_default();
        if !failed.is_empty() && failed != self.failed {
            tracing::error!(
                directory = %directory.display(), error = failed, retry_in = ?AGAIN,
                "what the Workload API has cannot be written: free the disk, or mend the rights"
            );
        }
        self.failed = failed;
        self.failed.is_empty()
    }
}

/// The SVID that is wanted, as we use it and as files.
fn chosen(response: X509svidResponse, id: Option<&SpiffeId>) -> Result<(Svids, Files), String> {
    let is_wanted = |svid: &X509svid| id.is_none_or(|id| svid.spiffe_id == id.to_string());
    let Some(svid) = response.svids.into_iter().find(is_wanted) else {
        return Err(id.map_or_else(
            || "it gives this process none: register it in SPIRE".to_owned(),
            |id| {
                format!(
                    "it does not give this process {id}: register it in SPIRE, or give another --spiffe-id"
                )
            },
        ));
    };
    // Hints tell an agent its SVIDs apart; a workload's own may have any.
    let svid = X509svid { hint: String::new(), ..svid };
    let key = svid.x509_svid_key.clone();
    let only = X509svidResponse { svids: vec![svid], federated_bundles: response.federated_bundles };
    let svids = read(only, None).map_err(|error| error.to_string())?;
    let files = Files::new(&svids.peer_facing.cert, &key, &svids.identity);
    Ok((svids, files))
}

/// The path of a file of this moment.
#[must_use]
pub fn path_of(directory: &Path, file: &str) -> PathBuf {
    directory.join(CURRENT).join(file)
}

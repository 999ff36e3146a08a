//! The control API of a running agent: HTTP with JSON on a Unix socket that its own user alone can open, as SPIRE's
//! `api.sock`. The commands of `entente` that change trust are its clients; one file a group of routes.

mod about;
mod diagnose;
mod enrolment;
mod problem;
pub mod rotation;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use about::About;
pub use diagnose::AskDiagnosis;
pub use enrolment::{Enrolment, Invited, JoinReport, JoinRequest, NewInvite, OpenInvite, Reach};
pub use problem::Problem;

use crate::diagnose::Diagnoser;
use crate::index::run::WorldHandle;
use crate::spire::replicas::Replicas;
use crate::spire::watch::SpireWatch;

/// What the routes work with.
#[derive(Clone, Debug)]
pub struct Control {
    /// Everything that the agent knows, at the moment of asking.
    pub worlds: WorldHandle,
    /// Whether this replica leads: the others write nothing and talk to no peer.
    pub leading: watch::Receiver<bool>,
    /// The name of this replica.
    pub replica: String,
    /// Looks at the path to a peer.
    pub diagnoser: Diagnoser,
    /// Inviting and joining.
    pub enrolment: Enrolment,
    /// The SPIRE servers, each with authorities of its own.
    pub replicas: Replicas,
    /// To have SPIRE read again once something was changed.
    pub spire: SpireWatch,
    /// Held during a step of a rotation: two that prepare at the same time would replace each other's authority.
    pub rotating: Arc<Mutex<()>>,
}

impl Control {
    fn router(self) -> Router {
        Router::new()
            .route("/v1/about", get(about::about))
            .route("/v1/peers/{peer}/diagnose", post(diagnose::diagnose))
            .route("/v1/invites", get(enrolment::list).post(enrolment::invite))
            .route("/v1/invites/{id}", delete(enrolment::withdraw))
            .route("/v1/join", post(enrolment::join))
            .route("/v1/rotation", get(rotation::state))
            .route("/v1/rotation/prepare", post(rotation::prepare))
            .route("/v1/rotation/activate", post(rotation::activate))
            .route("/v1/rotation/taint", post(rotation::taint))
            .route("/v1/rotation/revoke", post(rotation::revoke))
            .with_state(self)
    }
}

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("another process serves {}; stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    #[error("{path} cannot be served: {1}; choose a path in a folder that this user may write, of at most 107 bytes", path = .0.display())]
    Io(PathBuf, std::io::Error),
}

/// Serves the control API on a Unix socket until `cancel`; a socket that an earlier life left behind is replaced.
///
/// # Errors
/// Where the socket cannot be made, or another process serves it.
pub async fn serve(
    path: &Path,
    control: Control,
    cancel: CancellationToken,
) -> Result<JoinHandle<()>, ControlError> {
    let io = |error| ControlError::Io(path.to_owned(), error);
    if UnixStream::connect(path).await.is_ok() {
        return Err(ControlError::InUse(path.to_owned()));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(io)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    let path = path.to_owned();
    Ok(tokio::spawn(async move {
        let server = axum::serve(listener, control.router()).with_graceful_shutdown(cancel.cancelled_owned());
        if let Err(error) = server.await {
            tracing::error!(%error, "the control socket failed");
        }
        let _ = std::fs::remove_file(path);
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn control(folder: &Path) -> Control {
        let worlds = WorldHandle::new().0;
        let server = crate::spire::SpireServer::connect_unix("/nowhere.sock");
        let (identity, cancel) = (watch::channel(None).1, CancellationToken::new());
        let replicas = Replicas::none();
        let (spire, _) =
            SpireWatch::spawn(server, replicas.clone(), identity, Default::default(), cancel.clone());
        cancel.cancel();
        Control {
            diagnoser: Diagnoser::idle(worlds.clone()),
            worlds,
            leading: watch::channel(true).1,
            replica: "one".to_owned(),
            enrolment: Enrolment::of_directory(folder),
            replicas,
            spire,
            rotating: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_served_is_not_taken_and_one_that_is_left_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/control.sock");
        let cancel = CancellationToken::new();
        let task = serve(&path, control(folder.path()), cancel.clone()).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = serve(&path, control(folder.path()), cancel.clone()).await.unwrap_err().to_string();
        assert!(second.contains("another process serves"), "{second}");
        cancel.cancel();
        task.await.unwrap();
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let cancel = CancellationToken::new();
        serve(&path, control(folder.path()), cancel.clone()).await.unwrap();
        cancel.cancel();
    }
}

//! The control API of a running agent: HTTP with JSON on a Unix socket that its own user alone can open, as SPIRE's
//! `api.sock`. The commands of `entente` that change trust are its clients; one file a group of routes.

mod about;
mod bundles;
mod clients;
mod diagnose;
mod enrolment;
mod problem;
pub mod rotation;

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use about::About;
pub use bundles::{HeldAuthorities, HeldAuthority, HeldBundles};
pub use clients::ServedClients;
pub use diagnose::AskDiagnosis;
pub use enrolment::{Enrolment, Invited, JoinReport, JoinRequest, NewInvite, OpenInvite, Reach};
pub use problem::Problem;

use crate::diagnose::Diagnoser;
use crate::index::run::WorldHandle;
use crate::model::replica::Leader;
use crate::socket::{Bound, SocketError};
use crate::spire::replicas::Replicas;
use crate::spire::watch::SpireWatch;
use crate::xds::Clients;

/// What the routes work with.
#[derive(Clone, Debug)]
pub struct Control {
    /// Everything that the agent knows, at the moment of asking.
    pub worlds: WorldHandle,
    /// Whether this replica leads: the others write nothing and talk to no peer.
    pub leading: watch::Receiver<bool>,
    /// Which replica leads, as this one sees it.
    pub leader: watch::Receiver<Leader>,
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
    /// Who is served by xDS.
    pub clients: Clients,
    /// Held during a step of a rotation: two that prepare at the same time would replace each other's authority.
    pub rotating: Arc<Mutex<()>>,
}

impl Control {
    fn router(self) -> Router {
        Router::new()
            .route("/v1/about", get(about::about))
            .route("/v1/bundles", get(bundles::bundles))
            .route("/v1/clients", get(clients::clients))
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

/// Serves the control API on a Unix socket until `cancel`; a socket that an earlier life left behind is replaced. A folder
/// that has to be made for it is open to our user alone.
///
/// # Errors
/// Where the socket cannot be made, another process serves it, or something else is in its place.
pub async fn serve(
    path: &Path,
    control: Control,
    cancel: CancellationToken,
) -> Result<JoinHandle<()>, SocketError> {
    let (listener, left) = Bound::at(path, 0o600).await?.split();
    Ok(tokio::spawn(async move {
        let server = axum::serve(listener, control.router()).with_graceful_shutdown(cancel.cancelled_owned());
        if let Err(error) = server.await {
            tracing::error!(%error, "the control socket failed");
        }
        drop(left);
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

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
            leader: watch::channel(Leader::Us { term: 0 }).1,
            replica: "one".to_owned(),
            enrolment: Enrolment::of_directory(folder),
            replicas,
            spire,
            clients: Clients::default(),
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

    #[tokio::test]
    async fn a_folder_that_is_made_for_the_socket_is_our_users_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let path = folder.path().join("run/control.sock");
        let task = serve(&path, control(folder.path()), cancel.clone()).await.unwrap();
        let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
        let there: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(there.len(), 1, "{there:?}");
        cancel.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_of_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        std::fs::write(&path, "a file").unwrap();
        let refused = serve(&path, control(folder.path()), CancellationToken::new()).await.unwrap_err();
        assert!(refused.to_string().contains("no socket"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
        std::fs::remove_file(&path).unwrap();

        // another took our place meanwhile
        let cancel = CancellationToken::new();
        let task = serve(&path, control(folder.path()), cancel.clone()).await.unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        cancel.cancel();
        task.await.unwrap();
        assert!(path.exists());
    }
}

//! Sockets and ports of the embedded authority.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::DevkitError;
use super::server_api::ServerApi;
use super::workload_api::WorkloadApi;
use crate::model::endpoint::EndpointUrl;
use crate::proto::spire::server::bundle::v1::bundle_server::BundleServer;
use crate::proto::spire::server::entry::v1::entry_server::EntryServer;
use crate::proto::spire::server::localauthority::v1::local_authority_server::LocalAuthorityServer;
use crate::proto::spire::server::trustdomain::v1::trust_domain_server::TrustDomainServer;
use crate::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;

/// Listens for the Server API; the future serves it until stopped.
pub(super) fn server_api(
    path: &Path,
    api: ServerApi,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, DevkitError> {
    let router = Server::builder()
        .add_service(TrustDomainServer::new(api.clone()))
        .add_service(BundleServer::new(api.clone()))
        .add_service(EntryServer::new(api.clone()))
        .add_service(LocalAuthorityServer::new(api));
    serve(path, router, stop)
}

/// Listens for the Workload API; the future serves it until stopped.
pub(super) fn workload_api(
    path: &Path,
    api: WorkloadApi,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, DevkitError> {
    serve(path, Server::builder().add_service(SpiffeWorkloadApiServer::new(api)), stop)
}

/// Listens on a port, and gives the URL at which it is reached.
pub(super) async fn https(address: SocketAddr) -> Result<(TcpListener, EndpointUrl), DevkitError> {
    let failed = |source| DevkitError::Listen { address: address.to_string(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, EndpointUrl::parse(&format!("https://{bound}/"))?))
}

fn serve(
    path: &Path,
    router: Router,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, DevkitError> {
    let failed = |source| DevkitError::Listen { address: path.display().to_string(), source };
    remove_socket(path);
    let incoming = UnixListenerStream::new(UnixListener::bind(path).map_err(failed)?);
    let path = SocketFile(path.to_owned());
    Ok(async move {
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            tracing::error!(path = %path.0.display(), %error, "a socket of the embedded authority failed");
        }
    })
}

/// A socket's file, gone with it.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        remove_socket(&self.0);
    }
}

/// Removes a socket that an earlier run left; nothing else of that name.
fn remove_socket(path: &Path) {
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        // If it stays, to bind it fails, and says so.
        let _ = std::fs::remove_file(path);
    }
}

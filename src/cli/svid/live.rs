//! What a TLS server presents, whoever it is: nothing is sent to it but the handshake.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cli::exit::NotAsked;
use crate::identity::tls::provider;
use crate::identity::verify::verify_signatures;

/// How long it may take, to connect and to shake hands.
const PATIENCE: Duration = Duration::from_secs(8);

/// Keeps what is presented, and takes the handshake as good: nothing follows it.
#[derive(Debug, Default)]
struct Witness {
    seen: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        if let Ok(mut seen) = self.seen.lock() {
            *seen = chain.map(|der| der.clone().into_owned()).collect();
        }
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!();
}

/// The chain that the server at `address` (`host:port`) presents, leaf first.
///
/// # Errors
/// [`NotAsked`] where nothing listens there, or it presents no certificate.
pub(super) async fn presented(
    address: &str,
    sni: Option<&str>,
) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = sni.unwrap_or(host.trim_start_matches('[').trim_end_matches(']'));
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| NotAsked(format!("{name:?} is no name that a server can be asked for (--sni)")))?;
    let witness = Arc::new(Witness::default());
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as _)
        .with_no_client_auth();
    let silent = || NotAsked(format!("{address}: no answer within {} s", PATIENCE.as_secs()));
    let connecting = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await;
    let stream = connecting.map_err(|_| silent())?;
    let stream = stream.map_err(|error| NotAsked(format!("{address}: {error}")))?;
    // A server that wants a certificate of ours breaks off later, or not at all: it has shown its own by then.
    let shaken =
        tokio::time::timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
    let seen = witness.seen.lock().map(|seen| seen.clone()).unwrap_or_default();
    if !seen.is_empty() {
        return Ok(seen);
    }
    Err(match shaken {
        Err(_) => silent(),
        Ok(Err(error)) => NotAsked(format!(
            "{address} presents no certificate: {error}; does it speak TLS, and is --sni right?"
        )),
        Ok(Ok(_)) => NotAsked(format!("{address} presents no certificate")),
    }
    .into())
}

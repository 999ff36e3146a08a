//! Dialling an inviter: nobody is talked to who has not proved to be one of the agents that the invite names.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::desk::unix;
use super::join::JoinError;
use super::offer::Offer;
use super::token::Token;
use crate::federation::client::server_name;
use crate::identity::peer_tls::OwnSvid;
use crate::identity::source::IdentitySource;
use crate::identity::tls::provider;
use crate::identity::verify::{Role, SvidError, verify_signatures, verify_svid};
use crate::model::{Bundle, SpiffeId};

/// For DNS and TCP, and for TLS.
const CONNECT: Duration = Duration::from_secs(5);
/// For all addresses of the inviter together: the command that waits for all this does so for a minute.
const DIAL: Duration = Duration::from_secs(12);
/// Dials the inviter's addresses in turn until one of its agents has proved who it is.
pub(super) async fn dial(
    source: &IdentitySource,
    token: &Token,
    bundle: &Arc<Bundle>,
) -> Result<(TlsStream<TcpStream>, SpiffeId), JoinError> {
    let deadline = Instant::now() + DIAL;
    let mut worst = None;
    for address in &token.inviter.agent_addresses {
        let dialled = timeout_at(deadline, dial_one(source, address, &token.inviter, bundle)).await;
        let late = || format!("{address}: all addresses together took longer than {DIAL:?}");
        match dialled.unwrap_or_else(|_| Err(JoinError::Unreachable(late()))) {
            Ok(reached) => return Ok(reached),
            Err(error) => {
                tracing::info!(%address, %error, "the inviter was not reached");
                // what was said by someone says more than silence
                if worst.is_none() || !matches!(error, JoinError::Unreachable(_)) {
                    worst = Some(error);
                }
            }
        }
    }
    Err(worst.unwrap_or_else(|| JoinError::Unreachable("the invite names no address".to_owned())))
}

async fn dial_one(
    source: &IdentitySource,
    address: &str,
    inviter: &Offer,
    bundle: &Arc<Bundle>,
) -> Result<(TlsStream<TcpStream>, SpiffeId), JoinError> {
    let unreachable = |cause: &dyn fmt::Display| JoinError::Unreachable(format!("{address}: {cause}"));
    let late = || format!("no answer within {CONNECT:?}");
    let tcp = timeout(CONNECT, TcpStream::connect(address)).await;
    let tcp = tcp.map_err(|_| unreachable(&late()))?.map_err(|e| unreachable(&e))?;
    let _ = tcp.set_nodelay(true);
    let verifier = Arc::new(InviterVerifier {
        inviter: inviter.clone(),
        bundle: Arc::clone(bundle),
        verdict: Mutex::new(None),
    });
    let config = client_config(source, &verifier).map_err(|e| unreachable(&e))?;
    let connector = TlsConnector::from(Arc::new(config));
    let shaken = timeout(CONNECT, connector.connect(server_name(address), tcp)).await;
    let shaken = shaken.map_err(|_| unreachable(&late()))?;
    match (shaken, verifier.verdict()) {
        (Ok(stream), Some(Ok(id))) if stream.get_ref().1.alpn_protocol() == Some(super::ALPN) => {
            Ok((stream, id))
        }
        (_, Some(Err(cause))) => Err(JoinError::NotTheInviter { address: address.to_owned(), cause }),
        (Err(error), _) if is_no_protocol(&error) => Err(JoinError::NoInviteOpen(address.to_owned())),
        (Err(error), _) => Err(unreachable(&error)),
        (Ok(_), _) => Err(JoinError::NoInviteOpen(address.to_owned())),
    }
}

fn client_config(
    source: &IdentitySource,
    verifier: &Arc<InviterVerifier>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier: Arc<dyn ServerCertVerifier> = Arc::<InviterVerifier>::clone(verifier);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(OwnSvid::new(source)));
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![super::ALPN.to_vec()];
    Ok(config)
}

fn is_no_protocol(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)))
}

/// Accepts exactly the agents that the invite names, by exactly the bundle whose fingerprint it has.
struct InviterVerifier {
    inviter: Offer,
    bundle: Arc<Bundle>,
    verdict: Mutex<Option<Result<SpiffeId, String>>>,
}

impl fmt::Debug for InviterVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InviterVerifier").finish_non_exhaustive()
    }
}

impl InviterVerifier {
    fn verdict(&self) -> Option<Result<SpiffeId, String>> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<SpiffeId, SvidOrId> {
        let held = |asked: &_| (*asked == self.inviter.trust_domain).then(|| Arc::clone(&self.bundle));
        let id = verify_svid(chain, &held, Role::Server, now)?;
        if self.inviter.agent_ids.contains(&id) { Ok(id) } else { Err(SvidOrId::Other(id)) }
    }
}

/// Why it is not the inviter's agent.
#[derive(Debug, thiserror::Error)]
enum SvidOrId {
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error("it is {0}, which the invite does not name")]
    Other(SpiffeId),
}

impl ServerCertVerifier for InviterVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let judged = self.judge(&chain, unix(crate::clock::now()));
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        *verdict = Some(match &judged {
            Ok(id) => Ok(id.clone()),
            Err(error) => Err(error.to_string()),
        });
        match judged {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(SvidOrId::Svid(error)) => Err(error.into()),
            Err(SvidOrId::Other(_)) => Err(rustls::CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    verify_signatures!();
}

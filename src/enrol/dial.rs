//! Dialling an inviter: nobody is talked to who has not proved to be one of the agents that the invite names.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::AlertDescription;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::join::JoinError;
use super::offer::Offer;
use super::token::Token;
use crate::federation::client::server_name;
use crate::identity::peer_tls::{Check, dialling};
use crate::identity::source::IdentitySource;
use crate::identity::verify::{Role, SvidError, verify_svid};
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
    let verdict = Verdict::default();
    let config =
        dialling(source, check(inviter, bundle, &verdict), super::ALPN).map_err(|e| unreachable(&e))?;
    let connector = TlsConnector::from(Arc::new(config));
    let shaken = timeout(CONNECT, connector.connect(server_name(address), tcp)).await;
    let shaken = shaken.map_err(|_| unreachable(&late()))?;
    let judged = verdict.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (shaken, judged) {
        (Ok(stream), Some(Ok(id))) if stream.get_ref().1.alpn_protocol() == Some(super::ALPN) => {
            Ok((stream, id))
        }
        (_, Some(Err(cause))) => {
            Err(JoinError::NotTheInviter { address: address.to_owned(), cause: cause.to_string() })
        }
        (Err(error), _) if is_no_protocol(&error) => Err(JoinError::NoInviteOpen(address.to_owned())),
        (Err(error), _) => Err(unreachable(&error)),
        (Ok(_), _) => Err(JoinError::NoInviteOpen(address.to_owned())),
    }
}

fn is_no_protocol(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)))
}

/// What was decided about who answered, if the handshake came to that.
type Verdict = Arc<Mutex<Option<Result<SpiffeId, NotTheInviter>>>>;

/// Accepts exactly the agents that the invite names, by exactly the bundle whose fingerprint it has.
fn check(inviter: &Offer, bundle: &Arc<Bundle>, verdict: &Verdict) -> Check {
    let (inviter, bundle, verdict) = (inviter.clone(), Arc::clone(bundle), Arc::clone(verdict));
    Arc::new(move |chain, role, now| {
        let judged = judge(&inviter, &bundle, chain, role, now);
        *verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(judged.clone());
        match judged {
            Ok(_) => Ok(()),
            Err(NotTheInviter::Svid(error)) => Err(error.into()),
            Err(NotTheInviter::Other(_)) => {
                Err(rustls::CertificateError::ApplicationVerificationFailure.into())
            }
        }
    })
}

fn judge(
    inviter: &Offer,
    bundle: &Arc<Bundle>,
    chain: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, NotTheInviter> {
    let held = |asked: &_| (*asked == inviter.trust_domain).then(|| Arc::clone(bundle));
    let id = verify_svid(chain, &held, role, now)?;
    if inviter.agent_ids.contains(&id) { Ok(id) } else { Err(NotTheInviter::Other(id)) }
}

/// Why it is not the inviter's agent.
#[derive(Clone, Debug, thiserror::Error)]
enum NotTheInviter {
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error("it is {0}, which the invite does not name")]
    Other(SpiffeId),
}

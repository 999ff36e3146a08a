//! Joining: what a token says is checked one by one before its secret is shown.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use rustls::client::Resumption;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::desk::unix;
use super::fingerprint::spoken;
use super::offer::Offer;
use super::screening::{self, BundleRefusal};
use super::token::Token;
use super::wire;
use crate::bundle::document;
use crate::bundle::endpoint::{EndpointClient, FirstFetchError};
use crate::federation::client::server_name;
use crate::identity::peer_tls::OwnSvid;
use crate::identity::source::IdentitySource;
use crate::identity::tls::provider;
use crate::identity::verify::{Role, SvidError, verify_signatures, verify_svid};
use crate::model::{Bundle, Object, ObjectKey, SpiffeId, TrustDomain, World};
use crate::proto::enrol::v1::{EnrolReply, EnrolRequest, Outcome};
use crate::store::{Store, StoreError};

/// For DNS and TCP, and for TLS.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the inviter may take for its part.
const ANSWER: Duration = Duration::from_secs(25);

/// Why nothing was joined. The messages say what to do.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(
        "this invite is for {invited}, and this is the agent of {own}: use it there, or ask for one for {own}"
    )]
    NotForUs { invited: TrustDomain, own: TrustDomain },
    #[error("this invite has expired at {0} (check both clocks): ask for a new one")]
    Expired(jiff::Timestamp),
    #[error(
        "{key} of {trust_domain} is there already: nothing is to be done, or delete it first (`entente status` shows how it stands)"
    )]
    AlreadyAPeer { key: ObjectKey, trust_domain: TrustDomain },
    #[error("this agent cannot join yet: {0}; try again in a moment")]
    NotReady(&'static str),
    #[error("the inviter's bundle cannot be fetched: {0}")]
    Fetch(FirstFetchError),
    #[error(
        "the bundle that {url} serves is not the one that the invite was made with. Its fingerprint is {served}, and the \
         invite says {expected}: either {inviter} has rotated its authorities since, or someone else answers there. Do \
         not go on; ask {inviter} for a new invite, and compare the fingerprint by voice"
    )]
    Fingerprint { url: String, inviter: TrustDomain, served: String, expected: String },
    #[error("the inviter's bundle cannot be used: {0}")]
    Bundle(#[from] BundleRefusal),
    #[error(
        "the inviter's agent cannot be reached: {0}; check the address and the network, or ask for an invite with another address"
    )]
    Unreachable(String),
    #[error(
        "what answers at {address} is not the inviter's agent: {cause}; nothing was shown to it. Ask the inviter what runs there"
    )]
    NotTheInviter { address: String, cause: String },
    #[error(
        "the agent at {0} takes no joiners now: no invite is open there (it was used, withdrawn, or has expired), or it \
         is older than this command. Ask for a new invite"
    )]
    NoInviteOpen(String),
    #[error("the inviter refused: {0}")]
    Refused(&'static str),
    #[error(
        "the inviter was told the secret, and its answer did not come ({0}): ask there whether it has a TrustDomainPeer of \
         {1} now. If so, run this again with --accepted, which makes ours without asking; if not, ask for a new invite"
    )]
    AnswerLost(String, TrustDomain),
    #[error(
        "the inviter has accepted, but our own {0} could not be made: {1}; mend that, and run this again with --accepted"
    )]
    NotWritten(ObjectKey, Box<StoreError>),
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// To just before the secret is shown: nothing is changed on either side.
    DryRun,
    /// All the way.
    Joined,
    /// The inviter is known to have accepted already: it is not asked again.
    Accepted,
}

/// What came of it, or would.
#[derive(Clone, Debug)]
pub struct Joined {
    pub inviter: TrustDomain,
    /// The agent that was verified; none where it was not asked.
    pub agent: Option<SpiffeId>,
    /// Of the inviter's bundle, as the invite and its endpoint agree on.
    pub fingerprint: String,
    /// Of our own bundle, as the inviter sees it.
    pub own_fingerprint: String,
    /// Our TrustDomainPeer of the inviter.
    pub here: Object,
    /// The inviter's of us.
    pub there: Object,
}

/// The joiner's side.
#[derive(Clone, Debug)]
pub struct Joiner {
    pub store: Store,
    pub source: IdentitySource,
    pub endpoints: EndpointClient,
}

impl Joiner {
    /// Joins by this token; `own` is how we are reached, `world` what is known now.
    ///
    /// # Errors
    /// [`JoinError`]
    pub async fn join(
        &self,
        world: &World,
        own: &Offer,
        token: &Token,
        until: Until,
    ) -> Result<Joined, JoinError> {
        let own_bundle = check_token(world, own, token)?;
        let inviter = &token.inviter;
        let bundle = self
            .endpoints
            .fetch_first(&inviter.trust_domain, &inviter.endpoint, token.fingerprint, world.now)
            .await
            .map_err(|error| fetch_error(error, token))?;
        screening::screen(world, &bundle)?;
        let here = inviter.peer_object(&bundle);
        let found = self.store.get(&here.key).await;
        if found.map_err(|error| JoinError::Unreachable(error.to_string()))?.is_some() {
            let trust_domain = inviter.trust_domain.clone();
            return Err(JoinError::AlreadyAPeer { key: here.key, trust_domain });
        }
        let mut agent = None;
        if until != Until::Accepted {
            let (stream, id) = self.dial(token, &bundle).await?;
            agent = Some(id);
            if until == Until::Joined {
                ask(stream, token, own, &own_bundle).await?;
            }
        }
        if until != Until::DryRun {
            let created = self.store.create_for_operator(&here).await;
            created.map_err(|error| JoinError::NotWritten(here.key.clone(), Box::new(error)))?;
            tracing::info!(trust_domain = %inviter.trust_domain, object = %here.key, "joined by invite");
        }
        Ok(Joined {
            inviter: inviter.trust_domain.clone(),
            agent,
            fingerprint: spoken(&token.fingerprint),
            own_fingerprint: spoken(&own_bundle.digest()),
            there: own.peer_object(&own_bundle),
            here,
        })
    }

    /// Dials the inviter's addresses in turn until one of its agents has proved who it is.
    async fn dial(
        &self,
        token: &Token,
        bundle: &Arc<Bundle>,
    ) -> Result<(TlsStream<TcpStream>, SpiffeId), JoinError> {
        let mut worst = None;
        for address in &token.inviter.agent_addresses {
            match self.dial_one(address, &token.inviter, bundle).await {
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
        &self,
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
        let config = client_config(&self.source, &verifier).map_err(|e| unreachable(&e))?;
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
}

/// What can be said of a token without asking anyone; our own bundle.
fn check_token(world: &World, own: &Offer, token: &Token) -> Result<Arc<Bundle>, JoinError> {
    let not_ready = JoinError::NotReady;
    if !world.is_read() {
        return Err(not_ready("not every object has been read"));
    }
    let spire = world.spire.as_ref().ok_or(not_ready("SPIRE's server API has not answered"))?;
    let bundle = spire.own.clone().ok_or(not_ready("SPIRE has not told our own bundle"))?;
    if token.joiner != own.trust_domain {
        return Err(JoinError::NotForUs { invited: token.joiner.clone(), own: own.trust_domain.clone() });
    }
    if token.expires <= world.now {
        return Err(JoinError::Expired(token.expires));
    }
    let inviter = &token.inviter.trust_domain;
    if screening::is_peer(world, inviter) {
        let named = world.peers.get(inviter).map(|peer| peer.object.clone());
        let mut key = Offer::peer_key(inviter);
        key.name = named.unwrap_or(key.name);
        return Err(JoinError::AlreadyAPeer { key, trust_domain: inviter.clone() });
    }
    Ok(bundle)
}

fn fetch_error(error: FirstFetchError, token: &Token) -> JoinError {
    match error {
        FirstFetchError::Fingerprint { url, served } => JoinError::Fingerprint {
            url: url.to_string(),
            inviter: token.inviter.trust_domain.clone(),
            served: spoken(&served),
            expected: spoken(&token.fingerprint),
        },
        other => JoinError::Fetch(other),
    }
}

/// Shows the secret, and reads the answer.
async fn ask(
    mut stream: TlsStream<TcpStream>,
    token: &Token,
    own: &Offer,
    bundle: &Bundle,
) -> Result<(), JoinError> {
    let request = EnrolRequest {
        invite_id: token.id.as_bytes().to_vec(),
        secret: token.secret.expose().to_vec(),
        joiner: Some(own.to_wire()),
        bundle: document::write(bundle),
    };
    if request.encoded_len() > wire::MAX_MESSAGE {
        return Err(JoinError::Refused(
            "our own bundle is larger than 256 KiB: write the TrustDomainPeers by hand",
        ));
    }
    let exchange = async {
        wire::write(&mut stream, &request).await?;
        wire::read::<EnrolReply>(&mut stream).await
    };
    let answer = timeout(ANSWER, exchange).await;
    let lost = |cause: String| JoinError::AnswerLost(cause, own.trust_domain.clone());
    let reply = answer
        .map_err(|_| lost(format!("nothing within {ANSWER:?}")))?
        .map_err(|error| lost(error.to_string()))?;
    let why = match reply.outcome() {
        Outcome::Accepted => return Ok(()),
        Outcome::InviteNotValid => {
            "the invite is not open any more (used, withdrawn, expired, or tried wrongly too often); ask for a new one"
        }
        Outcome::OtherTrustDomain => "the invite is for another trust domain; ask for one for ours",
        Outcome::BadOffer => {
            "it cannot use our address, our agent's ID or our bundle endpoint; see --advertise and --bundle-endpoint-url"
        }
        Outcome::BadBundle => "it cannot use our bundle; check that SPIRE has an authority that is valid",
        Outcome::SharedAuthority => {
            "an authority of our bundle is in another trust domain's bundle there: each must have its own"
        }
        Outcome::NotTheAgent => {
            "our own SVID does not chain to our bundle there; check both clocks, and try again"
        }
        Outcome::AlreadyAPeer => {
            "it has a TrustDomainPeer of us already. If that is from this very invite, run this again with --accepted"
        }
        Outcome::Busy => {
            "it has too much to do, or is not ready; the invite was not used up: try again in a moment"
        }
        Outcome::NotWritten => {
            "it could not make its TrustDomainPeer, and the invite is used up; its operator finds the cause in its log"
        }
        Outcome::Unspecified => {
            "it gave a reason that this version does not know; its operator finds it in its log"
        }
    };
    Err(JoinError::Refused(why))
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

//! Joining: what a token says is checked one by one before its secret is shown.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::net::TcpStream;
use tokio::task::JoinError as JoinFailure;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use super::dial::dial;
use super::fingerprint::spoken;
use super::offer::Offer;
use super::screening::{self, BundleRefusal};
use super::token::Token;
use super::wire;
use crate::bundle::document;
use crate::bundle::endpoint::{EndpointClient, FirstFetchError};
use crate::identity::source::IdentitySource;
use crate::model::{Bundle, Object, ObjectKey, SpiffeId, TrustDomain, World};
use crate::proto::enrol::v1::{EnrolReply, EnrolRequest, Outcome};
use crate::store::{Store, StoreError};

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
    #[error(
        "whether {0} is there already cannot be read from our own store: {1}; mend that, and run this again"
    )]
    OurStore(ObjectKey, Box<StoreError>),
    #[error("this agent cannot join yet: {0}; try again in a moment")]
    NotReady(&'static str),
    #[error("the inviter's bundle cannot be fetched: {0}")]
    Fetch(FirstFetchError),
    #[error(
        "the bundle that {url} serves is not the one that the invite was made with. Its fingerprint is {served}, and the \
         invite says {expected}: either {inviter} has rotated its authorities since, or someone else answers there. Do \
         not go on; {way_out}"
    )]
    Fingerprint { url: String, inviter: TrustDomain, served: String, expected: String, way_out: &'static str },
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

/// A join up to the point at which the secret is shown, and to whom.
struct Prepared {
    joined: Joined,
    asked: Option<TlsStream<TcpStream>>,
    own_bundle: Arc<Bundle>,
}

/// The joiner's side.
#[derive(Clone, Debug)]
pub struct Joiner {
    pub store: Store,
    pub source: IdentitySource,
    pub endpoints: EndpointClient,
    /// What must not be left half way: the agent ends once these have ended.
    pub unfinished: TaskTracker,
}

impl Joiner {
    /// Joins by this token; `own` is how we are reached, `world` what is known now. Once the secret is shown it goes on to
    /// its end, whether or not this is still waited for.
    ///
    /// # Errors
    /// [`JoinError`], which is logged too.
    pub async fn join(
        &self,
        world: &World,
        own: &Offer,
        token: &Token,
        until: Until,
    ) -> Result<Joined, JoinError> {
        let prepared = self.prepare(world, own, token, until).await;
        let Prepared { joined, asked, own_bundle } = prepared.inspect_err(|error| warn(token, error))?;
        if until != Until::DryRun {
            self.finish(asked, token, own, own_bundle, joined.here.clone()).await?;
        }
        Ok(joined)
    }

    /// Everything before the secret is shown: changes nothing.
    async fn prepare(
        &self,
        world: &World,
        own: &Offer,
        token: &Token,
        until: Until,
    ) -> Result<Prepared, JoinError> {
        let own_bundle = check_token(world, own, token, until)?;
        let inviter = &token.inviter;
        self.check_store(&inviter.trust_domain).await?;
        let bundle = self
            .endpoints
            .fetch_first(&inviter.trust_domain, &inviter.endpoint, token.fingerprint, world.now)
            .await
            .map_err(|error| fetch_error(error, token, until))?;
        screening::screen(world, &bundle)?;
        let (mut agent, mut asked) = (None, None);
        if until != Until::Accepted {
            let (stream, id) = dial(&self.source, token, &bundle).await?;
            agent = Some(id);
            asked = (until == Until::Joined).then_some(stream);
        }
        let joined = Joined {
            inviter: inviter.trust_domain.clone(),
            agent,
            fingerprint: spoken(&token.fingerprint),
            own_fingerprint: spoken(&own_bundle.digest()),
            here: inviter.peer_object(&bundle),
            there: own.peer_object(&own_bundle),
        };
        Ok(Prepared { joined, asked, own_bundle })
    }

    async fn check_store(&self, inviter: &TrustDomain) -> Result<(), JoinError> {
        let key = Offer::peer_key(inviter);
        match self.store.get(&key).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(JoinError::AlreadyAPeer { key, trust_domain: inviter.clone() }),
            Err(error) => Err(JoinError::OurStore(key, Box::new(error))),
        }
    }

    /// Shows the secret to whom `asked` leads, and makes our side: a task of its own, which ends also where nobody waits for
    /// it any more.
    async fn finish(
        &self,
        asked: Option<TlsStream<TcpStream>>,
        token: &Token,
        own: &Offer,
        own_bundle: Arc<Bundle>,
        here: Object,
    ) -> Result<(), JoinError> {
        let (store, token, own) = (self.store.clone(), token.clone(), own.clone());
        let inviter = token.inviter.trust_domain.clone();
        if self.unfinished.is_closed() {
            return Err(JoinError::NotReady("it is being stopped"));
        }
        let finishing = self.unfinished.spawn(async move {
            let made = async {
                if let Some(stream) = asked {
                    ask(stream, &token, &own, &own_bundle).await?;
                }
                let created = store.create_for_operator(&here).await;
                created.map_err(|error| JoinError::NotWritten(here.key.clone(), Box::new(error)))?;
                tracing::info!(trust_domain = %token.inviter.trust_domain, object = %here.key, "joined by invite");
                Ok(())
            };
            made.await.inspect_err(|error| warn(&token, error))
        });
        let broken = |error: JoinFailure| JoinError::AnswerLost(error.to_string(), inviter);
        finishing.await.unwrap_or_else(|error| Err(broken(error)))
    }
}

/// What can be said of a token without asking anyone; our own bundle.
fn check_token(world: &World, own: &Offer, token: &Token, until: Until) -> Result<Arc<Bundle>, JoinError> {
    let not_ready = JoinError::NotReady;
    if !world.is_read() {
        return Err(not_ready("not every object has been read"));
    }
    let spire = world.spire.as_ref().ok_or(not_ready("SPIRE's server API has not answered"))?;
    let bundle = spire.own.clone().ok_or(not_ready("SPIRE has not told our own bundle"))?;
    if token.joiner != own.trust_domain {
        return Err(JoinError::NotForUs { invited: token.joiner.clone(), own: own.trust_domain.clone() });
    }
    // What the inviter has accepted was not expired then.
    if token.expires <= world.now && until != Until::Accepted {
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

/// What the operator does not see where the command was stopped meanwhile.
fn warn(token: &Token, error: &JoinError) {
    if !matches!(error, JoinError::NotReady(_)) {
        tracing::warn!(inviter = %token.inviter.trust_domain, invite = %token.id, %error, "not joined");
    }
}

fn fetch_error(error: FirstFetchError, token: &Token, until: Until) -> JoinError {
    let way_out = if until == Until::Accepted {
        "the invite is used up: have the TrustDomainPeer of ours deleted there, ask for a new invite, and compare the \
         fingerprint by voice; or write our TrustDomainPeer by hand, with a bundle that was compared by voice"
    } else {
        "ask there for a new invite, and compare the fingerprint by voice"
    };
    match error {
        FirstFetchError::Fingerprint { url, served } => JoinError::Fingerprint {
            url: url.to_string(),
            inviter: token.inviter.trust_domain.clone(),
            served: spoken(&served),
            expected: spoken(&token.fingerprint),
            way_out,
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
        wire::read::<EnrolReply>(&mut stream, ANSWER).await
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

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;

//! Where a joiner comes in: what it shows is checked, in the order in which it costs a stranger most and us least.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::invites::{InviteError, Invites, Shown};
use super::offer::Offer;
use super::screening::{self, BundleRefusal};
use super::token::{InviteId, Secret};
use super::wire;
use crate::bundle::document;
use crate::clock;
use crate::federation::wire::Wire;
use crate::identity::peer_tls::{Check, serving};
use crate::identity::source::IdentitySource;
use crate::identity::verify::{Role, moment, verify_svid};
use crate::index::run::WorldHandle;
use crate::model::{Bundle, World};
use crate::proto::enrol::v1::{EnrolReply, EnrolRequest, Outcome};
use crate::rate::{Sources, TokenBucket, network};
use crate::store::{Severity, Store};

/// Requests that are judged at one time, of one network and in all, and how long one waits for its turn.
const AT_ONCE_A_NETWORK: usize = 2;
const AT_ONCE: usize = 8;
const TURN: Duration = Duration::from_secs(2);
/// Connections of joiners: of one network, and of all.
const PER_SECOND: u32 = 1;
const BURST: u32 = 10;
const TOTAL_PER_SECOND: u32 = 10;
const TOTAL_BURST: u32 = 40;
/// How long a joiner may be silent once it is received.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// How long a joiner may take to send what it has to say, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest that our own part may take: it reads and writes the store.
const OWN_PART: Duration = Duration::from_secs(20);

/// What is read of a joiner after its answer, and for how long.
const LINGER_BYTES: u64 = 512 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// Receives joiners while an invite is open.
pub struct Desk {
    config: Arc<ServerConfig>,
    invites: Invites,
    store: Store,
    worlds: WorldHandle,
    /// What must not be left half way.
    unfinished: TaskTracker,
    places: Places,
    rate: Mutex<Rate>,
}

/// How often someone may come with this protocol: from one network, and in all.
#[derive(Debug)]
struct Rate {
    sources: Sources,
    total: TokenBucket,
    /// For the log of those who come while no invite is open.
    strays: TokenBucket,
    origin: Instant,
}

/// What is judged at one time. Whoever is silent holds no place: it is taken for a request that was read.
struct Places {
    all: Semaphore,
    networks: Mutex<BTreeMap<IpAddr, Arc<Semaphore>>>,
}

impl Places {
    fn new() -> Self {
        Self { all: Semaphore::new(AT_ONCE), networks: Mutex::default() }
    }

    async fn take(&self, source: IpAddr) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'_>)> {
        let of_network = {
            let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
            // those that are held, or waited for, are known elsewhere too
            networks.retain(|_, places| Arc::strong_count(places) > 1);
            let fresh = || Arc::new(Semaphore::new(AT_ONCE_A_NETWORK));
            Arc::clone(networks.entry(network(source)).or_insert_with(fresh))
        };
        let taken = async { Some((of_network.acquire_owned().await.ok()?, self.all.acquire().await.ok()?)) };
        timeout(TURN, taken).await.ok().flatten()
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("invites", &self.invites).finish_non_exhaustive()
    }
}

/// Why a joiner was refused: what it is told, and what is logged.
struct Refused {
    outcome: Outcome,
    why: String,
}

impl Refused {
    fn new(outcome: Outcome, why: impl Into<String>) -> Self {
        Self { outcome, why: why.into() }
    }
}

impl Desk {
    /// A desk that presents our SVID. What must not be left half way is in `unfinished`.
    ///
    /// # Errors
    /// Where the provider does not offer TLS 1.3.
    pub fn new(
        source: &IdentitySource,
        invites: Invites,
        store: Store,
        worlds: WorldHandle,
        unfinished: TaskTracker,
    ) -> Result<Self, rustls::Error> {
        // That its key is held is seen; whose it is, is judged once the bundle is known that the joiner brings.
        let anybody: Check = Arc::new(|_, _, _| Ok(()));
        let config = serving(source, anybody, super::ALPN)?;
        let rate = Rate {
            sources: Sources::new(PER_SECOND, BURST),
            total: TokenBucket::new(TOTAL_PER_SECOND, TOTAL_BURST, Duration::ZERO),
            strays: TokenBucket::new(1, 5, Duration::ZERO),
            origin: Instant::now(),
        };
        let (places, rate) = (Places::new(), Mutex::new(rate));
        Ok(Self { config: Arc::new(config), invites, store, worlds, unfinished, places, rate })
    }

    /// Logs that someone came to join while no invite is open, at most once a second.
    pub(crate) fn stray(&self, source: IpAddr) {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let now = rate.origin.elapsed();
        if rate.strays.take(now) {
            refusal(source, "no invite is open");
        }
    }

    /// Whether one more from there is within the rates; of a stranger who is not, nothing more is read.
    pub(crate) fn admits(&self, source: IpAddr) -> bool {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let now = rate.origin.elapsed();
        rate.sources.allow(source) && rate.total.take(now)
    }

    /// Whether an invite is open: without one nobody is received.
    pub(crate) fn is_open(&self) -> bool {
        self.invites.is_open(clock::now())
    }

    /// For the handshake with a joiner.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// One request, one answer.
    pub(crate) async fn receive(&self, mut stream: TlsStream<Wire>, source: IpAddr) {
        let request = match timeout(PATIENCE, wire::read::<EnrolRequest>(&mut stream, FIRST_WORD)).await {
            Err(_) => return refusal(source, "it did not say all in time"),
            // a dry run ends here: it has seen who we are, and shows nothing
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return tracing::info!(%source, "a joiner looked who we are, and went");
            }
            Ok(Err(error)) => return refusal(source, &error.to_string()),
            Ok(Ok(request)) => request,
        };
        let outcome = match self.places.take(source).await {
            Some(_place) => self.answer(&request, &chain(&stream), source).await,
            None => {
                refusal(source, "too many joiners at one time");
                Outcome::Busy
            }
        };
        let reply = EnrolReply { outcome: outcome.into() };
        let answered = async {
            wire::write(&mut stream, &reply).await?;
            stream.shutdown().await?;
            // what it still sends is let run out, or a reset would overtake the answer
            let mut rest = stream.take(LINGER_BYTES);
            let _ = timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
            Ok::<_, io::Error>(())
        };
        match timeout(PATIENCE, answered).await {
            Ok(Ok(())) => {}
            _ => tracing::info!(%source, ?outcome, "a joiner did not read its answer"),
        }
    }

    async fn answer(
        &self,
        request: &EnrolRequest,
        chain: &[CertificateDer<'static>],
        source: IpAddr,
    ) -> Outcome {
        match self.enrol(request, chain, source).await {
            Ok(()) => Outcome::Accepted,
            Err(refused) => {
                tracing::warn!(%source, outcome = ?refused.outcome, reason = refused.why, "enrolment refused");
                refused.outcome
            }
        }
    }

    /// The checks, the burning and the making, in this order.
    async fn enrol(
        &self,
        request: &EnrolRequest,
        chain: &[CertificateDer<'static>],
        source: IpAddr,
    ) -> Result<(), Refused> {
        let late = || Refused::new(Outcome::Busy, "our own store or planning took too long");
        let checked = timeout(OWN_PART, self.check(request, chain)).await;
        let (shown, offer, bundle) = checked.unwrap_or_else(|_| Err(late()))?;
        // From here on nothing is given up half way, even where the agent stops: a task of its own, each of whose requests
        // to the store is bounded by itself.
        if self.unfinished.is_closed() {
            return Err(Refused::new(Outcome::Busy, "we are stopping"));
        }
        let (invites, store) = (self.invites.clone(), self.store.clone());
        let making = self
            .unfinished
            .spawn(async move { make(&invites, &store, &shown, &offer, &bundle, source).await });
        making.await.unwrap_or_else(|_| {
            Err(Refused::new(Outcome::NotWritten, "it broke off; see whether a TrustDomainPeer is there"))
        })
    }

    /// Everything that must hold before the invite is burnt.
    async fn check(
        &self,
        request: &EnrolRequest,
        chain: &[CertificateDer<'static>],
    ) -> Result<(Shown, Offer, Arc<Bundle>), Refused> {
        let now = clock::now();
        let malformed = || Refused::new(Outcome::InviteNotValid, "no invite ID or no secret");
        let id = InviteId::from_bytes(&request.invite_id).ok_or_else(malformed)?;
        let secret = Secret::from_bytes(&request.secret).ok_or_else(malformed)?;
        // The cause of what our own store did not do is not told.
        let failed = |error: InviteError| Refused::new(Outcome::Busy, error.to_string());
        let shown = self.invites.show(id, &secret, now).await.map_err(failed)?;
        let shown = shown.ok_or_else(|| {
            Refused::new(Outcome::InviteNotValid, format!("invite {id}: not open, or another secret"))
        })?;
        let world = self.worlds.now().await.ok_or_else(|| Refused::new(Outcome::Busy, "we are stopping"))?;
        let (offer, bundle) = judge(&world, &shown.invite.joiner, request, chain, moment(now))?;
        let key = Offer::peer_key(&offer.trust_domain);
        match self.store.get(&key).await {
            Ok(None) => Ok((shown, offer, bundle)),
            Ok(Some(_)) => Err(Refused::new(Outcome::AlreadyAPeer, format!("{key} is there already"))),
            Err(error) => Err(Refused::new(Outcome::Busy, error.to_string())),
        }
    }
}

/// Burns the invite, and makes the peer.
async fn make(
    invites: &Invites,
    store: &Store,
    shown: &Shown,
    offer: &Offer,
    bundle: &Bundle,
    source: IpAddr,
) -> Result<(), Refused> {
    let (id, object) = (shown.id, offer.peer_object(bundle));
    match invites.burn(shown, clock::now()).await {
        Ok(true) => {}
        Ok(false) => {
            let why = format!("invite {id}: used by another meanwhile");
            return Err(Refused::new(Outcome::InviteNotValid, why));
        }
        Err(error) => {
            let why = format!("invite {id} may be used up, and {} was not made: {error}", object.key);
            return Err(Refused::new(Outcome::NotWritten, why));
        }
    }
    let created = store.create_for_operator(&object).await.map_err(|error| {
        let why = format!(
            "invite {id} is used up, but {} could not be made: {error}; mend that and invite again",
            object.key
        );
        Refused::new(Outcome::NotWritten, why)
    })?;
    let message = format!(
        "joined by invite, from {source}: compare the fingerprint {} by voice with what `entente join` printed there",
        super::fingerprint::spoken(&bundle.digest())
    );
    store.event(&created.key, &created.meta.uid, Severity::Normal, "Joined", &message).await;
    Ok(())
}

/// Everything about a joiner that needs no I/O.
fn judge(
    world: &World,
    invited: &crate::model::TrustDomain,
    request: &EnrolRequest,
    chain: &[CertificateDer<'static>],
    at: UnixTime,
) -> Result<(Offer, Arc<Bundle>), Refused> {
    if !world.is_read() || world.spire.is_none() {
        return Err(Refused::new(Outcome::Busy, "we have not read everything yet"));
    }
    let given = request.joiner.clone().unwrap_or_default();
    if given.trust_domain != invited.as_str() {
        let why = format!("the invite is for {invited}, and {:.60?} came", given.trust_domain);
        return Err(Refused::new(Outcome::OtherTrustDomain, why));
    }
    if world.own_trust_domain() == Some(invited) || screening::is_peer(world, invited) {
        return Err(Refused::new(Outcome::AlreadyAPeer, format!("{invited} is our own, or a peer already")));
    }
    let offer = Offer::parse(&given).map_err(|error| Refused::new(Outcome::BadOffer, error.to_string()))?;
    let bundle = document::parse(invited, request.bundle.as_bytes())
        .map_err(|error| Refused::new(Outcome::BadBundle, error.to_string()))?;
    let bundle = Arc::new(bundle.bundle);
    screening::screen(world, &bundle).map_err(|refusal| match refusal {
        BundleRefusal::Unusable(_) => Refused::new(Outcome::BadBundle, refusal.to_string()),
        BundleRefusal::Shared { .. } => Refused::new(Outcome::SharedAuthority, refusal.to_string()),
    })?;
    let held = |asked: &_| (asked == invited).then(|| Arc::clone(&bundle));
    let id = verify_svid(chain, &held, Role::Client, at)
        .map_err(|error| Refused::new(Outcome::NotTheAgent, error.to_string()))?;
    if !offer.agent_ids.contains(&id) {
        return Err(Refused::new(Outcome::NotTheAgent, format!("{id} is none of the agents that it names")));
    }
    Ok((offer, bundle))
}

fn refusal(source: IpAddr, reason: &str) {
    tracing::warn!(%source, reason, "enrolment refused");
}

fn chain(stream: &TlsStream<Wire>) -> Vec<CertificateDer<'static>> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain.iter().cloned().map(CertificateDer::into_owned).collect()
}

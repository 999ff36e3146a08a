//! Gathers what is seen, looks again at what is in motion, asks the peer; and answers peers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::{Diagnosis, Step};
use super::evidence::{Evidence, PeerWord, SpireSeen, WorkloadSeen};
use super::judge;
use super::probe::{self, Pace};
use crate::bundle::endpoint::EndpointClient;
use crate::clock;
use crate::federation::diagnose::{PathProbe, Question, Questions};
use crate::identity::source::{AskError, ask_once};
use crate::identity::workload::WorkloadEndpoint;
use crate::index::run::WorldHandle;
use crate::model::diagnosis::{Outcome, ToldCheck};
use crate::model::object::Kind;
use crate::model::session::SessionState;
use crate::model::trust::SpireState;
use crate::model::{ObjectKey, TrustDomain, World};
use crate::spire::SpireServer;

/// What is in motion is looked at again after this time, until this much has passed: SPIRE's agents follow their
/// server within some six seconds.
const AGAIN: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_secs(9);
/// A peer that tells of a failure is asked once more after this time (it answers one question in five seconds), where so
/// little has passed that whoever waits for the answer still does.
const ASK_AGAIN: Duration = Duration::from_secs(6);
const ASK_TWICE_WITHIN: Duration = Duration::from_secs(25);
/// Answers to peers that are made at one time.
const ANSWERS: usize = 4;

/// Why nothing was looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiagnoseError {
    #[error("the agent is stopping")]
    Stopping,
    #[error("{0:?} is neither a trust domain nor the name of a TrustDomainPeer")]
    Name(String),
}

/// Diagnoses the path to peers.
#[derive(Clone, Debug)]
pub struct Diagnoser {
    /// Everything that the agent knows, at the moment of asking.
    pub worlds: WorldHandle,
    /// Whether this replica leads, and its name.
    pub leading: watch::Receiver<bool>,
    pub replica: String,
    /// Where the Workload API is, and which hint the admin registration has there.
    pub workload_api: WorkloadEndpoint,
    pub admin_hint: String,
    pub spire: SpireServer,
    pub endpoints: EndpointClient,
    pub peers: PathProbe,
}

impl Diagnoser {
    /// Walks the path to a peer, named by its trust domain or by its object, whether or not there is one. Takes up to
    /// 50 s.
    ///
    /// # Errors
    /// [`DiagnoseError`].
    pub async fn diagnose(&self, asked: &str, ask_peer: bool) -> Result<Diagnosis, DiagnoseError> {
        let start = Instant::now();
        let world = self.worlds.now().await.ok_or(DiagnoseError::Stopping)?;
        let trust_domain = &named(&world, asked).ok_or_else(|| DiagnoseError::Name(asked.to_owned()))?;
        let look = async || {
            let seen = self.look(trust_domain).await.ok_or(DiagnoseError::Stopping)?;
            Ok(Evidence { asked: asked.to_owned(), ..seen })
        };
        let mut evidence = look().await?;
        while start.elapsed() < SETTLE && is_in_motion(&evidence) {
            tokio::time::sleep(AGAIN).await;
            evidence = look().await?;
        }
        if ask_peer {
            evidence.word = self.word(trust_domain).await;
            // the peer tells what it knew at its last look, which may mend itself within seconds too
            if evidence.word.names_a_failure() && start.elapsed() < ASK_TWICE_WITHIN {
                tokio::time::sleep(ASK_AGAIN).await;
                evidence.word = self.word(trust_domain).await;
            }
        }
        let checks = judge::checks(&evidence);
        Ok(judge::conclude(&evidence, checks))
    }

    async fn word(&self, trust_domain: &TrustDomain) -> PeerWord {
        match self.peers.ask(trust_domain).await {
            Ok(told) => PeerWord::Told(told),
            Err(why) => PeerWord::Silent(why.to_string()),
        }
    }

    /// One look at everything.
    async fn look(&self, trust_domain: &TrustDomain) -> Option<Evidence> {
        let known = self.worlds.now().await?;
        let peer = known.peers.get(trust_domain).cloned();
        let own = known.own_trust_domain().cloned();
        let session = known.sessions.get(trust_domain);
        let shake_hands = *self.leading.borrow()
            && known.identity.is_some()
            && !session.is_some_and(SessionState::is_connected);
        let (workload, spire, endpoint, gateways, agent) = tokio::join!(
            self.workload_api(),
            self.spire(own.as_ref()),
            async {
                match &peer {
                    Some(peer) => probe::endpoint(&self.endpoints, &known, peer, Pace::PATIENT).await,
                    None => Default::default(),
                }
            },
            probe::gateways(&known, trust_domain),
            async {
                match &peer {
                    Some(peer) => probe::agent(&self.peers, peer, shake_hands).await,
                    None => Vec::new(),
                }
            },
        );
        // what was learned meanwhile counts, and of SPIRE what it says now
        let world = self.worlds.now().await?;
        let spire = spire.map(|state| with_servers(state, &world));
        let world = overlaid(&world, &workload, &spire);
        Some(Evidence {
            endpoint,
            gateways,
            agent,
            is_patient: true,
            ..self.evidence(trust_domain, world, workload, spire)
        })
    }

    fn evidence(
        &self,
        trust_domain: &TrustDomain,
        world: Arc<World>,
        workload: WorkloadSeen,
        spire: SpireSeen,
    ) -> Evidence {
        Evidence {
            world,
            trust_domain: trust_domain.clone(),
            asked: trust_domain.to_string(),
            workload_api: self.workload_api.to_string(),
            spire_server: self.spire.name().to_owned(),
            workload,
            spire,
            endpoint: Default::default(),
            gateways: Default::default(),
            agent: Vec::new(),
            word: PeerWord::NotAsked,
            leads: *self.leading.borrow(),
            replica: self.replica.clone(),
            is_patient: false,
        }
    }

    async fn workload_api(&self) -> WorkloadSeen {
        match ask_once(&self.workload_api, Some(&self.admin_hint)).await {
            Ok(identity) => WorkloadSeen::Delivered(identity),
            Err(AskError::Refused(cause)) => WorkloadSeen::Refused(cause),
            Err(AskError::Unreachable(cause)) => WorkloadSeen::Unreachable(cause),
        }
    }

    async fn spire(&self, own: Option<&TrustDomain>) -> Result<Option<SpireState>, String> {
        match own {
            Some(own) => self.spire.read(own).await.map(Some),
            // which server is ours is not known yet, but whether one answers is
            None => self.spire.answers().await.map(|()| None),
        }
        .map_err(|error| error.to_string())
    }

    /// Answers what peers ask, until `cancel` or until no more come.
    pub async fn serve(self, mut questions: Questions, cancel: CancellationToken) {
        let permits = Arc::new(Semaphore::new(ANSWERS));
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                question = questions.recv() => {
                    let Some(Question { peer, reply }) = question else { return };
                    // a peer that is not answered takes it for silence
                    let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
                    let diagnoser = self.clone();
                    tasks.spawn(async move {
                        if let Some(checks) = diagnoser.answer(&peer).await {
                            // who asked may have gone
                            let _ = reply.send(checks);
                        }
                        drop(permit);
                    });
                }
            }
        }
    }

    /// What a peer is told: what the agent knows, and a quick look at what its own configuration names. Nothing that
    /// the peer says chooses what is looked at.
    async fn answer(&self, trust_domain: &TrustDomain) -> Option<Vec<ToldCheck>> {
        tracing::info!(peer = %trust_domain, "the peer asks what we see of the path");
        let known = self.worlds.now().await?;
        let peer = known.peers.get(trust_domain).cloned()?;
        let (workload, endpoint) =
            tokio::join!(self.workload_api(), probe::endpoint(&self.endpoints, &known, &peer, Pace::QUICK));
        let world = self.worlds.now().await?;
        let spire = match &world.spire {
            Some(state) => state.failure.clone().map_or(Ok(Some(Arc::clone(state))), Err),
            None => Err("SPIRE's server API was not read yet".to_owned()),
        };
        let world = overlaid(&world, &workload, &spire);
        let evidence = Evidence { endpoint, ..self.evidence(trust_domain, world, workload, spire) };
        let told =
            |step: Step| !matches!(step, Step::PeerView | Step::Gateways | Step::AgentDns | Step::AgentTcp);
        let checks = judge::checks(&evidence);
        Some(checks.iter().filter(|check| told(check.step)).map(super::Check::to_told).collect())
    }
}

#[cfg(test)]
impl Diagnoser {
    /// One that knows nothing and reaches nobody.
    pub(crate) fn idle(worlds: WorldHandle) -> Self {
        let tls = rustls::RootCertStore::empty();
        Self {
            worlds,
            leading: watch::channel(true).1,
            replica: "one".to_owned(),
            workload_api: WorkloadEndpoint::Unix("/nowhere".into()),
            admin_hint: String::new(),
            spire: SpireServer::connect_unix("/nowhere"),
            endpoints: EndpointClient::new(tls),
            peers: PathProbe::idle(),
        }
    }
}

/// The trust domain that is meant: what is described by a TrustDomainPeer, by either name, before what only could be.
fn named(world: &World, asked: &str) -> Option<TrustDomain> {
    let spelt = TrustDomain::new(asked).ok();
    if spelt.as_ref().is_some_and(|trust_domain| world.peers.contains_key(trust_domain)) {
        return spelt;
    }
    let by_object =
        world.peers.values().find(|peer| peer.object == asked).map(|peer| peer.trust_domain.clone());
    let of_name = |key: &ObjectKey| key.kind == Kind::TrustDomainPeer && key.name == asked;
    let rejected = || world.rejected.iter().find(|(key, _)| of_name(key))?.1.trust_domain.clone();
    by_object.or_else(rejected).or(spelt)
}

/// The world, with what SPIRE said just now in it.
fn overlaid(world: &Arc<World>, workload: &WorkloadSeen, spire: &SpireSeen) -> Arc<World> {
    let mut world = World::clone(world);
    world.now = clock::now();
    if let WorkloadSeen::Delivered(identity) = workload {
        world.identity = Some(Arc::clone(identity));
        world.workload_failure = None;
    }
    if let Ok(Some(state)) = spire {
        world.spire = Some(Arc::clone(state));
    }
    Arc::new(world)
}

/// What was read of the first server, with what is known of all of them.
fn with_servers(state: Option<SpireState>, world: &World) -> Option<Arc<SpireState>> {
    let servers = world.spire.as_ref().map(|known| known.servers.clone()).unwrap_or_default();
    state.map(|state| Arc::new(SpireState { servers, ..state }))
}

/// Whether what looks broken may mend itself within seconds.
fn is_in_motion(evidence: &Evidence) -> bool {
    let checks = judge::checks(evidence);
    let failed = checks.iter().find(|check| check.outcome == Outcome::Failed);
    failed.is_some_and(|check| check.step.is_in_motion())
}

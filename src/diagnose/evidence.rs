//! What was seen, as plain data. Everything that is judged stands here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::bundle::endpoint::{FailedProbe, Fetched};
use crate::model::diagnosis::{Outcome, ToldCheck};
use crate::model::own::Identity;
use crate::model::reach::Attempt;
use crate::model::service::GatewayAddress;
use crate::model::session::LinkState;
use crate::model::trust::SpireState;
use crate::model::{SpiffeId, TrustDomain, World};

/// What the Workload API said when it was asked now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadSeen {
    Delivered(Arc<Identity>),
    /// It answers, and gives us nothing that we can use.
    Refused(String),
    Unreachable(String),
}

/// What SPIRE's server API said when it was read now.
/// `None` where it answers, and our own trust domain is not known yet.
pub type SpireSeen = Result<Option<Arc<SpireState>>, String>;

/// What was seen of the peer's bundle endpoint. A stage is absent where one before it failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSeen {
    /// Its addresses.
    pub dns: Option<Result<Vec<SocketAddr>, String>>,
    /// The address that took the connection.
    pub tcp: Option<Result<SocketAddr, TcpFailure>>,
    pub fetch: Option<Result<Fetched, FailedProbe>>,
}

/// A TCP connection that did not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpFailure {
    pub cause: String,
    /// The host answered that nobody listens there; else nothing came back.
    pub is_refused: bool,
}

/// What was seen at one address of the peer's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSeen {
    pub address: String,
    pub dns: Result<Vec<SocketAddr>, String>,
    pub tcp: Option<Result<SocketAddr, TcpFailure>>,
    /// Absent where the exchange stands, or we have nothing to show.
    pub handshake: Option<Result<SpiffeId, LinkState>>,
}

/// What the peer told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerWord {
    /// Nobody wanted to know.
    NotAsked,
    /// It was asked and told nothing, for this reason.
    Silent(String),
    Told(Vec<ToldCheck>),
}

impl PeerWord {
    /// Whether the peer told that a link is broken.
    #[must_use]
    pub fn names_a_failure(&self) -> bool {
        matches!(self, Self::Told(told) if told.iter().any(|check| check.outcome == Outcome::Failed))
    }
}

/// Everything that was seen.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What the agent knew; where SPIRE and the Workload API answered just now, with their answers in it.
    pub world: Arc<World>,
    /// Whom it is about.
    pub trust_domain: TrustDomain,
    /// How it was asked for: by its trust domain, or by the name of its object.
    pub asked: String,
    /// Where the Workload API, and SPIRE's server API, are.
    pub workload_api: String,
    pub spire_server: String,
    pub workload: WorkloadSeen,
    pub spire: SpireSeen,
    pub endpoint: EndpointSeen,
    pub agent: Vec<AddressSeen>,
    /// What came of trying the peer's gateways now, of those that the agent tries.
    pub gateways: BTreeMap<GatewayAddress, Attempt>,
    pub word: PeerWord,
    pub leads: bool,
    pub replica: String,
    /// Whether there is time to look again at what is in motion; else what is on its way is no failure.
    pub is_patient: bool,
}

//! The limits of an exchange, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use crate::model::diagnosis::ToldCheck;
use crate::model::session::{Acknowledgement, Catalogue, GoodbyeReason, LinkState, TrustReport};

/// The times and rates of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// How often something is said.
    pub heartbeat: Duration,
    /// How long the peer may be silent.
    pub silence: Duration,
    /// How long the peer may take for its Hello.
    pub hello: Duration,
    pub frames_per_second: u32,
    pub frames_burst: u32,
    /// To follow changes of a catalogue, however few, costs as much as all of it: so often a second, and so often at once, it is
    /// done. What comes meanwhile is followed together.
    pub changes_per_second: u32,
    pub changes_burst: u32,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            hello: Duration::from_secs(10),
            frames_per_second: 100,
            frames_burst: 1_000,
            changes_per_second: 10,
            changes_burst: 50,
        }
    }
}

/// What the peer has said in this exchange.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    pub remote: Option<TrustReport>,
    pub catalogue: Option<Arc<Catalogue>>,
    pub acknowledged: Option<Acknowledgement>,
    /// See [`SessionState::skew`](crate::model::session::SessionState::skew).
    pub skew: Option<i64>,
}

/// What a peer says beside the exchange itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aside {
    /// It asks what we see of the path.
    Asked(u64),
    /// It answers what we asked.
    Told(u64, Vec<ToldCheck>),
}

/// How an exchange ended, as far as the peer is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// We said goodbye.
    Ours(GoodbyeReason),
    /// The other stream between the two is kept.
    AlreadyConnected,
    /// What there is to say of the peer.
    Link(LinkState),
}

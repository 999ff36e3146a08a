//! Asking a peer what it sees of the path between the two, and being asked. What is told is the peer's word.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::client::{Target, reach};
use super::convert::{message, printable};
use super::manager::{Hub, Timings};
use crate::identity::peer_tls::Authorize;
use crate::model::diagnosis::{Outcome, Side, ToldCheck};
use crate::model::session::LinkState;
use crate::model::{Peer, SpiffeId, TrustDomain};
use crate::proto::federation::v1 as proto;

/// How long a peer is given to tell what it sees.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// At most one question of a peer is answered in this time; one more waits for it, and others are passed over.
pub const ANSWER_EVERY: Duration = Duration::from_secs(5);
/// Most checks of one reply.
pub const MAX_CHECKS: usize = 64;
/// Most characters of the name of a step.
const MAX_STEP: usize = 64;

/// Why a peer told nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("there is no exchange with its agent now")]
    NotConnected,
    #[error("it is being asked already, by several")]
    Busy,
    #[error("it did not answer within {} s; an older version of the agent does not", PATIENCE.as_secs())]
    NoAnswer,
    #[error("the exchange ended before it answered")]
    Ended,
}

/// What we want to know of a peer.
pub(super) type Ask = oneshot::Sender<Result<Vec<ToldCheck>, AskError>>;

/// A peer wants to know what we see of the path to it. Unanswered where `reply` is dropped.
#[derive(Debug)]
pub struct Question {
    pub peer: TrustDomain,
    pub reply: oneshot::Sender<Vec<ToldCheck>>,
}

/// Where the questions of peers come out.
pub type Questions = mpsc::Receiver<Question>;

/// Looks at the path to peers' agents.
#[derive(Clone)]
pub struct PathProbe {
    pub(super) hub: Arc<Hub>,
    pub(super) timings: Timings,
}

impl std::fmt::Debug for PathProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PathProbe").finish_non_exhaustive()
    }
}

impl PathProbe {
    /// Asks the agent of a trust domain what it sees, over the exchange that stands. Takes up to [`PATIENCE`].
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, trust_domain: &TrustDomain) -> Result<Vec<ToldCheck>, AskError> {
        let (ask, answer) = oneshot::channel();
        self.hub.ask(trust_domain, ask)?;
        match timeout(PATIENCE, answer).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => Err(AskError::Ended),
            Err(_) => Err(AskError::NoAnswer),
        }
    }

    /// Shakes hands with what answers at one address of a peer's agent, and hangs up: who it is, where it is the peer's
    /// agent and accepts us.
    ///
    /// # Errors
    /// What it means for the link, as in [`crate::model::session::SessionState`].
    pub async fn reach(&self, peer: &Peer, address: &str) -> Result<SpiffeId, LinkState> {
        let ids = peer.agent_ids.clone();
        let authorize: Authorize = Arc::new(move |id: &SpiffeId| ids.contains(id));
        let target = Target {
            trust_domain: peer.trust_domain.clone(),
            addresses: Vec::new(),
            authorize,
            source: self.hub.source.clone(),
        };
        reach(&target, address, self.timings).await.map(|greeted| greeted.id)
    }
}

#[cfg(test)]
impl PathProbe {
    /// Of an agent that has no peers.
    pub(crate) fn idle() -> Self {
        let plans = tokio::sync::watch::channel(super::manager::LinkPlans::default()).1;
        let source = crate::identity::source::IdentitySource::empty();
        Self { hub: Arc::new(Hub::new(source, plans)), timings: Timings::default() }
    }
}

/// The checks of a reply, cut to what is bounded and printable.
#[must_use]
pub fn checks_from_proto(checks: &[proto::DiagnoseCheck]) -> Vec<ToldCheck> {
    let check = |check: &proto::DiagnoseCheck| ToldCheck {
        step: printable(&check.step, MAX_STEP),
        outcome: match proto::DiagnoseOutcome::try_from(check.outcome) {
            Ok(proto::DiagnoseOutcome::Passed) => Outcome::Passed,
            Ok(proto::DiagnoseOutcome::Failed) => Outcome::Failed,
            _ => Outcome::Skipped,
        },
        message: message(&check.message),
        remedy: message(&check.remedy),
        // what is on the sender's side is not on ours
        side: match proto::DiagnoseSide::try_from(check.side) {
            Ok(proto::DiagnoseSide::Sender) => Some(Side::Theirs),
            Ok(proto::DiagnoseSide::Receiver) => Some(Side::Ours),
            Ok(proto::DiagnoseSide::Between) => Some(Side::Between),
            Ok(proto::DiagnoseSide::Unspecified) | Err(_) => None,
        },
    };
    checks.iter().take(MAX_CHECKS).map(check).collect()
}

/// A reply, bounded as the reader bounds it.
#[must_use]
pub fn reply_to_proto(id: u64, checks: &[ToldCheck]) -> proto::DiagnoseReply {
    let check = |check: &ToldCheck| proto::DiagnoseCheck {
        step: printable(&check.step, MAX_STEP),
        outcome: match check.outcome {
            Outcome::Passed => proto::DiagnoseOutcome::Passed,
            Outcome::Failed => proto::DiagnoseOutcome::Failed,
            Outcome::Skipped => proto::DiagnoseOutcome::Skipped,
        }
        .into(),
        message: message(&check.message),
        remedy: message(&check.remedy),
        side: match check.side {
            Some(Side::Ours) => proto::DiagnoseSide::Sender,
            Some(Side::Theirs) => proto::DiagnoseSide::Receiver,
            Some(Side::Between) => proto::DiagnoseSide::Between,
            None => proto::DiagnoseSide::Unspecified,
        }
        .into(),
    };
    proto::DiagnoseReply { id, checks: checks.iter().take(MAX_CHECKS).map(check).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_bounded_and_printable() {
        let check = proto::DiagnoseCheck {
            step: "x".repeat(100),
            outcome: 77,
            message: format!("a\u{7}{}", "y".repeat(5_000)),
            remedy: "\u{1b}[31m".to_owned(),
            side: 99,
        };
        let read = checks_from_proto(&vec![check; 100]);
        assert_eq!(read.len(), MAX_CHECKS);
        assert_eq!((read[0].step.len(), read[0].message.chars().count()), (MAX_STEP, 1_024));
        assert_eq!(read[0].outcome, Outcome::Skipped);
        assert!(read.iter().all(|c| !c.message.contains('\u{7}') && !c.remedy.contains('\u{1b}')));
        let again = reply_to_proto(3, &read);
        assert_eq!((again.id, checks_from_proto(&again.checks)), (3, read));
    }
}

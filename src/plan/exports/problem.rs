//! Why something is not exported, or not as asked, with the reason of the condition that says so.

use crate::api::v1alpha1::conditions::{ClientsEnforcedReason, ExportedReason, ServiceAcceptedReason};
use crate::model::condition::Truth;
use crate::model::export::Note;

/// Why a condition is not true; `R` are the reasons of that condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportProblem<R = ExportedReason> {
    pub reason: R,
    /// `False`; or `Unknown` while it is only not known yet, or not done yet.
    pub status: Truth,
    /// Names the object, the cause and what to do.
    pub message: String,
}

impl<R> ExportProblem<R> {
    pub(super) fn new(reason: R, message: impl Into<String>) -> Self {
        Self { reason, status: Truth::False, message: message.into() }
    }

    pub(super) fn unknown(reason: R, message: impl Into<String>) -> Self {
        Self { reason, status: Truth::Unknown, message: message.into() }
    }

    pub(super) fn under<S>(self, reason: S) -> ExportProblem<S> {
        ExportProblem { reason, status: self.status, message: self.message }
    }
}

impl ExportProblem {
    /// What was found when the declaration was held against the cluster.
    pub(super) fn of_note(note: &Note) -> Self {
        Self::new(note.reason, note.message.clone())
    }
}

/// What is not accepted is not exported.
impl From<ExportProblem<ServiceAcceptedReason>> for ExportProblem {
    fn from(problem: ExportProblem<ServiceAcceptedReason>) -> Self {
        let reason = match problem.reason {
            ServiceAcceptedReason::NoIdentity => ExportedReason::NoIdentity,
            _ => ExportedReason::NotAccepted,
        };
        problem.under(reason)
    }
}

/// Nor is anybody kept from it.
impl From<ExportProblem<ServiceAcceptedReason>> for ExportProblem<ClientsEnforcedReason> {
    fn from(problem: ExportProblem<ServiceAcceptedReason>) -> Self {
        let reason = match problem.reason {
            ServiceAcceptedReason::NoIdentity => ClientsEnforcedReason::NoIdentity,
            _ => ClientsEnforcedReason::NotAccepted,
        };
        problem.under(reason)
    }
}

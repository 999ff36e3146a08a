//! What can go wrong in a store. Each message names the object, the cause, and what to do. `object` is kind,
//! namespace and name, as [`crate::model::ObjectKey`] shows itself, or those of a Lease.

use crate::model::object::Kind;

/// Why a read or a write of the store failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It changed, or is another object of the same name, since it was read: read it again.
    #[error(
        "{object} is not what it was when it was read: {message}; it is read again before the next write"
    )]
    Conflict { object: String, message: String },
    /// It was to be created, and is there. Nothing was written.
    #[error(
        "{object} exists already and was not written over; delete it, or hand it over with the annotation entente.dev/adopt: \"true\""
    )]
    AlreadyExists { object: String },
    /// It, or the namespace it lies in, is not there.
    #[error("{object} is not there: {message}")]
    NotFound { object: String, message: String },
    /// The store does not serve this kind.
    #[error("{kind} is not served here; install its custom resource definition")]
    Absent { kind: Kind },
    /// The store does not let us.
    #[error("not allowed to {verb} {object}: {message}; check the ClusterRole of the agent's ServiceAccount")]
    Forbidden { verb: &'static str, object: String, message: String },
    /// The store refuses the content.
    #[error("{object} was refused: {message}")]
    Invalid { object: String, message: String },
    /// The store could not be reached, or failed. Worth another try.
    #[error("cannot {verb} {object}: {message}")]
    Other { verb: &'static str, object: String, message: String },
}

impl StoreError {
    /// The variant's name, for metrics and event reasons.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "Conflict",
            Self::AlreadyExists { .. } => "AlreadyExists",
            Self::NotFound { .. } => "NotFound",
            Self::Absent { .. } => "Absent",
            Self::Forbidden { .. } => "Forbidden",
            Self::Invalid { .. } => "Invalid",
            Self::Other { .. } => "Other",
        }
    }
}

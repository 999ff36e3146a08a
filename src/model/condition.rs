//! Status conditions (the Kubernetes API conventions), whose reasons are enumerated in `api/v1alpha1`.

use std::borrow::Cow;

use crate::api::v1alpha1::conditions::{ConditionType, Reason};

/// `True`, `False` or `Unknown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// A condition as computed; its transition time is set by comparison with what stands in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: ConditionType,
    pub status: Truth,
    /// In CamelCase.
    pub reason: Cow<'static, str>,
    /// Names the object, the cause and what to do.
    pub message: String,
}

impl Condition {
    /// The condition whose reason this is.
    #[must_use]
    pub fn new(reason: impl Reason, status: impl Into<Truth>, message: String) -> Self {
        Self::worded(reason.condition(), status, reason.as_str(), message)
    }

    /// One whose reason was decided elsewhere: it stood in the store, or a parser gave it.
    #[must_use]
    pub fn worded(
        kind: ConditionType,
        status: impl Into<Truth>,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) -> Self {
        Self { kind, status: status.into(), reason: reason.into(), message }
    }
}

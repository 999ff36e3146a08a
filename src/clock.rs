//! The only place that reads the wall clock. Everything else is handed a time.

use jiff::Timestamp;

/// The time now, in whole seconds: nothing here is decided on less, and equal seconds make equal plans.
#[must_use]
pub fn now() -> Timestamp {
    whole(precise())
}

/// The time now, for telling which of two things came first.
#[must_use]
pub fn precise() -> Timestamp {
    #[allow(clippy::disallowed_methods, reason = "this is the edge at which time is read")]
    Timestamp::now()
}

/// The whole second in which a moment lies.
#[must_use]
pub fn whole(moment: Timestamp) -> Timestamp {
    Timestamp::from_second(moment.as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

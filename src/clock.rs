//! The only place that reads the wall clock. Everything else is handed a time.

use jiff::Timestamp;

/// The time now, in whole seconds: nothing here is decided on less, and equal seconds make equal plans.
#[must_use]
pub fn now() -> Timestamp {
    #[allow(clippy::disallowed_methods, reason = "this is the edge at which time is read")]
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

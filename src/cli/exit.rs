//! The exit codes of every command, in one place.

use std::process::ExitCode;

use super::control::Refusal;

/// Something is not as it is to be, or the command failed.
pub(super) const NOT_WELL: u8 = 1;
/// The command line cannot be used (so does clap itself).
pub(super) const USAGE: u8 = 2;
/// It could not be looked at: no agent, API server, Workload API or endpoint answers, or this replica of the agent does not lead.
pub(super) const NOT_ASKED: u8 = 3;

/// Who was to read standard output has closed it: as of a program that SIGPIPE ended, so that `entente ... | head` is no failure of ours.
const UNHEARD: u8 = 141;

/// What they mean, for the help and the reference.
pub(super) const MEANING: &str = "\
Exit codes:
  0  all is well, or was done
  1  something is not well (a peer is not ready, a link is broken, an SVID is not trusted), or the command failed
  2  the command line cannot be used
  3  it could not be looked at: no agent, API server, Workload API or endpoint answers, or this replica does not lead
  141  standard output was closed before all was printed";

/// What was to be asked was not: the command does not know how things are. The message says who was not reached, why, and
/// what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotAsked(pub(super) String);

/// The command line can be read, and not be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unusable(pub(super) String);

/// Whether standard output was closed. A connection that breaks is never passed on as it is, but with words of its own.
pub(super) fn is_unheard(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}

/// The code of a command that ended with this error.
pub(super) fn of_error(error: &anyhow::Error) -> ExitCode {
    let is_elsewhere = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<NotAsked>() || cause.downcast_ref::<Refusal>().is_some_and(Refusal::is_misdirected)
    };
    ExitCode::from(match error {
        _ if is_unheard(error) => UNHEARD,
        _ if error.is::<Unusable>() => USAGE,
        _ if error.chain().any(is_elsewhere) => NOT_ASKED,
        _ => NOT_WELL,
    })
}

/// 0 where all is well, else 1.
pub(super) fn of_health(is_well: bool) -> ExitCode {
    if is_well { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_is_told_from_what_failed() {
        let not_asked = anyhow::Error::new(NotAsked("nobody answers".to_owned())).context("on the way");
        assert_eq!(of_error(&not_asked), ExitCode::from(3));
        assert_eq!(of_error(&anyhow::anyhow!("it was refused")), ExitCode::from(1));
        assert_eq!(of_error(&Unusable("no token".to_owned()).into()), ExitCode::from(2));
    }

    #[test]
    fn a_pipe_that_was_closed_is_no_failure() {
        let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let error = anyhow::Error::new(closed());
        assert!(is_unheard(&error) && of_error(&error) == ExitCode::from(141));
        let full = anyhow::Error::new(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(!is_unheard(&full) && of_error(&full) == ExitCode::from(1));
    }
}

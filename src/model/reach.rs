//! Whether the gateways of peers take connections from here: the path of their services, beside the path of the agents.

use std::fmt;

/// How one attempt to connect to a gateway ended. No byte was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attempt {
    /// It took the connection.
    Answered,
    /// The host answered that nobody listens there.
    Refused,
    /// Nothing came back in time, or there is no way there.
    Silent,
    /// Its name gave no address in time.
    NoAddress,
    /// Its name gave addresses, and none of them may be a gateway elsewhere: they were not dialled.
    NotAdmitted,
}

impl Attempt {
    /// For a message, after the address: it is the same words for the same outcome.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Answered => "answers",
            Self::Refused => "connection refused",
            Self::Silent => "no answer",
            Self::NoAddress => "its name does not resolve",
            Self::NotAdmitted => "its name leads to addresses that are not admitted, and was not dialled",
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.in_words())
    }
}

/// What is known of one gateway, in this life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The last attempt that counts.
    pub last: Attempt,
    /// Whether it ever took a connection from here.
    pub has_answered: bool,
    /// A failure after answers that no second one has confirmed: it does not count yet.
    pub is_doubted: bool,
}

impl Tried {
    /// After the first attempt.
    #[must_use]
    pub const fn first(attempt: Attempt) -> Self {
        Self { last: attempt, has_answered: matches!(attempt, Attempt::Answered), is_doubted: false }
    }

    /// After one more: one lost packet is no outage, so a gateway that answers is called lost at the second failure in a row.
    #[must_use]
    pub const fn then(self, attempt: Attempt) -> Self {
        match (self.last, attempt) {
            (_, Attempt::Answered) => Self { last: attempt, has_answered: true, is_doubted: false },
            (Attempt::Answered, _) if !self.is_doubted => Self { is_doubted: true, ..self },
            _ => Self { last: attempt, is_doubted: false, ..self },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Attempt::{Answered, Refused, Silent};
    use super::*;

    #[test]
    fn one_failure_is_not_believed_and_one_answer_is() {
        let answering = Tried::first(Answered);
        let doubted = answering.then(Silent);
        assert_eq!((doubted.last, doubted.is_doubted), (Answered, true));
        assert_eq!(doubted.then(Answered), answering);
        let lost = doubted.then(Refused);
        assert_eq!((lost.last, lost.has_answered, lost.is_doubted), (Refused, true, false));
        assert_eq!(lost.then(Silent).last, Silent);
        assert_eq!(lost.then(Answered), answering);
    }

    #[test]
    fn who_never_answered_is_not_lost() {
        let never = Tried::first(Silent);
        assert!(!never.has_answered && !never.then(Refused).has_answered);
        assert_eq!(never.then(Refused).last, Refused);
    }
}

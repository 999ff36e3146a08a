//! How fast the words of one peer are followed: a peer that says something new again and again has us plan no more often
//! than its pace, so that the others have their share. What it said last is never lost, only looked at later.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::pace::Pace;
use crate::model::TrustDomain;
use crate::model::session::{Acknowledgement, Catalogue, GoodbyeReason, LinkState, SessionState};

/// Of one peer; all of them must let it pass: ten at once, then one a second, and where that does not end, one in 5 s.
const PACES: [Pace; 2] = [
    Pace { every: SignedDuration::from_secs(1), burst: 10 },
    Pace { every: SignedDuration::from_secs(5), burst: 60 },
];

/// What is heard of each peer.
pub type Sessions = Arc<BTreeMap<TrustDomain, SessionState>>;

/// What was taken of each peer's words last.
#[derive(Debug, Default)]
pub struct Taking(BTreeMap<TrustDomain, Taken>);

#[derive(Debug, Default)]
struct Taken {
    catalogue: Option<Arc<Catalogue>>,
    acknowledged: Option<Acknowledgement>,
    /// Until when each pace is used up.
    used: [Option<Timestamp>; PACES.len()],
}

impl Taking {
    /// The sessions to plan with at `now`: those that were heard, but for catalogues and answers whose time has not come,
    /// in place of which the ones before stand; and when the next of those may be taken.
    pub fn take(&mut self, heard: &Sessions, now: Timestamp) -> (Sessions, Option<Timestamp>) {
        self.0.retain(|trust_domain, _| heard.contains_key(trust_domain));
        let mut sessions = Arc::clone(heard);
        let mut next = None;
        for (trust_domain, session) in heard.iter() {
            let taken = self.0.entry(trust_domain.clone()).or_default();
            let Some(due) = taken.take(session, now) else { continue };
            next = Some(next.map_or(due, |next: Timestamp| next.min(due)));
            if let Some(session) = Arc::make_mut(&mut sessions).get_mut(trust_domain) {
                session.catalogue.clone_from(&taken.catalogue);
                session.acknowledged.clone_from(&taken.acknowledged);
            }
        }
        (sessions, next)
    }
}

impl Taken {
    /// Takes what is new of a session; or when that may be done.
    fn take(&mut self, session: &SessionState, now: Timestamp) -> Option<Timestamp> {
        if !self.is_new(session) {
            return None;
        }
        let due = PACES.iter().zip(self.used).filter_map(|(pace, used)| pace.wait(used, now)).max();
        // That it exports nothing any more, by its own goodbye, is never late.
        let has_ended =
            matches!(session.link, LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, .. });
        match due {
            Some(due) if !has_ended => return Some(due),
            Some(_) => {}
            None => {
                for (pace, used) in PACES.iter().zip(&mut self.used) {
                    *used = pace.take(*used, now);
                }
            }
        }
        self.catalogue.clone_from(&session.catalogue);
        self.acknowledged.clone_from(&session.acknowledged);
        None
    }

    fn is_new(&self, session: &SessionState) -> bool {
        let is_same = match (&self.catalogue, &session.catalogue) {
            (Some(taken), Some(heard)) => Arc::ptr_eq(taken, heard) || taken == heard,
            (None, None) => true,
            _ => false,
        };
        !is_same || self.acknowledged != session.acknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixtures::{at, remote_cart, session, td};

    /// The session of a peer whose cart has this port.
    fn says(port: u16, link: LinkState) -> SessionState {
        let mut cart = remote_cart();
        cart.ports[0].port = port;
        session(link, Some(vec![cart]))
    }

    fn port(sessions: &Sessions, of: &str) -> u16 {
        let catalogue = sessions[&td(of)].catalogue.as_ref().unwrap();
        catalogue.services.values().next().unwrap().ports[0].port
    }

    fn both(port: u16) -> Sessions {
        // The other says one thing.
        let all = [("west.example", port), ("north.example", 1)];
        Arc::new(all.map(|(name, port)| (td(name), says(port, LinkState::Connected))).into())
    }

    #[test]
    fn a_peer_that_changes_its_words_without_end_is_followed_at_its_pace() {
        let mut taking = Taking::default();
        let mut changes = Vec::new();
        let mut last = 0;
        // Ten times a second, for ten minutes.
        for tenth in 0..6_000_u16 {
            let now = at(i64::from(tenth / 10));
            let heard = both(tenth + 1);
            let (sessions, due) = taking.take(&heard, now);
            assert_eq!(port(&sessions, "north.example"), 1);
            let planned = port(&sessions, "west.example");
            if planned != last {
                assert_eq!((planned, due), (tenth + 1, None));
                changes.push(tenth / 10);
                last = planned;
            } else {
                assert!(due.is_some_and(|due| due > now), "it is woken for it");
            }
        }
        let within = |from, to| changes.iter().filter(|second| (from..to).contains(*second)).count();
        assert_eq!(within(0, 1), 10, "at once");
        assert_eq!(within(1, 30), 29, "one a second");
        assert_eq!(within(500, 600), 20, "one in five");
    }

    #[test]
    fn what_it_said_last_is_taken_when_its_time_has_come_and_a_goodbye_at_once() {
        let mut taking = Taking::default();
        let due = (1..=11).map(|port| taking.take(&both(port), at(0))).last().unwrap().1;
        assert_eq!(due, Some(at(1)));
        let (sessions, _) = taking.take(&both(11), at(0));
        assert_eq!(port(&sessions, "west.example"), 10);
        let (sessions, due) = taking.take(&both(11), at(1));
        assert_eq!((port(&sessions, "west.example"), due), (11, None));
        assert!(Arc::ptr_eq(&taking.take(&sessions, at(1)).0, &sessions), "nothing is new");

        let (waiting, due) = taking.take(&both(12), at(1));
        assert_eq!((port(&waiting, "west.example"), due.is_some()), (11, true));
        let goodbye = LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, message: String::new() };
        let ended: Sessions = Arc::new([(td("west.example"), says(13, goodbye))].into());
        assert_eq!(port(&taking.take(&ended, at(1)).0, "west.example"), 13);
    }
}

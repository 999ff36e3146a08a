//! What was told of objects lately: who makes one change its words again and again fills neither the log nor the cluster.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use super::Severity;
use crate::model::ObjectKey;
use crate::plan::pace::Pace;

/// For each object and reason.
const PACE: Pace = Pace { every: SignedDuration::from_mins(1), burst: 5 };
/// How many objects' reasons are remembered; beyond that nothing new is told until one has been quiet.
const MAX_REMEMBERED: usize = 4096;

/// How many of the events that were told are kept for who looks.
const KEPT: usize = 50;

/// An event that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub at: Timestamp,
    pub object: ObjectKey,
    pub severity: Severity,
    pub reason: String,
    pub message: String,
}

/// The last events that were told, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Lately(Arc<Mutex<VecDeque<Told>>>);

impl Lately {
    /// Keeps one more, and forgets the oldest beyond 50.
    pub(super) fn keep(&self, told: Told) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            all.pop_front();
        }
        all.push_back(told);
    }

    /// Newest first.
    pub(super) fn all(&self) -> Vec<Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

/// The uid of an object, and a reason.
type Topic = (String, String);

/// Until when the pace of each is used up.
#[derive(Clone, Debug, Default)]
pub(super) struct Said(Arc<Mutex<BTreeMap<Topic, Timestamp>>>, Lately);

impl Said {
    /// What was told lately.
    pub(super) const fn lately(&self) -> &Lately {
        &self.1
    }

    /// Whether this is to be told at `now`; then it counts as told.
    pub(super) fn may_say(&self, uid: &str, reason: &str, now: Timestamp) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, used| *used > now);
        let topic = (uid.to_owned(), reason.to_owned());
        let used = all.get(&topic).copied();
        if PACE.wait(used, now).is_some() {
            return false;
        }
        if used.is_none() && all.len() >= MAX_REMEMBERED {
            return false;
        }
        if let Some(used) = PACE.take(used, now) {
            all.insert(topic, used);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_at_once_and_then_one_a_minute_of_each_object_and_reason() {
        let said = Said::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        // It alternates its words each second, for an hour.
        for reason in ["PeerUnreachable", "Confirmed"] {
            let told = (0..3_600).filter(|second| said.may_say("uid", reason, at(*second))).count();
            assert!((60..=65).contains(&told), "{told}");
        }
        assert!(said.may_say("other", "Confirmed", at(3_600)));
        assert!(said.may_say("uid", "AnotherReason", at(3_600)));
    }

    #[test]
    fn the_newest_events_are_kept() {
        let lately = Lately::default();
        for second in 0..60 {
            lately.keep(Told {
                at: Timestamp::from_second(second).unwrap(),
                object: ObjectKey::cluster(crate::model::object::Kind::TrustDomainPeer, "west"),
                severity: Severity::Normal,
                reason: "Confirmed".to_owned(),
                message: String::new(),
            });
        }
        let seconds: Vec<i64> = lately.all().iter().map(|told| told.at.as_second()).collect();
        assert_eq!(seconds, (10..60).rev().collect::<Vec<_>>());
    }

    /// Who makes ever new objects speak must not get by it a pace of their own for those that spoke before.
    #[test]
    fn it_remembers_no_more_than_its_share_and_is_silent_then() {
        let said = Said::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        let told = |from: usize, now| {
            let objects = from..from + MAX_REMEMBERED + 100;
            objects.filter(|object| said.may_say(&object.to_string(), "Confirmed", now)).count()
        };
        assert_eq!(told(0, at(0)), MAX_REMEMBERED);
        assert_eq!(said.0.lock().unwrap().len(), MAX_REMEMBERED);
        assert_eq!(told(1_000_000, at(59)), 0);
        assert_eq!(told(1_000_000, at(60)), MAX_REMEMBERED, "those before have been quiet");
    }
}

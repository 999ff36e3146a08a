//! What was told of objects lately: who makes one change its words again and again fills neither the log nor the cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::plan::pace::Pace;

/// For each object and reason.
const PACE: Pace = Pace { every: SignedDuration::from_mins(1), burst: 5 };
/// How many objects' reasons are remembered; beyond that nothing new is told until one has been quiet.
const MAX_REMEMBERED: usize = 4096;

/// The uid of an object, and a reason.
type Topic = (String, String);

/// Until when the pace of each is used up.
#[derive(Clone, Debug, Default)]
pub(super) struct Said(Arc<Mutex<BTreeMap<Topic, Timestamp>>>);

impl Said {
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

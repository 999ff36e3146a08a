//! What someone else changed or deleted after it stood, told from what we wrote ourselves and have not seen yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Attempt;
use super::operation::{Operation, Wrote};
use crate::model::ObjectKey;
use crate::model::change::Precondition;
use crate::plan::Plan;
use crate::plan::diff::Write;

/// The plan before this one, and the writes that put back what is drift.
#[derive(Debug, Default)]
pub(super) struct Drift {
    last: Option<Arc<Plan>>,
    repairs: BTreeSet<String>,
}

impl Drift {
    /// Looks for what is wanted as before and does not stand any more: it stood by the last plan, or it was written
    /// since, and what is seen is newer than that. The latter is all there is to see where our write and what undid it
    /// come in together.
    pub(super) fn look(&mut self, plan: &Arc<Plan>, attempts: &BTreeMap<String, Attempt>) {
        let Some(last) = self.last.replace(Arc::clone(plan)).filter(|last| !Arc::ptr_eq(last, plan)) else {
            return;
        };
        let stood = |key: &ObjectKey| {
            !last.writes.contains_key(key)
                && last.objects.get(key).is_some_and(|before| plan.objects.get(key) == Some(before))
        };
        for (key, write) in &plan.writes {
            let id = Operation::Write(Box::new(write.clone())).to_string();
            if stood(key) || attempts.get(&id).is_some_and(|last| is_undone(last, write)) {
                self.repairs.insert(id);
            }
        }
    }

    /// Whether this write puts back what is drift.
    pub(super) fn is_found(&self, id: &str) -> bool {
        self.repairs.contains(id)
    }

    pub(super) fn found(&mut self, id: &str) {
        self.repairs.insert(id.to_owned());
    }

    /// Whether this write, which was done, put back what was drift; that is then over.
    pub(super) fn is_repaired(&mut self, id: &str) -> bool {
        self.repairs.remove(id)
    }

    pub(super) fn retain(&mut self, mut is_wanted: impl FnMut(&String) -> bool) {
        self.repairs.retain(|id| is_wanted(id));
    }
}

/// Whether what this try wrote was seen otherwise after it, and is to be written again just so.
fn is_undone(last: &Attempt, write: &Write) -> bool {
    let Operation::Write(done) = &last.operation else { return false };
    let Some(wrote) = last.wrote.as_ref().filter(|wrote| wrote.stands && done.object == write.object) else {
        return false;
    };
    match (&done.precondition, &write.precondition) {
        // It may not have been seen yet; that it was deleted shows once it is created again: `is_made_anew`.
        (Precondition::Absent, Precondition::Absent) => false,
        (_, Precondition::Absent) => true,
        (_, Precondition::Ours { uid } | Precondition::Adopt { uid }) => {
            *uid != wrote.uid || write.seen.as_deref().is_some_and(|seen| is_later(seen, wrote, done))
        }
    }
}

/// Whether what is seen is later than what was written. An API server's resourceVersions are numbers that grow; those of
/// a directory are not, and there it is later if it is neither what was written nor what was seen before that.
fn is_later(seen: &str, wrote: &Wrote, done: &Write) -> bool {
    match (seen.parse::<u64>(), wrote.resource_version.parse::<u64>()) {
        (Ok(seen), Ok(wrote)) => seen > wrote,
        _ => seen != wrote.resource_version && Some(seen) != done.seen.as_deref(),
    }
}

/// Whether of two writes, one after the other, of one object, the later made it anew.
pub(super) fn is_made_anew((before, now): (&Wrote, &Wrote)) -> bool {
    before.uid != now.uid
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::model::Object;
    use crate::model::object::Kind;

    fn ours() -> Precondition {
        Precondition::Ours { uid: "a".to_owned() }
    }

    /// A plan that wants this written, of which this was seen.
    fn plan(message: &str, precondition: Precondition, seen: Option<&str>) -> Arc<Plan> {
        let key = ObjectKey::namespaced(Kind::ServiceEntry, "shop", "cart");
        let object = Arc::new(Object::desired(key.clone(), json!({ "message": message })));
        let write = Write { object: Arc::clone(&object), precondition, seen: seen.map(str::to_owned) };
        Arc::new(Plan {
            objects: BTreeMap::from([(key.clone(), object)]),
            writes: BTreeMap::from([(key, write)]),
            ..Plan::default()
        })
    }

    /// Whether what comes next is drift, after the writes of a plan were done and left this.
    fn is_drift(done: &Arc<Plan>, uid: &str, resource_version: &str, stands: bool, next: &Arc<Plan>) -> bool {
        let mut drift = Drift::default();
        let mut attempts = BTreeMap::new();
        drift.look(done, &attempts);
        for write in done.writes.values() {
            let operation = Operation::Write(Box::new(write.clone()));
            let wrote = Wrote { uid: uid.to_owned(), resource_version: resource_version.to_owned(), stands };
            let attempt = Attempt {
                operation: operation.clone(),
                failures: 0,
                failure: None,
                wrote: Some(wrote),
                altered: 0,
                again: Instant::now() + Duration::from_secs(5),
            };
            attempts.insert(operation.to_string(), attempt);
        }
        drift.look(next, &attempts);
        let found = drift.is_found("write ServiceEntry shop/cart");
        drift.look(next, &attempts);
        assert_eq!(found, drift.is_found("write ServiceEntry shop/cart"), "one plan is looked at once");
        found
    }

    #[test]
    fn what_undoes_a_write_before_that_was_seen_is_drift() {
        let done = plan("x", ours(), Some("9"));
        let after = |precondition, seen| is_drift(&done, "a", "11", true, &plan("x", precondition, seen));
        assert!(after(Precondition::Absent, None), "deleted");
        assert!(after(ours(), Some("12")), "edited");
        assert!(after(Precondition::Adopt { uid: "b".to_owned() }, Some("12")), "made anew by someone");
        assert!(!after(ours(), Some("9")), "ours was not seen yet");
        assert!(!after(ours(), Some("10")), "nor with what came just before it");
        assert!(!after(ours(), Some("11")), "it is ours");
        let other = |seen| is_drift(&done, "a", "11", true, &plan("y", ours(), seen));
        assert!(!other(Some("12")), "something else is wanted");
        let mutated = |seen| is_drift(&done, "a", "11", false, &plan("x", ours(), seen));
        assert!(!mutated(Some("12")), "it never stood");
    }

    #[test]
    fn what_undoes_a_creation_is_drift() {
        let done = plan("x", Precondition::Absent, None);
        let after = |precondition, seen| is_drift(&done, "a", "11", true, &plan("x", precondition, seen));
        assert!(after(ours(), Some("12")), "edited");
        assert!(!after(Precondition::Absent, None), "it may not have been seen yet");
    }

    #[test]
    fn versions_of_a_directory_do_not_grow() {
        let done = plan("x", ours(), Some("9f"));
        let after = |seen| is_drift(&done, "a", "1e", true, &plan("x", ours(), Some(seen)));
        assert!(after("0d"));
        assert!(!after("9f"), "ours was not seen yet");
        assert!(!after("1e"), "it is ours");
    }
}

//! What has to be written, by comparison of what should be there with what was seen.
//!
//! An API server adds defaults, so an object is as desired when all that is desired stands there, and when what was
//! last applied is what is desired now; the latter is known by a digest in an annotation, so that a field that was
//! taken out of the plan is taken out of the object too.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::model::change::Precondition;
use crate::model::object::ANNOTATION_DRY_RUN;
use crate::model::{Object, ObjectKey, World};

/// The digest of what was last applied.
pub const ANNOTATION_APPLIED: &str = "entente.dev/applied";

/// One object to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub object: Arc<Object>,
    pub precondition: Precondition,
    /// The resourceVersion of what was seen there: whether it is from before or after a write of ours.
    pub seen: Option<String>,
}

/// A desired object that is changed no more, marked with its digest. One that is kept as it stands carries the digest
/// with which it was written.
#[must_use]
pub fn seal(mut object: Object) -> Arc<Object> {
    if !object.meta.annotations.contains_key(ANNOTATION_APPLIED) {
        let digest = digest(&object);
        object.meta.annotations.insert(ANNOTATION_APPLIED.to_owned(), digest);
    }
    Arc::new(object)
}

/// The sealed objects that do not stand there as desired.
#[must_use]
pub fn writes(
    world: &World,
    desired: &BTreeMap<ObjectKey, Arc<Object>>,
    stood: &mut Stood,
) -> BTreeMap<ObjectKey, Write> {
    // Both are in order, so one walk over the two finds what belongs together.
    let mut observed = world.objects.iter().peekable();
    let mut writes = Vec::new();
    for (key, object) in desired {
        while observed.next_if(|(other, _)| *other < key).is_some() {}
        let there = observed.next_if(|(other, _)| *other == key).map(|(_, there)| there);
        writes.extend(write(world, object, there, stood).map(|write| (key.clone(), write)));
    }
    writes.into_iter().collect()
}

/// The observed objects of ours that are not desired, in order. Nearly always few.
#[must_use]
pub(super) fn left<'a>(world: &'a World, desired: &BTreeMap<ObjectKey, Arc<Object>>) -> Vec<&'a Arc<Object>> {
    let mut desired = desired.keys().peekable();
    let mut left = Vec::new();
    for (key, object) in &world.objects {
        let is_desired = loop {
            match desired.peek().map(|next| (*next).cmp(key)) {
                Some(Ordering::Less) => drop(desired.next()),
                order => break order == Some(Ordering::Equal),
            }
        };
        if !is_desired && object.is_generated_by(&world.settings.instance) {
            left.push(object);
        }
    }
    left
}

/// Which desired objects were found to stand, by where they are in memory: each with what was observed of it.
#[derive(Debug, Default)]
pub struct Stood {
    all: HashMap<usize, (Arc<Object>, Arc<Object>, u64)>,
    /// Those of them that were found since the last time.
    fresh: Vec<usize>,
    turn: u64,
}

impl Stood {
    /// As [`stands`], which is asked where it is not known of these two.
    fn stands(&mut self, desired: &Arc<Object>, there: &Arc<Object>) -> bool {
        // The entry holds the object, so that nothing else can be where it is.
        let at = Arc::as_ptr(desired).addr();
        if let Some((_, known, used)) = self.all.get_mut(&at).filter(|entry| Arc::ptr_eq(&entry.0, desired))
            && Arc::ptr_eq(known, there)
        {
            *used = self.turn;
            return true;
        }
        let stands = stands(desired, there);
        if stands {
            self.fresh.push(at);
            self.all.insert(at, (Arc::clone(desired), Arc::clone(there), self.turn));
        }
        stands
    }

    /// Has what stands, and is content alike, in memory once: the world is the same, and smaller.
    pub(super) fn share(&mut self, world: &mut World) {
        for at in std::mem::take(&mut self.fresh) {
            let Some((desired, there, _)) = self.all.get_mut(&at) else { continue };
            if desired.body.is(&there.body) || desired.body != there.body {
                continue;
            }
            let Some(observed) = world.objects.get_mut(&desired.key) else { continue };
            if Arc::ptr_eq(observed, there) {
                *observed = Arc::new(Object {
                    key: there.key.clone(),
                    meta: there.meta.clone(),
                    body: desired.body.clone(),
                });
                *there = Arc::clone(observed);
            }
        }
    }

    /// Forgets what was not asked for since the last time.
    pub(super) fn turn(&mut self) {
        let turn = self.turn;
        self.all.retain(|_, (_, _, used)| *used == turn);
        self.turn += 1;
    }
}

fn write(
    world: &World,
    object: &Arc<Object>,
    there: Option<&Arc<Object>>,
    stood: &mut Stood,
) -> Option<Write> {
    let precondition = match there {
        None => Precondition::Absent,
        // It is on its way out; a new one can be made once it is gone.
        Some(there) if there.meta.deletion.is_some() => return None,
        Some(there) if stood.stands(object, there) => return None,
        Some(there) if there.is_generated_by(&world.settings.instance) => {
            Precondition::Ours { uid: there.meta.uid.clone() }
        }
        Some(there) => Precondition::Adopt { uid: there.meta.uid.clone() },
    };
    let seen = there.map(|there| there.meta.resource_version.clone());
    Some(Write { object: Arc::clone(object), precondition, seen })
}

/// Whether all that is desired is there. What others added beside it is theirs.
/// Istio's kinds have no defaults (none of their CRDs sets one), so that whatever is added there, somebody added it: it narrows or
/// widens what was written.
pub(crate) fn stands(desired: &Object, there: &Object) -> bool {
    let is_exact = desired.key.kind.is_istio();
    if is_exact && (desired.body.get("spec") != there.body.get("spec") || is_tried_only(desired, there)) {
        return false;
    }
    let holds = |wanted: &BTreeMap<String, String>, has: &BTreeMap<String, String>| {
        wanted.iter().all(|(key, value)| has.get(key) == Some(value))
    };
    holds(&desired.meta.labels, &there.meta.labels)
        && holds(&desired.meta.annotations, &there.meta.annotations)
        && desired.meta.owners.iter().all(|owner| there.meta.owners.contains(owner))
        && desired.body.iter().all(|(key, value)| there.body.get(key).is_some_and(|has| within(value, has)))
}

/// Whether a policy was marked as one that is tried out, and denies nobody.
fn is_tried_only(desired: &Object, there: &Object) -> bool {
    let is_marked = |object: &Object| object.meta.annotations.contains_key(ANNOTATION_DRY_RUN);
    is_marked(there) && !is_marked(desired)
}

/// Whether a desired value stands in an observed one: members may be added by defaults, items may not.
fn within(wanted: &Value, has: &Value) -> bool {
    match (wanted, has) {
        (Value::Object(wanted), Value::Object(has)) => {
            wanted.iter().all(|(key, value)| has.get(key).is_some_and(|h| within(value, h)))
        }
        (Value::Array(wanted), Value::Array(has)) => {
            wanted.len() == has.len() && wanted.iter().zip(has).all(|(w, h)| within(w, h))
        }
        (wanted, has) => wanted == has,
    }
}

fn digest(object: &Object) -> String {
    let owners: Vec<&str> = object.meta.owners.iter().map(|owner| owner.uid.as_str()).collect();
    let annotations: BTreeMap<_, _> =
        object.meta.annotations.iter().filter(|(key, _)| *key != ANNOTATION_APPLIED).collect();
    // Maps of serde_json are ordered, so equal content has equal bytes.
    let content = json!([object.meta.labels, annotations, owners, object.body]).to_string();
    hex::encode(Sha256::digest(content.as_bytes())).chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::object::Kind;

    #[test]
    fn defaults_are_not_drift_but_changes_are() {
        let wanted = json!({ "a": [{ "b": 1 }], "c": { "d": "x" } });
        assert!(within(
            &wanted,
            &json!({ "a": [{ "b": 1, "default": 2 }], "c": { "d": "x", "e": 1 }, "f": 0 })
        ));
        assert!(!within(&wanted, &json!({ "a": [{ "b": 1 }, { "b": 2 }], "c": { "d": "x" } })));
        assert!(!within(&wanted, &json!({ "a": [{ "b": 2 }], "c": { "d": "x" } })));
        assert!(!within(&wanted, &json!({ "a": [{ "b": 1 }] })));
    }

    #[test]
    fn what_narrows_a_policy_is_drift() {
        let key = ObjectKey::namespaced(Kind::AuthorizationPolicy, "shop", "entente");
        let desired = Object::desired(key, json!({ "selector": { "matchLabels": { "app": "cart" } } }));
        assert!(stands(&desired, &desired));
        let mut narrowed = desired.clone();
        narrowed.body["spec"] = json!({ "selector": { "matchLabels": { "app": "cart", "v": "1" } } });
        assert!(!stands(&desired, &narrowed));
        narrowed.body["spec"] = json!({ "selector": desired.body["spec"]["selector"], "targetRefs": [] });
        assert!(!stands(&desired, &narrowed));
        let mut tried = desired.clone();
        tried.meta.annotations.insert("istio.io/dry-run".to_owned(), "true".to_owned());
        assert!(!stands(&desired, &tried));
        tried.meta.annotations = BTreeMap::from([("theirs".to_owned(), "stays".to_owned())]);
        assert!(stands(&desired, &tried));
        let mut other = desired.clone();
        other.key.kind = Kind::ClusterFederatedTrustDomain;
        let mut defaulted = other.clone();
        defaulted.body["spec"]["default"] = json!(1);
        assert!(stands(&other, &defaulted), "where an API server adds defaults");
    }
}

//! What stands, as one plan after another sees it: in which namespaces anything has changed, and what is of others.
//!
//! Who remembers something of a namespace keeps the turn of which it is, and asks whether anything has changed there since.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::model::cluster::Pod;
use crate::model::{NamespacedName, Object, ObjectKey, World};

/// Something of which there are many, each in a namespace.
pub(super) trait Placed {
    /// By which they are in order.
    type Key: Ord;

    fn key(&self) -> &Self::Key;

    /// Empty: in none.
    fn namespace(&self) -> &str;
}

impl Placed for Object {
    type Key = ObjectKey;

    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn namespace(&self) -> &str {
        self.key.namespace.as_deref().unwrap_or_default()
    }
}

impl Placed for Pod {
    type Key = NamespacedName;

    fn key(&self) -> &NamespacedName {
        &self.object
    }

    fn namespace(&self) -> &str {
        &self.object.namespace
    }
}

/// All of one sort, as they were seen last.
#[derive(Debug)]
pub(super) struct Pulse<T> {
    last: Vec<Arc<T>>,
    turn: u64,
    changed_in: u64,
    /// By namespace, the turn in which something last came, went or became another.
    changed: HashMap<String, u64>,
}

impl<T> Default for Pulse<T> {
    fn default() -> Self {
        Self { last: Vec::new(), turn: 0, changed_in: 0, changed: HashMap::new() }
    }
}

impl<T: Placed> Pulse<T> {
    /// Looks at all that are there now, in their order, and tells `differs` of each that was not, that is not any more, and
    /// that is another, as it was and as it is. What is the same in memory is the same.
    fn look<'w>(
        &mut self,
        now: impl ExactSizeIterator<Item = &'w Arc<T>> + Clone,
        mut differs: impl FnMut(&T),
    ) where
        T: 'w,
    {
        self.turn += 1;
        let last = std::mem::take(&mut self.last);
        let mut before = last.iter().peekable();
        let mut is_same = last.len() == now.len();
        let mut told = |one: &Arc<T>| {
            is_same = false;
            let namespace = one.namespace();
            match self.changed.get_mut(namespace) {
                Some(turn) => *turn = self.turn,
                None => drop(self.changed.insert(namespace.to_owned(), self.turn)),
            }
            differs(one);
        };
        for there in now.clone() {
            if before.next_if(|known| Arc::ptr_eq(known, there)).is_some() {
                continue;
            }
            while let Some(gone) = before.next_if(|known| known.key() < there.key()) {
                told(gone);
            }
            if before.next_if(|known| Arc::ptr_eq(known, there)).is_none() {
                if let Some(was) = before.next_if(|known| known.key() == there.key()) {
                    told(was);
                }
                told(there);
            }
        }
        before.for_each(&mut told);
        if is_same {
            self.last = last;
        } else {
            self.changed_in = self.turn;
            self.last = now.cloned().collect();
        }
    }

    /// The turn that it is now.
    pub(super) const fn turn(&self) -> u64 {
        self.turn
    }

    /// The last turn in which anything differed.
    pub(super) const fn changed(&self) -> u64 {
        self.changed_in
    }

    /// Whether all in this namespace are as they were in that turn.
    pub(super) fn is_as_of(&self, turn: u64, namespace: &str) -> bool {
        self.changed.get(namespace).is_none_or(|changed| *changed <= turn)
    }
}

/// Objects and pods.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) objects: Pulse<Object>,
    pub(super) pods: Pulse<Pod>,
    others: Option<Arc<World>>,
}

impl Observed {
    /// Looks at this world.
    pub(super) fn look(&mut self, world: &World) {
        let is_other = |object: &Object| !object.is_generated_by(&world.settings.instance);
        let mut others_differ = self.others.is_none();
        self.objects.look(world.objects.values(), |object| others_differ |= is_other(object));
        self.pods.look(world.pods.values(), |_| {});
        if others_differ {
            let mut others = World::empty(Arc::clone(&world.settings), Timestamp::UNIX_EPOCH);
            let all = world.objects.iter().filter(|(_, object)| is_other(object));
            others.objects = all.map(|(key, object)| (key.clone(), Arc::clone(object))).collect();
            self.others = Some(Arc::new(others));
        }
    }

    /// A world in which nothing but the objects is that this instance of the agent did not generate; the same one, for as long
    /// as they are. `world` must have been looked at.
    pub(super) fn others(&self, world: &World) -> Arc<World> {
        let none = || Arc::new(World::empty(Arc::clone(&world.settings), Timestamp::UNIX_EPOCH));
        self.others.clone().unwrap_or_else(none)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::plan::fixtures::pod;

    type Pods = BTreeMap<NamespacedName, Arc<Pod>>;

    /// What differs, by comparing everything.
    fn differing(before: &Pods, after: &Pods) -> Vec<String> {
        let names = before.keys().chain(after.keys());
        let is_same = |name: &NamespacedName| match (before.get(name), after.get(name)) {
            (Some(before), Some(after)) => Arc::ptr_eq(before, after),
            _ => false,
        };
        let mut all: Vec<String> =
            names.filter(|name| !is_same(name)).map(|name| name.namespace.clone()).collect();
        all.sort();
        all.dedup();
        all
    }

    proptest! {
        #[test]
        fn it_tells_of_every_namespace_in_which_something_differs(
            steps in proptest::collection::vec(
                proptest::collection::vec((0..3_u8, 0..4_u8, 0..3_u8), 0..6), 1..6),
        ) {
            let (mut pulse, mut pods) = (Pulse::default(), Pods::new());
            for step in steps {
                let before = pods.clone();
                for (namespace, name, what) in step {
                    let one = pod(&format!("n{namespace}"), &format!("p{name}"), "10.0.0.1", &[]);
                    if what == 0 {
                        pods.remove(&one.object);
                    } else {
                        pods.insert(one.object.clone(), Arc::new(one));
                    }
                }
                let turn = pulse.turn();
                let mut told: Vec<String> = Vec::new();
                pulse.look(pods.values(), |one: &Pod| told.push(one.object.namespace.clone()));
                told.sort();
                told.dedup();
                prop_assert_eq!(&told, &differing(&before, &pods));
                for namespace in ["n0", "n1", "n2"] {
                    let differs = told.iter().any(|one| one == namespace);
                    prop_assert_eq!(pulse.is_as_of(turn, namespace), !differs);
                    prop_assert!(pulse.is_as_of(pulse.turn(), namespace));
                }
            }
        }
    }
}

//! The cluster's pods, to be had by their labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::World;
use crate::model::cluster::Pod;

/// An index, made once for many that look.
#[derive(Debug, Default)]
pub struct Pods<'a>(BTreeMap<(&'a str, &'a str, &'a str), Vec<&'a Arc<Pod>>>);

impl<'a> Pods<'a> {
    /// All of them.
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        world.pods.values().collect()
    }

    /// The pods of a namespace that have all of these labels; none, where no label is wanted.
    pub fn selected<'s>(
        &'s self,
        namespace: &'s str,
        wanted: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<Pod>> + use<'s, 'a> {
        // Those of the rarest label are the fewest to look at.
        let of = |(label, value): (&'s String, &'s String)| {
            self.0.get(&(namespace, label.as_str(), value.as_str())).map_or(&[][..], Vec::as_slice)
        };
        let rarest = wanted.iter().map(of).min_by_key(|pods| pods.len()).unwrap_or_default();
        rarest.iter().copied().filter(move |pod| has_labels(&pod.labels, wanted))
    }
}

impl<'a> FromIterator<&'a Arc<Pod>> for Pods<'a> {
    fn from_iter<T: IntoIterator<Item = &'a Arc<Pod>>>(pods: T) -> Self {
        let mut all: BTreeMap<_, Vec<&Arc<Pod>>> = BTreeMap::new();
        for pod in pods {
            for (label, value) in &pod.labels {
                let key = (pod.object.namespace.as_str(), label.as_str(), value.as_str());
                all.entry(key).or_default().push(pod);
            }
        }
        Self(all)
    }
}

/// Whether all that is wanted is there.
#[must_use]
pub fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(label, value)| labels.get(label) == Some(value))
}

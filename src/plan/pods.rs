//! The cluster's pods, to be had by their labels.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::model::World;
use crate::model::cluster::Pod;

/// An index, made once for many that look.
#[derive(Debug, Default)]
pub struct Pods<'a>(BTreeMap<&'a str, OfNamespace<'a>>);

/// By label.
type OfNamespace<'a> = HashMap<(&'a str, &'a str), Vec<&'a Arc<Pod>>>;

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
            let here = self.0.get(namespace)?.get(&(label.as_str(), value.as_str()))?;
            Some(here.as_slice())
        };
        let of = move |wanted| of(wanted).unwrap_or_default();
        let rarest = wanted.iter().map(of).min_by_key(|pods| pods.len()).unwrap_or_default();
        rarest.iter().copied().filter(move |pod| has_labels(&pod.labels, wanted))
    }
}

impl<'a> FromIterator<&'a Arc<Pod>> for Pods<'a> {
    fn from_iter<T: IntoIterator<Item = &'a Arc<Pod>>>(pods: T) -> Self {
        let mut all: BTreeMap<_, OfNamespace<'a>> = BTreeMap::new();
        for pod in pods {
            let here = all.entry(pod.object.namespace.as_str()).or_default();
            for (label, value) in &pod.labels {
                here.entry((label.as_str(), value.as_str())).or_default().push(pod);
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

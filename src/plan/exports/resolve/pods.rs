//! The pods of one namespace, found by label.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::World;
use crate::model::cluster::Pod;
use crate::model::export::in_namespace;

/// The pods of one namespace.
#[derive(Debug)]
pub(super) struct Pods<'a> {
    by_label: BTreeMap<(&'a str, &'a str), Vec<&'a Arc<Pod>>>,
}

impl<'a> Pods<'a> {
    #[must_use]
    pub(super) fn of(world: &'a World, namespace: &'a str) -> Self {
        let mut by_label: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (_, pod) in in_namespace(&world.pods, namespace) {
            for (key, value) in &pod.labels {
                by_label.entry((key.as_str(), value.as_str())).or_default().push(pod);
            }
        }
        Self { by_label }
    }

    /// Those with all of these labels, of which there must be one.
    #[must_use]
    pub(super) fn select(&self, labels: &BTreeMap<String, String>) -> Vec<&'a Arc<Pod>> {
        // Of the labels, the one that fewest pods have leaves the fewest to compare.
        let mut fewest: Option<&Vec<&'a Arc<Pod>>> = None;
        for (key, value) in labels {
            let Some(pods) = self.by_label.get(&(key.as_str(), value.as_str())) else { return Vec::new() };
            fewest = fewest.filter(|fewest| fewest.len() <= pods.len()).or(Some(pods));
        }
        let has_all = |pod: &&&Arc<Pod>| labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        fewest.into_iter().flatten().filter(has_all).copied().collect()
    }
}

//! Whether a Service of the cluster has an endpoint that is ready.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::cluster::{ClusterService, Pod};
use crate::model::{NamespacedName, World};

/// The pods of some namespaces that are ready, by their labels. An index, made once a plan.
#[derive(Debug, Default)]
pub(super) struct ReadyPods<'a>(BTreeMap<(&'a str, &'a str, &'a str), Vec<&'a Pod>>);

impl<'a> ReadyPods<'a> {
    #[must_use]
    pub(super) fn new<'n>(world: &'a World, namespaces: impl Iterator<Item = &'n str>) -> Self {
        let mut index = Self::default();
        for namespace in namespaces.collect::<BTreeSet<_>>() {
            let from = NamespacedName::new(namespace, "");
            let pods = world.pods.range(from..).take_while(|(name, _)| name.namespace == namespace);
            for pod in pods.map(|(_, pod)| &**pod).filter(|pod| pod.is_ready && pod.ip.is_some()) {
                for (label, value) in &pod.labels {
                    index.0.entry((&pod.object.namespace, label, value)).or_default().push(pod);
                }
            }
        }
        index
    }

    /// Whether one of them backs the Service. One without a selector has endpoints that someone else wrote: they are taken to
    /// be there.
    #[must_use]
    pub(super) fn has_any(&self, service: &ClusterService) -> bool {
        let namespace = service.object.namespace.as_str();
        let candidates = service.selector.iter().map(|(label, value)| {
            self.0.get(&(namespace, label.as_str(), value.as_str())).map_or(&[][..], Vec::as_slice)
        });
        let Some(fewest) = candidates.min_by_key(|pods| pods.len()) else { return true };
        fewest
            .iter()
            .any(|pod| service.selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value)))
    }
}

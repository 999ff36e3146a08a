//! Whether a Service of the cluster has an endpoint that is ready.

use std::collections::BTreeSet;

use crate::model::World;
use crate::model::cluster::ClusterService;
use crate::model::export::in_namespace;
use crate::plan::pods::Pods;

/// The pods of these namespaces that are ready.
#[must_use]
pub(super) fn ready_pods<'a>(world: &'a World, namespaces: impl Iterator<Item = &'a str>) -> Pods<'a> {
    let namespaces: BTreeSet<&str> = namespaces.collect();
    let pods = namespaces.into_iter().flat_map(|namespace| in_namespace(&world.pods, namespace));
    pods.map(|(_, pod)| pod).filter(|pod| pod.is_ready && pod.ip.is_some()).collect()
}

/// Whether one of these pods backs the Service. One without a selector has endpoints that someone else wrote: they are taken to
/// be there.
#[must_use]
pub(super) fn has_any(pods: &Pods<'_>, service: &ClusterService) -> bool {
    service.selector.is_empty()
        || pods.selected(&service.object.namespace, &service.selector).next().is_some()
}

//! Which SPIFFE IDs the servers of a service present, where nobody says.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::entries::Entries;
use crate::model::cluster::Pod;
use crate::model::{SpiffeId, TrustDomain};

/// The IDs of these pods, by their registration entries. An importer pins them, so none is dropped while a pod may present
/// it, and a pod that is new changes nothing while SPIRE has not its entry yet:
///
/// - where none of the pods has an entry, and where there is no pod, those that are `out` stay: missing information takes
///   nothing away;
/// - a pod without an entry counts as what its service account is named by convention, where all that is known of the
///   others, or is out, keeps to that convention. Where nothing is known at all, that is all there is to go by.
#[must_use]
pub(super) fn server_ids(
    own: &TrustDomain,
    entries: &Entries,
    pods: &[&Arc<Pod>],
    out: impl FnOnce() -> BTreeSet<SpiffeId>,
) -> BTreeSet<SpiffeId> {
    let mut ids = BTreeSet::new();
    let mut waiting = BTreeSet::new();
    let mut by_convention = true;
    for pod in pods {
        let conventional = of_account(own, &pod.object.namespace, &pod.service_account);
        let of_pod = entries.of(pod);
        if of_pod.is_empty() {
            waiting.extend(conventional);
        } else {
            by_convention &= conventional.is_some_and(|id| of_pod.contains(&id));
            ids.extend(of_pod);
        }
    }
    if ids.is_empty() {
        ids = out();
        by_convention = ids.iter().all(is_conventional);
    }
    if by_convention {
        ids.extend(waiting);
    }
    ids
}

/// As spire-controller-manager and Istio name workloads: `spiffe://{trustDomain}/ns/{namespace}/sa/{account}`.
fn of_account(own: &TrustDomain, namespace: &str, account: &str) -> Option<SpiffeId> {
    SpiffeId::new(format!("spiffe://{own}/ns/{namespace}/sa/{account}")).ok()
}

fn is_conventional(id: &SpiffeId) -> bool {
    let parts: Vec<&str> = id.path().split('/').collect();
    matches!(parts.as_slice(), ["", "ns", _, "sa", _])
}

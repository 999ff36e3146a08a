//! Without Istio a local name is a matter of DNS alone: the agent's server answers it with the address of one import. Nothing
//! is generated, and nothing is shared: where the cluster has a Service of that name, that is who answers.

use std::collections::BTreeMap;

use crate::api::v1alpha1::conditions::LocalReason;
use crate::model::object::{Kind, ObjectKey};
use crate::model::{NamespacedName, Peer, ServiceName, TrustDomain, World};
use crate::plan::admission::Refusal;

use super::addresses::Addresses;
use super::local::{LocalPlan, LocalReport, Served, asked, host};

/// Decides on the local name of every import that stands and whose peer asks for one.
pub(super) fn plan(
    world: &World,
    standing: &BTreeMap<ObjectKey, (TrustDomain, ServiceName)>,
    addresses: &Addresses,
) -> LocalPlan {
    let mut plan = LocalPlan::default();
    let mut groups: BTreeMap<&ServiceName, Vec<(&Peer, NamespacedName)>> = BTreeMap::new();
    for (key, (td, name)) in standing {
        let (Some(namespace), Some(peer)) = (&key.namespace, world.peers.get(td)) else { continue };
        let import = NamespacedName::new(namespace, &key.name);
        match asked(peer, &world.settings, name) {
            None => {}
            Some(Ok(_)) => groups.entry(name).or_default().push((peer, import)),
            Some(Err(refusal)) => {
                plan.reports.insert(import, Err(refusal));
            }
        }
    }
    for (name, mut members) in groups {
        members.sort_by_key(|(peer, _)| (peer.created.is_none(), peer.created, &peer.trust_domain));
        let mut first: Option<&Peer> = None;
        for (peer, import) in members {
            let report = report(world, name, &import, first, addresses);
            if report.is_ok() {
                first = Some(peer);
            }
            plan.reports.insert(import, report);
        }
    }
    plan
}

/// Whether an import answers at its local name. `first`: whose import does already.
fn report(
    world: &World,
    name: &ServiceName,
    import: &NamespacedName,
    first: Option<&Peer>,
    addresses: &Addresses,
) -> LocalReport {
    let host = host(&world.settings, name);
    let refuse = |reason, cause: String| Err(Refusal::new(reason, format!("{host}: {cause}")));
    if host.len() > 253 {
        return refuse(LocalReason::HostTooLong, "it is longer than 253 characters".to_owned());
    }
    let service = NamespacedName::new(name.namespace(), name.name());
    if world.cluster_services.contains_key(&service) {
        let cause =
            format!("{} {service} has the name, and without Istio nothing is led past it", Kind::Service);
        return refuse(LocalReason::ServiceExists, cause);
    }
    if let Some(first) = first {
        let cause = format!(
            "the import of TrustDomainPeer {}, which is older, answers there; without Istio one import has the name",
            first.object
        );
        return refuse(LocalReason::OlderPeerServes, cause);
    }
    match addresses.of(&import.name) {
        Ok([]) => refuse(LocalReason::NotGenerated, "imports are given no addresses here".to_owned()),
        Ok(addresses) => Ok(Served {
            host,
            is_merged: false,
            by_name: true,
            addresses: addresses.to_vec(),
            generated: Vec::new(),
            notes: Vec::new(),
        }),
        Err(cause) => refuse(LocalReason::NotGenerated, cause),
    }
}

//! What is generated beside the ImportedServices that stand, in the store as in the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::v1alpha1::conditions::{GeneratedReason, LocalReason};
use crate::model::condition::Truth;
use crate::model::import::Imported;
use crate::model::object::{Kind, Object, ObjectKey};
use crate::model::service::Outcome;
use crate::model::{NamespacedName, Peer, ServiceName, TrustDomain, World};
use crate::plan::admission::Refusal;
use crate::plan::memo::Memo;
use crate::plan::{diff, generated, istio};

use super::local::{self, LocalReport, Member};
use super::{Addresses, Claims, ImportPlan, ImportReport, addresses, by_name, rule_first};

/// What is generated beside the ImportedServices that stand, their reports, and the outcomes that change by it: a service that
/// stands in the store and cannot be served is refused after all. `others` has the objects that this agent did not make.
#[must_use]
pub fn generate(
    world: &World,
    others: &World,
    plan: &mut ImportPlan,
    memo: &mut Memo,
) -> (BTreeMap<ObjectKey, Arc<Object>>, BTreeMap<ObjectKey, ImportReport>) {
    let claims = Claims::new(others);
    let addresses = addresses::plan(world, &plan.standing);
    let mut objects = BTreeMap::new();
    let mut reports = BTreeMap::new();
    let mut as_local = AsLocal::default();
    for (key, refusal) in &plan.refused {
        let message = format!("nothing is generated, since {}", refusal.message);
        let generated = Err(Refusal::new(GeneratedReason::NotAdmitted, message));
        let report =
            ImportReport { admitted: Err(refusal.clone()), generated, addresses: Vec::new(), local: None };
        reports.insert(key.clone(), report);
    }
    let mut unserved = Vec::new();
    for (key, (td, name)) in &plan.standing {
        let (Some(namespace), Some(peer)) = (&key.namespace, world.peers.get(td)) else { continue };
        let stored = NamespacedName::new(namespace, &key.name);
        let Some(imported) = world.imported.get(&stored) else { continue };
        let generated = istio::import::objects(world, peer, imported, &addresses, &claims, memo);
        if let Err(refusal) = &generated {
            unserved.push((td.clone(), name.clone(), istio::import::keys(imported), refusal.clone()));
        }
        let gated = generated.map(|made| rule_first::gate(world, imported, made, &claims));
        let (servable, generated) = match gated {
            Ok(gated) => {
                objects.extend(gated.objects.into_iter().map(|object| (object.key.clone(), object)));
                let pending = "its ServiceEntry waits for its DestinationRule".to_owned();
                (if gated.is_out { Ok(()) } else { Err(pending) }, gated.generated)
            }
            Err(refusal) => (Err(refusal.message.clone()), Err(refusal)),
        };
        as_local.add(world, peer, imported, servable);
        let addresses = addresses.of(&key.name).unwrap_or_default().to_vec();
        reports.insert(key.clone(), ImportReport { admitted: Ok(()), generated, addresses, local: None });
    }
    for (td, name, keys, refusal) in unserved {
        take_back(world, plan, &td, &name, &keys, refusal);
    }
    let settings = &world.settings;
    let local = if (settings.dns || settings.serves_xds) && !settings.istio {
        by_name::plan(world, &plan.standing, &addresses)
    } else {
        as_local.plan(world, &claims, &addresses, &plan.unread)
    };
    plan.blocked.extend(local.blocked);
    plan.local_names = local.names;
    objects.extend(local.objects.into_iter().map(|object| (object.key.clone(), diff::seal(object))));
    for (name, local) in local.reports {
        let key = ObjectKey::namespaced(Kind::ImportedService, name.namespace, name.name);
        if let Some(report) = reports.get_mut(&key) {
            report.local = Some(local);
        }
    }
    (objects, reports)
}

/// A service that is admitted and cannot be served: its exporter is told so, where that is no choice of ours for all of them.
fn take_back(
    world: &World,
    plan: &mut ImportPlan,
    td: &TrustDomain,
    name: &ServiceName,
    keys: &[ObjectKey],
    refusal: Refusal<GeneratedReason>,
) {
    if refusal.reason == GeneratedReason::ObjectNotOurs {
        let blocked = keys.iter().filter_map(|key| Some((key.clone(), generated::claim(world, key).err()?)));
        plan.blocked.extend(blocked);
    }
    if matches!(refusal.reason, GeneratedReason::IstioAbsent | GeneratedReason::WithoutIstio) {
        return;
    }
    let outcomes = plan.outcomes.get_mut(td).filter(|all| all.get(name) == Some(&Outcome::Imported));
    if let Some(outcomes) = outcomes {
        Arc::make_mut(outcomes).insert(name.clone(), refusal.into());
    }
}

/// The imports that are to answer at their local name as well.
#[derive(Default)]
struct AsLocal<'a> {
    groups: BTreeMap<&'a ServiceName, Vec<Member<'a>>>,
    refused: BTreeMap<NamespacedName, LocalReport>,
}

impl<'a> AsLocal<'a> {
    /// Adds an import, where its peer's `spec.imports.asLocal` asks for it. `servable`: why its federated host cannot be called.
    fn add(&mut self, world: &World, peer: &'a Peer, imported: &'a Imported, servable: Result<(), String>) {
        let name = &imported.service.name;
        let member = match (local::asked(peer, &world.settings, name), servable) {
            (None, _) => return,
            (Some(Err(refusal)), _) => Err(refusal),
            (Some(Ok(_)), Err(cause)) => Err(Refusal::new(LocalReason::NotGenerated, cause)),
            (Some(Ok(local_first)), Ok(())) => Ok(Member { peer, imported, local_first }),
        };
        match member {
            Ok(member) => self.groups.entry(name).or_default().push(member),
            Err(refusal) => {
                self.refused.insert(imported.object.clone(), Err(refusal));
            }
        }
    }

    fn plan(
        self,
        world: &World,
        claims: &Claims<'_>,
        addresses: &Addresses,
        unread: &BTreeSet<String>,
    ) -> local::LocalPlan {
        let mut plan = local::plan(world, &self.groups, claims, addresses, unread);
        plan.reports.extend(self.refused);
        plan
    }
}

/// The generated object, once it stands in the store and its last write went well.
pub(in crate::plan) fn in_place(
    world: &World,
    key: ObjectKey,
) -> Result<ObjectKey, Refusal<GeneratedReason>> {
    let reason = GeneratedReason::Pending;
    if let Some(failure) = world.failures.get(&key) {
        return Err(Refusal::new(reason, format!("{key} cannot be written: {failure}")));
    }
    match world.objects.get(&key) {
        Some(there) if there.is_generated_by(&world.settings.instance) => Ok(key),
        _ => Err(Refusal {
            reason,
            status: Truth::Unknown,
            message: format!("{key} is not written yet; where it stays so, see the log of the agent"),
        }),
    }
}

//! The DestinationRule comes first: a ServiceEntry whose TLS our sidecar begins is not written, nor changed, before the
//! store holds the rule that begins it. Without that the sidecar would call in plaintext.

use std::sync::Arc;

use crate::api::v1alpha1::conditions::GeneratedReason;
use crate::model::World;
use crate::model::condition::Truth;
use crate::model::import::Imported;
use crate::model::object::{Kind, Object, ObjectKey};
use crate::plan::admission::Refusal;
use crate::plan::{diff, services};

use super::{Claims, in_place};

/// What of an import's objects may be written now.
#[derive(Debug)]
pub(super) struct Gated {
    pub objects: Vec<Arc<Object>>,
    /// Whether clients find its host at all.
    pub is_out: bool,
    /// The objects as they stand in the store, or why they do not.
    pub generated: Result<Vec<ObjectKey>, Refusal<GeneratedReason>>,
}

/// Holds the ServiceEntry back while its DestinationRule, where it has one, does not stand as desired: what stands of it
/// stays as it stands, but where there is no rule at all and none can be written, it goes.
pub(super) fn gate(
    world: &World,
    imported: &Imported,
    mut made: Vec<Arc<Object>>,
    claims: &Claims<'_>,
) -> Gated {
    let keys: Vec<ObjectKey> = made.iter().map(|object| object.key.clone()).collect();
    let rule = made.iter().find(|object| object.key.kind == Kind::DestinationRule).cloned();
    let Some(rule) = rule else {
        let generated = keys.into_iter().map(|key| in_place(world, key)).collect();
        return Gated { objects: made, is_out: true, generated };
    };
    let there = world.objects.get(&rule.key);
    let stands = there.is_some_and(|there| there.meta.deletion.is_none() && diff::stands(&rule, there));
    let mut is_out = true;
    if !stands {
        let is_hopeless = there.is_none() && world.failures.contains_key(&rule.key);
        let is_rule = |object: &Arc<Object>| object.key.kind == Kind::DestinationRule;
        let entry = made.iter().find(|object| !is_rule(object)).map(|object| object.key.clone());
        made.retain(is_rule);
        let standing = entry.and_then(|key| world.objects.get(&key)).filter(|entry| {
            !is_hopeless && entry.meta.deletion.is_none() && entry.is_generated_by(&world.settings.instance)
        });
        made.extend(standing.map(|entry| diff::seal(services::as_it_stands(entry))));
        is_out = standing.is_some();
    }
    let generated = overruled(imported, claims).and_then(|()| {
        in_place(world, rule.key.clone())?;
        if !stands {
            return Err(Refusal {
                reason: GeneratedReason::Pending,
                status: Truth::Unknown,
                message: format!(
                    "{}: {}, with which sidecars begin TLS, is not there as it should be; the ServiceEntry waits for it",
                    imported.object.name, rule.key
                ),
            });
        }
        keys.into_iter().map(|key| in_place(world, key)).collect()
    });
    Gated { objects: made, is_out, generated }
}

/// Another's DestinationRule that covers the host takes the place of ours for the clients of its namespace, whichever is
/// older: Istio looks there first. Only it can be said.
fn overruled(imported: &Imported, claims: &Claims<'_>) -> Result<(), Refusal<GeneratedReason>> {
    let host = &imported.object.name;
    match claims.any(Kind::DestinationRule, host, |_| true) {
        None => Ok(()),
        Some(other) => Err(Refusal::new(
            GeneratedReason::HostExists,
            format!(
                "{host}: {other} covers this host too, and where Istio takes it in place of ours clients call without TLS; \
                 delete it, or let it cover other hosts only"
            ),
        )),
    }
}

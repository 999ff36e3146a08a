//! One step of making a plan true.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::reports::{Report, Reports};
use super::{ECHO, Targets};
use serde_json::Value;

use crate::model::object::{Kind, Meta};
use crate::model::trust::{BundleRemoval, SpireAction};
use crate::model::{ObjectKey, TrustDomain};
use crate::plan::diff::{Write, stands};
use crate::plan::{Patch, Plan, StatusWrite, Transition};
use crate::store::Severity;

/// The order in which a plan is made true. Each step is safe by itself: the plan waits for what must come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// What ends trust, which waits for nobody; and beside it, finalizers and `federatesWith`.
    Trust,
    Spire,
    /// Started, not waited for: what SPIRE fetches for it, the peer serves. A new authority waits for no writes.
    Refresh,
    Writes,
    Prune,
    Statuses,
}

impl Stage {
    pub(super) const ALL: [Self; 6] =
        [Self::Trust, Self::Spire, Self::Refresh, Self::Writes, Self::Prune, Self::Statuses];
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operation {
    Patch(Patch),
    Write(Box<Write>),
    Spire(SpireAction),
    Prune { key: ObjectKey, uid: String },
    Status { key: ObjectKey, write: StatusWrite },
}

/// What a write left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrote {
    pub(super) uid: String,
    pub(super) resource_version: String,
    /// Whether it stands as desired: a webhook may have changed it on the way.
    pub(super) stands: bool,
}

/// The operations of a plan, by what they are about: one at a time for each.
pub(super) fn of(plan: &Plan) -> BTreeMap<String, Operation> {
    let writes = plan.writes.values().cloned().map(|write| Operation::Write(Box::new(write)));
    let prune = plan.prune.iter().map(|(key, uid)| Operation::Prune { key: key.clone(), uid: uid.clone() });
    let status = |(key, write): (&ObjectKey, &StatusWrite)| Operation::Status {
        key: key.clone(),
        write: write.clone(),
    };
    let rest = writes.chain(prune).chain(plan.statuses.iter().map(status));
    let mut all = for_trust(plan);
    all.extend(rest.map(|operation| (operation.to_string(), operation)));
    all
}

/// Those of them that trust needs: all up to [`Stage::Refresh`].
pub(super) fn for_trust(plan: &Plan) -> BTreeMap<String, Operation> {
    let patches = plan.patches.iter().cloned().map(Operation::Patch);
    let spire = plan.spire.iter().cloned().map(Operation::Spire);
    let ends = plan.prune.iter().filter(|(key, _)| is_end_of(key));
    let ends = ends.map(|(key, uid)| Operation::Prune { key: key.clone(), uid: uid.clone() });
    let all = patches.chain(spire).chain(ends);
    all.map(|operation| (operation.to_string(), operation)).collect()
}

fn is_end_of(key: &ObjectKey) -> bool {
    matches!(key.kind, Kind::ClusterFederatedTrustDomain)
}

fn ends(action: &SpireAction) -> bool {
    matches!(
        action,
        SpireAction::DeleteRelationship(_) | SpireAction::DeleteBundle(_, BundleRemoval::Dissociate)
    )
}

impl Operation {
    /// Whether a try of the other was one of this. A status that was computed again differs by its times at least, and a
    /// write is the same whatever of the object was seen meanwhile.
    pub(super) fn is_again(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Status { key, write }, Self::Status { key: other_key, write: other }) => {
                key == other_key && timeless(&write.status) == timeless(&other.status)
            }
            (Self::Write(write), Self::Write(other)) => {
                write.object == other.object && write.precondition == other.precondition
            }
            (one, other) => one == other,
        }
    }

    pub(super) fn stage(&self) -> Stage {
        match self {
            Self::Patch(_) => Stage::Trust,
            _ if self.is_end() => Stage::Trust,
            Self::Write(_) => Stage::Writes,
            Self::Spire(SpireAction::RefreshBundle(_)) => Stage::Refresh,
            Self::Spire(_) => Stage::Spire,
            Self::Prune { .. } => Stage::Prune,
            Self::Status { .. } => Stage::Statuses,
        }
    }

    /// Whether it ends trust: the plan asks for it when nothing else has to come first, and nothing else may delay it.
    pub(super) fn is_end(&self) -> bool {
        match self {
            Self::Prune { key, .. } => is_end_of(key),
            Self::Spire(action) => ends(action),
            Self::Patch(_) | Self::Write(_) | Self::Status { .. } => false,
        }
    }

    /// Whether a peer could cause it again and again by what it says, or someone who changes it back: then it has a least
    /// distance in time.
    pub(super) const fn is_paced(&self) -> bool {
        matches!(
            self,
            Self::Patch(_)
                | Self::Write(_)
                | Self::Status { .. }
                | Self::Spire(SpireAction::ChangeFederatesWith { .. })
        )
    }

    /// How long it is not done again, once it was done, though it is still asked for: so long the watch is given to show
    /// what was written. SPIRE, though, may be served something else than we are for ever.
    pub(super) fn rests(&self) -> Duration {
        match self {
            Self::Spire(SpireAction::RefreshBundle(refresh)) => refresh.every.max(ECHO),
            _ => ECHO,
        }
    }

    /// Whose bundle it has SPIRE fetch.
    pub(super) const fn refreshes(&self) -> Option<&TrustDomain> {
        match self {
            Self::Spire(SpireAction::RefreshBundle(refresh)) => Some(&refresh.trust_domain),
            _ => None,
        }
    }

    /// Whose relationship or bundle in SPIRE it changes: a fetch that was begun before it is out of date.
    pub(super) fn outdates(&self) -> Option<&TrustDomain> {
        let Self::Spire(action) = self else { return None };
        match action {
            SpireAction::CreateRelationship(relationship, _)
            | SpireAction::UpdateRelationship(relationship, _) => Some(&relationship.trust_domain),
            SpireAction::DeleteRelationship(trust_domain) | SpireAction::DeleteBundle(trust_domain, _) => {
                Some(trust_domain)
            }
            SpireAction::SetBundle(bundle) => Some(bundle.trust_domain()),
            SpireAction::ChangeFederatesWith { .. } | SpireAction::RefreshBundle(_) => None,
        }
    }

    /// The object that it writes.
    pub(super) fn object(&self) -> Option<&ObjectKey> {
        match self {
            Self::Patch(patch) => Some(&patch.key),
            Self::Write(write) => Some(&write.object.key),
            Self::Prune { key, .. } | Self::Status { key, .. } => Some(key),
            Self::Spire(_) => None,
        }
    }

    /// Does it; what a write of a generated object left. The error is for the operator.
    pub(super) async fn execute(
        &self,
        targets: &Targets,
        reports: &Reports,
        own: &TrustDomain,
    ) -> Result<Option<Wrote>, String> {
        let store = &targets.store;
        let text = |error: crate::store::StoreError| error.to_string();
        match self {
            Self::Write(write) => {
                let left = store.apply(&write.object, &write.precondition).await.map_err(text)?;
                let stands = stands(&write.object, &left);
                let Meta { uid, resource_version, .. } = left.meta;
                return Ok(Some(Wrote { uid, resource_version, stands }));
            }
            Self::Patch(patch) => {
                let ops = patch.ops.clone();
                store.patch_json(&patch.key, &patch.resource_version, ops).await.map(drop).map_err(text)?;
            }
            Self::Spire(action) => targets.spire.act(own, action).await.map_err(|e| e.to_string())?,
            Self::Prune { key, uid } => store.delete(key, uid).await.map_err(text)?,
            // What is gone needs no status: it went with what was done just before.
            Self::Status { key, write } => {
                match store.update_status(key, &write.uid, write.status.clone()).await {
                    Ok(()) => announce(reports, key, write),
                    Err(crate::store::StoreError::NotFound { .. }) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        Ok(None)
    }

    /// The failure, as it is told on the object that it is about, where that is there.
    pub(super) fn report(&self, error: &str) -> Option<Report> {
        let about = match self {
            Self::Write(write) => {
                let owner = write.object.meta.owners.first();
                owner.map(|owner| {
                    let namespace = owner.kind.is_namespaced().then(|| write.object.key.namespace.clone());
                    let key = ObjectKey {
                        kind: owner.kind,
                        namespace: namespace.flatten(),
                        name: owner.name.clone(),
                    };
                    (key, owner.uid.clone())
                })
            }
            Self::Prune { key, uid } => Some((key.clone(), uid.clone())),
            Self::Status { key, write } => Some((key.clone(), write.uid.clone())),
            Self::Patch(_) | Self::Spire(_) => None,
        };
        about.map(|(about, uid)| Report {
            about,
            uid,
            severity: Severity::Warning,
            reason: "ApplyFailed".to_owned(),
            message: format!("{self}: {error}"),
        })
    }
}

fn timeless(status: &Value) -> Value {
    let mut status = status.clone();
    let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
        condition.remove("lastTransitionTime");
    }
    status
}

/// Tells what changed in a status, in the words of its conditions: as an Event, which is logged too. That an import goes
/// well is no news, since thousands may come at once.
fn announce(reports: &Reports, key: &ObjectKey, write: &StatusWrite) {
    let is_news = |transition: &&Transition| transition.is_warning || key.kind != Kind::ImportedService;
    for Transition { is_warning, condition, reason, message } in write.transitions.iter().filter(is_news) {
        let severity = if *is_warning { Severity::Warning } else { Severity::Normal };
        reports.tell(Report {
            about: key.clone(),
            uid: write.uid.clone(),
            severity,
            reason: reason.clone(),
            message: format!("{condition}: {message}"),
        });
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Patch(patch) => write!(f, "change {}", patch.key),
            Self::Write(write) => write!(f, "write {}", write.object.key),
            Self::Prune { key, .. } => write!(f, "delete {key}"),
            Self::Status { key, .. } => write!(f, "write the status of {key}"),
            Self::Spire(action) => match action {
                SpireAction::CreateRelationship(relationship, _) => {
                    write!(f, "create SPIRE's relationship with {}", relationship.trust_domain)
                }
                SpireAction::UpdateRelationship(relationship, _) => {
                    write!(f, "update SPIRE's relationship with {}", relationship.trust_domain)
                }
                SpireAction::DeleteRelationship(td) => write!(f, "delete SPIRE's relationship with {td}"),
                SpireAction::ChangeFederatesWith { entry, .. } => {
                    write!(f, "change federatesWith of SPIRE's entry {entry}")
                }
                SpireAction::SetBundle(bundle) => {
                    write!(f, "give SPIRE the verified bundle of {}", bundle.trust_domain())
                }
                SpireAction::RefreshBundle(refresh) => {
                    write!(f, "have SPIRE refresh the bundle of {}", refresh.trust_domain)
                }
                SpireAction::DeleteBundle(td, BundleRemoval::Restrict) => {
                    write!(f, "delete SPIRE's bundle of {td}")
                }
                SpireAction::DeleteBundle(td, BundleRemoval::Dissociate) => {
                    write!(f, "delete SPIRE's bundle of {td}, and take it out of every entry")
                }
            },
        }
    }
}

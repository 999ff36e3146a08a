//! What of one peer's catalogue, and of what stands in the store of it, is imported.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;

use crate::api::v1alpha1::conditions::AdmittedReason;
use crate::model::import::Imported;
use crate::model::object::{Kind, ObjectKey};
use crate::model::session::{GoodbyeReason, LinkState, Offers, SessionState};
use crate::model::{Peer, ServiceName, World};
use crate::plan::admission::{Admission, Refusal};
use crate::plan::memo::Memo;
use crate::plan::{diff, generated};

use super::ImportPlan;
use super::decided::{Decided, Offered};
use super::object::{key, object};
use super::withdrawal::{Withdrawal, withdrawal};

/// The imports of one peer.
pub(super) struct PeerImports<'a> {
    pub(super) world: &'a World,
    pub(super) peer: &'a Arc<Peer>,
    pub(super) admission: Admission,
    /// What is in the store of it.
    pub(super) standing: BTreeMap<&'a ServiceName, &'a Imported>,
}

impl PeerImports<'_> {
    pub(super) fn plan(&self, session: Option<&SessionState>, plan: &mut ImportPlan, memo: &mut Memo) {
        let td = &self.peer.trust_domain;
        let withdrawn = self.withdrawn(session, plan);
        let catalogue = session.and_then(|session| session.catalogue.as_ref());
        let offered = match catalogue {
            // It exports nothing any more by its own word, whether or not an empty catalogue came before the goodbye.
            _ if session.is_some_and(has_ended) => Offered::Made(Offers::new()),
            Some(catalogue) => Offered::of(catalogue, &self.standing),
            None => Offered::Made(
                self.standing
                    .iter()
                    .map(|(name, imported)| ((*name).clone(), Arc::clone(&imported.service)))
                    .collect(),
            ),
        };
        let decided = memo.decisions.decide(offered, &self.admission, &self.standing);
        let refused = self.make(&decided, withdrawn.as_ref(), plan, memo);
        self.judge_standing(&decided, &refused, withdrawn.as_ref(), plan);
        if catalogue.is_some() {
            let mut outcomes = Arc::clone(&decided.outcomes);
            for (name, refusal) in refused {
                Arc::make_mut(&mut outcomes).insert(name.clone(), refusal.into());
            }
            plan.outcomes.insert(td.clone(), outcomes);
        } else if withdrawn.is_none() {
            plan.silent.insert(td.clone());
        }
    }

    /// The ImportedServices of what is admitted; and why some of them are not made after all.
    fn make<'d>(
        &self,
        decided: &'d Decided,
        withdrawn: Option<&Refusal>,
        plan: &mut ImportPlan,
        memo: &mut Memo,
    ) -> BTreeMap<&'d ServiceName, Refusal> {
        let mut refused = BTreeMap::new();
        for (name, host) in &decided.admitted {
            let key = key(self.world, host);
            if let Err(message) = generated::claim(self.world, &key) {
                plan.blocked.insert(key, message.clone());
                refused.insert(name, Refusal::new(AdmittedReason::ObjectNotOurs, message));
            } else if let Some(withdrawn) = withdrawn {
                refused.insert(name, withdrawn.clone());
            } else if let Some(service) = decided.offered(name) {
                let input = (Arc::clone(self.admission.peer()), Arc::clone(service));
                let object = memo.imported.get(&key, &input, |(peer, service)| {
                    diff::seal(object(&self.world.settings, key.clone(), peer, service, host))
                });
                plan.objects.insert(key, object);
            }
        }
        refused
    }

    /// What of the store stays and stands as it is there. It is admitted by its own content, not by what the catalogue has
    /// under its name: the store follows the catalogue, and what is generated follows the store.
    fn judge_standing(
        &self,
        decided: &Decided,
        refused: &BTreeMap<&ServiceName, Refusal>,
        withdrawn: Option<&Refusal>,
        plan: &mut ImportPlan,
    ) {
        for (name, imported) in &self.standing {
            let refusal = || refused.get(*name).cloned().or_else(|| decided.refusal(name));
            let verdict = match (withdrawn, decided.offered(name)) {
                (Some(withdrawn), _) => Err(withdrawn.clone()),
                (None, None) => Err(Refusal::new(
                    AdmittedReason::NoLongerExported,
                    format!("{name}: {} no longer exports it", self.peer.trust_domain),
                )),
                (None, Some(offered)) => match refusal() {
                    Some(refusal) => Err(refusal),
                    None if *offered == imported.service => Ok(()),
                    None => self.admission.admit(&imported.service).map(drop),
                },
            };
            let key = ObjectKey::namespaced(
                Kind::ImportedService,
                &imported.object.namespace,
                &imported.object.name,
            );
            match verdict {
                Ok(()) => {
                    plan.standing.insert(key, (self.peer.trust_domain.clone(), (*name).clone()));
                }
                Err(refusal) => {
                    plan.refused.insert(key, refusal);
                }
            }
        }
    }

    /// Why everything of the peer is withdrawn, where it is; else notes when it will be.
    fn withdrawn(&self, session: Option<&SessionState>, plan: &mut ImportPlan) -> Option<Refusal> {
        session?;
        let Withdrawal { since, at: due } = withdrawal(self.world, self.peer)?;
        if self.world.now > due {
            let td = &self.peer.trust_domain;
            return Some(Refusal::new(
                AdmittedReason::Withdrawn,
                format!(
                    "{td} has not been connected since {since}, longer than spec.onDisconnect.after; it is imported again \
                     once the peer is back"
                ),
            ));
        }
        // The time must have passed, and is known in whole seconds.
        let wake = due.checked_add(SignedDuration::from_secs(1)).unwrap_or(due);
        plan.wake_at = Some(plan.wake_at.map_or(wake, |at| at.min(wake)));
        None
    }
}

/// Whether the peer said that it ended the relationship.
fn has_ended(session: &SessionState) -> bool {
    matches!(session.link, LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, .. })
}

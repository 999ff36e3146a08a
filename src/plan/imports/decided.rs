//! What becomes of everything that one peer offers. It is remembered while nothing of it changes: a peer may offer
//! thousands of services of which few are admitted, and each refusal has its words.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::v1alpha1::conditions::AdmittedReason;
use crate::model::import::Imported;
use crate::model::service::{Outcome, RemoteService};
use crate::model::session::{Catalogue, Offers, Outcomes};
use crate::model::{ServiceName, TrustDomain};
use crate::plan::admission::{Admission, Refusal};

/// What a peer exports, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::plan) enum Offered {
    Catalogue(Arc<Catalogue>),
    /// What is imported already counts as well, or alone.
    Made(Offers),
}

impl Offered {
    /// What a peer says, and what stands of that which it cannot read now: that is taken for what it was.
    pub(super) fn of(catalogue: &Arc<Catalogue>, standing: &BTreeMap<&ServiceName, &Imported>) -> Self {
        let held = catalogue.held.iter();
        let held = held.filter_map(|name| Some((name.clone(), Arc::clone(&standing.get(name)?.service))));
        let mut held = held.peekable();
        if held.peek().is_none() {
            return Self::Catalogue(Arc::clone(catalogue));
        }
        let mut all = catalogue.services.clone();
        all.extend(held);
        Self::Made(all)
    }

    pub(super) fn services(&self) -> &Offers {
        match self {
            Self::Catalogue(catalogue) => &catalogue.services,
            Self::Made(services) => services,
        }
    }
}

/// Each service by itself, whatever there is room for.
#[derive(Debug)]
struct Judged {
    offered: Offered,
    admission: Admission,
    verdicts: BTreeMap<ServiceName, Result<String, Refusal>>,
    /// How many are admitted.
    good: usize,
}

impl Judged {
    /// Judges anew what differs from the last time.
    fn anew(offered: Offered, admission: Admission, last: Option<&Self>, count: &mut usize) -> Self {
        let last = last.filter(|last| last.admission == admission);
        let known = last.map(|last| last.offered.services().values().zip(last.verdicts.values()));
        let mut known = known.into_iter().flatten().peekable();
        let judge = |(name, service): (&ServiceName, &Arc<RemoteService>)| {
            while known.next_if(|(other, _)| other.name < *name).is_some() {}
            let same = known.next_if(|(other, _)| *other == service);
            let verdict = same.map_or_else(
                || {
                    *count += 1;
                    admission.admit(service)
                },
                |(_, verdict)| verdict.clone(),
            );
            (name.clone(), verdict)
        };
        let verdicts: BTreeMap<_, _> = offered.services().iter().map(judge).collect();
        let good = verdicts.values().filter(|verdict| verdict.is_ok()).count();
        Self { offered, admission, verdicts, good }
    }
}

/// What becomes of all of it.
#[derive(Debug)]
pub(in crate::plan) struct Decided {
    judged: Arc<Judged>,
    /// The host of each service that is admitted and that there is room for.
    pub(super) admitted: BTreeMap<ServiceName, String>,
    /// What the peer is answered to it.
    pub(super) outcomes: Arc<Outcomes>,
}

/// The decisions on each peer that was planned for.
#[derive(Debug, Default)]
pub(in crate::plan) struct Decisions {
    all: BTreeMap<TrustDomain, Arc<Decided>>,
    /// How many services have been judged.
    pub(in crate::plan) judged: usize,
}

impl Decisions {
    pub(super) fn retain(&mut self, is_known: impl Fn(&TrustDomain) -> bool) {
        self.all.retain(|trust_domain, _| is_known(trust_domain));
    }

    /// What becomes of what the peer offers, while these of it stand.
    pub(super) fn decide(
        &mut self,
        offered: Offered,
        admission: &Admission,
        standing: &BTreeMap<&ServiceName, &Imported>,
    ) -> Arc<Decided> {
        let trust_domain = &admission.peer().trust_domain;
        let last = self.all.get(trust_domain);
        let same = last.filter(|last| last.judged.offered == offered && last.judged.admission == *admission);
        let judged = match same {
            Some(same) => Arc::clone(&same.judged),
            None => {
                let last = last.map(|last| last.judged.as_ref());
                Arc::new(Judged::anew(offered, admission.clone(), last, &mut self.judged))
            }
        };
        let chosen = choose(&judged, standing);
        let is_same = same.is_some_and(|same| match &chosen {
            None => same.admitted.len() == judged.good,
            Some(chosen) => same.admitted.keys().eq(chosen.iter().copied()),
        });
        if let Some(same) = same.filter(|_| is_same) {
            return Arc::clone(same);
        }
        let decided = Arc::new(Decided::new(&judged, chosen.as_ref()));
        self.all.insert(trust_domain.clone(), Arc::clone(&decided));
        decided
    }
}

/// Of too many, those that are imported already stay, then the first by name; nothing where there is room for all.
fn choose<'j>(
    judged: &'j Judged,
    standing: &BTreeMap<&ServiceName, &Imported>,
) -> Option<BTreeSet<&'j ServiceName>> {
    let most = judged.admission.peer().imports.max_services;
    if judged.good <= most {
        return None;
    }
    let is_good = |verdict: &Result<String, Refusal>| verdict.is_ok();
    let stay = standing.keys().filter_map(|name| {
        let (name, verdict) = judged.verdicts.get_key_value(*name)?;
        is_good(verdict).then_some(name)
    });
    let mut chosen: BTreeSet<&ServiceName> = stay.take(most).collect();
    let free = most - chosen.len();
    let new =
        judged.verdicts.iter().filter(|(name, verdict)| is_good(verdict) && !standing.contains_key(name));
    chosen.extend(new.map(|(name, _)| name).take(free));
    Some(chosen)
}

impl Decided {
    fn new(judged: &Arc<Judged>, chosen: Option<&BTreeSet<&ServiceName>>) -> Self {
        let is_chosen = |name: &ServiceName| chosen.is_none_or(|chosen| chosen.contains(name));
        let (mut admitted, mut outcomes) = (BTreeMap::new(), Outcomes::new());
        for (name, verdict) in &judged.verdicts {
            let outcome = match verdict {
                Ok(host) if is_chosen(name) => {
                    admitted.insert(name.clone(), host.clone());
                    Outcome::Imported
                }
                Ok(_) => crowded(judged, name).into(),
                Err(refusal) => refusal.clone().into(),
            };
            outcomes.insert(name.clone(), outcome);
        }
        Self { judged: Arc::clone(judged), admitted, outcomes: Arc::new(outcomes) }
    }

    /// What is offered under a name.
    pub(super) fn offered(&self, name: &ServiceName) -> Option<&Arc<RemoteService>> {
        self.judged.offered.services().get(name)
    }

    /// Why what is offered under a name is not admitted. Nothing: it is, or it is not offered.
    pub(super) fn refusal(&self, name: &ServiceName) -> Option<Refusal> {
        match self.judged.verdicts.get(name)? {
            Ok(_) if self.admitted.contains_key(name) => None,
            Ok(_) => Some(crowded(&self.judged, name)),
            Err(refusal) => Some(refusal.clone()),
        }
    }
}

/// Why a service is refused that would be admitted were there room.
fn crowded(judged: &Judged, name: &ServiceName) -> Refusal {
    let (peer, count) = (judged.admission.peer(), judged.good);
    let message = format!(
        "{name} of {}: {count} services are exported and would be admitted, over the importer's spec.imports.maxServices \
         of {}",
        peer.trust_domain, peer.imports.max_services
    );
    Refusal::new(AdmittedReason::TooManyServices, message)
}

//! What was decided on each service, remembered for as long as nothing that it sees has changed.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::accept::{Candidate, accept};
use super::sight::{Common, Sight};
use super::unread::Unread;
use super::{
    Acceptance, Around, Export, ExportProblem, ExportReport, Exports, Standing, export, nowhere, report_of,
};
use crate::model::export::{Note, Unresolved, in_namespace};
use crate::model::{NamespacedName, ObjectKey, Service, TrustDomain, World};
use crate::plan::memo::{Memo, Shared};
use crate::plan::observed::Observed;
use crate::plan::pods::Pods;

/// What was decided, by namespace: what services contend for is in it.
#[derive(Debug, Default)]
pub(in crate::plan) struct Decisions {
    common: Shared<Common>,
    namespaces: BTreeMap<String, Namespace>,
    /// How many services have been decided on.
    pub(in crate::plan) made: usize,
}

#[derive(Debug)]
struct Namespace {
    common: Arc<Common>,
    /// The turns of which it is.
    objects: u64,
    pods: u64,
    /// Nothing else had a say in it, but for what all see.
    is_alone: bool,
    services: Vec<Known>,
    unresolved: Vec<(Arc<Unresolved>, Decided)>,
    notes: Vec<(NamespacedName, Vec<Note>)>,
}

#[derive(Debug)]
struct Known {
    sight: Sight,
    decided: Arc<Decided>,
}

/// What becomes of one service.
#[derive(Debug)]
struct Decided {
    report: Arc<ExportReport>,
    export: Option<Arc<Export>>,
    is_held: bool,
    blocked: BTreeMap<ObjectKey, String>,
}

/// What a namespace declares now.
struct Declared<'a> {
    name: &'a str,
    services: Vec<&'a Arc<Service>>,
    unresolved: Vec<&'a Arc<Unresolved>>,
    notes: Vec<(&'a NamespacedName, &'a Vec<Note>)>,
}

impl<'a> Declared<'a> {
    fn of(world: &'a World, name: &'a str) -> Self {
        Self {
            name,
            services: in_namespace(&world.services, name).map(|(_, service)| service).collect(),
            unresolved: in_namespace(&world.unresolved, name).map(|(_, one)| one).collect(),
            notes: in_namespace(&world.notes, name).collect(),
        }
    }

    fn candidates(&self) -> impl Iterator<Item = Candidate<'a>> {
        let services = self.services.iter().copied().map(Candidate::Service);
        services.chain(self.unresolved.iter().map(|one| Candidate::Unresolved(one)))
    }
}

/// Whether each service, or FederatedService that comes to nothing, stands among the others.
type Accepted<'a> = BTreeMap<(bool, &'a NamespacedName), Acceptance>;

/// Decides on every FederatedService.
pub(super) fn decide(world: &World, own: &TrustDomain, memo: &mut Memo) -> Exports {
    memo.observed.look(world);
    let common = Common::new(world, own, memo);
    let common = memo.decided.common.share(common);
    let unread = Unread::new(world, own);
    let all: BTreeSet<&str> =
        world.services.keys().chain(world.unresolved.keys()).map(|name| name.namespace.as_str()).collect();
    let all: Vec<Declared<'_>> = all.into_iter().map(|name| Declared::of(world, name)).collect();
    // What cannot be read, and the fence, are of no namespace.
    let is_whole = world.settings.fence || !unread.sources.is_empty();
    let accepted_whole =
        is_whole.then(|| acceptances(world, own, &unread, all.iter().flat_map(Declared::candidates)));
    let turn = Turn {
        world,
        observed: &memo.observed,
        common: &common,
        unread: &unread,
        accepted_whole,
        standing: OnceCell::new(),
    };
    let mut before = std::mem::take(&mut memo.decided.namespaces);
    let mut exports = Exports::default();
    for declared in &all {
        let known = before.remove(declared.name);
        let namespace = match known {
            Some(known) if turn.is_same(declared, &known) => known,
            known => turn.decide(declared, known, &mut memo.decided.made),
        };
        namespace.tell(&mut exports);
        memo.decided.namespaces.insert(declared.name.to_owned(), namespace);
    }
    exports
}

fn acceptances<'a>(
    world: &'a World,
    own: &TrustDomain,
    unread: &'a Unread,
    candidates: impl Iterator<Item = Candidate<'a>>,
) -> Accepted<'a> {
    let accepted = accept(candidates.collect(), world.settings.fence, own, unread);
    accepted.into_iter().map(|(candidate, accepted)| (candidate.key(), accepted)).collect()
}

/// What decisions are made by in one plan.
struct Turn<'a> {
    world: &'a World,
    observed: &'a Observed,
    common: &'a Arc<Common>,
    unread: &'a Unread,
    /// What is accepted, where that is decided across namespaces.
    accepted_whole: Option<Accepted<'a>>,
    /// Few plans need it.
    standing: OnceCell<Standing<'a>>,
}

impl<'a> Turn<'a> {
    /// Whether all that a namespace was decided by is as it was.
    fn is_same(&self, declared: &Declared<'_>, known: &Namespace) -> bool {
        known.is_alone
            && self.accepted_whole.is_none()
            && self.world.failures.is_empty()
            && Arc::ptr_eq(&known.common, self.common)
            && self.observed.objects.is_as_of(known.objects, declared.name)
            && self.observed.pods.is_as_of(known.pods, declared.name)
            && known.services.iter().map(|known| &known.sight.service).eq(declared.services.iter().copied())
            && known.unresolved.iter().map(|(one, _)| one).eq(declared.unresolved.iter().copied())
            && known.notes.iter().map(|(name, notes)| (name, notes)).eq(declared.notes.iter().copied())
    }

    fn decide(&self, declared: &Declared<'a>, known: Option<Namespace>, made: &mut usize) -> Namespace {
        let anew;
        let accepted = match &self.accepted_whole {
            Some(accepted) => accepted,
            None => {
                anew = acceptances(self.world, self.common.own(), self.unread, declared.candidates());
                &anew
            }
        };
        let of = |is_service, name| accepted.get(&(is_service, name)).cloned().unwrap_or(Ok(()));
        let has_pods =
            known.as_ref().is_some_and(|known| self.observed.pods.is_as_of(known.pods, declared.name));
        let is_common = known.as_ref().is_some_and(|known| Arc::ptr_eq(&known.common, self.common));
        let pods: OnceCell<Pods<'_>> = OnceCell::new();
        let mut before = known.into_iter().flat_map(|known| known.services).peekable();
        let mut services = Vec::with_capacity(declared.services.len());
        for service in &declared.services {
            let name = &service.object;
            while before.next_if(|known| known.sight.service.object < *name).is_some() {}
            let known = before.next_if(|known| known.sight.service.object == *name);
            let selected = match known.as_ref().map(|known| &known.sight) {
                Some(sight) if has_pods && Arc::ptr_eq(&sight.service, service) => sight.pods.clone(),
                _ => {
                    let here = || in_namespace(&self.world.pods, declared.name).map(|(_, pod)| pod).collect();
                    let pods = pods.get_or_init(here);
                    let selected = pods.selected(&name.namespace, &service.workload_labels);
                    selected.map(Arc::clone).collect()
                }
            };
            let sight = Sight::of(self.world, self.common, service, of(true, name), selected);
            let is_same = |known: &Known| is_common && known.sight == sight && !sight.is_failing();
            let decided = match known.filter(is_same) {
                Some(known) => known.decided,
                None => {
                    *made += 1;
                    Arc::new(self.decide_on(&sight))
                }
            };
            services.push(Known { sight, decided });
        }
        let unresolved = declared.unresolved.iter().map(|one| {
            let accepted = of(false, &one.declared.object);
            (Arc::clone(one), self.of_unresolved(one, accepted))
        });
        Namespace {
            common: Arc::clone(self.common),
            objects: self.observed.objects.turn(),
            pods: self.observed.pods.turn(),
            is_alone: self.accepted_whole.is_none() && services.iter().all(|known| known.sight.is_alone()),
            services,
            unresolved: unresolved.collect(),
            notes: declared.notes.iter().map(|(name, notes)| ((*name).clone(), (*notes).clone())).collect(),
        }
    }

    fn decide_on(&self, sight: &Sight) -> Decided {
        let service = &sight.service;
        let mut report = report_of(&service.exported_to, sight.accepted.clone());
        let mut exports = Exports::default();
        if sight.accepted.is_ok() {
            let world = sight.world(self.common);
            let around = Around {
                gateways: &self.common.gateways,
                pods: sight.pods.iter().collect(),
                standing: self.standing.get_or_init(|| Standing::new(self.common.others(), self.world)),
                doubt: self.common.doubt.as_ref(),
            };
            export(&world, self.common.own(), &around, service, &mut report, &mut exports);
        }
        report.warnings.extend(sight.notes.iter().map(ExportProblem::of_note));
        Decided {
            report: Arc::new(report),
            export: exports.exported.into_values().next(),
            is_held: !exports.held.is_empty(),
            blocked: exports.blocked,
        }
    }

    fn of_unresolved(&self, one: &Unresolved, accepted: Acceptance) -> Decided {
        let is_accepted = accepted.is_ok();
        let mut report = report_of(&one.declared.exported_to, accepted);
        if is_accepted {
            nowhere(&mut report, &ExportProblem::of_note(&one.problem));
            report.host = one.declared.name.host(self.common.own()).ok();
        }
        let notes = self.world.notes.get(&one.declared.object).into_iter().flatten();
        report.warnings.extend(notes.map(ExportProblem::of_note));
        Decided { report: Arc::new(report), export: None, is_held: false, blocked: BTreeMap::new() }
    }
}

impl Namespace {
    /// Adds what was decided to the rest.
    fn tell(&self, exports: &mut Exports) {
        for Known { sight, decided } in &self.services {
            let name = &sight.service.object;
            if sight.accepted.is_ok() && !sight.service.is_outside() {
                exports.accepted.insert(name.clone(), Arc::clone(&sight.service));
            }
            if let Some(export) = &decided.export {
                exports.exported.insert(name.clone(), Arc::clone(export));
            }
            if decided.is_held {
                exports.held.insert(name.clone());
            }
            exports.blocked.extend(decided.blocked.clone());
            exports.reports.insert(name.clone(), Arc::clone(&decided.report));
        }
        for (one, decided) in &self.unresolved {
            exports.reports.insert(one.declared.object.clone(), Arc::clone(&decided.report));
        }
    }
}

#[cfg(test)]
#[path = "decided_tests.rs"]
mod tests;

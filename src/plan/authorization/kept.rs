//! The policies of each namespace, remembered for as long as nothing that they are made of has changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Allows, PolicyOf, Selectors, Trusted, Workloads, allow, allowing, deny, key, standing};
use crate::model::{NamespacedName, Object, ObjectKey, Service, TrustDomain, World};
use crate::plan::exports::unread::Unread;
use crate::plan::exports::{ExportReport, Exports};
use crate::plan::observed::Observed;
use crate::plan::origin::Origin;
use crate::plan::{diff, generated};

/// The policies that were made last.
#[derive(Debug, Default)]
pub(in crate::plan) struct Policies {
    namespaces: BTreeMap<String, Namespace>,
    /// How many that deny have been made.
    pub(in crate::plan) made: usize,
}

#[derive(Debug)]
struct Namespace {
    /// The turn of which it is.
    objects: u64,
    /// Whether all that is exported could be read.
    is_read: bool,
    trusted: Trusted,
    selectors: Arc<Selectors>,
    services: Vec<Arc<Service>>,
    groups: BTreeMap<BTreeMap<String, String>, Group>,
}

/// Those of one selector.
#[derive(Debug)]
struct Group {
    key: ObjectKey,
    /// What was decided on its services: another one where anything that stands of them is another.
    reports: Vec<Arc<ExportReport>>,
    allow: (AllowOf, Vec<Arc<Object>>),
    deny: (PolicyOf, Arc<Object>),
}

/// What the policies that allow are made of: the services of one selector, whose clients count, and others' selectors.
type AllowOf = (Vec<Arc<Service>>, Trusted, Arc<Selectors>);

/// A service, by its object.
type Named<'a> = (&'a NamespacedName, &'a Arc<Service>);

/// What policies are made in, in one plan.
pub(super) struct Turn<'a> {
    pub(super) world: &'a World,
    pub(super) own: &'a TrustDomain,
    pub(super) exports: &'a Exports,
    pub(super) observed: &'a Observed,
    pub(super) trusted: &'a Trusted,
    pub(super) unread: &'a Unread,
}

impl Turn<'_> {
    /// All policies of what is accepted.
    pub(super) fn policies<'a>(
        &'a self,
        allows: &mut Allows<'a>,
        allowing: &mut BTreeMap<String, Arc<Selectors>>,
        kept: &mut Policies,
    ) -> Vec<Arc<Object>> {
        let mut by_namespace: Vec<(&str, Vec<Named<'_>>)> = Vec::new();
        for (name, service) in &self.exports.accepted {
            match by_namespace.last_mut() {
                Some((namespace, services)) if *namespace == name.namespace => services.push((name, service)),
                _ => by_namespace.push((&name.namespace, vec![(name, service)])),
            }
        }
        let mut before = std::mem::take(&mut kept.namespaces);
        let mut made = Vec::new();
        for (namespace, services) in by_namespace {
            let selectors = allows.selectors(namespace, allowing);
            let known = before.remove(namespace);
            let now = match known {
                Some(known) if self.is_same(namespace, &services, &selectors, &known) => known,
                known => self.namespace(namespace, &services, &selectors, known, &mut kept.made),
            };
            for group in now.groups.values() {
                let allow = group.allow.1.iter();
                made.extend(
                    allow.filter(|policy| generated::claim(self.world, &policy.key).is_ok()).cloned(),
                );
                made.push(Arc::clone(&group.deny.1));
            }
            kept.namespaces.insert(namespace.to_owned(), now);
        }
        made
    }

    /// Of what cannot be read, policies are made of more than is compared here.
    fn is_read(&self) -> bool {
        self.unread.sources.is_empty()
    }

    /// Whether all that the policies of a namespace were made of is as it was.
    fn is_same(
        &self,
        namespace: &str,
        services: &[Named<'_>],
        selectors: &Arc<Selectors>,
        known: &Namespace,
    ) -> bool {
        self.is_read()
            && known.is_read
            && self.observed.objects.is_as_of(known.objects, namespace)
            && Arc::ptr_eq(&known.trusted, self.trusted)
            && Arc::ptr_eq(&known.selectors, selectors)
            && known.services.iter().eq(services.iter().map(|(_, service)| *service))
    }

    fn namespace(
        &self,
        namespace: &str,
        services: &[Named<'_>],
        selectors: &Arc<Selectors>,
        known: Option<Namespace>,
        made: &mut usize,
    ) -> Namespace {
        let mut by_selector: BTreeMap<&BTreeMap<String, String>, Vec<Named<'_>>> = BTreeMap::new();
        for (name, service) in services {
            by_selector.entry(&service.workload_labels).or_default().push((*name, *service));
        }
        let is_alike = known.as_ref().is_some_and(|known| {
            self.is_read()
                && known.is_read
                && Arc::ptr_eq(&known.trusted, self.trusted)
                && Arc::ptr_eq(&known.selectors, selectors)
        });
        let mut before = known.map(|known| known.groups).unwrap_or_default();
        let mut groups = BTreeMap::new();
        for (labels, services) in by_selector {
            let report = |(name, _): &Named<'_>| self.exports.reports.get(*name);
            let reports = || services.iter().filter_map(report);
            let known = before.remove(labels);
            let is_same = |known: &Group| {
                is_alike
                    && known.reports.len() == services.len()
                    && known.reports.iter().zip(reports()).all(|(known, now)| Arc::ptr_eq(known, now))
            };
            let group = match known {
                Some(known) if is_same(&known) => known,
                known => {
                    let reports = reports().cloned().collect();
                    let services = services.iter().map(|(_, service)| Arc::clone(service)).collect();
                    self.group((namespace, labels), services, reports, selectors, known, made)
                }
            };
            groups.insert(labels.clone(), group);
        }
        Namespace {
            objects: self.observed.objects.turn(),
            is_read: self.is_read(),
            trusted: Arc::clone(self.trusted),
            selectors: Arc::clone(selectors),
            services: services.iter().map(|(_, service)| Arc::clone(service)).collect(),
            groups,
        }
    }

    /// The policies of one selector. What would be made of the same is what was.
    fn group(
        &self,
        (namespace, labels): Workloads<'_>,
        services: Vec<Arc<Service>>,
        reports: Vec<Arc<ExportReport>>,
        selectors: &Arc<Selectors>,
        known: Option<Group>,
        made: &mut usize,
    ) -> Group {
        let (world, own) = (self.world, self.own);
        let key = known.as_ref().map_or_else(|| key(namespace, labels), |known| known.key.clone());
        let (last_allow, last_deny) = known.map(|known| (known.allow, known.deny)).unzip();
        let of: AllowOf = (services.clone(), Arc::clone(self.trusted), Arc::clone(selectors));
        let allow = last_allow.filter(|(was, _)| *was == of).unwrap_or_else(|| {
            let specs = allow::allow(selectors, labels, &services, self.trusted).into_iter();
            let made = specs.map(|spec| allowing(&world.settings, namespace, &spec, &services)).collect();
            (of, made)
        });
        let mut origin = Origin::of(&services).with_doors(world, own, &services);
        let standing = standing(world, &key, self.unread, self.trusted, &mut origin);
        let of = PolicyOf { own: own.clone(), services, peers: Arc::clone(self.trusted), origin, standing };
        let deny = last_deny.filter(|(was, _)| *was == of).unwrap_or_else(|| {
            *made += 1;
            let spec = generated::spec(&deny(&of));
            let made = diff::seal(of.origin.clone().object(&world.settings, key.clone(), spec));
            (of, made)
        });
        Group { key, reports, allow, deny }
    }
}

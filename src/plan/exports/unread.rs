//! What is out of exports that cannot be read now, and that this process never could: FederatedServices and ServiceExportRules
//! that became malformed while the agent was away. What stands of them was there first, and is theirs still.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::object::{ANNOTATION_SOURCE, Kind};
use crate::model::{NamespacedName, Object, ObjectKey, ServiceName, TrustDomain, World};
use crate::plan::generated::source_of;

/// What stands of a FederatedService that cannot be read, by its aliases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::plan) struct Left {
    /// What it is exported as.
    pub names: BTreeSet<ServiceName>,
    /// Which pods it exports: a namespace, and labels in it.
    pub workloads: BTreeSet<(String, BTreeMap<String, String>)>,
}

/// All of them. Nearly always none.
#[derive(Debug, Default)]
pub(in crate::plan) struct Unread {
    /// As source annotations name them.
    pub sources: BTreeMap<String, ObjectKey>,
    /// Of the FederatedServices, by source: a rule has no claim that holds against them.
    pub left: BTreeMap<String, Left>,
}

impl Unread {
    /// Those of the whole cluster.
    #[must_use]
    pub(in crate::plan) fn new(world: &World, own: &TrustDomain) -> Self {
        let mut unread = Self { sources: sources(world), ..Self::default() };
        if !unread.sources.is_empty() {
            unread.look(world.of_kind(Kind::ServiceEntry).map(|(_, entry)| entry.as_ref()), world, own);
        }
        unread
    }

    /// Those that stand in one namespace.
    #[must_use]
    pub(in crate::plan) fn of_namespace(world: &World, own: &TrustDomain, namespace: &str) -> Self {
        let mut unread = Self { sources: sources(world), ..Self::default() };
        if !unread.sources.is_empty() {
            let from = ObjectKey::namespaced(Kind::ServiceEntry, namespace, "");
            let is_here = |key: &ObjectKey| {
                key.kind == Kind::ServiceEntry && key.namespace.as_deref() == Some(namespace)
            };
            let here = world.objects.range(from..).take_while(|(key, _)| is_here(key));
            unread.look(here.map(|(_, entry)| entry.as_ref()), world, own);
        }
        unread
    }

    fn look<'a>(&mut self, entries: impl Iterator<Item = &'a Object>, world: &World, own: &TrustDomain) {
        for alias in entries {
            let is_ours = alias.is_generated_by(&world.settings.instance) && alias.meta.deletion.is_none();
            let sources = alias.meta.annotations.get(ANNOTATION_SOURCE).filter(|_| is_ours);
            let declares = |source: &&str| {
                source.starts_with(Kind::FederatedService.kind()) && self.sources.contains_key(*source)
            };
            let found: Vec<&str> =
                sources.into_iter().flat_map(|all| all.split(',')).filter(declares).collect();
            for source in found {
                let left = self.left.entry(source.to_owned()).or_default();
                left.names.extend(exported_as(&alias.key.name, own));
                let labels = alias.labels_at("/workloadSelector/labels");
                if let (false, Some(namespace)) = (labels.is_empty(), &alias.key.namespace) {
                    let labels =
                        labels.into_iter().map(|(label, value)| (label.to_owned(), value.to_owned()));
                    left.workloads.insert((namespace.clone(), labels.collect()));
                }
            }
        }
    }
}

fn sources(world: &World) -> BTreeMap<String, ObjectKey> {
    objects(world).map(|key| (source_of(key), key.clone())).collect()
}

/// Those that declare exports, are malformed, and of which no good version is in use.
pub(super) fn objects(world: &World) -> impl Iterator<Item = &ObjectKey> {
    let rejected = world.rejected.iter().filter(|(_, rejected)| rejected.deletion.is_none());
    rejected.map(|(key, _)| key).filter(|key| match key.kind {
        Kind::FederatedService => {
            let name = NamespacedName::new(key.namespace.clone().unwrap_or_default(), key.name.clone());
            !world.declared.contains_key(&name) && !world.services.contains_key(&name)
        }
        Kind::ServiceExportRule => !world.rules.contains_key(&key.name),
        _ => false,
    })
}

/// The name of the service that has a host of ours, `{name}.{namespace}.{trustDomain}`.
pub(super) fn exported_as(host: &str, own: &TrustDomain) -> Option<ServiceName> {
    let host = host.strip_suffix(own.as_str())?.strip_suffix('.')?;
    let (name, namespace) = host.rsplit_once('.')?;
    ServiceName::new(namespace, name).ok()
}

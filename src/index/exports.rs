//! Keeps what declarations come to up to date (`plan::exports::resolve`), namespace by namespace, as what they are decided by
//! changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::cluster::Pod;
use crate::model::export::in_namespace;
use crate::model::object::Kind;
use crate::model::trust::{Entry, SpireState};
use crate::model::{NamespacedName, Object, ObjectKey, World};
use crate::plan::exports::resolve::{self, Entries};

/// What has to be decided again.
#[derive(Debug)]
pub(super) struct Exports {
    namespaces: BTreeSet<String>,
    /// FederatedServices, and hosts of aliases of ours, that have come, changed or gone: they concern no other, where there
    /// are no rules.
    declared: BTreeSet<NamespacedName>,
    aliases: BTreeSet<NamespacedName>,
    everything: bool,
    /// SPIRE's entries, by pod.
    entries: Entries,
    /// Whether they are those of the world.
    is_indexed: bool,
}

impl Default for Exports {
    fn default() -> Self {
        Self {
            namespaces: BTreeSet::new(),
            declared: BTreeSet::new(),
            aliases: BTreeSet::new(),
            everything: true,
            entries: Entries::default(),
            is_indexed: false,
        }
    }
}

impl Exports {
    /// Something that every namespace is decided by has changed: rules, or who we are.
    pub(super) fn all(&mut self) {
        self.everything = true;
        self.is_indexed = false;
    }

    /// An object has come, changed or gone: as it was, and as it is.
    pub(super) fn object(&mut self, key: &ObjectKey, there: [Option<&Object>; 2], instance: &str) {
        match key.kind {
            Kind::ServiceExportRule => self.everything = true,
            // What is out, as it stands.
            Kind::ServiceEntry if !there.iter().flatten().any(|object| object.is_generated_by(instance)) => {}
            Kind::Namespace => {
                self.namespaces.insert(key.name.clone());
            }
            Kind::FederatedService => {
                self.declared.extend(namespaced(key));
            }
            Kind::ServiceEntry => {
                self.aliases.extend(namespaced(key));
            }
            Kind::Service => {
                self.namespaces.extend(key.namespace.clone());
            }
            _ => {}
        }
    }

    /// A pod has come, changed or gone: as it was, and as it is. Most of what happens to a pod decides nothing here.
    pub(super) fn pod(&mut self, before: Option<&Pod>, after: Option<&Pod>) {
        let part = |pod: &Pod| {
            (pod.labels.clone(), pod.uid.clone(), pod.service_account.clone(), pod.named_ports.clone())
        };
        if before.map(part) != after.map(part) {
            let namespace = before.or(after).map(|pod| pod.object.namespace.clone());
            self.namespaces.extend(namespace);
        }
    }

    /// SPIRE was read.
    pub(super) fn spire(&mut self, before: Option<&SpireState>, after: Option<&SpireState>) {
        let of = |state: Option<&SpireState>| state.map(|state| !state.entries.is_empty());
        let same = match (before, after) {
            (Some(before), Some(after)) => before.entries == after.entries,
            (before, after) => of(before).unwrap_or_default() == of(after).unwrap_or_default(),
        };
        if !same {
            self.all();
        }
    }

    /// Decides again on what has changed. Answers with whether anything came of it.
    pub(super) fn settle(&mut self, world: &mut World) -> bool {
        let some = self.some(world);
        if !self.everything && self.namespaces.is_empty() && some.is_empty() {
            return false;
        }
        if !self.is_indexed {
            self.entries = entries(world);
            self.is_indexed = true;
        }
        let mut namespaces = std::mem::take(&mut self.namespaces);
        if std::mem::take(&mut self.everything) {
            namespaces.extend(all_namespaces(world));
        }
        let mut changed = false;
        for (namespace, names) in some {
            if namespaces.contains(&namespace) {
                continue;
            }
            match resolve::these(world, &self.entries, &namespace, &names) {
                Some(resolved) => changed |= world.resolve_these(&names, resolved),
                None => drop(namespaces.insert(namespace)),
            }
        }
        for namespace in namespaces {
            let resolved = resolve::namespace(world, &self.entries, &namespace);
            changed |= world.resolve(&namespace, resolved);
        }
        changed
    }
}

impl Exports {
    /// The FederatedServices that are to be decided again by themselves, by namespace.
    fn some(&mut self, world: &World) -> BTreeMap<String, BTreeSet<NamespacedName>> {
        let mut some: BTreeMap<String, BTreeSet<NamespacedName>> = BTreeMap::new();
        let aliases = std::mem::take(&mut self.aliases);
        let own = world.own_trust_domain();
        let exported_as = |alias: &NamespacedName| {
            let host = alias.name.strip_suffix(own?.as_str())?.strip_suffix('.')?;
            let (name, namespace) = host.rsplit_once('.')?;
            (namespace == alias.namespace).then(|| NamespacedName::new(namespace, name))
        };
        let aliases: BTreeSet<NamespacedName> = aliases.iter().filter_map(exported_as).collect();
        let namespaces: BTreeSet<&str> = aliases.iter().map(|alias| alias.namespace.as_str()).collect();
        for (object, declared) in namespaces.into_iter().flat_map(|name| in_namespace(&world.declared, name))
        {
            let of = NamespacedName::new(declared.name.namespace(), declared.name.name());
            if aliases.contains(&of) {
                some.entry(object.namespace.clone()).or_default().insert(object.clone());
            }
        }
        for name in std::mem::take(&mut self.declared) {
            some.entry(name.namespace.clone()).or_default().insert(name);
        }
        some
    }
}

fn namespaced(key: &ObjectKey) -> Option<NamespacedName> {
    Some(NamespacedName::new(key.namespace.clone()?, key.name.clone()))
}

fn entries(world: &World) -> Entries {
    let none: BTreeMap<String, Entry> = BTreeMap::new();
    let entries = world.spire.as_ref().map_or(&none, |spire: &Arc<SpireState>| &spire.entries);
    match world.own_trust_domain() {
        Some(own) => Entries::new(own, entries.values()),
        None => Entries::default(),
    }
}

/// Where there is something to decide, or was.
fn all_namespaces(world: &World) -> BTreeSet<String> {
    let names = world.declared.keys().chain(world.cluster_services.keys());
    let names = names.chain(world.services.keys()).chain(world.unresolved.keys()).chain(world.skipped.keys());
    names.map(|name| name.namespace.clone()).collect()
}

#[cfg(test)]
#[path = "exports_tests.rs"]
mod tests;

//! What ends last: a policy that denies, after all that leads callers to its workloads; the settings that pin a server, after the
//! host that they are for. By what stands in the store, so that the order holds whatever fails on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::diff;
use crate::model::object::{ANNOTATION_SOURCE, Kind};
use crate::model::{Object, ObjectKey, World};

/// Observed objects of ours that are desired no more, and have to wait.
#[must_use]
pub(super) fn kept<'a>(world: &'a World, desired: &BTreeMap<ObjectKey, Arc<Object>>) -> Vec<&'a Arc<Object>> {
    let is_ours = |object: &&Arc<Object>| object.is_generated_by(&world.settings.instance);
    let of = |kind: Kind| world.of_kind(kind).map(|(_, object)| object).filter(is_ours);
    let left = diff::left(world, desired);
    let left_of = |kind: Kind| left.iter().copied().filter(move |object| object.key.kind == kind);
    let is_ending = |object: &&Arc<Object>| object.meta.deletion.is_none();
    let denies: Vec<_> =
        left_of(Kind::AuthorizationPolicy).filter(is_ending).filter(|deny| denies(deny)).collect();
    let rules: Vec<_> = left_of(Kind::DestinationRule).filter(is_ending).collect();
    if denies.is_empty() && rules.is_empty() {
        return Vec::new();
    }
    let doors = left_of(Kind::Gateway).chain(left_of(Kind::VirtualService));
    let doors: BTreeSet<&str> = doors.flat_map(|door| sources(door)).collect();
    let aliases = of(Kind::ServiceEntry).map(|entry| (entry, entry.labels_at("/workloadSelector/labels")));
    let aliases: BTreeSet<Workloads<'_>> = aliases
        .filter(|(_, labels)| !labels.is_empty())
        .map(|(entry, labels)| workloads(entry, labels))
        .collect();
    let leads_to = |deny: &Object| {
        sources(deny).any(|source| doors.contains(source))
            || aliases.contains(&workloads(deny, deny.match_labels()))
    };
    let as_was = of(Kind::ServiceEntry)
        .filter(|entry| desired.get(&entry.key).is_none_or(|wanted| !diff::stands(wanted, entry)));
    let hosts: BTreeSet<&str> = as_was.flat_map(|entry| sources(entry)).collect();
    let pins = |rule: &Object| sources(rule).any(|source| hosts.contains(source));
    let rules: Vec<_> = rules.into_iter().filter(|rule| pins(rule)).collect();
    // With it the cluster would collect what it owns, in any order.
    let owners: BTreeSet<&str> =
        rules.iter().flat_map(|rule| &rule.meta.owners).map(|owner| owner.uid.as_str()).collect();
    let owners =
        left_of(Kind::ImportedService).filter(is_ending).filter(|o| owners.contains(o.meta.uid.as_str()));
    denies.into_iter().filter(|deny| leads_to(deny)).chain(owners).chain(rules).collect()
}

/// A namespace, and labels in it.
type Workloads<'a> = (&'a str, BTreeSet<(&'a str, &'a str)>);

fn denies(policy: &Object) -> bool {
    policy.spec().is_some_and(|spec| spec["action"] == "DENY")
}

fn sources(object: &Object) -> impl Iterator<Item = &str> {
    object.meta.annotations.get(ANNOTATION_SOURCE).into_iter().flat_map(|sources| sources.split(','))
}

fn workloads<'a>(object: &'a Object, labels: BTreeMap<&'a str, &'a str>) -> Workloads<'a> {
    (object.key.namespace.as_deref().unwrap_or_default(), labels.into_iter().collect())
}

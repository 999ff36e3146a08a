//! Incremental: each answer has what changed. What a client has is known by the view that it was sent last, which it shares with
//! all others; and, where that does not say it, by name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Answer, Heard, MOST_NAMES, NAME, Nonces, Session, Variant, Violation, checked, nack, unserved};
use crate::plan::xds::view::{Changes, View};
use crate::plan::xds::{Resource, ResourceType};
use crate::proto::xds::discovery::{DeltaDiscoveryRequest, Node};

/// The most bytes of resources in one answer, but for one that is larger by itself: clients read 4 MiB at a time by default.
const MOST_BYTES: usize = 1024 * 1024;
/// Most answers of which is kept what was in them, until the client answers.
const MOST_UNANSWERED: usize = 1_000;

/// One stream.
#[derive(Debug, Default)]
pub struct Delta {
    types: BTreeMap<ResourceType, Watch>,
    nonces: Nonces,
    unanswered: Unanswered,
    /// It was sent a cluster.
    has_clusters: bool,
}

/// What was in the answers that the client has neither taken nor refused yet: its word is of one of them alone. Of a client that
/// says nothing, the last are kept.
#[derive(Debug, Default)]
struct Unanswered {
    all: VecDeque<(ResourceType, String, Vec<Arc<str>>)>,
    names: usize,
}

impl Unanswered {
    fn put(&mut self, answer: &Answer) {
        let names: Vec<Arc<str>> =
            answer.resources.iter().map(|resource| Arc::clone(&resource.name)).collect();
        self.names += names.len();
        self.all.push_back((answer.kind, answer.nonce.clone(), names));
        while self.all.len() > MOST_UNANSWERED || (self.names > MOST_NAMES && self.all.len() > 1) {
            self.names -= self.all.pop_front().map_or(0, |(_, _, names)| names.len());
        }
    }

    /// Those of the answer to which the client answers now; with those of earlier ones of the type it is done too.
    fn take(&mut self, kind: ResourceType, nonce: &str) -> Option<Vec<Arc<str>>> {
        let at = self.all.iter().position(|(of, its, _)| *of == kind && its == nonce)?;
        let (_, _, names) = self.all.remove(at)?;
        let mut index = 0;
        self.all.retain(|(of, _, _)| {
            index += 1;
            *of != kind || index > at
        });
        self.names = self.all.iter().map(|(_, _, names)| names.len()).sum();
        Some(names)
    }
}

/// What a client has of one name, where its last view does not say it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    /// This version, which another agent may have given.
    Version(String),
    /// It was told that there is none.
    Absent,
    /// It is to be told, whatever it has.
    Unknown,
}

/// A subscription to one type.
#[derive(Debug, Default)]
struct Watch {
    names: BTreeSet<Arc<str>>,
    wildcard: bool,
    /// What the client was sent last: what it is subscribed to it has as it is here, but for what is apart.
    last: Option<View>,
    apart: BTreeMap<Arc<str>, Held>,
    /// The client waits to hear that there is nothing, where there is.
    is_due: bool,
}

impl Watch {
    /// The first request of a stream for a type.
    fn first(kind: ResourceType, request: &DeltaDiscoveryRequest) -> Result<Self, Violation> {
        let mut watch = Self::default();
        if request.initial_resource_versions.len() > MOST_NAMES {
            return Err(Violation::TooManyNames);
        }
        watch.names = names(&request.resource_names_subscribe)?;
        let star = watch.names.remove("*");
        watch.wildcard = star || (kind.has_wildcard() && request.resource_names_subscribe.is_empty());
        watch.is_due = watch.wildcard;
        for (name, version) in &request.initial_resource_versions {
            checked(version)?;
            let name = checked(name)?;
            if watch.wildcard || watch.names.contains(&name) {
                watch.apart.insert(name, Held::Version(version.clone()));
            }
        }
        Ok(watch)
    }

    /// A later one.
    fn change(&mut self, kind: ResourceType, request: &DeltaDiscoveryRequest) -> Result<(), Violation> {
        let subscribe = names(&request.resource_names_subscribe)?;
        let unsubscribe = names(&request.resource_names_unsubscribe)?;
        for name in subscribe {
            if name.as_ref() == "*" {
                self.open(kind);
                continue;
            }
            // It is sent even to who has it: that one may have dropped it.
            self.apart.insert(Arc::clone(&name), Held::Unknown);
            self.names.insert(name);
        }
        for name in unsubscribe {
            if name.as_ref() == "*" {
                self.wildcard = false;
                let Self { names, apart, .. } = self;
                apart.retain(|name, _| names.contains(name));
            } else if self.names.remove(&name) {
                self.apart.remove(&name);
                if self.wildcard {
                    // It is to hear whether everything has it.
                    self.apart.insert(name, Held::Unknown);
                }
            }
        }
        let is_too_many = self.names.len() > MOST_NAMES || self.apart.len() > 2 * MOST_NAMES;
        if is_too_many { Err(Violation::TooManyNames) } else { Ok(()) }
    }

    /// From now on it takes everything: of what is not named, the last view does not say that the client has it.
    fn open(&mut self, kind: ResourceType) {
        if self.wildcard {
            return;
        }
        self.wildcard = true;
        self.is_due = true;
        let Some(last) = self.last.take() else { return };
        for name in &self.names {
            let held =
                last.get(kind, name).map_or(Held::Absent, |held| Held::Version(held.version.to_string()));
            self.apart.entry(Arc::clone(name)).or_insert(held);
        }
    }

    /// The endpoints of these clusters are due. An Envoy uses a cluster that has become another once it is told the endpoints, and
    /// does not ask for those that it has subscribed to already.
    fn renew(&mut self, clusters: &[Resource]) {
        for cluster in clusters.iter().filter(|cluster| self.names.contains(&cluster.name)) {
            self.apart.insert(Arc::clone(&cluster.name), Held::Unknown);
        }
    }

    /// What of this the client lacks, and what it has that is gone; then it has it.
    fn changes(&mut self, view: &View, kind: ResourceType) -> Changes {
        let before = self.last.replace(view.clone());
        let mut changes = match &before {
            Some(before) => view.since(before, kind),
            None if self.wildcard => Changes { changed: view.all(kind), removed: Vec::new() },
            None => Changes::default(),
        };
        let apart = std::mem::take(&mut self.apart);
        let is_plain = |name: &Arc<str>| {
            (self.wildcard || self.names.contains(name)) && (apart.is_empty() || !apart.contains_key(name))
        };
        changes.changed.retain(|resource| is_plain(&resource.name));
        changes.removed.retain(is_plain);
        if before.is_none() {
            for name in self.names.clone().iter().filter(|name| !apart.contains_key(*name)) {
                self.tell(&mut changes, view, kind, (name, &Held::Unknown), self.wildcard);
            }
        }
        for one in &apart {
            self.tell(&mut changes, view, kind, one, false);
        }
        changes.sort();
        changes
    }

    /// Adds what the client is to hear of a name by itself; where that is there, nothing if it is `told` already.
    fn tell(
        &mut self,
        changes: &mut Changes,
        view: &View,
        kind: ResourceType,
        (name, held): (&Arc<str>, &Held),
        told: bool,
    ) {
        let Some(resource) = view.get(kind, name) else {
            if *held != Held::Absent {
                changes.removed.push(Arc::clone(name));
            }
            return;
        };
        if self.names.contains(name) {
            // One name for all who ask for it.
            self.names.replace(Arc::clone(&resource.name));
        }
        let has_it = matches!(held, Held::Version(version) if *version == resource.version.to_string());
        if !told && !has_it {
            changes.changed.push(resource);
        }
    }
}

fn names(all: &[String]) -> Result<BTreeSet<Arc<str>>, Violation> {
    if all.len() > MOST_NAMES {
        return Err(Violation::TooManyNames);
    }
    all.iter().map(|name| checked(name)).collect()
}

impl Session for Delta {
    const VARIANT: Variant = Variant::Incremental;
    type Request = DeltaDiscoveryRequest;

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, Violation> {
        let Some(kind) = ResourceType::of_url(&request.type_url) else { return Ok(Heard::Asked) };
        let Some(watch) = self.types.get_mut(&kind) else {
            let mut watch = Watch::first(kind, &request)?;
            if kind == ResourceType::Endpoints && self.has_clusters {
                // It may wait for those of a cluster that it was sent, and have them from an earlier stream.
                watch.apart.values_mut().for_each(|held| *held = Held::Unknown);
            }
            self.types.insert(kind, watch);
            return Ok(Heard::Asked);
        };
        watch.change(kind, &request)?;
        let answer = self.unanswered.take(kind, &request.response_nonce);
        Ok(match (&request.error_detail, answer) {
            (Some(refusal), answer) => Heard::Nacked(nack(kind, &refusal.message, answer)),
            (None, Some(taken)) => Heard::Acked(kind, Some(taken)),
            (None, None) => Heard::Asked,
        })
    }

    fn answers(&mut self, view: &View) -> Vec<Answer> {
        let (mut answers, mut clusters) = (Vec::new(), Vec::<Resource>::new());
        for (&kind, watch) in &mut self.types {
            if kind == ResourceType::Endpoints {
                watch.renew(&clusters);
            }
            let changes = watch.changes(view, kind);
            let is_due = std::mem::take(&mut watch.is_due);
            if !is_due && changes.is_empty() {
                continue;
            }
            if kind == ResourceType::Cluster {
                clusters.clone_from(&changes.changed);
                self.has_clusters |= !clusters.is_empty();
            }
            for answer in in_parts(kind, changes) {
                let answer = Answer { nonce: self.nonces.next(), ..answer };
                self.unanswered.put(&answer);
                answers.push(answer);
            }
        }
        answers
    }

    fn unserved(&self) -> usize {
        let apart = |(name, held): (&Arc<str>, &Held)| match held {
            Held::Version(version) => name.len() + version.len() + NAME,
            Held::Absent | Held::Unknown => name.len() + NAME,
        };
        let of = |watch: &Watch| unserved(watch.names.iter()) + watch.apart.iter().map(apart).sum::<usize>();
        self.types.values().map(of).sum()
    }

    fn wants(&self, kind: ResourceType, name: &str) -> bool {
        let is_served =
            |watch: &Watch| watch.last.as_ref().is_some_and(|last| last.get(kind, name).is_some());
        let of = self.types.get(&kind);
        of.is_some_and(|watch| (watch.wildcard || watch.names.contains(name)) && is_served(watch))
    }

    fn subscriptions(&self) -> BTreeMap<ResourceType, Option<usize>> {
        let of = |(kind, watch): (&ResourceType, &Watch)| {
            (*kind, if watch.wildcard { None } else { Some(watch.names.len()) })
        };
        self.types.iter().map(of).collect()
    }
}

/// Answers that each can be read; at least one. What is gone is in the last.
fn in_parts(kind: ResourceType, changes: Changes) -> Vec<Answer> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Answer::of(kind), 0);
    for served in changes.changed {
        let length = served.incremental().len();
        if bytes + length > MOST_BYTES && bytes > 0 {
            parts.push(std::mem::replace(&mut part, Answer::of(kind)));
            bytes = 0;
        }
        bytes += length;
        part.resources.push(served);
    }
    part.removed = changes.removed;
    parts.push(part);
    parts
}

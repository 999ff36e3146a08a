//! Incremental: each answer has what changed. What the client has is known by name and version; of a client that takes
//! everything, by the one view that it was sent last, which all such clients share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Heard, MOST_NAMES, Nonces, Session, Violation, checked, nack, of, packed};
use crate::plan::xds::view::View;
use crate::plan::xds::{Resource as Served, ResourceType, TypeMap};
use crate::proto::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};

/// The most bytes of resources in one answer, but for one that is larger by itself: clients read 4 MiB at a time by default.
const MOST_BYTES: usize = 1024 * 1024;

/// One stream.
#[derive(Debug, Default)]
pub struct Delta {
    types: BTreeMap<ResourceType, Watch>,
    nonces: Nonces,
}

/// What a client has of one type.
#[derive(Debug, Default)]
struct Held {
    /// Exactly these; nothing: what `names` says.
    all: Option<Arc<TypeMap>>,
    /// Each name with its version, which another agent may have given; without, it was told that there is none.
    names: BTreeMap<Arc<str>, Option<String>>,
}

impl Held {
    /// By name, to be changed.
    fn names(&mut self) -> &mut BTreeMap<Arc<str>, Option<String>> {
        if let Some(all) = self.all.take() {
            let version = |held: &Served| Some(held.version.to_string());
            self.names = all.iter().map(|(name, held)| (Arc::clone(name), version(held))).collect();
        }
        &mut self.names
    }

    /// Whether the client has just this.
    fn is(&self, served: &Served) -> bool {
        match &self.all {
            Some(all) => all.get(&served.name).is_some_and(|held| held.version == served.version),
            None => {
                self.names.get(&served.name).is_some_and(|held| *held == Some(served.version.to_string()))
            }
        }
    }

    /// Whether the client was told that there is none.
    fn is_absent(&self, name: &Arc<str>) -> bool {
        self.all.is_none() && matches!(self.names.get(name), Some(None))
    }

    /// Names that the client has something of.
    fn there(&self) -> Vec<&Arc<str>> {
        match &self.all {
            Some(all) => all.keys().collect(),
            None => self.names.iter().filter(|(_, held)| held.is_some()).map(|(name, _)| name).collect(),
        }
    }
}

/// A subscription to one type.
#[derive(Debug, Default)]
struct Watch {
    names: BTreeSet<Arc<str>>,
    wildcard: bool,
    held: Held,
    /// The client waits to hear that there is nothing, where there is.
    is_due: bool,
    /// Names that it gave up while it takes everything: it is to hear whether that holds them.
    given_up: BTreeSet<Arc<str>>,
}

/// What a client is to be told.
#[derive(Debug, Default)]
struct Changes {
    changed: Vec<Served>,
    removed: Vec<Arc<str>>,
}

impl Watch {
    /// The first request of a stream for a type.
    fn first(kind: ResourceType, request: &DeltaDiscoveryRequest) -> Result<Self, Violation> {
        let mut watch = Self::default();
        if request.initial_resource_versions.len() > MOST_NAMES {
            return Err(Violation::TooManyNames);
        }
        for (name, version) in &request.initial_resource_versions {
            checked(version)?;
            watch.held.names.insert(checked(name)?, Some(version.clone()));
        }
        watch.names = names(&request.resource_names_subscribe)?;
        let star = watch.names.remove("*");
        watch.wildcard = star || (kind.has_wildcard() && request.resource_names_subscribe.is_empty());
        watch.is_due = watch.wildcard;
        if !watch.wildcard {
            let Self { names, held, .. } = &mut watch;
            held.names.retain(|name, _| names.contains(name));
        }
        Ok(watch)
    }

    /// A later one; whether it changes what is subscribed to.
    fn change(&mut self, request: &DeltaDiscoveryRequest) -> Result<bool, Violation> {
        let subscribe = names(&request.resource_names_subscribe)?;
        let unsubscribe = names(&request.resource_names_unsubscribe)?;
        let changes = !subscribe.is_empty() || !unsubscribe.is_empty();
        for name in subscribe {
            if name.as_ref() == "*" {
                self.is_due |= !self.wildcard;
                self.wildcard = true;
                continue;
            }
            // It is sent even to who has it: that one may have dropped it.
            self.held.names().remove(&name);
            self.names.insert(name);
        }
        for name in unsubscribe {
            if name.as_ref() == "*" {
                self.wildcard = false;
                let Self { names, held, .. } = self;
                held.names().retain(|name, _| names.contains(name));
            } else if self.names.remove(&name) {
                self.held.names().remove(&name);
                if self.wildcard {
                    self.given_up.insert(name);
                }
            }
        }
        if self.names.len() > MOST_NAMES { Err(Violation::TooManyNames) } else { Ok(changes) }
    }

    /// What of these the client lacks, and what it has that is gone; then it has it.
    fn changes(&mut self, all: &Arc<TypeMap>) -> Changes {
        let mut changes = Changes::default();
        if self.wildcard && self.held.all.as_ref().is_some_and(|held| Arc::ptr_eq(held, all)) {
            return changes;
        }
        let gone = |name: &&Arc<str>| !all.contains_key(*name);
        if self.wildcard {
            changes.changed.extend(all.values().filter(|served| !self.held.is(served)).cloned());
            changes.removed.extend(self.held.there().into_iter().filter(gone).cloned());
        } else {
            let wanted = self.names.iter().filter_map(|name| all.get(name));
            changes.changed.extend(wanted.filter(|served| !self.held.is(served)).cloned());
        }
        let told: BTreeSet<Arc<str>> = changes.removed.iter().cloned().collect();
        let absent = self.names.iter().chain(&self.given_up).filter(gone);
        changes
            .removed
            .extend(absent.filter(|name| !self.held.is_absent(name) && !told.contains(*name)).cloned());
        self.given_up.clear();
        self.hold(all);
        changes
    }

    fn hold(&mut self, all: &Arc<TypeMap>) {
        if self.wildcard && self.names.iter().all(|name| all.contains_key(name)) {
            self.held = Held { all: Some(Arc::clone(all)), names: BTreeMap::new() };
            return;
        }
        let version =
            |name: &Arc<str>| (Arc::clone(name), all.get(name).map(|served| served.version.to_string()));
        let mut held: BTreeMap<_, _> = self.names.iter().map(version).collect();
        if self.wildcard {
            held.extend(all.keys().map(version));
        }
        self.held = Held { all: None, names: held };
    }
}

fn names(all: &[String]) -> Result<BTreeSet<Arc<str>>, Violation> {
    if all.len() > MOST_NAMES {
        return Err(Violation::TooManyNames);
    }
    all.iter().map(|name| checked(name)).collect()
}

impl Session for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, Violation> {
        let Some(kind) = ResourceType::of_url(&request.type_url) else { return Ok(Heard::Asked) };
        let Some(watch) = self.types.get_mut(&kind) else {
            self.types.insert(kind, Watch::first(kind, &request)?);
            return Ok(Heard::Asked);
        };
        let changes = watch.change(&request)?;
        Ok(match &request.error_detail {
            Some(refusal) => Heard::Nacked(nack(kind, &refusal.message)),
            None if !request.response_nonce.is_empty() && !changes => Heard::Acked(kind),
            None => Heard::Asked,
        })
    }

    fn answers(&mut self, view: &View) -> Vec<(ResourceType, DeltaDiscoveryResponse)> {
        let mut answers = Vec::new();
        for (&kind, watch) in &mut self.types {
            let changes = watch.changes(of(view, kind));
            let is_due = std::mem::take(&mut watch.is_due);
            if !is_due && changes.changed.is_empty() && changes.removed.is_empty() {
                continue;
            }
            for answer in in_parts(kind, changes) {
                answers.push((kind, DeltaDiscoveryResponse { nonce: self.nonces.next(), ..answer }));
            }
        }
        answers
    }

    fn subscriptions(&self) -> BTreeMap<ResourceType, Option<usize>> {
        let of = |(kind, watch): (&ResourceType, &Watch)| {
            (*kind, if watch.wildcard { None } else { Some(watch.names.len()) })
        };
        self.types.iter().map(of).collect()
    }
}

/// Answers that each can be read; at least one. What is gone is in the last.
fn in_parts(kind: ResourceType, changes: Changes) -> Vec<DeltaDiscoveryResponse> {
    let empty = || DeltaDiscoveryResponse { type_url: kind.url().to_owned(), ..Default::default() };
    let (mut parts, mut part, mut bytes) = (Vec::new(), empty(), 0);
    for served in changes.changed {
        if bytes + served.body.len() > MOST_BYTES && bytes > 0 {
            parts.push(std::mem::replace(&mut part, empty()));
            bytes = 0;
        }
        bytes += served.body.len();
        part.resources.push(Resource {
            name: served.name.to_string(),
            version: served.version.to_string(),
            resource: Some(packed(&served)),
        });
    }
    part.removed_resources = changes.removed.iter().map(ToString::to_string).collect();
    parts.push(part);
    parts
}

//! The state of the world: each answer has everything of one type that the client subscribed to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Answer, Heard, MOST_NAMES, Nonces, Session, Variant, Violation, checked, nack, unserved};
use crate::plan::xds::view::{Changes, View};
use crate::plan::xds::{Resource, ResourceType, Version};
use crate::proto::xds::discovery::{DiscoveryRequest, Node};

/// One stream.
#[derive(Debug, Default)]
pub struct Sotw {
    types: BTreeMap<ResourceType, Watch>,
    nonces: Nonces,
}

/// A subscription to one type.
#[derive(Debug, Default)]
struct Watch {
    names: BTreeSet<Arc<str>>,
    /// Everything; a client that never named anything means it, of types that know it.
    wildcard: bool,
    /// It has named something: from then on, no name is nothing.
    has_named: bool,
    /// Of the last answer.
    nonce: Option<String>,
    /// What the client has, as far as it took it: of what was sent last, or before an earlier stream ended.
    version: Option<String>,
    /// Something is due whatever its version.
    is_due: bool,
    /// What `version` was found in last.
    last: Option<View>,
    /// It is subscribed to something else since.
    is_other: bool,
}

impl Watch {
    /// Takes what the client subscribes to now; whether anything is new to it.
    fn subscribe(&mut self, kind: ResourceType, names: &[String]) -> Result<bool, Violation> {
        if names.len() > MOST_NAMES {
            return Err(Violation::TooManyNames);
        }
        let mut named = names.iter().map(|name| checked(name)).collect::<Result<BTreeSet<_>, _>>()?;
        let star = named.remove("*");
        self.has_named |= !named.is_empty() || star;
        let wildcard = star || (kind.has_wildcard() && !self.has_named);
        let is_new = (wildcard && !self.wildcard) || named.iter().any(|name| !self.names.contains(name));
        if named != self.names || wildcard != self.wildcard {
            (self.names, self.wildcard, self.is_other) = (named, wildcard, true);
        }
        Ok(is_new)
    }

    /// What of this it asks for.
    fn wanted(&mut self, view: &View, kind: ResourceType) -> Vec<Resource> {
        if self.wildcard {
            return view.all(kind);
        }
        let wanted: Vec<Resource> = self.names.iter().filter_map(|name| view.get(kind, name)).collect();
        for resource in &wanted {
            // One name for all who ask for it.
            self.names.replace(Arc::clone(&resource.name));
        }
        wanted
    }

    /// Whether nothing of what it asks for is other than it was when it was last looked at.
    fn is_as_it_was(&self, view: &View, kind: ResourceType) -> bool {
        let Some(last) = self.last.as_ref().filter(|_| !self.is_other) else { return false };
        let Changes { changed, removed } = view.since(last, kind);
        let is_wanted = |name: &Arc<str>| self.wildcard || self.names.contains(name);
        !changed.iter().any(|resource| is_wanted(&resource.name)) && !removed.iter().any(is_wanted)
    }

    /// Whether it asks for anything.
    fn is_open(&self) -> bool {
        self.wildcard || !self.names.is_empty()
    }

    /// Everything that it asks for, where that is to be sent now.
    fn answer(&mut self, view: &View, kind: ResourceType, nonces: &mut Nonces) -> Option<Answer> {
        if !self.is_open() {
            self.last = None;
            return None;
        }
        let is_as_it_was = self.is_as_it_was(view, kind);
        (self.last, self.is_other) = (Some(view.clone()), false);
        if is_as_it_was && !self.is_due {
            return None;
        }
        let resources = self.wanted(view, kind);
        // Of types without a wildcard, what goes goes with what names it: nothing says that there is nothing.
        if resources.is_empty() && !kind.has_wildcard() {
            return None;
        }
        let all = resources.iter().map(|resource| (resource.name.as_ref(), resource.version));
        let version = Version::of_all(all).to_string();
        if !self.is_due && self.version.as_ref() == Some(&version) {
            return None;
        }
        let nonce = nonces.next();
        (self.is_due, self.nonce, self.version) = (false, Some(nonce.clone()), Some(version.clone()));
        Some(Answer { version, nonce, resources, ..Answer::of(kind) })
    }
}

impl Session for Sotw {
    const VARIANT: Variant = Variant::StateOfTheWorld;
    type Request = DiscoveryRequest;

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn request(&mut self, request: DiscoveryRequest) -> Result<Heard, Violation> {
        let Some(kind) = ResourceType::of_url(&request.type_url) else { return Ok(Heard::Asked) };
        let is_first = !self.types.contains_key(&kind);
        let clusters = self.types.get(&ResourceType::Cluster);
        let has_clusters = clusters.is_some_and(|clusters| clusters.nonce.is_some());
        let watch = self.types.entry(kind).or_default();
        if is_first {
            // What it has from an earlier stream, where it says so.
            watch.version = Some(request.version_info).filter(|version| !version.is_empty());
            watch.subscribe(kind, &request.resource_names)?;
            // Of endpoints it may wait for those of a cluster that it was sent, and have them.
            watch.is_due = watch.version.is_none() || (kind == ResourceType::Endpoints && has_clusters);
            return Ok(Heard::Asked);
        }
        // It answers to an answer that another has followed since: the one to that is on its way.
        if watch.nonce.as_ref().is_some_and(|nonce| *nonce != request.response_nonce) {
            return Ok(Heard::Asked);
        }
        let is_new = watch.subscribe(kind, &request.resource_names)?;
        watch.is_due |= is_new;
        Ok(match request.error_detail {
            Some(refusal) => Heard::Nacked(nack(kind, &refusal.message, None)),
            None if watch.nonce.is_some() && !is_new => Heard::Acked(kind, None),
            None => Heard::Asked,
        })
    }

    fn answers(&mut self, view: &View) -> Vec<Answer> {
        let (mut answers, mut clusters) = (Vec::new(), Vec::<Resource>::new());
        for (&kind, watch) in &mut self.types {
            if kind == ResourceType::Endpoints {
                // An Envoy uses a cluster that has become another once it is told the endpoints, though it has them already; that
                // it asks for them again cannot be told from an answer to those that it has.
                watch.is_due |= clusters.iter().any(|cluster| watch.names.contains(&cluster.name));
            }
            let before = watch.last.clone();
            let Some(answer) = watch.answer(view, kind, &mut self.nonces) else { continue };
            if kind == ResourceType::Cluster {
                clusters = match before {
                    Some(before) => view.since(&before, kind).changed,
                    None => answer.resources.clone(),
                };
            }
            answers.push(answer);
        }
        answers
    }

    fn unserved(&self) -> usize {
        self.types.values().map(|watch| unserved(watch.names.iter())).sum()
    }

    /// A refusal is of all of a type.
    fn wants(&self, _: ResourceType, _: &str) -> bool {
        true
    }

    fn subscriptions(&self) -> BTreeMap<ResourceType, Option<usize>> {
        let of = |(kind, watch): (&ResourceType, &Watch)| {
            (*kind, if watch.wildcard { None } else { Some(watch.names.len()) })
        };
        self.types.iter().map(of).collect()
    }
}

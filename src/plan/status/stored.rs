//! What stands in the store, and what has been answered, looked at in order: for many objects far less to do than one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::sync::Arc;

use serde_json::Value;

use crate::model::object::Kind;
use crate::model::session::{Acknowledgement, Catalogue, LinkPlan};
use crate::model::{NamespacedName, ObjectKey, TrustDomain, World};

/// The stored statuses of one kind.
pub(super) struct Stored<'a, I: Iterator<Item = (&'a ObjectKey, &'a Arc<Value>)>>(Peekable<I>);

impl<'a> Stored<'a, std::iter::Empty<(&'a ObjectKey, &'a Arc<Value>)>> {
    /// Those of a kind that lies in namespaces.
    pub(super) fn of(
        world: &'a World,
        kind: Kind,
    ) -> Stored<'a, impl Iterator<Item = (&'a ObjectKey, &'a Arc<Value>)> + use<'a>> {
        let from = ObjectKey { kind, namespace: None, name: String::new() };
        let all = world.statuses.range(from..).take_while(move |(key, _)| key.kind == kind);
        Stored(all.peekable())
    }
}

impl<'a, I: Iterator<Item = (&'a ObjectKey, &'a Arc<Value>)>> Stored<'a, I> {
    /// That of an object. Objects must be asked for in the order of their names.
    pub(super) fn get(&mut self, name: &NamespacedName) -> Option<&'a Arc<Value>> {
        let wanted = (name.namespace.as_str(), name.name.as_str());
        let named = |key: &'a ObjectKey| (key.namespace.as_deref().unwrap_or_default(), key.name.as_str());
        while self.0.next_if(|(key, _)| named(key) < wanted).is_some() {}
        self.0.next_if(|(key, _)| named(key) == wanted).map(|(_, status)| status)
    }
}

/// What each peer was offered by the last plan, and its answer then.
#[derive(Debug, Default)]
pub(in crate::plan) struct Answers(BTreeMap<TrustDomain, Answer>);

type Answer = (Option<Arc<Catalogue>>, Option<Acknowledgement>);

impl Answers {
    /// The peers of which any of that is another now. Every plan must ask.
    pub(super) fn news(
        &mut self,
        world: &World,
        links: &BTreeMap<TrustDomain, LinkPlan>,
    ) -> BTreeSet<TrustDomain> {
        let answer = |trust_domain: &TrustDomain| {
            let offered = links.get(trust_domain).map(|link| Arc::clone(&link.catalogue));
            let session = world.sessions.get(trust_domain);
            (offered, session.and_then(|session| session.acknowledged.clone()))
        };
        let all = links.keys().chain(world.sessions.keys()).chain(self.0.keys());
        let now: BTreeMap<TrustDomain, Answer> = all.map(|td| (td.clone(), answer(td))).collect();
        let is_new = |(trust_domain, answer): &(&TrustDomain, &Answer)| {
            self.0.get(*trust_domain).is_none_or(|before| before != *answer)
        };
        let news = now.iter().filter(is_new).map(|(trust_domain, _)| trust_domain.clone()).collect();
        self.0 = now;
        self.0.retain(|_, (offered, answer)| offered.is_some() || answer.is_some());
        news
    }
}

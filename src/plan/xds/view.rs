//! What one client sees of what is served: exactly the services whose exporter names its SPIFFE ID, and that are for its
//! namespace; and if it is the proxy of a server of ours, what that needs.
//!
//! A view holds nothing of its own: it is who looks, and what all look at. What has changed from one view to the next is found
//! among the services that have changed, which are found once for all clients.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::types::{Resource, ResourceType, TypeMap};
use super::{Offer, PortOffer, Xds};
use crate::model::SpiffeId;

/// What sort of client it is: one set of resources cannot serve both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientKind {
    Envoy,
    Grpc,
}

impl ClientKind {
    /// By what the client calls itself (`user_agent_name` of its node): gRPC libraries say `gRPC` and a language.
    #[must_use]
    pub fn of_user_agent(name: &str) -> Self {
        if name.starts_with("gRPC") || name.starts_with("grpc") { Self::Grpc } else { Self::Envoy }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Grpc => "grpc",
        }
    }
}

/// Everything that is served at one time, as all clients look at it.
#[derive(Debug, Default)]
pub struct Snapshot {
    xds: Arc<Xds>,
    /// Which offers have a resource of a name; made when somebody asks for one by its name.
    named: OnceLock<BTreeMap<Arc<str>, Vec<Arc<Offer>>>>,
    /// What has changed since earlier ones that somebody still holds.
    since: Mutex<Vec<(Weak<Self>, Arc<[Changed]>)>>,
}

/// An offer that came, went or became another.
#[derive(Debug)]
struct Changed {
    before: Option<Arc<Offer>>,
    now: Option<Arc<Offer>>,
}

impl Snapshot {
    #[must_use]
    pub fn new(xds: Arc<Xds>) -> Self {
        Self { xds, named: OnceLock::new(), since: Mutex::default() }
    }

    /// Of what this is.
    #[must_use]
    pub const fn xds(&self) -> &Arc<Xds> {
        &self.xds
    }

    fn named(&self, name: &str) -> &[Arc<Offer>] {
        let named = self.named.get_or_init(|| {
            let mut named: BTreeMap<Arc<str>, Vec<Arc<Offer>>> = BTreeMap::new();
            for offer in self.xds.offers.values() {
                for resource in offer.ports.iter().flat_map(|port| port.envoy.iter().chain(&port.grpc)) {
                    let holders = named.entry(Arc::clone(&resource.name)).or_default();
                    if !holders.iter().any(|holder| Arc::ptr_eq(holder, offer)) {
                        holders.push(Arc::clone(offer));
                    }
                }
            }
            named
        });
        named.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// What has changed since an earlier one.
    fn since(&self, before: &Arc<Self>) -> Arc<[Changed]> {
        let mut known = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let is_that = |(of, _): &&(Weak<Self>, _)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(before));
        if let Some((_, changed)) = known.iter().find(is_that) {
            return Arc::clone(changed);
        }
        let changed: Arc<[Changed]> = changed(&before.xds, &self.xds).into();
        known.retain(|(of, _)| of.strong_count() > 0);
        known.push((Arc::downgrade(before), Arc::clone(&changed)));
        changed
    }
}

fn changed(before: &Xds, now: &Xds) -> Vec<Changed> {
    let mut changed = Vec::new();
    let (mut earlier, mut later) = (before.offers.iter().peekable(), now.offers.iter().peekable());
    loop {
        let order = match (earlier.peek(), later.peek()) {
            (None, None) => return changed,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let before = earlier.next_if(|_| order.is_le()).map(|(_, offer)| offer);
        let now = later.next_if(|_| order.is_ge()).map(|(_, offer)| offer);
        let is_same =
            matches!((before, now), (Some(before), Some(now)) if Arc::ptr_eq(before, now) || before == now);
        if !is_same {
            changed.push(Changed { before: before.cloned(), now: now.cloned() });
        }
    }
}

/// What of one type came or became another, and the names of what went, each in the order of names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub changed: Vec<Resource>,
    pub removed: Vec<Arc<str>>,
}

impl Changes {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }

    fn add(&mut self, before: &TypeMap, now: &TypeMap) {
        let is_held = |resource: &Resource| {
            before.get(&resource.name).is_some_and(|held| held.version == resource.version)
        };
        self.changed.extend(now.values().filter(|resource| !is_held(resource)).cloned());
        self.removed.extend(before.keys().filter(|name| !now.contains_key(*name)).cloned());
    }

    /// Puts both in the order of names.
    pub fn sort(&mut self) {
        self.changed.sort_by(|one, other| one.name.cmp(&other.name));
        self.removed.sort();
    }
}

/// All that one client may have. Clones share it.
#[derive(Clone, Debug)]
pub struct View {
    of: Arc<Snapshot>,
    client: Arc<Looker>,
}

/// Who looks.
#[derive(Debug, PartialEq, Eq)]
struct Looker {
    id: SpiffeId,
    /// The ID once more, as patterns are matched with it.
    text: String,
    kind: ClientKind,
}

impl View {
    /// For the client with this ID.
    #[must_use]
    pub fn new(of: Arc<Snapshot>, client: &SpiffeId, kind: ClientKind) -> Self {
        Self { of, client: Arc::new(Looker { id: client.clone(), text: client.to_string(), kind }) }
    }

    /// The resources of one type, in the order of hosts and their ports.
    #[must_use]
    pub fn all(&self, kind: ResourceType) -> Vec<Resource> {
        let offered = self.of.xds.offers.values().flat_map(|offer| self.client.sees(offer, kind));
        offered.chain(self.own(kind)).cloned().collect()
    }

    /// The same by name.
    #[must_use]
    pub fn of_type(&self, kind: ResourceType) -> TypeMap {
        self.all(kind).into_iter().map(|resource| (Arc::clone(&resource.name), resource)).collect()
    }

    /// One of them, where the client may have it.
    #[must_use]
    pub fn get(&self, kind: ResourceType, name: &str) -> Option<Resource> {
        let offered = self.of.named(name).iter().flat_map(|offer| self.client.sees(offer, kind));
        offered.chain(self.own(kind)).find(|resource| resource.name.as_ref() == name).cloned()
    }

    /// What is not as it was in an earlier view.
    #[must_use]
    pub fn since(&self, before: &Self, kind: ResourceType) -> Changes {
        let mut changes = Changes::default();
        if self.client != before.client {
            changes.add(&before.of_type(kind), &self.of_type(kind));
            return changes;
        }
        if Arc::ptr_eq(&self.of, &before.of) {
            return changes;
        }
        let seen = |offer: &Option<Arc<Offer>>| {
            by_name(offer.iter().flat_map(|offer| self.client.sees(offer, kind)))
        };
        for changed in self.of.since(&before.of).iter() {
            changes.add(&seen(&changed.before), &seen(&changed.now));
        }
        changes.add(&by_name(before.own(kind)), &by_name(self.own(kind)));
        changes
    }

    /// What the client needs as the proxy of a server of ours.
    fn own(&self, kind: ResourceType) -> impl Iterator<Item = &Resource> {
        let is_envoy = self.client.kind == ClientKind::Envoy;
        let own = self.of.xds.inbound.get(&self.client.id).filter(|_| is_envoy);
        own.into_iter().flat_map(|own| &own.resources).filter(move |resource| resource.kind == kind)
    }
}

impl Looker {
    /// What it sees of an offer.
    fn sees<'o>(&self, offer: &'o Arc<Offer>, kind: ResourceType) -> impl Iterator<Item = &'o Resource> {
        let ports = offer.ports.iter().filter(|port| may_call(port, &self.id, &self.text));
        let of = self.kind;
        let resources = ports.flat_map(move |port| match of {
            ClientKind::Envoy => &port.envoy,
            ClientKind::Grpc => &port.grpc,
        });
        resources.filter(move |resource| resource.kind == kind)
    }
}

fn by_name<'r>(all: impl Iterator<Item = &'r Resource>) -> TypeMap {
    all.map(|resource| (Arc::clone(&resource.name), resource.clone())).collect()
}

fn may_call(port: &PortOffer, client: &SpiffeId, text: &str) -> bool {
    port.whom.holds(client, text)
}

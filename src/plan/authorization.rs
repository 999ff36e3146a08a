//! Who may call what is exported: one DENY AuthorizationPolicy for each distinct selector.
//!
//! Policies that deny add up, so one policy speaks for all FederatedServices of a selector. It denies every SPIFFE ID
//! outside our own trust domain that the port's `clients` do not name, on every other port every foreign one; so a trust
//! domain that is federated later starts out shut. Callers of our own trust domain and plaintext callers are left as they
//! were: `principals: ["*"]` matches only who has a SPIFFE ID. Principals are written without `spiffe://`.

mod allow;
pub mod fence;
mod kept;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::istio::AuthorizationPolicySpec;
use crate::istio::authorization_policy::{Action, From, Operation, Rule, Selector, Source, To};
use crate::model::object::{ANNOTATION_SOURCE, Kind, Object, ObjectKey};
use crate::model::world::Settings;
use crate::model::{Service, TrustDomain, World};

use super::exports::Exports;
use super::exports::unread::Unread;
use super::memo::Memo;
use super::origin::Origin;
use super::{diff, generated};

/// A namespace, and labels in it.
pub(super) type Workloads<'a> = (&'a str, &'a BTreeMap<String, String>);

pub use allow::{Allows, Selectors};
pub(super) use kept::Policies;

/// The trust domains whose workloads may be let in; the same ones are the same in memory.
type Trusted = Arc<BTreeSet<TrustDomain>>;

/// How much of the labels' values, with the prefix, stands in a policy's name before the hash.
const READABLE: usize = 45;

/// The policies of every accepted FederatedService, exported or not. They do not depend on whether a peer is connected, only
/// on whether there is a TrustDomainPeer: the clients of a trust domain that is not, or no longer (`ending`), a peer
/// are shut out.
#[must_use]
pub fn policies(
    world: &World,
    own: &TrustDomain,
    exports: &Exports,
    ending: &BTreeSet<TrustDomain>,
    memo: &mut Memo,
) -> BTreeMap<ObjectKey, Arc<Object>> {
    if world.absent.contains(&Kind::AuthorizationPolicy) {
        return BTreeMap::new();
    }
    let peers = memo.peers.share(peers(world, own, ending));
    let unread = Unread::new(world, own);
    let others = memo.observed.others(world);
    let turn = kept::Turn { world, own, exports, observed: &memo.observed, trusted: &peers, unread: &unread };
    let made = turn.policies(&mut Allows::new(&others), &mut memo.allowing, &mut memo.policies);
    let mut policies: BTreeMap<ObjectKey, Arc<Object>> =
        made.into_iter().map(|policy| (policy.key.clone(), policy)).collect();
    let fence = fence::fence(world, own, exports, &peers);
    policies.extend(fence.map(|fence| (fence.key.clone(), diff::seal(fence))));
    exports.blocked.keys().for_each(|key| drop(policies.remove(key)));
    policies
}

/// What the policy of a selector is made of, and nothing else, so that it can be remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyOf {
    own: TrustDomain,
    /// The services that share the selector.
    services: Vec<Arc<Service>>,
    /// Whose clients count.
    peers: Trusted,
    origin: Origin,
    /// By port, clients of services of the selector that cannot be read now.
    standing: Principals,
}

type Principals = BTreeMap<u16, BTreeSet<String>>;

/// A policy that allows.
fn allowing(
    settings: &Settings,
    namespace: &str,
    spec: &AuthorizationPolicySpec,
    services: &[Arc<Service>],
) -> Arc<Object> {
    let labels = spec.selector.as_ref().map(|selector| selector.match_labels.clone()).unwrap_or_default();
    let key = allow_key(namespace, &labels);
    diff::seal(Origin::of(services).object(settings, key, generated::spec(spec)))
}

/// Whom the policy lets in as it stands, where it is also that of a service that cannot be read now: those were its clients,
/// or may have been, and missing information takes nothing away. `origin` is told of that service.
fn standing(
    world: &World,
    key: &ObjectKey,
    unread: &Unread,
    peers: &BTreeSet<TrustDomain>,
    origin: &mut Origin,
) -> Principals {
    let ours = world.objects.get(key).filter(|there| there.is_generated_by(&world.settings.instance));
    let is_unread = |there: &&Arc<Object>| {
        let sources = there.meta.annotations.get(ANNOTATION_SOURCE).map_or("", String::as_str);
        sources.split(',').any(|source| unread.sources.contains_key(source))
    };
    let mut standing = Principals::new();
    let Some(there) = ours.filter(is_unread) else { return standing };
    origin.keep(there, &unread.sources);
    let rules = there.spec().and_then(|spec| spec["rules"].as_array()).into_iter().flatten();
    for rule in rules {
        let strings = |at: &str| {
            let list = rule.pointer(at).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str)
        };
        let of_peer = |principal: &&str| {
            let td = principal.split_once('/').and_then(|(td, _)| TrustDomain::new(td).ok());
            td.is_some_and(|td| peers.contains(&td))
        };
        let clients: BTreeSet<String> =
            strings("/from/0/source/notPrincipals").filter(of_peer).map(str::to_owned).collect();
        for port in strings("/to/0/operation/ports").filter_map(|port| port.parse().ok()) {
            standing.entry(port).or_default().extend(clients.iter().cloned());
        }
    }
    standing
}

/// The policy of a selector: named by its values, and a hash of all of it.
#[must_use]
pub fn key(namespace: &str, selector: &BTreeMap<String, String>) -> ObjectKey {
    named("entente", namespace, selector)
}

/// The policy that allows, of a selector.
#[must_use]
pub fn allow_key(namespace: &str, selector: &BTreeMap<String, String>) -> ObjectKey {
    named("entente-allow", namespace, selector)
}

fn named(prefix: &str, namespace: &str, selector: &BTreeMap<String, String>) -> ObjectKey {
    let values: Vec<&str> = selector.values().map(String::as_str).filter(|v| !v.is_empty()).collect();
    let readable: String = values
        .join("-")
        .chars()
        .take(READABLE.saturating_sub(prefix.len()))
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let readable = readable.trim_matches('-');
    let mut whole = Vec::new();
    for text in selector.iter().flat_map(|(name, value)| [name, value]) {
        whole.extend_from_slice(text.as_bytes());
        whole.push(0);
    }
    let hash = generated::short_hash(&whole);
    let name =
        if readable.is_empty() { format!("{prefix}-{hash}") } else { format!("{prefix}-{readable}-{hash}") };
    ObjectKey::namespaced(Kind::AuthorizationPolicy, namespace, name)
}

/// What istiod takes for our own trust domain wherever a policy names it (`constants.DefaultClusterLocalDomain`).
const CLUSTER_LOCAL: &str = "cluster.local";

/// Whether no policy of Istio's can tell the workloads of a peer's trust domain from our own.
#[must_use]
pub fn is_taken_for_own(own: &TrustDomain, peer: &TrustDomain) -> bool {
    peer.as_str() == CLUSTER_LOCAL && peer != own
}

/// Trust domains whose workloads may be let in: those of a TrustDomainPeer, also of one that was edited into something
/// unreadable, since missing information takes nothing away; but its deletion does.
fn peers(world: &World, own: &TrustDomain, ending: &BTreeSet<TrustDomain>) -> BTreeSet<TrustDomain> {
    let rejected = world.rejected.iter();
    let rejected = rejected.filter(|(key, one)| key.kind == Kind::TrustDomainPeer && one.deletion.is_none());
    let rejected = rejected.filter_map(|(_, rejected)| rejected.trust_domain.as_ref());
    let all = world.peers.keys().chain(rejected);
    all.filter(|td| !ending.contains(td) && !is_taken_for_own(own, td)).cloned().collect()
}

fn deny(of: &PolicyOf) -> AuthorizationPolicySpec {
    let match_labels = of.services.first().map(|service| service.workload_labels.clone()).unwrap_or_default();
    let mut clients = clients_by_port(&of.services, &of.peers);
    for (port, standing) in &of.standing {
        clients.entry(*port).or_default().extend(standing.iter().map(String::as_str));
    }
    let mut rules: Vec<Rule> =
        alike(&clients).map(|(ports, allowed)| rule(&of.own, allowed, Operation::on(ports))).collect();
    let not_ports = clients.keys().map(u16::to_string).collect();
    rules.push(rule(&of.own, &BTreeSet::new(), Operation { not_ports, ..Operation::default() }));
    AuthorizationPolicySpec { selector: Some(Selector { match_labels }), action: Action::Deny, rules }
}

/// Who may call, by the port of the workload: the clients of all of its services that are of these trust domains.
fn clients_by_port<'a>(
    services: impl IntoIterator<Item = &'a Arc<Service>>,
    peers: &BTreeSet<TrustDomain>,
) -> BTreeMap<u16, BTreeSet<&'a str>> {
    let mut clients: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    for service in services {
        for port in &service.ports {
            let allowed = service.clients_of(port).iter().filter(|c| peers.contains(c.trust_domain()));
            clients.entry(port.target_port).or_default().extend(allowed.map(|c| c.principal()));
        }
    }
    clients
}

/// The ports that have the same clients, in the order of the first of each: one rule says it for all of them.
fn alike<'c, 'a>(
    clients: &'c BTreeMap<u16, BTreeSet<&'a str>>,
) -> impl Iterator<Item = (Vec<u16>, &'c BTreeSet<&'a str>)> {
    let mut groups: BTreeMap<&BTreeSet<&str>, Vec<u16>> = BTreeMap::new();
    for (port, allowed) in clients {
        groups.entry(allowed).or_default().push(*port);
    }
    let mut groups: Vec<_> = groups.into_iter().map(|(allowed, ports)| (ports, allowed)).collect();
    groups.sort();
    groups.into_iter()
}

fn rule(own: &TrustDomain, allowed: &BTreeSet<&str>, operation: Operation) -> Rule {
    let mut not_principals = vec![format!("{own}/*")];
    not_principals.extend(allowed.iter().map(|&principal| principal.to_owned()));
    let source = Source { principals: vec!["*".to_owned()], not_principals };
    Rule { from: vec![From { source }], to: vec![To { operation }] }
}

#[cfg(test)]
#[path = "authorization/tests.rs"]
mod tests;

//! Who may call what is exported: one DENY AuthorizationPolicy for each distinct selector.
//!
//! Policies that deny add up, so one policy speaks for all FederatedServices of a selector. It denies every SPIFFE ID
//! outside our own trust domain that the port's `clients` do not name, on every other port every foreign one; so a trust
//! domain that is federated later starts out shut. Callers of our own trust domain and plaintext callers are left as they
//! were: `principals: ["*"]` matches only who has a SPIFFE ID. Principals are written without `spiffe://`.

mod allow;
pub mod fence;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::istio::AuthorizationPolicySpec;
use crate::istio::authorization_policy::{Action, From, Operation, Rule, Selector, Source, To};
use crate::model::object::{Kind, Object, ObjectKey, OwnerRef};
use crate::model::world::Settings;
use crate::model::{Service, TrustDomain, World};

use super::exports::Exports;
use super::memo::Memo;
use super::{diff, generated};

/// A namespace, and labels in it.
pub(super) type Workloads<'a> = (&'a str, &'a BTreeMap<String, String>);

pub use allow::Allows;

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
    let mut groups: BTreeMap<Workloads<'_>, Vec<Arc<Service>>> = BTreeMap::new();
    for service in exports.accepted.values() {
        groups
            .entry((&service.object.namespace, &service.workload_labels))
            .or_default()
            .push(Arc::clone(service));
    }
    let peers = memo.peers.share(peers(world, ending));
    let allows = Allows::new(world);
    let mut policies = BTreeMap::new();
    for ((namespace, selector), services) in groups {
        for spec in allow::allow(&allows, (namespace, selector), &services, &peers) {
            let labels = spec.selector.as_ref().map(|selector| selector.match_labels.clone());
            let key = allow_key(namespace, &labels.unwrap_or_default());
            if generated::claim(world, &key).is_ok() {
                policies.insert(key.clone(), diff::seal(policy(&world.settings, key, &spec, &services)));
            }
        }
        let key = key(namespace, selector);
        let input = (own.clone(), services, Arc::clone(&peers));
        let deny = memo.policies.get(&key, &input, |(own, services, peers)| {
            diff::seal(policy(&world.settings, key.clone(), &deny(own, services, peers), services))
        });
        policies.insert(key, deny);
    }
    let fence = fence::fence(world, own, exports, &peers);
    policies.extend(fence.map(|fence| (fence.key.clone(), diff::seal(fence))));
    policies.retain(|key, _| !exports.blocked.contains_key(key));
    policies
}

/// A policy of the services of one selector. It depends on nothing else, so that it can be remembered.
fn policy(
    settings: &Settings,
    key: ObjectKey,
    spec: &AuthorizationPolicySpec,
    services: &[Arc<Service>],
) -> Object {
    let spec = generated::spec(spec);
    let owners: BTreeSet<OwnerRef> = services.iter().map(|s| s.owner()).collect();
    let sources: BTreeSet<ObjectKey> = services.iter().flat_map(|s| s.sources()).collect();
    let sources: Vec<String> = sources.iter().map(generated::source_of).collect();
    let owners = owners.into_iter().collect();
    generated::object(settings, key, spec, owners, &sources, None)
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

/// Trust domains whose workloads may be let in: those of a TrustDomainPeer, also of one that was edited into something
/// unreadable, since missing information takes nothing away.
fn peers(world: &World, ending: &BTreeSet<TrustDomain>) -> BTreeSet<TrustDomain> {
    let rejected = world.rejected.iter().filter(|(key, _)| key.kind == Kind::TrustDomainPeer);
    let rejected = rejected.filter_map(|(_, rejected)| rejected.trust_domain.as_ref());
    world.peers.keys().chain(rejected).filter(|td| !ending.contains(td)).cloned().collect()
}

fn deny(
    own: &TrustDomain,
    services: &[Arc<Service>],
    peers: &BTreeSet<TrustDomain>,
) -> AuthorizationPolicySpec {
    let match_labels = services.first().map(|service| service.workload_labels.clone()).unwrap_or_default();
    let clients = clients_by_port(services, peers);
    let mut rules: Vec<Rule> = clients
        .iter()
        .map(|(port, allowed)| {
            rule(own, allowed, Operation { ports: vec![port.to_string()], ..Operation::default() })
        })
        .collect();
    let not_ports = clients.keys().map(u16::to_string).collect();
    rules.push(rule(own, &BTreeSet::new(), Operation { not_ports, ..Operation::default() }));
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

fn rule(own: &TrustDomain, allowed: &BTreeSet<&str>, operation: Operation) -> Rule {
    let mut not_principals = vec![format!("{own}/*")];
    not_principals.extend(allowed.iter().map(|&principal| principal.to_owned()));
    let source = Source { principals: vec!["*".to_owned()], not_principals };
    Rule { from: vec![From { source }], to: vec![To { operation }] }
}

#[cfg(test)]
#[path = "authorization/tests.rs"]
mod tests;

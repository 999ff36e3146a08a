//! The clients of exports where others allow: once any policy allows some callers of a workload, all others are denied, so
//! `clients` have to be allowed as well. Where no such policy is, ours would itself shut the local callers out; so it is
//! there only while one of someone else's is, and selects exactly what both select: the labels of the two together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::istio::AuthorizationPolicySpec;
use crate::istio::authorization_policy::{Action, From, Operation, Rule, Selector, Source, To};
use crate::model::object::{ANNOTATION_DRY_RUN, Kind, LABEL_INSTANCE, Object, ObjectKey};
use crate::model::service::TlsMode;
use crate::model::{Service, TrustDomain, World};

use super::{Workloads, alike, clients_by_port};

/// The selectors of others' policies that allow, of one namespace: its own, and Istio's own namespace's, which hold for all.
pub type Selectors = BTreeSet<BTreeMap<String, String>>;

/// Others' policies that allow.
#[derive(Debug, Default)]
pub struct Allows<'a> {
    by_namespace: BTreeMap<&'a str, Vec<Selecting<'a>>>,
    /// Istio's own namespace.
    root: &'a str,
    /// By namespace, as far as they were asked for.
    selectors: BTreeMap<&'a str, Arc<Selectors>>,
}

/// The labels that a policy wants, and the policy.
type Selecting<'a> = (BTreeMap<&'a str, &'a str>, &'a ObjectKey);

impl<'a> Allows<'a> {
    /// Those that hold for sidecars: not such as target a gateway, a waypoint or a Service.
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        let mut allows = Self { root: &world.settings.istio_namespace, ..Self::default() };
        for (key, object) in
            world.of_kind(Kind::AuthorizationPolicy).filter(|(_, object)| allows_some(object))
        {
            let namespace = key.namespace.as_deref().unwrap_or_default();
            allows.by_namespace.entry(namespace).or_default().push((object.match_labels(), key));
        }
        allows
    }

    /// Whether a policy of ours allows, and none of someone else's that does selects all of its workloads any more: by itself
    /// it would shut out whom it does not name.
    #[must_use]
    pub fn is_left(&self, ours: &Object) -> bool {
        if ours.key.kind != Kind::AuthorizationPolicy
            || ours.spec().is_none_or(|spec| spec["action"] != "ALLOW")
        {
            return false;
        }
        let labels = ours.match_labels().into_iter();
        let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).collect();
        let namespace = ours.key.namespace.as_deref().unwrap_or_default();
        self.selecting((namespace, &labels)).is_none()
    }

    fn of(&self, namespace: &str) -> impl Iterator<Item = &Selecting<'a>> {
        let own = (namespace != self.root).then(|| self.by_namespace.get(namespace)).flatten();
        self.by_namespace.get(self.root).into_iter().chain(own).flatten()
    }

    /// One that selects all of these workloads.
    #[must_use]
    pub fn selecting(&self, (namespace, labels): Workloads<'_>) -> Option<&'a ObjectKey> {
        let holds = |selector: &BTreeMap<&str, &str>| {
            selector.iter().all(|(label, value)| labels.get(*label).is_some_and(|has| has == value))
        };
        self.of(namespace).filter(|(selector, _)| holds(selector)).map(|(_, key)| *key).min()
    }

    /// The selectors that hold in a namespace. `before` are those of the last plan: equal ones are the same.
    pub(super) fn selectors(
        &mut self,
        namespace: &'a str,
        before: &mut BTreeMap<String, Arc<Selectors>>,
    ) -> Arc<Selectors> {
        if let Some(known) = self.selectors.get(namespace) {
            return Arc::clone(known);
        }
        let owned = |(selector, _): &Selecting<'_>| {
            selector.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
        };
        let now: Selectors = self.of(namespace).map(owned).collect();
        let shared = match before.get(namespace) {
            Some(before) if **before == now => Arc::clone(before),
            _ => Arc::new(now),
        };
        before.insert(namespace.to_owned(), Arc::clone(&shared));
        self.selectors.insert(namespace, Arc::clone(&shared));
        shared
    }
}

/// The selectors of what these workloads have in common with those of each, the fewest that cover all; by labels alone, so
/// that pods may come and go.
fn shared(selectors: &Selectors, labels: &BTreeMap<String, String>) -> BTreeSet<BTreeMap<String, String>> {
    let with = |selector: &BTreeMap<String, String>| {
        let mut both = labels.clone();
        for (label, value) in selector {
            if both.entry(label.clone()).or_insert_with(|| value.clone()) != value {
                return None;
            }
        }
        Some(both)
    };
    let all: BTreeSet<BTreeMap<String, String>> = selectors.iter().filter_map(with).collect();
    let is_wider = |one: &BTreeMap<String, String>, other: &BTreeMap<String, String>| {
        one.len() < other.len() && one.iter().all(|(label, value)| other.get(label) == Some(value))
    };
    all.iter().filter(|one| !all.iter().any(|other| is_wider(other, one))).cloned().collect()
}

fn allows_some(object: &Arc<Object>) -> bool {
    // An agent's own, of whatever instance, only follow others'.
    if object.meta.labels.contains_key(LABEL_INSTANCE) {
        return false;
    }
    let spec = object.spec().unwrap_or(&Value::Null);
    let is_allow = spec.get("action").is_none_or(|action| action == "ALLOW");
    let is_targeted = spec.get("targetRef").is_some_and(Value::is_object)
        || spec.get("targetRefs").and_then(Value::as_array).is_some_and(|refs| !refs.is_empty());
    let is_tried = object.meta.annotations.get(ANNOTATION_DRY_RUN).is_some_and(|dry| dry == "true");
    is_allow && !is_targeted && !is_tried
}

/// What the workloads of one selector need: for each selector of what is shared with others' policies, one that allows the
/// clients of each port. Where an application ends TLS, its sidecar knows no caller, and nothing could be allowed.
pub(super) fn allow(
    selectors: &Selectors,
    labels: &BTreeMap<String, String>,
    services: &[Arc<Service>],
    peers: &BTreeSet<TrustDomain>,
) -> Vec<AuthorizationPolicySpec> {
    let told = services.iter().filter(|service| service.tls_mode == TlsMode::IstioMtls);
    let mut clients = clients_by_port(told, peers);
    // A policy that allows nobody would deny everybody.
    clients.retain(|_, allowed| !allowed.is_empty());
    if clients.is_empty() {
        return Vec::new();
    }
    let rule = |(ports, allowed): (Vec<u16>, &BTreeSet<&str>)| Rule {
        from: vec![From {
            source: Source {
                principals: allowed.iter().map(|&principal| principal.to_owned()).collect(),
                not_principals: Vec::new(),
            },
        }],
        to: vec![To { operation: Operation::on(ports) }],
    };
    let rules: Vec<Rule> = alike(&clients).map(rule).collect();
    let policy = |labels| AuthorizationPolicySpec {
        selector: Some(Selector { match_labels: labels }),
        action: Action::Allow,
        rules: rules.clone(),
    };
    shared(selectors, labels).into_iter().map(policy).collect()
}

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

use super::{Workloads, clients_by_port};

/// The labels that a policy wants, and the policy.
type Selecting<'a> = (BTreeMap<&'a str, &'a str>, &'a ObjectKey);

/// Others' policies that allow, by namespace.
#[derive(Debug, Default)]
pub struct Allows<'a> {
    by_namespace: BTreeMap<&'a str, Vec<Selecting<'a>>>,
    /// Istio's own namespace, whose policies hold for all.
    root: &'a str,
}

impl<'a> Allows<'a> {
    /// Those that hold for sidecars: not such as target a gateway, a waypoint or a Service.
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        let mut allows = Self { by_namespace: BTreeMap::new(), root: &world.settings.istio_namespace };
        for (key, object) in
            world.of_kind(Kind::AuthorizationPolicy).filter(|(_, object)| allows_some(object))
        {
            let labels = object.spec().and_then(|spec| spec.pointer("/selector/matchLabels"));
            let labels = labels.and_then(Value::as_object).into_iter().flatten();
            let selector =
                labels.filter_map(|(label, value)| Some((label.as_str(), value.as_str()?))).collect();
            let namespace = key.namespace.as_deref().unwrap_or_default();
            allows.by_namespace.entry(namespace).or_default().push((selector, key));
        }
        allows
    }

    /// Whether a policy of ours allows, and none of someone else's that does selects all of its workloads any more: by itself
    /// it would shut out whom it does not name.
    #[must_use]
    pub fn is_left(&self, ours: &Object) -> bool {
        let spec = ours.spec().unwrap_or(&Value::Null);
        if ours.key.kind != Kind::AuthorizationPolicy || spec["action"] != "ALLOW" {
            return false;
        }
        let labels = spec.pointer("/selector/matchLabels").and_then(Value::as_object).into_iter().flatten();
        let labels = labels.filter_map(|(label, value)| Some((label.clone(), value.as_str()?.to_owned())));
        let namespace = ours.key.namespace.as_deref().unwrap_or_default();
        self.selecting((namespace, &labels.collect())).is_none()
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

    /// The selectors of what these workloads have in common with those of each, the fewest that cover all; by labels alone, so
    /// that pods may come and go.
    fn shared(&self, workloads: Workloads<'_>) -> BTreeSet<BTreeMap<String, String>> {
        let (namespace, labels) = workloads;
        if self.selecting(workloads).is_some() {
            return BTreeSet::from([labels.clone()]);
        }
        let with = |selector: &BTreeMap<&str, &str>| {
            let mut both = labels.clone();
            for (label, value) in selector {
                let has = both.entry((*label).to_owned()).or_insert_with(|| (*value).to_owned());
                if has != value {
                    return None;
                }
            }
            Some(both)
        };
        self.of(namespace).filter_map(|(selector, _)| with(selector)).collect()
    }
}

fn allows_some(object: &Arc<Object>) -> bool {
    let spec = object.spec().unwrap_or(&Value::Null);
    let is_allow = spec.get("action").is_none_or(|action| action == "ALLOW");
    let is_targeted = spec.get("targetRef").is_some_and(Value::is_object)
        || spec.get("targetRefs").and_then(Value::as_array).is_some_and(|refs| !refs.is_empty());
    let is_tried = object.meta.annotations.get(ANNOTATION_DRY_RUN).is_some_and(|dry| dry == "true");
    // An agent's own, of whatever instance, only follow others'.
    let is_ours = object.meta.labels.contains_key(LABEL_INSTANCE);
    is_allow && !is_targeted && !is_tried && !is_ours
}

/// What the workloads of one selector need: for each selector of what is shared with others' policies, one that allows the
/// clients of each port. Where an application ends TLS, its sidecar knows no caller, and nothing could be allowed.
pub(super) fn allow(
    allows: &Allows<'_>,
    workloads: Workloads<'_>,
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
    let rule = |(port, allowed): (&u16, &BTreeSet<&str>)| Rule {
        from: vec![From {
            source: Source {
                principals: allowed.iter().map(|&principal| principal.to_owned()).collect(),
                not_principals: Vec::new(),
            },
        }],
        to: vec![To { operation: Operation { ports: vec![port.to_string()], ..Operation::default() } }],
    };
    let policy = |labels| AuthorizationPolicySpec {
        selector: Some(Selector { match_labels: labels }),
        action: Action::Allow,
        rules: clients.iter().map(rule).collect(),
    };
    allows.shared(workloads).into_iter().map(policy).collect()
}

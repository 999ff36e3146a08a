//! What the sidecars of workloads that end TLS themselves need, so that they pass it on: a PeerAuthentication for each
//! distinct selector, which takes Istio's own mutual TLS off the exported ports and leaves the rest as the wider policy has
//! it (`mtls` is unset, and istiod then takes the namespace's, else the mesh's).
//!
//! Of several that select a workload istiod obeys the oldest alone, whole. So there is none of ours where one of someone
//! else's selects a pod, nor where no pod has a sidecar; where no pod is there at all, it is as it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::istio::PeerAuthenticationSpec;
use crate::istio::authorization_policy::Selector;
use crate::istio::peer_authentication::{MutualTls, MutualTlsMode};
use crate::model::object::{Kind, Object, ObjectKey};
use crate::model::world::Settings;
use crate::model::{Service, World};
use crate::plan::authorization::{self, Workloads};
use crate::plan::generated;
use crate::plan::origin::Origin;
use crate::plan::pods::Pods;

/// The PeerAuthentication of a selector, named as its policy is.
#[must_use]
pub fn key(namespace: &str, selector: &BTreeMap<String, String>) -> ObjectKey {
    ObjectKey { kind: Kind::PeerAuthentication, ..authorization::key(namespace, selector) }
}

/// One of someone else's that selects workloads, with what is missing from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub key: ObjectKey,
    /// The ports on which it has the sidecar take Istio's own mutual TLS.
    pub ports: BTreeSet<u16>,
}

/// What there is of others', by namespace.
#[derive(Debug, Default)]
pub struct Others<'a>(BTreeMap<&'a str, Vec<&'a Arc<Object>>>);

impl<'a> Others<'a> {
    /// Those that select workloads: without a selector, or in Istio's own namespace, they are the wider policy.
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        let mut all: BTreeMap<&str, Vec<&Arc<Object>>> = BTreeMap::new();
        let foreign = world.of_kind(Kind::PeerAuthentication);
        for (key, object) in foreign.filter(|(_, object)| !object.is_generated_by(&world.settings.instance)) {
            let namespace = key.namespace.as_deref().unwrap_or_default();
            if namespace != world.settings.istio_namespace && !object.match_labels().is_empty() {
                all.entry(namespace).or_default().push(object);
            }
        }
        Self(all)
    }

    /// The oldest that selects a pod of these workloads, or would select all of them.
    #[must_use]
    pub fn standing(
        &self,
        (namespace, labels): Workloads<'_>,
        ports: &BTreeSet<u16>,
        pods: &Pods<'_>,
    ) -> Option<Standing> {
        let selects = |object: &&&Arc<Object>| {
            let wanted = object.match_labels();
            let holds = |labels: &BTreeMap<String, String>| {
                wanted.iter().all(|(label, value)| labels.get(*label).is_some_and(|has| has == value))
            };
            holds(labels) || pods.selected(namespace, labels).any(|pod| holds(&pod.labels))
        };
        let all = self.0.get(namespace)?;
        let oldest = all.iter().filter(selects).min_by_key(|object| (object.meta.created, &object.key))?;
        let spec = oldest.spec().unwrap_or(&Value::Null);
        let is_off = |mode: Option<&Value>| mode.is_some_and(|mode| mode == "DISABLE");
        let passes = |port: &&u16| {
            let given = spec.get("portLevelMtls").and_then(|ports| ports.get(port.to_string()));
            match given {
                Some(given) => is_off(given.get("mode")),
                None => is_off(spec.pointer("/mtls/mode")),
            }
        };
        let ports = ports.iter().filter(|port| !passes(port)).copied().collect();
        Some(Standing { key: oldest.key.clone(), ports })
    }
}

/// The object for the services of one selector whose applications end TLS. `origin` is what they come from.
#[must_use]
pub fn object(
    settings: &Settings,
    (namespace, labels): Workloads<'_>,
    services: &[&Arc<Service>],
    origin: Origin,
) -> Object {
    let ports = services.iter().flat_map(|service| &service.ports).map(|port| port.target_port);
    let disabled = MutualTls { mode: MutualTlsMode::Disable };
    let spec = PeerAuthenticationSpec {
        selector: Some(Selector { match_labels: labels.clone() }),
        mtls: None,
        port_level_mtls: ports.map(|port| (port, disabled)).collect(),
    };
    origin.object(settings, key(namespace, labels), generated::spec(&spec))
}

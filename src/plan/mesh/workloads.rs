//! Whether the pods of a service take their certificates from SPIRE.
//!
//! `IstioMtls` is ended by the server's sidecar: with certificates of Istio's own CA it would show an identity that no
//! importer can verify, and trust nobody of another trust domain. Where no pod is known, nothing is known.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::cluster::Pod;
use crate::model::{Service, World};

/// Pods by what selects them: made once for all services.
#[derive(Debug, Default)]
pub struct Workloads<'a> {
    by_label: BTreeMap<(&'a str, &'a str, &'a str), Vec<&'a Pod>>,
}

/// What the pods of a service have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// There is no pod to tell by.
    Unknown,
    /// At least one pod has a sidecar that takes them from SPIRE.
    Spire,
    /// There are sidecars, and none takes them from SPIRE.
    Istio,
    /// There is no sidecar, and ztunnel captures pods.
    Ambient,
    /// There is no sidecar.
    NoSidecar,
}

impl Certificates {
    /// What keeps the service from being exported by `IstioMtls`, for a message: "its pods ...".
    #[must_use]
    pub const fn problem(self) -> Option<&'static str> {
        match self {
            Self::Unknown | Self::Spire => None,
            Self::Istio => Some(
                "have sidecars that do not take their certificates from SPIRE, so importers could not verify them: inject them \
                 by a template that mounts SPIRE's socket (csi.spiffe.io) at /run/secrets/workload-spiffe-uds",
            ),
            Self::Ambient => Some(
                "are in Istio's ambient mode, whose ztunnel lets in its own trust domain alone: inject sidecars that mount \
                 SPIRE's socket",
            ),
            Self::NoSidecar => Some(
                "have no sidecar, so nothing ends Istio's mutual TLS: inject sidecars that mount SPIRE's socket, or set \
                 spec.tlsMode Mtls where the application ends TLS with its own SVID",
            ),
        }
    }
}

impl<'a> Workloads<'a> {
    /// The pods that any of these services may select.
    #[must_use]
    pub fn of(world: &'a World, services: impl IntoIterator<Item = &'a Service>) -> Self {
        let labels = |service: &'a Service| {
            let namespace = service.object.namespace.as_str();
            service
                .workload_labels
                .iter()
                .map(move |(name, value)| (namespace, name.as_str(), value.as_str()))
        };
        let mut by_label: BTreeMap<_, Vec<&Pod>> =
            services.into_iter().flat_map(labels).map(|key| (key, Vec::new())).collect();
        let namespaces: BTreeSet<&str> = by_label.keys().map(|(namespace, ..)| *namespace).collect();
        for pod in world.pods.values().filter(|pod| namespaces.contains(pod.object.namespace.as_str())) {
            for (name, value) in &pod.labels {
                if let Some(pods) =
                    by_label.get_mut(&(pod.object.namespace.as_str(), name.as_str(), value.as_str()))
                {
                    pods.push(pod);
                }
            }
        }
        Self { by_label }
    }

    /// What the pods of a service have. A service without labels selects nothing here.
    #[must_use]
    pub fn certificates(&self, service: &Service) -> Certificates {
        let namespace = service.object.namespace.as_str();
        let lists = service
            .workload_labels
            .iter()
            .filter_map(|(name, value)| self.by_label.get(&(namespace, name.as_str(), value.as_str())));
        let Some(fewest) = lists.min_by_key(|pods| pods.len()) else { return Certificates::Unknown };
        let is_selected = |pod: &&&Pod| {
            service.workload_labels.iter().all(|(name, value)| pod.labels.get(name) == Some(value))
        };
        let mut found = Certificates::Unknown;
        for pod in fewest.iter().filter(is_selected) {
            if pod.has_sidecar && pod.has_spire_socket {
                return Certificates::Spire;
            }
            found = match found {
                Certificates::Istio => found,
                _ if pod.has_sidecar => Certificates::Istio,
                Certificates::Ambient => found,
                _ if pod.is_ambient => Certificates::Ambient,
                _ => Certificates::NoSidecar,
            };
        }
        found
    }
}

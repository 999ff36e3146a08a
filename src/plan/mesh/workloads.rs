//! Whether the pods of a service take their certificates from SPIRE.
//!
//! `IstioMtls` is ended by the server's sidecar: with certificates of Istio's own CA it would show an identity that no
//! importer can verify, and trust nobody of another trust domain. Where no pod is known, nothing is known.

use crate::model::Service;
use crate::plan::pods::Pods;

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

/// What the pods of a service have.
#[must_use]
pub fn certificates(pods: &Pods<'_>, service: &Service) -> Certificates {
    let mut found = Certificates::Unknown;
    for pod in pods.selected(&service.object.namespace, &service.workload_labels) {
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

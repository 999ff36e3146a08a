//! Our own mesh, as far as it can be seen from Kubernetes: what decides whether the proxies of two trust domains take each
//! other's certificates, and resolve each other's names.

use std::collections::BTreeSet;
use std::fmt;

use super::{NamespacedName, TrustDomain};

/// Something that need not be there, and that the agent may be kept from reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seen<T> {
    /// It was not looked at yet.
    #[default]
    Unread,
    Absent,
    /// It is there, or may be, and cannot be read: why, and what to do.
    Unreadable(String),
    There(T),
}

impl<T> Seen<T> {
    /// What is there.
    pub const fn there(&self) -> Option<&T> {
        match self {
            Self::There(value) => Some(value),
            Self::Unread | Self::Absent | Self::Unreadable(_) => None,
        }
    }
}

/// The mesh that this cluster's workloads are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mesh {
    pub config: Seen<MeshConfig>,
    /// The istiods, sorted by name; never empty where they are there.
    pub control_planes: Seen<Vec<ControlPlane>>,
    /// How SPIRE's agents name bundles to proxies, where their configuration is in a ConfigMap; sorted by name.
    pub spire_agents: Seen<Vec<SdsNames>>,
}

/// What matters here of Istio's MeshConfig (`istio.mesh.v1alpha1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// The ConfigMap that has it, under the key `mesh`.
    pub object: NamespacedName,
    /// `trustDomain`; `None` where it is not the name of one. Istio's default is `cluster.local`.
    pub trust_domain: Option<TrustDomain>,
    /// `trustDomainAliases`: every ID of the mesh stands for the same one in each of these.
    pub aliases: BTreeSet<TrustDomain>,
    /// `caCertificates[].trustDomains`: whose IDs a sidecar lets in beside those of the mesh.
    pub ca_trust_domains: BTreeSet<TrustDomain>,
    /// `ISTIO_META_DNS_CAPTURE` in `defaultConfig.proxyMetadata`: whether proxies answer for imported names.
    pub captures_dns: bool,
    /// `ISTIO_META_DNS_AUTO_ALLOCATE` there: whether proxies make up addresses for names without one.
    pub proxies_allocate: bool,
}

/// An istiod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// Its Deployment.
    pub object: NamespacedName,
    /// By its labels, or else the tag of its image.
    pub version: Option<Version>,
    /// `PILOT_SKIP_VALIDATE_TRUST_DOMAIN`: sidecars let in whatever trust domain SPIRE has a bundle of.
    pub skips_trust_domains: bool,
    /// `PILOT_ENABLE_IP_AUTOALLOCATE`, where it is set.
    pub allocates_addresses: Option<bool>,
    /// `SHARED_MESH_CONFIG`: another ConfigMap that is merged into the mesh configuration.
    pub shared_config: Option<String>,
}

/// A version of Istio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub patch: u16,
}

impl Version {
    #[must_use]
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// The version in a label or a tag: `1.30`, `1.30.2`, `v1.30.2-distroless`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let core = text.split(['-', '+', '_']).next()?;
        let mut numbers = core.split('.').map(str::parse);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let patch = numbers.next().transpose().ok()?.unwrap_or(0);
        numbers.next().is_none().then_some(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The names under which a SPIRE agent serves bundles by Envoy's SDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdsNames {
    /// The ConfigMap of the agent's configuration.
    pub object: NamespacedName,
    /// `default_bundle_name`: our own trust domain's bundle alone. SPIRE's default is `ROOTCA`.
    pub own: String,
    /// `default_all_bundles_name`: it, and those that the workload federates with. SPIRE's default is `ALL`.
    pub all: String,
}

/// Under which name Istio's proxies ask for the roots that they trust.
pub const ISTIO_ROOTS: &str = "ROOTCA";

impl SdsNames {
    /// Whether Istio's proxies get the bundles of foreign trust domains.
    #[must_use]
    pub fn serves_foreign(&self) -> bool {
        self.all == ISTIO_ROOTS && self.own != ISTIO_ROOTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_labels_and_tags() {
        let cases = [
            ("1.30.2", Some(Version::new(1, 30, 2))),
            ("1.30", Some(Version::new(1, 30, 0))),
            ("v1.29.6-distroless", Some(Version::new(1, 29, 6))),
            ("1.31-alpha.0", Some(Version::new(1, 31, 0))),
            ("latest", None),
            ("1", None),
            ("1.2.3.4", None),
            ("1.x", None),
            ("", None),
        ];
        for (text, version) in cases {
            assert_eq!(Version::parse(text), version, "{text}");
        }
        assert!(Version::new(1, 30, 1) < Version::new(1, 30, 2));
        assert!(Version::new(1, 9, 9) < Version::new(1, 30, 0));
    }
}

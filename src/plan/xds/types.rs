//! Resources as they are served: encoded once, with a version that is their content's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prost::Message;
use prost::bytes::Bytes;
use prost_types::Any;
use sha2::{Digest, Sha256};

use crate::proto::xds::resources as pb;

/// What is served, in the order in which a client should get it: a listener after the cluster that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    Cluster,
    Endpoints,
    Listener,
}

impl ResourceType {
    pub const ALL: [Self; 3] = [Self::Cluster, Self::Endpoints, Self::Listener];

    /// What names it on the wire.
    #[must_use]
    pub const fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
        }
    }

    /// The type of this name; `None` for what is not served.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.url() == url)
    }

    /// For metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Listener => "listener",
        }
    }

    /// Whether a client that names nothing means everything (xDS, "wildcard"; of the other types it means nothing).
    #[must_use]
    pub const fn has_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// The version of a resource, or of several: of equal content, equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version([u8; 12]);

impl Version {
    fn of(digest: Sha256) -> Self {
        let mut version = [0; 12];
        version.iter_mut().zip(digest.finalize()).for_each(|(byte, hashed)| *byte = hashed);
        Self(version)
    }

    /// That of several resources together, by their names and versions in this order.
    #[must_use]
    pub fn of_all<'a>(all: impl Iterator<Item = (&'a str, Self)>) -> Self {
        let mut digest = Sha256::new();
        for (name, version) in all {
            digest.update((name.len() as u64).to_be_bytes());
            digest.update(name);
            digest.update(version.0);
        }
        Self::of(digest)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One resource. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub kind: ResourceType,
    pub name: Arc<str>,
    pub version: Version,
    pub body: Bytes,
}

/// The resources of one type that one client sees, by name.
pub type TypeMap = BTreeMap<Arc<str>, Resource>;

impl Resource {
    fn new(kind: ResourceType, name: &str, message: &impl Message) -> Self {
        let body = Bytes::from(message.encode_to_vec());
        let mut digest = Sha256::new();
        digest.update(&body);
        Self { kind, name: name.into(), version: Version::of(digest), body }
    }

    pub(super) fn listener(listener: &pb::Listener) -> Self {
        Self::new(ResourceType::Listener, &listener.name, listener)
    }

    pub(super) fn cluster(cluster: &pb::Cluster) -> Self {
        Self::new(ResourceType::Cluster, &cluster.name, cluster)
    }

    pub(super) fn endpoints(endpoints: &pb::ClusterLoadAssignment) -> Self {
        Self::new(ResourceType::Endpoints, &endpoints.cluster_name, endpoints)
    }
}

/// A part of a resource that names its type itself.
#[must_use]
pub(super) fn packed(envoy: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{envoy}"), value: message.encode_to_vec() }
}

/// A filter of Envoy's, by its own name and the type of its configuration.
#[must_use]
pub(super) fn filter(name: &str, envoy: &str, message: &impl Message) -> pb::Filter {
    pb::Filter { name: name.to_owned(), typed_config: Some(packed(envoy, message)) }
}

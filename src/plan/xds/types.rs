//! Resources as they are served: encoded once, with a version that is their content's.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use prost::Message;
use prost::bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
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
pub struct Resource(Arc<Encoded>);

/// A resource as it is served.
#[derive(Debug, PartialEq, Eq)]
pub struct Encoded {
    pub kind: ResourceType,
    pub name: Arc<str>,
    pub version: Version,
    pub body: Bytes,
    /// As an entry of an incremental answer: name, version, and last what one of the state of the world is. `body` is a part of it.
    entry: Bytes,
    /// Where that last part begins.
    bare: usize,
}

impl Deref for Resource {
    type Target = Encoded;

    fn deref(&self) -> &Encoded {
        &self.0
    }
}

/// The resources of one type that one client sees, by name.
pub type TypeMap = BTreeMap<Arc<str>, Resource>;

/// The number of the field that holds the resources, in an answer of either variant; and of that in an entry of an incremental
/// one which holds the resource itself.
const RESOURCES: u32 = 2;

impl Resource {
    pub(super) fn new(kind: ResourceType, name: &str, message: &impl Message) -> Self {
        let message = message.encode_to_vec();
        let mut digest = Sha256::new();
        digest.update(&message);
        let version = Version::of(digest);
        // google.protobuf.Any
        let mut packed = Vec::with_capacity(message.len() + 128);
        put(&mut packed, 1, kind.url().as_bytes());
        put(&mut packed, 2, &message);
        let mut parts = Vec::with_capacity(packed.len() + name.len() + 64);
        put(&mut parts, 3, name.as_bytes());
        put(&mut parts, 1, version.to_string().as_bytes());
        put(&mut parts, RESOURCES, &packed);
        let mut entry = Vec::with_capacity(parts.len() + 8);
        put(&mut entry, RESOURCES, &parts);
        let bare =
            entry.len() - (key_len(RESOURCES) + encoded_len_varint(packed.len() as u64) + packed.len());
        let entry = Bytes::from(entry);
        let body = entry.slice(entry.len() - message.len()..);
        Self(Arc::new(Encoded { kind, name: name.into(), version, body, entry, bare }))
    }

    /// Its bytes as one entry of `resources` in an incremental answer (DeltaDiscoveryResponse), with the field's number.
    #[must_use]
    pub fn incremental(&self) -> &[u8] {
        &self.entry
    }

    /// Its bytes as one entry of `resources` in an answer with the state of the world (DiscoveryResponse), likewise.
    #[must_use]
    pub fn bare(&self) -> &[u8] {
        self.entry.get(self.bare..).unwrap_or_default()
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

/// Appends a field that has a length.
fn put(buffer: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    encode_key(field, WireType::LengthDelimited, buffer);
    encode_varint(bytes.len() as u64, buffer);
    buffer.extend_from_slice(bytes);
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

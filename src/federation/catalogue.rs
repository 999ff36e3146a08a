//! Catalogues on the wire: their version, their frames, and their assembly from frames.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use prost::Message as _;
use sha2::{Digest, Sha256};

use super::convert::{held_name_from_proto, printable, service_from_proto, service_to_proto};
use super::delta::Held;
use crate::bounded::Bounded as _;
use crate::model::ServiceName;
use crate::model::service::RemoteService;
use crate::model::session::{Catalogue, CatalogueVersion, Offers};
use crate::proto::federation::v1 as proto;

/// Most services that are taken from a peer.
pub const MAX_SERVICES: usize = 20_000;
/// Most bytes of encoded services that are taken from a peer.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Most bytes of one encoded service; one with more is refused for itself.
pub const MAX_SERVICE_BYTES: usize = 512 * 1024;
/// A frame of services ends before it is larger than this: under 1 MiB, with room for what stands around them.
pub(super) const FRAME_BYTES: usize = 1_000 * 1024;
/// Most malformed entries that are remembered, and answered.
pub(super) const MAX_MALFORMED: usize = 100;
/// The reason with which a malformed service is refused.
pub const MALFORMED: &str = "Malformed";

/// SHA-256 of an encoded service.
pub type ServiceHash = [u8; 32];

/// The hash of a service as it is sent.
#[must_use]
pub fn hash(service: &RemoteService) -> ServiceHash {
    Sha256::digest(encode(service)).into()
}

/// The hash of a service that is held, as it is sent.
#[must_use]
pub fn hash_held(name: &ServiceName) -> ServiceHash {
    Sha256::digest(encode_held(name)).into()
}

/// The version of a catalogue of services with these hashes: equal content has equal versions, whoever computes it.
#[must_use]
pub fn version(mut hashes: Vec<ServiceHash>) -> CatalogueVersion {
    hashes.sort_unstable();
    let mut hash = Sha256::new();
    // It can be no version of the first protocol's: that one begins with a length below 2^63.
    hash.update(u64::MAX.to_be_bytes());
    hash.update(hashes.as_flattened());
    hash.finalize().into()
}

/// The version of a whole catalogue.
#[must_use]
pub fn version_of(services: &Offers) -> CatalogueVersion {
    version(services.values().map(|service| hash(service)).collect())
}

/// The version in the first protocol, over services as they were sent: what cannot be decoded counts too.
fn first_version(mut encoded: Vec<Vec<u8>>) -> CatalogueVersion {
    encoded.sort_unstable();
    let mut hash = Sha256::new();
    for service in &encoded {
        hash.update((service.len() as u64).to_be_bytes());
        hash.update(service);
    }
    hash.finalize().into()
}

/// The bytes of one service. One that no peer would take for its size stands there by its name alone, which the peer
/// refuses as malformed, and says so.
pub(super) fn encode(service: &RemoteService) -> Vec<u8> {
    let mut message = service_to_proto(service);
    if message.encoded_len() > MAX_SERVICE_BYTES {
        message = proto::Service { name: message.name, namespace: message.namespace, ..Default::default() };
    }
    message.encode_to_vec()
}

/// How much of [`MAX_BYTES`] a service takes.
#[must_use]
pub fn size(service: &RemoteService) -> usize {
    encode(service).len()
}

/// The bytes of a service of which nothing but the name is told.
pub(super) fn encode_held(name: &ServiceName) -> Vec<u8> {
    let (name, namespace) = (name.name().to_owned(), name.namespace().to_owned());
    proto::Service { name, namespace, held: true, ..Default::default() }.encode_to_vec()
}

/// The bytes of what a catalogue says of one name.
pub(super) fn encode_of(catalogue: &Catalogue, name: &ServiceName) -> Vec<u8> {
    catalogue.services.get(name).map_or_else(|| encode_held(name), |service| encode(service))
}

/// Hands out a catalogue frame by frame, so that it is never in memory twice.
#[derive(Debug)]
pub(super) struct Frames {
    catalogue: Arc<Catalogue>,
    /// Under which it is sent.
    version: CatalogueVersion,
    after: Option<ServiceName>,
    /// Those that come after the services.
    held: VecDeque<ServiceName>,
}

impl Frames {
    /// To a peer that speaks the `first` protocol, it goes under the version that this one has of it.
    pub(super) fn new(catalogue: Arc<Catalogue>, first: bool) -> Self {
        let names = || catalogue.services.keys().chain(&catalogue.held);
        let encoded = || names().map(|name| encode_of(&catalogue, name)).collect();
        let version = if first { first_version(encoded()) } else { catalogue.version };
        let held = catalogue.held.iter().cloned().collect();
        Self { catalogue, version, after: None, held }
    }

    pub(super) fn version(&self) -> CatalogueVersion {
        self.version
    }

    pub(super) fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// The next frame; its `more` says whether to call again.
    pub(super) fn next(&mut self) -> proto::CatalogueSnapshot {
        let from = self.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let mut frame =
            proto::CatalogueSnapshot { version: self.version.to_vec(), services: Vec::new(), more: false };
        let mut size = 0;
        for (name, service) in self.catalogue.services.range((from, Bound::Unbounded)) {
            let encoded = encode(service);
            // tag and length
            size += encoded.len() + 8;
            if size > FRAME_BYTES {
                frame.more = true;
                return frame;
            }
            frame.services.push(encoded);
            self.after = Some(name.clone());
        }
        while let Some(name) = self.held.front() {
            let encoded = encode_held(name);
            size += encoded.len() + 8;
            if size > FRAME_BYTES {
                frame.more = true;
                return frame;
            }
            frame.services.push(encoded);
            self.held.pop_front();
        }
        frame
    }
}

/// What of a catalogue breaks the protocol as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    #[error("a catalogue's version is 32 bytes")]
    Version,
    #[error("the catalogue has more than {MAX_SERVICES} services")]
    Services,
    #[error("the catalogue has more than {MAX_BYTES} bytes")]
    Bytes,
    #[error("the catalogue's version is not the hash of its content")]
    Mismatch,
}

/// A whole catalogue from a peer.
#[derive(Debug, PartialEq)]
pub(super) struct Received {
    pub(super) catalogue: Arc<Catalogue>,
    /// What changes can be applied to; nothing, where a name is there twice, or more is malformed than is remembered.
    pub(super) held: Option<Held>,
    /// The answer to what is malformed in it.
    pub(super) refused: Vec<proto::ServiceOutcome>,
}

/// Puts frames together. Frames of another version than the ones before start anew.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    version: Option<CatalogueVersion>,
    encoded: Vec<Vec<u8>>,
    bytes: usize,
}

impl Assembly {
    /// Takes a frame; the catalogue once it is whole.
    pub(super) fn push(
        &mut self,
        frame: proto::CatalogueSnapshot,
    ) -> Result<Option<Received>, CatalogueError> {
        let version: CatalogueVersion =
            frame.version.as_slice().try_into().map_err(|_| CatalogueError::Version)?;
        if self.version != Some(version) {
            *self = Self { version: Some(version), ..Self::default() };
        }
        if self.encoded.len() + frame.services.len() > MAX_SERVICES {
            return Err(CatalogueError::Services);
        }
        self.bytes += frame.services.iter().map(Vec::len).sum::<usize>();
        if self.bytes > MAX_BYTES {
            return Err(CatalogueError::Bytes);
        }
        self.encoded.extend(frame.services);
        if frame.more {
            return Ok(None);
        }
        let whole = std::mem::take(self);
        let hashes: Vec<ServiceHash> =
            whole.encoded.iter().map(|service| Sha256::digest(service).into()).collect();
        let received = decode(version, &whole.encoded, &hashes);
        // Of either form: they cannot be taken for each other.
        if self::version(hashes) != version && first_version(whole.encoded) != version {
            return Err(CatalogueError::Mismatch);
        }
        Ok(Some(received))
    }
}

/// One service that is not well formed: by what it calls itself, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// Its name, where at least that is one: then changes can be about it.
    pub(super) key: Option<ServiceName>,
    namespace: String,
    name: String,
    cause: String,
}

/// What a catalogue says of one name.
pub(super) enum Entry {
    Offered(RemoteService),
    Held(ServiceName),
}

impl Entry {
    pub(super) const fn name(&self) -> &ServiceName {
        match self {
            Self::Offered(service) => &service.name,
            Self::Held(name) => name,
        }
    }

    /// Puts it in place of what was there under its name.
    pub(super) fn put(self, services: &mut Offers, held: &mut BTreeSet<ServiceName>) {
        match self {
            Self::Offered(service) => {
                held.remove(&service.name);
                services.insert(service.name.clone(), Arc::new(service));
            }
            Self::Held(name) => {
                services.remove(&name);
                held.insert(name);
            }
        }
    }
}

fn decode(version: CatalogueVersion, encoded: &[Vec<u8>], hashes: &[ServiceHash]) -> Received {
    let (mut services, mut held) = (Offers::new(), BTreeSet::new());
    let (mut sent, mut bad, mut nameless) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let mut twice = BTreeSet::new();
    for (bytes, hash) in encoded.iter().zip(hashes) {
        let mark = (*hash, bytes.len());
        match decode_service(bytes) {
            Ok(entry) if sent.contains_key(entry.name()) => {
                twice.insert(entry.name().clone());
            }
            Ok(entry) => {
                sent.insert(entry.name().clone(), mark);
                entry.put(&mut services, &mut held);
            }
            Err(one) => match one.key.clone() {
                Some(key) if sent.contains_key(&key) => {
                    twice.insert(key);
                }
                Some(key) => {
                    sent.insert(key.clone(), mark);
                    bad.insert(key, one);
                }
                None => nameless.push((mark, one)),
            },
        }
    }
    // which of the two is meant cannot be known
    for name in &twice {
        services.remove(name);
        held.remove(name);
        let cause = "it is in the catalogue twice".to_owned();
        bad.insert(name.clone(), Malformed::of(name, cause));
    }
    let is_clean = twice.is_empty() && bad.len() + nameless.len() <= MAX_MALFORMED;
    let catalogue = Catalogue { version, services, held, malformed: Vec::new() };
    let whole = Held::new(catalogue, sent, bad, nameless);
    let (catalogue, refused) = (Arc::clone(&whole.catalogue), whole.refused());
    Received { held: is_clean.then_some(whole), catalogue, refused }
}

impl Malformed {
    fn of(name: &ServiceName, cause: String) -> Self {
        let (namespace, own) = (name.namespace().to_owned(), name.name().to_owned());
        Self { key: Some(name.clone()), namespace, name: own, cause }
    }

    /// How a person is told of it.
    pub(super) fn labelled(&self) -> (String, String) {
        (printable(&format!("{}.{}", self.name, self.namespace), 100), self.cause.clone())
    }

    /// How its exporter is.
    pub(super) fn refusal(&self) -> proto::ServiceOutcome {
        proto::ServiceOutcome {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            imported: false,
            reason: MALFORMED.to_owned(),
            message: self.cause.clone(),
        }
    }
}

pub(super) fn decode_service(bytes: &[u8]) -> Result<Entry, Malformed> {
    let nameless =
        |cause: String| Malformed { key: None, namespace: String::new(), name: String::new(), cause };
    if bytes.len() > MAX_SERVICE_BYTES {
        return Err(nameless(format!("it has {} bytes, more than {MAX_SERVICE_BYTES}", bytes.len())));
    }
    let service = proto::Service::decode_bounded(bytes);
    let service = service.map_err(|e| nameless(printable(&e.to_string(), 200)))?;
    let entry = if service.held {
        held_name_from_proto(&service).map(Entry::Held)
    } else {
        service_from_proto(&service).map(Entry::Offered)
    };
    entry.map_err(|error| Malformed {
        key: ServiceName::new(&service.namespace, &service.name).ok(),
        namespace: printable(&service.namespace, 63),
        name: printable(&service.name, 63),
        cause: error.to_string(),
    })
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
pub(in crate::federation) mod tests;

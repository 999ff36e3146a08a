//! What changed of a catalogue: frame by frame, and applied to what is held of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::catalogue::{
    CatalogueError, FRAME_BYTES, MAX_BYTES, MAX_MALFORMED, MAX_SERVICES, Malformed, ServiceHash,
    decode_service, encode_of, version,
};
use crate::model::ServiceName;
use crate::model::session::{Catalogue, CatalogueVersion};
use crate::proto::federation::v1 as proto;

/// Hands out what differs between two catalogues, frame by frame.
#[derive(Debug)]
pub(super) struct Changes {
    from: CatalogueVersion,
    catalogue: Arc<Catalogue>,
    changed: VecDeque<ServiceName>,
    removed: VecDeque<ServiceName>,
}

impl Changes {
    /// From one catalogue to another; `None` where that is half of it or more, and a snapshot is as well.
    pub(super) fn between(from: &Catalogue, to: &Arc<Catalogue>) -> Option<Self> {
        let most = (to.services.len() + to.held.len()) / 2;
        let services = to.services.iter();
        let services = services.filter(|(name, service)| from.services.get(*name) != Some(*service));
        let held = to.held.difference(&from.held);
        let changed: VecDeque<_> = services.map(|(name, _)| name).chain(held).take(most).cloned().collect();
        let is_gone = |name: &&ServiceName| !to.has(name);
        let removed: VecDeque<_> =
            from.services.keys().chain(&from.held).filter(is_gone).take(most).cloned().collect();
        let is_small = changed.len() + removed.len() < most;
        is_small.then(|| Self { from: from.version, catalogue: Arc::clone(to), changed, removed })
    }

    pub(super) fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// The next frame; its `more` says whether to call again.
    pub(super) fn next(&mut self) -> proto::CatalogueDelta {
        let mut frame = proto::CatalogueDelta {
            from: self.from.to_vec(),
            version: self.catalogue.version.to_vec(),
            ..proto::CatalogueDelta::default()
        };
        let mut size = 0;
        while let Some(name) = self.removed.front() {
            size += name.name().len() + name.namespace().len() + 12;
            if size > FRAME_BYTES {
                frame.more = true;
                return frame;
            }
            frame.removed.push(proto::RemovedService {
                name: name.name().to_owned(),
                namespace: name.namespace().to_owned(),
            });
            self.removed.pop_front();
        }
        while let Some(name) = self.changed.front() {
            let encoded = encode_of(&self.catalogue, name);
            size += encoded.len() + 8;
            if size > FRAME_BYTES && !(frame.services.is_empty() && frame.removed.is_empty()) {
                frame.more = true;
                return frame;
            }
            frame.services.push(encoded);
            self.changed.pop_front();
        }
        frame
    }
}

/// The changes of a peer, whole.
#[derive(Debug, Default)]
pub(super) struct Delta {
    from: CatalogueVersion,
    version: CatalogueVersion,
    services: Vec<Vec<u8>>,
    removed: Vec<proto::RemovedService>,
    bytes: usize,
}

/// Puts frames of changes together. Frames of another version than the ones before start anew.
#[derive(Debug, Default)]
pub(super) struct DeltaAssembly(Option<Delta>);

impl DeltaAssembly {
    /// Takes a frame; the changes once they are whole.
    pub(super) fn push(&mut self, frame: proto::CatalogueDelta) -> Result<Option<Delta>, CatalogueError> {
        let parse = |bytes: &[u8]| CatalogueVersion::try_from(bytes).map_err(|_| CatalogueError::Version);
        let (from, version) = (parse(&frame.from)?, parse(&frame.version)?);
        let mut delta = match self.0.take() {
            Some(delta) if (delta.from, delta.version) == (from, version) => delta,
            _ => Delta { from, version, ..Delta::default() },
        };
        if delta.services.len() + frame.services.len() > MAX_SERVICES
            || delta.removed.len() + frame.removed.len() > MAX_SERVICES
        {
            return Err(CatalogueError::Services);
        }
        let names = frame.removed.iter().map(|gone| gone.name.len() + gone.namespace.len());
        delta.bytes += frame.services.iter().map(Vec::len).chain(names).sum::<usize>();
        if delta.bytes > MAX_BYTES {
            return Err(CatalogueError::Bytes);
        }
        delta.services.extend(frame.services);
        delta.removed.extend(frame.removed);
        if frame.more {
            self.0 = Some(delta);
            return Ok(None);
        }
        Ok(Some(delta))
    }
}

/// Changes that are whole and not followed yet, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Pending {
    deltas: Vec<Delta>,
    bytes: usize,
    entries: usize,
}

impl Pending {
    pub(super) fn push(&mut self, delta: Delta) {
        self.bytes += delta.bytes;
        self.entries += 1 + delta.services.len() + delta.removed.len();
        self.deltas.push(delta);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.deltas.is_empty()
    }

    /// Whether they are as much as a whole catalogue may be.
    pub(super) const fn is_full(&self) -> bool {
        self.bytes >= MAX_BYTES || self.entries >= MAX_SERVICES
    }

    pub(super) fn deltas(&self) -> &[Delta] {
        &self.deltas
    }
}

/// A catalogue as it was received.
#[derive(Debug, PartialEq)]
pub(super) struct Held {
    pub(super) catalogue: Arc<Catalogue>,
    /// The hash and the size of each service as it was sent, whether or not it is well formed.
    pub(super) sent: BTreeMap<ServiceName, Mark>,
    /// Those that are not.
    bad: BTreeMap<ServiceName, Malformed>,
    /// Such as have not even a name. No change can be about them.
    nameless: Vec<(Mark, Malformed)>,
}

/// The hash and the size of a service as it was sent.
type Mark = (ServiceHash, usize);

impl Held {
    /// What was received; what is malformed in it is noted in the catalogue, as far as is remembered of that.
    pub(super) fn new(
        mut catalogue: Catalogue,
        sent: BTreeMap<ServiceName, Mark>,
        bad: BTreeMap<ServiceName, Malformed>,
        nameless: Vec<(Mark, Malformed)>,
    ) -> Self {
        let malformed = bad.values().chain(nameless.iter().map(|(_, one)| one)).take(MAX_MALFORMED);
        catalogue.malformed = malformed.map(Malformed::labelled).collect();
        catalogue.malformed.sort_unstable();
        Self { catalogue: Arc::new(catalogue), sent, bad, nameless }
    }

    /// The answer to what is malformed.
    pub(super) fn refused(&self) -> Vec<proto::ServiceOutcome> {
        let malformed = self.bad.values().chain(self.nameless.iter().map(|(_, one)| one));
        malformed.take(MAX_MALFORMED).map(Malformed::refusal).collect()
    }

    /// The catalogue with these changes, one after the other; `None` where they do not lead from this one to what the last of them
    /// says, or to nothing that could be held so: then the whole has to be asked for.
    pub(super) fn with<'d>(&self, deltas: impl IntoIterator<Item = &'d Delta>) -> Option<Self> {
        let catalogue = Catalogue::clone(&self.catalogue);
        let mut draft = Draft { catalogue, sent: self.sent.clone(), bad: self.bad.clone() };
        for delta in deltas {
            draft.follow(delta)?;
        }
        let Draft { catalogue, sent, bad } = draft;
        let marks = || sent.values().chain(self.nameless.iter().map(|(mark, _)| mark));
        let bytes: usize = marks().map(|(_, size)| size).sum();
        let is_right = version(marks().map(|(hash, _)| *hash).collect()) == catalogue.version;
        if !is_right
            || sent.len() + self.nameless.len() > MAX_SERVICES
            || bad.len() + self.nameless.len() > MAX_MALFORMED
            || bytes > MAX_BYTES
        {
            return None;
        }
        Some(Self::new(catalogue, sent, bad, self.nameless.clone()))
    }
}

/// A catalogue on its way to another, whose content is not yet held against its version.
struct Draft {
    catalogue: Catalogue,
    sent: BTreeMap<ServiceName, Mark>,
    bad: BTreeMap<ServiceName, Malformed>,
}

impl Draft {
    /// `None` where the changes are not of this one.
    fn follow(&mut self, delta: &Delta) -> Option<()> {
        let Self { catalogue: Catalogue { version, services, held, .. }, sent, bad } = self;
        if delta.from != *version {
            return None;
        }
        *version = delta.version;
        for gone in &delta.removed {
            let name = ServiceName::new(&gone.namespace, &gone.name).ok()?;
            services.remove(&name);
            held.remove(&name);
            bad.remove(&name);
            sent.remove(&name)?;
        }
        let mut seen = BTreeSet::new();
        for encoded in &delta.services {
            let entry = decode_service(encoded);
            let name = match &entry {
                Ok(entry) => entry.name().clone(),
                Err(one) => one.key.clone()?,
            };
            if !seen.insert(name.clone()) {
                return None;
            }
            sent.insert(name.clone(), (Sha256::digest(encoded).into(), encoded.len()));
            match entry {
                Ok(entry) => {
                    bad.remove(&name);
                    entry.put(services, held);
                }
                Err(one) => {
                    services.remove(&name);
                    held.remove(&name);
                    bad.insert(name, one);
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;

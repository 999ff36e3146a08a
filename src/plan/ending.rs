//! The end of a relationship, in the order in which nobody loses an SVID: goodbye, `federatesWith`, relationship, a
//! drain, the bundle, the imports; a finalizer holds the TrustDomainPeer meanwhile.

use jiff::Timestamp;

use super::registrations;
use crate::model::object::Kind;
use crate::model::{ObjectKey, Peer, World};

/// The finalizer on a TrustDomainPeer.
pub const FINALIZER: &str = "entente.dev/relationship";

/// What the end of a relationship waits for, in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The goodbye has not been flushed.
    Goodbye,
    /// SPIRE's server API cannot be read, for this reason.
    Spire(String),
    /// Workloads' registrations still name it.
    Registrations(Vec<String>),
    /// The agent's own registration still names it.
    OwnRegistration,
    /// The relationship is still there: by its object, or in SPIRE.
    Relationship(String),
    /// Registration entries still federate; these we did not make, and do not edit.
    Entries(Vec<String>),
    /// SPIRE's agents are given time to follow.
    Drain(Timestamp),
    /// The bundle is still in SPIRE.
    Bundle,
    /// Imports and what was generated are still there.
    Generated(usize),
    Done,
}

/// Whether the finalizer stands: nothing is begun for a peer that could go without an ending.
#[must_use]
pub fn is_held(peer: &Peer) -> bool {
    peer.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
}

/// Where the end of this relationship stands. `None` unless its deletion was asked for.
#[must_use]
pub fn stage(world: &World, peer: &Peer) -> Option<Stage> {
    peer.deletion?;
    let trust_domain = &peer.trust_domain;
    if world.sessions.get(trust_domain).is_none_or(|session| !session.parted) {
        return Some(Stage::Goodbye);
    }
    let Some(spire) = &world.spire else {
        return Some(Stage::Spire("it was not read yet".to_owned()));
    };
    if let Some(failure) = &spire.failure {
        return Some(Stage::Spire(failure.clone()));
    }
    let ours = registrations::added_for(world, trust_domain);
    if !ours.workloads.is_empty() {
        return Some(Stage::Registrations(ours.workloads));
    }
    if ours.agent {
        return Some(Stage::OwnRegistration);
    }
    if let Some(object) = relationship_object(world, peer) {
        return Some(Stage::Relationship(object.to_string()));
    }
    if super::relationship::foreign(world, peer).is_some() {
        // Someone else's relationship goes on, and its bundle with it.
        return Some(generated_or_done(world, peer));
    }
    if spire.relationships.contains_key(trust_domain) {
        return Some(Stage::Relationship(format!("SPIRE's relationship with {trust_domain}")));
    }
    let entries: Vec<String> = spire.federating_with(trust_domain).map(|e| e.spiffe_id.to_string()).collect();
    if !entries.is_empty() {
        return Some(Stage::Entries(entries));
    }
    let drained_since = world.memory.get(trust_domain).and_then(|m| m.drained_since);
    let until = drained_since.unwrap_or(world.now).saturating_add(world.settings.drain);
    match until {
        Ok(until) if world.now < until => return Some(Stage::Drain(until)),
        _ => {}
    }
    if spire.bundles.contains_key(trust_domain) {
        return Some(Stage::Bundle);
    }
    Some(generated_or_done(world, peer))
}

fn generated_or_done(world: &World, peer: &Peer) -> Stage {
    match generated_for(world, peer) {
        0 => Stage::Done,
        generated => Stage::Generated(generated),
    }
}

/// Our own relationship object.
fn relationship_object<'a>(world: &'a World, peer: &Peer) -> Option<&'a ObjectKey> {
    let key = super::relationship::key(&peer.trust_domain);
    world
        .objects
        .get_key_value(&key)
        .filter(|(_, object)| object.is_generated_by(&world.settings.instance))
        .map(|(key, _)| key)
}

fn generated_for(world: &World, peer: &Peer) -> usize {
    let label = super::generated::label_value(peer.trust_domain.as_str());
    let of_peer = |object: &&std::sync::Arc<crate::model::Object>| {
        object.is_generated_by(&world.settings.instance)
            && object.meta.labels.get(crate::model::object::LABEL_PEER) == Some(&label)
    };
    world.of_kind(Kind::ImportedService).map(|(_, object)| object).filter(of_peer).count()
}

impl Stage {
    /// Whether the relationship itself is to go.
    #[must_use]
    pub fn drops_relationship(&self) -> bool {
        *self >= Self::Relationship(String::new())
    }

    /// Whether what was imported is to go.
    #[must_use]
    pub fn drops_imports(&self) -> bool {
        *self >= Self::Generated(0)
    }

    /// What the end waits for, for the operator.
    #[must_use]
    pub fn waits_for(&self, peer: &Peer) -> String {
        let trust_domain = &peer.trust_domain;
        match self {
            Self::Goodbye => format!("for the goodbye to reach the agent of {trust_domain}"),
            Self::Spire(failure) => format!("for SPIRE's server API to answer: {failure}"),
            Self::Registrations(names) => {
                format!("for federatesWith {trust_domain} to be taken out of {}", names.join(", "))
            }
            Self::OwnRegistration => {
                format!("for federatesWith {trust_domain} to be taken out of the agent's own registration")
            }
            Self::Relationship(what) => format!("for {what} to be deleted"),
            Self::Entries(ids) => format!(
                "for registration entries that still federate with {trust_domain}: {}; where the agent did not add \
                 that, or they are not selected any more, it does not take it away: remove {trust_domain} from their \
                 federatesWith, or select them in spec.federatesWith",
                ids.join(", ")
            ),
            Self::Drain(until) => format!("until {until}, for SPIRE's agents to follow"),
            Self::Bundle => format!("for SPIRE to delete the bundle of {trust_domain}"),
            Self::Generated(count) => format!("for {count} generated objects to be deleted"),
            Self::Done => "for nothing".to_owned(),
        }
    }
}

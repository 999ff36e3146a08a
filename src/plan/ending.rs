//! The end of a relationship, in the order in which nobody loses an SVID: goodbye, `federatesWith`, relationship, a
//! drain, the bundle, the imports; a finalizer holds the TrustDomainPeer meanwhile.
//!
//! In an emergency ([`ANNOTATION_END`](crate::model::peer::ANNOTATION_END)) trust goes first and at once: `federatesWith`
//! of all that is selected and of the agent itself, the relationship, imports and the clients of policies in one go, then
//! the bundle out of whatever still names it; the goodbye is said beside. Registrations that refuse the change hold back
//! none of it.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::registrations;
use crate::model::object::Kind;
use crate::model::service::ClientPattern;
use crate::model::world::Relationships;
use crate::model::{ObjectKey, Peer, TrustDomain, World};

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
    /// Registration entries still federate.
    Entries(Federating),
    /// SPIRE's agents are given time to follow.
    Drain(Timestamp),
    /// The bundle is still in SPIRE.
    Bundle,
    /// Imports and what was generated are still there.
    Generated(usize),
    Done,
}

/// How long spire-controller-manager is given to take a trust domain out of SPIRE's entries. It looks every 10 s by itself.
const FOLLOWS: Duration = Duration::from_secs(60);
/// The most names in one message.
const NAMES: usize = 10;

/// The entries that federate still.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Federating {
    pub spiffe_ids: Vec<String>,
    /// Registrations that name the peer, and that the agent does not edit.
    pub held_by: Vec<String>,
    /// Set where no registration names it, and the entries should have followed by now.
    pub is_overdue: bool,
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
    Some(if peer.ending.at_once { at_once(world, peer) } else { in_order(world, peer) })
}

/// Whether the end was asked for as an emergency.
#[must_use]
pub fn is_at_once(peer: &Peer) -> bool {
    peer.deletion.is_some() && peer.ending.at_once
}

fn in_order(world: &World, peer: &Peer) -> Stage {
    let trust_domain = &peer.trust_domain;
    if world.sessions.get(trust_domain).is_none_or(|session| !session.parted) {
        return Stage::Goodbye;
    }
    let Some(spire) = &world.spire else {
        return Stage::Spire("it was not read yet".to_owned());
    };
    if let Some(failure) = spire.why_unlisted() {
        return Stage::Spire(failure.clone());
    }
    let ours = registrations::added_for(world, trust_domain);
    if !ours.workloads.is_empty() {
        return Stage::Registrations(ours.workloads);
    }
    if ours.own.is_some() {
        return Stage::OwnRegistration;
    }
    if let Some(object) = relationship_object(world, peer) {
        return Stage::Relationship(object.to_string());
    }
    if super::relationship::foreign(world, peer).is_some() {
        // Someone else's relationship goes on, and its bundle with it.
        return generated_or_done(world, peer);
    }
    if spire.relationships.contains_key(trust_domain) {
        return Stage::Relationship(format!("SPIRE's relationship with {trust_domain}"));
    }
    let ids: Vec<String> = spire.federating_with(trust_domain).map(|e| e.spiffe_id.to_string()).collect();
    if !ids.is_empty() {
        let held_by = registrations::not_ours(world, peer);
        let is_overdue = overdue_at(world, peer).is_some_and(|at| at <= world.now);
        return Stage::Entries(Federating { spiffe_ids: ids, held_by, is_overdue });
    }
    let drained_since = world.memory.get(trust_domain).and_then(|m| m.drained_since);
    let until = drained_since.unwrap_or(world.now).saturating_add(world.settings.drain);
    match until {
        Ok(until) if world.now < until => return Stage::Drain(until),
        _ => {}
    }
    if spire.bundles.contains_key(trust_domain) {
        return Stage::Bundle;
    }
    generated_or_done(world, peer)
}

fn overdue_at(world: &World, peer: &Peer) -> Option<Timestamp> {
    let since = world.memory.get(&peer.trust_domain).and_then(|memory| memory.lingering_since)?;
    since.saturating_add(FOLLOWS).ok()
}

/// When the end goes on, or something else is to be said of it, by time alone.
#[must_use]
pub fn wake_at(world: &World, peer: &Peer) -> Option<Timestamp> {
    match stage(world, peer)? {
        Stage::Drain(until) => Some(until),
        Stage::Entries(_) => overdue_at(world, peer),
        _ => None,
    }
}

/// Nothing is waited for that trust need not wait for: registrations are changed beside, and waited for last. Whoever
/// refuses a change of one, by a webhook or by rights, would else keep the trust alive.
fn at_once(world: &World, peer: &Peer) -> Stage {
    let trust_domain = &peer.trust_domain;
    if let Some(object) = relationship_object(world, peer) {
        return Stage::Relationship(object.to_string());
    }
    let Some(spire) = &world.spire else {
        return Stage::Spire("it was not read yet".to_owned());
    };
    if let Some(failure) = &spire.failure {
        return Stage::Spire(failure.clone());
    }
    // Someone else's relationship goes on, and its bundle with it.
    if super::relationship::foreign(world, peer).is_none() {
        if spire.relationships.contains_key(trust_domain) {
            return Stage::Relationship(format!("SPIRE's relationship with {trust_domain}"));
        }
        if spire.bundles.contains_key(trust_domain) {
            return Stage::Bundle;
        }
    }
    if world.sessions.get(trust_domain).is_none_or(|session| !session.parted) {
        return Stage::Goodbye;
    }
    let revocable = registrations::revocable(world, peer);
    match generated_or_done(world, peer) {
        Stage::Done if !revocable.is_empty() => Stage::Registrations(revocable),
        stage => stage,
    }
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

/// Whether the relationship itself is to go.
#[must_use]
pub fn drops_relationship(world: &World, peer: &Peer) -> bool {
    is_at_once(peer) || stage(world, peer).is_some_and(|stage| stage >= Stage::Relationship(String::new()))
}

/// Whether what was imported is to go, and the peer's clients out of the policies. That changes the listeners of the
/// workloads, which closes the connections that still run: it comes after trust, so that they do not come back. In an
/// emergency the policies themselves keep them out.
#[must_use]
pub fn drops_services(world: &World, peer: &Peer) -> bool {
    is_at_once(peer)
        || stage(world, peer).is_some_and(|stage| stage >= Stage::Generated(0))
        || has_passed_bundle(world, peer)
}

/// Whether nothing here speaks for the trust any more, though after a restart the goodbye is said again, or SPIRE cannot be
/// read just now: who was shut out is not let in again by that.
fn has_passed_bundle(world: &World, peer: &Peer) -> bool {
    let trust_domain = &peer.trust_domain;
    let ours = registrations::added_for(world, trust_domain);
    let goes_on = peer.deletion.is_none() || !world.is_read() || relationship_object(world, peer).is_some();
    if goes_on || !ours.workloads.is_empty() || ours.own.is_some() {
        return false;
    }
    let by_objects = world.settings.relationships == Relationships::ControllerManager;
    // What was read last, where SPIRE cannot be read now. The agent's own entry is in whatever was ever read.
    let read =
        world.spire.as_ref().filter(|spire| spire.why_unlisted().is_none() || !spire.entries.is_empty());
    let Some(spire) = read.or(world.spire.as_ref().filter(|_| by_objects)) else {
        return by_objects && !world.registrations.values().any(|r| r.names(trust_domain));
    };
    super::relationship::foreign(world, peer).is_some()
        || !(spire.relationships.contains_key(trust_domain)
            || spire.bundles.contains_key(trust_domain)
            || spire.federating_with(trust_domain).next().is_some())
}

/// What an end changes, and what it may break: for who is about to ask for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Impact {
    /// Registrations out of which the agent takes the trust domain.
    pub stripped: Vec<String>,
    /// Registrations that name it and that the agent does not edit. They hold back the deletion of the bundle; in an
    /// emergency they do not, and SPIRE then refuses changes to their entries, and new entries of theirs.
    pub not_ours: Vec<String>,
    /// An object of someone else's that describes the relationship too: then bundle and relationship stay.
    pub foreign: Option<String>,
    /// Hosts that workloads here cannot call any more.
    pub imports: Vec<String>,
    /// FederatedServices whose clients in that trust domain are shut out, and rules by which they are.
    pub exports: Vec<String>,
}

/// What the end of this relationship means.
#[must_use]
pub fn impact(world: &World, peer: &Peer) -> Impact {
    let trust_domain = &peer.trust_domain;
    let added = || {
        let added = registrations::added_for(world, trust_domain);
        added.workloads.into_iter().chain(added.own).collect()
    };
    let stripped = if peer.ending.at_once { registrations::revocable(world, peer) } else { added() };
    let imported = world.imported.values().filter(|imported| imported.trust_domain == *trust_domain);
    // As declared: what it comes to in the cluster is not known to everyone who asks.
    let is_for = |to: &BTreeSet<TrustDomain>, clients: &BTreeSet<ClientPattern>| {
        to.contains(trust_domain) || clients.iter().any(|client| client.trust_domain() == trust_domain)
    };
    let declared = world.declared.values().filter(|one| is_for(&one.exported_to, &one.clients));
    let rules = world.rules.values().filter(|rule| is_for(&rule.exported_to, &rule.clients));
    let by_rule = rules.map(|rule| format!("what ServiceExportRule {} selects", rule.name));
    Impact {
        stripped,
        not_ours: registrations::not_ours(world, peer),
        foreign: super::relationship::foreign(world, peer).map(ToString::to_string),
        imports: imported.filter_map(|imported| imported.service.name.host(trust_domain).ok()).collect(),
        exports: declared.map(|service| service.object.to_string()).chain(by_rule).collect(),
    }
}

/// What the condition says while it ends.
#[must_use]
pub fn message(world: &World, peer: &Peer, stage: &Stage) -> String {
    let waits = stage.waits_for(peer);
    if !peer.ending.at_once {
        return format!("ending; waits {waits}");
    }
    let trust_domain = &peer.trust_domain;
    let left = registrations::revocable(world, peer);
    let beside = if left.is_empty() || matches!(stage, Stage::Registrations(_)) {
        String::new()
    } else {
        format!("; beside it, federatesWith {trust_domain} is taken out of {}", listed(&left, NAMES))
    };
    let names = registrations::not_ours(world, peer);
    let broken = if names.is_empty() {
        String::new()
    } else {
        format!(
            "; {} name {trust_domain} and are not selected in spec.federatesWith, or someone puts it back there each \
             time: SPIRE refuses changes to their \
             entries, and their new workloads get no SVID, until {trust_domain} is taken out of their federatesWith",
            listed(&names, NAMES)
        )
    };
    let foreign = super::relationship::foreign(world, peer).map_or_else(String::new, |other| {
        format!(
            "; {other} describes {trust_domain} too and is not ours: SPIRE trusts it until that is deleted"
        )
    });
    format!("ending at once, trust first; waits {waits}{beside}{broken}{foreign}")
}

impl Stage {
    /// Whether somebody else has to act before it goes on.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        matches!(self, Self::Entries(entries) if !entries.held_by.is_empty() || entries.is_overdue)
    }

    /// What the end waits for, for the operator.
    #[must_use]
    pub fn waits_for(&self, peer: &Peer) -> String {
        let trust_domain = &peer.trust_domain;
        match self {
            Self::Goodbye => format!("for the goodbye to reach the agent of {trust_domain}"),
            Self::Spire(failure) => format!("for SPIRE's server API to answer: {failure}"),
            Self::Registrations(names) => {
                format!("for federatesWith {trust_domain} to be taken out of {}", listed(names, NAMES))
            }
            Self::OwnRegistration => {
                format!("for federatesWith {trust_domain} to be taken out of the agent's own registration")
            }
            Self::Relationship(what) => format!("for {what} to be deleted"),
            Self::Entries(entries) => entries.waits_for(trust_domain),
            Self::Drain(until) => format!("until {until}, for SPIRE's agents to follow"),
            Self::Bundle => format!("for SPIRE to delete the bundle of {trust_domain}"),
            Self::Generated(count) => format!("for {count} generated objects to be deleted"),
            Self::Done => "for nothing".to_owned(),
        }
    }
}

impl Federating {
    fn waits_for(&self, trust_domain: &TrustDomain) -> String {
        let entries = listed(&self.spiffe_ids, NAMES);
        if !self.held_by.is_empty() {
            return format!(
                "for {}, in which someone else put federatesWith {trust_domain}: the agent does not take it away, and \
                 SPIRE keeps the bundle meanwhile: remove {trust_domain} there (registration entries: {entries})",
                listed(&self.held_by, NAMES)
            );
        }
        if self.is_overdue {
            return format!(
                "for registration entries that federate with {trust_domain} though no registration names it: {entries}; \
                 they were made by hand in SPIRE (`spire-server entry update` takes it away), or \
                 spire-controller-manager does not follow: see its log"
            );
        }
        format!("for registration entries that still federate with {trust_domain}: {entries}")
    }
}

/// Names for a message: the first `most` of them.
#[must_use]
pub fn listed(names: &[String], most: usize) -> String {
    let shown: Vec<&str> = names.iter().take(most).map(String::as_str).collect();
    let more = names.len().saturating_sub(shown.len());
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use crate::model::NamespacedName;
    use crate::plan::exports::resolve::testing::{Cluster as _, declared, rule};
    use crate::plan::fixtures::{WorldExt as _, peer, td, world};

    use super::*;

    /// Who only reads the store, as the command does, knows neither our trust domain nor what declarations come to.
    #[test]
    fn the_end_names_what_is_declared_for_the_peer() {
        let mut other = declared();
        other.object = NamespacedName::new("shop", "other");
        other.exported_to = [td("north.example")].into();
        other.clients.clear();
        let mut world = world("west.example").with_peer(peer("east.example"));
        world.identity = None;
        let world = world.with_declared(declared()).with_declared(other).with_rule(rule("shops", 0));
        let named = impact(&world, &peer("east.example")).exports;
        assert_eq!(named, ["shop/cart", "what ServiceExportRule shops selects"]);
    }
}

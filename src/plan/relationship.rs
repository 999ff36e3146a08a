//! The federation relationship with a peer: its ClusterFederatedTrustDomain, kept at the freshest verified bundle,
//! and what SPIRE's server API is asked to do.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::ending;
use super::generated;
use super::memo::Kept;
use super::{poison, registrations};
use crate::bundle::document;
use crate::model::endpoint::{EndpointProfile, EndpointState};
use crate::model::object::{Kind, ObjectKey};
use crate::model::peer::Bootstrap;
use crate::model::registration::ANNOTATION_RECORD;
use crate::model::trust::{BundleRemoval, Refresh, Relationship, SpireAction};
use crate::model::world::Relationships;
use crate::model::{Bundle, Object, Peer, TrustDomain, World};

/// On a ClusterFederatedTrustDomain: the digest of the bootstrap bundle from which its bundle descends. Another one
/// in the TrustDomainPeer starts over from that.
pub const ANNOTATION_BOOTSTRAP: &str = "entente.dev/bootstrap";

/// The object of the relationship with a trust domain.
#[must_use]
pub fn key(trust_domain: &TrustDomain) -> ObjectKey {
    ObjectKey::cluster(Kind::ClusterFederatedTrustDomain, generated::object_name(trust_domain.as_str()))
}

/// An object of someone else's that describes the same trust domain: spire-controller-manager obeys the older of two.
#[must_use]
pub fn foreign<'a>(world: &'a World, peer: &Peer) -> Option<&'a ObjectKey> {
    let own = key(&peer.trust_domain);
    let names = |object: &Object| {
        let named = object.spec().and_then(|spec| spec.get("trustDomain"));
        named.and_then(|value| value.as_str()) == Some(peer.trust_domain.as_str())
    };
    // One of another class is another controller's, of another SPIRE.
    let class = |object: &Object| {
        let class = object.spec().and_then(|spec| spec.get("className")).and_then(|value| value.as_str());
        class.is_none_or(|class| class.is_empty() || class == world.settings.spire_class_name)
    };
    // Ours, where it is the older one, is obeyed.
    let ours = world.objects.get(&own).filter(|ours| ours.is_generated_by(&world.settings.instance));
    let is_younger = |object: &Object| ours.is_some_and(|ours| ours.meta.created < object.meta.created);
    world
        .of_kind(Kind::ClusterFederatedTrustDomain)
        .filter(|(key, _)| **key != own)
        .find(|(_, object)| {
            let others = !object.is_generated_by(&world.settings.instance);
            others && names(object) && class(object) && !is_younger(object)
        })
        .map(|(key, _)| key)
}

/// Why SPIRE has no relationship with the peer, as far as can be seen from here, and what to look at.
#[must_use]
pub fn why_there_is_none(world: &World, peer: &Peer) -> String {
    let key = key(&peer.trust_domain);
    if world.settings.relationships == Relationships::ServerApi {
        return "the agent makes it through SPIRE's server API; see its log".to_owned();
    }
    if world.objects.contains_key(&key) {
        return format!(
            "spire-controller-manager has not made it from {key}; see whether it runs, its log, and the class name \
             that it watches"
        );
    }
    match world.failures.get(&key) {
        Some(failure) => format!("{key} is not there, and cannot be written: {failure}"),
        None => format!("{key} is not there; the agent writes it"),
    }
}

/// The bootstrap bundle, where it is given and could be read.
#[must_use]
pub fn bootstrap(world: &World, peer: &Peer) -> Option<Arc<Bundle>> {
    match &peer.bootstrap {
        None => None,
        Some(Bootstrap::Inline(bundle)) => Some(Arc::clone(bundle)),
        Some(Bootstrap::ConfigMapKey { .. } | Bootstrap::SecretKey { .. }) => {
            world.bootstraps.get(&peer.trust_domain)?.as_ref().ok().cloned()
        }
    }
}

/// The verified bundle that an earlier life of the agent, or this one, kept in the relationship's object. It descends
/// from the bootstrap bundle that stands in the TrustDomainPeer now, or it is not used. One that was taken away once it had
/// served is no other one.
#[must_use]
pub fn persisted(world: &World, peer: &Peer) -> Option<Arc<Bundle>> {
    read_persisted(&peer.trust_domain, persisted_in(world, peer)?)
}

/// The relationship's object, where the bundle in it may be used.
pub(super) fn persisted_in<'a>(world: &'a World, peer: &Peer) -> Option<&'a Arc<Object>> {
    let object = world.objects.get(&key(&peer.trust_domain))?;
    if !object.is_generated_by(&world.settings.instance) {
        return None;
    }
    let descends_from = object.meta.annotations.get(ANNOTATION_BOOTSTRAP).map(String::as_str);
    (descends_from.unwrap_or_default() == bootstrap_digest(world, peer)).then_some(object)
}

/// The bundle in a relationship's object.
pub(super) fn read_persisted(trust_domain: &TrustDomain, object: &Object) -> Option<Arc<Bundle>> {
    let text = object.spec()?.get("trustDomainBundle")?.as_str()?;
    document::parse(trust_domain, text.as_bytes()).ok().map(|parsed| Arc::new(parsed.bundle))
}

/// Whether the bootstrap bundle is named in another object, and is not known: not read yet, or not there. Nothing is
/// begun then, and what was begun stays.
#[must_use]
pub fn awaits_bootstrap(world: &World, peer: &Peer) -> bool {
    peer.bootstrap.is_some() && bootstrap(world, peer).is_none()
}

/// The digest of the bootstrap bundle; where none is given any more, or it is not known, of the one that stands written.
fn bootstrap_digest(world: &World, peer: &Peer) -> String {
    let written =
        || world.objects.get(&key(&peer.trust_domain))?.meta.annotations.get(ANNOTATION_BOOTSTRAP).cloned();
    let given = bootstrap(world, peer).map(|bundle| bundle.digest().to_string());
    given.or_else(written).unwrap_or_default()
}

/// The freshest bundle of the peer that was verified by the rules of its own endpoint, and can verify an SVID.
#[must_use]
pub fn freshest(world: &World, peer: &Peer) -> Option<Arc<Bundle>> {
    let given = bootstrap(world, peer);
    // What was fetched under a bootstrap bundle that the operator has replaced is not the peer's any more.
    let descends = |state: &&EndpointState| {
        given.as_ref().is_none_or(|given| state.descends_from == Some(given.digest()))
    };
    let state = world.endpoints.get(&peer.trust_domain).filter(descends);
    let fetched = state.and_then(|state| state.latest_usable.clone());
    let is_usable = |bundle: &Arc<Bundle>| poison::harm(world, peer, bundle).is_none();
    if fetched.as_ref().is_some_and(is_usable) {
        return fetched;
    }
    let kept = persisted(world, peer);
    let usable = [&kept, &given].into_iter().flatten().find(|bundle| is_usable(bundle)).cloned();
    // Where all have expired meanwhile, nothing better is known; another's authority is never taken.
    let known = usable.or(fetched).or(kept).or(given);
    known.filter(|bundle| poison::shared(world, peer, bundle).is_none())
}

/// What SPIRE holds, where its relationship is about to be written anew for another endpoint, with a bundle, and that one is
/// newer than ours: SPIRE goes on fetching where no fetch of ours comes through, or no agent runs. It continues what we
/// verified, by an authority in common or because nothing of ours is valid any more.
#[must_use]
pub fn kept_by_spire(world: &World, peer: &Peer) -> Option<Arc<Bundle>> {
    let trust_domain = &peer.trust_domain;
    let spire = world.spire.as_ref()?;
    spire.relationships.get(trust_domain).filter(|related| related.endpoint != peer.endpoint)?;
    let held = spire.bundles.get(trust_domain).filter(|held| poison::harm(world, peer, held).is_none())?;
    let stored = world.memory.get(trust_domain)?.stored.as_ref();
    let since = stored.filter(|stored| stored.digest == Some(held.digest()))?.since;
    let fetched_at = world.endpoints.get(trust_domain).and_then(|state| state.fetched_at);
    // Where another bootstrap bundle was given, the operator's word is not to be continued by what was there before it; nor
    // once it is written.
    let written = persisted(world, peer).map(|bundle| bundle.digest());
    persisted_in(world, peer)
        .filter(|object| moves(object, peer) || written == Some(held.digest()))
        .filter(|_| fetched_at.is_none_or(|fetched_at| fetched_at < since))?;
    let ours = freshest(world, peer)?;
    held.continues(&ours, world.now).then(|| Arc::clone(held))
}

/// Whether the relationship's object stands, and is to be written for another endpoint though it is not known what SPIRE
/// holds: spire-controller-manager would put the bundle that is written with it over a newer one.
#[must_use]
pub fn moves_blindly(world: &World, peer: &Peer) -> bool {
    world.spire.is_none() && world.objects.get(&key(&peer.trust_domain)).is_some_and(|o| moves(o, peer))
}

/// Whether the endpoint in the relationship's object is not the one that the peer has now.
fn moves(object: &Object, peer: &Peer) -> bool {
    let field = |name: &str| object.spec().and_then(|spec| spec.get(name));
    field("bundleEndpointURL").and_then(Value::as_str) != Some(peer.endpoint.url.as_str())
        || field("bundleEndpointProfile") != Some(&profile(peer))
}

/// What the endpoint serves now, as far as is known, if that is usable: it may be given to SPIRE where that holds none
/// that is, and cannot get one by itself.
#[must_use]
pub fn served(world: &World, peer: &Peer) -> Option<Arc<Bundle>> {
    let state = world.endpoints.get(&peer.trust_domain)?;
    let latest = state.latest.as_ref().filter(|bundle| poison::harm(world, peer, bundle).is_none())?;
    state.failure.is_none().then(|| Arc::clone(latest))
}

/// The moment after which the endpoint has to be asked: before anything is concluded from its difference to SPIRE, and
/// where the peer tells of a bundle that was not seen yet. `None` where it was.
#[must_use]
pub fn to_be_asked_after(world: &World, peer: &Peer) -> Option<Timestamp> {
    let memory = world.memory.get(&peer.trust_domain)?;
    let differs = memory.differs.as_ref().filter(|_| !is_restless(world, peer)).map(|d| d.since);
    let noticed = memory.notice.as_ref().and_then(|notice| notice.asked);
    differs.max(noticed).filter(|after| was_not_asked_after(world, peer, *after))
}

fn was_not_asked_after(world: &World, peer: &Peer, moment: Timestamp) -> bool {
    let asked_at = world.endpoints.get(&peer.trust_domain).and_then(|state| state.asked_at);
    // In the future it was by a clock that was set back since.
    asked_at.is_none_or(|at| at <= moment || at > world.moment)
}

/// Whether what SPIRE and the endpoint hold changed so often that it is left alone for a while.
fn is_restless(world: &World, peer: &Peer) -> bool {
    let quiet_until = world.memory.get(&peer.trust_domain).and_then(|memory| memory.quiet_until);
    quiet_until.is_some_and(|until| world.now < until)
}

/// What the endpoint serves and SPIRE does not hold, though the endpoint was asked after SPIRE was read.
#[must_use]
pub fn ahead_of_spire(world: &World, peer: &Peer) -> Option<Arc<Bundle>> {
    let differs = world.memory.get(&peer.trust_domain)?.differs.as_ref()?;
    let is_early = was_not_asked_after(world, peer, differs.since) || is_restless(world, peer);
    if is_early { None } else { served(world, peer) }
}

/// The texts of bundles, by trust domain.
pub(super) type Texts = Kept<TrustDomain, Arc<Bundle>, Arc<str>>;

/// The relationship's object; `None` until there is something to make it of, and once it is to end.
#[must_use]
pub fn object(world: &World, peer: &Peer) -> Option<Object> {
    object_anew(world, peer, &mut Texts::default())
}

/// As [`object`], with the texts of the bundles of the plan before.
pub(super) fn object_anew(world: &World, peer: &Peer, texts: &mut Texts) -> Option<Object> {
    if peer.deletion.is_some() {
        // An ending that starts over, after a restart say, does not bring back what had gone.
        let gone = !world.objects.contains_key(&key(&peer.trust_domain));
        if gone || ending::drops_relationship(world, peer) {
            return None;
        }
    }
    if awaits_bootstrap(world, peer) && !world.objects.contains_key(&key(&peer.trust_domain)) {
        return None;
    }
    let bundle = freshest(world, peer);
    // SPIRE can fetch the first bundle itself only where the web's authorities verify the endpoint. What stands, stays.
    if bundle.is_none() && !stands(world, peer) && peer.endpoint.profile != EndpointProfile::HttpsWeb {
        return None;
    }
    let mut spec = json!({
        "trustDomain": peer.trust_domain.as_str(),
        "bundleEndpointURL": peer.endpoint.url.as_str(),
        "bundleEndpointProfile": profile(peer),
    });
    if let Some(fields) = spec.as_object_mut() {
        if let Some(bundle) = kept_by_spire(world, peer).or(bundle) {
            let text = texts.get(&peer.trust_domain, &bundle, |bundle| document::write(bundle).into());
            fields.insert("trustDomainBundle".to_owned(), json!(&*text));
        }
        if !world.settings.spire_class_name.is_empty() {
            fields.insert("className".to_owned(), json!(world.settings.spire_class_name));
        }
    }
    let source = ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object);
    let sources = [generated::source_of(&source)];
    let trust_domain = Some(&peer.trust_domain);
    let mut object = generated::object(
        &world.settings,
        key(&peer.trust_domain),
        spec,
        vec![peer.owner()],
        &sources,
        trust_domain,
    );
    object.meta.annotations.insert(ANNOTATION_BOOTSTRAP.to_owned(), bootstrap_digest(world, peer));
    if let Some(kept) = poison::annotation(world, peer) {
        object.meta.annotations.insert(poison::ANNOTATION_POISONED.to_owned(), kept);
    }
    if let Some(added) = registrations::entries_record(world, peer) {
        object.meta.annotations.insert(ANNOTATION_RECORD.to_owned(), added);
    }
    Some(object)
}

fn profile(peer: &Peer) -> Value {
    match &peer.endpoint.profile {
        EndpointProfile::HttpsWeb => json!({ "type": "https_web" }),
        EndpointProfile::HttpsSpiffe { endpoint_id } => {
            json!({ "type": "https_spiffe", "endpointSPIFFEID": endpoint_id.to_string() })
        }
    }
}

/// What SPIRE's server API is asked to do for one peer.
#[must_use]
pub fn actions(world: &World, peer: &Peer) -> Vec<SpireAction> {
    let Some(spire) = world.spire.as_ref().filter(|spire| spire.failure.is_none()) else {
        return Vec::new();
    };
    let trust_domain = &peer.trust_domain;
    let related = spire.relationships.get(trust_domain);
    let mut actions = Vec::new();
    if let Some(stage) = ending::stage(world, peer) {
        // In an emergency spire-controller-manager is not waited for: its object is gone already.
        let ours = world.settings.relationships == Relationships::ServerApi
            || (ending::is_at_once(peer)
                && matches!(stage, ending::Stage::Relationship(_))
                && !stands(world, peer));
        if ours && ending::drops_relationship(world, peer) && related.is_some() {
            actions.push(SpireAction::DeleteRelationship(trust_domain.clone()));
        }
        if stage == ending::Stage::Bundle {
            let at_once = ending::is_at_once(peer);
            let removal = if at_once { BundleRemoval::Dissociate } else { BundleRemoval::Restrict };
            actions.push(SpireAction::DeleteBundle(trust_domain.clone(), removal));
        }
        return actions;
    }
    if peer.suspend || !ending::is_held(peer) {
        return actions;
    }
    if world.settings.relationships == Relationships::ServerApi {
        actions.extend(relationship_action(world, peer, related));
    }
    let stored = spire.bundles.get(trust_domain);
    let behind = ahead_of_spire(world, peer).filter(|_| related.is_some());
    let refused = world.endpoints.get(trust_domain).is_some_and(|state| state.refused_by_spire.is_some());
    actions.extend(behind.map(|served| catch_up(world, stored, served, refused)));
    actions
}

fn stands(world: &World, peer: &Peer) -> bool {
    world.objects.contains_key(&key(&peer.trust_domain))
}

/// SPIRE need not wait for its own next poll. Where it cannot fetch, it is given what we verified: it has nothing usable to
/// verify the endpoint with, or nothing in common with what is served, or its reader refuses the document.
fn catch_up(world: &World, stored: Option<&Arc<Bundle>>, served: Arc<Bundle>, refused: bool) -> SpireAction {
    let usable = stored.filter(|bundle| bundle.is_usable_at(world.now));
    let common =
        usable.is_some_and(|stored| stored.fingerprints().any(|f| served.fingerprints().any(|g| f == g)));
    if common && !refused {
        SpireAction::RefreshBundle(Refresh {
            trust_domain: served.trust_domain().clone(),
            stored: stored.map(|stored| stored.digest()),
            served: served.digest(),
            every: world.settings.poll_interval,
        })
    } else {
        SpireAction::SetBundle(served)
    }
}

fn relationship_action(world: &World, peer: &Peer, related: Option<&Relationship>) -> Option<SpireAction> {
    let wanted = Relationship { trust_domain: peer.trust_domain.clone(), endpoint: peer.endpoint.clone() };
    let bundle = freshest(world, peer);
    match related {
        Some(related) if *related == wanted => None,
        Some(_) => {
            let bundle = bundle.filter(|_| kept_by_spire(world, peer).is_none());
            Some(SpireAction::UpdateRelationship(wanted, bundle))
        }
        None if awaits_bootstrap(world, peer) => None,
        None if bundle.is_none() && peer.endpoint.profile != EndpointProfile::HttpsWeb => None,
        None => Some(SpireAction::CreateRelationship(wanted, bundle)),
    }
}

//! Bundles that would harm: one without a usable X.509 authority makes every local Envoy that federates with the peer
//! refuse its own new SVIDs; one with an authority that is another's lets one trust domain speak for two; one that is too large
//! for SPIRE's agents to receive keeps them from renewing any SVID. They are kept from workloads at once, and let in again
//! only once the peer's endpoint has been good for a while, longer each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::relationship;
use crate::identity::verify::{Role, is_self_signed, moment, verify_svid};
use crate::model::endpoint::Proof;
use crate::model::world::{Disputed, Harm, Owner, PeerMemory, Poisoned};
use crate::model::{Authority, Bundle, Peer, TrustDomain, World};

/// On a ClusterFederatedTrustDomain: how often its bundle harmed, when last, and whether federation is suspended for it
/// now, for the next life of the agent.
pub const ANNOTATION_POISONED: &str = "entente.dev/poisoned";

/// The hold-back doubles with each flap up to this power of two.
const MAX_DOUBLINGS: u32 = 6;
/// How many signatures are checked for one peer: a bundle may have a thousand authorities.
const MOST_CHECKED: usize = 64;
/// Seconds after which a suspension that ended does not lengthen the next one any more: a day.
const FORGIVEN: i64 = 86_400;

/// Why this bundle of the peer must not reach a workload, nor SPIRE from us; `None`: it may.
#[must_use]
pub fn harm(world: &World, peer: &Peer, bundle: &Bundle) -> Option<Harm> {
    let disputed = world.memory.get(&peer.trust_domain).map(|memory| &memory.disputed);
    judge(world, disputed.unwrap_or(&Disputed::new()), bundle)
}

/// An authority of the bundle that is another trust domain's, where there is one.
#[must_use]
pub fn shared(world: &World, peer: &Peer, bundle: &Bundle) -> Option<Harm> {
    shared_of(&world.memory.get(&peer.trust_domain)?.disputed, bundle)
}

fn judge(world: &World, disputed: &Disputed, bundle: &Bundle) -> Option<Harm> {
    if bundle.is_usable_at(world.now) || (!bundle.is_empty() && is_our_clock_wrong(world)) {
        shared_of(disputed, bundle)
    } else {
        Some(Harm::NoUsableAuthority)
    }
}

/// Where not even an authority of our own is valid now, nothing can be said of others' by this clock.
fn is_our_clock_wrong(world: &World) -> bool {
    let own = world.identity.as_ref().map(|identity| &identity.bundle);
    own.is_some_and(|own| !own.is_empty() && !own.is_usable_at(world.now))
}

fn shared_of(disputed: &Disputed, bundle: &Bundle) -> Option<Harm> {
    if disputed.is_empty() {
        return None;
    }
    bundle.authorities().find_map(|authority| {
        let owner = disputed.get(&authority.key())?;
        Some(Harm::SharedAuthority { authority: authority.id().clone(), with: owner.clone() })
    })
}

/// How many good fetches in a row end a suspension.
#[must_use]
pub fn good_fetches_needed(world: &World, memory: &PeerMemory) -> u32 {
    let doublings = memory.flaps.saturating_sub(1).min(MAX_DOUBLINGS);
    world.settings.good_fetches.saturating_mul(1 << doublings)
}

/// The public keys that stand in bundles of several trust domains, for each the trust domains whose it is not, and whose
/// it is: ours before all others'; then that of the trust domain which the self-signed certificate names; of the one whose
/// endpoint proved itself by a chain that ends at the key; of the one of which SPIRE has held it longest; whose kept bundle
/// has it; of the oldest TrustDomainPeer. So nobody throws another out by serving its authority.
#[must_use]
pub fn disputes(world: &World) -> BTreeMap<TrustDomain, Disputed> {
    let mut claims: BTreeMap<[u8; 32], BTreeMap<&TrustDomain, &Arc<Peer>>> = BTreeMap::new();
    for (trust_domain, peer) in &world.peers {
        for bundle in known(world, peer) {
            for authority in bundle.authorities() {
                claims.entry(authority.key()).or_default().insert(trust_domain, peer);
            }
        }
    }
    let own = world.own_trust_domain();
    let ours: BTreeSet<[u8; 32]> =
        own_bundles(world).flat_map(Bundle::authorities).map(|a| a.key()).collect();
    claims.retain(|key, claimants| claimants.len() > 1 || ours.contains(key));
    let contenders: BTreeMap<&TrustDomain, &Arc<Peer>> =
        claims.values().flatten().map(|(trust_domain, peer)| (*trust_domain, *peer)).collect();
    let titles: BTreeMap<&TrustDomain, Titles> = contenders
        .into_iter()
        .map(|(trust_domain, peer)| (trust_domain, Titles::of(world, peer, |key| claims.contains_key(key))))
        .collect();
    let mut disputes: BTreeMap<TrustDomain, Disputed> = BTreeMap::new();
    for (key, claimants) in &claims {
        let rank = |peer: &&&Arc<Peer>| {
            let title = titles.get(&peer.trust_domain).map(|titles| titles.to(key));
            (title, peer.created.is_none(), peer.created, peer.object.clone())
        };
        let first = || claimants.values().min_by_key(rank).map(|peer| &peer.trust_domain);
        let ours = own.filter(|_| ours.contains(key));
        let Some(owner) = ours.or_else(first) else { continue };
        let is_proven = ours.is_some() || titles.get(owner).is_some_and(|titles| titles.is_proven(key));
        let owner = Owner { trust_domain: owner.clone(), is_proven };
        for trust_domain in claimants.keys().filter(|claimant| **claimant != &owner.trust_domain) {
            disputes.entry((*trust_domain).clone()).or_default().insert(*key, owner.clone());
        }
    }
    disputes
}

/// What speaks for it that disputed keys are those of one peer; read once, however many they are.
struct Titles {
    named: BTreeSet<[u8; 32]>,
    used: BTreeSet<[u8; 32]>,
    held: BTreeMap<[u8; 32], Timestamp>,
    kept: BTreeSet<[u8; 32]>,
}

impl Titles {
    fn of(world: &World, peer: &Peer, is_disputed: impl Fn(&[u8; 32]) -> bool) -> Self {
        let known: Vec<&Bundle> = known(world, peer).collect();
        let names = |a: &&Authority| is_disputed(&a.key()) && a.names() == Some(&peer.trust_domain);
        let named = known.iter().flat_map(|bundle| bundle.authorities()).filter(names);
        let named =
            named.take(MOST_CHECKED).filter(|a| is_self_signed(a.der())).map(Authority::key).collect();
        let kept = relationship::persisted(world, peer);
        let kept = kept.iter().flat_map(|bundle| bundle.authorities()).map(Authority::key);
        let stored = world.spire.as_ref().and_then(|spire| spire.bundles.get(&peer.trust_domain));
        let memory = world.memory.get(&peer.trust_domain);
        let mut held: BTreeMap<[u8; 32], Timestamp> =
            stored.iter().flat_map(|bundle| bundle.authorities()).map(|a| (a.key(), world.now)).collect();
        held.extend(memory.iter().flat_map(|memory| &memory.held_keys));
        held.retain(|key, _| is_disputed(key));
        Self {
            named,
            used: used(world, peer, &is_disputed),
            held,
            kept: kept.filter(|key| is_disputed(key)).collect(),
        }
    }

    /// Whether it has shown that it uses the key.
    fn is_proven(&self, key: &[u8; 32]) -> bool {
        self.named.contains(key) || self.used.contains(key)
    }

    /// Least for the best title.
    fn to(&self, key: &[u8; 32]) -> impl Ord + use<> {
        let held = self.held.get(key).copied().unwrap_or(Timestamp::MAX);
        (!self.named.contains(key), !self.used.contains(key), held, !self.kept.contains(key))
    }
}

/// The keys that end the chain by which the peer's endpoint proved itself: who only serves another's authority has no
/// certificate of its own that is signed by it.
fn used(world: &World, peer: &Peer, is_disputed: impl Fn(&[u8; 32]) -> bool) -> BTreeSet<[u8; 32]> {
    let proof = world.endpoints.get(&peer.trust_domain).and_then(|state| state.proof.as_ref());
    let Some(Proof { chain, at }) = proof else { return BTreeSet::new() };
    let chain: Vec<CertificateDer<'_>> =
        chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let trust_domain = &peer.trust_domain;
    let ends_it = |authority: &&Authority| {
        let alone = Arc::new(Bundle::new(trust_domain.clone(), [(*authority).clone()]));
        let held = |asked: &TrustDomain| (asked == trust_domain).then(|| Arc::clone(&alone));
        verify_svid(&chain, &held, Role::Server, moment(*at)).is_ok()
    };
    let disputed = known(world, peer).flat_map(Bundle::authorities).filter(|a| is_disputed(&a.key()));
    disputed.take(MOST_CHECKED).filter(ends_it).map(Authority::key).collect()
}

/// Since when SPIRE has held the keys that it holds. One that is not usable takes away nobody's title.
fn hold(world: &World, bundle: &Bundle, held: &mut BTreeMap<[u8; 32], Timestamp>) {
    if bundle.is_usable_at(world.now) {
        let since = |key| held.get(&key).copied().unwrap_or(world.now);
        *held = bundle.authorities().map(Authority::key).map(|key| (key, since(key))).collect();
    }
}

fn own_bundles(world: &World) -> impl Iterator<Item = &Bundle> {
    let delivered = world.identity.as_ref().map(|identity| identity.bundle.as_ref());
    let held = world.spire.as_ref().and_then(|spire| spire.own.as_deref());
    delivered.into_iter().chain(held)
}

/// The bundles of a peer that are in use or would be, but for the kept one, which takes reading.
fn known<'a>(world: &'a World, peer: &Peer) -> impl Iterator<Item = &'a Bundle> {
    let trust_domain = &peer.trust_domain;
    let stored = world.spire.as_ref().and_then(|spire| spire.bundles.get(trust_domain));
    let state = world.endpoints.get(trust_domain);
    let latest = state.and_then(|state| state.latest.as_ref());
    let usable = state.and_then(|state| state.latest_usable.as_ref());
    [stored, latest, usable].into_iter().flatten().map(AsRef::as_ref)
}

/// Takes up what this world shows of a peer's bundles.
pub(super) fn advance(world: &World, peer: &Peer, disputed: Disputed, memory: &mut PeerMemory) {
    memory.disputed = disputed;
    let Some(spire) = &world.spire else { return };
    recall(world, peer, memory);
    let trust_domain = &peer.trust_domain;
    let stored = spire.bundles.get(trust_domain);
    if let Some(stored) = stored {
        hold(world, stored, &mut memory.held_keys);
    }
    let endpoint = world.endpoints.get(trust_domain);
    // What was served before the endpoint fell silent may have expired since, without anyone's doing.
    let served = endpoint.filter(|state| state.failure.is_none()).and_then(|state| state.latest.as_ref());
    let good = endpoint.map_or(0, |state| state.good_in_a_row);
    let harm_of = |bundle: &Arc<Bundle>| judge(world, &memory.disputed, bundle);
    let too_large = spire.too_large.contains(trust_domain).then_some(Harm::TooLarge);
    let (in_spire, at_endpoint) = (too_large.or_else(|| stored.and_then(harm_of)), served.and_then(harm_of));
    let needed = good_fetches_needed(world, memory);
    let counts = at_endpoint.is_none();
    let Some((harm, place)) = in_spire
        .map(|harm| (harm, "SPIRE holds"))
        .or(at_endpoint.map(|harm| (harm, "its bundle endpoint serves")))
    else {
        if let Some(poisoned) = &mut memory.poisoned {
            // A bad fetch started the count over.
            poisoned.good_before = poisoned.good_before.min(good);
            if stored.is_some() && good - poisoned.good_before >= needed {
                memory.poisoned = None;
                memory.last_flap = Some(world.now);
            }
        }
        return;
    };
    let cause = format!("{place} {}", harm.in_words(trust_domain));
    match &mut memory.poisoned {
        Some(poisoned) => {
            (poisoned.cause, poisoned.harm) = (cause, harm);
            if !counts {
                poisoned.good_before = good;
            }
        }
        None => {
            let forgiven = |last: Timestamp| world.now.as_second() - last.as_second() > FORGIVEN;
            let before = if memory.last_flap.is_some_and(forgiven) { 0 } else { memory.flaps };
            memory.flaps = before.saturating_add(1);
            memory.last_flap = Some(world.now);
            memory.poisoned = Some(Poisoned { since: world.now, cause, good_before: good, harm });
        }
    }
}

/// Takes up, once, what an earlier life of the agent wrote down and had suspended: it is restored by the same rule.
fn recall(world: &World, peer: &Peer, memory: &mut PeerMemory) {
    if memory.recalled || !world.is_read() {
        return;
    }
    memory.recalled = true;
    let kept = kept(world, peer);
    // What a user has withdrawn needs no good fetches to come back.
    let recorded = || !peer.withdraw && is_suspended_in_a_record(world, &peer.trust_domain);
    // Registrations are suspended for more than poison: by a user who then unset it, while nobody ran.
    let suspended = kept.suspended.unwrap_or_else(recorded);
    // What was seen before this could be read is the poisoning that stands written, or one more.
    let seen = if suspended { 0 } else { memory.flaps };
    memory.flaps = kept.times.saturating_add(seen).max(u32::from(suspended)).max(memory.flaps);
    memory.last_flap = memory.last_flap.or(kept.last);
    if suspended && memory.poisoned.is_none() {
        let cause = "it was suspended when the agent started".to_owned();
        let since = kept.last.unwrap_or(world.now);
        memory.poisoned = Some(Poisoned { since, cause, good_before: 0, harm: Harm::NoUsableAuthority });
    }
}

fn is_suspended_in_a_record(world: &World, trust_domain: &TrustDomain) -> bool {
    world.registrations.values().any(|r| r.record.suspended.contains(trust_domain))
}

#[derive(Default)]
struct Kept {
    times: u32,
    last: Option<Timestamp>,
    /// `None` where nobody knows.
    suspended: Option<bool>,
}

/// What stands in the relationship's object: where that is ours and says nothing, nothing has harmed. A value that someone
/// else has bent counts as none.
fn kept(world: &World, peer: &Peer) -> Kept {
    let object = world.objects.get(&relationship::key(&peer.trust_domain));
    let ours = object.filter(|object| object.is_generated_by(&world.settings.instance));
    let Some(ours) = ours else { return Kept::default() };
    let Some(text) = ours.meta.annotations.get(ANNOTATION_POISONED) else {
        // The object stays as it is while the user has suspended the peer.
        return Kept { suspended: (!peer.suspend).then_some(false), ..Kept::default() };
    };
    let Ok(value) = serde_json::from_str::<Value>(text) else { return Kept::default() };
    let last = value.get("last").and_then(Value::as_str).and_then(|text| text.parse().ok());
    Kept {
        times: value
            .get("times")
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or_default(),
        last: last.filter(|last| *last <= world.now),
        suspended: value.get("suspended").and_then(Value::as_bool),
    }
}

/// What is to stand there; `None` where nothing has ever harmed.
#[must_use]
pub fn annotation(world: &World, peer: &Peer) -> Option<String> {
    let memory = world.memory.get(&peer.trust_domain)?;
    if !memory.recalled {
        let object = world.objects.get(&relationship::key(&peer.trust_domain))?;
        return object.meta.annotations.get(ANNOTATION_POISONED).cloned();
    }
    let last = memory.last_flap.filter(|_| memory.flaps > 0)?;
    let suspended = memory.poisoned.is_some();
    Some(json!({ "times": memory.flaps, "last": last.to_string(), "suspended": suspended }).to_string())
}

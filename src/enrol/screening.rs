//! What both sides look at before they make a peer of a trust domain: pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::endpoint::EndpointState;
use crate::model::peer::Bootstrap;
use crate::model::{Authority, Bundle, TrustDomain, World};

/// Why a bundle must not become a peer's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleRefusal {
    #[error("the bundle of {0} has no X.509 authority that is valid now")]
    Unusable(TrustDomain),
    /// Whoever holds its key could speak for both.
    #[error(
        "the bundle of {of} holds an authority that is in the bundle of {with} too: each must have its own"
    )]
    Shared { of: TrustDomain, with: TrustDomain },
}

/// Whether a TrustDomainPeer of this trust domain is there, accepted or not.
#[must_use]
pub fn is_peer(world: &World, trust_domain: &TrustDomain) -> bool {
    let rejected = world.rejected.values().any(|r| r.trust_domain.as_ref() == Some(trust_domain));
    world.peers.contains_key(trust_domain) || rejected
}

/// Refuses a bundle that could verify nothing, or with which one trust domain could speak for another that we know.
///
/// # Errors
/// [`BundleRefusal`]
pub fn screen(world: &World, bundle: &Bundle) -> Result<(), BundleRefusal> {
    let of = bundle.trust_domain();
    if !bundle.is_usable_at(world.now) {
        return Err(BundleRefusal::Unusable(of.clone()));
    }
    // Their keys: what signs is the same in whatever certificate it stands.
    let keys: BTreeSet<[u8; 32]> = bundle.authorities().map(Authority::key).collect();
    let shares = |other: &&Arc<Bundle>| {
        other.trust_domain() != of && other.authorities().any(|a| keys.contains(&a.key()))
    };
    match known(world).iter().find(shares) {
        None => Ok(()),
        Some(other) => Err(BundleRefusal::Shared { of: of.clone(), with: other.trust_domain().clone() }),
    }
}

/// Every bundle that is known, of our own trust domain first.
fn known(world: &World) -> Vec<Arc<Bundle>> {
    let mut known = Vec::new();
    if let Some(identity) = &world.identity {
        known.push(Arc::clone(&identity.bundle));
        known.extend(identity.federated.values().cloned());
    }
    if let Some(spire) = &world.spire {
        known.extend(spire.own.clone());
        known.extend(spire.bundles.values().cloned());
    }
    let fetched = |state: &EndpointState| [state.latest.clone(), state.latest_usable.clone()];
    known.extend(world.endpoints.values().flat_map(fetched).flatten());
    known.extend(world.peers.values().filter_map(|peer| match &peer.bootstrap {
        Some(Bootstrap::Inline(bundle)) => Some(Arc::clone(bundle)),
        _ => None,
    }));
    known.extend(world.bootstraps.values().filter_map(|read| read.as_ref().ok().cloned()));
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::testing::{Ca, NOW, ca_params, td};
    use crate::plan::fixtures;
    use jiff::Timestamp;

    fn world() -> World {
        let mut world = fixtures::world("east.example");
        world.now = Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap();
        world
    }

    #[test]
    fn a_bundle_shares_no_authority_with_ours_or_a_peers_wherever_it_is_known_from() {
        let ca = Ca::new();
        let offered = ca.bundle("west.example");
        assert_eq!(screen(&world(), &offered), Ok(()));
        for other in ["east.example", "north.example"] {
            let same = ca.bundle(other);
            let mut worlds = [world(), world(), world()];
            let mut spire = crate::model::trust::SpireState::default();
            spire.bundles.insert(td(other), Arc::clone(&same));
            worlds[0].spire = Some(Arc::new(spire));
            let spire =
                crate::model::trust::SpireState { own: Some(Arc::clone(&same)), ..Default::default() };
            worlds[1].spire = Some(Arc::new(spire));
            worlds[2].bootstraps.insert(td(other), Ok(Arc::clone(&same)));
            for world in worlds {
                let refused = screen(&world, &offered).unwrap_err();
                assert_eq!(refused, BundleRefusal::Shared { of: td("west.example"), with: td(other) });
            }
        }
        // what SPIRE holds of it already is its own
        let mut again = world();
        let mut spire = crate::model::trust::SpireState::default();
        spire.bundles.insert(td("west.example"), Arc::clone(&offered));
        again.spire = Some(Arc::new(spire));
        assert_eq!(screen(&again, &offered), Ok(()));
    }

    #[test]
    fn one_key_in_two_certificates_is_one_authority() {
        let ca = Ca::new();
        let again = ca.public_key_in(ca_params());
        assert_ne!(again.fingerprint(), ca.authority().fingerprint());
        let mut world = world();
        world.bootstraps.insert(td("north.example"), Ok(ca.bundle("north.example")));
        let refused = screen(&world, &Bundle::new(td("west.example"), [again])).unwrap_err();
        assert_eq!(refused, BundleRefusal::Shared { of: td("west.example"), with: td("north.example") });
    }

    #[test]
    fn a_bundle_that_verifies_nothing_is_refused() {
        let empty = Bundle::new(td("west.example"), []);
        assert_eq!(screen(&world(), &empty), Err(BundleRefusal::Unusable(td("west.example"))));
        let mut later = world();
        later.now = Timestamp::from_second(i64::try_from(NOW).unwrap() + 7_200).unwrap();
        assert!(screen(&later, &Ca::new().bundle("west.example")).is_err());
    }
}

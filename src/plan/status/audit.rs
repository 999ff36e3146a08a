//! The audit trail of a peer's bundle: what it was, since when, what changed, and who confirmed it. Made of what stands
//! in the status and of the world alone, so that it outlives restarts and a settled peer's is not written.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::v1alpha1::bundle_audit::{AuditEntry, Witness};
use crate::api::v1alpha1::limits::{AUDIT, AUDIT_AUTHORITIES};
use crate::model::{Bundle, Peer, World};
use crate::plan::relationship;

/// The trail as it is to stand, newest first; `None` where nothing is known yet.
pub(super) fn trail(world: &World, peer: &Peer, stored: Option<&Value>) -> Option<Value> {
    let mut trail = read(stored);
    let newest = trail.first_mut();
    match now(world, peer, newest.is_none()) {
        Some(bundle) if newest.as_ref().is_none_or(|last| last.digest != bundle.digest().to_string()) => {
            let entry = entry(world, peer, bundle, newest.as_deref());
            trail.insert(0, entry);
            trail.truncate(AUDIT);
        }
        _ => {
            if let Some(last) = newest {
                confirm(world, peer, last);
            }
        }
    }
    (!trail.is_empty()).then(|| json!(trail))
}

/// The trail that stands in a status. An item that cannot be read is left out.
pub(crate) fn read(stored: Option<&Value>) -> Vec<AuditEntry> {
    let items = stored.and_then(|status| status.get("audit")).and_then(Value::as_array);
    items.into_iter().flatten().filter_map(|item| serde_json::from_value(item.clone()).ok()).collect()
}

/// The bundle of the peer now: what its endpoint served last. After a start nothing is concluded before it was asked; one
/// that has never answered leaves SPIRE to tell, and the operator.
fn now<'a>(world: &'a World, peer: &Peer, is_first: bool) -> Option<&'a Bundle> {
    let state = world.endpoints.get(&peer.trust_domain);
    if let Some(latest) = state.and_then(|state| state.latest.as_deref()) {
        return Some(latest);
    }
    let was_asked = state.is_some_and(|state| state.failure.is_some());
    let spire = world.spire.as_ref().filter(|spire| !spire.too_large.contains(&peer.trust_domain))?;
    let stored = spire.bundles.get(&peer.trust_domain).map(AsRef::as_ref);
    stored.filter(|_| is_first || was_asked)
}

fn entry(world: &World, peer: &Peer, bundle: &Bundle, before: Option<&AuditEntry>) -> AuditEntry {
    let authorities: Vec<String> = bundle.authority_ids().iter().map(ToString::to_string).collect();
    let had: BTreeSet<&String> = before.into_iter().flat_map(|before| &before.authorities).collect();
    let has: BTreeSet<&String> = authorities.iter().collect();
    let bounded = |ids: &mut dyn Iterator<Item = &&String>| -> Vec<String> {
        ids.take(AUDIT_AUTHORITIES).map(|id| (*id).clone()).collect()
    };
    let mut entry = AuditEntry {
        time: world.now,
        sequence: bundle.sequence.and_then(|n| i64::try_from(n).ok()),
        digest: bundle.digest().to_string(),
        added: bounded(&mut has.difference(&had)),
        removed: bounded(&mut had.difference(&has)),
        authorities: bounded(&mut has.iter()),
        confirmed_by: Vec::new(),
    };
    confirm(world, peer, &mut entry);
    entry
}

/// Adds who holds just that bundle now. Nobody is taken away again: it is history, and would never settle.
fn confirm(world: &World, peer: &Peer, entry: &mut AuditEntry) {
    let trust_domain = &peer.trust_domain;
    let served = world.endpoints.get(trust_domain).filter(|state| state.failure.is_none());
    let served = served.and_then(|state| state.latest.as_ref()).map(|bundle| bundle.digest());
    let given = relationship::bootstrap(world, peer).map(|bundle| bundle.digest());
    let held = world.spire.as_ref().and_then(|spire| spire.bundles.get(trust_domain));
    let session = world.sessions.get(trust_domain).filter(|session| session.is_connected());
    let said = session.and_then(|session| session.remote.as_ref()?.own.as_ref()).map(|own| own.digest);
    let witnesses = [
        (Witness::BundleEndpoint, served),
        (Witness::Bootstrap, given),
        (Witness::Spire, held.map(|bundle| bundle.digest())),
        (Witness::Peer, said),
    ];
    let holds = |digest: Option<_>| {
        digest.is_some_and(|digest: crate::model::BundleDigest| digest.to_string() == entry.digest)
    };
    let found: Vec<Witness> =
        witnesses.into_iter().filter(|(_, digest)| holds(*digest)).map(|(witness, _)| witness).collect();
    let all: BTreeSet<Witness> = entry.confirmed_by.iter().copied().chain(found).collect();
    entry.confirmed_by = all.into_iter().collect();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde_json::Map;

    use super::*;
    use crate::bundle::testing::{Ca, NOW};
    use crate::model::endpoint::EndpointState;
    use crate::model::session::{HeldBundle, LinkState, SessionState, TrustReport};
    use crate::model::trust::SpireState;
    use crate::plan::fixtures::{WorldExt as _, peer, td, world};

    const WEST: &str = "west.example";

    struct Scene {
        world: World,
        stored: Option<Value>,
    }

    impl Scene {
        fn new() -> Self {
            let mut world = world("east.example").with_peer(peer(WEST));
            world.now = jiff::Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap();
            world.spire = Some(Arc::default());
            Self { world, stored: None }
        }

        fn serves(&mut self, bundle: &Arc<Bundle>) {
            let state = EndpointState { latest: Some(Arc::clone(bundle)), ..EndpointState::default() };
            self.world.endpoints = Arc::new(BTreeMap::from([(td(WEST), state)]));
        }

        fn spire_holds(&mut self, bundle: &Arc<Bundle>) {
            let bundles = BTreeMap::from([(td(WEST), Arc::clone(bundle))]);
            self.world.spire = Some(Arc::new(SpireState { bundles, ..SpireState::default() }));
        }

        fn says(&mut self, bundle: &Bundle) {
            let mut session = SessionState::idle(self.world.now);
            session.link = LinkState::Connected;
            session.remote =
                Some(TrustReport { own: Some(HeldBundle::from(bundle)), ..TrustReport::default() });
            self.world.sessions = Arc::new(BTreeMap::from([(td(WEST), session)]));
        }

        /// Writes the trail as the store would, a second later; whether it changed.
        fn write(&mut self) -> bool {
            self.world.now = jiff::Timestamp::from_second(self.world.now.as_second() + 1).unwrap();
            let peer = Arc::clone(&self.world.peers[&td(WEST)]);
            let trail = trail(&self.world, &peer, self.stored.as_ref());
            let status = trail.map(|trail| Value::Object(Map::from_iter([("audit".to_owned(), trail)])));
            let changed = status != self.stored;
            self.stored = status;
            changed
        }

        fn entries(&self) -> Vec<AuditEntry> {
            read(self.stored.as_ref())
        }
    }

    fn bundle(cas: &[&Ca], sequence: u64) -> Arc<Bundle> {
        let mut bundle = Bundle::new(td(WEST), cas.iter().map(|ca| ca.authority()));
        bundle.sequence = Some(sequence);
        Arc::new(bundle)
    }

    fn ids(cas: &[&Ca]) -> Vec<String> {
        let all: BTreeSet<String> = cas.iter().map(|ca| ca.authority().id().to_string()).collect();
        all.into_iter().collect()
    }

    #[test]
    fn a_rotation_is_written_as_each_learns_of_it_and_then_no_more() {
        let (old, new) = (Ca::new(), Ca::new());
        let mut scene = Scene::new();
        assert!(!scene.write(), "nothing is known");
        let first = bundle(&[&old], 1);
        scene.serves(&first);
        scene.spire_holds(&first);
        assert!(scene.write() && !scene.write());
        let second = bundle(&[&old, &new], 2);
        scene.serves(&second);
        assert!(scene.write() && !scene.write());
        scene.says(&second);
        assert!(scene.write());
        scene.spire_holds(&second);
        assert!(scene.write() && !scene.write());
        scene.serves(&bundle(&[&new], 3));
        assert!(scene.write());
        let entries = scene.entries();
        let said: Vec<_> =
            entries.iter().map(|e| (e.sequence, &e.added, &e.removed, &e.confirmed_by)).collect();
        use Witness::{BundleEndpoint, Peer, Spire};
        assert_eq!(
            said,
            [
                (Some(3), &vec![], &ids(&[&old]), &vec![BundleEndpoint]),
                (Some(2), &ids(&[&new]), &vec![], &vec![BundleEndpoint, Spire, Peer]),
                (Some(1), &ids(&[&old]), &vec![], &vec![BundleEndpoint, Spire]),
            ]
        );
        assert!(entries[0].time > entries[1].time);
    }

    #[test]
    fn a_restart_adds_nothing_and_the_oldest_go() {
        let cas: Vec<Ca> = (0..3).map(|_| Ca::new()).collect();
        let mut scene = Scene::new();
        for turn in 0..30 {
            scene.serves(&bundle(&[&cas[turn % 3]], 1));
            assert!(scene.write());
        }
        assert_eq!(scene.entries().len(), AUDIT);
        // SPIRE is behind, and the endpoint has not been asked yet.
        scene.world.endpoints = Arc::default();
        scene.spire_holds(&bundle(&[&cas[0]], 1));
        assert!(!scene.write());
        // It cannot be asked: what SPIRE holds is what is known.
        let failure = crate::model::endpoint::FetchFailure {
            problem: crate::model::endpoint::FetchProblem::EndpointUnreachable,
            message: "gone".to_owned(),
        };
        let state = EndpointState { failure: Some(failure), ..EndpointState::default() };
        scene.world.endpoints = Arc::new(BTreeMap::from([(td(WEST), state)]));
        assert!(scene.write());
        assert_eq!(scene.entries()[0].confirmed_by, [Witness::Spire]);
    }

    #[test]
    fn a_large_bundle_fills_no_status() {
        let cas: Vec<Ca> = (0..50).map(|_| Ca::new()).collect();
        let mut scene = Scene::new();
        scene.serves(&bundle(&cas.iter().collect::<Vec<_>>(), 1));
        assert!(scene.write());
        let entry = &scene.entries()[0];
        assert_eq!((entry.authorities.len(), entry.added.len()), (AUDIT_AUTHORITIES, AUDIT_AUTHORITIES));
    }
}

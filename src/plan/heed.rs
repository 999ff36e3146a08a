//! What comes in again and again, and decides nothing: no plan is made for it.

use std::collections::BTreeMap;

use crate::model::endpoint::EndpointState;
use crate::model::{TrustDomain, World};

/// Whether anything is decided by how these states of bundle endpoints differ from those that the world was planned for.
/// That an endpoint was asked once more, and served the same, is to be known, and is no reason to plan.
#[must_use]
pub fn endpoints(world: &World, now: &BTreeMap<TrustDomain, EndpointState>) -> bool {
    let is_new = |(trust_domain, state): (&TrustDomain, &EndpointState)| {
        let before = world.endpoints.get(trust_domain);
        before.is_none_or(|before| is_news(world, trust_domain, before, state))
    };
    world.endpoints.len() != now.len() || now.iter().any(is_new)
}

/// Only what is named here is passed over.
fn is_news(world: &World, trust_domain: &TrustDomain, before: &EndpointState, now: &EndpointState) -> bool {
    let Some(memory) = world.memory.get(trust_domain) else { return before != now };
    // Good fetches end a suspension, and count for nothing else.
    let good_in_a_row = if memory.poisoned.is_some() { now.good_in_a_row } else { before.good_in_a_row };
    // What was seen of SPIRE, or told by the peer, waits for the endpoint to be asked.
    let is_awaited = memory.differs.is_some() || memory.notice.is_some();
    let asked_at = if is_awaited { now.asked_at } else { before.asked_at };
    // It is the monitor's own, and shows by the alarms that it ends.
    let unchanged = before.unchanged;
    // Asked for only where the endpoint becomes another one, which is planned for.
    let fetched_at = before.fetched_at;
    *before != EndpointState { good_in_a_row, asked_at, fetched_at, unchanged, ..now.clone() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::world::{Difference, Harm, Notice, PeerMemory, Poisoned};
    use crate::model::{Bundle, BundleDigest};
    use crate::plan::fixtures::{at, peer, td, world};

    /// Whether this change of the endpoint's state is planned for, while so much is remembered of the peer.
    fn is_heeded(memory: PeerMemory, change: impl Fn(&mut EndpointState)) -> bool {
        let east = td("east.example");
        let mut world = world("west.example");
        world.peers.insert(east.clone(), Arc::new(peer("east.example")));
        world.memory.insert(east.clone(), memory);
        let mut state = EndpointState { asked_at: Some(at(0)), ..EndpointState::default() };
        world.endpoints = Arc::new([(east.clone(), state.clone())].into());
        change(&mut state);
        endpoints(&world, &[(east, state)].into())
    }

    fn asked_once_more(state: &mut EndpointState) {
        state.asked_at = Some(at(15));
        state.fetched_at = Some(at(15));
        state.good_in_a_row += 1;
        state.unchanged += 1;
    }

    #[test]
    fn an_endpoint_that_serves_the_same_again_is_no_reason_to_plan() {
        assert!(!is_heeded(PeerMemory::default(), asked_once_more));
        assert!(!is_heeded(PeerMemory::default(), |_| {}));
    }

    #[test]
    fn whatever_waits_for_it_is_planned_for() {
        let poisoned =
            Poisoned { since: at(0), cause: String::new(), good_before: 0, harm: Harm::NoUsableAuthority };
        let suspended = PeerMemory { poisoned: Some(poisoned), ..PeerMemory::default() };
        assert!(is_heeded(suspended, |state| state.good_in_a_row += 1));
        let differs =
            PeerMemory { differs: Some(Difference { stored: None, since: at(0) }), ..PeerMemory::default() };
        assert!(is_heeded(differs, |state| state.asked_at = Some(at(15))));
        let digest: BundleDigest = Bundle::new(td("east.example"), []).digest();
        let notice = Notice { digest, asks: 1, asked: Some(at(0)), next: None };
        let told = PeerMemory { notice: Some(notice), ..PeerMemory::default() };
        assert!(is_heeded(told, |state| state.asked_at = Some(at(15))));
    }

    #[test]
    fn whatever_is_another_than_before_is_planned_for() {
        let bundle = || Some(Arc::new(Bundle::new(td("east.example"), [])));
        type Change = fn(&mut EndpointState, Option<Arc<Bundle>>);
        let changes: [Change; 4] = [
            |state, bundle| state.latest = bundle,
            |state, bundle| state.latest_usable = bundle,
            |state, _| state.since = Some(at(15)),
            |state, _| state.refused_by_spire = Some("no".to_owned()),
        ];
        for change in changes {
            assert!(is_heeded(PeerMemory::default(), |state| change(state, bundle())));
        }
        let mut world = world("west.example");
        let states = BTreeMap::from([(td("east.example"), EndpointState::default())]);
        assert!(endpoints(&world, &states), "one that was not known");
        world.endpoints = Arc::new(states);
        assert!(endpoints(&world, &BTreeMap::new()), "one that is watched no more");
    }
}

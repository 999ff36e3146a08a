//! Whether the gateways of the peer take connections: the path of services, which is not that of the agents.

use super::View;
use crate::diagnose::check::{Finding, Side};
use crate::model::ObjectKey;
use crate::model::object::Kind;
use crate::model::reach::{Attempt, Tried};
use crate::model::service::GatewayAddress;
use crate::plan::reach::{self, Verdict};

pub(super) fn gateways(view: View<'_>) -> Finding {
    let td = &view.peer.trust_domain;
    if !view.world.settings.checks_gateways {
        return Finding::skipped("--gateway-check-seconds is 0: gateways are not tried");
    }
    let known = reach::tried(view.world, td);
    let now: Vec<(&GatewayAddress, Tried)> = view
        .evidence
        .gateways
        .iter()
        .filter_map(|(at, attempt)| Some((at, Tried { last: *attempt, ..*known.get(at)? })))
        .collect();
    if now.is_empty() {
        return Finding::skipped(
            "no gateway of the peer was tried: none of its services is called through one from here",
        );
    }
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &view.peer.object);
    let stored = view.world.statuses.get(&key).map(std::convert::AsRef::as_ref);
    let of = |verdict: Verdict| {
        let is = move |at, tried| reach::verdict(tried, reach::was_lost(stored, at)) == verdict;
        now.iter().filter(move |(at, tried)| is(*at, *tried)).copied()
    };
    if of(Verdict::Lost).next().is_some() {
        let is_refused = of(Verdict::Lost).all(|(_, tried)| tried.last == Attempt::Refused);
        return Finding::failed(
            if is_refused { Side::Theirs } else { Side::Between },
            format!(
                "gateways that services of {td} are called through take no connection from the agent: {}",
                reach::in_words(of(Verdict::Lost))
            ),
            format!(
                "have the operator of {td} see that its gateways run there, and see what forbids the way to them: firewalls, \
                 NetworkPolicies, routes"
            ),
        );
    }
    if of(Verdict::NeverReached).next().is_some() {
        return Finding::skipped(format!(
            "gateways of {td} have not answered the agent since it started, which says nothing of workloads where a \
             NetworkPolicy keeps the agent from them: {}",
            reach::in_words(of(Verdict::NeverReached))
        ));
    }
    Finding::passed(format!("the gateways that services of {td} are called through take connections"))
}

//! Whether what carries a peer's services answers: the gateways (or pods, where networks are flat) of what is imported,
//! which are another path than that of the agents. Losing the one says nothing of the other.
//!
//! It is tried from where the agent is: a NetworkPolicy or firewall may keep the agent from what workloads reach. So silence
//! is an outage only of what once answered here, the verdict is the operator's to read, and it has no part in Ready.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::imports::ImportReport;
use super::status::{keep, stored_condition};
use crate::api::v1alpha1::conditions::GatewaysReachableReason as Reason;
use crate::model::condition::{Condition, Truth};
use crate::model::reach::{Attempt, Tried};
use crate::model::service::{Address, GatewayAddress, RemoteService};
use crate::model::{NamespacedName, Peer, TrustDomain, World};

/// Most addresses of one peer that are tried: the first in order.
pub const MOST: usize = 16;
/// Most addresses that one message names.
const NAMED: usize = 4;

/// What is to be tried of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carriers {
    /// At most [`MOST`].
    pub addresses: BTreeSet<GatewayAddress>,
    /// There are more.
    pub is_part: bool,
}

/// What is found of one peer, each kind at most [`MOST`].
#[derive(Debug, Default)]
struct Found<'a> {
    gateways: BTreeSet<&'a GatewayAddress>,
    pods: BTreeSet<GatewayAddress>,
    is_part: bool,
}

impl<'a> Found<'a> {
    fn add(&mut self, service: &'a RemoteService) {
        for gateway in &service.gateways {
            self.gateways.insert(gateway);
            self.is_part |= self.gateways.len() > MOST && self.gateways.pop_last().is_some();
        }
        let pods = service.endpoints.iter().filter(|_| service.gateways.is_empty());
        for (pod, port) in pods.flat_map(|pod| pod.ports.values().map(move |port| (pod, *port))) {
            self.pods.insert(GatewayAddress { address: Address::Ip(pod.address), port });
            self.is_part |= self.pods.len() > MOST && self.pods.pop_last().is_some();
        }
    }

    /// Gateways first: they carry many services, a pod one.
    fn carriers(self) -> Carriers {
        let count = self.gateways.len() + self.pods.len();
        let addresses = self.gateways.into_iter().cloned().chain(self.pods).take(MOST).collect();
        Carriers { addresses, is_part: self.is_part || count > MOST }
    }
}

/// The addresses of what is imported and generated, by peer; of what admission refuses, none.
#[must_use]
pub fn carriers(
    world: &World,
    reports: &BTreeMap<NamespacedName, ImportReport>,
) -> BTreeMap<TrustDomain, Carriers> {
    if !world.settings.checks_gateways {
        return BTreeMap::new();
    }
    let mut found: BTreeMap<&TrustDomain, Found<'_>> = BTreeMap::new();
    for (name, _) in reports.iter().filter(|(_, report)| report.is_called()) {
        let Some(imported) = world.imported.get(name) else { continue };
        let peer = world.peers.get(&imported.trust_domain);
        if peer.is_some_and(|peer| !peer.suspend && peer.deletion.is_none()) {
            found.entry(&imported.trust_domain).or_default().add(&imported.service);
        }
    }
    found.into_iter().map(|(peer, found)| (peer.clone(), found.carriers())).collect()
}

/// What is to be tried, of all peers.
#[must_use]
pub fn targets(carriers: &BTreeMap<TrustDomain, Carriers>) -> BTreeSet<GatewayAddress> {
    carriers.values().flat_map(|carriers| &carriers.addresses).cloned().collect()
}

/// What one attempt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Answers,
    Lost,
    /// It never answered here, and nothing says that it is down.
    NeverReached,
}

/// `was_lost`: it was said to be, by what stands ([`was_lost`]).
#[must_use]
pub const fn verdict(tried: Tried, was_lost: bool) -> Verdict {
    match tried.last {
        Attempt::Answered => Verdict::Answers,
        Attempt::Refused | Attempt::NotAdmitted => Verdict::Lost,
        Attempt::Silent | Attempt::NoAddress if tried.has_answered || was_lost => Verdict::Lost,
        Attempt::Silent | Attempt::NoAddress => Verdict::NeverReached,
    }
}

/// The condition `GatewaysReachable` of a peer; `None` where nothing of it is called, or gateways are not tried.
#[must_use]
pub fn condition(
    world: &World,
    carriers: &BTreeMap<TrustDomain, Carriers>,
    peer: &Peer,
    stored: Option<&Value>,
) -> Option<Condition> {
    let of_peer = carriers.get(&peer.trust_domain)?;
    let tried: Vec<(&GatewayAddress, Tried)> =
        of_peer.addresses.iter().filter_map(|at| Some((at, *world.reached.get(at)?))).collect();
    if tried.len() < of_peer.addresses.len() {
        // What stands was true when it was said; nothing is said from not having looked.
        return Some(keep(stored, Reason::NotTried, "they were not tried yet"));
    }
    let of = |verdict: Verdict| {
        tried
            .iter()
            .filter(move |(at, tried)| self::verdict(*tried, was_lost(stored, at)) == verdict)
            .copied()
    };
    let td = &peer.trust_domain;
    let all = tried.len();
    let which = if of_peer.is_part { format!("the first {all} gateways") } else { "the gateways".to_owned() };
    let (lost, never) = (of(Verdict::Lost).count(), of(Verdict::NeverReached).count());
    let condition = if lost > 0 {
        let reason = if lost == all { Reason::NoneReached } else { Reason::SomeNotReached };
        let message = format!(
            "of {which} that services of {td} are called through, {lost} of {all} take no connection from the agent: {}. \
             Calls through them fail, unless workloads have another way there than the agent. The exchange of the agents is \
             another path: see Connected. Ask the operator of {td} whether they run, and see what forbids the way to them",
            in_words(of(Verdict::Lost))
        );
        Condition::new(reason, Truth::False, message)
    } else if never > 0 {
        let message = format!(
            "of {which} that services of {td} are called through, {never} of {all} have not taken a connection from the \
             agent since it started: {}. Where a NetworkPolicy or firewall keeps the agent from them, and not the workloads, \
             this says nothing of calls: let the agent dial them, or set --gateway-check-seconds=0",
            in_words(of(Verdict::NeverReached))
        );
        Condition::new(Reason::NeverReached, Truth::Unknown, message)
    } else {
        let message =
            format!("{which} that services of {td} are called through take connections from the agent");
        Condition::new(Reason::Reached, Truth::True, message)
    };
    Some(condition)
}

/// What is known of the gateways and pods that carry the services of one peer, of those that are tried.
#[must_use]
pub fn tried(world: &World, peer: &TrustDomain) -> BTreeMap<GatewayAddress, Tried> {
    let services = world.imported.values().filter(|imported| imported.trust_domain == *peer);
    let mut found = BTreeMap::new();
    for service in services.map(|imported| &imported.service) {
        let pods = service.endpoints.iter().flat_map(|pod| {
            let at = |port: &u16| GatewayAddress { address: Address::Ip(pod.address), port: *port };
            pod.ports.values().map(at)
        });
        for address in service.gateways.iter().cloned().chain(pods) {
            if let Some(tried) = world.reached.get(&address) {
                found.insert(address, *tried);
            }
        }
    }
    found
}

/// Whether the stored condition of the peer names this gateway as lost: what was lost before this life of the process is so
/// until it answers. Of others that says nothing.
#[must_use]
pub fn was_lost(stored: Option<&Value>, gateway: &GatewayAddress) -> bool {
    // A space before it, so that it is not the end of another's.
    let name = || format!(" {}:{} (", gateway.address, gateway.port);
    stored_condition(stored, Reason::CONDITION)
        .is_some_and(|before| before.status == Truth::False && before.message.contains(&name()))
}

/// The first of them, and how the last attempt at each ended.
#[must_use]
pub fn in_words<'a>(all: impl Iterator<Item = (&'a GatewayAddress, Tried)>) -> String {
    let mut all = all.map(|(at, tried)| format!("{}:{} ({})", at.address, at.port, tried.last));
    let named: Vec<String> = all.by_ref().take(NAMED).collect();
    match all.count() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests;

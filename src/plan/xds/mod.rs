//! What clients without Istio are served by xDS: for each imported service the resources of Envoy and of gRPC, made of that
//! service alone; for each SPIFFE ID of a server of ours what the Envoy in front of it needs. Which of it a client sees is
//! decided by its SPIFFE ID (`view`).

mod envoy;
mod grpc;
mod inbound;
mod local;
#[cfg(test)]
mod local_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod types;
pub mod view;
mod whom;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::api::v1alpha1::conditions::GeneratedReason;
use crate::model::import::Imported;
use crate::model::reach::Attempt;
use crate::model::service::{Address, GatewayAddress, RemotePort};
use crate::model::{NamespacedName, SpiffeId, World};

use super::exports::{Exports, held};
use super::imports::{ImportReport, LocalName};
use super::memo::Memo;
pub(super) use inbound::InboundOf;
pub use inbound::{Inbound, is_of_server};
pub(super) use local::LocalOf;
pub use tls::{PROVIDER, SPIRE_CLUSTER, SVID_NAME};
pub use types::{Resource, ResourceType, TypeMap, Version};
pub use whom::{Audience, Clients, Whom};

/// Everything that is served, whoever asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xds {
    /// What is imported, by host, and the local names that answer without Istio.
    pub offers: BTreeMap<String, Arc<Offer>>,
    /// What the proxies of our servers need, by the SPIFFE ID that the server has.
    pub inbound: BTreeMap<SpiffeId, Arc<Inbound>>,
    /// Servers of ours of which it is not known what their proxies need: those keep what they have.
    pub unknown: BTreeSet<SpiffeId>,
}

/// An imported service as clients reach it, or a local name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub ports: Vec<PortOffer>,
}

/// One port of it: whom it is for gets all of it, and nobody else any. Of several for one port of a local name, a client gets one
/// at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOffer {
    pub whom: Whom,
    pub envoy: Vec<Resource>,
    /// Empty for what no gRPC client calls.
    pub grpc: Vec<Resource>,
}

/// What an offer is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OfferOf {
    imported: Arc<Imported>,
    /// Where clients call it; the listeners of Envoy bind these.
    addresses: Vec<IpAddr>,
    audience: Audience,
    /// Those of its gateways that took no connection when they were last tried.
    down: BTreeSet<GatewayAddress>,
}

/// What is served, as far as it is known what is imported; with nothing, what was served before stays.
#[must_use]
pub(super) fn plan(
    world: &World,
    exports: &Exports,
    reports: &BTreeMap<NamespacedName, ImportReport>,
    local_names: &BTreeMap<String, Arc<LocalName>>,
    memo: &mut Memo,
) -> Option<Arc<Xds>> {
    if !world.settings.serves_xds {
        return None;
    }
    let refused = world.reached.iter().filter(|(_, tried)| tried.last == Attempt::Refused);
    let refused: BTreeSet<&GatewayAddress> = refused.map(|(at, _)| at).collect();
    let mut xds = Xds::default();
    for (name, report) in reports.iter().filter(|(_, report)| is_called(report)) {
        let Some(imported) = world.imported.get(name) else { continue };
        let Some(peer) = world.peers.get(&imported.trust_domain) else { continue };
        let input = OfferOf {
            imported: Arc::clone(imported),
            addresses: report.addresses.clone(),
            audience: Audience::of(peer, &world.settings.namespace),
            down: down(imported, &refused),
        };
        let offer = memo.offers.get(name, &input, |input| Arc::new(offer(input)));
        xds.offers.insert(name.name.clone(), offer);
    }
    for (host, name) in local_names {
        let Some(input) = local::input(world, name, |imported| down(imported, &refused)) else { continue };
        let offer = memo.local_offers.get(host, &input, |input| Arc::new(local::offer(input)));
        xds.offers.insert(host.clone(), offer);
    }
    if let Some(own) = world.own_trust_domain() {
        xds.inbound = inbound::plan(world, own, exports, memo);
        xds.unknown = held::servers(world, own);
    }
    Some(memo.xds.share(xds))
}

/// Whether clients may call it: it is admitted, and its host is ours to give. What only Istio lacks, or has not taken yet, is
/// no matter here.
fn is_called(report: &ImportReport) -> bool {
    let is_ours = |reason| matches!(reason, GeneratedReason::IstioAbsent | GeneratedReason::Pending);
    let lacks_istio = || report.generated.as_ref().is_err_and(|refusal| is_ours(refusal.reason));
    report.is_called() || (report.admitted.is_ok() && lacks_istio())
}

fn down(imported: &Imported, refused: &BTreeSet<&GatewayAddress>) -> BTreeSet<GatewayAddress> {
    if refused.is_empty() {
        return BTreeSet::new();
    }
    let service = &imported.service;
    let ports: Vec<&RemotePort> = service.ports.iter().collect();
    let all = ports.iter().flat_map(|port| endpoints(imported, port));
    all.filter(|at| refused.contains(at)).collect()
}

/// Where a port of it is reached: at the gateways of its peer, or without any at its pods; sorted.
fn endpoints(imported: &Imported, port: &RemotePort) -> BTreeSet<GatewayAddress> {
    let service = &imported.service;
    if !service.gateways.is_empty() {
        return service.gateways.iter().cloned().collect();
    }
    let of = |pod: &crate::model::service::DirectEndpoint| {
        let address = Address::Ip(pod.address.to_canonical());
        Some(GatewayAddress { address, port: *pod.ports.get(&port.name)? })
    };
    service.endpoints.iter().filter_map(of).collect()
}

fn offer(input: &OfferOf) -> Offer {
    let service = &input.imported.service;
    let port = |port: &RemotePort| PortOffer {
        whom: Whom::clients(input.audience.clone(), whom::clients_of(service, port).clone()),
        envoy: envoy::resources(input, port),
        grpc: grpc::resources(input, port),
    };
    Offer { ports: service.ports.iter().map(port).collect() }
}

/// The name of every resource of a port: what a gRPC client calls `xds:///NAME`.
fn name(input: &OfferOf, port: &RemotePort) -> String {
    format!("{}:{}", input.imported.object.name, port.port)
}

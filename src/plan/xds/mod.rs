//! What clients without Istio are served by xDS: for each imported service the resources of Envoy and of gRPC, made of that
//! service alone; for each SPIFFE ID of a server of ours what the Envoy in front of it needs. Which of it a client sees is
//! decided by its SPIFFE ID (`view`).

mod envoy;
mod grpc;
mod inbound;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod types;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::api::v1alpha1::conditions::GeneratedReason;
use crate::model::import::Imported;
use crate::model::reach::Attempt;
use crate::model::service::{Address, ClientPattern, GatewayAddress, RemotePort};
use crate::model::{NamespacedName, Peer, SpiffeId, World};

use super::exports::Exports;
use super::imports::ImportReport;
use super::memo::Memo;
pub use inbound::Inbound;
pub(super) use inbound::InboundOf;
pub use tls::{PROVIDER, SPIRE_CLUSTER, SVID_NAME};
pub use types::{Resource, ResourceType, TypeMap, Version};

/// Everything that is served, whoever asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xds {
    /// What is imported, by host.
    pub offers: BTreeMap<String, Arc<Offer>>,
    /// What the proxies of our servers need, by the SPIFFE ID that the server has.
    pub inbound: BTreeMap<SpiffeId, Arc<Inbound>>,
}

/// An imported service as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub audience: Audience,
    pub ports: Vec<PortOffer>,
}

/// One port of it: whoever may call it gets all of it, and nobody else any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOffer {
    /// Who may call it by the exporter's word; never empty.
    pub clients: BTreeSet<ClientPattern>,
    pub envoy: Vec<Resource>,
    /// Empty for what no gRPC client calls.
    pub grpc: Vec<Resource>,
}

/// Which of our workloads an import is for, by `spec.imports.exportTo` of its TrustDomainPeer. Istio means namespaces by it; a
/// client of xDS is of the namespace that its SPIFFE ID names, by the convention `/ns/NAMESPACE/...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    Everybody,
    /// Of these namespaces; a client whose ID names none is of none.
    Namespaces(BTreeSet<String>),
}

impl Audience {
    /// `namespace` is what `.` stands for: where the ImportedServices are.
    #[must_use]
    fn of(peer: &Peer, namespace: &str) -> Self {
        let all = &peer.imports.export_to;
        if all.iter().any(|one| one == "*") {
            return Self::Everybody;
        }
        let named = all.iter().filter(|one| *one != "~");
        let named = named.map(|one| if one == "." { namespace.to_owned() } else { one.clone() });
        Self::Namespaces(named.collect())
    }

    /// Whether it is for this client.
    #[must_use]
    pub fn holds(&self, client: &SpiffeId) -> bool {
        match self {
            Self::Everybody => true,
            Self::Namespaces(namespaces) => {
                let mut parts = client.path().split('/').skip(1);
                parts.next() == Some("ns") && parts.next().is_some_and(|name| namespaces.contains(name))
            }
        }
    }
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
            down: if refused.is_empty() { BTreeSet::new() } else { down(imported, &refused) },
        };
        let offer = memo.offers.get(name, &input, |input| Arc::new(offer(input)));
        xds.offers.insert(name.name.clone(), offer);
    }
    xds.inbound = inbound::plan(exports, &world.settings, memo);
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
        clients: if port.clients.is_empty() { service.clients.clone() } else { port.clients.clone() },
        envoy: envoy::resources(input, port),
        grpc: grpc::resources(input, port),
    };
    Offer { audience: input.audience.clone(), ports: service.ports.iter().map(port).collect() }
}

/// The name of every resource of a port: what a gRPC client calls `xds:///NAME`.
fn name(input: &OfferOf, port: &RemotePort) -> String {
    format!("{}:{}", input.imported.object.name, port.port)
}

//! What one client sees of what is served: exactly the services whose exporter names its SPIFFE ID, and that are for its
//! namespace; and if it is the proxy of a server of ours, what that needs.

use std::sync::Arc;

use super::types::{Resource, ResourceType, TypeMap};
use super::{Offer, PortOffer, Xds};
use crate::model::SpiffeId;

/// What sort of client it is: one set of resources cannot serve both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientKind {
    Envoy,
    Grpc,
}

impl ClientKind {
    /// By what the client calls itself (`user_agent_name` of its node): gRPC libraries say `gRPC` and a language.
    #[must_use]
    pub fn of_user_agent(name: &str) -> Self {
        if name.starts_with("gRPC") || name.starts_with("grpc") { Self::Grpc } else { Self::Envoy }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Grpc => "grpc",
        }
    }
}

/// All that one client may have. Clones share it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    clusters: Arc<TypeMap>,
    endpoints: Arc<TypeMap>,
    listeners: Arc<TypeMap>,
}

impl View {
    /// For the client with this ID.
    #[must_use]
    pub fn of(xds: &Xds, client: &SpiffeId, kind: ClientKind) -> Self {
        let text = client.to_string();
        let (mut clusters, mut endpoints, mut listeners) = (TypeMap::new(), TypeMap::new(), TypeMap::new());
        let mut add = |resource: &Resource| {
            let map = match resource.kind {
                ResourceType::Cluster => &mut clusters,
                ResourceType::Endpoints => &mut endpoints,
                ResourceType::Listener => &mut listeners,
            };
            map.insert(Arc::clone(&resource.name), resource.clone());
        };
        let all = xds.offers.values().flat_map(|offer: &Arc<Offer>| &offer.ports);
        for port in all.filter(|port| may_call(port, client, &text)) {
            match kind {
                ClientKind::Envoy => port.envoy.iter().for_each(&mut add),
                ClientKind::Grpc => port.grpc.iter().for_each(&mut add),
            }
        }
        let own = xds.inbound.get(client).filter(|_| kind == ClientKind::Envoy);
        own.into_iter().flat_map(|own| &own.resources).for_each(&mut add);
        Self { clusters: Arc::new(clusters), endpoints: Arc::new(endpoints), listeners: Arc::new(listeners) }
    }

    /// The resources of one type.
    #[must_use]
    pub const fn of_type(&self, kind: ResourceType) -> &Arc<TypeMap> {
        match kind {
            ResourceType::Cluster => &self.clusters,
            ResourceType::Endpoints => &self.endpoints,
            ResourceType::Listener => &self.listeners,
        }
    }
}

fn may_call(port: &PortOffer, client: &SpiffeId, text: &str) -> bool {
    port.whom.holds(client, text)
}

//! The few kinds of Istio that the agent writes or reads (`networking.istio.io/v1`, `security.istio.io/v1`), with the
//! fields that it uses of them. Specs only: metadata is the store's.

pub mod authorization_policy;
pub mod destination_rule;
pub mod gateway;
pub mod peer_authentication;
pub mod service_entry;
pub mod virtual_service;

pub use authorization_policy::AuthorizationPolicySpec;
pub use destination_rule::DestinationRuleSpec;
pub use gateway::GatewaySpec;
pub use peer_authentication::PeerAuthenticationSpec;
pub use service_entry::ServiceEntrySpec;
pub use virtual_service::VirtualServiceSpec;

use serde::{Deserialize, Serialize};

/// Kubernetes' own form of a port in Istio's objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    pub number: u16,
    /// A DNS label, unique in its object.
    pub name: String,
    /// TCP, HTTP, HTTP2, GRPC, HTTPS or TLS.
    pub protocol: String,
    /// In a ServiceEntry: what the endpoints listen on, where they do not say it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
}

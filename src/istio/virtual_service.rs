//! `networking.istio.io/v1` VirtualService, for TLS that is passed on by its SNI, and for hosts that several others serve.

use serde::{Deserialize, Serialize};

/// Where what comes in at the gateways goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServiceSpec {
    pub hosts: Vec<String>,
    /// `namespace/name` of Gateways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// Namespaces that see it; absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<TlsRoute>,
    /// For the ports on which HTTP is spoken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<PortRoute>,
    /// For those on which it is not, nor TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<PortRoute>,
}

/// What comes to a port of the host is spread over these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortRoute {
    pub r#match: Vec<PortMatch>,
    pub route: Vec<WeightedRoute>,
}

/// By the port that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMatch {
    pub port: u16,
}

/// A share of the connections or requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedRoute {
    pub destination: Destination,
    /// In proportion to those of the others; absent where there is no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// TLS connections that match go to one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsRoute {
    pub r#match: Vec<TlsMatch>,
    pub route: Vec<Route>,
}

/// By the port of the gateway, and the SNI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsMatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub sni_hosts: Vec<String>,
}

/// See [`Destination`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub destination: Destination,
}

/// A host of the mesh's registry, and a port of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    pub host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
}

/// A port by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSelector {
    pub number: u16,
}

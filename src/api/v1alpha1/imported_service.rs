//! ImportedService: a service of a peer that was admitted. Written by the agent.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{Condition, TlsMode, limits};

/// What the peer exported, at its last word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "entente.dev",
    version = "v1alpha1",
    kind = "ImportedService",
    plural = "importedservices",
    shortname = "isvc",
    category = "entente",
    namespaced,
    status = "ImportedServiceStatus",
    derive = "PartialEq",
    doc = "A service of a foreign trust domain, as its agent exported it and as it was admitted here. Written by the agent: do not edit it, edit spec.imports of the TrustDomainPeer.",
    printcolumn = r#"{"name":"Host","type":"string","jsonPath":".spec.host","description":"The name by which to call it"}"#,
    printcolumn = r#"{"name":"Trust Domain","type":"string","jsonPath":".spec.trustDomain","description":"The trust domain that exported it"}"#,
    printcolumn = r#"{"name":"Admitted","type":"string","jsonPath":".status.conditions[?(@.type==\"Admitted\")].status","description":"Whether the TrustDomainPeer admits it"}"#,
    printcolumn = r#"{"name":"Generated","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Generated\")].status","description":"Whether what clients need was generated"}"#,
    printcolumn = r#"{"name":"Why","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Admitted\")].reason","description":"The reason of the condition Admitted"}"#,
    printcolumn = r#"{"name":"Local Name","type":"string","jsonPath":".status.localHost","description":"The local name at which it answers as well"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ImportedServiceSpec {
    /// The trust domain that exported it.
    #[schemars(length(min = 1, max = 255))]
    pub trust_domain: String,
    /// Its name there: a DNS label.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its namespace there: a DNS label.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name by which to call it: `{name}.{namespace}.{trustDomain}`.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Its ports, 1 to 64.
    #[schemars(length(min = 1, max = limits::PORTS))]
    pub ports: Vec<ImportedPort>,
    /// Who ends mutual TLS at its server.
    pub tls_mode: TlsMode,
    /// The SPIFFE IDs that its servers may present, in `trustDomain`, 1 to 64. Clients pin them.
    #[serde(rename = "serverSPIFFEIDs")]
    #[schemars(length(min = 1, max = limits::SERVER_IDS), inner(length(min = 11, max = limits::SPIFFE_ID)))]
    pub server_spiffe_ids: Vec<String>,
    /// Our SPIFFE IDs that its server lets in, at most 1,000; a trailing `/*` stands for every path below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::CLIENTS), inner(length(min = 11, max = limits::SPIFFE_ID)))]
    pub clients: Vec<String>,
    /// Where it is reached, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::GATEWAYS))]
    pub gateways: Vec<ImportedGateway>,
    /// Its pods, at most 64, where it is reached without a gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::GATEWAYS))]
    pub endpoints: Vec<ImportedEndpoint>,
}

/// A port of an imported service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportedPort {
    /// A DNS label.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What clients call, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// tcp, http, http2, grpc, https or tls.
    #[schemars(length(min = 1, max = 63))]
    pub app_protocol: String,
    /// Our SPIFFE IDs that its server lets in on this port, at most 1,000; a trailing `/*` stands for every path below.
    /// Absent: those in `clients`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::CLIENTS), inner(length(min = 11, max = limits::SPIFFE_ID)))]
    pub clients: Vec<String>,
}

/// Where an imported service is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportedGateway {
    /// An IP address or a DNS name.
    #[schemars(length(min = 2, max = 253))]
    pub address: String,
    /// 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// A pod that backs an imported service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportedEndpoint {
    /// An IP address.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// What it listens on, for each port of the service.
    #[schemars(length(min = 1, max = limits::PORTS))]
    pub ports: Vec<EndpointPort>,
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    /// The name of the service's port.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// What became of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportedServiceStatus {
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Admitted and Generated, and ServedLocally where `imports.asLocal` names it, and TakenByClients while a client of xDS refuses some of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// The addresses at which its ServiceEntry has it, and at which the agent's DNS server answers for it: out of the agent's
    /// range for imports, and its own as long as it is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(max = 45)))]
    pub addresses: Vec<String>,
    /// The local name at which it answers as well, where `imports.asLocal` asks for that and it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub local_host: Option<String>,
    /// The addresses of the local name, where it has some of its own: without Istio, where clients are served by xDS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(max = 45)))]
    pub local_addresses: Vec<String>,
    /// What was generated from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub generated: Vec<Generated>,
}

/// An object that was generated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Generated {
    /// Its kind.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its namespace; absent where it is cluster-scoped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

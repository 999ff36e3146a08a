//! FederatedService: a service that workloads of foreign trust domains may call.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{Condition, TlsMode, limits};

/// What is exported, to whom, and who there may call it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "entente.dev",
    version = "v1alpha1",
    kind = "FederatedService",
    plural = "federatedservices",
    shortname = "fsvc",
    category = "entente",
    namespaced,
    status = "FederatedServiceStatus",
    derive = "PartialEq",
    doc = "A service of this namespace that is exported to foreign trust domains, where it is called at {name}.{namespace}.{trustDomain}.",
    printcolumn = r#"{"name":"Host","type":"string","jsonPath":".status.host","description":"The name by which importers call it"}"#,
    printcolumn = r#"{"name":"TLS","type":"string","jsonPath":".spec.tlsMode","description":"Who ends mutual TLS at the server"}"#,
    printcolumn = r#"{"name":"Exported To","type":"string","jsonPath":".spec.exportedTrustDomains","description":"The trust domains it is exported to"}"#,
    printcolumn = r#"{"name":"Imported","type":"string","jsonPath":".status.imported","description":"How many of them have imported it, of how many"}"#,
    printcolumn = r#"{"name":"Exported","type":"string","jsonPath":".status.conditions[?(@.type==\"Exported\")].status","description":"Whether every one of them has imported it"}"#,
    printcolumn = r#"{"name":"Why","type":"string","jsonPath":".status.conditions[?(@.type==\"Exported\")].reason","description":"The reason of the condition Exported"}"#,
    printcolumn = r#"{"name":"Clients Enforced","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"ClientsEnforced\")].status","description":"Whether callers that are not in clients are refused before the application sees them"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.workloadLabels), has(self.serviceRef), has(self.endpoints)].exists_one(given, given)")
        .message("exactly one of workloadLabels, serviceRef and endpoints must be given"),
    validation = Rule::new("has(self.ports) || has(self.serviceRef)")
        .message("ports must be given, unless serviceRef is")
)]
pub struct FederatedServiceSpec {
    /// The first label of the host name: a DNS label. Default: `metadata.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// The labels of the pods that back the service, 1 to 64. Either this, `serviceRef` or `endpoints`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "workload_labels")]
    pub workload_labels: Option<BTreeMap<String, String>>,
    /// The Service of this namespace whose pods back it: those that its selector chooses. Either this, `workloadLabels` or
    /// `endpoints`. While the Service is not there, nothing is exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ref: Option<ServiceRef>,
    /// Where the application is that backs it, outside of every mesh: 1 to 64 addresses, as the Envoy in front of it reaches them; on
    /// one machine with it `127.0.0.1`. That Envoy takes its configuration from the agent (xDS), has one of `serverSPIFFEIDs`, ends
    /// mutual TLS in both modes, and is what `gateways` names. Either this, `workloadLabels` or `serviceRef`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = limits::SERVICE_ENDPOINTS))]
    pub endpoints: Vec<Endpoint>,
    /// The ports that are exported, 1 to 64, with distinct numbers and names. Without any, and with `serviceRef`: all TCP ports of
    /// the Service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = limits::PORTS))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b.port == a.port))").message("each port number must be given once"))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b.name == a.name))").message("each port name must be given once"))]
    pub ports: Vec<Port>,
    /// Who ends mutual TLS at the server. `IstioMtls`: its Istio sidecar. `Mtls`: the application, with its own SVID. No default.
    pub tls_mode: TlsMode,
    /// The trust domains that it is exported to, 1 to 256; each needs a TrustDomainPeer. Not our own.
    #[schemars(
        length(min = 1, max = limits::EXPORTED_TRUST_DOMAINS),
        inner(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))
    )]
    pub exported_trust_domains: Vec<String>,
    /// Who there may call it.
    pub clients: Clients,
    /// The SPIFFE IDs that its servers may present, in our own trust domain, at most 64; importers pin them. Default: those of
    /// the pods' registration entries in SPIRE, else those of their service accounts, `spiffe://{trustDomain}/ns/{namespace}/sa/{name}`.
    /// While none is known it is not exported.
    #[serde(rename = "serverSPIFFEIDs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::SERVER_IDS), inner(length(min = 11, max = limits::SPIFFE_ID)))]
    pub server_spiffe_ids: Vec<String>,
    /// Where importers reach it, at most 64, in place of the gateway that is found by its Service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::GATEWAYS))]
    pub gateways: Vec<Gateway>,
}

/// The labels of the pods: at least one, so that a service is never backed by every pod.
fn workload_labels(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = super::labels(generator);
    schema.insert("minProperties".to_owned(), 1.into());
    schema
}

/// A Service of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// An address of the application. It listens on `targetPort` of each port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.hostname) != has(self.ip)").message("exactly one of hostname and ip must be given")
)]
pub struct Endpoint {
    /// Its DNS name, of at least two labels, which the Envoy in front of it resolves. Either this or `ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 253))]
    pub hostname: Option<String>,
    /// Its IP address, v4 or v6. Either this or `hostname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    pub ip: Option<String>,
}

/// A port that is exported. TCP, or a protocol over it; never UDP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// A DNS label, distinct among the ports.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What importers see, 1 to 65535; part of the SNI.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// What the workload listens on: a number, 1 to 65535, or the name of a port of the pods. Default: what the Service of
    /// `serviceRef` has for `port`; without one, `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "target_port")]
    pub target_port: Option<TargetPort>,
    /// The protocol, as in a Kubernetes Service: tcp, http, http2, grpc, https, tls or kubernetes.io/h2c. Default: what the Service
    /// of `serviceRef` says of `port`; else what the port's name begins with, as in `grpc-orders`; else tcp, and with `tlsMode`
    /// `Mtls` tls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub app_protocol: Option<String>,
    /// Who may call this port, in place of the service's `clients`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Clients>,
}

/// A port of the workload, by its number or its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    Number(i32),
    Name(String),
}

/// An integer or a string, as in a Kubernetes Service.
fn target_port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "minimum": 1,
        "maximum": 65535,
        "maxLength": 63,
    })
}

/// Who may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Clients {
    /// Foreign SPIFFE IDs, 1 to 1,000, each in one of `exportedTrustDomains`. A trailing `/*` stands for every path below.
    #[serde(rename = "spiffeIDs")]
    #[schemars(length(min = 1, max = limits::CLIENTS), inner(length(min = 11, max = limits::SPIFFE_ID)))]
    pub spiffe_ids: Vec<String>,
}

/// A gateway through which importers reach the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.hostname) != has(self.ip)").message("exactly one of hostname and ip must be given")
)]
pub struct Gateway {
    /// Which of Istio's gateways it is: the one that carries `IstioMtls` is `istio-eastwestgateway`, for `Mtls` it is
    /// `istio-ingressgateway`.
    #[serde(rename = "type")]
    pub kind: GatewayType,
    /// The port that it listens on, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Its DNS name, of at least two labels. Either this or `ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 253))]
    pub hostname: Option<String>,
    /// Its IP address, v4 or v6. Either this or `hostname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    pub ip: Option<String>,
}

/// Istio's gateways, by the names of their Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GatewayType {
    #[serde(rename = "istio-ingressgateway")]
    IngressGateway,
    #[serde(rename = "istio-eastwestgateway")]
    EastWestGateway,
}

/// What became of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FederatedServiceStatus {
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, Exported and ClientsEnforced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// The name by which importers call it: `{name}.{namespace}.{trustDomain}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub host: Option<String>,
    /// The gateways that importers are told of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::GATEWAYS))]
    pub gateway_entries: Vec<GatewayEntry>,
    /// How many of the trust domains that it is exported to have imported it, by their own word, of how many: `1/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub imported: Option<String>,
    /// The SPIFFE IDs of its servers, which importers pin.
    #[serde(rename = "serverSPIFFEIDs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::SERVER_IDS), inner(length(max = limits::SPIFFE_ID)))]
    pub server_spiffe_ids: Vec<String>,
    /// Which port of its workloads each of its ports leads to, where nothing of Istio's stands before them: one that is given by a name
    /// stays as it is while no pod has the name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::PORTS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["port".to_owned()]))]
    pub target_ports: Vec<TargetPortEntry>,
    /// What each trust domain that it is exported to did with it, by its own word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::EXPORTED_TRUST_DOMAINS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["trustDomain".to_owned()]))]
    pub exported_to: Vec<ExportedTo>,
}

/// Where a port leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetPortEntry {
    /// Its number for importers.
    pub port: i32,
    /// Its number at the workload.
    pub target_port: i32,
}

/// A gateway that importers are told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayEntry {
    /// Which of Istio's gateways it is.
    #[serde(rename = "type")]
    pub kind: GatewayType,
    /// Its IP address or DNS name.
    #[schemars(length(max = 253))]
    pub address: String,
    /// The port that it listens on.
    pub port: i32,
}

/// What one importer did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExportedTo {
    /// The importer.
    #[schemars(length(max = 255))]
    pub trust_domain: String,
    /// Whether it has answered the present state of the export.
    pub acknowledged: bool,
    /// `Imported`, `Refused` or `Pending`.
    #[schemars(length(max = 63))]
    pub outcome: String,
    /// Why, where it is refused or pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

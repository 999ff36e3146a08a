//! ServiceExportRule: exports every Service that its selectors choose.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::federated_service::{Clients, GatewayEntry};
use super::{Condition, LabelSelector, TlsMode, limits};

/// Which Services are exported, to whom, and who there may call them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "entente.dev",
    version = "v1alpha1",
    kind = "ServiceExportRule",
    plural = "serviceexportrules",
    shortname = "serule",
    category = "entente",
    status = "ServiceExportRuleStatus",
    derive = "PartialEq",
    doc = "Exports every Service that its selectors choose, under the Service's own name, as a FederatedService of that name would. A FederatedService of the same name and namespace wins over a rule, and an older rule over a younger.",
    printcolumn = r#"{"name":"TLS","type":"string","jsonPath":".spec.tlsMode","description":"Who ends mutual TLS at the servers"}"#,
    printcolumn = r#"{"name":"Exported To","type":"string","jsonPath":".spec.exportedTrustDomains","description":"The trust domains that the Services are exported to"}"#,
    printcolumn = r#"{"name":"Services","type":"integer","jsonPath":".status.services.exported","description":"How many Services it exports"}"#,
    printcolumn = r#"{"name":"Imported","type":"integer","jsonPath":".status.services.imported","description":"How many of them every trust domain has imported"}"#,
    printcolumn = r#"{"name":"Skipped","type":"integer","jsonPath":".status.services.skipped","description":"How many Services it selects and does not export"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status","description":"Whether the rule is acted on"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportRuleSpec {
    /// Over the labels of Services. An empty selector chooses every Service, so it must be given.
    pub service_selector: LabelSelector,
    /// Over the labels of the Services' namespaces. Absent or empty: every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// The trust domains that they are exported to, 1 to 256; each needs a TrustDomainPeer. Not our own.
    #[schemars(
        length(min = 1, max = limits::EXPORTED_TRUST_DOMAINS),
        inner(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))
    )]
    pub exported_trust_domains: Vec<String>,
    /// Who ends mutual TLS at the servers. No default.
    pub tls_mode: TlsMode,
    /// Who there may call them.
    pub clients: Clients,
}

/// What became of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportRuleStatus {
    /// The `metadata.generation` that this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted and Exported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// How many Services it selects, and what became of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<RuleCounts>,
    /// The gateways that importers of them are told of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::GATEWAYS))]
    pub gateway_entries: Vec<GatewayEntry>,
    /// Services that it selects and does not export, by name, at most 32 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::SKIPPED))]
    pub skipped: Vec<SkippedService>,
}

/// How many Services a rule selects, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleCounts {
    /// Offered to at least one trust domain.
    pub exported: i32,
    /// Of these, imported by every trust domain that they are to go to.
    pub imported: i32,
    /// Not exported.
    pub skipped: i32,
}

/// A Service that a rule selects and does not export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SkippedService {
    /// Its namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Why, in one word: one of the reasons of Exported, or of Accepted of a FederatedService.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// Why, and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}

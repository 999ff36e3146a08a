//! The mesh configuration, istiods, and the configuration of SPIRE's agents, to the model.
//!
//! These objects are others'. What is odd in one is left out of it; what cannot be read at all is said to be so, with what
//! to do about it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::model::mesh::{ControlPlane, ISTIO_ROOTS, MeshConfig, SdsNames, Version};
use crate::model::{NamespacedName, Object, TrustDomain};
use crate::store::directory::from_yaml;

/// The key of the ConfigMap that holds the mesh configuration.
pub const MESH_KEY: &str = "mesh";
/// The key of the ConfigMap that holds the configuration of SPIRE's agents.
pub const SPIRE_AGENT_KEY: &str = "agent.conf";
/// Most names of a list, and most containers or variables, that are looked at.
const MOST: usize = 1_000;
/// What Istio takes where `trustDomain` is not set.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Where the version of an istiod may be written, the first that is there.
const VERSION_LABELS: [&str; 3] =
    ["app.kubernetes.io/version", "operator.istio.io/version", "helm.sh/chart-version"];
/// The container of istiod.
const DISCOVERY: &str = "discovery";

/// Reads the ConfigMap of the mesh configuration.
///
/// # Errors
/// Where the key is not there, or is no YAML: what, and what to do.
pub fn config(object: &Object) -> Result<MeshConfig, String> {
    let name = named(object);
    let text = object.body.get("data").and_then(|data| data.get(MESH_KEY)).and_then(Value::as_str);
    let text = text.ok_or_else(|| {
        format!("ConfigMap {name} has no key `{MESH_KEY}`: istiod runs on defaults; write the mesh configuration there")
    })?;
    let mesh = from_yaml(text)
        .map_err(|cause| {
            format!("ConfigMap {name}: `{MESH_KEY}` is no YAML ({cause}): istiod keeps what it had; mend it")
        })?
        .unwrap_or_default();
    if !(mesh.is_object() || mesh.is_null()) {
        return Err(format!("ConfigMap {name}: `{MESH_KEY}` is no mapping; mend it"));
    }
    let ca = items(field(&mesh, "caCertificates", "ca_certificates"));
    let metadata = field(field(&mesh, "defaultConfig", "default_config"), "proxyMetadata", "proxy_metadata");
    let own = field(&mesh, "trustDomain", "trust_domain").as_str().filter(|text| !text.is_empty());
    Ok(MeshConfig {
        object: name,
        trust_domain: TrustDomain::new(own.unwrap_or(DEFAULT_TRUST_DOMAIN)).ok(),
        aliases: trust_domains(field(&mesh, "trustDomainAliases", "trust_domain_aliases")),
        ca_trust_domains: ca
            .flat_map(|one| trust_domains(field(one, "trustDomains", "trust_domains")))
            .collect(),
        captures_dns: is_set(&metadata["ISTIO_META_DNS_CAPTURE"]),
        proxies_allocate: is_set(&metadata["ISTIO_META_DNS_AUTO_ALLOCATE"]),
    })
}

/// Reads the Deployment of an istiod.
#[must_use]
pub fn control_plane(object: &Object) -> ControlPlane {
    let containers = object.spec().and_then(|spec| spec.pointer("/template/spec/containers"));
    let containers = containers.unwrap_or(&Value::Null);
    let discovery =
        items(containers).find(|one| one["name"] == DISCOVERY).or_else(|| items(containers).next());
    let discovery = discovery.unwrap_or(&Value::Null);
    let set = |name: &str| items(&discovery["env"]).find(|one| one["name"] == name).map(|one| &one["value"]);
    let labelled = VERSION_LABELS.iter().find_map(|label| Version::parse(object.meta.labels.get(*label)?));
    let tag = discovery["image"].as_str().and_then(|image| {
        let (_, name) = image.split('@').next()?.rsplit_once('/').unwrap_or(("", image));
        name.rsplit_once(':').map(|(_, tag)| tag)
    });
    ControlPlane {
        object: named(object),
        version: labelled.or_else(|| Version::parse(tag?)),
        skips_trust_domains: set("PILOT_SKIP_VALIDATE_TRUST_DOMAIN").is_some_and(is_set),
        allocates_addresses: set("PILOT_ENABLE_IP_AUTOALLOCATE").map(is_set),
        shared_config: set("SHARED_MESH_CONFIG")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
    }
}

/// Reads the ConfigMap of SPIRE's agents; nothing where it has no configuration of one.
#[must_use]
pub fn sds_names(object: &Object) -> Option<SdsNames> {
    let text = object.body.get("data")?.get(SPIRE_AGENT_KEY)?.as_str()?;
    let named_or = |name: &str, default: &str| setting(text, name).unwrap_or_else(|| default.to_owned());
    Some(SdsNames {
        object: named(object),
        own: named_or("default_bundle_name", ISTIO_ROOTS),
        all: named_or("default_all_bundles_name", "ALL"),
    })
}

/// The value of a setting in HCL or in its JSON form: `name = "value"` or `"name": "value"`, outside comments.
fn setting(text: &str, name: &str) -> Option<String> {
    text.lines().filter_map(|line| in_line(without_comment(line), name)).next_back().map(str::to_owned)
}

fn in_line<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (before, after) = line.split_once(name)?;
    let is_whole = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    if !before.chars().next_back().is_none_or(is_whole) || !after.chars().next().is_none_or(is_whole) {
        return None;
    }
    let after = after.strip_prefix('"').unwrap_or(after).trim_start();
    let value =
        after.strip_prefix('=').or_else(|| after.strip_prefix(':'))?.trim_start().strip_prefix('"')?;
    value.split_once('"').map(|(value, _)| value)
}

/// A line up to `#` or `//` that is in no string.
fn without_comment(line: &str) -> &str {
    let mut is_in_string = false;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match c {
            '"' => is_in_string = !is_in_string,
            '#' if !is_in_string => return line.get(..at).unwrap_or_default(),
            '/' if before == '/' && !is_in_string => return line.get(..at - 1).unwrap_or_default(),
            _ => {}
        }
        before = c;
    }
    line
}

/// A field by the name that it has in JSON, or in Protobuf, which is read as well.
fn field<'a>(value: &'a Value, json: &str, proto: &str) -> &'a Value {
    value.get(json).or_else(|| value.get(proto)).unwrap_or(&Value::Null)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten().take(MOST)
}

fn trust_domains(value: &Value) -> BTreeSet<TrustDomain> {
    items(value).filter_map(|one| TrustDomain::new(one.as_str()?).ok()).collect()
}

/// As Go reads a boolean.
fn is_set(value: &Value) -> bool {
    matches!(value.as_str(), Some("1" | "t" | "T" | "true" | "TRUE" | "True")) || value == true
}

fn named(object: &Object) -> NamespacedName {
    NamespacedName::new(object.key.namespace.clone().unwrap_or_default(), object.key.name.clone())
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;

//! AuthorizationPolicies as Istio's sidecar applies them (`security.istio.io/v1`), as far as the agent writes them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::istio::AuthorizationPolicySpec;
use crate::istio::authorization_policy::{Action, Operation, Rule, Source};
use crate::model::SpiffeId;
use crate::store::directory;

/// The policies that select one workload.
#[derive(Clone, Debug, Default)]
pub struct Policies(BTreeMap<String, AuthorizationPolicySpec>);

/// A caller that is refused, and by what.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RBAC: access denied: {policy} refuses {caller} on port {port}")]
pub struct Denied {
    pub policy: String,
    pub caller: SpiffeId,
    pub port: u16,
}

impl Policies {
    /// Reads what the agent generated for workloads with these labels in a namespace.
    ///
    /// # Errors
    /// Names the file that cannot be read: who cannot tell whom to refuse, must refuse.
    pub fn read(
        generated: &Path,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let mut policies = BTreeMap::new();
        let folder = generated.join("authorizationpolicies");
        let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Self::default()) };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let unreadable = |cause: String| format!("{}: {cause}", path.display());
            let document = match directory::read_document(&path) {
                Err(_) if !path.exists() => continue,
                read => read.map_err(unreadable)?,
            };
            let text = |pointer: &str| document.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default();
            if text("/metadata/namespace") != namespace {
                continue;
            }
            let name = format!("AuthorizationPolicy {namespace}/{}", text("/metadata/name"));
            let spec = document.get("spec").cloned().unwrap_or_default();
            let spec: AuthorizationPolicySpec =
                serde_json::from_value(spec).map_err(|e| unreadable(e.to_string()))?;
            let mut wanted = spec.selector.iter().flat_map(|selector| &selector.match_labels);
            if wanted.all(|(label, value)| labels.get(label) == Some(value)) {
                policies.insert(name, spec);
            }
        }
        Ok(Self(policies))
    }

    /// Whether a caller over mutual TLS may use a port, which is the one that the workload listens on.
    ///
    /// # Errors
    /// [`Denied`] by a policy that denies, or because there are some that allow and none of these does.
    pub fn judge(&self, caller: &SpiffeId, port: u16) -> Result<(), Denied> {
        let denied = |policy: &str| Denied { policy: policy.to_owned(), caller: caller.clone(), port };
        let matches =
            |spec: &AuthorizationPolicySpec| spec.rules.iter().any(|rule| rule_matches(rule, caller, port));
        let of = |action: Action| self.0.iter().filter(move |(_, spec)| spec.action == action);
        if let Some((policy, _)) = of(Action::Deny).find(|(_, spec)| matches(spec)) {
            return Err(denied(policy));
        }
        match of(Action::Allow).next() {
            Some((policy, _)) if !of(Action::Allow).any(|(_, spec)| matches(spec)) => Err(denied(policy)),
            _ => Ok(()),
        }
    }
}

fn rule_matches(rule: &Rule, caller: &SpiffeId, port: u16) -> bool {
    // principals are written without the scheme
    let principal = caller.to_string();
    let principal = principal.strip_prefix("spiffe://").unwrap_or(&principal);
    (rule.from.is_empty() || rule.from.iter().any(|from| source_matches(&from.source, principal)))
        && (rule.to.is_empty() || rule.to.iter().any(|to| operation_matches(&to.operation, port)))
}

fn source_matches(source: &Source, principal: &str) -> bool {
    (source.principals.is_empty() || source.principals.iter().any(|p| pattern_matches(p, principal)))
        && !source.not_principals.iter().any(|p| pattern_matches(p, principal))
}

fn operation_matches(operation: &Operation, port: u16) -> bool {
    let port = port.to_string();
    (operation.ports.is_empty() || operation.ports.contains(&port)) && !operation.not_ports.contains(&port)
}

/// Exact, or with `*` at one end; `*` alone is whoever has an identity.
fn pattern_matches(pattern: &str, principal: &str) -> bool {
    match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(prefix), _) => principal.starts_with(prefix),
        (None, Some(suffix)) => principal.ends_with(suffix),
        (None, None) => pattern == principal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SpiffeId {
        SpiffeId::new(text).unwrap()
    }

    fn policies(spec: serde_json::Value) -> Policies {
        Policies(BTreeMap::from([("p".to_owned(), serde_json::from_value(spec).unwrap())]))
    }

    #[test]
    fn a_policy_that_denies_speaks_for_its_ports_and_principals() {
        let policies = policies(serde_json::json!({
            "selector": { "matchLabels": { "app": "cart" } },
            "action": "DENY",
            "rules": [
                {
                    "from": [{ "source": { "principals": ["*"],
                        "notPrincipals": ["west.example/*", "east.example/ns/web/sa/frontend"] } }],
                    "to": [{ "operation": { "ports": ["8080"] } }],
                },
                {
                    "from": [{ "source": { "principals": ["*"], "notPrincipals": ["west.example/*"] } }],
                    "to": [{ "operation": { "notPorts": ["8080"] } }],
                },
            ],
        }));
        let frontend = id("spiffe://east.example/ns/web/sa/frontend");
        assert_eq!(policies.judge(&frontend, 8080), Ok(()));
        assert!(policies.judge(&frontend, 8081).is_err());
        assert_eq!(policies.judge(&id("spiffe://west.example/anything"), 8081), Ok(()));
        let intruder = id("spiffe://east.example/ns/web/sa/frontend2");
        let denied = policies.judge(&intruder, 8080).unwrap_err();
        assert!(denied.to_string().contains("spiffe://east.example/ns/web/sa/frontend2"), "{denied}");
        assert!(policies.judge(&id("spiffe://west.example.evil/x"), 8080).is_err());
    }

    #[test]
    fn policies_that_allow_shut_out_whom_none_of_them_names() {
        let policies = policies(serde_json::json!({
            "selector": { "matchLabels": {} },
            "action": "ALLOW",
            "rules": [{ "from": [{ "source": { "principals": ["*/sa/frontend"] } }] }],
        }));
        assert_eq!(policies.judge(&id("spiffe://east.example/ns/web/sa/frontend"), 1), Ok(()));
        assert!(policies.judge(&id("spiffe://east.example/ns/web/sa/other"), 1).is_err());
        let none = Policies::default();
        assert_eq!(none.judge(&id("spiffe://east.example/ns/web/sa/other"), 1), Ok(()));
    }
}

//! What RBAC grants a service account, held against what it asked for, as the audit log has it.

use crate::kubernetes::{Kubernetes, Request};
use anyhow::Result;
use kube::api::ListParams;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;

const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// One verb on one resource, as one rule grants it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grant {
    /// The namespace it is for; `None` for all of the cluster.
    namespace: Option<String>,
    group: String,
    /// With the subresource.
    resource: String,
    /// Empty: all.
    names: BTreeSet<String>,
    verb: String,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.namespace.as_deref().unwrap_or("the whole cluster");
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.names.is_empty() {
            write!(f, " {:?}", self.names)?;
        }
        write!(f, " in {place}")
    }
}

impl Grant {
    /// Whether it is what let this request through. An apply of what was not there takes `create`, too.
    fn is_used_by(&self, request: &Request) -> bool {
        let creates = request.verb == "patch" && request.code == 201 && self.verb == "create";
        (request.verb == self.verb || creates)
            && request.group == self.group
            && request.resource == self.resource
            && (self.names.is_empty() || self.names.contains(&request.name))
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == request.namespace)
    }
}

/// All that is granted to a service account by name.
pub(crate) async fn granted(
    kubernetes: &Kubernetes,
    namespace: &str,
    account: &str,
) -> Result<BTreeSet<Grant>> {
    let mut grants = BTreeSet::new();
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        for binding in kubernetes.api(RBAC, kind, None).await?.list(&ListParams::default()).await? {
            let subjects = binding.data["subjects"].as_array().cloned().unwrap_or_default();
            let is = |subject: &Value| {
                subject["kind"] == "ServiceAccount"
                    && subject["name"] == account
                    && subject["namespace"] == namespace
            };
            if !subjects.iter().any(is) {
                continue;
            }
            let role = &binding.data["roleRef"];
            let (kind, name) = (text(&role["kind"]), text(&role["name"]));
            let place = binding.metadata.namespace;
            let of_role = if kind == "Role" { place.as_deref() } else { None };
            let role = kubernetes.api(RBAC, &kind, of_role).await?.get(&name).await?;
            for rule in role.data["rules"].as_array().into_iter().flatten() {
                grants.extend(of_rule(rule, place.as_ref()));
            }
        }
    }
    Ok(grants)
}

fn of_rule(rule: &Value, namespace: Option<&String>) -> Vec<Grant> {
    let list =
        |field: &str| -> Vec<String> { rule[field].as_array().into_iter().flatten().map(text).collect() };
    let names: BTreeSet<String> = list("resourceNames").into_iter().collect();
    let mut grants = Vec::new();
    for group in list("apiGroups") {
        for resource in list("resources") {
            for verb in list("verbs") {
                grants.push(Grant {
                    namespace: namespace.cloned(),
                    group: group.clone(),
                    resource: resource.clone(),
                    names: names.clone(),
                    verb,
                });
            }
        }
    }
    grants
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What was refused for want of a right, each once.
pub(crate) fn forbidden(requests: &[Request]) -> BTreeSet<String> {
    let of = |request: &Request| {
        let Request { verb, group, resource, namespace, name, .. } = request;
        format!("{verb} {resource}.{group} {namespace}/{name}")
    };
    requests.iter().filter(|request| request.code == 403).map(of).collect()
}

/// What is granted and none of these requests used.
pub(crate) fn unused(grants: &BTreeSet<Grant>, requests: &[Request]) -> Vec<String> {
    let is_used = |grant: &&Grant| requests.iter().any(|request| grant.is_used_by(request));
    grants.iter().filter(|grant| !is_used(grant)).map(ToString::to_string).collect()
}

//! ServiceExportRule to [`ExportRule`].

use super::federated_service::{clients, exported_to};
use super::field::Problem;
use super::{names, reject, selector, spec};
use crate::api::v1alpha1::ServiceExportRuleSpec;
use crate::model::export::ExportRule;
use crate::model::peer::LabelSelector;
use crate::model::world::Rejected;
use crate::model::{Object, TrustDomain};

/// Reads a ServiceExportRule. `own` is our own trust domain, once the Workload API told it: before that, what is said about it is
/// not checked, so the object must be read again then.
///
/// # Errors
/// [`Rejected`] with the field and the rule.
pub fn parse(object: &Object, own: Option<&TrustDomain>) -> Result<ExportRule, Rejected> {
    read(object, own).map_err(|problem| reject(object, None, problem))
}

fn read(object: &Object, own: Option<&TrustDomain>) -> Result<ExportRule, Problem> {
    names(object)?;
    let spec: ServiceExportRuleSpec = spec(object)?;
    let exported_to = exported_to(&spec.exported_trust_domains, own)?;
    Ok(ExportRule {
        name: object.key.name.clone(),
        uid: object.meta.uid.clone(),
        generation: object.meta.generation,
        created: object.meta.created,
        deletion: object.meta.deletion,
        services: selector::parse("spec.serviceSelector", &spec.service_selector)?,
        namespaces: match &spec.namespace_selector {
            Some(given) => selector::parse("spec.namespaceSelector", given)?,
            None => LabelSelector::default(),
        },
        tls_mode: spec.tls_mode.into(),
        clients: clients("spec.clients.spiffeIDs", &spec.clients, &exported_to)?,
        exported_to,
    })
}

#[cfg(test)]
#[path = "service_export_rule_tests.rs"]
pub(super) mod tests;

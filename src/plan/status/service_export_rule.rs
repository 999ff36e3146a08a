//! The status of a ServiceExportRule: Accepted, Exported, how many Services it exports, and which it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::federated_service::{gateway_entry, outcomes};
use crate::api::v1alpha1::conditions::{ExportedReason, ServiceAcceptedReason};
use crate::api::v1alpha1::limits;
use crate::model::condition::{Condition, Truth};
use crate::model::export::ExportRule;
use crate::model::service::{ExportedBy, GatewayAddress, Outcome};
use crate::model::session::Offers;
use crate::model::{NamespacedName, TrustDomain, World};
use crate::plan::exports::{ExportProblem, ExportReport};

/// Most characters of one message in the list of what is skipped.
const MESSAGE: usize = 512;

/// Conditions, and the rest of a status as fields of it.
type Said = (Vec<Condition>, Value);

/// What became of the Services of one rule.
#[derive(Default)]
struct Tally<'a> {
    exported: u32,
    imported: u32,
    refused: Vec<&'a NamespacedName>,
    skipped: BTreeMap<&'a NamespacedName, (&'a str, &'a str)>,
    /// What importers are told of; the same for all, which have one tlsMode.
    gateways: BTreeSet<&'a GatewayAddress>,
}

/// The status of every rule: its conditions, and the rest as fields of it.
pub(super) fn statuses<'a>(
    world: &'a World,
    reports: &'a BTreeMap<NamespacedName, Arc<ExportReport>>,
    offered: &BTreeMap<TrustDomain, Offers>,
) -> Vec<(&'a Arc<ExportRule>, Said)> {
    let mut tallies: BTreeMap<&str, Tally<'_>> =
        world.rules.keys().map(|name| (name.as_str(), Tally::default())).collect();
    if tallies.is_empty() {
        return Vec::new();
    }
    for (object, notes) in &world.skipped {
        for (rule, note) in notes {
            if let Some(tally) = tallies.get_mut(rule.as_str()) {
                tally.skipped.insert(object, (note.reason.as_str(), &note.message));
            }
        }
    }
    for (object, service) in &world.services {
        let ExportedBy::Rule { name, .. } = &service.by else { continue };
        let (Some(tally), Some(report)) = (tallies.get_mut(name.as_str()), reports.get(object)) else {
            continue;
        };
        if let Some(why) = why_not(report) {
            tally.skipped.insert(object, why);
            continue;
        }
        tally.exported += 1;
        tally.gateways.extend(&report.gateways);
        let outcomes = outcomes(world, &service.name, report, offered);
        if outcomes.iter().all(|outcome| *outcome == Some(&Outcome::Imported)) {
            tally.imported += 1;
        } else if outcomes.iter().any(|outcome| matches!(outcome, Some(Outcome::Refused { .. }))) {
            tally.refused.push(object);
        }
    }
    world.rules.values().map(|rule| (rule, status(rule, tallies.remove(rule.name.as_str())))).collect()
}

/// Why it goes nowhere: the reason and the message.
fn why_not(report: &ExportReport) -> Option<(&str, &str)> {
    if let Err(problem) = &report.accepted {
        return Some((problem.reason.as_str(), &problem.message));
    }
    if report.to.values().any(Result::is_ok) {
        return None;
    }
    let of = |problem: &'_ ExportProblem| problem.reason.as_str();
    let problem =
        report.exported.as_ref().err().or_else(|| report.to.values().find_map(|to| to.as_ref().err()))?;
    Some((of(problem), &problem.message))
}

fn status(rule: &ExportRule, tally: Option<Tally<'_>>) -> Said {
    let tally = tally.unwrap_or_default();
    let accepted = Condition::new(
        ServiceAcceptedReason::Accepted,
        true,
        format!("ServiceExportRule {} is well formed", rule.name),
    );
    let cut = |text: &str| text.chars().take(MESSAGE).collect::<String>();
    let skipped: Vec<Value> = tally
        .skipped
        .iter()
        .take(limits::SKIPPED)
        .map(|(object, (reason, message))| {
            json!({
                "namespace": object.namespace,
                "name": object.name,
                "reason": reason,
                "message": cut(message),
            })
        })
        .collect();
    let counts = json!({
        "exported": tally.exported,
        "imported": tally.imported,
        "skipped": tally.skipped.len(),
    });
    let gateways: Vec<Value> =
        tally.gateways.iter().take(limits::GATEWAYS).map(|at| gateway_entry(rule.tls_mode, at)).collect();
    let rest = json!({ "services": counts, "skipped": skipped, "gatewayEntries": gateways });
    (vec![accepted, exported(&tally)], rest)
}

/// True where every Service that it exports was imported by every trust domain.
fn exported(tally: &Tally<'_>) -> Condition {
    if tally.exported == 0 {
        return match tally.skipped.iter().next() {
            None => {
                let message =
                    "no Service is selected; see spec.serviceSelector and spec.namespaceSelector".to_owned();
                Condition::new(ExportedReason::NothingSelected, false, message)
            }
            Some((_, (_, message))) => {
                let message =
                    format!("none of the {} Services selected is exported: {message}", tally.skipped.len());
                Condition::new(ExportedReason::NothingExported, false, message)
            }
        };
    }
    if let Some(object) = tally.refused.first() {
        let message = format!(
            "{} of {} Services are refused by a peer, as {object} is",
            tally.refused.len(),
            tally.exported
        );
        return Condition::new(ExportedReason::RefusedByPeer, false, message);
    }
    if tally.imported < tally.exported {
        let message = format!("of {} Services, not every trust domain has imported all yet", tally.exported);
        return Condition::new(ExportedReason::AwaitingAcknowledgement, Truth::Unknown, message);
    }
    let message = format!("{} Services are imported", tally.exported);
    Condition::new(ExportedReason::Exported, true, message)
}

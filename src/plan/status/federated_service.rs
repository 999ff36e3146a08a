//! The status of a FederatedService: Accepted, Exported, ClientsEnforced, and what each importer did.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::api::v1alpha1::conditions::{ClientsEnforcedReason, ExportedReason, ServiceAcceptedReason};
use crate::model::condition::{Condition, Truth};
use crate::model::service::{Outcome, TlsMode};
use crate::model::session::CatalogueVersion;
use crate::model::{Service, TrustDomain, World};
use crate::plan::exports::{ExportProblem, ExportReport};

/// What one importer did with the present state of the export.
enum Answer<'a> {
    NotOffered(&'a ExportProblem),
    Pending,
    Imported,
    Refused { reason: &'a str, message: &'a str },
}

/// The conditions, and the rest of the status as fields of it: `host`, `gatewayEntries`, `exportedTo`. `offered` holds the
/// version of the catalogue that each peer is offered now: an answer to another one is no answer.
#[must_use]
pub fn status(
    world: &World,
    service: &Service,
    report: &ExportReport,
    offered: &BTreeMap<TrustDomain, CatalogueVersion>,
) -> (Vec<Condition>, Value) {
    let answers: BTreeMap<&TrustDomain, Answer<'_>> = report
        .to
        .iter()
        .map(|(td, result)| match result {
            Err(problem) => (td, Answer::NotOffered(problem)),
            Ok(()) => (td, answer(world, service, td, offered)),
        })
        .collect();
    let conditions = vec![accepted(service, report), exported(report, &answers), enforced(service, report)];
    let mut rest = Map::new();
    if let Some(host) = &report.host {
        rest.insert("host".to_owned(), json!(host));
    }
    let gateways: Vec<Value> = report
        .gateways
        .iter()
        .map(|at| {
            let kind = service.tls_mode.gateway().as_str();
            json!({"type": kind, "address": at.address.to_string(), "port": at.port})
        })
        .collect();
    rest.insert("gatewayEntries".to_owned(), gateways.into());
    let exported_to: Vec<Value> = answers.iter().map(|(td, answer)| entry(td, answer)).collect();
    rest.insert("exportedTo".to_owned(), exported_to.into());
    (conditions, Value::Object(rest))
}

fn answer<'a>(
    world: &'a World,
    service: &Service,
    td: &TrustDomain,
    offered: &BTreeMap<TrustDomain, CatalogueVersion>,
) -> Answer<'a> {
    let acknowledged = world.sessions.get(td).and_then(|session| session.acknowledged.as_ref());
    let of_now = acknowledged.filter(|ack| offered.get(td) == Some(&ack.version));
    match of_now.and_then(|ack| ack.outcomes.get(&service.name)) {
        None => Answer::Pending,
        Some(Outcome::Imported) => Answer::Imported,
        Some(Outcome::Refused { reason, message }) => Answer::Refused { reason, message },
    }
}

fn entry(td: &TrustDomain, answer: &Answer<'_>) -> Value {
    let (acknowledged, outcome, reason) = match answer {
        Answer::NotOffered(problem) => (false, "Pending", Some(problem.reason.as_str())),
        Answer::Pending => (false, "Pending", Some(ExportedReason::AwaitingAcknowledgement.as_str())),
        Answer::Imported => (true, "Imported", None),
        Answer::Refused { reason, .. } => (true, "Refused", Some(*reason)),
    };
    let mut entry = json!({"trustDomain": td.as_str(), "acknowledged": acknowledged, "outcome": outcome});
    if let (Some(fields), Some(reason)) = (entry.as_object_mut(), reason) {
        fields.insert("reason".to_owned(), json!(cut(reason, 1024)));
    }
    entry
}

fn accepted(service: &Service, report: &ExportReport) -> Condition {
    match &report.accepted {
        Ok(()) => Condition::new(
            "Accepted",
            true,
            ServiceAcceptedReason::Accepted.as_str(),
            format!("FederatedService {} is well formed", service.object),
        ),
        Err(problem) => refused("Accepted", problem),
    }
}

/// True where every trust domain has imported it.
fn exported(report: &ExportReport, answers: &BTreeMap<&TrustDomain, Answer<'_>>) -> Condition {
    if let Err(problem) = &report.exported {
        return with_warnings(refused("Exported", problem), report);
    }
    if let Some(problem) = &report.kept {
        return with_warnings(refused("Exported", problem), report);
    }
    let not_offered = answers.values().find_map(|answer| match answer {
        Answer::NotOffered(problem) => Some(*problem),
        _ => None,
    });
    let refusing: Vec<String> = answers
        .iter()
        .filter_map(|(td, answer)| match answer {
            Answer::Refused { reason, message } => {
                Some(format!("{td}: {} ({})", cut(reason, 100), cut(message, 300)))
            }
            _ => None,
        })
        .collect();
    let of = |wanted: fn(&Answer<'_>) -> bool| -> Vec<&str> {
        answers.iter().filter(|(_, answer)| wanted(answer)).map(|(td, _)| td.as_str()).collect()
    };
    let pending = of(|answer| matches!(answer, Answer::Pending));
    let condition = if let Some(problem) = not_offered {
        refused("Exported", problem)
    } else if !refusing.is_empty() {
        let message = format!("refused by {}", cut(&refusing.join("; "), 4096));
        Condition::new("Exported", false, ExportedReason::RefusedByPeer.as_str(), message)
    } else if !pending.is_empty() {
        let message = format!("no answer yet from {}", cut(&pending.join(", "), 4096));
        let reason = ExportedReason::AwaitingAcknowledgement.as_str();
        Condition::new("Exported", Truth::Unknown, reason, message)
    } else {
        let imported = of(|answer| matches!(answer, Answer::Imported)).join(", ");
        let message = format!("imported by {}", cut(&imported, 4096));
        Condition::new("Exported", true, ExportedReason::Exported.as_str(), message)
    };
    with_warnings(condition, report)
}

fn with_warnings(mut condition: Condition, report: &ExportReport) -> Condition {
    for warning in report.warnings.iter().take(8) {
        condition.message.push_str(&format!("; {}: {}", warning.reason, warning.message));
    }
    condition
}

fn enforced(service: &Service, report: &ExportReport) -> Condition {
    let kind = "ClientsEnforced";
    match (&report.enforced, service.tls_mode) {
        (_, TlsMode::Mtls) => Condition::new(
            kind,
            false,
            ClientsEnforcedReason::ApplicationTerminatesTLS.as_str(),
            "the application ends TLS, so only it can hold callers to spec.clients".to_owned(),
        ),
        (Ok(()), TlsMode::IstioMtls) => Condition::new(
            kind,
            true,
            ClientsEnforcedReason::SidecarEnforces.as_str(),
            "the workload's sidecar refuses every foreign SPIFFE ID that spec.clients does not name"
                .to_owned(),
        ),
        (Err(problem), TlsMode::IstioMtls) => refused(kind, problem),
    }
}

fn refused<R: Copy + Into<&'static str>>(kind: &'static str, problem: &ExportProblem<R>) -> Condition {
    let reason: &'static str = problem.reason.into();
    Condition::new(kind, problem.status, reason, problem.message.clone())
}

/// At most this many characters of what may be a peer's words.
fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

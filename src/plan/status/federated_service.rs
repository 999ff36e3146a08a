//! The status of a FederatedService: Accepted, Exported, ClientsEnforced, and what each importer did.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::api::v1alpha1::conditions::{
    ClientsEnforcedReason, ExportedReason, Reason, ServiceAcceptedReason,
};
use crate::model::condition::{Condition, Truth};
use crate::model::refused::ClientRefusal;
use crate::model::service::{ExportedBy, ExportedPort, GatewayAddress, Outcome, TlsMode};
use crate::model::session::Offers;
use crate::model::{NamespacedName, Service, ServiceName, TrustDomain, World};
use crate::plan::exports::{Enforcer, ExportProblem, ExportReport};

/// A FederatedService, whether or not it comes to anything.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub object: &'a NamespacedName,
    pub uid: &'a str,
    pub generation: i64,
    pub name: &'a ServiceName,
    pub tls_mode: TlsMode,
    /// What it comes to.
    pub service: Option<&'a Arc<Service>>,
}

impl<'a> Subject<'a> {
    /// The FederatedService of this name. `None` for a Service that a rule exports.
    #[must_use]
    pub fn of(world: &'a World, name: &NamespacedName) -> Option<Self> {
        if let Some(service) = world.services.get(name) {
            return (service.by == ExportedBy::FederatedService).then(|| Self::of_service(service));
        }
        let declared = world.declared.get(name)?;
        Some(Self {
            object: &declared.object,
            uid: &declared.uid,
            generation: declared.generation,
            name: &declared.name,
            tls_mode: declared.tls_mode,
            service: None,
        })
    }

    /// What is exported.
    #[must_use]
    pub fn of_service(service: &'a Arc<Service>) -> Self {
        Self {
            object: &service.object,
            uid: &service.uid,
            generation: service.generation,
            name: &service.name,
            tls_mode: service.tls_mode,
            service: Some(service),
        }
    }
}

/// What one importer did with the present state of the export.
pub(super) enum Answer<'a> {
    NotOffered(&'a ExportProblem),
    Pending,
    Imported,
    Refused { reason: &'a str, message: &'a str },
}

/// The conditions, and the rest of the status as fields of it: `host`, `gatewayEntries`,
/// `serverSPIFFEIDs`, `targetPorts`, `imported`, `exportedTo`. `outcomes` are what the importers did with the present state of
/// it, in the order of `report.to`, `refused` what the Envoy in front of it does not take.
#[must_use]
pub fn status(
    service: &Subject<'_>,
    report: &ExportReport,
    outcomes: &[Option<&Outcome>],
    refused: Option<&ClientRefusal>,
) -> (Vec<Condition>, Value) {
    let answers = answers(report, outcomes);
    let conditions =
        vec![accepted(service, report), exported(report, &answers), enforced(service, report, refused)];
    let mut rest = Map::new();
    if let Some(host) = &report.host {
        rest.insert("host".to_owned(), json!(host));
    }
    let gateways: Vec<Value> = report.gateways.iter().map(|at| gateway_entry(service.tls_mode, at)).collect();
    rest.insert("gatewayEntries".to_owned(), gateways.into());
    let imported = answers.values().filter(|answer| matches!(answer, Answer::Imported)).count();
    rest.insert("imported".to_owned(), json!(format!("{imported}/{}", answers.len())));
    if let Some(service) = service.service {
        let ids: Vec<String> = service.server_ids.iter().map(ToString::to_string).collect();
        if !ids.is_empty() {
            rest.insert("serverSPIFFEIDs".to_owned(), json!(ids));
        }
        // What Istio serves has them in its alias.
        if report.enforcer != Enforcer::Mesh && !service.is_outside() {
            let target = |port: &ExportedPort| json!({"port": port.port, "targetPort": port.target_port});
            rest.insert("targetPorts".to_owned(), service.ports.iter().map(target).collect());
        }
    }
    let exported_to: Vec<Value> = answers.iter().map(|(td, answer)| entry(td, answer)).collect();
    rest.insert("exportedTo".to_owned(), exported_to.into());
    (conditions, Value::Object(rest))
}

/// A gateway that importers are told of, as statuses have it.
pub(super) fn gateway_entry(mode: TlsMode, at: &GatewayAddress) -> Value {
    json!({"type": mode.gateway().as_str(), "address": at.address.to_string(), "port": at.port})
}

/// What each importer did.
fn answers<'a>(
    report: &'a ExportReport,
    outcomes: &[Option<&'a Outcome>],
) -> BTreeMap<&'a TrustDomain, Answer<'a>> {
    let of = |((td, result), outcome): (
        (&'a TrustDomain, &'a Result<(), ExportProblem>),
        &Option<&'a Outcome>,
    )| {
        match (result, outcome) {
            (Err(problem), _) => (td, Answer::NotOffered(problem)),
            (Ok(()), None) => (td, Answer::Pending),
            (Ok(()), Some(Outcome::Imported)) => (td, Answer::Imported),
            (Ok(()), Some(Outcome::Refused { reason, message })) => (td, Answer::Refused { reason, message }),
        }
    };
    report.to.iter().zip(outcomes).map(of).collect()
}

/// What each trust domain did with the service as it is offered to it now, in the order of the report. An answer to a
/// catalogue before the present one counts where the service was the same in it.
pub(super) fn outcomes<'a>(
    world: &'a World,
    name: &ServiceName,
    report: &ExportReport,
    offered: &BTreeMap<TrustDomain, Offers>,
) -> Vec<Option<&'a Outcome>> {
    let outcome = |td: &TrustDomain| {
        let acknowledged = world.sessions.get(td)?.acknowledged.as_ref()?;
        let answered = acknowledged.offered.services.get(name)?;
        (answered == offered.get(td)?.get(name)?).then(|| acknowledged.outcomes.get(name)).flatten()
    };
    report.to.iter().map(|(td, result)| if result.is_ok() { outcome(td) } else { None }).collect()
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

fn accepted(service: &Subject<'_>, report: &ExportReport) -> Condition {
    match &report.accepted {
        Ok(()) => {
            let message = format!("FederatedService {} is well formed", service.object);
            Condition::new(ServiceAcceptedReason::Accepted, true, message)
        }
        Err(problem) => refused(problem),
    }
}

/// True where every trust domain has imported it.
pub(super) fn exported(report: &ExportReport, answers: &BTreeMap<&TrustDomain, Answer<'_>>) -> Condition {
    if let Err(problem) = &report.exported {
        return with_warnings(refused(problem), report);
    }
    if let Some(problem) = &report.kept {
        return with_warnings(refused(problem), report);
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
        refused(problem)
    } else if !refusing.is_empty() {
        let message = format!("refused by {}", cut(&refusing.join("; "), 4096));
        Condition::new(ExportedReason::RefusedByPeer, false, message)
    } else if !pending.is_empty() {
        let message = format!("no answer yet from {}", cut(&pending.join(", "), 4096));
        Condition::new(ExportedReason::AwaitingAcknowledgement, Truth::Unknown, message)
    } else {
        let imported = of(|answer| matches!(answer, Answer::Imported)).join(", ");
        let message = format!("imported by {}", cut(&imported, 4096));
        Condition::new(ExportedReason::Exported, true, message)
    };
    with_warnings(condition, report)
}

fn with_warnings(mut condition: Condition, report: &ExportReport) -> Condition {
    for warning in report.warnings.iter().take(8) {
        condition.message.push_str(&format!("; {}: {}", warning.reason, warning.message));
    }
    condition
}

fn enforced(
    service: &Subject<'_>,
    report: &ExportReport,
    proxy_refuses: Option<&ClientRefusal>,
) -> Condition {
    if let (Enforcer::Proxy | Enforcer::Gateway, Ok(()), Some(refusal)) =
        (report.enforcer, &report.enforced, proxy_refuses)
    {
        let ClientRefusal { client, kind, message } = refusal;
        let message = format!(
            "the Envoy in front of the application, {client}, refuses a {kind} that it is served by xDS, and keeps what it had, \
             which may be nothing, or let in who is no client any more: {message}"
        );
        return Condition::new(ClientsEnforcedReason::ProxyRefuses, false, message);
    }
    match (report.enforcer, &report.enforced) {
        (Enforcer::Mesh, _) => {}
        (_, Err(problem)) => return refused(problem),
        (Enforcer::Proxy, Ok(())) => {
            let message = "the Envoy in front of the application refuses every foreign SPIFFE ID that spec.clients does not name, \
                           by what this agent serves it";
            return Condition::new(ClientsEnforcedReason::ProxyEnforces, true, message.to_owned());
        }
        (Enforcer::Gateway, Ok(())) => {
            let message = "whoever ends TLS at spec.gateways has to hold callers to spec.clients: the application, or an Envoy that \
                           this agent serves, which does; where it is such an Envoy, say so by spec.endpoints";
            return Condition::new(
                ClientsEnforcedReason::ApplicationTerminatesTLS,
                false,
                message.to_owned(),
            );
        }
    }
    let doubt = report.doubt.as_ref().filter(|_| report.enforced.is_ok());
    if let (Some(doubt), TlsMode::IstioMtls) = (doubt, service.tls_mode) {
        return refused(doubt);
    }
    match (&report.enforced, service.tls_mode) {
        (_, TlsMode::Mtls) => Condition::new(
            ClientsEnforcedReason::ApplicationTerminatesTLS,
            false,
            "the application ends TLS, so only it can hold callers to spec.clients".to_owned(),
        ),
        (Ok(()), TlsMode::IstioMtls) => Condition::new(
            ClientsEnforcedReason::SidecarEnforces,
            true,
            "the workload's sidecar refuses every foreign SPIFFE ID that spec.clients does not name"
                .to_owned(),
        ),
        (Err(problem), TlsMode::IstioMtls) => refused(problem),
    }
}

fn refused<R: Reason>(problem: &ExportProblem<R>) -> Condition {
    Condition::new(problem.reason, problem.status, problem.message.clone())
}

/// At most this many characters of what may be a peer's words.
fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

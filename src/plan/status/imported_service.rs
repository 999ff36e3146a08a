//! The status of an ImportedService: Admitted, Generated, and what was generated.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::v1alpha1::conditions::{AdmittedReason, GeneratedReason, LocalReason, Reason, TakenReason};
use crate::model::condition::Condition;
use crate::model::refused::ClientRefusal;
use crate::model::{NamespacedName, ObjectKey};
use crate::plan::admission::Refusal;
use crate::plan::imports::{ImportReport, LocalReport, in_text};

/// The conditions, and the rest of the status as fields of it: `generated`, `addresses`, `localHost` and
/// `localAddresses`. `refused` is what clients of xDS do not take of it.
#[must_use]
pub fn status(
    name: &NamespacedName,
    report: &ImportReport,
    refused: Option<&BTreeSet<ClientRefusal>>,
) -> (Vec<Condition>, Value) {
    let mut conditions = vec![
        condition(AdmittedReason::Admitted, &report.admitted, || {
            format!("ImportedService {name}: spec.imports of its TrustDomainPeer admits it")
        }),
        condition(GeneratedReason::Generated, &report.generated, || {
            format!("ImportedService {name}: what clients need is generated")
        }),
    ];
    let served = report.local.iter().flatten().next();
    conditions.extend(report.local.as_ref().map(local));
    conditions.extend(refused.and_then(taken));
    let here = served.into_iter().flat_map(|served| &served.generated);
    let generated: Vec<Value> = report.generated.iter().flatten().chain(here).map(generated).collect();
    let mut rest = json!({"generated": generated, "addresses": in_text(&report.addresses)});
    if let (Some(fields), Some(served)) = (rest.as_object_mut(), served) {
        fields.insert("localHost".to_owned(), json!(served.host));
        if served.by_name && served.addresses != report.addresses {
            fields.insert("localAddresses".to_owned(), json!(in_text(&served.addresses)));
        }
    }
    (conditions, rest)
}

/// Of those who refuse it, one is told in its words.
fn taken(refused: &BTreeSet<ClientRefusal>) -> Option<Condition> {
    let ClientRefusal { client, kind, message } = refused.first()?;
    let clients: BTreeSet<&String> = refused.iter().map(|one| &one.client).collect();
    let others = match clients.len() {
        1 => String::new(),
        more => format!(" (and {} more)", more - 1),
    };
    let message = format!(
        "{client}{others} refuses a {kind} that it is served by xDS, and keeps what it had: {message}"
    );
    Some(Condition::new(TakenReason::ClientRefuses, false, message))
}

fn local(report: &LocalReport) -> Condition {
    match report {
        Ok(served) => {
            let (reason, how) = if served.is_merged && served.by_name {
                let how = "together with the Service of that name, found by workloads that ask the agent's DNS server";
                (LocalReason::Merged, how)
            } else if served.is_merged {
                (LocalReason::Merged, "together with the Service of that name")
            } else if served.by_name {
                (LocalReason::ByName, "found by workloads that ask the agent's DNS server")
            } else {
                (LocalReason::Alone, "found by workloads whose sidecar resolves names (DNS capture)")
            };
            let notes: String = served.notes.iter().map(|note| format!("; {note}")).collect();
            let message = format!("answers at {}, {how}{notes}", served.host);
            Condition::new(reason, true, message)
        }
        Err(refusal) => Condition::new(refusal.reason, refusal.status, refusal.message.clone()),
    }
}

fn condition<T, R: Reason>(
    reason: R,
    result: &Result<T, Refusal<R>>,
    message: impl Fn() -> String,
) -> Condition {
    match result {
        Ok(_) => Condition::new(reason, true, message()),
        Err(refusal) => Condition::new(refusal.reason, refusal.status, refusal.message.clone()),
    }
}

fn generated(key: &ObjectKey) -> Value {
    let mut entry = json!({"kind": key.kind.kind(), "name": key.name});
    if let (Some(fields), Some(namespace)) = (entry.as_object_mut(), &key.namespace) {
        fields.insert("namespace".to_owned(), json!(namespace));
    }
    entry
}

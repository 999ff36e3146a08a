//! The status of an ImportedService: Admitted, Generated, and what was generated.

use serde_json::{Value, json};

use crate::api::v1alpha1::conditions::{AdmittedReason, GeneratedReason};
use crate::model::condition::Condition;
use crate::model::{NamespacedName, ObjectKey};
use crate::plan::admission::Refusal;
use crate::plan::imports::ImportReport;

/// The conditions, and the rest of the status as fields of it: `generated`.
#[must_use]
pub fn status(name: &NamespacedName, report: &ImportReport) -> (Vec<Condition>, Value) {
    let conditions = vec![
        condition("Admitted", AdmittedReason::Admitted, &report.admitted, || {
            format!("ImportedService {name}: spec.imports of its TrustDomainPeer admits it")
        }),
        condition("Generated", GeneratedReason::Generated, &report.generated, || {
            format!("ImportedService {name}: what clients need is generated")
        }),
    ];
    let generated: Vec<Value> = report.generated.iter().map(generated).collect();
    (conditions, json!({"generated": generated}))
}

fn condition<T, R: Copy + Into<&'static str>>(
    kind: &'static str,
    reason: R,
    result: &Result<T, Refusal<R>>,
    message: impl Fn() -> String,
) -> Condition {
    match result {
        Ok(_) => Condition::new(kind, true, reason.into(), message()),
        Err(refusal) => Condition::new(kind, refusal.status, refusal.reason.into(), refusal.message.clone()),
    }
}

fn generated(key: &ObjectKey) -> Value {
    let mut entry = json!({"kind": key.kind.kind(), "name": key.name});
    if let (Some(fields), Some(namespace)) = (entry.as_object_mut(), &key.namespace) {
        fields.insert("namespace".to_owned(), json!(namespace));
    }
    entry
}

//! Statuses: what an operator reads. A status is written only where it differs, and a transition time changes only
//! with its condition's status.

pub(crate) mod audit;
pub mod federated_service;
pub mod imported_service;
mod news;
mod peer_bundle;
mod peer_details;
pub mod service_export_rule;
#[cfg(test)]
mod service_tests;
mod stored;
pub mod trust_domain_peer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::StatusWrite;
use super::ending;
use super::exports::ExportReport;
use super::imports::ImportReport;
use super::memo::Memo;
use super::services::ServicesPlan;
use super::xds;
use crate::api::v1alpha1::conditions::{ConditionType, ReadyReason, Reason};
use crate::model::condition::{Condition, Truth};
use crate::model::import::Imported;
use crate::model::object::{Kind, ObjectKey};
use crate::model::refused::ClientRefusal;
use crate::model::service::{Outcome, TlsMode};
use crate::model::session::LinkPlan;
use crate::model::world::Rejected;
use crate::model::{NamespacedName, Service, ServiceName, SpiffeId, TrustDomain, World};
pub(super) use stored::Answers;

/// The status to write: `rest` with these conditions, or `None` where that is what stands there.
#[must_use]
pub fn merge(
    stored: Option<&Value>,
    generation: i64,
    conditions: &[Condition],
    rest: Map<String, Value>,
    now: Timestamp,
) -> Option<Value> {
    let before = stored.and_then(|s| s.get("conditions")).and_then(Value::as_array);
    let written: Vec<Value> = conditions
        .iter()
        .map(|condition| {
            let last =
                before.and_then(|all| all.iter().find(|c| field(c, "type") == Some(condition.kind.as_str())));
            let unchanged = last.filter(|c| field(c, "status") == Some(condition.status.as_str()));
            let since = unchanged.and_then(|c| field(c, "lastTransitionTime"));
            json!({
                "type": condition.kind.as_str(),
                "status": condition.status.as_str(),
                "reason": condition.reason,
                "message": bounded(&condition.message),
                "lastTransitionTime": since.map_or_else(|| now.to_string(), str::to_owned),
                "observedGeneration": generation,
            })
        })
        .collect();
    let mut status = rest;
    status.insert("observedGeneration".to_owned(), json!(generation));
    status.insert("conditions".to_owned(), Value::Array(written));
    let status = without_nulls(Value::Object(status));
    (stored != Some(&status)).then_some(status)
}

/// The write of a status over the one that stands there.
#[must_use]
pub fn written(uid: &str, stored: Option<&Value>, status: Value) -> StatusWrite {
    let list =
        |status: &Value| status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let transitions = news::transitions(&stored.map(list).unwrap_or_default(), &list(&status));
    StatusWrite { uid: uid.to_owned(), status, transitions }
}

fn field<'a>(condition: &'a Value, name: &str) -> Option<&'a str> {
    condition.get(name).and_then(Value::as_str)
}

/// The Kubernetes API conventions allow 32,768 characters; a person reads fewer.
fn bounded(message: &str) -> String {
    const MOST: usize = 1024;
    if message.chars().count() <= MOST { message.to_owned() } else { message.chars().take(MOST).collect() }
}

/// The API server drops nulls, and comparison must not see them.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// A condition as it stands in the store, where what is known now is not enough to say anything else.
#[must_use]
pub fn stored_condition(stored: Option<&Value>, kind: ConditionType) -> Option<Condition> {
    let all = stored?.get("conditions")?.as_array()?;
    let condition = all.iter().find(|c| field(c, "type") == Some(kind.as_str()))?;
    let truth = match field(condition, "status")? {
        "True" => Truth::True,
        "False" => Truth::False,
        _ => Truth::Unknown,
    };
    let (reason, message) = (field(condition, "reason")?.to_owned(), field(condition, "message")?.to_owned());
    Some(Condition::worded(kind, truth, reason, message))
}

/// What stands in the store, or this where nothing does: after a restart, nothing is said from not knowing yet.
#[must_use]
pub fn keep(stored: Option<&Value>, reason: impl Reason, message: &str) -> Condition {
    stored_condition(stored, reason.condition())
        .unwrap_or_else(|| Condition::new(reason, Truth::Unknown, message.to_owned()))
}

/// The statuses of objects that cannot be used: `Accepted=False`, and what was known of them before stays.
#[must_use]
pub fn rejected(world: &World) -> BTreeMap<ObjectKey, StatusWrite> {
    let ours =
        [Kind::TrustDomainPeer, Kind::FederatedService, Kind::ServiceExportRule, Kind::ImportedService];
    world
        .rejected
        .iter()
        .filter(|(key, _)| ours.contains(&key.kind))
        .filter_map(|(key, rejected)| {
            let stored = world.statuses.get(key).map(std::convert::AsRef::as_ref);
            let waits = ending_of_rejected(world, key, rejected);
            let status = reject(stored, key, rejected, waits.as_deref(), world.now)?;
            Some((key.clone(), written(&rejected.uid, stored, status)))
        })
        .collect()
}

/// What the deletion of an object that cannot be read waits for.
fn ending_of_rejected(world: &World, key: &ObjectKey, rejected: &Rejected) -> Option<String> {
    if key.kind != Kind::TrustDomainPeer || rejected.deletion.is_none() {
        return None;
    }
    let peer = world.peers.values().find(|peer| peer.uid == rejected.uid);
    match peer.and_then(|peer| Some((peer, ending::stage(world, peer)?))) {
        Some((peer, stage)) => Some(ending::message(world, peer, &stage)),
        None => Some(format!(
            "it is to be deleted, but cannot be read ({}): mend it, so that the relationship can be ended in order",
            rejected.message
        )),
    }
}

fn reject(
    stored: Option<&Value>,
    key: &ObjectKey,
    rejected: &Rejected,
    waits: Option<&str>,
    now: Timestamp,
) -> Option<Value> {
    let because = |kind| Condition::worded(kind, false, rejected.reason, rejected.message.clone());
    let ready = match waits {
        Some(waits) => Condition::new(ReadyReason::Ending, false, waits.to_owned()),
        None => Condition::new(ReadyReason::NotAccepted, false, rejected.message.clone()),
    };
    let conditions = match key.kind {
        Kind::ImportedService => vec![because(ConditionType::Admitted)],
        Kind::TrustDomainPeer => vec![because(ConditionType::Accepted), ready],
        _ => vec![because(ConditionType::Accepted)],
    };
    let rest = stored.and_then(Value::as_object).cloned().unwrap_or_default();
    let fresh = merge(stored, rejected.generation, &conditions, rest, now);
    // The other conditions stay as they were last known.
    let mut status = fresh?;
    let kept: Vec<Value> = stored
        .and_then(|s| s.get("conditions"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|c| !conditions.iter().any(|new| field(c, "type") == Some(new.kind.as_str())))
        .cloned()
        .collect();
    if let Some(list) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        list.extend(kept);
    }
    (stored != Some(&status)).then_some(status)
}

/// The statuses of FederatedServices, ServiceExportRules and ImportedServices. `links` say what each peer is offered.
#[must_use]
pub fn services(
    world: &World,
    services: &ServicesPlan,
    links: &BTreeMap<TrustDomain, LinkPlan>,
    memo: &mut Memo,
) -> BTreeMap<ObjectKey, StatusWrite> {
    let mut writes = BTreeMap::new();
    let news = memo.answers.news(world, links);
    exports(world, services, &news, memo, &mut writes);
    let of_rules = service_export_rule::statuses(world, &services.export_reports, &services.catalogues);
    for (rule, computed) in of_rules {
        let key = ObjectKey::cluster(Kind::ServiceExportRule, &rule.name);
        if !world.rejected.contains_key(&key) {
            write(world, &mut writes, &key, (&rule.uid, rule.generation), computed);
        }
    }
    imports(world, services, memo, &mut writes);
    writes
}

/// The statuses of FederatedServices. `news` are the peers that are offered another catalogue than by the last plan, or have
/// answered.
fn exports(
    world: &World,
    services: &ServicesPlan,
    news: &BTreeSet<TrustDomain>,
    memo: &mut Memo,
    writes: &mut BTreeMap<ObjectKey, StatusWrite>,
) {
    let mut all = stored::Stored::of(world, Kind::FederatedService);
    let refusing = refused_by_servers(world);
    for (name, report) in &services.export_reports {
        let Some(service) = federated_service::Subject::of(world, name) else { continue };
        // Its last good version is in use still, but what is said is what is wrong with it now.
        let key = || ObjectKey::namespaced(Kind::FederatedService, &name.namespace, &name.name);
        if !world.rejected.is_empty() && world.rejected.contains_key(&key()) {
            continue;
        }
        let stored = all.get(name);
        let by_server = |id: &SpiffeId| refusing.get(id.to_string().as_str()).copied();
        let servers = service.service.filter(|_| !refusing.is_empty());
        let refused = servers.and_then(|service| service.server_ids.iter().find_map(by_server));
        let stands = |said: &SaidOfExport| {
            Some(&said.stored) == stored
                && said.report == *report
                && said.of.is(&service)
                && said.refused.as_ref() == refused
        };
        let is_heard = |td| !news.contains(td);
        if memo.exports_said.holds(name, |said| stands(said) && report.to.keys().all(is_heard)) {
            continue;
        }
        let outcomes = federated_service::outcomes(world, service.name, report, &services.catalogues);
        let is_same = |said: &SaidOfExport| {
            stands(said) && said.to.iter().map(Option::as_ref).eq(outcomes.iter().copied())
        };
        if memo.exports_said.holds(name, is_same) {
            continue;
        }
        let computed = federated_service::status(&service, report, &outcomes, refused);
        let of = (service.uid, service.generation);
        if let (None, Some(stored)) = (write(world, writes, &key(), of, computed), stored) {
            let said = SaidOfExport {
                of: Declared::of(&service),
                report: Arc::clone(report),
                to: outcomes.into_iter().map(Option::<&Outcome>::cloned).collect(),
                refused: refused.cloned(),
                stored: Arc::clone(stored),
            };
            memo.exports_said.put(name, said, ());
        }
    }
}

fn imports(
    world: &World,
    services: &ServicesPlan,
    memo: &mut Memo,
    writes: &mut BTreeMap<ObjectKey, StatusWrite>,
) {
    let mut all = stored::Stored::of(world, Kind::ImportedService);
    for (name, report) in &services.import_reports {
        let Some(imported) = world.imported.get(name) else { continue };
        let stored = all.get(name);
        let refused = refused(world, name, report);
        let is_same = |said: &SaidOfImport| {
            Some(&said.stored) == stored
                && said.of == *imported
                && said.report == *report
                && said.refused == refused
        };
        if memo.imports_said.holds(name, is_same) {
            continue;
        }
        let key = ObjectKey::namespaced(Kind::ImportedService, &name.namespace, &name.name);
        let computed = imported_service::status(name, report, refused.as_ref());
        let of = (imported.uid.as_str(), imported.generation);
        if let (None, Some(stored)) = (write(world, writes, &key, of, computed), stored) {
            let of = Arc::clone(imported);
            let (report, stored) = (report.clone(), Arc::clone(stored));
            let said = SaidOfImport { of, report, refused, stored };
            memo.imports_said.put(name, said, ());
        }
    }
}

/// What Envoys in front of servers of ours do not take of what they need there, by their SPIFFE IDs.
fn refused_by_servers(world: &World) -> BTreeMap<&str, &ClientRefusal> {
    let of_servers = world.refusals.iter().filter(|(host, _)| xds::is_of_server(host));
    // The first of each is told.
    of_servers.flat_map(|(_, all)| all).rev().map(|one| (one.client.as_str(), one)).collect()
}

/// What clients do not take of an import: of its host, or of the local name at which it answers.
fn refused(world: &World, name: &NamespacedName, report: &ImportReport) -> Option<BTreeSet<ClientRefusal>> {
    if world.refusals.is_empty() {
        return None;
    }
    let local = report.local.iter().flatten().filter(|served| served.by_name).map(|served| &served.host);
    let all = std::iter::once(&name.name).chain(local).filter_map(|host| world.refusals.get(host));
    let all: BTreeSet<ClientRefusal> = all.flatten().cloned().collect();
    (!all.is_empty()).then_some(all)
}

/// What the status of a FederatedService is made of, where that stands in the store.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SaidOfExport {
    of: Declared,
    report: Arc<ExportReport>,
    /// What each importer did.
    to: Vec<Option<Outcome>>,
    /// What the Envoy in front of it does not take.
    refused: Option<ClientRefusal>,
    stored: Arc<Value>,
}

/// As that, of an ImportedService.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SaidOfImport {
    of: Arc<Imported>,
    report: ImportReport,
    /// What clients do not take of it.
    refused: Option<BTreeSet<ClientRefusal>>,
    stored: Arc<Value>,
}

/// A FederatedService, as its status speaks of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Declared {
    object: NamespacedName,
    uid: String,
    generation: i64,
    name: ServiceName,
    tls_mode: TlsMode,
    service: Option<Arc<Service>>,
}

impl Declared {
    fn of(subject: &federated_service::Subject<'_>) -> Self {
        Self {
            object: subject.object.clone(),
            uid: subject.uid.to_owned(),
            generation: subject.generation,
            name: subject.name.clone(),
            tls_mode: subject.tls_mode,
            service: subject.service.cloned(),
        }
    }

    fn is(&self, subject: &federated_service::Subject<'_>) -> bool {
        (&self.object, self.uid.as_str(), self.generation, &self.name, self.tls_mode, self.service.as_ref())
            == (
                subject.object,
                subject.uid,
                subject.generation,
                subject.name,
                subject.tls_mode,
                subject.service,
            )
    }
}

/// Adds the write of a status, unless it stands there already.
fn write(
    world: &World,
    writes: &mut BTreeMap<ObjectKey, StatusWrite>,
    key: &ObjectKey,
    (uid, generation): (&str, i64),
    (conditions, rest): (Vec<Condition>, Value),
) -> Option<()> {
    let stored = world.statuses.get(key).map(std::convert::AsRef::as_ref);
    let rest = rest.as_object().cloned().unwrap_or_default();
    let status = merge(stored, generation, &conditions, rest, world.now)?;
    writes.insert(key.clone(), written(uid, stored, status));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn one(status: bool, message: &str) -> Vec<Condition> {
        vec![Condition::worded(ConditionType::Ready, status, "Because", message.to_owned())]
    }

    #[test]
    fn equal_status_is_not_written() {
        let first = merge(None, 1, &one(true, "a"), Map::new(), at(10)).unwrap();
        assert_eq!(merge(Some(&first), 1, &one(true, "a"), Map::new(), at(20)), None);
    }

    #[test]
    fn a_transition_is_news_once() {
        let first = merge(None, 1, &one(false, "a"), Map::new(), at(10)).unwrap();
        let write = written("u", None, first.clone());
        assert_eq!(write.transitions.len(), 1);
        assert!(write.transitions[0].is_warning && write.transitions[0].message == "a");
        let reworded = merge(Some(&first), 1, &one(false, "b"), Map::new(), at(20)).unwrap();
        assert!(written("u", Some(&first), reworded).transitions.is_empty());
        let distributed = |reason: &'static str| {
            vec![Condition::worded(ConditionType::BundleDistributed, false, reason, "d".to_owned())]
        };
        let suspended = "SuspendedUnusableBundle";
        let bad = merge(None, 1, &distributed("StaleInSpire"), Map::new(), at(10)).unwrap();
        let worse = merge(Some(&bad), 1, &distributed(suspended), Map::new(), at(20)).unwrap();
        assert_eq!(
            written("u", Some(&bad), worse).transitions[0].reason,
            suspended,
            "it was not True before"
        );
        let mended = merge(Some(&first), 1, &one(true, "c"), Map::new(), at(20)).unwrap();
        assert!(!written("u", Some(&first), mended).transitions[0].is_warning);
    }

    #[test]
    fn transition_time_changes_only_with_the_status() {
        let first = merge(None, 1, &one(true, "a"), Map::new(), at(10)).unwrap();
        let reworded = merge(Some(&first), 1, &one(true, "b"), Map::new(), at(20)).unwrap();
        assert_eq!(reworded["conditions"][0]["lastTransitionTime"], at(10).to_string());
        let turned = merge(Some(&reworded), 1, &one(false, "b"), Map::new(), at(30)).unwrap();
        assert_eq!(turned["conditions"][0]["lastTransitionTime"], at(30).to_string());
    }

    #[test]
    fn a_rejected_object_keeps_what_was_known_and_settles() {
        let key = ObjectKey::cluster(Kind::TrustDomainPeer, "west");
        let known = vec![
            Condition::worded(ConditionType::Connected, true, "Connected", String::new()),
            Condition::worded(ConditionType::Ready, true, "Ready", String::new()),
        ];
        let stored = merge(None, 1, &known, Map::new(), at(10)).unwrap();
        let rejected = Rejected {
            uid: "u".into(),
            generation: 2,
            trust_domain: None,
            reason: "Invalid",
            message: "spec.x: no".into(),
            deletion: None,
            finalizers: vec![],
            resource_version: "1".into(),
        };
        let status = reject(Some(&stored), &key, &rejected, None, at(20)).unwrap();
        assert_eq!(status["conditions"].as_array().unwrap().len(), 3);
        assert_eq!(reject(Some(&status), &key, &rejected, None, at(30)), None);
    }
}

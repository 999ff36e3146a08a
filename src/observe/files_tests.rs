//! The alert rules, the dashboard and the runbooks speak of metrics, labels, conditions and reasons that there are.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::metrics::described::{ALL, Described, Sort};
use crate::api::v1alpha1::conditions::{
    AdmittedReason, BundleDistributedReason, BundleEndpointReason, ConditionType, ConnectedReason,
    ReadyReason, RotationSafeReason,
};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn alerts() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&read("charts/entente/files/alerts.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// Every query of the dashboard.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(ToOwned::to_owned));
            fields.values().for_each(|field| queries(field, found));
        }
        Value::Array(all) => all.iter().for_each(|one| queries(one, found)),
        _ => {}
    }
}

fn expressions() -> Vec<String> {
    let mut all: Vec<String> =
        alerts().iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect();
    let dashboard: Value = serde_json::from_str(&read("charts/entente/files/dashboard.json")).unwrap();
    let before = all.len();
    queries(&dashboard, &mut all);
    assert!(all.len() > before + 20, "the dashboard has no queries");
    all
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The metrics that an expression names, each with what stands in its braces.
fn used(expression: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find("entente_").into_iter().chain(rest.find("process_")).min() {
        let after = &rest[at..];
        let end = after.find(|c| !is_word(c)).unwrap_or(after.len());
        let (name, behind) = after.split_at(end);
        let selector = behind.strip_prefix('{').and_then(|inside| inside.split('}').next());
        found.push((name, selector.unwrap_or_default()));
        rest = behind;
    }
    found
}

fn described(name: &str) -> Option<&'static Described> {
    ALL.iter().find(|metric| match metric.sort {
        Sort::Histogram => {
            name.strip_prefix(metric.name).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
        }
        Sort::Gauge | Sort::Counter => metric.name == name,
    })
}

/// `label="value"`, `label=~"one|other"` and the like.
fn matchers(selector: &str) -> Vec<(&str, Vec<&str>)> {
    let pairs = selector.split("\",").filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let label = pair.split(['=', '!']).next().unwrap_or_default().trim();
            let value = pair.split_once('"').map_or("", |(_, value)| value).trim_end_matches('"');
            (label, value.split('|').collect())
        })
        .collect()
}

#[test]
fn every_metric_and_label_that_is_asked_for_is_there() {
    let mut seen = BTreeSet::new();
    for expression in expressions() {
        for (name, selector) in used(&expression) {
            let metric = described(name).unwrap_or_else(|| panic!("{name} in {expression}"));
            seen.insert(metric.name);
            for (label, _) in matchers(selector) {
                let is_targets = label == "job";
                assert!(is_targets || metric.labels.contains(&label), "{name}{{{selector}}}: {label}");
            }
        }
    }
    assert!(seen.len() > 25, "{seen:?}");
}

#[test]
fn every_condition_and_reason_that_is_asked_for_is_there() {
    let types: Vec<&str> = [
        ConditionType::Ready,
        ConditionType::Reciprocal,
        ConditionType::RotationSafe,
        ConditionType::BundleEndpointHealthy,
        ConditionType::BundleDistributed,
        ConditionType::Connected,
        ConditionType::GatewaysReachable,
    ]
    .map(ConditionType::as_str)
    .to_vec();
    let reasons: BTreeSet<&str> = BundleEndpointReason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .chain(RotationSafeReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(AdmittedReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(ReadyReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(ConnectedReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(BundleDistributedReason::ALL.iter().map(|reason| reason.as_str()))
        .collect();
    for expression in expressions() {
        for (_, selector) in used(&expression) {
            for (label, values) in matchers(selector) {
                for value in values {
                    let known = match label {
                        "type" => types.contains(&value),
                        "status" => ["True", "False", "Unknown"].contains(&value),
                        "reason" | "alarm" => reasons.contains(value),
                        _ => true,
                    };
                    assert!(known, "{label}=\"{value}\" in {expression}");
                }
            }
        }
    }
}

#[test]
fn every_alert_has_its_runbook_and_every_runbook_its_alert() {
    const PAGE: &str = "https://github.com/entente-dev/entente/blob/main/docs/runbooks.md#";
    let runbooks = read("docs/runbooks.md");
    let sections: BTreeSet<&str> = runbooks.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut names = BTreeSet::new();
    for rule in alerts() {
        let name = rule["alert"].as_str().unwrap().to_owned();
        let annotations = &rule["annotations"];
        assert_eq!(annotations["runbook_url"], format!("{PAGE}{}", name.to_lowercase()));
        for annotation in ["summary", "description"] {
            assert!(annotations[annotation].as_str().is_some_and(|text| text.ends_with('.')), "{name}");
        }
        assert!(["critical", "warning", "info"].contains(&rule["labels"]["severity"].as_str().unwrap()));
        assert!(names.insert(name.clone()), "{name} is there twice");
    }
    let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(sections, names);
    for section in runbooks.split("\n## ").skip(1) {
        for part in ["**Means**:", "**Look**:", "**Do**:"] {
            assert!(section.contains(part), "{part} in {section}");
        }
    }
}

//! Labels and label selectors, by the rules of Kubernetes.

use std::collections::{BTreeMap, BTreeSet};

use super::field::{self, Problem};
use crate::api::v1alpha1::limits;
use crate::api::v1alpha1::selector::{
    LabelExpression as Given, LabelOperator, LabelSelector as GivenSelector,
};
use crate::model::peer::{LabelExpression, LabelSelector};

/// Reads a label selector.
///
/// # Errors
/// A [`Problem`] that names the requirement.
pub fn parse(path: &str, given: &GivenSelector) -> Result<LabelSelector, Problem> {
    let expressions = format!("{path}.matchExpressions");
    field::at_most(&expressions, given.match_expressions.len(), limits::SELECTOR)?;
    let match_expressions = given
        .match_expressions
        .iter()
        .enumerate()
        .map(|(i, expression)| requirement(&format!("{expressions}[{i}]"), expression))
        .collect::<Result<_, _>>()?;
    Ok(LabelSelector {
        match_labels: labels(&format!("{path}.matchLabels"), &given.match_labels)?,
        match_expressions,
    })
}

/// Reads labels that are to be matched.
///
/// # Errors
/// A [`Problem`] that names the label.
pub fn labels(path: &str, given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Problem> {
    field::at_most(path, given.len(), limits::SELECTOR)?;
    for (key, value) in given {
        label_key(path, key)?;
        label_value(path, value)?;
    }
    Ok(given.clone())
}

fn requirement(path: &str, given: &Given) -> Result<LabelExpression, Problem> {
    label_key(&format!("{path}.key"), &given.key)?;
    let values_path = format!("{path}.values");
    field::at_most(&values_path, given.values.len(), limits::SELECTOR)?;
    for value in &given.values {
        label_value(&values_path, value)?;
    }
    let needs_values = matches!(given.operator, LabelOperator::In | LabelOperator::NotIn);
    if needs_values == given.values.is_empty() {
        let rule = "values must be given with In and NotIn, and must not be with Exists and DoesNotExist";
        return Err(Problem::new(values_path, rule));
    }
    let key = given.key.clone();
    let values: BTreeSet<String> = given.values.iter().cloned().collect();
    Ok(match given.operator {
        LabelOperator::In => LabelExpression::In(key, values),
        LabelOperator::NotIn => LabelExpression::NotIn(key, values),
        LabelOperator::Exists => LabelExpression::Exists(key),
        LabelOperator::DoesNotExist => LabelExpression::DoesNotExist(key),
    })
}

fn label_key(path: &str, key: &str) -> Result<(), Problem> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_none_or(field::is_subdomain) && !name.is_empty() && is_label_text(name) {
        return Ok(());
    }
    let rule = "a label key is an optional DNS name and '/', then 1 to 63 of letters, digits, '-', '_' and '.', beginning \
                and ending with a letter or digit";
    Err(Problem::of(path, key, rule))
}

fn label_value(path: &str, value: &str) -> Result<(), Problem> {
    let rule = "a label value is at most 63 of letters, digits, '-', '_' and '.', beginning and ending with a letter or digit";
    if value.is_empty() || is_label_text(value) { Ok(()) } else { Err(Problem::of(path, value, rule)) }
}

fn is_label_text(text: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

//! `docs/reference/objects.md`: the fields of every kind, from the published schema.

use std::fmt::Write as _;

use serde_json::Value;

use super::golden;
use crate::api::v1alpha1;

#[test]
fn the_reference_has_every_field() {
    let mut text = String::from(
        "# Objects\n\nThe kinds of `entente.dev/v1alpha1`, from the schema that the API server holds them to (`kubectl explain` \
         shows the same).\nFields in **bold** must be given. What the conditions in `status` mean is in [conditions.md](conditions.md).\n",
    );
    for crd in v1alpha1::crds() {
        let crd = serde_json::to_value(&crd).unwrap();
        let names = &crd["spec"]["names"];
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let scope = if crd["spec"]["scope"] == "Cluster" { "cluster-wide" } else { "in a namespace" };
        write!(text, "\n## {}\n\n`{}`", word(&names["kind"]), word(&names["plural"])).unwrap();
        for short in names["shortNames"].as_array().into_iter().flatten() {
            write!(text, ", `{}`", word(short)).unwrap();
        }
        writeln!(text, "; {scope}. {}", word(&schema["description"])).unwrap();
        for part in ["spec", "status"] {
            write!(
                text,
                "\n### `{part}` of {}\n\n| field | type | what it is |\n|---|---|---|\n",
                word(&names["kind"])
            )
            .unwrap();
            fields(&mut text, "", &schema["properties"][part]);
        }
    }
    golden("docs/reference/objects.md", &text);
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A row for each field below a schema, depth first.
fn fields(text: &mut String, path: &str, schema: &Value) {
    let required = schema["required"].as_array();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let (steps, inner) = unwrapped(field);
        let shown = format!("`{at}{steps}`");
        let must = required.is_some_and(|all| all.iter().any(|one| one == name));
        let shown = if must { format!("**{shown}**") } else { shown };
        let description = word(&field["description"]).replace('|', "\\|").replace('\n', " ");
        writeln!(text, "| {shown} | {} | {description} |", type_of(inner)).unwrap();
        fields(text, &format!("{at}{steps}"), inner);
    }
}

/// What the items of lists and maps are, and how one gets to them.
fn unwrapped(mut schema: &Value) -> (String, &Value) {
    let mut steps = String::new();
    loop {
        if schema["items"].is_object() {
            steps.push_str("[]");
            schema = &schema["items"];
        } else if schema["additionalProperties"].is_object() {
            steps.push_str("{}");
            schema = &schema["additionalProperties"];
        } else {
            return (steps, schema);
        }
    }
}

/// The type of a value, with its bounds.
fn type_of(schema: &Value) -> String {
    if let Some(all) = schema["enum"].as_array() {
        let words: Vec<String> = all.iter().filter_map(Value::as_str).map(|one| format!("`{one}`")).collect();
        return words.join(" or ");
    }
    let kind = match word(&schema["type"]) {
        "" => "any",
        kind => kind,
    };
    let bound = |name: &str| schema[name].as_f64();
    match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(most)) => format!("{kind}, {least} to {most}"),
        _ => kind.to_owned(),
    }
}

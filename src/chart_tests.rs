//! What the Helm chart and the image say of this program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::{Args, Command};
use serde_json::Value;

use crate::config::AgentArgs;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The environment variables of `entente agent` itself.
fn of_the_agent() -> BTreeSet<String> {
    let command = AgentArgs::augment_args(Command::new("agent"));
    let named = command.get_arguments().filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned()));
    named.collect()
}

/// A setting with a name that nothing reads would be without effect, and nobody told.
#[test]
fn the_chart_sets_what_the_agent_reads() {
    let mut known = of_the_agent();
    known.extend(["ENTENTE_LOG", "ENTENTE_LOG_JSON"].map(str::to_owned));
    let helpers = text("charts/entente/templates/_helpers.tpl");
    let deployment = text("charts/entente/templates/deployment.yaml");
    let in_helpers = helpers.lines().filter_map(|line| line.split_once(": ").map(|(name, _)| name));
    let in_deployment = deployment.lines().filter_map(|line| line.trim().strip_prefix("- name: "));
    let set: BTreeSet<&str> = in_helpers
        .chain(in_deployment)
        .filter(|name| name.starts_with("ENTENTE_") && !name.contains('{'))
        .collect();
    assert!(set.len() > 20, "{set:?}");
    let unknown: Vec<_> = set.iter().filter(|name| !known.contains(**name)).collect();
    assert!(unknown.is_empty(), "no flag of the agent reads {unknown:?}");
}

/// `timing` of the chart names every time of the agent, as its environment variable does.
#[test]
fn the_chart_names_every_time() {
    let schema: Value = serde_json::from_str(&text("charts/entente/values.schema.json")).unwrap();
    let named = schema["properties"]["timing"]["properties"].as_object().unwrap().keys();
    let snake = |name: &String| {
        let parts =
            name.chars().flat_map(|c| [c.is_uppercase().then_some('_'), Some(c.to_ascii_uppercase())]);
        format!("ENTENTE_{}_SECONDS", parts.flatten().collect::<String>())
    };
    let named: BTreeSet<String> = named.map(snake).collect();
    let times = of_the_agent().into_iter().filter(|name| name.ends_with("_SECONDS"));
    assert_eq!(named, times.collect());
}

/// A value of the chart: its path, its default, and what the comment above it says.
struct Setting {
    path: String,
    default: String,
    comment: String,
}

/// The values of `values.yaml` in its own order. A comment stands above what it is about, a group's above the group.
fn settings(yaml: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut above: Vec<String> = Vec::new();
    let mut comment: Vec<String> = Vec::new();
    let mut of_group: BTreeMap<String, String> = BTreeMap::new();
    for line in yaml.lines() {
        let depth = (line.len() - line.trim_start().len()) / 2;
        let line = line.trim();
        if let Some(words) = line.strip_prefix('#') {
            comment.push(words.trim().to_owned());
            continue;
        }
        let Some((key, value)) = line.split_once(':') else {
            assert!(line.is_empty(), "a value on lines of its own: {line}");
            comment.clear();
            continue;
        };
        above.truncate(depth);
        above.push(key.to_owned());
        let (path, words) = (above.join("."), std::mem::take(&mut comment).join(" "));
        if value.trim().is_empty() {
            of_group.insert(path, words);
            continue;
        }
        let group = above.get(..depth).unwrap_or_default().join(".");
        let of_group = of_group.remove(&group).unwrap_or_default();
        let both = [of_group, words].into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>();
        settings.push(Setting { path, default: value.trim().to_owned(), comment: both.join(" ") });
    }
    settings
}

fn table(settings: &[Setting]) -> String {
    let mut table = "| value | default | |\n|---|---|---|\n".to_owned();
    for Setting { path, default, comment } in settings {
        table.push_str(&format!("| `{path}` | `{default}` | {} |\n", comment.replace('|', "\\|")));
    }
    table
}

const MARK: &str = "<!-- Written by `UPDATE_GOLDEN=1 cargo test --lib chart` from values.yaml. -->\n";

#[test]
fn the_readme_of_the_chart_has_every_value() {
    let settings = settings(&text("charts/entente/values.yaml"));
    assert!(settings.len() > 60, "{}", settings.len());
    let path = "charts/entente/README.md";
    let readme = text(path);
    let (head, _) = readme.split_once(MARK).expect("the README has the mark");
    let wanted = format!("{head}{MARK}\n{}", table(&settings));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(repository().join(path), &wanted).unwrap();
    }
    assert!(text(path) == wanted, "{path} is not of values.yaml: run again with UPDATE_GOLDEN=1");
}

/// Every group of the schema is closed, and every value in it has a default in values.yaml: neither knows more than the other.
#[test]
fn the_schema_of_the_chart_is_that_of_its_values() {
    let values: Value = serde_saphyr::from_str(&text("charts/entente/values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&text("charts/entente/values.schema.json")).unwrap();
    let mut compared = 0;
    compare("", &values, &schema, &mut compared);
    assert!(compared > 60, "{compared}");
}

fn compare(path: &str, values: &Value, schema: &Value, compared: &mut usize) {
    let Some(properties) = schema["properties"].as_object() else { return };
    assert_eq!(schema["additionalProperties"], false, "{path} is open");
    let Some(values) = values.as_object() else { panic!("{path} has no default") };
    for name in values.keys() {
        assert!(properties.contains_key(name), "the schema does not know {path}.{name}");
    }
    // The last is of releases before: see `_helpers.tpl`.
    let optional = [".global", ".timing", ".istio.importAddressRange"];
    for (name, property) in properties {
        let path = format!("{path}.{name}");
        if optional.contains(&path.as_str()) {
            continue;
        }
        *compared += 1;
        let Some(value) = values.get(name) else { panic!("values.yaml has no {path}") };
        compare(&path, value, property, compared);
    }
}

/// The chart is of this version; its CustomResourceDefinitions are compared where they are made.
#[test]
fn the_chart_is_of_this_version() {
    let chart: Value = serde_saphyr::from_str(&text("charts/entente/Chart.yaml")).unwrap();
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

/// What the Dockerfile copies is there and not ignored, and what the build reads is copied.
#[test]
fn the_image_is_built_from_what_is_there() {
    let dockerfile = text("Dockerfile");
    let ignored = text(".dockerignore");
    assert_eq!(ignored.lines().next(), Some("*"), "only what is named is sent to the builder");
    let sent: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let copies = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|rest| !rest.starts_with("--from"));
    let mut copied = BTreeSet::new();
    for copy in copies {
        let mut paths: Vec<&str> = copy.split_whitespace().collect();
        paths.pop();
        copied.extend(paths.into_iter().map(|path| path.trim_end_matches('/')));
    }
    for path in &copied {
        assert!(repository().join(path).exists(), "the Dockerfile copies {path}, which is not there");
        assert!(sent.contains(path), ".dockerignore keeps {path} back");
    }
    let manifest = text("Cargo.toml");
    let paths = manifest
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .filter(|(key, _)| ["build", "path"].contains(key));
    let folders =
        paths.map(|(_, path)| path.trim_matches('"').split('/').next().unwrap_or_default().to_owned());
    for needed in folders.chain(["Cargo.toml", "Cargo.lock", "askama.toml", "src"].map(str::to_owned)) {
        assert!(
            copied.contains(needed.as_str()),
            "the build reads {needed}, which the Dockerfile does not copy"
        );
    }
    let toolchain = text("rust-toolchain.toml");
    let version =
        toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    for line in
        [format!("FROM rust:{version}-slim-bookworm AS build"), format!("ENV RUSTUP_TOOLCHAIN={version}")]
    {
        assert!(dockerfile.lines().any(|it| it == line), "the Dockerfile has no {line:?}");
    }
}

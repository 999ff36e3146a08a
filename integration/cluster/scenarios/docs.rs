//! The documentation, followed as a new user would: every command of the README and of the guides, in order, from an installation
//! to a working call, a rotation and the end, with what it prints held to what is shown.

use super::chart;
use crate::docs::blocks::{self, Block};
use crate::docs::mesh::Mesh;
use crate::docs::nodes::Nodes;
use crate::docs::shell::Shell;
use crate::pair::{Pair, with_pair, with_spent_pair};
use crate::spire::SpireOptions;
use crate::tools::Tools;
use crate::world::{Domain, Options};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;

/// In the order in which each sends its reader on.
const GUIDES: [&str; 5] = [
    "docs/guides/install.md",
    "docs/guides/first-federation.md",
    "docs/guides/services.md",
    "docs/guides/rotation.md",
    "docs/guides/ending.md",
];
/// As SPIRE's Helm charts have it, by the release of the guides.
const CLASS: &str = "spire-server-spire";
const SPIRE: &str = "spire-server";

fn options() -> Options {
    Options { spire: SpireOptions { class_name: CLASS, ..SpireOptions::default() } }
}

/// The values that this machine needs: those of the chart's own scenario, and the gateway's port. What the reader sets is left out.
fn values(domain: &Domain, mesh: &Mesh<'_>) -> Result<Value> {
    let mut values = chart::values(domain)?;
    values["istio"] = json!({"eastWestGateway": mesh.gateway_value()});
    // The gateway has a name that nobody here resolves.
    values["extraEnv"] = json!([{"name": "ENTENTE_GATEWAY_CHECK_SECONDS", "value": "0"}]);
    for (part, set) in [("peer", "advertise"), ("bundleEndpoint", "url")] {
        values[part].as_object_mut().context("no such part")?.remove(set);
    }
    Ok(values)
}

/// Runs every block of these files that holds commands, but those that are marked, which it counts and names.
async fn follow(pair: &Pair, files: &[&str]) -> Result<()> {
    tokio::try_join!(chart::prepare(&pair.east), chart::prepare(&pair.west))?;
    // Where SPIRE's charts are installed, which are not.
    for domain in [&pair.east, &pair.west] {
        domain.kubernetes.namespace(SPIRE).await?;
    }
    let mut mesh = Mesh::stand(pair).await?;
    let shell = Shell::new(pair, |domain| values(domain, &mesh))?;
    let (mut east, mut west) = tokio::try_join!(Nodes::start(&pair.east), Nodes::start(&pair.west))?;
    let reading = async {
        let (mut ran, mut left_out) = (0, Vec::new());
        for file in files {
            for block in blocks::of_file(file)? {
                match (&block.not_run, block.holds_commands()) {
                    (Some(reason), _) => left_out.push(format!("{}: {reason}", block.place())),
                    (None, true) => {
                        run(&shell, &mut mesh, &block).await?;
                        ran += 1;
                    }
                    (None, false) => is_taken(pair, &block).await?,
                }
            }
        }
        println!("{ran} blocks were run, {} were not:\n{}", left_out.len(), left_out.join("\n"));
        Ok(())
    };
    tokio::select! {
        done = reading => done,
        ended = east.run() => ended.map(|never| match never {}),
        ended = west.run() => ended.map(|never| match never {}),
    }?;
    tokio::try_join!(east.stop(), west.stop())?;
    Ok(())
}

async fn run(shell: &Shell, mesh: &mut Mesh<'_>, block: &Block) -> Result<()> {
    if block.text.contains("-- curl") {
        mesh.serve().await.with_context(|| block.place())?;
    }
    shell.follow(block).await
}

/// An object that is shown is one that the API server takes.
async fn is_taken(pair: &Pair, block: &Block) -> Result<()> {
    if block.language != "yaml" || !block.text.starts_with("apiVersion:") {
        return Ok(());
    }
    for mut object in crate::kubernetes::documents(&block.text).with_context(|| block.place())? {
        // Not a change of what is there by that name.
        object["metadata"]["name"] = json!("shown");
        pair.west.kubernetes.dry_run(&object).await.with_context(|| block.place())?;
    }
    Ok(())
}

/// The values that the guide shows are those of the files that its commands name.
#[test]
fn the_values_that_are_shown_are_those_of_the_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut shown = 0;
    for block in blocks::of_file("docs/guides/install.md").unwrap() {
        let files: &[&str] = match block.text.split(':').next() {
            Some("spire-server") => &["spire/helm/federation.yaml", "spire/helm/istio.yaml"],
            Some("meshConfig") => &["integration/kind/values/istiod.yaml"],
            _ => continue,
        };
        let mut whole = serde_json::Map::new();
        for file in files {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            whole.extend(serde_saphyr::from_str::<serde_json::Map<String, Value>>(&text).unwrap());
        }
        let text: Value = serde_saphyr::from_str(&block.text).unwrap();
        assert!(is_part(&text, &Value::Object(whole)), "{} is not of {files:?}", block.place());
        shown += 1;
    }
    assert_eq!(shown, 2);
}

/// Whether all of the first is in the second, which may hold more.
fn is_part(one: &Value, whole: &Value) -> bool {
    match (one, whole) {
        (Value::Object(one), Value::Object(whole)) => {
            one.iter().all(|(key, value)| whole.get(key).is_some_and(|other| is_part(value, other)))
        }
        _ => one == whole,
    }
}

/// The guide installs the charts of others in the versions of `integration/kind/`.
#[test]
fn the_charts_of_others_are_pinned_as_in_kind() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_to_string(root.join("docs/guides/install.md")).unwrap();
    let pins = std::fs::read_to_string(root.join("integration/kind/versions.env")).unwrap();
    for (chart, pin) in [
        ("spire-crds spire-crds", "SPIRE_CRDS_CHART"),
        ("spire spire", "SPIRE_CHART"),
        ("istio-base base", "ISTIO_CHART"),
        ("istiod istiod", "ISTIO_CHART"),
        ("istio-eastwestgateway gateway", "ISTIO_CHART"),
    ] {
        let version = pins.lines().find_map(|line| line.strip_prefix(pin)?.strip_prefix('=')).unwrap();
        let command = format!("helm upgrade --install {chart} --version {version} ");
        assert!(guide.contains(&command), "the guide has no `{command}`");
    }
}

/// The row of a program in the table of tested versions.
fn told(program: &str) -> Result<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/versions.md"))?;
    let row = page.lines().find(|line| line.trim_start_matches("| ").starts_with(program));
    let row = row.with_context(|| format!("no row of {program}"))?;
    Ok(row.split('|').nth(2).context("no version")?.trim().to_owned())
}

/// The programs themselves say the versions that the documentation has of them.
#[test]
fn the_versions_that_are_told_are_those_that_run() {
    with_pair(async |pair| {
        let server = pair.east.kubernetes.client.apiserver_version().await?;
        let told_of_kubernetes = told("Kubernetes")?;
        ensure!(server.git_version == format!("v{told_of_kubernetes}"), "{server:?}");
        for (name, program, args) in [
            ("kubectl", "kubectl", ["version", "--client"].as_slice()),
            ("etcd", "etcd", &["--version"]),
            ("SPIRE", "spire-server", &["--version"]),
            ("Envoy", "envoy", &["--version"]),
            ("Helm", "helm", &["version"]),
        ] {
            let output =
                tokio::process::Command::new(Tools::get()?.program(program)?).args(args).output().await?;
            let said = [output.stdout, output.stderr].concat();
            let (said, version) = (String::from_utf8_lossy(&said), told(name)?);
            ensure!(said.contains(&version), "{program} does not say {version}: {said}");
        }
        Ok(())
    });
}

/// The guides, one after the other.
#[test]
fn the_guides_lead_to_a_call_and_to_the_end() {
    with_spent_pair(options(), options(), async |pair| follow(pair, &GUIDES).await);
}

/// The README alone.
#[test]
fn the_readme_leads_to_a_call() {
    with_spent_pair(options(), options(), async |pair| follow(pair, &["README.md"]).await);
}

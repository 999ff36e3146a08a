//! `entente status`: peers and services at a glance, from the store alone.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::config::StoreArg;
use crate::model::object::Kind;
use crate::model::{Object, ObjectKey};
use crate::store::{DirectoryStore, DirectoryTimings, Event, KubernetesStore, Store};

/// How long the store is given to answer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// Where objects are: `kubernetes` (by KUBECONFIG), or `dir:PATH`.
    #[arg(long, env = "ENTENTE_STORE", default_value = "kubernetes")]
    store: StoreArg,

    /// The agent's namespace.
    #[arg(long, env = "ENTENTE_NAMESPACE", default_value = "entente-system")]
    namespace: String,

    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

const KINDS: [Kind; 3] = [Kind::TrustDomainPeer, Kind::FederatedService, Kind::ImportedService];

/// Prints the state; the exit code is 1 where a peer is not ready or an object not accepted.
pub(super) async fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let store = match &args.store {
        StoreArg::Kubernetes => {
            Store::Kubernetes(KubernetesStore::connect(&args.namespace, "entente").await?)
        }
        StoreArg::Directory(path) => {
            Store::Directory(DirectoryStore::open_read_only(path, DirectoryTimings::default()))
        }
    };
    let objects = tokio::time::timeout(PATIENCE, read(&store))
        .await
        .map_err(|_| anyhow::anyhow!("{}: no answer within {} s", args.store, PATIENCE.as_secs()))??;
    let healthy = objects.values().all(is_healthy);
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{:#}", as_json(&objects))?,
        Output::Table => write!(out, "{}", as_tables(&objects))?,
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn read(store: &Store) -> anyhow::Result<BTreeMap<ObjectKey, Object>> {
    let mut events = store.watch(&KINDS);
    let mut objects = BTreeMap::new();
    let mut missing: std::collections::BTreeSet<Kind> = KINDS.into();
    while !missing.is_empty() {
        match events.recv().await {
            Some(Event::Reset { kind, objects: all }) => {
                missing.remove(&kind);
                objects.extend(all.into_iter().map(|object| (object.key.clone(), object)));
            }
            Some(Event::Absent(kind)) => {
                anyhow::bail!(
                    "the API server does not know the kind {kind}: apply the output of `entente crds`"
                )
            }
            Some(_) => {}
            None => anyhow::bail!("the store ended"),
        }
    }
    Ok(objects)
}

fn condition<'a>(object: &'a Object, kind: &str) -> Option<&'a Value> {
    let conditions = object.status()?.get("conditions")?.as_array()?;
    conditions.iter().find(|c| c.get("type").and_then(Value::as_str) == Some(kind))
}

fn truth<'a>(object: &'a Object, kind: &str) -> &'a str {
    condition(object, kind).and_then(|c| c.get("status")).and_then(Value::as_str).unwrap_or("-")
}

fn text<'a>(value: Option<&'a Value>, field: &str) -> &'a str {
    value.and_then(|v| v.get(field)).and_then(Value::as_str).unwrap_or("-")
}

fn is_healthy(object: &Object) -> bool {
    let kind = match object.key.kind {
        Kind::TrustDomainPeer => "Ready",
        Kind::ImportedService => "Admitted",
        _ => "Accepted",
    };
    truth(object, kind) == "True"
}

fn as_json(objects: &BTreeMap<ObjectKey, Object>) -> Value {
    let list = |kind: Kind| -> Vec<Value> {
        let of_kind = objects.values().filter(|object| object.key.kind == kind);
        of_kind
            .map(|o| json!({ "namespace": o.key.namespace, "name": o.key.name, "spec": o.spec(), "status": o.status() }))
            .collect()
    };
    json!({
        "peers": list(Kind::TrustDomainPeer),
        "federatedServices": list(Kind::FederatedService),
        "importedServices": list(Kind::ImportedService),
    })
}

fn as_tables(objects: &BTreeMap<ObjectKey, Object>) -> String {
    let of_kind = |kind: Kind| objects.values().filter(move |object| object.key.kind == kind);
    let mut peers =
        vec![row(&["TRUST DOMAIN", "CONNECTED", "RECIPROCAL", "BUNDLE", "ROTATION", "READY", "WHY"])];
    peers.extend(of_kind(Kind::TrustDomainPeer).map(|peer| {
        let ready = condition(peer, "Ready");
        let why = if truth(peer, "Ready") == "True" { "" } else { text(ready, "message") };
        let cells = [
            text(peer.spec(), "trustDomain"),
            truth(peer, "Connected"),
            truth(peer, "Reciprocal"),
            truth(peer, "BundleDistributed"),
            truth(peer, "RotationSafe"),
            truth(peer, "Ready"),
            why,
        ];
        row(&cells)
    }));
    let mut services = vec![row(&["EXPORTED SERVICE", "ACCEPTED", "EXPORTED", "WHY"])];
    services.extend(of_kind(Kind::FederatedService).map(|service| {
        let exported = condition(service, "Exported").or_else(|| condition(service, "Accepted"));
        let why = if truth(service, "Exported") == "True" { "" } else { text(exported, "message") };
        let name = format!("{}/{}", service.key.namespace.as_deref().unwrap_or("-"), service.key.name);
        row(&[&name, truth(service, "Accepted"), truth(service, "Exported"), why])
    }));
    let mut imports = vec![row(&["IMPORTED SERVICE", "FROM", "ADMITTED"])];
    imports.extend(of_kind(Kind::ImportedService).map(|import| {
        row(&[text(import.spec(), "host"), text(import.spec(), "trustDomain"), truth(import, "Admitted")])
    }));
    [peers, services, imports].into_iter().map(|rows| table(&rows)).collect::<Vec<_>>().join("\n")
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Columns as wide as their widest cell; the last one as it is.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

//! An upgrade of our CustomResourceDefinitions by the chart, with objects of an earlier version in store.

use super::{gone, object};
use crate::chart::{CHART, RELEASE, helm};
use crate::kubernetes::documents;
use crate::pair::runtime;
use crate::turn::{Of, Turn, conclude};
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain, Options};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As they were at the commit that the files are named by.
const OLD: &str = include_str!("../upgrade/crds-708f17d.yaml");
const OBJECTS: &str = include_str!("../upgrade/objects-708f17d.yaml");
const CRD: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
/// One of the objects.
const PEER: &str = "north.example";
const SOON: Duration = Duration::from_secs(60);

/// A release with the definitions of before is upgraded to those of today: every field of every object is as it was, the objects
/// are valid, and can be written. On the way back as `docs/upgrades.md` has it nothing is lost. Definitions that the release does not
/// bring stay as they are, and an uninstall leaves them, and the objects.
#[test]
fn objects_outlive_an_upgrade_of_their_definitions() {
    let _turn = Turn::of_pair(Of::Own);
    let done = runtime().block_on(async {
        let domain = Domain::start("east.example", Options::default()).await?;
        let done = upgrade(&domain).await;
        if done.is_err() {
            domain.keep();
        }
        done
    });
    conclude(done);
}

async fn upgrade(domain: &Domain) -> Result<()> {
    let objects = documents(OBJECTS)?;
    every_field_is_there(&documents(OLD)?, &objects)?;
    for namespace in ["shop", "istio-system"] {
        domain.kubernetes.namespace(namespace).await?;
    }
    bare(domain).await?;
    let old = chart_of_before(domain.dir())?.display().to_string();
    put(domain, &old, &[]).await?;
    ensure!(!knows(domain, "awaySince").await?, "these are not the definitions of before");
    for wanted in &objects {
        store(domain, wanted).await?;
    }
    let before = stored(domain, &objects).await?;
    for (wanted, stored) in objects.iter().zip(&before) {
        has_all_of("", wanted, stored)?;
    }

    put(domain, CHART, &[]).await?;
    eventually("the definitions are those of today", SOON, || async {
        ensure!(knows(domain, "awaySince").await?, "not yet");
        Ok(())
    })
    .await?;
    eventually("today's are served", SOON, || same(domain, &objects, &before)).await?;
    for wanted in &objects {
        let mut touched = wanted.clone();
        touched["metadata"]["labels"] = json!({"touched": "yes"});
        domain.kubernetes.apply(&touched).await.context("what was valid is not any more")?;
    }

    back(domain, &old).await?;

    // What the release does not bring is not its own to change, nor to take away.
    put(domain, &old, &["--set", "crds.install=false"]).await?;
    ensure!(knows(domain, "awaySince").await?, "definitions went back that were not to be installed");
    helm(domain, &["uninstall", RELEASE, "--namespace", AGENT_NAMESPACE, "--wait"]).await?;
    ensure!(stored(domain, &objects).await?.len() == objects.len(), "objects went with the release");
    Ok(())
}

/// Under an older chart that is told to bring no definitions the newer ones stay, and with them what only they know; `helm rollback`
/// takes both away, and no newer chart brings the latter again.
async fn back(domain: &Domain, old: &str) -> Result<()> {
    let newer = chart_of_tomorrow(domain.dir())?.display().to_string();
    put(domain, &newer, &[]).await?;
    let peers = domain.kubernetes.api("entente.dev/v1alpha1", "TrustDomainPeer", None).await?;
    let touch = async |word: &str| {
        let change = json!({"metadata": {"labels": {"touched": word}}});
        peers.patch(PEER, &PatchParams::default(), &Patch::Merge(change)).await
    };
    let status = json!({"status": {"awaySince": "2026-01-02T03:04:05Z"}});
    peers.patch_status(PEER, &PatchParams::default(), &Patch::Merge(status)).await?;
    let has = async || anyhow::Ok(peers.get(PEER).await?.data["status"]["awaySince"].is_string());
    ensure!(has().await?, "it is not stored");

    let refused = put(domain, old, &["--reuse-values", "--set", "crds.install=false"]).await;
    let is_named = |error: &anyhow::Error| format!("{error:#}").contains("tomorrow");
    ensure!(refused.as_ref().is_err_and(is_named), "the newer chart's own values: {refused:?}");
    put(domain, old, &["--reset-then-reuse-values", "--set", "crds.install=false"]).await?;
    touch("under-the-older").await?;
    ensure!(knows(domain, "awaySince").await? && has().await?, "the way back takes something out");
    put(domain, &newer, &["--reset-then-reuse-values", "--set", "crds.install=true"]).await?;
    ensure!(knows(domain, "awaySince").await? && has().await?, "the way forth again takes something out");

    helm(domain, &["rollback", RELEASE, "1", "--namespace", AGENT_NAMESPACE]).await?;
    eventually("what the older definitions do not know is gone", SOON, || async {
        ensure!(!knows(domain, "awaySince").await? && !has().await?, "not yet");
        Ok(())
    })
    .await?;
    touch("after-the-rollback").await?;
    put(domain, &newer, &[]).await?;
    eventually("the definitions know it again", SOON, || async {
        let status = json!({"status": {"awaySince": "2026-01-02T03:04:06Z"}});
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        let written = peers.patch_status(PEER, &params, &Patch::Merge(status)).await?;
        ensure!(written.data["status"]["awaySince"].is_string(), "not yet");
        Ok(())
    })
    .await?;
    ensure!(!has().await?, "a rollback costs nothing: docs/upgrades.md says too much");
    Ok(())
}

/// A cluster without our definitions.
async fn bare(domain: &Domain) -> Result<()> {
    let crds = domain.kubernetes.api(CRD.0, CRD.1, None).await?;
    for crd in crds.list(&ListParams::default()).await? {
        let name = crd.metadata.name.unwrap_or_default();
        if name.ends_with(".entente.dev") {
            crds.delete(&name, &DeleteParams::default()).await?;
            gone(domain, CRD, None, &name).await?;
        }
    }
    Ok(())
}

/// The chart of today with the definitions of before.
fn chart_of_before(dir: &Path) -> Result<PathBuf> {
    let chart = dir.join("chart-of-before");
    copy(Path::new(CHART), &chart)?;
    std::fs::write(chart.join("files/crds.yaml"), OLD)?;
    Ok(chart)
}

/// The chart of today with one more value.
fn chart_of_tomorrow(dir: &Path) -> Result<PathBuf> {
    let chart = dir.join("chart-of-tomorrow");
    copy(Path::new(CHART), &chart)?;
    let (values, schema) = (chart.join("values.yaml"), chart.join("values.schema.json"));
    std::fs::write(&values, std::fs::read_to_string(&values)? + "\ntomorrow: true\n")?;
    let mut known: Value = serde_json::from_slice(&std::fs::read(&schema)?)?;
    known["properties"]["tomorrow"] = json!({"type": "boolean"});
    std::fs::write(&schema, serde_json::to_vec(&known)?)?;
    Ok(chart)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

async fn put(domain: &Domain, chart: &str, more: &[&str]) -> Result<()> {
    let release = ["upgrade", "--install", RELEASE, chart, "--namespace", AGENT_NAMESPACE];
    helm(domain, &[&release[..], more].concat()).await?;
    Ok(())
}

/// Whether the definition of TrustDomainPeer has this field in its status.
async fn knows(domain: &Domain, field: &str) -> Result<bool> {
    let crd = object(domain, CRD, None, "trustdomainpeers.entente.dev").await?.context("there is none")?;
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
    Ok(crd.data.pointer(schema).is_some_and(|fields| fields.get(field).is_some()))
}

/// Writes an object, then its status.
async fn store(domain: &Domain, wanted: &Value) -> Result<()> {
    let mut spec = wanted.clone();
    let status = spec.as_object_mut().and_then(|fields| fields.remove("status"));
    // The definitions are new: until they are served there is no such kind.
    eventually("the object is taken", SOON, || domain.kubernetes.apply(&spec)).await?;
    if let Some(status) = status {
        let (kind, namespace, name) = place(wanted)?;
        let api = domain.kubernetes.api(kind.0, kind.1, namespace).await?;
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::default()
        };
        api.patch_status(name, &params, &Patch::Merge(json!({"status": status}))).await?;
    }
    Ok(())
}

fn place(object: &Value) -> Result<((&str, &str), Option<&str>, &str)> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = (text("/apiVersion").context("no apiVersion")?, text("/kind").context("no kind")?);
    Ok((kind, text("/metadata/namespace"), text("/metadata/name").context("no name")?))
}

/// What is stored of these objects: UID, generation, spec and status.
async fn stored(domain: &Domain, objects: &[Value]) -> Result<Vec<Value>> {
    let mut stored = Vec::new();
    for wanted in objects {
        let (kind, namespace, name) = place(wanted)?;
        let found =
            object(domain, kind, namespace, name).await?.with_context(|| format!("{name} is gone"))?;
        stored.push(json!({
            "uid": found.metadata.uid, "generation": found.metadata.generation, "spec": found.data["spec"],
            "status": found.data["status"],
        }));
    }
    Ok(stored)
}

async fn same(domain: &Domain, objects: &[Value], before: &[Value]) -> Result<()> {
    let now = stored(domain, objects).await?;
    for (now, before) in now.iter().zip(before) {
        ensure!(now == before, "it was {before:#}, and is {now:#}");
    }
    Ok(())
}

/// Everything that was written is stored: else the definitions of before took something out already.
fn has_all_of(path: &str, wanted: &Value, stored: &Value) -> Result<()> {
    if path.is_empty() {
        for field in ["spec", "status"] {
            has_all_of(field, &wanted[field], &stored[field])?;
        }
        return Ok(());
    }
    match (wanted, stored) {
        (Value::Object(wanted), Value::Object(stored)) => wanted.iter().try_for_each(|(name, value)| {
            let stored = stored.get(name).with_context(|| format!("{path}.{name} is not stored"))?;
            has_all_of(&format!("{path}.{name}"), value, stored)
        }),
        _ => {
            ensure!(wanted == stored, "{path} is stored as {stored}, not {wanted}");
            Ok(())
        }
    }
}

/// What no object has is not shown to outlive anything.
fn every_field_is_there(definitions: &[Value], objects: &[Value]) -> Result<()> {
    for definition in definitions {
        let kind = &definition["spec"]["names"]["kind"];
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let mut known = BTreeSet::new();
        for part in ["spec", "status"] {
            fields(part, &schema[part], &mut known);
        }
        let mut had = BTreeSet::new();
        for object in objects.iter().filter(|object| object["kind"] == *kind) {
            for part in ["spec", "status"] {
                leaves(part, &object[part], &mut had);
            }
        }
        let is_had =
            |path: &String| had.iter().any(|had| had == path || had.starts_with(&format!("{path}.")));
        let lacks: Vec<_> = known.iter().filter(|path| !is_had(path)).collect();
        ensure!(!known.is_empty() && lacks.is_empty(), "no {kind} has {lacks:?}");
    }
    Ok(())
}

fn fields(path: &str, schema: &Value, known: &mut BTreeSet<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            fields(&format!("{path}.{name}"), property, known);
        }
    } else if schema["items"].is_object() {
        fields(path, &schema["items"], known);
    } else {
        known.insert(path.to_owned());
    }
}

fn leaves(path: &str, value: &Value, had: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| leaves(&format!("{path}.{name}"), value, had))
        }
        Value::Array(items) => items.iter().for_each(|item| leaves(path, item, had)),
        _ => drop(had.insert(path.to_owned())),
    }
}

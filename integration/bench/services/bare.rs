//! What the API server alone needs: server-side applies with nothing else to do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

/// As many at a time as the agent writes.
pub(crate) const CONCURRENCY: usize = 16;

/// Applies all of these, some at a time; what it took.
pub(crate) async fn apply(all: &[(Api<DynamicObject>, Value)]) -> Result<Duration> {
    let since = Instant::now();
    let applied = futures::stream::iter(all).map(|(api, object)| apply_one(api, object));
    applied.buffer_unordered(CONCURRENCY).try_collect::<Vec<()>>().await?;
    Ok(since.elapsed())
}

/// Applies one.
pub(crate) async fn apply_one(api: &Api<DynamicObject>, object: &Value) -> Result<()> {
    let name = object["metadata"]["name"].as_str().context("an object without a name")?;
    let params = PatchParams::apply("bench").force();
    api.patch(name, &params, &Patch::Apply(object)).await.with_context(|| format!("applying {name}"))?;
    Ok(())
}

/// An object as someone would write it: without what the API server adds, and owned by `owner`, where it is owned.
pub(crate) fn as_written(object: DynamicObject, owner: &str) -> Value {
    let types = object.types.unwrap_or_default();
    let mut metadata = json!({
        "name": object.metadata.name,
        "namespace": object.metadata.namespace,
        "labels": object.metadata.labels,
        "annotations": object.metadata.annotations,
    });
    if let Some(mut owners) = object.metadata.owner_references {
        owners.iter_mut().for_each(|reference| reference.uid = owner.to_owned());
        metadata["ownerReferences"] = json!(owners);
    }
    json!({
        "apiVersion": types.api_version,
        "kind": types.kind,
        "metadata": metadata,
        "spec": object.data["spec"],
    })
}

/// How many objects there are, without reading them.
pub(crate) async fn count(api: &Api<DynamicObject>) -> Result<usize> {
    let page = api.list(&ListParams::default().limit(1)).await?;
    let more = page.metadata.remaining_item_count.unwrap_or_default();
    Ok(page.items.len() + usize::try_from(more)?)
}

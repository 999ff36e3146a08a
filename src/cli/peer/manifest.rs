//! The end of a relationship whose TrustDomainPeer is a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::model::ObjectKey;
use crate::store::{Store, directory};

/// How long the agent is given to read the manifest again: it looks every 10 s where it is told of no change.
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes the annotations into the manifest, waits until the agent has read them, and removes it. Where it was removed before, and
/// the end goes on, it is put back for as long as that takes.
///
/// # Errors
/// Where the file holds other objects too, or the agent does not read it.
pub(super) async fn end(
    store: &Store,
    root: &Path,
    key: &ObjectKey,
    annotations: &BTreeMap<&'static str, String>,
) -> anyhow::Result<()> {
    let Store::Directory(directory) = store else { bail!("not a directory") };
    let (path, mut document) = match directory.manifest(key) {
        Some(path) => {
            let document = directory::read_document(&path).map_err(|why| {
                anyhow::anyhow!(
                    "{}: {why}: {key} must be alone in its file to be removed by this command; take it out yourself",
                    path.display()
                )
            })?;
            (path, document)
        }
        None => match put_back(root, key)? {
            Some(found) => found,
            // It has ended meanwhile.
            None => return Ok(()),
        },
    };
    let metadata = document.get_mut("metadata").and_then(Value::as_object_mut).context("no metadata")?;
    let there = metadata.entry("annotations").or_insert_with(|| json!({}));
    let there = there.as_object_mut().context("metadata.annotations is no object")?;
    there.extend(annotations.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    let was_there = directory::kept_annotations(root, key).is_some();
    let failed = || format!("{} cannot be written", path.display());
    let beside = path.with_extension("ending");
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let text = if is_json { document.to_string() } else { directory::to_yaml(&document) };
    std::fs::write(&beside, text).with_context(failed)?;
    std::fs::rename(&beside, &path).with_context(failed)?;
    if tokio::time::timeout(PATIENCE, until_read(root, key, annotations, was_there)).await.is_err() {
        bail!(
            "no agent follows {}: the manifest says how the relationship is to end; remove {} once one does",
            root.display(),
            path.display()
        );
    }
    std::fs::remove_file(&path).with_context(failed)
}

/// The file in which the manifest lay, and what stood there; `None` where nothing is known of it any more.
fn put_back(root: &Path, key: &ObjectKey) -> anyhow::Result<Option<(PathBuf, Value)>> {
    let kept = directory::kept_manifest(root, key);
    if let Some((path, _)) = kept.as_ref().filter(|(path, _)| path.exists()) {
        bail!("{} holds something else now than {key}: move that away, and try again", path.display());
    }
    Ok(kept)
}

/// Waits until the agent's own record of the object has the annotations, or is gone: then it has ended.
async fn until_read(
    root: &Path,
    key: &ObjectKey,
    annotations: &BTreeMap<&'static str, String>,
    mut was_there: bool,
) {
    let mut look = tokio::time::interval(Duration::from_millis(100));
    loop {
        look.tick().await;
        match directory::kept_annotations(root, key) {
            Some(known) if annotations.iter().all(|(name, value)| known.get(*name) == Some(value)) => return,
            Some(_) => was_there = true,
            None if was_there => return,
            None => {}
        }
    }
}

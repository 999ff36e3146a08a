//! The end of a relationship whose TrustDomainPeer is a file.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::cli::output::noticed;
use crate::model::ObjectKey;
use crate::model::peer::ANNOTATION_END;
use crate::store::{Store, directory};

/// How long the agent is given to read the manifest again: it looks every 10 s where it is told of no change.
const PATIENCE: Duration = Duration::from_secs(20);
/// The mode of a manifest that is put back.
const MODE: u32 = 0o644;

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
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let text = if is_json { document.to_string() } else { directory::to_yaml(&document) };
    replace(&path, &text).with_context(failed)?;
    let what = || format!("waiting for the agent to read {}", path.display());
    let reading = tokio::time::timeout(PATIENCE, until_read(root, key, annotations, was_there));
    if noticed(what, reading).await.is_err() {
        bail!("{}", unread(root, &path, annotations));
    }
    std::fs::remove_file(&path).with_context(failed)
}

/// Puts this text in place of the file's, at once and whole. Whoever could read that one can read this: the agent, which may run as
/// another user than this command.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = path.with_extension("ending");
    let replaced = (|| {
        // Of an earlier try; a link that someone put there is not followed.
        let _ = std::fs::remove_file(&beside);
        let mut file = File::options().write(true).create_new(true).open(&beside)?;
        file.write_all(text.as_bytes())?;
        let mut mode = MODE;
        if let Ok(there) = std::fs::metadata(path) {
            mode = there.mode();
            // Who may not give files away can still leave them to the group.
            let (owner, group) = (Some(there.uid()), Some(there.gid()));
            let _ = fchown(&file, owner, group).or_else(|_| fchown(&file, None, group));
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        std::fs::rename(&beside, path)
    })();
    if replaced.is_err() {
        // It may not have come into being.
        let _ = std::fs::remove_file(&beside);
    }
    replaced
}

/// What to say of a manifest that no agent has read in time. Removed unread, an emergency would be an ordinary end.
fn unread(root: &Path, path: &Path, annotations: &BTreeMap<&'static str, String>) -> String {
    let (root, path) = (root.display(), path.display());
    let next = if annotations.contains_key(ANNOTATION_END) {
        "it is not ended yet. Do not remove the file before it is read, that would be an ordinary end: see to that, and run this \
         again"
    } else {
        "it is not ended yet. Run this again once one has, or remove the file"
    };
    format!(
        "{path} says how the relationship is to end, and no agent has read that within {} s: does one follow {root}, and may its \
         user read {path}? {next}",
        PATIENCE.as_secs()
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_could_read_the_manifest_can_read_it_still() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("west.yaml");
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o777;
        // Modes that no umask gives a new file: they are set.
        for there in [0o664, 0o604] {
            std::fs::write(&path, "before").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(there)).unwrap();
            // Where the test may.
            let _ = std::os::unix::fs::chown(&path, Some(1), Some(1));
            let owner = || std::fs::metadata(&path).map(|file| (file.uid(), file.gid())).unwrap();
            let before = owner();
            replace(&path, "after").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "after");
            assert_eq!((mode(), owner()), (there, before));
        }
        std::fs::remove_file(&path).unwrap();
        replace(&path, "put back").unwrap();
        assert_eq!(mode(), MODE);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn nobody_is_told_to_make_an_emergency_an_ordinary_end() {
        let words = |annotations| unread(Path::new("/e"), Path::new("/e/manifests/west.yaml"), &annotations);
        let now = words(BTreeMap::from([(ANNOTATION_END, "now".to_owned())]));
        assert!(
            now.contains("Do not remove the file")
                && now.contains("may its user read /e/manifests/west.yaml"),
            "{now}"
        );
        let ordinary = words(BTreeMap::new());
        assert!(ordinary.contains("or remove the file"), "{ordinary}");
    }
}

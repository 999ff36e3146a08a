//! Reading and writing files: bounded in size and number, and written whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::model::ObjectKey;

/// Bytes a file may have.
pub(super) const MAX_FILE: u64 = 1 << 20;
/// Files that are read of those that users write.
pub(super) const MAX_FILES: usize = 10_000;
/// Files that are read of those that we write.
const MAX_OWN_FILES: usize = 100_000;
/// Folders in folders that are entered.
const MAX_DEPTH: usize = 16;
/// Bytes of a file name, before its ending; file systems allow 255 with it.
const MAX_NAME: usize = 240;

/// Tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from_metadata(&fs::metadata(path)?))
    }

    fn from_metadata(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What lies under a folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// In the order of their paths.
    pub(super) files: Vec<(PathBuf, Stamp)>,
    /// Folders and files that are there and could not be listed: nothing is known of what is in them.
    pub(super) failed: Vec<(PathBuf, String)>,
}

/// Every `.yaml`, `.yml` and `.json` under this folder. Names that begin with a dot are left out; links are followed.
pub(super) fn list(root: &Path, limit: usize) -> Listing {
    let mut listing = Listing::default();
    enter(root, 0, limit, &mut listing);
    listing.files.sort_by(|a, b| a.0.cmp(&b.0));
    if listing.files.len() > limit {
        let surplus = listing.files.split_off(limit);
        let message = format!("only the first {limit} files are read; remove or join some");
        listing.failed.extend(surplus.into_iter().map(|(path, _)| (path, message.clone())));
    }
    listing
}

/// As [`list`], of a folder that we write. Where we only read, nobody may have made it yet: then it is empty.
pub(super) fn list_own(root: &Path, writable: bool) -> Listing {
    if !writable && !root.exists() {
        return Listing::default();
    }
    list(root, MAX_OWN_FILES)
}

fn enter(folder: &Path, depth: usize, limit: usize, listing: &mut Listing) {
    if depth > MAX_DEPTH {
        let message = format!("more than {MAX_DEPTH} folders deep; is there a link to a parent?");
        listing.failed.push((folder.to_owned(), message));
        return;
    }
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            listing.failed.push((folder.to_owned(), error.to_string()));
            return;
        }
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                listing.failed.push((folder.to_owned(), error.to_string()));
                return;
            }
        };
        if path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => enter(&path, depth + 1, limit, listing),
            Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                listing.files.push((path, Stamp::from_metadata(&metadata)));
            }
            Ok(_) => {}
            // Removed since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
            Err(error) => listing.failed.push((path, error.to_string())),
        }
        // Far beyond the limit: the order of paths decides which are read, but not over an endless folder.
        if listing.files.len() > 2 * limit {
            listing.failed.push((folder.to_owned(), "too many files; not all were listed".to_owned()));
            return;
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// The text of a file of at most [`MAX_FILE`] bytes.
///
/// # Errors
/// What to tell the file's owner.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} bytes; split it"));
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// Readable by its owner alone.
    pub(super) private: bool,
    /// Forced to the disk: it must outlast a loss of power.
    pub(super) durable: bool,
}

/// Puts this content in place of the file's, at once and whole; nothing where it is there already.
pub(super) fn write(path: &Path, content: &str, manner: Manner) -> io::Result<()> {
    if read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".{:016x}.tmp", rand::random::<u64>()));
    let mode = if manner.private { 0o600 } else { 0o644 };
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        if manner.durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)?;
        if manner.durable {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    })();
    if written.is_err() {
        // It may not have come into being.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes a file; one that is not there is removed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where an object lies under a folder: `<plural>/<namespace>_<name>.yaml`. Neither part holds a `_`.
pub(super) fn place(key: &ObjectKey) -> PathBuf {
    let name = match &key.namespace {
        Some(namespace) => format!("{namespace}_{}", key.name),
        None => key.name.clone(),
    };
    let name = if name.len() > MAX_NAME {
        let digest = hex::encode(Sha256::digest(name.as_bytes()));
        let end = name.floor_char_boundary(MAX_NAME - 17);
        format!("{}-{}", name.get(..end).unwrap_or_default(), digest.get(..16).unwrap_or_default())
    } else {
        name
    };
    Path::new(key.kind.api().3).join(format!("{name}.yaml"))
}

//! Certificate, key and bundles as files. A library reads one after the other: all of one moment lie in one folder, and a link is
//! turned from one folder to the next, so that none is seen half written or beside another's key.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use super::{BUNDLES, CERTIFICATE, CURRENT, KEY, bundles};
use crate::model::own::Identity;

/// What the folders of a moment are named by, before a part of their content's hash.
const PREFIX: &str = ".of-";

/// What is written for one moment.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Files {
    certificate: String,
    key: String,
    bundles: String,
}

// by hand: a private key must not reach a log
impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("folder", &self.folder()).finish_non_exhaustive()
    }
}

/// Makes the directory, for its user alone, where it is not there.
pub(super) fn prepare(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

impl Files {
    /// `key` is PKCS#8 DER.
    pub(super) fn new(chain: &[CertificateDer<'_>], key: &[u8], identity: &Identity) -> Self {
        Self {
            certificate: chain.iter().map(|der| pem("CERTIFICATE", der)).collect(),
            key: pem("PRIVATE KEY", key),
            bundles: bundles::map(identity),
        }
    }

    /// The folder that holds them: the same for the same content. The certificate tells its key.
    fn folder(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(&self.certificate);
        digest.update(&self.bundles);
        let digest: String = hex::encode(digest.finalize()).chars().take(24).collect();
        format!("{PREFIX}{digest}")
    }

    fn all(&self) -> [(&str, &str); 3] {
        [(CERTIFICATE, &self.certificate), (KEY, &self.key), (BUNDLES, &self.bundles)]
    }

    /// Puts them into the directory; whether they were not there already.
    pub(super) fn put(&self, directory: &Path) -> io::Result<bool> {
        let (name, current) = (self.folder(), directory.join(CURRENT));
        let folder = directory.join(&name);
        let is_there = |file: &str, content: &str| {
            fs::read(folder.join(file)).is_ok_and(|there| there == content.as_bytes())
        };
        let is_current = fs::read_link(&current).is_ok_and(|there| there == Path::new(&name));
        if is_current && self.all().iter().all(|(file, content)| is_there(file, content)) {
            return Ok(false);
        }
        // Of an earlier life that was cut short; where it is the current one, its content is not whole.
        remove_folder(&folder)?;
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        for (file, content) in self.all() {
            write_new(&folder.join(file), content.as_bytes())?;
        }
        link(Path::new(&name), &current)?;
        clean(directory, &name);
        Ok(true)
    }
}

/// Turns a link, at once, from wherever it led.
pub(super) fn link(to: &Path, link: &Path) -> io::Result<()> {
    let new = link.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => std::os::unix::fs::symlink(to, &new)?,
    }
    fs::rename(&new, link)
}

/// Removes a link, where there is one.
pub(super) fn unlink(link: &Path) -> io::Result<()> {
    if fs::symlink_metadata(link).is_ok_and(|there| there.is_symlink()) {
        fs::remove_file(link)
    } else {
        Ok(())
    }
}

/// Removes the folders of earlier moments: who has opened a file of one reads on.
fn clean(directory: &Path, current: &str) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_old = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name != current);
        if is_old && let Err(error) = remove_folder(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "an earlier key cannot be removed");
        }
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Puts this content in the place of a file's, at once and whole, for its user alone.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => write_new(&new, content)?,
    }
    fs::rename(&new, path)
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

//! The folder of one trust domain's processes: short, since it holds sockets, and removed when the test process is
//! gone, however it went.

use crate::tools::Tools;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A socket's path has at most 108 bytes on Linux, 104 elsewhere, with the zero at the end.
const LONGEST_FOLDER: usize = 64;
/// The file that keeps the folder.
const KEEP: &str = "keep";
/// Waits until the test process is gone or drops the folder; leaves one second to those who still write there.
const JANITOR: &str = "
import os, shutil, sys, time
sys.stdin.read()
for attempt in range(20):
    if os.path.exists(os.path.join(sys.argv[1], sys.argv[2])) or not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.05)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
";

/// A folder of its own.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    janitor: Child,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        let named = std::env::temp_dir();
        let base = if named.as_os_str().len() > LONGEST_FOLDER - 16 { PathBuf::from("/tmp") } else { named };
        let path = tempfile::Builder::new().prefix("ent-").tempdir_in(base)?.keep().canonicalize()?;
        if path.as_os_str().len() > LONGEST_FOLDER {
            bail!("{} is too long for the sockets that go there", path.display());
        }
        let janitor = Command::new(Tools::get()?.program("python3")?)
            .args(["-I", "-S", "-c", JANITOR])
            .arg(&path)
            .arg(KEEP)
            .stdin(Stdio::piped())
            .spawn()
            .context("starting Python")?;
        Ok(Self { path, janitor })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder inside.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Leaves the folder where it is, for whoever reads the logs.
    pub(crate) fn keep(&self) {
        if std::fs::write(self.path.join(KEEP), "").is_ok() {
            eprintln!("the logs and files are left in {}", self.path.display());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
        }
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

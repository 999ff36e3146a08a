//! Where the real programs and CRD files are, as `integration/tools.py` says.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The tools of this run; asked for once.
#[derive(Debug, Deserialize)]
pub(crate) struct Tools {
    programs: BTreeMap<String, PathBuf>,
    files: BTreeMap<String, PathBuf>,
}

impl Tools {
    /// The inventory, or why it is not complete: a missing program is a failure, never a skipped test.
    pub(crate) fn get() -> Result<&'static Self> {
        static TOOLS: OnceLock<Result<Tools, String>> = OnceLock::new();
        TOOLS
            .get_or_init(|| ask().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// The path of a program, e.g. `spire-server`.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        self.programs
            .get(name)
            .cloned()
            .with_context(|| format!("integration/tools.py knows no program {name}"))
    }

    /// The paths of the files whose name starts with `prefix`, in order.
    pub(crate) fn files<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Path> {
        self.files.iter().filter(move |(name, _)| name.starts_with(prefix)).map(|(_, path)| path.as_path())
    }
}

fn ask() -> Result<Tools> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/tools.py");
    let output = Command::new("python3")
        .args([script, "--print-env"])
        .stderr(Stdio::inherit())
        .output()
        .context("running python3 integration/tools.py")?;
    if !output.status.success() {
        bail!("the programs of the cluster ring are not built: run `make tools`");
    }
    serde_json::from_slice(&output.stdout).context("reading what integration/tools.py printed")
}

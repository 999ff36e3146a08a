//! What etcd holds of a control plane with every CRD and the agent's namespace. It is made once, by real programs, and every
//! cluster of the test process starts on a copy: to create the roles and the CRDs takes an API server longer than to start.

use crate::crds;
use crate::kubernetes::{ETCD_DATA, Kubernetes};
use crate::scratch::Scratch;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::OnceCell;

const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// One file of etcd's data. What it has reserved and not written yet, most of its log, is not held in memory.
struct File {
    path: PathBuf,
    written: Vec<u8>,
    length: u64,
}

/// Puts the data into the folder of a control plane that has not been started.
pub(crate) async fn sow(dir: &Path, agent_namespace: &str) -> Result<()> {
    static SEED: OnceCell<Vec<File>> = OnceCell::const_new();
    for file in SEED.get_or_try_init(|| make(agent_namespace)).await? {
        let path = dir.join(&file.path);
        std::fs::create_dir_all(path.parent().context("a file without a folder")?)?;
        std::fs::write(&path, &file.written)?;
        std::fs::OpenOptions::new().write(true).open(&path)?.set_len(file.length)?;
    }
    Ok(())
}

async fn make(agent_namespace: &str) -> Result<Vec<File>> {
    let scratch = Scratch::new()?;
    let mut kubernetes = Kubernetes::start("the seed", scratch.path()).await?;
    tokio::try_join!(crds::install(&kubernetes.client), kubernetes.namespace(agent_namespace))?;
    kubernetes.api_server.kill().await?;
    kubernetes.etcd.stop(STOP_DEADLINE).await?;
    let mut files = Vec::new();
    read(scratch.path(), Path::new(ETCD_DATA), &mut files)?;
    Ok(files)
}

fn read(root: &Path, folder: &Path, files: &mut Vec<File>) -> Result<()> {
    for entry in std::fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            read(root, &path, files)?;
            continue;
        }
        let mut written = std::fs::read(root.join(&path))?;
        let length = u64::try_from(written.len())?;
        written.truncate(written.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        written.shrink_to_fit();
        files.push(File { path, written, length });
    }
    Ok(())
}

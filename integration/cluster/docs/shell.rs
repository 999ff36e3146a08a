//! A reader's terminal: a folder of the repository's own paths, the programs on PATH, and two contexts.

use super::blocks::{Block, Step, is_as_shown};
use crate::pair::Pair;
use crate::tools::Tools;
use crate::world::Domain;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// What is known where a command failed.
const STATE: &str = "set +e
for cluster in east west; do
  entente status --context $cluster
  kubectl --context $cluster get federatedservices,importedservices -A -o jsonpath='{range .items[*]}{.metadata.name} {.status}{\"\\n\"}{end}'
done";

/// Who follows a guide.
pub(crate) struct Shell {
    /// Where commands run: what the repository has, and what they write.
    dir: PathBuf,
    bin: PathBuf,
    home: PathBuf,
}

impl Shell {
    /// Contexts `east` and `west` for the two domains. `values` is, for each, what the chart is told beyond what a command says:
    /// where this machine has what a node or a name would lead to.
    pub(crate) fn new(pair: &Pair, values: impl Fn(&Domain) -> Result<Value>) -> Result<Self> {
        let root = pair.east.dir().join("reader");
        let shell = Self { dir: root.join("work"), bin: root.join("bin"), home: root.join("home") };
        for dir in [&shell.dir, &shell.bin, &shell.home] {
            std::fs::create_dir_all(dir)?;
        }
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        for name in ["charts", "docs", "examples"] {
            symlink(repository.join(name), shell.dir.join(name))?;
        }
        let program = Path::new(env!("CARGO_BIN_EXE_entente"));
        symlink(program, shell.bin.join("entente"))?;
        symlink(program, shell.bin.join("kubectl-entente"))?;
        let tools = Tools::get()?;
        symlink(tools.program("kubectl")?, shell.bin.join("kubectl"))?;
        shell.script("helm", &helm(&tools.program("helm")?, &root))?;
        shell.script(
            "cargo",
            &format!("[[ \"$1 $2 $3\" == 'run --release --' ]] && exec {program:?} \"${{@:4}}\"\n"),
        )?;
        let mut config =
            json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []});
        for (context, domain) in [("east", &pair.east), ("west", &pair.west)] {
            add(&mut config, context, domain)?;
            std::fs::write(
                root.join(format!("{context}.json")),
                serde_json::to_vec_pretty(&values(domain)?)?,
            )?;
            std::fs::write(root.join(format!("{context}.advertise")), domain.agent_address().to_string())?;
            std::fs::write(root.join(format!("{context}.bundle")), domain.bundle_endpoint_url())?;
        }
        std::fs::create_dir_all(shell.home.join(".kube"))?;
        std::fs::write(shell.home.join(".kube/config"), serde_json::to_vec_pretty(&config)?)?;
        Ok(shell)
    }

    fn script(&self, name: &str, text: &str) -> Result<()> {
        let path = self.bin.join(name);
        std::fs::write(&path, format!("#!/usr/bin/env bash\nset -euo pipefail\n{text}"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Does what a block says, and holds it to what it shows.
    pub(crate) async fn follow(&self, block: &Block) -> Result<()> {
        for step in block.steps()? {
            self.step(&step).await.with_context(|| block.place())?;
        }
        Ok(())
    }

    async fn step(&self, step: &Step) -> Result<()> {
        let command = &step.command;
        println!("$ {command}");
        let (code, said) = self.run(command).await?;
        print!("{said}");
        if code != 0 {
            let (_, state) = self.run(STATE).await?;
            bail!("exit code {code} of\n{command}\n{said}\nAs it stands then:\n{state}");
        }
        if let Some(expected) = &step.expected
            && !is_as_shown(expected, &said)
        {
            bail!("`{command}` is shown to print\n{}\nand printed\n{said}", expected.join("\n"));
        }
        Ok(())
    }

    /// What a script printed, in whatever way, and its exit code.
    async fn run(&self, script: &str) -> Result<(i32, String)> {
        let mut command = tokio::process::Command::new("bash");
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(["-euo", "pipefail", "-c", &format!("exec 2>&1\n{script}")])
            .env_clear()
            .env("HOME", &self.home)
            .env("PATH", format!("{}:{path}", self.bin.display()))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output());
        let output = output.await.with_context(|| format!("no end after {PATIENCE:?}: {script}"))??;
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

/// Helm, told of this machine: its values come before what a command sets, and the two addresses to which a reader's names would
/// lead come last.
fn helm(program: &Path, root: &Path) -> String {
    format!(
        r#"context= more=() arguments=("$@")
while (($#)); do [[ $1 == --kube-context ]] && context=$2; shift; done
case ${{arguments[0]}} in
install | upgrade)
  [[ " ${{arguments[*]}} " == *" --set bundleEndpoint.url=https://spire.$context.example:8443 "* ]]
  more=(--values {root}/$context.json --set "peer.advertise={{$(<{root}/$context.advertise)}}"
    --set "bundleEndpoint.url=$(<{root}/$context.bundle)")
  ;;
esac
exec {program} "${{arguments[@]}}" "${{more[@]}}"
"#,
        root = root.display(),
        program = program.display(),
    )
}

/// Adds a domain to a kubeconfig, as its administrator.
fn add(config: &mut Value, context: &str, domain: &Domain) -> Result<()> {
    let own: Value = serde_json::from_slice(&std::fs::read(domain.kubernetes.admin_kubeconfig())?)?;
    for (list, what) in [("clusters", "cluster"), ("users", "user")] {
        let entry = json!({"name": context, what: own[list][0][what]});
        config[list].as_array_mut().context("no list")?.push(entry);
    }
    let entry = json!({"name": context, "context": {"cluster": context, "user": context}});
    config["contexts"].as_array_mut().context("no list")?.push(entry);
    Ok(())
}

//! The scripts of `integration/kind/` without containers: they run with stand-ins for the programs that they call, which say
//! what the scripts wait to hear, and write down how they were called.

use crate::scratch::Scratch;
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the scripts are.
pub(crate) const KIND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/kind");
/// What they call.
const PROGRAMS: [&str; 5] = ["docker", "kind", "kubectl", "helm", "entente"];
/// Between the arguments of a call, which are one line.
const BETWEEN: char = '\t';
/// A trust between the domains stands from the join until the end; until then nothing foreign answers, and strangers never do.
const STAND_IN: &str = r#"#!/bin/sh
name=$(basename "$0")
{ printf '%s' "$name"; for argument; do printf '\t%s' "$argument"; done; printf '\n'; } >>"$CALLS"
federated() { grep -q '	join	--advertise' "$CALLS" && ! grep -q '	peer	end' "$CALLS"; }
case "$name $*" in
  "docker network inspect"*) echo "fc00:f853:ccd:e793::/64 172.18.0.0/16 " ;;
  *loadBalancer*) echo 192.0.2.1 ;;
  *"exec"*"for i in"*) echo 200 ;;
  *"exec"*" stranger "*west.example*) exit 22 ;;
  *"exec"*west.example*) federated && echo "Hello version: v2, instance: b" || exit 22 ;;
  *"exec"*helloworld.helloworld:5000*)
    echo "Hello version: v1, instance: a"
    if federated; then echo "Hello version: v2, instance: b"; fi ;;
  *" invite "*) echo token ;;
  *" rotate "*) exit "${ROTATE_EXITS:-0}" ;;
esac
"#;

/// One call of a program by the scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
}

impl Call {
    fn read(line: &str) -> Self {
        let mut words = line.split(BETWEEN).map(str::to_owned);
        Self { program: words.next().unwrap_or_default(), args: words.collect() }
    }

    /// The values of a flag, given with a space or `=`.
    pub(crate) fn values(&self, flag: &str) -> Vec<&str> {
        let next = self.args.windows(2).filter(|two| two[0] == flag).map(|two| two[1].as_str());
        let within = self.args.iter().filter_map(|one| one.strip_prefix(flag)?.strip_prefix('='));
        next.chain(within).collect()
    }

    pub(crate) fn has(&self, word: &str) -> bool {
        self.args.iter().any(|one| one == word)
    }

    /// `east` or `west`: whose cluster it is for.
    pub(crate) fn cluster(&self) -> Option<&str> {
        let context = ["--context", "--kube-context"].into_iter().flat_map(|flag| self.values(flag)).next();
        context
            .or_else(|| self.values("--name").first().copied())
            .map(|name| name.trim_start_matches("kind-").trim_start_matches("entente-"))
    }

    /// The files of this machine that it is given.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let flags = ["-f", "--values", "--config"];
        let given = flags.into_iter().flat_map(|flag| self.values(flag));
        given.filter(|file| !file.starts_with("https://")).map(PathBuf::from).collect()
    }
}

/// What a run of `run.sh` came to.
pub(crate) struct Ran {
    pub(crate) success: bool,
    pub(crate) said: String,
    pub(crate) calls: Vec<Call>,
    /// Holds what the scripts wrote.
    pub(crate) scratch: Scratch,
}

/// Runs `run.sh` with these arguments, and this environment beside that of the stand-ins.
pub(crate) fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Ran> {
    let scratch = Scratch::new()?;
    let programs = scratch.folder("bin")?;
    for program in PROGRAMS {
        let path = programs.join(program);
        std::fs::write(&path, STAND_IN)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    let calls = scratch.path().join("calls");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    let output = Command::new(Path::new(KIND).join("run.sh"))
        .args(args)
        .env("PATH", path)
        .env("CALLS", &calls)
        .env("ENTENTE", programs.join("entente"))
        .env("ENTENTE_KIND_WORK", scratch.path().join("work"))
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .context("bash cannot be run")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let calls = std::fs::read_to_string(&calls).with_context(|| format!("nothing was called: {said}"))?;
    let calls = calls.lines().map(Call::read).collect();
    Ok(Ran { success: output.status.success(), said, calls, scratch })
}

/// A run that succeeds, whole.
pub(crate) fn whole() -> Result<Ran> {
    let ran = run(&[], &[])?;
    ensure!(ran.success, "{}", ran.said);
    Ok(ran)
}

/// Every file below a folder of the scripts whose name ends so.
pub(crate) fn files(folder: &str, end: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(KIND).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

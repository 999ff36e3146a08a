//! The examples on a real API server: what is in them, and what an agent would write for it, are what it takes; and SPIRE takes the
//! configuration that is among them.

use crate::kubernetes::documents;
use crate::pair::with_pair;
use crate::tools::Tools;
use crate::world::Domain;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
/// Folders that the agent works on, and whose they are.
const RENDERED: [(&str, &str); 6] = [
    ("virtual-machines", "east.example"),
    ("two-domains-istio/east", "east.example"),
    ("two-domains-istio/west", "west.example"),
    ("two-domains-directory/east", "east.example"),
    ("two-domains-directory/west", "west.example"),
    ("gitops-render", "west.example"),
];

#[test]
fn what_is_in_the_examples_and_what_comes_of_it_is_taken() {
    with_pair(async |pair| {
        let (mut taken, mut rendered) = (0, 0);
        for (folder, trust_domain) in RENDERED {
            let folder = Path::new(EXAMPLES).join(folder);
            for file in yaml(&folder)? {
                taken += all_of(&pair.west, &std::fs::read_to_string(&file)?)
                    .await
                    .with_context(|| file.display().to_string())?;
            }
            let printed = Command::new(env!("CARGO_BIN_EXE_entente"))
                .arg("render")
                .arg(&folder)
                .args(["--trust-domain", trust_domain])
                .output()?;
            ensure!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
            let printed = String::from_utf8(printed.stdout)?;
            rendered += all_of(&pair.west, &printed).await.with_context(|| folder.display().to_string())?;
        }
        ensure!(taken > 20 && rendered > 10, "{taken} objects, {rendered} rendered");
        Ok(())
    });
}

/// Every manifest below a folder.
fn yaml(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(yaml(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Has the API server look at every object of a text, strictly; how many there were. Namespaces are made for those in them.
async fn all_of(domain: &Domain, text: &str) -> Result<usize> {
    let objects = documents(text)?;
    for object in &objects {
        let mut object = object.clone();
        if let Some(namespace) = object["metadata"]["namespace"].as_str() {
            domain.kubernetes.namespace(namespace).await?;
        }
        // Who owns them is not there.
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("ownerReferences");
        }
        let name = || format!("{} {}", object["kind"], object["metadata"]["name"]);
        domain.kubernetes.dry_run(&object).await.with_context(name)?;
    }
    Ok(objects.len())
}

/// SPIRE's own reader has no objection to the agent's configuration of the machines; its files alone are elsewhere.
#[test]
fn spire_takes_the_configuration_of_the_machines() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().display().to_string();
    let config =
        std::fs::read_to_string(Path::new(EXAMPLES).join("virtual-machines/spire/agent.conf")).unwrap();
    assert!(config.contains("/etc/spire-agent/join_token"), "{config}");
    std::fs::write(dir.path().join("join_token"), "token").unwrap();
    let file = dir.path().join("agent.conf");
    let validate = |config: &str| {
        std::fs::write(&file, config).unwrap();
        let agent = Tools::get().unwrap().program("spire-agent").unwrap();
        let done = Command::new(agent).args(["validate", "-config"]).arg(&file).output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let config = config.replace("/etc/spire-agent", &there).replace("/var/lib/spire", &there);
    let (valid, said) = validate(&config);
    assert!(valid, "{said}");
    let (valid, said) = validate(&config.replace("socket_path =", "nonsense_path ="));
    assert!(!valid && said.contains("unknown configuration"), "what is wrong is not found: {said}");
}

#[test]
fn nothing_in_the_examples_is_left_out() {
    let covered: Vec<PathBuf> = RENDERED.iter().map(|(folder, _)| Path::new(EXAMPLES).join(folder)).collect();
    let other: Vec<PathBuf> = yaml(Path::new(EXAMPLES))
        .unwrap()
        .into_iter()
        .filter(|file| !covered.iter().any(|folder| file.starts_with(folder)))
        .collect();
    assert!(other.is_empty(), "no test takes {other:?}");
}

//! The examples are rendered, so that they are never wrong for long.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args as _, FromArgMatches as _};
use entente::config::{AgentArgs, StoreArg};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    let path = repository(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a machine exports needs no object of anybody's.
#[test]
fn virtual_machines_render() {
    assert_eq!(kinds(&render("virtual-machines", "east.example")), Vec::<&str>::new());
}

fn render(folder: &str, trust_domain: &str) -> String {
    let path = repository("examples").join(folder);
    let done = Command::new(env!("CARGO_BIN_EXE_entente"))
        .args(["render", &path.display().to_string(), "--trust-domain", trust_domain])
        .output()
        .unwrap();
    assert!(done.status.success(), "{folder}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn kinds(printed: &str) -> Vec<&str> {
    let mut kinds: Vec<&str> = printed.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    kinds.sort_unstable();
    kinds
}

#[test]
fn two_domains_directory_renders() {
    let west = render("two-domains-directory/west", "west.example");
    let expected = ["AuthorizationPolicy", "ClusterFederatedTrustDomain", "Gateway", "ServiceEntry"];
    assert_eq!(kinds(&west), expected);
    assert!(west.contains("east.example/ns/web/sa/frontend"), "{west}");
    // Nothing is imported before the peer's agent has spoken.
    let east = render("two-domains-directory/east", "east.example");
    assert_eq!(kinds(&east), ["ClusterFederatedTrustDomain"]);
}

/// East-west through an AUTO_PASSTHROUGH gateway, north-south through one that passes TLS on by name.
#[test]
fn two_domains_istio_renders() {
    let west = render("two-domains-istio/west", "west.example");
    let mut expected = vec!["AuthorizationPolicy", "AuthorizationPolicy", "ClusterFederatedTrustDomain"];
    expected.extend(["Gateway", "Gateway", "ServiceEntry", "ServiceEntry", "VirtualService"]);
    assert_eq!(kinds(&west), expected, "{west}");
    for word in ["AUTO_PASSTHROUGH", "mode: PASSTHROUGH", "east.example/ns/callers/sa/caller"] {
        assert!(west.contains(word), "no {word} in {west}");
    }
    let east = render("two-domains-istio/east", "east.example");
    assert_eq!(kinds(&east), ["ClusterFederatedTrustDomain"]);
}

#[test]
fn gitops_render_is_what_its_readme_shows() {
    let printed = render("gitops-render", "west.example");
    let kept = repository("examples/gitops-render/rendered.yaml");
    assert_eq!(printed, std::fs::read_to_string(kept).unwrap());
}

/// The settings of a systemd unit, by `Section.Name`; a name that is given again has several.
fn unit(name: &str) -> BTreeMap<String, Vec<String>> {
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in text(&format!("examples/virtual-machines/systemd/{name}.service")).lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line:?} is no setting"));
        settings.entry(format!("{section}.{key}")).or_default().push(value.to_owned());
    }
    settings
}

/// What systemd itself says of the units, where it is there; else that they are well formed.
#[test]
fn the_units_are_what_systemd_takes() {
    let dir = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for name in ["entente", "spire-agent", "envoy"] {
        let settings = unit(name);
        for needed in ["Unit.Description", "Service.ExecStart", "Install.WantedBy", "Service.NoNewPrivileges"]
        {
            assert!(settings.contains_key(needed), "{name} has no {needed}");
        }
        // The programs, and their users, are not on this machine.
        let lines = text(&format!("examples/virtual-machines/systemd/{name}.service"));
        let lines = lines.lines().map(|line| match line.split_once('=') {
            Some(("ExecStart", _)) => "ExecStart=/bin/true".to_owned(),
            Some(("User" | "Group" | "SupplementaryGroups", _)) => String::new(),
            _ => line.to_owned(),
        });
        let path = dir.path().join(format!("{name}.service"));
        std::fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
        units.push(path);
    }
    let Ok(done) = Command::new("systemd-analyze").arg("verify").args(&units).output() else {
        println!("there is no systemd-analyze here: the units are only read");
        return;
    };
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && !said.contains("service:"), "{said}");
}

/// The agent takes every setting of the environment file, and no other name stands in it.
#[test]
fn the_unit_starts_the_agent_with_settings_that_it_knows() {
    let settings = unit("entente");
    assert_eq!(settings["Service.ExecStart"], ["/usr/local/bin/entente agent"]);
    assert_eq!(settings["Service.EnvironmentFile"], ["/etc/entente/entente.env"]);
    let command = AgentArgs::augment_args(clap::Command::new("agent"));
    let flag_of = |name: &str| {
        let named = |argument: &&clap::Arg| argument.get_env().is_some_and(|env| env == name);
        command.get_arguments().find(named).and_then(|argument| argument.get_long()).map(str::to_owned)
    };
    let mut args = vec!["agent".to_owned()];
    for line in text("examples/virtual-machines/entente/entente.env").lines() {
        let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else { continue };
        if name == "ENTENTE_LOG" {
            continue;
        }
        let flag = flag_of(name).unwrap_or_else(|| panic!("no flag of the agent reads {name}"));
        args.push(format!("--{flag}={value}"));
    }
    let taken = AgentArgs::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap();
    assert!(matches!(taken.store, StoreArg::Directory(ref path) if path == Path::new("/etc/entente")));
    // Other machines are told to ask it, for Envoys and for names.
    for reached in [taken.listen, taken.xds.xds_listen.unwrap(), taken.dns.listen.unwrap()] {
        assert!(!reached.ip().is_loopback(), "no other machine reaches {reached}");
    }
    // Its sockets lie where the units make folders for them.
    let folder = |name: &str| unit(name)["Service.RuntimeDirectory"][0].clone();
    assert_eq!(taken.workload_api, format!("unix:///run/{}/api.sock", folder("spire-agent")));
    assert_eq!(taken.control, Path::new("/run").join(folder("entente")).join("control.sock"));
    assert!(
        text("examples/virtual-machines/spire/agent.conf").contains(&taken.workload_api["unix://".len()..])
    );
    assert_eq!(settings["Service.ReadWritePaths"], ["/etc/entente"]);
}

/// A misspelt field is told of, since no API server is there to do so; the rest is rendered.
#[test]
fn a_field_that_nobody_knows_is_named() {
    let whole = repository("examples").join("two-domains-directory/west/manifests");
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("manifests")).unwrap();
    let mut changed = 0;
    for entry in std::fs::read_dir(whole).unwrap() {
        let entry = entry.unwrap();
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let misspelt = text.replace("tlsMode:", "tlsmode: x\n  tlsMode:");
        changed += usize::from(text != misspelt);
        std::fs::write(root.path().join("manifests").join(entry.file_name()), misspelt).unwrap();
    }
    assert!(changed > 0, "no manifest has the field");
    let path = root.path().display().to_string();
    let done = Command::new(env!("CARGO_BIN_EXE_entente"))
        .args(["render", &path, "--trust-domain", "west.example"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(said.contains("spec.tlsmode is not known, and not used"), "{said}");
    assert!(!kinds(&String::from_utf8_lossy(&done.stdout)).is_empty());
}

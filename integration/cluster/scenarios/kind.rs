//! The end-to-end scenario of `integration/kind/`, as far as it goes without containers: its scripts run whole with stand-ins for
//! the programs that they call; what they apply is applied, what they install is rendered, and what they ask of agents is asked,
//! on real API servers, SPIRE and agents. What is left to a machine with containers is whether anything runs in pods.

use super::{Agents, IMPORTED, SERVICE_ENTRY, SOON, condition, found};
use crate::agent::Agent;
use crate::chart::{CHART, run_helm};
use crate::kind::{Call, KIND, files, run, whole};
use crate::kubernetes::documents;
use crate::pair::{Pair, with_pair, with_spent_pair};
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain, Options};
use anyhow::{Context, Result, bail, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const AGENT: Option<&str> = Some(AGENT_NAMESPACE);
/// The charts of others, where their sources are on this machine: SPIRE's (the folder `charts` of helm-charts-hardened, with its
/// dependencies built), and Istio's (`manifests/charts`).
const CHARTS: [(&str, &str); 2] = [
    ("ENTENTE_SPIRE_CHARTS", "https://spiffe.github.io/helm-charts-hardened/"),
    ("ENTENTE_ISTIO_CHARTS", "https://istio-release.storage.googleapis.com/charts"),
];

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn every_script_is_linted() {
    let mut scripts = files("", ".sh").unwrap();
    assert!(scripts.len() >= 8, "{scripts:?}");
    scripts.push(Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/run"));
    let shellcheck = crate::tools::Tools::get().unwrap().program("shellcheck").unwrap();
    let done = std::process::Command::new(shellcheck)
        .args(["--norc", "--external-sources", "--severity=style"])
        .args(&scripts)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

/// From the clusters to their end, and nothing is left over: every manifest is applied, every values file used.
#[test]
fn the_scripts_go_through_and_use_all_that_is_there() {
    let ran = whole().unwrap();
    let used: BTreeSet<PathBuf> = ran.calls.iter().flat_map(Call::files).collect();
    for file in &used {
        assert!(file.exists(), "{} is not there", file.display());
    }
    let there = [files("manifests", ".yaml").unwrap(), files("values", ".yaml").unwrap()].concat();
    let unused: Vec<_> = there.iter().filter(|file| !used.contains(*file)).collect();
    assert!(there.len() >= 8 && unused.is_empty(), "nothing uses {unused:?}");
    let deleted = ran.calls.iter().filter(|call| call.program == "kind" && call.has("delete")).count();
    assert_eq!(deleted, 2, "the clusters are left");
    assert!(ran.said.contains("all of it went well"), "{}", ran.said);
}

/// The stand-in takes anything: the program itself is asked whether it would.
#[test]
fn the_program_knows_what_it_is_called_with() {
    let ran = whole().unwrap();
    let calls: Vec<_> = ran.calls.iter().filter(|call| call.program == "entente").collect();
    assert!(calls.len() >= 10, "{calls:?}");
    for call in calls {
        // All that is before `--help` is read first.
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_entente"))
            .args(&call.args)
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{call:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A step that fails ends it: what is to be looked at is collected, and the clusters are left for it.
#[test]
fn a_failure_collects_the_logs_and_leaves_the_clusters() {
    let ran = run(&[], &[("ROTATE_EXITS", "1")]).unwrap();
    assert!(!ran.success, "{}", ran.said);
    assert!(ran.said.contains("the clusters are left"), "{}", ran.said);
    assert!(!ran.calls.iter().any(|call| call.program == "kind" && call.has("delete")));
    for cluster in ["east", "west"] {
        let logs = ran.scratch.path().join("work/logs").join(cluster);
        assert!(logs.join("trustdomainpeers.yaml").exists(), "{} has no logs", logs.display());
    }
}

/// What Helm would install, of our own chart and, where they are on this machine, of the charts of SPIRE and Istio: rendered with
/// the values that the scripts give, and taken by the API server.
#[test]
fn what_the_scripts_install_is_rendered_and_taken() {
    let ran = whole().unwrap();
    let installs: Vec<Call> =
        ran.calls.iter().filter(|call| call.program == "helm" && call.has("upgrade")).cloned().collect();
    assert_eq!(installs.len(), 12, "{installs:?}");
    with_pair(async |pair| {
        let (mut rendered, mut left_out) = (0, BTreeSet::new());
        // What an earlier step of the scripts has made.
        for domain in [&pair.east, &pair.west] {
            domain.kubernetes.namespace("istio-system").await?;
        }
        for call in &installs {
            let domain = of(pair, call)?;
            match chart(call)? {
                Some(chart) => {
                    taken(domain, call, &chart).await?;
                    if chart.ends_with("spire") {
                        below_cert_manager(domain, call, &chart).await?;
                    }
                    rendered += 1;
                }
                None => drop(left_out.insert(call.values("--repo").join(" "))),
            }
        }
        if !left_out.is_empty() {
            eprintln!(
                "the values of these charts were not rendered, since their sources are not here: {left_out:?}"
            );
        }
        ensure!(rendered >= 2, "not even our own chart");
        Ok(())
    });
}

fn of<'a>(pair: &'a Pair, call: &Call) -> Result<&'a Domain> {
    match call.cluster() {
        Some("east") => Ok(&pair.east),
        Some("west") => Ok(&pair.west),
        other => bail!("of which cluster is {other:?}: {call:?}"),
    }
}

/// Where the chart of an install is; `None` where it is not on this machine.
fn chart(call: &Call) -> Result<Option<PathBuf>> {
    let name = call.args.iter().position(|word| word == "--install").and_then(|at| call.args.get(at + 2));
    let name = name.context("no chart")?;
    let Some(repo) = call.values("--repo").first().copied() else {
        ensure!(Path::new(name).canonicalize()? == Path::new(CHART).canonicalize()?, "{name}");
        return Ok(Some(PathBuf::from(CHART)));
    };
    let (variable, _) = CHARTS.into_iter().find(|(_, url)| *url == repo).context("an unknown repository")?;
    let Some(folder) = std::env::var_os(variable) else { return Ok(None) };
    let inside = if name == "istiod" { "istio-control/istio-discovery" } else { name };
    Ok(Some(PathBuf::from(folder).join(inside)))
}

/// The values that put SPIRE below cert-manager, beside the others, make SPIRE's configuration so.
async fn below_cert_manager(domain: &Domain, call: &Call, chart: &Path) -> Result<()> {
    let values = concat!(env!("CARGO_MANIFEST_DIR"), "/spire/helm/cert-manager.yaml");
    let printed = rendered(domain, call, chart, &["--values", values]).await?;
    ensure!(printed.contains("\"cert-manager\": {") && printed.contains("kind: Certificate\n"), "{printed}");
    Ok(())
}

/// What the API server says to what is installed.
async fn taken(domain: &Domain, call: &Call, chart: &Path) -> Result<()> {
    let namespace = call.values("--namespace").first().copied().context("no namespace")?;
    domain.kubernetes.namespace(namespace).await?;
    let objects = documents(&rendered(domain, call, chart, &[]).await?)?;
    ensure!(!objects.is_empty(), "{call:?} renders nothing");
    for object in objects {
        let taken = domain.kubernetes.dry_run(&object).await;
        taken.with_context(|| format!("of {call:?}, {} {}", object["kind"], object["metadata"]["name"]))?;
    }
    Ok(())
}

/// `helm template` of what is installed, with more values.
async fn rendered(domain: &Domain, call: &Call, chart: &Path, more: &[&str]) -> Result<String> {
    let release = call.args.iter().position(|word| word == "--install").and_then(|at| call.args.get(at + 1));
    let namespace = call.values("--namespace").first().copied().context("no namespace")?;
    let chart = chart.display().to_string();
    let mut args = vec!["template", release.context("no release")?, &chart, "--namespace", namespace];
    for flag in ["--values", "--set"] {
        args.extend(call.values(flag).into_iter().flat_map(|value| [flag, value]));
    }
    args.extend(more);
    let (code, printed, said) = run_helm(domain.dir(), None, &args).await?;
    ensure!(code == 0, "helm {args:?}: {said}");
    Ok(printed)
}

/// What the scripts apply, and what they have agents do, in their order, on real API servers with real SPIRE and agents: invite,
/// join, share, rotate and end. What they wait for comes about.
#[test]
fn the_scenario_goes_through_on_real_agents() {
    let ran = whole().unwrap();
    with_spent_pair(Options::default(), Options::default(), async |pair| {
        for (domain, address) in [(&pair.east, "10.77.2.1"), (&pair.west, "10.77.2.2")] {
            crate::crds::install_load_balancers(&domain.kubernetes).await?;
            domain.kubernetes.namespace("metallb-system").await?;
            gateway(domain, address).await?;
        }
        let agents = Agents::start(pair).await?;
        let mut token = String::new();
        let mut done = BTreeSet::new();
        for call in &ran.calls {
            let what = step(pair, &agents, call, &mut token).await.with_context(|| format!("{call:?}"))?;
            done.extend(what);
        }
        let all = ["apply", "diagnose", "invite", "join", "peer", "rotate", "status", "wait"];
        ensure!(all.iter().all(|one| done.contains(*one)), "only {done:?} was done");
        Ok(())
    });
}

/// Does one call in earnest, where it is one of an operator; what it was.
async fn step(pair: &Pair, agents: &Agents, call: &Call, token: &mut String) -> Result<Option<&'static str>> {
    match call.program.as_str() {
        "kubectl" if call.has("apply") => {
            for file in call.files() {
                apply(of(pair, call)?, &file, call).await?;
            }
            if call.files().iter().any(|file| file.ends_with("export.yaml")) {
                shared(pair).await?;
            }
            Ok(Some("apply"))
        }
        "kubectl" if call.has("wait") && !call.has("pod") => {
            awaited(of(pair, call)?, call).await?;
            Ok(Some("wait"))
        }
        "entente" => {
            let (here, agent) = match call.cluster() {
                Some("east") => (&pair.east, &agents.east),
                _ => (&pair.west, &agents.west),
            };
            asked(here, agent, call, token).await
        }
        _ => Ok(None),
    }
}

/// Applies a manifest as kubectl would: a pod is made for each Deployment, which nothing here would.
async fn apply(domain: &Domain, file: &Path, call: &Call) -> Result<()> {
    for object in documents(&std::fs::read_to_string(file)?)? {
        if call.has("--server-side") {
            let manager = call.values("--field-manager").first().copied().context("no field manager")?;
            let (api, name) = domain.kubernetes.api_of(&object).await?;
            // Without force: what someone else wrote and this changes is a conflict.
            api.patch(&name, &PatchParams::apply(manager), &Patch::Apply(&object)).await?;
        } else {
            domain.kubernetes.apply(&object).await?;
        }
        if object["kind"] == "Deployment" {
            pod(domain, &object).await?;
        }
    }
    Ok(())
}

/// The pod of a Deployment, with the sidecar that Istio would put in, as a kubelet tells of it.
async fn pod(domain: &Domain, deployment: &Value) -> Result<()> {
    let (namespace, name) = (&deployment["metadata"]["namespace"], &deployment["metadata"]["name"]);
    let mut spec = deployment["spec"]["template"]["spec"].clone();
    let mount = json!([{"name": "workload-socket", "mountPath": "/run/secrets/workload-spiffe-uds"}]);
    spec["initContainers"] =
        json!([{"name": "istio-proxy", "image": "none", "restartPolicy": "Always", "volumeMounts": mount}]);
    spec["volumes"] =
        json!([{"name": "workload-socket", "csi": {"driver": "csi.spiffe.io", "readOnly": true}}]);
    let metadata = json!({
        "name": name, "namespace": namespace, "labels": deployment["spec"]["template"]["metadata"]["labels"],
    });
    domain
        .kubernetes
        .apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
        .await?;
    Ok(())
}

/// The Service of the east-west gateway, with the ports of its values and this address.
async fn gateway(domain: &Domain, address: &str) -> Result<()> {
    let values = std::fs::read_to_string(Path::new(KIND).join("values/eastwest-gateway.yaml"))?;
    let values: Value = serde_saphyr::from_str(&values)?;
    domain.kubernetes.namespace("istio-system").await?;
    let name = values["name"].as_str().context("the gateway has no name")?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "istio-system", "labels": values["labels"]},
        "spec": {"type": values["service"]["type"], "selector": values["labels"], "ports": values["service"]["ports"]},
    });
    domain.kubernetes.apply(&service).await?;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
    let services = domain.kubernetes.api("v1", "Service", Some("istio-system")).await?;
    services.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// East has the service at both of its names.
async fn shared(pair: &Pair) -> Result<()> {
    let host = "helloworld.helloworld.west.example";
    eventually("east imports it, also at its local name", SOON, || async {
        let imported = found(&pair.east, IMPORTED, AGENT, host).await?;
        ensure!(condition(&imported, "Admitted")?.0 == "True", "{}", imported.data["status"]);
        let local = imported.data["status"]["localHost"].as_str().unwrap_or_default();
        ensure!(local.starts_with("helloworld.helloworld"), "{}", imported.data["status"]);
        found(&pair.east, SERVICE_ENTRY, AGENT, host).await?;
        Ok(())
    })
    .await
}

/// `kubectl wait --for condition=...`, or for the reason of one.
async fn awaited(domain: &Domain, call: &Call) -> Result<()> {
    let wanted = call.values("--for").first().copied().context("it waits for nothing")?.to_owned();
    let at = call.args.iter().position(|word| word == "wait").context("no wait")?;
    let kind = match call.args.get(at + 1).map(String::as_str) {
        Some("trustdomainpeer") => super::PEER,
        Some("federatedservice") => super::SERVICE,
        other => bail!("{other:?} is waited for"),
    };
    let namespace = call.values("-n").first().copied();
    let mut words = call.args.iter().skip(at + 2);
    let name = loop {
        let word = words.next().context("no name")?;
        if !word.starts_with('-') {
            break word;
        }
        words.next();
    };
    eventually(&format!("{name}: {wanted}"), SOON, || async {
        let object = found(domain, kind, namespace, name).await?;
        let (status, reason, message) = match wanted.strip_prefix("condition=") {
            Some(wanted) => condition(&object, wanted)?,
            None => condition(&object, "Reciprocal")?,
        };
        let is = match wanted.rsplit_once('=') {
            Some((_, reason_wanted)) if wanted.starts_with("jsonpath") => reason == reason_wanted,
            _ => status == "True",
        };
        ensure!(is, "{status} {reason}: {message}");
        Ok(())
    })
    .await
}

/// A command to an agent, with the domain's own addresses in place of the load balancers'.
async fn asked(
    here: &Domain,
    agent: &Agent,
    call: &Call,
    token: &mut String,
) -> Result<Option<&'static str>> {
    let mut args = call.args.clone();
    // The kubeconfigs here have one context; and these agents run in no pod, so that they are asked by their sockets, which a context
    // that is named would count more than.
    let context = args.iter().position(|word| word == "--context").context("no context")?;
    args.drain(context..=context + 1);
    for arg in &mut args {
        if arg.starts_with("--advertise=") {
            *arg = format!("--advertise={}", here.agent_address());
        } else if arg.starts_with("--bundle-endpoint-url=") {
            *arg = format!("--bundle-endpoint-url={}", here.bundle_endpoint_url());
        } else if arg == "-" {
            token.clone_into(arg);
        }
    }
    let done = ["about", "diagnose", "invite", "join", "peer", "rotate", "status"];
    let done = done.into_iter().find(|one| args.iter().any(|word| word == one));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, printed, said) = agent.command(&args).await?;
    ensure!(code == 0, "entente {args:?}: exit code {code}: {printed}{said}");
    if done == Some("invite") {
        *token = printed.trim().to_owned();
    }
    Ok(done)
}

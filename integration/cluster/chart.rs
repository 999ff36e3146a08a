//! The Helm chart, installed by real Helm, and the kubelet's part: there is no node, so the test starts the agent with exactly
//! what the Deployment's pods would be started with.

use crate::agent::{Agent, Place};
use crate::kubelet;
use crate::tools::Tools;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, bail, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The chart of this repository.
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/entente");
/// The release that scenarios install; the agent's ServiceAccount and its Deployment have its name.
pub(crate) const RELEASE: &str = "entente";
/// Where pods are, as they see it.
const POD_IP: &str = "127.0.0.1";
const DEPLOYMENT: (&str, &str) = ("apps/v1", "Deployment");
const POD: (&str, &str) = ("v1", "Pod");

/// Runs Helm in a folder of its own, as administrator of a cluster where one is given; exit code, stdout and stderr.
pub(crate) async fn run_helm(
    dir: &Path,
    kubeconfig: Option<&Path>,
    args: &[&str],
) -> Result<(i32, String, String)> {
    let home = dir.join("helm");
    let mut command = tokio::process::Command::new(Tools::get()?.program("helm")?);
    command.args(args).env_clear().env("HOME", &home).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    let output = command.output().await.context("helm cannot be run")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
}

/// Runs Helm on a domain's cluster; its standard output. Fails with what it said.
pub(crate) async fn helm(domain: &Domain, args: &[&str]) -> Result<String> {
    let kubeconfig = domain.kubernetes.admin_kubeconfig();
    let (code, printed, said) = run_helm(domain.dir(), Some(&kubeconfig), args).await?;
    ensure!(code == 0, "helm {args:?}: exit code {code}: {said}");
    Ok(printed)
}

/// Installs or upgrades the release with these values, which are all that differ from the chart's own.
pub(crate) async fn install(domain: &Domain, values: &Value) -> Result<String> {
    let file = domain.dir().join("values.json");
    std::fs::write(&file, serde_json::to_vec_pretty(values)?)?;
    let file = file.display().to_string();
    helm(domain, &["upgrade", "--install", RELEASE, CHART, "--namespace", AGENT_NAMESPACE, "--values", &file])
        .await
}

/// What a kubelet does for a pod of the release's Deployment: the pod is made, which admission has to let through, and the program
/// runs with the arguments and the environment of its container, under a token of its ServiceAccount. Paths below a mounted volume
/// are those of the volume: SPIRE's folder for its CSI driver, the node's own for a hostPath, a new one for an emptyDir.
pub(crate) async fn start_pod(domain: &Domain, name: &str) -> Result<Agent> {
    let deployments = domain.kubernetes.api(DEPLOYMENT.0, DEPLOYMENT.1, Some(AGENT_NAMESPACE)).await?;
    let template = deployments.get(RELEASE).await?.data["spec"]["template"].clone();
    let pods = domain.kubernetes.api(POD.0, POD.1, Some(AGENT_NAMESPACE)).await?;
    let _ = pods.delete(name, &DeleteParams::default().grace_period(0)).await;
    let mut pod = json!({"apiVersion": POD.0, "kind": POD.1, "spec": template["spec"], "metadata": template["metadata"]});
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["namespace"] = json!(AGENT_NAMESPACE);
    pod["spec"]["nodeName"] = json!(kubelet::NAME);
    domain.kubernetes.apply(&pod).await.context("the pod is not let in")?;
    let status = json!({"status": {"podIP": POD_IP, "podIPs": [{"ip": POD_IP}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;

    let spec = &template["spec"];
    let container =
        spec["containers"].as_array().and_then(|all| all.iter().find(|one| one["name"] == "entente"));
    let container = container.context("the pod has no container `entente`")?;
    let mounts = mounts(domain, name, spec, container)?;
    let env = environment(name, container, &mounts)?;
    let account = spec["serviceAccountName"].as_str().context("no serviceAccountName")?;
    domain.kubernetes.api("v1", "ServiceAccount", Some(AGENT_NAMESPACE)).await?.get(account).await?;
    let kubeconfig = domain.kubernetes.service_account_kubeconfig(AGENT_NAMESPACE, account).await?;
    let args = container["args"].as_array().into_iter().flatten();
    let args = args.map(|argument| mounts.on_the_node(argument.as_str().unwrap_or_default())).collect();
    let place = Place {
        listen: local(env.get("ENTENTE_LISTEN"))?,
        admin: local(env.get("ENTENTE_ADMIN_LISTEN"))?,
        control: env.get("ENTENTE_CONTROL").context("no ENTENTE_CONTROL")?.into(),
        kubeconfig,
    };
    Agent::start_as(domain, name, args, env.into_iter().collect(), place)
}

/// The address by which this machine reaches a listener on all of its addresses.
fn local(listen: Option<&String>) -> Result<SocketAddr> {
    let listen: SocketAddr = listen.context("no listener is given")?.parse()?;
    ensure!(
        listen.ip() == Ipv4Addr::UNSPECIFIED,
        "a pod is reached at any of its addresses, not only at {listen}"
    );
    Ok((Ipv4Addr::LOCALHOST, listen.port()).into())
}

/// Where the volumes of a container are, by where it has them.
struct Mounts(BTreeMap<String, PathBuf>);

impl Mounts {
    /// A text in which paths of the container are those of the node.
    fn on_the_node(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (inside, outside) in &self.0 {
            text = text.replace(&format!("{inside}/"), &format!("{}/", outside.display()));
        }
        text
    }
}

fn mounts(domain: &Domain, pod: &str, spec: &Value, container: &Value) -> Result<Mounts> {
    let mut mounts = BTreeMap::new();
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let named = |volume: &&Value| volume["name"] == mount["name"];
        let volume = spec["volumes"].as_array().and_then(|all| all.iter().find(named));
        let volume = volume.with_context(|| format!("there is no volume {}", mount["name"]))?;
        let outside = if volume["csi"]["driver"] == "csi.spiffe.io" {
            domain.spire.agent_socket().parent().context("no folder")?.to_owned()
        } else if let Some(path) = volume["hostPath"]["path"].as_str() {
            path.into()
        } else if volume["emptyDir"].is_object() {
            let dir = domain.dir().join(pod);
            std::fs::create_dir_all(&dir)?;
            dir
        } else {
            bail!("a volume that no kubelet is stood in for: {volume}")
        };
        mounts.insert(mount["mountPath"].as_str().context("no mountPath")?.to_owned(), outside);
    }
    Ok(Mounts(mounts))
}

/// The environment of a container, in which a later one of a name wins, and `$(NAME)` is one that came before.
fn environment(pod: &str, container: &Value, mounts: &Mounts) -> Result<BTreeMap<String, String>> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().context("a variable without a name")?;
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let mut value = match field {
            Some("metadata.name") => pod.to_owned(),
            Some("metadata.namespace") => AGENT_NAMESPACE.to_owned(),
            Some("status.podIP") => POD_IP.to_owned(),
            Some(other) => bail!("{name} comes from {other}"),
            None => mounts.on_the_node(variable["value"].as_str().unwrap_or_default()),
        };
        for (before, its) in &env {
            value = value.replace(&format!("$({before})"), its);
        }
        env.insert(name.to_owned(), value);
    }
    Ok(env)
}

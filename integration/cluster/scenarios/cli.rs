//! The command line on real API servers: what it reads there, and how it reaches the agent through its pod.

use super::{Agents, PEER, READY, SOON, both_ready, delete, gone, make_peers, quick};
use crate::agent::{Agent, AgentOptions};
use crate::chart::{CHART, RELEASE, helm};
use crate::kubelet::Kubelet;
use crate::kubernetes::documents;
use crate::pair::{Pair, with_pair};
use crate::rights::granted;
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// The pod that stands for east's agent.
const POD: &str = "entente-0";
const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// What a command answered.
struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Answer {
    /// It ended with this code, and said these words somewhere.
    fn must(self, code: i32, words: &[&str]) -> Result<Self> {
        let said = format!("{}{}", self.out, self.err);
        ensure!(self.code == code, "exit code {}: {said}", self.code);
        for word in words {
            ensure!(said.contains(word), "no {word:?} in: {said}");
        }
        Ok(self)
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {}", self.out))
    }
}

/// The program as an operator has it at hand: a kubeconfig, no agent beside it.
fn entente(program: &Path, kubeconfig: &Path, args: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    command.args(args).env_clear().env("KUBECONFIG", kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn answer(program: &Path, kubeconfig: &Path, args: &[&str]) -> Result<Answer> {
    let output = entente(program, kubeconfig, args).output().await.context("entente cannot be run")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    Ok(Answer { code, out: text(output.stdout), err: text(output.stderr) })
}

/// The program that this test runs, at its own place: not the agent's.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_entente"))
}

/// Both agents, federated; east's stands in for a pod.
async fn stand(pair: &Pair) -> Result<(Agents, Kubelet)> {
    let kubelet = Kubelet::start(&pair.east, &[POD]).await?;
    let mut options = AgentOptions { name: POD.to_owned(), ..quick() };
    options.args.push(format!("--replica={POD}"));
    let mut agents =
        Agents { east: Agent::start(&pair.east, options)?, west: Agent::start(&pair.west, quick())? };
    tokio::try_join!(agents.east.ready(READY), agents.west.ready(READY))?;
    make_peers(pair).await?;
    both_ready(pair).await?;
    Ok((agents, kubelet))
}

/// Every command that needs the running agent finds it by the kubeconfig alone, and says what is missing where it cannot.
#[test]
fn commands_reach_the_agent_through_its_pod() {
    with_pair(async |pair| {
        let (mut agents, kubelet) = stand(pair).await?;
        let kubeconfig = pair.east.kubernetes.agent_kubeconfig();
        let run = async |args: &[&str]| answer(program(), &kubeconfig, args).await;

        run(&["about"]).await?.must(0, &["entente-0 (leads)", "pod entente-system/entente-0"])?;
        let about = run(&["about", "-o", "json"]).await?.must(0, &[])?.json()?;
        ensure!(about["spiffeID"] == pair.east.agent_id(), "{about}");
        run(&["diagnose", "west.example"]).await?.must(0, &["The path to west.example is well"])?;
        eventually("the peer holds every authority", SOON, || async {
            run(&["rotate", "x509", "--dry-run"]).await?.must(0, &[]).map(drop)
        })
        .await?;
        let bundles = run(&["bundles"]).await?.must(0, &["east.example (ours)", "active", "west.example"])?;
        ensure!(bundles.err.is_empty(), "{}", bundles.err);
        let peer = pair.west.agent_address().to_string();
        run(&["svid", &peer])
            .await?
            .must(0, &[&pair.west.agent_id(), "verified by the bundle of west.example, from the agent"])?;
        let options = ["--advertise=east.example:7443", "--bundle-endpoint-url=https://east.example:8443"];
        let invite = ["invite", "--trust-domain=north.example", options[0], options[1], "-o", "json"];
        let invited = run(&invite).await?.must(0, &["entente join"])?.json()?;
        let id = invited["id"].as_str().context("no id")?.to_owned();
        run(&["invite", "list"]).await?.must(0, &[&id, "north.example"])?;
        run(&["invite", "withdraw", &id]).await?.must(0, &["is withdrawn"])?;
        // What the agent refuses is its own word, and no failure to reach it.
        run(&["invite", "--trust-domain=west.example", options[0], options[1]])
            .await?
            .must(1, &["west.example"])?;

        let plugin = pair.east.dir().join("kubectl-entente");
        std::os::unix::fs::symlink(program(), &plugin)?;
        answer(&plugin, &kubeconfig, &["about"]).await?.must(0, &["entente-0 (leads)"])?;
        answer(&plugin, &kubeconfig, &["about", "--help"])
            .await?
            .must(0, &["Usage: kubectl entente about"])?;

        run(&["about", "-n", "default"])
            .await?
            .must(3, &["no agent is found in namespace default", "entente-system/entente-0", "-n"])?;
        run(&["about", "--context", "nowhere"]).await?.must(3, &["nowhere", "test"])?;
        agents.east.kill().await?;
        run(&["about"]).await?.must(3, &["pod entente-system/entente-0", "no agent answers at"])?;
        drop(agents);
        let leases =
            pair.east.kubernetes.api("coordination.k8s.io/v1", "Lease", Some(AGENT_NAMESPACE)).await?;
        leases.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        run(&["about"]).await?.must(3, &["no replica of the agent leads", "entente-0"])?;
        kubelet.remove(&pair.east).await
    });
}

/// The cluster's own RBAC decides who may: what is missing is named, and granted it is enough.
#[test]
fn who_may_reach_the_agent_is_decided_by_rbac() {
    with_pair(async |pair| {
        let (agents, kubelet) = stand(pair).await?;
        let east = &pair.east;
        let kubeconfig = east.kubernetes.service_account_kubeconfig("default", "operator").await?;
        let run = async |args: &[&str]| answer(program(), &kubeconfig, args).await;
        run(&["about"]).await?.must(3, &["you may not read Lease entente-system/entente-leader", "Role"])?;
        run(&["status"]).await?.must(3, &["you may not list TrustDomainPeer", "ClusterRole"])?;
        let lease = json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"]});
        let pods = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
        grant(east, &[&lease, &pods]).await?;
        eventually("the first grant is in force", SOON, || async {
            run(&["about"])
                .await?
                .must(3, &["pod entente-system/entente-0", "pods/exec", "`get` and `create`"])?;
            Ok(())
        })
        .await?;
        // A connection that is upgraded is a GET, and asks for `create` as well: an older API server is content with the first.
        let half = json!({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]});
        grant(east, &[&lease, &pods, &half]).await?;
        eventually("half of the grant is in force", SOON, || async {
            run(&["about"]).await?.must(3, &["is forbidden", "`get` and `create` on `pods/exec`"])?;
            Ok(())
        })
        .await?;
        let exec = json!({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]});
        grant(east, &[&lease, &pods, &exec]).await?;
        eventually("the second grant is in force", SOON, || async {
            run(&["about"]).await?.must(0, &["entente-0 (leads)"])?;
            Ok(())
        })
        .await?;
        for (kind, name) in [("Role", "operator"), ("RoleBinding", "operator")] {
            delete(east, (RBAC, kind), Some(AGENT_NAMESPACE), name).await?;
        }
        drop(agents);
        kubelet.remove(east).await
    });
}

/// Whom the chart's values name as an operator may run the commands, and change no peer by hand.
#[test]
fn operators_of_the_chart_may_run_the_commands() {
    with_pair(async |pair| {
        let (agents, kubelet) = stand(pair).await?;
        let east = &pair.east;
        let kubeconfig = east.kubernetes.service_account_kubeconfig("default", "operator").await?;
        let run = async |args: &[&str]| answer(program(), &kubeconfig, args).await;
        run(&["status"]).await?.must(3, &["you may not list TrustDomainPeer"])?;
        let values = "rbac.create=false,rbac.aggregate=false,rbac.operators[0].kind=ServiceAccount,\
                      rbac.operators[0].namespace=default,rbac.operators[0].name=operator";
        let template = [
            "template",
            RELEASE,
            CHART,
            "--namespace",
            AGENT_NAMESPACE,
            "--show-only",
            "templates/rbac.yaml",
        ];
        let printed = helm(east, &[&template[..], &["--set", values]].concat()).await?;
        let mut roles = documents(&printed)?;
        roles.retain(|object| object["apiVersion"] == RBAC);
        ensure!(roles.len() == 4, "{printed}");
        for role in &roles {
            east.kubernetes.apply(role).await?;
        }
        eventually("the grant is in force", SOON, || async {
            run(&["about"]).await?.must(0, &["entente-0 (leads)"])?;
            run(&["status"]).await?.must(0, &["west.example"])?;
            Ok(())
        })
        .await?;
        run(&["services"]).await?.must(0, &[])?;
        run(&["bundles"]).await?.must(0, &["east.example (ours)"])?;
        run(&["diagnose", "west.example"]).await?.must(0, &["The path to west.example is well"])?;
        run(&["invite", "list"]).await?.must(0, &[])?;
        let rights = granted(&east.kubernetes, "default", "operator").await?;
        let rights = rights.iter().map(ToString::to_string);
        let is_read = |right: &String| ["get ", "list ", "watch "].iter().any(|verb| right.starts_with(verb));
        let others: Vec<String> = rights.filter(|right| !is_read(right)).collect();
        ensure!(others == ["create pods/exec in entente-system"], "{others:?}");
        for role in &roles {
            let (api, name) = east.kubernetes.api_of(role).await?;
            api.delete(&name, &DeleteParams::default()).await?;
        }
        drop(agents);
        kubelet.remove(east).await
    });
}

async fn grant(domain: &Domain, rules: &[&Value]) -> Result<()> {
    let metadata = json!({"name": "operator", "namespace": AGENT_NAMESPACE});
    let role = json!({"apiVersion": RBAC, "kind": "Role", "metadata": metadata, "rules": rules});
    let binding = json!({
        "apiVersion": RBAC, "kind": "RoleBinding", "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "operator"}],
    });
    domain.kubernetes.apply(&role).await?;
    domain.kubernetes.apply(&binding).await?;
    Ok(())
}

/// `status`, `peers` and `services` of a cluster, and `status --watch` at a change and at Ctrl-C.
#[test]
fn commands_read_what_the_api_server_has() {
    with_pair(async |pair| {
        let mut agents = super::federated(pair).await?;
        let kubeconfig = pair.east.kubernetes.agent_kubeconfig();
        let run = async |args: &[&str]| answer(program(), &kubeconfig, args).await;
        run(&["status"]).await?.must(0, &["PEER", "WE TRUST THEM", "west.example", "Services: none yet"])?;
        let yaml = run(&["status", "-o", "yaml"]).await?.must(0, &[])?.out;
        ensure!(yaml.starts_with("federatedServices:") && yaml.contains("healthy: true"), "{yaml}");
        run(&["peers", "west.example"])
            .await?
            .must(0, &["TrustDomainPeer west.example", "Reciprocal", "Confirmed"])?;
        run(&["peers", "north.example"]).await?.must(1, &["no TrustDomainPeer is of north.example"])?;
        run(&["services"]).await?.must(0, &["No service"])?;
        run(&["peer", "history", "west.example"]).await?.must(0, &["FIRST SEEN"])?;

        let mut watch = entente(program(), &kubeconfig, &["status", "--watch", "-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(watch.stdout.take().context("no stdout")?).lines();
        let first: Value = serde_json::from_str(&lines.next_line().await?.context("it ended")?)?;
        ensure!(first["healthy"] == true, "{first}");
        agents.west.stop().await?;
        let unwell = async {
            loop {
                let now: Value = serde_json::from_str(&lines.next_line().await?.context("it ended")?)?;
                if now["healthy"] == false {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(SOON, unwell).await.context("no change is shown")??;
        let id = watch.id().context("it ended")?;
        let told = std::process::Command::new("kill").args(["-INT", &id.to_string()]).status()?;
        ensure!(told.success(), "kill: {told}");
        let ended = tokio::time::timeout(SOON, watch.wait()).await.context("it has not ended")??;
        ensure!(ended.code() == Some(0), "{ended}");

        run(&["status"]).await?.must(1, &["Not well:", "entente diagnose west.example"])?;
        drop(agents);
        delete(&pair.east, PEER, None, "west.example").await?;
        let free = json!({"metadata": {"finalizers": null}});
        let peers = pair.east.kubernetes.api(PEER.0, PEER.1, None).await?;
        peers
            .patch("west.example", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(free))
            .await?;
        gone(&pair.east, PEER, None, "west.example").await?;
        run(&["status"]).await?.must(0, &["No peer yet"])?;
        Ok(())
    });
}

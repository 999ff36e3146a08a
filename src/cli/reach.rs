//! Reaches the agent in a cluster: the replica that leads, through `pods/exec`, so that no listener is needed for it and the
//! cluster's own RBAC decides who may. In the pod the same program passes its standard streams on to the control socket.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, AttachedProcess, ListParams};
use tokio::io::AsyncReadExt as _;

use super::exit::{NOT_ASKED, NotAsked};
use super::output::plain;
use super::store::ClusterFlags;
use crate::causes::chain;
use crate::model::replica::leader_lease;

/// The container of the agent in its pod, and the program in it.
const CONTAINER: &str = "entente";
const PROGRAM: &str = "entente";
/// The pods of agents, as the chart labels them.
const LABELS: &str = "app.kubernetes.io/name=entente";
/// How long the API server is given for each question.
const PATIENCE: Duration = Duration::from_secs(15);
/// How much is kept between the program in the pod and us, each way.
const BUFFER: usize = 64 * 1024;
/// How long a program that broke off is given for its last words, and the most of these.
const LAST_WORDS: Duration = Duration::from_secs(2);
const MOST_WORDS: u64 = 4096;

/// A program in the agent's pod that is connected with its control socket.
pub(super) struct Remote {
    pub(super) pod: String,
    process: AttachedProcess,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("pod", &self.pod).finish_non_exhaustive()
    }
}

/// The bytes to and from the control socket.
pub(super) trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for S {}

/// Connects with the control socket of the agent that leads.
///
/// # Errors
/// [`NotAsked`] with what is missing: an agent, a leader, the right to reach it.
pub(super) async fn dial(cluster: &ClusterFlags) -> anyhow::Result<(Box<dyn Stream>, Remote)> {
    let client = cluster.client().await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &cluster.namespace);
    let pod = leader(&client, &pods, cluster).await?;
    let params = AttachParams {
        container: Some(CONTAINER.to_owned()),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
        max_stdin_buf_size: Some(BUFFER),
        max_stdout_buf_size: Some(BUFFER),
        max_stderr_buf_size: Some(BUFFER),
    };
    let name = format!("{}/{pod}", cluster.namespace);
    let mut process = match bounded(pods.exec(&pod, [PROGRAM, super::DIAL], &params)).await? {
        Ok(process) => process,
        Err(error) => return Err(refused(&cluster.namespace, &pod, &error).into()),
    };
    let (stdin, stdout) = (process.stdin(), process.stdout());
    let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
        anyhow::bail!("pod {name}: the API server gave no streams of the program in it");
    };
    Ok((Box::new(tokio::io::join(stdout, stdin)), Remote { pod: name, process }))
}

impl Remote {
    /// Why the program ended, where it never had the agent's ear; `None` where it may have passed something on.
    pub(super) async fn last_words(mut self) -> Option<NotAsked> {
        let status = self.process.take_status()?;
        let mut words = String::new();
        let reading = async {
            if let Some(stderr) = self.process.stderr() {
                // What it said before it was cut off counts.
                let _ = stderr.take(MOST_WORDS).read_to_string(&mut words).await;
            }
            status.await
        };
        let status = tokio::time::timeout(LAST_WORDS, reading).await.ok().flatten()?;
        if status.status.as_deref() == Some("Success") {
            return None;
        }
        let asked = match exit_code(&status) {
            Some(code) if code == i32::from(NOT_ASKED) => false,
            // 126 and 127: there is no such program, as shells have it
            Some(code) => !(126..=127).contains(&code),
            // the container's runtime failed to start it
            None => false,
        };
        if asked {
            return None;
        }
        let message = status.message.unwrap_or_default();
        let words = if words.trim().is_empty() { message } else { words };
        let words = plain(words.trim());
        let words = words.strip_prefix("entente: ").unwrap_or(&words);
        Some(NotAsked(format!("pod {}: {words}", self.pod)))
    }
}

fn exit_code(status: &Status) -> Option<i32> {
    let causes = status.details.as_ref()?.causes.as_ref()?;
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"))?;
    code.message.as_ref()?.parse().ok()
}

/// The pod of the replica that leads: its Lease names it.
async fn leader(client: &kube::Client, pods: &Api<Pod>, cluster: &ClusterFlags) -> anyhow::Result<String> {
    let namespace = &cluster.namespace;
    let name = leader_lease(&cluster.instance);
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let lease = match bounded(leases.get_opt(&name)).await? {
        Ok(lease) => lease,
        Err(error) => {
            let what = format!("read Lease {namespace}/{name}");
            // A Role of another instance names the Lease of that one; nobody need ask for a Role then.
            let others = if is_refused(&error) { others(pods, cluster).await } else { Vec::new() };
            return Err(if others.is_empty() {
                unasked(&what, &error).into()
            } else {
                NotAsked(format!("you may not {what}, and {}", not_of(&cluster.instance, &others))).into()
            });
        }
    };
    let holder = lease.and_then(|lease| lease.spec?.holder_identity).filter(|holder| !holder.is_empty());
    let Some(holder) = holder else {
        return Err(no_leader(client, pods, cluster).await.into());
    };
    let pod = bounded(pods.get_opt(&holder)).await?;
    match pod.map_err(|error| unasked(&format!("read Pod {namespace}/{holder}"), &error))? {
        Some(_) => Ok(holder),
        None => Err(NotAsked(format!(
            "{holder} leads by Lease {namespace}/{name}, and no Pod of that name is there: it runs outside of this cluster, \
             or has just gone. Run this beside it (--control SOCKET), or again in a moment"
        ))
        .into()),
    }
}

async fn no_leader(client: &kube::Client, pods: &Api<Pod>, cluster: &ClusterFlags) -> NotAsked {
    let namespace = &cluster.namespace;
    let agents = ListParams::default().labels(LABELS).limit(20);
    let names = |found: &[Pod], spaced: bool| {
        let name = |pod: &Pod| {
            let (space, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            let space = space.filter(|_| spaced).map(|space| format!("{space}/")).unwrap_or_default();
            format!("{space}{}", name.unwrap_or_default())
        };
        found.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    match bounded(pods.list(&agents)).await {
        Ok(Ok(found)) if !found.items.is_empty() => {
            let there = names(&found.items, false);
            let others = instances(&found.items, &cluster.instance);
            let remedy = if others.is_empty() {
                format!(
                    "see `kubectl -n {namespace} logs`; where it was installed under another name, give that as --instance"
                )
            } else {
                not_of(&cluster.instance, &others)
            };
            return NotAsked(format!(
                "no replica of the agent leads in namespace {namespace}, though there is {there}: {remedy}"
            ));
        }
        _ => {}
    }
    // Whoever may look everywhere is told where it is.
    let elsewhere = match bounded(Api::<Pod>::all(client.clone()).list(&agents)).await {
        Ok(Ok(found)) if !found.items.is_empty() => {
            format!("; there is {}: give its namespace with -n", names(&found.items, true))
        }
        _ => "; give its namespace with -n, or install it with `helm install`".to_owned(),
    };
    NotAsked(format!("no agent is found in namespace {namespace}{elsewhere}"))
}

/// Of which instances the agents are that run there, where none is of the one that is asked for, and we may see them.
async fn others(pods: &Api<Pod>, cluster: &ClusterFlags) -> Vec<String> {
    let agents = ListParams::default().labels(LABELS).limit(20);
    match bounded(pods.list(&agents)).await {
        Ok(Ok(found)) => instances(&found.items, &cluster.instance),
        _ => Vec::new(),
    }
}

fn not_of(asked: &str, others: &[String]) -> String {
    format!("the agent there is not of instance {asked}: give --instance {}", others.join(", or --instance "))
}

fn instances(found: &[Pod], asked: &str) -> Vec<String> {
    let instance = |pod: &Pod| {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let mut env = containers.filter(|one| one.name == CONTAINER).flat_map(|one| one.env.iter().flatten());
        // The last of a name counts.
        env.rfind(|variable| variable.name == "ENTENTE_INSTANCE").and_then(|variable| variable.value.clone())
    };
    let all: BTreeSet<String> = found.iter().filter_map(instance).collect();
    if all.contains(asked) { Vec::new() } else { all.into_iter().collect() }
}

/// Why the API server does not let us in, and what to do.
fn refused(namespace: &str, pod: &str, error: &kube::Error) -> NotAsked {
    let (said, remedy) = match error {
        kube::Error::Api(status) => {
            let remedy = match status.code {
                401 | 403 => {
                    "ask for a Role that grants `get` and `create` on `pods/exec` there, or run this beside the agent"
                }
                400 | 404 => "is that the agent's pod? Its container is to run, and to be named `entente`",
                _ => "see the pod's events, and the kubelet of its node",
            };
            // One that gives no reason ends in the colon before it.
            (status.message.trim_end_matches([':', ' ']).to_owned(), remedy)
        }
        kube::Error::UpgradeConnection(_) => {
            (chain(error), "does a proxy between here and the API server pass no WebSocket on?")
        }
        other => (chain(other), "try again, or run this beside the agent"),
    };
    NotAsked(format!("the API server runs nothing for us in pod {namespace}/{pod}: {said}; {remedy}"))
}

/// Whether the API server knows us, and does not let us.
fn is_refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403))
}

fn unasked(what: &str, error: &kube::Error) -> NotAsked {
    match error {
        kube::Error::Api(status) if is_refused(error) => NotAsked(format!(
            "you may not {what}: {}; ask for a Role that grants it, or run this beside the agent",
            status.message
        )),
        other => NotAsked(format!("cannot {what}: {}", chain(other))),
    }
}

async fn bounded<T>(request: impl Future<Output = T>) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(PATIENCE, request).await;
    answer
        .map_err(|_| NotAsked(format!("the API server gave no answer within {} s", PATIENCE.as_secs())))
        .context("the agent's pod is looked for")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What is said where the Lease that is asked for gets this answer, and an agent of instance `fed` is there.
    async fn said(instance: &str, lease: (u16, Value)) -> String {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let agent = json!({
                "metadata": {"name": "fed-entente-0", "namespace": "entente-system"},
                "spec": {"containers": [
                    {"name": "istio-proxy"},
                    {"name": "entente", "env": [{"name": "ENTENTE_INSTANCE", "value": "fed"}]},
                ]},
            });
            let pods = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [agent]});
            let is_lease = request.uri().path().contains("/leases/");
            let (code, body) = if is_lease { lease.clone() } else { (200, pods) };
            let body = kube::client::Body::from(body.to_string().into_bytes());
            std::future::ready(Ok::<_, std::convert::Infallible>(
                http::Response::builder().status(code).body(body).unwrap(),
            ))
        });
        let client = kube::Client::new(service, "default");
        let cluster = ClusterFlags {
            kubeconfig: None,
            context: None,
            namespace: "entente-system".to_owned(),
            instance: instance.to_owned(),
        };
        let pods = Api::namespaced(client.clone(), &cluster.namespace);
        let error = leader(&client, &pods, &cluster).await.unwrap_err();
        assert!(error.is::<NotAsked>(), "{error:#}");
        error.to_string()
    }

    /// A Role of the chart is for the Lease of its own release.
    #[tokio::test]
    async fn who_asks_for_another_instance_is_told_which_there_is() {
        let failure = |code: u16, reason: &str, message: &str| {
            let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message});
            (code, status)
        };
        let refused = failure(403, "Forbidden", "User cannot get leases");
        for lease in [refused.clone(), failure(404, "NotFound", "there is none")] {
            let said = said("entente", lease).await;
            assert!(said.contains("not of instance entente: give --instance fed"), "{said}");
        }
        let said = said("fed", refused).await;
        assert!(said.contains("ask for a Role") && !said.contains("--instance"), "{said}");
    }
}

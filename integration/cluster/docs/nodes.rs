//! What controllers and kubelets do for the Deployments of a cluster: pods that are ready, the agent among them running for real,
//! and a Deployment's status that says so.

use crate::agent::Agent;
use crate::chart::{RELEASE, start_pod};
use crate::kubelet::{Kubelet, NAME};
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

const DEPLOYMENT: (&str, &str) = ("apps/v1", "Deployment");
const POD: (&str, &str) = ("v1", "Pod");
const READY: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

/// A Deployment by namespace and name.
type Key = (String, String);

/// The nodes of one cluster. Agents are killed when it is dropped: drop it before its domain.
pub(crate) struct Nodes<'a> {
    domain: &'a Domain,
    kubelet: Kubelet,
    agent: Option<Agent>,
    /// What runs, by generation.
    running: BTreeMap<Key, i64>,
}

impl<'a> Nodes<'a> {
    pub(crate) async fn start(domain: &'a Domain) -> Result<Self> {
        let kubelet = Kubelet::start(domain, &[]).await?;
        Ok(Self { domain, kubelet, agent: None, running: BTreeMap::new() })
    }

    /// Follows Deployments until something cannot be done.
    pub(crate) async fn run(&mut self) -> Result<Infallible> {
        loop {
            self.look().await.with_context(|| format!("the nodes of {}", self.domain.trust_domain()))?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends the agent as a kubelet does, and takes the node away.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.stop_agent().await?;
        self.kubelet.remove(self.domain).await
    }

    async fn look(&mut self) -> Result<()> {
        let deployments = self.domain.kubernetes.api(DEPLOYMENT.0, DEPLOYMENT.1, None).await?;
        let deployments = deployments.list(&ListParams::default()).await?.items;
        let mut there = BTreeSet::new();
        for deployment in &deployments {
            let metadata = &deployment.metadata;
            let key = (
                metadata.namespace.clone().context("no namespace")?,
                metadata.name.clone().context("no name")?,
            );
            let generation = metadata.generation.unwrap_or_default();
            there.insert(key.clone());
            if deployment.data["spec"]["replicas"] == 0 || self.running.get(&key) == Some(&generation) {
                continue;
            }
            self.bring_up(&key, deployment).await?;
            self.running.insert(key, generation);
        }
        let gone: Vec<Key> = self.running.keys().filter(|key| !there.contains(*key)).cloned().collect();
        for key in gone {
            self.take_down(&key).await?;
            self.running.remove(&key);
        }
        Ok(())
    }

    /// A pod of the Deployment as it is now, in place of the one before.
    async fn bring_up(&mut self, key: &Key, deployment: &DynamicObject) -> Result<()> {
        let (namespace, name) = key;
        let pod = format!("{name}-0");
        if is_agent(key) {
            self.stop_agent().await?;
            let mut agent = start_pod(self.domain, &pod).await?;
            self.link_control(&pod)?;
            agent.ready(READY).await?;
            self.agent = Some(agent);
        } else {
            let template = &deployment.data["spec"]["template"];
            let mut object = json!({
                "apiVersion": POD.0, "kind": POD.1, "metadata": template["metadata"], "spec": template["spec"],
            });
            object["metadata"]["name"] = json!(pod);
            object["metadata"]["namespace"] = json!(namespace);
            object["spec"]["nodeName"] = json!(NAME);
            self.inject(namespace, &mut object).await?;
            self.domain.kubernetes.apply(&object).await?;
        }
        let pods = self.domain.kubernetes.api(POD.0, POD.1, Some(namespace)).await?;
        let ready = json!({"status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        pods.patch_status(&pod, &PatchParams::default(), &Patch::Merge(ready)).await?;
        let deployments = self.domain.kubernetes.api(DEPLOYMENT.0, DEPLOYMENT.1, Some(namespace)).await?;
        deployments.patch_status(name, &PatchParams::default(), &Patch::Merge(status(deployment))).await?;
        Ok(())
    }

    /// What Istio's webhook does to a pod of a namespace that is labelled for it, where its template mounts SPIRE's socket.
    async fn inject(&self, namespace: &str, pod: &mut Value) -> Result<()> {
        let namespaces = self.domain.kubernetes.api("v1", "Namespace", None).await?;
        let labels = namespaces.get(namespace).await?.metadata.labels.unwrap_or_default();
        if labels.get("istio-injection").is_none_or(|word| word != "enabled") {
            return Ok(());
        }
        let first = pod["spec"]["containers"][0]["name"].clone();
        pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] = first;
        let mount = json!({"name": "workload-socket", "mountPath": "/run/secrets/workload-spiffe-uds"});
        pod["spec"]["initContainers"] = json!([{
            "name": "istio-proxy", "image": "none.example/proxy", "restartPolicy": "Always", "volumeMounts": [mount],
        }]);
        pod["spec"]["volumes"] =
            json!([{"name": "workload-socket", "csi": {"driver": "csi.spiffe.io", "readOnly": true}}]);
        Ok(())
    }

    /// Commands in the pod find the socket where the kubelet's stand-in has it.
    fn link_control(&self, pod: &str) -> Result<()> {
        let link = self.domain.dir().join(format!("{pod}.sock"));
        if !link.is_symlink() {
            // The socket of an agent of that name, which an earlier scenario had on these domains.
            if link.exists() {
                std::fs::remove_file(&link)?;
            }
            std::os::unix::fs::symlink(self.domain.dir().join(pod).join("control.sock"), link)?;
        }
        Ok(())
    }

    async fn take_down(&mut self, key: &Key) -> Result<()> {
        if is_agent(key) {
            self.stop_agent().await?;
        }
        let pods = self.domain.kubernetes.api(POD.0, POD.1, Some(&key.0)).await?;
        let _ = pods.delete(&format!("{}-0", key.1), &DeleteParams::default().grace_period(0)).await;
        Ok(())
    }

    async fn stop_agent(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            ensure!(agent.stop().await? == 0, "the agent ended badly: {}", agent.process.log_tail());
        }
        Ok(())
    }
}

fn is_agent(key: &Key) -> bool {
    key.0 == AGENT_NAMESPACE && key.1 == RELEASE
}

/// What the Deployment's controller says once all of its pods are ready.
fn status(deployment: &DynamicObject) -> Value {
    let replicas = &deployment.data["spec"]["replicas"];
    json!({"status": {
        "observedGeneration": deployment.metadata.generation,
        "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas,
        "conditions": [
            {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"},
            {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
        ],
    }})
}

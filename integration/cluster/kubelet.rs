//! A node that runs nothing, and what `kubectl exec` ends in there: `integration/tools/kubelet` runs the command as a process of
//! this machine.

use crate::ports;
use crate::process::{Process, Spec};
use crate::tools::Tools;
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

/// The node that pods are on.
pub(crate) const NAME: &str = "node";
const UP: Duration = Duration::from_secs(20);

/// The node of a domain, with pods that stand for agents. Killed when dropped: drop it before its domain.
pub(crate) struct Kubelet {
    pub(crate) process: Process,
    pods: Vec<String>,
}

impl Kubelet {
    /// Starts it, and makes its Node and a Pod of each of these names in the agent's namespace. A Pod stands for the agent whose
    /// control socket is `NAME.sock` in the domain's folder.
    pub(crate) async fn start(domain: &Domain, pods: &[&str]) -> Result<Self> {
        let address = ports::free()?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut process = Process::new(Spec {
            name: format!("kubelet of {}", domain.trust_domain()),
            program: Tools::get()?.program("kubelet")?,
            args: vec![
                format!("-listen={address}").into(),
                format!("-sockets={}", domain.dir().display()).into(),
            ],
            // The domain's own link to our program is what the image has on PATH.
            env: vec![("PATH".to_owned(), format!("{}:{path}", domain.dir().display()))],
            dir: domain.dir().to_owned(),
            log: domain.dir().join("kubelet.log"),
        });
        process.start()?;
        let kubelet = Self { process, pods: pods.iter().map(|pod| (*pod).to_owned()).collect() };
        kubelet.register(domain, address).await?;
        eventually("the kubelet listens", UP, || async {
            tokio::net::TcpStream::connect(address).await.context("connecting with it")?;
            Ok(())
        })
        .await
        .with_context(|| kubelet.process.log_tail())?;
        Ok(kubelet)
    }

    async fn register(&self, domain: &Domain, address: SocketAddr) -> Result<()> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}});
        domain.kubernetes.apply(&node).await?;
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": address.ip().to_string()}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}},
        }});
        let nodes: Api<Node> = Api::all(domain.kubernetes.client.clone());
        nodes.patch_status(NAME, &PatchParams::default(), &Patch::Merge(status)).await?;
        for pod in &self.pods {
            let labels =
                json!({"app.kubernetes.io/name": "entente", "app.kubernetes.io/instance": "entente"});
            domain
                .kubernetes
                .apply(&json!({
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": pod, "namespace": AGENT_NAMESPACE, "labels": labels},
                    "spec": {"nodeName": NAME, "containers": [{"name": "entente", "image": "entente"}]},
                }))
                .await?;
        }
        Ok(())
    }

    /// Takes Pods and Node away, for the next scenario.
    pub(crate) async fn remove(mut self, domain: &Domain) -> Result<()> {
        self.process.kill().await?;
        let pods: Api<Pod> = Api::namespaced(domain.kubernetes.client.clone(), AGENT_NAMESPACE);
        let at_once = DeleteParams::default().grace_period(0);
        for pod in &self.pods {
            pods.delete(pod, &at_once).await?;
        }
        let nodes: Api<Node> = Api::all(domain.kubernetes.client.clone());
        nodes.delete(NAME, &at_once).await?;
        Ok(())
    }
}

//! Two agents, each the other's peer, and the services that west exports to east.

use crate::agent::{Agent, AgentOptions};
use crate::process::Signal;
use crate::wait::eventually;
use crate::world::{Domain, peer};
pub(crate) use crate::world::{SOON, found, says};
use anyhow::{Context, Result, ensure};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

const API: &str = "entente.dev/v1alpha1";
/// Short times for all that an agent waits for, and one gateway for all.
pub(crate) const TIMING: [&str; 8] = [
    // One gateway carries both modes.
    "--ingress-gateway=istio-eastwestgateway",
    "--drain-seconds=2",
    "--bundle-poll-min-seconds=1",
    "--bundle-poll-max-seconds=2",
    "--spire-poll-seconds=4",
    "--dial-min-seconds=1",
    "--dial-max-seconds=2",
    "--lease-seconds=3",
];

/// A service of west: its name, which is the label `app` of its workload, the port that importers see, the workload's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exported {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    pub(crate) target_port: u16,
}

impl Exported {
    pub(crate) fn host(&self) -> String {
        format!("{}.shop.west.example", self.name)
    }

    pub(crate) fn server_id(&self) -> String {
        format!("spiffe://west.example/ns/shop/sa/{}", self.name)
    }

    /// Istio's own form of the SNI.
    pub(crate) fn sni(&self) -> String {
        format!("outbound_.{}_._.{}", self.port, self.host())
    }

    /// Istio's own name of the cluster.
    pub(crate) fn cluster(&self) -> String {
        format!("outbound|{}||{}", self.port, self.host())
    }

    fn object(&self, gateway: &str, gateway_port: u16) -> Value {
        json!({
            "apiVersion": API,
            "kind": "FederatedService",
            "metadata": {"name": self.name, "namespace": "shop"},
            "spec": {
                "workloadLabels": {"app": self.name},
                "ports": [{"name": "tcp", "port": self.port, "targetPort": self.target_port}],
                "tlsMode": "IstioMtls",
                "exportedTrustDomains": ["east.example"],
                "clients": {"spiffeIDs": ["spiffe://east.example/ns/web/sa/frontend"]},
                "serverSPIFFEIDs": [self.server_id()],
                "gateways": [{"type": "istio-eastwestgateway", "port": gateway_port, "ip": gateway}],
            },
        })
    }
}

/// The agents of both sides. Dropped before the domains are.
pub(crate) struct Agents {
    east: Mutex<Agent>,
    west: tokio::sync::Mutex<Agent>,
}

impl Agents {
    /// Starts them, makes each the peer of the other, and waits until both are Ready.
    pub(crate) async fn start(east: &Domain, west: &Domain) -> Result<Self> {
        let options = |more: Vec<String>| AgentOptions {
            args: TIMING.map(str::to_owned).into_iter().chain(more).collect(),
            ..AgentOptions::default()
        };
        let sockets = ["frontend", "stranger"].map(|name| {
            format!(
                "--xds-socket={}=spiffe://east.example/ns/web/sa/{name}",
                xds_socket(east, name).display()
            )
        });
        let mut of_east = Agent::start(east, options(sockets.to_vec()))?;
        let mut of_west = Agent::start(west, options(Vec::new()))?;
        tokio::try_join!(of_east.ready(SOON), of_west.ready(SOON))?;
        let agents = Self { east: Mutex::new(of_east), west: tokio::sync::Mutex::new(of_west) };
        for (here, there) in [(east, west), (west, east)] {
            here.kubernetes.apply(&peer(there).await?).await?;
        }
        for (here, there) in [(east, west), (west, east)] {
            says(here, "TrustDomainPeer", None, there.trust_domain().as_str(), "Ready").await?;
        }
        Ok(agents)
    }

    /// Runs west's agent with these arguments beside its others, for the time of a test.
    pub(crate) async fn with_west(
        &self,
        west: &Domain,
        args: &[&str],
        test: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        self.run_west(west, args).await?;
        let done = test().await;
        self.run_west(west, &[]).await?;
        done
    }

    async fn run_west(&self, west: &Domain, args: &[&str]) -> Result<()> {
        let mut agent = self.west.lock().await;
        agent.stop().await?;
        let args = TIMING.iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        *agent = Agent::start(west, AgentOptions { args, ..AgentOptions::default() })?;
        agent.ready(SOON).await
    }

    /// Has east's agent stand still, or go on.
    pub(crate) fn signal_east(&self, signal: Signal) -> Result<()> {
        self.east.lock().unwrap_or_else(PoisonError::into_inner).process.signal(signal)
    }
}

/// Where east's agent serves by xDS whoever is this service account of `web`.
pub(crate) fn xds_socket(east: &Domain, name: &str) -> PathBuf {
    east.dir().join(format!("xds-{name}.sock"))
}

/// Ends west's relationship with east by the command; what it said.
pub(crate) async fn end(agents: &Agents, how: &[&str]) -> Result<String> {
    let args = [&["peer", "end", "east.example", "--yes", "--by", "bob@west"], how].concat();
    let (code, said, error) = agents.west.lock().await.command(&args).await?;
    ensure!(code == 0, "{said}{error}");
    Ok(said)
}

/// Begins it again, and waits until both are Ready.
pub(crate) async fn begin_again(east: &Domain, west: &Domain) -> Result<()> {
    west.kubernetes.apply(&peer(east).await?).await?;
    for (here, there) in [(west, east), (east, west)] {
        says(here, "TrustDomainPeer", None, there.trust_domain().as_str(), "Ready").await?;
    }
    Ok(())
}

/// Exports a service of west through the gateway, and waits until west says that east has imported it.
pub(crate) async fn export(west: &Domain, service: Exported, gateway: &str, gateway_port: u16) -> Result<()> {
    west.kubernetes.apply(&service.object(gateway, gateway_port)).await?;
    says(west, "FederatedService", Some("shop"), service.name, "Exported").await
}

/// The address that the agent has given an import of east: in the ServiceEntry, where istiod and with it every sidecar has it
/// from, and in the status.
pub(crate) async fn address(east: &Domain, service: Exported) -> Result<String> {
    let entry =
        found(east, "networking.istio.io/v1", "ServiceEntry", Some("entente-system"), &service.host())
            .await?;
    let import = found(east, API, "ImportedService", Some("entente-system"), &service.host()).await?;
    let (given, told) = (&entry.data["spec"]["addresses"], &import.data["status"]["addresses"]);
    ensure!(given == told, "the ServiceEntry has {given}, the ImportedService {told}");
    let mut values = given.as_array().into_iter().flatten().filter_map(Value::as_str);
    let address = values.find(|one| one.parse::<Ipv4Addr>().is_ok());
    Ok(address.with_context(|| format!("no IPv4 address: {given}"))?.to_owned())
}

/// Ends an export, and waits until the FederatedService is gone.
pub(crate) async fn withdraw(west: &Domain, service: Exported) -> Result<()> {
    let api = west.kubernetes.api(API, "FederatedService", Some("shop")).await?;
    api.delete(service.name, &DeleteParams::background()).await?;
    eventually("the FederatedService is gone", SOON, || async {
        ensure!(api.get_opt(service.name).await?.is_none(), "it is there");
        Ok(())
    })
    .await
}

/// A condition of a TrustDomainPeer.
pub(crate) async fn of_peer(domain: &Domain, peer: &str, condition: &str) -> Result<Value> {
    let object = found(domain, API, "TrustDomainPeer", None, peer).await?;
    let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|one| one["type"] == condition);
    found.cloned().with_context(|| format!("no {condition}: {}", object.data["status"]))
}

//! One trust domain: an embedded authority, a directory of objects, and an agent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::manifests;
use crate::app;
use crate::bundle::document;
use crate::config::{AgentArgs, ClusterArgs, DnsArgs, ReachArgs, StoreArg, TimingArgs, XdsArgs};
use crate::devkit::{EmbeddedConfig, EmbeddedSpire, NewEntry};
use crate::model::trust::SpireState;
use crate::model::{SpiffeId, TrustDomain};
use crate::spire::SpireServer;
use crate::store::directory;

/// The path of an agent's SPIFFE ID, by convention.
pub const AGENT_PATH: &str = "/ns/entente-system/sa/entente";
/// The workload's name under which the agent asks the Workload API.
const AGENT_WORKLOAD: &str = "agent";
/// How long an agent may take to say goodbye and end.
const STOP: Duration = Duration::from_secs(20);

/// What a domain is started with.
#[derive(Clone, Debug)]
pub struct DomainConfig {
    pub trust_domain: TrustDomain,
    /// Its directory goes below here, by the first label of its name, and its sockets into `run/`.
    pub root: PathBuf,
    pub timing: TimingArgs,
    /// Lifetime of SVIDs.
    pub svid_ttl: Duration,
    /// Sockets of more SPIRE servers that the agent addresses.
    pub more_servers: Vec<PathBuf>,
    /// Who is served by xDS.
    pub xds: XdsArgs,
    /// What the agent is told of its surroundings.
    pub cluster: ClusterArgs,
    /// How the agent answers DNS. A port of 0 is another one with each start.
    pub dns: DnsArgs,
}

impl DomainConfig {
    /// With times short enough to watch.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, root: &Path) -> Self {
        let timing = TimingArgs {
            drain_seconds: 1,
            agent_follow_seconds: 1,
            bundle_poll_max_seconds: 1,
            bundle_poll_min_seconds: 1,
            spire_poll_seconds: 2,
            dial_max_seconds: 2,
            lease_seconds: 3,
            gateway_check_seconds: 0,
            ..TimingArgs::standard()
        };
        let svid_ttl = Duration::from_secs(60 * 60);
        Self {
            trust_domain,
            root: root.to_owned(),
            timing,
            svid_ttl,
            more_servers: Vec::new(),
            xds: XdsArgs::default(),
            cluster: ClusterArgs::default(),
            dns: DnsArgs::default(),
        }
    }
}

#[derive(Debug)]
struct RunningAgent {
    /// Where its health, metrics and view are.
    admin: SocketAddr,
    /// Where it answers DNS, if it does.
    dns: Option<SocketAddr>,
    cancel: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

/// A running trust domain. Everything of it ends when it is dropped.
#[derive(Debug)]
pub struct Domain {
    config: DomainConfig,
    spire: EmbeddedSpire,
    store: PathBuf,
    agent_id: SpiffeId,
    agent_socket: PathBuf,
    /// Port 0 until the agent first ran; then the same one, so that peers find it again.
    listen: SocketAddr,
    agent: Option<RunningAgent>,
}

impl Domain {
    /// Starts the authority, and registers the agent; it is not started.
    ///
    /// # Errors
    /// Where a socket, a port or a folder cannot be had.
    pub async fn start(config: DomainConfig) -> anyhow::Result<Self> {
        let trust_domain = config.trust_domain.clone();
        let label = trust_domain.as_str().split('.').next().unwrap_or_default().to_owned();
        let run = config.root.join("run").join(&label);
        let mut embedded = EmbeddedConfig::new(trust_domain.clone(), &run);
        embedded.settings.svid_ttl = config.svid_ttl;
        embedded.settings.refresh_hint = Duration::from_secs(4);
        embedded.minimum_refresh_hint = Duration::from_secs(4);
        let spire = EmbeddedSpire::start(embedded).await?;
        let agent_id = SpiffeId::new(format!("spiffe://{trust_domain}{AGENT_PATH}"))?;
        spire.create_entry(NewEntry::workload(agent_id.clone(), AGENT_WORKLOAD))?;
        let agent_socket = spire.workload_socket(AGENT_WORKLOAD)?;
        let store = config.root.join(label);
        tokio::fs::create_dir_all(store.join("manifests"))
            .await
            .with_context(|| format!("{} cannot be made", store.display()))?;
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self { config, spire, store, agent_id, agent_socket, listen, agent: None })
    }

    /// Starts the agent: on the address where it was before, if it ran before.
    ///
    /// # Errors
    /// What [`app::start`] says.
    pub async fn start_agent(&mut self) -> anyhow::Result<()> {
        let cancel = CancellationToken::new();
        let agent = app::start(&self.agent_args(), cancel.clone()).await?;
        self.listen = agent.listen;
        self.agent = Some(RunningAgent {
            admin: agent.admin,
            dns: agent.dns,
            cancel,
            task: tokio::spawn(agent.wait()),
        });
        Ok(())
    }

    /// Stops the agent, and waits until it has said goodbye.
    ///
    /// # Errors
    /// Where it ended badly, or not in time.
    pub async fn stop_agent(&mut self) -> anyhow::Result<()> {
        let Some(agent) = self.agent.take() else { return Ok(()) };
        agent.cancel.cancel();
        tokio::time::timeout(STOP, agent.task).await.context("the agent did not end in time")??
    }

    /// The flags that the agent runs with.
    #[must_use]
    pub fn agent_args(&self) -> AgentArgs {
        AgentArgs {
            cluster: self.config.cluster.clone(),
            dns: self.config.dns.clone(),
            xds: self.config.xds.clone(),
            relay: crate::config::RelayArgs::default(),
            store: StoreArg::Directory(self.store.clone()),
            workload_api: format!("unix://{}", self.agent_socket.display()),
            spire_server: self.spire_servers(),
            listen: self.listen,
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            view: true,
            otlp_endpoint: None,
            control: self.control_socket(),
            namespace: "entente-system".to_owned(),
            instance: "entente".to_owned(),
            replica: "demo".to_owned(),
            spire_class_name: String::new(),
            admin_hint: "entente-admin".to_owned(),
            web_roots: None,
            reach: self.reach(),
            timing: self.config.timing.clone(),
        }
    }

    /// What the agent tells of itself in invites and joins. Its port is known once it has run.
    fn reach(&self) -> ReachArgs {
        let listens = self.listen.port() != 0;
        ReachArgs {
            advertise: listens.then(|| self.listen.to_string()).into_iter().collect(),
            bundle_endpoint_url: self.spire.bundle_endpoint().ok().map(|endpoint| endpoint.url.to_string()),
            ..ReachArgs::default()
        }
    }

    fn spire_servers(&self) -> Vec<String> {
        let sockets = std::iter::once(&self.spire.server_socket).chain(&self.config.more_servers);
        sockets.map(|socket| format!("unix://{}", socket.display())).collect()
    }

    /// The control socket of the agent.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.store.with_extension("sock")
    }

    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.config.trust_domain
    }

    #[must_use]
    pub fn spire(&self) -> &EmbeddedSpire {
        &self.spire
    }

    #[must_use]
    pub fn agent_id(&self) -> &SpiffeId {
        &self.agent_id
    }

    /// Where the agent listens for peers; port 0 before it first ran.
    #[must_use]
    pub fn agent_address(&self) -> SocketAddr {
        self.listen
    }

    /// Where its health, metrics and view are, while it runs.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.agent.as_ref().map(|agent| agent.admin)
    }

    /// Where it answers DNS, while it runs and where it was told to.
    #[must_use]
    pub fn dns_address(&self) -> Option<SocketAddr> {
        self.agent.as_ref().and_then(|agent| agent.dns)
    }

    /// The directory that the agent works on.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Where the agent writes what it generates.
    #[must_use]
    pub fn generated(&self) -> PathBuf {
        self.store.join("generated")
    }

    /// Registers a workload, as its operator would; federation is left to the agent. Gives its Workload API.
    ///
    /// # Errors
    /// Where the path makes no SPIFFE ID, or the socket cannot be had.
    pub fn register(&self, path: &str, workload: &str) -> anyhow::Result<PathBuf> {
        let id = SpiffeId::new(format!("spiffe://{}{path}", self.trust_domain()))?;
        self.spire.create_entry(NewEntry::workload(id, workload))?;
        Ok(self.spire.workload_socket(workload)?)
    }

    /// The TrustDomainPeer with which another trust domain makes this one its peer. The agent must have run.
    ///
    /// # Errors
    /// Where the SPIFFE ID of the bundle endpoint cannot be made.
    pub fn as_peer(&self) -> anyhow::Result<Value> {
        let name = self.trust_domain().as_str();
        let endpoint = self.spire.bundle_endpoint()?;
        Ok(manifests::trust_domain_peer(&manifests::Peer {
            trust_domain: name,
            bundle_url: endpoint.url.as_str(),
            bundle_endpoint_id: &format!("spiffe://{name}/spire/server"),
            bootstrap_bundle: &document::write(&self.spire.bundle()),
            agent_address: &self.listen.to_string(),
            agent_id: &self.agent_id.to_string(),
        }))
    }

    /// Writes a manifest, whole; gives its path.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, file: &str, manifest: &Value) -> anyhow::Result<PathBuf> {
        let path = self.manifest(file);
        let temporary = path.with_file_name(format!(".{file}.tmp"));
        std::fs::write(&temporary, directory::to_yaml(manifest))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(path)
    }

    /// Removes a manifest; gives the path that it had.
    ///
    /// # Errors
    /// Where there is none.
    pub fn remove(&self, file: &str) -> anyhow::Result<PathBuf> {
        let path = self.manifest(file);
        std::fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
        Ok(path)
    }

    /// The path of a manifest.
    #[must_use]
    pub fn manifest(&self, file: &str) -> PathBuf {
        self.store.join("manifests").join(file)
    }

    /// The conditions of an object, as its status file has them: type, status, reason, message.
    #[must_use]
    pub fn conditions(&self, plural: &str, name: &str) -> Vec<[String; 4]> {
        let path = self.store.join("status").join(plural).join(format!("{name}.yaml"));
        let document = directory::read_document(&path).unwrap_or_default();
        let conditions = document.pointer("/status/conditions").and_then(Value::as_array);
        let field =
            |c: &Value, name: &str| c.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let read = |c: &Value| ["type", "status", "reason", "message"].map(|name| field(c, name));
        conditions.into_iter().flatten().map(read).collect()
    }

    /// One condition of an object.
    ///
    /// # Errors
    /// Where it has none of that type.
    pub fn condition(&self, plural: &str, name: &str, kind: &str) -> anyhow::Result<[String; 4]> {
        let all = self.conditions(plural, name);
        all.into_iter()
            .find(|[of, ..]| of == kind)
            .with_context(|| format!("{plural}/{name} in {} has no condition {kind}", self.trust_domain()))
    }

    /// What the authority holds, read through its server API.
    ///
    /// # Errors
    /// What the API says.
    pub async fn spire_state(&self) -> anyhow::Result<SpireState> {
        Ok(SpireServer::connect_unix(&self.spire.server_socket).read(self.trust_domain()).await?)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if let Some(agent) = &self.agent {
            agent.cancel.cancel();
        }
    }
}

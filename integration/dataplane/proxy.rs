//! An Envoy that is started with what `entente bootstrap envoy` prints, and has everything else from the agent.

use crate::envoy::{Admin, Workload, own_program, register};
use crate::process::Process;
use crate::wait::eventually;
use crate::world::Domain;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Envoy asks for secrets again after up to 30 s, where spire-agent does not know the entry yet.
const SOON: Duration = Duration::from_secs(60);

/// Where its agent is, and by which variant of the protocol it is asked.
#[derive(Clone, Debug)]
pub(crate) enum From {
    /// By TLS, incremental, as the bootstrap configuration has it.
    Listener(SocketAddr),
    /// The same, with the state of the world.
    WholeFromListener(SocketAddr),
    Socket(PathBuf),
}

/// What an Envoy finds on its machine, and who the agent is that it asks.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    /// The socket of spire-agent.
    pub(crate) spire_agent: PathBuf,
    pub(crate) agent_id: String,
}

/// An Envoy that runs, or has run. Killed when dropped: drop it before its domain.
pub(crate) struct Proxy {
    pub(crate) process: Process,
    pub(crate) admin: Admin,
    pub(crate) id: String,
}

impl Proxy {
    /// Registers the workload and starts its Envoy; returns once it has taken what the agent has for it, though that may be
    /// nothing.
    pub(crate) async fn start(domain: &Domain, name: &str, path: &str, from: &From) -> Result<Self> {
        let dir = domain.dir().join("x");
        std::fs::create_dir_all(&dir)?;
        let program = own_program(&dir, name)?;
        let workload = Workload { path: path.to_owned(), ..Workload::named(name) };
        let id = register(domain, &workload, &program).await?;
        let beside =
            Beside { spire_agent: domain.spire.agent_socket().to_owned(), agent_id: domain.agent_id() };
        Self::launch(&beside, program, name, id, from).await
    }

    /// Starts the Envoy of a workload that is registered by its program, in the folder of that.
    pub(crate) async fn launch(
        beside: &Beside,
        program: PathBuf,
        name: &str,
        id: String,
        from: &From,
    ) -> Result<Self> {
        let dir = program.parent().context("a program without a folder")?.to_owned();
        let admin = dir.join(format!("{name}.sock"));
        let config = bootstrap(beside, name, from, &admin).await?;
        let more = ["--concurrency", "1", "--drain-time-s", "1", "--log-level", "info"];
        let process = crate::envoy::start(program, dir, name, &id, &config, &more)?;
        let proxy = Self { process, admin: Admin::at(admin), id };
        proxy.admin.live(&proxy.process).await?;
        let told = eventually("it has heard of listeners from the agent", SOON, || async {
            let taken = proxy.admin.stat("listener_manager.lds.update_success").await?;
            ensure!(taken > 0, "{}", proxy.admin.stats("update").await?);
            Ok(())
        });
        told.await.with_context(|| proxy.process.log_tail())?;
        Ok(proxy)
    }

    /// The names of the listeners that it has from the agent.
    pub(crate) async fn listeners(&self) -> Result<Vec<String>> {
        let (_, body) = self.admin.get("/config_dump?resource=dynamic_listeners").await?;
        let dump: Value = serde_json::from_str(&body)?;
        let all = dump["configs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut names: Vec<String> = all
            .iter()
            .filter(|one| !one["active_state"].is_null())
            .filter_map(|one| one["name"].as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// How much of what the agent sent it has refused.
    pub(crate) async fn refused(&self) -> Result<u64> {
        let lds = self.admin.stat("listener_manager.lds.update_rejected").await?;
        Ok(lds + self.admin.stat("cluster_manager.cds.update_rejected").await?)
    }
}

async fn bootstrap(beside: &Beside, name: &str, from: &From, admin: &std::path::Path) -> Result<Vec<u8>> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
    command.args(["bootstrap", "envoy", "--node-id", name]);
    command.arg("--admin-socket").arg(admin);
    command.arg("--spire-agent-socket").arg(&beside.spire_agent);
    match from {
        From::Listener(address) | From::WholeFromListener(address) => {
            command.args(["--xds", &address.to_string(), "--agent-id", &beside.agent_id]);
        }
        From::Socket(path) => {
            command.arg("--xds-socket").arg(path);
        }
    }
    let output = command.kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut config: Value = serde_json::from_slice(&output.stdout)?;
    if matches!(from, From::WholeFromListener(_)) {
        config["dynamic_resources"]["ads_config"]["api_type"] = "GRPC".into();
    }
    Ok(serde_json::to_vec_pretty(&config)?)
}

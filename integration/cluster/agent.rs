//! Our agent as a child process of the test.

use crate::process::{Process, Spec};
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// How an agent is run. By default: as the user `AGENT_USER`, which may do everything, on the addresses that its domain has set aside.
#[derive(Clone, Debug)]
pub(crate) struct AgentOptions {
    /// For messages and the log file; tells replicas apart.
    pub(crate) name: String,
    /// Where it listens for peers; default `Domain::agent_address`.
    pub(crate) listen: Option<SocketAddr>,
    /// Health, metrics and view; default `Domain::agent_admin_address`.
    pub(crate) admin_listen: Option<SocketAddr>,
    /// The kubeconfig to use instead of that of `AGENT_USER`.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Where the SPIRE Server API is; default the Unix socket of the domain's server.
    pub(crate) spire_server: Option<String>,
    /// Put after the arguments that it always gets.
    pub(crate) args: Vec<String>,
    /// Put after the environment that it always gets.
    pub(crate) env: Vec<(String, String)>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            name: "agent".to_owned(),
            listen: None,
            admin_listen: None,
            kubeconfig: None,
            spire_server: None,
            args: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// Where a running agent is reached.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Its control socket.
    pub(crate) control: PathBuf,
    /// Of whom it is to Kubernetes.
    pub(crate) kubeconfig: PathBuf,
}

/// An agent that runs, or has run. Killed when dropped: drop it before its domain.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) process: Process,
    listen: SocketAddr,
    admin: SocketAddr,
    control: PathBuf,
    kubeconfig: PathBuf,
}

impl Agent {
    /// Starts `entente agent` in the domain; returns before it is ready.
    pub(crate) fn start(domain: &Domain, options: AgentOptions) -> Result<Self> {
        let listen = options.listen.unwrap_or(domain.agent_address());
        let admin = options.admin_listen.unwrap_or(domain.agent_admin_address());
        let kubeconfig = options.kubeconfig.unwrap_or_else(|| domain.kubernetes.agent_kubeconfig());
        let control = domain.dir().join(format!("{}.sock", options.name));
        let socket = format!("unix://{}", domain.spire.server_socket().display());
        let args = [
            "agent".to_owned(),
            "--store=kubernetes".to_owned(),
            format!("--spire-server={}", options.spire_server.unwrap_or(socket)),
            format!("--listen={listen}"),
            format!("--admin-listen={admin}"),
            format!("--control={}", control.display()),
            format!("--namespace={AGENT_NAMESPACE}"),
        ];
        let env = [
            (
                "SPIFFE_ENDPOINT_SOCKET".to_owned(),
                format!("unix://{}", domain.spire.agent_socket().display()),
            ),
            // Most gateways here are addresses where nobody is.
            ("ENTENTE_GATEWAY_CHECK_SECONDS".to_owned(), "0".to_owned()),
            ("RUST_LOG".to_owned(), "info,entente=debug".to_owned()),
            ("RUST_BACKTRACE".to_owned(), "1".to_owned()),
            ("HOME".to_owned(), domain.dir().display().to_string()),
        ];
        let args = args.into_iter().chain(options.args).collect();
        let env = env.into_iter().chain(options.env).collect();
        Self::start_as(domain, &options.name, args, env, Place { listen, admin, control, kubeconfig })
    }

    /// Starts the domain's program with exactly these arguments and this environment, but for KUBECONFIG; returns before it
    /// is ready. `name` is for messages and the log file.
    pub(crate) fn start_as(
        domain: &Domain,
        name: &str,
        args: Vec<String>,
        env: Vec<(String, String)>,
        place: Place,
    ) -> Result<Self> {
        let Place { listen, admin, control, kubeconfig } = place;
        let mut process = Process::new(Spec {
            name: format!("{name} of {}", domain.trust_domain()),
            program: domain.agent_program().to_owned(),
            args: args.into_iter().map(OsString::from).collect(),
            env: [("KUBECONFIG".to_owned(), kubeconfig.display().to_string())]
                .into_iter()
                .chain(env)
                .collect(),
            dir: domain.dir().to_owned(),
            log: domain.dir().join(format!("{name}.log")),
        });
        process.start()?;
        Ok(Self { process, listen, admin, control, kubeconfig })
    }

    /// Where it listens for peers.
    pub(crate) const fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Runs `entente` with these arguments against this agent's control socket and store; its exit code, stdout and stderr.
    pub(crate) async fn command(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
        command.args(args).env("ENTENTE_CONTROL", &self.control).env("KUBECONFIG", &self.kubeconfig);
        command.stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = command.output().await.context("entente cannot be run")?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
    }

    /// `GET path` of its admin address; status and body.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, String)> {
        crate::http::get(self.admin, path).await
    }

    /// Waits until `/readyz` says 200. An agent that has ended meanwhile is an error at once.
    pub(crate) async fn ready(&mut self, within: Duration) -> Result<()> {
        let admin = self.admin;
        let what = format!("{} is ready", self.process.name());
        let ready = eventually(&what, within, || async move {
            match crate::http::get(admin, "/readyz").await? {
                (200, _) => Ok(()),
                (status, body) => bail!("/readyz: {status}: {body}"),
            }
        });
        tokio::select! {
            ready = ready => ready.with_context(|| self.process.log_tail()),
            code = ended(&mut self.process) => bail!("{what}: it ended with {code:?}"),
        }
    }

    /// SIGTERM; its exit code.
    pub(crate) async fn stop(&mut self) -> Result<i32> {
        self.process.stop(STOP_DEADLINE).await
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it again, with the same arguments and addresses; returns before it is ready.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.process.start()
    }

    /// What it has logged, over all its starts.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

async fn ended(process: &mut Process) -> Option<i32> {
    process.ended(Duration::from_secs(3600)).await
}

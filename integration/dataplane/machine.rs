//! A machine without Kubernetes: spire-server and spire-agent, our agent on a directory, and Envoys beside plain applications.

use crate::envoy::{grpc_at, own_program, proxy_to, tls, with_type};
use crate::ports;
use crate::process::{Process, Spec};
use crate::proxy::{Beside, From, Proxy};
use crate::ring::{SOON, TIMING};
use crate::scratch::Scratch;
use crate::spire::{Spire, SpireOptions};
use crate::wait::eventually;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use spiffe::TrustDomain;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Where the agent writes what is imported.
const AGENT_NAMESPACE: &str = "entente-system";

/// Fields are in the order in which they go.
pub(crate) struct Machine {
    pub(crate) agent: Process,
    pub(crate) spire: Spire,
    trust_domain: TrustDomain,
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    pub(crate) xds: SocketAddr,
    pub(crate) dns: SocketAddr,
    control: PathBuf,
    scratch: Scratch,
}

impl Machine {
    /// Starts SPIRE, registers the agent, and starts it; returns once it is ready.
    pub(crate) async fn start(trust_domain: &str) -> Result<Self> {
        let trust_domain = TrustDomain::new(trust_domain)?;
        let scratch = Scratch::new()?;
        let spire_dir = scratch.folder("s")?;
        std::fs::create_dir_all(scratch.path().join("d/manifests"))?;
        let nowhere = scratch.path().join("no-kubeconfig");
        let mut spire = Spire::prepare(&trust_domain, &spire_dir, &nowhere, &SpireOptions::default())?;
        let started = async {
            spire.start_server().await?;
            spire.start_agent().await
        };
        if let Err(error) = started.await {
            scratch.keep();
            return Err(error);
        }
        let program = scratch.path().join("entente");
        std::fs::hard_link(env!("CARGO_BIN_EXE_entente"), &program)
            .or_else(|_| std::fs::copy(env!("CARGO_BIN_EXE_entente"), &program).map(drop))?;
        let (listen, admin) = (ports::free()?, ports::free()?);
        let (xds, dns) = (ports::free()?, ports::free()?);
        let control = scratch.path().join("control.sock");
        let args = [
            format!("--listen={listen}"),
            format!("--admin-listen={admin}"),
            format!("--control={}", control.display()),
            format!("--xds-listen={xds}"),
            format!("--dns-listen={dns}"),
        ];
        let agent = agent(&trust_domain, scratch.path(), &spire, program, &args);
        let mut machine = Self { agent, spire, trust_domain, listen, admin, xds, dns, control, scratch };
        let ready = async {
            machine.register(&machine.agent_id(), &machine.scratch.path().join("entente")).await?;
            machine.agent.start()?;
            machine.ready().await
        };
        if let Err(error) = ready.await {
            machine.keep();
            return Err(error);
        }
        Ok(machine)
    }

    /// Waits until the agent says that it is ready.
    pub(crate) async fn ready(&self) -> Result<()> {
        let what = format!("{} is ready", self.agent.name());
        let look = || async {
            match crate::http::get(self.admin, "/readyz").await? {
                (200, _) => Ok(()),
                (status, body) => bail!("/readyz: {status}: {body}"),
            }
        };
        eventually(&what, SOON, look).await.with_context(|| self.agent.log_tail())
    }

    /// Leaves the logs where they are.
    pub(crate) fn keep(&self) {
        self.scratch.keep();
        eprintln!("logs of {}: {}", self.trust_domain, self.scratch.path().display());
    }

    pub(crate) fn agent_id(&self) -> String {
        format!("spiffe://{}/ns/{AGENT_NAMESPACE}/sa/entente", self.trust_domain)
    }

    /// Makes a registration entry for a program, as an operator does.
    async fn register(&self, id: &str, program: &Path) -> Result<()> {
        let uid = format!("unix:uid:{}", std::fs::metadata("/proc/self")?.uid());
        let path = format!("unix:path:{}", program.canonicalize()?.display());
        let node = format!("spiffe://{}/node", self.trust_domain);
        let args = ["entry", "create", "-spiffeID", id, "-parentID", &node];
        let selectors = ["-selector", &uid, "-selector", &path];
        self.spire.cli(&[&args[..], &selectors[..]].concat()).await?;
        Ok(())
    }

    /// The TrustDomainPeer of this machine, as others have it: all that it exports is admitted, nothing federates.
    pub(crate) async fn as_peer(&self) -> Result<Value> {
        let name = self.trust_domain.to_string();
        let bundle_endpoint = json!({
            "url": format!("https://{}/", self.spire.bundle_endpoint()),
            "profile": {"type": "https_spiffe", "endpointSPIFFEID": self.spire.bundle_endpoint_id()},
        });
        Ok(json!({
            "apiVersion": "entente.dev/v1alpha1",
            "kind": "TrustDomainPeer",
            "metadata": {"name": name},
            "spec": {
                "trustDomain": name,
                "bundleEndpoint": bundle_endpoint,
                "bootstrapBundle": {"inline": self.spire.bundle_document().await?},
                "agent": {"addresses": [self.listen.to_string()], "spiffeIDs": [self.agent_id()]},
                "imports": {"services": [{"namespace": "*", "name": "*"}]},
            },
        }))
    }

    /// Takes a TrustDomainPeer, with which these workloads of ours federate.
    pub(crate) fn meet(&self, mut peer: Value, workloads: &[&str]) -> Result<()> {
        let ids: Vec<String> =
            workloads.iter().map(|path| format!("spiffe://{}{path}", self.trust_domain)).collect();
        peer["spec"]["federatesWith"] = json!({"spiffeIDs": ids});
        self.write(&peer)
    }

    /// Puts a manifest into the store, whole.
    pub(crate) fn write(&self, object: &Value) -> Result<()> {
        let file = self.manifest(object["kind"].as_str(), object["metadata"]["name"].as_str());
        let whole = file.with_extension("tmp");
        std::fs::write(&whole, serde_json::to_vec_pretty(object)?)?;
        Ok(std::fs::rename(whole, file)?)
    }

    /// Takes a manifest away.
    pub(crate) fn remove(&self, kind: &str, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.manifest(Some(kind), Some(name)))?)
    }

    fn manifest(&self, kind: Option<&str>, name: Option<&str>) -> PathBuf {
        let file = format!("{}-{}.json", kind.unwrap_or_default(), name.unwrap_or_default());
        self.scratch.path().join("d/manifests").join(file)
    }

    /// The status of an object, as the store has it.
    pub(crate) fn status(&self, plural: &str, name: &str) -> Result<Value> {
        let file = self.scratch.path().join("d/status").join(plural).join(format!("{name}.yaml"));
        let object = entente::store::directory::read_document(&file).map_err(anyhow::Error::msg)?;
        Ok(object["status"].clone())
    }

    /// Waits until a condition of an object is True; its reason.
    pub(crate) async fn says(&self, plural: &str, name: &str, condition: &str) -> Result<String> {
        let what = format!("{plural} {name} of {} says {condition}", self.trust_domain);
        eventually(&what, SOON, || async {
            let status = self.status(plural, name)?;
            let all = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let is = |one: &&Value| one["type"] == condition && one["status"] == "True";
            let said = all.iter().find(is).with_context(|| format!("status {status}"))?;
            Ok(said["reason"].as_str().unwrap_or_default().to_owned())
        })
        .await
        .with_context(|| self.agent.log_tail())
    }

    /// Runs `entente` against this machine's agent and store; what it prints.
    pub(crate) async fn command(&self, args: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
        command.args(args).env("ENTENTE_CONTROL", &self.control);
        command.env("ENTENTE_STORE", format!("dir:{}", self.scratch.path().join("d").display()));
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        Ok(said)
    }

    /// What the agent's DNS server answers for the addresses of a name, asked by a client that is not ours.
    pub(crate) async fn resolve(&self, name: &str) -> Result<IpAddr> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/ask.py");
        let question = json!({"name": name, "type": "A"});
        let asked = json!({"server": self.dns.ip(), "port": self.dns.port(), "questions": [question]});
        let mut python = tokio::process::Command::new("python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("python3 cannot be run")?;
        let mut stdin = python.stdin.take().context("no stdin")?;
        tokio::io::AsyncWriteExt::write_all(&mut stdin, format!("{asked}\n").as_bytes()).await?;
        drop(stdin);
        let answers: Value = serde_json::from_slice(&python.wait_with_output().await?.stdout)?;
        let record = answers[0]["answers"][0].as_str().with_context(|| format!("{name}: {answers}"))?;
        Ok(record.rsplit(' ').next().unwrap_or_default().parse()?)
    }

    /// Registers a workload of this path and starts its Envoy, which has all of its configuration from the agent.
    pub(crate) async fn proxy(&self, name: &str, path: &str) -> Result<Proxy> {
        let (program, id) = self.workload(name, path).await?;
        let beside = Beside { spire_agent: self.spire.agent_socket().to_owned(), agent_id: self.agent_id() };
        Proxy::launch(&beside, program, name, id, &From::Listener(self.xds)).await
    }

    async fn workload(&self, name: &str, path: &str) -> Result<(PathBuf, String)> {
        let dir = self.scratch.folder("x")?;
        let program = own_program(&dir, name)?;
        let id = format!("spiffe://{}{path}", self.trust_domain);
        self.register(&id, &program).await?;
        Ok((program, id))
    }

    /// An Envoy of another workload, not ours to configure, that takes whoever comes to this address, for what is `behind`.
    pub(crate) async fn impostor(
        &self,
        name: &str,
        path: &str,
        at: SocketAddr,
        behind: SocketAddr,
    ) -> Result<Process> {
        let (program, id) = self.workload(name, path).await?;
        let dir = self.scratch.folder("x")?;
        let context = json!({"common_tls_context": tls(&[]), "require_client_certificate": true});
        let kind = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
        let socket = json!({"name": "envoy.transport_sockets.tls", "typed_config": with_type(kind, context)});
        let address = |at: SocketAddr| json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
        let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address(behind)}}]}]);
        let application = json!({
            "name": "application",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "application", "endpoints": endpoints},
        });
        let chain = json!({"filters": [proxy_to("application")], "transport_socket": socket});
        let listener = json!({"name": "mtls", "address": address(at), "filter_chains": [chain]});
        let config = json!({
            "node": {"id": name, "cluster": name},
            "static_resources": {
                "listeners": [listener],
                "clusters": [grpc_at("spire_agent", self.spire.agent_socket()), application],
            },
        });
        let config = serde_json::to_vec_pretty(&config)?;
        crate::envoy::start(program, dir, name, &id, &config, &[])
    }
}

/// The agent of a machine, with what is the same for all, and these arguments.
fn agent(
    trust_domain: &TrustDomain,
    dir: &Path,
    spire: &Spire,
    program: PathBuf,
    more: &[String],
) -> Process {
    let args = [
        "agent".to_owned(),
        format!("--store=dir:{}", dir.join("d").display()),
        "--istio=false".to_owned(),
        format!("--spire-server=unix://{}", spire.server_socket().display()),
        format!("--workload-api=unix://{}", spire.agent_socket().display()),
        "--xds-all-bundles=ROOTCA".to_owned(),
        format!("--import-address-range={}", crate::ring::own_range()),
    ];
    let timing = TIMING.iter().map(|one| (*one).to_owned());
    Process::new(Spec {
        name: format!("agent of {trust_domain}"),
        program,
        args: args.into_iter().chain(timing).chain(more.iter().cloned()).map(OsString::from).collect(),
        env: vec![
            ("RUST_LOG".to_owned(), "info,entente=debug".to_owned()),
            ("HOME".to_owned(), dir.display().to_string()),
        ],
        dir: dir.to_owned(),
        log: dir.join("agent.log"),
    })
}

//! Clients of proxyless gRPC: libraries that take `xds:///HOST:PORT` from our agent, and certificate, key and bundles from the files
//! that `entente bootstrap grpc --keep` keeps beside them.

use crate::envoy::{Workload, register};
use crate::process::{Process, Spec};
use crate::tools::Tools;
use crate::wait::eventually;
use crate::world::Domain;
use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// spire-agent may take some seconds to know an entry.
const SOON: Duration = Duration::from_secs(60);
/// How long a client may take to say what came of a call.
const ANSWER: Duration = Duration::from_secs(30);

/// What keeps the files of one workload. Killed when dropped.
pub(crate) struct Keeper {
    pub(crate) process: Process,
    pub(crate) id: String,
    pub(crate) directory: PathBuf,
}

/// Where its agent is.
pub(crate) enum Agent<'a> {
    Listener(SocketAddr),
    Socket(&'a Path),
}

impl Keeper {
    /// Registers the workload, which is the program that keeps its files, and waits until these are there.
    pub(crate) async fn start(domain: &Domain, name: &str, path: &str, agent: Agent<'_>) -> Result<Self> {
        let directory = domain.dir().join(name);
        let program = own(Path::new(env!("CARGO_BIN_EXE_entente")), domain.dir(), name)?;
        let workload = Workload { path: path.to_owned(), ..Workload::named(name) };
        let id = register(domain, &workload, &program).await?;
        let api = format!("unix://{}", domain.spire.agent_socket().display());
        let mut args = ["bootstrap", "grpc", "--keep", "--refresh=1", "--workload-api", &api]
            .map(OsString::from)
            .to_vec();
        args.extend(["--directory".into(), directory.clone().into_os_string()]);
        args.extend(match agent {
            Agent::Listener(at) => {
                vec!["--xds".into(), at.to_string().into(), "--agent-id".into(), domain.agent_id().into()]
            }
            Agent::Socket(path) => vec!["--xds-socket".into(), path.into()],
        });
        let mut process = Process::new(Spec {
            name: format!("keeper of {id}"),
            program,
            args,
            env: Vec::new(),
            dir: domain.dir().to_owned(),
            log: domain.dir().join(format!("{name}.log")),
        });
        process.start()?;
        let keeper = Self { process, id, directory };
        let ready = eventually("certificate, key, bundles and configuration are there", SOON, || async {
            std::fs::metadata(keeper.bootstrap())?;
            let bundles = std::fs::read(keeper.directory.join("current/bundles.json"))?;
            let bundles: Value = serde_json::from_slice(&bundles)?;
            let known = bundles["trust_domains"].as_object().context("no trust domains")?;
            ensure!(known.len() > 1, "it federates with nobody: {:?}", known.keys());
            Ok(())
        });
        ready.await.with_context(|| keeper.process.log_tail())?;
        Ok(keeper)
    }

    /// The SHA-256 of the certificate that the library is to present now, as servers say it.
    pub(crate) fn certificate(&self) -> Result<String> {
        let leaf = CertificateDer::from_pem_file(self.directory.join("current/svid.pem"));
        let leaf = leaf.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(hex::encode(Sha256::digest(&leaf)))
    }

    /// A configuration that has each of two trust domains' roots under the other's name.
    pub(crate) fn with_roots_swapped(&self, (one, other): (&str, &str)) -> Result<PathBuf> {
        let read = |path: PathBuf| anyhow::Ok(serde_json::from_slice::<Value>(&std::fs::read(path)?)?);
        let mut bundles = read(self.directory.join("current/bundles.json"))?;
        let map = &mut bundles["trust_domains"];
        let taken = map[one].take();
        map[one] = map[other].take();
        map[other] = taken;
        let mut bootstrap = read(self.bootstrap())?;
        let (file, path) =
            (self.directory.join("swapped.json"), self.directory.join("bootstrap-swapped.json"));
        std::fs::write(&file, bundles.to_string())?;
        for name in ["spiffe_trust_bundle_map_file", "spiffe_bundle_map_file"] {
            bootstrap["certificate_providers"]["spiffe"]["config"][name] = file.display().to_string().into();
        }
        std::fs::write(&path, bootstrap.to_string())?;
        Ok(path)
    }

    fn bootstrap(&self) -> PathBuf {
        self.directory.join("bootstrap.json")
    }
}

/// A path of a program that no other workload has, since SPIRE tells workloads apart by it.
pub(crate) fn own(program: &Path, dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(format!("program-{name}"));
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    if std::fs::hard_link(program, &path).is_err() {
        std::fs::copy(program, &path).with_context(|| format!("copying {}", program.display()))?;
    }
    Ok(path)
}

/// Which library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    /// grpc-go.
    Go,
    /// grpcio, on gRPC's C core.
    Python,
}

/// What a library has to be told by its environment to read a bundle map (gRFC A87).
pub(crate) const BY_BUNDLES: (&str, &str) = ("GRPC_EXPERIMENTAL_XDS_MTLS_SPIFFE", "true");
/// And to send the SNI that it is given (gRFC A101).
pub(crate) const SENDS_SNI: (&str, &str) = ("GRPC_EXPERIMENTAL_XDS_SNI", "true");

/// A client with a channel to one target. Killed when dropped.
pub(crate) struct Client {
    _child: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Client {
    /// `host` is called at the port that importers see.
    pub(crate) fn start(
        library: Library,
        keeper: &Keeper,
        host: &str,
        flags: &[(&str, &str)],
    ) -> Result<Self> {
        let target = format!("xds:///{host}:{}", crate::ring::PORT);
        let mut command = match library {
            Library::Go => {
                let mut command = Command::new(Tools::get()?.program("grpc-peer")?);
                command.arg("client");
                command
            }
            Library::Python => {
                let mut command = Command::new("python3");
                command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/integration/grpc_client.py"));
                command
            }
        };
        let log = keeper.directory.join(format!("{library:?}-{host}.log"));
        let said = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut child = command
            .arg(target)
            .env("GRPC_XDS_BOOTSTRAP", keeper.bootstrap())
            .env("GRPC_GO_LOG_SEVERITY_LEVEL", "warning")
            .envs(flags.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(said)
            .kill_on_drop(true)
            .spawn()?;
        let requests = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(Self { _child: child, requests, answers, log })
    }

    /// What a call on its channel comes to.
    pub(crate) async fn call(&mut self) -> Result<Value> {
        self.ask("call\n").await
    }

    /// The same on a channel that is opened for it.
    pub(crate) async fn fresh(&mut self) -> Result<Value> {
        self.ask("fresh\n").await
    }

    async fn ask(&mut self, line: &str) -> Result<Value> {
        self.requests.write_all(line.as_bytes()).await?;
        let line = tokio::time::timeout(ANSWER, self.answers.next_line()).await.context("no answer")??;
        Ok(serde_json::from_str(&line.with_context(|| self.log())?)?)
    }

    /// The error that a call ends with; an error where it is answered.
    pub(crate) async fn refused(&mut self) -> Result<String> {
        let said = self.call().await?;
        let error = said["error"].as_str().with_context(|| format!("it is answered: {said}"))?;
        Ok(error.to_owned())
    }

    /// Calls until it is answered.
    pub(crate) async fn answered(&mut self) -> Result<Value> {
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let said = self.call().await?;
            if said["status"] == "SERVING" {
                return Ok(said);
            }
            ensure!(std::time::Instant::now() < deadline, "{said}\n{}", self.log());
        }
    }

    /// What the library itself has logged.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// A gRPC server, in Go. Killed when dropped.
pub(crate) struct Server {
    _child: Child,
    _requests: ChildStdin,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Without TLS, for what ends that in front of it.
    pub(crate) async fn plain() -> Result<Self> {
        Self::start(Tools::get()?.program("grpc-peer")?, &["127.0.0.1:0".to_owned()]).await
    }

    /// By mutual TLS with the SVID that SPIRE gives it, for these clients alone; the workload has this name and path.
    pub(crate) async fn mutual(
        domain: &Domain,
        (name, path): (&str, &str),
        at: SocketAddr,
        clients: &[String],
    ) -> Result<Self> {
        let program = own(&Tools::get()?.program("grpc-peer")?, domain.dir(), name)?;
        let workload = Workload { path: path.to_owned(), ..Workload::named(name) };
        register(domain, &workload, &program).await?;
        let api = format!("unix://{}", domain.spire.agent_socket().display());
        let args: Vec<String> = [at.to_string(), api].into_iter().chain(clients.iter().cloned()).collect();
        Self::start(program, &args).await
    }

    async fn start(program: PathBuf, args: &[String]) -> Result<Self> {
        let mut child = Command::new(program)
            .arg("server")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let requests = child.stdin.take().context("no standard input")?;
        let mut said = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let line = tokio::time::timeout(SOON, said.next_line()).await.context("it says nothing")??;
        let line: Value = serde_json::from_str(&line.context("it ended")?)?;
        let address = line["address"].as_str().with_context(|| format!("{line}"))?.parse()?;
        Ok(Self { _child: child, _requests: requests, address })
    }
}

//! Workloads: each a Pod and a registration entry by name, and in place of its containers a namespace, an Envoy as
//! sidecar, and for some a server.

use crate::envoy::own_program;
use crate::istiod::set_status;
use crate::network::{MARK, Member, Network, which};
use crate::process::{Process, Spec};
use crate::proxy::{Door, Identity, Proxy};
use crate::wait::eventually;
use crate::world::{Domain, FEDERATE};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

const REGISTERED_DEADLINE: Duration = Duration::from_secs(30);
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// The label that no two Pods share.
pub(crate) const POD: &str = "pod";
/// Says its name to everyone who connects, whenever they say something.
const SERVER: &str = "
import socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        while self.request.recv(100):
            self.request.sendall(sys.argv[1].encode())
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server((sys.argv[2], int(sys.argv[3])), Handler).serve_forever()
";
/// Prints what a server answers; nothing, where it closes the connection.
const CLIENT: &str = "
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as connection:
    connection.settimeout(5)
    try:
        connection.sendall(b'hello')
        print(connection.recv(100).decode(), end='')
    except ConnectionError:
        pass
";

/// The same, by a connection that is marked.
const MARKED_CLIENT: &str = "
import socket, sys
with socket.socket() as connection:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(sys.argv[3]))
    connection.settimeout(5)
    connection.connect((sys.argv[1], int(sys.argv[2])))
    try:
        connection.sendall(b'hello')
        print(connection.recv(100).decode(), end='')
    except ConnectionError:
        pass
";
/// Where a sidecar listens for what is redirected to it.
const OUTBOUND: u16 = 15001;

/// Prints a line for each answer of a server on one connection, five a second; in the end, that it was closed.
const HOLDER: &str = "
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as connection:
    connection.settimeout(5)
    try:
        while True:
            connection.sendall(b'hello')
            heard = connection.recv(100).decode()
            if not heard:
                break
            print('heard', heard, flush=True)
            time.sleep(0.2)
    except OSError:
        pass
print('closed', flush=True)
";

/// What a workload is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Role<'a> {
    pub(crate) namespace: &'a str,
    /// Of the Pod and its service account.
    pub(crate) name: &'a str,
    /// Its label `app`, by which Services and FederatedServices select it.
    pub(crate) app: &'a str,
    pub(crate) address: Ipv4Addr,
    /// The service account of its SPIFFE ID, which is another's for an impostor.
    pub(crate) presents: &'a str,
    /// It is this gateway (label `istio`) rather than a sidecar.
    pub(crate) gateway: Option<&'a str>,
    /// Its own port; `None`: it has no server.
    pub(crate) port: Option<u16>,
    /// How connections come to the sidecar.
    pub(crate) interception: Interception,
}

/// How connections come to a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interception {
    /// It listens for them at the workload's address.
    None,
    /// By rules of netfilter. Here they hold for what clients mark (`Workload::redirect`), and nothing comes in by them: such a
    /// workload is not ready.
    Redirect,
    /// The same, where nobody answers for names.
    RedirectWithoutDns,
}

impl Interception {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Redirect | Self::RedirectWithoutDns => "REDIRECT",
        }
    }
}

/// A workload that runs.
pub(crate) struct Workload {
    pub(crate) proxy: Proxy,
    member: Member,
    server: Option<Process>,
}

impl Workload {
    /// Registers it, makes its Pod, and starts its programs.
    pub(crate) async fn start(
        domain: &Domain,
        network: &mut Network,
        istiod: &Door,
        role: Role<'_>,
    ) -> Result<Self> {
        let member = network.join(role.address)?;
        Self::start_in(domain, member, istiod, role).await
    }

    /// The same, in a namespace that is there.
    pub(crate) async fn start_in(
        domain: &Domain,
        member: Member,
        istiod: &Door,
        role: Role<'_>,
    ) -> Result<Self> {
        let dir = domain.dir().join("w");
        std::fs::create_dir_all(&dir)?;
        domain.kubernetes.namespace(role.namespace).await?;
        let program = own_program(&dir, role.name)?;
        register(domain, &role, &program).await?;
        let pod = pod(&role);
        domain.kubernetes.apply(&without_status(&pod)).await?;
        set_status(domain, &pod).await?;
        if let Some(port) = role.port {
            domain.kubernetes.apply(&sidecar(&role, port)).await?;
        }
        let server = role.port.map(|port| serve(&member, &dir, &role, port)).transpose()?;
        let identity = Identity {
            kind: if role.gateway.is_some() { "router" } else { "sidecar" },
            namespace: role.namespace,
            name: role.name,
            interception: role.interception.name(),
            captures_dns: role.interception == Interception::Redirect,
            labels: pod["metadata"]["labels"].clone(),
        };
        let agent = domain.spire.agent_socket();
        let proxy = Proxy::start(&program, &identity, &member, istiod.path(), agent, &dir)?;
        Ok(Self { proxy, member, server })
    }

    /// Holds a connection from beside this sidecar to `address:port`, and uses it all the time; `log` is its file's name.
    pub(crate) fn holds(&self, domain: &Domain, log: &str, address: &str, port: u16) -> Result<Held> {
        let args = ["-c", HOLDER, address, &port.to_string()].map(str::to_owned);
        let (program, args) = self.member.inside(&which("python3")?, &args)?;
        let dir = domain.dir().join("w");
        let log = dir.join(format!("{log}.log"));
        let name = format!("{} to {address}:{port}", log.display());
        let mut process = Process::new(Spec { name, program, args, env: Vec::new(), dir, log });
        process.start()?;
        Ok(Held(process))
    }

    /// What a client beside this sidecar hears from `address:port`; empty where the connection is closed on it.
    pub(crate) async fn hears(&self, address: &str, port: u16) -> Result<String> {
        hears_from(&self.member, address, port).await
    }

    /// Has what clients mark come to this sidecar, wherever they call. By nf_tables, which the kernel must have.
    pub(crate) fn redirect(&self) -> Result<()> {
        self.member.redirect(OUTBOUND)
    }

    /// What a client hears from `address:port` whose connections are redirected to this sidecar (`redirect`).
    pub(crate) async fn hears_redirected(&self, address: &str, port: u16) -> Result<String> {
        let (port, mark) = (port.to_string(), MARK.to_string());
        hears_by(&self.member, &["-c", MARKED_CLIENT, address, &port, &mark]).await
    }

    /// The namespace that it runs in.
    pub(crate) const fn member(&self) -> &Member {
        &self.member
    }
}

/// What a client in the namespace hears from `address:port`; empty where the connection is closed on it.
pub(crate) async fn hears_from(member: &Member, address: &str, port: u16) -> Result<String> {
    hears_by(member, &["-c", CLIENT, address, &port.to_string()]).await
}

async fn hears_by(member: &Member, python: &[&str]) -> Result<String> {
    let args: Vec<String> = python.iter().map(|arg| (*arg).to_owned()).collect();
    let (program, args) = member.inside(&which("python3")?, &args)?;
    let running = tokio::process::Command::new(program).args(args).kill_on_drop(true).output();
    let output: Output = tokio::time::timeout(ANSWER_DEADLINE, running).await??;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}", errors.lines().last().unwrap_or_default());
    Ok(String::from_utf8(output.stdout)?)
}

/// A connection that is held. Dropped, it is closed.
pub(crate) struct Held(Process);

impl Held {
    /// How often it was answered.
    pub(crate) fn answers(&self) -> usize {
        self.0.log().lines().filter(|line| line.starts_with("heard")).count()
    }

    /// Whether someone else closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.log().lines().any(|line| line == "closed")
    }
}

async fn register(domain: &Domain, role: &Role<'_>, program: &Path) -> Result<()> {
    let trust_domain = domain.trust_domain();
    let id = format!("spiffe://{trust_domain}/ns/{}/sa/{}", role.namespace, role.presents);
    let uid = std::fs::metadata("/proc/self")?.uid();
    domain
        .kubernetes
        .apply(&json!({
            "apiVersion": "spire.spiffe.io/v1alpha1",
            "kind": "ClusterStaticEntry",
            "metadata": {"name": format!("{}-{}", role.namespace, role.name), "labels": {FEDERATE: "true"}},
            "spec": {
                "spiffeID": id,
                "parentID": format!("spiffe://{trust_domain}/node"),
                "selectors": [format!("unix:uid:{uid}"), format!("unix:path:{}", program.canonicalize()?.display())],
            },
        }))
        .await?;
    eventually(&format!("SPIRE has the entry {id}"), REGISTERED_DEADLINE, || async {
        domain.spire.entries().await?.get(&id).map(drop).context("it has not")
    })
    .await
}

fn pod(role: &Role<'_>) -> Value {
    let mut labels = json!({"app": role.app, POD: role.name, "security.istio.io/tlsMode": "istio"});
    match role.gateway {
        Some(gateway) => labels["istio"] = json!(gateway),
        None => labels["sidecar.istio.io/inject"] = json!("true"),
    }
    let ip = role.address.to_string();
    let socket = json!({"name": "workload-socket", "mountPath": "/run/secrets/workload-spiffe-uds"});
    let ready = if role.interception == Interception::None { "True" } else { "False" };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": role.name, "namespace": role.namespace, "labels": labels},
        "spec": {
            "serviceAccountName": role.name,
            "containers": [
                {"name": "main", "image": "none.example/none"},
                {"name": "istio-proxy", "image": "none.example/none", "volumeMounts": [socket]},
            ],
            "volumes": [{"name": "workload-socket", "csi": {"driver": "csi.spiffe.io", "readOnly": true}}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready}],
        },
    })
}

/// Nothing redirects connections to the sidecar: it has to be told where to listen for its server.
pub(crate) fn sidecar(role: &Role<'_>, port: u16) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": role.name, "namespace": role.namespace},
        "spec": {
            "workloadSelector": {"labels": {POD: role.name}},
            "ingress": [{
                "port": {"number": port, "name": "tcp", "protocol": "TCP"},
                "defaultEndpoint": format!("127.0.0.1:{port}"),
            }],
            "egress": [{"hosts": ["*/*"]}],
        },
    })
}

fn without_status(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    object
}

/// The sidecar passes connections on to 127.0.0.1.
fn serve(member: &Member, dir: &Path, role: &Role<'_>, port: u16) -> Result<Process> {
    serve_at(member, dir, role.name, Ipv4Addr::LOCALHOST, port)
}

/// A server that says its name.
pub(crate) fn serve_at(
    member: &Member,
    dir: &Path,
    name: &str,
    address: Ipv4Addr,
    port: u16,
) -> Result<Process> {
    let args = ["-c", SERVER, name, &address.to_string(), &port.to_string()].map(str::to_owned);
    let (program, args) = member.inside(&which("python3")?, &args)?;
    let mut process = Process::new(Spec {
        name: format!("server of {name}"),
        program,
        args,
        env: vec![("HOME".to_owned(), dir.display().to_string())],
        dir: dir.to_owned(),
        log: dir.join(format!("{name}-server.log")),
    });
    process.start()?;
    Ok(process)
}

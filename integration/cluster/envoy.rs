//! A real Envoy as workload: its certificates and bundles come from SPIRE's SDS alone, nothing else from anywhere. It
//! ends mTLS in front of an echo, and opens mTLS to others for whoever calls its plain listeners.

use crate::ports;
use crate::process::{Process, Spec};
use crate::tools::Tools;
use crate::wait::eventually;
use crate::world::Domain;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

/// Envoy asks for secrets again after up to 30 s, where spire-agent does not know the entry yet.
const LIVE_DEADLINE: Duration = Duration::from_secs(60);
/// How long one call may take, its handshakes included.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
const SPIRE: &str = "spire_agent";
/// The SDS name of the workload's own SVID.
const SVID: &str = "default";
/// The SDS name of all bundles that the workload has, each good for its own trust domain: `default_all_bundles_name`
/// of `spire/agent.conf.tmpl`, which is `ALL` where SPIRE is not told otherwise.
const ALL_BUNDLES: &str = "ROOTCA";

/// Whom an Envoy calls.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    /// What `Envoy::call` names it by.
    pub(crate) name: String,
    /// A server's [`Envoy::address`].
    pub(crate) address: SocketAddr,
    /// The SPIFFE ID that the server must have.
    pub(crate) id: String,
}

/// What an Envoy is to be.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// Of its ClusterStaticEntry, its program and its files.
    pub(crate) name: String,
    /// The path of its SPIFFE ID.
    pub(crate) path: String,
    /// Of its ClusterStaticEntry.
    pub(crate) labels: Vec<(String, String)>,
    /// Trust domains that its registration names from the start, as a user's own `federatesWith`.
    pub(crate) federates_with: Vec<String>,
    /// The SPIFFE IDs that may call it; empty: whoever has an SVID of a trust domain that it has the bundle of.
    pub(crate) clients: Vec<String>,
    pub(crate) upstreams: Vec<Upstream>,
    /// Where it ends mTLS; `None`: at a port of its own.
    pub(crate) listen: Option<SocketAddr>,
    /// What stands behind it; `None`: an echo.
    pub(crate) behind: Option<SocketAddr>,
}

impl Workload {
    /// `spiffe://TRUST_DOMAIN/ns/apps/sa/NAME`, labelled `federate: "true"`; calls nobody, and answers whoever it can
    /// verify.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: format!("/ns/apps/sa/{name}"),
            labels: vec![("federate".to_owned(), "true".to_owned())],
            federates_with: Vec::new(),
            clients: Vec::new(),
            upstreams: Vec::new(),
            listen: None,
            behind: None,
        }
    }

    /// Calls `server`, which must be who it is now.
    pub(crate) fn calling(mut self, server: &Envoy) -> Self {
        self.upstreams.push(Upstream {
            name: server.name.clone(),
            address: server.address,
            id: server.id.clone(),
        });
        self
    }
}

/// An Envoy that runs, or has run. Killed when dropped: drop it before its domain.
pub(crate) struct Envoy {
    pub(crate) process: Process,
    admin: Admin,
    name: String,
    id: String,
    address: SocketAddr,
    /// The plain listeners, by the name of the upstream that they lead to.
    doors: BTreeMap<String, SocketAddr>,
    echo: JoinHandle<()>,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.echo.abort();
    }
}

impl Envoy {
    /// Registers the workload, by a ClusterStaticEntry, and starts its Envoy; returns before it has an SVID.
    pub(crate) async fn start(domain: &Domain, workload: &Workload) -> Result<Self> {
        let name = &workload.name;
        let dir = domain.dir().join("e");
        std::fs::create_dir_all(&dir)?;
        let program = own_program(&dir, name)?;
        let id = register(domain, workload, &program).await?;
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let behind = workload.behind.unwrap_or(echo.local_addr()?);
        let address = workload.listen.map_or_else(ports::free, Ok)?;
        let mut doors = BTreeMap::new();
        for upstream in &workload.upstreams {
            doors.insert(upstream.name.clone(), ports::free()?);
        }
        let admin = Admin { path: dir.join(format!("{name}.sock")) };
        let bootstrap = json!({
            "node": {"id": name, "cluster": domain.trust_domain().to_string()},
            "admin": {"address": {"pipe": {"path": admin.path}}},
            "static_resources": resources(domain, workload, address, &doors, behind),
        });
        let config = serde_json::to_vec_pretty(&bootstrap)?;
        let process = start(program, dir, name, &id, &config, &["--concurrency", "1"])?;
        let echo = tokio::spawn(answer(echo));
        Ok(Self { process, admin, name: name.clone(), id, address, doors, echo })
    }

    /// The same, once it has its SVID.
    pub(crate) async fn ready(domain: &Domain, workload: &Workload) -> Result<Self> {
        let envoy = Self::start(domain, workload).await?;
        eventually(&format!("{} has an SVID", envoy.process.name()), LIVE_DEADLINE, || envoy.serial())
            .await
            .with_context(|| envoy.process.log_tail())?;
        Ok(envoy)
    }

    /// Where it ends mTLS.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its SPIFFE ID.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) const fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Its plain listener that leads to an upstream.
    pub(crate) fn door(&self, upstream: &str) -> Option<SocketAddr> {
        self.doors.get(upstream).copied()
    }

    /// SIGKILL, and a start with the same configuration and nothing remembered; returns before it has an SVID.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.process.start()
    }

    /// A connection to an upstream, through a handshake of its own (no session is resumed), which has been answered
    /// once. It stays until someone closes it.
    pub(crate) async fn connect(&self, upstream: &str) -> Result<Connection> {
        let door = self.doors.get(upstream).with_context(|| format!("{} calls no {upstream}", self.name))?;
        let stream = tokio::time::timeout(CALL_DEADLINE, TcpStream::connect(door)).await??;
        let mut connection = Connection(stream);
        connection.call().await.with_context(|| format!("{} calls {upstream}", self.name))?;
        Ok(connection)
    }

    /// One call on a connection of its own.
    pub(crate) async fn call(&self, upstream: &str) -> Result<()> {
        self.connect(upstream).await.map(drop)
    }

    /// The serial number of the certificate that its listener presents now, as Envoy prints it; none is an error.
    pub(crate) async fn serial(&self) -> Result<String> {
        let (status, body) = self.admin.get("/certs").await?;
        ensure!(status == 200, "/certs: {status}");
        let certs: Value = serde_json::from_str(&body)?;
        let leaf = |one: &Value| {
            let chain = one["cert_chain"].as_array()?;
            chain.first()?["serial_number"].as_str().map(str::to_owned)
        };
        let all = certs["certificates"].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().find_map(leaf).context("it has no certificate")
    }

    /// How many handshakes its listener has ended well since it was started.
    pub(crate) async fn handshakes(&self) -> Result<u64> {
        self.admin.stat("listener.mtls.ssl.handshake").await
    }

    /// How often it has refused a new SVID of SPIRE, or the bundles that came with it, since it was started.
    pub(crate) async fn svids_refused(&self) -> Result<u64> {
        self.admin.stat(&format!("sds.{SVID}.update_rejected")).await
    }

    /// How often it has refused the bundles alone, since it was started.
    pub(crate) async fn bundles_refused(&self) -> Result<u64> {
        self.admin.stat(&format!("sds.{ALL_BUNDLES}.update_rejected")).await
    }
}

/// A connection from an Envoy's plain listener to the echo behind another one.
#[derive(Debug)]
pub(crate) struct Connection(TcpStream);

impl Connection {
    /// Says something and hears it again; an error where the connection has been closed.
    pub(crate) async fn call(&mut self) -> Result<()> {
        const WORDS: &[u8] = b"hello";
        let heard = async {
            self.0.write_all(WORDS).await?;
            let mut heard = [0; WORDS.len()];
            self.0.read_exact(&mut heard).await?;
            anyhow::Ok(heard)
        };
        let heard = tokio::time::timeout(CALL_DEADLINE, heard).await.context("no answer")??;
        ensure!(heard == WORDS, "the echo says {heard:?}");
        Ok(())
    }
}

async fn answer(echo: TcpListener) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut stream, _)) = echo.accept().await {
        connections.spawn(async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Registers the workload as this program, by a ClusterStaticEntry; its SPIFFE ID, once SPIRE has the entry.
pub(crate) async fn register(domain: &Domain, workload: &Workload, program: &Path) -> Result<String> {
    let trust_domain = domain.trust_domain();
    let id = format!("spiffe://{trust_domain}{}", workload.path);
    let uid = std::fs::metadata("/proc/self")?.uid();
    let labels: BTreeMap<_, _> = workload.labels.iter().cloned().collect();
    let mut entry = json!({
        "apiVersion": "spire.spiffe.io/v1alpha1",
        "kind": "ClusterStaticEntry",
        "metadata": {"name": workload.name, "labels": labels},
        "spec": {
            "spiffeID": id,
            "parentID": format!("spiffe://{trust_domain}/node"),
            "selectors": [format!("unix:uid:{uid}"), format!("unix:path:{}", program.canonicalize()?.display())],
        },
    });
    if !workload.federates_with.is_empty() {
        entry["spec"]["federatesWith"] = json!(workload.federates_with);
    }
    domain.kubernetes.apply(&entry).await?;
    eventually(&format!("SPIRE has the entry {id}"), LIVE_DEADLINE, || async {
        domain.spire.entries().await?.get(&id).map(drop).context("it has not")
    })
    .await?;
    Ok(id)
}

fn resources(
    domain: &Domain,
    workload: &Workload,
    address: SocketAddr,
    doors: &BTreeMap<String, SocketAddr>,
    echo: SocketAddr,
) -> Value {
    let socket =
        |at: SocketAddr| json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
    let transport = |kind: &str, context: Value| {
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": with_type(&format!("envoy.extensions.transport_sockets.tls.v3.{kind}"), context),
        })
    };
    let mut listeners = vec![json!({
        "name": "mtls",
        "stat_prefix": "mtls",
        "address": socket(address),
        "filter_chains": [{
            "filters": [proxy_to("echo")],
            "transport_socket": transport("DownstreamTlsContext", json!({
                "common_tls_context": tls(&workload.clients),
                "require_client_certificate": true,
                // A resumed session would prove nothing about the bundles of today.
                "disable_stateless_session_resumption": true,
                "disable_stateful_session_resumption": true,
            })),
        }],
    })];
    let cluster = |name: &str, at: SocketAddr| {
        json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(at)}}]}],
            },
        })
    };
    let mut clusters = vec![grpc_at(SPIRE, domain.spire.agent_socket()), cluster("echo", echo)];
    for upstream in &workload.upstreams {
        let name = format!("to-{}", upstream.name);
        listeners.push(json!({
            "name": name,
            "address": doors.get(&upstream.name).map(|at| socket(*at)),
            "filter_chains": [{"filters": [proxy_to(&name)]}],
        }));
        let mut remote = cluster(&name, upstream.address);
        remote["transport_socket"] = transport(
            "UpstreamTlsContext",
            json!({"common_tls_context": tls(std::slice::from_ref(&upstream.id)), "max_session_keys": 0}),
        );
        clusters.push(remote);
    }
    json!({"listeners": listeners, "clusters": clusters})
}

/// The SVID and every bundle of the workload, and whom it takes the other side for.
pub(crate) fn tls(ids: &[String]) -> Value {
    let sds = |name: &str| {
        json!({
            "name": name,
            "sds_config": {
                "resource_api_version": "V3",
                "api_config_source": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": SPIRE}}],
                },
            },
        })
    };
    let ids: Vec<Value> = ids.iter().map(|id| json!({"san_type": "URI", "matcher": {"exact": id}})).collect();
    json!({
        "tls_certificate_sds_secret_configs": [sds(SVID)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": ids},
            "validation_context_sds_secret_config": sds(ALL_BUNDLES),
        },
    })
}

/// A filter that passes bytes on to a cluster.
pub(crate) fn proxy_to(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": with_type(
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            json!({"stat_prefix": cluster, "cluster": cluster}),
        ),
    })
}

/// A configuration with the name of its type.
pub(crate) fn with_type(name: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{name}"));
    config
}

/// A cluster that is a gRPC server at a Unix socket.
pub(crate) fn grpc_at(name: &str, socket: &Path) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": socket}}}}]}],
        },
    })
}

/// A path of Envoy's program that no other workload has, since SPIRE tells workloads apart by it.
pub(crate) fn own_program(dir: &Path, name: &str) -> Result<PathBuf> {
    let program = Tools::get()?.program("envoy")?;
    let path = dir.join(format!("envoy-{name}"));
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    if std::fs::hard_link(&program, &path).is_err() {
        std::fs::copy(&program, &path).with_context(|| format!("copying {}", program.display()))?;
    }
    Ok(path)
}

/// The administration interface of an Envoy, at a Unix socket.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    path: PathBuf,
}

impl Admin {
    pub(crate) const fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Waits until the Envoy has taken its first whole configuration: secrets that it does not get are waited for no
    /// longer than 15 s.
    pub(crate) async fn live(&self, process: &Process) -> Result<()> {
        eventually(&format!("{} is live", process.name()), LIVE_DEADLINE, || async {
            match self.get("/ready").await? {
                (200, _) => Ok(()),
                (status, body) => bail!("/ready: {status}: {body}"),
            }
        })
        .await
        .with_context(|| process.log_tail())
    }

    /// A counter or gauge; 0 where there is none of this name.
    pub(crate) async fn stat(&self, name: &str) -> Result<u64> {
        let (_, body) = self.get("/stats?usedonly").await?;
        let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(line.map(str::parse).transpose()?.unwrap_or_default())
    }

    /// All counters and gauges whose name holds `part`, as they are printed.
    pub(crate) async fn stats(&self, part: &str) -> Result<String> {
        let (_, body) = self.get("/stats?usedonly").await?;
        Ok(body.lines().filter(|line| line.contains(part)).collect::<Vec<_>>().join("\n"))
    }

    /// `GET path`; status and body.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.path).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        let text = String::from_utf8(bytes)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split_whitespace().nth(1).context("no HTTP status")?.parse()?;
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Ok((status, if chunked { unchunked(body)? } else { body.to_owned() }))
    }
}

fn unchunked(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk without size")?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).context("a cut chunk")?);
        body = rest.get(size + 2..).context("a cut chunk")?;
    }
}

/// Starts a copy of Envoy in its folder, with a configuration and these arguments beside. It is the workload `id`.
pub(crate) fn start(
    program: PathBuf,
    dir: PathBuf,
    name: &str,
    id: &str,
    config: &[u8],
    more: &[&str],
) -> Result<Process> {
    let file = dir.join(format!("{name}.json"));
    std::fs::write(&file, config)?;
    let file = file.display().to_string();
    let args = ["--config-path", &file, "--disable-hot-restart"].into_iter().chain(more.iter().copied());
    let mut process = Process::new(Spec {
        name: format!("envoy {id}"),
        program,
        args: args.map(OsString::from).collect(),
        env: Vec::new(),
        log: dir.join(format!("{name}.log")),
        dir,
    });
    process.start()?;
    Ok(process)
}

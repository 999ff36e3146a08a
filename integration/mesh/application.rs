//! Applications that make and end mutual TLS themselves, with SPIRE's certificates, as a program with a SPIFFE library does:
//! an Envoy of a fixed configuration in the workload's namespace, which knows nothing of istiod.

use crate::envoy::{Admin, grpc_at, own_program, proxy_to, tls, with_type};
use crate::network::Member;
use crate::process::{Process, Spec};
use crate::workload::serve_at;
use crate::world::{Domain, FEDERATE};
use anyhow::Result;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::MetadataExt;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// How far below the port of a server's TLS that is which speaks plain TCP behind it.
const PLAIN_BELOW: u16 = 1000;

/// An application that runs. Dropped, it is gone.
pub(crate) struct Application {
    process: Process,
    admin: Admin,
    server: Option<Process>,
}

/// Whom a client calls, who that must be, and how.
#[derive(Clone, Debug)]
pub(crate) struct Callee {
    /// The port of the client's own address that leads there.
    pub(crate) port: u16,
    pub(crate) address: SocketAddr,
    pub(crate) sni: String,
    pub(crate) id: String,
    pub(crate) alpn: Option<&'static str>,
    /// Without a certificate.
    pub(crate) anonymous: bool,
}

impl Callee {
    /// As the client of an application calls one.
    pub(crate) fn new(port: u16, address: SocketAddr, sni: &str, id: &str) -> Self {
        Self { port, address, sni: sni.to_owned(), id: id.to_owned(), alpn: None, anonymous: false }
    }

    /// The counters of the calls have this in their names.
    fn cluster(&self) -> String {
        format!("callee_{}", self.port)
    }

    fn listener(&self) -> Value {
        json!({
            "name": format!("app_{}", self.port),
            "stat_prefix": format!("app_{}", self.port),
            "address": socket((HERE, self.port).into()),
            "filter_chains": [{"filters": [proxy_to(&self.cluster())]}],
        })
    }

    fn remote(&self) -> Value {
        let mut common = tls(std::slice::from_ref(&self.id));
        if self.anonymous
            && let Some(fields) = common.as_object_mut()
        {
            fields.remove("tls_certificate_sds_secret_configs");
        }
        if let Some(alpn) = self.alpn {
            common["alpn_protocols"] = json!([alpn]);
        }
        let context = json!({"common_tls_context": common, "sni": self.sni, "max_session_keys": 0});
        let mut remote = cluster(&self.cluster(), self.address);
        remote["transport_socket"] = transport("UpstreamTlsContext", context);
        remote
    }
}

impl Application {
    /// Says its name to those of these SPIFFE IDs that come to `at`.
    pub(crate) async fn serving(
        domain: &Domain,
        member: &Member,
        (namespace, name): (&str, &str),
        at: SocketAddrV4,
        clients: &[String],
    ) -> Result<Self> {
        let context = json!({
            "common_tls_context": tls(clients),
            "require_client_certificate": true,
            "disable_stateless_session_resumption": true,
            "disable_stateful_session_resumption": true,
        });
        let listener = json!({
            "name": "app",
            "stat_prefix": "app",
            "address": socket(at.into()),
            "filter_chains": [{
                "filters": [proxy_to("plain")],
                "transport_socket": transport("DownstreamTlsContext", context),
            }],
        });
        let behind = at.port() - PLAIN_BELOW;
        let plain = cluster("plain", SocketAddr::from((HERE, behind)));
        let mut this = Self::start(domain, member, (namespace, name), vec![listener], vec![plain]).await?;
        this.server = Some(serve_at(member, &domain.dir().join("w"), name, HERE, behind)?);
        Ok(this)
    }

    /// Makes TLS of what comes to the ports of the namespace's own address, and takes it to the callees.
    pub(crate) async fn calling(
        domain: &Domain,
        member: &Member,
        (namespace, name): (&str, &str),
        callees: &[Callee],
    ) -> Result<Self> {
        let listeners = callees.iter().map(Callee::listener).collect();
        let remotes = callees.iter().map(Callee::remote).collect();
        Self::start(domain, member, (namespace, name), listeners, remotes).await
    }

    async fn start(
        domain: &Domain,
        member: &Member,
        (namespace, name): (&str, &str),
        listeners: Vec<Value>,
        mut clusters: Vec<Value>,
    ) -> Result<Self> {
        let dir = domain.dir().join("w");
        std::fs::create_dir_all(&dir)?;
        let program_name = format!("app-{name}");
        let program = own_program(&dir, &program_name)?;
        let trust_domain = domain.trust_domain();
        let uid = std::fs::metadata("/proc/self")?.uid();
        let entry = json!({
            "apiVersion": "spire.spiffe.io/v1alpha1",
            "kind": "ClusterStaticEntry",
            "metadata": {"name": program_name, "labels": {FEDERATE: "true"}},
            "spec": {
                "spiffeID": format!("spiffe://{trust_domain}/ns/{namespace}/sa/{name}"),
                "parentID": format!("spiffe://{trust_domain}/node"),
                "selectors": [format!("unix:uid:{uid}"), format!("unix:path:{}", program.canonicalize()?.display())],
            },
        });
        domain.kubernetes.apply(&entry).await?;
        let admin = dir.join(format!("{program_name}.sock"));
        clusters.push(grpc_at("spire_agent", domain.spire.agent_socket()));
        let bootstrap = json!({
            "node": {"id": name, "cluster": trust_domain.to_string()},
            "admin": {"address": {"pipe": {"path": admin}}},
            "static_resources": {
                "listeners": listeners,
                "clusters": clusters,
            },
        });
        let file = dir.join(format!("{program_name}.json"));
        std::fs::write(&file, serde_json::to_vec_pretty(&bootstrap)?)?;
        let args =
            ["--config-path", &file.display().to_string(), "--disable-hot-restart", "--concurrency", "1"];
        let (entering, args) = member.inside(&program, &args.map(str::to_owned))?;
        let mut process = Process::new(Spec {
            name: format!("application {name}"),
            program: entering,
            args,
            env: Vec::new(),
            log: dir.join(format!("{program_name}.log")),
            dir,
        });
        process.start()?;
        Ok(Self { process, admin: Admin::at(admin), server: None })
    }

    /// A counter of its Envoy.
    pub(crate) async fn stat(&self, name: &str) -> Result<u64> {
        self.admin.stat(name).await
    }

    pub(crate) async fn stats(&self, part: &str) -> Result<String> {
        self.admin.stats(part).await
    }
}

fn socket(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

fn transport(kind: &str, context: Value) -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": with_type(&format!("envoy.extensions.transport_sockets.tls.v3.{kind}"), context),
    })
}

fn cluster(name: &str, at: SocketAddr) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(at)}}]}],
        },
    })
}

//! Applications that make and end mutual TLS themselves, with SPIRE's certificates, as a program with a SPIFFE library does:
//! an Envoy of a fixed configuration in the workload's namespace, which knows nothing of istiod.

use crate::envoy::{Admin, grpc_at, own_program, proxy_to, tls, with_type};
use crate::network::Member;
use crate::process::{Process, Spec};
use crate::workload::{FEDERATE, serve_at};
use crate::world::Domain;
use anyhow::Result;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::MetadataExt;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// What speaks plain TCP behind a server's TLS.
const PLAIN: u16 = 7000;

/// An application that runs. Dropped, it is gone.
pub(crate) struct Application {
    process: Process,
    admin: Admin,
    server: Option<Process>,
}

/// Whom a client calls, and who that must be.
#[derive(Clone, Debug)]
pub(crate) struct Callee<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) sni: &'a str,
    pub(crate) id: String,
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
        let plain = cluster("plain", SocketAddr::from((HERE, PLAIN)));
        let mut this = Self::start(domain, member, (namespace, name), &listener, &plain).await?;
        this.server = Some(serve_at(member, &domain.dir().join("w"), name, HERE, PLAIN)?);
        Ok(this)
    }

    /// Makes TLS of what comes to `port` of the namespace's own address, and takes it to the callee.
    pub(crate) async fn calling(
        domain: &Domain,
        member: &Member,
        (namespace, name): (&str, &str),
        port: u16,
        callee: &Callee<'_>,
    ) -> Result<Self> {
        let context = json!({
            "common_tls_context": tls(std::slice::from_ref(&callee.id)),
            "sni": callee.sni,
            "max_session_keys": 0,
        });
        let listener = json!({
            "name": "app",
            "stat_prefix": "app",
            "address": socket((HERE, port).into()),
            "filter_chains": [{"filters": [proxy_to("callee")]}],
        });
        let mut remote = cluster("callee", callee.address);
        remote["transport_socket"] = transport("UpstreamTlsContext", context);
        Self::start(domain, member, (namespace, name), &listener, &remote).await
    }

    async fn start(
        domain: &Domain,
        member: &Member,
        (namespace, name): (&str, &str),
        listener: &Value,
        cluster: &Value,
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
        let bootstrap = json!({
            "node": {"id": name, "cluster": trust_domain.to_string()},
            "admin": {"address": {"pipe": {"path": admin}}},
            "static_resources": {
                "listeners": [listener],
                "clusters": [grpc_at("spire_agent", domain.spire.agent_socket()), cluster],
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

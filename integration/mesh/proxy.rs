//! A real Envoy as sidecar or gateway: configured by istiod as Istio's own proxy is, with certificates from SPIRE.

use crate::envoy::{Admin, grpc_at};
use crate::network::Member;
use crate::process::{Process, Spec};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinHandle;

/// How long connections of a listener that was changed go on: Istio gives its proxies 45 s.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// A Unix socket that leads to istiod: from inside a namespace no TCP port of the machine can be reached.
#[derive(Debug)]
pub(crate) struct Door {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Door {
    pub(crate) fn open(path: PathBuf, target: SocketAddr) -> Result<Self> {
        let listener = UnixListener::bind(&path)?;
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut inside, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut outside) = TcpStream::connect(target).await {
                        let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { path, task })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Who a proxy is to istiod.
#[derive(Clone, Debug)]
pub(crate) struct Identity<'a> {
    /// `sidecar` or `router`.
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
    /// The name of the pod and of its service account.
    pub(crate) name: &'a str,
    /// `NONE` or `REDIRECT`.
    pub(crate) interception: &'a str,
    /// It says that it answers for names, as Istio's own agent beside it would.
    pub(crate) captures_dns: bool,
    pub(crate) labels: Value,
}

/// An Envoy that runs. Dropped, it is gone.
pub(crate) struct Proxy {
    process: Process,
    admin: Admin,
    /// `name.namespace`, as istiod's debug pages have it.
    short_name: String,
}

impl Proxy {
    /// Starts `program` in the namespace; returns before it has a configuration.
    pub(crate) fn start(
        program: &Path,
        identity: &Identity<'_>,
        member: &Member,
        istiod: &Path,
        spire_agent: &Path,
        dir: &Path,
    ) -> Result<Self> {
        let name = identity.name;
        let admin = dir.join(format!("{name}.sock"));
        let node = format!(
            "{}~{}~{name}.{namespace}~{namespace}.svc.cluster.local",
            identity.kind,
            member.address(),
            namespace = identity.namespace
        );
        let bootstrap = json!({
            "node": {
                "id": node,
                "cluster": format!("{name}.{}", identity.namespace),
                "metadata": {
                    "NAME": name,
                    "NAMESPACE": identity.namespace,
                    "SERVICE_ACCOUNT": name,
                    "CLUSTER_ID": "Kubernetes",
                    "INTERCEPTION_MODE": identity.interception,
                    "DNS_CAPTURE": identity.captures_dns.to_string(),
                    "LABELS": identity.labels,
                    "INSTANCE_IPS": member.address().to_string(),
                },
            },
            "admin": {"address": {"pipe": {"path": admin}}},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                },
                "cds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
                "lds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            },
            "static_resources": {"clusters": [grpc_at("xds-grpc", istiod), grpc_at("sds-grpc", spire_agent)]},
        });
        let file = dir.join(format!("{name}.json"));
        std::fs::write(&file, serde_json::to_vec_pretty(&bootstrap)?)?;
        let file = file.display().to_string();
        let drain = DRAIN.as_secs().to_string();
        let envoy_args = ["--config-path", &file, "--disable-hot-restart", "--concurrency", "1"];
        let draining = ["--drain-time-s", &drain, "--drain-strategy", "immediate"];
        let envoy_args: Vec<String> = envoy_args.into_iter().chain(draining).map(str::to_owned).collect();
        let (entering, args) = member.inside(program, &envoy_args)?;
        let mut process = Process::new(Spec {
            name: format!("envoy {node}"),
            program: entering,
            args,
            env: Vec::new(),
            dir: dir.to_owned(),
            log: dir.join(format!("{name}.log")),
        });
        process.start()?;
        Ok(Self { process, admin: Admin::at(admin), short_name: format!("{name}.{}", identity.namespace) })
    }

    /// Its name at istiod.
    pub(crate) fn short_name(&self) -> &str {
        &self.short_name
    }

    /// See [`Admin::live`].
    pub(crate) async fn live(&self) -> Result<()> {
        self.admin.live(&self.process).await
    }

    /// The whole configuration that it runs with, endpoints included.
    pub(crate) async fn config(&self) -> Result<Config> {
        let (status, body) = self.admin.get("/config_dump?include_eds").await?;
        ensure!(status == 200, "/config_dump: {status}");
        Ok(Config(serde_json::from_str(&body)?))
    }

    /// See [`Admin::stat`].
    pub(crate) async fn stat(&self, name: &str) -> Result<u64> {
        self.admin.stat(name).await
    }

    /// See [`Admin::stats`].
    pub(crate) async fn stats(&self, part: &str) -> Result<String> {
        self.admin.stats(part).await
    }

    pub(crate) fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

/// What an Envoy runs with.
#[derive(Clone, Debug)]
pub(crate) struct Config(Value);

impl Config {
    /// A dump by istiod, which names fields as JSON does, where Envoy names them as Protobuf does.
    pub(crate) fn of_istiod(dump: Value) -> Self {
        Self(with_snake_case(dump))
    }

    /// The section of the dump whose type has this name at its end.
    fn section(&self, name: &str) -> &Value {
        let sections = self.0["configs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found =
            sections.iter().find(|one| one["@type"].as_str().is_some_and(|kind| kind.ends_with(name)));
        found.unwrap_or(&Value::Null)
    }

    /// The dynamic clusters, by name.
    pub(crate) fn cluster(&self, name: &str) -> Result<&Value> {
        let clusters = self.section(".ClustersConfigDump")["dynamic_active_clusters"].as_array();
        let mut all = clusters.into_iter().flatten().map(|one| &one["cluster"]);
        let names: Vec<_> = all.clone().filter_map(|one| one["name"].as_str()).collect();
        all.find(|one| one["name"] == name).with_context(|| format!("no cluster {name}, but {names:?}"))
    }

    /// The addresses of a cluster's endpoints, `address:port`, in order.
    pub(crate) fn endpoints(&self, cluster: &str) -> Vec<String> {
        let dumped = self.section(".EndpointsConfigDump")["dynamic_endpoint_configs"].as_array();
        let assignments = dumped.into_iter().flatten().map(|one| &one["endpoint_config"]);
        let localities = assignments
            .filter(|one| one["cluster_name"] == cluster)
            .flat_map(|one| one["endpoints"].as_array().into_iter().flatten());
        let mut all: Vec<String> = localities
            .flat_map(|locality| locality["lb_endpoints"].as_array().into_iter().flatten())
            .map(|one| &one["endpoint"]["address"]["socket_address"])
            .map(|at| format!("{}:{}", at["address"].as_str().unwrap_or_default(), at["port_value"]))
            .collect();
        all.sort();
        all
    }

    /// The listeners that are in use, whatever their name.
    pub(crate) fn listeners(&self) -> Vec<&Value> {
        let all = self.section(".ListenersConfigDump")["dynamic_listeners"].as_array();
        all.into_iter().flatten().map(|one| &one["active_state"]["listener"]).collect()
    }

    /// The listener at `address:port`.
    pub(crate) fn listener(&self, address: &str, port: u16) -> Result<&Value> {
        let at = |one: &&Value| {
            let socket = &one["address"]["socket_address"];
            socket["address"] == address && socket["port_value"] == port
        };
        let all: Vec<_> = self.listeners().iter().map(|one| one["name"].clone()).collect();
        self.listeners()
            .into_iter()
            .find(at)
            .with_context(|| format!("no listener at {address}:{port}, but {all:?}"))
    }

    /// What it refused, or could not use, of what istiod sent.
    pub(crate) fn refused(&self) -> Vec<String> {
        let mut refused = Vec::new();
        collect_errors(&self.0, &mut refused);
        refused
    }
}

fn with_snake_case(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().map(|(name, one)| (snake_case(&name), with_snake_case(one))).collect()
        }
        Value::Array(items) => items.into_iter().map(with_snake_case).collect(),
        other => other,
    }
}

/// A name that is no field's (of a map) stays as it is.
fn snake_case(name: &str) -> String {
    if !name.chars().all(|one| one.is_ascii_alphanumeric()) {
        return name.to_owned();
    }
    let mut snake = String::new();
    for one in name.chars() {
        if one.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(one.to_ascii_lowercase());
    }
    snake
}

fn collect_errors(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(error) = fields.get("error_state").filter(|error| !error.is_null()) {
                into.push(format!("{}: {}", fields.get("name").unwrap_or(&Value::Null), error["details"]));
            }
            fields.values().for_each(|one| collect_errors(one, into));
        }
        Value::Array(items) => items.iter().for_each(|one| collect_errors(one, into)),
        _ => {}
    }
}

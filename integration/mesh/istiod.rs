//! A real istiod as a plain process: the program that `ENTENTE_ISTIOD` names, or `istiod` or `pilot-discovery` on PATH.

use crate::kubernetes::{FIELD_MANAGER, documents};
use crate::ports;
use crate::process::{Process, Spec};
use crate::tools::Tools;
use crate::wait::eventually;
use crate::world::Domain;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The root namespace of the mesh, where gateways are too.
pub(crate) const ROOT_NAMESPACE: &str = "istio-system";
const NAMES: [&str; 2] = ["istiod", "pilot-discovery"];
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Stock Envoy lacks the filters that Istio adds to its own build: metadata exchange, and the choice of an ALPN by what a
/// request speaks, for which the cluster's own (`istio`, and `h2` where it is known) stands in. Telemetry has no provider.
const FOR_STOCK_ENVOY: [(&str, &str); 3] = [
    ("PILOT_ENABLE_METADATA_EXCHANGE", "false"),
    ("PILOT_DISABLE_MX_ALPN", "true"),
    ("PILOT_ENABLE_ALPN_FILTER", "false"),
];
/// The ConfigMap that istiod takes the mesh configuration from, and that the agent reads.
const MESH_CONFIG: &str = "istio";

/// The istiod of one cluster. Dropped, it is gone.
pub(crate) struct Istiod {
    process: Process,
    http: SocketAddr,
    xds: SocketAddr,
}

/// Where the program is. That there is none is an error: it is for `integration/run.py` to skip the ring.
pub(crate) fn program() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("ENTENTE_ISTIOD") {
        return Ok(PathBuf::from(named));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).flat_map(|folder| NAMES.map(|name| folder.join(name)));
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .context("neither istiod nor pilot-discovery is on PATH; name one by ENTENTE_ISTIOD")
}

impl Istiod {
    /// Starts it on the domain's cluster with the domain's trust domain, and lets it check every Istio object that is
    /// written there. `trusted` are the foreign trust domains whose certificates sidecars take.
    pub(crate) async fn start(domain: &Domain, trusted: &[&str]) -> Result<Self> {
        let dir = domain.dir().join("i");
        std::fs::create_dir_all(&dir)?;
        domain.kubernetes.namespace(ROOT_NAMESPACE).await?;
        install_crds(domain).await?;
        trust(domain, trusted).await?;
        let (http, https, xds, monitoring) = (ports::free()?, ports::free()?, ports::free()?, ports::free()?);
        // The API server's own certificate is for 127.0.0.1, too.
        let credential = |name: &str| domain.dir().join("k").join(name).display().to_string();
        let args = [
            "discovery".to_owned(),
            format!(
                "--kubeconfig={}",
                domain.kubernetes.agent_kubeconfig().with_file_name("admin.kubeconfig").display()
            ),
            // no such file: it goes by the ConfigMap
            format!("--meshConfig={}", dir.join("none").display()),
            format!("--namespace={ROOT_NAMESPACE}"),
            format!("--httpAddr={http}"),
            format!("--httpsAddr={https}"),
            format!("--grpcAddr={xds}"),
            "--secureGRPCAddr=".to_owned(),
            format!("--monitoringAddr={monitoring}"),
            "--ctrlz_port=0".to_owned(),
            format!("--caCertFile={}", credential("ca.crt")),
            format!("--tlsCertFile={}", credential("server.crt")),
            format!("--tlsKeyFile={}", credential("server.key")),
        ];
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = [
            text("HOME", &dir.display().to_string()),
            text("POD_NAME", "istiod"),
            text("POD_NAMESPACE", ROOT_NAMESPACE),
            text("ENABLE_CA_SERVER", "false"),
            text("PILOT_ENABLE_ANALYSIS", "true"),
        ];
        let stock = FOR_STOCK_ENVOY.map(|(name, value)| text(name, value));
        let mut process = Process::new(Spec {
            name: format!("istiod of {}", domain.trust_domain()),
            program: program()?,
            args: args.into_iter().map(OsString::from).collect(),
            env: env.into_iter().chain(stock).collect(),
            dir: dir.clone(),
            log: dir.join("istiod.log"),
        });
        process.start()?;
        let istiod = Self { process, http, xds };
        istiod.ready().await.with_context(|| istiod.process.log_tail())?;
        istiod.checks_objects(domain, https, &credential("ca.crt")).await?;
        Ok(istiod)
    }

    async fn ready(&self) -> Result<()> {
        let what = format!("{} is ready", self.process.name());
        eventually(&what, READY_DEADLINE, || async {
            match crate::http::get(self.http, "/ready").await? {
                (200, _) => Ok(()),
                (status, body) => bail!("/ready: {status}: {body}"),
            }
        })
        .await
    }

    /// Has the API server ask istiod about every object of Istio's, as an installed mesh does, and refuse what it refuses;
    /// returns once a bad one is refused.
    async fn checks_objects(&self, domain: &Domain, https: SocketAddr, ca: &str) -> Result<()> {
        let bundle = STANDARD.encode(std::fs::read(ca)?);
        let webhook = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "istio-validator"},
            "webhooks": [{
                "name": "validation.istio.io",
                "clientConfig": {"url": format!("https://{https}/validate"), "caBundle": bundle},
                "rules": [{
                    "apiGroups": ["networking.istio.io", "security.istio.io"],
                    "apiVersions": ["*"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": ["*"],
                }],
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }],
        });
        domain.kubernetes.apply(&webhook).await?;
        // The schema of the CRD has nothing against it: STATIC with a name as address.
        let bad: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {"name": "bad"},
            "spec": {
                "hosts": ["bad.example"],
                "resolution": "STATIC",
                "ports": [{"number": 1, "name": "tcp", "protocol": "TCP"}],
                "endpoints": [{"address": "not.an.address.example"}],
            },
        }))?;
        let api = domain.kubernetes.api("networking.istio.io/v1", "ServiceEntry", Some("default")).await?;
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        eventually("istiod refuses a bad object", READY_DEADLINE, || async {
            match api.create(&dry, &bad).await {
                Ok(_) => bail!("it was taken"),
                Err(error) => {
                    ensure!(error.to_string().contains("validation.istio.io"), "refused otherwise: {error}");
                    ensure!(
                        error.to_string().contains("not.an.address.example"),
                        "refused otherwise: {error}"
                    );
                    Ok(())
                }
            }
        })
        .await
    }

    /// Where proxies get their configuration.
    pub(crate) const fn xds(&self) -> SocketAddr {
        self.xds
    }

    /// One of its debug pages, e.g. `/debug/syncz`.
    pub(crate) async fn debug(&self, path: &str) -> Result<Value> {
        let (status, body) = crate::http::get(self.http, path).await?;
        ensure!(status == 200, "{path}: {status}: {body}");
        serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

/// Writes the mesh configuration of a domain: `trusted` are the foreign trust domains whose certificates sidecars take.
pub(crate) async fn trust(domain: &Domain, trusted: &[&str]) -> Result<()> {
    let ca = if trusted.is_empty() { json!([]) } else { json!([{"trustDomains": trusted}]) };
    let mesh = json!({
        "trustDomain": domain.trust_domain().to_string(),
        "rootNamespace": ROOT_NAMESPACE,
        "caCertificates": ca,
        "defaultProviders": {},
        "defaultConfig": {"interceptionMode": "NONE"},
    });
    domain
        .kubernetes
        .apply(&json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": MESH_CONFIG, "namespace": ROOT_NAMESPACE},
            "data": {"mesh": serde_json::to_string_pretty(&mesh)?},
        }))
        .await?;
    Ok(())
}

/// All kinds of Istio's: the cluster ring installs only those that the agent knows.
async fn install_crds(domain: &Domain) -> Result<()> {
    for file in Tools::get()?.files("crds-istio") {
        for crd in documents(&std::fs::read_to_string(file)?)? {
            let name = crd.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let api = Api::<CustomResourceDefinition>::all(domain.kubernetes.client.clone());
            if api.get_opt(name).await?.is_none() {
                api.patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&crd)).await?;
            }
        }
    }
    eventually("Sidecar is served", READY_DEADLINE, || async {
        let api = domain.kubernetes.api("networking.istio.io/v1", "Sidecar", Some("default")).await?;
        api.list(&ListParams::default()).await?;
        Ok(())
    })
    .await
}

/// Writes the status of an object, as a kubelet does of a Pod.
pub(crate) async fn set_status(domain: &Domain, object: &Value) -> Result<()> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let api =
        domain.kubernetes.api(text("/apiVersion"), text("/kind"), Some(text("/metadata/namespace"))).await?;
    let status = json!({"status": object["status"]});
    api.patch_status(text("/metadata/name"), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

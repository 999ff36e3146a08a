//! The real CRDs: those of spire-controller-manager and Istio from their own modules, ours from our own program.

use crate::tools::Tools;
use crate::wait::eventually;
use anyhow::{Context, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// The Istio kinds that the agent writes or reads; the file has all of them.
const ISTIO: [&str; 7] = [
    "authorizationpolicies.security.istio.io",
    "destinationrules.networking.istio.io",
    "gateways.networking.istio.io",
    "peerauthentications.security.istio.io",
    "serviceentries.networking.istio.io",
    "virtualservices.networking.istio.io",
    "workloadentries.networking.istio.io",
];
const ESTABLISHED_DEADLINE: Duration = Duration::from_secs(180);

fn name_of(crd: &Value) -> &str {
    crd.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

fn of_files(prefix: &str) -> Result<Vec<Value>> {
    let mut crds = Vec::new();
    for path in Tools::get()?.files(prefix) {
        let text = std::fs::read_to_string(path)?;
        crds.extend(crate::kubernetes::documents(&text).with_context(|| path.display().to_string())?);
    }
    Ok(crds)
}

/// What `entente crds` prints.
fn ours() -> Result<Vec<Value>> {
    let output = Command::new(env!("CARGO_BIN_EXE_entente")).arg("crds").output()?;
    if !output.status.success() {
        bail!("`entente crds` failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    crate::kubernetes::documents(&String::from_utf8(output.stdout)?)
}

/// Applies all CRDs at once and waits until the API server serves them.
pub(crate) async fn install(client: &kube::Client) -> Result<()> {
    let istio: Vec<Value> =
        of_files("crds-istio")?.into_iter().filter(|crd| ISTIO.contains(&name_of(crd))).collect();
    if istio.len() != ISTIO.len() {
        bail!("the CRD file of Istio has only {:?}", istio.iter().map(name_of).collect::<Vec<_>>());
    }
    put(client, [of_files("crds-spire")?, istio, ours()?].concat()).await
}

/// Waits until an API server that was started on these CRDs serves a kind of each group.
pub(crate) async fn served(kubernetes: &crate::kubernetes::Kubernetes) -> Result<()> {
    let kinds = [
        ("entente.dev/v1alpha1", "TrustDomainPeer"),
        ("networking.istio.io/v1", "ServiceEntry"),
        ("security.istio.io/v1", "AuthorizationPolicy"),
        ("spire.spiffe.io/v1alpha1", "ClusterFederatedTrustDomain"),
    ];
    for (api_version, kind) in kinds {
        eventually(&format!("{kind} is served"), ESTABLISHED_DEADLINE, || async {
            kubernetes.api(api_version, kind, None).await?.list(&ListParams::default().limit(1)).await?;
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Applies the CRDs of what watches: ServiceMonitor and PrometheusRule. Their names.
pub(crate) async fn install_monitoring(kubernetes: &crate::kubernetes::Kubernetes) -> Result<Vec<String>> {
    let crds = of_files("crds-monitoring")?;
    let names = crds.iter().map(|crd| name_of(crd).to_owned()).collect();
    put(&kubernetes.client, crds).await?;
    Ok(names)
}

/// Applies the CRDs of what gives load balancers their addresses in the kind clusters.
pub(crate) async fn install_load_balancers(kubernetes: &crate::kubernetes::Kubernetes) -> Result<()> {
    put(&kubernetes.client, of_files("crds-metallb")?).await
}

/// Applies cert-manager's CRDs: Issuers, Certificates, and CertificateRequests, which are what SPIRE's plugin asks it by.
pub(crate) async fn install_cert_manager(kubernetes: &crate::kubernetes::Kubernetes) -> Result<()> {
    put(&kubernetes.client, of_files("crds-cert-manager")?).await
}

async fn put(client: &kube::Client, crds: Vec<Value>) -> Result<()> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let one = |crd: Value| {
        let api = api.clone();
        async move {
            let name = name_of(&crd).to_owned();
            let params = PatchParams::apply(crate::kubernetes::FIELD_MANAGER);
            api.patch(&name, &params, &Patch::Apply(&crd))
                .await
                .with_context(|| format!("applying CRD {name}"))?;
            eventually(&format!("CRD {name} is established"), ESTABLISHED_DEADLINE, || {
                established(&api, &name)
            })
            .await
        }
    };
    futures::future::try_join_all(crds.into_iter().map(one)).await?;
    Ok(())
}

async fn established(api: &Api<CustomResourceDefinition>, name: &str) -> Result<()> {
    let conditions = api.get(name).await?.status.and_then(|status| status.conditions).unwrap_or_default();
    let is =
        |kind: &str| conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True");
    if is("Established") && is("NamesAccepted") {
        return Ok(());
    }
    bail!("conditions: {conditions:?}")
}

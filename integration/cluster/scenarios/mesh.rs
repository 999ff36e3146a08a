//! The mesh of the cluster, as Kubernetes shows it: each fault is named within seconds with the setting to change, and gone
//! once it is mended; and `IstioMtls` is not exported by workloads that are not on SPIRE.

use super::services::{HOST, cart, exported};
use super::{
    Agents, GATEWAY, POLICY, READY, SERVICE, SERVICE_ENTRY, SOON, TIMING, condition, delete, federated,
    found, gone, peer_says, quick,
};
use crate::agent::{Agent, AgentOptions};
use crate::kubernetes::AGENT_USER;
use crate::pair::with_pair;
use crate::wait::{always, eventually};
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const ROOT: &str = "istio-system";
const CONFIG_MAP: (&str, &str) = ("v1", "ConfigMap");
const DEPLOYMENT: (&str, &str) = ("apps/v1", "Deployment");
const POD: (&str, &str) = ("v1", "Pod");
const SHOP: Option<&str> = Some("shop");
/// A watch, a plan and a status.
const SECONDS: Duration = Duration::from_secs(5);

fn config_map(namespace: &str, name: &str, key: &str, text: &str) -> Value {
    let mut object = json!({
        "apiVersion": CONFIG_MAP.0,
        "kind": CONFIG_MAP.1,
        "metadata": {"name": name, "namespace": namespace},
        "data": {},
    });
    object["data"][key] = json!(text);
    object
}

/// The mesh configuration, in the form in which Istio's chart writes it.
fn mesh(more: &str) -> Value {
    config_map(
        ROOT,
        "istio",
        "mesh",
        &format!(
            "defaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\ntrustDomain: west.example\n{more}"
        ),
    )
}

const TAKES_EAST: &str = "caCertificates:\n- trustDomains: [east.example]\n";

fn istiod(env: Value) -> Value {
    let labels = json!({"app": "istiod", "istio.io/rev": "default", "app.kubernetes.io/version": "1.30.2"});
    let container = json!({"name": "discovery", "image": "none.example/pilot:1.30.2", "env": env});
    json!({
        "apiVersion": DEPLOYMENT.0,
        "kind": DEPLOYMENT.1,
        "metadata": {"name": "istiod", "namespace": ROOT, "labels": labels},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "istiod"}},
            "template": {"metadata": {"labels": {"app": "istiod"}}, "spec": {"containers": [container]}},
        },
    })
}

fn spire_agent(own: &str, all: &str) -> Value {
    let sds = format!("    default_bundle_name = \"{own}\"\n    default_all_bundles_name = \"{all}\"");
    config_map("spire", "spire-agent", "agent.conf", &format!("agent {{\n  sds {{\n{sds}\n  }}\n}}\n"))
}

/// A Gateway or a policy of someone else.
fn theirs((api_version, kind): (&str, &str), namespace: &str, spec: Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "theirs", "namespace": namespace}, "spec": spec})
}

/// West is told this of its mesh, and says it soon, with this in its message.
async fn said(west: &Domain, east: &Domain, change: &Value, says: (&str, &str, &str)) -> Result<()> {
    let since = Instant::now();
    west.kubernetes.apply(change).await?;
    let message = peer_says(west, east, "MeshReady", says.0, says.1).await?;
    let took = since.elapsed();
    eprintln!("{}: said after {took:.1?}: {message}", says.1);
    ensure!(took < SECONDS, "{} only after {took:?}", says.1);
    ensure!(message.contains(says.2), "{}: it does not say {:?}: {message}", says.1, says.2);
    Ok(())
}

/// Each fault by an edit of a real object, one after the other, and nothing left once they are mended.
#[test]
fn each_fault_of_the_mesh_is_named_and_heals() {
    with_pair(async |pair| {
        let agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        exported(east, west).await?;
        for namespace in [ROOT, "spire"] {
            west.kubernetes.namespace(namespace).await?;
        }
        let wait = peer_says(west, east, "MeshReady", "Unknown", "NoMeshConfig").await?;
        ensure!(wait.contains("--istio-namespace"), "{wait}");
        breaking(&agents, west, east).await?;
        dangerous(west, east).await?;
        let (_, metrics) = agents.west.get("/metrics").await?;
        let gauge =
            "entente_peer_condition{trust_domain=\"east.example\",type=\"MeshReady\",status=\"True\"} 1";
        ensure!(metrics.contains(gauge), "{metrics}");
        let writes = || async { Ok::<_, anyhow::Error>(others_than_leases(west)?.len()) };
        let before = eventually_still(&writes).await?;
        always("a settled mesh writes nothing", SECONDS, || async {
            ensure!(others_than_leases(west)?.len() == before, "{:?}", others_than_leases(west)?.last());
            Ok(())
        })
        .await?;
        for (kind, namespace, name) in
            [(CONFIG_MAP, ROOT, "istio"), (CONFIG_MAP, "spire", "spire-agent"), (DEPLOYMENT, ROOT, "istiod")]
        {
            delete(west, kind, Some(namespace), name).await?;
        }
        peer_says(west, east, "MeshReady", "Unknown", "NoMeshConfig").await.map(drop)
    });
}

/// What keeps services from working is in Ready, and is the link that the command names.
async fn breaking(agents: &Agents, west: &Domain, east: &Domain) -> Result<()> {
    let lacks = ("False", "PeerNotInCaCertificates", "caCertificates: [{trustDomains: [east.example]}]");
    said(west, east, &mesh(""), lacks).await?;
    peer_says(west, east, "Ready", "False", "MeshNotReady").await?;
    names(&agents.west, "caCertificates: [{trustDomains: [east.example]}]").await?;
    said(west, east, &mesh(TAKES_EAST), ("True", "NotAllSeen", "app=istiod")).await?;
    peer_says(west, east, "Ready", "True", "Ready").await?;
    said(west, east, &istiod(json!([])), ("True", "Configured", "istio-system/istio")).await?;
    let alone = ("False", "SdsNamesNotIstios", "default_all_bundles_name = \"ROOTCA\"");
    said(west, east, &spire_agent("ROOTCA", "ALL"), alone).await?;
    said(west, east, &spire_agent("null", "ROOTCA"), ("True", "Configured", "")).await?;
    said(west, east, &mesh("a: [b"), ("Unknown", "MeshConfigUnreadable", "no YAML")).await?;
    peer_says(west, east, "Ready", "True", "Ready").await?;
    said(west, east, &mesh(TAKES_EAST), ("True", "Configured", "")).await
}

/// What is only open wider than it need be is no part of Ready.
async fn dangerous(west: &Domain, east: &Domain) -> Result<()> {
    let well = ("True", "Configured", "");
    let alias = mesh(&format!("{TAKES_EAST}trustDomainAliases: [east.example]\n"));
    said(west, east, &alias, ("False", "PeerInTrustDomainAliases", "out of trustDomainAliases")).await?;
    said(west, east, &mesh(TAKES_EAST), well).await?;
    let skips = istiod(json!([{"name": "PILOT_SKIP_VALIDATE_TRUST_DOMAIN", "value": "true"}]));
    said(west, east, &skips, ("False", "TrustDomainsNotValidated", "Deployment istio-system/istiod")).await?;
    said(west, east, &istiod(json!([])), well).await?;
    let everything = json!({
        "selector": {"istio": "eastwestgateway"},
        "servers": [{
            "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
            "hosts": ["*.local"],
            "tls": {"mode": "AUTO_PASSTHROUGH"},
        }],
    });
    let exposes = ("False", "GatewayExposesAll", "Gateway istio-system/theirs (*.local)");
    said(west, east, &theirs(GATEWAY, ROOT, everything), exposes).await?;
    peer_says(west, east, "Ready", "True", "Ready").await?;
    delete(west, GATEWAY, Some(ROOT), "theirs").await?;
    peer_says(west, east, "MeshReady", "True", "Configured").await?;
    let allow = json!({"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]});
    let matches = ("True", "AllowMatchesAnyTrustDomain", "AuthorizationPolicy shop/theirs");
    said(west, east, &theirs(POLICY, "shop", allow), matches).await?;
    delete(west, POLICY, SHOP, "theirs").await?;
    peer_says(west, east, "MeshReady", "True", "Configured").await.map(drop)
}

async fn names(agent: &Agent, remedy: &str) -> Result<()> {
    eventually("the command names the mesh", SOON, || async {
        let (code, printed, error) = agent.command(&["diagnose", "-o", "json", "east.example"]).await?;
        let printed: Value = serde_json::from_str(&printed).with_context(|| format!("{printed}{error}"))?;
        let broken = &printed["broken"];
        let is = (code, broken["step"].as_str(), broken["side"].as_str());
        ensure!(is == (1, Some("mesh"), Some("ours")), "{is:?}\n{printed:#}");
        ensure!(broken["remedy"].as_str().is_some_and(|says| says.contains(remedy)), "{broken:#}");
        Ok(())
    })
    .await
}

fn others_than_leases(domain: &Domain) -> Result<Vec<String>> {
    let writes = domain.kubernetes.writes_of(AGENT_USER)?;
    let writes = writes.iter().filter(|write| write.resource != "leases");
    Ok(writes.map(|write| format!("{write:?}")).collect())
}

/// The number, once it has stood still for a while.
async fn eventually_still<F: Future<Output = Result<usize>>>(count: &impl Fn() -> F) -> Result<usize> {
    eventually("no more is written", SOON, || async {
        let before = count().await?;
        always("it is the same", Duration::from_secs(2), || async {
            ensure!(count().await? == before, "one more");
            Ok(())
        })
        .await?;
        Ok(before)
    })
    .await
}

fn pod(name: &str, volume: &Value) -> Value {
    let mount = json!({"name": "workload-socket", "mountPath": "/run/secrets/workload-spiffe-uds"});
    json!({
        "apiVersion": POD.0,
        "kind": POD.1,
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "cart"}},
        "spec": {
            "containers": [
                {"name": "main", "image": "none.example/none"},
                {"name": "istio-proxy", "image": "none.example/none", "volumeMounts": [mount]},
            ],
            "volumes": [volume],
        },
    })
}

/// Pods whose sidecars have Istio's own certificates are not exported, and are once they have SPIRE's; without a pod, what
/// is exported stays.
#[test]
fn istio_mtls_is_refused_where_the_meshs_certificates_are_not_spires() {
    with_pair(async |pair| {
        let _agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        exported(east, west).await?;
        let of_istio = json!({"name": "workload-socket", "emptyDir": {}});
        let of_spire =
            json!({"name": "workload-socket", "csi": {"driver": "csi.spiffe.io", "readOnly": true}});
        west.kubernetes.apply(&pod("of-istio", &of_istio)).await?;
        let why = service_says(west, "False", "MeshNotOnSpire").await?;
        ensure!(why.contains("csi.spiffe.io"), "{why}");
        gone(east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), HOST).await?;
        gone(west, GATEWAY, SHOP, "cart-eastwestgateway").await?;
        let policies = west.kubernetes.api(POLICY.0, POLICY.1, SHOP).await?;
        ensure!(policies.list(&Default::default()).await?.items.len() == 1, "the workload is open");

        west.kubernetes.apply(&pod("of-spire", &of_spire)).await?;
        service_says(west, "True", "Exported").await?;
        eventually("east has it again", SOON, || found(east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), HOST))
            .await?;
        for name in ["of-istio", "of-spire"] {
            west.kubernetes.api(POD.0, POD.1, SHOP).await?.delete(name, &at_once()).await?;
        }
        always("without pods it stays", SECONDS, || async {
            found(east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), HOST).await.map(drop)
        })
        .await
    });
}

/// Nothing runs that would end a pod in order.
fn at_once() -> kube::api::DeleteParams {
    kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() }
}

async fn service_says(west: &Domain, status: &str, reason: &str) -> Result<String> {
    eventually(&format!("cart says Exported={status}, {reason}"), SOON, || async {
        let said = condition(&found(west, SERVICE, SHOP, "cart").await?, "Exported")?;
        ensure!(said.0 == status && said.1 == reason, "{said:?}");
        Ok(said.2)
    })
    .await
}

/// An agent that may not read the mesh configuration says so, and does all else.
#[test]
fn a_mesh_that_may_not_be_read_is_said_to_be_so() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        west.kubernetes.namespace(ROOT).await?;
        west.kubernetes.apply(&mesh(TAKES_EAST)).await?;
        let kubeconfig = narrow(west).await?;
        let options = AgentOptions {
            kubeconfig: Some(kubeconfig),
            args: TIMING.map(str::to_owned).to_vec(),
            ..AgentOptions::default()
        };
        let mut agents = Agents { east: Agent::start(east, quick())?, west: Agent::start(west, options)? };
        tokio::try_join!(agents.east.ready(READY), agents.west.ready(READY))?;
        super::make_peers(pair).await?;
        super::both_ready(pair).await?;
        west.kubernetes.namespace("shop").await?;
        west.kubernetes.apply(&cart()).await?;
        service_says(west, "True", "Exported").await?;
        let message = peer_says(west, east, "MeshReady", "Unknown", "MeshConfigUnreadable").await?;
        ensure!(message.contains("get, list and watch configmaps"), "{message}");
        // Ready waits for the services to be known, and not for the mesh.
        peer_says(west, east, "Ready", "True", "Ready").await?;
        delete(west, CONFIG_MAP, Some(ROOT), "istio").await
    });
}

/// A service account that may do all that the agent does, but read ConfigMaps and Deployments.
async fn narrow(domain: &Domain) -> Result<std::path::PathBuf> {
    let rules = json!([
        {
            "apiGroups": ["entente.dev", "spire.spiffe.io", "networking.istio.io", "security.istio.io",
                          "coordination.k8s.io", "events.k8s.io"],
            "resources": ["*"],
            "verbs": ["*"],
        },
        {"apiGroups": [""], "resources": ["namespaces", "services", "pods", "events", "secrets"], "verbs": ["*"]},
    ]);
    let role = "rbac.authorization.k8s.io";
    let metadata = json!({"name": "entente-narrow"});
    let subject = json!({"kind": "ServiceAccount", "name": "narrow", "namespace": AGENT_NAMESPACE});
    let kubeconfig = domain.kubernetes.service_account_kubeconfig(AGENT_NAMESPACE, "narrow").await?;
    domain
        .kubernetes
        .apply(&json!({"apiVersion": format!("{role}/v1"), "kind": "ClusterRole", "metadata": metadata, "rules": rules}))
        .await?;
    domain
        .kubernetes
        .apply(&json!({
            "apiVersion": format!("{role}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": role, "kind": "ClusterRole", "name": "entente-narrow"},
            "subjects": [subject],
        }))
        .await?;
    Ok(kubeconfig)
}

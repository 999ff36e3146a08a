//! The Helm chart on real API servers: what it installs federates two domains with the rights that it grants, all of which are
//! used; and upgrades and uninstalls leave what they should.

use super::services::{HOST, cart, service_says};
use super::trio::{everything, kinds};
use super::{
    GATEWAY, IMPORTED, PEER, POLICY, READY, SERVICE, SERVICE_ENTRY, SOON, both_ready, condition, delete,
    federates, found, gone, merge, spire_holds,
};
use crate::agent::Agent;
use crate::chart::{RELEASE, helm, install, start_pod};
use crate::pair::{Pair, with_pair, with_spent_pair};
use crate::ports;
use crate::rights::{forbidden, granted, unused};
use crate::sni::ByName;
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain, Options};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

const AGENT: Option<&str> = Some(AGENT_NAMESPACE);
const SHOP: Option<&str> = Some("shop");
const ISTIO: Option<&str> = Some("istio-system");
/// The one policy of `istio.fence`.
const FENCE: &str = "entente-fence";
const WEB: &str = "web.shop.west.example";
const ACCOUNT: &str = "system:serviceaccount:entente-system:entente";
const CRD: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
const SPIFFE_ID: (&str, &str) = ("spire.spiffe.io/v1alpha1", "ClusterSPIFFEID");
const ROUTES: (&str, &str) = ("networking.istio.io/v1", "VirtualService");
const DESTINATION: (&str, &str) = ("networking.istio.io/v1", "DestinationRule");
const PEER_AUTHENTICATION: (&str, &str) = ("security.istio.io/v1", "PeerAuthentication");
const RULE: (&str, &str) = ("entente.dev/v1alpha1", "ServiceExportRule");
const LEASE: (&str, &str) = ("coordination.k8s.io/v1", "Lease");
/// An equal event is counted up no sooner than this.
const REPEATED: Duration = Duration::from_secs(31);

/// What differs from the chart's own values in these domains: ports that no other domain of this machine has, and short times. In
/// east SPIRE is reached as SPIRE's Helm charts have it, by the CSI driver and over TCP; in west by sockets of the node.
pub(super) fn values(domain: &Domain) -> Result<Value> {
    let file = |path: &std::path::Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let dir = domain.spire.agent_socket().parent().context("no folder")?;
    let socket = file(domain.spire.agent_socket());
    let spire = if domain.trust_domain().as_str() == "east.example" {
        json!({
            "workloadApi": {"socket": socket},
            "server": {"addresses": [domain.spire.server_address().to_string()]},
        })
    } else {
        json!({
            "workloadApi": {"type": "hostPath", "hostPath": dir, "socket": socket},
            "server": {"hostPath": dir, "socket": file(domain.spire.server_socket())},
        })
    };
    Ok(json!({
        "log": {"level": "info,entente=debug", "json": false},
        "spire": spire,
        "peer": {"port": domain.agent_address().port(), "advertise": [domain.agent_address().to_string()]},
        "replicas": 1,
        "relay": {"port": ports::free()?.port()},
        "admin": {"port": domain.agent_admin_address().port()},
        "bundleEndpoint": {"url": domain.bundle_endpoint_url()},
        "rbac": {"bootstrapSecrets": ["bootstrap"]},
        "timing": {
            "drain": 2, "agentFollow": 2, "bundlePollMin": 1, "bundlePollMax": 2, "spirePoll": 4, "dialMin": 1, "dialMax": 2,
            "lease": 3,
        },
    }))
}

/// A cluster without anything of ours: the chart brings the CustomResourceDefinitions. Pods in east's namespace of the agent must be
/// `restricted`.
pub(super) async fn prepare(domain: &Domain) -> Result<()> {
    for namespace in ["istio-system", "shop", "web"] {
        domain.kubernetes.namespace(namespace).await?;
    }
    let crds = domain.kubernetes.api(CRD.0, CRD.1, None).await?;
    for crd in ours(domain).await? {
        crds.delete(&crd, &DeleteParams::default()).await?;
        gone(domain, CRD, None, &crd).await?;
    }
    if domain.trust_domain().as_str() == "east.example" {
        let restricted =
            json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
        merge(domain, ("v1", "Namespace"), None, AGENT_NAMESPACE, restricted).await?;
        domain.register_agent_as_admin().await?;
    }
    Ok(())
}

/// The names of our CustomResourceDefinitions that are there.
async fn ours(domain: &Domain) -> Result<Vec<String>> {
    let crds = domain.kubernetes.api(CRD.0, CRD.1, None).await?.list(&ListParams::default()).await?;
    let names = crds.into_iter().filter_map(|crd| crd.metadata.name);
    Ok(names.filter(|name| name.ends_with(".entente.dev")).collect())
}

/// Everything that is there by name, but what Kubernetes itself makes for a namespace in its own time.
async fn names(domain: &Domain) -> Result<BTreeSet<String>> {
    let all = everything(domain, &kinds(domain).await?).await?.into_keys();
    Ok(all.filter(|name| !(name.starts_with("ServiceAccount ") && name.ends_with("/default"))).collect())
}

/// Two domains whose agents Helm installed: an invite and a join make them peers, services go over, and all that was asked for
/// is taken back; no right was missing, and none is too much. Upgrades keep what the agent wrote into the release's objects. What
/// an uninstall leaves is the CustomResourceDefinitions and the leader's Lease.
#[test]
fn a_release_federates_with_the_rights_that_it_grants() {
    with_spent_pair(Options::default(), Options::default(), async |pair| {
        tokio::try_join!(prepare(&pair.east), prepare(&pair.west))?;
        let before = (names(&pair.east).await?, names(&pair.west).await?);
        let notes = tokio::try_join!(put(&pair.east), put(&pair.west))?.0;
        ensure!(
            notes.contains("entente invite -n entente-system --trust-domain"),
            "the notes do not lead on: {notes}"
        );
        let mut agents =
            [start_pod(&pair.east, "entente-0").await?, start_pod(&pair.west, "entente-0").await?];
        for agent in &mut agents {
            agent.ready(READY).await?;
        }
        let since = federate(pair, &agents).await?;
        tokio::try_join!(granted_to_its_namespace(&pair.east), granted_to_its_namespace(&pair.west))?;
        use_services(pair, &agents).await?;
        upgrade(&pair.east, &mut agents[0]).await?;
        both_ready(pair).await?;
        tokio::time::sleep_until(since + REPEATED).await;
        refuse_and_admit(pair).await?;
        end(pair).await?;
        only_what_is_needed(pair).await?;
        without_fence(&pair.east, &mut agents[0]).await?;
        without_istio(&pair.east, &mut agents[0]).await?;
        for agent in &mut agents {
            ensure!(agent.stop().await? == 0, "an agent ended badly: {}", agent.process.log_tail());
        }
        uninstall(&pair.east, &before.0).await?;
        uninstall(&pair.west, &before.1).await
    });
}

async fn put(domain: &Domain) -> Result<String> {
    install(domain, &values(domain)?).await
}

/// Invite and join, as the notes say: where we are reached and our bundle is, the chart's values tell. When the first event was
/// written that is to come again.
async fn federate(pair: &Pair, agents: &[Agent; 2]) -> Result<Instant> {
    let (east, west) = (&pair.east, &pair.west);
    let (code, token, said) = agents[0].command(&["invite", "--trust-domain", "west.example"]).await?;
    ensure!(code == 0, "invite: {said}");
    let (code, _, said) = agents[1].command(&["join", token.trim()]).await?;
    ensure!(code == 0, "join: {said}");
    both_ready(pair).await?;
    for (here, there) in [(east, west), (west, east)] {
        spire_holds(here, there).await?;
        ensure!(federates(here, &here.agent_id(), there).await?, "the agent's entry does not federate");
        let name = there.trust_domain().to_string();
        let own = found(here, SPIFFE_ID, None, "entente-system-entente").await?;
        ensure!(own.data["spec"]["federatesWith"] == json!([name]), "{}", own.data["spec"]);
    }
    let admitted = json!({"spec": {"imports": {"services": [{"namespace": "*", "name": "*"}]}}});
    merge(east, PEER, None, "west.example", admitted).await?;
    west.kubernetes.apply(&cart()).await?;
    eventually("east has the ServiceEntry", SOON, || found(east, SERVICE_ENTRY, AGENT, HOST)).await?;
    let since = Instant::now();
    refuse_and_admit(pair).await?;
    Ok(since)
}

/// East lets the service in no more, and then again: west says both in events.
async fn refuse_and_admit(pair: &Pair) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    let only =
        |namespace: &str| json!({"spec": {"imports": {"services": [{"namespace": namespace, "name": "*"}]}}});
    merge(east, PEER, None, "west.example", only("other")).await?;
    service_says(west, "Exported", "False", "RefusedByPeer").await?;
    gone(east, SERVICE_ENTRY, AGENT, HOST).await?;
    merge(east, PEER, None, "west.example", only("*")).await?;
    service_says(west, "Exported", "True", "Exported").await
}

/// Bundles to begin with are read where TrustDomainPeers name them.
async fn granted_to_its_namespace(domain: &Domain) -> Result<()> {
    let there =
        if domain.trust_domain().as_str() == "east.example" { "west.example" } else { "east.example" };
    let peer = found(domain, PEER, None, there).await?;
    let bundle = peer.data["spec"]["bootstrapBundle"]["inline"].as_str().context("it has no bundle")?;
    for (kind, field) in [("ConfigMap", "data"), ("Secret", "stringData")] {
        let mut holder = json!({
            "apiVersion": "v1", "kind": kind, "metadata": {"name": "bootstrap", "namespace": AGENT_NAMESPACE},
        });
        holder[field] = json!({"bundle.json": bundle});
        domain.kubernetes.apply(&holder).await?;
    }
    let of = json!({"name": "bootstrap", "key": "bundle.json"});
    let kind = if there == "west.example" { "ConfigMap" } else { "Secret" };
    let field = if kind == "Secret" { "secretKeyRef" } else { "configMapKeyRef" };
    let mut change = json!({"inline": null});
    change[field] = of;
    merge(domain, PEER, None, there, json!({"spec": {"bootstrapBundle": change}})).await?;
    let was_read = || async {
        let requests = domain.kubernetes.requests_of(ACCOUNT)?;
        let is = |resource: &str| {
            requests.iter().any(|it| it.resource == resource && it.name == "bootstrap" && it.code == 200)
        };
        ensure!(is(&format!("{}s", kind.to_lowercase())), "the {kind} is not read");
        Ok(())
    };
    eventually("the bundle is read", SOON, was_read).await
}

/// A service whose application ends TLS, behind a sidecar; and a rule that selects nothing.
async fn use_services(pair: &Pair, agents: &[Agent; 2]) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    west.kubernetes.apply(&pod_with_sidecar()).await?;
    west.kubernetes
        .apply(&json!({
            "apiVersion": SERVICE.0,
            "kind": SERVICE.1,
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "workloadLabels": {"app": "web"},
                "ports": [{"name": "web", "port": 80, "targetPort": 8443, "appProtocol": "http"}],
                "tlsMode": "Mtls",
                "exportedTrustDomains": ["east.example"],
                "clients": {"spiffeIDs": ["spiffe://east.example/ns/web/sa/frontend"]},
                "serverSPIFFEIDs": ["spiffe://west.example/ns/shop/sa/web"],
                "gateways": [{"type": "istio-ingressgateway", "port": 443, "ip": "10.77.2.3"}],
            },
        }))
        .await?;
    west.kubernetes
        .apply(&json!({
            "apiVersion": RULE.0,
            "kind": RULE.1,
            "metadata": {"name": "none"},
            "spec": {
                "serviceSelector": {"matchLabels": {"export": "yes"}},
                "exportedTrustDomains": ["east.example"],
                "tlsMode": "IstioMtls",
                "clients": {"spiffeIDs": ["spiffe://east.example/ns/web/sa/frontend"]},
            },
        }))
        .await?;
    for kind in [SERVICE_ENTRY, DESTINATION] {
        eventually(&format!("east has the {}", kind.1), SOON, || found(east, kind, AGENT, WEB)).await?;
    }
    for kind in [ROUTES, PEER_AUTHENTICATION, POLICY, GATEWAY] {
        eventually(&format!("west has a {}", kind.1), SOON, || async {
            let all = west.kubernetes.api(kind.0, kind.1, SHOP).await?.list(&ListParams::default()).await?;
            ensure!(!all.items.is_empty(), "none");
            Ok(())
        })
        .await?;
    }
    eventually("the rule has a status", SOON, || async {
        condition(&found(west, RULE, None, "none").await?, "Accepted")
    })
    .await?;
    let (code, printed, said) = agents[1].command(&["rotate", "x509", "--dry-run"]).await?;
    ensure!(code == 0, "rotate: {printed}{said}");
    Ok(())
}

fn pod_with_sidecar() -> Value {
    let mount = json!({"name": "workload-socket", "mountPath": "/run/secrets/workload-spiffe-uds"});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {"name": "main", "image": "none.example/none"},
                {"name": "istio-proxy", "image": "none.example/none", "volumeMounts": [mount]},
            ],
            "volumes": [{"name": "workload-socket", "csi": {"driver": "csi.spiffe.io", "readOnly": true}}],
        },
    })
}

/// Other values: the Deployment follows them, and what the agent wrote into objects of the release is as it was. The pod is
/// replaced as a rolling update does it.
async fn upgrade(east: &Domain, agent: &mut Agent) -> Result<()> {
    let kept = || async {
        let own = found(east, SPIFFE_ID, None, "entente-system-entente").await?;
        let invites = found(east, ("v1", "Secret"), AGENT, "entente-invites").await?;
        anyhow::Ok((own.data["spec"]["federatesWith"].clone(), invites.data["data"].clone()))
    };
    let (code, token, said) = agent.command(&["invite", "--trust-domain", "north.example"]).await?;
    ensure!(code == 0 && !token.is_empty(), "invite: {said}");
    let before = kept().await?;
    ensure!(
        before.0 == json!(["west.example"]) && before.1.as_object().is_some_and(|all| all.len() == 1),
        "{before:?}"
    );
    let mut values = values(east)?;
    values["replicas"] = json!(2);
    values["podAnnotations"] = json!({"changed": "yes"});
    values["istio"] = json!({"fence": true});
    values["dns"] = json!({"enabled": true, "port": ports::free()?.port()});
    install(east, &values).await?;
    dns_is_led_to_the_pods(east).await?;
    ensure!(kept().await? == before, "the upgrade wrote over what is the agent's");
    found(east, ("policy/v1", "PodDisruptionBudget"), AGENT, RELEASE).await?;
    ensure!(agent.stop().await? == 0, "the agent ended badly");
    *agent = start_pod(east, "entente-1").await?;
    agent.ready(READY).await?;
    eventually("the fence stands", SOON, || found(east, POLICY, ISTIO, FENCE)).await?;
    Ok(())
}

/// The fence is of no peer and no export: it goes by its own setting, while there is someone to take it away.
async fn without_fence(east: &Domain, agent: &mut Agent) -> Result<()> {
    found(east, POLICY, ISTIO, FENCE).await?;
    ensure!(agent.stop().await? == 0, "the agent ended badly");
    put(east).await?;
    *agent = start_pod(east, "entente-2").await?;
    agent.ready(READY).await?;
    gone(east, POLICY, ISTIO, FENCE).await
}

/// DNS that was turned on by an upgrade: the Service leads to ports by numbers, or by names that the pods have.
async fn dns_is_led_to_the_pods(east: &Domain) -> Result<()> {
    let service = found(east, ("v1", "Service"), AGENT, "entente-dns").await?;
    let deployment = found(east, ("apps/v1", "Deployment"), AGENT, RELEASE).await?;
    let containers = deployment.data["spec"]["template"]["spec"]["containers"].as_array();
    let has = |port: &Value| {
        let mut all = containers.into_iter().flatten().filter_map(|one| one["ports"].as_array()).flatten();
        all.any(|has| {
            has["containerPort"] == port["targetPort"]
                || has["name"] == port["targetPort"] && has["protocol"] == port["protocol"]
        })
    };
    let ports = service.data["spec"]["ports"].as_array().context("no ports")?;
    let to: BTreeSet<_> =
        ports.iter().filter(|port| has(port)).map(|port| port["protocol"].as_str()).collect();
    ensure!(to == BTreeSet::from([Some("TCP"), Some("UDP")]), "{ports:?} lead to {containers:?}");
    Ok(())
}

/// What an export of another shape does not need, the agent itself takes away, since its owner stays.
async fn other_shapes(west: &Domain) -> Result<()> {
    let policies = west.kubernetes.api(POLICY.0, POLICY.1, SHOP).await?;
    let names = || async {
        let all = policies.list(&ListParams::default()).await?;
        anyhow::Ok(all.into_iter().filter_map(|one| one.metadata.name).collect::<BTreeSet<String>>())
    };
    let before = names().await?;
    let others = json!({"spec": {"workloadLabels": {"app": "cart", "tier": "front"}}});
    merge(west, SERVICE, SHOP, "cart", others).await?;
    eventually("the policy of the workloads before is gone", SOON, || async {
        let now = names().await?;
        ensure!(before.difference(&now).next().is_some(), "{now:?}");
        Ok(())
    })
    .await?;
    let gateway = json!({"type": "istio-eastwestgateway", "port": 15443, "ip": "10.77.2.3"});
    let other_mode = json!({"spec": {"tlsMode": "IstioMtls", "gateways": [gateway]}});
    merge(west, SERVICE, SHOP, "web", other_mode).await?;
    gone(west, GATEWAY, SHOP, "web-ingressgateway").await?;
    for kind in [ROUTES, PEER_AUTHENTICATION] {
        eventually(&format!("no {} is needed", kind.1), SOON, || async {
            let left = west.kubernetes.api(kind.0, kind.1, SHOP).await?.list(&ListParams::default()).await?;
            ensure!(left.items.is_empty(), "{} left", left.items.len());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// All peers and exports are taken away, and with them what was made of them.
async fn end(pair: &Pair) -> Result<()> {
    let (east, west) = (&pair.east, &pair.west);
    other_shapes(west).await?;
    for (kind, namespace, name) in
        [(SERVICE, SHOP, "cart"), (SERVICE, SHOP, "web"), (RULE, None, "none"), (("v1", "Pod"), SHOP, "web")]
    {
        delete(west, kind, namespace, name).await?;
    }
    for host in [HOST, WEB] {
        gone(east, IMPORTED, AGENT, host).await?;
    }
    for (here, there) in [(east, "west.example"), (west, "east.example")] {
        delete(here, PEER, None, there).await?;
    }
    for (here, there) in [(east, "west.example"), (west, "east.example")] {
        gone(here, PEER, None, there).await?;
        for kind in ["ConfigMap", "Secret"] {
            delete(here, ("v1", kind), AGENT, "bootstrap").await?;
        }
        for kind in [SERVICE_ENTRY, GATEWAY, POLICY, ROUTES, DESTINATION, PEER_AUTHENTICATION, super::CFTD] {
            eventually(&format!("no {} is left", kind.1), SOON, || async {
                let left =
                    here.kubernetes.api(kind.0, kind.1, None).await?.list(&ListParams::default()).await?;
                let left = left.iter().find(|one| one.metadata.name.as_deref() != Some(FENCE));
                ensure!(left.is_none(), "{:?}", left.map(|one| &one.metadata));
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

/// Over both domains, which are granted the same: nothing was forbidden, and everything was used.
async fn only_what_is_needed(pair: &Pair) -> Result<()> {
    let rights = granted(&pair.east.kubernetes, AGENT_NAMESPACE, RELEASE).await?;
    ensure!(rights.len() > 60, "only {} rights", rights.len());
    ensure!(
        rights == granted(&pair.west.kubernetes, AGENT_NAMESPACE, RELEASE).await?,
        "the rights are not the same"
    );
    eventually("every right was used", SOON, || async {
        let mut requests = pair.east.kubernetes.requests_of(ACCOUNT)?;
        requests.extend(pair.west.kubernetes.requests_of(ACCOUNT)?);
        let (forbidden, unused) = (forbidden(&requests), unused(&rights, &requests));
        ensure!(
            forbidden.is_empty() && unused.is_empty(),
            "forbidden: {forbidden:?}; granted and never used: {unused:?}"
        );
        Ok(())
    })
    .await
}

/// Without Istio the agent has no right to it, asks for none, and is ready.
async fn without_istio(east: &Domain, agent: &mut Agent) -> Result<()> {
    ensure!(agent.stop().await? == 0, "the agent ended badly");
    let mut values = values(east)?;
    values["istio"] = json!({"enabled": false});
    install(east, &values).await?;
    let rights = granted(&east.kubernetes, AGENT_NAMESPACE, RELEASE).await?;
    let of_istio: Vec<String> =
        rights.iter().map(ToString::to_string).filter(|it| it.contains("istio")).collect();
    ensure!(of_istio.is_empty(), "{of_istio:?}");
    let before = east.kubernetes.requests_of(ACCOUNT)?.len();
    *agent = start_pod(east, "entente-3").await?;
    agent.ready(READY).await?;
    let requests = east.kubernetes.requests_of(ACCOUNT)?.split_off(before);
    let of_istio = requests.iter().filter(|request| request.group.ends_with("istio.io")).count();
    ensure!(
        of_istio == 0 && forbidden(&requests).is_empty(),
        "{of_istio} requests; {:?}",
        forbidden(&requests)
    );
    ensure!(requests.iter().any(|request| request.verb == "watch"), "nothing was asked for");
    Ok(())
}

async fn uninstall(domain: &Domain, before: &BTreeSet<String>) -> Result<()> {
    helm(domain, &["uninstall", RELEASE, "--namespace", AGENT_NAMESPACE, "--wait"]).await?;
    let pods = domain.kubernetes.api("v1", "Pod", AGENT).await?;
    pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await?;
    let crds = ours(domain).await?;
    ensure!(crds.len() == 4, "{crds:?}");
    let mut expected = before.clone();
    // The API server's own, for them.
    expected.insert("APIService v1alpha1.entente.dev".to_owned());
    expected.extend(crds.iter().map(|name| format!("CustomResourceDefinition {name}")));
    eventually("what is left is as it should be", SOON, || async {
        let now = names(domain).await?;
        let left: Vec<_> = now.difference(&expected).collect();
        let lost: Vec<_> = expected.difference(&now).collect();
        ensure!(left.is_empty() && lost.is_empty(), "left {left:?}, lost {lost:?}");
        let leases =
            domain.kubernetes.api(LEASE.0, LEASE.1, AGENT).await?.list(&ListParams::default()).await?;
        let leases: Vec<_> = leases.iter().filter_map(|lease| lease.metadata.name.as_deref()).collect();
        ensure!(leases == ["entente-leader"], "{leases:?}");
        Ok(())
    })
    .await
}

/// Agents, and SPIRE itself, ask for the name that they dial: what a gateway needs to pass them on by SNI to the agent, and to
/// SPIRE's bundle endpoint.
#[test]
fn agents_and_spire_dial_with_the_name_as_sni() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        let to_agent = ByName::start(west.agent_address()).await?;
        let to_bundles = ByName::start(west.spire.bundle_endpoint()).await?;
        let mut agents = (Agent::start(east, super::quick())?, Agent::start(west, super::quick())?);
        tokio::try_join!(agents.0.ready(READY), agents.1.ready(READY))?;
        let mut of_west = super::peer(west).await?;
        of_west["spec"]["agent"]["addresses"] = json!([format!("localhost:{}", to_agent.port())]);
        of_west["spec"]["bundleEndpoint"]["url"] = json!(format!("https://localhost:{}/", to_bundles.port()));
        east.kubernetes.apply(&of_west).await?;
        let mut of_east = super::peer(east).await?;
        of_east["spec"]["agent"]["addresses"] = json!([]);
        west.kubernetes.apply(&of_east).await?;
        both_ready(pair).await?;
        let localhost = BTreeSet::from([Some("localhost".to_owned())]);
        let (of_agent, of_both) = (to_agent.take(), to_bundles.take());
        ensure!(of_agent == localhost && of_both == localhost, "{of_agent:?}, {of_both:?}");
        // Now SPIRE alone.
        ensure!(agents.0.stop().await? == 0, "the agent ended badly");
        to_bundles.take();
        east.spire.refresh("west.example").await?;
        let of_spire = to_bundles.take();
        ensure!(of_spire == localhost, "{of_spire:?}");
        drop(agents);
        Ok(())
    });
}

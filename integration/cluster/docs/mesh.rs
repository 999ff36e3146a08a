//! What Istio would be to the guides' services: its configuration and gateway as objects that the agents read, and Envoys with
//! SPIRE's certificates that do what the agents' Istio objects say. There is no istiod: that is the mesh ring's part.

use crate::envoy::{Envoy, Upstream, Workload};
use crate::pair::Pair;
use crate::ports;
use crate::relay::Relay;
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const ROOT: &str = "istio-system";
const GATEWAY: &str = "istio-eastwestgateway";
/// What its load balancer is called; importers take no loopback address. It leads to this machine.
const GATEWAY_NAME: &str = "gateway.west.example";
const HOST: &str = "cart.shop.west.example";
const SOON: Duration = Duration::from_secs(60);
/// What the sample's image answers.
const HELLO: &str = "Hello version: v2, instance: cart-0\n";

/// The mesh of both domains.
pub(crate) struct Mesh<'a> {
    pair: &'a Pair,
    /// West's east-west gateway: passes TLS on unopened.
    gateway: Relay,
    /// Where the server's sidecar is to be.
    server_at: SocketAddr,
    sidecars: Vec<Envoy>,
}

impl<'a> Mesh<'a> {
    /// Both meshes as Kubernetes shows them, and west's gateway.
    pub(crate) async fn stand(pair: &'a Pair) -> Result<Self> {
        let server_at = ports::free()?;
        let gateway = Relay::start(server_at).await?;
        for (here, there) in [(&pair.east, &pair.west), (&pair.west, &pair.east)] {
            here.kubernetes.namespace(ROOT).await?;
            here.kubernetes.apply(&configuration(here, there)).await?;
            here.kubernetes.apply(&istiod()).await?;
            std::fs::write(here.dir().join("curl"), include_str!("curl.py"))?;
            std::fs::set_permissions(here.dir().join("curl"), std::fs::Permissions::from_mode(0o755))?;
        }
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": GATEWAY, "namespace": ROOT},
            "spec": {
                "type": "LoadBalancer", "selector": {"istio": "eastwestgateway"},
                "ports": [{"name": "tls", "port": gateway.address().port()}],
            },
        });
        pair.west.kubernetes.apply(&service).await?;
        let given = json!({"status": {"loadBalancer": {"ingress": [{"hostname": GATEWAY_NAME}]}}});
        let services = pair.west.kubernetes.api("v1", "Service", Some(ROOT)).await?;
        services.patch_status(GATEWAY, &PatchParams::default(), &Patch::Merge(given)).await?;
        Ok(Self { pair, gateway, server_at, sidecars: Vec::new() })
    }

    /// The chart's value for the gateway: no two domains of this machine have the same port.
    pub(crate) fn gateway_value(&self) -> String {
        format!("{GATEWAY}:{}", self.gateway.address().port())
    }

    /// Starts the sidecars, once: the server's lets in whom west's policy lets in, the callers' go where east's ServiceEntry leads,
    /// and take nobody else there than it pins.
    pub(crate) async fn serve(&mut self) -> Result<()> {
        if !self.sidecars.is_empty() {
            return Ok(());
        }
        let application = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let server = Workload {
            path: "/ns/shop/sa/cart".to_owned(),
            clients: let_in(&self.pair.west).await?,
            listen: Some(self.server_at),
            behind: Some(application.local_addr()?),
            ..Workload::named("cart")
        };
        tokio::spawn(answer(application));
        let way = way_to_west(&self.pair.east).await?;
        ensure!(way.address.port() == self.gateway.address().port(), "not to the gateway: {way:?}");
        let caller = |name: &str| Workload {
            path: format!("/ns/web/sa/{name}"),
            upstreams: vec![way.clone()],
            ..Workload::named(name)
        };
        let (frontend, stranger) = (caller("frontend"), caller("stranger"));
        let (server, frontend, stranger) = tokio::try_join!(
            Envoy::ready(&self.pair.west, &server),
            Envoy::ready(&self.pair.east, &frontend),
            Envoy::ready(&self.pair.east, &stranger),
        )?;
        for (name, sidecar) in [("frontend", &frontend), ("stranger", &stranger)] {
            let door = sidecar.door(&way.name).context("no door")?.to_string();
            std::fs::write(self.pair.east.dir().join(format!("{name}-0.{HOST}.door")), door)?;
        }
        self.sidecars = vec![server, frontend, stranger];
        self.bundles_are_there().await
    }

    /// Both sidecars have the other domain's authorities: the frontend's handshake with the server ends well.
    async fn bundles_are_there(&self) -> Result<()> {
        let [server, frontend, _] = self.sidecars.as_slice() else { return Ok(()) };
        eventually("the sidecars have the bundles", SOON, || async {
            let _ = frontend.call(HOST).await;
            ensure!(server.handshakes().await? > 0, "no handshake yet");
            Ok(())
        })
        .await
    }
}

fn configuration(here: &Domain, there: &Domain) -> Value {
    let mesh = format!(
        "trustDomain: {}\ncaCertificates:\n- trustDomains: [{}]\ndefaultConfig:\n  proxyMetadata: {{ISTIO_META_DNS_CAPTURE: \"true\"}}\n",
        here.trust_domain(),
        there.trust_domain(),
    );
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": ROOT},
        "data": {"mesh": mesh},
    })
}

fn istiod() -> Value {
    let container = json!({"name": "discovery", "image": "none.example/pilot:1.30.2"});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "istiod", "namespace": ROOT,
            "labels": {"app": "istiod", "istio.io/rev": "default", "app.kubernetes.io/version": "1.30.2"},
        },
        "spec": {
            "replicas": 0, "selector": {"matchLabels": {"app": "istiod"}},
            "template": {"metadata": {"labels": {"app": "istiod"}}, "spec": {"containers": [container]}},
        },
    })
}

/// The foreign SPIFFE IDs that the policy in namespace `shop` lets through.
async fn let_in(west: &Domain) -> Result<Vec<String>> {
    let policies = west.kubernetes.api("security.istio.io/v1", "AuthorizationPolicy", Some("shop")).await?;
    let policies = policies.list(&ListParams::default()).await?.items;
    let [policy] = policies.as_slice() else { anyhow::bail!("{} policies", policies.len()) };
    let spec = &policy.data["spec"];
    ensure!(spec["action"] == "DENY", "{spec}");
    let listed = &spec["rules"][0]["from"][0]["source"]["notPrincipals"];
    let listed = listed.as_array().with_context(|| format!("no notPrincipals: {spec}"))?;
    let foreign = listed.iter().filter_map(Value::as_str).filter(|id| !id.starts_with("west.example/"));
    Ok(foreign.map(|id| format!("spiffe://{id}")).collect())
}

/// Where the ServiceEntry in east sends a call of the service, and whom it must find there.
async fn way_to_west(east: &Domain) -> Result<Upstream> {
    let entries =
        east.kubernetes.api("networking.istio.io/v1", "ServiceEntry", Some(AGENT_NAMESPACE)).await?;
    let entry =
        eventually("east has the ServiceEntry", SOON, || async { Ok(entries.get(HOST).await?) }).await?;
    let spec = &entry.data["spec"];
    let endpoint = &spec["endpoints"][0];
    let port = endpoint["ports"].as_object().and_then(|ports| ports.values().next()).and_then(Value::as_u64);
    let port = u16::try_from(port.with_context(|| format!("no port: {spec}"))?)?;
    ensure!(endpoint["address"] == GATEWAY_NAME, "{spec}");
    let id = spec["subjectAltNames"][0].as_str().with_context(|| format!("nobody is pinned: {spec}"))?;
    Ok(Upstream { name: HOST.to_owned(), address: (Ipv4Addr::LOCALHOST, port).into(), id: id.to_owned() })
}

/// The application behind the server's sidecar: one answer on each connection.
async fn answer(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut heard = [0; 4096];
            if !matches!(stream.read(&mut heard).await, Ok(read) if read > 0) {
                return;
            }
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", HELLO.len());
            let _ = stream.write_all(format!("{head}{HELLO}").as_bytes()).await;
        });
    }
}

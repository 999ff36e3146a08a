//! East and west with an agent each, both serving xDS, and the services that west exports to east.

use crate::agent::{Agent, AgentOptions};
use crate::application::{Application, Speaks};
use crate::ask::Client;
use crate::pair::Pair;
use crate::ports;
use crate::proxy::{From, Proxy};
use crate::wait::eventually;
pub(crate) use crate::world::SOON;
use crate::world::{Domain, found, peer, says};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

const API: &str = "entente.dev/v1alpha1";
pub(crate) const FRONTEND: &str = "/ns/web/sa/frontend";
pub(crate) const BATCH: &str = "/ns/web/sa/batch";
pub(crate) const CART: &str = "/ns/shop/sa/cart";
/// What importers see of every service.
pub(crate) const PORT: u16 = 18_080;
pub(crate) const TIMING: [&str; 8] = [
    "--drain-seconds=2",
    "--agent-follow-seconds=2",
    "--bundle-poll-min-seconds=1",
    "--bundle-poll-max-seconds=4",
    "--spire-poll-seconds=4",
    "--dial-min-seconds=1",
    "--dial-max-seconds=2",
    "--lease-seconds=3",
];

/// A mode of TLS, by its name.
pub(crate) const MODES: [&str; 2] = ["IstioMtls", "Mtls"];

/// Both agents; dropped before the domains are.
pub(crate) struct Ring {
    pub(crate) of_east: Agent,
    pub(crate) of_west: Agent,
    pub(crate) xds_east: SocketAddr,
    pub(crate) xds_west: SocketAddr,
    /// Where east's agent answers DNS.
    pub(crate) dns: SocketAddr,
    /// Where east's agent serves as batch, and as frontend.
    pub(crate) socket_of_batch: PathBuf,
    pub(crate) socket_of_frontend: PathBuf,
    /// Where importers come to, as west's FederatedServices say.
    pub(crate) gateway: SocketAddr,
}

impl Ring {
    /// Starts both agents, and makes each the peer of the other.
    pub(crate) async fn start(pair: &Pair) -> Result<Self> {
        Self::start_with(pair, &[]).await
    }

    /// The same, with more arguments for east's agent.
    pub(crate) async fn start_with(pair: &Pair, more: &[&str]) -> Result<Self> {
        let dns = ports::free()?;
        let (xds_east, xds_west) = (ports::free()?, ports::free()?);
        let socket_of_batch = pair.east.dir().join("batch.sock");
        let socket_of_frontend = pair.east.dir().join("frontend.sock");
        let sockets = [(&socket_of_batch, BATCH), (&socket_of_frontend, FRONTEND)];
        let sockets = sockets.map(|(path, id)| format!("{}=spiffe://east.example{id}", path.display()));
        let options = |args: &[String]| AgentOptions {
            args: TIMING.iter().map(|one| (*one).to_owned()).chain(args.iter().cloned()).collect(),
            ..AgentOptions::default()
        };
        let mut of_east = vec![
            format!("--xds-listen={xds_east}"),
            format!("--xds-socket={}", sockets.join(",")),
            format!("--dns-listen={dns}"),
            format!("--import-address-range={}", own_range()),
        ];
        of_east.extend(more.iter().map(|one| (*one).to_owned()));
        let of_west = [format!("--xds-listen={xds_west}"), "--xds-all-bundles=ROOTCA".to_owned()];
        let mut ring = Self {
            of_east: Agent::start(&pair.east, options(&of_east))?,
            of_west: Agent::start(&pair.west, options(&of_west))?,
            xds_east,
            xds_west,
            dns,
            socket_of_batch,
            socket_of_frontend,
            gateway: SocketAddr::new(own_address()?, ports::free()?.port()),
        };
        tokio::try_join!(ring.of_east.ready(SOON), ring.of_west.ready(SOON))?;
        for (here, there) in [(&pair.east, &pair.west), (&pair.west, &pair.east)] {
            here.kubernetes.apply(&peer(there).await?).await?;
        }
        for (here, there) in [(&pair.east, &pair.west), (&pair.west, &pair.east)] {
            says(here, "TrustDomainPeer", None, there.trust_domain().as_str(), "Ready").await?;
        }
        pair.west.kubernetes.namespace("shop").await?;
        Ok(ring)
    }

    /// Exports an application of west to the frontend of east, and waits until it is imported.
    pub(crate) async fn export(&self, pair: &Pair, service: &Exported) -> Result<()> {
        pair.west.kubernetes.apply(&self.object(service)).await?;
        says(&pair.west, "FederatedService", Some("shop"), &service.name, "Exported").await
    }

    fn object(&self, service: &Exported) -> Value {
        let gateway = if service.mode == "Mtls" { "istio-ingressgateway" } else { "istio-eastwestgateway" };
        let port = json!({
            "name": service.speaks.protocol(), "port": PORT, "targetPort": service.application.port,
        });
        json!({
            "apiVersion": API,
            "kind": "FederatedService",
            "metadata": {"name": service.name, "namespace": "shop"},
            "spec": {
                "workloadLabels": {"app": service.name},
                "ports": [port],
                "tlsMode": service.mode,
                "exportedTrustDomains": ["east.example"],
                "clients": {"spiffeIDs": [format!("spiffe://east.example{FRONTEND}")]},
                "serverSPIFFEIDs": [format!("spiffe://west.example{CART}")],
                "gateways": [{"type": gateway, "port": self.gateway.port(), "ip": self.gateway.ip()}],
            },
        })
    }

    /// Where a plain client of east calls what it knows by name, as our DNS has it.
    pub(crate) async fn resolve(&self, client: &mut Client, host: &str) -> Result<SocketAddr> {
        let name = format!("{host}.");
        let has_one = |said: &Value| said["answers"].as_array().is_some_and(|all| all.len() == 1);
        client.until(&format!("{host} has an address"), SOON, (self.dns, &name), has_one).await?;
        let said = client.ask(self.dns, &name).await?;
        let record = said["answers"][0].as_str().with_context(|| format!("{host}: {said}"))?;
        let address = record.split_whitespace().last().context("an empty record")?;
        Ok(SocketAddr::new(address.parse().with_context(|| record.to_owned())?, PORT))
    }

    /// The Envoy in front of all applications of west. It asks for the state of the world; those of clients for what changed.
    pub(crate) async fn server(&self, west: &Domain) -> Result<Proxy> {
        Proxy::start(west, "cart", CART, &From::WholeFromListener(self.xds_west)).await
    }

    /// An Envoy beside a client of east.
    pub(crate) async fn client(&self, east: &Domain, name: &str, path: &str) -> Result<Proxy> {
        Proxy::start(east, name, path, &From::Listener(self.xds_east)).await
    }
}

/// An application of west that is exported.
pub(crate) struct Exported {
    pub(crate) name: String,
    pub(crate) mode: &'static str,
    pub(crate) speaks: Speaks,
    pub(crate) application: Application,
}

impl Exported {
    pub(crate) async fn new(mode: &'static str, speaks: Speaks) -> Result<Self> {
        let name = format!("{}-{}", speaks.protocol(), mode.to_lowercase());
        let application = Application::named("west", speaks, std::net::Ipv4Addr::LOCALHOST).await?;
        Ok(Self { name, mode, speaks, application })
    }

    pub(crate) fn host(&self) -> String {
        format!("{}.shop.west.example", self.name)
    }

    /// Where clients of east call it.
    pub(crate) async fn address(&self, east: &Domain) -> Result<SocketAddr> {
        eventually(&format!("{} has an address", self.name), SOON, || async {
            let import = found(east, API, "ImportedService", Some("entente-system"), &self.host()).await?;
            let address = import.data["status"]["addresses"][0].as_str().map(str::to_owned);
            Ok(SocketAddr::new(address.context("none")?.parse()?, PORT))
        })
        .await
    }

    /// One call by a plain client of east.
    pub(crate) async fn call(&self, at: SocketAddr) -> Result<()> {
        crate::application::call(self.speaks, at, &self.host()).await
    }
}

/// Addresses of the loopback interface for the imports of one agent alone. An import has its address by its name; Envoys of two
/// tests that run beside each other would listen on it together, and each take some of the other's connections.
pub(crate) fn own_range() -> String {
    static AGENTS: AtomicU32 = AtomicU32::new(0);
    let (process, agent) = (std::process::id() % 128, AGENTS.fetch_add(1, Ordering::Relaxed) % 16);
    format!("127.{}.{}.0/20", 64 + process, 16 * agent)
}

/// An address of this machine that is none of loopback: a peer's gateway may not be there.
pub(crate) fn own_address() -> Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("198.51.100.1:9").context("this machine has no address but loopback")?;
    let address = socket.local_addr()?.ip();
    ensure!(!address.is_loopback(), "this machine has no address but {address}");
    Ok(address)
}

/// Changes a FederatedService of west.
pub(crate) async fn change(west: &Domain, service: &Exported, patch: Value) -> Result<()> {
    let api = west.kubernetes.api(API, "FederatedService", Some("shop")).await?;
    api.patch(&service.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Ends an export.
pub(crate) async fn withdraw(west: &Domain, service: &Exported) -> Result<()> {
    let api = west.kubernetes.api(API, "FederatedService", Some("shop")).await?;
    api.delete(&service.name, &DeleteParams::background()).await?;
    Ok(())
}

//! Two meshes, federated: brought up once for all tests of the ring.

use crate::federation::{Agents, Exported, export};
use crate::istiod::{Istiod, ROOT_NAMESPACE};
use crate::network::{Member, Network};
use crate::proxy::Door;
use crate::workload::{Interception, Role, Workload};
use crate::world::{Domain, Options};
use anyhow::Result;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::{Mutex, OnceLock, PoisonError};
use tokio::runtime::Runtime;

/// The gateway of west.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);
pub(crate) const GATEWAY_PORT: u16 = 15443;
const GATEWAY_NAME: &str = "istio-eastwestgateway";
/// The port of the Service `cart` of west.
pub(crate) const LOCAL_PORT: u16 = 8000;
/// The workload of `cart`.
pub(crate) const CART_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 3);
pub(crate) const CART: Exported = Exported { name: "cart", port: 18080, target_port: 8080 };
/// Its workload presents another identity than it is exported with.
pub(crate) const ORDERS: Exported = Exported { name: "orders", port: 18081, target_port: 9090 };

/// The workloads of both sides.
pub(crate) struct Workloads {
    pub(crate) frontend: Workload,
    /// Of east as well, and not among the `clients` of any service.
    pub(crate) stranger: Workload,
    pub(crate) gateway: Workload,
    pub(crate) cart: Workload,
    pub(crate) orders: Workload,
    /// A client in west.
    pub(crate) local: Workload,
    /// Of `cart`, too, and with a sidecar that connections are redirected to.
    pub(crate) redirected: Workload,
    /// A client in east of that kind.
    pub(crate) redirected_client: Workload,
}

/// What runs on the domains. Fields are in the order in which they go.
struct Parts {
    workloads: Workloads,
    doors: [Door; 2],
    network: Mutex<Network>,
    agents: Agents,
    istiods: [Istiod; 2],
}

/// Two federated meshes. East imports `cart` and `orders` of west.
pub(crate) struct Meshes {
    parts: Parts,
    pub(crate) east: Domain,
    pub(crate) west: Domain,
}

impl Meshes {
    async fn start() -> Result<Self> {
        // before what takes its time
        crate::istiod::program()?;
        let east = Domain::start("east.example", Options::default());
        let west = Domain::start("west.example", Options::default());
        let (east, west) = tokio::join!(east, west);
        let (east, west) = (east?, west?);
        match Parts::start(&east, &west).await {
            Ok(parts) => Ok(Self { parts, east, west }),
            Err(error) => {
                east.keep();
                west.keep();
                Err(error)
            }
        }
    }

    pub(crate) const fn workloads(&self) -> &Workloads {
        &self.parts.workloads
    }

    pub(crate) const fn agents(&self) -> &Agents {
        &self.parts.agents
    }

    /// One more namespace.
    pub(crate) fn join(&self, address: Ipv4Addr) -> Result<Member> {
        self.parts.network.lock().unwrap_or_else(PoisonError::into_inner).join(address)
    }

    /// One more workload of west.
    pub(crate) async fn start_in_west(&self, role: Role<'_>) -> Result<Workload> {
        let member = self.join(role.address)?;
        Workload::start_in(&self.west, member, &self.parts.doors[1], role).await
    }

    /// One more workload of east.
    pub(crate) async fn start_in_east(&self, role: Role<'_>) -> Result<Workload> {
        let member = self.join(role.address)?;
        Workload::start_in(&self.east, member, &self.parts.doors[0], role).await
    }

    pub(crate) const fn east_istiod(&self) -> &Istiod {
        &self.parts.istiods[0]
    }

    pub(crate) const fn west_istiod(&self) -> &Istiod {
        &self.parts.istiods[1]
    }
}

impl Parts {
    async fn start(east: &Domain, west: &Domain) -> Result<Self> {
        // The importer's mesh needs no setting; the exporter's has to take the importer's certificates.
        let istiods = tokio::join!(Istiod::start(east, &[]), Istiod::start(west, &["east.example"]));
        let istiods = [istiods.0?, istiods.1?];
        let doors = [
            Door::open(east.dir().join("xds.sock"), istiods[0].xds())?,
            Door::open(west.dir().join("xds.sock"), istiods[1].xds())?,
        ];
        let mut network = Network::new(east.dir())?;
        let workloads = Workloads::start(east, west, &mut network, &doors).await?;
        let agents = Agents::start(east, west).await?;
        for service in [CART, ORDERS] {
            export(west, service, &GATEWAY.to_string(), GATEWAY_PORT).await?;
        }
        Ok(Self { workloads, doors, network: Mutex::new(network), agents, istiods })
    }
}

impl Workloads {
    /// Those whose connections flow.
    pub(crate) const fn connected(&self) -> [&Workload; 6] {
        [&self.frontend, &self.stranger, &self.gateway, &self.cart, &self.orders, &self.local]
    }

    async fn start(
        east: &Domain,
        west: &Domain,
        network: &mut Network,
        [east_door, west_door]: &[Door; 2],
    ) -> Result<Self> {
        let role = |namespace, name, address| Role {
            namespace,
            name,
            app: name,
            address,
            presents: name,
            gateway: None,
            port: None,
            interception: Interception::None,
        };
        let in_east = |name, last| role("web", name, Ipv4Addr::new(10, 77, 1, last));
        let gateway =
            Role { gateway: Some("eastwestgateway"), ..role(ROOT_NAMESPACE, GATEWAY_NAME, GATEWAY) };
        let cart = Role { port: Some(CART.target_port), ..role("shop", CART.name, CART_ADDRESS) };
        let orders = Role {
            presents: "impostor",
            port: Some(ORDERS.target_port),
            ..role("shop", ORDERS.name, Ipv4Addr::new(10, 77, 2, 4))
        };
        let local = role("shop", "local", Ipv4Addr::new(10, 77, 2, 5));
        let redirected = Role {
            app: CART.name,
            presents: CART.name,
            interception: Interception::Redirect,
            ..role("shop", "redirected", Ipv4Addr::new(10, 77, 2, 6))
        };
        let redirected_client =
            Role { interception: Interception::Redirect, ..in_east("redirected-client", 12) };
        west.kubernetes.namespace("shop").await?;
        make_services(west).await?;
        Ok(Self {
            frontend: Workload::start(east, network, east_door, in_east("frontend", 10)).await?,
            stranger: Workload::start(east, network, east_door, in_east("stranger", 11)).await?,
            gateway: Workload::start(west, network, west_door, gateway).await?,
            cart: Workload::start(west, network, west_door, cart).await?,
            orders: Workload::start(west, network, west_door, orders).await?,
            local: Workload::start(west, network, west_door, local).await?,
            redirected_client: Workload::start(east, network, east_door, redirected_client).await?,
            redirected: Workload::start(west, network, west_door, redirected).await?,
        })
    }
}

/// What west has of itself: the gateway's Service, and one for `cart`, on a port of its own.
async fn make_services(west: &Domain) -> Result<()> {
    let gateway = service(ROOT_NAMESPACE, GATEWAY_NAME, GATEWAY_PORT, GATEWAY_PORT);
    let cart = service("shop", CART.name, LOCAL_PORT, CART.target_port);
    let endpoints = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": CART.name,
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": CART.name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "tcp", "protocol": "TCP", "port": CART.target_port}],
        "endpoints": [{
            "addresses": [CART_ADDRESS.to_string()],
            "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": CART.name, "namespace": "shop"},
        }],
    });
    for object in [gateway, cart, endpoints] {
        west.kubernetes.apply(&object).await?;
    }
    Ok(())
}

fn service(namespace: &str, name: &str, port: u16, target_port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": "tcp", "protocol": "TCP", "port": port, "targetPort": target_port}],
        },
    })
}

/// Runs a test on the meshes, which it must leave as they were. If it fails, the logs are kept.
pub(crate) fn with_meshes(test: impl AsyncFnOnce(&Meshes) -> Result<()>) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static MESHES: Mutex<Option<Meshes>> = Mutex::new(None);
    let runtime = RUNTIME.get_or_init(|| Runtime::new().unwrap());
    let mut shared = MESHES.lock().unwrap_or_else(PoisonError::into_inner);
    let done = runtime.block_on(async {
        if shared.is_none() {
            *shared = Some(Meshes::start().await?);
        }
        let Some(meshes) = shared.as_ref() else { anyhow::bail!("no meshes") };
        let done = test(meshes).await;
        if done.is_err() {
            meshes.east.keep();
            meshes.west.keep();
        }
        done
    });
    drop(shared);
    if let Err(error) = done {
        panic!("{error:#}");
    }
}

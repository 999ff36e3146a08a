//! The same without Kubernetes: both sides are machines with SPIRE, an agent on a directory, and Envoys beside plain
//! applications. And in clusters without Istio.

use crate::agent::{Agent, AgentOptions};
use crate::application::{Application, Held, Speaks};
use crate::machine::Machine;
use crate::pair::runtime;
use crate::ports;
use crate::proxy::{From, Proxy};
use crate::ring::{BATCH, CART, FRONTEND, PORT, SOON, TIMING, own_address};
use crate::turn::{Of, Turn};
use crate::wait::{always, eventually};
use crate::world::{Domain, FEDERATE, Options, found, peer, says};
use anyhow::{Result, ensure};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Within this a change at the exporter must have reached every client.
const TAKEN_AWAY: Duration = Duration::from_secs(5);
/// An address of the machine that its Envoy listens on nowhere else than at the gateway's port: another machine's, as far as
/// Envoy knows.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);

/// A service of west: how it is exported, and what stands behind it.
struct Exported {
    name: &'static str,
    mode: &'static str,
    speaks: Speaks,
    endpoint: Ipv4Addr,
    application: Application,
}

impl Exported {
    async fn new(name: &'static str, mode: &'static str, speaks: Speaks, endpoint: Ipv4Addr) -> Result<Self> {
        let application = Application::start_at(endpoint, speaks).await?;
        Ok(Self { name, mode, speaks, endpoint, application })
    }

    fn object(&self, gateway: SocketAddr) -> Value {
        let kind = if self.mode == "Mtls" { "istio-ingressgateway" } else { "istio-eastwestgateway" };
        json!({
            "apiVersion": "entente.dev/v1alpha1",
            "kind": "FederatedService",
            "metadata": {"name": self.name, "namespace": "shop"},
            "spec": {
                "endpoints": [{"ip": self.endpoint}],
                "ports": [{
                    "name": self.speaks.protocol(), "port": PORT, "targetPort": self.application.port,
                }],
                "tlsMode": self.mode,
                "exportedTrustDomains": ["east.example"],
                "clients": {"spiffeIDs": [format!("spiffe://east.example{FRONTEND}")]},
                "serverSPIFFEIDs": [format!("spiffe://west.example{CART}")],
                "gateways": [{"type": kind, "port": gateway.port(), "ip": gateway.ip()}],
            },
        })
    }

    fn host(&self) -> String {
        format!("{}.shop.west.example", self.name)
    }

    /// Where clients of east call it, by its DNS.
    async fn address(&self, east: &Machine) -> Result<SocketAddr> {
        Ok(SocketAddr::new(east.resolve(&self.host()).await?, PORT))
    }

    /// One call by a plain client of east.
    async fn call_at(&self, at: SocketAddr) -> Result<()> {
        crate::application::call(self.speaks, at, &self.host()).await
    }

    /// The same, by name.
    async fn call(&self, east: &Machine) -> Result<()> {
        self.call_at(self.address(east).await?).await
    }
}

/// Both machines, federated.
struct Machines {
    east: Machine,
    west: Machine,
    gateway: SocketAddr,
}

impl Machines {
    async fn start() -> Result<Self> {
        let (east, west) = tokio::join!(Machine::start("east.example"), Machine::start("west.example"));
        let (east, west) = (east?, west?);
        let machines = Self { east, west, gateway: SocketAddr::new(own_address()?, ports::free()?.port()) };
        let Self { east, west, .. } = &machines;
        east.meet(west.as_peer().await?, &[FRONTEND, BATCH])?;
        west.meet(east.as_peer().await?, &[CART, "/ns/shop/sa/impostor"])?;
        east.says("trustdomainpeers", "west.example", "Ready").await?;
        west.says("trustdomainpeers", "east.example", "Ready").await?;
        Ok(machines)
    }
}

/// Plain clients on one machine call plain servers behind the other, by name, in both modes of TLS, through Envoys that have
/// nothing but what our agents and SPIRE serve them. Nobody has written more than the manifests that the guide shows.
#[test]
fn machines_without_kubernetes_call_each_other() {
    let _turn = Turn::of_pair(Of::Own);
    let failed = runtime().block_on(async {
        let mut machines = Machines::start().await?;
        let done = call_each_other(&mut machines).await;
        if done.is_err() {
            machines.east.keep();
            machines.west.keep();
        }
        done
    });
    if let Err(error) = failed {
        panic!("{error:#}");
    }
}

async fn call_each_other(machines: &mut Machines) -> Result<()> {
    let Machines { east, west, gateway } = machines;
    let services = [
        Exported::new("ledger", "IstioMtls", Speaks::Tcp, Ipv4Addr::LOCALHOST).await?,
        Exported::new("web", "Mtls", Speaks::Http, ELSEWHERE).await?,
        Exported::new("orders", "IstioMtls", Speaks::Grpc, ELSEWHERE).await?,
    ];
    for service in &services {
        west.write(&service.object(*gateway))?;
    }
    let mut server = west.proxy("cart", CART).await?;
    let frontend = east.proxy("frontend", FRONTEND).await?;
    let batch = east.proxy("batch", BATCH).await?;
    for service in &services {
        let status = format!("shop_{}", service.name);
        west.says("federatedservices", &status, "Exported").await?;
        let enforced = west.says("federatedservices", &status, "ClientsEnforced").await?;
        ensure!(enforced == "ProxyEnforces", "{enforced}");
        let import = format!("entente-system_{}", service.host());
        let generated = east.says("importedservices", &import, "Generated").await?;
        ensure!(generated == "WithoutIstio", "{generated}");
        let called = eventually(&format!("{} is called", service.name), SOON, || service.call(east)).await;
        called
            .map_err(|error| error.context(frontend.process.log_tail()).context(server.process.log_tail()))?;
    }
    ensure!(batch.listeners().await?.is_empty(), "{:?}", batch.listeners().await?);
    for proxy in [&server, &frontend, &batch] {
        ensure!(proxy.refused().await? == 0, "{}", proxy.process.log_tail());
    }
    who_is_no_client_is_refused(east, west, &services[0], *gateway, &server).await?;
    what_is_gone(east, west, &services, &frontend).await?;
    without_agents(east, west, &services[0], &frontend, &server).await?;
    server.process.kill().await?;
    let behind = SocketAddr::from((services[0].endpoint, services[0].application.port));
    let _impostor = west.impostor("impostor", "/ns/shop/sa/impostor", *gateway, behind).await?;
    eventually("the client refuses a server with another ID", SOON, || async {
        ensure!(services[0].call(east).await.is_err(), "it is answered");
        let refused = frontend.admin.stats("ssl.fail_verify_san").await?;
        ensure!(!refused.is_empty(), "not for its ID: {}", frontend.admin.stats("ssl").await?);
        Ok(())
    })
    .await
}

/// East's agent is told nothing, and so its side goes on to believe that the frontend is a client.
async fn who_is_no_client_is_refused(
    east: &mut Machine,
    west: &Machine,
    service: &Exported,
    gateway: SocketAddr,
    server: &Proxy,
) -> Result<()> {
    let at = service.address(east).await?;
    east.agent.kill().await?;
    let mut object = service.object(gateway);
    object["spec"]["clients"]["spiffeIDs"] = json!([format!("spiffe://east.example{BATCH}")]);
    west.write(&object)?;
    eventually("the server's Envoy refuses who is no client", TAKEN_AWAY, || async {
        ensure!(service.call_at(at).await.is_err(), "it is answered");
        let refused = server.admin.stats("ssl.fail_verify_san").await?;
        ensure!(!refused.is_empty(), "not for its ID: {}", server.admin.stats("ssl").await?);
        Ok(())
    })
    .await?;
    west.write(&service.object(gateway))?;
    east.agent.start()?;
    east.ready().await?;
    eventually("it is answered again", SOON, || service.call(east)).await
}

/// A manifest that is removed ends the export: name, listener and answers are gone; the others stay.
async fn what_is_gone(
    east: &Machine,
    west: &Machine,
    [_, gone, stays]: &[Exported; 3],
    frontend: &Proxy,
) -> Result<()> {
    let at = gone.address(east).await?;
    west.remove("FederatedService", gone.name)?;
    let since = Instant::now();
    eventually("what is exported no more is gone", TAKEN_AWAY, || async {
        ensure!(gone.call_at(at).await.is_err(), "it answers");
        let name = format!("{}:{PORT}", gone.host());
        ensure!(!frontend.listeners().await?.contains(&name), "there is a listener");
        ensure!(east.resolve(&gone.host()).await.is_err(), "there is a name");
        Ok(())
    })
    .await?;
    eprintln!("an export was gone from its client after {} ms", since.elapsed().as_millis());
    stays.call(east).await
}

/// Agents that are killed change nothing for what runs, and nothing when they are back.
async fn without_agents(
    east: &mut Machine,
    west: &mut Machine,
    service: &Exported,
    frontend: &Proxy,
    server: &Proxy,
) -> Result<()> {
    let at = service.address(east).await?;
    let mut held = Held::open(at).await?;
    east.agent.kill().await?;
    west.agent.kill().await?;
    always("calls go on without agents", Duration::from_secs(3), || service.call_at(at)).await?;
    held.say().await?;
    east.agent.start()?;
    west.agent.start()?;
    tokio::try_join!(east.ready(), west.ready())?;
    eventually("both Envoys have heard from the agents again", SOON, || async {
        for proxy in [frontend, server] {
            let connected = proxy.admin.stat("control_plane.connected_state").await?;
            ensure!(connected == 1, "{} is not connected", proxy.id);
        }
        Ok(())
    })
    .await?;
    always("calls go on with agents that are back", Duration::from_secs(3), || service.call_at(at)).await?;
    held.say().await?;
    ensure!(service.address(east).await? == at, "it has another address");
    ensure!(frontend.listeners().await?.len() == 2, "{:?}", frontend.listeners().await?);
    Ok(())
}

/// A cluster that has none of Istio's kinds exports through an Envoy of its own, which our agent serves, to a machine without
/// Kubernetes; without gateways its status says what is needed.
#[test]
fn a_cluster_without_istio_exports_by_an_envoy() {
    let _turn = Turn::of_pair(Of::Own);
    let failed = runtime().block_on(async {
        let east = Machine::start("east.example");
        let west = Domain::start("west.example", Options::default());
        let (east, west) = tokio::join!(east, west);
        let (east, west) = (east?, west?);
        let done = out_of_a_cluster(&east, &west).await;
        if done.is_err() {
            east.keep();
            west.keep();
        }
        done
    });
    if let Err(error) = failed {
        panic!("{error:#}");
    }
}

async fn out_of_a_cluster(east: &Machine, west: &Domain) -> Result<()> {
    const CRD: &str = "CustomResourceDefinition";
    let definitions = west.kubernetes.api("apiextensions.k8s.io/v1", CRD, None).await?;
    for definition in definitions.list(&ListParams::default()).await? {
        let name = definition.metadata.name.unwrap_or_default();
        if name.ends_with(".istio.io") {
            definitions.delete(&name, &DeleteParams::default()).await?;
        }
    }
    let xds = ports::free()?;
    let args = TIMING.iter().map(|one| (*one).to_owned());
    let more = [format!("--xds-listen={xds}"), "--xds-all-bundles=ROOTCA".to_owned()];
    let options = AgentOptions { args: args.chain(more).collect(), ..AgentOptions::default() };
    let mut agent = Agent::start(west, options)?;
    agent.ready(SOON).await?;
    let mut peer_of_west = east.as_peer().await?;
    peer_of_west["spec"]["federatesWith"] = json!({"selector": {"matchLabels": {FEDERATE: "true"}}});
    west.kubernetes.apply(&peer_of_west).await?;
    east.meet(peer(west).await?, &[FRONTEND])?;
    says(west, "TrustDomainPeer", None, "east.example", "Ready").await?;
    west.kubernetes.namespace("shop").await?;

    let service = Exported::new("ledger", "IstioMtls", Speaks::Tcp, ELSEWHERE).await?;
    let gateway = SocketAddr::new(own_address()?, ports::free()?.port());
    let whole = service.object(gateway);
    let mut lacking = whole.clone();
    lacking["spec"]["gateways"] = json!([]);
    west.kubernetes.apply(&lacking).await?;
    eventually("it says what is needed", SOON, || async {
        let object = found(west, "entente.dev/v1alpha1", "FederatedService", Some("shop"), "ledger").await?;
        let said = object.data["status"]["conditions"].to_string();
        ensure!(said.contains("NoGateway") && said.contains("the Envoy in front of it"), "{said}");
        Ok(())
    })
    .await?;
    west.kubernetes.apply(&whole).await?;
    let server = Proxy::start(west, "cart", CART, &From::Listener(xds)).await?;
    let frontend = east.proxy("frontend", FRONTEND).await?;
    says(west, "FederatedService", Some("shop"), "ledger", "Exported").await?;
    says(west, "FederatedService", Some("shop"), "ledger", "ClientsEnforced").await?;
    let called = eventually("it is called", SOON, || service.call(east)).await;
    called.map_err(|error| error.context(frontend.process.log_tail()).context(server.process.log_tail()))?;
    ensure!(server.refused().await? == 0, "{}", server.process.log_tail());
    Ok(())
}

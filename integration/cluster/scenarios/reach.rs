//! The path of services is not that of the agents: which of the two is lost is told, and neither harms the other.

use super::diagnose::diagnose;
use super::restart::at_rest;
use super::services::{HOST, cart, service_says};
use super::{
    PEER, READY, SERVICE, SERVICE_ENTRY, SOON, both_ready, found, make_peers, merge, of_peer, peer_says,
    quick,
};
use crate::agent::Agent;
use crate::pair::with_pair;
use crate::wait::{always, eventually};
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const REACHED: &str = "GatewaysReachable";
const AGENT: Option<&str> = Some(AGENT_NAMESPACE);
const REST: Duration = Duration::from_secs(4);

/// The machine's own address towards others: a loopback one is not admitted. No packet is sent.
fn outward() -> Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("198.51.100.1:9").context("this machine has no address but loopback ones")?;
    Ok(socket.local_addr()?.ip())
}

fn gateways(all: &[SocketAddr]) -> Value {
    let one = |at: &SocketAddr| json!({"type": "istio-eastwestgateway", "ip": at.ip().to_string(), "port": at.port()});
    json!({"spec": {"gateways": all.iter().map(one).collect::<Vec<_>>()}})
}

/// A listener that nobody accepts from, and whose queue is full: whoever dials it hears nothing.
async fn mute(ip: IpAddr) -> Result<(TcpListener, Vec<TcpStream>)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(ip, 0))?;
    let listener = socket.listen(1)?;
    let mut waiting = Vec::new();
    let patience = Duration::from_millis(300);
    while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(listener.local_addr()?)).await {
        waiting.push(stream?);
        ensure!(waiting.len() < 50, "its queue has no end");
    }
    Ok((listener, waiting))
}

/// The step `gateways` of `entente diagnose`: its outcome, and where the path is broken.
async fn diagnosed(agent: &Agent) -> Result<(String, Value)> {
    let (_, printed) = diagnose(agent, &["west.example"]).await?;
    let checks = printed["checks"].as_array().context("no checks")?;
    let step = checks.iter().find(|check| check["step"] == "gateways").context("no such step")?;
    let outcome = step["outcome"].as_str().unwrap_or_default().to_owned();
    Ok((outcome, printed["broken"].clone()))
}

struct Scene<'a> {
    east: &'a Domain,
    west: &'a Domain,
    of_east: Agent,
    of_west: Agent,
    /// Where the gateway of west is.
    at: SocketAddr,
}

#[test]
fn services_that_cannot_be_called_are_told_from_agents_that_do_not_talk() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        let mut options = quick();
        options.args.push("--gateway-check-seconds=1".to_owned());
        let mut of_east = Agent::start(east, options)?;
        let mut of_west = Agent::start(west, quick())?;
        tokio::try_join!(of_east.ready(READY), of_west.ready(READY))?;
        make_peers(pair).await?;
        both_ready(pair).await?;
        let none = of_peer(east, west, REACHED).await;
        ensure!(none.is_err(), "nothing is imported, and it says {none:?}");

        let gateway = TcpListener::bind((outward()?, 0)).await?;
        let at = gateway.local_addr()?;
        west.kubernetes.namespace("shop").await?;
        let mut cart = cart();
        cart["spec"]["gateways"] = gateways(&[at])["spec"]["gateways"].clone();
        west.kubernetes.apply(&cart).await?;
        service_says(west, "Exported", "True", "Exported").await?;
        peer_says(east, west, REACHED, "True", "Reached").await?;
        both_ready(pair).await?;
        ensure!(diagnosed(&of_east).await?.0 == "passed");
        // It is tried every second, and nothing is written for it.
        at_rest(east, west).await?;

        let mut scene = Scene { east, west, of_east, of_west, at };
        let gateway = scene.services_lost(gateway).await?;
        scene.agents_lost().await?;
        both_ready(pair).await?;
        scene.never_reached().await?;
        scene.nothing_is_called().await?;
        drop(gateway);
        Ok(())
    });
}

impl Scene<'_> {
    /// The services' path is lost, the agents' is not; and back.
    async fn services_lost(&self, gateway: TcpListener) -> Result<TcpListener> {
        let Self { east, west, at, .. } = self;
        let entry = found(east, SERVICE_ENTRY, AGENT, HOST).await?.metadata.resource_version;
        drop(gateway);
        let said = peer_says(east, west, REACHED, "False", "NoneReached").await?;
        ensure!(said.contains(&format!("{at} (connection refused)")), "{said}");
        ensure!(of_peer(east, west, "Connected").await?.0 == "True");
        ensure!(of_peer(east, west, "Ready").await?.0 == "True", "it has no part in Ready");
        let now = found(east, SERVICE_ENTRY, AGENT, HOST).await?.metadata.resource_version;
        ensure!(now == entry, "the ServiceEntry was written");
        let (outcome, broken) = diagnosed(&self.of_east).await?;
        ensure!(
            outcome == "failed" && broken["step"] == "gateways" && broken["side"] == "theirs",
            "{broken}"
        );
        eventually("the metric says it", SOON, || async {
            let line = self.metric().await?.context("no metric of it")?;
            ensure!(line.ends_with(" 1"), "{line}");
            Ok(())
        })
        .await?;
        let gateway = TcpListener::bind(at).await?;
        peer_says(east, west, REACHED, "True", "Reached").await?;
        Ok(gateway)
    }

    /// The agents' path is lost, the services' is not; and back.
    async fn agents_lost(&mut self) -> Result<()> {
        self.of_west.stop().await?;
        let (east, west) = (self.east, self.west);
        eventually("Connected is not True", READY, || async {
            let said = of_peer(east, west, "Connected").await?;
            ensure!(said.0 != "True", "{said:?}");
            Ok(())
        })
        .await?;
        always("the gateways are reached", REST, || async {
            let said = of_peer(east, west, REACHED).await?;
            ensure!(said.0 == "True", "{said:?}");
            Ok(())
        })
        .await?;
        self.of_west.restart()?;
        self.of_west.ready(READY).await
    }

    /// Silence of one that never answered says nothing of whether services can be called.
    async fn never_reached(&self) -> Result<()> {
        let Self { east, west, at, .. } = self;
        let (silent, _waiting) = mute(at.ip()).await?;
        merge(west, SERVICE, Some("shop"), "cart", gateways(&[silent.local_addr()?])).await?;
        let said = peer_says(east, west, REACHED, "Unknown", "NeverReached").await?;
        ensure!(said.contains("NetworkPolicy") && said.contains("--gateway-check-seconds=0"), "{said}");
        let (outcome, broken) = diagnosed(&self.of_east).await?;
        ensure!(outcome == "skipped" && broken.is_null(), "{outcome}: {broken}");
        merge(west, SERVICE, Some("shop"), "cart", gateways(&[*at, silent.local_addr()?])).await?;
        eventually("one of two is said not to be reached", SOON, || async {
            let said = of_peer(east, west, REACHED).await?;
            ensure!(said.0 == "Unknown" && said.2.contains("1 of 2"), "{said:?}");
            Ok(())
        })
        .await
    }

    /// Where nothing of the peer is called any more, nothing is said of its gateways.
    async fn nothing_is_called(&self) -> Result<()> {
        let nothing = json!({"spec": {"imports": {"services": []}}});
        merge(self.east, PEER, None, "west.example", nothing).await?;
        eventually("nothing is said of gateways", READY, || async {
            let said = of_peer(self.east, self.west, REACHED).await;
            ensure!(said.is_err(), "{said:?}");
            let line = self.metric().await?;
            ensure!(line.is_none(), "{line:?}");
            Ok(())
        })
        .await
    }

    async fn metric(&self) -> Result<Option<String>> {
        let (_, metrics) = self.of_east.get("/metrics").await?;
        let of_condition = format!(
            "entente_peer_condition{{trust_domain=\"west.example\",type=\"{REACHED}\",status=\"False\"}}"
        );
        Ok(metrics.lines().find(|line| line.contains(&of_condition)).map(str::to_owned))
    }
}

//! Agents at rest: west exports many services to ten peers, of which east is the largest.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use entente::devkit::demo;
use entente::model::TrustDomain;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::bare;
use crate::sides::{self, SERVICE, SERVICE_ENTRY, Sides};
use crate::wait::eventually;

/// Peers of west beside east: each an embedded authority with an agent, all in this program.
const OTHERS: usize = 9;
const LONG: Duration = Duration::from_secs(900);
const MINUTE: Duration = Duration::from_secs(60);
/// The kernel's ticks in a second, in which it counts CPU.
const TICKS: f64 = 100.0;

/// Both sides with what they are at rest with.
pub(crate) struct Rest {
    pub(crate) sides: Sides,
    others: Vec<demo::Domain>,
    _root: TempDir,
}

/// Brings everything up and prints what it costs at rest.
pub(crate) async fn run(services: usize) -> Result<Rest> {
    let sides = Sides::start().await?;
    let root = tempfile::tempdir()?;
    let mut others = Vec::new();
    for number in 0..OTHERS {
        others.push(other(&sides, number, root.path()).await?);
    }
    for other in &others {
        sides::is_ready(&sides.west, other.trust_domain().as_str()).await?;
    }
    sides.west.kubernetes.namespace("shop").await?;
    let exports = sides::api(&sides.west, SERVICE, Some("shop")).await?;
    let all: Vec<_> = (0..services).map(|number| (exports.clone(), service(number, 18_080))).collect();
    let since = Instant::now();
    bare::apply(&all).await?;
    let entries = sides::generated(&sides.east, SERVICE_ENTRY).await?;
    eventually("east has every ServiceEntry", LONG, || async {
        let count = bare::count(&entries).await?;
        ensure!(count == services, "{count} of {services}");
        Ok(())
    })
    .await?;
    println!(
        "{services} services declared in west, until east had all their objects: {:.1?}",
        since.elapsed()
    );
    tokio::try_join!(sides::at_rest(&sides.east, LONG), sides::at_rest(&sides.west, LONG))?;
    let rest = Rest { sides, others, _root: root };
    rest.measure(services).await?;
    Ok(rest)
}

impl Rest {
    async fn measure(&self, services: usize) -> Result<()> {
        let Sides { in_east, in_west, east, west } = &self.sides;
        let both = [("exporter", "10 peers", west, in_west), ("importer", "1 peer", east, in_east)];
        let mut before = Vec::new();
        for (_, _, domain, agent) in &both {
            before.push((sides::writes(domain)?, cpu(agent)?));
        }
        tokio::time::sleep(MINUTE).await;
        println!("at rest with {services} services for {MINUTE:?}:");
        for ((role, peers, domain, agent), (writes, used)) in both.into_iter().zip(before) {
            let writes = sides::writes(domain)? - writes;
            let cpu = cpu(agent)? - used;
            let (now, most) = (memory(agent, "VmRSS:")?, memory(agent, "VmHWM:")?);
            println!(
                "  {role}, {peers}: {writes} writes but Leases (goal: 0); CPU {cpu:.2} s, {:.2} % of a core (goal: 0.5 %); \
                 {now:.0} MiB, at most {most:.0} MiB so far (goal: 40 MiB)",
                100.0 * cpu / MINUTE.as_secs_f64()
            );
        }
        Ok(())
    }
}

/// Another peer of west, which west is a peer of.
async fn other(sides: &Sides, number: usize, root: &std::path::Path) -> Result<demo::Domain> {
    let name = TrustDomain::new(&format!("other-{number}.example"))?;
    let mut config = demo::DomainConfig::new(name, root);
    config.timing = entente::config::TimingArgs::standard();
    let mut domain = demo::Domain::start(config).await?;
    domain.start_agent().await?;
    let west = &sides.west;
    let peer = demo::manifests::trust_domain_peer(&demo::manifests::Peer {
        trust_domain: west.trust_domain().as_str(),
        bundle_url: &west.bundle_endpoint_url(),
        bundle_endpoint_id: &west.spire.bundle_endpoint_id(),
        bootstrap_bundle: &west.spire.bundle_document().await?,
        agent_address: &west.agent_address().to_string(),
        agent_id: &west.agent_id(),
    });
    domain.write("west.yaml", &peer)?;
    sides.west.kubernetes.apply(&domain.as_peer()?).await?;
    Ok(domain)
}

/// A service of west, which importers see on this port: for east and one of the others.
pub(crate) fn service(number: usize, port: u16) -> Value {
    let name = format!("service-{number}");
    let other = format!("other-{}.example", number % OTHERS);
    json!({
        "apiVersion": SERVICE.0,
        "kind": SERVICE.1,
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "workloadLabels": {"app": name},
            "ports": [{"name": "tcp", "port": port, "targetPort": 8080}],
            "tlsMode": "IstioMtls",
            "exportedTrustDomains": ["east.example", other],
            "clients": {"spiffeIDs": ["spiffe://east.example/ns/web/sa/frontend"]},
            "serverSPIFFEIDs": [format!("spiffe://west.example/ns/shop/sa/{name}")],
            "gateways": [{"type": "istio-eastwestgateway", "port": 15443, "ip": "10.77.2.2"}],
        },
    })
}

/// Seconds of CPU that an agent has taken since its start.
fn cpu(agent: &Agent) -> Result<f64> {
    let pid = agent.process.pid().context("the agent does not run")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // What follows the name, which may hold anything: the state is field 3, utime 14, stime 15.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("no such field")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// What an agent takes of memory, in MiB, by this field.
fn memory(agent: &Agent, field: &str) -> Result<f64> {
    let pid = agent.process.pid().context("the agent does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    let kib: f64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kib / 1024.0)
}

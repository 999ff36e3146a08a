//! One changed service, from its change in west until a watch in east shows the importer's object changed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{Stream, TryStreamExt as _};
use kube::api::{Api, DynamicObject};
use kube::runtime::watcher::{Config, Event, watcher};
use serde_json::{Value, json};

use crate::bare;
use crate::rest::{Rest, service};
use crate::sides::{self, SERVICE, SERVICE_ENTRY};

const SAMPLES: usize = 30;
const LONG: Duration = Duration::from_secs(60);
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(1_100);
/// A namespace of someone else's ServiceEntries.
const ELSEWHERE: &str = "elsewhere";

/// Prints the times: in turn, a service of west, and a ServiceEntry in east that is nobody's.
pub(crate) async fn run(rest: &mut Rest, services: usize) -> Result<()> {
    let (east, west) = (&rest.sides.east, &rest.sides.west);
    east.kubernetes.namespace(ELSEWHERE).await?;
    let exports = sides::api(west, SERVICE, Some("shop")).await?;
    let bare = sides::api(east, SERVICE_ENTRY, Some(ELSEWHERE)).await?;
    let all: Api<DynamicObject> = sides::api(east, SERVICE_ENTRY, None).await?;
    let mut seen = std::pin::pin!(watcher(all, Config::default()));
    while !matches!(seen.try_next().await?.context("no watch")?, Event::InitDone) {}

    let (mut through, mut alone) = (Vec::new(), Vec::new());
    for sample in 0..SAMPLES.min(services) {
        let (name, port) = (format!("alone-{sample}"), 19_000 + u16::try_from(sample)?);
        bare::apply_one(&bare, &entry(&name, 18_080)).await?;
        until(&mut seen, &name, 18_080).await?;
        let since = Instant::now();
        bare::apply_one(&bare, &entry(&name, port)).await?;
        until(&mut seen, &name, port).await?;
        alone.push(since.elapsed());

        let since = Instant::now();
        bare::apply_one(&exports, &service(sample, port)).await?;
        until(&mut seen, &format!("service-{sample}.shop.west.example"), port).await?;
        through.push(since.elapsed());
        // What follows of it, statuses on both sides, is not part of the next; nor is the pace at which a peer's words are
        // followed that never rests, one a second.
        tokio::time::sleep(PAUSE).await;
    }
    let (through, alone) = (Figures::of(through), Figures::of(alone));
    println!("one of {services} services changed in west, until its ServiceEntry is seen changed in east:");
    println!("  {through}");
    println!("  a bare apply in east, until the same watch shows it: {alone}");
    println!(
        "  more than that: {:.1?} at the median, {:.1?} at p99 (goal: 100 ms)",
        through.p50.saturating_sub(alone.p50),
        through.p99.saturating_sub(alone.p99)
    );
    Ok(())
}

/// Waits until the watch shows an object with this port.
async fn until<S>(seen: &mut S, name: &str, port: u16) -> Result<()>
where
    S: Stream<Item = Result<Event<DynamicObject>, kube::runtime::watcher::Error>> + Unpin,
{
    let shown = async {
        while let Some(event) = seen.try_next().await? {
            if let Event::Apply(object) = event
                && object.metadata.name.as_deref() == Some(name)
                && object.data["spec"]["ports"][0]["number"] == port
            {
                return Ok(());
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(LONG, shown).await.with_context(|| format!("{name} was not seen changed"))?
}

/// A ServiceEntry as an importer's is, that is nobody's.
fn entry(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": SERVICE_ENTRY.0,
        "kind": SERVICE_ENTRY.1,
        "metadata": {"name": name, "namespace": ELSEWHERE},
        "spec": {
            "hosts": [format!("{name}.elsewhere.example")],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [{"name": "tcp", "number": port, "protocol": "TCP"}],
            "endpoints": [{"address": "10.77.2.2", "ports": {"tcp": 15443}}],
            "subjectAltNames": ["spiffe://west.example/ns/shop/sa/any"],
        },
    })
}

struct Figures {
    count: usize,
    p50: Duration,
    p99: Duration,
}

impl Figures {
    /// Of at least one. Of fewer than a hundred, p99 is the longest.
    fn of(mut samples: Vec<Duration>) -> Self {
        samples.sort();
        let at = |percent: usize| samples[(samples.len() * percent).div_ceil(100).max(1) - 1];
        Self { count: samples.len(), p50: at(50), p99: at(99) }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "median {:.1?}, p99 {:.1?} of {}", self.p50, self.p99, self.count)
    }
}

//! Metrics: what happens is counted as it does; what is so is read off the world when it is asked for.

pub mod described;
mod process;
#[cfg(test)]
mod reference;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod xds;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::model::object::Kind;
use crate::model::{BundleDigest, TrustDomain, World};
use described::Described;
use state::seconds;
pub use state::{Known, stream_state};
use text::Text;
pub use xds::OpenStream;
use xds::Xds;

/// How a write ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteLabels {
    result: WriteResult,
}

/// A kind of object.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

/// A part of a turn.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabels {
    step: Step,
}

/// A peer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PeerLabels {
    trust_domain: String,
}

/// Whether it went well.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub enum WriteResult {
    Ok,
    Error,
}

/// What became of a question to the DNS server.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AskedLabels {
    outcome: Asked,
}

/// What became of a question to the DNS server.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub enum Asked {
    Answered,
    /// The name is ours, and has nothing of that type.
    Empty,
    /// There is no such name of ours.
    Unknown,
    /// The name is not ours, and nobody else is asked; or everything was asked for at once.
    Refused,
    /// Somebody else answered.
    Forwarded,
    /// Nothing is known yet, or nobody else answered.
    Failed,
    Malformed,
    /// The source asks too much, has too many connections, or waits for too much; or all together wait for too much.
    Limited,
}

/// What a turn of reconciliation is made of.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Step {
    Plan,
    Apply,
}

impl EncodeLabelValue for Step {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Plan => "plan",
            Self::Apply => "apply",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

/// Whether this replica leads, and how long its Lease holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lead {
    pub leads: bool,
    /// What is left of the Lease now, and how long it holds when it was just renewed. `None` where it needs no renewal.
    pub lease: Option<(Duration, Duration)>,
}

/// What is remembered of peers from one plan to the next, for what happens between two.
#[derive(Debug, Default)]
struct Before {
    connected: BTreeMap<TrustDomain, bool>,
    /// Bundles that peers told of and that our SPIRE does not hold yet, since when.
    awaited: BTreeMap<TrustDomain, (BundleDigest, Instant)>,
}

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    plans: Counter<u64, AtomicU64>,
    writes: Family<WriteLabels, Counter>,
    drift_repaired: Family<KindLabels, Counter>,
    reconcile: Family<StepLabels, Histogram>,
    disconnects: Family<PeerLabels, Counter>,
    push: Histogram,
    xds: Xds,
    dns_queries: Family<AskedLabels, Counter>,
    /// In seconds of Unix time; 0 while the DNS server has nothing to answer, or there is none.
    dns_zone_changed: AtomicI64,
    failing_calls: AtomicUsize,
    /// How it goes with the kinds that are followed.
    followed: Mutex<BTreeMap<Kind, bool>>,
    before: Mutex<Before>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let plans = register(&mut registry, &described::PLANS, Counter::default());
        let writes = register(&mut registry, &described::WRITES, Family::default());
        let drift_repaired = register(&mut registry, &described::DRIFT_REPAIRED, Family::default());
        let reconcile: Family<StepLabels, Histogram> = Family::new_with_constructor(turns);
        let reconcile = register(&mut registry, &described::RECONCILE, reconcile);
        let disconnects = register(&mut registry, &described::PEER_DISCONNECTS, Family::default());
        let push = register(&mut registry, &described::PEER_BUNDLE_PUSH, pushes());
        let dns_queries = register(&mut registry, &described::DNS_QUERIES, Family::default());
        let dns_zone_changed = AtomicI64::new(0);
        let xds = Xds::register(&mut registry);
        let before = Mutex::default();
        Self {
            registry,
            plans,
            writes,
            drift_repaired,
            reconcile,
            disconnects,
            push,
            xds,
            dns_queries,
            dns_zone_changed,
            failing_calls: AtomicUsize::new(0),
            followed: Mutex::default(),
            before,
        }
    }
}

/// A turn takes from a tenth of a millisecond to the minute of a server that hangs.
fn turns() -> Histogram {
    Histogram::new([0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0])
}

/// A new authority is to be held within 2 s; SPIRE alone takes 15 to 75 s.
fn pushes() -> Histogram {
    Histogram::new([0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 75.0, 300.0])
}

/// The text of the encoder ends a help by itself, and a counter's name.
fn register<M: Metric + Clone>(registry: &mut Registry, metric: &Described, what: M) -> M {
    let help = metric.help.trim().trim_end_matches('.');
    registry.register(metric.name.trim_end_matches("_total"), help, what.clone());
    what
}

impl Metrics {
    /// Counts a write.
    pub fn wrote(&self, result: WriteResult) {
        self.writes.get_or_create(&WriteLabels { result }).inc();
    }

    /// Counts an object that was put back as it stood.
    pub fn repaired(&self, kind: Kind) {
        self.drift_repaired.get_or_create(&KindLabels { kind: kind.kind().to_owned() }).inc();
    }

    /// Counts a question to the DNS server.
    pub fn asked(&self, outcome: Asked) {
        self.dns_queries.get_or_create(&AskedLabels { outcome }).inc();
    }

    /// Takes down that the DNS server answers otherwise from now on.
    pub fn zone_changed(&self, now: Timestamp) {
        self.dns_zone_changed.store(now.as_second(), Ordering::Relaxed);
    }

    /// Takes down how many calls to SPIRE fail now.
    pub fn calls_fail(&self, count: usize) {
        self.failing_calls.store(count, Ordering::Relaxed);
    }

    /// Takes down which kinds are followed now, and whether each can be.
    pub fn follows(&self, kinds: BTreeMap<Kind, bool>) {
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = kinds;
    }

    /// Takes down how long a step took.
    pub fn took(&self, step: Step, time: Duration) {
        self.reconcile.get_or_create(&StepLabels { step }).observe(time.as_secs_f64());
    }

    /// Counts a plan, and what has become of peers since the one before.
    pub fn planned(&self, world: &World) {
        self.plans.inc();
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let Before { connected, awaited } = &mut *before;
        connected.retain(|trust_domain, _| world.peers.contains_key(trust_domain));
        awaited.retain(|trust_domain, _| world.peers.contains_key(trust_domain));
        for trust_domain in world.peers.keys() {
            let is = world.sessions.get(trust_domain).is_some_and(|session| session.is_connected());
            let was = connected.get(trust_domain).copied().unwrap_or_default();
            if is != was {
                connected.insert(trust_domain.clone(), is);
            }
            if was && !is {
                let labels = PeerLabels { trust_domain: trust_domain.to_string() };
                self.disconnects.get_or_create(&labels).inc();
            }
            self.await_bundle(world, trust_domain, awaited);
        }
    }

    fn await_bundle(
        &self,
        world: &World,
        trust_domain: &TrustDomain,
        awaited: &mut BTreeMap<TrustDomain, (BundleDigest, Instant)>,
    ) {
        let stored = world.spire.as_ref().and_then(|spire| spire.bundles.get(trust_domain));
        let stored = stored.map(|bundle| bundle.digest());
        if let Some((digest, since)) = awaited.get(trust_domain).copied()
            && stored == Some(digest)
        {
            self.push.observe(since.elapsed().as_secs_f64());
            awaited.remove(trust_domain);
        }
        let notice = world.memory.get(trust_domain).and_then(|memory| memory.notice.as_ref());
        let notice = notice.map(|notice| notice.digest).filter(|told| stored != Some(*told));
        match notice {
            Some(told) if awaited.get(trust_domain).is_none_or(|(digest, _)| *digest != told) => {
                awaited.insert(trust_domain.clone(), (told, Instant::now()));
            }
            _ => {}
        }
    }

    /// The text that Prometheus reads (OpenMetrics 1.0): what was counted, and what is known, where anything is.
    ///
    /// # Errors
    /// Where it cannot be encoded.
    pub fn encode(&self, lead: Lead, ready: bool, known: Option<Known<'_>>) -> Result<String, String> {
        let mut agent = Text::default();
        agent.set(&described::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
        agent.set(&described::READY, &[], f64::from(u8::from(ready)));
        agent.set(&described::LEADER, &[], f64::from(u8::from(lead.leads)));
        if let Some((left, whole)) = lead.lease.filter(|_| lead.leads) {
            agent.set(&described::LEASE_REMAINING, &[], left.as_secs_f64());
            agent.set(&described::LEASE_DURATION, &[], whole.as_secs_f64());
        }
        for (kind, is_up) in &*self.followed.lock().unwrap_or_else(PoisonError::into_inner) {
            agent.set(&described::STORE_UP, &[kind.kind()], f64::from(u8::from(*is_up)));
        }
        self.xds.read(&mut agent);
        let changed = self.dns_zone_changed.load(Ordering::Relaxed);
        if changed != 0 {
            agent.set(&described::DNS_ZONE_CHANGED, &[], seconds(changed));
        }
        let mut text = String::new();
        agent.encode(&mut text);
        if let Some(known) = known {
            state::read(known, self.failing_calls.load(Ordering::Relaxed)).encode(&mut text);
        }
        process::read().encode(&mut text);
        encode_registry(&mut text, &self.registry).map_err(|error| error.to_string())?;
        encode_eof(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }
}

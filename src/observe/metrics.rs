//! Metrics, read off what the agent knows: each condition of each peer, plans, writes.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::api::v1alpha1::conditions::ConditionType;
use crate::model::object::Kind;
use crate::model::{Peer, TrustDomain, World};
use crate::plan::{alarms, rotation};

/// A peer's condition.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConditionLabels {
    trust_domain: String,
    condition: String,
}

/// A peer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PeerLabels {
    trust_domain: String,
}

/// A SPIRE server of ours.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServerLabels {
    server: String,
}

/// An alarm of a peer's bundle.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct AlarmLabels {
    trust_domain: String,
    alarm: String,
}

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

/// Whether it went well.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub enum WriteResult {
    Ok,
    Error,
}

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    conditions: Family<ConditionLabels, Gauge>,
    bundle_expiry: Family<PeerLabels, Gauge>,
    activation: Family<ServerLabels, Gauge>,
    bundle_alarms: Family<AlarmLabels, Gauge>,
    plans: Counter<u64, AtomicU64>,
    writes: Family<WriteLabels, Counter>,
    drift_repaired: Family<KindLabels, Counter>,
    peers: Mutex<Vec<String>>,
    raised: Mutex<BTreeSet<AlarmLabels>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("entente");
        let conditions = Family::default();
        registry.register(
            "peer_condition",
            "Condition of a TrustDomainPeer: 1 True, 0 False, -1 Unknown",
            conditions.clone(),
        );
        let bundle_expiry = Family::default();
        registry.register(
            "peer_bundle_not_after_timestamp_seconds",
            "When the last authority of the peer's bundle in SPIRE expires",
            bundle_expiry.clone(),
        );
        let activation = Family::default();
        registry.register(
            "authority_activation_timestamp_seconds",
            "When SPIRE lets the prepared authority of a SPIRE server of ours sign by itself; absent while none is prepared",
            activation.clone(),
        );
        let bundle_alarms = Family::default();
        registry.register(
            "peer_bundle_alarm",
            "1 for each alarm of a peer's bundle that stands: the reasons of BundleEndpointHealthy",
            bundle_alarms.clone(),
        );
        let plans = Counter::default();
        registry.register("plans", "Plans that differed from the one before", plans.clone());
        let writes = Family::default();
        registry.register(
            "writes",
            "Objects written, patched or deleted, and calls to SPIRE",
            writes.clone(),
        );
        let drift_repaired = Family::default();
        registry.register(
            "drift_repaired",
            "Generated objects that someone else changed or deleted while the agent ran, and that it put back",
            drift_repaired.clone(),
        );
        Self {
            registry,
            conditions,
            bundle_expiry,
            bundle_alarms,
            activation,
            plans,
            writes,
            drift_repaired,
            peers: Mutex::default(),
            raised: Mutex::default(),
        }
    }
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

    /// Only what stands is shown: an alarm that ended is taken out.
    fn observe_alarms(&self, world: &World) {
        let of_peer = |(trust_domain, peer): (&TrustDomain, &Arc<Peer>)| {
            let raised = alarms::alarms(world, peer).into_iter().map(|alarm| alarm.reason.to_string());
            let trust_domain = trust_domain.to_string();
            raised
                .map(move |alarm| AlarmLabels { trust_domain: trust_domain.clone(), alarm })
                .collect::<Vec<_>>()
        };
        let now: BTreeSet<AlarmLabels> = world.peers.iter().flat_map(of_peer).collect();
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        for ended in raised.difference(&now) {
            self.bundle_alarms.remove(ended);
        }
        for begun in now.difference(&raised) {
            self.bundle_alarms.get_or_create(begun).set(1);
        }
        *raised = now;
    }

    /// Counts a plan and takes over what the world says of the peers.
    pub fn observe(&self, world: &World) {
        self.plans.inc();
        self.observe_activations(world);
        self.observe_alarms(world);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let now: Vec<String> = world.peers.keys().map(ToString::to_string).collect();
        if *peers != now {
            self.conditions.clear();
            self.bundle_expiry.clear();
            *peers = now;
        }
        for (trust_domain, peer) in &world.peers {
            let key = crate::model::ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object);
            let conditions =
                world.statuses.get(&key).and_then(|s| s.get("conditions")).and_then(Value::as_array);
            // Those that a peer may lose: what it was last is not what it is.
            for lost in
                [ConditionType::MeshReady, ConditionType::GatewaysReachable].map(ConditionType::as_str)
            {
                if !conditions.into_iter().flatten().any(|condition| condition["type"] == lost) {
                    let (trust_domain, condition) = (trust_domain.to_string(), lost.to_owned());
                    self.conditions.remove(&ConditionLabels { trust_domain, condition });
                }
            }
            for condition in conditions.into_iter().flatten() {
                let field = |name: &str| condition.get(name).and_then(Value::as_str).unwrap_or_default();
                let value = match field("status") {
                    "True" => 1,
                    "False" => 0,
                    _ => -1,
                };
                let labels = ConditionLabels {
                    trust_domain: trust_domain.to_string(),
                    condition: field("type").to_owned(),
                };
                self.conditions.get_or_create(&labels).set(value);
            }
            let bundle = world.spire.as_ref().and_then(|spire| spire.bundles.get(trust_domain));
            if let Some(last) = bundle.and_then(|b| b.authorities().map(|a| a.not_after()).max()) {
                let labels = PeerLabels { trust_domain: trust_domain.to_string() };
                self.bundle_expiry.get_or_create(&labels).set(last.as_second());
            }
        }
    }

    fn observe_activations(&self, world: &World) {
        let activations = rotation::activations(world);
        for server in world.spire.iter().flat_map(|spire| spire.servers.keys()) {
            let labels = ServerLabels { server: server.clone() };
            match activations.get(server.as_str()) {
                Some(at) => drop(self.activation.get_or_create(&labels).set(at.as_second())),
                None => drop(self.activation.remove(&labels)),
            }
        }
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// Where it cannot be encoded.
    pub fn encode(&self) -> Result<String, String> {
        let mut text = String::new();
        encode(&mut text, &self.registry).map_err(|error| error.to_string())?;
        Ok(text)
    }
}

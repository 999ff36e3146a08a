//! What clients without Istio are served, in numbers.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::text::Text;
use super::{Metrics, described, register};
use crate::plan::xds::ResourceType;
use crate::plan::xds::view::ClientKind;

/// A type of resource.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TypeLabels {
    r#type: String,
}

/// Counted as it happens, and what is so now.
#[derive(Debug)]
pub(super) struct Xds {
    envoys: Arc<AtomicI64>,
    grpc: Arc<AtomicI64>,
    answers: Family<TypeLabels, Counter>,
    nacks: Family<TypeLabels, Counter>,
    violations: Counter<u64, AtomicU64>,
    /// How many services are served, and since when; nothing where none is served by xDS.
    served: Mutex<Option<(usize, Timestamp)>>,
}

/// Counts a stream while it is there.
#[derive(Debug)]
pub struct OpenStream(Arc<AtomicI64>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Xds {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            envoys: Arc::default(),
            grpc: Arc::default(),
            answers: register(registry, &described::XDS_ANSWERS, Family::default()),
            nacks: register(registry, &described::XDS_NACKS, Family::default()),
            violations: register(registry, &described::XDS_VIOLATIONS, Counter::default()),
            served: Mutex::default(),
        }
    }

    /// What is so now, where anything is served.
    pub(super) fn read(&self, text: &mut Text) {
        let served = *self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((services, since)) = served else { return };
        for (client, count) in [(ClientKind::Envoy, &self.envoys), (ClientKind::Grpc, &self.grpc)] {
            let count = u32::try_from(count.load(Ordering::Relaxed)).unwrap_or_default();
            text.set(&described::XDS_STREAMS, &[client.as_str()], f64::from(count));
        }
        let services = u32::try_from(services).unwrap_or(u32::MAX);
        text.set(&described::XDS_SERVICES, &[], f64::from(services));
        text.set(&described::XDS_CHANGED, &[], since.as_duration().as_secs_f64());
    }
}

impl Metrics {
    /// Counts a stream of an xDS client until what it answers is dropped.
    pub fn xds_stream(&self, client: ClientKind) -> OpenStream {
        let count = match client {
            ClientKind::Envoy => &self.xds.envoys,
            ClientKind::Grpc => &self.xds.grpc,
        };
        count.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(count))
    }

    /// Counts an answer to an xDS client.
    pub fn xds_answer(&self, kind: ResourceType) {
        self.xds.answers.get_or_create(&TypeLabels { r#type: kind.as_str().to_owned() }).inc();
    }

    /// Counts an answer that an xDS client refused.
    pub fn xds_nack(&self, kind: ResourceType) {
        self.xds.nacks.get_or_create(&TypeLabels { r#type: kind.as_str().to_owned() }).inc();
    }

    /// Counts a stream that was ended for what its client did.
    pub fn xds_violation(&self) {
        self.xds.violations.inc();
    }

    /// Takes down that xDS clients are served something else from now on: so many services.
    pub fn xds_changed(&self, services: usize) {
        let mut served = self.xds.served.lock().unwrap_or_else(PoisonError::into_inner);
        *served = Some((services, crate::clock::now()));
    }
}

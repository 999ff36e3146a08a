//! Flags, made into what the parts are set by.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::{AgentArgs, StoreArg};
use crate::federation::{FederationConfig, Timings};
use crate::model::world::{Relationships, Settings};
use crate::store::{DirectoryStore, DirectoryTimings, KubernetesStore, Store};

pub(super) fn settings(args: &AgentArgs) -> Arc<Settings> {
    Arc::new(Settings {
        instance: args.instance.clone(),
        namespace: args.namespace.clone(),
        spire_class_name: args.spire_class_name.clone(),
        relationships: match args.store {
            StoreArg::Kubernetes => Relationships::ControllerManager,
            StoreArg::Directory(_) => Relationships::ServerApi,
        },
        drain: args.timing.drain(),
        poll_interval: Duration::from_secs(args.timing.spire_poll_seconds),
        agent_follow: Duration::from_secs(args.timing.agent_follow_seconds),
        redial: Duration::from_secs(args.timing.dial_max_seconds.max(1)),
        good_fetches: 3,
        checks_gateways: args.timing.gateway_check_seconds != 0,
        serves_xds: args.xds.is_on(),
        xds_all_bundles: args.xds.xds_all_bundles.clone(),
        dns: args.dns.listen.is_some(),
        ..args.cluster.settings(Settings::standard())
    })
}

pub(super) async fn open_store(args: &AgentArgs) -> anyhow::Result<Store> {
    match &args.store {
        StoreArg::Kubernetes => {
            let store = KubernetesStore::connect(&args.namespace, &args.instance).await.context(
                "--store kubernetes: no cluster by KUBECONFIG or in-cluster configuration; set one, or --store dir:PATH",
            )?;
            Ok(Store::Kubernetes(store))
        }
        StoreArg::Directory(path) => {
            let store = DirectoryStore::open(path, DirectoryTimings::default())
                .with_context(|| format!("--store dir:{}", path.display()))?;
            Ok(Store::Directory(store))
        }
    }
}

pub(super) fn federation_config(args: &AgentArgs) -> FederationConfig {
    let timings = Timings {
        backoff_min: Duration::from_secs(args.timing.dial_min_seconds.max(1)),
        backoff_max: Duration::from_secs(args.timing.dial_max_seconds.max(1)),
        ..Timings::default()
    };
    FederationConfig { listen: args.listen, timings }
}

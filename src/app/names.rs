//! The DNS server, where one is asked for.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::DnsArgs;
use crate::dns::{DnsConfig, DnsServer};
use crate::observe::metrics::Metrics;
use crate::plan::Plan;

/// How many questions a second are answered to one source, where nothing else is said.
const RATE: u32 = 1_000;

/// Starts it; where it is asked.
pub(super) async fn spawn_dns(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    args: &DnsArgs,
    plans: watch::Receiver<Arc<Plan>>,
    metrics: Arc<Metrics>,
    cancel: &CancellationToken,
) -> anyhow::Result<Option<SocketAddr>> {
    let Some(listen) = args.listen else {
        anyhow::ensure!(args.upstream.is_empty(), "--dns-upstream needs --dns-listen");
        return Ok(None);
    };
    let config = DnsConfig {
        listen,
        upstreams: args.upstream.iter().map(|upstream| upstream.0).collect(),
        rate: args.rate.unwrap_or(RATE),
    };
    let server = DnsServer::start(config, plans, metrics, cancel.clone()).await;
    let mut server = server.with_context(|| format!("--dns-listen {listen}"))?;
    tracing::info!(listen = %server.listen, "DNS is answered for the services that are imported");
    let at = server.listen;
    tasks.spawn(async move {
        while let Some(ended) = server.tasks.join_next().await {
            ended.context("a task of the DNS server panicked")??;
        }
        Ok(())
    });
    Ok(Some(at))
}

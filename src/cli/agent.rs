//! `entente agent`.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app;
use crate::config::AgentArgs;

/// Runs the agent until SIGTERM or SIGINT.
pub(super) async fn run(args: AgentArgs) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopping = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: saying goodbye to the peers");
        stopping.cancel();
    });
    app::start(&args, cancel).await?.wait().await
}

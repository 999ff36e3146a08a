//! `entente demo`.

use std::path::PathBuf;

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::devkit::demo::{self, Options};

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// End after the last step; the exit code is 0 only if every step was seen to be so. Otherwise it stays up until
    /// Ctrl-C.
    #[arg(long)]
    once: bool,

    /// Where its files go: a folder that is empty or not there yet, with a short path. Without it, a temporary one,
    /// removed at the end.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs until the last step, or Ctrl-C.
pub(super) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        // Without a signal handler, Ctrl-C ends the process as ever.
        if tokio::signal::ctrl_c().await.is_ok() {
            stopping.cancel();
        }
    });
    let options = Options { once: args.once, dir: args.dir };
    demo::run(&options, &mut std::io::stdout(), stop).await
}

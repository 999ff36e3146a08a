//! `entente demo`.
use clap::Args;
#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Run the call once, and end.
    #[arg(long)]
    once: bool,
}
pub(super) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    anyhow::bail!("{}", args.once)
}

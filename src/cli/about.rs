//! `entente about`: who a running agent is.

use std::io::Write as _;

use clap::Args;

use super::control::ControlFlags;
use super::output::TextFormat;
use crate::control::About;

#[derive(Args, Debug)]
pub(super) struct AboutArgs {
    /// The format of what is printed.
    #[arg(short, long, default_value = "text")]
    output: TextFormat,

    #[command(flatten)]
    control: ControlFlags,
}

/// Prints it.
pub(super) async fn run(args: &AboutArgs) -> anyhow::Result<()> {
    let client = args.control.client();
    let about: About = client.get("/v1/about").await?;
    if args.output.print_value(&about)? {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    let unknown = "not known yet".to_owned();
    writeln!(out, "trust domain  {}", about.trust_domain.as_ref().unwrap_or(&unknown))?;
    writeln!(out, "SPIFFE ID     {}", about.spiffe_id.as_ref().unwrap_or(&unknown))?;
    writeln!(out, "replica       {}{}", about.replica, if about.leader { " (leads)" } else { "" })?;
    if let Some(leads) = about.leads.as_ref().filter(|_| !about.leader) {
        writeln!(out, "leads         {leads}")?;
    }
    writeln!(out, "version       {}", about.version)?;
    if let Some(pod) = client.pod().await {
        writeln!(out, "reached in    pod {pod}")?;
    }
    Ok(())
}

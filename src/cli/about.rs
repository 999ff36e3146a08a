//! `entente about`: who a running agent is.

use std::io::Write as _;

use super::control::ControlArgs;
use crate::control::About;

/// Prints it.
pub(super) async fn run(args: &ControlArgs) -> anyhow::Result<()> {
    let about: About = args.client()?.get("/v1/about").await?;
    let mut out = std::io::stdout().lock();
    let unknown = "not known yet".to_owned();
    writeln!(out, "trust domain  {}", about.trust_domain.as_ref().unwrap_or(&unknown))?;
    writeln!(out, "SPIFFE ID     {}", about.spiffe_id.as_ref().unwrap_or(&unknown))?;
    writeln!(out, "replica       {}{}", about.replica, if about.leader { " (leads)" } else { "" })?;
    if let Some(leads) = about.leads.as_ref().filter(|_| !about.leader) {
        writeln!(out, "leads         {leads}")?;
    }
    writeln!(out, "version       {}", about.version)?;
    Ok(())
}

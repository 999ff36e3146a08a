//! `entente rotate`: changes the authorities that SPIRE signs with, in an order in which no peer refuses a workload.

mod report;
mod steps;
mod words;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use super::control::ControlFlags;
use super::exit::Unusable;
use super::output::TextFormat;
use crate::control::rotation::RotationState;
use crate::index::parse::time_span;
use crate::model::TrustDomain;
use report::{Outcome, Report};
use steps::Rotation;

/// What is rotated.
#[derive(Args, Debug)]
pub(super) struct RotateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// The X.509 authority of every SPIRE server: prepares the next one (or takes what is prepared), waits until every
    /// peer holds it, activates it. However it ends, it leaves a safe state and says which.
    X509(X509Args),
}

#[derive(Args, Debug)]
struct X509Args {
    #[command(flatten)]
    control: ControlFlags,

    /// Say what would be done, and what is in the way; change nothing.
    #[arg(long)]
    dry_run: bool,

    /// How long all of it may take, as in 90s, 10m or 1h.
    #[arg(long, default_value = "10m", value_parser = span)]
    timeout: Duration,

    /// Afterwards taint the authority that was replaced, so that SPIRE's agents replace what it signed.
    #[arg(long)]
    taint: bool,

    /// Afterwards taint it and, once SPIRE's agents had time to follow, take it out of our bundle.
    #[arg(long)]
    revoke: bool,

    /// Prepare and activate nothing: only taint, or revoke, what an earlier rotation replaced.
    #[arg(long)]
    finish: bool,

    /// Only these SPIRE servers, by address as --dry-run shows it; otherwise all.
    #[arg(long = "server")]
    servers: Vec<String>,

    /// Rotate though SPIRE federates with this trust domain, of which there is no TrustDomainPeer, so that nobody there
    /// can be asked: it may refuse our workloads. May be given several times.
    #[arg(long, value_name = "TRUST_DOMAIN", value_parser = trust_domain)]
    ignore: Vec<TrustDomain>,

    /// The format of what is printed.
    #[arg(short, long, default_value = "text")]
    output: TextFormat,
}

fn span(text: &str) -> Result<Duration, String> {
    time_span::parse("--timeout", text).map_err(|problem| problem.message)
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|error| error.to_string())
}

/// Rotates. The exit code is 0 once all was done that was asked for, else 1.
pub(super) async fn run(args: &RotateArgs) -> anyhow::Result<ExitCode> {
    let What::X509(args) = &args.what;
    if args.finish && !args.taint && !args.revoke {
        let words = "--finish does what --taint or --revoke asks for: give one of them";
        return Err(Unusable(words.to_owned()).into());
    }
    let client = args.control.client();
    let before: RotationState = client.get_settled("/v1/rotation").await?;
    if args.dry_run {
        let plan = words::plan(args, &before)?;
        return print(args, &Report::dry_run(before, plan));
    }
    let mut rotation = Rotation::new(args, client, before)?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (outcome, cause) = tokio::select! {
        ended = rotation.run() => match ended {
            Ok(()) => (Outcome::Done, None),
            Err(error) => (Outcome::Failed, Some(format!("{error:#}"))),
        },
        () = tokio::time::sleep(args.timeout) => {
            (Outcome::TimedOut, Some(format!("not done within {} s (--timeout)", args.timeout.as_secs())))
        }
        _ = interrupt.recv() => (Outcome::Interrupted, Some("interrupted".to_owned())),
        _ = terminate.recv() => (Outcome::Interrupted, Some("told to end".to_owned())),
    };
    let report = rotation.report(outcome, cause).await;
    print(args, &report)
}

fn print(args: &X509Args, report: &Report) -> anyhow::Result<ExitCode> {
    if !args.output.print_value(report)? {
        let mut out = std::io::stdout().lock();
        report.lines().iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! `entente diagnose`: the first broken link of the path to a peer, and what to do about it.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::control::ControlArgs;
use crate::control::AskDiagnosis;
use crate::diagnose::{Broken, Diagnosis, Side, Verdict};
use crate::model::TrustDomain;
use crate::model::diagnosis::Outcome;

/// After this, who waits is told why.
const QUIET: Duration = Duration::from_secs(1);
/// The agent could not be asked, or sees only part of the path.
const NOT_ASKED: u8 = 3;

/// Walks the path to a peer in order, from both ends where the peer's agent can be asked, and names the first broken
/// link and the remedy.
///
/// Exit codes: 0 healthy; 1 a link is broken; 2 the command line cannot be used; 3 the agent cannot be asked, or this
/// replica of it does not lead and so sees only part of the path.
#[derive(Args, Debug)]
pub(super) struct DiagnoseArgs {
    /// The peer: its trust domain, or the name of its TrustDomainPeer.
    #[arg(value_parser = peer)]
    peer: String,

    #[command(flatten)]
    control: ControlArgs,

    /// Do not ask the peer's agent what it sees.
    #[arg(long)]
    no_peer: bool,

    #[arg(short, long, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Names of objects are legal names of trust domains.
fn peer(text: &str) -> Result<String, String> {
    match TrustDomain::new(text) {
        Ok(_) if text.len() <= 255 && !text.contains("://") => Ok(text.to_owned()),
        _ => Err("neither a trust domain nor the name of a TrustDomainPeer".to_owned()),
    }
}

/// Asks the agent and prints what it found.
pub(super) async fn run(args: &DiagnoseArgs) -> anyhow::Result<ExitCode> {
    let diagnosis = match ask(args).await {
        Ok(diagnosis) => diagnosis,
        Err(error) => {
            writeln!(std::io::stderr(), "entente: {error:#}")?;
            return Ok(ExitCode::from(NOT_ASKED));
        }
    };
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&diagnosis)?)?,
        Output::Text => print(&mut out, &diagnosis)?,
    }
    Ok(match diagnosis.verdict {
        Verdict::Healthy => ExitCode::SUCCESS,
        Verdict::Broken => ExitCode::FAILURE,
        Verdict::Incomplete => ExitCode::from(NOT_ASKED),
    })
}

async fn ask(args: &DiagnoseArgs) -> anyhow::Result<Diagnosis> {
    let client = args.control.client()?;
    let path = format!("/v1/peers/{}/diagnose", args.peer);
    let how = AskDiagnosis { ask_peer: !args.no_peer };
    let asked = client.post(&path, &how);
    tokio::pin!(asked);
    if let Ok(answer) = tokio::time::timeout(QUIET, &mut asked).await {
        return answer;
    }
    writeln!(
        std::io::stderr(),
        "looking at the path to {}; what seems broken is looked at again for some seconds ...",
        args.peer
    )?;
    asked.await
}

fn print(out: &mut impl Write, diagnosis: &Diagnosis) -> std::io::Result<()> {
    for check in &diagnosis.checks {
        let mark = match check.outcome {
            Outcome::Passed => "ok  ",
            Outcome::Failed => "FAIL",
            Outcome::Skipped => "-   ",
        };
        writeln!(out, "{mark}  {:<24} {}", check.step.as_str(), check.message)?;
    }
    writeln!(out)?;
    let peer = &diagnosis.peer_trust_domain;
    match (&diagnosis.broken, diagnosis.verdict) {
        (Some(broken), _) => print_broken(out, peer, broken),
        (None, Verdict::Incomplete) => {
            writeln!(
                out,
                "What this replica of the agent sees is well. It does not lead: ask the one that does."
            )
        }
        (None, _) => writeln!(out, "The path to {peer} is well."),
    }
}

fn print_broken(out: &mut impl Write, peer: &str, broken: &Broken) -> std::io::Result<()> {
    let at = match broken.side {
        Side::Ours => "on our side".to_owned(),
        Side::Theirs => format!("on the side of {peer}"),
        Side::Between => format!("between us and {peer}"),
    };
    writeln!(out, "Broken: {}, {at}", broken.step)?;
    writeln!(out, "  cause   {}", broken.message)?;
    writeln!(out, "  remedy  {}", broken.remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_named_by_trust_domain_or_object() {
        for good in ["west.example", "west", "10.0.0.1"] {
            assert!(peer(good).is_ok(), "{good}");
        }
        for bad in ["", "West/../x", "spiffe://west.example", "a b"] {
            assert!(peer(bad).is_err(), "{bad}");
        }
    }
}

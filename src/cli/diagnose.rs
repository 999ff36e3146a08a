//! `entente diagnose`: the first broken link of the path to a peer, and what to do about it.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::control::ControlFlags;
use super::exit::NOT_ASKED;
use super::output::{Screen, TextFormat, Tone, noticed, plain};
use crate::control::AskDiagnosis;
use crate::diagnose::{Broken, Diagnosis, Side, Verdict};
use crate::model::TrustDomain;
use crate::model::diagnosis::Outcome;

/// Name the first broken link of the path to a peer, and the remedy.
///
/// The path is walked in order, from both ends where the peer's agent can be asked.
///
/// Exit codes: 0 healthy; 1 a link is broken; 2 the command line cannot be used; 3 the agent cannot be asked, or this
/// replica of it does not lead and so sees only part of the path.
#[derive(Args, Debug)]
pub(super) struct DiagnoseArgs {
    /// The peer: its trust domain, or the name of its TrustDomainPeer.
    #[arg(value_parser = peer)]
    peer: String,

    #[command(flatten)]
    control: ControlFlags,

    /// Do not ask the peer's agent what it sees.
    #[arg(long)]
    no_peer: bool,

    /// The format of what is printed.
    #[arg(short, long, default_value = "text")]
    output: TextFormat,
}

/// A trust domain or the name of a TrustDomainPeer: names of objects are legal names of trust domains.
pub(super) fn peer(text: &str) -> Result<String, String> {
    match TrustDomain::new(text) {
        Ok(_) if text.len() <= 255 && !text.contains("://") => Ok(text.to_owned()),
        _ => Err("neither a trust domain nor the name of a TrustDomainPeer".to_owned()),
    }
}

/// Asks the agent and prints what it found.
pub(super) async fn run(args: &DiagnoseArgs, screen: Screen) -> anyhow::Result<ExitCode> {
    let diagnosis = match ask(args).await {
        Ok(diagnosis) => diagnosis,
        Err(error) => {
            writeln!(std::io::stderr(), "entente: {error:#}")?;
            return Ok(ExitCode::from(NOT_ASKED));
        }
    };
    if !args.output.print_value(&diagnosis)? {
        print(&mut std::io::stdout().lock(), &diagnosis, screen)?;
    }
    Ok(match diagnosis.verdict {
        Verdict::Healthy => ExitCode::SUCCESS,
        Verdict::Broken => ExitCode::FAILURE,
        Verdict::Incomplete => ExitCode::from(NOT_ASKED),
    })
}

async fn ask(args: &DiagnoseArgs) -> anyhow::Result<Diagnosis> {
    let client = args.control.client();
    let path = format!("/v1/peers/{}/diagnose", args.peer);
    let how = AskDiagnosis { ask_peer: !args.no_peer };
    let what = || {
        let peer = &args.peer;
        format!("looking at the path to {peer}; what seems broken is looked at again for some seconds")
    };
    noticed(what, client.post_quietly(&path, &how)).await
}

fn print(out: &mut impl Write, diagnosis: &Diagnosis, screen: Screen) -> std::io::Result<()> {
    for check in &diagnosis.checks {
        let mark = match check.outcome {
            Outcome::Passed => screen.paint(Tone::Good, "ok  "),
            Outcome::Failed => screen.paint(Tone::Bad, "FAIL"),
            Outcome::Skipped => screen.paint(Tone::Faint, "-   "),
        };
        writeln!(out, "{mark}  {:<24} {}", check.step.as_str(), plain(&check.message))?;
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
    writeln!(out, "  cause   {}", plain(&broken.message))?;
    writeln!(out, "  remedy  {}", plain(&broken.remedy))
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

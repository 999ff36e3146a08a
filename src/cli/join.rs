//! `entente join`: becomes a peer of the trust domain that invites.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::control::{ControlFlags, Unanswered};
use super::exit::Unusable;
use super::invite::reach;
use super::output::{TextFormat, noticed, tell};
use crate::config::ReachArgs;
use crate::control::{JoinReport, JoinRequest};
use crate::enrol::token::{MAX_TOKEN, Token};

#[derive(Args, Debug)]
pub(super) struct JoinArgs {
    /// The token that `entente invite` printed at the other side; `-`: read it from standard input.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    token: Option<String>,

    /// A file that holds the token.
    #[arg(long)]
    file: Option<PathBuf>,

    /// Check everything up to the point at which the token would be used, and print what would be made.
    #[arg(long, conflicts_with = "accepted")]
    dry_run: bool,

    /// The other side has accepted already, and its answer was lost: make our side without asking again.
    #[arg(long)]
    accepted: bool,

    /// The format of what is printed.
    #[arg(short, long, default_value = "text")]
    output: TextFormat,

    #[command(flatten)]
    reach: ReachArgs,

    #[command(flatten)]
    control: ControlFlags,
}

/// Prints what was made, or would be, to standard output as manifests; the rest to standard error.
pub(super) async fn run(args: &JoinArgs) -> anyhow::Result<()> {
    let token = read(args)?;
    // What is wrong with the text itself is said without asking anyone.
    Token::parse(&token).map_err(|error| Unusable(error.to_string()))?;
    let request =
        JoinRequest { token, dry_run: args.dry_run, accepted: args.accepted, reach: reach(&args.reach)? };
    let client = args.control.client();
    let what = || "the agent asks the trust domain that invites".to_owned();
    let answer = noticed(what, client.post_quietly("/v1/join", &request)).await;
    let report: JoinReport = answer.map_err(|error: anyhow::Error| {
        if args.dry_run || !error.is::<Unanswered>() {
            return error;
        }
        error.context(
            "whether it has joined is not known. Where no TrustDomainPeer of the inviter comes to be here within a minute, \
             ask there whether it has one of ours: if so, run this again with --accepted; if not, run it again",
        )
    })?;
    if args.output.print_value(&report)? {
        tell(&summary(&report));
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    if args.dry_run {
        writeln!(out, "# would be made here, in {}", report.trust_domain)?;
        write!(out, "---\n{}", report.here)?;
        writeln!(out, "# would be made by {}", report.inviter)?;
        write!(out, "---\n{}", report.there)?;
    } else {
        write!(out, "---\n{}", report.here)?;
    }
    out.flush()?;
    tell(&summary(&report));
    Ok(())
}

fn summary(report: &JoinReport) -> String {
    let JoinReport { trust_domain, inviter, fingerprint, own_fingerprint, .. } = report;
    let agent = report.agent_spiffe_id.as_deref().map_or_else(String::new, |id| format!(" It is {id}."));
    let done = if report.joined {
        format!(
            "{trust_domain} has joined {inviter}.{agent} Each side has a TrustDomainPeer of the other, which imports nothing \
             and selects no workload yet: that is yours to widen. See `entente status`."
        )
    } else {
        format!("Nothing was made: the secret was not shown to {inviter}.{agent}")
    };
    format!(
        "{done}\nCompare by voice: the fingerprint of {inviter}'s bundle is\n  {fingerprint}\nand of {trust_domain}'s, as \
         {inviter} has it on its TrustDomainPeer ({annotation}),\n  {own_fingerprint}",
        annotation = crate::enrol::offer::ANNOTATION_FINGERPRINT,
    )
}

fn read(args: &JoinArgs) -> anyhow::Result<String> {
    let limit = u64::try_from(MAX_TOKEN).unwrap_or(u64::MAX).saturating_add(1);
    let mut text = String::new();
    match (&args.file, args.token.as_deref()) {
        (Some(path), _) => {
            let file = std::fs::File::open(path);
            let file = file.with_context(|| format!("{} cannot be read", path.display()))?;
            file.take(limit).read_to_string(&mut text).context("the file holds no text")?;
        }
        (None, Some("-")) => {
            std::io::stdin().take(limit).read_to_string(&mut text).context("standard input holds no text")?;
        }
        (None, token) => token.unwrap_or_default().clone_into(&mut text),
    }
    Ok(text)
}

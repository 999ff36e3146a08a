//! `entente peer history`: the bundles that a trust domain has had, from the store alone.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use crate::api::v1alpha1::bundle_audit::{AuditEntry, Witness};
use crate::cli::object;
use crate::cli::output::ListFormat;
use crate::cli::store::StoreFlags;
use crate::model::object::Kind;
use crate::plan::status::audit;

/// As much of a digest or an authority's ID as tells it from others, in a table.
const SHORT: usize = 16;

#[derive(Args, Debug)]
pub(in crate::cli) struct HistoryArgs {
    /// The foreign trust domain, or the name of its TrustDomainPeer.
    #[arg(value_name = "PEER", value_parser = crate::cli::diagnose::peer)]
    peer: String,

    #[command(flatten)]
    at: StoreFlags,

    /// The format of what is printed.
    #[arg(short, long, default_value = "table")]
    output: ListFormat,
}

/// Prints it, newest first. Exit codes: 0 well; 1 it failed, or there is no such peer.
pub(super) async fn run(args: HistoryArgs) -> anyhow::Result<ExitCode> {
    let peers = args.at.read(&[Kind::TrustDomainPeer]).await?.objects;
    // What is the trust domain of one may be the name of another's object: the trust domain counts.
    let of_domain = peers.values().find(|peer| object::trust_domain(peer) == args.peer);
    let named = || peers.values().find(|peer| peer.key.name == args.peer);
    let peer = of_domain.or_else(named).with_context(|| {
        format!("{}: no TrustDomainPeer is of {}; `entente peers` lists them", args.at.store(), args.peer)
    })?;
    let trail = audit::read(peer.status());
    let value = json!({ "trustDomain": object::trust_domain(peer), "audit": trail });
    if !args.output.print_value(&value)? {
        write!(std::io::stdout().lock(), "{}", table(&trail))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line a bundle; a longer one than fits says all in JSON.
fn table(trail: &[AuditEntry]) -> String {
    if trail.is_empty() {
        return "no bundle of it has been seen yet\n".to_owned();
    }
    let header = ["FIRST SEEN", "SEQUENCE", "DIGEST", "ADDED", "REMOVED", "CONFIRMED BY"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(trail.iter().map(row)).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(entry: &AuditEntry) -> [String; 6] {
    let short = |text: &String| text.chars().take(SHORT).collect::<String>();
    let list = |ids: &[String]| match ids {
        [] => "-".to_owned(),
        ids => ids.iter().map(short).collect::<Vec<_>>().join(","),
    };
    let by: Vec<&str> = entry.confirmed_by.iter().map(|witness| name(*witness)).collect();
    [
        entry.time.to_string(),
        entry.sequence.map_or("-".to_owned(), |sequence| sequence.to_string()),
        short(&entry.digest),
        list(&entry.added),
        list(&entry.removed),
        if by.is_empty() { "-".to_owned() } else { by.join(", ") },
    ]
}

const fn name(witness: Witness) -> &'static str {
    match witness {
        Witness::BundleEndpoint => "bundle endpoint",
        Witness::Bootstrap => "bootstrap bundle",
        Witness::Spire => "SPIRE",
        Witness::Peer => "the peer's word",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_is_a_table() {
        let entry = |second: i64, added: &[&str], confirmed_by: Vec<Witness>| AuditEntry {
            time: jiff::Timestamp::from_second(second).unwrap(),
            sequence: (second > 0).then_some(second),
            digest: "d".repeat(64),
            authorities: Vec::new(),
            added: added.iter().map(|id| (*id).to_owned()).collect(),
            removed: Vec::new(),
            confirmed_by,
        };
        let newer = entry(60, &["aa", "bb"], vec![Witness::BundleEndpoint, Witness::Peer]);
        let text = table(&[newer, entry(0, &["0123456789abcdef0123"], vec![])]);
        let expected = "\
FIRST SEEN            SEQUENCE  DIGEST            ADDED             REMOVED  CONFIRMED BY
1970-01-01T00:01:00Z  60        dddddddddddddddd  aa,bb             -        bundle endpoint, the peer's word
1970-01-01T00:00:00Z  -         dddddddddddddddd  0123456789abcdef  -        -
";
        assert_eq!(text, expected);
        assert_eq!(table(&[]), "no bundle of it has been seen yet\n");
    }
}

//! `entente clients`: who an agent serves by xDS, and what of it was refused.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::control::ControlFlags;
use super::exit;
use super::output::{Screen, TextFormat, Tone, plain, span, wrapped};
use super::table::{Cell, Column, Table};
use crate::clock;
use crate::control::ServedClients;

/// List the clients without Istio that an agent serves by xDS, and what they refused.
///
/// Each replica tells of its own. Exit code 1 where a client refused what it was sent.
#[derive(Args, Debug)]
pub(super) struct ClientsArgs {
    /// The format of what is printed.
    #[arg(short, long, default_value = "text")]
    output: TextFormat,

    #[command(flatten)]
    control: ControlFlags,
}

/// Prints them.
pub(super) async fn run(args: &ClientsArgs, screen: Screen) -> anyhow::Result<ExitCode> {
    let served: ServedClients = args.control.client().get("/v1/clients").await?;
    if !args.output.print_value(&served)? {
        write!(std::io::stdout().lock(), "{}", in_text(&served, screen, clock::now()))?;
    }
    Ok(exit::of_health(served.clients.iter().all(|client| client.refused.is_empty())))
}

fn in_text(served: &ServedClients, screen: Screen, now: Timestamp) -> String {
    if served.clients.is_empty() {
        return format!("Replica {} serves no client by xDS.\n", plain(&served.replica));
    }
    let mut table = Table::new([
        Column::kept("CLIENT"),
        Column::kept("TAKES"),
        Column::spare("KIND"),
        Column::spare("AGE"),
        Column::spare("NODE"),
    ]);
    let mut refusals = String::new();
    for client in &served.clients {
        let takes = if client.refused.is_empty() {
            Cell::toned(Tone::Good, "all")
        } else {
            Cell::toned(Tone::Bad, "refused some")
        };
        let since = now.as_second().saturating_sub(client.since.as_second());
        table.row([
            Cell::toned(Tone::Title, &client.spiffe_id),
            takes,
            Cell::new(&client.kind),
            Cell::new(span(since.max(0))),
            Cell::new(&client.node),
        ]);
        for (kind, refused) in &client.refused {
            let said =
                format!("{} refused a {kind} at {}: {}", client.spiffe_id, refused.at, refused.message);
            for line in wrapped(&plain(&said), screen.width) {
                refusals.push_str(&line);
                refusals.push('\n');
            }
        }
    }
    let gap = if refusals.is_empty() { "" } else { "\n" };
    format!("{}{gap}{refusals}", table.render(screen))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::xds::{ClientState, RefusedAnswer};

    #[test]
    fn who_refused_what_is_told() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let client = |name: &str, refused: &[(&str, &str)]| ClientState {
            spiffe_id: format!("spiffe://east.example/ns/web/sa/{name}"),
            node: name.to_owned(),
            kind: "envoy".to_owned(),
            since: at(-300),
            subscriptions: BTreeMap::new(),
            refused: refused
                .iter()
                .map(|(kind, message)| {
                    (
                        (*kind).to_owned(),
                        RefusedAnswer { at: at(0), message: (*message).to_owned(), services: [].into() },
                    )
                })
                .collect(),
        };
        let mut served = ServedClients { replica: "one".to_owned(), clients: Vec::new() };
        let screen = Screen { is_terminal: false, color: false, width: None };
        assert!(in_text(&served, screen, at(0)).contains("serves no client"));
        served.clients =
            vec![client("batch", &[]), client("frontend", &[("listener", "cannot bind\u{1b}[2J")])];
        let text = in_text(&served, screen, at(0));
        assert!(text.contains("sa/batch     all           envoy  5m"), "{text}");
        assert!(text.contains("sa/frontend refused a listener at 2023"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

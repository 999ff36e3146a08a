//! `entente status`: peers and services at a glance, from the store alone.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use super::exit;
use super::object::{self, KINDS, all_well, as_value, complaints, of_kind};
use super::output::{Color, ListFormat, Screen, Tone, plain, span, wrapped};
use super::services;
use super::store::{Following, Read, StoreFlags};
use super::table::{Cell, Column, Table};
use crate::clock;
use crate::model::Object;
use crate::model::object::Kind;

/// The most things that are not well of which each is explained.
const EXPLAINED: usize = 20;
/// The lines below what --watch shows.
const FOOTER: usize = 2;

/// Show every peer in both directions, and what is not well.
///
/// WE TRUST THEM: our SPIRE has their bundle, and our workloads get it. THEY TRUST US: they said so of ours. What is not well is
/// explained below, with what to do.
///
/// Exit code 1 where something is not well, also in between with --watch, which ends with 0 at Ctrl-C.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    at: StoreFlags,

    /// The format of what is printed.
    #[arg(short, long, default_value = "table")]
    output: ListFormat,

    /// Stay, and show it anew at every change, until Ctrl-C.
    #[arg(short, long)]
    watch: bool,
}

/// Prints it.
pub(super) async fn run(args: &StatusArgs, color: Color) -> anyhow::Result<ExitCode> {
    if args.watch {
        watch(args, color).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let read = args.at.read(&KINDS).await?;
    if !args.output.print_value(&as_value(&read))? {
        let screen = Screen::of_stdout(color);
        write!(std::io::stdout().lock(), "{}", shown(&read, args.output, screen, clock::now()))?;
    }
    Ok(exit::of_health(all_well(&read)))
}

async fn watch(args: &StatusArgs, color: Color) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // What the watch below would try for ever is said at once.
    args.at.read(&KINDS).await?;
    let store = args.at.open().await?;
    let mut following = Following::new(&store, &KINDS);
    let mut last = None;
    let mut was_drawn = false;
    let ended = loop {
        tokio::select! {
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            changed = following.next() => if let Err(error) = changed { break Err(error) },
        }
        if !following.is_whole() || last.as_ref() == Some(&following.read) {
            continue;
        }
        draw(&following.read, args.output, color, &mut was_drawn)?;
        last = Some(following.read.clone());
    };
    if was_drawn {
        leave()?;
    }
    ended
}

/// On a terminal over what was there, in one write and without clearing it first: nothing flickers. Elsewhere one after the
/// other; JSON as one line each.
fn draw(read: &Read, format: ListFormat, color: Color, was_drawn: &mut bool) -> anyhow::Result<()> {
    let screen = Screen::of_stdout(color);
    let mut out = std::io::stdout().lock();
    match format {
        ListFormat::Json => writeln!(out, "{}", as_value(read))?,
        ListFormat::Yaml => {
            writeln!(out, "---")?;
            drop(out);
            format.print_value(&as_value(read))?;
            return Ok(());
        }
        ListFormat::Table | ListFormat::Wide => {
            let now = clock::now();
            let text = shown(read, format, screen, now);
            if screen.is_terminal {
                let first = if *was_drawn { "" } else { "\u{1b}[?1049h\u{1b}[?25l" };
                *was_drawn = true;
                let height = terminal_size::terminal_size().map(|(_, height)| usize::from(height.0));
                write!(out, "{first}{}", over(&text, height, now))?;
            } else {
                writeln!(out, "--- {now:.0}\n{text}")?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// The text from the top of the screen on; the rest of each line, and of the screen, is emptied. What does not fit is left out at its
/// end: a screen that scrolls would lose the peers, which come first.
fn over(text: &str, height: Option<usize>, now: Timestamp) -> String {
    let room = height.map_or(usize::MAX, |height| height.saturating_sub(FOOTER));
    let mut screen = String::from("\u{1b}[H");
    for line in text.lines().take(room) {
        screen.push_str(line);
        screen.push_str("\u{1b}[K\r\n");
    }
    let more = match text.lines().skip(room).count() {
        0 => String::new(),
        more => format!("; {more} more lines do not fit"),
    };
    screen.push_str(&format!("\u{1b}[K\r\nas of {now:.0}; Ctrl-C ends{more}\u{1b}[K\u{1b}[J"));
    screen
}

/// Gives the terminal back as it was.
fn leave() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "\u{1b}[?25h\u{1b}[?1049l")?;
    out.flush()?;
    Ok(())
}

/// Peers, services, and what is not well.
fn shown(read: &Read, format: ListFormat, screen: Screen, now: Timestamp) -> String {
    let is_wide = format == ListFormat::Wide;
    let tables = if is_wide { Screen { width: None, ..screen } } else { screen };
    let mut parts = vec![peers(read, is_wide, tables, now)];
    parts.push(if is_wide { services::tables(read, tables) } else { services::summary(read) });
    parts.push(unwell(read, screen));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// The table of peers: each direction of trust has a column.
pub(super) fn peers(read: &Read, is_wide: bool, screen: Screen, now: Timestamp) -> String {
    let mut columns = vec![
        Column::kept("PEER"),
        Column::kept("READY"),
        Column::kept("WE TRUST THEM"),
        Column::kept("THEY TRUST US"),
        Column::spare("CONNECTED"),
        Column::spare("ROTATION SAFE"),
        Column::spare("EXPORTED"),
        Column::spare("IMPORTED"),
        Column::spare("REFUSED"),
        Column::spare("AGE"),
    ];
    if is_wide {
        columns.extend(["OBJECT", "ENDPOINT", "SERVICES SYNCED", "MESH", "BUNDLE"].map(Column::spare));
    }
    let mut table = Table::new(columns);
    for peer in of_kind(&read.objects, Kind::TrustDomainPeer) {
        table.row(row(peer, is_wide, now));
    }
    if table.is_empty() {
        return "No peer yet: `entente invite` begins with one, as does a TrustDomainPeer of your own.\n"
            .to_owned();
    }
    table.render(screen)
}

fn row(peer: &Object, is_wide: bool, now: Timestamp) -> Vec<Cell> {
    let truth = |kind: &str| Cell::truth(object::truth(peer, kind));
    let services = |what: &str| Cell::count(object::count(peer.status(), &format!("/services/{what}")));
    let age = peer.meta.created.map(|created| span(now.as_second() - created.as_second()));
    let refused = object::count(peer.status(), "/services/refused");
    let mut cells = vec![
        Cell::toned(Tone::Title, object::trust_domain(peer)),
        truth("Ready"),
        truth("BundleDistributed"),
        truth("Reciprocal"),
        truth("Connected"),
        truth("RotationSafe"),
        services("exported"),
        services("imported"),
        if refused == 0 { Cell::count(0) } else { Cell::toned(Tone::Doubtful, refused.to_string()) },
        Cell::new(age.unwrap_or_default()),
    ];
    if is_wide {
        let digest: String = object::text(peer.status(), "/bundle/digest").chars().take(12).collect();
        cells.push(Cell::new(&peer.key.name));
        cells.extend(["BundleEndpointHealthy", "ServicesSynced", "MeshReady"].map(truth));
        cells.push(Cell::new(digest));
    }
    cells
}

/// What is not well, each with its reason and what to do.
pub(super) fn unwell(read: &Read, screen: Screen) -> String {
    let mut text = String::new();
    let mut more = 0;
    let mut explained = 0;
    let width = screen.width.map(|width| width.saturating_sub(4));
    let mut explain = |name: &str, what: &str, why: &str, remedy: Option<String>| {
        if explained == EXPLAINED {
            more += 1;
            return;
        }
        explained += 1;
        text.push_str(&format!(
            "  {}  {}\n",
            screen.paint(Tone::Title, &plain(name)),
            screen.paint(Tone::Bad, &plain(what))
        ));
        for line in wrapped(&plain(why), width).into_iter().chain(remedy) {
            text.push_str(&format!("    {line}\n"));
        }
    };
    for unreadable in &read.unreadable {
        explain(&unreadable.path.display().to_string(), "not read", &unreadable.message, None);
    }
    let mut ill: Vec<&Object> = read.objects.values().collect();
    // Peers come first: much of what is wrong with services follows from them.
    ill.sort_by_key(|object| object.key.kind != Kind::TrustDomainPeer);
    for object in ill {
        let is_peer = object.key.kind == Kind::TrustDomainPeer;
        for (what, why) in complaints(object) {
            let peer = object::trust_domain(object);
            let name = if is_peer {
                peer.to_owned()
            } else {
                format!("{} {}", object.key.kind, object::name(object))
            };
            let remedy =
                is_peer.then(|| screen.paint(Tone::Faint, &format!("entente diagnose {}", plain(peer))));
            explain(&name, &what, &why, remedy);
        }
    }
    if text.is_empty() {
        return text;
    }
    if more > 0 {
        text.push_str(&format!("  and {more} more: see `-o json`\n"));
    }
    format!("Not well:\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::object::testing::{degraded, healthy, ill, rotating};
    use crate::cli::picture::picture;

    const SCREEN: Screen = Screen { is_terminal: false, color: false, width: None };

    fn now() -> Timestamp {
        "2026-01-04T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_healthy_federation() {
        insta::assert_snapshot!("status_healthy", shown(&healthy(), ListFormat::Table, SCREEN, now()));
        insta::assert_snapshot!("status_healthy_wide", shown(&healthy(), ListFormat::Wide, SCREEN, now()));
    }

    #[test]
    fn a_degraded_federation() {
        insta::assert_snapshot!("status_ill", shown(&ill(), ListFormat::Table, SCREEN, now()));
        let narrow = Screen { width: Some(60), ..SCREEN };
        insta::assert_snapshot!("status_ill_narrow", shown(&ill(), ListFormat::Table, narrow, now()));
        let coloured = Screen { color: true, ..SCREEN };
        insta::assert_snapshot!("status_ill_coloured", shown(&ill(), ListFormat::Table, coloured, now()));
    }

    /// The pictures of the documentation, as a terminal of 110 columns shows it.
    #[test]
    fn it_is_shown_in_the_documentation() {
        let terminal = Screen { is_terminal: true, color: true, width: Some(110) };
        for (name, read) in
            [("healthy", healthy()), ("degraded", degraded("connection refused")), ("rotating", rotating())]
        {
            let text = shown(&read, ListFormat::Table, terminal, now());
            let path = format!("docs/images/status-{name}.svg");
            crate::reference::golden(&path, &picture("entente status", &text));
        }
    }

    #[test]
    fn nothing_is_said_to_be_so() {
        insta::assert_snapshot!("status_empty", shown(&Read::default(), ListFormat::Table, SCREEN, now()));
    }

    #[test]
    fn a_screen_is_written_over_and_not_cleared_first() {
        let text = over("a\nb\n", None, now());
        assert!(
            text.starts_with("\u{1b}[Ha\u{1b}[K\r\nb\u{1b}[K\r\n") && text.ends_with("\u{1b}[J"),
            "{text:?}"
        );
        assert!(!text.contains("\u{1b}[2J"), "{text:?}");
    }

    #[test]
    fn a_screen_that_is_too_small_does_not_scroll() {
        let shown = over("a\nb\nc\nd\n", Some(5), now());
        assert_eq!(shown.matches('\n').count(), 4, "{shown:?}");
        assert!(shown.contains("c\u{1b}[K") && shown.contains("; 1 more lines do not fit"), "{shown:?}");
        assert!(!over("a\nb\nc\n", Some(5), now()).contains("more lines"));
    }

    #[test]
    fn what_scripts_read() {
        insta::assert_yaml_snapshot!("status_value", as_value(&healthy()));
    }
}

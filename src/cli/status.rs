//! `entente status`: peers and services at a glance, from the store alone.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::exit;
use super::object::{self, KINDS, all_well, as_value, complaints, of_kind};
use super::output::{Color, ListFormat, Screen, Tone, plain, span, tell, wrapped};
use super::services;
use super::store::{Following, Read, StoreFlags};
use super::table::{Cell, Column, Table};
use crate::clock;
use crate::model::Object;
use crate::model::object::Kind;
use crate::store::Store;

/// The most things that are not well of which each is explained.
const EXPLAINED: usize = 20;
/// The lines below what --watch shows.
const FOOTER: usize = 2;
/// How often --watch looks whether it still hears of changes, and shows how time goes on.
const LOOK: Duration = Duration::from_secs(5);
/// How long a kind is not followed before that is said. A failure counts for a minute, also where the next try went well.
const BREAK: Duration = Duration::from_secs(75);

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
    let mut display = Display { format: args.output, color, last: None, was_unheard: false, is_drawn: false };
    let showing = async {
        // What the watch below would try for ever is said at once.
        args.at.read(&KINDS).await?;
        let store = args.at.open().await?;
        follow(&store, |read, unheard| display.show(read, unheard)).await
    };
    let ended = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        ended = showing => ended,
    };
    if display.is_drawn {
        leave()?;
    }
    ended
}

/// Changes of these kinds are not heard of.
#[derive(Debug)]
struct Unheard {
    /// When that was found.
    since: Timestamp,
    began: Instant,
    kinds: String,
}

impl std::fmt::Display for Unheard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { since, kinds, .. } = self;
        write!(
            f,
            "not followed since {since:.0}: {kinds}. What is shown may be old; with --log warn it is said why"
        )
    }
}

/// Shows what the store holds at every change, and now and then in between, with what cannot be followed; until showing it fails,
/// or the store ends.
async fn follow(
    store: &Store,
    mut show: impl FnMut(&Read, Option<&Unheard>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut following = Following::new(store, &KINDS);
    let mut looks = tokio::time::interval(LOOK);
    let mut unheard: Option<Unheard> = None;
    loop {
        tokio::select! {
            changed = following.next() => changed?,
            _ = looks.tick() => {}
        }
        if !following.is_whole() {
            continue;
        }
        let lost = store.followed().into_iter().filter(|(_, is_heard)| !is_heard);
        let kinds = lost.map(|(kind, _)| kind.to_string()).collect::<Vec<_>>().join(", ");
        let before = unheard.map(|unheard| (unheard.since, unheard.began));
        let (since, began) = before.unwrap_or_else(|| (clock::now(), Instant::now()));
        unheard = (!kinds.is_empty()).then_some(Unheard { since, began, kinds });
        show(&following.read, unheard.as_ref().filter(|unheard| unheard.began.elapsed() >= BREAK))?;
    }
}

/// Where --watch shows things, and what was shown there last.
#[derive(Debug)]
struct Display {
    format: ListFormat,
    color: Color,
    last: Option<Read>,
    was_unheard: bool,
    /// Whether the terminal is ours to give back.
    is_drawn: bool,
}

impl Display {
    /// On a terminal over what was there, in one write and without clearing it first: nothing flickers. Elsewhere what is new, one
    /// after the other; JSON as one line each.
    fn show(&mut self, read: &Read, unheard: Option<&Unheard>) -> anyhow::Result<()> {
        let screen = Screen::of_stdout(self.color);
        let is_text = matches!(self.format, ListFormat::Table | ListFormat::Wide);
        if screen.is_terminal && is_text {
            return self.draw(read, unheard, screen);
        }
        if self.last.as_ref() != Some(read) {
            self.last = Some(read.clone());
            let mut out = std::io::stdout().lock();
            match self.format {
                ListFormat::Json => writeln!(out, "{}", as_value(read))?,
                ListFormat::Yaml => {
                    writeln!(out, "---")?;
                    drop(out);
                    self.format.print_value(&as_value(read))?;
                }
                ListFormat::Table | ListFormat::Wide => {
                    let now = clock::now();
                    writeln!(out, "--- {now:.0}\n{}", shown(read, self.format, screen, now))?;
                }
            }
            std::io::stdout().flush()?;
        }
        match unheard {
            Some(unheard) if !self.was_unheard => tell(&unheard.to_string()),
            None if self.was_unheard => tell("followed again"),
            _ => {}
        }
        self.was_unheard = unheard.is_some();
        Ok(())
    }

    fn draw(&mut self, read: &Read, unheard: Option<&Unheard>, screen: Screen) -> anyhow::Result<()> {
        let now = clock::now();
        let text = shown(read, self.format, screen, now);
        let first = if self.is_drawn { "" } else { "\u{1b}[?1049h\u{1b}[?25l" };
        self.is_drawn = true;
        let height = terminal_size::terminal_size().map(|(_, height)| usize::from(height.0));
        let warning = unheard.map_or_else(Vec::new, |unheard| wrapped(&unheard.to_string(), screen.width));
        let warning: Vec<String> = warning.iter().map(|line| screen.paint(Tone::Bad, line)).collect();
        let mut out = std::io::stdout().lock();
        write!(
            out,
            "{first}{}",
            over(&text, height, &warning, unheard.map_or(now, |unheard| unheard.since))
        )?;
        out.flush()?;
        Ok(())
    }
}

/// The text from the top of the screen on, and a warning below it; the rest of each line, and of the screen, is emptied. What does not
/// fit is left out at its end: a screen that scrolls would lose the peers, which come first.
fn over(text: &str, height: Option<usize>, warning: &[String], as_of: Timestamp) -> String {
    let room = height.map_or(usize::MAX, |height| height.saturating_sub(FOOTER + warning.len()));
    let mut screen = String::from("\u{1b}[H");
    for line in text.lines().take(room) {
        screen.push_str(line);
        screen.push_str("\u{1b}[K\r\n");
    }
    let more = match text.lines().skip(room).count() {
        0 => String::new(),
        more => format!("; {more} more lines do not fit"),
    };
    screen.push_str("\u{1b}[K\r\n");
    for line in warning {
        screen.push_str(&format!("{line}\u{1b}[K\r\n"));
    }
    screen.push_str(&format!("as of {as_of:.0}; Ctrl-C ends{more}\u{1b}[K\u{1b}[J"));
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::json;

    use super::*;
    use crate::cli::object::testing::{degraded, healthy, ill, rotating};
    use crate::cli::picture::picture;
    use crate::store::KubernetesStore;

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
        let text = over("a\nb\n", None, &[], now());
        assert!(
            text.starts_with("\u{1b}[Ha\u{1b}[K\r\nb\u{1b}[K\r\n") && text.ends_with("\u{1b}[J"),
            "{text:?}"
        );
        assert!(!text.contains("\u{1b}[2J"), "{text:?}");
    }

    #[test]
    fn a_screen_that_is_too_small_does_not_scroll() {
        let shown = over("a\nb\nc\nd\n", Some(5), &[], now());
        assert_eq!(shown.matches('\n').count(), 4, "{shown:?}");
        assert!(shown.contains("c\u{1b}[K") && shown.contains("; 1 more lines do not fit"), "{shown:?}");
        assert!(!over("a\nb\nc\n", Some(5), &[], now()).contains("more lines"));
        let warned = over("a\nb\nc\n", Some(5), &["old".to_owned()], now());
        assert_eq!(warned.matches('\n').count(), 4, "{warned:?}");
        assert!(
            warned.contains("\nold\u{1b}[K") && warned.contains("; 1 more lines do not fit"),
            "{warned:?}"
        );
    }

    /// An API server that lists, and whose watches fail as long as `refuses`.
    fn api_server(refuses: Arc<AtomicBool>) -> Store {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch="));
            let is_refused = is_watch && refuses.load(Ordering::SeqCst);
            async move {
                let (code, body) = match (is_watch, is_refused) {
                    (true, true) => (
                        403_u16,
                        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden"}),
                    ),
                    (true, false) => std::future::pending().await,
                    (false, _) => {
                        let metadata = json!({"resourceVersion": "1"});
                        (200, json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": []}))
                    }
                };
                let body = kube::client::Body::from(body.to_string().into_bytes());
                Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
            }
        });
        Store::Kubernetes(KubernetesStore::new(
            kube::Client::new(service, "default"),
            "entente-system",
            "entente",
        ))
    }

    /// Who looks at a wall is told that what hangs there is old, and that it is no more. A break is not worth a word.
    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_followed_is_not_shown_as_if_it_were() {
        let refuses = Arc::new(AtomicBool::new(true));
        let store = api_server(Arc::clone(&refuses));
        let again = Arc::clone(&refuses);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            again.store(false, Ordering::SeqCst);
        });
        let mut warnings: Vec<Option<String>> = Vec::new();
        let showing = follow(&store, |_, unheard| {
            let warning = unheard.map(|unheard| unheard.kinds.clone());
            if warnings.last() != Some(&warning) {
                warnings.push(warning);
            }
            Ok(())
        });
        let watched = tokio::time::timeout(Duration::from_secs(200), showing).await;
        assert!(watched.is_err() && warnings == [None], "{warnings:?}");

        refuses.store(true, Ordering::SeqCst);
        let mut begun = 0;
        let ended = follow(&store, |_, unheard| {
            match (unheard, begun) {
                (None, 0) => {}
                (Some(unheard), 0) => {
                    assert!(unheard.kinds.contains("TrustDomainPeer"), "{unheard}");
                    begun = 1;
                    refuses.store(false, Ordering::SeqCst);
                }
                (Some(_), _) => {}
                (None, _) => anyhow::bail!("heard again"),
            }
            Ok(())
        });
        let ended = tokio::time::timeout(Duration::from_secs(300), ended).await.unwrap();
        assert_eq!(ended.unwrap_err().to_string(), "heard again");
    }

    #[test]
    fn what_scripts_read() {
        insta::assert_yaml_snapshot!("status_value", as_value(&healthy()));
    }
}

//! `entente bundles`: the authorities of every bundle with the time that each is valid, and which peer holds which of ours.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::control::SocketFlag;
use super::exit::NotAsked;
use super::object::{self, list, of_kind, text};
use super::output::{ListFormat, Screen, Tone, plain, span, tell};
use super::store::{Read, StoreFlags};
use super::table::{Cell, Column, Table};
use super::timeline::{Axis, Span};
use crate::clock;
use crate::config::StoreArg;
use crate::control::HeldBundles;
use crate::control::rotation::RotationState;
use crate::model::Object;
use crate::model::object::Kind;

/// As much of an ID as tells it from others, in a table that is not wide.
const SHORT: usize = 16;

/// Show the authorities of every bundle, when each is valid, and which peer holds which.
///
/// The peers' are read from the store. Ours, and when an authority begins, are known to the running agent alone: where that
/// cannot be asked, the rest is shown, and a note says so.
#[derive(Args, Debug)]
pub(super) struct BundlesArgs {
    /// Only these trust domains.
    #[arg(value_name = "TRUST_DOMAIN")]
    trust_domains: Vec<String>,

    #[command(flatten)]
    at: StoreFlags,

    #[command(flatten)]
    socket: SocketFlag,

    /// The format of what is printed.
    #[arg(short, long, default_value = "table")]
    output: ListFormat,
}

/// Prints them.
pub(super) async fn run(args: &BundlesArgs, screen: Screen) -> anyhow::Result<ExitCode> {
    let read = args.at.read(&[Kind::TrustDomainPeer]).await?;
    let (told, note) = match ask(args).await {
        Ok(told) => (Some(told), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let mut bundles = bundles(&read, told.as_ref());
    bundles
        .retain(|bundle| args.trust_domains.is_empty() || args.trust_domains.contains(&bundle.trust_domain));
    let is_known = |name: &&String| bundles.iter().any(|bundle| bundle.trust_domain == **name);
    if let Some(name) = args.trust_domains.iter().find(|name| !is_known(name)) {
        return Err(unknown(args.at.store(), name, note.as_deref()));
    }
    if !args.output.print_value(&serde_json::json!({ "bundles": bundles }))? {
        let is_wide = args.output == ListFormat::Wide;
        let screen = if is_wide { Screen { width: None, ..screen } } else { screen };
        let now = clock::now();
        let texts: Vec<String> =
            bundles.iter().map(|bundle| describe(bundle, is_wide, screen, now)).collect();
        let mut out = std::io::stdout().lock();
        write!(out, "{}", texts.join("\n"))?;
        if bundles.is_empty() {
            writeln!(out, "No bundle is known yet.")?;
        }
    }
    if let Some(note) = note {
        tell(&format!("note: our own authorities are not shown: {note}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Why there is no bundle of a trust domain. It may be ours, which the agent alone can tell.
fn unknown(store: &StoreArg, name: &str, unasked: Option<&str>) -> anyhow::Error {
    match unasked {
        Some(why) => NotAsked(format!(
            "{store}: no bundle of {name} is there, and whether it is ours is not known: {why}"
        ))
        .into(),
        None => anyhow::anyhow!("{store}: no bundle of {name} is known; `entente peers` lists the peers"),
    }
}

async fn ask(args: &BundlesArgs) -> anyhow::Result<(HeldBundles, RotationState)> {
    // A cluster's agent has nothing to do with a directory.
    let is_beside = args.socket.control.is_some() || args.socket.path().exists();
    if matches!(args.at.store(), StoreArg::Directory(_)) && !is_beside {
        return Err(NotAsked("give the control socket of the agent with --control".to_owned()).into());
    }
    let client = args.socket.client(&args.at.cluster);
    let held = client.get("/v1/bundles").await?;
    Ok((held, client.get("/v1/rotation").await?))
}

/// A bundle, for scripts and people.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    trust_domain: String,
    is_ours: bool,
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_hint: Option<i64>,
    authorities: Vec<Authority>,
}

/// One authority.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Authority {
    id: String,
    /// From when on it is valid; where only the store was read, when it was first seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    not_after: Timestamp,
    tainted: bool,
    /// `active`, `prepared` or `old`, of ours: where SPIRE has it, with the server where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<String>,
    /// Of ours: the peers that hold it, and those that do not, with the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_by: Option<Vec<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    lacked_by: BTreeMap<String, String>,
}

fn bundles(read: &Read, told: Option<&(HeldBundles, RotationState)>) -> Vec<Bundle> {
    let ours = told.and_then(|(held, rotation)| ours(held, rotation));
    let peers = of_kind(&read.objects, Kind::TrustDomainPeer);
    ours.into_iter().chain(peers.filter_map(|peer| theirs(peer, told.map(|(held, _)| held)))).collect()
}

fn theirs(peer: &Object, held: Option<&HeldBundles>) -> Option<Bundle> {
    let status = peer.status();
    let digest = text(status, "/bundle/digest");
    if digest.is_empty() {
        return None;
    }
    let trust_domain = object::trust_domain(peer).to_owned();
    let told = held.and_then(|held| held.bundles.get(&trust_domain));
    let number = |pointer: &str| status.and_then(|status| status.pointer(pointer)).and_then(Value::as_i64);
    let authority = |value: &Value| {
        let id = text(Some(value), "/id").to_owned();
        let exact = told.and_then(|told| told.authorities.iter().find(|authority| authority.id == id));
        Some(Authority {
            not_before: exact.map(|exact| exact.not_before).or_else(|| first_seen(status, &id)),
            not_after: text(Some(value), "/notAfter").parse().ok()?,
            tainted: value.get("tainted").and_then(Value::as_bool).unwrap_or_default(),
            id,
            slot: None,
            held_by: None,
            lacked_by: BTreeMap::new(),
        })
    };
    let mut authorities: Vec<Authority> =
        list(status, "/bundle/authorities").iter().filter_map(authority).collect();
    authorities.sort_by_key(|authority| authority.not_after);
    Some(Bundle {
        trust_domain,
        is_ours: false,
        digest: digest.to_owned(),
        sequence: number("/bundle/sequence"),
        refresh_hint: number("/bundle/refreshHint"),
        authorities,
    })
}

/// When the audit trail first has an authority.
fn first_seen(status: Option<&Value>, id: &str) -> Option<Timestamp> {
    let added = |entry: &&Value| list(Some(entry), "/added").iter().any(|added| added.as_str() == Some(id));
    let entry = list(status, "/audit").iter().rev().find(added)?;
    text(Some(entry), "/time").parse().ok()
}

fn ours(held: &HeldBundles, rotation: &RotationState) -> Option<Bundle> {
    let bundle = held.bundles.get(&held.trust_domain)?;
    let authority = |authority: &crate::control::HeldAuthority| {
        let (mut slots, mut tainted, mut lacked_by) = (Vec::new(), false, BTreeMap::new());
        for (address, server) in &rotation.servers {
            for (name, slot) in
                [("active", &server.active), ("prepared", &server.prepared), ("old", &server.old)]
            {
                let Some(slot) = slot.as_ref().filter(|slot| slot.id == authority.id) else { continue };
                let at = if rotation.servers.len() > 1 { format!(" at {address}") } else { String::new() };
                slots.push(format!("{name}{at}"));
                tainted |= slot.tainted;
                lacked_by.extend(slot.lacking.clone());
            }
        }
        let mut held_by = Vec::new();
        for (name, peer) in rotation.peers.iter().filter(|(name, _)| !lacked_by.contains_key(*name)) {
            if peer.holds.as_ref().is_some_and(|holds| holds.contains(&authority.id)) {
                held_by.push(name.clone());
            }
        }
        Authority {
            id: authority.id.clone(),
            not_before: Some(authority.not_before),
            not_after: authority.not_after,
            tainted,
            slot: (!slots.is_empty()).then(|| slots.join(", ")),
            held_by: Some(held_by),
            lacked_by,
        }
    };
    let mut authorities: Vec<Authority> = bundle.authorities.iter().map(authority).collect();
    authorities.sort_by_key(|authority| authority.not_after);
    Some(Bundle {
        trust_domain: held.trust_domain.clone(),
        is_ours: true,
        digest: bundle.digest.clone(),
        sequence: None,
        refresh_hint: None,
        authorities,
    })
}

fn describe(bundle: &Bundle, is_wide: bool, screen: Screen, now: Timestamp) -> String {
    let short = |id: &str| if is_wide { id.to_owned() } else { id.chars().take(SHORT).collect() };
    let whose = if bundle.is_ours { " (ours)" } else { "" };
    let sequence = bundle.sequence.map(|sequence| format!(", sequence {sequence}")).unwrap_or_default();
    let hint = bundle.refresh_hint.map(|hint| format!(", refresh hint {}", span(hint))).unwrap_or_default();
    let title = screen.paint(Tone::Title, &plain(&bundle.trust_domain));
    let mut text = format!("{title}{whose}  digest {}{sequence}{hint}\n", short(&plain(&bundle.digest)));
    let spans: Vec<Span> =
        bundle.authorities.iter().map(|a| Span { from: a.not_before, until: a.not_after }).collect();
    let axis = Axis::of(&spans, now);
    let mut columns = vec![Column::kept("AUTHORITY")];
    if bundle.is_ours {
        columns.extend([Column::kept("SLOT"), Column::kept("HELD BY")]);
    }
    columns.extend([Column::kept("LEFT"), Column::spare("EXPIRES"), Column::spare(axis.title())]);
    let mut table = Table::new(columns);
    for (authority, span) in bundle.authorities.iter().zip(&spans) {
        let mut cells = vec![Cell::new(short(&authority.id))];
        if bundle.is_ours {
            let slot = authority.slot.clone().unwrap_or_default();
            let tone = if slot.contains("active") { Tone::Good } else { Tone::Plain };
            cells.extend([Cell::toned(tone, slot), holders(authority)]);
        }
        cells.push(left(authority, now));
        cells.push(Cell::new(format!("{:.0}", authority.not_after)));
        cells.push(Cell::new(axis.bar(span)));
        table.row(cells);
    }
    if table.is_empty() {
        text.push_str(
            &screen.paint(Tone::Bad, "  no X.509 authority: no SVID of this trust domain can be verified\n"),
        );
        return text;
    }
    for line in
        table.render(Screen { width: screen.width.map(|width| width.saturating_sub(2)), ..screen }).lines()
    {
        text.push_str(&format!("  {line}\n"));
    }
    for authority in &bundle.authorities {
        for (peer, why) in &authority.lacked_by {
            let note = format!("  {} is not held by {peer}: {why}", short(&authority.id));
            text.push_str(&format!("{}\n", screen.paint(Tone::Doubtful, &plain(&note))));
        }
    }
    text
}

fn holders(authority: &Authority) -> Cell {
    let held = authority.held_by.as_deref().unwrap_or_default();
    let (some, lacking) = (held.len(), authority.lacked_by.len());
    match (some, lacking) {
        (0, 0) => Cell::new(""),
        (1..=3, 0) => Cell::toned(Tone::Good, held.join(", ")),
        (some, 0) => Cell::toned(Tone::Good, format!("all {some}")),
        (some, lacking) => Cell::toned(Tone::Bad, format!("{some} of {}", some + lacking)),
    }
}

fn left(authority: &Authority, now: Timestamp) -> Cell {
    let left = authority.not_after.as_second() - now.as_second();
    match left {
        _ if authority.tainted => Cell::toned(Tone::Bad, "tainted"),
        ..0 => Cell::toned(Tone::Bad, "expired"),
        _ if authority.not_before.is_some_and(|from| from > now) => Cell::toned(Tone::Doubtful, "not yet"),
        left => Cell::new(span(left)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::object::testing::object;
    use crate::control::rotation::{AuthorityState, PeerState, ServerState};
    use crate::control::{HeldAuthorities, HeldAuthority};
    use crate::model::ObjectKey;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn read() -> Read {
        let (old, new) = ("0a".repeat(20), "0b".repeat(20));
        let status = json!({
            "bundle": { "digest": "cd".repeat(32), "sequence": 7, "refreshHint": 300, "authorities": [
                { "id": new, "notAfter": "2026-01-09T00:00:00Z", "tainted": false },
                { "id": old, "notAfter": "2026-01-05T00:00:00Z", "tainted": true },
            ] },
            "audit": [
                { "time": "2026-01-03T00:00:00Z", "digest": "cd".repeat(32), "added": [new], "removed": [] },
                { "time": "2026-01-01T00:00:00Z", "digest": "ef".repeat(32), "added": [old], "removed": [] },
            ],
        });
        let peer = object(
            ObjectKey::cluster(Kind::TrustDomainPeer, "west"),
            json!({ "trustDomain": "west.example" }),
            status,
            &[],
        );
        Read { objects: [(peer.key.clone(), peer)].into(), unreadable: Vec::new() }
    }

    fn told() -> (HeldBundles, RotationState) {
        let authority = |id: &str, from: &str, until: &str| HeldAuthority {
            id: id.repeat(20),
            not_before: at(from),
            not_after: at(until),
            certificate: String::new(),
        };
        let bundle = HeldAuthorities {
            digest: "ab".repeat(32),
            authorities: vec![
                authority("1b", "2026-01-03T12:00:00Z", "2026-01-07T00:00:00Z"),
                authority("1a", "2026-01-01T00:00:00Z", "2026-01-05T00:00:00Z"),
            ],
        };
        let held = HeldBundles {
            trust_domain: "east.example".to_owned(),
            bundles: [("east.example".to_owned(), bundle)].into(),
            malformed: BTreeMap::new(),
        };
        let state = |id: &str, lacking: BTreeMap<String, String>| AuthorityState {
            id: id.repeat(20),
            expires_at: at("2026-01-05T00:00:00Z"),
            upstream: None,
            published: true,
            tainted: false,
            revocable_at: None,
            lacking,
        };
        let lacking = [("west.example".to_owned(), "it holds our bundle of before".to_owned())].into();
        let server = ServerState {
            failure: None,
            active: Some(state("1a", BTreeMap::new())),
            prepared: Some(state("1b", lacking)),
            old: None,
            activates_at: None,
        };
        let peer = |ids: &[&str]| PeerState {
            exempt: None,
            holds: Some(ids.iter().map(|id| id.repeat(20)).collect()),
            by_receipt: true,
        };
        let rotation = RotationState {
            trust_domain: "east.example".to_owned(),
            servers: [("unix:///run/spire/api.sock".to_owned(), server)].into(),
            of_no_server: [].into(),
            peers: [
                ("north.example".to_owned(), peer(&["1a", "1b"])),
                ("west.example".to_owned(), peer(&["1a"])),
            ]
            .into(),
            unasked: BTreeMap::new(),
        };
        (held, rotation)
    }

    #[test]
    fn whether_a_bundle_is_ours_is_not_guessed() {
        let unasked = unknown(&StoreArg::Kubernetes, "west.example", Some("no agent answers at /s"));
        assert!(unasked.is::<NotAsked>() && unasked.to_string().contains("no agent answers"), "{unasked}");
        let asked = unknown(&StoreArg::Kubernetes, "west.example", None);
        assert!(!asked.is::<NotAsked>() && asked.to_string().contains("entente peers"), "{asked}");
    }

    #[test]
    fn authorities_have_a_time_line_and_holders() {
        let screen = Screen { is_terminal: false, color: false, width: None };
        let describe = |told: Option<&(HeldBundles, RotationState)>, screen: Screen| {
            let bundles = bundles(&read(), told);
            let texts: Vec<String> = bundles
                .iter()
                .map(|bundle| super::describe(bundle, false, screen, at("2026-01-04T00:00:00Z")))
                .collect();
            texts.join("\n")
        };
        insta::assert_snapshot!("bundles_told", describe(Some(&told()), screen));
        insta::assert_snapshot!("bundles_of_the_store", describe(None, screen));
        insta::assert_snapshot!(
            "bundles_narrow",
            describe(Some(&told()), Screen { width: Some(60), ..screen })
        );
        insta::assert_yaml_snapshot!("bundles_value", bundles(&read(), Some(&told())));
    }
}

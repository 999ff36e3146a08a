//! `entente peers`: the peers, or all that is known of one, from the store alone.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::exit;
use super::object::{self, all_well, conditions, count, list, of_kind, text};
use super::output::{ListFormat, Screen, Tone, plain, span, wrapped};
use super::status;
use super::store::{Read, StoreFlags};
use crate::clock;
use crate::model::Object;
use crate::model::object::Kind;

/// Where the texts of a description begin.
const INDENT: usize = 26;

/// List the peers, or describe one.
///
/// Of those that are named it shows all that is known: conditions with their reasons, addresses, bundle, what they hold of ours.
///
/// Exit code 1 where one is not ready, or a manifest cannot be read.
#[derive(Args, Debug)]
pub(super) struct PeersArgs {
    /// A trust domain, or the name of a TrustDomainPeer.
    #[arg(value_name = "PEER")]
    peers: Vec<String>,

    #[command(flatten)]
    at: StoreFlags,

    /// The format of what is printed.
    #[arg(short, long, default_value = "table")]
    output: ListFormat,
}

/// Prints them.
pub(super) async fn run(args: &PeersArgs, screen: Screen) -> anyhow::Result<ExitCode> {
    let mut read = args.at.read(&[Kind::TrustDomainPeer]).await?;
    let is =
        |object: &Object, name: &String| object.key.name == *name || object::trust_domain(object) == name;
    for name in &args.peers {
        read.objects.values().find(|object| is(object, name)).with_context(|| {
            format!("{}: no TrustDomainPeer is of {name}; `entente peers` lists them", args.at.store())
        })?;
    }
    if !args.peers.is_empty() {
        read.objects.retain(|_, object| args.peers.iter().any(|name| is(object, name)));
        read.unreadable.clear();
    }
    if !args.output.print_value(&value(&read))? {
        let screen = if args.output == ListFormat::Wide { Screen { width: None, ..screen } } else { screen };
        let mut out = std::io::stdout().lock();
        let now = clock::now();
        if args.peers.is_empty() {
            write!(out, "{}", table(&read, args.output == ListFormat::Wide, screen, now))?;
        } else {
            let texts: Vec<String> = read.objects.values().map(|peer| describe(peer, screen, now)).collect();
            write!(out, "{}", texts.join("\n"))?;
        }
    }
    Ok(exit::of_health(all_well(&read)))
}

/// The peers, for scripts.
fn value(read: &Read) -> Value {
    let values: Vec<Value> =
        of_kind(&read.objects, Kind::TrustDomainPeer).map(object::object_value).collect();
    object::with_unreadable(json!({ "peers": values }), read)
}

/// The peers, and what was not read: a peer may be in it.
fn table(read: &Read, is_wide: bool, screen: Screen, now: Timestamp) -> String {
    let mut text = status::peers(read, is_wide, screen, now);
    let unread = Read { unreadable: read.unreadable.clone(), ..Read::default() };
    let unread = status::unwell(&unread, screen);
    if !unread.is_empty() {
        text.push('\n');
        text.push_str(&unread);
    }
    text
}

/// All that is known of a peer.
fn describe(peer: &Object, screen: Screen, now: Timestamp) -> String {
    let title = format!("{} (TrustDomainPeer {})", object::trust_domain(peer), peer.key.name);
    let mut text_of = format!("{}\n", screen.paint(Tone::Title, &plain(&title)));
    for condition in conditions(peer) {
        let of = |field: &str| text(Some(condition), field);
        let since = of("/lastTransitionTime").parse::<Timestamp>().ok();
        let since = since.map(|at| format!(", for {}", span(now.as_second() - at.as_second())));
        let what = format!("{:<8}({}{})", of("/status"), of("/reason"), since.unwrap_or_default());
        let tone = Tone::of_truth(of("/status"));
        text_of.push_str(&field(of("/type"), &screen.paint(tone, &plain(&what))));
        if of("/status") != "True" {
            indented(&mut text_of, of("/message"), screen);
        }
    }
    if conditions(peer).next().is_none() {
        text_of.push_str(&field("not judged yet", "no agent has looked at it: does one follow this store?"));
    }
    for (name, value) in fields(peer) {
        text_of.push_str(&field(name, &plain(&value)));
    }
    text_of
}

fn field(name: &str, value: &str) -> String {
    format!("  {:<width$}{value}\n", plain(name), width = INDENT - 2)
}

fn indented(to: &mut String, words: &str, screen: Screen) {
    let width = screen.width.map(|width| width.saturating_sub(INDENT).max(20));
    for line in wrapped(&plain(words), width) {
        to.push_str(&format!("{:INDENT$}{line}\n", ""));
    }
}

/// Names and values; a name that is empty goes on with the one before.
fn fields(peer: &Object) -> Vec<(&'static str, String)> {
    let (spec, status) = (peer.spec(), peer.status());
    let mut fields = Vec::new();
    let mut many = |name: &'static str, values: Vec<String>| {
        let names = std::iter::once(name).chain(std::iter::repeat(""));
        fields.extend(names.zip(values.into_iter().filter(|value| !value.is_empty())));
    };
    let texts =
        |items: &[Value]| items.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    let addresses = match texts(list(spec, "/agent/addresses")) {
        none if none.is_empty() => vec!["no address: it dials us".to_owned()],
        addresses => addresses,
    };
    many("Agent", addresses.into_iter().chain(texts(list(spec, "/agent/spiffeIDs"))).collect());
    let profile =
        [text(spec, "/bundleEndpoint/profile/type"), text(spec, "/bundleEndpoint/profile/endpointSPIFFEID")];
    many(
        "Bundle endpoint",
        vec![text(spec, "/bundleEndpoint/url").to_owned(), profile.join(" ").trim().to_owned()],
    );
    let authorities = list(status, "/bundle/authorities").len();
    let digest = text(status, "/bundle/digest");
    if !digest.is_empty() {
        let sequence = status.and_then(|status| status.pointer("/bundle/sequence")).and_then(Value::as_i64);
        let sequence = sequence.map(|number| format!(", sequence {number}")).unwrap_or_default();
        let hint = count(status, "/bundle/refreshHint");
        let hint = if hint == 0 { String::new() } else { format!(", refresh hint {hint} s") };
        many("Bundle", vec![digest.to_owned(), format!("X.509 authorities: {authorities}{sequence}{hint}")]);
    }
    let held = list(status, "/remoteView/held").len();
    let missing = texts(list(status, "/remoteView/missing"));
    if status.is_some_and(|status| status.get("remoteView").is_some()) {
        let lacks =
            if missing.is_empty() { String::new() } else { format!("; it lacks {}", missing.join(", ")) };
        many("Holds of ours", vec![format!("authorities: {held}{lacks}")]);
    }
    let services = |what: &str| count(status, &format!("/services/{what}"));
    let (exported, imported, refused) = (services("exported"), services("imported"), services("refused"));
    many("Services", vec![format!("{exported} exported, {imported} imported, {refused} refused")]);
    many("Parted last", vec![text(status, "/lastDisconnectReason").to_owned()]);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::object::testing::{healthy, ill};

    #[test]
    fn what_was_not_read_is_said() {
        let screen = Screen { is_terminal: false, color: false, width: None };
        let shown = table(&ill(), false, screen, "2026-01-04T00:00:00Z".parse().unwrap());
        assert!(
            shown.contains("manifests/broken.yaml") && shown.contains("no such field `specs`"),
            "{shown}"
        );
        assert_eq!(value(&ill())["unreadable"][0]["path"], "manifests/broken.yaml");
        assert_eq!(value(&healthy()).get("unreadable"), None);
    }

    #[test]
    fn a_peer_is_described() {
        let screen = Screen { is_terminal: false, color: false, width: Some(80) };
        let now = "2026-01-04T00:00:00Z".parse().unwrap();
        let describe = |read: &Read| {
            let peers = of_kind(&read.objects, Kind::TrustDomainPeer);
            peers.map(|peer| describe(peer, screen, now)).collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!("peers_healthy", describe(&healthy()));
        insta::assert_snapshot!("peers_ill", describe(&ill()));
    }
}

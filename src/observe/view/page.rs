//! What stands on the page, read off what is known: pure, so that equal knowledge gives an equal page.

use std::collections::BTreeMap;

use askama::Template;
use serde_json::Value;

use super::authorities::{self, TimeLine};
use super::map::{self, Map, Pair};
use super::words::{Tone, away, short, time};
use crate::model::object::{Kind, ObjectKey};
use crate::model::service::Outcome;
use crate::model::{Peer, TrustDomain, World};
use crate::plan::Plan;
use crate::store::{Severity, Told};

/// How many rows of a table of services are shown, and how many peers.
const MOST_SERVICES: usize = 200;
const MOST_PEERS: usize = 100;
/// How much of a message is shown.
const MOST_WORDS: usize = 1_000;

/// What the page is made of.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub world: &'a World,
    pub plan: &'a Plan,
    pub leads: bool,
    pub ready: bool,
    /// Newest first.
    pub events: &'a [Told],
}

/// The page.
#[derive(Template, Debug)]
#[template(path = "templates/page.html")]
struct Page {
    title: String,
    version: &'static str,
    own: Own,
    summary: String,
    summary_tone: Tone,
    maps: Vec<(&'static str, Map)>,
    tones: [Tone; 3],
    ours: TimeLine,
    peers: Vec<PeerSection>,
    more_peers: usize,
    services: [Services; 2],
    events: Vec<EventRow>,
    leads: bool,
    now: String,
}

#[derive(Debug)]
struct Own {
    trust_domain: String,
    facts: Vec<(&'static str, String, Tone)>,
}

#[derive(Debug)]
struct PeerSection {
    anchor: String,
    trust_domain: String,
    ready: Tone,
    ready_words: String,
    conditions: Vec<ConditionRow>,
    authorities: TimeLine,
    counts: String,
}

#[derive(Debug)]
struct ConditionRow {
    kind: String,
    tone: Tone,
    reason: String,
    message: String,
    since: String,
}

#[derive(Debug)]
struct Services {
    caption: &'static str,
    column: &'static str,
    rows: Vec<ServiceRow>,
    more: usize,
}

#[derive(Debug)]
struct ServiceRow {
    name: String,
    trust_domain: String,
    tone: Tone,
    outcome: String,
    message: String,
}

#[derive(Debug)]
struct EventRow {
    time: String,
    tone: Tone,
    kind: &'static str,
    object: String,
    reason: String,
    message: String,
}

/// The page as HTML.
///
/// # Errors
/// Where it cannot be written, which no input causes.
pub(super) fn html(known: Known<'_>) -> Result<String, String> {
    page(known).render().map_err(|error| error.to_string())
}

fn page(known: Known<'_>) -> Page {
    let Known { world, .. } = known;
    let mut all: Vec<(Tone, &Peer)> =
        world.peers.values().map(|peer| (ready(world, peer), peer.as_ref())).collect();
    // What needs a look comes first.
    all.sort_by_key(|(tone, _)| *tone);
    let (summary, summary_tone) = summary(&all);
    let peers: Vec<PeerSection> =
        (1..).zip(all.iter().take(MOST_PEERS)).map(|(n, (_, peer))| section(world, peer, n)).collect();
    let own = own(known);
    let pairs: Vec<Pair> = peers.iter().map(pair).collect();
    let note = format!("{} peers", world.peers.len());
    Page {
        title: format!("{} · Entente", own.trust_domain),
        version: env!("CARGO_PKG_VERSION"),
        summary,
        summary_tone,
        maps: vec![
            ("wide", map::wide(&own.trust_domain, &note, &pairs)),
            ("narrow", map::narrow(&own.trust_domain, &note, &pairs)),
        ],
        ours: authorities::ours(world),
        more_peers: world.peers.len().saturating_sub(MOST_PEERS),
        peers,
        services: [exports(world), imports(known)],
        tones: [Tone::Good, Tone::Bad, Tone::Unknown],
        events: known.events.iter().map(event).collect(),
        leads: known.leads,
        now: time(world.now),
        own,
    }
}

fn own(Known { world, leads, ready, .. }: Known<'_>) -> Own {
    let mut facts = Vec::new();
    let trust_domain = match &world.identity {
        Some(identity) => {
            facts.push(("SPIFFE ID", identity.id.to_string(), Tone::Good));
            let tone = if identity.not_after > world.now { Tone::Good } else { Tone::Bad };
            facts.push(("SVID expires", away(world.now, identity.not_after), tone));
            identity.trust_domain.to_string()
        }
        None => "trust domain not known yet".to_owned(),
    };
    let workload = match (&world.workload_failure, &world.identity) {
        (Some(failure), _) => (short(&failure.message, MOST_WORDS), Tone::Bad),
        (None, Some(_)) => ("serves us".to_owned(), Tone::Good),
        (None, None) => ("not heard yet".to_owned(), Tone::Unknown),
    };
    facts.push(("Workload API", workload.0, workload.1));
    let spire = match &world.spire {
        None => ("not read yet".to_owned(), Tone::Unknown),
        Some(spire) => match spire.why_unlisted() {
            Some(failure) => (short(failure, MOST_WORDS), Tone::Bad),
            None => ("answers".to_owned(), Tone::Good),
        },
    };
    facts.push(("SPIRE Server API", spire.0, spire.1));
    let replica = match (ready, leads) {
        (false, _) => ("not everything has been read yet", Tone::Unknown),
        (true, true) => ("ready, and leads", Tone::Good),
        (true, false) => ("ready; another one leads", Tone::Good),
    };
    facts.push(("This replica", replica.0.to_owned(), replica.1));
    Own { trust_domain, facts }
}

/// Of every peer, also of those that are not shown.
fn summary(peers: &[(Tone, &Peer)]) -> (String, Tone) {
    let ready = peers.iter().filter(|(tone, _)| *tone == Tone::Good).count();
    let wrong: Vec<&str> = peers
        .iter()
        .filter(|(tone, _)| *tone == Tone::Bad)
        .take(3)
        .map(|(_, peer)| peer.trust_domain.as_str())
        .collect();
    match (peers.len(), wrong.as_slice()) {
        (0, _) => ("No peers yet: invite one, or create a TrustDomainPeer.".to_owned(), Tone::Unknown),
        (all, []) if ready == all => (format!("All is well with {all} of {all} peers."), Tone::Good),
        (all, []) => (format!("{ready} of {all} peers are ready, the others not known yet."), Tone::Unknown),
        (all, wrong) => {
            let names: Vec<String> = wrong.iter().map(|name| short(name, 60)).collect();
            (format!("{ready} of {all} peers are ready. Look at {}.", names.join(", ")), Tone::Bad)
        }
    }
}

/// A string in a JSON object.
fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// How it stands with a peer.
fn ready(world: &World, peer: &Peer) -> Tone {
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object);
    let conditions = world.statuses.get(&key).and_then(|status| status.get("conditions")?.as_array());
    let ready = conditions.into_iter().flatten().find(|condition| word(condition, "type") == "Ready");
    ready.map_or(Tone::Unknown, |ready| Tone::of_status(word(ready, "status")))
}

fn section(world: &World, peer: &Peer, number: usize) -> PeerSection {
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object);
    let status = world.statuses.get(&key).map(AsRef::as_ref).unwrap_or(&Value::Null);
    let stored = status.get("conditions").and_then(Value::as_array);
    let conditions: Vec<ConditionRow> = stored
        .into_iter()
        .flatten()
        .map(|condition| ConditionRow {
            kind: word(condition, "type").to_owned(),
            tone: Tone::of_status(word(condition, "status")),
            reason: word(condition, "reason").to_owned(),
            message: short(word(condition, "message"), MOST_WORDS),
            since: word(condition, "lastTransitionTime").parse().map_or_else(|_| String::new(), time),
        })
        .collect();
    let ready = conditions.iter().find(|condition| condition.kind == "Ready");
    let count =
        |name: &str| status.pointer(&format!("/services/{name}")).and_then(Value::as_i64).unwrap_or_default();
    PeerSection {
        anchor: format!("peer-{number}"),
        trust_domain: peer.trust_domain.to_string(),
        ready: ready.map_or(Tone::Unknown, |ready| ready.tone),
        ready_words: ready.map_or_else(
            || "nothing is said of it yet".to_owned(),
            |ready| format!("{}: {}", ready.reason, ready.message),
        ),
        counts: format!(
            "{} services exported to it, {} of its services imported, {} refused",
            count("exported"),
            count("imported"),
            count("refused")
        ),
        conditions,
        authorities: authorities::of_peer(world, peer),
    }
}

fn pair(peer: &PeerSection) -> Pair {
    let of = |kind: &str| {
        let found = peer.conditions.iter().find(|condition| condition.kind == kind);
        found.map_or((Tone::Unknown, "not known".to_owned()), |found| (found.tone, found.reason.clone()))
    };
    let (trusts, trusts_why) = of("BundleDistributed");
    let (trusted, trusted_why) = of("Reciprocal");
    Pair {
        trust_domain: peer.trust_domain.clone(),
        anchor: peer.anchor.clone(),
        ready: peer.ready,
        trusts,
        trusted,
        trusts_why,
        trusted_why,
    }
}

/// What the importers did with each service of ours, by the statuses of the FederatedServices; and how rules fare.
fn exports(world: &World) -> Services {
    let mut all = Vec::new();
    for (key, status) in &world.statuses {
        match key.kind {
            Kind::FederatedService => {}
            Kind::ServiceExportRule => {
                all.push(rule(world, key, status));
                continue;
            }
            _ => continue,
        }
        let host = word(status, "host");
        let name = if host.is_empty() { key.to_string() } else { host.to_owned() };
        let answers = status.get("exportedTo").and_then(Value::as_array);
        for answer in answers.into_iter().flatten() {
            let outcome = word(answer, "outcome");
            let outcome = if outcome.is_empty() { "Pending" } else { outcome };
            let tone = match outcome {
                "Imported" => Tone::Good,
                "Pending" => Tone::Unknown,
                _ => Tone::Bad,
            };
            let because = [word(answer, "reason"), word(answer, "message")];
            let because: Vec<&str> = because.into_iter().filter(|text| !text.is_empty()).collect();
            all.push(ServiceRow {
                name: name.clone(),
                trust_domain: word(answer, "trustDomain").to_owned(),
                tone,
                outcome: outcome.to_owned(),
                message: short(&because.join(": "), MOST_WORDS),
            });
        }
    }
    cut("Exported: ours, to peers", "To", all)
}

/// A rule in one row: its status counts its services, and names those alone that stay here.
fn rule(world: &World, key: &ObjectKey, status: &Value) -> ServiceRow {
    let conditions = status.get("conditions").and_then(Value::as_array);
    let exported = conditions.into_iter().flatten().find(|condition| word(condition, "type") == "Exported");
    let said = |name: &str| exported.map_or("", |condition| word(condition, name));
    let count =
        |name: &str| status.pointer(&format!("/services/{name}")).and_then(Value::as_i64).unwrap_or_default();
    let to = world.rules.get(&key.name).map(|rule| &rule.exported_to);
    let to: Vec<&str> = to.into_iter().flatten().map(TrustDomain::as_str).collect();
    let message = format!(
        "{} exported, {} of them imported wherever they go, {} skipped: {}",
        count("exported"),
        count("imported"),
        count("skipped"),
        said("message")
    );
    ServiceRow {
        name: key.to_string(),
        trust_domain: short(&to.join(", "), MOST_WORDS),
        tone: Tone::of_status(said("status")),
        outcome: if exported.is_some() { said("reason").to_owned() } else { "Pending".to_owned() },
        message: short(&message, MOST_WORDS),
    }
}

/// What became here of each service of peers: by the answers to them, and else by what was kept of them.
fn imports(Known { world, plan, .. }: Known<'_>) -> Services {
    let mut all = BTreeMap::new();
    for imported in world.imported.values() {
        let key =
            ObjectKey::namespaced(Kind::ImportedService, &imported.object.namespace, &imported.object.name);
        let status = world.statuses.get(&key).map(AsRef::as_ref).unwrap_or(&Value::Null);
        let conditions = status.get("conditions").and_then(Value::as_array);
        let wrong = conditions.into_iter().flatten().find(|one| word(one, "status") == "False");
        let (tone, outcome, message) = match wrong {
            Some(wrong) => (Tone::Bad, word(wrong, "reason").to_owned(), word(wrong, "message").to_owned()),
            None if status.is_null() => (Tone::Unknown, "Pending".to_owned(), String::new()),
            None => (Tone::Good, "Imported".to_owned(), word(status, "localHost").to_owned()),
        };
        let name = imported.service.name.to_string();
        let message = short(&message, MOST_WORDS);
        let trust_domain = imported.trust_domain.to_string();
        all.insert(
            (trust_domain.clone(), name.clone()),
            ServiceRow { name, trust_domain, tone, outcome, message },
        );
    }
    for (trust_domain, link) in &plan.links {
        for (name, outcome) in link.outcomes.iter() {
            let Outcome::Refused { reason, message } = outcome else { continue };
            let (trust_domain, name) = (trust_domain.to_string(), name.to_string());
            let row = ServiceRow {
                name: name.clone(),
                trust_domain: trust_domain.clone(),
                tone: Tone::Bad,
                outcome: format!("Refused: {reason}"),
                message: short(message, MOST_WORDS),
            };
            all.insert((trust_domain, name), row);
        }
    }
    cut("Imported: peers', to us", "From", all.into_values().collect())
}

/// What needs a look comes first.
fn cut(caption: &'static str, column: &'static str, mut all: Vec<ServiceRow>) -> Services {
    all.sort_by(|a, b| (a.tone, &a.name, &a.trust_domain).cmp(&(b.tone, &b.name, &b.trust_domain)));
    let more = all.len().saturating_sub(MOST_SERVICES);
    all.truncate(MOST_SERVICES);
    Services { caption, column, rows: all, more }
}

fn event(told: &Told) -> EventRow {
    let (tone, kind) = match told.severity {
        Severity::Normal => (Tone::Good, "Normal"),
        Severity::Warning => (Tone::Bad, "Warning"),
    };
    EventRow {
        time: time(told.at),
        tone,
        kind,
        object: told.object.to_string(),
        reason: told.reason.clone(),
        message: short(&told.message, MOST_WORDS),
    }
}

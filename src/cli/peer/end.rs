//! `entente peer end`: says what the end of a relationship means, asks for it, and follows it until nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::manifest;
use crate::cli::exit::{self, NotAsked};
use crate::cli::output::{QUIET, noticed, tell, tell_waiting};
use crate::cli::store::StoreFlags;
use crate::clock;
use crate::config::StoreArg;
use crate::index::Index;
use crate::model::change::{PatchOp, pointer};
use crate::model::object::Kind;
use crate::model::peer::{ANNOTATION_END, ANNOTATION_ENDED_BY};
use crate::model::world::{Relationships, Settings};
use crate::model::{Object, ObjectKey, Peer, TrustDomain};
use crate::plan::ending::{self, Impact};
use crate::store::{Event, Store};

/// How long the store is given to be read.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often its object is tried to be annotated, where others change it meanwhile, and the pause between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);
/// The most names in one line of what will happen.
const NAMES: usize = 20;
/// What has to be read to say what an end means.
const KINDS: [Kind; 7] = [
    Kind::TrustDomainPeer,
    Kind::FederatedService,
    Kind::ServiceExportRule,
    Kind::ImportedService,
    Kind::ClusterFederatedTrustDomain,
    Kind::ClusterSpiffeId,
    Kind::ClusterStaticEntry,
];

#[derive(Args, Debug)]
pub(in crate::cli) struct EndArgs {
    /// The foreign trust domain, or the name of its TrustDomainPeer.
    #[arg(value_name = "PEER", value_parser = crate::cli::diagnose::peer)]
    peer: String,

    /// An emergency: trust goes first and at once, whatever that breaks.
    #[arg(long)]
    now: bool,

    /// Do not ask.
    #[arg(short, long)]
    yes: bool,

    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,

    /// How many seconds to wait for the end; it goes on by itself afterwards.
    #[arg(long, default_value_t = 600, value_name = "SECONDS", conflicts_with = "no_wait")]
    timeout: u64,

    /// Who ends it: the other side is told. By default the user and host that this runs as.
    #[arg(long, env = "ENTENTE_ENDED_BY", value_name = "WHO")]
    by: Option<String>,

    #[arg(long, env = "USER", hide = true, default_value = "")]
    user: String,

    #[command(flatten)]
    at: StoreFlags,

    /// `className` of the objects that spire-controller-manager follows, as the agent's option says.
    #[arg(long, env = "ENTENTE_SPIRE_CLASS_NAME", default_value = "")]
    spire_class_name: String,
}

/// Exit codes: 0 ended (or, with `--no-wait`, asked for); 1 it failed, was not confirmed, or is not done in time; 2 it was
/// not confirmed for want of a terminal; 3 the store could not be read.
pub(super) async fn run(args: EndArgs) -> anyhow::Result<ExitCode> {
    // What the watch below would try for ever is said at once.
    args.at.read(&[Kind::TrustDomainPeer]).await?;
    let store = args.at.open().await?;
    let mut missing = BTreeSet::from(KINDS);
    let reading = tokio::time::timeout(PATIENCE, Reading::start(&store, &args, &mut missing));
    let mut reading = match noticed(|| format!("reading {}", args.at.store()), reading).await {
        Ok(reading) => reading?,
        Err(_) => return Err(unread(args.at.store(), &missing).into()),
    };
    say(&describe(&reading.peer, &reading.impact, &args))?;
    if !args.yes {
        if !std::io::stdin().is_terminal() {
            complain("nothing was changed: there is no terminal to ask at; give --yes");
            return Ok(ExitCode::from(exit::USAGE));
        }
        if !confirmed(&reading.peer.trust_domain)? {
            complain("nothing was changed");
            return Ok(ExitCode::FAILURE);
        }
    }
    ask(&store, &args, &reading).await?;
    if args.no_wait {
        say("asked for; `entente status` says what it waits for\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let following = follow(&mut reading);
    match tokio::time::timeout(Duration::from_secs(args.timeout), following).await {
        Ok(ended) => ended.map(|()| ExitCode::SUCCESS),
        Err(_) => bail!(
            "it has not ended within {} s, and goes on by itself: see what it waits for above, or by `entente status`; where \
             nothing is said above, no agent follows {}",
            args.timeout,
            args.at.store()
        ),
    }
}

/// What to say where not everything was read in time.
fn unread(store: &StoreArg, missing: &BTreeSet<Kind>) -> NotAsked {
    let kinds: Vec<&str> = missing.iter().map(|kind| kind.kind()).collect();
    NotAsked(format!(
        "{store}: not read within {} s: {}; may you list and watch them? Nothing was changed",
        PATIENCE.as_secs(),
        kinds.join(", ")
    ))
}

/// The store as it was read, and what comes next from it.
struct Reading {
    events: mpsc::Receiver<Event>,
    peer: Arc<Peer>,
    key: ObjectKey,
    impact: Impact,
}

impl Reading {
    /// Reads everything; what is still to be read is `missing`.
    async fn start(store: &Store, args: &EndArgs, missing: &mut BTreeSet<Kind>) -> anyhow::Result<Self> {
        let mut index = Index::new(settings(args), clock::now());
        let mut events = store.watch(&KINDS);
        while !missing.is_empty() {
            let event = events.recv().await.context("the store ended")?;
            match &event {
                Event::Absent(Kind::TrustDomainPeer) => bail!(
                    "the API server does not know the kind TrustDomainPeer: is this the cluster that you mean?"
                ),
                Event::Reset { kind, .. } | Event::Absent(kind) => {
                    missing.remove(kind);
                }
                _ => {}
            }
            index.store(event);
        }
        let world = index.world();
        let is = |object: &str, there: Option<&TrustDomain>| {
            object == args.peer || there.is_some_and(|there| there.as_str() == args.peer)
        };
        // What is the trust domain of one may be the name of another's object: the trust domain counts.
        let mut named: Vec<_> =
            world.peers.values().filter(|peer| is(&peer.object, Some(&peer.trust_domain))).collect();
        named.sort_by_key(|peer| peer.trust_domain.as_str() != args.peer);
        let Some(peer) = named.first().copied() else {
            let unread = world.rejected.iter().find(|(key, rejected)| {
                key.kind == Kind::TrustDomainPeer && is(&key.name, rejected.trust_domain.as_ref())
            });
            match unread {
                Some((key, rejected)) => bail!("{key} cannot be read: {}: mend it first", rejected.message),
                None => bail!("no TrustDomainPeer describes {}; `entente peers` lists them", args.peer),
            }
        };
        let mut as_asked = peer.as_ref().clone();
        as_asked.ending.at_once |= args.now;
        Ok(Self {
            events,
            key: ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object),
            impact: ending::impact(world, &as_asked),
            peer: Arc::new(as_asked),
        })
    }
}

fn settings(args: &EndArgs) -> Arc<Settings> {
    Arc::new(Settings {
        instance: args.at.cluster.instance.clone(),
        namespace: args.at.cluster.namespace.clone(),
        spire_class_name: args.spire_class_name.clone(),
        relationships: match args.at.store() {
            StoreArg::Kubernetes => Relationships::ControllerManager,
            StoreArg::Directory(_) => Relationships::ServerApi,
        },
        drain: Duration::ZERO,
        agent_follow: Duration::ZERO,
        poll_interval: Duration::ZERO,
        good_fetches: 1,
        ..Settings::standard()
    })
}

/// What will happen, and what it may break.
fn describe(peer: &Peer, impact: &Impact, args: &EndArgs) -> String {
    let there = &peer.trust_domain;
    let at_once = peer.ending.at_once;
    let order = if at_once {
        "AT ONCE, TRUST FIRST: federatesWith, relationship and bundle go without waiting for anyone. Workloads refuse its \
         SVIDs within some 15 s"
    } else {
        "in order: goodbye, federatesWith, relationship, a pause for SPIRE's agents, bundle, imports and policies"
    };
    let mut text =
        format!("This ends the relationship with {there} (TrustDomainPeer {}), {order}.\n", peer.object);
    let mut line = |what: &str, names: &[String]| {
        if !names.is_empty() {
            text.push_str(&format!("  {what}: {}\n", ending::listed(names, NAMES)));
        }
    };
    line("federatesWith is taken out of", &impact.stripped);
    line("not callable from here any more", &impact.imports);
    line("closed to clients of there, whose connections are cut", &impact.exports);
    if matches!(args.at.store(), StoreArg::Directory(_)) {
        let ids = peer.federates_with.iter().flat_map(|selection| &selection.spiffe_ids);
        line("SPIRE's entries that are selected", &ids.map(ToString::to_string).collect::<Vec<_>>());
        text.push_str(&format!(
            "  SPIRE's own entries are not read here: see `spire-server entry show -federatesWith {there}`\n"
        ));
    }
    if let Some(other) = &impact.foreign {
        text.push_str(&format!(
            "{other} describes {there} too and is not ours: bundle and relationship stay until that is deleted.\n"
        ));
    }
    if !impact.not_ours.is_empty() {
        let names = ending::listed(&impact.not_ours, NAMES);
        let what = if at_once {
            format!(
                "What this breaks: {names} name {there} and are not ours to edit. They lose it with the bundle; from then on \
                 SPIRE refuses changes to their entries, and their new workloads get no SVID, until {there} is taken out \
                 of their federatesWith.\n"
            )
        } else {
            format!(
                "What holds it back: {names} name {there}, and the agent did not put it there. The bundle stays, and what \
                 they register goes on trusting {there}, until it is taken out of their federatesWith.\n"
            )
        };
        text.push_str(&what);
    }
    text
}

fn confirmed(trust_domain: &TrustDomain) -> anyhow::Result<bool> {
    say("Type the trust domain to go on: ")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == trust_domain.as_str())
}

/// Says who ends it and how in the object's annotations, then deletes it.
async fn ask(store: &Store, args: &EndArgs, reading: &Reading) -> anyhow::Result<()> {
    let annotations = annotations(args, &reading.peer);
    if let StoreArg::Directory(root) = args.at.store() {
        return manifest::end(store, root, &reading.key, &annotations).await;
    }
    if !mark(store, reading, &annotations).await? {
        return Ok(());
    }
    Ok(store.delete(&reading.key, &reading.peer.uid).await?)
}

/// Writes the annotations; whether the object is still there. Nothing is deleted without them: an emergency would be an
/// ordinary end.
async fn mark(
    store: &Store,
    reading: &Reading,
    annotations: &BTreeMap<&'static str, String>,
) -> anyhow::Result<bool> {
    // The agent writes finalizer and status meanwhile.
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let Some(object) = store.get(&reading.key).await? else { return Ok(false) };
        if object.meta.uid != reading.peer.uid {
            bail!("{} was made anew meanwhile: look at it again", reading.key);
        }
        let ops = annotate(&object, annotations);
        if ops.is_empty() {
            return Ok(true);
        }
        match store.patch_json(&reading.key, &object.meta.resource_version, ops).await {
            Ok(_) => return Ok(true),
            Err(crate::store::StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!(
        "{} is changed by someone else all the time: how it is to end could not be written into it in {TRIES} tries, and it \
         was not deleted; find out who writes it (`kubectl get --show-managed-fields`), and run this again",
        reading.key
    )
}

fn annotations(args: &EndArgs, peer: &Peer) -> BTreeMap<&'static str, String> {
    let mut all = BTreeMap::new();
    let by = args.by.clone().or_else(|| whoami(&args.user));
    if let Some(by) = by.filter(|_| peer.ending.by.is_none() || args.by.is_some()) {
        all.insert(ANNOTATION_ENDED_BY, by);
    }
    if args.now {
        all.insert(ANNOTATION_END, "now".to_owned());
    }
    all
}

fn whoami(user: &str) -> Option<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match (user, host.trim()) {
        ("", "") => None,
        ("", host) => Some(host.to_owned()),
        (user, "") => Some(user.to_owned()),
        (user, host) => Some(format!("{user}@{host}")),
    }
}

fn annotate(object: &Object, annotations: &BTreeMap<&'static str, String>) -> Vec<PatchOp> {
    let there = &object.meta.annotations;
    let mut ops: Vec<PatchOp> = annotations
        .iter()
        .filter(|(name, value)| there.get(**name) != Some(*value))
        .map(|(name, value)| PatchOp::Add {
            path: pointer(&["metadata", "annotations", name]),
            value: json!(value),
        })
        .collect();
    if there.is_empty() && !ops.is_empty() {
        ops.insert(0, PatchOp::Add { path: "/metadata/annotations".to_owned(), value: json!({}) });
    }
    ops
}

/// Prints what the end waits for, as it changes, until the object is gone.
async fn follow(reading: &mut Reading) -> anyhow::Result<()> {
    let mut last = String::new();
    let begun = Instant::now();
    let quiet = tokio::time::sleep(QUIET);
    tokio::pin!(quiet);
    let mut is_quiet = true;
    loop {
        let event = tokio::select! {
            event = reading.events.recv() => event.context("the store ended")?,
            () = &mut quiet, if is_quiet => {
                is_quiet = false;
                tell_waiting("asked for; waiting for the agent ...");
                continue;
            }
        };
        let object = match event {
            Event::Applied(object) if object.key == reading.key => object,
            Event::Deleted(key) if key == reading.key => break,
            Event::Reset { kind: Kind::TrustDomainPeer, objects } => {
                match objects.into_iter().find(|object| object.key == reading.key) {
                    Some(object) => object,
                    None => break,
                }
            }
            _ => continue,
        };
        if object.meta.uid != reading.peer.uid {
            break;
        }
        if let Some(message) = progress(&object).filter(|message| *message != last) {
            say(&format!("{:>5.1} s  {message}\n", begun.elapsed().as_secs_f64()))?;
            last = message;
            is_quiet = false;
        }
    }
    let there = &reading.peer.trust_domain;
    say(&format!("{:>5.1} s  the relationship with {there} has ended\n", begun.elapsed().as_secs_f64()))
}

fn progress(object: &Object) -> Option<String> {
    let conditions = object.status()?.get("conditions")?.as_array()?;
    let text = |c: &Value, field: &str| c.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let ready = conditions.iter().find(|c| text(c, "type") == "Ready")?;
    text(ready, "reason").starts_with("Ending").then(|| text(ready, "message"))
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn complain(text: &str) {
    tell(&format!("entente: {text}"));
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use clap::Parser;
    use http::{Method, Request, Response};
    use kube::client::Body;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        end: EndArgs,
    }

    /// An API server that refuses so many patches as conflicts; what was asked of it.
    fn contested(conflicts: usize) -> (Store, Arc<Mutex<Vec<Method>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            let method = request.method().clone();
            let mut log = log.lock().unwrap();
            log.push(method.clone());
            let patches = log.iter().filter(|method| **method == Method::PATCH).count();
            let conflict = method == Method::PATCH && patches <= conflicts;
            let (code, answer) = if conflict {
                (
                    409,
                    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "reason": "Conflict", "message": "it was changed", "code": 409}),
                )
            } else {
                (
                    200,
                    json!({"apiVersion": "entente.dev/v1alpha1", "kind": "TrustDomainPeer",
                    "metadata": {"name": "east-example", "uid": "1", "resourceVersion": "7"}, "spec": {}}),
                )
            };
            let body = Body::from(answer.to_string().into_bytes());
            async move { Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap()) }
        });
        let store =
            crate::store::KubernetesStore::new(kube::Client::new(service, "default"), "entente", "main");
        (Store::Kubernetes(store), asked)
    }

    async fn end(conflicts: usize) -> (anyhow::Result<()>, usize) {
        let mut peer = crate::plan::fixtures::peer("east.example");
        peer.uid = "1".to_owned();
        peer.ending.at_once = true;
        let reading = Reading {
            events: mpsc::channel(1).1,
            key: ObjectKey::cluster(Kind::TrustDomainPeer, &peer.object),
            peer: Arc::new(peer),
            impact: Impact::default(),
        };
        let args = Command::parse_from(["end", "east.example", "--now", "--yes", "--by", "alice"]).end;
        let (store, asked) = contested(conflicts);
        let ended = ask(&store, &args, &reading).await;
        let deleted = asked.lock().unwrap().iter().filter(|method| **method == Method::DELETE).count();
        (ended, deleted)
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_read_is_said_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "east",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "east", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        let line = ["end", "east.example", "--yes", "--kubeconfig", path.to_str().unwrap()];
        let error = run(Command::parse_from(line).end).await.unwrap_err();
        assert!(error.is::<NotAsked>() && error.to_string().contains("refused"), "{error:#}");
        let missing = BTreeSet::from([Kind::ClusterSpiffeId]);
        let words = unread(&StoreArg::Kubernetes, &missing).to_string();
        assert!(words.contains(": ClusterSPIFFEID; may you list"), "{words}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_emergency_that_cannot_be_written_down_is_not_made_an_ordinary_end() {
        let (ended, deleted) = end(usize::MAX).await;
        let error = ended.unwrap_err().to_string();
        assert!(error.contains("east-example") && error.contains("not deleted"), "{error}");
        assert_eq!(deleted, 0);
        let (ended, deleted) = end(6).await;
        assert!(ended.is_ok() && deleted == 1, "{ended:?}");
    }
}

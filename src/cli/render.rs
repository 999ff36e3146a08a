//! `entente render`: objects in, what would be written out. The same pipeline as the agent's, without a cluster.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::clock;
use crate::index::{Index, bootstrap};
use crate::model::object::Kind;
use crate::model::own::Identity;
use crate::model::trust::SpireState;
use crate::model::world::{Relationships, Settings};
use crate::model::{Bundle, Object, ObjectKey, SpiffeId, TrustDomain};
use crate::plan;
use crate::store::{DirectoryStore, DirectoryTimings, Event, Store, directory};

#[derive(Args, Debug)]
pub(super) struct RenderArgs {
    /// A folder as `--store dir:PATH` of the agent has it: manifests in `PATH/manifests`. TrustDomainPeers and
    /// FederatedServices; ImportedServices where imports are to be rendered too. Nothing in it is changed.
    path: PathBuf,

    /// Our own trust domain.
    #[arg(long)]
    trust_domain: String,

    /// Where ImportedServices live.
    #[arg(long, env = "ENTENTE_NAMESPACE", default_value = "entente-system")]
    namespace: String,

    /// Marks what is generated.
    #[arg(long, env = "ENTENTE_INSTANCE", default_value = "entente")]
    instance: String,

    /// `className` of the ClusterFederatedTrustDomains.
    #[arg(long, env = "ENTENTE_SPIRE_CLASS_NAME", default_value = "")]
    spire_class_name: String,
}

/// How long the folder is given to be read.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often what is planned is taken for written. The policy comes before what it guards, an ImportedService before what
/// lies beside it; nothing waits for more.
const ROUNDS: usize = 5;

/// Prints the objects to standard output. Objects that are bad are named in the error.
pub(super) async fn run(args: &RenderArgs) -> anyhow::Result<()> {
    let (objects, problems) = render(args).await?;
    let mut out = std::io::stdout().lock();
    for object in objects.values() {
        write!(out, "---\n{}", directory::manifest_of(object))?;
    }
    if problems.is_empty() { Ok(()) } else { anyhow::bail!("{}", problems.join("\n")) }
}

/// Everything that the agent would write in the end, and what is wrong with the folder.
async fn render(args: &RenderArgs) -> anyhow::Result<(BTreeMap<ObjectKey, Object>, Vec<String>)> {
    let store = Store::Directory(DirectoryStore::open_read_only(&args.path, DirectoryTimings::default()));
    let mut index = Index::new(settings(args), clock::now());
    let own = TrustDomain::new(&args.trust_domain)?;
    index.identity(Some(Arc::new(identity(&own, args)?)));
    index.spire(Some(Arc::new(SpireState::default())));
    let mut problems = tokio::time::timeout(PATIENCE, read(&store, &mut index))
        .await
        .with_context(|| format!("{}: not read within {} s", args.path.display(), PATIENCE.as_secs()))??;
    let bootstraps = bootstrap::read(&store, &bootstrap::wanted(index.world())).await;
    problems
        .extend(bootstraps.iter().filter_map(|(td, found)| Some(format!("{td}: {}", found.as_ref().err()?))));
    index.world_mut().bootstraps = bootstraps;
    let objects = in_the_end(&mut index);
    problems.extend(index.world().rejected.iter().map(|(key, r)| format!("{key}: {}", r.message)));
    Ok((objects?, problems))
}

/// What is planned once what is planned stands.
fn in_the_end(index: &mut Index) -> anyhow::Result<BTreeMap<ObjectKey, Object>> {
    let mut planned = plan::plan(index.world()).objects;
    for _ in 0..ROUNDS {
        for object in planned.values() {
            let standing = written(index, object);
            index.store(Event::Applied(standing));
        }
        let next = plan::plan(index.world()).objects;
        if next == planned {
            return Ok(planned);
        }
        planned = next;
    }
    anyhow::bail!("what is to be written still changes after {ROUNDS} rounds of writing it")
}

/// An object as the store would have it once it is written.
fn written(index: &Index, desired: &Object) -> Object {
    let mut object = desired.clone();
    if let Some(there) = index.world().objects.get(&desired.key) {
        object.meta.uid.clone_from(&there.meta.uid);
        object.meta.created = there.meta.created;
        object.meta.generation = there.meta.generation;
    } else {
        object.meta.uid = format!("rendered/{}", plan::generated::source_of(&desired.key));
        object.meta.created = Some(index.world().now);
        object.meta.generation = 1;
    }
    object
}

/// Takes in the first list of every kind; answers with the manifests that cannot be read.
async fn read(store: &Store, index: &mut Index) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut events = store.watch(&Kind::WATCHED);
    while !index.world().is_read() {
        let event = events.recv().await.context("the store ended")?;
        if let Event::Unreadable(unreadable) = &event {
            problems = unreadable.iter().map(|u| format!("{}: {}", u.path.display(), u.message)).collect();
        }
        index.store(event);
    }
    Ok(problems)
}

fn settings(args: &RenderArgs) -> Arc<Settings> {
    Arc::new(Settings {
        instance: args.instance.clone(),
        namespace: args.namespace.clone(),
        spire_class_name: args.spire_class_name.clone(),
        relationships: Relationships::ControllerManager,
        drain: Duration::ZERO,
        poll_interval: Duration::ZERO,
        good_fetches: 1,
    })
}

fn identity(own: &TrustDomain, args: &RenderArgs) -> anyhow::Result<Identity> {
    Ok(Identity {
        id: SpiffeId::new(format!("spiffe://{own}/ns/{}/sa/entente", args.namespace))?,
        trust_domain: own.clone(),
        not_after: clock::now(),
        bundle: Arc::new(Bundle::new(own.clone(), [])),
        federated: BTreeMap::new(),
        malformed: BTreeMap::new(),
    })
}

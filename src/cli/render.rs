//! `entente render`: objects in, what would be written out. The same pipeline as the agent's, without a cluster.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::exit::Unusable;
use super::output::tell;
use crate::clock;
use crate::config::ClusterArgs;
use crate::index::parse::schema::unknown_fields;
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

    #[command(flatten)]
    cluster: ClusterArgs,
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
async fn render(args: &RenderArgs) -> anyhow::Result<(BTreeMap<ObjectKey, Arc<Object>>, Vec<String>)> {
    let store = Store::Directory(DirectoryStore::open_read_only(&args.path, DirectoryTimings::default()));
    let mut index = Index::new(settings(args), clock::now());
    let own = TrustDomain::new(&args.trust_domain)
        .map_err(|error| Unusable(format!("--trust-domain {:?}: {error}", args.trust_domain)))?;
    index.identity(Some(Arc::new(identity(&own, args)?)));
    index.spire(Some(Arc::new(SpireState::default())));
    let mut problems = tokio::time::timeout(PATIENCE, read(&store, &mut index))
        .await
        .with_context(|| format!("{}: not read within {} s", args.path.display(), PATIENCE.as_secs()))??;
    let bootstraps = bootstrap::read(&store, &bootstrap::wanted(index.world())).await;
    problems.extend(
        bootstraps.iter().filter_map(|(td, read)| Some(format!("{td}: {}", read.found.as_ref().err()?))),
    );
    index.read_bootstraps(bootstraps);
    let objects = in_the_end(&mut index);
    problems.extend(index.world().rejected.iter().map(|(key, r)| format!("{key}: {}", r.message)));
    Ok((objects?, problems))
}

/// What is planned once what is planned stands.
fn in_the_end(index: &mut Index) -> anyhow::Result<BTreeMap<ObjectKey, Arc<Object>>> {
    index.settle_exports();
    let mut planned = plan::plan(index.world()).objects;
    for _ in 0..ROUNDS {
        for object in planned.values() {
            let standing = written(index, object);
            index.store(Event::Applied(standing));
        }
        index.settle_exports();
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
        if let Event::Reset { objects, .. } = &event {
            objects.iter().for_each(tell_unknown);
        }
        index.store(event);
    }
    Ok(problems)
}

/// No API server refuses a misspelt field here. It may be one of a newer version, so it is no reason to fail.
fn tell_unknown(object: &Object) {
    for field in unknown_fields(object) {
        tell(&format!("note: {}: {field} is not known, and not used", object.key));
    }
}

fn settings(args: &RenderArgs) -> Arc<Settings> {
    Arc::new(Settings {
        instance: args.instance.clone(),
        namespace: args.namespace.clone(),
        spire_class_name: args.spire_class_name.clone(),
        relationships: Relationships::ControllerManager,
        drain: Duration::ZERO,
        poll_interval: Duration::ZERO,
        agent_follow: Duration::ZERO,
        good_fetches: 1,
        ..args.cluster.settings(Settings::standard())
    })
}

fn identity(own: &TrustDomain, args: &RenderArgs) -> anyhow::Result<Identity> {
    Ok(Identity {
        id: SpiffeId::new(format!("spiffe://{own}/ns/{}/sa/entente", args.namespace))?,
        trust_domain: own.clone(),
        not_before: clock::now(),
        not_after: clock::now(),
        bundle: Arc::new(Bundle::new(own.clone(), [])),
        federated: BTreeMap::new(),
        malformed: BTreeMap::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::document;
    use crate::bundle::testing::{Ca, td};
    use crate::model::Authority;

    const PEER: &str = "
apiVersion: entente.dev/v1alpha1
kind: TrustDomainPeer
metadata: { name: east }
spec:
  trustDomain: east.example
  bundleEndpoint:
    url: https://spire.east.example:8443
    profile: { type: https_spiffe, endpointSPIFFEID: spiffe://east.example/spire/server }
  bootstrapBundle: { configMapKeyRef: { name: east, key: bundle.json } }
  agent: { spiffeIDs: [spiffe://east.example/ns/entente-system/sa/entente] }
";
    const SERVICE: &str = "
apiVersion: entente.dev/v1alpha1
kind: FederatedService
metadata: { name: cart, namespace: shop }
spec:
  workloadLabels: { app: cart }
  ports: [{ name: tcp, port: 18080, targetPort: 8080 }]
  tlsMode: IstioMtls
  exportedTrustDomains: [east.example]
  clients: { spiffeIDs: [spiffe://east.example/ns/shop/sa/client] }
  serverSPIFFEIDs: [spiffe://west.example/ns/shop/sa/cart]
  gateways: [{ type: istio-eastwestgateway, port: 15443, ip: 192.0.2.9 }]
";

    async fn rendered(manifests: &[&str]) -> (Vec<(Kind, String)>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifests");
        std::fs::create_dir_all(&path).unwrap();
        for (number, manifest) in manifests.iter().enumerate() {
            std::fs::write(path.join(format!("{number}.yaml")), manifest).unwrap();
        }
        let args = RenderArgs {
            path: folder.path().to_owned(),
            trust_domain: "west.example".to_owned(),
            namespace: "entente-system".to_owned(),
            instance: "entente".to_owned(),
            spire_class_name: String::new(),
            cluster: ClusterArgs::default(),
        };
        let (objects, problems) = render(&args).await.unwrap();
        let objects = objects.into_values().map(|object| (object.key.kind, directory::manifest_of(&object)));
        (objects.collect(), problems)
    }

    fn kinds(objects: &[(Kind, String)]) -> Vec<Kind> {
        objects.iter().map(|(kind, _)| *kind).collect()
    }

    const EXPORT: [Kind; 3] = [Kind::AuthorizationPolicy, Kind::ServiceEntry, Kind::Gateway];

    #[tokio::test]
    async fn everything_is_rendered_though_one_object_waits_for_another() {
        let bundle = Bundle::new(td("east.example"), [Authority::parse(&Ca::new().der).unwrap()]);
        let text = document::write(&bundle);
        let config_map = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "east", "namespace": "entente-system" },
            "data": { "bundle.json": text },
        });
        let (objects, problems) = rendered(&[PEER, SERVICE, &config_map.to_string()]).await;
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(kinds(&objects), [[Kind::ClusterFederatedTrustDomain].as_slice(), &EXPORT].concat());
        let relationship = &objects[0].1;
        assert!(relationship.contains(&bundle.digest().to_string()), "{relationship}");
    }

    #[tokio::test]
    async fn a_bootstrap_bundle_that_is_not_there_is_a_problem() {
        let (objects, problems) = rendered(&[PEER, SERVICE]).await;
        assert_eq!(kinds(&objects), EXPORT);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0]
                .contains("east.example: spec.bootstrapBundle: ConfigMap entente-system/east is not there")
        );
    }
}

//! `entente render`: objects in, what would be written out. The same pipeline as the agent's, without a cluster.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::clock;
use crate::index::Index;
use crate::model::object::Kind;
use crate::model::own::Identity;
use crate::model::trust::SpireState;
use crate::model::world::{Relationships, Settings};
use crate::model::{Bundle, Object, SpiffeId, TrustDomain};
use crate::store::{Event, directory};

#[derive(Args, Debug)]
pub(super) struct RenderArgs {
    /// Files or folders with manifests: TrustDomainPeers, FederatedServices, and ImportedServices where imports are to
    /// be rendered too.
    #[arg(required = true)]
    manifests: Vec<PathBuf>,

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

/// Prints the objects to standard output; objects that are bad to standard error, and then fails.
pub(super) fn run(args: &RenderArgs) -> anyhow::Result<()> {
    let (objects, unreadable) = directory::read_manifests(&args.manifests)?;
    let mut index = Index::new(settings(args), clock::now());
    let own = TrustDomain::new(&args.trust_domain)?;
    index.identity(Some(Arc::new(identity(&own, args)?)));
    index.spire(Some(Arc::new(SpireState::default())));
    let mut by_kind: BTreeMap<Kind, Vec<Object>> =
        Kind::WATCHED.iter().map(|kind| (*kind, Vec::new())).collect();
    for object in objects {
        by_kind.entry(object.key.kind).or_default().push(object);
    }
    for (kind, objects) in by_kind {
        index.store(Event::Reset { kind, objects });
    }
    let plan = crate::plan::plan(index.world());
    let mut out = std::io::stdout().lock();
    for object in plan.objects.values() {
        write!(out, "---\n{}", serde_saphyr::to_string(&manifest(object))?)?;
    }
    let rejected = index.world().rejected.iter().map(|(key, r)| format!("{key}: {}", r.message));
    let unreadable = unreadable.iter().map(|u| format!("{}: {}", u.path.display(), u.message));
    let problems: Vec<String> = rejected.chain(unreadable).collect();
    if problems.is_empty() { Ok(()) } else { anyhow::bail!("{}", problems.join("\n")) }
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

/// The object as a manifest. Owners are left out: their uids are known to a cluster only.
fn manifest(object: &Object) -> Value {
    let mut metadata = json!({ "name": object.key.name });
    if let Some(fields) = metadata.as_object_mut() {
        if let Some(namespace) = &object.key.namespace {
            fields.insert("namespace".to_owned(), json!(namespace));
        }
        fields.insert("labels".to_owned(), json!(object.meta.labels));
        fields.insert("annotations".to_owned(), json!(object.meta.annotations));
    }
    let mut manifest = json!({
        "apiVersion": object.key.kind.api_version(),
        "kind": object.key.kind.kind(),
        "metadata": metadata,
    });
    if let Some(fields) = manifest.as_object_mut() {
        fields.extend(object.body.clone());
    }
    manifest
}

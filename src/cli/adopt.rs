//! `entente adopt`: makes a relationship that was made by hand a TrustDomainPeer, without anything flapping.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::output::{noticed, tell};
use super::store::StoreFlags;
use crate::bundle::endpoint::EndpointClient;
use crate::bundle::web_roots::web_roots;
use crate::clock;
use crate::config::StoreArg;
use crate::enrol::adopt::{self, Adoption, Step, Wish};
use crate::model::endpoint::{EndpointProfile, FetchProblem};
use crate::store::{Store, StoreError, directory};

/// How often the objects are read, where someone else writes them meanwhile.
const TRIES: u32 = 5;
/// Between two of these.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Args, Debug)]
pub(super) struct AdoptArgs {
    /// The foreign trust domain that is federated with already.
    trust_domain: String,

    /// Show what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// The exact SPIFFE ID of its agent; may be repeated. Default, by convention:
    /// `spiffe://<trust domain>/ns/entente-system/sa/entente`.
    #[arg(long = "agent-id")]
    agent_ids: Vec<String>,

    /// Where its agent is, as `host:port`; may be repeated. None: it dials us.
    #[arg(long = "agent-address")]
    agent_addresses: Vec<String>,

    /// A file with its present bundle (SPIFFE bundle JSON, or PEM), to begin with instead of the one that was pasted once.
    #[arg(long)]
    bundle: Option<PathBuf>,

    /// Leave the registrations that name it to their owners: at the end of the relationship they hold its bundle back.
    #[arg(long)]
    keep_registrations: bool,

    #[command(flatten)]
    at: StoreFlags,

    /// `className` of the objects that spire-controller-manager follows, as the agent's option says.
    #[arg(long, env = "ENTENTE_SPIRE_CLASS_NAME", default_value = "")]
    spire_class_name: String,
}

/// Says on standard output what changes, step by step; the manifest of the peer with `--dry-run`.
pub(super) async fn run(args: &AdoptArgs) -> anyhow::Result<()> {
    if let StoreArg::Directory(_) = args.at.store() {
        bail!(
            "in a directory there is nothing to hand over: write a TrustDomainPeer with the endpoint of SPIRE's \
             relationship, and the agent takes that as it is"
        );
    }
    let wish = wish(args)?;
    let store = args.at.open().await?;
    let mut adoption = read(args, &wish).await?;
    if let Some(untried) = try_endpoint(&wish, &adoption).await? {
        tell(&format!("note: {untried}"));
    }
    let mut told = BTreeSet::new();
    tell_notes(&adoption, &mut told);
    let mut tries = 1;
    // spire-controller-manager writes the status of what is handed over when it likes: then what is left is read again.
    while let Err(error) = hand_over(args, &wish, &store, &adoption).await {
        let is_conflict = matches!(error.downcast_ref(), Some(StoreError::Conflict { .. }));
        if !is_conflict || tries == TRIES {
            return Err(error);
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
        adoption = read(args, &wish).await?;
        tell_notes(&adoption, &mut told);
    }
    Ok(())
}

/// Each note once, however often the objects are read.
fn tell_notes(adoption: &Adoption, told: &mut BTreeSet<String>) {
    for note in &adoption.notes {
        if told.insert(note.clone()) {
            tell(&format!("note: {note}"));
        }
    }
}

/// What is to be done as the objects are now.
async fn read(args: &AdoptArgs, wish: &Wish) -> anyhow::Result<Adoption> {
    let objects = args.at.read(&adopt::KINDS).await?.objects;
    adopt::adopt(&objects, wish).map_err(anyhow::Error::msg)
}

async fn hand_over(args: &AdoptArgs, wish: &Wish, store: &Store, adoption: &Adoption) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if adoption.steps.is_empty() {
        writeln!(out, "{} is adopted already: nothing to do", wish.trust_domain)?;
        return Ok(());
    }
    for step in &adoption.steps {
        let does = step.describe(&wish.trust_domain);
        if args.dry_run {
            writeln!(out, "would {does}")?;
            if let Step::Create(object) = step {
                write!(out, "---\n{}", directory::manifest_of(object))?;
            }
            continue;
        }
        apply(store, step).await.with_context(|| {
            format!(
                "stopped before this was done: {does}; what was done stands and harms nothing: run it again once the cause is mended"
            )
        })?;
        writeln!(out, "- {does}")?;
    }
    if !args.dry_run {
        tell("Handed over; see `entente status` for how it stands.");
    }
    Ok(())
}

fn wish(args: &AdoptArgs) -> anyhow::Result<Wish> {
    let trust_domain = adopt::parse_trust_domain(&args.trust_domain).map_err(anyhow::Error::msg)?;
    let agent_ids = if args.agent_ids.is_empty() {
        vec![adopt::conventional_agent(&trust_domain)]
    } else {
        args.agent_ids.clone()
    };
    let bundle = args.bundle.as_ref().map(|path| {
        std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
    });
    Ok(Wish {
        trust_domain,
        instance: args.at.cluster.instance.clone(),
        class_name: args.spire_class_name.clone(),
        agent_addresses: args.agent_addresses.clone(),
        agent_ids,
        bundle: bundle.transpose()?,
        keep_registrations: args.keep_registrations,
    })
}

/// Whether the endpoint can be verified with the bundle that is begun with: one that was pasted long ago may be of
/// before a rotation. What cannot be tried from here is a note.
async fn try_endpoint(wish: &Wish, adoption: &Adoption) -> anyhow::Result<Option<String>> {
    let (EndpointProfile::HttpsSpiffe { .. }, Some(bundle)) = (&adoption.endpoint.profile, &adoption.bundle)
    else {
        return Ok(None);
    };
    let client = EndpointClient::new(web_roots("")?);
    let what = || format!("trying the bundle endpoint {}", adoption.endpoint.url);
    let fetching = client.fetch(&wish.trust_domain, &adoption.endpoint, Some(bundle), clock::now());
    match noticed(what, fetching).await {
        Ok(_) => Ok(None),
        Err(failure) if failure.problem == FetchProblem::EndpointCertificateUntrusted => bail!(
            "the bundle to begin with does not verify the endpoint any more: {}; {}",
            failure.message,
            adopt::advice(&wish.trust_domain)
        ),
        Err(failure) => Ok(Some(format!("the endpoint could not be tried from here: {}", failure.message))),
    }
}

async fn apply(store: &Store, step: &Step) -> anyhow::Result<()> {
    match step {
        Step::Record { key, resource_version, ops } | Step::HandOver { key, resource_version, ops, .. } => {
            store.patch_json(key, resource_version, ops.clone()).await?;
        }
        Step::Create(object) => {
            store.create_for_operator(object).await?;
        }
    }
    Ok(())
}

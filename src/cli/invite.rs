//! `entente invite`: a token for the operator of another trust domain; and which are open.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::control::{ControlClient, ControlFlags};
use super::exit::Unusable;
use super::output::{TextFormat, tell};
use crate::api::v1alpha1::trust_domain_peer::{BundleEndpoint, EndpointProfile, ProfileType};
use crate::config::{ProfileArg, ReachArgs};
use crate::control::{Invited, NewInvite, OpenInvite, Reach};
use crate::index::parse::time_span;

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct InviteArgs {
    #[command(subcommand)]
    action: Option<Action>,

    #[command(flatten)]
    new: NewArgs,

    #[command(flatten)]
    control: ControlFlags,
}

#[derive(Args, Debug)]
struct NewArgs {
    /// The trust domain that is invited; nobody else can use the token.
    #[arg(long, required = true)]
    trust_domain: Option<String>,

    /// How long it can be used: `30m`, `1h` (the default), at most `168h`.
    #[arg(long)]
    ttl: Option<String>,

    /// Writes the token into this new file, readable by its owner alone, instead of printing it.
    #[arg(long)]
    file: Option<PathBuf>,

    /// The format of what is printed.
    #[arg(short, long, default_value = "text")]
    output: TextFormat,

    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Show the invites that are open.
    List {
        /// The format of what is printed.
        #[arg(short, long, default_value = "text")]
        output: TextFormat,

        #[command(flatten)]
        control: ControlFlags,
    },
    /// Close an invite that was not used.
    Withdraw {
        /// As `entente invite list` shows it.
        id: String,

        #[command(flatten)]
        control: ControlFlags,
    },
}

/// Prints the token alone to standard output, and what is to be done with it to standard error.
pub(super) async fn run(args: &InviteArgs) -> anyhow::Result<()> {
    match &args.action {
        None => invite(&args.control.client(), &args.new).await,
        Some(Action::List { output, control }) => list(&control.client(), *output).await,
        Some(Action::Withdraw { id, control }) => withdraw(&control.client(), id).await,
    }
}

async fn invite(client: &ControlClient, new: &NewArgs) -> anyhow::Result<()> {
    let ttl = new.ttl.as_deref().map(|text| time_span::parse("--ttl", text));
    let ttl = ttl.transpose().map_err(|problem| Unusable(problem.message))?;
    let request = NewInvite {
        trust_domain: new.trust_domain.clone().unwrap_or_default(),
        ttl_seconds: ttl.map(|ttl| ttl.as_secs()),
        reach: reach(&new.reach),
    };
    // A file that is there is not touched; an invite that nobody gets is not made.
    let file = new.file.as_deref().map(open_new).transpose()?;
    let asked = client.post("/v1/invites", &request).await;
    if let (Err(_), Some(path)) = (&asked, &new.file) {
        // ours, and empty: it would stand in the way of the next try
        let _ = std::fs::remove_file(path);
    }
    let invited: Invited = asked?;
    let mut out = std::io::stdout().lock();
    if let Some(mut file) = file {
        writeln!(file, "{}", invited.token).context("the token cannot be written; withdraw the invite")?;
    } else if new.output == TextFormat::Text {
        writeln!(out, "{}", invited.token)?;
    }
    out.flush()?;
    drop(out);
    new.output.print_value(&shown(&invited, new.file.as_deref())?)?;
    tell(&format!(
        "Invite {id} for {joiner}, until {expires}. Give the token to its operator by a way that others cannot read; it is \
         used once:\n  entente join {what}\nFingerprint of the bundle of {inviter}, to be compared by voice:\n  {fingerprint}",
        id = invited.id,
        joiner = invited.trust_domain,
        expires = invited.expires,
        inviter = invited.inviter,
        fingerprint = invited.fingerprint,
        what = if new.file.is_some() { "--file FILE" } else { "TOKEN" },
    ));
    Ok(())
}

/// The invite as JSON; the token only where it is not in a file.
fn shown(invited: &Invited, file: Option<&Path>) -> anyhow::Result<serde_json::Value> {
    let mut value = serde_json::to_value(invited)?;
    if let (Some(path), Some(fields)) = (file, value.as_object_mut()) {
        fields.remove("token");
        fields.insert("file".to_owned(), path.display().to_string().into());
    }
    Ok(value)
}

fn open_new(path: &Path) -> anyhow::Result<std::fs::File> {
    let opened = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    opened.with_context(|| format!("{} cannot be made; --file names a new file", path.display()))
}

async fn list(client: &ControlClient, output: TextFormat) -> anyhow::Result<()> {
    let open: Vec<OpenInvite> = client.get("/v1/invites").await?;
    if output.print_value(&open)? {
        return Ok(());
    }
    if open.is_empty() {
        tell("No invite is open.");
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<18}{:<32}{:<24}{:<7}FINGERPRINT", "ID", "TRUST DOMAIN", "EXPIRES", "TRIES")?;
    for invite in open {
        let OpenInvite { id, trust_domain, expires, tries_left, fingerprint } = invite;
        writeln!(out, "{id:<18}{trust_domain:<32}{:<24}{tries_left:<7}{fingerprint}", expires.to_string())?;
    }
    Ok(())
}

async fn withdraw(client: &ControlClient, id: &str) -> anyhow::Result<()> {
    // It stands in a path: anything else than an ID is not asked for.
    anyhow::ensure!(
        crate::enrol::token::InviteId::parse(id).is_some(),
        "{id:?} is no ID of an invite: see `entente invite list`"
    );
    let withdrawn: OpenInvite = client.delete(&format!("/v1/invites/{id}")).await?;
    tell(&format!("Invite {id} for {} is withdrawn.", withdrawn.trust_domain));
    Ok(())
}

/// What is said of how we are reached on this command line, as a request has it.
pub(super) fn reach(args: &ReachArgs) -> Reach {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let bundle_endpoint = given(&args.bundle_endpoint_url).map(|url| BundleEndpoint {
        url,
        profile: match args.bundle_endpoint_profile {
            Some(ProfileArg::HttpsWeb) => {
                EndpointProfile { kind: ProfileType::HttpsWeb, endpoint_spiffe_id: None }
            }
            _ => EndpointProfile {
                kind: ProfileType::HttpsSpiffe,
                endpoint_spiffe_id: given(&args.bundle_endpoint_spiffe_id),
            },
        },
    });
    Reach { addresses: args.advertise.clone(), bundle_endpoint }
}

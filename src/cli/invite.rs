//! `entente invite`: a token for the operator of another trust domain; and which are open.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::control::{ControlClient, ControlFlags, Unanswered};
use super::exit::Unusable;
use super::output::{TextFormat, tell};
use crate::api::v1alpha1::trust_domain_peer::{BundleEndpoint, EndpointProfile, ProfileType};
use crate::config::{ProfileArg, ReachArgs};
use crate::control::{Invited, NewInvite, OpenInvite, Reach};
use crate::index::parse::time_span;

#[derive(Args, Debug)]
#[command(subcommand_negates_reqs = true)]
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
        reach: reach(&new.reach)?,
    };
    // A file that is there is not touched; an invite that nobody gets is not made.
    let file = new.file.as_deref().map(open_new).transpose()?;
    let asked = client.post("/v1/invites", &request).await;
    if let (Err(_), Some(path)) = (&asked, &new.file) {
        // ours, and empty: it would stand in the way of the next try
        let _ = std::fs::remove_file(path);
    }
    let invited: Invited = asked.map_err(|error: anyhow::Error| {
        if !error.is::<Unanswered>() {
            return error;
        }
        error.context(
            "whether an invite was made is not known, and nobody has its token: where `entente invite list` shows it, close it \
             with `entente invite withdraw ID`; then run this again",
        )
    })?;
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
///
/// # Errors
/// Where something is said of a bundle endpoint that would go unheard: a request has all of it or nothing.
pub(super) fn reach(args: &ReachArgs) -> Result<Reach, Unusable> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (url, id) = (given(&args.bundle_endpoint_url), given(&args.bundle_endpoint_spiffe_id));
    let is_web = args.bundle_endpoint_profile == Some(ProfileArg::HttpsWeb);
    let alone = match (&id, args.bundle_endpoint_profile) {
        _ if url.is_some() => None,
        (Some(_), _) => Some("--bundle-endpoint-spiffe-id"),
        (None, profile) => profile.map(|_| "--bundle-endpoint-profile"),
    };
    if let Some(flag) = alone {
        return Err(Unusable(format!(
            "{flag} is of the endpoint that --bundle-endpoint-url names: give that with it, even where the agent was told the same URL"
        )));
    }
    if is_web && id.is_some() {
        return Err(Unusable(
            "--bundle-endpoint-spiffe-id is of an endpoint of the profile https_spiffe, and --bundle-endpoint-profile says \
             https_web: leave one of them out"
                .to_owned(),
        ));
    }
    let kind = if is_web { ProfileType::HttpsWeb } else { ProfileType::HttpsSpiffe };
    let profile = EndpointProfile { kind, endpoint_spiffe_id: id };
    let bundle_endpoint = url.map(|url| BundleEndpoint { url, profile });
    Ok(Reach { addresses: args.advertise.clone(), bundle_endpoint })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::control::SocketFlag;
    use crate::cli::store::ClusterFlags;

    fn endpoint(url: Option<&str>, profile: Option<ProfileArg>, id: Option<&str>) -> ReachArgs {
        ReachArgs {
            advertise: Vec::new(),
            bundle_endpoint_url: url.map(str::to_owned),
            bundle_endpoint_profile: profile,
            bundle_endpoint_spiffe_id: id.map(str::to_owned),
        }
    }

    #[test]
    fn nothing_that_is_said_of_the_bundle_endpoint_goes_unheard() {
        let id = Some("spiffe://east.example/server");
        let (web, spiffe) = (Some(ProfileArg::HttpsWeb), Some(ProfileArg::HttpsSpiffe));
        for (args, named) in [
            (endpoint(None, web, None), "--bundle-endpoint-profile is of"),
            (endpoint(Some(""), spiffe, None), "--bundle-endpoint-profile is of"),
            (endpoint(None, None, id), "--bundle-endpoint-spiffe-id is of"),
            (endpoint(Some("https://spire.east.example"), web, id), "leave one of them out"),
        ] {
            let refused = reach(&args).unwrap_err().to_string();
            assert!(refused.contains(named) && refused.contains("--bundle-endpoint-"), "{args:?}: {refused}");
        }
        let told = |url, profile, id| reach(&endpoint(url, profile, id)).unwrap().bundle_endpoint;
        assert_eq!(told(None, None, None), None);
        let url = Some("https://spire.east.example");
        for (profile, id) in [(web, None), (spiffe, id), (None, id), (None, None)] {
            let told = told(url, profile, id).unwrap().profile;
            assert_eq!(told.kind == ProfileType::HttpsWeb, profile == web);
            assert_eq!(told.endpoint_spiffe_id.as_deref(), id);
        }
    }

    /// An agent that hangs up once it was asked: its invite may be open, and its token is lost.
    #[tokio::test]
    async fn an_invite_whose_answer_is_lost_is_to_be_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let cluster = ClusterFlags {
            kubeconfig: None,
            context: None,
            namespace: "entente-system".to_owned(),
            instance: "entente".to_owned(),
        };
        let client = SocketFlag { control: Some(socket) }.client(&cluster);
        let new = NewArgs {
            trust_domain: Some("west.example".to_owned()),
            ttl: None,
            file: Some(folder.path().join("token")),
            output: TextFormat::Text,
            reach: ReachArgs::default(),
        };
        let hang_up = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 16]).await;
            }
        };
        let lost = tokio::select! { lost = invite(&client, &new) => lost.unwrap_err(), () = hang_up => unreachable!() };
        assert!(format!("{lost:#}").starts_with("whether an invite was made is not known"), "{lost:#}");
        assert!(format!("{lost:#}").contains("`entente invite withdraw ID`"), "{lost:#}");
        assert!(!folder.path().join("token").exists());
    }
}

//! The command line: one file a subcommand.

mod about;
mod adopt;
mod agent;
mod control;
pub(crate) mod crds;
mod demo;
mod diagnose;
mod explain;
mod invite;
mod join;
mod peer;
mod render;
mod rotate;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// SPIFFE-native federation of trust domains.
#[derive(Parser, Debug)]
#[command(name = "entente", version, about, long_about = None)]
struct Cli {
    /// What is logged, as in tracing's EnvFilter: `info`, `entente=debug`, ...
    #[arg(long, global = true, env = "ENTENTE_LOG", default_value = "info")]
    log: String,

    /// Log lines as JSON.
    #[arg(long, global = true, env = "ENTENTE_LOG_JSON")]
    log_json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the agent beside SPIRE.
    Agent(Box<crate::config::AgentArgs>),
    /// Print what an agent would write for these manifests, without a cluster.
    Render(render::RenderArgs),
    /// Show the peers and services of a trust domain.
    Status(status::StatusArgs),
    /// Change the authorities that SPIRE signs with, once every peer holds the new ones.
    Rotate(rotate::RotateArgs),
    /// What is done to one relationship.
    #[command(subcommand)]
    Peer(peer::PeerCommand),
    /// Show who a running agent is.
    About(control::ControlArgs),
    Diagnose(diagnose::DiagnoseArgs),
    Explain(explain::ExplainArgs),
    /// Invite another trust domain: a token for its operator.
    Invite(Box<invite::InviteArgs>),
    /// Become a peer of the trust domain that gave a token.
    Join(Box<join::JoinArgs>),
    /// Make a relationship that was made by hand a TrustDomainPeer, without anything flapping.
    Adopt(adopt::AdoptArgs),
    /// Print the CustomResourceDefinitions.
    Crds,
    /// Two trust domains on this machine, with embedded authorities: see a call go through.
    Demo(demo::DemoArgs),
}

/// Parses the command line and runs it. Exit codes: 0 well; 1 it failed, or `status` found something not ready; 2 the
/// command line cannot be used; `diagnose` has a 3, for what it could not look at.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = log(&cli) {
        return fail(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Agent(args) => agent::run(*args).await.map(|()| ExitCode::SUCCESS),
        Command::Render(args) => render::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Status(args) => status::run(&args).await,
        Command::Rotate(args) => rotate::run(&args).await,
        Command::Peer(command) => peer::run(command).await,
        Command::About(args) => about::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Diagnose(args) => diagnose::run(&args).await,
        Command::Explain(args) => explain::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Invite(args) => invite::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Join(args) => join::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Adopt(args) => adopt::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Crds => crds::run().map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::run(args).await.map(|()| ExitCode::SUCCESS),
    }
}

fn log(cli: &Cli) -> anyhow::Result<()> {
    // The demo speaks for itself; its agents' logs are for who asks.
    let default = matches!(cli.command, Command::Demo(_)) && cli.log == "info";
    let filter = EnvFilter::try_new(if default { "error,entente::devkit=warn" } else { &cli.log })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if cli.log_json {
        subscriber.json().init()
    } else {
        subscriber.init()
    }
    Ok(())
}

#[allow(clippy::print_stderr, reason = "the last word of a command that failed")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("entente: {error:#}");
    ExitCode::FAILURE
}

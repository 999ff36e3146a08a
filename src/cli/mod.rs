//! The command line: one file a subcommand.

mod about;
mod adopt;
mod agent;
mod bootstrap;
mod bundles;
mod clients;
mod completions;
mod control;
pub(crate) mod crds;
mod demo;
mod diagnose;
mod dial;
mod exit;
mod explain;
mod invite;
mod join;
mod object;
mod output;
mod peer;
mod peers;
#[cfg(test)]
mod picture;
mod reach;
#[cfg(test)]
mod reference;
mod render;
mod rotate;
mod services;
mod status;
mod store;
mod svid;
mod table;
mod timeline;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::observe::traces;

use output::{Color, Screen};

/// What runs in the agent's pod for a command elsewhere.
const DIAL: &str = "dial-stdio";
/// The name under which kubectl runs this as `kubectl entente`.
const PLUGIN: &str = "kubectl-entente";

/// SPIFFE-native federation of trust domains.
///
/// Commands that only read objects ask the API server (or a directory, with --store dir:PATH). Those that need the running agent
/// use its control socket beside it; elsewhere they reach it through the cluster's kubeconfig, as `kubectl exec` does. Installed
/// on PATH as `kubectl-entente`, it is a plugin of kubectl: `kubectl entente status`. Which cluster and agent may be said before the
/// command, too: `entente --context east status`.
#[derive(Parser, Debug)]
#[command(name = "entente", version, after_help = exit::MEANING, max_term_width = 120)]
struct Cli {
    /// What is logged on standard error, as in tracing's EnvFilter: `info`, `entente=debug`, ... By default `info` for the agent,
    /// `error` for other commands.
    #[arg(long, global = true, env = "ENTENTE_LOG", hide_short_help = true)]
    log: Option<String>,

    /// Log lines as JSON.
    #[arg(long, global = true, env = "ENTENTE_LOG_JSON", hide_short_help = true)]
    log_json: bool,

    /// Whether output is coloured.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_short_help = true)]
    color: Color,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Status(status::StatusArgs),
    Peers(peers::PeersArgs),
    Services(services::ServicesArgs),
    Bundles(bundles::BundlesArgs),
    Svid(svid::SvidArgs),
    Diagnose(diagnose::DiagnoseArgs),
    /// Invite another trust domain: a token for its operator
    Invite(Box<invite::InviteArgs>),
    /// Become a peer of the trust domain that gave a token
    Join(Box<join::JoinArgs>),
    /// End a relationship, or show the bundles that a peer has had
    #[command(subcommand)]
    Peer(peer::PeerCommand),
    /// Explain a condition, or a reason of one
    Explain(explain::ExplainArgs),
    /// Make a relationship that was made by hand a TrustDomainPeer
    Adopt(adopt::AdoptArgs),
    /// Change the authorities that SPIRE signs with, once every peer holds the new ones
    Rotate(rotate::RotateArgs),
    /// Show who a running agent is
    About(about::AboutArgs),
    /// Print what an agent would write for these manifests, without a cluster
    Render(render::RenderArgs),
    /// Print the CustomResourceDefinitions
    Crds,
    Completions(completions::CompletionsArgs),
    Clients(clients::ClientsArgs),
    /// Print what a client without Istio is started with
    #[command(subcommand)]
    Bootstrap(bootstrap::BootstrapCommand),
    /// Run the agent beside SPIRE
    Agent(Box<crate::config::AgentArgs>),
    /// Two trust domains on this machine, with embedded authorities: see a call go through
    Demo(demo::DemoArgs),
    /// Pass standard input and output on to the agent's control socket
    #[command(hide = true)]
    DialStdio(control::SocketFlag),
}

/// Parses the command line and runs it; `exit.rs` has the exit codes.
#[must_use]
pub fn main() -> ExitCode {
    let cli = parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    // What sends traces runs on the runtime.
    let logging = {
        let _runtime = runtime.enter();
        log(&cli)
    };
    let traces = match logging {
        Ok(traces) => traces,
        Err(error) => return fail(&error),
    };
    let code = runtime.block_on(run(cli)).unwrap_or_else(|error| fail(&error));
    if let Some(traces) = traces {
        traces.shutdown();
    }
    // A read of standard input that never ends must not keep the process.
    runtime.shutdown_background();
    code
}

/// The command line, under the name by which this was called.
fn parse() -> Cli {
    let called = std::env::args_os().next().map(std::path::PathBuf::from);
    let is_plugin = called.is_some_and(|path| path.file_stem().is_some_and(|name| name == PLUGIN));
    let mut command = command(is_plugin);
    let matches = command.get_matches_mut();
    let taken = store::refuse_unused(&command, &matches);
    taken.and_then(|()| Cli::from_arg_matches(&matches)).unwrap_or_else(|error| error.exit())
}

/// The definition of the command line.
fn command(is_plugin: bool) -> clap::Command {
    let command = store::before_the_command(Cli::command());
    if is_plugin { command.name(PLUGIN).bin_name("kubectl entente") } else { command }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let screen = Screen::of_stdout(cli.color);
    let done = match cli.command {
        Command::Agent(args) => agent::run(*args).await,
        Command::Render(args) => render::run(&args).await,
        Command::Status(args) => return status::run(&args, cli.color).await,
        Command::Peers(args) => return peers::run(&args, screen).await,
        Command::Services(args) => return services::run(&args, screen).await,
        Command::Bundles(args) => return bundles::run(&args, screen).await,
        Command::Clients(args) => return clients::run(&args, screen).await,
        Command::Svid(args) => return svid::run(&args, screen).await,
        Command::Rotate(args) => return rotate::run(&args).await,
        Command::Peer(command) => return peer::run(command).await,
        Command::About(args) => about::run(&args).await,
        Command::Diagnose(args) => return diagnose::run(&args, screen).await,
        Command::Explain(args) => explain::run(&args),
        Command::Invite(args) => invite::run(&args).await,
        Command::Join(args) => join::run(&args).await,
        Command::Adopt(args) => adopt::run(&args).await,
        Command::Crds => crds::run(),
        Command::Bootstrap(command) => bootstrap::run(&command).await,
        Command::Completions(args) => completions::run(&args),
        Command::Demo(args) => demo::run(args).await,
        Command::DialStdio(socket) => dial::run(socket.path()).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Sets up what is logged, and what is traced where a collector is named.
fn log(cli: &Cli) -> anyhow::Result<Option<traces::Exporter>> {
    let default = match cli.command {
        Command::Agent(_) | Command::Bootstrap(_) => "info",
        // It speaks for itself; its agents' logs are for who asks.
        Command::Demo(_) => "error,entente::devkit=warn",
        _ => "error",
    };
    let filter = EnvFilter::try_new(cli.log.as_deref().unwrap_or(default))?;
    let filter = filter.add_directive(format!("{}=off", traces::TARGET).parse()?);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = if cli.log_json {
        lines.json().with_filter(filter).boxed()
    } else {
        lines.with_filter(filter).boxed()
    };
    let mut layers = vec![lines];
    let endpoint = match &cli.command {
        Command::Agent(args) => args.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()),
        _ => None,
    };
    let mut exporter = None;
    if let Some(endpoint) = endpoint {
        let (spans, sends) = traces::layer::<Registry>(endpoint)?;
        layers.push(spans.boxed());
        exporter = Some(sends);
    }
    tracing_subscriber::registry().with(layers).init();
    Ok(exporter)
}

/// The last word of a command that failed. Who has closed our output does not want to know.
fn fail(error: &anyhow::Error) -> ExitCode {
    if !exit::is_unheard(error) {
        output::tell(&format!("entente: {error:#}"));
    }
    exit::of_error(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        let mut command = command(false);
        let matches = command.try_get_matches_from_mut(line.split(' '))?;
        store::refuse_unused(&command, &matches)?;
        Cli::from_arg_matches(&matches)
    }

    #[test]
    fn a_cluster_is_named_before_the_command_or_after_it() {
        command(false).debug_assert();
        let named = |line: &str| format!("{:?}", read(line).unwrap().command);
        for command in ["status", "invite list", "peer end west.example", "diagnose west", "about"] {
            let before = named(&format!("entente --context east -n other --instance mine {command}"));
            let after = named(&format!("entente {command} --context east -n other --instance mine"));
            assert_eq!(before, after);
            assert!(
                before.contains(r#"context: Some("east"), namespace: "other", instance: "mine""#),
                "{before}"
            );
        }
        let between = named("entente peer --kubeconfig k -n other end west.example");
        assert!(between.contains(r#"kubeconfig: Some("k")"#) && between.contains(r#""other""#), "{between}");
        assert!(named("entente status").contains(r#"namespace: "entente-system", instance: "entente""#));
        for (before, after) in [
            ("invite --context east -n other list", "invite list --context east -n other"),
            ("invite --control /s withdraw ID", "invite withdraw ID --control /s"),
            ("--control /s about", "about --control /s"),
        ] {
            assert_eq!(named(&format!("entente {before}")), named(&format!("entente {after}")), "{before}");
        }
        let own = named("entente -n other render . --trust-domain west.example");
        assert!(own.contains(r#"namespace: "other""#), "{own}");
    }

    #[test]
    fn a_cluster_is_not_named_beside_a_socket_or_a_directory() {
        for line in [
            "entente --context east rotate x509 --control /s",
            "entente about --kubeconfig k --control /s",
            "entente --kubeconfig k status --store dir:/e",
        ] {
            let refused = read(line).unwrap_err();
            assert_eq!(refused.kind(), clap::error::ErrorKind::ArgumentConflict, "{line}");
            assert!(refused.to_string().contains("each says whom to ask"), "{refused}");
        }
        for line in [
            "entente --context east status --store kubernetes",
            "entente bundles --store dir:/e --control /s",
            "entente -n other about --control /s",
        ] {
            assert!(read(line).is_ok(), "{line}");
        }
    }

    /// What is of a new invite has no meaning for those that are there.
    #[test]
    fn what_a_command_within_another_does_not_take_is_refused_before_it() {
        for line in [
            "entente invite --ttl 1h list",
            "entente invite --trust-domain west.example -n other withdraw ID",
            "entente invite -o json list",
            "entente invite --advertise east.example:7443 list",
        ] {
            let refused = read(line).unwrap_err();
            assert_eq!(refused.kind(), clap::error::ErrorKind::ArgumentConflict, "{line}");
        }
        let missing = read("entente invite --ttl 1h").unwrap_err();
        assert_eq!(missing.kind(), clap::error::ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn what_asks_no_cluster_takes_none() {
        for line in [
            "entente --context east crds",
            "entente crds -n other",
            "entente completions bash --context east",
            "entente --control /s status",
        ] {
            let refused = read(line).unwrap_err();
            assert_eq!(refused.kind(), clap::error::ErrorKind::UnknownArgument, "{line}");
        }
        let refused = read("entente --context east crds").unwrap_err().to_string();
        assert!(refused.contains("'--context'") && refused.contains("`crds` asks no cluster"), "{refused}");
    }
}

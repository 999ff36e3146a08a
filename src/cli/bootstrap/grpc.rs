//! `entente bootstrap grpc`: a configuration with which a gRPC library takes everything else from an agent, and its certificate, key
//! and bundles from files, which are kept fresh on demand.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::host_and_port;
use crate::identity::workload::WorkloadEndpoint;
use crate::model::SpiffeId;
use crate::plan::xds::PROVIDER;
use crate::proxyless::{Agent, BUNDLES, CERTIFICATE, KEY, Reach, SOCKET, Settings, keep, path_of};

/// Print a configuration for a gRPC library that is served by an agent, or keep it with the files that it names
///
/// The library takes it by GRPC_XDS_BOOTSTRAP (a file) or GRPC_XDS_BOOTSTRAP_CONFIG (the text). With --keep this writes it as
/// DIRECTORY/bootstrap.json, once certificate, key and bundles are there, and stays: these are kept as the SPIFFE Workload API has
/// them. It runs beside the workload, as the same workload to SPIRE.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("agent").required(true).args(["xds", "xds_socket"])))]
pub(in crate::cli) struct GrpcArgs {
    /// Where the agent serves xDS (its --xds-listen): HOST:PORT. What --keep runs connects there, with the workload's SVID, and the
    /// library to DIRECTORY/xds@agent: a gRPC library pins no SPIFFE ID of the agent.
    #[arg(long, requires_all = ["agent_id", "keep"])]
    xds: Option<String>,

    /// The SPIFFE ID of the agent, which is pinned.
    #[arg(long)]
    agent_id: Option<SpiffeId>,

    /// A Unix socket of the agent (its --xds-socket), in the place of --xds and --agent-id. With --keep the library reaches it by
    /// a link, DIRECTORY/xds@agent; without, gRPC's C core (C++, Python) needs an `@` in the socket's name.
    #[arg(long)]
    xds_socket: Option<PathBuf>,

    /// The folder of certificate, key and bundles.
    #[arg(long)]
    directory: PathBuf,

    /// Write them and DIRECTORY/bootstrap.json, and stay to keep them fresh.
    #[arg(long, requires = "workload_api")]
    keep: bool,

    /// The SPIFFE Workload API: `unix:///path` or `tcp://IP:port`.
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "ENDPOINT")]
    workload_api: Option<WorkloadEndpoint>,

    /// Which of the workload's SVIDs. Default: the first that the Workload API gives.
    #[arg(long, requires = "keep")]
    spiffe_id: Option<SpiffeId>,

    /// How often the library looks for new files.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    refresh: u32,

    /// A name of this client, for the agent's log.
    #[arg(long, default_value = "grpc")]
    node_id: String,
}

/// Prints it as JSON, or keeps it until SIGTERM or SIGINT.
pub(super) async fn run(args: &GrpcArgs) -> anyhow::Result<()> {
    let directory = std::path::absolute(&args.directory)?;
    let mut text = serde_json::to_string_pretty(&bootstrap(args, &directory)?)?;
    text.push('\n');
    let Some(workload_api) = args.workload_api.clone().filter(|_| args.keep) else {
        std::io::stdout().lock().write_all(text.as_bytes())?;
        return Ok(());
    };
    let agent = match (&args.xds_socket, &args.xds, &args.agent_id) {
        (Some(path), _, _) => Reach::Socket(std::path::absolute(path)?),
        (None, Some(address), Some(id)) => {
            host_and_port(address)?;
            Reach::Tls(Agent { address: address.clone(), id: id.clone() })
        }
        _ => anyhow::bail!("--xds HOST:PORT with --agent-id, or --xds-socket PATH, says where the agent is"),
    };
    let settings = Settings { workload_api, id: args.spiffe_id.clone(), directory, agent, bootstrap: text };
    let cancel = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopping = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });
    Ok(keep(settings, cancel).await?)
}

fn bootstrap(args: &GrpcArgs, directory: &Path) -> anyhow::Result<Value> {
    let socket = match &args.xds_socket {
        Some(path) if !args.keep => std::path::absolute(path)?,
        _ => directory.join(SOCKET),
    };
    let bundles = path_of(directory, BUNDLES);
    Ok(json!({
        "xds_servers": [{
            "server_uri": format!("unix://{}", socket.display()),
            // Who may open the socket is who may connect.
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        "node": {"id": args.node_id},
        "certificate_providers": {
            PROVIDER: {
                "plugin_name": "file_watcher",
                "config": {
                    "certificate_file": path_of(directory, CERTIFICATE),
                    "private_key_file": path_of(directory, KEY),
                    // The name that gRFC A87 and Go have, and the one that C++ and what is built on it have.
                    "spiffe_trust_bundle_map_file": bundles,
                    "spiffe_bundle_map_file": bundles,
                    "refresh_interval": format!("{}s", args.refresh),
                },
            },
        },
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GrpcArgs,
    }

    fn of(line: &str) -> anyhow::Result<Value> {
        bootstrap(&Line::try_parse_from(line.split_whitespace())?.args, Path::new("/run/cart"))
    }

    #[test]
    fn a_library_reads_what_is_kept_and_asks_by_a_socket() {
        insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false }, {
            let line = "grpc --xds-socket /run/entente/cart.sock --directory /run/cart";
            insta::assert_yaml_snapshot!("grpc_by_socket", of(line).unwrap());
        });
        let by_tls = "grpc --xds entente.example:7445 --agent-id spiffe://east.example/agent --directory /run/cart \
                      --keep --workload-api unix:///run/spire/agent.sock";
        assert_eq!(of(by_tls).unwrap()["xds_servers"][0]["server_uri"], "unix:///run/cart/xds@agent");
        for line in [
            "grpc",
            "grpc --xds-socket /a",
            "grpc --xds a:1 --directory /d --keep --workload-api unix:///s",
            "grpc --xds a:1 --agent-id spiffe://east.example/agent --directory /d",
            "grpc --xds-socket /a --directory /d --refresh 0",
        ] {
            assert!(of(line).is_err(), "{line}");
        }
    }
}

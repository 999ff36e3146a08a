//! `entente bootstrap`: prints what a client without Istio is started with.

mod envoy;
mod grpc;

use clap::Subcommand;

/// What a client of xDS is started with.
#[derive(Subcommand, Debug)]
pub(super) enum BootstrapCommand {
    Envoy(envoy::EnvoyArgs),
    Grpc(grpc::GrpcArgs),
}

pub(super) async fn run(command: &BootstrapCommand) -> anyhow::Result<()> {
    match command {
        BootstrapCommand::Envoy(args) => envoy::run(args),
        BootstrapCommand::Grpc(args) => grpc::run(args).await,
    }
}

/// Host and port of where an agent serves xDS; an IPv6 address stands in brackets, and is given without.
fn host_and_port(address: &str) -> anyhow::Result<(&str, u16)> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let Some((host, port)) = parts.filter(|(host, port)| !host.is_empty() && *port != 0) else {
        anyhow::bail!("--xds {address}: it is not HOST:PORT");
    };
    Ok((host.trim_start_matches('[').trim_end_matches(']'), port))
}

//! `entente bootstrap`: prints what a client without Istio is started with.

mod envoy;

use clap::Subcommand;

/// What a client of xDS is started with.
#[derive(Subcommand, Debug)]
pub(super) enum BootstrapCommand {
    Envoy(envoy::EnvoyArgs),
}

pub(super) fn run(command: &BootstrapCommand) -> anyhow::Result<()> {
    match command {
        BootstrapCommand::Envoy(args) => envoy::run(args),
    }
}

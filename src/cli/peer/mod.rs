//! `entente peer`: what is done to one relationship, in the store.

mod end;
mod manifest;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Subcommand, Debug)]
pub(super) enum PeerCommand {
    /// End the relationship with a trust domain, and wait until nothing of it is left.
    End(end::EndArgs),
}

pub(super) async fn run(command: PeerCommand) -> anyhow::Result<ExitCode> {
    match command {
        PeerCommand::End(args) => end::run(args).await,
    }
}

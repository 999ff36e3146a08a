//! `entente peer`: what is done to one relationship, in the store.

mod end;
mod history;
mod manifest;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Subcommand, Debug)]
pub(super) enum PeerCommand {
    /// End the relationship with a trust domain, and wait until nothing of it is left.
    End(end::EndArgs),
    /// Show the bundles that a trust domain has had: when each was first seen, what it changed, who confirmed it.
    History(history::HistoryArgs),
}

pub(super) async fn run(command: PeerCommand) -> anyhow::Result<ExitCode> {
    match command {
        PeerCommand::End(args) => end::run(args).await,
        PeerCommand::History(args) => history::run(args).await,
    }
}

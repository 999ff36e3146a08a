//! What serves operators' commands and peers' questions: the control socket, invites and joins, diagnosis.

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::sources::Sources;
use super::supervise;
use crate::config::AgentArgs;
use crate::control::{self, Control, Enrolment};
use crate::diagnose::Diagnoser;
use crate::enrol::join::Joiner;
use crate::enrol::{Desk, Invites};
use crate::federation::diagnose::{PathProbe, Questions};
use crate::index::run::WorldHandle;
use crate::model::replica::Leader;
use crate::model::replica::leader_lease;
use crate::store::Store;
use crate::xds::Clients;
use std::sync::Arc;

/// What operators' commands work with, beside the sources.
pub(super) struct Operators {
    pub(super) worlds: WorldHandle,
    pub(super) replica: String,
    /// Whether this replica leads, and may write.
    pub(super) leading: watch::Receiver<bool>,
    pub(super) leader: watch::Receiver<Leader>,
    pub(super) enrolment: Enrolment,
    pub(super) peers: PathProbe,
    pub(super) clients: Clients,
}

pub(super) fn control(args: &AgentArgs, sources: &Sources, operators: Operators) -> anyhow::Result<Control> {
    let Operators { worlds, replica, leading, leader, enrolment, peers, clients } = operators;
    let diagnoser = Diagnoser {
        worlds: worlds.clone(),
        leading: leading.clone(),
        replica: replica.clone(),
        workload_api: args.workload_api.parse().context("--workload-api")?,
        admin_hint: args.admin_hint.clone(),
        spire: sources.server.clone(),
        endpoints: sources.client.clone(),
        peers,
    };
    Ok(Control {
        worlds,
        leading,
        leader,
        replica,
        diagnoser,
        enrolment,
        replicas: sources.replicas.clone(),
        spire: sources.spire.clone(),
        clients,
        rotating: Arc::default(),
    })
}

/// Answers peers that ask what we see, watches over open invites, and serves the control socket.
pub(super) async fn spawn_control(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    args: &AgentArgs,
    control: Control,
    questions: Questions,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    supervise(tasks, tokio::spawn(control.diagnoser.clone().serve(questions, cancel.clone())));
    let following = control.enrolment.invites.clone().follow(control.leading.clone(), cancel.clone());
    tasks.spawn(async move {
        following.await;
        Ok(())
    });
    if !args.control.as_os_str().is_empty() {
        let serving = control::serve(&args.control, control, cancel.clone()).await.context("--control")?;
        supervise(tasks, serving);
    }
    Ok(())
}

pub(super) fn enrolment(args: &AgentArgs, store: &Store, sources: &Sources) -> Enrolment {
    Enrolment {
        invites: Invites::new(store.clone(), &args.namespace, &args.instance),
        joiner: Joiner {
            store: store.clone(),
            source: sources.identity.clone(),
            endpoints: sources.client.clone(),
            unfinished: TaskTracker::new(),
        },
        reach: args.reach.clone(),
        leader_lease: leader_lease(&args.instance),
    }
}

pub(super) fn desk(
    enrolment: &Enrolment,
    sources: &Sources,
    worlds: &WorldHandle,
) -> Result<Desk, rustls::Error> {
    let Joiner { store, unfinished, .. } = enrolment.joiner.clone();
    Desk::new(&sources.identity, enrolment.invites.clone(), store, worlds.clone(), unfinished)
}

/// An agent that stops ends what it must not leave half way: each of these is bounded by itself.
pub(super) async fn finish(unfinished: TaskTracker, cancel: CancellationToken) -> anyhow::Result<()> {
    cancel.cancelled().await;
    unfinished.close();
    unfinished.wait().await;
    Ok(())
}

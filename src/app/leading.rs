//! Which replica leads, and what follows from it: it writes, and it talks to peers.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::Applier;
use crate::config::AgentArgs;
use crate::store::{Leadership, LeaseTimings, Store};

pub(super) fn leader_lease(args: &AgentArgs) -> String {
    format!("{}-leader", args.instance)
}

pub(super) fn lead(args: &AgentArgs, store: &Store, replica: &str) -> Leadership {
    let duration = Duration::from_secs(args.timing.lease_seconds.max(3));
    let timings = LeaseTimings { duration, deadline: duration.mul_f64(0.66), retry: duration.div_f64(7.0) };
    store.lead(&leader_lease(args), replica, timings)
}

/// Peers are talked to by the replica that leads, once every source has been read: they keep one stream with us, and
/// who does not know its peers yet would refuse them.
pub(super) async fn open_to_peers(
    mut leading: watch::Receiver<bool>,
    mut ready: watch::Receiver<bool>,
    open: watch::Sender<bool>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let is_open = *leading.borrow_and_update() && *ready.borrow_and_update();
        open.send_if_modified(|last| std::mem::replace(last, is_open) != is_open);
        let ended = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = leading.changed() => changed.err().map(|_| "the leader election"),
            changed = ready.changed() => changed.err().map(|_| "the planning"),
        };
        // Once the agent is told to stop, these end, and one may have been seen before that.
        match ended {
            Some(_) if cancel.is_cancelled() => return Ok(()),
            Some(what) => anyhow::bail!("{what} ended though the agent runs"),
            None => {}
        }
    }
}

/// The leader writes; it gives its Lease up when the agent stops.
pub(super) fn spawn_writer(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    applier: Applier,
    leadership: Leadership,
    cancel: &CancellationToken,
) {
    let cancel = cancel.clone();
    tasks.spawn(async move {
        applier.run(cancel).await;
        leadership.release().await;
        Ok(())
    });
}

pub(super) fn replica(args: &AgentArgs) -> String {
    if !args.replica.is_empty() {
        return args.replica.clone();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_empty() { "entente".to_owned() } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn peers_are_talked_to_by_a_leader_that_has_read_everything() {
        let (leading, leads) = watch::channel(false);
        let (ready, is_ready) = watch::channel(false);
        let (open, mut opened) = watch::channel(false);
        let cancel = CancellationToken::new();
        let task = tokio::spawn(open_to_peers(leads, is_ready, open, cancel.clone()));
        let mut becomes = async |is_leader: bool, is_read: bool| {
            leading.send_replace(is_leader);
            ready.send_replace(is_read);
            let wanted = is_leader && is_read;
            tokio::time::timeout(Duration::from_secs(10), opened.wait_for(|open| *open == wanted))
                .await
                .unwrap()
                .unwrap();
        };
        for (is_leader, is_read) in [(true, true), (false, true), (true, true), (true, false), (true, true)] {
            becomes(is_leader, is_read).await;
        }
        cancel.cancel();
        drop(leading);
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_election_that_ends_ends_the_agent() {
        let ready = watch::channel(true);
        let leads = watch::channel(true).1;
        let ended = open_to_peers(leads, ready.1, watch::Sender::new(false), CancellationToken::new()).await;
        assert!(ended.unwrap_err().to_string().contains("leader election"));
    }
}

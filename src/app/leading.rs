//! Which replica leads, and what follows from it: it writes, and it talks to peers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::Applier;
use crate::config::{AgentArgs, StoreArg};
use crate::model::replica::{Leader, Replica, leader_lease};
use crate::store::{Leadership, LeaseTimings, Store};

pub(super) fn lead(args: &AgentArgs, store: &Store, replica: &Replica) -> Leadership {
    let duration = Duration::from_secs(args.timing.lease_seconds.max(3));
    let timings = LeaseTimings { duration, deadline: duration.mul_f64(0.66), retry: duration.div_f64(7.0) };
    store.lead(&leader_lease(&args.instance), replica, timings)
}

/// What decides what this replica may do.
pub(super) struct Standing {
    pub(super) leader: watch::Receiver<Leader>,
    /// The term of our lead that the last plan was made in. A plan of before was made while another led: what another has
    /// said and heard since is not in it.
    pub(super) planned_in: watch::Receiver<Option<i64>>,
    /// Whether every source has been read.
    pub(super) ready: watch::Receiver<bool>,
    /// Whether replicas pass peers' connections on.
    pub(super) relays: bool,
}

/// What this replica may do; each is false at first.
pub(super) struct Leave {
    /// It may write.
    pub(super) acts: watch::Sender<bool>,
    /// It may talk to peers. They keep one stream with us, so one replica has them all; and who does not know its peers yet
    /// would refuse them.
    pub(super) open: watch::Sender<bool>,
    /// It may be dialled: it is open, or passes on to one that is. Where it cannot, it counts as able all the same, as a
    /// replica that waits for an older one to go must.
    pub(super) serves: watch::Sender<bool>,
}

impl Standing {
    /// Follows it until `cancel`.
    ///
    /// # Errors
    /// Names what ended though the agent runs.
    pub(super) async fn follow(mut self, leave: Leave, cancel: CancellationToken) -> anyhow::Result<()> {
        let ended = loop {
            self.judge(&leave);
            let ended = tokio::select! {
                () = cancel.cancelled() => break None,
                changed = self.leader.changed() => changed.err().map(|_| "the leader election"),
                changed = self.planned_in.changed() => changed.err().map(|_| "the planning"),
                changed = self.ready.changed() => changed.err().map(|_| "the planning"),
            };
            if ended.is_some() {
                break ended;
            }
        };
        // Whoever connects from now on is another's.
        tell(&leave.open, false);
        // Once the agent is told to stop, these end, and one may have been seen before that.
        match ended {
            Some(what) if !cancel.is_cancelled() => anyhow::bail!("{what} ended though the agent runs"),
            _ => Ok(()),
        }
    }

    fn judge(&mut self, leave: &Leave) {
        let is_ready = *self.ready.borrow_and_update();
        let planned_in = *self.planned_in.borrow_and_update();
        let leader = self.leader.borrow_and_update();
        let acts = matches!(*leader, Leader::Us { term } if planned_in == Some(term));
        tell(&leave.acts, acts);
        tell(&leave.open, acts && is_ready);
        tell(&leave.serves, is_ready && (!self.relays || leader.is_known()));
    }
}

fn tell(sender: &watch::Sender<bool>, now: bool) {
    sender.send_if_modified(|last| std::mem::replace(last, now) != now);
}

/// Follows what this replica may do; answers with the three of [`Leave`], in their order.
pub(super) fn spawn_standing(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    standing: Standing,
    cancel: &CancellationToken,
) -> [watch::Receiver<bool>; 3] {
    let ((acts, may_act), (open, may_talk), (serves, may_be_dialled)) =
        (watch::channel(false), watch::channel(false), watch::channel(false));
    tasks.spawn(standing.follow(Leave { acts, open, serves }, cancel.clone()));
    [may_act, may_talk, may_be_dialled]
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

/// This replica, as the others see it; and where it takes what they pass on.
pub(super) fn replica(args: &AgentArgs) -> anyhow::Result<(Replica, Option<SocketAddr>)> {
    let relay = args.relay.addresses().map_err(anyhow::Error::msg)?;
    if relay.is_some() && args.store != StoreArg::Kubernetes {
        anyhow::bail!(
            "--relay-listen: replicas find each other by a Lease in Kubernetes; there is none in {}",
            args.store
        );
    }
    let (listen, told) = relay.unzip();
    Ok((Replica { name: name(args), relay: told }, listen))
}

fn name(args: &AgentArgs) -> String {
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

    struct Stand {
        leader: watch::Sender<Leader>,
        planned_in: watch::Sender<Option<i64>>,
        ready: watch::Sender<bool>,
        acts: watch::Receiver<bool>,
        open: watch::Receiver<bool>,
        serves: watch::Receiver<bool>,
        cancel: CancellationToken,
        task: tokio::task::JoinHandle<anyhow::Result<()>>,
    }

    impl Stand {
        fn new(relays: bool) -> Self {
            let (leader, leads) = watch::channel(Leader::Nobody);
            let (planned_in, planned) = watch::channel(None);
            let (ready, is_ready) = watch::channel(false);
            let (acts, may_act) = watch::channel(false);
            let (open, may_talk) = watch::channel(false);
            let (serves, may_be_dialled) = watch::channel(false);
            let standing = Standing { leader: leads, planned_in: planned, ready: is_ready, relays };
            let cancel = CancellationToken::new();
            let task = tokio::spawn(standing.follow(Leave { acts, open, serves }, cancel.clone()));
            Self {
                leader,
                planned_in,
                ready,
                acts: may_act,
                open: may_talk,
                serves: may_be_dialled,
                cancel,
                task,
            }
        }

        async fn is(&mut self, acts: bool, open: bool, serves: bool) {
            for (receiver, wanted) in
                [(&mut self.acts, acts), (&mut self.open, open), (&mut self.serves, serves)]
            {
                let wait = receiver.wait_for(|now| *now == wanted);
                tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap().unwrap();
            }
        }
    }

    fn other() -> Leader {
        Leader::Other { name: "other".to_owned(), relay: None }
    }

    #[tokio::test]
    async fn peers_are_talked_to_by_a_leader_that_has_read_everything() {
        let mut stand = Stand::new(true);
        stand.ready.send_replace(true);
        stand.is(false, false, false).await;
        stand.leader.send_replace(other());
        stand.is(false, false, true).await;
        stand.leader.send_replace(Leader::Us { term: 2 });
        // what was planned while the other led is not acted on
        stand.is(false, false, true).await;
        stand.planned_in.send_replace(Some(2));
        stand.is(true, true, true).await;
        stand.ready.send_replace(false);
        stand.is(true, false, false).await;
        stand.ready.send_replace(true);
        stand.is(true, true, true).await;
        // lost, and won again before anything was planned
        stand.leader.send_replace(Leader::Nobody);
        stand.is(false, false, false).await;
        stand.leader.send_replace(Leader::Us { term: 4 });
        stand.is(false, false, true).await;
        stand.planned_in.send_replace(Some(4));
        stand.is(true, true, true).await;
        stand.cancel.cancel();
        stand.task.await.unwrap().unwrap();
        assert!(!*stand.open.borrow(), "who stops takes nobody in");
    }

    #[tokio::test]
    async fn a_replica_to_which_nobody_passes_on_is_able_before_it_leads() {
        let mut stand = Stand::new(false);
        stand.ready.send_replace(true);
        stand.is(false, false, true).await;
        stand.leader.send_replace(other());
        stand.is(false, false, true).await;
    }

    #[tokio::test]
    async fn an_election_that_ends_ends_the_agent() {
        let stand = Stand::new(true);
        drop(stand.leader);
        assert!(stand.task.await.unwrap().unwrap_err().to_string().contains("leader election"));
    }
}

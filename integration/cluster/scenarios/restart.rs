//! Restarts and rest: nothing is written that has not changed.

use super::services::{HOST, exported};
use super::{
    CFTD, GATEWAY, IMPORTED, POLICY, READY, SERVICE_ENTRY, SOON, STATIC_ENTRY, both_ready, federated,
    peer_says,
};
use crate::kubernetes::{AGENT_USER, Write};
use crate::pair::with_pair;
use crate::wait::{always, eventually};
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Everything that an agent generates, and the registrations that it edits.
const GENERATED: [(&str, &str); 6] = [CFTD, IMPORTED, SERVICE_ENTRY, GATEWAY, POLICY, STATIC_ENTRY];
/// Longer than the leases of the agents, and than what a peer is given to come back.
const OUT_WAIT: Duration = Duration::from_secs(8);

pub(super) async fn writes(domain: &Domain) -> Result<Vec<Write>> {
    let writes = domain.kubernetes.writes_of(AGENT_USER)?;
    Ok(writes.into_iter().filter(|write| write.resource != "leases").collect())
}

/// With west's agent stopped, east's agent is stopped, and killed, and started again: what it generated is the same by
/// uid and resourceVersion, and so it is once west is back.
#[test]
fn a_restart_writes_nothing() {
    with_pair(async |pair| {
        let mut agents = federated(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        exported(east, west).await?;
        both_ready(pair).await?;
        at_rest(east, west).await?;
        let before =
            (east.kubernetes.versions(&GENERATED).await?, west.kubernetes.versions(&GENERATED).await?);
        let entry = format!("ServiceEntry {AGENT_NAMESPACE}/{HOST}");
        ensure!(before.0.contains_key(&entry), "{:?}", before.0.keys());

        ensure!(agents.west.stop().await? == 0, "west's agent ended badly");
        peer_says(east, west, "Reciprocal", "Unknown", "PeerUnreachable").await?;
        for kill in [false, true] {
            if kill {
                agents.east.kill().await?;
            } else {
                ensure!(agents.east.stop().await? == 0, "east's agent ended badly");
            }
            agents.east.restart()?;
            agents.east.ready(READY).await?;
            let same = || async {
                let now = east.kubernetes.versions(&GENERATED).await?;
                ensure!(now == before.0, "before {:?}, now {now:?}", before.0);
                Ok(())
            };
            always("what was generated is the same", OUT_WAIT, same).await?;
        }
        agents.west.restart()?;
        agents.west.ready(READY).await?;
        both_ready(pair).await?;
        let after =
            (east.kubernetes.versions(&GENERATED).await?, west.kubernetes.versions(&GENERATED).await?);
        ensure!(after == before, "before {before:?}, after {after:?}");
        settled(east, west).await
    });
}

/// Waits until neither has written anything but Leases for a while; how much each has written by then.
pub(super) async fn at_rest(east: &Domain, west: &Domain) -> Result<(usize, usize)> {
    let rest = Duration::from_secs(5);
    eventually("both are at rest", SOON, || async {
        let before = (writes(east).await?.len(), writes(west).await?.len());
        tokio::time::sleep(rest).await;
        ensure!(before == (writes(east).await?.len(), writes(west).await?.len()), "still writing");
        Ok(before)
    })
    .await
}

/// A settled pair writes nothing but Leases for a minute.
async fn settled(east: &Domain, west: &Domain) -> Result<()> {
    let before = at_rest(east, west).await?;
    let leases = east.kubernetes.writes_of(AGENT_USER)?.len();
    let nothing = || async {
        for (domain, before) in [(east, before.0), (west, before.1)] {
            let since = writes(domain).await?.split_off(before);
            ensure!(since.is_empty(), "{} wrote {since:?}", domain.trust_domain());
        }
        Ok(())
    };
    always("nothing is written but Leases", Duration::from_secs(60), nothing).await?;
    let renewed = east.kubernetes.writes_of(AGENT_USER)?.len();
    (renewed > leases).then_some(()).context("not even a Lease was written: does the agent live?")
}

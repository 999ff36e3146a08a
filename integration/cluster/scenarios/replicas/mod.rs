//! Several replicas of one agent: one leads, all can be dialled, and whatever becomes of the leader no change is lost and
//! none is made twice.

mod stand;

use super::restart::{at_rest, writes};
use super::{IMPORTED, PEER, SERVICE_ENTRY, SOON, both_ready, found, of_peer};
use crate::balancer::Balancer;
use crate::hostile::Hostile;
use crate::kubernetes::{AGENT_USER, Write};
use crate::pair::with_pair;
use crate::process::Signal;
use crate::relay::{Network, Relay};
use crate::wait::eventually;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use prost::Message as _;
use serde_json::json;
use stand::{
    Changes, LONG_LEASE, Recorder, SHORT_LEASE, Stand, all_applied, holder, import, replica, summary,
};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const KILLS: usize = 20;
/// By the Lease: 5 s until it may be taken, a second until that is seen, and what a crowded machine takes.
const REPLACED: Duration = Duration::from_secs(20);
/// Two seconds, and what a crowded machine takes.
const GAP: Duration = Duration::from_secs(10);

/// Each write of these in its own namespace that the agents of `domain` had done, from this one on, by object.
async fn done(domain: &Domain, resource: &str, from: usize) -> Result<BTreeMap<String, Vec<Write>>> {
    let mut done = answered(domain, resource, from).await?;
    for writes in done.values_mut() {
        writes.retain(|write| (200..300).contains(&write.code));
    }
    done.retain(|_, writes| !writes.is_empty());
    Ok(done)
}

/// The same, whatever the API server answered. It says 504 of a write whose writer was killed before the answer, and may have
/// done it.
async fn answered(domain: &Domain, resource: &str, from: usize) -> Result<BTreeMap<String, Vec<Write>>> {
    let mut answered: BTreeMap<String, Vec<Write>> = BTreeMap::new();
    for write in writes(domain).await?.split_off(from) {
        let of = write.resource.split('/').next() == Some(resource);
        if of && write.namespace == AGENT_NAMESPACE {
            answered.entry(write.name.clone()).or_default().push(write);
        }
    }
    Ok(answered)
}

/// Each write made a version of its object, so none was made twice.
fn each_changed_something(
    what: &str,
    done: &BTreeMap<String, Vec<Write>>,
    recorder: &Recorder,
) -> Result<usize> {
    let seen = recorder.seen();
    let mut sum = 0;
    for (name, writes) in done {
        let versions = seen.get(name).map_or(0, |versions| versions.all.len());
        ensure!(
            writes.len() <= versions,
            "{what} {name} was written {} times, and changed {versions} times: {writes:?}",
            writes.len()
        );
        sum += writes.len();
    }
    Ok(sum)
}

#[test]
fn a_leader_that_is_killed_twenty_times_loses_no_change_and_makes_none_twice() {
    with_pair(async |pair| {
        let options = (0..3).map(|number| replica(number, SHORT_LEASE, None)).collect::<Result<_>>()?;
        let mut stand = Stand::new(pair, options).await?;
        let (_, before) = at_rest(&pair.east, &pair.west).await?;
        let namespace = Some(AGENT_NAMESPACE);
        let imports = Recorder::start(&pair.west, IMPORTED, namespace).await?;
        let entries = Recorder::start(&pair.west, SERVICE_ENTRY, namespace).await?;
        let in_east = Recorder::start(&pair.east, SERVICE_ENTRY, namespace).await?;
        let changes = Changes::start(pair, 0, Duration::from_millis(500)).await?;
        let (mut replaced, mut gaps) = (Vec::new(), Vec::new());
        for _ in 0..KILLS {
            let leader = stand.leader().await?;
            let known = entries.seen().len();
            let killed = Instant::now();
            stand.replicas[leader].kill().await?;
            stand.another_leads(leader).await?;
            replaced.push(killed.elapsed());
            stand.replicas[leader].restart()?;
            eventually("west goes on with what changes", SOON, || async {
                ensure!(entries.seen().len() > known, "no ServiceEntry more than {known}");
                Ok(())
            })
            .await?;
            gaps.push(killed.elapsed());
        }
        let last = changes.stop().await?;
        eprintln!("{KILLS} kills of the leader during {last} changes");
        let (middle, most) = summary(gaps);
        eprintln!("a change is imported again after a kill: p50 {middle:?}, at most {most:?}");
        let (middle, most) = summary(replaced);
        eprintln!("another leads after a kill: p50 {middle:?}, at most {most:?}");
        ensure!(most < REPLACED, "another led only after {most:?}");
        all_applied(pair, last).await?;
        both_ready(pair).await?;
        at_rest(&pair.east, &pair.west).await?;
        let wrote = done(&pair.west, "serviceentries", before).await?;
        let all = answered(&pair.west, "serviceentries", before).await?;
        let in_west = (0..last).filter(|number| number % 2 == 0);
        for number in in_west {
            let (_, host) = import(number, pair);
            let writes = all.get(&host).with_context(|| format!("{host} was never written"))?;
            let known = wrote.get(&host).map_or(0, Vec::len);
            let unknown = writes.iter().filter(|write| write.code == 504).count();
            ensure!(
                known == 1 || (known == 0 && unknown == 1),
                "ServiceEntry {host} was made once and written {writes:?}"
            );
        }
        each_changed_something("ServiceEntry", &wrote, &entries)?;
        let wrote = done(&pair.west, "importedservices", before).await?;
        let sum = each_changed_something("ImportedService", &wrote, &imports)?;
        ensure!(in_east.seen().len() >= last / 2, "east has {}", in_east.seen().len());
        // what the last edit admits
        let peer = found(&pair.west, PEER, None, "east.example").await?;
        ensure!(
            peer.data["status"]["observedGeneration"].as_i64() == peer.metadata.generation,
            "{}",
            peer.data["status"]
        );
        eprintln!("{sum} writes of ImportedServices in west, each of which changed something");
        Ok(())
    });
}

#[test]
fn a_rolling_restart_is_no_gap_and_every_replica_can_be_dialled_all_the_while() {
    with_pair(async |pair| {
        let options = (0..3).map(|number| replica(number, LONG_LEASE, None)).collect::<Result<_>>()?;
        let mut stand = Stand::new(pair, options).await?;
        let (_, before) = at_rest(&pair.east, &pair.west).await?;
        let namespace = Some(AGENT_NAMESPACE);
        let (in_west, in_east) = (
            Recorder::start(&pair.west, SERVICE_ENTRY, namespace).await?,
            Recorder::start(&pair.east, SERVICE_ENTRY, namespace).await?,
        );
        let changes = Changes::start(pair, 0, Duration::from_millis(200)).await?;
        let made = std::sync::Arc::clone(&changes.made);
        let mut taken = Vec::new();
        for _ in 0..6 {
            let leader = stand.leader().await?;
            let told = Instant::now();
            // as Kubernetes does it: SIGTERM, and the Service knows of it soon
            stand.replicas[leader].process.signal(Signal::Term)?;
            stand.another_leads(leader).await?;
            taken.push(told.elapsed());
            ensure!(
                stand.replicas[leader].process.ended(SOON).await == Some(0),
                "it ended badly: {}",
                stand.replicas[leader].process.log_tail()
            );
            stand.replicas[leader].restart()?;
            stand.replicas[leader].ready(SOON).await?;
        }
        let last = changes.stop().await?;
        all_applied(pair, last).await?;
        let mut latencies = Vec::new();
        for (number, made) in made.lock().unwrap().iter() {
            let (domain, host) = import(*number, pair);
            let recorder =
                if domain.trust_domain() == pair.west.trust_domain() { &in_west } else { &in_east };
            let first = recorder.first(&host).with_context(|| format!("{host} was never there"))?;
            latencies.push(first.saturating_duration_since(*made));
        }
        let (middle, most) = summary(taken);
        eprintln!("another leads after SIGTERM: p50 {middle:?}, at most {most:?}");
        let (middle, most) = summary(latencies);
        eprintln!(
            "{last} changes while each replica was restarted twice: imported after p50 {middle:?}, at most {most:?}"
        );
        both_ready(pair).await?;
        at_rest(&pair.east, &pair.west).await?;
        each_changed_something("ServiceEntry", &done(&pair.west, "serviceentries", before).await?, &in_west)?;
        ensure!(most < GAP, "a change waited {most:?}");
        Ok(())
    });
}

#[test]
fn a_peer_that_reaches_a_follower_alone_is_served_and_each_replica_says_who_leads() {
    with_pair(async |pair| {
        let options = (0..2).map(|number| replica(number, SHORT_LEASE, None)).collect::<Result<_>>()?;
        let mut stand = Stand::new(pair, options).await?;
        ensure!(stand.leader().await? == 0, "the first to start leads");
        stand.at(stand.replicas[1].listen()).await?;
        // what came by the one is cut
        stand.balancer = Balancer::start(Vec::new()).await?;
        both_ready(pair).await?;
        for replica in &mut stand.replicas {
            replica.ready(Duration::from_secs(5)).await?;
        }
        let (leads, follows) = (stand.about(0).await?, stand.about(1).await?);
        ensure!(leads.contains("replica-0 (leads)"), "{leads}");
        ensure!(follows.contains("replica-1\n") && follows.contains("leads         replica-0"), "{follows}");
        super::services::exported(&pair.east, &pair.west).await?;
        both_ready(pair).await?;
        let stable =
            [SERVICE_ENTRY, IMPORTED, super::GATEWAY, super::POLICY, super::CFTD, super::STATIC_ENTRY];
        at_rest(&pair.east, &pair.west).await?;
        let versions = async || -> Result<_> {
            Ok((pair.east.kubernetes.versions(&stable).await?, pair.west.kubernetes.versions(&stable).await?))
        };
        let before = versions().await?;
        // The one that it dials leads from now on.
        stand.replicas[0].kill().await?;
        ensure!(stand.another_leads(0).await? == 1, "the other leads");
        both_ready(pair).await?;
        stand.replicas[0].restart()?;
        stand.replicas[0].ready(SOON).await?;
        at_rest(&pair.east, &pair.west).await?;
        let after = versions().await?;
        ensure!(after == before, "before {before:?}, after {after:?}");
        Ok(())
    });
}

/// During an upgrade replicas and peers of several versions meet: the lower one is spoken, also by a replica that passes on, and
/// what a later version adds is passed over.
#[test]
fn older_and_newer_peers_are_understood_by_whichever_replica_they_reach() {
    with_pair(async |pair| {
        let options = (0..2).map(|number| replica(number, LONG_LEASE, None)).collect::<Result<_>>()?;
        let mut stand = Stand::new(pair, options).await?;
        ensure!(stand.east.stop().await? == 0, "east's agent ended badly");
        let mut older = Hostile::start(&pair.east, &pair.west).await?;
        for (turn, protocol) in [1, 2, 3, 1].into_iter().enumerate() {
            older.protocol = protocol;
            older.target = stand.replicas[turn % 2].listen();
            let line = older.greet().await?;
            if protocol == 3 {
                // a kind of frame that is not known yet: field 1000, of two bytes
                line.bytes(vec![0xc2, 0x3e, 0x02, 0x01, 0x02]).await?;
            }
            let name = format!("by-{protocol}-{turn}");
            let outcomes = line.offer(&[older.service("shop", &name).encode_to_vec()]).await?;
            ensure!(outcomes.get(&format!("{name}.shop")) == Some(&None), "{protocol}: {outcomes:?}");
            let host = format!("{name}.shop.east.example");
            let place = Some(AGENT_NAMESPACE);
            eventually("it is imported", SOON, || found(&pair.west, SERVICE_ENTRY, place, &host)).await?;
            ensure!(line.said().ended.is_none(), "{protocol}: {:?}", line.said().ended);
        }
        Ok(())
    });
}

/// West's leader is cut off from its API server, while what it is to write goes on to change.
#[test]
fn a_leader_that_is_cut_off_from_its_api_server_writes_nothing_once_another_leads() {
    with_pair(async |pair| {
        let (west, account) = (&pair.west, "cut-off");
        let grant = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": account},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": AGENT_NAMESPACE}],
        });
        west.kubernetes.apply(&grant).await?;
        let relay = Relay::start(west.kubernetes.address()).await?;
        let direct = west.kubernetes.service_account_kubeconfig(AGENT_NAMESPACE, account).await?;
        let text = std::fs::read_to_string(&direct)?;
        let (from, to) = (west.kubernetes.address().to_string(), relay.address().to_string());
        ensure!(text.contains(&from), "{from} is not in it");
        let by_relay = west.dir().join("by-relay.kubeconfig");
        std::fs::write(&by_relay, text.replace(&from, &to))?;

        let options = vec![replica(0, SHORT_LEASE, Some(by_relay))?, replica(1, SHORT_LEASE, None)?];
        let stand = Stand::new(pair, options).await?;
        ensure!(stand.leader().await? == 0, "the first to start leads");
        let changes = Changes::start(pair, 0, Duration::from_millis(100)).await?;
        let entries = Recorder::start(west, SERVICE_ENTRY, Some(AGENT_NAMESPACE)).await?;
        eventually("it writes", SOON, || async {
            ensure!(entries.seen().len() > 5, "{}", entries.seen().len());
            Ok(())
        })
        .await?;
        relay.set(Network::Silent);
        let cut = Instant::now();
        eventually("another leads", SOON, || async {
            ensure!(holder(west).await? == Some(1), "the first still does, by the Lease");
            Ok(())
        })
        .await?;
        eprintln!("another leads {:?} after the leader was cut off", cut.elapsed());
        // It has stopped by then, by its own clock, and whoever dials is sent to others.
        let about = stand.about(0).await?;
        ensure!(!about.contains("(leads)"), "two lead: {about}");
        let (status, body) = stand.replicas[0].get("/readyz").await?;
        ensure!(status == 503, "{status}: {body}");
        stand.balancer.set(vec![stand.replicas[1].listen()]);
        let user = format!("system:serviceaccount:{AGENT_NAMESPACE}:{account}");
        let count = || -> Result<usize> {
            let writes = west.kubernetes.writes_of(&user)?;
            Ok(writes.iter().filter(|write| (200..300).contains(&write.code)).count())
        };
        let (before, known) = (count()?, entries.seen().len());
        eventually("the other goes on", SOON, || async {
            ensure!(entries.seen().len() > known, "no ServiceEntry more than {known}");
            Ok(())
        })
        .await?;
        eprintln!("it goes on {:?} after the leader was cut off", cut.elapsed());
        let last = changes.stop().await?;
        // What it had sent before is on its way still, which no client can call back (the next leader would repair it as drift).
        // Its connections end here, so that what arrives from now on was sent by one that leads no more.
        relay.set(Network::Cut);
        relay.ended().await?;
        relay.set(Network::Whole);
        all_applied(pair, last).await?;
        eventually("the first follows", SOON, || async {
            let about = stand.about(0).await?;
            ensure!(about.contains("leads         replica-1"), "{about}");
            Ok(())
        })
        .await?;
        let late = west.kubernetes.writes_of(&user)?;
        let late: Vec<_> =
            late.iter().filter(|write| (200..300).contains(&write.code)).skip(before).collect();
        eprintln!("what reached the API server late: {late:?}");
        ensure!(late.is_empty(), "{late:?}");
        ensure!(!west.kubernetes.writes_of(AGENT_USER)?.is_empty(), "the second wrote nothing");
        let (status, reason, _) = of_peer(west, &pair.east, "Connected").await?;
        ensure!(status == "True", "{status} {reason}");
        Ok(())
    });
}

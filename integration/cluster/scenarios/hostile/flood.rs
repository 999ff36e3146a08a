//! Too much, too often.

use crate::hostile::{frame, version_of};
use crate::kubernetes::{AGENT_USER, Write};
use crate::scenarios::services::cart;
use crate::scenarios::trio::{HONEST, Trio, WEST, encoded, with_trio};
use crate::scenarios::{IMPORTED, PEER, SERVICE_ENTRY, SOON, found, merge, with};
use crate::wait::eventually;
use crate::world::AGENT_NAMESPACE;
use anyhow::{Context, Result, ensure};
use entente::proto::federation::v1::frame::Body;
use entente::proto::federation::v1::{CatalogueSnapshot, Port, Service};
use kube::api::ListParams;
use prost::Message as _;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a flood goes on.
const FLOOD: Duration = Duration::from_secs(10);
/// How soon a change of an honest peer is followed meanwhile.
const FOLLOWED: Duration = Duration::from_secs(10);
/// What a flood may add to the agent's memory, in KiB: the largest catalogue that is taken, a few times over.
const MOST_ADDED: u64 = 100 * 1024;

/// Writes of the agent of east to one object, and to its status.
fn writes(trio: &Trio, name: &str) -> Result<Vec<Write>> {
    let all = trio.east.kubernetes.writes_of(AGENT_USER)?;
    Ok(all.into_iter().filter(|write| write.name == name).collect())
}

/// North changes the port of its service; how soon east has it.
async fn honest_change(trio: &Trio, port: u16) -> Result<Duration> {
    let changed = with(cart(), "/spec/serverSPIFFEIDs", json!(["spiffe://north.example/ns/shop/sa/cart"]))?;
    let changed = with(changed, "/spec/ports/0/port", json!(port))?;
    let since = Instant::now();
    trio.north.kubernetes.apply(&changed).await?;
    eventually("east follows the honest peer", FOLLOWED, || async {
        let entry = found(&trio.east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), HONEST).await?;
        ensure!(entry.data["spec"]["ports"][0]["number"] == port, "{}", entry.data["spec"]["ports"]);
        Ok(())
    })
    .await?;
    Ok(since.elapsed())
}

/// A change of the honest peer goes through in the middle of it, and is taken back.
async fn is_responsive(trio: &Trio) -> Result<()> {
    let there = honest_change(trio, 18090).await?;
    let back = honest_change(trio, 18080).await?;
    eprintln!("an honest peer's change took {there:?}, and back {back:?}");
    Ok(())
}

/// A catalogue of a million entries ends the exchange, again and again, and costs no memory that grows.
#[test]
fn a_million_entries_are_not_taken() {
    with_trio(async |trio, line| {
        let good = trio.hostile.service("shop", "good");
        trio.offer(&line, &encoded(&[good]), &["good.shop"]).await?;
        let before = trio.memory()?;
        let frame_of = |first: u32| -> Vec<u8> {
            let services = (first..first + 5_000)
                .map(|number| trio.hostile.service("shop", &format!("s{number}")).encode_to_vec())
                .collect();
            frame(Body::Catalogue(CatalogueSnapshot { version: vec![9; 32], services, more: true }))
        };
        let mut line = line;
        let mut sent = 0;
        for attempt in 0..5 {
            let mut said = Ok(());
            for first in (0..1_000_000).step_by(5_000) {
                said = line.bytes(frame_of(first)).await;
                if said.is_err() || line.said().ended.is_some() {
                    break;
                }
                sent += 5_000;
            }
            let ended = line.ended().await.with_context(|| format!("after {sent}: {said:?}"))?;
            ensure!(ended.contains("more than 20000 services") || attempt > 0, "{ended}");
            line = eventually("the agent takes another line", SOON, || async {
                let line = trio.hostile.dial(frame(Body::Hello(trio.hostile.hello()))).await?;
                eventually("it says hello", Duration::from_secs(3), || async {
                    ensure!(line.said().hello && line.said().ended.is_none(), "{:?}", line.said());
                    Ok(())
                })
                .await?;
                Ok(line)
            })
            .await?;
        }
        is_responsive(trio).await?;
        let (after, host) = (trio.memory()?, format!("good.shop.{WEST}"));
        eprintln!("{sent} entries sent; memory {before} KiB before, {after} KiB after");
        ensure!(after < before + MOST_ADDED, "memory {before} KiB, then {after} KiB");
        found(&trio.east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), &host).await.map(drop)
    });
}

/// Thousands of services, of which ten are admitted: ten are made, the rest are refused, each for that.
#[test]
fn more_services_than_are_admitted_are_refused() {
    with_trio(async |trio, line| {
        merge(&trio.east, PEER, None, WEST, json!({"spec": {"imports": {"maxServices": 10}}})).await?;
        eventually("the limit is seen", SOON, || async {
            let services: Vec<_> = (0..11).map(|n| trio.hostile.service("shop", &format!("s{n}"))).collect();
            let outcomes = line.offer(&encoded(&services)).await?;
            ensure!(outcomes.values().filter(|why| why.is_none()).count() == 10, "{outcomes:?}");
            Ok(())
        })
        .await?;
        let services: Vec<_> =
            (0..5_000).map(|n| trio.hostile.service("shop", &format!("t{n:05}"))).collect();
        let since = Instant::now();
        let outcomes = line.offer(&encoded(&services)).await?;
        eprintln!("5,000 services were answered after {:?}", since.elapsed());
        let refused = outcomes.values().filter(|why| why.as_deref() == Some("TooManyServices")).count();
        ensure!(
            outcomes.len() == 5_000 && refused == 4_990,
            "{} answered, {refused} refused",
            outcomes.len()
        );
        eventually("ten are imported", SOON, || async {
            let all = trio.east.kubernetes.api(IMPORTED.0, IMPORTED.1, None).await?;
            let all = all.list(&ListParams::default()).await?;
            let of_west = all.iter().filter(|it| it.data["spec"]["trustDomain"] == WEST);
            let names: Vec<_> = of_west.filter_map(|it| it.metadata.name.clone()).collect();
            ensure!(names.len() == 10 && names.iter().all(|name| name.starts_with('t')), "{names:?}");
            Ok(())
        })
        .await?;
        trio.says(&["10 imported", "4990 refused", "TooManyServices"]).await?;
        is_responsive(trio).await?;
        // Without the limit, what was offered last would be imported.
        line.offer(&[]).await?;
        drop(line);
        merge(&trio.east, PEER, None, WEST, json!({"spec": {"imports": {"maxServices": null}}})).await
    });
}

/// Thousands of changes a second end the exchange: a peer has so many frames a second and no more.
#[test]
fn thousands_of_changes_a_second_end_the_exchange() {
    with_trio(async |trio, line| {
        let until = Instant::now() + FLOOD;
        let (mut line, mut sent, mut lines) = (Some(line), 0_u64, 0);
        let host = format!("good.shop.{WEST}");
        let before = (writes(trio, &host)?.len(), trio.memory()?);
        while Instant::now() < until {
            let Some(now) = &line else {
                lines += 1;
                line = trio.hostile.dial(frame(Body::Hello(trio.hostile.hello()))).await.ok();
                continue;
            };
            let said = now.bytes(changed(trio, sent)).await;
            sent += 1;
            if said.is_err() || now.said().ended.is_some() {
                line = None;
            }
        }
        drop(line);
        ensure!(lines > 0, "{sent} changes, and the agent took them all");
        let written = writes(trio, &host)?.len() - before.0;
        let memory = trio.memory()?;
        eprintln!(
            "{sent} changes on {lines} lines: {written} writes; memory {} KiB, then {memory} KiB",
            before.1
        );
        let seconds = usize::try_from(FLOOD.as_secs())?;
        // The ImportedService, its status, and the ServiceEntry: a second each, after a few at once.
        ensure!(written <= 3 * (seconds + 5), "{written} writes");
        ensure!(memory < before.1 + MOST_ADDED, "memory {} KiB, then {memory} KiB", before.1);
        is_responsive(trio).await
    });
}

/// Another port each time.
fn changed(trio: &Trio, number: u64) -> Vec<u8> {
    let port = Port {
        name: "tcp".to_owned(),
        port: u32::try_from(number % 60_000).unwrap_or_default() + 1,
        app_protocol: "tcp".to_owned(),
        ..Port::default()
    };
    let service = Service { ports: vec![port], ..trio.hostile.service("shop", "good") };
    let services = encoded(&[service]);
    frame(Body::Catalogue(CatalogueSnapshot { version: version_of(&services), services, more: false }))
}

/// Changes just below what ends the exchange: each object is written once a second at most, and an honest peer's
/// change goes through in the middle of it.
#[test]
fn flapping_is_paced() {
    with_trio(async |trio, line| {
        let host = format!("good.shop.{WEST}");
        let before = writes(trio, &host)?.len();
        let since = Instant::now();
        let flap = async {
            let mut beat = tokio::time::interval(Duration::from_millis(15));
            for number in 0.. {
                beat.tick().await;
                line.bytes(changed(trio, number)).await?;
                ensure!(line.said().ended.is_none(), "after {number}: {:?}", line.said().ended);
            }
            Ok::<(), anyhow::Error>(())
        };
        tokio::select! {
            flapped = flap => flapped?,
            honest = async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                is_responsive(trio).await?;
                tokio::time::sleep_until((since + FLOOD).into()).await;
                Ok::<(), anyhow::Error>(())
            } => honest?,
        }
        let seconds = usize::try_from(since.elapsed().as_secs())? + 1;
        let all = writes(trio, &host)?.split_off(before);
        for resource in ["importedservices", "importedservices/status", "serviceentries"] {
            let count = all.iter().filter(|write| write.resource == resource).count();
            eprintln!("{resource}: {count} writes in {seconds} s");
            ensure!(count <= seconds + 5, "{resource}: {count} writes in {seconds} s");
        }
        let services = all.iter().filter(|write| write.resource == "serviceentries").count();
        ensure!(services > 1, "it is not followed at all: {all:?}");
        Ok(())
    });
}

/// A service that comes and goes is made and unmade no more often than any other change.
#[test]
fn coming_and_going_is_paced() {
    with_trio(async |trio, line| {
        let host = format!("good.shop.{WEST}");
        let before = writes(trio, &host)?.len();
        let there = encoded(&[trio.hostile.service("shop", "good")]);
        let since = Instant::now();
        let mut beat = tokio::time::interval(Duration::from_millis(15));
        for number in 0_u64.. {
            if since.elapsed() > FLOOD {
                break;
            }
            beat.tick().await;
            line.send_catalogue(if number.is_multiple_of(2) { &there } else { &[] }).await?;
        }
        let seconds = usize::try_from(since.elapsed().as_secs())? + 1;
        let all = writes(trio, &host)?.split_off(before);
        eprintln!("{} writes in {seconds} s", all.len());
        for verb in ["patch", "delete"] {
            let count = all.iter().filter(|it| it.verb == verb && it.resource == "serviceentries").count();
            ensure!(count <= seconds + 5, "{count} times {verb} in {seconds} s");
        }
        Ok(())
    });
}

/// Lines that are opened and left, without end: the honest peer is served meanwhile.
#[test]
fn reconnecting_without_end_harms_nobody_else() {
    with_trio(async |trio, line| {
        drop(line);
        let before = trio.memory()?;
        let until = Instant::now() + FLOOD;
        let dialling = async {
            let mut dialled = 0_u64;
            while Instant::now() < until {
                // It refuses what is too often.
                if trio.hostile.dial(frame(Body::Hello(trio.hostile.hello()))).await.is_ok() {
                    dialled += 1;
                }
            }
            dialled
        };
        let (dialled, honest) = tokio::join!(dialling, is_responsive(trio));
        honest?;
        let after = trio.memory()?;
        eprintln!("{dialled} lines; memory {before} KiB, then {after} KiB");
        ensure!(after < before + MOST_ADDED, "memory {before} KiB, then {after} KiB");
        Ok(())
    });
}

/// An empty list is the peer's own word, and takes away what is its own.
#[test]
fn an_empty_list_takes_away_its_own_alone() {
    with_trio(async |trio, line| {
        let services = [trio.hostile.service("shop", "cart"), trio.hostile.service("shop", "good")];
        trio.offer(&line, &encoded(&services), &["cart.shop", "good.shop"]).await?;
        let honest = trio.honest().await?;
        line.offer(&[]).await?;
        eventually("what west had is gone", SOON, || async {
            let all = trio.everything().await?;
            let mut left = all.keys().filter(|it| it.contains(AGENT_NAMESPACE) && it.contains(WEST));
            ensure!(left.next().is_none(), "{all:?}");
            Ok(())
        })
        .await?;
        trio.keeps(&honest).await
    });
}

/// What the peer says in its answers and reports is kept no larger than what it answers.
#[test]
fn a_flood_of_answers_is_not_kept() {
    use entente::proto::federation::v1::{CatalogueAck, ServiceOutcome};
    with_trio(async |trio, line| {
        let before = trio.memory()?;
        let outcome = |number: u32| ServiceOutcome {
            name: format!("n{number}"),
            namespace: "shop".to_owned(),
            reason: "R".repeat(1_000),
            message: "m".repeat(10_000),
            ..ServiceOutcome::default()
        };
        // East offers west nothing: its catalogue's version is that of none.
        let version = version_of(&[]);
        // Each frame is a little below the largest that is read.
        for round in 0..45 {
            let outcomes = (0..90).map(|n| outcome(round * 90 + n)).collect();
            line.say(Body::CatalogueAck(CatalogueAck {
                version: version.clone(),
                outcomes,
                more: true,
                ..CatalogueAck::default()
            }))
            .await?;
        }
        line.offer(&[]).await?;
        let after = trio.memory()?;
        eprintln!("40 MB of answers; memory {before} KiB, then {after} KiB");
        ensure!(after < before + MOST_ADDED, "memory {before} KiB, then {after} KiB");
        let peer = found(&trio.east, PEER, None, WEST).await?;
        ensure!(peer.data.to_string().len() < 200_000, "a status of {} bytes", peer.data.to_string().len());
        let _: Value = peer.data;
        Ok(())
    });
}

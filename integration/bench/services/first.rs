//! The first import: a peer offers many services at once to an agent that has none of it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, DynamicObject, ListParams};
use prost::Message as _;

use crate::bare;
use crate::hostile::Hostile;
use crate::sides::{self, IMPORTED, PEER, SERVICE_ENTRY, Sides};

/// How long the import may take.
const LONG: Duration = Duration::from_secs(1_200);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);

/// Prints the rates. The one who offers is this program, in the place of west's agent, so that it needs none of the machine
/// meanwhile; the bare applies go to west's API server, which is as east's but has no agent then.
pub(crate) async fn run(services: usize) -> Result<()> {
    let mut sides = Sides::start().await?;
    sides.in_west.stop().await?;
    let hostile = Hostile::start(&sides.west, &sides.east).await?;
    let line = hostile.greet().await?;
    let name = |number| format!("service-{number}");
    let offered: Vec<Vec<u8>> =
        (0..services).map(|number| hostile.service("shop", &name(number)).encode_to_vec()).collect();
    let entries = sides::generated(&sides.east, SERVICE_ENTRY).await?;
    let imports = sides::generated(&sides.east, IMPORTED).await?;
    sides::at_rest(&sides.east, LONG).await?;

    let since = Instant::now();
    line.send_catalogue(&offered).await?;
    let imported = counted(&imports, services, since).await?;
    let made = counted(&entries, services, since).await?;
    let written = tokio::time::timeout(LONG, all_generated(&imports, services, since)).await??;
    let writes = sides::at_rest(&sides.east, LONG).await?;
    let ended = line.said().ended;
    ensure!(ended.is_none(), "the exchange ended: {ended:?}");

    sides.in_east.stop().await?;
    let bare = bare_applies(&sides, &imports, &entries).await?;
    let objects = 2 * services;
    let (rate, bare_rate) = (per_second(objects, made), per_second(objects, bare));
    println!("first import of {services} services, from the offer:");
    println!("  ImportedServices {imported:.1?}, ServiceEntries {made:.1?}, all statuses {written:.1?}");
    println!("  {objects} objects, {rate:.0} a second; {writes} writes by the agent since its start");
    println!(
        "  bare server-side applies of the same objects, {} at a time: {bare:.1?}, {bare_rate:.0} a second",
        bare::CONCURRENCY
    );
    println!("  ratio: {:.0} % (goal: 80 %)", 100.0 * rate / bare_rate);
    Ok(())
}

fn per_second(count: usize, time: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / time.as_secs_f64()
}

/// When there are as many.
async fn counted(api: &Api<DynamicObject>, wanted: usize, since: Instant) -> Result<Duration> {
    loop {
        let count = bare::count(api).await?;
        if count >= wanted {
            return Ok(since.elapsed());
        }
        ensure!(since.elapsed() < LONG, "{count} of {wanted} after {LONG:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// When each import says that what it needs stands.
async fn all_generated(imports: &Api<DynamicObject>, wanted: usize, since: Instant) -> Result<Duration> {
    loop {
        let at = since.elapsed();
        let all = imports.list(&ListParams::default()).await?;
        let says = |import: &&DynamicObject| {
            let conditions = import.data["status"]["conditions"].as_array();
            conditions
                .is_some_and(|all| all.iter().any(|c| c["type"] == "Generated" && c["status"] == "True"))
        };
        if all.iter().filter(says).count() >= wanted {
            return Ok(at);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Applies the same objects in west; what that took.
async fn bare_applies(
    sides: &Sides,
    imports: &Api<DynamicObject>,
    entries: &Api<DynamicObject>,
) -> Result<Duration> {
    let owner = sides::uid(&sides.west, PEER, "east.example").await?;
    let mut all = Vec::new();
    for (from, kind) in [(imports, IMPORTED), (entries, SERVICE_ENTRY)] {
        let to = sides::generated(&sides.west, kind).await?;
        for mut object in from.list(&ListParams::default()).await? {
            let types = kube::core::TypeMeta { api_version: kind.0.to_owned(), kind: kind.1.to_owned() };
            object.types = Some(types);
            if let Some(owners) = &mut object.metadata.owner_references {
                owners.iter_mut().for_each(|owner| owner.name = "east.example".to_owned());
            }
            all.push((to.clone(), bare::as_written(object, &owner)));
        }
    }
    bare::apply(&all).await.context("bare applies")
}

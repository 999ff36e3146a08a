//! Many services: settled, nothing is written for them; one that changes is one change at the importer.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::TryStreamExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

use super::restart::{at_rest, writes};
use super::services::cart;
use super::{IMPORTED, SERVICE_ENTRY, both_ready, found, make_peers};
use crate::agent::{Agent, AgentOptions};
use crate::pair::with_pair;
use crate::wait::{always, eventually};
use crate::world::{AGENT_NAMESPACE, Domain};

const SERVICES: usize = 150;
const LONG: Duration = Duration::from_secs(180);
const QUIET: Duration = Duration::from_secs(15);

/// The service of this number, which importers see on this port.
fn service(number: usize, port: u16) -> Value {
    let mut service = cart();
    let name = format!("service-{number}");
    service["metadata"]["name"] = json!(name);
    service["spec"]["workloadLabels"] = json!({"app": name});
    service["spec"]["ports"][0]["port"] = json!(port);
    service["spec"]["serverSPIFFEIDs"] = json!([format!("spiffe://west.example/ns/shop/sa/{name}")]);
    service
}

async fn count(domain: &Domain, kind: (&str, &str)) -> Result<usize> {
    let all = domain.kubernetes.api(kind.0, kind.1, Some(AGENT_NAMESPACE)).await?;
    Ok(all.list(&ListParams::default()).await?.items.len())
}

#[test]
fn one_changed_service_among_many_is_one_change_at_the_importer_and_none_is_no_write() {
    with_pair(async |pair| {
        // Leases as long as they are elsewhere: an API server that is given everything at once is late with a renewal.
        let args: Vec<String> = super::TIMING
            .iter()
            .filter(|arg| !arg.starts_with("--lease-"))
            .map(|arg| (*arg).to_owned())
            .collect();
        let patient = || AgentOptions { args: args.clone(), ..AgentOptions::default() };
        let _agents = (Agent::start(&pair.east, patient())?, Agent::start(&pair.west, patient())?);
        make_peers(pair).await?;
        both_ready(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        west.kubernetes.namespace("shop").await?;
        let all = futures::stream::iter((0..SERVICES).map(Ok::<_, anyhow::Error>));
        all.try_for_each_concurrent(16, |number| async move {
            west.kubernetes.apply(&service(number, 18080)).await.map(drop)
        })
        .await?;
        eventually("east has every ServiceEntry", LONG, || async {
            let there = count(east, SERVICE_ENTRY).await?;
            ensure!(there == SERVICES, "{there} of {SERVICES}");
            Ok(())
        })
        .await?;
        both_ready(pair).await?;
        let before = at_rest(east, west).await?;
        let nothing = || async {
            for (domain, before) in [(east, before.0), (west, before.1)] {
                let since = writes(domain).await?.split_off(before);
                ensure!(since.is_empty(), "{} wrote {since:?}", domain.trust_domain());
            }
            Ok(())
        };
        always("nothing is written but Leases", QUIET, nothing).await?;

        west.kubernetes.apply(&service(7, 18081)).await?;
        let host = "service-7.shop.west.example";
        eventually("east has the new port", LONG, || async {
            let entry = found(east, SERVICE_ENTRY, Some(AGENT_NAMESPACE), host).await?;
            let port = &entry.data["spec"]["ports"][0]["number"];
            ensure!(*port == 18081, "{port}");
            Ok(())
        })
        .await?;
        at_rest(east, west).await?;
        ensure!(count(east, IMPORTED).await? == SERVICES, "an import came or went");
        let since = writes(east).await?.split_off(before.0);
        let mut resources: Vec<&str> = since.iter().map(|write| write.resource.as_str()).collect();
        resources.sort_unstable();
        ensure!(
            resources == ["importedservices", "importedservices/status", "serviceentries"],
            "east wrote {since:?}"
        );
        ensure!(since.iter().all(|write| write.name == host), "east wrote {since:?}");
        Ok(())
    });
}

//! A peer that serves a bundle without authorities costs no local workload its SVID.

use super::{Agents, SOON, both_ready, federates, peer, peer_says, with};
use crate::bundle_server::{BundleServer, certificates};
use crate::pair::with_set_pair;
use crate::spire::SpireOptions;
use crate::wait::{always, eventually};
use crate::world::{Domain, Options};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

/// SPIRE renews an SVID at half of this.
const SVID_TTL: Duration = Duration::from_secs(12);
const FRONTEND: &str = "spiffe://east.example/ns/web/sa/frontend";
/// The endpoint is polled every two seconds, SPIRE's bundles and objects are read every second; the rest is for a machine
/// that is busy.
const AT_ONCE: Duration = Duration::from_secs(10);

/// West's endpoint serves an empty bundle and SPIRE takes it: federation is suspended at once, from then on a local workload
/// goes on to receive new SVIDs and no empty bundle beside them, and after the peer has mended SPIRE holds its bundle and
/// federation is back, without anyone's doing. In the second or two before, the empty bundle may reach workloads.
#[test]
fn a_poisoned_bundle_costs_no_workload_its_svid() {
    let short = Options { spire: SpireOptions { svid_ttl: SVID_TTL, ..SpireOptions::default() } };
    with_set_pair(short, Options::default(), async |pair| {
        let _agents = Agents::start(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        let server = BundleServer::start(west).await?;
        let labels = [("federate", "true")];
        east.register_test_process("frontend", "/ns/web/sa/frontend", &labels, &[]).await?;
        let endpoint = json!({
            "url": server.url(),
            "profile": {"type": "https_spiffe", "endpointSPIFFEID": server.id()},
        });
        east.kubernetes.apply(&with(peer(west).await?, "/spec/bundleEndpoint", endpoint)?).await?;
        west.kubernetes.apply(&peer(east).await?).await?;
        both_ready(pair).await?;
        eventually("the frontend federates", SOON, || is_federated(east, west, true)).await?;

        server.serve(r#"{"keys":[]}"#);
        let served = Instant::now();
        // SPIRE takes it, and from now on cannot verify the endpoint whatever that serves: the agent has to mend that.
        east.spire.refresh("west.example").await?;
        ensure!(authorities_held(east).await? == 0, "SPIRE did not take the empty bundle");
        let message = peer_says(east, west, "BundleDistributed", "False", "SuspendedUnusableBundle").await?;
        ensure!(message.contains("suspended"), "{message}");
        eventually("federatesWith is suspended", SOON, || is_federated(east, west, false)).await?;
        let took = served.elapsed();
        ensure!(took < AT_ONCE, "federatesWith was suspended only after {took:?}");
        peer_says(east, west, "BundleEndpointHealthy", "False", "NoUsableAuthority").await?;
        eventually("the workload is given no bundle of west", SOON, || async {
            let given = east.spire.workload().await?.federated_bundles;
            ensure!(!given.contains_key("spiffe://west.example"), "it is");
            Ok(())
        })
        .await?;
        for turn in 0..2 {
            renewed(east).await.with_context(|| format!("renewal {turn}"))?;
        }
        ensure!(authorities_held(east).await? == 0, "SPIRE holds what nobody served");

        server.serve(west.spire.bundle_document().await?);
        eventually("SPIRE holds the bundle again", SOON, || async {
            ensure!(authorities_held(east).await? > 0, "it is empty");
            Ok(())
        })
        .await?;
        eventually("federatesWith is back", SOON, || is_federated(east, west, true)).await?;
        both_ready(pair).await?;
        renewed(east).await
    });
}

async fn authorities_held(east: &Domain) -> Result<usize> {
    let bundles = east.spire.federated_bundles().await?;
    Ok(bundles.get("west.example").context("SPIRE holds no bundle")?.x509_authorities.len())
}

async fn is_federated(east: &Domain, west: &Domain, wanted: bool) -> Result<()> {
    for id in [FRONTEND, &east.agent_id()] {
        ensure!(federates(east, id, west).await? == wanted, "{id} does not, or does still");
    }
    Ok(())
}

/// The workload is given a new SVID, and no empty bundle at any time.
async fn renewed(east: &Domain) -> Result<()> {
    let (before, _) = svid(east).await?;
    let never_empty = || async { svid(east).await.map(drop) };
    always("the workload has its SVID", Duration::from_millis(300), never_empty).await?;
    eventually("the workload has a new SVID", 2 * SVID_TTL, || async {
        let (leaf, not_after) = svid(east).await?;
        ensure!(leaf != before, "the SVID is the same, good until {not_after}");
        Ok(())
    })
    .await
}

/// The SVID that the workload has now, and the end of its life, which must not have come.
async fn svid(east: &Domain) -> Result<(Vec<u8>, i64)> {
    let response = east.spire.workload().await?;
    let empty = response.federated_bundles.values().any(Vec::is_empty);
    ensure!(!empty, "an empty bundle is given to the workload");
    let svid = response.svids.iter().find(|svid| svid.spiffe_id == FRONTEND).context("no SVID")?;
    let leaf = certificates(&svid.x509_svid)?.into_iter().next().context("no certificate")?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf)?;
    let not_after = parsed.validity().not_after.timestamp();
    let now = i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())?;
    ensure!(not_after >= now, "the SVID has expired");
    Ok((leaf.to_vec(), not_after))
}

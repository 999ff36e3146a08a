//! The parts themselves, without our agent: what every other scenario builds on.

use crate::bundle_server::{BundleServer, certificates};
#[cfg(target_os = "linux")]
use crate::envoy::{Envoy, Upstream, Workload};
use crate::kubernetes::{AGENT_USER, client_of};
use crate::pair::with_pair;
use crate::process::Signal;
use crate::relay::{Network, Relay};
use crate::wait::eventually;
use crate::world::{Domain, Part};
use anyhow::{Context, Result, bail, ensure};
use entente::proto::spire::types::Bundle;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(20);

/// Two domains federate by pasted bundles, on real SPIRE alone: both SPIREs have the relationship and the other's
/// authorities, a workload that federates receives them, and garbage collection works.
#[test]
fn trust_domains_stand_on_real_spire() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        east.federate_by_hand(west).await?;
        west.federate_by_hand(east).await?;
        for (here, there) in [(east, west), (west, east)] {
            eventually("SPIRE has the relationship and the bundle", SOON, || holds_bundle_of(here, there))
                .await?;
        }
        let id = east.register_test_process("cart", "/ns/shop/sa/cart", &[], &["west.example"]).await?;
        eventually("a workload receives both bundles", SOON, || async {
            let response = east.spire.workload().await?;
            let svid = response.svids.first().context("no SVID")?;
            ensure!(svid.spiffe_id == id, "SPIFFE ID {}", svid.spiffe_id);
            let foreign =
                response.federated_bundles.get("spiffe://west.example").context("no bundle of west")?;
            let authorities = west.spire.own_bundle().await?.x509_authorities;
            ensure!(*foreign == authorities.iter().flat_map(|one| one.asn1.clone()).collect::<Vec<u8>>());
            Ok(())
        })
        .await?;
        east.kubernetes.apply_yaml(&std::fs::read_to_string("spire/agent-registration-pods.yaml")?).await?;
        Ok(())
    });
}

async fn holds_bundle_of(here: &Domain, there: &Domain) -> Result<()> {
    let name = there.trust_domain().to_string();
    let relationships = here.spire.relationships().await?;
    let relationship = relationships.get(&name).context("no relationship")?;
    ensure!(relationship.bundle_endpoint_url == there.bundle_endpoint_url());
    let bundles = here.spire.federated_bundles().await?;
    // Whether one is tainted, an endpoint does not tell.
    let certificates = |bundle: &Bundle| -> BTreeSet<Vec<u8>> {
        bundle.x509_authorities.iter().map(|authority| authority.asn1.clone()).collect()
    };
    let held = certificates(bundles.get(&name).context("no bundle")?);
    let authorities = certificates(&there.spire.own_bundle().await?);
    ensure!(!held.is_empty() && held == authorities, "it holds {} authorities, not the same", held.len());
    let listed = here.spire.cli(&["bundle", "list"]).await?;
    ensure!(listed.contains(&name), "`spire-server bundle list`: {listed}");
    Ok(())
}

/// What the first scenario left is gone: `reset` is what lets scenarios share domains.
#[test]
fn trust_domains_can_be_shared_by_scenarios() {
    with_pair(async |pair| {
        pair.east.federate_by_hand(&pair.west).await?;
        eventually("SPIRE holds it", SOON, || holds_bundle_of(&pair.east, &pair.west)).await?;
        pair.reset().await?;
        ensure!(pair.east.spire.relationships().await?.is_empty());
        ensure!(pair.east.spire.federated_bundles().await?.is_empty());
        let entries = pair.east.spire.entries().await?;
        ensure!(entries.contains_key(&pair.east.agent_id()), "{:?}", entries.keys());
        Ok(())
    });
}

/// Owned objects go with their owner, custom resources too: the real garbage collector runs.
#[test]
fn garbage_collection_deletes_what_is_owned() {
    with_pair(async |pair| {
        let kubernetes = &pair.east.kubernetes;
        let owner = kubernetes
            .apply_yaml(
                "{apiVersion: v1, kind: ConfigMap, metadata: {name: owner, namespace: entente-system}}",
            )
            .await?;
        let uid = owner.first().and_then(|owner| owner.metadata.uid.clone()).context("no uid")?;
        kubernetes
            .apply(&serde_json::json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": "ServiceEntry",
                "metadata": {
                    "name": "owned",
                    "namespace": "entente-system",
                    "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}],
                },
                "spec": {"hosts": ["cart.shop.west.example"], "ports": [{"number": 80, "name": "http"}]},
            }))
            .await?;
        let owners = kubernetes.api("v1", "ConfigMap", Some("entente-system")).await?;
        let owned = kubernetes.api("networking.istio.io/v1", "ServiceEntry", Some("entente-system")).await?;
        owners.delete("owner", &DeleteParams::background()).await?;
        eventually("the owned object is gone", SOON, || async {
            match owned.list(&ListParams::default()).await?.items.len() {
                0 => Ok(()),
                left => bail!("{left} left"),
            }
        })
        .await
    });
}

/// RBAC is on: a service account may do what a binding grants, and nothing else.
#[test]
fn service_accounts_have_the_rights_that_are_granted() {
    with_pair(async |pair| {
        let kubernetes = &pair.east.kubernetes;
        let kubeconfig = kubernetes.service_account_kubeconfig("entente-system", "reader").await?;
        let services = Api::<Service>::all(client_of(&kubeconfig).await?);
        match services.list(&ListParams::default()).await {
            Err(kube::Error::Api(status)) => ensure!(status.code == 403, "{status:?}"),
            other => bail!("without a binding: {other:?}"),
        }
        let binding = "
            apiVersion: rbac.authorization.k8s.io/v1
            kind: ClusterRoleBinding
            metadata: {name: reader}
            roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
            subjects: [{kind: ServiceAccount, name: reader, namespace: entente-system}]";
        kubernetes.apply_yaml(binding).await?;
        eventually("the service account may list", SOON, || async {
            services.list(&ListParams::default()).await?;
            Ok(())
        })
        .await
    });
}

/// A peer's bundle endpoint empties its bundle: real SPIRE takes it as it is, and the workload keeps an SVID of its own.
/// Once it holds nothing, SPIRE cannot verify the endpoint, whatever that serves: someone must set the bundle.
#[test]
fn spire_alone_takes_an_empty_bundle_and_does_not_heal() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        let server = BundleServer::start(west).await?;
        let whole = west.spire.own_bundle().await?.x509_authorities.len();
        east.federate_by_hand_at(west, &server.url(), server.id()).await?;
        eventually("SPIRE has fetched the bundle", SOON, || async {
            ensure!(server.fetches() > 0 && authorities_held(east).await? == whole);
            Ok(())
        })
        .await?;
        let id = east.register_test_process("cart", "/ns/shop/sa/cart", &[], &["west.example"]).await?;
        server.serve(r#"{"keys":[]}"#);
        east.spire.refresh("west.example").await?;
        ensure!(authorities_held(east).await? == 0);
        await_workload(east, &id, 0).await?;
        server.serve(west.spire.bundle_document().await?);
        let refused = east.spire.refresh("west.example").await;
        let refused =
            format!("{:?}", refused.err().context("SPIRE verified an endpoint without authorities")?);
        ensure!(refused.contains("certificate signed by unknown authority"), "{refused}");
        east.spire.set_federated_bundle(west.spire.own_bundle().await?).await?;
        east.spire.refresh("west.example").await?;
        ensure!(authorities_held(east).await? == whole);
        await_workload(east, &id, whole).await
    });
}

/// Waits until the workload has its SVID, and as many authorities of west as these.
async fn await_workload(domain: &Domain, id: &str, authorities: usize) -> Result<()> {
    let what = format!("the workload has its SVID and {authorities} authorities of west.example");
    eventually(&what, SOON, || async {
        let response = domain.spire.workload().await?;
        ensure!(response.svids.iter().any(|svid| svid.spiffe_id == id));
        let bundle = response.federated_bundles.get("spiffe://west.example").context("no bundle of west")?;
        let held = certificates(bundle)?.len();
        ensure!(held == authorities, "it has {held}");
        Ok(())
    })
    .await
}

async fn authorities_held(domain: &Domain) -> Result<usize> {
    let bundles = domain.spire.federated_bundles().await?;
    Ok(bundles.get("west.example").context("no bundle")?.x509_authorities.len())
}

/// A prepared authority is published, a peer that refreshes holds it, and once activated it signs.
#[test]
fn authorities_rotate_on_demand() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        east.federate_by_hand(west).await?;
        eventually("SPIRE has the bundle", SOON, || holds_bundle_of(east, west)).await?;
        let before = authorities_held(east).await?;
        let prepared = west.spire.prepare_authority().await?;
        east.spire.refresh("west.example").await?;
        ensure!(authorities_held(east).await? == before + 1);
        west.spire.activate_authority(&prepared).await?;
        let shown = west.spire.cli(&["localauthority", "x509", "show"]).await?;
        ensure!(shown.contains(&prepared), "{shown}");
        Ok(())
    });
}

/// The relay is a network that can be cut, and mended, with connections in it.
#[test]
fn a_network_can_be_cut_and_mended() {
    with_pair(async |pair| {
        let server = TcpListener::bind(("127.0.0.1", 0)).await?;
        let relay = Relay::start(server.local_addr()?).await?;
        let mut client = TcpStream::connect(relay.address()).await?;
        let (mut served, _) = server.accept().await?;
        relay.set(Network::Silent);
        client.write_all(b"hello").await?;
        let mut bytes = [0; 5];
        let nothing = tokio::time::timeout(Duration::from_millis(300), served.read_exact(&mut bytes)).await;
        ensure!(nothing.is_err(), "bytes came through a silent network");
        relay.set(Network::Whole);
        tokio::time::timeout(SOON, served.read_exact(&mut bytes)).await??;
        ensure!(&bytes == b"hello");
        relay.set(Network::Cut);
        let read = tokio::time::timeout(SOON, client.read(&mut bytes)).await?;
        ensure!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        let mut late = TcpStream::connect(relay.address()).await?;
        let read = tokio::time::timeout(SOON, late.read(&mut bytes)).await?;
        ensure!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        ensure!(relay.accepted() == 2);
        pair.east.signal(Part::SpireServer, Signal::Stop)?;
        let silent = tokio::time::timeout(Duration::from_millis(500), pair.east.spire.own_bundle()).await;
        pair.east.signal(Part::SpireServer, Signal::Continue)?;
        ensure!(silent.is_err(), "a stopped server answered");
        pair.east.spire.own_bundle().await?;
        Ok(())
    });
}

/// The audit log has every write of a user, also one that changes nothing, and no one else's.
#[test]
fn writes_are_counted_by_user() {
    with_pair(async |pair| {
        let kubernetes = &pair.east.kubernetes;
        let agent = client_of(&kubernetes.agent_kubeconfig()).await?;
        let maps = Api::<ConfigMap>::namespaced(agent, "entente-system");
        let before = kubernetes.writes_of(AGENT_USER)?.len();
        kubernetes
            .apply_yaml("{apiVersion: v1, kind: ConfigMap, metadata: {name: counted, namespace: default}}")
            .await?;
        let map =
            serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "counted"}});
        let params = PatchParams::apply("entente");
        let mut versions = Vec::new();
        for _ in 0..2 {
            maps.patch("counted", &params, &Patch::Apply(&map)).await?;
            versions.push(kubernetes.versions(&[("v1", "ConfigMap")]).await?);
        }
        ensure!(versions.first() == versions.last(), "the second write changed something: {versions:?}");
        maps.get("counted").await?;
        maps.delete("counted", &DeleteParams::default()).await?;
        eventually("the audit log has the writes", SOON, || async {
            let writes = kubernetes.writes_of(AGENT_USER)?.split_off(before);
            let verbs: Vec<&str> = writes.iter().map(|write| write.verb.as_str()).collect();
            ensure!(verbs == ["patch", "patch", "delete"], "{writes:?}");
            ensure!(writes.iter().all(|write| write.name == "counted" && write.resource == "configmaps"));
            Ok(())
        })
        .await
    });
}

/// Every program ends and starts again on the same data: the authorities, the objects and the identities are the same.
#[test]
fn programs_start_again_on_their_data() {
    with_pair(async |pair| {
        let east = &mut pair.east;
        let authorities = east.spire.own_bundle().await?.x509_authorities;
        let id = east.register_test_process("cart", "/ns/shop/sa/cart", &[], &[]).await?;
        for part in
            [Part::SpireServer, Part::SpireAgent, Part::SpireControllerManager, Part::ApiServer, Part::Etcd]
        {
            east.kill(part).await?;
            east.restart(part).await.with_context(|| format!("{part:?}"))?;
        }
        ensure!(east.spire.own_bundle().await?.x509_authorities == authorities);
        eventually("the workload has its SVID", SOON, || async {
            let response = east.spire.workload().await?;
            ensure!(response.svids.iter().any(|svid| svid.spiffe_id == id));
            Ok(())
        })
        .await
    });
}

/// Envoys take their SVIDs and bundles from SPIRE's SDS alone: they call across trust domains by mTLS, each call by a
/// handshake of its own, and neither a server that is not the one that was asked for nor a client that may not call is
/// answered. A restarted one has all of it again.
#[cfg(target_os = "linux")]
#[test]
fn envoys_call_with_certificates_of_spire() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        east.federate_by_hand(west).await?;
        west.federate_by_hand(east).await?;
        for (here, there) in [(east, west), (west, east)] {
            eventually("SPIRE has the bundle", SOON, || holds_bundle_of(here, there)).await?;
        }
        let (of_east, of_west) = (vec!["east.example".to_owned()], vec!["west.example".to_owned()]);
        let server = Workload {
            federates_with: of_east.clone(),
            clients: vec!["spiffe://east.example/ns/apps/sa/client".to_owned()],
            ..Workload::named("server")
        };
        let mut server = Envoy::ready(west, &server).await?;
        let other = Workload { federates_with: of_east, ..Workload::named("other") };
        let other = Envoy::ready(west, &other).await?;
        let mut client = Workload::named("client").calling(&server).calling(&other);
        client.federates_with = of_west.clone();
        let wrong =
            Upstream { name: "wrong".to_owned(), id: server.id().to_owned(), address: other.address() };
        client.upstreams.push(wrong);
        let client = Envoy::ready(east, &client).await?;
        let stranger = Workload { federates_with: of_west, ..Workload::named("stranger") };
        let stranger = Envoy::ready(east, &stranger.calling(&server).calling(&other)).await?;

        eventually("the client is answered", SOON, || client.call("server")).await?;
        let before = server.handshakes().await?;
        let mut kept = client.connect("server").await?;
        kept.call().await?;
        client.call("server").await?;
        ensure!(server.handshakes().await? == before + 2, "{} handshakes", server.handshakes().await?);
        eventually("the other answers the stranger", SOON, || stranger.call("other")).await?;
        ensure!(stranger.call("server").await.is_err(), "the server answers who may not call");
        client.call("other").await?;
        ensure!(client.call("wrong").await.is_err(), "the client takes another for the server");
        ensure!(client.serial().await? != stranger.serial().await?);

        server.restart().await?;
        eventually("the restarted server answers", SOON, || client.call("server")).await?;
        ensure!(kept.call().await.is_err(), "a connection outlived the server");
        ensure!(client.svids_refused().await? + client.bundles_refused().await? == 0);
        Ok(())
    });
}

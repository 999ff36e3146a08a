//! What istiod makes of the generated objects, and Envoy of what istiod makes.

use crate::federation::{Exported, SOON, address, found};
use crate::istiod::Istiod;
use crate::kubernetes::AGENT_USER;
use crate::meshes::{CART, CART_ADDRESS, GATEWAY, GATEWAY_PORT, Meshes, ORDERS, with_meshes};
use crate::proxy::Config;
use crate::wait::{always, eventually};
use crate::workload::Workload;
use crate::world::Domain;
use anyhow::{Context, Result, bail, ensure};
use kube::api::{DeleteParams, DynamicObject, ListParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SERVICE_ENTRY: (&str, &str) = ("networking.istio.io/v1", "ServiceEntry");
const GATEWAY_KIND: (&str, &str) = ("networking.istio.io/v1", "Gateway");
const POLICY: (&str, &str) = ("security.istio.io/v1", "AuthorizationPolicy");
/// What the agents generate.
const KINDS: [(&str, &str); 3] = [SERVICE_ENTRY, GATEWAY_KIND, POLICY];
/// The ALPN by which Istio's sidecars know each other's TLS.
const ISTIO_ALPN: [&str; 5] =
    ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
const CALM: Duration = Duration::from_secs(3);

/// istiod's validation lets every object be written, its analysis has nothing to say about one, and every Envoy takes
/// all that istiod makes of them.
#[test]
fn istiod_and_envoy_take_what_is_generated() {
    with_meshes(async |meshes| {
        for workload in meshes.workloads().connected() {
            workload.proxy.live().await?;
        }
        nothing_to_say(&meshes.west, 6).await?;
        nothing_to_say(&meshes.east, 2).await?;
        for workload in meshes.workloads().connected() {
            let refused = workload.proxy.config().await?.refused();
            ensure!(refused.is_empty(), "{} refused {refused:?}", workload.proxy.short_name());
        }
        let [client, server] = [&meshes.workloads().redirected_client, &meshes.workloads().redirected];
        acknowledged(meshes.east_istiod(), 2, client.proxy.short_name()).await?;
        acknowledged(meshes.west_istiod(), 4, server.proxy.short_name()).await
    });
}

/// istiod's analysis has been over everything, and none of the `count` generated objects has a message of it.
async fn nothing_to_say(domain: &Domain, count: usize) -> Result<()> {
    // Written after all others, so that a message on it means that the others have been looked at.
    let control = json!({
        "apiVersion": GATEWAY_KIND.0,
        "kind": GATEWAY_KIND.1,
        "metadata": {"name": "of-no-workload", "namespace": "default"},
        "spec": {
            "selector": {"istio": "of-no-workload"},
            "servers": [{
                "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
                "hosts": ["default/of-no-workload.example"],
                "tls": {"mode": "AUTO_PASSTHROUGH"},
            }],
        },
    });
    domain.kubernetes.apply(&control).await?;
    eventually("the analysis says that no workload is selected", SOON, || async {
        let object = found(domain, GATEWAY_KIND.0, GATEWAY_KIND.1, Some("default"), "of-no-workload").await?;
        ensure!(!messages(&object).is_empty(), "status {}", object.data["status"]);
        Ok(())
    })
    .await?;
    let gateways = domain.kubernetes.api(GATEWAY_KIND.0, GATEWAY_KIND.1, Some("default")).await?;
    gateways.delete("of-no-workload", &DeleteParams::default()).await?;
    // What it said before the rest of the world was there, it takes back.
    eventually("the analysis has nothing to say", SOON, || async {
        let generated = generated(domain).await?;
        ensure!(generated.len() == count, "{} objects, not {count}", generated.len());
        for object in generated {
            let messages = messages(&object);
            ensure!(messages.is_empty(), "{}: {messages:?}", object.metadata.name.unwrap_or_default());
        }
        Ok(())
    })
    .await
}

async fn generated(domain: &Domain) -> Result<Vec<DynamicObject>> {
    let mut all = Vec::new();
    for (api_version, kind) in KINDS {
        let ours = ListParams::default().labels("entente.dev/instance");
        all.extend(domain.kubernetes.api(api_version, kind, None).await?.list(&ours).await?);
    }
    Ok(all)
}

fn messages(object: &DynamicObject) -> Vec<Value> {
    let messages = object.data.pointer("/status/validationMessages").and_then(Value::as_array);
    messages.cloned().unwrap_or_default()
}

/// `count` proxies, but for `except`, have taken all that was sent to them.
async fn acknowledged(istiod: &Istiod, count: usize, except: &str) -> Result<()> {
    eventually("istiod knows its proxies to be in sync", SOON, || async {
        let page = istiod.debug("/debug/syncz").await?;
        let proxies: Vec<&Value> =
            page.as_array().into_iter().flatten().filter(|one| one["proxy"] != except).collect();
        ensure!(proxies.len() == count, "{page}");
        for resource in proxies.iter().flat_map(|one| one["resources"].as_object()).flatten() {
            let (kind, state) = resource;
            ensure!(state["lastError"].is_null(), "{kind}: {state}");
            ensure!(state["sent"] == state["acked"], "{kind}: {state}");
        }
        Ok(())
    })
    .await
}

/// A client's sidecar has a cluster for each imported service: with Istio's own SNI for the importer's host, the
/// exporter's server ID and no other as SAN, and the exporter's gateway as endpoint.
#[test]
fn a_client_gets_sni_pin_and_gateway() {
    with_meshes(async |meshes| {
        for client in [&meshes.workloads().frontend, &meshes.workloads().stranger] {
            client.proxy.live().await?;
            for service in [CART, ORDERS] {
                eventually("the client has the service", SOON, || is_imported(client, service)).await?;
            }
        }
        Ok(())
    });
}

async fn is_imported(client: &Workload, service: Exported) -> Result<()> {
    let config = client.proxy.config().await?;
    let cluster = config.cluster(&service.cluster())?;
    let matches = cluster["transport_socket_matches"].as_array().context("no socket matches")?;
    let [with_tls, _] = matches.as_slice() else { bail!("{cluster}") };
    ensure!(with_tls["match"] == json!({"tlsMode": "istio"}), "{with_tls}");
    let tls = &with_tls["transport_socket"]["typed_config"];
    ensure!(tls["sni"] == service.sni(), "SNI {}", tls["sni"]);
    let common = &tls["common_tls_context"];
    ensure!(common["alpn_protocols"] == json!(["istio"]), "{common}");
    let validation = &common["combined_validation_context"];
    ensure!(
        validation["default_validation_context"]
            == json!({"match_subject_alt_names": [{"exact": service.server_id()}]}),
        "{validation}"
    );
    ensure!(validation["validation_context_sds_secret_config"]["name"] == "ROOTCA", "{validation}");
    let endpoints = config.endpoints(&service.cluster());
    ensure!(endpoints == [format!("{GATEWAY}:{GATEWAY_PORT}")], "{endpoints:?}");
    let listener = config.listener("127.0.0.1", service.port)?;
    ensure!(listener["filter_chains"][0]["filters"][0]["typed_config"]["cluster"] == service.cluster());
    Ok(())
}

/// The exporter's gateway passes on exactly the exported hosts, each to its own workload, and ends no TLS.
#[test]
fn the_gateway_passes_on_what_is_exported_alone() {
    with_meshes(async |meshes| {
        meshes.workloads().gateway.proxy.live().await?;
        eventually("the gateway has the exports", SOON, || passes_on(meshes)).await
    });
}

async fn passes_on(meshes: &Meshes) -> Result<()> {
    let config = meshes.workloads().gateway.proxy.config().await?;
    ensure!(config.listeners().len() == 1, "{} listeners", config.listeners().len());
    let listener = config.listener("0.0.0.0", GATEWAY_PORT)?;
    let chains = listener["filter_chains"].as_array().context("no chains")?;
    let mut passed = BTreeMap::new();
    for chain in chains {
        let wanted = &chain["filter_chain_match"];
        ensure!(wanted["application_protocols"] == json!(ISTIO_ALPN), "{wanted}");
        ensure!(chain["transport_socket"].is_null(), "the gateway ends TLS: {chain}");
        let [filter] = chain["filters"].as_array().context("no filters")?.as_slice() else {
            bail!("{chain}")
        };
        let cluster = filter["typed_config"]["cluster"].as_str().context("no cluster")?;
        for name in wanted["server_names"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            passed.insert(name.to_owned(), config.endpoints(cluster));
        }
        ensure!(config.cluster(cluster)?["transport_socket_matches"].is_null(), "TLS in TLS: {cluster}");
    }
    let expected = BTreeMap::from([
        (CART.sni(), vec![format!("{CART_ADDRESS}:{}", CART.target_port)]),
        (ORDERS.sni(), vec![format!("10.77.2.4:{}", ORDERS.target_port)]),
    ]);
    ensure!(passed == expected, "{passed:#?}");
    Ok(())
}

/// The server's sidecar takes certificates of both trust domains, and denies, on every chain, all with a SPIFFE ID that
/// are neither of its own trust domain nor among the clients; on other ports, all that are not of its own.
#[test]
fn the_server_denies_who_is_foreign_and_no_client() {
    with_meshes(async |meshes| {
        let cart = &meshes.workloads().cart;
        cart.proxy.live().await?;
        eventually("the server's sidecar has the policy", SOON, || async {
            let config = cart.proxy.config().await?;
            let listener = config.listener(&CART_ADDRESS.to_string(), CART.target_port)?;
            ensure!(chains_of_port(listener) == 3, "mutual TLS of Istio's, TLS, plaintext: {listener}");
            denies(listener)
        })
        .await
    });
}

/// So does the sidecar of a workload that connections are redirected to, where the alias of the export and the Service
/// of the same port share their chains; and what comes to any other port meets the same policy.
#[test]
fn a_redirected_server_denies_them_as_well() {
    with_meshes(async |meshes| {
        let name = meshes.workloads().redirected.proxy.short_name();
        eventually("the redirected sidecar has the policy", SOON, || async {
            let page = format!("/debug/config_dump?proxyID={name}");
            let config = Config::of_istiod(meshes.west_istiod().debug(&page).await?);
            let listener = config.listener("0.0.0.0", 15006)?;
            ensure!(chains_of_port(listener) == 3, "{listener}");
            denies(listener)
        })
        .await
    });
}

fn chains_of_port(listener: &Value) -> usize {
    let chains = listener["filter_chains"].as_array().into_iter().flatten();
    chains.filter(|chain| chain["filter_chain_match"]["destination_port"] == CART.target_port).count()
}

/// Every chain of the listener that leads anywhere has the RBAC of the policy, and what ends mutual TLS trusts both
/// domains.
fn denies(listener: &Value) -> Result<()> {
    let chains = listener["filter_chains"].as_array().context("no chains")?;
    let mut trusted = BTreeSet::new();
    for chain in chains {
        let filters = chain["filters"].as_array().context("no filters")?;
        if filters.iter().any(|filter| filter["typed_config"]["cluster"] == "BlackHoleCluster") {
            continue;
        }
        let rbac = rbac_of(filters).with_context(|| format!("a chain without RBAC: {chain}"))?;
        ensure!(rbac["action"] == "DENY", "{rbac}");
        let rules: Vec<&Value> = rbac["policies"].as_object().context("no policies")?.values().collect();
        let [on_port, elsewhere] = rules.as_slice() else { bail!("{rbac}") };
        let at_port = json!({"or_rules": {"rules": [{"destination_port": CART.target_port}]}});
        ensure!(on_port["permissions"] == json!([{"and_rules": {"rules": [at_port]}}]), "{on_port}");
        let not_at_port = json!([{"and_rules": {"rules": [{"not_rule": at_port}]}}]);
        ensure!(elsewhere["permissions"] == not_at_port, "{elsewhere}");
        let own = json!({"prefix": "spiffe://west.example/"});
        let client = json!({"exact": "spiffe://east.example/ns/web/sa/frontend"});
        ensure!(on_port["principals"] == all_but(&[&own, &client]), "{on_port}");
        ensure!(elsewhere["principals"] == all_but(&[&own]), "{elsewhere}");
        let validation =
            chain.pointer("/transport_socket/typed_config/common_tls_context/combined_validation_context");
        if let Some(validation) = validation {
            trusted.insert(validation["default_validation_context"]["match_subject_alt_names"].to_string());
        }
    }
    let both = json!([{"prefix": "spiffe://west.example/"}, {"prefix": "spiffe://east.example/"}]);
    ensure!(trusted == BTreeSet::from([both.to_string()]), "{trusted:?}");
    Ok(())
}

/// The rules of the RBAC filter of a chain, of TCP or of HTTP.
fn rbac_of(filters: &[Value]) -> Option<&Value> {
    let http = filters.iter().flat_map(|one| one["typed_config"]["http_filters"].as_array()).flatten();
    let mut rules = filters.iter().chain(http).map(|one| &one["typed_config"]["rules"]);
    rules.find(|rules| rules["action"] == "DENY")
}

/// Who has a SPIFFE ID, and is none of these.
fn all_but(these: &[&Value]) -> Value {
    let id = |name: &Value| json!({"authenticated": {"principal_name": name}});
    let anyone = json!({"or_ids": {"ids": [id(&json!({"safe_regex": {"regex": ".+"}}))]}});
    let ids: Vec<Value> = these.iter().map(|name| id(name)).collect();
    json!([{"and_ids": {"ids": [anyone, {"not_id": {"or_ids": {"ids": ids}}}]}}])
}

/// A client whose connections and DNS queries are redirected gets, for each imported host, an address of its own that leads
/// to the service, so that two services may have the same port.
#[test]
fn a_redirected_client_gets_an_address_for_each_host() {
    with_meshes(async |meshes| {
        let name = meshes.workloads().redirected_client.proxy.short_name();
        eventually("the redirected client has the services", SOON, || async {
            let page = format!("/debug/config_dump?proxyID={name}");
            let config = Config::of_istiod(meshes.east_istiod().debug(&page).await?);
            for service in [CART, ORDERS] {
                let address = address(&meshes.east, service).await?;
                let listener = config.listener(&address, service.port)?;
                let filter = &listener["filter_chains"][0]["filters"][0]["typed_config"];
                ensure!(filter["cluster"] == service.cluster(), "{listener}");
                let everywhere = config.listener("0.0.0.0", service.port);
                ensure!(everywhere.is_err(), "the port is taken for all addresses: {everywhere:?}");
            }
            Ok(())
        })
        .await
    });
}

/// What istiod writes into the status of generated objects (the addresses that it allocates) makes the agents write
/// nothing.
#[test]
fn what_istiod_writes_is_left_alone() {
    with_meshes(async |meshes| {
        for domain in [&meshes.east, &meshes.west] {
            eventually("istiod has written addresses", SOON, || async {
                let bare = |one: &&DynamicObject| is_entry(one) && one.data["spec"]["addresses"].is_null();
                for entry in generated(domain).await?.iter().filter(bare) {
                    ensure!(!entry.data["status"]["addresses"].is_null(), "{:?}", entry.metadata.name);
                }
                Ok(())
            })
            .await?;
            let written = || -> Result<Vec<_>> {
                let writes = domain.kubernetes.writes_of(AGENT_USER)?;
                Ok(writes.into_iter().filter(|write| write.resource != "leases").collect())
            };
            // The peer's receipt comes some seconds after all else.
            let before = eventually("the agent is at rest", SOON, || async {
                let before = written()?;
                tokio::time::sleep(Duration::from_secs(8)).await;
                ensure!(written()? == before, "still writing");
                Ok(before)
            })
            .await?;
            always("the agent writes nothing", CALM, || async {
                let now = written()?;
                ensure!(now == before, "{:?}", now.get(before.len()..));
                Ok(())
            })
            .await?;
        }
        Ok(())
    });
}

fn is_entry(object: &DynamicObject) -> bool {
    object.types.as_ref().is_some_and(|types| types.kind == SERVICE_ENTRY.1)
}

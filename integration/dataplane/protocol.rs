//! The protocol, spoken by a client that is not ours: Envoy's own types in Go, each answer held to the rules that Envoy's protos
//! state for it (`tools/xds`).

use crate::application::Speaks;
use crate::pair::{Pair, with_pair};
use crate::ring::{Exported, PORT, Ring, SOON, withdraw};
use crate::tools::Tools;
use crate::wait::eventually;
use crate::world::found;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const API: &str = "entente.dev/v1alpha1";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// How long nothing must come.
const SILENCE: Duration = Duration::from_millis(700);

/// One stream of the client. Killed when dropped.
struct Outside {
    _child: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Outside {
    fn open(socket: &Path, variant: &str) -> Result<Self> {
        let mut child = Command::new(Tools::get()?.program("xds-client")?)
            .arg(socket)
            .arg(variant)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let requests = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(Self { _child: child, requests, answers })
    }

    async fn ask(&mut self, kind: &str, request: Value) -> Result<()> {
        let mut request = request;
        request["typeUrl"] = kind.into();
        self.requests.write_all(format!("{request}\n").as_bytes()).await?;
        Ok(())
    }

    /// The next answer, which must be of this type.
    async fn answer(&mut self, kind: &str) -> Result<Value> {
        let line = tokio::time::timeout(SOON, self.answers.next_line()).await.context("no answer")??;
        let answer: Value = serde_json::from_str(&line.context("the stream ended")?)?;
        ensure!(answer["typeUrl"] == kind, "{answer}");
        Ok(answer)
    }

    async fn is_silent(&mut self) -> Result<()> {
        match tokio::time::timeout(SILENCE, self.answers.next_line()).await {
            Err(_) => Ok(()),
            Ok(line) => bail!("it says {line:?}"),
        }
    }

    async fn error(&mut self) -> Result<String> {
        let line = tokio::time::timeout(SOON, self.answers.next_line()).await.context("no end")??;
        let answer: Value = serde_json::from_str(&line.context("it ended without a word")?)?;
        Ok(answer["error"].as_str().with_context(|| format!("{answer}"))?.to_owned())
    }
}

/// The names that came with an answer, by delta or with the state of the world.
fn came(answer: &Value) -> BTreeSet<String> {
    let all = answer["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |one: &Value| {
        ["/name", "/clusterName"].iter().find_map(|at| one.pointer(at)?.as_str().map(str::to_owned))
    };
    all.iter().filter_map(name).collect()
}

fn went(answer: &Value) -> Vec<&str> {
    answer["removedResources"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn named(services: &[&Exported]) -> BTreeSet<String> {
    services.iter().map(|service| format!("{}:{PORT}", service.host())).collect()
}

async fn exported(ring: &Ring, pair: &Pair, mode: &'static str, speaks: Speaks) -> Result<Exported> {
    let service = Exported::new(mode, speaks).await?;
    ring.export(pair, &service).await?;
    // What has an address in its status is served.
    service.address(&pair.east).await?;
    Ok(service)
}

/// Incremental: everything, names, what came and went, a refusal, and coming again with what was held.
#[test]
fn a_client_of_envoys_own_types_follows_what_changes() {
    with_pair(async |pair| {
        let ring = Ring::start(pair).await?;
        let tcp = exported(&ring, pair, "IstioMtls", Speaks::Tcp).await?;
        let grpc = exported(&ring, pair, "Mtls", Speaks::Grpc).await?;
        let mut client = Outside::open(&ring.socket_of_frontend, "delta")?;
        client.ask(CLUSTER, json!({"node": {"id": "outside", "userAgentName": "envoy"}})).await?;
        let clusters = client.answer(CLUSTER).await?;
        ensure!(came(&clusters) == named(&[&tcp, &grpc]), "{clusters}");
        client.ask(CLUSTER, json!({"responseNonce": clusters["nonce"]})).await?;
        client.is_silent().await?;

        let nowhere = "nowhere:1";
        let subscribe: Vec<String> = named(&[&tcp]).into_iter().chain([nowhere.to_owned()]).collect();
        client.ask(ENDPOINTS, json!({"resourceNamesSubscribe": subscribe})).await?;
        let endpoints = client.answer(ENDPOINTS).await?;
        ensure!(came(&endpoints) == named(&[&tcp]) && went(&endpoints) == [nowhere], "{endpoints}");
        client.ask(ENDPOINTS, json!({"resourceNamesUnsubscribe": subscribe})).await?;
        client.is_silent().await?;

        // It refuses, and is not sent the same again.
        client.ask(LISTENER, json!({})).await?;
        let listeners = client.answer(LISTENER).await?;
        let words = format!("{}:{PORT}: no room", tcp.host());
        let refusal =
            json!({"responseNonce": listeners["nonce"], "errorDetail": {"code": 13, "message": words}});
        client.ask(LISTENER, refusal).await?;
        client.is_silent().await?;
        let told = eventually("the agent tells who refused what", SOON, || async {
            let (code, said, _) = ring.of_east.command(&["clients"]).await?;
            ensure!(code == 1 && said.contains("refused a listener") && said.contains("no room"), "{said}");
            Ok(said)
        });
        let told = told.await?;
        ensure!(told.contains("spiffe://east.example/ns/web/sa/frontend"), "{told}");
        refusal_is_told(pair, &tcp).await?;

        withdraw(&pair.west, &tcp).await?;
        for kind in [CLUSTER, LISTENER] {
            let gone = client.answer(kind).await?;
            ensure!(came(&gone).is_empty(), "{gone}");
            ensure!(went(&gone) == named(&[&tcp]).iter().map(String::as_str).collect::<Vec<_>>(), "{gone}");
        }
        drop(client);

        // It comes again, with what it held.
        let held: Value = clusters["resources"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| (one["name"].as_str().unwrap_or_default().to_owned(), one["version"].clone()))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let mut again = Outside::open(&ring.socket_of_frontend, "delta")?;
        again.ask(CLUSTER, json!({"initialResourceVersions": held})).await?;
        let lacks = again.answer(CLUSTER).await?;
        ensure!(came(&lacks).is_empty() && went(&lacks).len() == 1, "{lacks}");

        // Everything by the name `*`, beside one name, and that one alone from then on.
        let mut all = Outside::open(&ring.socket_of_frontend, "delta")?;
        all.ask(ENDPOINTS, json!({"resourceNamesSubscribe": ["*", nowhere]})).await?;
        let both = all.answer(ENDPOINTS).await?;
        ensure!(came(&both) == named(&[&grpc]) && went(&both) == [nowhere], "{both}");
        all.ask(ENDPOINTS, json!({"resourceNamesUnsubscribe": ["*"]})).await?;
        all.is_silent().await?;

        // Another ID is told that there is nothing.
        let mut other = Outside::open(&ring.socket_of_batch, "delta")?;
        other.ask(LISTENER, json!({})).await?;
        let nothing = other.answer(LISTENER).await?;
        ensure!(came(&nothing).is_empty() && went(&nothing).is_empty(), "{nothing}");
        // And one that asks for too much loses its stream.
        let many: Vec<String> = (0..30_000).map(|n| format!("name-{n}")).collect();
        other.ask(ENDPOINTS, json!({"resourceNamesSubscribe": many})).await?;
        let error = other.error().await?;
        ensure!(error.contains("ResourceExhausted"), "{error}");
        Ok(())
    });
}

/// The ImportedService that a refusal names says so, and what it says is not written again.
async fn refusal_is_told(pair: &Pair, refused: &Exported) -> Result<()> {
    let condition = || async {
        let import =
            found(&pair.east, API, "ImportedService", Some("entente-system"), &refused.host()).await?;
        let all = import.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let taken = all.into_iter().find(|one| one["type"] == "TakenByClients").context("it is taken")?;
        ensure!(taken["status"] == "False" && taken["reason"] == "ClientRefuses", "{taken}");
        let message = taken["message"].as_str().unwrap_or_default();
        let whom = "spiffe://east.example/ns/web/sa/frontend refuses a listener";
        ensure!(message.contains(whom) && message.contains("no room"), "{taken}");
        Ok(import.metadata.resource_version)
    };
    let written = eventually("the import says who refuses it", SOON, condition).await?;
    tokio::time::sleep(SILENCE).await;
    ensure!(condition().await? == written, "it is written again");
    Ok(())
}

/// The state of the world, for Envoy and for gRPC, which are sent what is theirs.
#[test]
fn a_client_of_envoys_own_types_follows_the_state_of_the_world() {
    with_pair(async |pair| {
        let ring = Ring::start(pair).await?;
        let tcp = exported(&ring, pair, "IstioMtls", Speaks::Tcp).await?;
        let grpc = exported(&ring, pair, "Mtls", Speaks::Grpc).await?;
        let mut client = Outside::open(&ring.socket_of_frontend, "sotw")?;
        client.ask(LISTENER, json!({"node": {"id": "outside", "userAgentName": "envoy"}})).await?;
        let all = client.answer(LISTENER).await?;
        ensure!(came(&all) == named(&[&tcp, &grpc]), "{all}");
        let ack = json!({"versionInfo": all["versionInfo"], "responseNonce": all["nonce"]});
        client.ask(LISTENER, ack).await?;
        client.is_silent().await?;

        let mut library = Outside::open(&ring.socket_of_frontend, "sotw")?;
        let names: Vec<String> = named(&[&tcp, &grpc]).into_iter().collect();
        let node = json!({"id": "library", "userAgentName": "gRPC Go"});
        library.ask(LISTENER, json!({"node": node, "resourceNames": names})).await?;
        let api = library.answer(LISTENER).await?;
        ensure!(came(&api) == named(&[&grpc]), "{api}");
        ensure!(api.pointer("/resources/0/apiListener/apiListener/routeConfig").is_some(), "{api}");
        for kind in [CLUSTER, ENDPOINTS] {
            library.ask(kind, json!({"resourceNames": [format!("{}:{PORT}", grpc.host())]})).await?;
            let one = library.answer(kind).await?;
            ensure!(came(&one) == named(&[&grpc]), "{one}");
        }

        withdraw(&pair.west, &tcp).await?;
        let fewer = client.answer(LISTENER).await?;
        ensure!(came(&fewer) == named(&[&grpc]), "{fewer}");
        drop(client);
        let mut again = Outside::open(&ring.socket_of_frontend, "sotw")?;
        again.ask(LISTENER, json!({"versionInfo": fewer["versionInfo"]})).await?;
        again.is_silent().await?;
        let mut behind = Outside::open(&ring.socket_of_frontend, "sotw")?;
        behind.ask(LISTENER, json!({"versionInfo": all["versionInfo"]})).await?;
        ensure!(came(&behind.answer(LISTENER).await?) == named(&[&grpc]));
        Ok(())
    });
}
